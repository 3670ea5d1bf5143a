//! A change of a few services: what it costs does not depend on how many others there are, or hardly.

use super::{Engine, Known};
use crate::{
    daemon::error::EngineError,
    events::unix_ms,
    health::{Target, TargetKey},
    model::{ServiceName, Via},
    plan::{self, Action, Index, Part, WantedBackend, WantedService},
    state::{self, EffectiveBackend, EffectiveService},
};
use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
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
        self.hashes.forget_services(&[]);
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
        let mut wanted: Vec<_> = now.iter().map(|(service, _)| self.wanted_service(service)).collect();
        let verdicts = self.judge(&mut wanted);
        let wanted = plan::split(wanted, &plan::Instances::of(&self.config.vrrp));
        self.firewall.refresh(&self.config.firewall, self.changes.lists());
        self.image.resting = self.tracking.resting(Instant::now());
        let (avoid, tunnel) = (self.tracking.reserved(), self.tunnel());
        let denied = self.firewall.prefixes();
        let index = self.index.get_or_insert_with(|| Index::of(&self.image));
        let part = Part::build(&wanted, &self.image, index, denied, &tunnel, &avoid, &mut self.rings);
        let Some(part) = part else { return Ok(None) };
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
            if let Some(index) = &mut self.index {
                index.apply(action);
            }
        }
        let mut before = Vec::with_capacity(places.len());
        for (place, (service, stale)) in places.iter().zip(now) {
            before.push(self.effective.replace(*place, service, stale));
        }
        self.hashes.forget_services(&places);
        self.put_part_in_force(&places, verdicts);
        self.mirror.changed();
        if places.iter().any(|place| self.effective.services[*place].spec.health.via == Via::Vip) {
            self.aim_checks();
        }
        if part.moves_backends() {
            self.follow_backends(&places, &before);
        }
        Ok(Some(actions))
    }

    /// Has next hops and health of those backends watched that are new, and of those no more that are gone. `before` are the services
    /// at these places as they were.
    fn follow_backends(&mut self, places: &[usize], before: &[EffectiveService]) {
        let mut addresses = [HashSet::new(), HashSet::new()];
        let (mut gone, mut set) = (Vec::new(), Vec::new());
        for (place, before) in places.iter().zip(before) {
            let service = &self.effective.services[*place];
            for (addresses, backends) in addresses.iter_mut().zip([&before.backends, &service.backends]) {
                addresses.extend(backends.iter().map(|backend| backend.spec.address));
            }
            let targets = self.targets_of(service);
            let there: HashSet<&TargetKey> = targets.iter().map(|target| &target.key).collect();
            let name = &service.spec.name;
            let keys = before.backends.iter().map(|backend| TargetKey::of(name, &backend.spec.name));
            gone.extend(keys.filter(|key| !there.contains(key)));
            let known = |target: &Target| self.health.get(&target.key).map(|known| known.address);
            set.extend(targets.iter().filter(|target| known(target) != Some(target.address)).cloned());
        }
        for key in &gone {
            self.health.remove(key);
        }
        for target in &set {
            let known = Known { address: target.address, health: target.initial, stands_in: false };
            self.health.insert(target.key.clone(), known);
        }
        self.health_task.change_targets(gone, set);
        let [were, are] = addresses;
        // Others may have backends at these addresses, too.
        let services = self.effective.services.iter().flat_map(|service| &service.backends);
        let mut left: HashSet<IpAddr> = were.difference(&are).copied().collect();
        if !left.is_empty() {
            services.for_each(|backend| _ = left.remove(&backend.spec.address));
        }
        let new: Vec<_> = are.difference(&were).copied().collect();
        self.hop_task.change_destinations(&left.into_iter().collect::<Vec<_>>(), &new);
    }

    /// How the backends of a service are checked.
    pub(super) fn targets_of(&self, service: &EffectiveService) -> Vec<Target> {
        // They are checked alike.
        let spec = Arc::new(service.spec.health.clone());
        let vips: Arc<[IpAddr]> =
            if spec.via == Via::Vip { service.spec.addresses.as_slice().into() } else { Arc::default() };
        let target = |backend: &EffectiveBackend| {
            let port = spec.port.or(backend.spec.port).or(service.spec.port.single()).unwrap_or(0);
            Target {
                key: TargetKey::of(&service.spec.name, &backend.spec.name),
                address: SocketAddr::new(backend.spec.address, port),
                vips: Arc::clone(&vips),
                spec: Arc::clone(&spec),
                initial: self.health_of(&service.spec, &backend.spec),
            }
        };
        service.backends.iter().map(target).collect()
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
        WantedService {
            part: 0,
            ring_size: service.ring_size(),
            backends: service
                .backends
                .iter()
                .map(|backend| WantedBackend {
                    spec: backend.spec.clone(),
                    admin: backend.admin,
                    health: self.health_of(&service.spec, &backend.spec),
                    standby: false,
                    panic: false,
                    next_hop: self.hops.get(&backend.spec.address).and_then(|hop| hop.as_ref().ok().copied()),
                    ramp: self
                        .changes
                        .ramp(&service.spec.name, &backend.spec.name)
                        .and_then(|ramp| ramp.progress(now_ms)),
                })
                .collect(),
            no_quorum: false,
            withdrawn: self.bgp.withholds(&service.spec) && !self.mirror.words.rules(),
            spec: service.spec.clone(),
        }
    }
}
