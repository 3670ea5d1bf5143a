//! Passive health: SYNs that are counted, watched, and known again.

use crate::rig::Rig;
use lb_common::abi::{ServiceEntry, Signal, SynCell};
use lb_tests::{
    kernel::{Counter, Verdict},
    packets::{ACK, FIN, Packet, RST, SYN},
};

const TCP: &str = "dsr4-tcp";
/// A little more than a third of a second, three seconds, and more than a SYN is watched for.
const SOON: u64 = 4 << 27;
const LATER: u64 = 24 << 27;
const OVER: u64 = SynCell::HOLD_NS + SOON;

fn flag(rig: &mut Rig, flags: u32) {
    let id = rig.world.image.service_id(TCP).unwrap();
    rig.world.image.services.get_mut(&id).unwrap().entry.flags = flags;
    rig.balancer.set_image(&rig.world.image);
}

fn packet(rig: &Rig, v6: bool, client: u16, flags: u8, seq: u32) -> Packet {
    rig.world.packet(TCP, v6, client).with(|p| {
        p.tcp_mut().flags = flags;
        p.tcp_mut().seq = seq;
    })
}

/// The signals that a packet moves, all of its own backend.
#[track_caller]
fn signals(rig: &mut Rig, packet: &Packet) -> Vec<Signal> {
    let to = rig.world.predict(TCP, packet).backend_id;
    let (outcome, moved) = rig.run(&packet.build());
    assert!(matches!(outcome.verdict, Verdict::Tx | Verdict::Redirect), "{:?}: {moved:?}", outcome.verdict);
    let mut found = Vec::new();
    for (counter, (count, _)) in moved.iter() {
        match counter {
            Counter::Signal(backend, signal) => {
                assert_eq!((backend, count), (to, 1), "{moved:?}");
                found.push(signal);
            }
            Counter::Backend(backend) => assert_eq!(backend, to, "{moved:?}"),
            Counter::Service(_) => {}
            other => panic!("{other:?} moved: {moved:?}"),
        }
    }
    found
}

#[test]
fn a_syn_that_comes_again_counts_once() {
    let mut rig = Rig::new();
    flag(&mut rig, ServiceEntry::PASSIVE);
    for (v6, client) in [(false, 1), (true, 1), (false, 900), (true, 900)] {
        let syn = packet(&rig, v6, client, SYN, 7_000);
        assert_eq!(signals(&mut rig, &syn), [Signal::Syn, Signal::Watched]);
        for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
            let other = packet(&rig, v6, client, flags, 7_000);
            assert_eq!(signals(&mut rig, &other), [], "only a SYN is counted");
        }
        rig.balancer.age_syns(SOON);
        assert_eq!(signals(&mut rig, &syn), [Signal::Syn, Signal::Repeat]);
        rig.balancer.age_syns(LATER);
        assert_eq!(signals(&mut rig, &syn), [Signal::Syn], "once");
        // The same addresses and ports with another sequence number are another connection, which waits for the cell.
        let next = packet(&rig, v6, client, SYN, 7_001);
        assert_eq!(signals(&mut rig, &next), [Signal::Syn]);
        rig.balancer.age_syns(OVER);
        assert_eq!(signals(&mut rig, &next), [Signal::Syn, Signal::Watched]);
        // Its repetition is known longer than the cell is kept from others.
        rig.balancer.age_syns(OVER);
        assert_eq!(signals(&mut rig, &next), [Signal::Syn, Signal::Repeat]);
        rig.balancer.age_syns(OVER);
    }
}

#[test]
fn without_the_flag_nothing_is_counted() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let syn = packet(&rig, v6, 3, SYN, 1);
        assert_eq!(signals(&mut rig, &syn), []);
        rig.balancer.age_syns(SOON);
        assert_eq!(signals(&mut rig, &syn), []);
    }
}

/// Where the source alone chooses the slot it has one cell: it cannot make its backend look bad by many connections.
#[test]
fn a_source_with_one_slot_has_one_cell() {
    let mut rig = Rig::new();
    flag(&mut rig, ServiceEntry::PASSIVE | ServiceEntry::SOURCE_IP);
    let mut watched = 0;
    for port in 0..50 {
        let syn = packet(&rig, false, 1, SYN, 9).with(|p| p.tcp_mut().src = 20_000 + port);
        let (_, moved) = rig.run(&syn.build());
        let of = |signal: Signal| -> u64 {
            moved
                .iter()
                .filter(|(c, _)| matches!(c, Counter::Signal(_, s) if *s == signal))
                .map(|(_, n)| n.0)
                .sum()
        };
        assert_eq!(of(Signal::Syn), 1);
        watched += of(Signal::Watched);
    }
    assert_eq!(watched, 1);
}
