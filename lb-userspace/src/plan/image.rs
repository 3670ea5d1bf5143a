//! What the maps hold.

use lb_common::abi::{BackendEntry, Identity, NAME_LEN, PortKey, PortRangeKey, ServiceEntry, Slot, VipEntry};
use std::{collections::BTreeMap, net::IpAddr};

/// The contents of all maps that the daemon writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    pub vips: BTreeMap<IpAddr, VipEntry>,
    pub ports: BTreeMap<PortKey, u32>,
    pub port_ranges: BTreeMap<PortRangeKey, u32>,
    pub services: BTreeMap<u32, ServiceRecord>,
    pub backends: BTreeMap<u32, BackendRecord>,
    /// By service id: the words of its ring.
    pub rings: BTreeMap<u32, Vec<Slot>>,
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
        Self { ring_capacity, backend_capacity, ..Self::default() }
    }

    /// Id of the service of this name.
    #[must_use]
    pub fn service_id(&self, name: &str) -> Option<u32> {
        self.services.iter().find(|(_, s)| name_of(&s.identity) == name).map(|(id, _)| *id)
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
