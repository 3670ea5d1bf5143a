//! The image after a change of a few services, by looking at these alone: what [`build`](super::build) would make of all of them.
//!
//! A service's ring, schedule and backends depend on the service and on what is observed of it. What services share is
//! left as it is: their ids, the places of rings, virtual addresses and ports, the addresses that NAT answers for. A change that
//! touches any of these is not a part's: [`Part::build`] says so, and the caller builds everything.

use super::{
    Action, BuildError, Image, TunnelSettings, WantedBackend, WantedService,
    build::{KnownIds, build_from},
    diff, install, name_of,
};
use crate::{maglev, model::Prefixes};
use lb_common::abi::ServiceEntry;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Some services as they are and as they should be.
#[derive(Debug, Clone)]
pub struct Part {
    pub before: Image,
    pub after: Image,
}

/// Where an image has what: services by name, backends by service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// By name: part and id.
    services: HashMap<String, Vec<(u32, u32)>>,
    backends: HashMap<u32, BTreeSet<u32>>,
}

impl Index {
    /// Of a whole image.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let mut services: HashMap<String, Vec<(u32, u32)>> = HashMap::with_capacity(image.services.len());
        for (id, record) in &image.services {
            let part = (record.identity.port, *id);
            services.entry(name_of(&record.identity).to_owned()).or_default().push(part);
        }
        let mut index = Self { services, backends: HashMap::with_capacity(image.services.len()) };
        for (id, record) in &image.backends {
            index.backends.entry(record.entry.service).or_default().insert(*id);
        }
        index
    }

    /// The service of a name: one of each part.
    pub fn services(&self, name: &str) -> impl Iterator<Item = u32> {
        self.services.get(name).into_iter().flatten().map(|(_, id)| *id)
    }

    fn part(&self, name: &str, part: u32) -> Option<u32> {
        self.services.get(name)?.iter().find(|(number, _)| *number == part).map(|(_, id)| *id)
    }

    /// The backends of a service.
    pub fn backends(&self, service: u32) -> impl Iterator<Item = u32> {
        self.backends.get(&service).into_iter().flatten().copied()
    }

    /// Takes note of an action of a part.
    pub fn apply(&mut self, action: &Action) {
        if let Action::Backend { id, old, new } = action {
            if let Some(old) = old {
                self.backends.entry(old.entry.service).or_default().remove(id);
            }
            if let Some(new) = new {
                self.backends.entry(new.entry.service).or_default().insert(*id);
            }
        }
    }
}

/// Flags of a service that depend on other services.
const SHARED_FLAGS: u32 = ServiceEntry::SESSIONS | ServiceEntry::HAIRPIN;

impl Part {
    /// Builds the services that changed; `touched` are in the order of the configuration. `denied` is the deny list in force.
    /// `None` if more than these services must be looked at.
    ///
    /// Of the touched services addresses, port, protocol and mode must be what they were when `observed` was built.
    pub fn build(
        touched: &[WantedService],
        observed: &Image,
        index: &Index,
        denied: &Arc<Prefixes>,
        tunnel: &TunnelSettings,
        avoid: &BTreeSet<u32>,
        rings: &mut maglev::Cache,
    ) -> Option<Self> {
        let id = |service: &WantedService| index.part(service.spec.name.as_str(), service.part);
        let ids = touched.iter().map(id).collect::<Option<BTreeSet<u32>>>()?;
        let mut before = extract(observed, index, &ids);
        let known = KnownIds::of(&before);
        let mut new_backends = 0;
        for service in touched {
            let id = known.service(&before, service)?;
            let new = |backend: &&WantedBackend| known.backend(id, &backend.spec).is_none();
            let added = service.backends.iter().filter(new).count();
            new_backends += added;
            if service.spec.forward.rewrites() && !same_listeners(service, id, added, &before) {
                return None;
            }
        }
        drop(known);
        let (first, taken) = free_ids(observed, avoid, new_backends);
        let mut after = match build_from(touched, &before, tunnel, &taken, rings, first) {
            Ok(after) => after,
            // The maps must grow, or what is wrong is said of all services.
            Err(
                BuildError::RingFull { .. }
                | BuildError::BackendsFull { .. }
                | BuildError::SchedulesFull { .. }
                | BuildError::TooManyServices { .. }
                | BuildError::TooManyNatPorts { .. }
                | BuildError::PoolsFull { .. },
            ) => return None,
        };
        for (id, record) in &mut after.services {
            let was = before.services.get(id).map_or(0, |record| record.entry.flags);
            record.entry.flags = record.entry.flags & !SHARED_FLAGS | was & SHARED_FLAGS;
        }
        after.ports.clear();
        after.port_ranges.clear();
        after.nat.clone_from(&before.nat);
        if Arc::ptr_eq(denied, &before.denied) || *denied == before.denied {
            after.vips.clear();
            after.denied = Arc::clone(&before.denied);
        } else {
            before.vips.clone_from(&observed.vips);
            after.vips.clone_from(&observed.vips);
            install(&mut after, denied);
        }
        Some(Self { before, after })
    }

    /// What must be done.
    #[must_use]
    pub fn actions(&self) -> Vec<Action> {
        diff(&self.before, &self.after)
    }

    /// True if backends came or went, or have become others.
    #[must_use]
    pub fn moves_backends(&self) -> bool {
        let who = |image: &Image| -> Vec<_> {
            let backends = image.backends.iter();
            backends.map(|(id, r)| (*id, r.entry.outer_dst, r.entry.port, r.identity.port)).collect()
        };
        who(&self.before) != who(&self.after)
    }
}

/// The least id that is free, and those that are not between it and the last of the least `count` that are.
fn free_ids(observed: &Image, avoid: &BTreeSet<u32>, count: usize) -> (u32, BTreeSet<u32>) {
    let (mut first, mut taken, mut left) = (1, BTreeSet::new(), count);
    if left == 0 {
        return (first, taken);
    }
    let mut used = observed.backends.keys().peekable();
    for id in 1.. {
        while used.next_if(|used| **used < id).is_some() {}
        if used.peek() == Some(&&id) || avoid.contains(&id) {
            if left < count {
                taken.insert(id);
            }
            continue;
        }
        if left == count {
            first = id;
        }
        left -= 1;
        if left == 0 || id >= observed.backend_capacity {
            break;
        }
    }
    (first, taken)
}

/// What an image says of some services only. Places that the schedules of others take count as at rest.
fn extract(observed: &Image, index: &Index, ids: &BTreeSet<u32>) -> Image {
    let mut part = Image::empty(observed.ring_capacity, observed.backend_capacity);
    part.schedule_capacity = observed.schedule_capacity;
    part.denied = Arc::clone(&observed.denied);
    part.resting.clone_from(&observed.resting);
    for id in ids {
        part.services.extend(observed.services.get(id).map(|record| (*id, *record)));
        part.rings.extend(observed.rings.get(id).map(|ring| (*id, ring.clone())));
        part.followed.extend(observed.followed.get(id).map(|followed| (*id, Arc::clone(followed))));
        part.limits.extend(observed.limits.get(id).map(|limits| (*id, *limits)));
        let backends = index.backends.get(id).into_iter().flatten();
        part.backends.extend(backends.filter_map(|id| Some((*id, *observed.backends.get(id)?))));
    }
    let of_part = |id: &u32| ids.contains(id);
    part.allowed.extend(observed.allowed.iter().filter(|(id, _)| of_part(id)).copied());
    part.cids.extend(observed.cids.iter().filter(|(key, _)| of_part(&key.service)).map(|(k, v)| (*k, *v)));
    for (id, schedule) in &observed.schedules {
        if of_part(id) {
            part.schedules.insert(*id, schedule.clone());
        } else {
            part.resting.push((schedule.base, schedule.words.len() as u32));
        }
    }
    part
}

/// True if a service's backends listen where they did, so that NAT answers for the same addresses and ports.
fn same_listeners(service: &WantedService, id: u32, added: usize, before: &Image) -> bool {
    let backends = || before.backends.values().filter(|record| record.entry.service == id);
    let ports: BTreeMap<&str, u32> = backends().map(|r| (name_of(&r.identity), r.identity.port)).collect();
    added == 0
        && ports.len() == service.backends.len()
        && service.backends.iter().all(|backend| {
            ports.get(backend.spec.name.as_str()) == Some(&backend.spec.port.unwrap_or(0).into())
        })
}

#[cfg(test)]
#[path = "part_tests.rs"]
mod tests;
