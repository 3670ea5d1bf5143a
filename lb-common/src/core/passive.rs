//! Passive health: SYNs that come again because nobody answered the first, and backends that answer with RST.

use super::{Tables, affinity::Place};
use crate::{
    abi::{SYN_CELLS, Seen, ServiceEntry, Signal, SynCell},
    hash,
    packet::Packet,
    wire::{eth, ipv4, ipv6, proto, tcp, vlan},
};

/// Watches a SYN of a service with [`ServiceEntry::PASSIVE`] on its way to `backend`. `flow` is its flow's hash; `chooser`
/// is what chose its slot, and chooses its cell: where all flows of a source have one slot they have one cell, so that
/// no source alone makes its backend look bad.
#[inline(always)]
pub fn watch<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    place: Place,
    backend: u32,
    flow: u64,
    chooser: u64,
) {
    let Some(header) = packet.view::<{ tcp::LEN }>(place.l4()) else { return };
    tables.count_signal(backend, Signal::Syn);
    let isn = u64::from(header.u32::<{ tcp::SEQ }>());
    let mark = hash::mix(flow ^ hash::mix(isn << 32 | u64::from(backend)));
    let index = hash::entropy(chooser) & (SYN_CELLS - 1);
    let Some(cell) = tables.syn_cell(index) else { return };
    match SynCell(cell).look(mark, tables.now_ns()) {
        Seen::First(cell) => {
            tables.set_syn_cell(index, cell.0);
            tables.count_signal(backend, Signal::Watched);
        }
        Seen::Again(cell) => {
            tables.set_syn_cell(index, cell.0);
            tables.count_signal(backend, Signal::Repeat);
        }
        Seen::Still(cell) => tables.set_syn_cell(index, cell.0),
        Seen::Nothing => {}
    }
}

/// Counts a packet of a backend, as it leaves for the client, if it is an RST and the backend's service has
/// [`ServiceEntry::PASSIVE`].
#[inline(always)]
pub fn watch_reply<P: Packet, T: Tables>(packet: &P, tables: &T, backend: u32) {
    let Some(at) = transport(packet) else { return };
    let Some(header) = packet.view::<{ tcp::LEN }>(at) else { return };
    let flags = header.u8::<{ tcp::FLAGS }>();
    if flags & tcp::RST == 0 {
        return;
    }
    let Some(entry) = tables.backend(backend) else { return };
    if tables.service(entry.service).is_none_or(|service| service.flags & ServiceEntry::PASSIVE == 0) {
        return;
    }
    // RFC 9293 section 3.10.7.1: an RST of no connection has the sequence number that the segment acknowledged, and 0 if
    // it acknowledged none, as a SYN does not.
    let refuses = flags & tcp::ACK != 0 && header.u32::<{ tcp::SEQ }>() == 0;
    tables.count_signal(backend, if refuses { Signal::Refused } else { Signal::Reset });
}

/// Offset of the TCP header of a frame that leaves: one VLAN tag at most, no IPv6 extension headers.
#[inline(always)]
fn transport<P: Packet>(packet: &P) -> Option<usize> {
    let head = packet.view::<{ eth::LEN + ipv4::LEN }>(0)?;
    let (ether_type, l3) = match head.raw16::<{ eth::TYPE }>() {
        tagged if tagged == eth::VLAN.to_be() => {
            (head.raw16::<{ eth::TYPE + vlan::LEN }>(), eth::LEN + vlan::LEN)
        }
        other => (other, eth::LEN),
    };
    if ether_type == eth::IPV6.to_be() {
        let header = packet.view::<{ ipv6::LEN }>(l3)?;
        return (header.u8::<{ ipv6::NEXT }>() == proto::TCP).then_some(l3 + ipv6::LEN);
    }
    let header = packet.view::<{ ipv4::LEN }>(l3)?;
    let later = header.u16::<{ ipv4::FRAGMENT }>() & ipv4::FRAGMENT_OFFSET != 0;
    let tcp = ether_type == eth::IPV4.to_be() && header.u8::<{ ipv4::PROTO }>() == proto::TCP && !later;
    tcp.then_some(l3 + usize::from(header.u8::<{ ipv4::VIHL }>() & 0xf) * 4)
}
