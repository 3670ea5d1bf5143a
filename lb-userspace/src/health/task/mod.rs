//! The task that runs the health checks.
//!
//! One loop owns everything: it *waits* for new targets, the end of a check, the next check's time or
//! room in the event channel; *feeds* what came into the pure `Roster`; *publishes* the transitions;
//! and *drains*: whatever else is ready by then is dealt with before it waits again. Each check runs as
//! a tokio task of its own, owned by the loop's `JoinSet`.
//!
//! Cancel safety. Each branch of the loop's `select!` can be dropped without loss: `mpsc::UnboundedReceiver::recv`,
//! `JoinSet::join_next` and `mpsc::Sender::reserve` take nothing before they complete, `mpsc::Sender::closed` and a timer hold no data. Nothing else in the loop awaits. A check that
//! is aborted (its target is gone, or the loop ended) drops its socket and nothing else.
//!
//! A receiver that does not keep up delays nobody: transitions wait in the `Outbox`, one per target.

mod outbox;
mod roster;

use super::{
    probe::{Deadline, ProbeFailure},
    schedule::Id,
    via::VipWay,
};
use crate::model::{BackendName, Health, HealthSpec, ServiceName};
use indexmap::IndexMap;
use outbox::Outbox;
use roster::{Applied, Job, Roster};
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinHandle, JoinSet},
};

/// Checks that run at once at most, where the limit of open files does not ask for less.
const MAX_RUNNING: usize = 8192;
/// With more targets than this, checks begin in groups, so far apart: a CPU that is woken for each of them, and for each answer,
/// is as busy with that as with the checks.
const MANY: usize = 500;
/// See [`MANY`].
const GRAIN: Duration = Duration::from_millis(4);
/// Complaints about this host (out of descriptors and the like) come at most this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Names what is checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetKey {
    pub service: ServiceName,
    pub backend: BackendName,
}

impl TargetKey {
    /// A backend of a service.
    #[must_use]
    pub fn of(service: &ServiceName, backend: &BackendName) -> Self {
        Self { service: service.clone(), backend: backend.clone() }
    }
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// One backend of one service, and how it is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub key: TargetKey,
    /// The backend's address and port; `spec.port` replaces the port for the check.
    pub address: SocketAddr,
    /// Where not empty, the check goes to each of these addresses on the backend, by the [`VipWay`].
    pub vips: Arc<[IpAddr]>,
    pub spec: Arc<HealthSpec>,
    /// What is known of it, from before a restart for example; counts only when the target is new or
    /// has another address.
    pub initial: Health,
}

/// A change of a target's health, or of what it is fit for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthEvent {
    pub key: TargetKey,
    /// The [`Target::address`] this is about. An event may still be in the channel when its target is
    /// removed or gets another address: compare.
    pub address: SocketAddr,
    pub health: Health,
    /// The health of the event before; of the first one, [`Target::initial`]. Differs from `health`, unless
    /// `stands_in` has changed.
    pub previous: Health,
    /// It is fit to stand in for others, and for no more. False until a check says so.
    pub stands_in: bool,
    /// The same of the event before.
    pub stood_in: bool,
    /// For the operator.
    pub reason: String,
    pub at: SystemTime,
}

/// What is known of a target at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// As in [`Target::address`].
    pub address: SocketAddr,
    pub health: Health,
    /// As in [`HealthEvent::stands_in`]; kept while checks fail.
    pub stands_in: bool,
    /// When the health changed; `None` if it has not since the target was added.
    pub since: Option<SystemTime>,
    pub last: LastResult,
    /// The last failed check since the target was added or its check was changed.
    pub last_failure: Option<Arc<ProbeFailure>>,
}

/// The result of the last check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastResult {
    /// There is no check.
    NotChecked,
    /// The first check has not ended.
    Waiting,
    Passed,
    Failed(Arc<ProbeFailure>),
    /// The check could not be run, which says nothing about the backend.
    Inconclusive(Arc<ProbeFailure>),
}

impl TargetStatus {
    /// Why the health is what it is, for the operator.
    pub fn reason(&self) -> String {
        let health = self.health;
        match &self.last {
            LastResult::NotChecked => "not checked".to_owned(),
            LastResult::Waiting => "the first check has not ended".to_owned(),
            LastResult::Inconclusive(failure) => failure.to_string(),
            LastResult::Passed => match (health, &self.last_failure) {
                (Health::Up, _) if self.stands_in => "check passed: it stands in for others".to_owned(),
                (Health::Up, _) => "check passed".to_owned(),
                (Health::Down, Some(failure)) => {
                    format!("check passed, not often enough yet; before that: {failure}")
                }
                (Health::Unknown, _) | (Health::Down, None) => {
                    "check passed, not often enough yet".to_owned()
                }
            },
            LastResult::Failed(failure) => match health {
                Health::Down => failure.to_string(),
                Health::Up | Health::Unknown => {
                    format!("{failure} (still {health}: it has not failed often enough)")
                }
            },
        }
    }
}

/// Is told of every check that ended, for the metrics.
pub trait ProbeObserver: Send + Sync {
    /// Called by the task's loop, so it must be quick. Not called for a target that was removed
    /// meanwhile, nor for a check that could not be run.
    fn observed(&self, key: &TargetKey, kind: &'static str, duration: Duration, ok: bool);

    /// A check could not be run, for a reason that lies on this node.
    fn prevented(&self, _key: &TargetKey, _kind: &'static str) {}

    /// A check began, so much after the time it was due.
    fn begun(&self, _late: Duration) {}
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl ProbeObserver for NoObserver {
    fn observed(&self, _key: &TargetKey, _kind: &'static str, _duration: Duration, _ok: bool) {}
}

/// Starts the task.
#[derive(Debug)]
pub struct HealthTask;

impl HealthTask {
    /// Starts without targets, in the present tokio runtime. The task ends when the handle or the
    /// receiver of `events` is dropped; `events` closes when the task ends.
    pub fn spawn(events: mpsc::Sender<HealthEvent>, observer: Arc<dyn ProbeObserver>) -> HealthHandle {
        Self::spawn_by(events, observer, max_running(), VipWay::default())
    }

    /// The same with a way to targets that have [`Target::vips`].
    pub fn spawn_via(
        events: mpsc::Sender<HealthEvent>,
        observer: Arc<dyn ProbeObserver>,
        way: VipWay,
    ) -> HealthHandle {
        Self::spawn_by(events, observer, max_running(), way)
    }

    /// The same with at most `max_running` checks at once.
    pub fn spawn_limited(
        events: mpsc::Sender<HealthEvent>,
        observer: Arc<dyn ProbeObserver>,
        max_running: usize,
    ) -> HealthHandle {
        Self::spawn_by(events, observer, max_running, VipWay::default())
    }

    fn spawn_by(
        events: mpsc::Sender<HealthEvent>,
        observer: Arc<dyn ProbeObserver>,
        max_running: usize,
        way: VipWay,
    ) -> HealthHandle {
        let (targets, wanted) = mpsc::unbounded_channel();
        let board = Arc::new(Board::default());
        let shell = Shell {
            observer,
            way,
            max_running: max_running.max(1),
            board: Arc::clone(&board),
            roster: Roster::default(),
            outbox: Outbox::default(),
            checks: JoinSet::new(),
            running: HashMap::new(),
            complained: None,
            begun: Instant::now(),
        };
        HealthHandle { targets, board, task: tokio::spawn(shell.run(wanted, events)) }
    }
}

/// Who is checked from now on.
#[derive(Debug)]
enum Targets {
    All(Vec<Target>),
    /// As before, but for these.
    Some {
        gone: Vec<TargetKey>,
        set: Vec<Target>,
    },
}

/// Half of the files this process may open: the rest is for everybody else in the daemon.
fn max_running() -> usize {
    let limit = std::fs::read_to_string("/proc/self/limits").ok().and_then(|limits| {
        let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        soft.split_whitespace().next()?.parse::<usize>().ok()
    });
    limit.map_or(MAX_RUNNING, |limit| (limit / 2).clamp(16, MAX_RUNNING))
}

/// The way to the task; dropping it ends the task and every check.
#[derive(Debug)]
pub struct HealthHandle {
    targets: mpsc::UnboundedSender<Targets>,
    board: Arc<Board>,
    task: JoinHandle<()>,
}

impl HealthHandle {
    /// Gives the whole set of targets from now on. Targets as before keep their state; one whose `spec`
    /// changed keeps its health and starts to count anew; one with another address is a new one. Of two
    /// with one key the first counts. Returns at once.
    pub fn set_targets(&self, targets: Vec<Target>) {
        // The task ends after this handle does, or because nobody takes its events any more.
        let _ = self.targets.send(Targets::All(targets));
    }

    /// As [`HealthHandle::set_targets`] for a few: removes those, and adds or replaces these.
    pub fn change_targets(&self, gone: Vec<TargetKey>, set: Vec<Target>) {
        let _ = self.targets.send(Targets::Some { gone, set });
    }

    /// What is known of every target.
    pub fn statuses(&self) -> HashMap<TargetKey, TargetStatus> {
        self.board.lock().iter().map(|(key, status)| (key.clone(), (**status).clone())).collect()
    }

    /// What is known of one target; `None` until the task has taken it over.
    pub fn status(&self, key: &TargetKey) -> Option<TargetStatus> {
        self.board.lock().get(key).map(|status| (**status).clone())
    }

    /// [`TargetStatus::reason`] of every target.
    pub fn reasons(&self) -> HashMap<TargetKey, String> {
        self.board.lock().iter().map(|(key, status)| (key.clone(), status.reason())).collect()
    }

    /// Ends the task and waits until it and every check are gone. An error means that it had panicked.
    pub async fn stop(self) -> Result<(), JoinError> {
        drop(self.targets);
        self.task.await
    }
}

/// The statuses, shared with whoever asks; written only when one changes.
#[derive(Debug, Default)]
struct Board(Mutex<IndexMap<TargetKey, Arc<TargetStatus>>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, IndexMap<TargetKey, Arc<TargetStatus>>> {
        // Every write is a whole insert or remove: what a panicking writer leaves is sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ended {
    id: Id,
    duration: Duration,
    result: Result<(), ProbeFailure>,
}

struct Shell {
    observer: Arc<dyn ProbeObserver>,
    way: VipWay,
    max_running: usize,
    board: Arc<Board>,
    roster: Roster,
    outbox: Outbox,
    /// The running checks and, for a moment, those just aborted.
    checks: JoinSet<Ended>,
    running: HashMap<Id, AbortHandle>,
    complained: Option<Instant>,
    /// From where the groups of checks are counted.
    begun: Instant,
}

impl Shell {
    async fn run(mut self, mut wanted: mpsc::UnboundedReceiver<Targets>, events: mpsc::Sender<HealthEvent>) {
        loop {
            let next_due = if self.checks.len() < self.max_running { self.roster.next_due() } else { None };
            let next_due = next_due.map(|due| self.together(due));
            tokio::select! {
                biased;
                targets = wanted.recv() => {
                    let (now, wall) = (Instant::now(), SystemTime::now());
                    let applied = match targets {
                        Some(Targets::All(targets)) => self.roster.apply(&targets, now, wall),
                        Some(Targets::Some { gone, set }) => self.roster.change(&gone, &set, now, wall),
                        None => break,
                    };
                    self.applied(applied);
                }
                room = events.reserve(), if !self.outbox.is_empty() => match room {
                    Ok(room) => {
                        if let Some(event) = self.outbox.pop() {
                            room.send(event);
                        }
                    }
                    Err(_) => break,
                },
                () = events.closed() => break,
                Some(ended) = self.checks.join_next() => self.ended(ended),
                () = tokio::time::sleep_until(next_due.unwrap_or_else(Instant::now).into()),
                    if next_due.is_some() => {}
            }
            while let Some(ended) = self.checks.try_join_next() {
                self.ended(ended);
            }
            let now = Instant::now();
            while self.checks.len() < self.max_running {
                let due = self.roster.next_due();
                let Some(job) = self.roster.start(now) else { break };
                self.observer.begun(due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due)));
                self.start(job);
            }
            while !self.outbox.is_empty()
                && let Ok(room) = events.try_reserve()
            {
                if let Some(event) = self.outbox.pop() {
                    room.send(event);
                }
            }
        }
        self.checks.shutdown().await;
    }

    /// When a check that is due then begins.
    fn together(&self, due: Instant) -> Instant {
        if self.roster.len() <= MANY {
            return due;
        }
        let grain = GRAIN.as_nanos();
        let into = due.saturating_duration_since(self.begun).as_nanos() % grain;
        due + Duration::from_nanos(u64::try_from((grain - into) % grain).unwrap_or(0))
    }

    fn applied(&mut self, applied: Applied) {
        for id in applied.stop {
            if let Some(check) = self.running.remove(&id) {
                check.abort();
            }
        }
        let mut board = self.board.lock();
        for key in &applied.forget {
            self.outbox.forget(key);
            board.swap_remove(key);
        }
        board.extend(applied.statuses);
        drop(board);
        for event in applied.events {
            self.outbox.push(event);
        }
    }

    fn start(&mut self, job: Job) {
        let Job { id, key, aims, timeout } = job;
        let way = key.is_some().then(|| self.way.clone());
        let check = self.checks.spawn(async move {
            // The clock starts when the check does: time spent in the queue is not the backend's.
            let started = Instant::now();
            let deadline = Deadline::after(timeout);
            let result = match (way.zip(key), &*aims) {
                (Some((way, key)), _) => Box::pin(way.run(&key, aims, deadline)).await,
                (None, [aim, ..]) => aim.probe.run(aim.address, deadline).await,
                (None, []) => Err(ProbeFailure::Internal),
            };
            Ended { id, duration: started.elapsed(), result }
        });
        self.running.insert(id, check);
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) {
        let Ended { id, duration, result } = match ended {
            Ok(ended) => ended,
            Err(error) if error.is_panic() => {
                let Some(id) =
                    self.running.iter().find_map(|(id, task)| (task.id() == error.id()).then_some(*id))
                else {
                    return;
                };
                tracing::error!("a health check panicked: {error}");
                Ended { id, duration: Duration::ZERO, result: Err(ProbeFailure::Internal) }
            }
            // Aborted, because its target is gone.
            Err(_) => return,
        };
        self.running.remove(&id);
        let now = Instant::now();
        let ok = result.as_ref().map_or_else(ProbeFailure::stands_in, |()| true);
        let local = result.as_ref().err().filter(|failure| failure.is_local()).cloned();
        let Some(finished) = self.roster.finished(id, result, now, SystemTime::now()) else { return };
        match local {
            None => self.observer.observed(finished.key, finished.kind, duration, ok),
            Some(failure) => {
                self.observer.prevented(finished.key, finished.kind);
                if self.complained.is_none_or(|last| now - last >= COMPLAINT_INTERVAL) {
                    self.complained = Some(now);
                    tracing::warn!(target = %finished.key, "{failure}; its health stays as it is");
                }
            }
        }
        if let Some(status) = finished.status {
            self.board.lock().insert(finished.key.clone(), status);
        }
        if let Some(event) = finished.event {
            self.outbox.push(event);
        }
    }
}

#[cfg(test)]
mod tests;
