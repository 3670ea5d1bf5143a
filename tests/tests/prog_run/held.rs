//! Fragments before the first one of their datagram: held while a daemon says that it is there, and sent again.

use crate::rig::Rig;
use lb_common::{
    abi::{Bucket, HELD_BYTES, HELD_FRAME, HeldFrame, RESENT},
    core::DropReason,
};
use lb_tests::{
    kernel::{Counters, INGRESS, Verdict},
    packets::{DOT1Q, Packet},
};

const HELD: DropReason = DropReason::FragmentHeld;
const UNKNOWN: DropReason = DropReason::FragmentUnknown;

fn pieces(rig: &Rig, v6: bool, client: u16) -> (Packet, Vec<Packet>) {
    let whole = rig.world.packet("gue4-udp", v6, client).with(|p| *p.payload() = vec![7; 700]);
    let pieces = whole.fragments(u32::from(client), 256);
    (whole, pieces)
}

/// The record has the frame as it came and where it came in; sent again it goes where the first went.
#[test]
fn a_fragment_before_the_first_is_held_and_sent_again() {
    let mut rig = Rig::new();
    rig.balancer.hold_until(u64::MAX);
    for v6 in [false, true] {
        for tags in [vec![], vec![(DOT1Q, 7)]] {
            let (whole, all) = pieces(&rig, v6, 1 + tags.len() as u16);
            let all: Vec<_> = all.iter().map(|p| p.with(|p| p.tags = tags.clone())).collect();
            rig.drops("the last before the first", &all[2].build(), HELD);
            let held = rig.balancer.held();
            assert_eq!(held.len(), 1);
            let l3 = 14 + 4 * tags.len() as u32;
            assert_eq!(held[0].frame(), all[2].build());
            assert_eq!((held[0].ifindex, held[0].l3, held[0].v6), (INGRESS, l3, v6.into()));
            assert!(held[0].seen_ns > 0);

            // A second time it is not held.
            let outcome = rig.balancer.resend(held[0].frame());
            assert_eq!((outcome.verdict, rig.moved()), (Verdict::Drop, Counters::one(UNKNOWN.into(), 0)));
            assert_eq!(rig.balancer.held(), []);

            rig.forwards_as("the first", "gue4-udp", &all[0], &whole);
            let again = rig.balancer.resend(held[0].frame());
            let moved = rig.moved();
            let beside = rig.balancer.run(&all[2].build());
            assert_eq!(again, beside, "as if it had come after the first");
            assert_eq!(moved, rig.moved());
            assert_eq!(rig.balancer.held(), []);
        }
    }
}

/// A trace of half a minute ago is of another datagram of the same identification.
#[test]
fn an_old_trace_is_none() {
    let mut rig = Rig::new();
    let up = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    std::thread::sleep(std::time::Duration::from_secs(40).saturating_sub(up.into()));
    rig.balancer.hold_until(u64::MAX);
    let (whole, all) = pieces(&rig, false, 1);
    rig.forwards_as("the first", "gue4-udp", &all[0], &whole);
    rig.balancer.age_fragments(31_000_000_000);
    rig.drops("of another datagram", &all[1].build(), HELD);
}

/// Nobody is there, the limit is reached, the frame is too long, the ring buffer is full: dropped and counted as ever.
#[test]
fn what_cannot_be_held_is_dropped() {
    let mut rig = Rig::new();
    let (_, all) = pieces(&rig, true, 1);
    let frame = all[1].build();
    rig.drops("no daemon", &frame, UNKNOWN);
    rig.balancer.hold_until(1);
    rig.drops("a daemon that died long ago", &frame, UNKNOWN);
    rig.balancer.hold_until(u64::MAX);
    rig.drops("a daemon", &frame, HELD);

    rig.balancer.set_bucket(Bucket { refilled_ns: u64::MAX, tokens: 0 });
    rig.drops("the limit", &frame, UNKNOWN);
    rig.balancer.set_tokens(u64::MAX / 2);
    rig.balancer.held();

    for v6 in [false, true] {
        let whole = rig.world.packet("dsr4-udp", v6, 1).with_ip_len(3_200);
        let later = whole.fragments(3, 1_992)[1].clone();
        let long = |by: usize| later.with(|p| p.pad_to = HELD_FRAME + by).build();
        rig.drops("as long as can be", &long(0), HELD);
        assert_eq!(rig.balancer.held()[0].frame(), long(0));
        rig.drops("longer", &long(1), UNKNOWN);
    }

    // Every record has a header of 8 bytes, and one byte of the buffer stays free.
    let room = (u64::from(HELD_BYTES) - 1) / (size_of::<HeldFrame>() as u64 + 8);
    for _ in 0..room {
        rig.drops("room", &frame, HELD);
    }
    rig.drops("full", &frame, UNKNOWN);
    assert_eq!(rig.balancer.held().len() as u64, room);
    rig.drops("room again", &frame, HELD);
}

/// What looks like the mark inside the packet is none.
#[test]
fn nobody_outside_can_mark_a_frame() {
    let mut rig = Rig::new();
    rig.balancer.hold_until(u64::MAX);
    let (_, all) = pieces(&rig, false, 1);
    let marked = all[1].with(|p| {
        p.dst_mac.copy_from_slice(&RESENT[..6]);
        // "l" is even: no group address.
        p.src_mac[..2].copy_from_slice(&RESENT[6..]);
    });
    rig.drops("a frame that begins with the mark", &marked.build(), HELD);
}
