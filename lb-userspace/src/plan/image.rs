//! What the maps hold.

use super::{Followed, NatImage, Ring, ScheduleRecord};
use crate::model::Prefixes;
use ipnet::IpNet;
use lb_common::abi::{
    BackendEntry, CidKey, Identity, Limits, NAME_LEN, PortKey, PortRangeKey, SCHEDULE_CAPACITY, ServiceEntry,
    Slot, VipEntry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// The contents of all maps that the daemon writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    pub vips: BTreeMap<IpAddr, VipEntry>,
    pub ports: BTreeMap<PortKey, u32>,
    pub port_ranges: BTreeMap<PortRangeKey, u32>,
    pub services: BTreeMap<u32, ServiceRecord>,
    pub backends: BTreeMap<u32, BackendRecord>,
    /// Backends by the server id in QUIC connection IDs.
    pub cids: BTreeMap<CidKey, u32>,
    /// By service id: the words of its ring.
    pub rings: BTreeMap<u32, Ring>,
    /// The deny list with its exceptions. Shared, since it may be long and most changes leave it alone.
    pub denied: Arc<Prefixes>,
    /// The services' allow lists: service id and prefix.
    pub allowed: BTreeSet<(u32, IpNet)>,
    /// By service id.
    pub limits: BTreeMap<u32, Limits>,
    /// By service id: where new flows of scheduled services go.
    pub schedules: BTreeMap<u32, ScheduleRecord>,
    /// Base and size of places in the schedule array that were freed a moment ago: a program may still read there.
    pub resting: Vec<(u32, u32)>,
    /// Words the schedule array holds.
    pub schedule_capacity: u32,
    pub nat: NatImage,
    /// By service id: whose words are another node's. No rule of this node touches them.
    pub followed: BTreeMap<u32, Arc<Followed>>,
    /// Slots the ring array holds.
    pub ring_capacity: u32,
    /// Backends the backend array holds, id 0 included.
    pub backend_capacity: u32,
}

/// One service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRecord {
    pub entry: ServiceEntry,
    pub identity: Identity,
}

/// One backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendRecord {
    pub entry: BackendEntry,
    pub identity: Identity,
}

impl Image {
    /// An image without entries, of empty maps with these capacities.
    #[must_use]
    pub fn empty(ring_capacity: u32, backend_capacity: u32) -> Self {
        Self { ring_capacity, backend_capacity, schedule_capacity: SCHEDULE_CAPACITY, ..Self::default() }
    }

    /// Id of the service of this name; of one with several parts, the lowest.
    #[must_use]
    pub fn service_id(&self, name: &str) -> Option<u32> {
        self.services.iter().find(|(_, s)| name_of(&s.identity) == name).map(|(id, _)| *id)
    }

    /// Ids of the service of this name, one of each of its parts.
    #[must_use]
    pub fn service_ids(&self, name: &str) -> Vec<u32> {
        self.services.iter().filter(|(_, s)| name_of(&s.identity) == name).map(|(id, _)| *id).collect()
    }
}

/// An identity for the maps.
#[must_use]
pub fn identity(name: &str, port: u16, weight: u16) -> Identity {
    let mut bytes = [0; NAME_LEN];
    let len = name.len().min(NAME_LEN - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    Identity { name: bytes, port: port.into(), weight: weight.into() }
}

/// The name in an identity; what is not UTF-8 (somebody else wrote the map) is nobody's name.
#[must_use]
pub fn name_of(identity: &Identity) -> &str {
    let end = identity.name.iter().position(|b| *b == 0).unwrap_or(NAME_LEN);
    std::str::from_utf8(&identity.name[..end]).unwrap_or("")
}

impl Image {
    /// Carries out an action in memory, as the kernel's maps would.
    pub fn apply(&mut self, action: &super::Action) {
        use super::Action;
        fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match action {
            Action::Backend { id, new, .. } => set(&mut self.backends, *id, *new),
            Action::Schedule { id, new, .. } => set(&mut self.schedules, *id, new.clone()),
            Action::Service { id, new, .. } => {
                set(&mut self.services, *id, *new);
                match new {
                    Some(record) => {
                        let size = record.entry.ring_size as usize;
                        let ring = self.rings.entry(*id).or_default();
                        if ring.len() != size {
                            ring.update(|words| words.resize(size, Slot::default()));
                        }
                    }
                    None => {
                        self.rings.remove(id);
                    }
                }
            }
            // The words of a service that is not there yet (or no longer) count once its entry is.
            Action::Slots { service, words } => {
                let base = self.services.get(service).map(|s| s.entry.ring_base);
                let base = base.or_else(|| words.first().map(|(index, ..)| *index)).unwrap_or(0);
                let known = self.services.contains_key(service);
                let cleared = words.iter().all(|(_, _, new)| *new == Slot::default());
                if !known && cleared {
                    return;
                }
                self.rings.entry(*service).or_default().update(|ring| {
                    for (index, _, new) in words {
                        let at = (index - base) as usize;
                        if ring.len() <= at {
                            ring.resize(at + 1, Slot::default());
                        }
                        ring[at] = *new;
                    }
                });
            }
            Action::Ring { service, new, .. } => set(&mut self.rings, *service, new.clone()),
            Action::Port { key, new, .. } => set(&mut self.ports, *key, *new),
            Action::PortRange { key, new, .. } => set(&mut self.port_ranges, *key, *new),
            Action::Cid { key, new, .. } => set(&mut self.cids, *key, *new),
            Action::Vip { address, new, .. } => set(&mut self.vips, *address, *new),
            Action::List(action) => action.apply(self),
            Action::Nat(change) => self.nat.apply(change),
        }
    }
}
