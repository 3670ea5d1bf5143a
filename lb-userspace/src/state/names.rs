//! Backends by name: what DNS said, and the backends that are made of it. Pure.

use crate::{
    config::Config,
    model::{BackendSpec, DEFAULT_WEIGHT, Found, MAX_BACKENDS, Query, not_for_backend},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// The last good answer to each query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answers(BTreeMap<Query, Answer>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Answer {
    present: BTreeSet<Found>,
    /// What was there before, and since when it is not.
    leaving: BTreeMap<Found, Instant>,
}

impl Answers {
    /// Those that an earlier daemon had.
    pub fn remembered(kept: BTreeMap<String, (Query, BTreeSet<Found>)>) -> Self {
        let answers = kept.into_values();
        Self(answers.map(|(query, present)| (query, Answer { present, ..Answer::default() })).collect())
    }

    /// What the next daemon wants to know.
    pub fn to_remember(&self) -> BTreeMap<String, (Query, BTreeSet<Found>)> {
        let entry =
            |(query, answer): (&Query, &Answer)| (query.to_string(), (query.clone(), answer.present.clone()));
        self.0.iter().map(entry).collect()
    }

    /// An answer with what is known of the families, IPv4 and IPv6, that it says nothing about.
    #[must_use]
    pub fn completed(&self, query: &Query, mut found: BTreeSet<Found>, silent: [bool; 2]) -> BTreeSet<Found> {
        let heard: BTreeSet<_> = found.iter().map(|found| found.address).collect();
        let known = self.0.get(query).into_iter().flat_map(|answer| &answer.present);
        let kept = known.filter(|known| silent[usize::from(known.address.is_ipv6())]);
        found.extend(kept.filter(|kept| !heard.contains(&kept.address)).cloned());
        found
    }

    /// Takes an answer in; true if it is another one than before.
    pub fn learn(&mut self, query: Query, found: BTreeSet<Found>, now: Instant) -> bool {
        let answer = self.0.entry(query).or_default();
        if answer.present == found {
            return false;
        }
        // By address: another port or weight is no other backend.
        let still: BTreeSet<_> = found.iter().map(|found| found.address).collect();
        for gone in answer.present.difference(&found).filter(|gone| !still.contains(&gone.address)) {
            answer.leaving.insert(gone.clone(), now);
        }
        answer.leaving.retain(|old, _| !still.contains(&old.address));
        answer.present = found;
        true
    }

    /// Forgets what left so long ago; true if there was any.
    pub fn expire(&mut self, drain: Duration, now: Instant) -> bool {
        let mut any = false;
        for answer in self.0.values_mut() {
            let before = answer.leaving.len();
            answer.leaving.retain(|_, since| now.saturating_duration_since(*since) < drain);
            any |= answer.leaving.len() != before;
        }
        any
    }

    /// Forgets queries that nobody asks any more.
    pub fn retain(&mut self, asked: &BTreeSet<Query>) {
        self.0.retain(|query, _| asked.contains(query));
    }

    pub fn knows(&self, query: &Query) -> bool {
        self.0.contains_key(query)
    }

    /// Makes the backends of every name anew: one for each address, those that have left with weight 0, so that their
    /// flows may end. Gives back what could not become a backend, a line each.
    pub fn fill(&self, config: &mut Config) -> Vec<String> {
        let mut refused = Vec::new();
        for service in &mut config.services {
            let Some(names) = config.names.get_mut(&service.name) else { continue };
            let made: BTreeSet<_> = names.iter_mut().flat_map(|spec| spec.made.drain(..)).collect();
            service.backends.retain(|backend| !made.contains(&backend.name));
            for spec in names {
                let Some(answer) = self.0.get(&spec.query) else { continue };
                let present = answer.present.iter().map(|found| (found, true));
                let leaving = answer.leaving.keys().map(|found| (found, false));
                for (found, stays) in present.chain(leaving) {
                    let address = found.address;
                    if !(if address.is_ipv4() { spec.families.0 } else { spec.families.1 }) {
                        continue;
                    }
                    let obstacle = if let Some(why) = not_for_backend(address) {
                        Some(format!("it is {why}"))
                    } else if service.addresses.contains(&address) {
                        Some("it is an address of the service".to_owned())
                    } else if service.backends.iter().any(|backend| backend.address == address) {
                        Some("another backend has it".to_owned())
                    } else if service.backends.len() >= MAX_BACKENDS {
                        Some(format!("the service has {MAX_BACKENDS} backends"))
                    } else {
                        service.misfit(address).map(|why| why.to_string())
                    };
                    let name =
                        spec.backend(address).filter(|name| service.backends.iter().all(|b| b.name != *name));
                    let (None, Some(name)) = (&obstacle, name) else {
                        let why = obstacle.unwrap_or_else(|| "another backend has its name".to_owned());
                        refused
                            .push(format!("service '{}': {address} of {}: {why}", service.name, spec.query));
                        continue;
                    };
                    let port = spec.port.or(found.port).filter(|_| service.forward.rewrites());
                    let weight = spec.weight.or(found.weight).unwrap_or(DEFAULT_WEIGHT);
                    service.backends.push(BackendSpec {
                        name: name.clone(),
                        address,
                        port: port.filter(|port| service.port.single() != Some(*port)),
                        weight: if stays { weight } else { 0 },
                        backup: spec.backup,
                    });
                    spec.made.push(name);
                }
            }
        }
        refused
    }
}

/// Everything that services want to know of DNS.
pub fn queries(config: &Config) -> BTreeSet<Query> {
    config.names.values().flatten().map(|spec| spec.query.clone()).collect()
}
