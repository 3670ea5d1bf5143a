//! Echo requests to a VIP are answered by the program.

use crate::{icmp::stay_on_one_cpu, rig::Rig};
use lb_common::{abi::VipEntry, core::DropReason};
use lb_tests::{
    kernel::{Counters, Verdict, vip},
    packets::{DOT1AD, DOT1Q, Extension, Packet, Transport, check, describe},
};

fn ping(rig: &Rig, v6: bool, data: usize) -> Packet {
    let packet = rig.world.packet("dsr4-tcp", v6, 1);
    packet.with(|p| p.transport = Transport::Echo((0..data).map(|i| (i * 7) as u8).collect()))
}

#[track_caller]
fn answers(rig: &mut Rig, what: &str, packet: &Packet) {
    let (outcome, moved) = rig.run(&packet.build());
    assert_eq!(outcome.verdict, Verdict::Tx, "{what}: {moved:?}");
    assert_eq!(moved, Counters::one(DropReason::EchoAnswered.into(), 0), "{what}");
    let why = |why: String| -> String { panic!("{what}: {why}\n{}", describe(&outcome.frame)) };
    let reply = check::parse(&outcome.frame).map_err(why).expect("a reply");
    let icmp = check::icmp(&reply).map_err(why).expect("an ICMP message");
    let (client, vip) = packet.addresses();
    assert_eq!((reply.src, reply.dst, reply.ttl), (vip, client, 64), "{what}");
    assert_eq!((reply.dst_mac, reply.src_mac), (packet.src_mac, packet.dst_mac), "{what}");
    assert!(reply.checksum_ok, "{what}");
    assert_eq!((icmp.kind, icmp.code), (if packet.is_v6() { 129 } else { 0 }, 0), "{what}");
    let asked = packet.build();
    assert_eq!(outcome.frame.len(), asked.len(), "{what}");
    assert_eq!(outcome.frame[12..packet.l3()], asked[12..packet.l3()], "{what}: type and tags");
    // Identifier, sequence number and data.
    let message = packet.l3() + if packet.is_v6() { 40 } else { 20 } + 4;
    assert_eq!(outcome.frame[message..], asked[message..], "{what}");
}

/// Any size that fits a frame, behind tags, whatever the TTL.
#[test]
fn every_size_is_answered() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for data in (0..64).chain([1000, 1001, 1452, 3000]) {
            let packet = ping(&rig, v6, data);
            answers(&mut rig, &format!("{data} bytes"), &packet);
        }
        let packet = ping(&rig, v6, 56);
        for ttl in [1, 2, 255] {
            answers(&mut rig, "TTL", &packet.with_ttl(ttl));
        }
        for tags in [vec![(DOT1Q, 0x2007)], vec![(DOT1AD, 5), (DOT1Q, 6)]] {
            answers(&mut rig, "tagged", &packet.with(|p| p.tags = tags).with_tos(0x55));
        }
        let packet = ping(&rig, v6, 1).with(|p| p.pad_to = 60);
        answers(&mut rig, "padded", &packet);
    }
}

/// What is no plain echo request to a VIP is the kernel's.
#[test]
fn what_is_no_plain_request_passes() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let packet = ping(&rig, v6, 8);
        answers(&mut rig, "the neighbour", &packet);
        let bytes = &packet.ip()[if v6 { 40 } else { 20 }..];
        let number = if v6 { 58 } else { 1 };
        // The reply, timestamps, neighbour discovery, another code, an IPv4 request in IPv6 and the reverse.
        for kind in [0u8, 5, 9, 13, 17, 129, 133, 134, 135, 136, if v6 { 8 } else { 128 }] {
            let other = packet.with(|p| {
                p.transport = Transport::Other(number, [&[kind], &bytes[1..]].concat());
            });
            rig.passes(&format!("type {kind}"), &other.build());
        }
        let code = packet
            .with(|p| p.transport = Transport::Other(number, [&bytes[..1], &[1], &bytes[2..]].concat()));
        rig.passes("code 1", &code.build());
        rig.passes(
            "cut",
            &packet.with(|p| p.transport = Transport::Other(number, bytes[..7].to_vec())).build(),
        );
        let cut = packet.with(|p| p.transport = Transport::Other(number, bytes[..7].to_vec()));
        rig.passes("cut, but for the padding", &cut.with(|p| p.pad_to = 80).build());
        let options = packet.with(|p| match v6 {
            false => p.v4().options = vec![1; 4],
            true => p.v6().extensions = vec![Extension::options(0, 1)],
        });
        rig.passes("options", &options.build());
        for piece in ping(&rig, v6, 100).fragments(7, 64) {
            rig.passes("in fragments", &piece.build());
        }
        let frame = packet.with(|p| p.dst_mac[0] |= 1).build();
        rig.passes("to a group address", &frame);
    }
    for source in ["127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        let packet = ping(&rig, false, 8).with(|p| p.v4().src = source.parse().unwrap());
        rig.drops(source, &packet.build(), DropReason::EchoUnanswered);
    }
    for source in ["::", "::1", "ff02::1"] {
        let packet = ping(&rig, true, 8).with(|p| p.v6().src = source.parse().unwrap());
        rig.drops(source, &packet.build(), DropReason::EchoUnanswered);
    }
}

/// `answer_ping = false`: the kernel's, as before.
#[test]
fn pings_can_be_left_to_the_kernel() {
    let mut rig = Rig::new();
    let mut image = rig.world.image.clone();
    for v6 in [false, true] {
        image.vips.get_mut(&vip(10, v6)).unwrap().flags &= !VipEntry::ECHO;
    }
    rig.balancer.set_image(&image);
    for v6 in [false, true] {
        rig.passes("off", &ping(&rig, v6, 56).build());
    }
}

/// Beyond the rate requests are dropped and counted.
#[test]
fn replies_take_tokens() {
    stay_on_one_cpu();
    let mut rig = Rig::new();
    for v6 in [false, true] {
        rig.balancer.set_tokens(3);
        let packet = ping(&rig, v6, 56);
        for _ in 0..3 {
            answers(&mut rig, "with a token", &packet);
        }
        rig.drops("without", &packet.build(), DropReason::EchoUnanswered);
    }
}
