//! Answers of a service that nobody serves and whose operator wants clients to fail fast: a TCP reset; to UDP an ICMP
//! "port unreachable", which [`super::icmp::tell`] makes.

use super::{
    Answer, AnswerKind, Decision, DropReason, Ip, Part,
    icmp::{OUTER_TTL, is_single4, is_single6, turn_link},
    parse::refuse,
};
use crate::{
    abi::ServiceEntry,
    csum,
    packet::{Packet, PacketMut},
    wire::{ipv4, ipv6, proto, tcp},
};

/// Frames are not cut below it: the smallest of Ethernet's (IEEE 802.3 clause 3.2.7) without its check sequence, which not
/// every driver fills up by itself.
const SMALLEST_FRAME: usize = 60;

/// A packet of a service for whose flow there is no backend.
#[inline(always)]
pub(super) fn nobody<'t, P: Packet>(packet: &P, flags: u32, ip: &Ip) -> Decision<'t> {
    const DROP: DropReason = DropReason::NoBackend;
    if flags & ServiceEntry::REJECT == 0 {
        return refuse(DROP);
    }
    let kind = if ip.proto == proto::TCP {
        let Some(header) = packet.view::<{ tcp::LEN }>(ip.l3 + ip.header_len) else { return refuse(DROP) };
        // RFC 9293 section 3.10.7.1: a reset is never answered. How long a segment in fragments is, the first does not say.
        if header.u8::<{ tcp::FLAGS }>() & tcp::RST != 0 || matches!(ip.part, Part::First) {
            return refuse(DROP);
        }
        AnswerKind::Reset
    } else {
        AnswerKind::Unreachable
    };
    Decision::Answer(Answer { kind, l3: ip.l3, header_len: ip.header_len, v6: ip.v6 })
}

/// The reset that answers a segment to a connection that does not exist (RFC 9293 section 3.10.7.1): words as they stand in the
/// packet.
struct Reset {
    ports: u32,
    seq: u32,
    ack: u32,
    /// Data offset, flags, window.
    word: u32,
}

impl Reset {
    /// The answer to the segment of `len` bytes, header and all, at `at`.
    #[inline(always)]
    fn to<P: Packet>(packet: &P, at: usize, len: u32) -> Option<Self> {
        const OFFSET: u32 = (tcp::LEN as u32 / 4) << 28;
        let header = packet.view::<{ tcp::LEN }>(at)?;
        let ports = header.raw32::<0>().rotate_left(16);
        let flags = header.u8::<{ tcp::FLAGS }>();
        if flags & tcp::ACK != 0 {
            let word = (OFFSET | u32::from(tcp::RST) << 16).to_be();
            return Some(Self { ports, seq: header.raw32::<{ tcp::ACK_SEQ }>(), ack: 0, word });
        }
        let data = len.wrapping_sub(u32::from(header.u8::<{ tcp::DATA_OFFSET }>() >> 4) * 4);
        // SYN and FIN take a number each (section 3.4).
        let counted = u32::from(flags >> 1 & 1) + u32::from(flags & 1);
        let ack = header.u32::<{ tcp::SEQ }>().wrapping_add(data).wrapping_add(counted);
        let word = (OFFSET | u32::from(tcp::RST | tcp::ACK) << 16).to_be();
        Some(Self { ports, seq: 0, ack: ack.to_be(), word })
    }

    /// Writes it at `at`; `pseudo` is the sum of the addresses.
    #[inline(always)]
    fn write<P: PacketMut>(&self, packet: &mut P, at: usize, pseudo: u64) -> Option<()> {
        let mut header = packet.view_mut::<{ tcp::LEN }>(at)?;
        header.set32::<0>(self.ports);
        header.set32::<4>(self.seq);
        header.set32::<8>(self.ack);
        header.set32::<12>(self.word);
        header.set32::<16>(0);
        let sum = pseudo
            + u32::from(proto::TCP).to_be() as u64
            + (tcp::LEN as u32).to_be() as u64
            + self.ports as u64
            + self.seq as u64
            + self.ack as u64
            + self.word as u64;
        header.set16::<{ tcp::CHECK }>(csum::finish(sum));
        Some(())
    }
}

/// Cuts the frame behind the answer's headers.
#[inline(always)]
fn cut<P: PacketMut>(packet: &mut P, end: usize) -> Option<()> {
    let padded =
        if end < SMALLEST_FRAME && packet.full_len() >= SMALLEST_FRAME { SMALLEST_FRAME } else { end };
    packet.truncate(padded)
}

/// Turns a TCP segment that is no reset into the reset that answers it, from the VIP, back out of the port it came in by;
/// `header_len` is the offset of the TCP header from the IP header. `None`: its sender is no single host, and the packet,
/// half changed, is to be dropped.
#[inline(always)]
pub fn reset<P: PacketMut>(packet: &mut P, l3: usize, header_len: usize, v6: bool) -> Option<()> {
    if v6 { reset6(packet, l3, header_len) } else { reset4(packet, l3, header_len) }
}

/// See [`reset`], IPv4.
#[inline(always)]
pub fn reset4<P: PacketMut>(packet: &mut P, l3: usize, header_len: usize) -> Option<()> {
    turn_link(packet)?;
    let header = packet.view::<{ ipv4::LEN }>(l3)?;
    let (client, vip) = (header.raw32::<{ ipv4::SRC }>(), header.raw32::<{ ipv4::DST }>());
    let len = u32::from(header.u16::<{ ipv4::TOTAL_LEN }>()).wrapping_sub(header_len as u32);
    if !is_single4(client) {
        return None;
    }
    let answer = Reset::to(packet, l3 + header_len, len)?;
    cut(packet, l3 + ipv4::LEN + tcp::LEN)?;
    let w0 = (0x4500_0000 | (ipv4::LEN + tcp::LEN) as u32).to_be();
    // Never a fragment, so the identification may be anything (RFC 6864 section 4.1).
    let w1 = u32::from(ipv4::DONT_FRAGMENT).to_be();
    let w2 = (u32::from(OUTER_TTL) << 24 | u32::from(proto::TCP) << 16).to_be();
    let pseudo = vip as u64 + client as u64;
    let mut header = packet.view_mut::<{ ipv4::LEN }>(l3)?;
    header.set32::<0>(w0);
    header.set32::<4>(w1);
    header.set32::<8>(w2);
    header.set16::<{ ipv4::CHECK }>(csum::finish(w0 as u64 + w1 as u64 + w2 as u64 + pseudo));
    header.set32::<{ ipv4::SRC }>(vip);
    header.set32::<{ ipv4::DST }>(client);
    answer.write(packet, l3 + ipv4::LEN, pseudo)
}

/// See [`reset`], IPv6; extension headers are not sent back.
#[inline(always)]
pub fn reset6<P: PacketMut>(packet: &mut P, l3: usize, header_len: usize) -> Option<()> {
    turn_link(packet)?;
    let header = packet.view::<{ ipv6::LEN }>(l3)?;
    let client = (header.raw64::<{ ipv6::SRC }>(), header.raw64::<{ ipv6::SRC + 8 }>());
    let vip = (header.raw64::<{ ipv6::DST }>(), header.raw64::<{ ipv6::DST + 8 }>());
    let total = ipv6::LEN as u32 + u32::from(header.u16::<{ ipv6::PAYLOAD_LEN }>());
    if !is_single6(client) {
        return None;
    }
    let answer = Reset::to(packet, l3 + header_len, total.wrapping_sub(header_len as u32))?;
    cut(packet, l3 + ipv6::LEN + tcp::LEN)?;
    let mut header = packet.view_mut::<{ ipv6::LEN }>(l3)?;
    header.set32::<{ ipv6::WORD }>((6u32 << 28).to_be());
    header.set16::<{ ipv6::PAYLOAD_LEN }>((tcp::LEN as u16).to_be());
    header.set8::<{ ipv6::NEXT }>(proto::TCP);
    header.set8::<{ ipv6::HOP_LIMIT }>(OUTER_TTL);
    header.set64::<{ ipv6::SRC }>(vip.0);
    header.set64::<{ ipv6::SRC + 8 }>(vip.1);
    header.set64::<{ ipv6::DST }>(client.0);
    header.set64::<{ ipv6::DST + 8 }>(client.1);
    let half = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    let pseudo = half(vip.0) + half(vip.1) + half(client.0) + half(client.1);
    answer.write(packet, l3 + ipv6::LEN, pseudo)
}
