//! The forwarding decision: what happens to a packet, and the packet that leaves.
//!
//! [`decide`] is the fast path, readable on one screen: parse, find the VIP, its service, the flow's
//! slot, the slot's backend. [`forward::rewrite`] turns the packet into the one that leaves. Both take
//! bytes and tables and return data; the kernel program, the tests and `explain` run the same code.

pub mod affinity;
#[cfg(test)]
mod affinity_rig;
#[cfg(test)]
mod affinity_tests;
pub mod decap;
pub mod echo;
pub mod forward;
pub mod found;
pub mod fragment;
pub mod guard;
pub mod icmp;
pub mod nat;
pub mod neighbour;
#[cfg(test)]
mod neighbour_tests;
pub mod parse;
pub mod passive;
pub mod quic;
pub mod quote;
pub mod reject;
#[cfg(test)]
mod reject_tests;
pub mod schedule;
#[cfg(test)]
mod schedule_tests;
mod select;
mod service;
mod tables;
#[cfg(test)]
mod tests;
mod verdict;

pub use service::find as find_service;

pub use parse::{Ip, L4, Part};
pub use tables::{FlowCell, FlowKey, HalfOpenCell, NoCell, Tables};
pub use verdict::{Answer, AnswerKind, Back, Decision, DropReason, Forward, Neighbour, Refusal};

use crate::{
    packet::{Packet, View},
    wire::{eth, ipv4, vlan},
};

/// What happens to a frame that came in.
///
/// Order matters for the operator: what is for no VIP or no service of a VIP is passed to the kernel
/// before anything else is judged, so that the host itself works as if no balancer were there.
#[inline(always)]
pub fn decide<'t, P: Packet, T: Tables>(packet: &P, tables: &'t T) -> Decision<'t> {
    // The smallest frame that can matter: Ethernet and IPv4 without options.
    let Some(head) = packet.view::<{ eth::LEN + ipv4::LEN }>(0) else { return Decision::Pass };
    // A group address is never one balancer's alone: the kernel decides (RFC 1112 section 7.2).
    if head.u8::<0>() & 1 != 0 {
        return neighbour::of_group(head, tables);
    }
    let (ether_type, l3) = match head.raw16::<{ eth::TYPE }>() {
        tagged if tagged == eth::VLAN.to_be() || tagged == eth::SERVICE_VLAN.to_be() => match untag(head) {
            Some(inner) => inner,
            None => return Decision::Pass,
        },
        other => (other, eth::LEN),
    };
    if ether_type == eth::IPV4.to_be() {
        parse::v4(packet, tables, l3)
    } else if ether_type == eth::IPV6.to_be() {
        parse::v6(packet, tables, l3)
    } else if ether_type == eth::ARP.to_be() {
        neighbour::perhaps(tables, l3, false)
    } else {
        Decision::Pass
    }
}

/// EtherType (as it stands) and offset of what follows up to two VLAN tags.
#[inline(always)]
fn untag<const N: usize>(head: View<'_, N>) -> Option<(u16, usize)> {
    let inner = head.raw16::<{ eth::TYPE + vlan::LEN }>();
    if inner != eth::VLAN.to_be() {
        return Some((inner, eth::LEN + vlan::LEN));
    }
    let innermost = head.raw16::<{ eth::TYPE + 2 * vlan::LEN }>();
    // A third tag is more than any bridge here speaks.
    if innermost == eth::VLAN.to_be() { None } else { Some((innermost, eth::LEN + 2 * vlan::LEN)) }
}
