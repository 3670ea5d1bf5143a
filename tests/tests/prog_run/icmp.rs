//! Packets that are larger than the egress: the sender is told, so far as the rate limit goes.

use crate::rig::Rig;
use lb_common::{abi::Bucket, core::DropReason};
use lb_tests::{
    kernel::{Counters, Outcome, Verdict},
    packets::{DOT1AD, DOT1Q, Net, Packet, check, describe},
};
use std::time::Instant;

/// Bytes of the refused packet an answer quotes.
const QUOTE: usize = 128;

fn too_big(rig: &mut Rig, what: &str, packet: &Packet, mtu: u16) {
    let frame = packet.build();
    let (outcome, moved) = rig.run(&frame);
    assert_eq!(outcome.verdict, Verdict::Tx, "{what}: {moved:?}");
    assert_eq!(moved, Counters::one(DropReason::TooBig.into(), 0), "{what}");
    let why = |why: String| panic!("{what}: {why}\n{}", describe(&outcome.frame));
    check_answer(packet, &outcome, mtu).unwrap_or_else(why);
}

/// A packet whose TTL ends here is told so, from the VIP.
#[track_caller]
pub fn expires(rig: &mut Rig, what: &str, packet: &Packet) {
    let frame = packet.build();
    let (outcome, moved) = rig.run(&frame);
    assert_eq!(outcome.verdict, Verdict::Tx, "{what}: {moved:?}");
    assert_eq!(moved, Counters::one(DropReason::TtlExceeded.into(), 0), "{what}");
    let kind = if packet.is_v6() { (3, 0, 0) } else { (11, 0, 0) };
    check_message(packet, &outcome, kind)
        .unwrap_or_else(|why| panic!("{what}: {why}\n{}", describe(&outcome.frame)));
}

fn check_answer(packet: &Packet, outcome: &Outcome, mtu: u16) -> Result<(), String> {
    let (kind, code) = if packet.is_v6() { (2, 0) } else { (3, 4) };
    check_message(packet, outcome, (kind, code, mtu.into()))
}

/// The answer is what RFC 792 and RFC 1191, or RFC 4443, want: type, code, rest, and a quote.
pub fn check_message(packet: &Packet, outcome: &Outcome, message: (u8, u8, u32)) -> Result<(), String> {
    let answer = check::parse(&outcome.frame)?;
    let icmp = check::icmp(&answer)?;
    let (client, vip) = packet.addresses();
    let tags: Vec<u16> = packet.tags.iter().map(|(_, tci)| tci & 0xfff).collect();
    let found = (answer.dst_mac, answer.src_mac, &answer.vlans, answer.src, answer.dst, answer.ttl);
    let expected = (packet.src_mac, packet.dst_mac, &tags, vip, client, 64);
    if found != expected {
        return Err(format!("{found:?}, expected {expected:?}"));
    }
    if (icmp.kind, icmp.code, icmp.rest) != message {
        return Err(format!("{icmp:?}, expected type, code and rest {message:?}"));
    }
    let sent = packet.ip();
    if icmp.quote != &sent[..sent.len().min(QUOTE)] {
        return Err("the quote is not what was sent".to_owned());
    }
    if !(answer.checksum_ok && answer.padding.is_empty() && answer.tos == 0) {
        return Err(format!("{answer:?}"));
    }
    Ok(())
}

/// What fits exactly goes; one byte more is answered with the largest size that fits, in every mode.
#[test]
fn the_boundary_is_exact() {
    let mut rig = Rig::new();
    for (mode, overhead) in
        [("dsr4", 0), ("dsr6", 0), ("ipip4", 20), ("ipip6", 40), ("gue4", 28), ("gue6", 48)]
    {
        for protocol in ["tcp", "udp"] {
            for v6 in [false, true] {
                let service = format!("{mode}-{protocol}");
                let path_mtu = 1500 - overhead;
                for client in 0..3 {
                    let packet = rig.world.packet(&service, v6, client);
                    let fits = packet.with_ip_len(path_mtu);
                    rig.forwards(&format!("{service}, {path_mtu} bytes"), &service, &fits);
                    for len in [path_mtu + 1, path_mtu + 2, 1501, 2800] {
                        let what = format!("{service}, {len} bytes, IPv6 {v6}");
                        too_big(&mut rig, &what, &packet.with_ip_len(len), path_mtu as u16);
                    }
                }
            }
        }
    }
}

/// Tags of the ingress stay on the answer, which goes back the way the packet came.
#[test]
fn tags_stay_on_the_answer() {
    let mut rig = Rig::new();
    let taggings: [&[(u16, u16)]; 3] =
        [&[(DOT1Q, 7)], &[(DOT1AD, 0x2005), (DOT1Q, 9)], &[(DOT1Q, 1), (DOT1Q, 2)]];
    for tags in taggings {
        for v6 in [false, true] {
            let packet = rig.world.packet("ipip4-tcp", v6, 1);
            let packet = packet.with(|p| p.tags = tags.to_vec()).with_ip_len(1481).with_tos(0x55);
            too_big(&mut rig, &format!("tags {tags:x?}"), &packet, 1480);
            // What was tagged on the wire has the same tags, priority and type included.
            let frame = packet.build();
            let out = rig.run(&frame).0.frame;
            assert_eq!(out[12..packet.l3()], frame[12..packet.l3()]);
        }
    }
}

/// IPv4 options and IPv6 extension headers are quoted as they are; padding is not.
#[test]
fn the_quote_is_what_was_sent() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("gue4-udp", false, 1).with(|p| p.v4().options = vec![1; 40]);
    too_big(&mut rig, "IPv4 options", &packet.with_ip_len(1473), 1472);
    let packet = rig.world.packet("gue4-udp", true, 1);
    let packet = packet.with(|p| p.v6().extensions = vec![lb_tests::packets::Extension::options(60, 3)]);
    too_big(&mut rig, "an extension header", &packet.with_ip_len(1473), 1472);
    let padded = rig.world.packet("mtu150", false, 1).with_ip_len(131).with(|p| p.pad_to = 300);
    too_big(&mut rig, "padding", &padded, 130);
}

/// What is shorter than a quote is quoted whole, an odd last byte and all; padding of the frame is not.
#[test]
fn short_packets_are_quoted_whole() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let packet = rig.world.packet("mtu100", v6, 1);
        rig.forwards("80 bytes", "mtu100", &packet.with_ip_len(80));
        for len in 81..=130 {
            too_big(&mut rig, &format!("{len} bytes"), &packet.with_ip_len(len), 80);
        }
        too_big(&mut rig, "padded", &packet.with_ip_len(127).with(|p| p.pad_to = 300), 80);
        let packet = rig.world.packet("mtu150", v6, 1);
        rig.forwards("130 bytes", "mtu150", &packet.with_ip_len(130));
        too_big(&mut rig, "131 bytes", &packet.with_ip_len(131), 130);
    }
}

/// Every length from the smallest on, in every mode, behind tags too.
#[test]
fn a_ttl_that_ends_is_told() {
    let mut rig = Rig::new();
    for service in ["dsr4-udp", "ipip6-udp", "gue4-udp"] {
        for v6 in [false, true] {
            for len in (if v6 { 48 } else { 28 })..140 {
                for (tags, pad_to) in
                    [(vec![], 60), (vec![(DOT1Q, 5)], 0), (vec![(DOT1AD, 5), (DOT1Q, 6)], 0)]
                {
                    let packet = rig.world.packet(service, v6, len as u16).with_ttl(1).with_ip_len(len);
                    let packet = packet.with(|p| (p.tags, p.pad_to) = (tags, pad_to));
                    expires(&mut rig, &format!("{service}, {len} bytes"), &packet);
                }
            }
        }
    }
}

/// The tokens of the two kinds of answers are apart.
#[test]
fn a_flood_of_ended_ttls_leaves_too_big_alone() {
    stay_on_one_cpu();
    let mut rig = Rig::new();
    rig.balancer.set_tokens(2);
    let packet = rig.world.packet("dsr4-tcp", false, 1);
    for _ in 0..2 {
        expires(&mut rig, "with a token", &packet.with_ttl(1));
    }
    rig.drops("without", &packet.with_ttl(1).build(), DropReason::TtlExceededUnanswered);
    too_big(&mut rig, "with a token of its own", &packet.with_ip_len(1501), 1500);
}

/// RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e.6): sources that name no single host are not answered.
#[test]
fn only_single_hosts_are_told() {
    let mut rig = Rig::new();
    for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        let packet = rig.world.packet("dsr4-tcp", false, 1).with_ip_len(1501);
        let packet = packet.with(|p| p.v4().src = source.parse().unwrap());
        rig.drops(source, &packet.build(), DropReason::TooBigUnanswered);
    }
    for source in ["::", "::1", "ff02::1"] {
        let packet = rig.world.packet("dsr4-tcp", true, 1).with_ip_len(1501);
        let packet = packet.with(|p| p.v6().src = source.parse().unwrap());
        rig.drops(source, &packet.build(), DropReason::TooBigUnanswered);
    }
}

/// Keeps this thread on one CPU: the buckets are per CPU.
pub fn stay_on_one_cpu() {
    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

/// Three tokens, three answers; the rest is dropped without one, and counted apart.
#[test]
fn answers_take_tokens() {
    stay_on_one_cpu();
    let mut rig = Rig::new();
    for v6 in [false, true] {
        rig.balancer.set_tokens(3);
        let packet = rig.world.packet("dsr4-tcp", v6, 1).with_ip_len(1501);
        for _ in 0..3 {
            too_big(&mut rig, "with a token", &packet, 1500);
        }
        for _ in 0..5 {
            rig.drops("without", &packet.build(), DropReason::TooBigUnanswered);
        }
        // What fits needs no token.
        rig.forwards("fits", "dsr4-tcp", &packet.with_ip_len(1500));
    }
}

/// A program just loaded: 100 answers at once, then 1,000 a second and CPU.
#[test]
fn answers_are_limited_in_rate() {
    stay_on_one_cpu();
    const RUNS: u64 = 5_000;
    let mut rig = Rig::new();
    rig.balancer.set_bucket(Bucket::default());
    let packet: Packet = rig.world.packet("dsr4-tcp", false, 1).with_ip_len(1501);
    assert!(matches!(packet.net, Net::V4(_)));
    let frame = packet.build();
    let start = Instant::now();
    let answered = (0..RUNS).filter(|_| rig.balancer.run(&frame).verdict == Verdict::Tx).count() as u64;
    let earned = start.elapsed().as_millis() as u64;
    let moved = rig.moved();
    assert_eq!(moved.packets(DropReason::TooBig), answered);
    assert_eq!(moved.packets(DropReason::TooBigUnanswered), RUNS - answered);
    assert!((100..=100 + earned + 1).contains(&answered), "{answered} answers in {earned} ms");
}
