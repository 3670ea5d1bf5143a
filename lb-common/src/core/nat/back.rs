//! The way back: from a backend to a client.

use super::{
    Address, Answer, Ends, NatTables, Way,
    rewrite::{self, SOURCE},
};
use crate::{
    abi::{Exit, NatKey, NatOrigin},
    core::{DropReason, Ip, Part, forward},
    packet::{Packet, PacketMut},
    wire::{eth, ipv4, ipv6, proto, tcp, udp, vlan},
};

/// The head of a packet that may be a reply.
pub(super) struct Head {
    pub ip: Ip,
    pub ttl: u8,
    pub src: Address,
    pub dst: Address,
}

/// Reads the IP header at `l3`. `None`: not in order, or a fragment. Whether the packet is one of ours cannot be told
/// then: that is the kernel's to judge.
#[inline(always)]
pub(super) fn head<P: Packet, const V6: bool>(packet: &P, l3: usize) -> Option<Head> {
    if V6 {
        let header = packet.view::<{ ipv6::LEN }>(l3)?;
        let word = header.u32::<{ ipv6::WORD }>();
        let total = ipv6::LEN + usize::from(header.u16::<{ ipv6::PAYLOAD_LEN }>());
        if word >> 28 != 6 || total > usize::from(u16::MAX) || l3 + total > packet.len() {
            return None;
        }
        let ip = Ip {
            l3,
            header_len: ipv6::LEN,
            v6: true,
            total_len: total as u16,
            tos: (word >> 20) as u8,
            proto: header.u8::<{ ipv6::NEXT }>(),
            part: Part::Whole,
        };
        let src = Address { hi: header.raw64::<{ ipv6::SRC }>(), lo: header.raw64::<{ ipv6::SRC + 8 }>() };
        let dst = Address { hi: header.raw64::<{ ipv6::DST }>(), lo: header.raw64::<{ ipv6::DST + 8 }>() };
        return Some(Head { ip, ttl: header.u8::<{ ipv6::HOP_LIMIT }>(), src, dst });
    }
    let header = packet.view::<{ ipv4::LEN }>(l3)?;
    let header_len = usize::from(header.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
    let total_len = header.u16::<{ ipv4::TOTAL_LEN }>();
    let whole = header.u16::<{ ipv4::FRAGMENT }>() & !ipv4::DONT_FRAGMENT == 0;
    if header.u8::<{ ipv4::VIHL }>() >> 4 != 4
        || header_len < ipv4::LEN
        || usize::from(total_len) < header_len
        || l3 + usize::from(total_len) > packet.len()
        || !whole
    {
        return None;
    }
    let ip = Ip {
        l3,
        header_len,
        v6: false,
        total_len,
        tos: header.u8::<{ ipv4::TOS }>(),
        proto: header.u8::<{ ipv4::PROTO }>(),
        part: Part::Whole,
    };
    let (src, dst) = (header.raw32::<{ ipv4::SRC }>(), header.raw32::<{ ipv4::DST }>());
    Some(Head { ip, ttl: header.u8::<{ ipv4::TTL }>(), src: Address::mapped(src), dst: Address::mapped(dst) })
}

/// Eight bytes' alignment lets a key be written and hashed by words.
#[repr(C, align(8))]
pub(super) struct Aligned<T>(pub T);

/// A packet to an address that is no VIP: the reply of a `nat` backend, or none of ours.
#[inline(always)]
pub fn reply<P: PacketMut, T: NatTables, const V6: bool>(packet: &mut P, tables: &T, l3: usize) -> Answer {
    let Some(head) = head::<P, V6>(packet, l3) else { return Answer::PASS };
    let ip = head.ip;
    if ip.proto != proto::TCP && ip.proto != proto::UDP {
        let icmp = ip.proto == if V6 { proto::ICMPV6 } else { proto::ICMP };
        return if icmp { Answer::ICMP } else { Answer::PASS };
    }
    let Some(ports) = packet.view::<{ udp::LEN }>(l3 + ip.header_len) else { return Answer::PASS };
    let port = ports.raw16::<0>().to_ne_bytes();
    let key = Aligned(NatKey { address: head.src.bytes(), port, proto: ip.proto.into() });
    let Some(origin) = tables.nat(&key.0) else { return Answer::PASS };
    if origin.flags & NatOrigin::SESSIONS != 0 {
        return Answer::SESSION;
    }
    let vip = Address::read(&origin.vip);
    match tables.way(V6, vip, head.dst) {
        Way::Here => Answer::PASS,
        Way::None => Answer::drop(DropReason::NoNextHop),
        Way::Exit(exit) => {
            if let Some(refused) = refusal(packet, &head, exit) {
                return refused;
            }
            let to = Ends { src: vip, dst: head.dst, src_port: u16::from_ne_bytes(origin.port), dst_port: 0 };
            match rewrite::ends::<P, SOURCE>(packet, &ip, l3, &to)
                .and_then(|()| leave(packet, &ip, &exit.l2, exit.vlan))
            {
                Ok(()) => Answer::send(exit.ifindex, 0),
                Err(reason) => Answer::drop(reason),
            }
        }
    }
}

/// Why a packet of ours may not leave by this exit, if so.
#[inline(always)]
pub(super) fn refusal<P: Packet>(packet: &P, head: &Head, exit: &Exit) -> Option<Answer> {
    let ip = &head.ip;
    let least = if ip.proto == proto::TCP { tcp::LEN } else { udp::LEN };
    if usize::from(ip.total_len) < ip.header_len + least {
        return Some(Answer::drop(DropReason::IpLength));
    }
    if head.ttl <= 1 {
        return Some(Answer::drop(DropReason::TtlExceeded));
    }
    if ip.total_len > exit.mtu {
        return Some(Answer::too_big(exit.mtu));
    }
    // The rewrite must not fail half way.
    if ip.proto == proto::TCP && packet.view::<{ tcp::LEN }>(ip.l3 + ip.header_len).is_none() {
        return Some(Answer::drop(DropReason::Truncated));
    }
    None
}

/// One hop further and a link header of the egress.
#[inline(always)]
pub(super) fn leave<P: PacketMut>(
    packet: &mut P,
    ip: &Ip,
    macs: &[u8; 12],
    id: u16,
) -> Result<(), DropReason> {
    forward::decrement_ttl(packet, ip)?;
    let l2 = if id == 0 { eth::LEN } else { eth::LEN + vlan::LEN };
    if l2 != ip.l3 {
        packet.grow_head(l2 as i32 - ip.l3 as i32).ok_or(DropReason::NoHeadroom)?;
    }
    forward::link_header(packet, macs, id, l2, ip.v6)
}
