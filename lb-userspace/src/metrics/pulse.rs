//! What the daemon's loop and its control API report of themselves: how long things took, and how often they
//! happened.
//!
//! Labels come from short lists that are known beforehand (kinds of work, routes, states) or are names of services;
//! nothing that a client or a packet brings becomes one.

use crate::{model::Health, plan::Action};
use prometheus_client::metrics::histogram::Histogram;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper bounds in seconds: most work takes microseconds, a reload of thousands of services a second.
const SECONDS: [f64; 13] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Upper bounds of sizes of plans.
const SIZES: [f64; 7] = [0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn sizes() -> Histogram {
    Histogram::new(SIZES)
}

// A panic while a lock is held leaves the numbers valid, at worst one short.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Histograms of durations by a label of few values.
#[derive(Debug, Default)]
pub struct Durations(Mutex<BTreeMap<&'static str, Histogram>>);

impl Durations {
    pub fn observe(&self, label: &'static str, duration: Duration) {
        lock(&self.0).entry(label).or_insert_with(seconds).observe(duration.as_secs_f64());
    }

    pub(super) fn rows(&self) -> Vec<(&'static str, Histogram)> {
        lock(&self.0).iter().map(|(label, histogram)| (*label, histogram.clone())).collect()
    }
}

/// How full the tables of flows were when they were last walked through: entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableEntries {
    pub flows_ipv4: u64,
    pub flows_ipv6: u64,
    pub half_open_ipv4: u64,
    pub half_open_ipv6: u64,
}

/// The daemon's loop: what it did, and how long nothing else could be done meanwhile.
#[derive(Debug)]
pub struct LoopMetrics {
    /// By kind of work, e.g. `health`.
    pub work: Durations,
    late: Histogram,
    probes_late: Histogram,
    converge: Histogram,
    converge_failures: AtomicU64,
    actions: Histogram,
    slots: Histogram,
    /// By service and the state that was entered.
    health: Mutex<BTreeMap<(String, &'static str), u64>>,
    hops: [AtomicU64; 2],
    links: AtomicU64,
    changes: [AtomicU64; 2],
    tables: Mutex<TableEntries>,
}

impl Default for LoopMetrics {
    fn default() -> Self {
        Self {
            work: Durations::default(),
            late: seconds(),
            probes_late: seconds(),
            converge: seconds(),
            converge_failures: AtomicU64::default(),
            actions: sizes(),
            slots: sizes(),
            health: Mutex::default(),
            hops: Default::default(),
            links: AtomicU64::default(),
            changes: Default::default(),
            tables: Mutex::default(),
        }
    }
}

impl LoopMetrics {
    /// The timer of the loop fired so much after its time.
    pub fn late(&self, by: Duration) {
        self.late.observe(by.as_secs_f64());
    }

    /// A health check began so much after its time.
    pub fn probe_late(&self, by: Duration) {
        self.probes_late.observe(by.as_secs_f64());
    }

    /// The maps were made what is wished for; `None`: they could not be.
    pub fn converged(&self, took: Duration, actions: Option<&[Action]>) {
        self.converge.observe(took.as_secs_f64());
        let Some(actions) = actions else {
            self.converge_failures.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let moved: usize = actions
            .iter()
            .map(|action| match action {
                Action::Slots { words, .. } => {
                    words.iter().filter(|(_, old, new)| old.owner() != new.owner()).count()
                }
                Action::Ring { old: Some(old), new: Some(new), .. } => {
                    old.iter().zip(new).filter(|(old, new)| old.owner() != new.owner()).count()
                }
                _ => 0,
            })
            .sum();
        self.actions.observe(actions.len() as f64);
        self.slots.observe(moved as f64);
    }

    /// A backend of the service came into the state.
    pub fn health_changed(&self, service: &str, state: Health) {
        let state = match state {
            Health::Up => "up",
            Health::Down => "down",
            Health::Unknown => "unknown",
        };
        *lock(&self.health).entry((service.to_owned(), state)).or_default() += 1;
    }

    /// Forgets the services that `keep` denies.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.health).retain(|(service, _), _| keep(service));
    }

    pub fn hop_changed(&self, found: bool) {
        self.hops[usize::from(found)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn links_changed(&self) {
        self.links.fetch_add(1, Ordering::Relaxed);
    }

    /// A change was asked for at run time.
    pub fn asked(&self, applied: bool) {
        self.changes[usize::from(applied)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn set_tables(&self, entries: TableEntries) {
        *lock(&self.tables) = entries;
    }

    pub fn tables(&self) -> TableEntries {
        *lock(&self.tables)
    }

    pub(super) fn times(&self) -> [&Histogram; 3] {
        [&self.late, &self.probes_late, &self.converge]
    }

    pub(super) fn plans(&self) -> [&Histogram; 2] {
        [&self.actions, &self.slots]
    }

    pub(super) fn health_rows(&self) -> Vec<((String, &'static str), u64)> {
        lock(&self.health).iter().map(|(key, count)| (key.clone(), *count)).collect()
    }

    /// Converges that failed, and changes of links.
    pub(super) fn counts(&self) -> [u64; 2] {
        [&self.converge_failures, &self.links].map(|count| count.load(Ordering::Relaxed))
    }

    /// Next hops lost and found, changes refused and applied.
    pub(super) fn pairs(&self) -> [[u64; 2]; 2] {
        [&self.hops, &self.changes].map(|pair| [0, 1].map(|at: usize| pair[at].load(Ordering::Relaxed)))
    }
}
