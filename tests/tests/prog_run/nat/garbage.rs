//! Structured garbage to the virtual addresses of NAT, to the pool, and from the backends: what passes is untouched, what
//! leaves is well-formed and as right as it came, and whatever is dropped is counted.

use super::*;
use lb_tests::packets::{Generator, Rng};

const SEED: u64 = 0x6e61_7467;
const PACKETS: u64 = 200_000;

/// The packet as if it came from a backend's port to `to`.
fn as_reply(frame: &mut [u8], to: SocketAddr) {
    let mut l3 = 14;
    while matches!(frame.get(l3 - 2..l3), Some([0x81 | 0x88, _])) {
        l3 += 4;
    }
    let (from, v6) = (server(to.is_ipv6()), to.is_ipv6());
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (at, len) = if v6 { (l3 + 8, 40) } else { (l3 + 12, 20) };
    let both = [bytes(from), bytes(to.ip())].concat();
    if let Some(place) = frame.get_mut(at..at + both.len()) {
        place.copy_from_slice(&both);
    }
    if let Some(ports) = frame.get_mut(l3 + len..l3 + len + 4) {
        ports[..2].copy_from_slice(&BEHIND.to_be_bytes());
        ports[2..].copy_from_slice(&to.port().to_be_bytes());
    }
    if !v6 && frame.len() >= l3 + 20 {
        frame[l3 + 10..l3 + 12].fill(0);
        let check = lb_tests::packets::checksum(&[&frame[l3..l3 + 20]]);
        frame[l3 + 10..l3 + 12].copy_from_slice(&check.to_be_bytes());
    }
}

/// Is the transport checksum right? `None`: it has none that can be judged.
fn is_right(packet: &check::Parsed<'_>) -> Option<bool> {
    match packet.protocol {
        6 => Some(check::tcp(packet).is_ok()),
        17 => Some(check::udp(packet).is_ok()),
        1 | 58 => Some(check::icmp(packet).is_ok()),
        _ => None,
    }
}

#[test]
fn what_leaves_is_well_formed_and_what_does_not_is_counted() {
    let mut lab = Lab::new();
    let mut vips = Vec::new();
    // Sessions of every kind, whose replies are bent as well.
    let mut returns = Vec::new();
    for v6 in [false, true] {
        vips.extend([vip(v6), udp_vip(v6), pool(v6)]);
        let from = SocketAddr::from((client(v6, 7), 40_000));
        returns.push(from);
        for port in [SNAT, CROSS] {
            for packet in [
                Packet::tcp(from, (vip(v6), port).into()).with(|p| p.tcp_mut().flags = SYN),
                Packet::udp(from, (udp_vip(v6), port).into()),
            ] {
                returns.push(source(&lab.run(&packet)));
            }
        }
    }
    let generator = Generator::new(SEED, &vips, &[NAT, SNAT, CROSS, HAIRPIN], 300).with_clients(50);
    let mut rng = Rng::new(SEED);
    let drops = |lab: &Lab| -> u64 {
        let counters = lab.program.per_cpu::<u64>("DROPS");
        DropReason::ALL
            .iter()
            .map(|r| counters.get(&(*r as u32), 0).expect("DROPS").iter().sum::<u64>())
            .sum()
    };
    let (mut sent, mut passed, mut dropped, mut answered) = (0, 0, 0, 0);
    let mut before_all = drops(&lab);
    for number in 0..PACKETS {
        let mut frame = generator.garbage(number, 14 + (number % 250) as usize);
        if rng.percent(40) {
            as_reply(&mut frame, rng.pick(&returns));
        }
        let out = lab.program.run(&frame);
        let what = || format!("frame {number}\nin: {}\nout: {}", describe(&frame), describe(&out.frame));
        let now = drops(&lab);
        let counted = now - before_all;
        before_all = now;
        match out.verdict {
            Verdict::Drop => {
                dropped += 1;
                assert_eq!(counted, 1, "{}", what());
                continue;
            }
            Verdict::Pass => {
                passed += 1;
                assert!(out.frame == frame && counted == 0, "{}", what());
                continue;
            }
            _ => {}
        }
        let before = check::parse(&frame).unwrap_or_else(|why| panic!("{why}: {}", what()));
        let after = check::parse(&out.frame).unwrap_or_else(|why| panic!("{why}: {}", what()));
        if after.src == before.dst && after.dst == before.src {
            answered += 1;
            assert_eq!(counted, 1, "{}", what());
            continue;
        }
        sent += 1;
        assert_eq!(counted, 0, "{}", what());
        assert_eq!(after.ttl, before.ttl - 1, "{}", what());
        let crossed = after.src.is_ipv6() != before.src.is_ipv6();
        if !crossed {
            assert_eq!(after.ip.len(), before.ip.len(), "{}", what());
            assert_eq!(after.checksum_ok, before.checksum_ok, "{}", what());
        }
        // A fragment has no checksum of its own; a packet that was right stays right.
        let ip = before.ip;
        let piece = if before.src.is_ipv6() { ip[6] == 44 } else { ip[6] & 0x3f != 0 || ip[7] != 0 };
        if !piece && is_right(&before) == Some(true) {
            assert_eq!(is_right(&after), Some(true), "{}", what());
        }
    }
    assert_eq!(sent + passed + dropped + answered, PACKETS);
    assert!(
        sent > PACKETS / 20 && passed > 0 && dropped > PACKETS / 20,
        "{sent} {passed} {dropped} {answered}"
    );
}
