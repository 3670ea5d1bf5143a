//! Services as a whole: their state, who of their backends takes new flows, and who is told of changes.

use super::engine::Engine;
use crate::{
    control::api::PoolView,
    events::{Bus, Kind, News},
    health::HealthEvent,
    metrics::Instruments,
    model::{Health, PoolSpec, ServiceName, ServiceSpec, ServiceState},
    notify::Notifier,
    plan::{self, Image, WantedBackend, WantedService},
    pool::{self, Member, Stance, Verdict},
    state::{EffectiveBackend, EffectiveService},
};
use lb_common::abi::ServiceEntry;
use std::collections::{BTreeMap, BTreeSet};

/// Verdicts by service.
pub(super) type Verdicts = BTreeMap<ServiceName, Verdict>;

/// What the engine knows of its services as a whole.
pub(super) struct Pools {
    /// In force.
    verdicts: Verdicts,
    /// Services that an earlier daemon left without a quorum, until they are judged.
    without_quorum: BTreeSet<String>,
    bus: Bus,
    pub(super) notifier: Notifier,
    /// Not told yet: the daemon has not started, or the change is not carried out.
    pending: Vec<News>,
    started: bool,
}

impl Pools {
    /// From what an earlier daemon left.
    pub(super) fn adopt(image: &Image, instruments: &Instruments, bus: Bus) -> Self {
        let lost = image.services.values().filter(|s| s.entry.flags & ServiceEntry::NO_QUORUM != 0);
        Self {
            verdicts: Verdicts::new(),
            without_quorum: lost.map(|s| plan::name_of(&s.identity).to_owned()).collect(),
            bus,
            notifier: Notifier::new(instruments.notify.clone()),
            pending: Vec::new(),
            started: false,
        }
    }

    /// Tells everybody what waits.
    fn flush(&mut self) {
        if !self.started {
            return;
        }
        for news in self.pending.drain(..) {
            let event = self.bus.publish(news);
            self.notifier.tell(&event);
        }
    }
}

impl Engine {
    /// The state of a service as a whole; `None` if there is none of that name.
    pub fn service_state(&self, service: &ServiceName) -> Option<ServiceState> {
        self.pools.verdicts.get(service).map(|verdict| verdict.state)
    }

    /// Judges every service, and says to each of its backends what follows from that.
    pub(super) fn judge(&self, wanted: &mut [WantedService]) -> Verdicts {
        wanted.iter_mut().map(|service| (service.spec.name.clone(), self.judge_one(service))).collect()
    }

    fn judge_one(&self, service: &mut WantedService) -> Verdict {
        let name = &service.spec.name;
        let was_up = match self.service_state(name) {
            Some(state) => state.is_up(),
            None => !self.pools.without_quorum.contains(name.as_str()),
        };
        let member = |backend: &WantedBackend| Member {
            admin: backend.admin,
            health: backend.health,
            weight: backend.spec.weight,
            backup: self.stands_in(&service.spec, &backend.spec),
            ejected: self.passive.is_ejected(name, &backend.spec.name),
            reachable: backend.next_hop.is_some(),
        };
        let members: Vec<Member> = service.backends.iter().map(member).collect();
        let verdict = pool::judge(&service.spec.pool, was_up, &members);
        service.no_quorum = !verdict.state.is_up();
        for (backend, stance) in service.backends.iter_mut().zip(&verdict.stances) {
            backend.standby = *stance != Stance::Takes;
            backend.panic = backend.health == Health::Down && *stance != Stance::Dead;
        }
        verdict
    }

    /// The verdicts, of all services, are in force now: what changed is to be told.
    pub(super) fn put_in_force(&mut self, verdicts: Verdicts) {
        let before = std::mem::take(&mut self.pools.verdicts);
        let gone = before.iter().filter(|(name, _)| !verdicts.contains_key(*name));
        let gone: Vec<_> = gone
            .map(|(name, verdict)| {
                let reason = "it is no longer in the configuration".to_owned();
                of_service(name, verdict.state.to_string(), "removed".to_owned(), reason)
            })
            .collect();
        self.pools.verdicts = verdicts;
        self.pools.without_quorum.clear();
        for service in &self.effective.services {
            let name = &service.spec.name;
            let Some(now) = self.pools.verdicts.get(name) else { continue };
            self.pools.pending.extend(changed(&service.spec, before.get(name), now));
        }
        self.pools.pending.extend(gone);
    }

    /// As [`Engine::put_in_force`], of the services at these places alone.
    pub(super) fn put_part_in_force(&mut self, places: &[usize], mut verdicts: Verdicts) {
        for place in places {
            let spec = &self.effective.services[*place].spec;
            let Some(now) = verdicts.remove(&spec.name) else { continue };
            self.pools.pending.extend(changed(spec, self.pools.verdicts.get(&spec.name), &now));
            self.pools.verdicts.insert(spec.name.clone(), now);
        }
    }

    /// It takes new flows as far as its service is concerned: a backup that is not needed does not, and in a panic one
    /// that is down does.
    pub(super) fn is_taking(&self, service: &EffectiveService, backend: &EffectiveBackend) -> bool {
        let place = service.backends.iter().position(|b| b.spec.name == backend.spec.name);
        let verdict = self.pools.verdicts.get(&service.spec.name);
        place.zip(verdict).and_then(|(place, verdict)| verdict.stances.get(place)) == Some(&Stance::Takes)
            && self.hops.get(&backend.spec.address).is_some_and(Result::is_ok)
    }

    /// A backend's health has changed: told with what follows from it.
    pub(super) fn note_health(&mut self, event: &HealthEvent, from: Health) {
        if from != event.health {
            self.pools.pending.push(News {
                kind: Kind::Backend,
                service: event.key.service.to_string(),
                backend: Some(event.key.backend.to_string()),
                from: from.to_string(),
                to: event.health.to_string(),
                reason: event.reason.to_string(),
            });
        }
    }

    /// Tells what waits to be told, whether or not the maps could be changed.
    pub(super) fn tell_news(&mut self) {
        self.announce();
        self.pools.flush();
    }

    /// The notify commands of the configuration, and from now on they are run.
    pub(super) fn configure_hooks(&mut self) {
        let global = self.config.notify.iter().map(|hook| (None, hook.clone()));
        let own = self.config.services.iter().flat_map(|service| {
            service.pool.notify.iter().map(|hook| (Some(service.name.clone()), hook.clone()))
        });
        self.pools.notifier.set_hooks(global.chain(own));
        self.pools.started = true;
        self.pools.flush();
    }

    pub(super) fn pool_view(&self, spec: &ServiceSpec) -> PoolView {
        let PoolSpec { quorum_up, quorum_down, panic_threshold, on_all_down, .. } = spec.pool;
        let verdict = self.pools.verdicts.get(&spec.name);
        let state = verdict.map(|verdict| verdict.state).unwrap_or_default();
        PoolView {
            state,
            up: state.is_up(),
            enabled: verdict.map_or(0, |verdict| verdict.enabled),
            healthy: verdict.map_or(0, |verdict| verdict.healthy),
            quorum_up,
            quorum_down,
            panic_threshold,
            on_all_down,
        }
    }
}

/// Logs that a service is in another state, and says how it is told.
fn changed(spec: &ServiceSpec, was: Option<&Verdict>, now: &Verdict) -> Option<News> {
    let was = was.map(|verdict| verdict.state);
    if was == Some(now.state) {
        return None;
    }
    let (name, to, reason) = (&spec.name, now.state, why(&spec.pool, now));
    let from = was.map_or_else(|| "new".to_owned(), |state| state.to_string());
    match (was, to) {
        (_, state) if state.is_panic() => tracing::error!(
            service = %name, %from, %to, reason,
            "PANIC: too few backends are healthy; all that are enabled are used, whatever their health"
        ),
        (None, ServiceState::Up) => {}
        (_, ServiceState::Up) => tracing::info!(service = %name, %from, %to, reason, "service is up"),
        _ => tracing::warn!(service = %name, %from, %to, reason, "service is down"),
    }
    Some(of_service(name, from, to.to_string(), reason))
}

fn of_service(name: &ServiceName, from: String, to: String, reason: String) -> News {
    News { kind: Kind::Service, service: name.to_string(), backend: None, from, to, reason }
}

/// The verdict in words.
fn why(spec: &PoolSpec, verdict: &Verdict) -> String {
    let Verdict { state, enabled, healthy, .. } = verdict;
    let counts = format!("{healthy} of {enabled} enabled backends healthy");
    let quorum = match state.is_up() {
        true => format!("down with fewer than {}", spec.quorum_down),
        false => format!("up with {}", spec.quorum_up),
    };
    let serving = match state {
        ServiceState::Up | ServiceState::Down => return format!("{counts}, {quorum}"),
        ServiceState::UpPanic | ServiceState::DownPanic => {
            format!("all are used below {}%", spec.panic_threshold)
        }
        ServiceState::DownBackup => "backups take new flows".to_owned(),
        ServiceState::DownDegraded => "they serve on".to_owned(),
    };
    format!("{counts}, {quorum}; {serving}")
}
