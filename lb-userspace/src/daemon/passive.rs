//! The shell around [`crate::outlier`]: reads the signals out of the maps, and carries out ejections.

use super::engine::Engine;
use crate::{
    control::passive::{EjectionView, PassiveView},
    dataplane::DataplaneError,
    model::{Admin, BackendName, Health, ServiceName},
    outlier::{Detector, Event, Observed},
    plan,
    state::{EffectiveBackend, EffectiveService},
};
use lb_common::abi::Signals;
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

/// What is known of the services with passive health checks.
#[derive(Debug, Default)]
pub(super) struct Passive(BTreeMap<ServiceName, Watched>);

/// How long a client waits before it repeats its SYN (RFC 6298 section 2.1), and the time between two rounds.
const REPETITION: Duration = Duration::from_secs(1);
/// Rounds are never exact.
const SLACK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Watched {
    detector: Detector,
    /// The end of the last window.
    judged: Option<Instant>,
    /// When the maps were read last.
    read: Option<Instant>,
    counted: BTreeMap<BackendName, Counted>,
}

/// The signals of a backend, beyond the wrapping of those in the map.
#[derive(Debug, Clone, Default)]
struct Counted {
    /// One in each part of the service.
    ids: Vec<u32>,
    /// As read last.
    last: Signals,
    /// As at the end of the last window, its watched SYNs as they were [`REPETITION`] before.
    judged: Signals,
    total: Totals,
}

/// Since the daemon began to watch the backend.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    syns: u64,
    watched: u64,
    repeats: u64,
    refused: u64,
    resets: u64,
}

impl Totals {
    fn plus(self, seen: Signals) -> Self {
        Self {
            syns: self.syns + u64::from(seen.syns),
            watched: self.watched + u64::from(seen.watched),
            repeats: self.repeats + u64::from(seen.repeats),
            refused: self.refused + u64::from(seen.refused),
            resets: self.resets + u64::from(seen.resets),
        }
    }
}

/// What a service's turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    None,
    /// To read: the end of the window is a client's patience away.
    Read,
    /// To read and to judge.
    Judge,
}

impl Round {
    fn of(watched: Option<&Watched>, interval: Duration, now: Instant) -> Self {
        let Some(judged) = watched.and_then(|watched| watched.judged) else { return Self::Judge };
        let age = now.duration_since(judged) + SLACK;
        match () {
            () if age >= interval => Self::Judge,
            () if age + REPETITION >= interval => Self::Read,
            () => Self::None,
        }
    }
}

impl Passive {
    /// Does the backend take no new flows for what its clients met?
    pub(super) fn is_ejected(&self, service: &ServiceName, backend: &BackendName) -> bool {
        self.0.get(service).is_some_and(|watched| watched.detector.ejection(backend).is_some())
    }

    /// An operator trusts the backend again; false if it was not ejected.
    pub(super) fn forgive(&mut self, service: &ServiceName, backend: &BackendName) -> bool {
        self.0.get_mut(service).is_some_and(|watched| watched.detector.forgive(backend))
    }

    /// The maps count from zero again.
    pub(super) fn begin_anew(&mut self) {
        for counted in self.0.values_mut().flat_map(|watched| watched.counted.values_mut()) {
            (counted.last, counted.judged) = (Signals::default(), Signals::default());
        }
    }
}

impl Engine {
    /// One round, every second.
    pub(super) fn tend_passive(&mut self, now: Instant) {
        let round = |service: &EffectiveService| match &service.spec.passive {
            None => Round::None,
            Some(spec) => Round::of(self.passive.0.get(&service.spec.name), spec.interval, now),
        };
        let rounds: Vec<Round> = self.effective.services.iter().map(round).collect();
        let mut passive = std::mem::take(&mut self.passive);
        let reads = rounds.iter().any(|round| *round != Round::None);
        let ids = if reads { self.ids() } else { HashMap::new() };
        let none = HashMap::new();
        let mut changed = false;
        for (service, round) in self.effective.services.iter().zip(rounds) {
            let Some(spec) = &service.spec.passive else { continue };
            let name = &service.spec.name;
            let watched = passive.0.entry(name.clone()).or_default();
            let mut events = watched.detector.tick(spec, now);
            if round != Round::None {
                match self.read(service, watched, ids.get(name.as_str()).unwrap_or(&none), round, now) {
                    Ok(window) if round == Round::Judge => {
                        events.extend(watched.detector.judge(spec, &window, now));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(service = %name, %error, "could not read what passive health checks count");
                    }
                }
            }
            changed |= events.iter().any(Event::changes_flows);
            log(name, &events);
        }
        self.passive = passive;
        if changed {
            self.converge_or_log("a change of ejections");
        }
    }

    /// Reads what was counted; at the end of a window, what was counted in it. A SYN belongs to the window in which its repetition
    /// would come: whatever comes in bursts is counted together with what became of it.
    fn read(
        &self,
        service: &EffectiveService,
        watched: &mut Watched,
        ids: &HashMap<&str, Vec<u32>>,
        round: Round,
        now: Instant,
    ) -> Result<Vec<Observed>, DataplaneError> {
        if round == Round::Judge {
            watched.judged = Some(now);
        }
        // A round that came too late is no measure of a client's patience.
        let lagging =
            watched.read.replace(now).is_some_and(|read| now.duration_since(read) < 2 * REPETITION + SLACK);
        watched.counted.retain(|name, _| ids.contains_key(name.as_str()));
        let backends = service.backends.iter();
        let backends = backends.filter_map(|backend| Some((backend, ids.get(backend.spec.name.as_str())?)));
        backends
            .map(|(backend, ids)| {
                let read = self.signals_of(ids)?;
                let name = backend.spec.name.clone();
                let counted = watched.counted.get(&name).cloned().filter(|counted| counted.ids == *ids);
                // What the id counted before belongs to others.
                let mut counted = counted.unwrap_or_else(|| Counted {
                    ids: ids.clone(),
                    last: read,
                    judged: read,
                    total: Totals::default(),
                });
                let mut until = read;
                if lagging {
                    until.watched = counted.last.watched;
                }
                let seen = until.since(counted.judged);
                counted.total = counted.total.plus(read.since(counted.last));
                counted.last = read;
                if round == Round::Judge {
                    counted.judged = until;
                }
                watched.counted.insert(name.clone(), counted);
                Ok(Observed { backend: name, usable: self.is_usable(service, backend), seen })
            })
            .collect()
    }

    /// What is counted of a backend in all parts of its service.
    fn signals_of(&self, ids: &[u32]) -> Result<Signals, DataplaneError> {
        ids.iter().try_fold(Signals::default(), |sum, id| Ok(sum.plus(self.kernel.maps().signals().of(*id)?)))
    }

    /// The ids of the backends, by service and name.
    fn ids(&self) -> HashMap<&str, HashMap<&str, Vec<u32>>> {
        let mut ids: HashMap<&str, HashMap<&str, Vec<u32>>> = HashMap::new();
        for (id, record) in &self.image.backends {
            if let Some(service) = self.image.services.get(&record.entry.service) {
                let of_service = ids.entry(plan::name_of(&service.identity)).or_default();
                of_service.entry(plan::name_of(&record.identity)).or_default().push(*id);
            }
        }
        ids
    }

    /// Takes new flows unless it is ejected.
    fn is_usable(&self, service: &EffectiveService, backend: &EffectiveBackend) -> bool {
        backend.admin == Admin::Enabled
            && backend.spec.weight > 0
            && self.health_of(&service.spec, &backend.spec) != Health::Down
            && matches!(self.hops.get(&backend.spec.address), Some(Ok(_)))
    }

    /// Before a change of the maps: with fewer backends that take new flows fewer may be ejected.
    pub(super) fn limit_ejections(&mut self) {
        if self.passive.0.is_empty() {
            return;
        }
        let mut passive = std::mem::take(&mut self.passive);
        let services: HashMap<&ServiceName, &EffectiveService> =
            self.effective.services.iter().map(|service| (&service.spec.name, service)).collect();
        passive.0.retain(|name, watched| {
            let Some((service, spec)) =
                services.get(name).and_then(|service| Some((*service, service.spec.passive.as_ref()?)))
            else {
                return false;
            };
            if watched.detector.has_ejections() {
                let usable = service.backends.iter().filter(|backend| self.is_usable(service, backend));
                let usable: Vec<&BackendName> = usable.map(|backend| &backend.spec.name).collect();
                log(name, &watched.detector.limit(spec, &usable, Instant::now()));
            }
            true
        });
        self.passive = passive;
    }

    /// What `lbctl` and the metrics say of a backend.
    pub(super) fn passive_view(
        &self,
        service: &EffectiveService,
        backend: &BackendName,
        ids: &[u32],
    ) -> Result<Option<PassiveView>, DataplaneError> {
        if service.spec.passive.is_none() {
            return Ok(None);
        }
        let Some(watched) = self.passive.0.get(&service.spec.name) else {
            return Ok(Some(PassiveView::default()));
        };
        let mut total = Totals::default();
        if let Some(counted) = watched.counted.get(backend)
            && counted.ids == ids
        {
            total = counted.total.plus(self.signals_of(ids)?.since(counted.last));
        }
        let ejected = watched.detector.ejection(backend).map(|ejection| {
            let left = ejection.until.saturating_duration_since(Instant::now());
            EjectionView {
                reason: ejection.finding.to_string(),
                until: unix_seconds(SystemTime::now() + left),
                seconds_left: left.as_secs() + u64::from(left.subsec_nanos() > 0),
            }
        });
        Ok(Some(PassiveView {
            ejected,
            suspect: watched.detector.kept(backend).or_else(|| {
                let most = watched.detector.most_alike()?;
                Some(format!("{most}; most backends fare alike, nobody of them is ejected"))
            }),
            connections: total.syns,
            watched: total.watched,
            syn_repeats: total.repeats,
            refused: total.refused,
            resets: total.resets,
        }))
    }
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn log(service: &ServiceName, events: &[Event]) {
    for event in events {
        match event {
            Event::Ejected { backend, finding, lasts, times } => {
                let seconds = lasts.as_secs();
                tracing::warn!(%service, %backend, %finding, seconds, times, "backend ejected: no new connections");
            }
            Event::Returned { backend } => {
                tracing::info!(%service, %backend, "ejection over: the backend takes new connections, on probation");
            }
            Event::Recalled { backend } => tracing::warn!(
                %service, %backend, "ejection ended before its time: too few other backends are left"
            ),
            Event::Kept { backend, finding, why } => {
                tracing::warn!(%service, %backend, %finding, "a bad backend stays: {why}");
            }
            Event::MostAlike { finding } => tracing::warn!(
                %service, %finding, "most backends fare alike, nobody of them is ejected: is it the network?"
            ),
        }
    }
}
