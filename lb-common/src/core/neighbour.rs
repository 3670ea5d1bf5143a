//! Who has a virtual address: questions (ARP requests, neighbour solicitations) for addresses of VRRP, and claims of
//! others to them.
//!
//! What becomes of a question is for the lease of the address to say, which the daemon renews: see [`crate::abi::Lease`]. A node
//! whose lease is over is silent, whether the program or the kernel would have answered. One whose daemon is silent and
//! that knows of nobody else goes on answering, and ends its own lease when another node claims the address.

use super::{Decision, Neighbour, Tables, icmp::Link, untag};
use crate::{
    abi::{AddressEntry, AddressKey, Control, Standing},
    csum,
    packet::{Packet, PacketMut, View},
    wire::{arp, eth, ipv6, nd, proto, vlan},
};

/// What became of a frame, in one number that passes between kernel functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resolved(pub u64);

impl Resolved {
    /// The kernel's.
    pub const PASS: Self = Self(0);
    /// The frame is the answer now.
    pub const ANSWERED: Self = Self(1);
    /// A question that is not answered; the frame may be half changed.
    pub const UNANSWERED: Self = Self(2);
    /// Another node answers.
    pub const OVER: Self = Self(3);
}

/// A MAC address as it stands in the frame: four bytes and two.
type Mac = (u32, u16);

/// Longest neighbour solicitation that is answered, in units of 8 bytes: with five options of one unit.
const UNITS: usize = 8;
/// Of ff02::1, all nodes (RFC 2464 section 7).
const ALL_NODES_MAC: Mac = (u32::from_ne_bytes([0x33, 0x33, 0, 0]), u16::from_ne_bytes([0, 1]));
const ALL_NODES: (u64, u64) = (0xff02_0000_0000_0000u64.to_be(), 1u64.to_be());
/// ff02::1:ff00:0/104, without the last three bytes (RFC 4291 section 2.7.1).
const SOLICITED_NODES: (u64, u32) = (0xff02_0000_0000_0000u64.to_be(), 1u32.to_be());

/// A frame to a group of hosts.
#[inline(always)]
pub(super) fn of_group<'t, T: Tables, const N: usize>(head: View<'_, N>, tables: &'t T) -> Decision<'t> {
    if tables.switches() & Control::ADDRESSES == 0 {
        return Decision::Pass;
    }
    let kind = head.raw16::<{ eth::TYPE }>();
    let (kind, l3) = if kind == eth::VLAN.to_be() || kind == eth::SERVICE_VLAN.to_be() {
        match untag(head) {
            Some(inner) => inner,
            None => return Decision::Pass,
        }
    } else {
        (kind, eth::LEN)
    };
    if kind == eth::ARP.to_be() {
        Decision::Neighbour(Neighbour { l3, v6: false })
    } else if kind == eth::IPV6.to_be() {
        Decision::Neighbour(Neighbour { l3, v6: true })
    } else {
        Decision::Pass
    }
}

/// A frame of address resolution to this host alone.
#[inline(always)]
pub(super) fn perhaps<T: Tables>(tables: &T, l3: usize, v6: bool) -> Decision<'_> {
    if tables.switches() & Control::ADDRESSES == 0 {
        return Decision::Pass;
    }
    Decision::Neighbour(Neighbour { l3, v6 })
}

/// Is it a neighbour solicitation, as far as the first bytes say?
#[inline(always)]
pub(super) fn is_solicitation<P: Packet>(packet: &P, l3: usize) -> bool {
    packet.view::<{ ipv6::LEN + 2 }>(l3).is_some_and(|packet| {
        packet.u8::<{ ipv6::NEXT }>() == proto::ICMPV6
            && packet.raw16::<{ ipv6::LEN }>() == u16::from_ne_bytes([nd::SOLICITATION, 0])
    })
}

/// The VLAN of a frame, as in [`AddressKey::vlan`]; a tag without a VLAN (priority alone) counts as none.
#[inline(always)]
fn vlan_of<P: Packet>(packet: &P, l3: usize) -> u32 {
    const ID: u16 = 0xfff;
    let tag = |at| packet.view::<{ vlan::LEN }>(at).map_or(0, |tag| u32::from(tag.u16::<0>() & ID));
    match l3 {
        l3 if l3 > eth::LEN + vlan::LEN => tag(eth::LEN) << 16 | tag(eth::LEN + vlan::LEN),
        l3 if l3 > eth::LEN => tag(eth::LEN),
        _ => 0,
    }
}

#[inline(always)]
const fn mac_of(entry: &AddressEntry) -> Mac {
    let [a, b, c, d, e, f] = entry.mac;
    (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]))
}

/// An IPv4 address, as it stands in the packet, mapped.
#[inline(always)]
const fn mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Another node says that the address is its own.
#[inline(always)]
fn claim<T: Tables>(tables: &T, key: &AddressKey, mac: Mac) {
    let Some(entry) = tables.address(key) else { return };
    if mac == mac_of(&entry) {
        return;
    }
    let (lease, now) = (tables.lease(entry.lease), tables.now_ns());
    match lease.standing(now) {
        Standing::Absent | Standing::Over => {}
        // VRRP settles it.
        Standing::Valid => tables.claimed(key, entry.lease, mac, now),
        // Nobody is there who could.
        Standing::Alone => tables.end_lease(entry.lease, lease),
    }
}

/// What becomes of a question for an address of this node.
#[inline(always)]
fn ask<T: Tables>(tables: &T, entry: &AddressEntry) -> Resolved {
    match tables.lease(entry.lease).standing(tables.now_ns()) {
        Standing::Absent => Resolved::PASS,
        Standing::Over => Resolved::OVER,
        Standing::Valid | Standing::Alone if entry.flags & AddressEntry::ANSWER == 0 => Resolved::PASS,
        Standing::Valid | Standing::Alone => Resolved::ANSWERED,
    }
}

/// An ARP packet at `l3`, 14, 18 or 22, in a frame that came in by an interface.
#[inline(always)]
pub fn arp<P: PacketMut, T: Tables>(packet: &mut P, tables: &T, l3: usize, ifindex: u32) -> Resolved {
    let Some(link) = Link::read(packet, l3) else { return Resolved::PASS };
    let vlan = vlan_of(packet, l3);
    let Some(asked) = packet.view::<{ arp::LEN }>(l3) else { return Resolved::PASS };
    if asked.u64::<0>() >> 16 != arp::KIND {
        return Resolved::PASS;
    }
    let sender_mac = (asked.raw32::<{ arp::SENDER_MAC }>(), asked.raw16::<{ arp::SENDER_MAC + 4 }>());
    let (sender, target) = (asked.raw32::<{ arp::SENDER }>(), asked.raw32::<{ arp::TARGET }>());
    let operation = asked.u16::<{ arp::OPERATION }>();
    // RFC 5227 section 2.4: whatever packet has the address as its sender's. A probe has none.
    if sender != 0 {
        claim(tables, &AddressKey { address: mapped(sender), ifindex, vlan }, sender_mac);
    }
    if operation != arp::REQUEST {
        return Resolved::PASS;
    }
    let key = AddressKey { address: mapped(target), ifindex, vlan };
    let Some(entry) = tables.address(&key) else { return Resolved::PASS };
    let verdict = ask(tables, &entry);
    // Whoever announces the address does not ask for it.
    if verdict != Resolved::ANSWERED || sender == target {
        return if verdict == Resolved::ANSWERED { Resolved::PASS } else { verdict };
    }
    let group = sender_mac.0.to_ne_bytes()[0] & 1 != 0;
    if group || !tables.may_answer() {
        return Resolved::UNANSWERED;
    }
    let mac = mac_of(&entry);
    if answer_arp(packet, l3, &link, mac, sender_mac, (sender, target)).is_none() {
        return Resolved::UNANSWERED;
    }
    Resolved::ANSWERED
}

/// Turns the request into the reply, in place.
#[inline(always)]
fn answer_arp<P: PacketMut>(
    packet: &mut P,
    l3: usize,
    link: &Link,
    mac: Mac,
    to: Mac,
    (sender, target): (u32, u32),
) -> Option<()> {
    link.write(packet, l3, to, mac)?;
    let mut reply = packet.view_mut::<{ arp::LEN }>(l3)?;
    reply.set16::<{ arp::OPERATION }>(arp::REPLY.to_be());
    reply.set32::<{ arp::SENDER_MAC }>(mac.0);
    reply.set16::<{ arp::SENDER_MAC + 4 }>(mac.1);
    reply.set32::<{ arp::SENDER }>(target);
    reply.set32::<{ arp::TARGET_MAC }>(to.0);
    reply.set16::<{ arp::TARGET_MAC + 4 }>(to.1);
    reply.set32::<{ arp::TARGET }>(sender);
    Some(())
}

/// An IPv6 packet at `l3`, in a frame that came in by an interface: a neighbour solicitation or advertisement, or the
/// kernel's.
#[inline(always)]
pub fn neighbour<P: PacketMut, T: Tables>(packet: &mut P, tables: &T, l3: usize, ifindex: u32) -> Resolved {
    let Some(link) = Link::read(packet, l3) else { return Resolved::PASS };
    let vlan = vlan_of(packet, l3);
    let Some(asked) = packet.view::<{ ipv6::LEN + nd::LEN }>(l3) else { return Resolved::PASS };
    if asked.u8::<{ ipv6::NEXT }>() != proto::ICMPV6 {
        return Resolved::PASS;
    }
    let kind = asked.u8::<{ ipv6::LEN }>();
    if kind != nd::SOLICITATION && kind != nd::ADVERTISEMENT {
        return Resolved::PASS;
    }
    let Some(target) = packet.view::<16>(l3 + ipv6::LEN + nd::TARGET) else { return Resolved::PASS };
    let key = AddressKey { address: *target.0, ifindex, vlan };
    let near = asked.u8::<{ ipv6::HOP_LIMIT }>() == nd::HOP_LIMIT;
    if kind == nd::ADVERTISEMENT {
        if near {
            claim(tables, &key, link.sender());
        }
        return Resolved::PASS;
    }
    let Some(entry) = tables.address(&key) else { return Resolved::PASS };
    let verdict = ask(tables, &entry);
    if verdict != Resolved::ANSWERED {
        return verdict;
    }
    // RFC 4861 section 7.1.1.
    if !near || asked.u8::<{ ipv6::LEN + 1 }>() != 0 || !is_valid(packet, l3) || !tables.may_answer() {
        return Resolved::UNANSWERED;
    }
    if answer_neighbour(packet, l3, &link, &entry).is_none() {
        return Resolved::UNANSWERED;
    }
    Resolved::ANSWERED
}

/// The length, the checksum, and what else holds for a solicitation of whose first bytes enough is known.
#[inline(always)]
fn is_valid<P: Packet>(packet: &P, l3: usize) -> bool {
    let Some(header) = packet.view::<{ ipv6::LEN }>(l3) else { return false };
    let len = usize::from(header.u16::<{ ipv6::PAYLOAD_LEN }>());
    if !(nd::LEN..=UNITS * 8).contains(&len) || len & 7 != 0 {
        return false;
    }
    let (src, dst) = addresses(header);
    let mut sum = half(src.0) + half(src.1) + half(dst.0) + half(dst.1);
    sum += u64::from((len as u32).to_be()) + u64::from(u32::from(proto::ICMPV6).to_be());
    // SAFETY: a reference to a live local. Volatile: as in `icmp`, the compiler must leave the bound in the loop.
    let shown = unsafe { core::ptr::read_volatile(&len) };
    let mut option = 0;
    for unit in 0..UNITS {
        if unit * 8 >= shown {
            break;
        }
        let Some(words) = packet.view::<8>(l3 + ipv6::LEN + unit * 8) else { return false };
        sum += half(words.raw64::<0>());
        if unit == nd::LEN / 8 {
            option = words.u8::<0>();
        }
    }
    if csum::fold(sum) != 0xffff {
        return false;
    }
    // Somebody tries the address out (RFC 4862 section 5.4.2) and has none to be answered at.
    if src == (0, 0) {
        let (hi, lo) = SOLICITED_NODES;
        let [a, b, c, d, e, ..] = dst.1.to_ne_bytes();
        let group = dst.0 == hi && u32::from_ne_bytes([a, b, c, d]) == lo && e == 0xff;
        return group && option != nd::SOURCE_LINK_LAYER;
    }
    src.0.to_ne_bytes()[0] != 0xff
}

#[inline(always)]
const fn half(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// Source and destination, in halves.
#[inline(always)]
fn addresses<const N: usize>(header: View<'_, N>) -> ((u64, u64), (u64, u64)) {
    (
        (header.raw64::<{ ipv6::SRC }>(), header.raw64::<{ ipv6::SRC + 8 }>()),
        (header.raw64::<{ ipv6::DST }>(), header.raw64::<{ ipv6::DST + 8 }>()),
    )
}

/// Turns the solicitation into the advertisement (RFC 4861 section 7.2.4), which has always one option.
#[inline(always)]
fn answer_neighbour<P: PacketMut>(
    packet: &mut P,
    l3: usize,
    link: &Link,
    entry: &AddressEntry,
) -> Option<()> {
    const LEN: usize = nd::LEN + 8;
    let asked = packet.view::<{ ipv6::LEN + nd::LEN }>(l3)?;
    let (src, _) = addresses(asked);
    let target =
        (asked.raw64::<{ ipv6::LEN + nd::TARGET }>(), asked.raw64::<{ ipv6::LEN + nd::TARGET + 8 }>());
    if packet.len() < l3 + ipv6::LEN + LEN {
        packet.grow_head(8)?;
    }
    packet.truncate(l3 + ipv6::LEN + LEN)?;
    let mac = mac_of(entry);
    let asked_by_nobody = src == (0, 0);
    let (dst, to, solicited) = match asked_by_nobody {
        true => (ALL_NODES, ALL_NODES_MAC, 0),
        false => (src, link.sender(), nd::SOLICITED),
    };
    link.write(packet, l3, to, mac)?;
    let router = if entry.flags & AddressEntry::ROUTER != 0 { nd::ROUTER } else { 0 };
    let mut reply = packet.view_mut::<{ ipv6::LEN + LEN }>(l3)?;
    reply.set32::<{ ipv6::WORD }>((6u32 << 28).to_be());
    reply.set16::<{ ipv6::PAYLOAD_LEN }>((LEN as u16).to_be());
    reply.set8::<{ ipv6::NEXT }>(proto::ICMPV6);
    reply.set8::<{ ipv6::HOP_LIMIT }>(nd::HOP_LIMIT);
    reply.set64::<{ ipv6::SRC }>(target.0);
    reply.set64::<{ ipv6::SRC + 8 }>(target.1);
    reply.set64::<{ ipv6::DST }>(dst.0);
    reply.set64::<{ ipv6::DST + 8 }>(dst.1);
    let kind = u32::from_ne_bytes([nd::ADVERTISEMENT, 0, 0, 0]);
    let flags = u32::from_ne_bytes([router | solicited | nd::OVERRIDE, 0, 0, 0]);
    let [a, b, c, d] = mac.0.to_ne_bytes();
    let [e, f] = mac.1.to_ne_bytes();
    let option = (u32::from_ne_bytes([nd::TARGET_LINK_LAYER, 1, a, b]), u32::from_ne_bytes([c, d, e, f]));
    reply.set32::<{ ipv6::LEN }>(kind);
    reply.set32::<{ ipv6::LEN + 4 }>(flags);
    reply.set64::<{ ipv6::LEN + nd::TARGET }>(target.0);
    reply.set64::<{ ipv6::LEN + nd::TARGET + 8 }>(target.1);
    reply.set32::<{ ipv6::LEN + nd::LEN }>(option.0);
    reply.set32::<{ ipv6::LEN + nd::LEN + 4 }>(option.1);
    // The target is summed twice: as source, and in the message.
    let sum = 2 * (half(target.0) + half(target.1))
        + half(dst.0)
        + half(dst.1)
        + u64::from((LEN as u32).to_be())
        + u64::from(u32::from(proto::ICMPV6).to_be())
        + u64::from(kind)
        + u64::from(flags)
        + u64::from(option.0)
        + u64::from(option.1);
    reply.set16::<{ ipv6::LEN + 2 }>(csum::finish(sum));
    Some(())
}
