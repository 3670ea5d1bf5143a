//! What this node has of the parts that move with VRRP instances.

use crate::plan::Ring;
use lb_common::abi::FlowEntry;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// The parts and their backends, by their ids in the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    pub parts: BTreeMap<u32, Member>,
    pub backends: BTreeMap<u32, Peer>,
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub service: String,
    /// Name of the VRRP instance.
    pub instance: String,
    pub seed: u64,
    pub idle: Duration,
    pub ring: Ring,
    /// Its flows are recorded even where its slots are plain.
    pub records: bool,
    /// This node is master of the instance.
    pub is_authority: bool,
}

/// A backend of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub part: u32,
    pub name: String,
    pub address: IpAddr,
    /// As entries have it.
    pub incarnation: u8,
    /// It takes no packets.
    pub is_dead: bool,
}

impl Scope {
    /// True for an entry of a flow whose authority is this node, and that names a backend which lives.
    pub(super) fn owns(&self, entry: FlowEntry) -> bool {
        self.backends.get(&entry.backend()).is_some_and(|backend| {
            !backend.is_dead
                && backend.incarnation == entry.incarnation()
                && self.parts.get(&backend.part).is_some_and(|part| part.is_authority)
        })
    }

    /// True if there may be entries whose authority is this node.
    #[must_use]
    pub fn has_entries(&self) -> bool {
        self.parts.values().any(|part| part.is_authority && (part.records || !part.ring.is_plain()))
    }

    /// The part of a backend, if it belongs to any.
    #[must_use]
    pub fn part_of(&self, backend: u32) -> Option<(u32, &Member)> {
        let id = self.backends.get(&backend)?.part;
        Some((id, self.parts.get(&id)?))
    }

    /// Id of the part of this name.
    pub(super) fn find(&self, service: &str, instance: &str) -> Option<(u32, &Member)> {
        let found = |part: &&Member| part.service == service && part.instance == instance;
        self.parts.iter().find(|(_, part)| found(part)).map(|(id, part)| (*id, part))
    }
}

/// Units of the entries' clock by which an entry may be newer than its copy. The copy is dated that much ahead, which the clock
/// of entries allows for.
pub(super) fn refresh_units(idle: Duration) -> u16 {
    const MOST: u128 = 50;
    (idle.as_nanos() / 4 / u128::from(FlowEntry::UNIT_NS)).clamp(1, MOST) as u16
}
