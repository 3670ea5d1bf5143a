//! The configuration with the changes laid over it. Pure.

use super::changes::{BackendChanges, Change, ChangeKind, Membership, RuntimeChanges};
use crate::{
    maglev,
    model::{
        Admin, BackendName, BackendSpec, MAX_BACKENDS, Misfit, ServerId, ServiceName, ServiceSpec,
        not_for_backend,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effective {
    /// In the order of the configuration.
    pub services: Vec<EffectiveService>,
    /// Changes that have no effect at present; they are kept.
    pub stale: Vec<StaleChange>,
}

/// A service in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveService {
    /// With the backends in force, and the ring size that was kept where the configuration has none.
    pub spec: ServiceSpec,
    /// In the order of `spec.backends`: the configuration's, then the added ones by name.
    pub backends: Vec<EffectiveBackend>,
    /// Backends of the configuration that were removed at run time.
    pub removed: Vec<BackendName>,
}

impl EffectiveService {
    /// Slots of its ring, a prime.
    #[must_use]
    pub fn ring_size(&self) -> u32 {
        self.spec.ring_size.unwrap_or_else(|| maglev::default_size(self.backends.len()))
    }
}

/// A backend in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveBackend {
    pub spec: BackendSpec,
    pub admin: Admin,
    /// Where the backend itself comes from.
    pub origin: Origin,
    pub weight_origin: Origin,
    /// [`Origin::File`] as long as it is enabled by nobody's doing.
    pub admin_origin: Origin,
}

/// Where a backend or one of its settings comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    File,
    Runtime,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::File => "file",
            Self::Runtime => "runtime",
        })
    }
}

/// A change without effect, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleChange {
    pub change: Change,
    pub reason: StaleReason,
}

/// Why a change has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StaleReason {
    #[error("the configuration no longer has the service")]
    ServiceGone,
    #[error("the configuration no longer has the backend")]
    BackendGone,
    #[error("the backend was removed at run time")]
    BackendRemoved,
    #[error("the configuration now has a backend of this name, with address {address}")]
    InFile { address: IpAddr },
    #[error("backend '{by}' has address {address} now")]
    AddressTaken { address: IpAddr, by: BackendName },
    #[error("{address} is an address of the service now")]
    AddressOfService { address: IpAddr },
    #[error("backend '{by}' has the server id {id} that {address} makes")]
    ServerIdTaken { address: IpAddr, id: ServerId, by: BackendName },
    #[error("{address} is {why}")]
    BadAddress { address: IpAddr, why: &'static str },
    #[error("{address} cannot serve the service any more: {why}")]
    Misfit { address: IpAddr, why: Misfit },
    #[error("the service has room for {room} backends only")]
    NoRoom { room: usize },
}

impl fmt::Display for StaleChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: without effect: {}", self.change, self.reason)
    }
}

impl Effective {
    /// A service by name.
    pub fn service(&self, name: &ServiceName) -> Option<&EffectiveService> {
        self.services.iter().find(|service| service.spec.name == *name)
    }

    /// Puts what [`apply_one`] made of the service at that place of the configuration into the place of what was there, which is
    /// returned.
    pub fn replace(
        &mut self,
        index: usize,
        service: EffectiveService,
        stale: Vec<StaleChange>,
    ) -> EffectiveService {
        let name = &service.spec.name;
        self.stale.retain(|stale| stale.change.service != *name);
        if !stale.is_empty() {
            // In the order of the configuration, as `apply` has them.
            let before: BTreeSet<&ServiceName> =
                self.services[..index].iter().map(|service| &service.spec.name).collect();
            let at = self.stale.partition_point(|stale| before.contains(&stale.change.service));
            self.stale.splice(at..at, stale);
        }
        std::mem::replace(&mut self.services[index], service)
    }
}

impl EffectiveService {
    /// A backend by name.
    pub fn backend(&self, name: &BackendName) -> Option<&EffectiveBackend> {
        self.backends.iter().find(|backend| backend.spec.name == *name)
    }
}

/// Lays the changes over the services of the configuration.
pub fn apply(services: &[ServiceSpec], changes: &RuntimeChanges) -> Effective {
    let mut effective = Effective::default();
    for file in services {
        let (service, mut stale) = apply_one(file, changes);
        effective.services.push(service);
        effective.stale.append(&mut stale);
    }
    let names: BTreeSet<&ServiceName> = services.iter().map(|service| &service.name).collect();
    for (name, backends) in changes.services.iter().filter(|(name, _)| !names.contains(name)) {
        for (backend, changes) in backends {
            let gone = changes.list(name, backend).into_iter();
            let gone = gone.map(|change| StaleChange { change, reason: StaleReason::ServiceGone });
            effective.stale.extend(gone);
        }
    }
    effective
}

/// Lays the changes over one service: what is in force of it, and its changes without effect.
pub fn apply_one(file: &ServiceSpec, changes: &RuntimeChanges) -> (EffectiveService, Vec<StaleChange>) {
    let (mut stale, none) = (Vec::new(), BTreeMap::new());
    let of_service = changes.services.get(&file.name).unwrap_or(&none);
    let mut service = apply_to(file, of_service, changes.ring_size(&file.name), &mut stale);
    if let Some(patch) = changes.limits(&file.name) {
        service.spec.guard.limits = patch.over(service.spec.guard.limits);
    }
    (service, stale)
}

fn apply_to(
    file: &ServiceSpec,
    changes: &BTreeMap<BackendName, BackendChanges>,
    ring_size: Option<u32>,
    stale: &mut Vec<StaleChange>,
) -> EffectiveService {
    let spec = ServiceSpec { ring_size: file.ring_size.or(ring_size), ..file.clone() };
    let mut service = EffectiveService { spec, backends: Vec::new(), removed: Vec::new() };
    let mut note =
        |backend: &BackendName, changes: &BackendChanges, reason: &dyn Fn(&Change) -> Option<StaleReason>| {
            for change in changes.list(&file.name, backend) {
                if let Some(reason) = reason(&change) {
                    stale.push(StaleChange { change, reason });
                }
            }
        };
    for backend in &file.backends {
        let changed = changes.get(&backend.name);
        match changed.and_then(|c| c.membership.as_ref()).map(|m| &m.value) {
            Some(Membership::Removed) => {
                service.removed.push(backend.name.clone());
                if let Some(changed) = changed {
                    note(&backend.name, changed, &|change| {
                        (change.kind != ChangeKind::Removed).then_some(StaleReason::BackendRemoved)
                    });
                }
            }
            Some(Membership::Added { .. }) => {
                if let Some(changed) = changed {
                    note(&backend.name, changed, &|change| {
                        let added = matches!(change.kind, ChangeKind::Added { .. });
                        added.then_some(StaleReason::InFile { address: backend.address })
                    });
                }
                service.backends.push(overlay(backend.clone(), Origin::File, changed));
            }
            None => service.backends.push(overlay(backend.clone(), Origin::File, changed)),
        }
    }
    for (name, changed) in changes {
        if file.backends.iter().any(|backend| backend.name == *name) {
            continue;
        }
        let Some(Membership::Added { address, port, weight, backup }) =
            changed.membership.as_ref().map(|m| &m.value)
        else {
            note(name, changed, &|_| Some(StaleReason::BackendGone));
            continue;
        };
        match obstacle(&service, name, *address) {
            Some(obstacle) => {
                let reason = obstacle.stale(*address);
                note(name, changed, &|_| Some(reason.clone()));
            }
            None => {
                // Where the service keeps ports now, the backend has the service's.
                let port = port.filter(|_| service.spec.forward.rewrites());
                let (address, weight, backup) = (*address, *weight, *backup);
                let spec = BackendSpec { name: name.clone(), address, port, weight, backup };
                service.backends.push(overlay(spec, Origin::Runtime, Some(changed)));
            }
        }
    }
    service.spec.backends = service.backends.iter().map(|backend| backend.spec.clone()).collect();
    service
}

/// Why a backend with some address cannot join a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    BadAddress(&'static str),
    AddressOfService,
    AddressTaken(BackendName),
    ServerIdTaken(ServerId, BackendName),
    NoRoom(usize),
    Misfit(Misfit),
}

/// What keeps a backend with that name and address from joining the service, if anything does.
pub(super) fn obstacle(service: &EffectiveService, name: &BackendName, address: IpAddr) -> Option<Obstacle> {
    if let Some(why) = not_for_backend(address) {
        return Some(Obstacle::BadAddress(why));
    }
    if service.spec.addresses.contains(&address) {
        return Some(Obstacle::AddressOfService);
    }
    if let Some(other) = service.backends.iter().find(|backend| backend.spec.address == address) {
        return Some(Obstacle::AddressTaken(other.spec.name.clone()));
    }
    if let Some(quic) = &service.spec.quic {
        let own = quic.server_id(&BackendSpec {
            name: name.clone(),
            address,
            port: None,
            weight: 0,
            backup: false,
        });
        if let Some(other) = service.backends.iter().find(|backend| quic.server_id(&backend.spec) == own) {
            return Some(Obstacle::ServerIdTaken(own, other.spec.name.clone()));
        }
    }
    if let Some(why) = service.spec.misfit(address) {
        return Some(Obstacle::Misfit(why));
    }
    // A ring has at least a slot for each.
    let room = service.spec.ring_size.map_or(MAX_BACKENDS, |size| MAX_BACKENDS.min(size as usize));
    (service.backends.len() >= room).then_some(Obstacle::NoRoom(room))
}

impl Obstacle {
    fn stale(self, address: IpAddr) -> StaleReason {
        match self {
            Self::BadAddress(why) => StaleReason::BadAddress { address, why },
            Self::AddressOfService => StaleReason::AddressOfService { address },
            Self::AddressTaken(by) => StaleReason::AddressTaken { address, by },
            Self::ServerIdTaken(id, by) => StaleReason::ServerIdTaken { address, id, by },
            Self::NoRoom(room) => StaleReason::NoRoom { room },
            Self::Misfit(why) => StaleReason::Misfit { address, why },
        }
    }
}

fn overlay(mut spec: BackendSpec, origin: Origin, changes: Option<&BackendChanges>) -> EffectiveBackend {
    let weight = changes.and_then(|c| c.weight.as_ref());
    let admin = changes.and_then(|c| c.admin.as_ref());
    if let Some(weight) = weight {
        spec.weight = weight.value;
    }
    EffectiveBackend {
        spec,
        admin: admin.map_or(Admin::default(), |admin| admin.value),
        origin,
        weight_origin: if weight.is_some() { Origin::Runtime } else { origin },
        admin_origin: if admin.is_some() { Origin::Runtime } else { Origin::File },
    }
}
