//! ICMP answers the balancer makes itself.

use crate::{
    csum,
    packet::PacketMut,
    wire::{eth, icmp, ipv4, ipv6, proto, vlan},
};

/// Bytes of the refused packet an answer quotes. RFC 792 asks for header and 8 bytes, RFC 4443 for as much as fits
/// 1,280; this holds every IPv4 header with its TCP header, or an IPv6 header with the usual extension headers.
pub const QUOTE: usize = 128;

/// TTL of what the balancer says of its own.
pub(super) const OUTER_TTL: u8 = 64;

/// What a sender is told, in the two words of an ICMP header: type and code, and the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub kind: u8,
    pub code: u8,
    pub rest: u32,
}

impl Message {
    /// Fragmentation needed (RFC 1191 section 4) or Packet Too Big (RFC 4443 section 3.2).
    #[inline(always)]
    #[must_use]
    pub const fn too_big(v6: bool, mtu: u16) -> Self {
        let (kind, code) = if v6 {
            (icmp::V6_PACKET_TOO_BIG, 0)
        } else {
            (icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED)
        };
        Self { kind, code, rest: mtu as u32 }
    }

    /// Time exceeded in transit (RFC 792, RFC 1812 section 5.3.1; RFC 4443 section 3.3).
    #[inline(always)]
    #[must_use]
    pub const fn expired(v6: bool) -> Self {
        Self { kind: if v6 { icmp::V6_TIME_EXCEEDED } else { icmp::V4_TIME_EXCEEDED }, code: 0, rest: 0 }
    }

    /// Port unreachable (RFC 792, RFC 1122 section 3.2.2.1; RFC 4443 section 3.1).
    #[inline(always)]
    #[must_use]
    pub const fn port_unreachable(v6: bool) -> Self {
        let (kind, code) = if v6 {
            (icmp::V6_UNREACHABLE, icmp::V6_PORT_UNREACHABLE)
        } else {
            (icmp::V4_UNREACHABLE, icmp::V4_PORT_UNREACHABLE)
        };
        Self { kind, code, rest: 0 }
    }
}

/// Turns a packet that is not forwarded into the ICMP message that tells its sender, from the VIP, back out of the
/// port it came in by. `None`: the packet cannot be turned; it may then be half changed and must be dropped.
#[inline(always)]
pub fn tell<P: PacketMut>(packet: &mut P, l3: usize, v6: bool, message: Message) -> Option<()> {
    if v6 { tell6(packet, l3, message) } else { tell4(packet, l3, message) }
}

/// Cuts the frame to what is quoted; sum and length of that.
#[inline(always)]
fn quote<P: PacketMut>(packet: &mut P, l3: usize, total: usize) -> Option<(u64, usize)> {
    // Padding of the frame is no part of the packet.
    let len = if total < QUOTE { total & (QUOTE - 1) } else { QUOTE };
    packet.truncate(l3 + len)?;
    if len == QUOTE {
        return Some((packet.view::<QUOTE>(l3)?.sum32(), len));
    }
    // SAFETY: a reference to a live local. Volatile: the compiler knows that this is less than QUOTE and would leave the
    // bound out of the loop below, and older verifiers do not know.
    let shown = unsafe { core::ptr::read_volatile(&len) };
    let mut sum = 0;
    for at in (0..QUOTE).step_by(2) {
        if at + 2 > shown {
            break;
        }
        sum += u64::from(packet.view::<2>(l3 + at)?.raw16::<0>());
    }
    if len & 1 != 0 {
        // RFC 1071 section 1: an odd byte at the end counts as if a zero followed.
        // Read with the byte before it: a verifier of 6.1 gives no range to a pointer that may just not be the end.
        let last = shown.wrapping_sub(2) & (QUOTE - 1);
        sum += u64::from(u16::from_ne_bytes([packet.view::<2>(l3 + last)?.u8::<1>(), 0]));
    }
    Some((sum, len))
}

/// RFC 1122 section 3.2.2: no answer to what names no single host (zero net, loopback, multicast, class E, broadcast).
/// The address as it stands in the packet.
#[inline(always)]
pub(super) const fn is_single4(address: u32) -> bool {
    let net = address.to_ne_bytes()[0];
    net != 0 && net != 127 && net < 224
}

/// RFC 4443 section 2.4 (e.6): nor to a multicast or the unspecified address, nor to loopback.
#[inline(always)]
pub(super) const fn is_single6(address: (u64, u64)) -> bool {
    let nobody = address.0 == 0 && u64::from_be(address.1) <= 1;
    !nobody && address.0.to_ne_bytes()[0] != 0xff
}

/// See [`tell`], IPv4.
#[inline(always)]
pub fn tell4<P: PacketMut>(packet: &mut P, l3: usize, message: Message) -> Option<()> {
    const ADDED: usize = ipv4::LEN + icmp::LEN;
    let link = Link::read(packet, l3)?;
    let refused = packet.view::<{ ipv4::LEN }>(l3)?;
    let (client, vip) = (refused.raw32::<{ ipv4::SRC }>(), refused.raw32::<{ ipv4::DST }>());
    let total = refused.u16::<{ ipv4::TOTAL_LEN }>();
    if !is_single4(client) {
        return None;
    }
    let (quoted, len) = quote(packet, l3, total.into())?;
    packet.grow_head(ADDED as i32)?;
    link.write_swapped(packet, l3)?;

    let mut header = packet.view_mut::<ADDED>(l3)?;
    let w0 = (0x4500_0000 | (ADDED + len) as u32).to_be();
    let w1 = u32::from(ipv4::DONT_FRAGMENT).to_be();
    let w2 = (u32::from(OUTER_TTL) << 24 | u32::from(proto::ICMP) << 16).to_be();
    header.set32::<0>(w0);
    header.set32::<4>(w1);
    header.set32::<8>(w2);
    header.set16::<{ ipv4::CHECK }>(csum::finish(
        w0 as u64 + w1 as u64 + w2 as u64 + vip as u64 + client as u64,
    ));
    header.set32::<{ ipv4::SRC }>(vip);
    header.set32::<{ ipv4::DST }>(client);

    let kind = (u32::from(message.kind) << 24 | u32::from(message.code) << 16).to_be();
    let rest = message.rest.to_be();
    header.set32::<{ ipv4::LEN }>(kind);
    header.set32::<{ ipv4::LEN + 4 }>(rest);
    header.set16::<{ ipv4::LEN + 2 }>(csum::finish(kind as u64 + rest as u64 + quoted));
    Some(())
}

/// See [`tell`], IPv6.
#[inline(always)]
pub fn tell6<P: PacketMut>(packet: &mut P, l3: usize, message: Message) -> Option<()> {
    const ADDED: usize = ipv6::LEN + icmp::LEN;
    let link = Link::read(packet, l3)?;
    let refused = packet.view::<{ ipv6::LEN }>(l3)?;
    let client = (refused.raw64::<{ ipv6::SRC }>(), refused.raw64::<{ ipv6::SRC + 8 }>());
    let vip = (refused.raw64::<{ ipv6::DST }>(), refused.raw64::<{ ipv6::DST + 8 }>());
    let total = ipv6::LEN + usize::from(refused.u16::<{ ipv6::PAYLOAD_LEN }>());
    if !is_single6(client) {
        return None;
    }
    let (quoted, len) = quote(packet, l3, total)?;
    packet.grow_head(ADDED as i32)?;
    link.write_swapped(packet, l3)?;

    let length = (icmp::LEN + len) as u32;
    let mut header = packet.view_mut::<ADDED>(l3)?;
    header.set32::<{ ipv6::WORD }>((6u32 << 28).to_be());
    header.set16::<{ ipv6::PAYLOAD_LEN }>((length as u16).to_be());
    header.set8::<{ ipv6::NEXT }>(proto::ICMPV6);
    header.set8::<{ ipv6::HOP_LIMIT }>(OUTER_TTL);
    header.set64::<{ ipv6::SRC }>(vip.0);
    header.set64::<{ ipv6::SRC + 8 }>(vip.1);
    header.set64::<{ ipv6::DST }>(client.0);
    header.set64::<{ ipv6::DST + 8 }>(client.1);

    let kind = (u32::from(message.kind) << 24 | u32::from(message.code) << 16).to_be();
    let rest = message.rest.to_be();
    header.set32::<{ ipv6::LEN }>(kind);
    header.set32::<{ ipv6::LEN + 4 }>(rest);
    let half = |w: u64| (w & 0xffff_ffff) + (w >> 32);
    let pseudo = half(vip.0)
        + half(vip.1)
        + half(client.0)
        + half(client.1)
        + length.to_be() as u64
        + u32::from(proto::ICMPV6).to_be() as u64;
    header.set16::<{ ipv6::LEN + 2 }>(csum::finish(pseudo + kind as u64 + rest as u64 + quoted));
    Some(())
}

/// Swaps the MAC addresses of a frame that goes back as it came; tags stay.
#[inline(always)]
pub(super) fn turn_link<P: PacketMut>(packet: &mut P) -> Option<()> {
    let mut link = packet.view_mut::<{ eth::LEN }>(0)?;
    let old = link.as_view();
    let (dst, src) = ((old.raw32::<0>(), old.raw16::<4>()), (old.raw32::<6>(), old.raw16::<10>()));
    link.set32::<0>(src.0);
    link.set16::<4>(src.1);
    link.set32::<6>(dst.0);
    link.set16::<10>(dst.1);
    Some(())
}

/// The link header as it came. It is read before anything further inside the packet: the verifier does
/// not conclude from a check at a variable offset to the bytes before it.
pub(super) struct Link {
    dst: (u32, u16),
    src: (u32, u16),
    ether_type: u16,
    tags: [u32; 2],
}

impl Link {
    #[inline(always)]
    pub(super) fn read<P: PacketMut>(packet: &P, l3: usize) -> Option<Self> {
        let old = packet.view::<{ eth::LEN }>(0)?;
        let mut link = Self {
            dst: (old.raw32::<0>(), old.raw16::<4>()),
            src: (old.raw32::<6>(), old.raw16::<10>()),
            ether_type: old.raw16::<{ eth::TYPE }>(),
            tags: [0; 2],
        };
        if l3 > eth::LEN {
            link.tags[0] = packet.view::<{ vlan::LEN }>(eth::LEN)?.raw32::<0>();
        }
        if l3 > eth::LEN + vlan::LEN {
            link.tags[1] = packet.view::<{ vlan::LEN }>(eth::LEN + vlan::LEN)?.raw32::<0>();
        }
        Some(link)
    }

    /// Writes it in front of the answer, MAC addresses swapped and tags kept.
    #[inline(always)]
    fn write_swapped<P: PacketMut>(&self, packet: &mut P, l3: usize) -> Option<()> {
        self.write(packet, l3, self.src, self.dst)
    }

    /// Who sent the frame.
    #[inline(always)]
    pub(super) const fn sender(&self) -> (u32, u16) {
        self.src
    }

    /// Writes it with these MAC addresses; tags stay.
    #[inline(always)]
    pub(super) fn write<P: PacketMut>(
        &self,
        packet: &mut P,
        l3: usize,
        dst: (u32, u16),
        src: (u32, u16),
    ) -> Option<()> {
        let mut new = packet.view_mut::<{ eth::LEN }>(0)?;
        new.set32::<0>(dst.0);
        new.set16::<4>(dst.1);
        new.set32::<6>(src.0);
        new.set16::<10>(src.1);
        new.set16::<{ eth::TYPE }>(self.ether_type);
        if l3 > eth::LEN {
            packet.view_mut::<{ vlan::LEN }>(eth::LEN)?.set32::<0>(self.tags[0]);
        }
        if l3 > eth::LEN + vlan::LEN {
            packet.view_mut::<{ vlan::LEN }>(eth::LEN + vlan::LEN)?.set32::<0>(self.tags[1]);
        }
        Some(())
    }
}
