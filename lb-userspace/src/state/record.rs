//! The changes in force one by one, for people; and dropping some of them. Pure.

use super::{
    changes::{ChangeKind, RuntimeChanges, Stamp},
    edit::ChangeError,
};
use crate::model::{BackendName, ServiceName, ServiceSpec};

/// One change in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Absent for the firewall's lists.
    pub service: Option<ServiceName>,
    /// Absent for the limits of a service.
    pub backend: Option<BackendName>,
    pub part: Part,
    /// E.g. `weight 50`.
    pub what: String,
    /// Absent for lists that an older version changed.
    pub stamp: Option<Stamp>,
}

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A backend was added.
    Added,
    /// A backend was removed.
    Removed,
    Weight,
    Admin,
    Limits,
    Lists,
}

impl RuntimeChanges {
    /// Every change: of backends, of limits, and of the lists as a whole.
    pub fn records(&self) -> Vec<Record> {
        let of_backends = self.list().into_iter().map(|change| Record {
            service: Some(change.service),
            backend: Some(change.backend),
            part: match change.kind {
                ChangeKind::Added { .. } => Part::Added,
                ChangeKind::Removed => Part::Removed,
                ChangeKind::Weight(_) => Part::Weight,
                ChangeKind::Admin(_) => Part::Admin,
            },
            what: change.kind.to_string(),
            stamp: Some(change.stamp),
        });
        let of_limits = self.limits.iter().map(|(service, patch)| {
            let rates = patch.value.rates().into_iter().filter_map(|(key, rate)| Some((key, rate?)));
            let burst = patch.value.burst_ms.map(|ms| format!("burst {ms} ms"));
            let set: Vec<_> = rates.map(|(key, rate)| format!("{key} {rate}")).chain(burst).collect();
            Record {
                service: Some(service.clone()),
                backend: None,
                part: Part::Limits,
                what: format!("limits: {}", set.join(", ")),
                stamp: Some(patch.stamp.clone()),
            }
        });
        let lists = [
            ("denied", &self.lists.denied),
            ("allowed", &self.lists.allowed),
            ("removed", &self.lists.removed),
        ];
        let lists = lists.into_iter().filter(|(_, prefixes)| !prefixes.is_empty());
        let of_lists = lists.map(|(list, prefixes)| Record {
            service: None,
            backend: None,
            part: Part::Lists,
            what: match prefixes.first().filter(|_| prefixes.len() == 1) {
                Some(one) => format!("firewall: {one} {list}"),
                None => format!("firewall: {} prefixes {list}", prefixes.len()),
            },
            stamp: self.lists.stamp.clone(),
        });
        of_backends.chain(of_limits).chain(of_lists).collect()
    }

    /// Drops the changes of one service, or of one of its backends; how many there were.
    pub fn reset_some(
        &mut self,
        file: &[ServiceSpec],
        service: &ServiceName,
        backend: Option<&BackendName>,
    ) -> Result<usize, ChangeError> {
        let before = self.count();
        let spec = file.iter().find(|spec| spec.name == *service);
        if spec.is_none() && !self.services.contains_key(service) && !self.limits.contains_key(service) {
            return Err(ChangeError::unknown_service(file, service));
        }
        let Some(backend) = backend else {
            self.services.remove(service);
            self.limits.remove(service);
            return Ok(before - self.count());
        };
        let changed = self.services.get_mut(service);
        let had = changed.is_some_and(|backends| backends.remove(backend).is_some());
        if self.services.get(service).is_some_and(std::collections::BTreeMap::is_empty) {
            self.services.remove(service);
        }
        let known = spec.map_or(&[][..], |spec| &spec.backends);
        if !had && !known.iter().any(|known| known.name == *backend) {
            return Err(ChangeError::UnknownBackend {
                service: service.clone(),
                backend: backend.clone(),
                known: known.iter().map(|known| known.name.to_string()).collect(),
            });
        }
        Ok(before - self.count())
    }
}
