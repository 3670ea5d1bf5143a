//! Answers of a service that nobody serves, against RFC 9293 section 3.10.7.1 written a second time.

use super::{
    AnswerKind, Decision, DropReason, Tables, decide,
    icmp::{self, Message},
    reject,
};
use crate::{
    abi::{BackendEntry, INLINE_RULES, PortRule, ServiceEntry, Slot, VipEntry},
    csum,
    packet::{Buffer, Packet},
    wire::proto,
};
use proptest::prelude::*;
use std::{vec, vec::Vec};

/// One VIP of either family whose last byte is 10, every port, nobody serves.
struct Nobody {
    vip: VipEntry,
    service: ServiceEntry,
}

impl Nobody {
    fn new(flags: u32) -> Self {
        let rule = |proto| PortRule { lo: 0, hi: u16::MAX, service: 1, proto, pad: 0 };
        let mut rules = [PortRule::NONE; INLINE_RULES];
        (rules[0], rules[1]) = (rule(proto::TCP), rule(proto::UDP));
        Self {
            vip: VipEntry { vip: 1, flags: VipEntry::FRAGMENTS, rules },
            service: ServiceEntry { ring_size: 13, flags, ..ServiceEntry::default() },
        }
    }
}

impl Tables for Nobody {
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        (address[3] == 10).then_some(&self.vip)
    }
    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        (address[15] == 10).then_some(&self.vip)
    }
    fn service(&self, _: u32) -> Option<&ServiceEntry> {
        Some(&self.service)
    }
    fn slot(&self, _: u32) -> Option<Slot> {
        Some(Slot::plain(0, 0))
    }
    fn backend(&self, _: u32) -> Option<&BackendEntry> {
        None
    }
    fn now_ns(&self) -> u64 {
        0
    }
}

/// A frame as the kernel's shell would leave it, or why it is dropped.
fn answer(bytes: &[u8], flags: u32) -> Result<Vec<u8>, Option<DropReason>> {
    let tables = Nobody::new(flags);
    let mut buffer = Buffer::new(bytes);
    let answer = match decide(&buffer, &tables) {
        Decision::Answer(answer) => answer,
        Decision::Drop(refusal) => return Err(Some(refusal.reason)),
        _ => return Err(None),
    };
    let told = match answer.kind {
        AnswerKind::Reset => reject::reset(&mut buffer, answer.l3, answer.header_len, answer.v6),
        AnswerKind::Unreachable => {
            icmp::tell(&mut buffer, answer.l3, answer.v6, Message::port_unreachable(answer.v6))
        }
        AnswerKind::Echo | AnswerKind::Expired => return Err(None),
    };
    told.map(|()| buffer.frame().to_vec()).ok_or(Some(answer.kind.unanswered()))
}

fn sum(parts: &[&[u8]]) -> u16 {
    csum::finish(csum::sum_bytes(&parts.concat()))
}

/// What a TCP makes of a segment to a closed port: sequence number, acknowledgement, flags.
fn closed(seq: u32, ack: u32, flags: u8, data: u32) -> Option<(u32, u32, u8)> {
    let (fin, syn, rst) = (flags & 1, flags >> 1 & 1, flags >> 2 & 1);
    if rst == 1 {
        return None;
    }
    let len = data + u32::from(syn) + u32::from(fin);
    Some(if flags & 16 == 0 { (0, seq.wrapping_add(len), 4 | 16) } else { (ack, 0, 4) })
}

fn segment(seq: u32, ack: u32, flags: u8, options: usize, data: usize) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0, 80];
    bytes.extend(seq.to_be_bytes());
    bytes.extend(ack.to_be_bytes());
    bytes.extend([((20 + options) as u8) << 2, flags, 1, 2, 3, 4, 5, 6]);
    bytes.resize(20 + options, 1);
    bytes.resize(20 + options + data, 0x5a);
    bytes
}

/// An IP packet behind `tags` VLAN tags, with IPv4 options or IPv6 destination options of eight bytes each.
fn frame(v6: bool, tags: usize, extra: usize, protocol: u8, inside: &[u8], pad_to: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for id in 0..tags {
        frame.extend([0x81, 0x00, 0x20, id as u8]);
    }
    let len = (extra * 8 + inside.len()) as u16;
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
        frame.extend(len.to_be_bytes());
        frame.extend([if extra == 0 { protocol } else { proto::DESTINATION }, 64]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
        for left in (0..extra).rev() {
            frame.extend([if left == 0 { protocol } else { proto::DESTINATION }, 0, 1, 4, 0, 0, 0, 0]);
        }
    } else {
        frame.extend([0x08, 0x00, 0x45 + 2 * extra as u8, 0x55]);
        frame.extend((20 + len).to_be_bytes());
        frame.extend([1, 2, 0x40, 0, 64, protocol, 0, 0, 203, 0, 113, 7, 192, 0, 2, 10]);
        frame.resize(frame.len() + extra * 8, 1);
    }
    frame.extend_from_slice(inside);
    frame.resize(frame.len().max(pad_to), 0xee);
    frame
}

/// The answer is a reset from the VIP with these numbers, and nothing else.
fn check_reset(asked: &[u8], out: &[u8], v6: bool, l3: usize, expected: (u32, u32, u8)) {
    let header = if v6 { 40 } else { 20 };
    assert_eq!((&out[..6], &out[6..12], &out[12..l3]), (&asked[6..12], &asked[..6], &asked[12..l3]));
    assert!(out.len() == l3 + header + 20 || out.len() == 60 && l3 + header + 20 < 60, "{} bytes", out.len());
    let ip = &out[l3..];
    let (at, half) = if v6 { (8, 16) } else { (12, 4) };
    assert_eq!(ip[at..at + half], asked[l3 + at + half..l3 + at + 2 * half], "from the VIP");
    assert_eq!(ip[at + half..at + 2 * half], asked[l3 + at..l3 + at + half], "to the client");
    if v6 {
        assert_eq!(ip[..8], [0x60, 0, 0, 0, 0, 20, proto::TCP, 64]);
    } else {
        assert_eq!(ip[..10], [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, proto::TCP]);
        assert_eq!(sum(&[&ip[..20]]), 0);
    }
    let tcp = &ip[header..header + 20];
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    assert_eq!((word(0), word(4), word(8), tcp[13]), (0x0050_9c40, expected.0, expected.1, expected.2));
    assert_eq!((tcp[12], word(16) & 0xffff, &tcp[14..16]), (0x50, 0, &[0, 0][..]), "length, urgent, window");
    assert_eq!(sum(&[&ip[at..at + 2 * half], &[0, proto::TCP, 0, 20], tcp]), 0, "the checksum");
}

/// Every combination of flags a TCP sends, with and without data, options, tags and extension headers.
#[test]
fn segments() {
    for v6 in [false, true] {
        for (tags, extra, pad_to) in [(0, 0, 0), (1, 0, 60), (2, 3, 0), (0, 5, 1000), (0, 0, 60)] {
            for flags in [0x02, 0x12, 0x10, 0x18, 0x11, 0x19, 0x04, 0x14, 0xc2, 0x30] {
                for (options, data) in [(0, 0), (0, 1), (20, 0), (40, 600)] {
                    let (seq, ack) = (0xffff_ff00, 0x8765_4321);
                    let inside = segment(seq, ack, flags, options, data);
                    let asked = frame(v6, tags, extra, proto::TCP, &inside, pad_to);
                    assert_eq!(answer(&asked, 0), Err(Some(DropReason::NoBackend)), "unless asked for");
                    let found = answer(&asked, ServiceEntry::REJECT);
                    match closed(seq, ack, flags, data as u32) {
                        Some(expected) => {
                            check_reset(&asked, &found.expect("a reset"), v6, 14 + 4 * tags, expected);
                        }
                        None => {
                            assert_eq!(found, Err(Some(DropReason::NoBackend)), "a reset is not answered");
                        }
                    }
                }
            }
        }
    }
}

/// Datagrams: the message, its code and what it quotes (its checksums are `icmp`'s affair).
#[test]
fn datagrams() {
    for v6 in [false, true] {
        let inside = [0x9c, 0x40, 0, 80, 0, 11, 0, 0, 1, 2, 3];
        let asked = frame(v6, 1, 2, proto::UDP, &inside, 80);
        let out = answer(&asked, ServiceEntry::REJECT).expect("a message");
        let at = 18 + if v6 { 40 } else { 20 };
        assert_eq!(out[at..at + 2], if v6 { [1, 4] } else { [3, 3] });
        let ip = if v6 { 40 } else { 20 } + 16 + inside.len();
        assert_eq!(out[at + 8..], asked[18..18 + ip], "all of the packet, no padding");
    }
}

proptest! {
    /// Whatever comes, what is sent is no answer to a reset and goes to a single host.
    #[test]
    fn anything(
        v6: bool, tags in 0..3usize, extra in 0..6usize, udp: bool, flip in any::<(u16, u8)>(), seq: u32, ack: u32, flags: u8,
        data in 0..80usize, cut in 0..200usize,
    ) {
        let (protocol, inside) = match udp {
            true => (proto::UDP, [&[0x9c, 0x40, 0, 80][..], &(8 + data as u16).to_be_bytes(), &vec![0; 2 + data]].concat()),
            false => (proto::TCP, segment(seq, ack, flags, 0, data)),
        };
        let mut asked = frame(v6, tags, extra, protocol, &inside, 0);
        let at = usize::from(flip.0) % asked.len();
        asked[at] ^= flip.1;
        asked.truncate(asked.len().saturating_sub(cut / 4).max(14));
        if let Ok(out) = answer(&asked, ServiceEntry::REJECT) {
            prop_assert!(out.len() >= 54);
            prop_assert_eq!(&out[..6], &asked[6..12]);
            let buffer = Buffer::new(&out);
            prop_assert!(!buffer.is_empty());
            // The answer to an answer ends it: a reset is dropped, ICMP passes.
            let mut back = out;
            let l3 = if back[12..14] == [0x81, 0] { if back[16..18] == [0x81, 0] { 22 } else { 18 } } else { 14 };
            let (last, first) = if back[l3] >> 4 == 6 { (l3 + 39, l3 + 23) } else { (l3 + 19, l3 + 15) };
            back.swap(last, first);
            prop_assert!(answer(&back, ServiceEntry::REJECT).is_err());
        }
    }
}
