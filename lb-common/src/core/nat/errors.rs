//! ICMP errors about packets whose addresses were rewritten: the packet they quote is made the one that its sender
//! knows, and every checksum with it. RFC 5508 section 4 says what a NAT owes them.

use super::{
    Address, Answer, Ends, NatTables, Way,
    back::{Aligned, Head, head, leave},
    rewrite::{self, BOTH, port_words, updated},
    session::{Leg, back_tag, set_key},
};
use crate::{
    abi::{FlowEntry, NatKey, NatOrigin, NatScratch},
    core::{DropReason, affinity::is_alive},
    packet::{Packet, PacketMut},
    wire::{icmp, ipv4, ipv6, proto, tcp},
};

/// The quoted packet: where its headers are, and what they say.
pub(super) struct Quote {
    /// Offset of its IP header.
    pub l3: usize,
    pub header_len: usize,
    pub proto: u8,
    pub ends: Ends,
    /// Where the error ends: the frame may go on.
    pub end: usize,
}

/// The kinds of errors: they quote a packet. RFC 792; RFC 4443 section 2.1.
#[inline(always)]
const fn is_error(v6: bool, kind: u8) -> bool {
    // Unreachable, source quench, time exceeded, parameter problem; redirects are for the first hop alone.
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 4 | 11 | 12) }
}

/// What the error behind `head` quotes; eight bytes of TCP or UDP suffice.
#[inline(always)]
pub(super) fn quoted<P: Packet, const V6: bool>(packet: &P, head: &Head) -> Option<Quote> {
    let at = head.ip.l3 + head.ip.header_len;
    let end = head.ip.l3 + usize::from(head.ip.total_len);
    if !is_error(V6, packet.view::<{ icmp::LEN }>(at)?.u8::<0>()) {
        return None;
    }
    let l3 = at + icmp::LEN;
    let (header_len, protocol, src, dst) = if V6 {
        let header = packet.view::<{ ipv6::LEN }>(l3)?;
        if header.u8::<0>() >> 4 != 6 {
            return None;
        }
        let src = Address { hi: header.raw64::<{ ipv6::SRC }>(), lo: header.raw64::<{ ipv6::SRC + 8 }>() };
        let dst = Address { hi: header.raw64::<{ ipv6::DST }>(), lo: header.raw64::<{ ipv6::DST + 8 }>() };
        (ipv6::LEN, header.u8::<{ ipv6::NEXT }>(), src, dst)
    } else {
        let header = packet.view::<{ ipv4::LEN }>(l3)?;
        let header_len = usize::from(header.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
        if header.u8::<{ ipv4::VIHL }>() >> 4 != 4
            || header_len < ipv4::LEN
            || header.u16::<{ ipv4::FRAGMENT }>() & ipv4::FRAGMENT_OFFSET != 0
        {
            return None;
        }
        let (src, dst) = (header.raw32::<{ ipv4::SRC }>(), header.raw32::<{ ipv4::DST }>());
        (header_len, header.u8::<{ ipv4::PROTO }>(), Address::mapped(src), Address::mapped(dst))
    };
    if protocol != proto::TCP && protocol != proto::UDP || l3 + header_len + 8 > end {
        return None;
    }
    let ports = packet.view::<8>(l3 + header_len)?;
    let ends = Ends { src, dst, src_port: ports.raw16::<0>(), dst_port: ports.raw16::<2>() };
    Some(Quote { l3, header_len, proto: protocol, ends, end })
}

/// An offset in front of the quoted packet's end, at which the next view asks anew whether the bytes are there. The
/// compiler would conclude so from an earlier view, and the verifier would not.
#[inline(always)]
pub(super) fn anew(offset: usize) -> usize {
    // SAFETY: a reference to a live local. Volatile: nothing is known of what is read.
    let offset = unsafe { core::ptr::read_volatile(&offset) };
    // At most 22 bytes of link header, twice 60 of IP and 8 of ICMP lie before it.
    offset & 0xff
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

    let rest = transport(packet, quote, to, addresses)?;
    Ok(addresses + u64::from(!before) + u64::from(after) + rest)
}

/// Rewrites the ports of the quoted packet and the checksum, where it is there; `addresses` is what the addresses' change
/// adds to it. Gives what that adds to a checksum over both.
#[inline(always)]
pub(super) fn transport<P: PacketMut>(
    packet: &mut P,
    quote: &Quote,
    to: &Ends,
    addresses: u64,
) -> Result<u64, DropReason> {
    let at = anew(quote.l3 + quote.header_len);
    let mut header = packet.view_mut::<8>(at).ok_or(DropReason::Internal)?;
    let (old, new) = port_words::<BOTH>(header.as_view().raw32::<0>(), to);
    let ports = u64::from(!old) + u64::from(new);
    header.set32::<0>(new);
    let mut diff = ports;
    if quote.proto == proto::UDP {
        let old = header.as_view().raw16::<6>();
        if old != 0 {
            let new = rewrite::never_none(updated(old, addresses + ports));
            header.set16::<6>(new);
            diff += u64::from(!old) + u64::from(new);
        }
    } else if at + tcp::CHECK + 2 <= quote.end
        && let Some(mut header) = packet.view_mut::<{ tcp::CHECK + 2 }>(at)
    {
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
    let at = anew(head.ip.l3 + head.ip.header_len);
    let mut header = packet.view_mut::<{ icmp::LEN }>(at).ok_or(DropReason::Internal)?;
    let check = header.as_view().raw16::<2>();
    header.set16::<2>(updated(check, diff));
    Ok(())
}

/// The ends of the quoted packet as its sender knows them, a client; and the backend it went to.
#[inline(always)]
pub(super) fn sender<T: NatTables>(
    tables: &T,
    scratch: &mut NatScratch,
    head: &Head,
    quote: &Quote,
) -> Option<(Ends, u32)> {
    let sent = quote.ends;
    // An error goes to the source of what it is about.
    if sent.src != head.dst {
        return None;
    }
    // A session first: it names both ends, and its backend's port may serve a `nat` service as well.
    let [b0, b1] = sent.dst_port.to_ne_bytes();
    let [p0, p1] = sent.src_port.to_ne_bytes();
    let ports = u32::from_ne_bytes([b0, b1, p0, p1]);
    set_key(&mut scratch.back, sent.dst, sent.src, ports, quote.proto);
    let tag = FlowEntry::tag_of(back_tag(sent.dst, sent.src, ports));
    if let Some((session, _)) = tables.session_back(&scratch.back)
        && FlowEntry(session.entry).tag() == tag
    {
        let ends = Ends {
            src: Address::read(&session.client),
            dst: Address::read(&session.vip),
            src_port: u16::from_ne_bytes(session.client_port),
            dst_port: u16::from_ne_bytes(session.vip_port),
        };
        return Some((ends, FlowEntry(session.entry).backend()));
    }
    let port = sent.dst_port.to_ne_bytes();
    let key = Aligned(NatKey { address: sent.dst.bytes(), port, proto: quote.proto.into() });
    let origin = tables.nat(&key.0)?;
    // At last a flow without a session, where it can be only one's.
    let unique = origin.flags & NatOrigin::SESSIONS == 0 || origin.flags & NatOrigin::HEIR != 0;
    unique.then(|| {
        let (dst, dst_port) = (Address::read(&origin.vip), u16::from_ne_bytes(origin.port));
        (Ends { src: sent.src, dst, src_port: 0, dst_port }, origin.backend)
    })
}

/// The session of the flow that the quoted packet of a backend's is of: its backend, and the client by the name that
/// one knows.
#[inline(always)]
pub(super) fn steered<T: NatTables>(tables: &T, scratch: &mut NatScratch, quote: &Quote) -> Option<Leg> {
    let sent = quote.ends;
    let [v0, v1] = sent.src_port.to_ne_bytes();
    let [c0, c1] = sent.dst_port.to_ne_bytes();
    set_key(&mut scratch.out, sent.dst, sent.src, u32::from_ne_bytes([c0, c1, v0, v1]), quote.proto);
    let (session, _) = tables.session_out(&scratch.out)?;
    let entry = FlowEntry(session.entry);
    is_alive(tables, entry).then(|| Leg {
        source: Address::read(&session.source),
        port: u16::from_ne_bytes(session.port),
        backend: entry.backend(),
    })
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
    let Some((to, backend)) = sender(tables, scratch, &head, &quote) else { return Answer::PASS };
    if to.src.is_v4() == V6 {
        scratch.across.keep(&to, backend);
        return Answer::cross(backend);
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
                Ok(()) => Answer::send(exit.ifindex, backend),
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
    let Leg { source: peer, port: peer_port, backend: id } =
        steered(tables, scratch, &quote).unwrap_or(Leg { source: sent.dst, port: 0, backend: chosen });
    let Some(backend) = tables.backend(id) else { return Answer::drop(DropReason::Internal) };
    if backend.ifindex == 0 {
        return Answer::drop(DropReason::NoNextHop);
    }
    let target = Address::of_backend(backend);
    let to = Ends { src: target, dst: peer, src_port: backend.port.to_be(), dst_port: peer_port };
    if (backend.family == 6) != V6 {
        // Without a session there is no name for the client that the backend could know.
        if peer.is_v4() == V6 {
            scratch.across.keep(&to, id);
            scratch.across.leave_by(&backend.l2, backend.vlan, backend.mtu, backend.ifindex);
            return Answer::cross(id);
        }
        return Answer::drop(DropReason::NatSession);
    }
    if head.ttl <= 1 {
        return Answer::drop(DropReason::TtlExceeded);
    }
    if head.ip.total_len > backend.mtu {
        return Answer::drop(DropReason::TooBigUnanswered);
    }
    // Who says so stays who said so, but for the peer itself: the backend knows it by another name.
    let from = if head.src == sent.dst { peer } else { head.src };
    match translate::<P, V6>(packet, &head, &quote, &to, (from, target))
        .and_then(|()| leave(packet, &head.ip, &backend.l2, backend.vlan))
    {
        Ok(()) => Answer::send(backend.ifindex, id),
        Err(reason) => Answer::drop(reason),
    }
}
