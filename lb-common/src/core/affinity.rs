//! Which backend a packet of a slot that changed hands goes to: the flow table, asked only there.
//!
//! The rules are those of ARCHITECTURE.md, "Connection affinity". Their invariant: every live flow without
//! an entry lives at its slot's home. A flow that cannot be recorded therefore goes home: lack of memory
//! delays a change, it breaks nothing established.

use super::{FlowCell, FlowKey, Ip, Tables};
use crate::{
    abi::{BackendEntry, FlowEntry, FlowKey4, FlowKey6, Slot, SlotState},
    packet::Packet,
    wire::{ipv4, ipv6, tcp},
};

/// What a packet means to its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Step {
    /// A TCP SYN: the flow begins.
    Begin = 0,
    /// Anything in the middle; every UDP packet, since UDP has no beginning.
    Within = 1,
    /// FIN or RST: the flow may end.
    End = 2,
    /// An acknowledgement without data: the flow goes on as it was. The last packet of most connections is one, after
    /// their FIN, and does not bring them back to life.
    Acknowledge = 3,
}

impl Step {
    /// The step behind the number that passes between kernel functions.
    #[inline(always)]
    pub const fn from_u64(step: u64) -> Self {
        match step {
            0 => Self::Begin,
            1 => Self::Within,
            2 => Self::End,
            _ => Self::Acknowledge,
        }
    }

    /// The step of a TCP segment with these flags, with or without data.
    #[inline(always)]
    pub(super) const fn of_tcp(flags: u8, data: bool) -> Self {
        if flags & (tcp::FIN | tcp::RST) != 0 {
            Self::End
        } else if flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
            Self::Begin
        } else if data {
            Self::Within
        } else {
            Self::Acknowledge
        }
    }
}

/// Where in the frame the flow's addresses and ports are, in one number that passes between kernel
/// functions: offset of the IP header, length of the IP headers, protocol, version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(pub u64);

impl Place {
    #[inline(always)]
    pub(super) const fn of(ip: &Ip) -> Self {
        Self(ip.l3 as u64 | (ip.header_len as u64) << 8 | (ip.proto as u64) << 24 | (ip.v6 as u64) << 32)
    }

    // The masks bound the offsets for the verifier, which knows nothing of a function's arguments.
    #[inline(always)]
    pub(super) const fn l3(self) -> usize {
        self.0 as usize & 0x1f
    }

    #[inline(always)]
    pub(super) const fn l4(self) -> usize {
        self.l3() + ((self.0 >> 8) as usize & 0x3ff)
    }
}

/// Makes the flow's key from the frame and chooses its backend; 0 = nobody.
#[inline(always)]
pub fn choose_flow<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    place: Place,
    slot: Slot,
    hash: u64,
    step: Step,
) -> u32 {
    let Some(ports) = packet.view::<4>(place.l4()) else { return 0 };
    let proto = (place.0 >> 24) as u32 & 0xff;
    if place.0 >> 32 & 1 == 0 {
        let Some(ip) = packet.view::<{ ipv4::LEN }>(place.l3()) else { return 0 };
        let src = ip.raw32::<{ ipv4::SRC }>().to_ne_bytes();
        let dst = ip.raw32::<{ ipv4::DST }>().to_ne_bytes();
        choose(tables, slot, hash, step, &FlowKey4 { src, dst, ports: *ports.0, proto })
    } else {
        let Some(src) = packet.view::<16>(place.l3() + ipv6::SRC) else { return 0 };
        let Some(dst) = packet.view::<16>(place.l3() + ipv6::DST) else { return 0 };
        choose(tables, slot, hash, step, &FlowKey6 { src: *src.0, dst: *dst.0, ports: *ports.0, proto })
    }
}

/// The backend's id for a packet of a slot that is not plain; 0 = nobody.
#[inline(always)]
fn choose<T: Tables, K: FlowKey>(tables: &T, slot: Slot, hash: u64, step: Step, key: &K) -> u32 {
    let (now, tag) = (tables.now_ns(), FlowEntry::tag_of(hash));
    let mut found = key.find(tables);
    // Another tag: the element was recycled for another flow while we looked. Found again, it is this flow's
    // own, from before the service got another seed.
    if found.as_ref().is_some_and(|cell| cell.load().tag() != tag) {
        found = key.find(tables);
    }
    if let Some(cell) = found {
        let entry = cell.load();
        if entry.tag() == tag && is_alive(tables, entry) {
            let closing = match step {
                // A SYN on a flow that lives says nothing about it: a late duplicate, or somebody's guess.
                Step::Begin if !entry.is_closing() => return entry.backend(),
                Step::Begin => return override_entry(tables, &cell, slot.owner(), hash, now, true),
                Step::Within => false,
                Step::End => true,
                Step::Acknowledge => entry.is_closing(),
            };
            let new = entry.touched(now, closing);
            if new.0 != entry.0 {
                cell.store(new);
            }
            return entry.backend();
        }
        let begins = matches!(step, Step::Begin);
        let chosen = if begins { slot.owner() } else { slot.home() };
        return override_entry(tables, &cell, chosen, hash, now, begins);
    }
    let (owner, home) = (slot.owner(), slot.home());
    match step {
        // What goes home needs no entry.
        Step::Begin if owner == home => owner,
        // Nobody takes new flows: every backend is draining.
        Step::Begin if owner == 0 => 0,
        Step::Begin => {
            let Some(backend) = tables.backend(owner) else { return home };
            let entry = FlowEntry::new(owner, backend.incarnation, hash, now, true);
            if key.add(tables, entry) { owner } else { home }
        }
        Step::Within | Step::Acknowledge => {
            if let (SlotState::Moving, Some(backend)) = (slot.state(), tables.backend(home)) {
                // Whether or not there is room: the flow is at home.
                key.add(tables, FlowEntry::new(home, backend.incarnation, hash, now, false));
            }
            home
        }
        Step::End => home,
    }
}

/// Gives the place of a dead or closed flow to its successor.
#[inline(always)]
fn override_entry<T: Tables>(
    tables: &T,
    cell: &impl FlowCell,
    chosen: u32,
    hash: u64,
    now: u64,
    half_open: bool,
) -> u32 {
    // Nobody (every backend is draining) is no successor.
    if let (1.., Some(backend)) = (chosen, tables.backend(chosen)) {
        cell.store(FlowEntry::new(chosen, backend.incarnation, hash, now, half_open));
    }
    chosen
}

/// Does the backend that an entry names still live the life it had then?
#[inline(always)]
fn is_alive<T: Tables>(tables: &T, entry: FlowEntry) -> bool {
    match tables.backend(entry.backend()) {
        Some(backend) => {
            backend.kind != 0
                && backend.flags & BackendEntry::DEAD == 0
                && backend.incarnation as u8 == entry.incarnation()
        }
        None => false,
    }
}
