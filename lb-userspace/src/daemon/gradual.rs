//! What changes by itself as time goes by: shares on their way to their weights, and drains that end. And who is still
//! with a backend that is drained.

use super::engine::Engine;
use crate::{
    control::{
        command::{CommandError, Reply},
        gradual::{ChangeOptions, DrainView, GradualCommand, GradualView, RampView},
    },
    dataplane::tracked_flows,
    model::{Admin, BackendName, Health, ServiceName},
    plan,
    ramp::{Cause, Ramp, WHOLE},
    state::{EffectiveBackend, EffectiveService},
};
use std::time::{Duration, Instant, SystemTime};

/// So long after somebody last asked how a drain goes, flow tables are walked through often.
const WATCHED: Duration = Duration::from_secs(5);

/// Milliseconds since 1970 (UTC).
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Engine {
    /// Carries out one command about gradual changes and answers it.
    pub(super) fn answer_gradual(&mut self, command: GradualCommand) {
        match command {
            GradualCommand::With { options, command } => {
                self.asked = options;
                self.answer(*command);
                self.asked = ChangeOptions::default();
            }
            GradualCommand::Drain { service, backend, reply } => self.watch_drain(&service, &backend, reply),
        }
    }

    /// Every second: the next step of shares under way, and drains whose time has come.
    pub(super) fn tend_gradual(&mut self) {
        if self.changes.has_ramps() {
            self.converge_or_log("the next step of a share");
        }
        for (service, backend) in self.changes.due_drains(unix_ms()) {
            let draining = self.changes.admin(&service, &backend) == Admin::Draining;
            let ids = self.backend_ids(&service, &backend);
            let left: u64 = ids.iter().filter_map(|id| self.rounds.on.get(id)).sum();
            // Said when the drain began: nobody is there to force it now.
            self.asked = ChangeOptions { force: true, ..ChangeOptions::default() };
            let message =
                format!("the time of the drain of backend {backend} of {service} is over: it is disabled");
            let result = self.change(message, "the end of a drain", |changes, config, stamp| {
                let cleared = changes.set_drain_end(&service, &backend, None);
                let disabled = draining
                    && changes.set_admin(&config.services, &service, &backend, Admin::Disabled, stamp)?;
                Ok(cleared || disabled)
            });
            self.asked = ChangeOptions::default();
            match result {
                Ok(_) if draining => tracing::warn!(%service, %backend, left, "the drain ended these flows"),
                Ok(_) => {}
                Err(error) => tracing::error!(%service, %backend, %error, "the drain could not be ended"),
            }
        }
    }

    /// Before the services are looked at: ramps that are over are forgotten, slow starts begin. Only with the next change
    /// of the state file they are lost if it cannot be written now: then their backends get their shares at once after a restart.
    pub(super) fn keep_ramps(&mut self) {
        let (changed, began) = self.advance_ramps();
        for (service, backend) in began {
            tracing::info!(%service, %backend, "slow start");
        }
        if changed && let Err(error) = self.state_dir.store(&self.changes) {
            tracing::warn!(%error, "slow starts under way would not survive a restart");
        }
    }

    /// As [`Engine::keep_ramps`], in memory: whether anything changed, and whose slow start began.
    pub(super) fn advance_ramps(&mut self) -> (bool, Vec<(ServiceName, BackendName)>) {
        let now_ms = unix_ms();
        let effective = &self.effective;
        let mut changed = self.changes.has_ramps()
            && self.changes.prune_ramps(now_ms, |service, backend| {
                effective.service(service).is_some_and(|s| s.backend(backend).is_some())
            });
        let slow = |service: &&EffectiveService| !service.spec.gradual.slow_start.is_zero();
        type Known = (BackendName, bool, bool);
        let seen: Vec<(ServiceName, Duration, Vec<Known>)> = effective
            .services
            .iter()
            .filter(slow)
            .map(|service| {
                let backends = service.backends.iter().map(|backend| {
                    let down = self.health_of(&service.spec, &backend.spec) == Health::Down;
                    // Not merely by what the configuration assumes before the first check.
                    let known_down = down && service.spec.health.initial != Health::Down;
                    let away = backend.admin != Admin::Enabled || known_down;
                    (backend.spec.name.clone(), self.would_take(service, backend), away)
                });
                (service.spec.name.clone(), service.spec.gradual.slow_start, backends.collect())
            })
            .collect();
        self.watch.retain(|name| seen.iter().any(|(service, ..)| service == name));
        let mut began = Vec::new();
        for (service, over, backends) in seen {
            let backends = backends.iter().map(|(name, takes, away)| (name, *takes, *away));
            for backend in self.watch.look(now_ms, &service, over, backends) {
                let under_way = self.changes.ramp(&service, &backend);
                // A weight that grows from nothing is slow already.
                if under_way
                    .is_some_and(|r| r.cause == Cause::Weight && r.from == 0 && r.progress(now_ms).is_some())
                {
                    continue;
                }
                let over_ms = over.as_millis() as u64;
                let ramp = Ramp { from: 0, began_ms: now_ms, over_ms, cause: Cause::SlowStart };
                changed |= self.changes.set_ramp(&service, &backend, Some(ramp));
                began.push((service.clone(), backend));
            }
        }
        (changed, began)
    }

    /// It takes new flows, whatever its share is at present.
    fn would_take(&self, service: &EffectiveService, backend: &EffectiveBackend) -> bool {
        backend.spec.weight > 0 && self.is_ready(service, backend)
    }

    /// Nothing but its share keeps it from taking new flows.
    fn is_ready(&self, service: &EffectiveService, backend: &EffectiveBackend) -> bool {
        backend.admin == Admin::Enabled
            && self.health_of(&service.spec, &backend.spec) != Health::Down
            && self.hops.get(&backend.spec.address).is_some_and(Result::is_ok)
            && !self.passive.is_ejected(&service.spec.name, &backend.spec.name)
    }

    /// The message of a change of weight, and its ramp. A slow start under way goes on towards the new weight.
    pub(super) fn weight_ramp(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        weight: u16,
        over: Option<Duration>,
    ) -> (String, Option<Ramp>) {
        let now_ms = unix_ms();
        let old = self.changes.ramp(service, backend).filter(|ramp| ramp.progress(now_ms).is_some());
        let message = format!("backend {backend} of {service} has weight {weight}");
        let Some(over) = over.filter(|over| !over.is_zero()) else {
            return (message, old.filter(|ramp| ramp.cause == Cause::SlowStart));
        };
        let present = self.effective.service(service).and_then(|s| s.backend(backend)).map(|b| b.spec.weight);
        let present = present.unwrap_or(0);
        let from =
            old.and_then(|ramp| ramp.progress(now_ms)).map_or(u32::from(present) << 16, |p| p.share(present));
        let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        let ramp = Ramp { from, began_ms: now_ms, over_ms, cause: Cause::Weight };
        let message = format!("{message} in {}", crate::config::format_duration(over));
        (message, (from != u32::from(weight) << 16).then_some(ramp))
    }

    /// Its ids, one in each part of the service.
    pub(super) fn backend_ids(&self, service: &ServiceName, backend: &BackendName) -> Vec<u32> {
        let parts = self.image.service_ids(service.as_str());
        let is_it = |record: &plan::BackendRecord| {
            parts.contains(&record.entry.service) && plan::name_of(&record.identity) == backend.as_str()
        };
        self.image.backends.iter().filter(|(_, record)| is_it(record)).map(|(id, _)| *id).collect()
    }

    pub(super) fn gradual_view(
        &self,
        service: &EffectiveService,
        backend: &EffectiveBackend,
        ids: &[u32],
        moving_slots: u32,
    ) -> GradualView {
        let now_ms = unix_ms();
        let (name, of) = (&backend.spec.name, &service.spec.name);
        let ramp = self.changes.ramp(of, name);
        let under_way = ramp.and_then(|ramp| Some((ramp, ramp.progress(now_ms)?)));
        let weight = backend.spec.weight;
        let share = under_way.map_or(u32::from(weight) << 16, |(_, progress)| progress.share(weight));
        let share = if self.is_taking(service, backend) { share } else { 0 };
        let count =
            |counts: &std::collections::BTreeMap<u32, u64>| ids.iter().filter_map(|id| counts.get(id)).sum();
        GradualView {
            // Nobody with a share is shown with none.
            effective_weight: ((share >> 16) as u16).max(u16::from(share > 0)),
            ramp: under_way.filter(|_| share > 0).map(|(ramp, progress)| RampView {
                cause: match ramp.cause {
                    Cause::SlowStart => "slow-start",
                    Cause::Weight => "weight",
                }
                .to_owned(),
                percent: (progress.done * 100 / WHOLE) as u8,
                seconds_left: ramp.left(now_ms).as_secs(),
            }),
            moving_slots,
            tracked_flows: count(&self.rounds.on),
            sessions: count(&self.nat.on),
            drain_ends_in_seconds: self.drain_ends(of, name),
        }
    }

    fn drain_ends(&self, service: &ServiceName, backend: &BackendName) -> Option<u64> {
        let end = self.changes.drain_end(service, backend)?;
        (self.changes.admin(service, backend) == Admin::Draining)
            .then(|| end.saturating_sub(unix_ms()).div_ceil(1000))
    }

    /// Who is still with a backend. The tables are read beside the loop, which goes on meanwhile.
    fn watch_drain(&mut self, service: &ServiceName, backend: &BackendName, reply: Reply<DrainView>) {
        let found = match self.find(service, backend) {
            Ok(found) => found,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (admin, health) = found;
        let now = Instant::now();
        self.rounds.watched_until = Some(now + WATCHED);
        let ids = self.backend_ids(service, backend);
        let naming = ids.iter().map(|id| self.tracking.naming(&self.image, *id)).fold(
            plan::Naming::default(),
            |sum, one| plan::Naming {
                owned: sum.owned + one.owned,
                leaving: sum.leaving + one.leaving,
                stuck: sum.stuck + one.stuck,
                settles: sum.settles.max(one.settles),
            },
        );
        let note = if admin == Admin::Enabled && health != Health::Down {
            Some("it is enabled: it takes new flows".to_owned())
        } else if naming.stuck > 0 {
            Some(format!(
                "{} slots cannot settle: no other backend of the service takes new flows",
                naming.stuck
            ))
        } else {
            None
        };
        let mut view = DrainView {
            service: service.to_string(),
            backend: backend.to_string(),
            admin,
            health,
            owned_slots: naming.owned,
            moving_slots: naming.leaving,
            settled_in_seconds: naming.settles.map(|at| at.saturating_duration_since(now).as_secs() + 1),
            tracked_flows: 0,
            closing_flows: 0,
            half_open_flows: 0,
            sessions: 0,
            ends_in_seconds: self.drain_ends(service, backend),
            note,
            done: false,
        };
        let maps_dir = self.kernel.maps_dir();
        // Entries of a former life of the backend are misses.
        let life = |id: &u32| Some((*id, self.image.backends.get(id)?.entry.incarnation as u8));
        let lives: Vec<(u32, u8)> = ids.iter().filter_map(life).collect();
        tokio::task::spawn_blocking(move || {
            let result = tracked_flows(&maps_dir, |_, entry, translated| {
                if !lives.contains(&(entry.backend(), entry.incarnation())) {
                    return;
                }
                let count = if translated.is_some() {
                    &mut view.sessions
                } else if entry.is_half_open() {
                    &mut view.half_open_flows
                } else if entry.is_closing() {
                    &mut view.closing_flows
                } else {
                    &mut view.tracked_flows
                };
                *count += 1;
            });
            view.done =
                view.admin != Admin::Enabled && view.owned_slots + view.moving_slots == 0 && view.left() == 0;
            let _ = reply.send(match result {
                Ok(()) => Ok(view),
                Err(error) => Err(CommandError::Failed(error.to_string())),
            });
        });
    }

    fn find(&self, service: &ServiceName, backend: &BackendName) -> Result<(Admin, Health), CommandError> {
        let names = |names: Vec<String>| match names.len() {
            0 => "there is none".to_owned(),
            _ => format!("there are: {}", names.join(", ")),
        };
        let Some(found) = self.effective.service(service) else {
            let all = self.effective.services.iter().map(|s| s.spec.name.to_string()).collect();
            return Err(CommandError::NotFound(format!("no service '{service}'; {}", names(all))));
        };
        let Some(present) = found.backend(backend) else {
            let all = found.backends.iter().map(|b| b.spec.name.to_string()).collect();
            let error = format!("service '{service}' has no backend '{backend}'; {}", names(all));
            return Err(CommandError::NotFound(error));
        };
        Ok((present.admin, self.health_of(&found.spec, &present.spec)))
    }
}
