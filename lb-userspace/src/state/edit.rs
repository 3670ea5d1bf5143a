//! What an operator can do, checked against the configuration. Pure: a refused change leaves no trace.

use super::{
    apply::{EffectiveService, Obstacle, Origin, apply_one, obstacle},
    changes::{BackendChanges, Change, Membership, RuntimeChanges, Stamp, Stamped},
    gradual::Gradual,
};
use crate::model::{
    Admin, BackendName, DEFAULT_WEIGHT, Forward, LimitError, Misfit, PortSpec, ServerId, ServiceName,
    ServiceSpec, Verdict,
};
use ipnet::IpNet;
use lb_common::abi::PREFIX_CAPACITY;
use std::{fmt, net::IpAddr};

/// A backend to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackend {
    pub name: BackendName,
    pub address: IpAddr,
    /// May repeat the service's port; another one needs a forwarding mode that changes ports.
    pub port: Option<u16>,
    /// 100 by default; of a backend that the configuration has and that comes back, what it says there.
    pub weight: Option<u16>,
    /// It takes new flows only while the others are no quorum; of a backend that the configuration has, what it says there.
    pub backup: bool,
}

/// Why a change is refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("no service '{service}'; {}", Known(known))]
    UnknownService { service: ServiceName, known: Vec<String> },
    #[error("service '{service}' has no backend '{backend}'; {}", Known(known))]
    UnknownBackend { service: ServiceName, backend: BackendName, known: Vec<String> },
    #[error("service '{service}' has a backend '{backend}' already, with address {address}; remove it first")]
    BackendExists { service: ServiceName, backend: BackendName, address: IpAddr },
    #[error(
        "backend '{backend}' of service '{service}' has address {configured} in the configuration; add it with that address, or choose another name"
    )]
    OtherAddress { service: ServiceName, backend: BackendName, configured: IpAddr },
    #[error(
        "backend '{backend}' of service '{service}' is no backup in the configuration; add it without --backup, or choose another name"
    )]
    NoBackup { service: ServiceName, backend: BackendName },
    #[error(
        "backend '{by}' of service '{service}' has address {address} already; give it more weight instead"
    )]
    AddressTaken { service: ServiceName, address: IpAddr, by: BackendName },
    #[error(
        "{address} is an address of service '{service}', which backends have on their loopback only; give the backend's own address"
    )]
    AddressOfService { service: ServiceName, address: IpAddr },
    #[error(
        "backend '{by}' of service '{service}' has the server id {id} that {address} makes; give the new one a server_id in the configuration"
    )]
    ServerIdTaken { service: ServiceName, address: IpAddr, id: ServerId, by: BackendName },
    #[error("{address} is {why}; give a unicast address of the backend")]
    BadAddress { address: IpAddr, why: &'static str },
    #[error(
        "port {port} differs from port {of_service} of service '{service}', and forward = \"{forward}\" does not change ports, only \"nat\" and \"snat\" do; leave it out"
    )]
    OtherPort { service: ServiceName, port: u16, of_service: PortSpec, forward: Forward },
    #[error("{address} cannot serve service '{service}': {why}")]
    Misfit { service: ServiceName, address: IpAddr, why: Misfit },
    #[error("service '{service}' has room for {room} backends; remove one first, or give it a larger ring")]
    NoRoom { service: ServiceName, room: usize },
    #[error("{prefix} is on the {list} list; remove it there first (lbctl {list} remove {prefix})")]
    OnOtherList { prefix: IpNet, list: Verdict },
    #[error("{prefix} is not on the {list} list; see `lbctl {list} list`")]
    NotListed { prefix: IpNet, list: Verdict },
    #[error("that would make {found} prefixes of one IP version, and the tables hold {PREFIX_CAPACITY}")]
    ListFull { found: usize },
    #[error("{0}")]
    Limit(#[from] LimitError),
    #[error("service '{service}' is UDP, which has no connections: limit its packets")]
    NoConnections { service: ServiceName },
}

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeErrorKind {
    /// It names something that does not exist.
    NotFound,
    /// It can never be done like that.
    Invalid,
    /// It contradicts the present state.
    Conflict,
}

/// "there are: a, b".
struct Known<'a>(&'a [String]);

impl fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        match self.0 {
            [] => f.write_str("there is none"),
            [one] => write!(f, "there is: {one}"),
            some if some.len() <= SHOWN => write!(f, "there are: {}", some.join(", ")),
            many => write!(f, "there are: {} and {} more", many[..SHOWN].join(", "), many.len() - SHOWN),
        }
    }
}

impl ChangeError {
    pub(super) fn unknown_service(file: &[ServiceSpec], service: &ServiceName) -> Self {
        let known = file.iter().map(|spec| spec.name.to_string()).collect();
        Self::UnknownService { service: service.clone(), known }
    }

    /// What kind of refusal it is.
    pub fn kind(&self) -> ChangeErrorKind {
        match self {
            Self::UnknownService { .. } | Self::UnknownBackend { .. } | Self::NotListed { .. } => {
                ChangeErrorKind::NotFound
            }
            Self::BackendExists { .. }
            | Self::OtherAddress { .. }
            | Self::NoBackup { .. }
            | Self::AddressTaken { .. }
            | Self::OnOtherList { .. }
            | Self::ListFull { .. }
            | Self::ServerIdTaken { .. }
            | Self::NoRoom { .. } => ChangeErrorKind::Conflict,
            Self::AddressOfService { .. }
            | Self::BadAddress { .. }
            | Self::Misfit { .. }
            | Self::OtherPort { .. }
            | Self::Limit(_)
            | Self::NoConnections { .. } => ChangeErrorKind::Invalid,
        }
    }
}

/// A service in force, with the changes so far.
fn service_of(
    file: &[ServiceSpec],
    changes: &RuntimeChanges,
    name: &ServiceName,
) -> Result<EffectiveService, ChangeError> {
    let Some(spec) = file.iter().find(|spec| spec.name == *name) else {
        return Err(ChangeError::unknown_service(file, name));
    };
    Ok(apply_one(spec, changes).0)
}

fn unknown(service: &EffectiveService, backend: &BackendName) -> ChangeError {
    let known = service.backends.iter().map(|b| b.spec.name.to_string()).collect();
    ChangeError::UnknownBackend { service: service.spec.name.clone(), backend: backend.clone(), known }
}

impl RuntimeChanges {
    /// Adds a backend, or brings one back that the configuration has and that was removed.
    pub fn add_backend(
        &mut self,
        file: &[ServiceSpec],
        service: &ServiceName,
        backend: NewBackend,
        stamp: Stamp,
    ) -> Result<(), ChangeError> {
        let now = service_of(file, self, service)?;
        let NewBackend { name, address, port, weight, backup } = backend;
        let of_service = now.spec.port;
        let forward = now.spec.forward;
        let port = port.filter(|port| of_service.single() != Some(*port));
        if let Some(port) = port.filter(|_| !forward.rewrites()) {
            return Err(ChangeError::OtherPort { service: service.clone(), port, of_service, forward });
        }
        if let Some(present) = now.backend(&name) {
            let address = present.spec.address;
            return Err(ChangeError::BackendExists { service: service.clone(), backend: name, address });
        }
        let configured = file
            .iter()
            .find(|spec| spec.name == *service)
            .and_then(|spec| spec.backends.iter().find(|b| b.name == name));
        if let Some(configured) = configured.map(|b| b.address).filter(|configured| *configured != address) {
            return Err(ChangeError::OtherAddress { service: service.clone(), backend: name, configured });
        }
        if backup && configured.is_some_and(|configured| !configured.backup) {
            return Err(ChangeError::NoBackup { service: service.clone(), backend: name });
        }
        let service = service.clone();
        if let Some(obstacle) = obstacle(&now, &name, address) {
            return Err(match obstacle {
                Obstacle::BadAddress(why) => ChangeError::BadAddress { address, why },
                Obstacle::AddressOfService => ChangeError::AddressOfService { service, address },
                Obstacle::AddressTaken(by) => ChangeError::AddressTaken { service, address, by },
                Obstacle::ServerIdTaken(id, by) => ChangeError::ServerIdTaken { service, address, id, by },
                Obstacle::NoRoom(room) => ChangeError::NoRoom { service, room },
                Obstacle::Misfit(why) => ChangeError::Misfit { service, address, why },
            });
        }
        // Whatever was kept under this name had no effect; the new backend does not inherit it.
        let changes = match configured {
            Some(configured) => BackendChanges {
                weight: weight.filter(|w| *w != configured.weight).map(|value| Stamped { value, stamp }),
                ..BackendChanges::default()
            },
            None => {
                let weight = weight.unwrap_or(DEFAULT_WEIGHT);
                let value = Membership::Added { address, port, weight, backup };
                BackendChanges { membership: Some(Stamped { value, stamp }), ..BackendChanges::default() }
            }
        };
        self.set(&service, &name, changes);
        Ok(())
    }

    /// Removes a backend: one that was added is forgotten, one of the configuration is marked. What is
    /// kept of a backend without having an effect is forgotten too.
    pub fn remove_backend(
        &mut self,
        file: &[ServiceSpec],
        service: &ServiceName,
        backend: &BackendName,
        stamp: Stamp,
    ) -> Result<(), ChangeError> {
        let now = service_of(file, self, service)?;
        let kept = self.services.get(service).is_some_and(|backends| backends.contains_key(backend));
        let membership = match now.backend(backend).map(|present| present.origin) {
            Some(Origin::File) => Some(Stamped { value: Membership::Removed, stamp }),
            Some(Origin::Runtime) => None,
            None if kept && !now.removed.contains(backend) => None,
            None => return Err(unknown(&now, backend)),
        };
        self.set(service, backend, BackendChanges { membership, ..BackendChanges::default() });
        Ok(())
    }

    /// Sets the weight of a backend. False if it has that weight by an earlier change already.
    pub fn set_weight(
        &mut self,
        file: &[ServiceSpec],
        service: &ServiceName,
        backend: &BackendName,
        weight: u16,
        stamp: Stamp,
    ) -> Result<bool, ChangeError> {
        let mut changes = self.present(file, service, backend)?;
        if changes.weight.as_ref().is_some_and(|set| set.value == weight) {
            return Ok(false);
        }
        changes.weight = Some(Stamped { value: weight, stamp });
        self.set(service, backend, changes);
        Ok(true)
    }

    /// Drains, disables or enables a backend. False if it is in that state already.
    pub fn set_admin(
        &mut self,
        file: &[ServiceSpec],
        service: &ServiceName,
        backend: &BackendName,
        admin: Admin,
        stamp: Stamp,
    ) -> Result<bool, ChangeError> {
        let mut changes = self.present(file, service, backend)?;
        if changes.admin.as_ref().map_or(Admin::default(), |set| set.value) == admin {
            return Ok(false);
        }
        // Enabled is what a backend is by itself.
        changes.admin = (admin != Admin::default()).then_some(Stamped { value: admin, stamp });
        self.set(service, backend, changes);
        Ok(true)
    }

    /// Drops every change and returns those of backends; ring sizes stay.
    pub fn reset(&mut self) -> Vec<Change> {
        let dropped = self.list();
        self.services.clear();
        self.lists = std::sync::Arc::default();
        self.limits.clear();
        self.gradual = Gradual::default();
        dropped
    }

    /// The changes of a backend that is in force.
    fn present(
        &self,
        file: &[ServiceSpec],
        service: &ServiceName,
        backend: &BackendName,
    ) -> Result<BackendChanges, ChangeError> {
        let now = service_of(file, self, service)?;
        now.backend(backend).ok_or_else(|| unknown(&now, backend))?;
        let changes = self.services.get(service).and_then(|backends| backends.get(backend));
        Ok(changes.cloned().unwrap_or_default())
    }

    pub(super) fn set(&mut self, service: &ServiceName, backend: &BackendName, changes: BackendChanges) {
        let backends = self.services.entry(service.clone()).or_default();
        if changes.is_empty() {
            backends.remove(backend);
        } else {
            backends.insert(backend.clone(), changes);
        }
        if backends.is_empty() {
            self.services.remove(service);
        }
    }
}
