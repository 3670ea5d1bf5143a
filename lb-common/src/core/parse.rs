//! IPv4, IPv6, TCP and UDP: what must hold before a packet may go to a backend.

use super::{
    Answer, AnswerKind, Back, Decision, DropReason, Neighbour, Refusal, Tables,
    affinity::{Place, Step},
    found, fragment, neighbour,
    quic::{Format, Route},
    select, service,
};
use crate::{
    abi::{Control, ServiceEntry, VipEntry},
    hash,
    packet::Packet,
    wire::{ipv4, ipv6, proto, tcp, udp},
};

/// What later steps need of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Offset of the IP header in the frame: 14, 18 or 22.
    pub l3: usize,
    /// Offset of the transport header from the IP header.
    pub header_len: usize,
    /// True for IPv6.
    pub v6: bool,
    /// Length of the IP packet with its header; the frame may be longer (padding).
    pub total_len: u16,
    /// TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// Protocol of the transport header.
    pub proto: u8,
    /// Which part of its datagram it is.
    pub part: Part,
}

impl Ip {
    /// May its sender be told what became of it? RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): never about an
    /// ICMP error, nor about a fragment other than the first.
    #[inline(always)]
    #[must_use]
    pub const fn may_be_answered(&self) -> bool {
        forwarded(self.proto) && !matches!(self.part, Part::Later)
    }
}

/// Which part of its datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// The fragment at offset 0: it has the ports.
    First = 1,
    /// A fragment behind the first.
    Later = 2,
}

/// What the transport header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct L4 {
    /// Source port in the upper half, destination port in the lower.
    pub ports: u32,
}

/// Headers walked through at most, and how far into the packet (RFC 8200 sets no limit; RFC 9098 tells
/// what real networks let through).
const MAX_EXTENSIONS: usize = 6;
const MAX_HEADER_LEN: usize = 512;

/// Combinations of FIN, SYN, RST and ACK that a TCP sends (RFC 9293 section 3.10); PSH, URG and the
/// ECN bits go with all of them. Bit n stands for the combination n = fin | syn << 1 | rst << 2 | ack << 3.
const VALID_FLAGS: u32 = 1 << 0b0010 // SYN
    | 1 << 0b1010 // SYN ACK
    | 1 << 0b0100 // RST
    | 1 << 0b1100 // RST ACK
    | 1 << 0b1001 // FIN ACK
    | 1 << 0b1000; // ACK

pub(super) const fn refuse<'t>(reason: DropReason) -> Decision<'t> {
    Decision::Drop(Refusal { reason })
}

/// The protocols a service may have.
#[inline(always)]
pub(super) const fn forwarded(protocol: u8) -> bool {
    protocol == proto::TCP || protocol == proto::UDP
}

/// A packet that is for no VIP.
#[inline(always)]
fn elsewhere<'t, P: Packet, T: Tables>(packet: &P, tables: &'t T, l3: usize, v6: bool) -> Decision<'t> {
    let switches = tables.switches();
    if v6 && switches & Control::ADDRESSES != 0 && neighbour::is_solicitation(packet, l3) {
        return Decision::Neighbour(Neighbour { l3, v6 });
    }
    if switches & Control::NAT == 0 {
        return Decision::Pass;
    }
    Decision::Back(Back { l3, v6, pool: false, watched: switches & Control::WATCHED != 0 })
}

/// A packet to a VIP that is for none of its services.
#[inline(always)]
pub(super) fn unclaimed<'t>(vip: &VipEntry, ip: &Ip) -> Decision<'t> {
    if vip.flags & VipEntry::POOL == 0 {
        return Decision::Pass;
    }
    Decision::Back(Back { l3: ip.l3, v6: ip.v6, pool: true, watched: vip.flags & VipEntry::WATCHED != 0 })
}

/// A frame whose EtherType says IPv4; the header starts at `l3`.
#[inline(always)]
pub(super) fn v4<'t, P: Packet, T: Tables>(packet: &P, tables: &'t T, l3: usize) -> Decision<'t> {
    let Some(header) = packet.view::<{ ipv4::LEN }>(l3) else { return Decision::Pass };
    let Some(vip) = tables.vip4(header.raw32::<{ ipv4::DST }>().to_ne_bytes()) else {
        return elsewhere(packet, tables, l3, false);
    };
    if vip.flags & VipEntry::FILTERED != 0 && tables.denied4(header.u32::<{ ipv4::SRC }>()) {
        return refuse(DropReason::Denied);
    }

    let header_len = usize::from(header.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
    let total_len = header.u16::<{ ipv4::TOTAL_LEN }>();
    if header.u8::<{ ipv4::VIHL }>() >> 4 != 4 || header_len < ipv4::LEN {
        return refuse(DropReason::IpHeader);
    }
    if usize::from(total_len) < header_len || is_beyond(packet, l3 + usize::from(total_len)) {
        return refuse(DropReason::IpLength);
    }
    let fragment = header.u16::<{ ipv4::FRAGMENT }>();
    let mut ip = Ip {
        l3,
        header_len,
        v6: false,
        total_len,
        tos: header.u8::<{ ipv4::TOS }>(),
        proto: header.u8::<{ ipv4::PROTO }>(),
        part: Part::Whole,
    };
    let ttl = header.u8::<{ ipv4::TTL }>();
    if fragment & !ipv4::DONT_FRAGMENT != 0 {
        if !forwarded(ip.proto) {
            return Decision::Pass;
        }
        if fragment & ipv4::RESERVED != 0 {
            return refuse(DropReason::IpFlags);
        }
        if vip.flags & VipEntry::FRAGMENTS == 0 {
            return refuse(DropReason::Fragment);
        }
        if fragment & ipv4::FRAGMENT_OFFSET != 0 {
            ip.part = Part::Later;
            return found::follow(tables, tables.fragment(packet, l3, false), ip, ttl);
        }
        ip.part = Part::First;
    }
    let src = header.u32::<{ ipv4::SRC }>();
    let flow = |seed, ports| hash::flow4(seed, src, ports);
    transport(packet, tables, vip, ip, ttl, flow)
}

/// A frame whose EtherType says IPv6; the header starts at `l3`.
#[inline(always)]
pub(super) fn v6<'t, P: Packet, T: Tables>(packet: &P, tables: &'t T, l3: usize) -> Decision<'t> {
    let Some(header) = packet.view::<{ ipv6::LEN }>(l3) else { return Decision::Pass };
    let Some(dst) = packet.view::<16>(l3 + ipv6::DST) else { return Decision::Pass };
    let Some(vip) = tables.vip6(dst.0) else {
        return elsewhere(packet, tables, l3, true);
    };
    if vip.flags & VipEntry::FILTERED != 0
        && tables.denied6(header.u64::<{ ipv6::SRC }>(), header.u64::<{ ipv6::SRC + 8 }>())
    {
        return refuse(DropReason::Denied);
    }

    let word = header.u32::<{ ipv6::WORD }>();
    if word >> 28 != 6 {
        return refuse(DropReason::IpHeader);
    }
    let payload_len = header.u16::<{ ipv6::PAYLOAD_LEN }>();
    let total = ipv6::LEN + usize::from(payload_len);
    // A jumbogram (RFC 2675) says 0 here; no link the balancer runs on carries one.
    if total > usize::from(u16::MAX) || is_beyond(packet, l3 + total) {
        return refuse(DropReason::IpLength);
    }
    let next = header.u8::<{ ipv6::NEXT }>();
    let hops = header.u8::<{ ipv6::HOP_LIMIT }>();
    let (header_len, proto, part) = if forwarded(next) {
        (ipv6::LEN, next, Part::Whole)
    } else {
        let chain = tables.extensions(packet, l3, next);
        match chain.end() {
            ChainEnd::Transport => {}
            ChainEnd::Elsewhere => return Decision::Pass,
            ChainEnd::Truncated => return refuse(DropReason::Truncated),
            ChainEnd::Fragment if vip.flags & VipEntry::FRAGMENTS == 0 => {
                return refuse(DropReason::Fragment);
            }
            ChainEnd::Fragment if chain.fragment_at() + 8 > total => return refuse(DropReason::IpLength),
            ChainEnd::Fragment => {
                let (tos, part) = ((word >> 20) as u8, Part::Later);
                let (header_len, proto) = (ipv6::LEN, proto::FRAGMENT);
                let ip = Ip { l3, header_len, v6: true, total_len: total as u16, tos, proto, part };
                return found::follow(tables, tables.fragment(packet, l3, true), ip, hops);
            }
            ChainEnd::Impossible => return refuse(DropReason::Ipv6Extension),
        }
        let part = if chain.fragment_at() == 0 { Part::Whole } else { Part::First };
        if let Part::First = part {
            if !forwarded(chain.proto()) {
                return Decision::Pass;
            }
            if vip.flags & VipEntry::FRAGMENTS == 0 {
                return refuse(DropReason::Fragment);
            }
        }
        (chain.header_len(), chain.proto(), part)
    };
    if header_len > total {
        return refuse(DropReason::IpLength);
    }
    let ip = Ip { l3, header_len, v6: true, total_len: total as u16, tos: (word >> 20) as u8, proto, part };
    let (hi, lo) = (header.u64::<{ ipv6::SRC }>(), header.u64::<{ ipv6::SRC + 8 }>());
    let flow = |seed, ports| hash::flow6(seed, hi, lo, ports);
    transport(packet, tables, vip, ip, hops, flow)
}

/// Does the packet end before `end`? A frame that lies in several buffers is longer than its first one.
#[inline(always)]
fn is_beyond<P: Packet>(packet: &P, end: usize) -> bool {
    end > packet.len() && end > packet.full_len()
}

/// What a walk through the IPv6 extension headers found, in one number that passes between kernel
/// functions: how it ended, the transport protocol, its offset from the IPv6 header, and that of the fragment header
/// (0 = none).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain(pub u64);

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainEnd {
    /// At a header that is no extension.
    Transport = 0,
    /// Not ours to judge: a routing header with segments left, a later fragment of another protocol than ours.
    Elsewhere = 1,
    Truncated = 2,
    /// A fragment behind the first. What follows its fragment header is none, and the protocol is the one named there.
    Fragment = 3,
    Impossible = 4,
}

impl Chain {
    #[inline(always)]
    const fn new(end: ChainEnd, proto: u8, header_len: usize) -> Self {
        Self(end as u64 | (proto as u64) << 8 | (header_len as u64) << 16)
    }

    #[inline(always)]
    const fn with_fragment(self, at: usize) -> Self {
        Self(self.0 | (at as u64) << 32)
    }

    #[inline(always)]
    pub(super) const fn end(self) -> ChainEnd {
        match self.0 as u8 {
            0 => ChainEnd::Transport,
            1 => ChainEnd::Elsewhere,
            2 => ChainEnd::Truncated,
            3 => ChainEnd::Fragment,
            _ => ChainEnd::Impossible,
        }
    }

    #[inline(always)]
    pub(super) const fn proto(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// At most [`MAX_HEADER_LEN`]: the mask says so to the verifier.
    #[inline(always)]
    pub(super) const fn header_len(self) -> usize {
        (self.0 >> 16) as usize & (2 * MAX_HEADER_LEN - 1)
    }

    /// Offset of the fragment header, 0 = none; an atomic one counts as none.
    #[inline(always)]
    pub(super) const fn fragment_at(self) -> usize {
        (self.0 >> 32) as usize & (2 * MAX_HEADER_LEN - 1)
    }
}

/// Walks the extension headers (RFC 8200 section 4).
#[inline(always)]
pub fn walk_extensions<P: Packet>(packet: &P, l3: usize, first: u8) -> Chain {
    let (mut next, mut at, mut fragment) = (first, ipv6::LEN, 0);
    for _ in 0..=MAX_EXTENSIONS {
        let header = match next {
            proto::HOP_BY_HOP
            | proto::ROUTING
            | proto::FRAGMENT
            | proto::DESTINATION
            | proto::AUTHENTICATION
            | proto::MOBILITY
            | proto::HIP
            | proto::SHIM6 => match packet.view::<8>(l3 + at) {
                Some(header) => header,
                None => return Chain::new(ChainEnd::Truncated, 0, 0),
            },
            proto => return Chain::new(ChainEnd::Transport, proto, at).with_fragment(fragment),
        };
        at += match next {
            proto::FRAGMENT => {
                let word = header.u16::<2>();
                if word & fragment::OFFSET6 != 0 {
                    let next = header.u8::<0>();
                    // Destination options may hide a TCP or UDP header; other protocols are the kernel's.
                    let hides = forwarded(next) || next == proto::DESTINATION;
                    let end = if hides { ChainEnd::Fragment } else { ChainEnd::Elsewhere };
                    return Chain::new(end, next, 0).with_fragment(at);
                }
                // An atomic fragment (RFC 6946) is a whole packet.
                if word & fragment::MORE6 != 0 {
                    fragment = at;
                }
                8
            }
            // RFC 4302 section 2.2: in 32-bit words, minus two.
            proto::AUTHENTICATION => (usize::from(header.u8::<1>()) + 2) * 4,
            proto::ROUTING if header.u8::<3>() != 0 => return Chain::new(ChainEnd::Elsewhere, 0, 0),
            _ => (usize::from(header.u8::<1>()) + 1) * 8,
        };
        if at > MAX_HEADER_LEN {
            return Chain::new(ChainEnd::Impossible, 0, 0);
        }
        next = header.u8::<0>();
    }
    Chain::new(ChainEnd::Impossible, 0, 0)
}

/// TCP or UDP of a packet to a VIP whose IP header is in order.
#[inline(always)]
fn transport<'t, P: Packet, T: Tables>(
    packet: &P,
    tables: &'t T,
    vip: &VipEntry,
    ip: Ip,
    ttl: u8,
    flow: impl Fn(u64, u32) -> u64,
) -> Decision<'t> {
    if !forwarded(ip.proto) {
        return found::other(packet, tables, vip, ip, ttl);
    }
    let at = ip.l3 + ip.header_len;
    let payload = usize::from(ip.total_len) - ip.header_len;
    let Some(ports) = packet.view::<{ udp::LEN }>(at) else { return refuse(DropReason::Truncated) };
    if payload < udp::LEN {
        return refuse(DropReason::IpLength);
    }
    let l4 = L4 { ports: ports.u32::<0>() };
    let Some(id) = service::find(tables, vip, ip.proto, l4.ports as u16) else {
        if let Part::First = ip.part {
            tables.trace(packet, ip.l3, ip.v6, fragment::KERNEL, 0);
        }
        return unclaimed(vip, &ip);
    };

    let step = if ip.proto == proto::TCP {
        let Some(header) = packet.view::<{ tcp::LEN }>(at) else { return refuse(DropReason::Truncated) };
        let data_offset = usize::from(header.u8::<{ tcp::DATA_OFFSET }>() >> 4) * 4;
        if data_offset < tcp::LEN || data_offset > payload {
            return refuse(DropReason::TcpHeader);
        }
        let flags = u32::from(header.u8::<{ tcp::FLAGS }>());
        if VALID_FLAGS >> (flags & 7 | flags >> 1 & 8) & 1 == 0 {
            return refuse(DropReason::TcpFlags);
        }
        Step::of_tcp(flags as u8, data_offset < payload)
    } else {
        let length = usize::from(ports.u16::<{ udp::LENGTH }>());
        // The length is the datagram's, of which this may be the first fragment alone.
        if length < udp::LEN || length > payload && !matches!(ip.part, Part::First) {
            return refuse(DropReason::UdpLength);
        }
        Step::Within
    };
    // RFC 1812 section 5.3.1: a packet whose TTL ends here is not forwarded.
    if ttl <= 1 {
        let Ip { l3, header_len, v6, .. } = ip;
        return Decision::Answer(Answer { kind: AnswerKind::Expired, l3, header_len, v6 });
    }
    let Some(entry) = tables.service(id) else { return refuse(DropReason::Internal) };
    // Removed a moment ago: what its zeroed entry points at are the slots of another service.
    if entry.ring_size == 0 {
        return refuse(DropReason::NoBackend);
    }
    // `counted` is for limits on new connections: a client sends many 0-RTT packets, but few Initial ones.
    let (mut step, mut counted, mut route) = (step, step, Route::BY_HASH);
    if entry.flags & ServiceEntry::QUIC != 0 {
        route = tables.quic(packet, Place::of(&ip), Format::of(id, entry));
        if route.begins() {
            step = Step::Begin;
        }
        if route.is_initial() {
            counted = Step::Begin;
        }
    }
    if entry.flags & (ServiceEntry::ALLOW_LIST | ServiceEntry::LIMITED) != 0
        && let Some(reason) = tables.admit(packet, Place::of(&ip), id, entry.flags, counted).refusal()
    {
        return refuse(reason);
    }
    let hash = flow(entry.seed, l4.ports);
    let index = if entry.flags & ServiceEntry::SOURCE_IP == 0 {
        hash::slot(hash, entry.ring_size)
    } else {
        hash::slot(flow(entry.seed, 0), entry.ring_size)
    };
    select::select(packet, tables, id, entry, (hash, index), step, route, ip)
}
