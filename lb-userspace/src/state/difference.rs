//! What differs between two states in force, backend by backend. Pure.

use super::{
    apply::{EffectiveService, apply},
    changes::RuntimeChanges,
};
use crate::model::{Admin, BackendName, ServiceName, ServiceSpec};
use std::collections::BTreeMap;

/// One thing that differs of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub service: ServiceName,
    pub backend: BackendName,
    pub kind: DifferenceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    Added,
    Removed,
    Weight(u16, u16),
    Admin(Admin, Admin),
}

/// What is otherwise in `after`, by service and backend.
pub fn differences(before: &[EffectiveService], after: &[EffectiveService]) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut old: BTreeMap<_, _> = before.iter().map(|service| (&service.spec.name, service)).collect();
    for new in after {
        let name = &new.spec.name;
        let mut note = |backend: &BackendName, kind| {
            found.push(Difference { service: name.clone(), backend: backend.clone(), kind });
        };
        let old = old.remove(name).map_or(&[][..], |old| &old.backends);
        let mut gone: BTreeMap<_, _> = old.iter().map(|backend| (&backend.spec.name, backend)).collect();
        for backend in &new.backends {
            let name = &backend.spec.name;
            let Some(old) = gone.remove(name) else {
                note(name, DifferenceKind::Added);
                continue;
            };
            if old.admin != backend.admin {
                note(name, DifferenceKind::Admin(old.admin, backend.admin));
            }
            if old.spec.weight != backend.spec.weight {
                note(name, DifferenceKind::Weight(old.spec.weight, backend.spec.weight));
            }
        }
        gone.keys().for_each(|name| note(name, DifferenceKind::Removed));
    }
    for (service, gone) in old {
        found.extend(gone.backends.iter().map(|backend| Difference {
            service: service.clone(),
            backend: backend.spec.name.clone(),
            kind: DifferenceKind::Removed,
        }));
    }
    found
}

/// What runtime changes alone make otherwise; costs as much as the services that they touch.
pub fn differences_of(
    file: &[ServiceSpec],
    before: &RuntimeChanges,
    after: &RuntimeChanges,
) -> Vec<Difference> {
    let touched =
        |service: &&ServiceSpec| before.services.get(&service.name) != after.services.get(&service.name);
    let touched: Vec<ServiceSpec> = file.iter().filter(touched).cloned().collect();
    differences(&apply(&touched, before).services, &apply(&touched, after).services)
}
