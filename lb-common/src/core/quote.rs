//! ICMP messages to a VIP. An error is about a packet that a backend sent: the quoted packet, turned round, is of the
//! flow whose backend must hear of it.

use super::{
    DropReason, FlowCell, FlowKey, Tables,
    affinity::{Place, is_alive},
    found::Found,
    parse::{ChainEnd, forwarded},
    service,
};
use crate::{
    abi::{FlowEntry, FlowKey4, FlowKey6, ServiceEntry, VipEntry},
    hash,
    packet::Packet,
    wire::{icmp, ipv4, ipv6},
};

/// Bytes of transport header that must be quoted: the ports. (RFC 792 promises 8.)
const PORTS: usize = 4;

/// What becomes of an ICMP message to a VIP.
#[inline(always)]
pub fn icmp<P: Packet, T: Tables>(packet: &P, tables: &T, place: Place) -> Found {
    if place.is_v6() { icmp6(packet, tables, place) } else { icmp4(packet, tables, place) }
}

/// See [`icmp`], IPv4.
#[inline(always)]
pub fn icmp4<P: Packet, T: Tables>(packet: &P, tables: &T, place: Place) -> Found {
    let Some(ip) = packet.view::<{ ipv4::LEN }>(place.l3()) else { return Found::PASS };
    let vip = ip.raw32::<{ ipv4::DST }>().to_ne_bytes();
    let end = place.l3() + usize::from(ip.u16::<{ ipv4::TOTAL_LEN }>());
    let Some(message) = packet.view::<{ icmp::LEN }>(place.l4()) else { return Found::PASS };
    // The frame may go on behind the packet.
    if place.l4() + icmp::LEN > end {
        return Found::PASS;
    }
    match message.u8::<0>() {
        icmp::V4_ECHO_REQUEST if message.u8::<1>() == 0 => return Found::ECHO,
        icmp::V4_UNREACHABLE | icmp::V4_TIME_EXCEEDED | icmp::V4_PARAMETER_PROBLEM => {}
        _ => return Found::PASS,
    }
    let at = place.l4() + icmp::LEN;
    let Some(quote) = packet.view::<{ ipv4::LEN }>(at) else { return Found::PASS };
    let proto = quote.u8::<{ ipv4::PROTO }>();
    if quote.raw32::<{ ipv4::SRC }>().to_ne_bytes() != vip || !forwarded(proto) {
        return Found::PASS;
    }
    let Some(entry) = tables.vip4(vip) else { return Found::PASS };
    let header = usize::from(quote.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
    if quote.u8::<{ ipv4::VIHL }>() >> 4 != 4
        || header < ipv4::LEN
        || quote.u16::<{ ipv4::FRAGMENT }>() & ipv4::FRAGMENT_OFFSET != 0
        || at + header + PORTS > end
    {
        return Found::drop(DropReason::IcmpQuote);
    }
    let client = quote.raw32::<{ ipv4::DST }>();
    let Some(ports) = packet.view::<PORTS>(at + header) else { return Found::drop(DropReason::IcmpQuote) };
    let ports = ports.u32::<0>().rotate_left(16);
    let key =
        FlowKey4 { src: client.to_ne_bytes(), dst: vip, ports: ports.to_be_bytes(), proto: proto.into() };
    let flow = |seed, ports| hash::flow4(seed, u32::from_be(client), ports);
    find(tables, entry, proto, ports, flow, &key)
}

/// See [`icmp`], IPv6.
#[inline(always)]
pub fn icmp6<P: Packet, T: Tables>(packet: &P, tables: &T, place: Place) -> Found {
    let Some(ip) = packet.view::<{ ipv6::LEN }>(place.l3()) else { return Found::PASS };
    let end = place.l3() + ipv6::LEN + usize::from(ip.u16::<{ ipv6::PAYLOAD_LEN }>());
    let vip = (ip.raw64::<{ ipv6::DST }>(), ip.raw64::<{ ipv6::DST + 8 }>());
    let Some(message) = packet.view::<{ icmp::LEN }>(place.l4()) else { return Found::PASS };
    // The frame may go on behind the packet.
    if place.l4() + icmp::LEN > end {
        return Found::PASS;
    }
    match message.u8::<0>() {
        icmp::V6_ECHO_REQUEST if message.u8::<1>() == 0 => return Found::ECHO,
        icmp::V6_UNREACHABLE..=icmp::V6_PARAMETER_PROBLEM => {}
        _ => return Found::PASS,
    }
    let at = place.l4() + icmp::LEN;
    let Some(quote) = packet.view::<{ ipv6::LEN }>(at) else { return Found::PASS };
    if (quote.raw64::<{ ipv6::SRC }>(), quote.raw64::<{ ipv6::SRC + 8 }>()) != vip {
        return Found::PASS;
    }
    let client = (quote.u64::<{ ipv6::DST }>(), quote.u64::<{ ipv6::DST + 8 }>());
    let version = quote.u8::<0>() >> 4;
    let chain = tables.extensions(packet, at, quote.u8::<{ ipv6::NEXT }>());
    let proto = chain.proto();
    match chain.end() {
        ChainEnd::Transport if !forwarded(proto) => return Found::PASS,
        ChainEnd::Transport => {}
        // About a packet of the balancer's own kernel, for all that can be told.
        ChainEnd::Elsewhere => return Found::PASS,
        ChainEnd::Truncated | ChainEnd::Fragment | ChainEnd::Impossible => {
            return Found::drop(DropReason::IcmpQuote);
        }
    }
    let ports_at = at + chain.header_len();
    if version != 6 || ports_at + PORTS > end {
        return Found::drop(DropReason::IcmpQuote);
    }
    let Some(ports) = packet.view::<PORTS>(ports_at) else { return Found::drop(DropReason::IcmpQuote) };
    let ports = ports.u32::<0>().rotate_left(16);
    let Some(dst) = packet.view::<16>(place.l3() + ipv6::DST) else { return Found::PASS };
    let Some(entry) = tables.vip6(dst.0) else { return Found::PASS };
    let mut src = [0; 16];
    src[..8].copy_from_slice(&client.0.to_be_bytes());
    src[8..].copy_from_slice(&client.1.to_be_bytes());
    let key = FlowKey6 { src, dst: *dst.0, ports: ports.to_be_bytes(), proto: proto.into() };
    let flow = |seed, ports| hash::flow6(seed, client.0, client.1, ports);
    find(tables, entry, proto, ports, flow, &key)
}

/// The backend of a flow, as the flow's next packet would find it; nothing is recorded and nothing changed.
#[inline(always)]
fn find<T: Tables, K: FlowKey>(
    tables: &T,
    vip: &VipEntry,
    proto: u8,
    ports: u32,
    flow: impl Fn(u64, u32) -> u64,
    key: &K,
) -> Found {
    let Some(id) = service::find(tables, vip, proto, ports as u16) else { return Found::PASS };
    let Some(entry) = tables.service(id) else { return Found::drop(DropReason::Internal) };
    if entry.ring_size == 0 {
        return Found::drop(DropReason::NoBackend);
    }
    let hash = flow(entry.seed, ports);
    let spread = if entry.flags & ServiceEntry::SOURCE_IP == 0 { hash } else { flow(entry.seed, 0) };
    let index = hash::slot(spread, entry.ring_size);
    let Some(slot) = tables.slot(entry.ring_base.wrapping_add(index)) else {
        return Found::drop(DropReason::Internal);
    };
    let asked = !slot.is_plain() || entry.flags & ServiceEntry::SCHEDULED != 0;
    let recorded = if asked { recorded(tables, hash, key) } else { 0 };
    match if recorded == 0 { slot.home() } else { recorded } {
        0 => Found::drop(DropReason::NoBackend),
        backend => Found::forward(backend, hash::entropy(hash)),
    }
}

/// The backend that the flow's entry names, or its handshake's, if it lives; else 0.
#[inline(always)]
fn recorded<T: Tables, K: FlowKey>(tables: &T, hash: u64, key: &K) -> u32 {
    let living = |entry: FlowEntry| {
        let ours = entry.tag() == FlowEntry::tag_of(hash) && is_alive(tables, entry);
        if ours { entry.backend() } else { 0 }
    };
    let confirmed = key.find(tables).map_or(0, |cell| living(cell.load()));
    if confirmed != 0 {
        return confirmed;
    }
    key.half_open(tables).map_or(0, |cell| living(cell.load()))
}
