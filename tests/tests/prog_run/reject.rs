//! Services that nobody serves and whose clients are told: TCP resets and unreachable ports, from the program.

use crate::{
    icmp::{check_message, stay_on_one_cpu},
    rig::Rig,
};
use lb_common::core::DropReason;
use lb_tests::{
    kernel::{Counters, Verdict},
    packets::{ACK, DOT1AD, DOT1Q, Extension, FIN, Packet, RST, SYN, Transport, check, describe},
};

/// Sequence number, acknowledgement and flags of the reset that answers a segment (RFC 9293 section 3.10.7.1).
fn expected(packet: &Packet) -> (u32, u32, u8) {
    let Transport::Tcp(tcp) = &packet.transport else { panic!("no segment") };
    if tcp.flags & ACK != 0 {
        return (tcp.ack, 0, RST);
    }
    let len = tcp.payload.len() as u32 + u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
    (0, tcp.seq.wrapping_add(len), RST | ACK)
}

#[track_caller]
fn resets(rig: &mut Rig, what: &str, packet: &Packet) {
    let asked = packet.build();
    let (outcome, moved) = rig.run(&asked);
    assert_eq!(outcome.verdict, Verdict::Tx, "{what}: {moved:?}\n{}", describe(&asked));
    assert_eq!(moved, Counters::one(DropReason::Rejected.into(), 0), "{what}");
    let why = |why: String| -> String { panic!("{what}: {why}\n{}", describe(&outcome.frame)) };
    let answer = check::parse(&outcome.frame).map_err(why).expect("an answer");
    check::tcp(&answer).map_err(why).expect("a segment with a right checksum");
    let (client, vip) = packet.addresses();
    assert_eq!((answer.src, answer.dst, answer.ttl, answer.tos), (vip, client, 64, 0), "{what}");
    assert_eq!((answer.dst_mac, answer.src_mac), (packet.src_mac, packet.dst_mac), "{what}");
    assert_eq!(outcome.frame[12..packet.l3()], asked[12..packet.l3()], "{what}: type and tags");
    assert!(answer.checksum_ok, "{what}");
    let header = if packet.is_v6() { 40 } else { 20 };
    assert_eq!(answer.ip.len(), header + 20, "{what}: no options, no data");
    // As small as the packet, and no smaller than Ethernet's smallest where that was kept to.
    let least = packet.l3() + header + 20;
    assert_eq!(outcome.frame.len(), if asked.len() < 60 { least } else { least.max(60) }, "{what}");
    let tcp = &answer.ip[header..];
    let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("four bytes"));
    let (src, dst) = packet.ports();
    assert_eq!(word(0), u32::from(dst) << 16 | u32::from(src), "{what}: ports");
    assert_eq!((word(4), word(8), tcp[13]), expected(packet), "{what}: sequence numbers and flags");
    assert_eq!((tcp[12], &tcp[14..16], &tcp[18..20]), (0x50, &[0, 0][..], &[0, 0][..]), "{what}");
}

#[track_caller]
fn unreachable(rig: &mut Rig, what: &str, packet: &Packet) {
    let (outcome, moved) = rig.run(&packet.build());
    assert_eq!(outcome.verdict, Verdict::Tx, "{what}: {moved:?}");
    assert_eq!(moved, Counters::one(DropReason::Rejected.into(), 0), "{what}");
    let message = if packet.is_v6() { (1, 4, 0) } else { (3, 3, 0) };
    check_message(packet, &outcome, message)
        .unwrap_or_else(|why| panic!("{what}: {why}\n{}", describe(&outcome.frame)));
}

fn packets(rig: &Rig, service: &str, v6: bool) -> Vec<(&'static str, Packet)> {
    let plain = rig.world.packet(service, v6, 7);
    let options = plain.with(|p| match v6 {
        false => p.v4().options = vec![1; 40],
        true => p.v6().extensions = vec![Extension::options(0, 1), Extension::options(60, 3)],
    });
    vec![
        ("plain", plain.clone()),
        ("options or extension headers", options.clone()),
        ("tagged", plain.with(|p| p.tags = vec![(DOT1Q, 0x2007)]).with_tos(0x55)),
        ("tagged twice", options.with(|p| p.tags = vec![(DOT1AD, 5), (DOT1Q, 6)])),
        ("padded", plain.with(|p| p.pad_to = 60)),
        ("padded, tagged", plain.with(|p| (p.tags, p.pad_to) = (vec![(DOT1Q, 1)], 300))),
        ("large", plain.with_ip_len(1400)),
    ]
}

/// Every segment but a reset, whatever it carries, established or new.
#[test]
fn segments_are_reset() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for (what, packet) in packets(&rig, "refusing-tcp", v6) {
            for flags in [SYN, SYN | ACK, ACK, FIN | ACK, SYN | 0xc0, ACK | 8] {
                for (seq, ack) in [(1, 2), (u32::MAX, 0x8000_0000), (0xffff_fff0, 0)] {
                    let packet = packet.with(|p| {
                        let tcp = p.tcp_mut();
                        (tcp.flags, tcp.seq, tcp.ack) = (flags, seq, ack);
                    });
                    resets(&mut rig, &format!("{what}, flags {flags:#x}, IPv6 {v6}"), &packet);
                    for payload in [0, 1, 7] {
                        let packet = packet.with(|p| {
                            p.tcp_mut().payload = vec![0x5a; payload];
                            p.tcp_mut().options = vec![1; 12];
                        });
                        resets(&mut rig, &format!("{what}, {payload} bytes"), &packet);
                    }
                }
            }
            for flags in [RST, RST | ACK] {
                let reset = packet.with(|p| p.tcp_mut().flags = flags);
                rig.drops(&format!("{what}: a reset"), &reset.build(), DropReason::NoBackend);
            }
        }
    }
}

/// Datagrams are told that the port is unreachable.
#[test]
fn datagrams_are_told() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for (what, packet) in packets(&rig, "refusing-udp", v6) {
            unreachable(&mut rig, &format!("{what}, IPv6 {v6}"), &packet);
        }
        // The first fragment is told, the others are not (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
        let mut pieces =
            rig.world.packet("refusing-udp", v6, 9).with_ip_len(1000).fragments(3, 400).into_iter();
        unreachable(&mut rig, "first fragment", &pieces.next().expect("a first fragment"));
        for piece in pieces {
            rig.drops("a later fragment", &piece.build(), DropReason::FragmentUnknown);
        }
        let piece = rig.world.packet("refusing-tcp", v6, 9).with_ip_len(1000).fragments(3, 400).remove(0);
        rig.drops("of a segment", &piece.build(), DropReason::NoBackend);
    }
}

/// Sources that name no single host are not answered; nor are broken packets.
#[test]
fn only_single_hosts_are_told() {
    let mut rig = Rig::new();
    for service in ["refusing-tcp", "refusing-udp"] {
        for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            let packet = rig.world.packet(service, false, 1).with(|p| p.v4().src = source.parse().unwrap());
            rig.drops(source, &packet.build(), DropReason::RejectedUnanswered);
        }
        for source in ["::", "::1", "ff02::1"] {
            let packet = rig.world.packet(service, true, 1).with(|p| p.v6().src = source.parse().unwrap());
            rig.drops(source, &packet.build(), DropReason::RejectedUnanswered);
        }
    }
    let packet = rig.world.packet("refusing-tcp", false, 1).with(|p| p.tcp_mut().flags = 0);
    rig.drops("no flags", &packet.build(), DropReason::TcpFlags);
    let packet = rig.world.packet("refusing-tcp", false, 1).with_ttl(1);
    crate::icmp::expires(&mut rig, "its TTL ends", &packet);
}

/// Resets and messages have tokens of their own, apart from each other's.
#[test]
fn answers_take_tokens() {
    stay_on_one_cpu();
    let mut rig = Rig::new();
    for v6 in [false, true] {
        rig.balancer.set_tokens(3);
        let (tcp, udp) = (rig.world.packet("refusing-tcp", v6, 1), rig.world.packet("refusing-udp", v6, 1));
        for _ in 0..3 {
            resets(&mut rig, "with a token", &tcp);
        }
        rig.drops("without", &tcp.build(), DropReason::RejectedUnanswered);
        for _ in 0..3 {
            unreachable(&mut rig, "with a token", &udp);
        }
        rig.drops("without", &udp.build(), DropReason::RejectedUnanswered);
        let packet = rig.world.packet("dsr4-tcp", v6, 1).with_ttl(1);
        crate::icmp::expires(&mut rig, "tokens of its own", &packet);
    }
}
