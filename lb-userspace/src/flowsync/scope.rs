//! What this node has of the parts that other nodes have, too.

use super::{Claim, Copies, Key, Table, Value, Whose};
use crate::plan::Ring;
use lb_common::abi::FlowEntry;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// The parts and their backends, by their ids in the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    pub parts: BTreeMap<u32, Member>,
    pub backends: BTreeMap<u32, Peer>,
    /// Whose words it has of the parts without an instance.
    pub claim: Claim,
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub service: String,
    /// Name of the VRRP instance. Empty: all nodes of a fleet forward its flows at the same time, so that each tells of its own.
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

impl Member {
    /// All nodes of a fleet forward its flows.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.instance.is_empty()
    }

    /// This node tells of its flows.
    pub(super) fn tells(&self) -> bool {
        self.is_authority || self.is_shared()
    }
}

impl Scope {
    /// True for an entry of a flow that this node tells of, and that names a backend which lives.
    pub(super) fn owns(&self, entry: FlowEntry) -> bool {
        self.backends.get(&entry.backend()).is_some_and(|backend| {
            !backend.is_dead
                && backend.incarnation == entry.incarnation()
                && self.parts.get(&backend.part).is_some_and(Member::tells)
        })
    }

    /// True if there may be entries that this node tells of.
    #[must_use]
    pub fn has_entries(&self) -> bool {
        self.parts.values().any(|part| part.tells() && (part.records || !part.ring.is_plain()))
    }

    /// True if the backend that an entry names takes packets, and lives the life it had then.
    #[must_use]
    pub fn is_alive(&self, entry: FlowEntry) -> bool {
        let backend = self.backends.get(&entry.backend());
        backend.is_some_and(|backend| !backend.is_dead && backend.incarnation == entry.incarnation())
    }

    /// Who tells of an entry.
    pub fn whose(&self, key: &Key, value: &Value, copies: &mut Copies) -> Whose {
        if !self.part_of(value.entry.backend()).is_some_and(|(_, part)| part.is_shared()) {
            return Whose::Own(0);
        }
        if matches!(key.table, Table::SessionsOut | Table::SessionsBack) {
            return Whose::Private;
        }
        copies.meets(key, value)
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
