//! The changes themselves and their form on disk.

use super::{
    firewall::{ListChanges, shared},
    gradual::Gradual,
};
use crate::model::{Admin, BackendName, LimitPatch, ServiceName, is_ring_size};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// When a change was made and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Seconds since 1970 (UTC).
    pub at: u64,
    /// E.g. `uid 0`.
    pub by: String,
}

/// All that was changed at run time, by service and backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeChanges {
    /// Counts the changes that were made, undone ones included: it never goes back.
    #[serde(default)]
    revision: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) services: BTreeMap<ServiceName, BTreeMap<BackendName, BackendChanges>>,
    /// Shared, since there is one for each service and they hardly ever change.
    #[serde(default, with = "shared_rings", skip_serializing_if = "shared_rings::is_empty")]
    rings: Arc<BTreeMap<ServiceName, u32>>,
    #[serde(default, with = "shared", skip_serializing_if = "shared::is_empty")]
    pub(super) lists: Arc<ListChanges>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) limits: BTreeMap<ServiceName, Stamped<LimitPatch>>,
    #[serde(default, skip_serializing_if = "Gradual::is_empty")]
    pub(super) gradual: Gradual,
}

mod shared_rings {
    use super::{Arc, BTreeMap, Deserialize, Serialize, ServiceName};

    type Rings = Arc<BTreeMap<ServiceName, u32>>;

    pub fn serialize<S: serde::Serializer>(rings: &Rings, to: S) -> Result<S::Ok, S::Error> {
        rings.as_ref().serialize(to)
    }

    pub fn deserialize<'d, D: serde::Deserializer<'d>>(from: D) -> Result<Rings, D::Error> {
        BTreeMap::deserialize(from).map(Arc::new)
    }

    pub fn is_empty(rings: &Rings) -> bool {
        rings.is_empty()
    }
}

/// What was changed of one backend; at least one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendChanges {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) membership: Option<Stamped<Membership>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) weight: Option<Stamped<u16>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) admin: Option<Stamped<Admin>>,
}

/// A value with its stamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamped<T> {
    pub(super) value: T,
    #[serde(flatten)]
    pub(super) stamp: Stamp,
}

/// Whether a backend is there at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Membership {
    /// One the configuration does not have.
    Added {
        address: IpAddr,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        weight: u16,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        backup: bool,
    },
    /// One it has is gone.
    Removed,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub service: ServiceName,
    pub backend: BackendName,
    pub kind: ChangeKind,
    pub stamp: Stamp,
}

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added { address: IpAddr, weight: u16 },
    Removed,
    Weight(u16),
    Admin(Admin),
}

impl BackendChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.membership.is_none() && self.weight.is_none() && self.admin.is_none()
    }

    /// The changes one by one, membership first.
    pub(super) fn list(&self, service: &ServiceName, backend: &BackendName) -> Vec<Change> {
        let change = |kind, stamp: &Stamp| Change {
            service: service.clone(),
            backend: backend.clone(),
            kind,
            stamp: stamp.clone(),
        };
        let membership = self.membership.as_ref().map(|m| {
            let kind = match m.value {
                Membership::Added { address, weight, .. } => ChangeKind::Added { address, weight },
                Membership::Removed => ChangeKind::Removed,
            };
            change(kind, &m.stamp)
        });
        let weight = self.weight.as_ref().map(|w| change(ChangeKind::Weight(w.value), &w.stamp));
        let admin = self.admin.as_ref().map(|a| change(ChangeKind::Admin(a.value), &a.stamp));
        [membership, weight, admin].into_iter().flatten().collect()
    }
}

impl RuntimeChanges {
    /// Changes made so far. Two states of one revision are the same, ring sizes aside.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// One change more was made.
    pub fn advance(&mut self) {
        self.revision += 1;
    }

    /// Without changes, for a successor of a state that is lost, whose revision nobody knows.
    pub(super) fn after_loss(revision: u64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// Every change of a backend, by service and backend.
    pub fn list(&self) -> Vec<Change> {
        let backends = self.services.iter().flat_map(|(s, backends)| backends.iter().map(move |b| (s, b)));
        backends.flat_map(|(service, (backend, changes))| changes.list(service, backend)).collect()
    }

    /// True if nothing was changed; ring sizes are no change.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How many changes there are: of backends, of prefixes, and of the limits of a service each.
    pub fn count(&self) -> usize {
        self.list().len() + self.lists.count() + self.limits.len()
    }

    /// The services whose backends or limits differ between the two; `None` if anything else does that services depend on.
    pub fn differing(&self, other: &Self) -> Option<BTreeSet<ServiceName>> {
        // The lists are no service's.
        let Self { services, rings, lists: _, limits, gradual, revision: _ } = self;
        let mut names = BTreeSet::new();
        differing(services, &other.services, &mut names);
        differing(limits, &other.limits, &mut names);
        (*rings == other.rings && *gradual == other.gradual).then_some(names)
    }

    /// The ring size a service was first given.
    pub fn ring_size(&self, service: &ServiceName) -> Option<u32> {
        self.rings.get(service).copied()
    }

    /// Keeps the ring size of a service. False if it is no ring size (a prime from 3 to 65,537) and
    /// nothing was kept.
    #[must_use]
    pub fn set_ring_size(&mut self, service: &ServiceName, size: u32) -> bool {
        let valid = is_ring_size(size);
        if valid {
            Arc::make_mut(&mut self.rings).insert(service.clone(), size);
        }
        valid
    }

    /// What a file read from disk breaks, if anything.
    pub(super) fn invalid(&self) -> Option<String> {
        if let Some((service, error)) =
            self.limits.iter().find_map(|(service, patch)| Some((service, patch.value.check().err()?)))
        {
            return Some(format!("the limits of service '{service}': {error}"));
        }
        let ring = self.rings.iter().find(|(_, size)| !is_ring_size(**size));
        ring.map(|(service, size)| format!("the ring of service '{service}' has {size} slots, not a prime"))
    }
}

/// Notes the names that one of the maps does not have, or has with another value.
fn differing<V: PartialEq>(
    one: &BTreeMap<ServiceName, V>,
    other: &BTreeMap<ServiceName, V>,
    names: &mut BTreeSet<ServiceName>,
) {
    let new = one.iter().filter(|(name, value)| other.get(*name) != Some(value));
    let gone = other.keys().filter(|name| !one.contains_key(*name));
    names.extend(new.map(|(name, _)| name).chain(gone).cloned());
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { address, weight } => write!(f, "added with address {address}, weight {weight}"),
            Self::Removed => f.write_str("removed"),
            Self::Weight(weight) => write!(f, "weight {weight}"),
            Self::Admin(admin) => write!(f, "{admin}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service '{}', backend '{}': {}", self.service, self.backend, self.kind)
    }
}
