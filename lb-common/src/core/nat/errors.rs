//! ICMP errors about packets whose addresses were rewritten: the packet they quote is made the one that its sender
//! knows, and every checksum with it. RFC 5508 section 4 says what a NAT owes them.

use super::{
    Address, Answer, Ends, NatTables, Way,
    back::{Aligned, Head, head, leave},
    rewrite::{self, BOTH, port_words, updated},
    session::{back_tag, set_key},
};
use crate::{
    abi::{FlowEntry, NatKey, NatOrigin, NatScratch},
    core::{DropReason, affinity::is_alive},
    packet::{Packet, PacketMut},
    wire::{icmp, ipv4, ipv6, proto, tcp},
};

/// The quoted packet: where its headers are, and what they say.
struct Quote {
    /// Offset of its IP header.
    l3: usize,
    header_len: usize,
    proto: u8,
    ends: Ends,
}

/// The kinds of errors: they quote a packet. RFC 792; RFC 4443 section 2.1.
#[inline(always)]
const fn is_error(v6: bool, kind: u8) -> bool {
    // Unreachable, source quench, time exceeded, parameter problem; redirects are for the first hop alone.
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 4 | 11 | 12) }
}

/// What the error behind `head` quotes; eight bytes of TCP or UDP suffice.
#[inline(always)]
fn quoted<P: Packet, const V6: bool>(packet: &P, head: &Head) -> Option<Quote> {
    let at = head.ip.l3 + head.ip.header_len;
    if !is_error(V6, packet.view::<{ icmp::LEN }>(at)?.u8::<0>()) {
        return None;
    }
    let l3 = at + icmp::LEN;
    let (header_len, protocol, src, dst) = if V6 {
        let header = packet.view::<{ ipv6::LEN }>(l3)?;
        let src = Address { hi: header.raw64::<{ ipv6::SRC }>(), lo: header.raw64::<{ ipv6::SRC + 8 }>() };
        let dst = Address { hi: header.raw64::<{ ipv6::DST }>(), lo: header.raw64::<{ ipv6::DST + 8 }>() };
        (ipv6::LEN, header.u8::<{ ipv6::NEXT }>(), src, dst)
    } else {
        let header = packet.view::<{ ipv4::LEN }>(l3)?;
        let header_len = usize::from(header.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
        if header_len < ipv4::LEN || header.u16::<{ ipv4::FRAGMENT }>() & ipv4::FRAGMENT_OFFSET != 0 {
            return None;
        }
        let (src, dst) = (header.raw32::<{ ipv4::SRC }>(), header.raw32::<{ ipv4::DST }>());
        (header_len, header.u8::<{ ipv4::PROTO }>(), Address::mapped(src), Address::mapped(dst))
    };
    if protocol != proto::TCP && protocol != proto::UDP {
        return None;
    }
    let ports = packet.view::<8>(l3 + header_len)?;
    let ends = Ends { src, dst, src_port: ports.raw16::<0>(), dst_port: ports.raw16::<2>() };
    Some(Quote { l3, header_len, proto: protocol, ends })
}

/// Rewrites both ends of the quoted packet; gives what that adds to the ICMP checksum.
#[inline(always)]
fn requote<P: PacketMut, const V6: bool>(
    packet: &mut P,
    quote: &Quote,
    to: &Ends,
) -> Result<u64, DropReason> {
    const INTERNAL: DropReason = DropReason::Internal;
    let check = |packet: &P| match V6 {
        true => Some(0),
        false => packet.view::<{ ipv4::LEN }>(quote.l3).map(|header| header.raw16::<{ ipv4::CHECK }>()),
    };
    let before = check(packet).ok_or(INTERNAL)?;
    let addresses = rewrite::addresses::<P, BOTH>(packet, V6, quote.l3, to.src, to.dst)?;
    let after = check(packet).ok_or(INTERNAL)?;

    let at = quote.l3 + quote.header_len;
    let mut header = packet.view_mut::<8>(at).ok_or(INTERNAL)?;
    let (old, new) = port_words::<BOTH>(header.as_view().raw32::<0>(), to);
    let ports = u64::from(!old) + u64::from(new);
    header.set32::<0>(new);
    let mut diff = addresses + u64::from(!before) + u64::from(after) + ports;
    if quote.proto == proto::UDP {
        let old = header.as_view().raw16::<6>();
        if old != 0 {
            let new = rewrite::never_none(updated(old, addresses + ports));
            header.set16::<6>(new);
            diff += u64::from(!old) + u64::from(new);
        }
    } else if let Some(mut header) = packet.view_mut::<{ tcp::CHECK + 2 }>(at) {
        let old = header.as_view().raw16::<{ tcp::CHECK }>();
        let new = updated(old, addresses + ports);
        header.set16::<{ tcp::CHECK }>(new);
        diff += u64::from(!old) + u64::from(new);
    }
    Ok(diff)
}

/// Rewrites an error: the quoted packet and its own addresses.
#[inline(always)]
fn translate<P: PacketMut, const V6: bool>(
    packet: &mut P,
    head: &Head,
    quote: &Quote,
    to: &Ends,
    (src, dst): (Address, Address),
) -> Result<(), DropReason> {
    let mut diff = requote::<P, V6>(packet, quote, to)?;
    let outer = rewrite::addresses::<P, BOTH>(packet, V6, head.ip.l3, src, dst)?;
    if V6 {
        // ICMPv6 has a pseudo header (RFC 4443 section 2.3), ICMP has none.
        diff += outer;
    }
    let at = head.ip.l3 + head.ip.header_len;
    let mut header = packet.view_mut::<{ icmp::LEN }>(at).ok_or(DropReason::Internal)?;
    let check = header.as_view().raw16::<2>();
    header.set16::<2>(updated(check, diff));
    Ok(())
}

/// An ICMP error that comes from the side of the backends, about a packet of a client's.
#[inline(always)]
pub fn back<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    l3: usize,
) -> Answer {
    let Some(head) = head::<P, V6>(packet, l3) else { return Answer::PASS };
    let Some(quote) = quoted::<P, V6>(packet, &head) else { return Answer::PASS };
    let sent = quote.ends;
    // An error goes to the source of what it is about.
    if sent.src != head.dst {
        return Answer::PASS;
    }
    // A session first: it names both ends, and its backend's port may serve a `nat` service as well.
    let [b0, b1] = sent.dst_port.to_ne_bytes();
    let [p0, p1] = sent.src_port.to_ne_bytes();
    let ports = u32::from_ne_bytes([b0, b1, p0, p1]);
    set_key(&mut scratch.back, sent.dst, sent.src, ports, quote.proto);
    let tag = FlowEntry::tag_of(back_tag(sent.dst, sent.src, ports));
    let to = match tables.session_back(&scratch.back) {
        Some((session, _)) if FlowEntry(session.entry).tag() == tag => Ends {
            src: Address::read(&session.client),
            dst: Address::read(&session.vip),
            src_port: u16::from_ne_bytes(session.client_port),
            dst_port: u16::from_ne_bytes(session.vip_port),
        },
        _ => {
            let port = sent.dst_port.to_ne_bytes();
            let key = Aligned(NatKey { address: sent.dst.bytes(), port, proto: quote.proto.into() });
            match tables.nat(&key.0) {
                Some(origin) if origin.flags & NatOrigin::SESSIONS == 0 => Ends {
                    src: sent.src,
                    dst: Address::read(&origin.vip),
                    src_port: 0,
                    dst_port: u16::from_ne_bytes(origin.port),
                },
                _ => return Answer::PASS,
            }
        }
    };
    if to.src.is_v4() == V6 {
        return Answer::drop(DropReason::NatUntranslatable);
    }
    match tables.way(V6, to.dst, to.src) {
        Way::Here => Answer::PASS,
        Way::None => Answer::drop(DropReason::NoNextHop),
        Way::Exit(exit) => {
            if head.ttl <= 1 {
                return Answer::drop(DropReason::TtlExceeded);
            }
            if head.ip.total_len > exit.mtu {
                return Answer::drop(DropReason::TooBigUnanswered);
            }
            // The backend's own word is the VIP's; a router's on the way there stays its own.
            let from = if head.src == sent.dst { to.dst } else { head.src };
            match translate::<P, V6>(packet, &head, &quote, &to, (from, to.src))
                .and_then(|()| leave(packet, &head.ip, &exit.l2, exit.vlan))
            {
                Ok(()) => Answer::send(exit.ifindex, 0),
                Err(reason) => Answer::drop(reason),
            }
        }
    }
}

/// An ICMP error that comes from the side of the clients, about a packet that left with a VIP as its source: it goes
/// on to the backend, which sent that packet. `chosen` is the backend of a flow that has no session.
#[inline(always)]
pub fn steer<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    l3: usize,
    chosen: u32,
) -> Answer {
    const QUOTE: Answer = Answer::drop(DropReason::IcmpQuote);
    let Some(head) = head::<P, V6>(packet, l3) else { return QUOTE };
    let Some(quote) = quoted::<P, V6>(packet, &head) else { return QUOTE };
    let sent = quote.ends;
    let [v0, v1] = sent.src_port.to_ne_bytes();
    let [c0, c1] = sent.dst_port.to_ne_bytes();
    set_key(&mut scratch.out, sent.dst, sent.src, u32::from_ne_bytes([c0, c1, v0, v1]), quote.proto);
    let (mut id, mut peer, mut peer_port) = (chosen, sent.dst, 0);
    if let Some((session, _)) = tables.session_out(&scratch.out)
        && is_alive(tables, FlowEntry(session.entry))
    {
        id = FlowEntry(session.entry).backend();
        (peer, peer_port) = (Address::read(&session.source), u16::from_ne_bytes(session.port));
    }
    let Some(backend) = tables.backend(id) else { return Answer::drop(DropReason::Internal) };
    if (backend.family == 6) != V6 {
        return Answer::drop(DropReason::NatUntranslatable);
    }
    if backend.ifindex == 0 {
        return Answer::drop(DropReason::NoNextHop);
    }
    if head.ttl <= 1 {
        return Answer::drop(DropReason::TtlExceeded);
    }
    if head.ip.total_len > backend.mtu {
        return Answer::drop(DropReason::TooBigUnanswered);
    }
    let target = Address::of_backend(backend);
    let to = Ends { src: target, dst: peer, src_port: backend.port.to_be(), dst_port: peer_port };
    // Who says so stays who said so, but for the peer itself: the backend knows it by another name.
    let from = if head.src == sent.dst { peer } else { head.src };
    match translate::<P, V6>(packet, &head, &quote, &to, (from, target))
        .and_then(|()| leave(packet, &head.ip, &backend.l2, backend.vlan))
    {
        Ok(()) => Answer::send(backend.ifindex, id),
        Err(reason) => Answer::drop(reason),
    }
}
