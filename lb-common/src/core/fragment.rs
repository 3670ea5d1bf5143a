//! Fragments: the first one has the ports, is decided like any packet, and leaves a trace that the others follow.
//!
//! What a fragment may not be, whoever the backend is: a TCP header in pieces (RFC 1858, RFC 3128), or a datagram
//! longer than IP allows.

use super::{
    DropReason, Tables,
    found::{Found, takes},
    parse::{Chain, walk_extensions},
};
use crate::{
    abi::{FragmentKey, FragmentTrace},
    packet::Packet,
    wire::{ipv4, ipv6, proto},
};

/// Backend of a trace: no service has the datagram, the balancer's own kernel puts it together.
pub const KERNEL: u32 = u32::MAX;
/// How long after the first fragment the others are let through, in nanoseconds: Linux puts datagrams together for 30 s.
pub const LIFETIME_NS: u64 = 30_000_000_000;

/// Offset (in its place, in units of 8 bytes) and "more" bit in the word of an IPv6 fragment header, host order.
pub(super) const OFFSET6: u16 = 0xfff8;
pub(super) const MORE6: u16 = 1;

/// An IPv4-mapped address (RFC 4291 section 2.5.5.2).
#[inline(always)]
const fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Where a fragment belongs; its offset and length in bytes, and the protocol it names.
struct Piece {
    key: FragmentKey,
    offset: u32,
    len: u32,
    proto: u8,
}

#[inline(always)]
fn read4<P: Packet>(packet: &P, l3: usize) -> Option<Piece> {
    let ip = packet.view::<{ ipv4::LEN }>(l3)?;
    let proto = ip.u8::<{ ipv4::PROTO }>();
    let header = u32::from(ip.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
    // RFC 791 section 3.2: source, destination, protocol and identification name the datagram.
    let key = FragmentKey {
        src: mapped(ip.raw32::<{ ipv4::SRC }>().to_ne_bytes()),
        dst: mapped(ip.raw32::<{ ipv4::DST }>().to_ne_bytes()),
        id: ip.u16::<{ ipv4::ID }>().into(),
        proto: proto.into(),
    };
    let offset = u32::from(ip.u16::<{ ipv4::FRAGMENT }>() & ipv4::FRAGMENT_OFFSET) * 8;
    let len = u32::from(ip.u16::<{ ipv4::TOTAL_LEN }>()).saturating_sub(header);
    Some(Piece { key, offset, len, proto })
}

#[inline(always)]
fn read6<P: Packet>(packet: &P, extensions: impl Fn(u8) -> Chain, l3: usize) -> Option<Piece> {
    let ip = packet.view::<{ ipv6::LEN }>(l3)?;
    let len = u32::from(ip.u16::<{ ipv6::PAYLOAD_LEN }>()) + ipv6::LEN as u32;
    let at = extensions(ip.u8::<{ ipv6::NEXT }>()).fragment_at();
    if at == 0 {
        return None;
    }
    let src = packet.view::<16>(l3 + ipv6::SRC)?;
    let dst = packet.view::<16>(l3 + ipv6::DST)?;
    let header = packet.view::<8>(l3 + at)?;
    // RFC 8200 section 4.5: addresses and identification, whatever the next header.
    let key =
        FragmentKey { src: *src.0, dst: *dst.0, id: header.u32::<4>(), proto: u32::from(proto::FRAGMENT) };
    let offset = u32::from(header.u16::<2>() & OFFSET6);
    Some(Piece { key, offset, len: len.saturating_sub(at as u32 + 8), proto: header.u8::<0>() })
}

/// The datagram a fragment belongs to.
#[must_use]
pub fn key<P: Packet>(packet: &P, l3: usize, v6: bool) -> Option<FragmentKey> {
    let piece = match v6 {
        true => read6(packet, |first| walk_extensions(packet, l3, first), l3),
        false => read4(packet, l3),
    };
    Some(piece?.key)
}

/// Is a trace of this datagram, and not of an earlier one with the same identification?
#[inline(always)]
#[must_use]
pub const fn is_fresh(trace: &FragmentTrace, now_ns: u64) -> bool {
    now_ns.saturating_sub(trace.seen_ns) <= LIFETIME_NS
}

/// What becomes of a fragment behind the first.
#[inline(always)]
pub fn follow<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize, v6: bool) -> Found {
    if v6 { follow6(packet, tables, l3) } else { follow4(packet, tables, l3) }
}

/// See [`follow`], IPv4.
#[inline(always)]
pub fn follow4<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize) -> Found {
    read4(packet, l3).map_or(Found::drop(DropReason::Internal), |piece| go(packet, tables, l3, false, &piece))
}

/// See [`follow`], IPv6.
#[inline(always)]
pub fn follow6<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize) -> Found {
    let extensions = |first| tables.extensions(packet, l3, first);
    let piece = read6(packet, extensions, l3);
    piece.map_or(Found::drop(DropReason::Internal), |piece| go(packet, tables, l3, true, &piece))
}

#[inline(always)]
fn go<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize, v6: bool, piece: &Piece) -> Found {
    // RFC 3128 section 3: it would write over the flags of a TCP header; and no datagram is longer than 65,535 bytes.
    if piece.proto == proto::TCP && piece.offset == 8 || piece.offset + piece.len > u32::from(u16::MAX) {
        return Found::drop(DropReason::Fragment);
    }
    let unknown = Found::drop(DropReason::FragmentUnknown);
    let trace = match tables.fragment_trace(&piece.key) {
        Some(trace) if is_fresh(&trace, tables.now_ns()) => trace,
        _ if tables.hold(packet, l3, v6) => return Found::drop(DropReason::FragmentHeld),
        _ => return unknown,
    };
    if trace.service == FragmentTrace::KERNEL {
        return Found::PASS;
    }
    match tables.backend(trace.backend) {
        // Ids are given out again.
        Some(backend) if backend.service == trace.service && takes(backend) => {
            Found::forward(trace.backend, trace.entropy)
        }
        _ => unknown,
    }
}

/// Leaves the trace of a first fragment.
#[inline(always)]
pub fn trace<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize, v6: bool, backend: u32, entropy: u32) {
    if v6 {
        trace6(packet, tables, l3, backend, entropy);
    } else {
        trace4(packet, tables, l3, backend, entropy);
    }
}

/// See [`trace`], IPv4.
#[inline(always)]
pub fn trace4<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize, backend: u32, entropy: u32) {
    if let Some(piece) = read4(packet, l3) {
        leave(tables, &piece.key, backend, entropy);
    }
}

/// See [`trace`], IPv6.
#[inline(always)]
pub fn trace6<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize, backend: u32, entropy: u32) {
    if let Some(piece) = read6(packet, |first| tables.extensions(packet, l3, first), l3) {
        leave(tables, &piece.key, backend, entropy);
    }
}

#[inline(always)]
fn leave<T: Tables>(tables: &T, key: &FragmentKey, backend: u32, entropy: u32) {
    let service = match tables.backend(backend) {
        _ if backend == KERNEL => FragmentTrace::KERNEL,
        Some(entry) => entry.service,
        None => return,
    };
    let trace =
        FragmentTrace { seen_ns: tables.now_ns(), backend, service, entropy, ..FragmentTrace::default() };
    tables.add_fragment_trace(key, &trace);
}
