//! The packet that leaves for a backend: next-hop MAC addresses, and in the tunnel modes an outer header.

use super::{DropReason, Forward, Ip, Part, nat};
use crate::{
    abi::{BackendEntry, ForwardKind},
    csum, hash,
    packet::{Packet, PacketMut, ViewMut},
    wire::{eth, ipv4, ipv6, proto, tcp, udp, vlan},
};

/// TTL of an outer header (RFC 1700's default; RFC 2003 section 3.1).
const OUTER_TTL: u8 = 64;

/// Bytes the tunnel adds in front of the packet.
#[inline(always)]
#[must_use]
pub const fn overhead(backend: &BackendEntry) -> usize {
    let outer = if backend.family == 6 { ipv6::LEN } else { ipv4::LEN };
    match ForwardKind::from_u8(backend.kind) {
        Some(ForwardKind::Ipip) => outer,
        Some(ForwardKind::Gue) => outer + udp::LEN,
        _ => 0,
    }
}

/// Largest packet a sender may send to this backend.
#[inline(always)]
#[must_use]
pub const fn path_mtu(backend: &BackendEntry) -> u16 {
    backend.mtu.saturating_sub(overhead(backend) as u16)
}

/// Rewrites the packet into the one that leaves through `forward.backend.ifindex`.
///
/// An error of [`DropReason::TooBig`] leaves the packet as it was, for [`super::icmp::too_big`] to answer.
///
/// Whatever the mode, the packet has been forwarded by one more hop: TTL or hop limit goes down by one
/// (RFC 1812 section 5.3.1, RFC 2003 section 3.1, RFC 2473 section 3.1), so that no packet circles for ever between two
/// machines that each hold the other for the backend.
#[inline(always)]
pub fn rewrite<P: PacketMut>(packet: &mut P, forward: &Forward<'_>) -> Result<(), DropReason> {
    let (ip, backend) = (forward.ip, forward.backend);
    if backend.ifindex == 0 {
        return Err(DropReason::NoNextHop);
    }
    let overhead = overhead(backend);
    if usize::from(ip.total_len) + overhead > usize::from(backend.mtu) {
        return Err(DropReason::TooBig);
    }
    let l2 = if backend.vlan == 0 { eth::LEN } else { eth::LEN + vlan::LEN };
    let inner_sum = match ForwardKind::from_u8(backend.kind) {
        Some(ForwardKind::Gue) if backend.family == 6 => inner_sum(packet, &ip),
        _ => None,
    };
    decrement_ttl(packet, &ip)?;
    let grow = overhead as i32 + l2 as i32 - ip.l3 as i32;
    if grow != 0 {
        packet.grow_head(grow).ok_or(DropReason::NoHeadroom)?;
    }
    match ForwardKind::from_u8(backend.kind) {
        Some(ForwardKind::Dsr) => {}
        Some(ForwardKind::Nat) => destination(packet, forward, l2)?,
        // Never without a session.
        Some(ForwardKind::Snat) => return Err(INTERNAL),
        Some(kind) => encapsulate(packet, forward, kind, l2, inner_sum)?,
        None => return Err(DropReason::Internal),
    }
    let v6 = if overhead == 0 { ip.v6 } else { backend.family == 6 };
    link_header(packet, &backend.l2, backend.vlan, l2, v6)
}

const INTERNAL: DropReason = DropReason::Internal;

#[inline(always)]
pub(super) fn decrement_ttl<P: PacketMut>(packet: &mut P, ip: &Ip) -> Result<(), DropReason> {
    if ip.v6 {
        let mut header = packet.view_mut::<{ ipv6::LEN }>(ip.l3).ok_or(INTERNAL)?;
        let hops = header.as_view().u8::<{ ipv6::HOP_LIMIT }>();
        header.set8::<{ ipv6::HOP_LIMIT }>(hops.wrapping_sub(1));
    } else {
        let mut header = packet.view_mut::<{ ipv4::LEN }>(ip.l3).ok_or(INTERNAL)?;
        let word = header.as_view().raw16::<{ ipv4::TTL }>();
        let check = header.as_view().raw16::<{ ipv4::CHECK }>();
        let [ttl, protocol] = word.to_ne_bytes();
        let new = u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]);
        header.set16::<{ ipv4::TTL }>(new);
        header.set16::<{ ipv4::CHECK }>(csum::update16(check, word, new));
    }
    Ok(())
}

/// The backend's address and port in the place of the virtual ones; the IP header is at `l3`.
#[inline(always)]
fn destination<P: PacketMut>(packet: &mut P, forward: &Forward<'_>, l3: usize) -> Result<(), DropReason> {
    let (ip, backend) = (forward.ip, forward.backend);
    if ip.v6 != (backend.family == 6) {
        return Err(DropReason::NatUntranslatable);
    }
    let dst = nat::Address::of_backend(backend);
    if let Part::Later = ip.part {
        // It has no ports, and the checksum is in the first.
        return nat::rewrite::addresses::<P, { nat::rewrite::DESTINATION }>(packet, ip.v6, l3, dst, dst)
            .map(|_| ());
    }
    let to = nat::Ends { src: dst, dst, src_port: 0, dst_port: backend.port.to_be() };
    nat::rewrite::ends::<P, { nat::rewrite::DESTINATION }>(packet, &ip, l3, &to)
}

/// Destination and source MAC address, VLAN tag where the egress has one, EtherType.
#[inline(always)]
pub(super) fn link_header<P: PacketMut>(
    packet: &mut P,
    addresses: &[u8; 12],
    id: u16,
    l2: usize,
    v6: bool,
) -> Result<(), DropReason> {
    let ether_type = if v6 { eth::IPV6 } else { eth::IPV4 }.to_be();
    let mut header = packet.view_mut::<{ eth::LEN }>(0).ok_or(INTERNAL)?;
    macs(&mut header, addresses);
    if l2 == eth::LEN {
        header.set16::<{ eth::TYPE }>(ether_type);
        return Ok(());
    }
    header.set16::<{ eth::TYPE }>(eth::VLAN.to_be());
    let mut tag = packet.view_mut::<{ vlan::LEN }>(eth::LEN).ok_or(INTERNAL)?;
    tag.set16::<0>((id & 0xfff).to_be());
    tag.set16::<2>(ether_type);
    Ok(())
}

#[inline(always)]
fn macs<const N: usize>(header: &mut ViewMut<'_, N>, l2: &[u8; 12]) {
    let view = crate::packet::View(l2);
    header.set32::<0>(view.raw32::<0>());
    header.set32::<4>(view.raw32::<4>());
    header.set32::<8>(view.raw32::<8>());
}

/// Writes the outer IP header at `at` and, for GUE, the UDP header after it.
#[inline(always)]
fn encapsulate<P: PacketMut>(
    packet: &mut P,
    forward: &Forward<'_>,
    kind: ForwardKind,
    at: usize,
    inner_sum: Option<u64>,
) -> Result<(), DropReason> {
    let (ip, backend) = (forward.ip, forward.backend);
    let entropy = hash::entropy(forward.hash);
    let (protocol, udp_len) = match kind {
        ForwardKind::Gue => (proto::UDP, udp::LEN as u16),
        _ => (if ip.v6 { proto::IPV6 } else { proto::IPV4 }, 0),
    };
    let payload = ip.total_len + udp_len;
    // ipip has no port to vary: low bits of the source do. GUE varies its source port.
    let mask =
        if backend.entropy_bits == 0 { 0 } else { u32::MAX >> ((32 - backend.entropy_bits as u32) & 31) };
    let varied = (entropy & mask).to_be();
    let src = crate::packet::View(&backend.outer_src);
    let dst = crate::packet::View(&backend.outer_dst);
    let mut pseudo = 0;
    if backend.family == 6 {
        let mut header = packet.view_mut::<{ ipv6::LEN }>(at).ok_or(INTERNAL)?;
        // RFC 6438: the flow label spreads tunnels; RFC 6040 section 4.1: the traffic class is copied, ECN with it.
        let word = 6 << 28 | u32::from(ip.tos) << 20 | entropy & 0xf_ffff;
        header.set32::<{ ipv6::WORD }>(word.to_be());
        header.set16::<{ ipv6::PAYLOAD_LEN }>(payload.to_be());
        header.set8::<{ ipv6::NEXT }>(protocol);
        header.set8::<{ ipv6::HOP_LIMIT }>(OUTER_TTL);
        let (s0, s1) = (src.raw64::<0>(), src.raw32::<8>());
        let s2 = src.raw32::<12>() | varied;
        header.set64::<{ ipv6::SRC }>(s0);
        header.set32::<{ ipv6::SRC + 8 }>(s1);
        header.set32::<{ ipv6::SRC + 12 }>(s2);
        let (d0, d1) = (dst.raw64::<0>(), dst.raw64::<8>());
        header.set64::<{ ipv6::DST }>(d0);
        header.set64::<{ ipv6::DST + 8 }>(d1);
        pseudo = halves(s0) + s1 as u64 + s2 as u64 + halves(d0) + halves(d1);
    } else {
        let mut header = packet.view_mut::<{ ipv4::LEN }>(at).ok_or(INTERNAL)?;
        let w0 = (0x4500_0000 | u32::from(ip.tos) << 16 | (ipv4::LEN as u32 + u32::from(payload))).to_be();
        // Never a fragment, so the identification may be anything (RFC 6864 section 4.1).
        let w1 = (u32::from(ipv4::DONT_FRAGMENT)).to_be();
        let w2 = (u32::from(OUTER_TTL) << 24 | u32::from(protocol) << 16).to_be();
        let s = src.raw32::<0>() | varied;
        let d = dst.raw32::<0>();
        let check = csum::finish(w0 as u64 + w1 as u64 + w2 as u64 + s as u64 + d as u64);
        header.set32::<0>(w0);
        header.set32::<4>(w1);
        header.set32::<8>(w2);
        header.set16::<{ ipv4::CHECK }>(check);
        header.set32::<{ ipv4::SRC }>(s);
        header.set32::<{ ipv4::DST }>(d);
    }
    if let ForwardKind::Gue = kind {
        let outer = if backend.family == 6 { ipv6::LEN } else { ipv4::LEN };
        // The ephemeral range (RFC 6335): 14 bits of entropy.
        let source_port = (0xc000 | entropy >> 18) as u16;
        let ports = (u32::from(source_port) << 16 | u32::from(backend.port)).to_be();
        let length = payload.to_be();
        // IPv4: none (RFC 768). IPv6: derived from the inner checksum; none where there is none (RFC 6936).
        let check = match inner_sum {
            Some(inner) => match csum::finish(
                pseudo
                    + u64::from(proto::UDP) * const { 1u16.to_be() as u64 }
                    + 2 * length as u64
                    + ports as u64
                    + inner,
            ) {
                0 => 0xffff,
                check => check,
            },
            None => 0,
        };
        let mut header = packet.view_mut::<{ udp::LEN }>(at + outer).ok_or(INTERNAL)?;
        header.set32::<0>(ports);
        header.set16::<{ udp::LENGTH }>(length);
        header.set16::<{ udp::CHECK }>(check);
    }
    Ok(())
}

#[inline(always)]
const fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// Sum over the inner packet, from its header alone: a transport checksum makes segment plus pseudo header
/// sum to 0xffff, which is zero, and so does an IPv4 header. `None` where there is no checksum to derive it
/// from. To be asked before the TTL changes: for IPv4 that changes nothing, for IPv6 it is accounted for here.
#[inline(always)]
fn inner_sum<P: Packet>(packet: &P, ip: &Ip) -> Option<u64> {
    // The checksum is the whole datagram's, and only the first fragment has it.
    if !matches!(ip.part, Part::Whole) {
        return None;
    }
    // ICMP for IPv4 has no pseudo header (RFC 792): header and message each sum up to nothing.
    if ip.proto == proto::ICMP && !ip.v6 {
        return Some(0);
    }
    let at = ip.l3 + ip.header_len;
    if ip.proto == proto::UDP {
        let header = packet.view::<{ udp::LEN }>(at)?;
        // What lies behind the UDP length (options, RFC 9868) is covered by no checksum.
        let covered = usize::from(header.u16::<{ udp::LENGTH }>());
        if header.raw16::<{ udp::CHECK }>() == 0 || covered != usize::from(ip.total_len) - ip.header_len {
            return None;
        }
    }
    if ip.proto == proto::TCP {
        packet.view::<{ tcp::LEN }>(at)?;
    }
    if ip.v6 {
        if ip.header_len != ipv6::LEN {
            return None;
        }
        let header = packet.view::<{ ipv6::LEN }>(ip.l3)?;
        let [next, hops] = header.raw16::<{ ipv6::NEXT }>().to_ne_bytes();
        let hop = u16::from_ne_bytes([next, hops.wrapping_sub(1)]);
        // Addresses and length cancel out against the pseudo header.
        let minus_next = !u16::from_be_bytes([0, next]).to_be();
        Some(header.raw32::<{ ipv6::WORD }>() as u64 + hop as u64 + minus_next as u64)
    } else {
        let header = packet.view::<{ ipv4::LEN }>(ip.l3)?;
        let segment = ip.total_len - ip.header_len as u16;
        let pseudo = header.raw32::<{ ipv4::SRC }>() as u64
            + header.raw32::<{ ipv4::DST }>() as u64
            + u16::from_be_bytes([0, ip.proto]).to_be() as u64
            + segment.to_be() as u64;
        Some(!csum::fold(pseudo) as u64)
    }
}
