//! Marks of the addresses that backends of `nat` have, in front of the table `NATS`: one cached word tells of almost
//! every client that it is no backend. Replies ask `NATS` at once: most of what comes for no VIP where `nat` is on is one.

use super::Address;
use crate::{
    abi::NAT_MARK_WORDS,
    core::Tables,
    hash,
    packet::Packet,
    wire::{ipv4, ipv6},
};

const BITS: u32 = (NAT_MARK_WORDS * 64).ilog2();
const _: () = assert!(NAT_MARK_WORDS * 64 == 1 << BITS);

/// The bit of an address; its word is this divided by 64.
#[inline(always)]
#[must_use]
pub const fn mark(address: Address) -> u32 {
    (hash::mix(address.hi ^ address.lo) >> (64 - BITS)) as u32
}

#[inline(always)]
fn is_marked<T: Tables>(tables: &T, address: Address) -> bool {
    let bit = mark(address);
    tables.nat_marks(bit / 64) >> (bit % 64) & 1 != 0
}

/// May the source of the packet whose IP header is at `l3` be a backend of `nat`?
#[inline(always)]
pub fn from_backend<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize, v6: bool) -> bool {
    if v6 {
        packet.view::<{ ipv6::LEN }>(l3).is_some_and(|header| {
            let (hi, lo) = (header.raw64::<{ ipv6::SRC }>(), header.raw64::<{ ipv6::SRC + 8 }>());
            is_marked(tables, Address { hi, lo })
        })
    } else {
        packet
            .view::<{ ipv4::LEN }>(l3)
            .is_some_and(|header| is_marked(tables, Address::mapped(header.raw32::<{ ipv4::SRC }>())))
    }
}
