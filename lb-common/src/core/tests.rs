//! The core on the host: it survives anything, what it sends is right, and the backend gets back what the
//! client sent.

use super::{
    Decision, DropReason, Forward, Tables,
    decap::{self, Allow, Outcome},
    decide, forward, icmp,
};
use crate::{
    abi::{BackendEntry, ForwardKind, INLINE_RULES, PortRule, ServiceEntry, Slot, VipEntry},
    csum,
    packet::{Buffer, Packet},
    wire::proto,
};
use proptest::prelude::*;
use std::{vec, vec::Vec};

const GUE_PORT: u16 = 6080;
const SLOTS: u32 = 13;

/// Every address whose last byte is 10 is a VIP with every TCP and UDP port; one backend.
struct One {
    vip: VipEntry,
    service: ServiceEntry,
    backend: BackendEntry,
}

impl One {
    fn new(backend: BackendEntry) -> Self {
        let rule = |proto| PortRule { lo: 0, hi: u16::MAX, service: 1, proto, pad: 0 };
        let mut rules = [PortRule::NONE; INLINE_RULES];
        rules[0] = rule(proto::TCP);
        rules[1] = rule(proto::UDP);
        Self {
            vip: VipEntry { vip: 1, flags: 0, rules },
            service: ServiceEntry { ring_size: SLOTS, seed: 7, ..ServiceEntry::default() },
            backend,
        }
    }
}

impl Tables for One {
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        (address[3] == 10).then_some(&self.vip)
    }
    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        (address[15] == 10).then_some(&self.vip)
    }
    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        (id == 1).then_some(&self.service)
    }
    fn slot(&self, index: u32) -> Option<Slot> {
        (index < SLOTS).then_some(Slot::plain(1, 0))
    }
    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        (id == 1).then_some(&self.backend)
    }
    fn now_ns(&self) -> u64 {
        0
    }
}

struct FromBalancer;

impl Allow for FromBalancer {
    fn source4(&self, address: [u8; 4]) -> bool {
        address[..2] == [198, 18]
    }
    fn source6(&self, address: &[u8; 16]) -> bool {
        address[..2] == [1, 0]
    }
    fn gue_port(&self) -> u16 {
        GUE_PORT
    }
}

fn backend(kind: ForwardKind, family: u8) -> BackendEntry {
    let mut entry = BackendEntry {
        l2: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1],
        ifindex: 3,
        mtu: 1500,
        kind: kind as u8,
        family,
        entropy_bits: if kind == ForwardKind::Ipip { 16 } else { 0 },
        port: GUE_PORT,
        service: 1,
        ..BackendEntry::default()
    };
    if family == 4 {
        entry.outer_src[..4].copy_from_slice(&[198, 18, 0, 0]);
        entry.outer_dst[..4].copy_from_slice(&[10, 0, 0, 11]);
    } else {
        entry.outer_src[..2].copy_from_slice(&[1, 0]);
        entry.outer_dst[..2].copy_from_slice(&[0xfd, 0]);
        entry.outer_dst[15] = 11;
    }
    entry
}

/// The checksum field over these bytes, in network order.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    csum::finish(csum::sum_bytes(&parts.concat())).to_ne_bytes()
}

/// TCP (flags ACK) or UDP with a right checksum, between a client and a VIP.
fn segment(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = if protocol == proto::TCP { 20 } else { 8 };
    let mut bytes = vec![0; header];
    bytes[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    let field = if protocol == proto::TCP {
        bytes[12..14].copy_from_slice(&[0x50, 0x10]);
        16
    } else {
        bytes[4..6].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        6
    };
    bytes.extend_from_slice(payload);
    let len = (bytes.len() as u32).to_be_bytes();
    let (src, dst) = addresses(v6);
    let check = checksum(&[&src, &dst, &len, &[0, 0, 0, protocol], &bytes]);
    bytes[field..field + 2].copy_from_slice(&check);
    bytes
}

fn addresses(v6: bool) -> (Vec<u8>, Vec<u8>) {
    if v6 {
        let mut src = vec![0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        let mut dst = src.clone();
        (src[2], dst[15]) = (0x0e, 10);
        (src, dst)
    } else {
        (vec![203, 0, 113, 7], vec![192, 0, 2, 10])
    }
}

/// An IP packet in an Ethernet frame, `padding` bytes behind it.
fn frame(v6: bool, tos: u8, protocol: u8, segment: &[u8], padding: usize) -> Vec<u8> {
    let (src, dst) = addresses(v6);
    let mut ip;
    if v6 {
        ip = vec![0x60 | tos >> 4, tos << 4, 0, 1];
        ip.extend_from_slice(&(segment.len() as u16).to_be_bytes());
        ip.extend_from_slice(&[protocol, 64]);
        ip.extend_from_slice(&src);
        ip.extend_from_slice(&dst);
    } else {
        ip = vec![0x45, tos];
        ip.extend_from_slice(&(20 + segment.len() as u16).to_be_bytes());
        ip.extend_from_slice(&[0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
        ip.extend_from_slice(&src);
        ip.extend_from_slice(&dst);
        let check = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&check);
    }
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(segment);
    frame.resize(frame.len() + padding, 0);
    frame
}

fn decided<'t>(buffer: &Buffer, tables: &'t One) -> Result<Forward<'t>, Option<DropReason>> {
    match decide(buffer, tables) {
        Decision::Forward(to) | Decision::Session(to, _) | Decision::Steer(to) => Ok(to),
        Decision::Drop(refusal) => Err(Some(refusal.reason)),
        Decision::Answer(answer) => Err(Some(answer.kind.answered())),
        Decision::Pass | Decision::Back(_) | Decision::Neighbour(_) => Err(None),
    }
}

/// The frame after `decide` and `rewrite`.
fn sent(bytes: &[u8], tables: &One) -> Vec<u8> {
    let mut buffer = Buffer::new(bytes);
    let to = decided(&buffer, tables).expect("a packet to forward");
    forward::rewrite(&mut buffer, &to).expect("a packet that fits");
    buffer.frame().to_vec()
}

/// What the client sent, one hop later: TTL one less, IPv4 checksum made anew.
fn one_hop_later(bytes: &[u8]) -> Vec<u8> {
    let mut ip = bytes[14..].to_vec();
    if ip[0] >> 4 == 6 {
        ip[7] -= 1;
    } else {
        ip[8] -= 1;
        ip[10..12].fill(0);
        let header = usize::from(ip[0] & 0xf) * 4;
        let check = checksum(&[&ip[..header]]);
        ip[10..12].copy_from_slice(&check);
    }
    ip
}

const KINDS: [ForwardKind; 3] = [ForwardKind::Dsr, ForwardKind::Ipip, ForwardKind::Gue];

fn any_backend() -> impl Strategy<Value = BackendEntry> {
    (0..3usize, prop_oneof![Just(4u8), Just(6)], 0..=32u8, prop_oneof![Just(0u16), 1..4096u16], 0..2000u16)
        .prop_map(|(kind, family, entropy_bits, vlan, mtu)| BackendEntry {
            entropy_bits,
            vlan,
            mtu,
            ..backend(KINDS[kind], family)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Whatever comes in: no panic, and a frame is only ever rewritten into one that fits the egress.
    #[test]
    fn nothing_panics_and_nothing_too_large_is_sent(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300), backend in any_backend(), shape in 0..6u8,
    ) {
        // Most random bytes are for nobody: give some of them the look of a packet to the VIP.
        let types: [&[u8]; 5] = [&[8, 0, 0x45], &[0x86, 0xdd, 0x60], &[0x81, 0, 0, 1, 8, 0, 0x45],
            &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x86, 0xdd, 0x60], &[8, 0, 0x4f]];
        if let Some(look) = types.get(usize::from(shape)) && bytes.len() >= 12 + look.len() + 48 {
            let at = 12 + look.len();
            let ip_len = bytes.len() - (at - 1);
            bytes[0] &= 0xfe;
            bytes[12..at].copy_from_slice(look);
            if look.ends_with(&[0x60]) {
                bytes[at + 38] = 10;
                bytes[at + 3..at + 5].copy_from_slice(&(ip_len as u16 - 40).to_be_bytes());
                bytes[at + 5] = [proto::TCP, proto::UDP, proto::HOP_BY_HOP, 51][usize::from(bytes[at + 5] & 3)];
            } else {
                bytes[at + 18] = 10;
                bytes[at + 1..at + 3].copy_from_slice(&(ip_len as u16).to_be_bytes());
                bytes[at + 5] &= 0x40;
                bytes[at + 6] = 0;
                bytes[at + 8] = [proto::TCP, proto::UDP][usize::from(bytes[at + 8] & 1)];
            }
        }
        let tables = One::new(backend);
        let mut buffer = Buffer::new(&bytes);
        if let Ok(to) = decided(&buffer, &tables) {
            let len = usize::from(to.ip.total_len);
            match forward::rewrite(&mut buffer, &to) {
                Ok(()) => prop_assert!(len + forward::overhead(&tables.backend) <= usize::from(backend.mtu)),
                Err(DropReason::TooBig) => {
                    prop_assert_eq!(buffer.frame(), &bytes[..]);
                    let _ = icmp::tell(
                        &mut buffer,
                        to.ip.l3,
                        to.ip.v6,
                        icmp::Message::too_big(to.ip.v6, forward::path_mtu(&tables.backend)),
                    );
                }
                Err(_) => {}
            }
        } else {
            prop_assert_eq!(buffer.frame(), &bytes[..]);
        }
        let _ = decap::decapsulate(&mut Buffer::new(&bytes), &FromBalancer);
    }

    /// The backend's decapsulator gives back what the client sent, one hop later, ECN and all.
    #[test]
    fn decapsulation_undoes_encapsulation(
        v6: bool, udp: bool, tos: u8, family in prop_oneof![Just(4u8), Just(6)], gue: bool, vlan in 0..4096u16,
        payload in proptest::collection::vec(any::<u8>(), 0..200), padding in 0..20usize,
    ) {
        let protocol = if udp { proto::UDP } else { proto::TCP };
        let bytes = frame(v6, tos, protocol, &segment(v6, protocol, &payload), padding);
        let kind = if gue { ForwardKind::Gue } else { ForwardKind::Ipip };
        let tables = One::new(BackendEntry { vlan, ..backend(kind, family) });
        let mut buffer = Buffer::new(&sent(&bytes, &tables));
        let outcome = decap::decapsulate(&mut buffer, &FromBalancer);
        prop_assert_eq!(outcome.outcome, Outcome::Decapsulated);
        let l3 = if vlan == 0 { 14 } else { 18 };
        prop_assert_eq!(&buffer.frame()[l3..], &one_hop_later(&bytes)[..]);
        prop_assert_eq!(&buffer.frame()[l3 - 2..l3], &bytes[12..14]);
    }

    /// The UDP checksum of GUE over IPv6 is right, computed in full, or absent.
    #[test]
    fn gue_over_ipv6_has_a_right_checksum_or_none(
        v6: bool, udp: bool, tos: u8, payload in proptest::collection::vec(any::<u8>(), 0..100),
        surplus in proptest::collection::vec(any::<u8>(), 0..9), zero: bool,
    ) {
        let protocol = if udp { proto::UDP } else { proto::TCP };
        let mut segment = segment(v6, protocol, &payload);
        if udp && zero {
            segment[6..8].fill(0);
        }
        // UDP options (RFC 9868) follow what the UDP length covers.
        if udp {
            segment.extend_from_slice(&surplus);
        }
        let bytes = frame(v6, tos, protocol, &segment, 0);
        let out = sent(&bytes, &One::new(backend(ForwardKind::Gue, 6)));
        let (source, udp_header) = (&out[22..54], &out[54..62]);
        let length = u32::from(u16::from_be_bytes([udp_header[4], udp_header[5]]));
        prop_assert_eq!(length as usize, out.len() - 54);
        if udp_header[6..8] == [0, 0] {
            prop_assert!(udp && (zero || !surplus.is_empty()), "a checksum could have been had");
        } else {
            let sum = checksum(&[source, &length.to_be_bytes(), &[0, 0, 0, proto::UDP], &out[54..]]);
            prop_assert_eq!(sum, [0, 0], "the sum over all of it is not zero");
        }
    }

    /// TTL 2 and above is forwarded with one less, whatever the mode; 0 and 1 end here.
    #[test]
    fn the_ttl_goes_down_by_one(v6: bool, ttl: u8, kind in 0..3usize) {
        let mut bytes = frame(v6, 0, proto::TCP, &segment(v6, proto::TCP, b"x"), 0);
        let at = if v6 { 14 + 7 } else { 14 + 8 };
        bytes[at] = ttl;
        if !v6 {
            bytes[24..26].fill(0);
            let check = checksum(&[&bytes[14..34]]);
            bytes[24..26].copy_from_slice(&check);
        }
        let tables = One::new(backend(KINDS[kind], 4));
        match decided(&Buffer::new(&bytes), &tables) {
            Ok(_) => {
                prop_assert!(ttl >= 2);
                let out = sent(&bytes, &tables);
                let inner = out.len() - (bytes.len() - 14);
                prop_assert_eq!(&out[inner..], &one_hop_later(&bytes)[..]);
            }
            Err(reason) => {
                prop_assert!(ttl <= 1);
                prop_assert_eq!(reason, Some(DropReason::TtlExceeded));
            }
        }
    }
}

/// A VIP may name a service that was removed a moment ago: its zeroed entry must not lead to the slots of
/// whoever has the front of the ring array.
#[test]
fn a_service_that_is_gone_sends_nothing_to_others() {
    let mut tables = One::new(backend(ForwardKind::Dsr, 4));
    tables.service = ServiceEntry::default();
    let bytes = frame(false, 0, proto::TCP, &segment(false, proto::TCP, b""), 0);
    let answer = decided(&Buffer::new(&bytes), &tables).map(|to| to.backend_id);
    assert_eq!(answer, Err(Some(DropReason::NoBackend)));
}

/// Pings of a VIP are the kernel's, the large ones that come in fragments too.
#[test]
fn fragments_of_other_protocols_pass() {
    let tables = One::new(backend(ForwardKind::Dsr, 4));
    let answer = |bytes: &[u8]| decided(&Buffer::new(bytes), &tables).map(|to| to.backend_id);
    for (protocol, expected) in [
        (proto::ICMP, Err(None)),
        (proto::TCP, Err(Some(DropReason::Fragment))),
        (proto::UDP, Err(Some(DropReason::Fragment))),
    ] {
        for fragment in [[0x20, 0], [0, 1], [0x3f, 0xff]] {
            let mut bytes = frame(false, 0, protocol, &[8; 64], 0);
            bytes[20..22].copy_from_slice(&fragment);
            assert_eq!(answer(&bytes), expected, "protocol {protocol}, fragment {fragment:?}");
        }
    }
    for (next, expected) in [
        (proto::ICMPV6, Err(None)),
        (proto::TCP, Err(Some(DropReason::Fragment))),
        (proto::UDP, Err(Some(DropReason::Fragment))),
        (proto::DESTINATION, Err(Some(DropReason::Fragment))),
    ] {
        for offset in [[0, 1], [0, 8], [0xff, 0xf8]] {
            let mut body = vec![next, 0, offset[0], offset[1], 0, 0, 0, 1];
            body.extend_from_slice(&[8; 64]);
            let bytes = frame(true, 0, proto::FRAGMENT, &body, 0);
            // The options of a first fragment can be read, and lead to neither TCP nor UDP.
            let first = next == proto::DESTINATION && offset == [0, 1];
            let expected = if first { Err(None) } else { expected };
            assert_eq!(answer(&bytes), expected, "next header {next}, fragment {offset:?}");
        }
    }
}

/// RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e.6): no ICMP error to what does not name a single host.
#[test]
fn too_big_is_told_to_single_hosts_only() {
    let told = |v6: bool, source: &[u8]| {
        let mut bytes = frame(v6, 0, proto::UDP, &segment(v6, proto::UDP, &[0; 1460]), 0);
        let at = if v6 { 22 } else { 26 };
        bytes[at..at + source.len()].copy_from_slice(source);
        let tables = One::new(backend(ForwardKind::Gue, 4));
        let mut buffer = Buffer::new(&bytes);
        let to = decided(&buffer, &tables).expect("a packet to forward");
        assert_eq!(forward::rewrite(&mut buffer, &to), Err(DropReason::TooBig));
        icmp::tell(&mut buffer, to.ip.l3, to.ip.v6, icmp::Message::too_big(to.ip.v6, 1400)).is_some()
    };
    for source in [[203, 0, 113, 7], [10, 0, 0, 1], [223, 255, 255, 254], [1, 0, 0, 1], [128, 0, 0, 1]] {
        assert!(told(false, &source), "{source:?}");
    }
    for source in [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [240, 0, 0, 1], [255; 4]] {
        assert!(!told(false, &source), "{source:?}");
    }
    let v6 = |first: u8, last: u8| {
        let mut source = [0; 16];
        (source[0], source[15]) = (first, last);
        source
    };
    for source in [v6(0x20, 1), v6(0xfe, 1), v6(0, 2)] {
        assert!(told(true, &source), "{source:?}");
    }
    for source in [v6(0, 0), v6(0, 1), v6(0xff, 2)] {
        assert!(!told(true, &source), "{source:?}");
    }
}

/// The answer fits the packet it answers: from the VIP to the client, quoting its first bytes unchanged.
#[test]
fn too_big_quotes_the_packet() {
    for v6 in [false, true] {
        let bytes = frame(v6, 0, proto::TCP, &segment(v6, proto::TCP, &[7; 1460]), 0);
        let tables = One::new(backend(ForwardKind::Ipip, 4));
        let mut buffer = Buffer::new(&bytes);
        let to = decided(&buffer, &tables).expect("a packet to forward");
        icmp::tell(&mut buffer, to.ip.l3, to.ip.v6, icmp::Message::too_big(to.ip.v6, 1480))
            .expect("an answer");
        let out = buffer.frame();
        let added = if v6 { 48 } else { 28 };
        assert_eq!(out.len(), 14 + added + icmp::QUOTE);
        assert_eq!(out[14 + added..], bytes[14..14 + icmp::QUOTE]);
        assert_eq!((&out[..6], &out[6..12]), (&bytes[6..12], &bytes[..6]));
    }
}

/// Beyond the end is `None`, whatever the offset.
#[test]
fn a_buffer_keeps_its_bounds() {
    let buffer = Buffer::new(&[1; 20]);
    assert!(buffer.view::<20>(0).is_some() && buffer.view::<20>(1).is_none());
    assert!(buffer.view::<1>(usize::MAX).is_none() && buffer.view::<1>(19).is_some());
}

/// An echo request whose answer has a right checksum, and two replies' worth of turning gives back the addresses.
#[test]
fn an_echo_request_is_turned_into_its_reply() {
    for v6 in [false, true] {
        let (protocol, request, reply) = if v6 { (proto::ICMPV6, 128, 129) } else { (proto::ICMP, 8, 0) };
        let (src, dst) = addresses(v6);
        let sum = |kind: u8| {
            let message = [kind, 0, 0, 0, 1, 2, 3, 4, 5, 6];
            let len = (message.len() as u32).to_be_bytes();
            if v6 {
                checksum(&[&src, &dst, &len, &[0, 0, 0, protocol], &message])
            } else {
                checksum(&[&message])
            }
        };
        let [a, b] = sum(request);
        let bytes = frame(v6, 0, protocol, &[request, 0, a, b, 1, 2, 3, 4, 5, 6], 4);
        let mut tables = One::new(backend(ForwardKind::Dsr, 4));
        assert!(matches!(decide(&Buffer::new(&bytes), &tables), Decision::Pass), "answer_ping = false");
        tables.vip.flags = VipEntry::ECHO;
        let answer = match decide(&Buffer::new(&bytes), &tables) {
            Decision::Answer(answer) => answer,
            _ => panic!("an echo request is answered"),
        };
        assert_eq!((answer.kind, answer.l3, answer.v6), (super::AnswerKind::Echo, 14, v6));
        let mut buffer = Buffer::new(&bytes);
        super::echo::reply(&mut buffer, 14, v6).expect("a reply");
        let out = buffer.frame();
        let at = if v6 { 54 } else { 34 };
        let [a, b] = sum(reply);
        assert_eq!(out[at..], [&[reply, 0, a, b], &bytes[at + 4..]].concat());
        let half = if v6 { 16 } else { 4 };
        let (from, to) = if v6 { (22, 38) } else { (26, 30) };
        assert_eq!((&out[from..from + half], &out[to..to + half]), (&dst[..], &src[..]));
        if !v6 {
            assert_eq!(csum::finish(csum::sum_bytes(&out[14..34])), 0, "the header's checksum");
        }
    }
}

/// An error about a packet of the backend goes where the client's packets go, by the first 4 bytes of its transport.
#[test]
fn an_error_goes_where_its_flow_goes() {
    for (v6, protocol, kind) in [(false, proto::ICMP, 3), (true, proto::ICMPV6, 2)] {
        let flow = frame(v6, 0, proto::TCP, &segment(v6, proto::TCP, &[]), 0);
        let tables = One::new(backend(ForwardKind::Ipip, 4));
        let of_flow = decided(&Buffer::new(&flow), &tables).expect("a packet to forward").hash;
        let mut quote = flow[14..].to_vec();
        let (at, half, header) = if v6 { (8, 16, 40) } else { (12, 4, 20) };
        let (src, rest) = quote[at..].split_at_mut(half);
        src.swap_with_slice(&mut rest[..half]);
        let (src, rest) = quote[header..].split_at_mut(2);
        src.swap_with_slice(&mut rest[..2]);
        for len in [header + 4, header + 8, quote.len()] {
            let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], &quote[..len]].concat();
            let bytes = frame(v6, 0, protocol, &message, 0);
            let buffer = Buffer::new(&bytes);
            let to = decided(&buffer, &tables).expect("to the backend");
            assert_eq!((to.backend_id, to.service), (1, 1));
            assert_eq!(crate::hash::entropy(to.hash), crate::hash::entropy(of_flow));
        }
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], &quote[..header + 3]].concat();
        let bytes = frame(v6, 0, protocol, &message, 30);
        let refused = decided(&Buffer::new(&bytes), &tables).err();
        assert_eq!(refused, Some(Some(DropReason::IcmpQuote)), "padding is no quote");
    }
}
