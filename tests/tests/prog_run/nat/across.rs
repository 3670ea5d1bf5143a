//! ICMP errors between the IP versions: type, code, MTU and pointer as RFC 7915 has them, and the packet they quote as its
//! sender knows it.

use super::*;

/// Type, code and rest of an error, and what the other version says; `None`: nothing.
type Row = ((u8, u8, u32), Option<(u8, u8, u32)>);

/// RFC 7915 section 5.2; the MTU on both sides is 1,500.
const TO_V4: [Row; 26] = [
    ((1, 0, 0), Some((3, 1, 0))),
    ((1, 1, 0), Some((3, 10, 0))),
    ((1, 2, 0), Some((3, 1, 0))),
    ((1, 3, 0), Some((3, 1, 0))),
    ((1, 4, 0), Some((3, 3, 0))),
    ((1, 5, 0), None),
    ((1, 6, 0), None),
    ((2, 0, 1400), Some((3, 4, 1380))),
    ((2, 0, 1280), Some((3, 4, 1260))),
    ((2, 0, 9000), Some((3, 4, 1500))),
    ((2, 0, 0xffff_ffff), Some((3, 4, 1500))),
    ((2, 0, 3), Some((3, 4, 0))),
    ((3, 0, 0), Some((11, 0, 0))),
    ((3, 1, 0), Some((11, 1, 0))),
    ((4, 0, 0), Some((12, 0, 0))),
    ((4, 0, 1), Some((12, 0, 1 << 24))),
    ((4, 0, 2), None),
    ((4, 0, 4), Some((12, 0, 2 << 24))),
    ((4, 0, 6), Some((12, 0, 9 << 24))),
    ((4, 0, 7), Some((12, 0, 8 << 24))),
    ((4, 0, 23), Some((12, 0, 12 << 24))),
    ((4, 0, 24), Some((12, 0, 16 << 24))),
    ((4, 0, 40), None),
    ((4, 1, 6), Some((3, 2, 0))),
    ((4, 2, 6), None),
    ((4, 3, 0), None),
];

/// Section 4.2.
const TO_V6: [Row; 34] = [
    ((3, 0, 0), Some((1, 0, 0))),
    ((3, 1, 0), Some((1, 0, 0))),
    ((3, 2, 0), Some((4, 1, 6))),
    ((3, 3, 0), Some((1, 4, 0))),
    ((3, 4, 1400), Some((2, 0, 1420))),
    ((3, 4, 1490), Some((2, 0, 1500))),
    ((3, 4, 65_535), Some((2, 0, 1500))),
    ((3, 4, 576), Some((2, 0, 1280))),
    // A router from before RFC 1191: what IPv6 carries at least.
    ((3, 4, 0), Some((2, 0, 1280))),
    ((3, 5, 0), Some((1, 0, 0))),
    ((3, 6, 0), Some((1, 0, 0))),
    ((3, 8, 0), Some((1, 0, 0))),
    ((3, 9, 0), Some((1, 1, 0))),
    ((3, 10, 0), Some((1, 1, 0))),
    ((3, 11, 0), Some((1, 0, 0))),
    ((3, 12, 0), Some((1, 0, 0))),
    ((3, 13, 0), Some((1, 1, 0))),
    ((3, 14, 0), None),
    ((3, 15, 0), Some((1, 1, 0))),
    ((3, 16, 0), None),
    ((11, 0, 0), Some((3, 0, 0))),
    ((11, 1, 0), Some((3, 1, 0))),
    ((12, 0, 0), Some((4, 0, 0))),
    ((12, 0, 1 << 24), Some((4, 0, 1))),
    ((12, 0, 2 << 24), Some((4, 0, 4))),
    ((12, 0, 3 << 24), Some((4, 0, 4))),
    ((12, 0, 4 << 24), None),
    ((12, 0, 6 << 24), None),
    ((12, 2, 8 << 24), Some((4, 0, 7))),
    ((12, 0, 9 << 24), Some((4, 0, 6))),
    ((12, 0, 12 << 24), Some((4, 0, 8))),
    ((12, 0, 19 << 24), Some((4, 0, 24))),
    ((12, 0, 20 << 24), None),
    ((12, 1, 0), None),
];

/// A flow through the balancer: what each side sends and what the other gets.
struct Flow {
    /// The client's, as it sent it and as the backend got it.
    asked: Packet,
    asked_there: Vec<u8>,
    /// The backend's.
    answered: Packet,
    answered_there: Vec<u8>,
    /// The client by the backend's name for it.
    at: SocketAddr,
}

fn flow(lab: &mut Lab, asked: &Packet) -> Flow {
    let out = lab.run(asked);
    let (at, to) = crossed(asked, &out, BACKEND_MAC);
    let reply = match &asked.transport {
        Transport::Tcp(_) => Packet::tcp(to, at).with(|p| p.tcp_mut().payload = vec![7; 1201]),
        _ => Packet::udp(to, at).with(|p| p.udp_mut().payload = vec![7; 1201]),
    };
    let back = lab.run(&reply);
    assert_eq!(back.verdict, Verdict::Tx);
    Flow {
        asked: asked.clone(),
        asked_there: out.frame[14..].to_vec(),
        answered: reply,
        answered_there: back.frame[14..].to_vec(),
        at,
    }
}

fn header(v6: bool) -> usize {
    if v6 { 40 } else { 20 }
}

/// The error quotes the packet that `sent` is, as its sender knows it, as far as `there` was quoted: what the other side got.
#[track_caller]
fn quotes(quote: &[u8], sent: &Packet, there: &[u8], quoted: usize) {
    let v6 = sent.is_v6();
    let (mine, theirs) = (header(v6), header(!v6));
    let whole = sent.ip();
    let whole_header = whole.len() - (there.len() - theirs);
    let kept = quoted - theirs;
    assert_eq!(quote.len(), mine + kept, "{quote:02x?}");
    assert_eq!(quote[mine..], whole[whole_header..][..kept], "ports and checksum as the sender sent them");
    let (ttl, tos) = if v6 { (there[8], there[1]) } else { (there[7], (there[0] << 4) | there[1] >> 4) };
    let length = (there.len() - theirs + if v6 { 0 } else { mine }) as u16;
    if v6 {
        assert_eq!((quote[0] >> 4, (quote[0] << 4) | quote[1] >> 4), (6, tos));
        assert_eq!(quote[4..6], length.to_be_bytes());
        assert_eq!(quote[6..8], [there[9], ttl]);
        assert_eq!(quote[8..40], whole[8..40]);
    } else {
        assert_eq!((quote[0], quote[1]), (0x45, tos));
        assert_eq!(quote[2..4], length.to_be_bytes());
        assert_eq!(quote[8..10], [ttl, there[6]]);
        assert_eq!(lb_tests::packets::checksum(&[&quote[..20]]), 0);
        assert_eq!(quote[12..20], whole[12..20]);
    }
}

/// What an error became that came for `sent`, of which the other side got `there`.
#[track_caller]
fn told(
    lab: &mut Lab,
    error: &Packet,
    (from, to): (IpAddr, IpAddr),
    macs: [u8; 12],
    (sent, there, quoted): (&Packet, &[u8], usize),
) -> (u8, u8, u32) {
    let out = lab.run(error);
    assert_eq!(out.verdict, Verdict::Tx, "{}", describe(&error.build()));
    let parsed = check::parse(&out.frame).expect("a frame");
    assert_eq!((parsed.src, parsed.dst), (from, to), "{}", describe(&out.frame));
    assert!(parsed.checksum_ok && parsed.padding.is_empty() && parsed.vlans.is_empty());
    assert_eq!([parsed.dst_mac, parsed.src_mac].concat(), macs);
    assert_eq!((parsed.ttl, parsed.tos), (63, 0xc0));
    let icmp = check::icmp(&parsed).unwrap_or_else(|why| panic!("{why}: {}", describe(&out.frame)));
    quotes(icmp.quote, sent, there, quoted);
    (icmp.kind, icmp.code, icmp.rest)
}

fn router(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8:e::1" } else { "203.0.113.254" })
}

/// An error of a router, or of the host itself.
fn error_of(from: IpAddr, to: IpAddr, said: (u8, u8, u32), quote: &[u8]) -> Packet {
    Packet::icmp_error(from, to, said, quote).with_tos(0xc0)
}

/// The flows of a client: TCP and UDP, with and without options.
fn flows(lab: &mut Lab, v6: bool) -> Vec<(Flow, SocketAddr)> {
    let from = SocketAddr::from((client(v6, 1), 40_000));
    let all = shapes(from, (vip(v6), CROSS).into(), (udp_vip(v6), CROSS).into());
    let checked = |p: &Packet| !matches!(&p.transport, Transport::Udp(udp) if udp.no_checksum);
    all.into_iter()
        .filter(|(p, _)| checked(p))
        .map(|(p, vip)| (flow(lab, &p.with(|p| p.tags.clear())), vip))
        .collect()
}

/// Errors from the side of the backends: every kind, from the backend and from a router, with as little of the packet as
/// there may be and with all of it.
#[test]
fn from_the_backends() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        for (flow, vip) in flows(&mut lab, v6) {
            let (least, all) = (header(!v6) + 8, flow.asked_there.len());
            let client = flow.asked.addresses().0;
            for (said, expected) in if v6 { &TO_V6[..] } else { &TO_V4[..] } {
                for (reporter, quoted) in [(server(!v6), least), (router(!v6), all)] {
                    let error = error_of(reporter, flow.at.ip(), *said, &flow.asked_there[..quoted]);
                    let Some(expected) = expected else {
                        lab.drops(&error, DropReason::NatUntranslatable);
                        continue;
                    };
                    let sent = (&flow.asked, &flow.asked_there[..], quoted);
                    // Whoever says so: the address that the client knows.
                    let found = told(&mut lab, &error, (vip.ip(), client), CLIENT_MAC, sent);
                    assert_eq!(found, *expected, "of {said:?}");
                }
            }
        }
    }
}

/// Errors from the side of the clients: to the backend, from the address that it knows the client by.
#[test]
fn from_the_clients() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        for (flow, vip) in flows(&mut lab, v6) {
            let (least, all) = (header(v6) + 8, flow.answered_there.len().min(1200));
            let client = flow.asked.addresses().0;
            for (said, expected) in if v6 { &TO_V4[..] } else { &TO_V6[..] } {
                for (reporter, quoted) in [(client, least), (router(v6), all)] {
                    let error = error_of(reporter, vip.ip(), *said, &flow.answered_there[..quoted]);
                    let Some(expected) = expected else {
                        lab.drops(&error, DropReason::NatUntranslatable);
                        continue;
                    };
                    let sent = (&flow.answered, &flow.answered_there[..], quoted);
                    let found = told(&mut lab, &error, (flow.at.ip(), server(!v6)), BACKEND_MAC, sent);
                    assert_eq!(found, *expected, "of {said:?}");
                }
            }
        }
    }
}

/// A router that quotes more than fits the other version's error: eight bytes are left. One that is no error at all about
/// any flow of ours, or says too little of it, is none of ours or dropped.
#[test]
fn too_much_and_too_little() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let said = if v6 { (3, 4, 1000) } else { (2, 0, 1300) };
        let expected = if v6 { (2, 0, 1280) } else { (3, 4, 1280) };
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let asked = Packet::tcp(from, (vip(v6), CROSS).into()).with_ip_len(1440);
        assert_eq!(lab.run(&asked.with(|p| p.tcp_mut().flags = SYN)).verdict, Verdict::Tx);
        let flow = flow(&mut lab, &asked);
        let error = error_of(router(!v6), flow.at.ip(), said, &flow.asked_there);
        let sent = (&flow.asked, &flow.asked_there[..], header(!v6) + 8);
        let found = told(&mut lab, &error, (vip(v6), from.ip()), CLIENT_MAC, sent);
        assert_eq!(found, expected);

        let short = error_of(router(!v6), flow.at.ip(), said, &flow.asked_there[..header(!v6) + 7]);
        assert_eq!(lab.run(&short).verdict, Verdict::Pass);
        let short = error_of(router(v6), vip(v6), expected, &flow.answered_there[..header(v6) + 7]);
        lab.drops(&short, DropReason::IcmpQuote);
        // The frame goes on behind the error: that is no part of it.
        let padded = short.with(|p| p.pad_to = 200);
        lab.drops(&padded, DropReason::IcmpQuote);
        let error = error_of(router(!v6), flow.at.ip(), said, &flow.asked_there);
        lab.drops(&error.with_ttl(1), DropReason::TtlExceeded);
    }
}

/// What was damaged on its way is not made whole.
#[test]
fn a_wrong_checksum_stays_wrong() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let flow = flow(&mut lab, &Packet::udp(from, (udp_vip(v6), CROSS).into()));
        let said = if v6 { (3, 3, 0) } else { (1, 4, 0) };
        let error = error_of(server(!v6), flow.at.ip(), said, &flow.asked_there);
        let mut frame = error.build();
        *frame.last_mut().expect("a byte") ^= 1;
        let out = lab.program.run(&frame);
        assert_eq!(out.verdict, Verdict::Tx);
        let parsed = check::parse(&out.frame).expect("a frame");
        assert!(check::icmp(&parsed).is_err());
    }
}
