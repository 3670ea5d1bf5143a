//! What changes by itself as time goes by: ramps of shares, and drains with an end. Pure.

use super::RuntimeChanges;
use crate::{
    model::{Admin, BackendName, ServiceName},
    ramp::Ramp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Kept beside the changes; none of it is a change of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gradual {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ramps: BTreeMap<ServiceName, BTreeMap<BackendName, Ramp>>,
    /// When a drain ends what is left, in milliseconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    drains: BTreeMap<ServiceName, BTreeMap<BackendName, u64>>,
}

impl Gradual {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

type Named<T> = BTreeMap<ServiceName, BTreeMap<BackendName, T>>;

fn set<T: PartialEq>(
    map: &mut Named<T>,
    service: &ServiceName,
    backend: &BackendName,
    value: Option<T>,
) -> bool {
    let of_service = map.entry(service.clone()).or_default();
    let changed = of_service.get(backend) != value.as_ref();
    match value {
        Some(value) => _ = of_service.insert(backend.clone(), value),
        None => _ = of_service.remove(backend),
    }
    if of_service.is_empty() {
        map.remove(service);
    }
    changed
}

fn get<T: Copy>(map: &Named<T>, service: &ServiceName, backend: &BackendName) -> Option<T> {
    map.get(service)?.get(backend).copied()
}

impl RuntimeChanges {
    /// The ramp of a backend, under way or over.
    #[must_use]
    pub fn ramp(&self, service: &ServiceName, backend: &BackendName) -> Option<Ramp> {
        get(&self.gradual.ramps, service, backend)
    }

    /// Begins a ramp, or ends one. True if that is a difference.
    pub fn set_ramp(&mut self, service: &ServiceName, backend: &BackendName, ramp: Option<Ramp>) -> bool {
        set(&mut self.gradual.ramps, service, backend, ramp)
    }

    /// True if a share is on its way, or has arrived and nobody has taken note yet.
    #[must_use]
    pub fn has_ramps(&self) -> bool {
        !self.gradual.ramps.is_empty()
    }

    /// Every ramp is over.
    pub fn end_ramps(&mut self) {
        self.gradual.ramps.clear();
    }

    /// Forgets the ramps that are over and those of backends that are gone. True if there were some.
    pub fn prune_ramps(
        &mut self,
        now_ms: u64,
        is_there: impl Fn(&ServiceName, &BackendName) -> bool,
    ) -> bool {
        let count = |ramps: &Named<Ramp>| ramps.values().map(BTreeMap::len).sum::<usize>();
        let before = count(&self.gradual.ramps);
        for (service, ramps) in &mut self.gradual.ramps {
            ramps.retain(|backend, ramp| ramp.progress(now_ms).is_some() && is_there(service, backend));
        }
        self.gradual.ramps.retain(|_, ramps| !ramps.is_empty());
        before != count(&self.gradual.ramps)
    }

    /// When the drain of a backend ends what is left, in milliseconds since 1970 (UTC).
    #[must_use]
    pub fn drain_end(&self, service: &ServiceName, backend: &BackendName) -> Option<u64> {
        get(&self.gradual.drains, service, backend)
    }

    /// Sets or clears that time. True if that is a difference.
    pub fn set_drain_end(
        &mut self,
        service: &ServiceName,
        backend: &BackendName,
        end_ms: Option<u64>,
    ) -> bool {
        set(&mut self.gradual.drains, service, backend, end_ms)
    }

    /// The drains whose time has come; those that somebody has ended otherwise are forgotten.
    pub fn due_drains(&self, now_ms: u64) -> Vec<(ServiceName, BackendName)> {
        let all = self.gradual.drains.iter().flat_map(|(s, of)| of.iter().map(move |(b, end)| (s, b, *end)));
        all.filter(|(.., end)| *end <= now_ms).map(|(s, b, _)| (s.clone(), b.clone())).collect()
    }

    /// The state that an operator gave a backend.
    #[must_use]
    pub fn admin(&self, service: &ServiceName, backend: &BackendName) -> Admin {
        let changes = self.services.get(service).and_then(|of| of.get(backend));
        changes.and_then(|c| c.admin.as_ref()).map_or(Admin::default(), |admin| admin.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ramp::Cause;

    #[test]
    fn ramps_and_drains_come_and_go_and_survive_the_disk() {
        let (service, backend): (ServiceName, BackendName) =
            ("www".parse().unwrap(), "web1".parse().unwrap());
        let mut changes = RuntimeChanges::default();
        let ramp = Ramp { from: 1 << 16, began_ms: 1_000, over_ms: 10_000, cause: Cause::SlowStart };
        assert!(changes.set_ramp(&service, &backend, Some(ramp)));
        assert!(!changes.set_ramp(&service, &backend, Some(ramp)));
        assert!(changes.set_drain_end(&service, &backend, Some(5_000)));
        assert_eq!(changes.count(), 0, "no changes of their own");
        let text = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<RuntimeChanges>(&text).unwrap(), changes);
        assert_eq!(changes.due_drains(4_999), []);
        assert_eq!(changes.due_drains(5_000), [(service.clone(), backend.clone())]);
        assert!(changes.set_drain_end(&service, &backend, None));
        assert!(!changes.prune_ramps(10_999, |_, _| true));
        assert!(changes.clone().prune_ramps(10_999, |_, _| false), "its backend is gone");
        assert!(changes.prune_ramps(11_000, |_, _| true));
        assert_eq!(changes, RuntimeChanges::default());
    }
}
