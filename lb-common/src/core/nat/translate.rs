//! From one IP version to the other: RFC 7915 for TCP and UDP, with the sessions of `snat` telling both ends.

use super::{
    Answer, Ends, NatTables, Way,
    back::{Head, head},
    rewrite::{self, BOTH},
    session::{Leg, live, returned},
};
use crate::{
    abi::NatScratch,
    core::{DropReason, affinity::Place, forward},
    csum,
    packet::PacketMut,
    wire::{eth, ipv4, ipv6, proto, tcp, udp, vlan},
};

/// RFC 7915 section 5.1: what fits the smallest IPv6 link may be fragmented on its way through IPv4.
const MAY_FRAGMENT: u16 = 1260;

/// A packet of a client's to a backend of the other version: `V6` is the client's.
#[inline(always)]
pub fn out<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    place: Place,
    hash: u64,
) -> Answer {
    const INTERNAL: Answer = Answer::drop(DropReason::Internal);
    let Some(mut head) = head::<P, V6>(packet, place.l3()) else { return INTERNAL };
    (head.ip.header_len, head.ip.proto) = (place.header_len(), place.proto() as u8);
    let Some(ports) = packet.view::<4>(place.l4()) else { return INTERNAL };
    let Some(Leg { source, port, backend: id }) = live(tables, scratch, &head, ports.raw32::<0>(), hash)
    else {
        return Answer::drop(DropReason::NatSession);
    };
    let Some(backend) = tables.backend(id) else { return INTERNAL };
    let to = Ends {
        src: source,
        dst: super::Address::of_backend(backend),
        src_port: port,
        dst_port: backend.port.to_be(),
    };
    let egress = Egress { l2: &backend.l2, vlan: backend.vlan, mtu: backend.mtu };
    match cross::<P, T, V6>(packet, tables, &head, &to, egress) {
        Ok(()) => Answer::send(backend.ifindex, id),
        Err(answer) => answer,
    }
}

/// A packet of a backend's to a client of the other version: `V6` is the backend's.
#[inline(always)]
pub fn back<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    l3: usize,
) -> Answer {
    let Some(head) = head::<P, V6>(packet, l3) else { return Answer::PASS };
    let Some(ports) = packet.view::<4>(l3 + head.ip.header_len) else { return Answer::PASS };
    let Some(to) = returned(tables, scratch, &head, ports.raw32::<0>()) else { return Answer::PASS };
    match tables.way(!V6, to.src, to.dst) {
        Way::Here | Way::None => Answer::drop(DropReason::NoNextHop),
        Way::Exit(exit) => {
            if head.ttl <= 1 {
                return Answer::drop(DropReason::TtlExceeded);
            }
            let egress = Egress { l2: &exit.l2, vlan: exit.vlan, mtu: exit.mtu };
            match cross::<P, T, V6>(packet, tables, &head, &to, egress) {
                Ok(()) => Answer::send(exit.ifindex, 0),
                Err(answer) => answer,
            }
        }
    }
}

/// Where a packet leaves.
#[derive(Clone, Copy)]
struct Egress<'t> {
    l2: &'t [u8; 12],
    vlan: u16,
    mtu: u16,
}

/// Puts a header of the other version in the place of the packet's, `V6` being the one it has.
#[inline(always)]
fn cross<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    head: &Head,
    to: &Ends,
    egress: Egress<'_>,
) -> Result<(), Answer> {
    const INTERNAL: Answer = Answer::drop(DropReason::Internal);
    let ip = &head.ip;
    let segment = ip.total_len.wrapping_sub(ip.header_len as u16);
    let least = if ip.proto == proto::TCP { tcp::LEN } else { udp::LEN };
    if usize::from(ip.total_len) < ip.header_len + least {
        return Err(Answer::drop(DropReason::IpLength));
    }
    // What the sender may send is longer or shorter by the difference of the headers (RFC 7915 sections 4.2 and 5.2).
    let (new_len, told) = if V6 {
        (ipv4::LEN as u32 + u32::from(segment), egress.mtu.saturating_add((ipv6::LEN - ipv4::LEN) as u16))
    } else {
        (ipv6::LEN as u32 + u32::from(segment), egress.mtu.saturating_sub((ipv6::LEN - ipv4::LEN) as u16))
    };
    if new_len > u32::from(egress.mtu) {
        return Err(Answer::too_big(told));
    }
    let at = ip.l3 + ip.header_len;
    // RFC 7915 section 4.5: a checksum over the whole datagram would have to be made.
    if ip.proto == proto::UDP && !V6 {
        let header = packet.view::<{ udp::LEN }>(at).ok_or(INTERNAL)?;
        if header.raw16::<{ udp::CHECK }>() == 0 {
            return Err(Answer::drop(DropReason::NatUntranslatable));
        }
    }
    // The pseudo headers differ in their addresses alone: length and protocol have the same sum in both.
    let old = if V6 {
        let header = packet.view::<{ ipv6::LEN }>(ip.l3).ok_or(INTERNAL)?;
        rewrite::halves(!header.raw64::<{ ipv6::SRC }>())
            + rewrite::halves(!header.raw64::<{ ipv6::SRC + 8 }>())
            + rewrite::halves(!header.raw64::<{ ipv6::DST }>())
            + rewrite::halves(!header.raw64::<{ ipv6::DST + 8 }>())
    } else {
        let header = packet.view::<{ ipv4::LEN }>(ip.l3).ok_or(INTERNAL)?;
        u64::from(!header.raw32::<{ ipv4::SRC }>()) + u64::from(!header.raw32::<{ ipv4::DST }>())
    };
    let diff = old + to.src.sum() + to.dst.sum();
    rewrite::ports::<P, BOTH>(packet, at, ip.proto, to, diff).map_err(Answer::drop)?;

    let l2 = if egress.vlan == 0 { eth::LEN } else { eth::LEN + vlan::LEN };
    let header_len = if V6 { ipv4::LEN } else { ipv6::LEN };
    let grow = (l2 + header_len) as i32 - at as i32;
    packet.grow_head(grow).ok_or(Answer::drop(DropReason::NoHeadroom))?;
    forward::link_header(packet, egress.l2, egress.vlan, l2, !V6).map_err(Answer::drop)?;
    let ttl = head.ttl.wrapping_sub(1);
    if V6 {
        let mut header = packet.view_mut::<{ ipv4::LEN }>(l2).ok_or(INTERNAL)?;
        let w0 = (0x4500_0000 | u32::from(ip.tos) << 16 | new_len).to_be();
        // RFC 7915 section 5.1: whatever may be fragmented needs an identification.
        let fragment = if new_len as u16 > MAY_FRAGMENT {
            u32::from(ipv4::DONT_FRAGMENT)
        } else {
            (tables.now_ns() as u32) << 16
        };
        let w1 = fragment.to_be();
        let w2 = (u32::from(ttl) << 24 | u32::from(ip.proto) << 16).to_be();
        let (src, dst) = (to.src.v4(), to.dst.v4());
        header.set32::<0>(w0);
        header.set32::<4>(w1);
        header.set32::<8>(w2);
        let sum = u64::from(w0) + u64::from(w1) + u64::from(w2) + u64::from(src) + u64::from(dst);
        header.set16::<{ ipv4::CHECK }>(csum::finish(sum));
        header.set32::<{ ipv4::SRC }>(src);
        header.set32::<{ ipv4::DST }>(dst);
    } else {
        let mut header = packet.view_mut::<{ ipv6::LEN }>(l2).ok_or(INTERNAL)?;
        header.set32::<{ ipv6::WORD }>((6 << 28 | u32::from(ip.tos) << 20).to_be());
        header.set16::<{ ipv6::PAYLOAD_LEN }>(segment.to_be());
        header.set8::<{ ipv6::NEXT }>(ip.proto);
        header.set8::<{ ipv6::HOP_LIMIT }>(ttl);
        header.set64::<{ ipv6::SRC }>(to.src.hi);
        header.set64::<{ ipv6::SRC + 8 }>(to.src.lo);
        header.set64::<{ ipv6::DST }>(to.dst.hi);
        header.set64::<{ ipv6::DST + 8 }>(to.dst.lo);
    }
    Ok(())
}
