//! ICMP errors between the IP versions: RFC 7915 sections 4.2 and 4.3 from IPv4 to IPv6, 5.2 and 5.3 the other way.
//!
//! The quoted packet's header is replaced like the error's own, and what follows it stays, so that checksums are brought
//! up to date and not made anew: an error that was damaged on its way stays one. An error that would get too long is cut down
//! to the eight bytes behind the quoted header that RFC 792 promises.
//!
//! Who says so cannot be kept: a router's address has no equivalent. The error comes from the address that its receiver
//! sent the packet to.

use super::{
    Address, Answer, Ends, NatTables, Way,
    back::{Head, head},
    errors::{Quote, anew, quoted, transport},
    rewrite::updated,
    translate::{Egress, header4, header6, name},
};
use crate::{
    abi::{Across, NatScratch},
    core::{DropReason, forward, icmp::Message},
    csum,
    packet::PacketMut,
    wire::{eth, icmp, ipv4, ipv6, proto, vlan},
};

/// RFC 4443 section 2.4 (c) and RFC 1812 section 4.3.2.3: the longest error. What came longer than IPv4's is let through up to the
/// former: it fits every IPv6 link, and what IPv4 link does not carry it is one that this host would have to know.
const LONGEST: u16 = 1280;

/// The difference of the headers.
const LONGER: u16 = (ipv6::LEN - ipv4::LEN) as u16;

/// No such message in the other version. Type 0 is an error in neither.
const NOTHING: Message = Message { kind: 0, code: 0, rest: 0 };

impl Across {
    /// Keeps what [`finish`] needs: both together need more stack than BPF has.
    #[inline(always)]
    pub(super) fn keep(&mut self, to: &Ends, backend: u32) {
        to.src.write(&mut self.src);
        to.dst.write(&mut self.dst);
        (self.src_port, self.dst_port) = (to.src_port.to_ne_bytes(), to.dst_port.to_ne_bytes());
        self.backend = backend;
    }

    /// Where it leaves.
    #[inline(always)]
    pub(super) fn leave_by(&mut self, l2: &[u8; 12], vlan: u16, mtu: u16, ifindex: u32) {
        (self.l2, self.vlan, self.mtu, self.ifindex) = (*l2, vlan, mtu, ifindex);
    }
}

/// Finds the way of an error to a client, `V6` being the client's version.
#[inline(always)]
pub fn way<T: NatTables, const V6: bool>(tables: &T, scratch: &mut NatScratch) -> Answer {
    let (client, vip) = (Address::read(&scratch.across.src), Address::read(&scratch.across.dst));
    match tables.way(V6, vip, client) {
        Way::Here | Way::None => Answer::drop(DropReason::NoNextHop),
        Way::Exit(exit) => {
            scratch.across.leave_by(&exit.l2, exit.vlan, exit.mtu, exit.ifindex);
            Answer::cross(scratch.across.backend)
        }
    }
}

/// An ICMP error to who speaks the other version, of which [`super::errors`] has kept where it goes and what the quoted packet's
/// ends become; `V6` is the version that it has.
#[inline(always)]
pub fn finish<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &NatScratch,
    l3: usize,
) -> Answer {
    const QUOTE: Answer = Answer::drop(DropReason::IcmpQuote);
    let Some(head) = head::<P, V6>(packet, l3) else { return QUOTE };
    let Some(quote) = quoted::<P, V6>(packet, &head) else { return QUOTE };
    let kept = &scratch.across;
    let to = Ends {
        src: Address::read(&kept.src),
        dst: Address::read(&kept.dst),
        src_port: u16::from_ne_bytes(kept.src_port),
        dst_port: u16::from_ne_bytes(kept.dst_port),
    };
    let egress = Egress { l2: &kept.l2, vlan: kept.vlan, mtu: kept.mtu };
    match translate::<P, T, V6>(packet, tables, &head, &quote, &to, egress) {
        Ok(()) => Answer::send(kept.ifindex, kept.backend),
        Err(reason) => Answer::drop(reason),
    }
}

/// What is left of the quoted packet's header in that of the other version.
struct Inner {
    tos: u8,
    ttl: u8,
    /// Bytes behind the header.
    segment: u16,
    /// Sum of the header's words.
    sum: u64,
}

#[inline(always)]
fn inner<P: PacketMut, const V6: bool>(packet: &P, quote: &Quote) -> Result<Inner, DropReason> {
    let l3 = anew(quote.l3);
    if V6 {
        let header = packet.view::<{ ipv6::LEN }>(l3).ok_or(DropReason::Internal)?;
        return Ok(Inner {
            tos: (header.u32::<{ ipv6::WORD }>() >> 20) as u8,
            ttl: header.u8::<{ ipv6::HOP_LIMIT }>(),
            segment: header.u16::<{ ipv6::PAYLOAD_LEN }>(),
            sum: header.sum32(),
        });
    }
    // What left here had no options.
    if quote.header_len != ipv4::LEN {
        return Err(DropReason::NatUntranslatable);
    }
    let header = packet.view::<{ ipv4::LEN }>(l3).ok_or(DropReason::Internal)?;
    Ok(Inner {
        tos: header.u8::<{ ipv4::TOS }>(),
        ttl: header.u8::<{ ipv4::TTL }>(),
        segment: header.u16::<{ ipv4::TOTAL_LEN }>().saturating_sub(ipv4::LEN as u16),
        sum: header.sum32(),
    })
}

/// Makes the error one of the other version, `V6` being the one it has; `to` are the quoted packet's ends.
#[inline(always)]
fn translate<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    head: &Head,
    quote: &Quote,
    to: &Ends,
    egress: Egress<'_>,
) -> Result<(), DropReason> {
    const INTERNAL: DropReason = DropReason::Internal;
    // An error goes to the source of what it is about, and comes from where that was sent to.
    let (src, dst) = (to.dst, to.src);
    if head.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let ip = &head.ip;
    let at = anew(ip.l3 + ip.header_len);
    let message = packet.view::<{ icmp::LEN }>(at).ok_or(INTERNAL)?;
    let (old_kind, check) = (message.raw16::<0>(), message.raw16::<2>());
    let old_rest = message.raw32::<4>();
    let [kind, code] = old_kind.to_ne_bytes();
    let inner = inner::<P, V6>(packet, quote)?;
    let said = Message { kind, code, rest: u32::from_be(old_rest) };
    let told = if V6 { to_v4(said, egress.mtu) } else { to_v6(said, inner.segment, egress.mtu) };
    if told.kind == 0 {
        return Err(DropReason::NatUntranslatable);
    }

    // Of the quoted headers, an IPv4 one with its checksum sums up to nothing.
    let old_ends = quote.ends.src.sum() + quote.ends.dst.sum();
    let new_ends = to.src.sum() + to.dst.sum();
    let addresses = minus(old_ends) + new_ends;
    let mut diff = transport(packet, quote, to, addresses)? + minus(inner.sum);

    let icmp_len = ip.total_len.wrapping_sub(ip.header_len as u16);
    let (new_len, header_len) = if V6 {
        (icmp_len.wrapping_sub(LONGER), ipv4::LEN)
    } else {
        (icmp_len.saturating_add(LONGER), ipv6::LEN)
    };
    let longest = if egress.mtu < LONGEST { egress.mtu } else { LONGEST };
    let cut = usize::from(new_len) + header_len > usize::from(longest);
    let least = icmp::LEN + header_len + 8;
    let new_len = if cut { least as u16 } else { new_len };
    let from = quote.l3 + quote.header_len;
    if cut {
        packet.truncate(from + 8).ok_or(INTERNAL)?;
    }
    let l2 = if egress.vlan == 0 { eth::LEN } else { eth::LEN + vlan::LEN };
    let grow = (l2 + header_len + icmp::LEN + header_len) as i32 - from as i32;
    packet.grow_head(grow).ok_or(DropReason::NoHeadroom)?;
    forward::link_header(packet, egress.l2, egress.vlan, l2, !V6)?;

    let new_kind = u16::from_ne_bytes([told.kind, told.code]);
    let rest = told.rest.to_be();
    diff += u64::from(!old_kind) + u64::from(new_kind) + u64::from(!old_rest) + u64::from(rest);
    // The pseudo header is IPv6's alone (RFC 4443 section 2.3).
    let pseudo = if V6 {
        diff += minus(head.src.sum() + head.dst.sum() + words(icmp_len, proto::ICMPV6));
        0
    } else {
        let word = (6 << 28 | u32::from(inner.tos) << 20).to_be();
        let ends = u16::from_be_bytes([quote.proto, inner.ttl]).to_be();
        diff += u64::from(word) + u64::from(inner.segment.to_be()) + u64::from(ends) + new_ends;
        let pseudo = src.sum() + dst.sum() + words(new_len, proto::ICMPV6);
        diff += pseudo;
        pseudo
    };

    // From the front on: the verifier does not conclude from a check at a variable offset to the bytes before it.
    let ttl = head.ttl.wrapping_sub(1);
    let at = l2 + header_len;
    let total = new_len.wrapping_add(ipv4::LEN as u16);
    if V6 {
        header4(packet, l2, (ip.tos, ttl, proto::ICMP), total, name(tables, total), (src, dst))?;
    } else {
        header6(packet, l2, (ip.tos, ttl, proto::ICMPV6), new_len, (src, dst))?;
    }
    let mut header = packet.view_mut::<{ icmp::LEN }>(at).ok_or(INTERNAL)?;
    header.set16::<0>(new_kind);
    header.set16::<2>(updated(check, diff));
    header.set32::<4>(rest);
    let (which, ends) = ((inner.tos, inner.ttl, quote.proto), (to.src, to.dst));
    if V6 {
        // Which identification it had is not known; RFC 6864 section 4.1 lets one that is no fragment have any.
        let flags = u32::from(ipv4::DONT_FRAGMENT);
        let total = inner.segment.saturating_add(ipv4::LEN as u16);
        header4(packet, at + icmp::LEN, which, total, flags, ends)?;
    } else {
        header6(packet, at + icmp::LEN, which, inner.segment, ends)?;
    }
    if !cut {
        return Ok(());
    }
    if V6 {
        sum_up::<P, { icmp::LEN + ipv4::LEN + 8 }>(packet, at, pseudo)
    } else {
        sum_up::<P, { icmp::LEN + ipv6::LEN + 8 }>(packet, at, pseudo)
    }
}

/// The checksum of an ICMP message of N bytes, made anew.
#[inline(always)]
fn sum_up<P: PacketMut, const N: usize>(packet: &mut P, at: usize, pseudo: u64) -> Result<(), DropReason> {
    let mut message = packet.view_mut::<N>(at).ok_or(DropReason::Internal)?;
    message.set16::<2>(0);
    let sum = message.as_view().sum32() + pseudo;
    message.set16::<2>(csum::finish(sum));
    Ok(())
}

/// Length and protocol in a pseudo header.
#[inline(always)]
fn words(len: u16, protocol: u8) -> u64 {
    u64::from(len.to_be()) + u64::from(u16::from(protocol).to_be())
}

/// What takes a sum away.
#[inline(always)]
const fn minus(sum: u64) -> u64 {
    !csum::fold(sum) as u64
}

/// RFC 7915 section 5.2; `mtu` is that of the way on.
#[inline(always)]
fn to_v4(said: Message, mtu: u16) -> Message {
    let unreachable = |code| Message { kind: icmp::V4_UNREACHABLE, code, rest: 0 };
    match said.kind {
        icmp::V6_UNREACHABLE => match said.code {
            0 | 2 | 3 => unreachable(1),
            1 => unreachable(10),
            4 => unreachable(3),
            _ => NOTHING,
        },
        icmp::V6_PACKET_TOO_BIG => {
            let shorter = said.rest.saturating_sub(LONGER.into());
            let rest = if shorter < u32::from(mtu) { shorter } else { mtu.into() };
            Message { kind: icmp::V4_UNREACHABLE, code: icmp::V4_FRAGMENTATION_NEEDED, rest }
        }
        icmp::V6_TIME_EXCEEDED => Message { kind: icmp::V4_TIME_EXCEEDED, code: said.code, rest: 0 },
        icmp::V6_PARAMETER_PROBLEM => match (said.code, said.rest) {
            (1, _) => unreachable(2),
            (0, 0) => pointer4(0),
            (0, 1) => pointer4(1),
            (0, 4 | 5) => pointer4(2),
            (0, 6) => pointer4(9),
            (0, 7) => pointer4(8),
            (0, 8..=23) => pointer4(12),
            (0, 24..=39) => pointer4(16),
            _ => NOTHING,
        },
        _ => NOTHING,
    }
}

#[inline(always)]
const fn pointer4(to: u8) -> Message {
    Message { kind: icmp::V4_PARAMETER_PROBLEM, code: 0, rest: (to as u32) << 24 }
}

#[inline(always)]
const fn pointer6(to: u8) -> Message {
    Message { kind: icmp::V6_PARAMETER_PROBLEM, code: 0, rest: to as u32 }
}

/// RFC 7915 section 4.2; `segment` is the length of the refused packet behind its header.
#[inline(always)]
fn to_v6(said: Message, segment: u16, mtu: u16) -> Message {
    let unreachable = |code| Message { kind: icmp::V6_UNREACHABLE, code, rest: 0 };
    match said.kind {
        icmp::V4_UNREACHABLE => match said.code {
            0 | 1 | 5..=8 | 11 | 12 => unreachable(0),
            // The protocol is what the next header would be.
            2 => Message { kind: icmp::V6_PARAMETER_PROBLEM, code: 1, rest: ipv6::NEXT as u32 },
            3 => unreachable(4),
            icmp::V4_FRAGMENTATION_NEEDED => {
                let told = said.rest as u16;
                let told = if told == 0 { plateau(segment) } else { told };
                let longer = told.saturating_add(LONGER);
                let fits = if longer < mtu { longer } else { mtu };
                let rest = if fits < LONGEST { LONGEST } else { fits };
                Message { kind: icmp::V6_PACKET_TOO_BIG, code: 0, rest: rest.into() }
            }
            9 | 10 | 13 | 15 => unreachable(1),
            _ => NOTHING,
        },
        icmp::V4_TIME_EXCEEDED => Message { kind: icmp::V6_TIME_EXCEEDED, code: said.code, rest: 0 },
        icmp::V4_PARAMETER_PROBLEM if matches!(said.code, 0 | 2) => match said.rest >> 24 {
            0 => pointer6(0),
            1 => pointer6(1),
            2 | 3 => pointer6(4),
            8 => pointer6(7),
            9 => pointer6(6),
            12..=15 => pointer6(8),
            16..=19 => pointer6(24),
            _ => NOTHING,
        },
        _ => NOTHING,
    }
}

/// RFC 1191 section 7: the greatest usual MTU below the length of what was refused by a router that names none. Those below IPv6's
/// least come to the same.
#[inline(always)]
const fn plateau(segment: u16) -> u16 {
    let total = segment.saturating_add(ipv4::LEN as u16);
    if total > 32_000 {
        32_000
    } else if total > 17_914 {
        17_914
    } else if total > 8_166 {
        8_166
    } else if total > 4_352 {
        4_352
    } else if total > 2_002 {
        2_002
    } else if total > 1_492 {
        1_492
    } else {
        1_006
    }
}
