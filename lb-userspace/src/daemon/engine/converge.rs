//! A change of a few services: what it costs does not depend on how many others there are, or hardly.

use super::{Engine, destinations};
use crate::{
    daemon::{error::EngineError, gradual::unix_ms},
    model::ServiceName,
    plan::{Action, Part, WantedBackend, WantedService},
    state::{self, EffectiveService},
};
use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    time::Instant,
};

/// Of so many services in one the change is not small any more.
const SMALL: usize = 4;

impl Engine {
    /// As [`Engine::converge`], for a change of these services alone: of their backends, states, limits and next hops, and of the
    /// deny list.
    pub(in crate::daemon) fn converge_part(
        &mut self,
        names: &BTreeSet<ServiceName>,
    ) -> Result<Vec<Action>, EngineError> {
        self.hash.take();
        let small = names.len() * SMALL <= self.config.services.len().max(SMALL);
        if !self.behind && small {
            let begun = Instant::now();
            let part = self.try_part(names).transpose();
            if let Some(result) = part {
                self.converged(begun.elapsed(), result.as_deref().ok());
                return result;
            }
        }
        self.converge()
    }

    /// `None` if everything must be looked at.
    fn try_part(&mut self, names: &BTreeSet<ServiceName>) -> Result<Option<Vec<Action>>, EngineError> {
        let places: Vec<usize> = (0..self.config.services.len())
            .filter(|i| names.contains(&self.config.services[*i].name))
            .collect();
        let same = |i: &usize| {
            let config = &self.config.services[*i];
            // Who starts slowly, and who may stay ejected, is found by a look at all services.
            config.gradual.slow_start.is_zero()
                && config.passive.is_none()
                && self.effective.services.get(*i).is_some_and(|s| s.spec.name == config.name)
        };
        if places.len() != names.len() || !places.iter().all(same) {
            return Ok(None);
        }
        let now: Vec<_> =
            places.iter().map(|i| state::apply_one(&self.config.services[*i], &self.changes)).collect();
        let wanted: Vec<_> = now.iter().map(|(service, _)| self.wanted_service(service)).collect();
        self.firewall.refresh(&self.config.firewall, self.changes.lists());
        self.image.resting = self.tracking.resting(Instant::now());
        let (avoid, tunnel) = (self.tracking.reserved(), self.tunnel());
        let denied = self.firewall.prefixes();
        let Some(part) = Part::build(&wanted, &self.image, denied, &tunnel, &avoid, &mut self.rings) else {
            return Ok(None);
        };
        let actions = part.actions();
        for action in &actions {
            tracing::debug!(%action, "changing the maps");
        }
        if let Err(error) = self.kernel.execute(&actions) {
            // What is in force and what is wished for may differ now in more than the next change.
            self.behind = true;
            return Err(error.into());
        }
        self.tracking.note_part(&part.before, &part.after, Instant::now());
        self.image.resting.clear();
        for action in &actions {
            self.image.apply(action);
        }
        let moved = part.moves_backends();
        for (place, (service, stale)) in places.into_iter().zip(now) {
            self.effective.replace(place, service, stale);
        }
        if moved {
            self.hop_task.set_destinations(destinations(&self.effective));
            self.set_targets();
        }
        Ok(Some(actions))
    }

    /// The services with backends at these addresses.
    pub(super) fn services_at(&self, addresses: &HashSet<IpAddr>) -> BTreeSet<ServiceName> {
        let at = |service: &&EffectiveService| {
            service.backends.iter().any(|backend| addresses.contains(&backend.spec.address))
        };
        self.effective.services.iter().filter(at).map(|service| service.spec.name.clone()).collect()
    }

    /// A service in force, each backend with its states and its next hop.
    pub(super) fn wanted_service(&self, service: &EffectiveService) -> WantedService {
        let now_ms = unix_ms();
        let size = service.spec.ring_size.or_else(|| self.changes.ring_size(&service.spec.name));
        WantedService {
            ring_size: size.unwrap_or_else(|| crate::maglev::default_size(service.backends.len())),
            backends: service
                .backends
                .iter()
                .map(|backend| WantedBackend {
                    spec: backend.spec.clone(),
                    admin: backend.admin,
                    health: self.health_of(&service.spec, &backend.spec),
                    ejected: self.passive.is_ejected(&service.spec.name, &backend.spec.name),
                    next_hop: self.hops.get(&backend.spec.address).and_then(|hop| hop.as_ref().ok().copied()),
                    ramp: self
                        .changes
                        .ramp(&service.spec.name, &backend.spec.name)
                        .and_then(|ramp| ramp.progress(now_ms)),
                })
                .collect(),
            spec: service.spec.clone(),
        }
    }
}
