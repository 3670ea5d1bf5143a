//! ICMP answers the balancer makes itself.

use crate::{
    csum,
    packet::PacketMut,
    wire::{eth, icmp, ipv4, ipv6, proto, vlan},
};

/// Bytes of the refused packet an answer quotes. RFC 792 asks for header and 8 bytes, RFC 4443 for as much as fits
/// 1,280; this holds every IPv4 header with its TCP header, or an IPv6 header with the usual extension headers.
pub const QUOTE: usize = 128;

const OUTER_TTL: u8 = 64;

/// Turns a packet that is larger than `mtu` into the ICMP message that tells its sender: fragmentation
/// needed (RFC 1191 section 4) or Packet Too Big (RFC 4443 section 3.2), from the VIP, back out of the
/// port it came in by. `None`: the packet cannot be turned; it may then be half changed and must be dropped.
#[inline(always)]
pub fn too_big<P: PacketMut>(packet: &mut P, l3: usize, v6: bool, mtu: u16) -> Option<()> {
    packet.truncate(l3 + QUOTE)?;
    if v6 { too_big_v6(packet, l3, mtu) } else { too_big_v4(packet, l3, mtu) }
}

#[inline(always)]
fn too_big_v4<P: PacketMut>(packet: &mut P, l3: usize, mtu: u16) -> Option<()> {
    const ADDED: usize = ipv4::LEN + icmp::LEN;
    let link = Link::read(packet, l3)?;
    let quote = packet.view::<QUOTE>(l3)?;
    let quoted = quote.sum32();
    // What is shorter than a quote met an egress smaller than IP allows.
    if usize::from(quote.u16::<{ ipv4::TOTAL_LEN }>()) < QUOTE {
        return None;
    }
    let (client, vip) = (quote.raw32::<{ ipv4::SRC }>(), quote.raw32::<{ ipv4::DST }>());
    // RFC 1122 section 3.2.2: never to what names no single host (zero net, loopback, multicast, class E, broadcast).
    let net = client.to_ne_bytes()[0];
    if net == 0 || net == 127 || net >= 224 {
        return None;
    }
    packet.grow_head(ADDED as i32)?;
    link.write_swapped(packet, l3)?;

    let mut header = packet.view_mut::<ADDED>(l3)?;
    let w0 = (0x4500_0000 | (ADDED + QUOTE) as u32).to_be();
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

    let kind =
        (u32::from(icmp::V4_UNREACHABLE) << 24 | u32::from(icmp::V4_FRAGMENTATION_NEEDED) << 16).to_be();
    let next_hop_mtu = u32::from(mtu).to_be();
    header.set32::<{ ipv4::LEN }>(kind);
    header.set32::<{ ipv4::LEN + 4 }>(next_hop_mtu);
    header.set16::<{ ipv4::LEN + 2 }>(csum::finish(kind as u64 + next_hop_mtu as u64 + quoted));
    Some(())
}

#[inline(always)]
fn too_big_v6<P: PacketMut>(packet: &mut P, l3: usize, mtu: u16) -> Option<()> {
    const ADDED: usize = ipv6::LEN + icmp::LEN;
    const LENGTH: usize = icmp::LEN + QUOTE;
    let link = Link::read(packet, l3)?;
    let quote = packet.view::<QUOTE>(l3)?;
    let quoted = quote.sum32();
    // RFC 8200 section 5: no egress is smaller than 1,280 bytes.
    if ipv6::LEN + usize::from(quote.u16::<{ ipv6::PAYLOAD_LEN }>()) < QUOTE {
        return None;
    }
    let client = (quote.raw64::<{ ipv6::SRC }>(), quote.raw64::<{ ipv6::SRC + 8 }>());
    let vip = (quote.raw64::<{ ipv6::DST }>(), quote.raw64::<{ ipv6::DST + 8 }>());
    // RFC 4443 section 2.4 (e.6): nor to a multicast or the unspecified address, nor to loopback.
    let nobody = client.0 == 0 && u64::from_be(client.1) <= 1;
    if nobody || client.0.to_ne_bytes()[0] == 0xff {
        return None;
    }
    packet.grow_head(ADDED as i32)?;
    link.write_swapped(packet, l3)?;

    let mut header = packet.view_mut::<ADDED>(l3)?;
    header.set32::<{ ipv6::WORD }>((6u32 << 28).to_be());
    header.set16::<{ ipv6::PAYLOAD_LEN }>((LENGTH as u16).to_be());
    header.set8::<{ ipv6::NEXT }>(proto::ICMPV6);
    header.set8::<{ ipv6::HOP_LIMIT }>(OUTER_TTL);
    header.set64::<{ ipv6::SRC }>(vip.0);
    header.set64::<{ ipv6::SRC + 8 }>(vip.1);
    header.set64::<{ ipv6::DST }>(client.0);
    header.set64::<{ ipv6::DST + 8 }>(client.1);

    let kind = (u32::from(icmp::V6_PACKET_TOO_BIG) << 24).to_be();
    let next_hop_mtu = u32::from(mtu).to_be();
    header.set32::<{ ipv6::LEN }>(kind);
    header.set32::<{ ipv6::LEN + 4 }>(next_hop_mtu);
    let half = |w: u64| (w & 0xffff_ffff) + (w >> 32);
    let pseudo = half(vip.0)
        + half(vip.1)
        + half(client.0)
        + half(client.1)
        + (LENGTH as u32).to_be() as u64
        + u32::from(proto::ICMPV6).to_be() as u64;
    header.set16::<{ ipv6::LEN + 2 }>(csum::finish(pseudo + kind as u64 + next_hop_mtu as u64 + quoted));
    Some(())
}

/// The link header as it came. It is read before anything further inside the packet: the verifier does
/// not conclude from a check at a variable offset to the bytes before it.
struct Link {
    dst: (u32, u16),
    src: (u32, u16),
    ether_type: u16,
    tags: [u32; 2],
}

impl Link {
    #[inline(always)]
    fn read<P: PacketMut>(packet: &P, l3: usize) -> Option<Self> {
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
        let mut new = packet.view_mut::<{ eth::LEN }>(0)?;
        new.set32::<0>(self.src.0);
        new.set16::<4>(self.src.1);
        new.set32::<6>(self.dst.0);
        new.set16::<10>(self.dst.1);
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
