//! What the daemon counts itself, apart from the kernel's counters.

use prometheus_client::metrics::histogram::Histogram;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper bounds in seconds: a LAN answers below a millisecond, a timeout may be many seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Handles to everything the daemon's tasks report; clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Instruments {
    pub pulse: Arc<super::pulse::LoopMetrics>,
    /// Durations of requests to the control API.
    pub requests: Arc<super::pulse::Durations>,
    pub health: Arc<HealthMetrics>,
    pub reloads: Arc<ReloadMetrics>,
    pub notify: Arc<NotifyMetrics>,
    pub sync: Arc<super::SyncMetrics>,
}

/// Durations and failures of health checks, by service and type of check. There is no series per
/// backend: a histogram is 16 series.
#[derive(Debug, Default)]
pub struct HealthMetrics {
    series: Mutex<BTreeMap<(String, &'static str), HealthSeries>>,
}

#[derive(Debug, Clone)]
pub(super) struct HealthSeries {
    pub duration: Histogram,
    pub failures: u64,
    /// Checks that could not be run.
    pub prevented: u64,
}

impl Default for HealthSeries {
    fn default() -> Self {
        Self { duration: Histogram::new(BUCKETS), failures: 0, prevented: 0 }
    }
}

impl HealthMetrics {
    /// Counts one finished check; `kind` is its type as in the configuration, e.g. `tcp`.
    pub fn observe(&self, service: &str, kind: &'static str, duration: Duration, ok: bool) {
        let mut all = self.lock();
        let series = all.entry((service.to_owned(), kind)).or_default();
        series.duration.observe(duration.as_secs_f64());
        series.failures += u64::from(!ok);
    }

    /// Counts a check that could not be run, which says nothing about the backend.
    pub fn prevented(&self, service: &str, kind: &'static str) {
        self.lock().entry((service.to_owned(), kind)).or_default().prevented += 1;
    }

    /// Forgets the services that `keep` denies; to be called when services were removed.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.lock().retain(|(service, _), _| keep(service));
    }

    pub(super) fn rows(&self) -> Vec<(String, &'static str, HealthSeries)> {
        self.lock().iter().map(|((service, kind), series)| (service.clone(), *kind, series.clone())).collect()
    }

    // A panic while the lock is held leaves the numbers valid, at worst one short.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, &'static str), HealthSeries>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a notify command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotifyResult {
    Ok,
    /// It could not be started, or ended with another status than 0.
    Failed,
    /// It was ended for taking too long.
    Timeout,
    /// It was not run: too many events waited for it already.
    Dropped,
}

impl NotifyResult {
    const ALL: [(&'static str, Self); 4] =
        [("ok", Self::Ok), ("failed", Self::Failed), ("timeout", Self::Timeout), ("dropped", Self::Dropped)];
}

/// What became of notify commands.
#[derive(Debug, Default)]
pub struct NotifyMetrics([AtomicU64; 4]);

impl NotifyMetrics {
    pub fn record(&self, result: NotifyResult) {
        self.0[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often each result came about, in the order of [`NotifyResult`].
    pub fn counts(&self) -> [u64; 4] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    pub(super) fn rows(&self) -> [(&'static str, u64); 4] {
        let counts = self.counts();
        NotifyResult::ALL.map(|(name, result)| (name, counts[result as usize]))
    }
}

/// How reloads of the configuration ended.
#[derive(Debug, Default)]
pub struct ReloadMetrics {
    applied: AtomicU64,
    refused: AtomicU64,
    last_refused: AtomicBool,
}

impl ReloadMetrics {
    /// Counts one reload: `true` if the file is now in force, `false` if it was refused.
    pub fn record(&self, applied: bool) {
        let counter = if applied { &self.applied } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        self.last_refused.store(!applied, Ordering::Relaxed);
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn last_successful(&self) -> bool {
        !self.last_refused.load(Ordering::Relaxed)
    }
}
