//! Echo requests to a VIP (RFC 792, RFC 4443 section 4.2), answered where they come in.

use super::icmp::{OUTER_TTL, is_single4, is_single6, turn_link};
use crate::{
    csum,
    packet::PacketMut,
    wire::{icmp, ipv4, ipv6, proto},
};

/// Turns an echo request without IP options or extension headers into its reply. `None`: its sender is no single host,
/// and the packet, half changed, is to be dropped.
///
/// The link header goes first: the verifier does not conclude from a check at a variable offset to the bytes before it.
#[inline(always)]
pub fn reply<P: PacketMut>(packet: &mut P, l3: usize, v6: bool) -> Option<()> {
    if v6 { reply6(packet, l3) } else { reply4(packet, l3) }
}

/// See [`reply`], IPv4.
#[inline(always)]
pub fn reply4<P: PacketMut>(packet: &mut P, l3: usize) -> Option<()> {
    turn_link(packet)?;
    let header = packet.view::<{ ipv4::LEN }>(l3)?;
    let (client, vip) = (header.raw32::<{ ipv4::SRC }>(), header.raw32::<{ ipv4::DST }>());
    if !is_single4(client) {
        return None;
    }
    let (old, check) = (header.raw16::<{ ipv4::TTL }>(), header.raw16::<{ ipv4::CHECK }>());
    let new = u16::from_ne_bytes([OUTER_TTL, proto::ICMP]);
    let mut header = packet.view_mut::<{ ipv4::LEN }>(l3)?;
    header.set16::<{ ipv4::TTL }>(new);
    // The sum does not mind which address is where.
    header.set16::<{ ipv4::CHECK }>(csum::update16(check, old, new));
    header.set32::<{ ipv4::SRC }>(vip);
    header.set32::<{ ipv4::DST }>(client);
    turn_message(packet, l3 + ipv4::LEN, icmp::V4_ECHO_REPLY)
}

/// See [`reply`], IPv6.
#[inline(always)]
pub fn reply6<P: PacketMut>(packet: &mut P, l3: usize) -> Option<()> {
    turn_link(packet)?;
    let header = packet.view::<{ ipv6::LEN }>(l3)?;
    let client = (header.raw64::<{ ipv6::SRC }>(), header.raw64::<{ ipv6::SRC + 8 }>());
    let vip = (header.raw64::<{ ipv6::DST }>(), header.raw64::<{ ipv6::DST + 8 }>());
    if !is_single6(client) {
        return None;
    }
    let mut header = packet.view_mut::<{ ipv6::LEN }>(l3)?;
    header.set8::<{ ipv6::HOP_LIMIT }>(OUTER_TTL);
    header.set64::<{ ipv6::SRC }>(vip.0);
    header.set64::<{ ipv6::SRC + 8 }>(vip.1);
    header.set64::<{ ipv6::DST }>(client.0);
    header.set64::<{ ipv6::DST + 8 }>(client.1);
    turn_message(packet, l3 + ipv6::LEN, icmp::V6_ECHO_REPLY)
}

/// Type and checksum; identifier, sequence number and data go back as they are.
#[inline(always)]
fn turn_message<P: PacketMut>(packet: &mut P, at: usize, reply: u8) -> Option<()> {
    let mut message = packet.view_mut::<{ icmp::LEN }>(at)?;
    let (old, check) = (message.as_view().raw16::<0>(), message.as_view().raw16::<2>());
    let new = u16::from_ne_bytes([reply, 0]);
    message.set16::<0>(new);
    message.set16::<2>(csum::update16(check, old, new));
    Some(())
}
