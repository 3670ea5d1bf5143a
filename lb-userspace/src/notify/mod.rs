//! Commands that are told of changes of state, as keepalived's `notify` scripts are.
//!
//! Each hook has a task of its own and a queue: its commands run one after the other, in the order of the events, and nobody
//! waits for them. What finds the queue full is dropped, logged and counted.

use crate::{
    command,
    events::{Event, Kind},
    metrics::{NotifyMetrics, NotifyResult},
    model::{HookSpec, ServiceName},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Events that wait for one hook at most.
pub const QUEUE: usize = 256;

/// Who a hook is: a service whose events alone it hears of, or none and it hears of all; and what it runs.
pub type Key = (Option<ServiceName>, HookSpec);

/// The hooks in force; clones are the same.
#[derive(Debug, Default, Clone)]
pub struct Notifier {
    hooks: Arc<Mutex<BTreeMap<Key, Hook>>>,
    metrics: Arc<NotifyMetrics>,
}

#[derive(Debug)]
struct Hook {
    queue: mpsc::Sender<Arc<Event>>,
    task: JoinHandle<()>,
}

impl Notifier {
    /// No hooks yet.
    #[must_use]
    pub fn new(metrics: Arc<NotifyMetrics>) -> Self {
        Self { hooks: Arc::default(), metrics }
    }

    /// Replaces the hooks. Those that stay go on with what waits for them; those that go still finish it. To be called
    /// inside a tokio runtime.
    pub fn set_hooks(&self, wanted: impl IntoIterator<Item = Key>) {
        let wanted: BTreeSet<Key> = wanted.into_iter().collect();
        let mut hooks = self.hooks();
        hooks.retain(|key, _| wanted.contains(key));
        for key in wanted {
            let metrics = &self.metrics;
            hooks.entry(key).or_insert_with_key(|(_, spec)| {
                let (sender, queue) = mpsc::channel(QUEUE);
                Hook { queue: sender, task: tokio::spawn(work(spec.clone(), queue, metrics.clone())) }
            });
        }
    }

    fn hooks(&self) -> MutexGuard<'_, BTreeMap<Key, Hook>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all hooks away, and waits until they have run for what they were told, at most so long.
    pub async fn finish(&self, patience: Duration) {
        let hooks = std::mem::take(&mut *self.hooks());
        let all = async {
            for (_, Hook { queue, task }) in hooks {
                drop(queue);
                // A panic was reported by the hook of panics.
                let _ = task.await;
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::error!(?patience, "notify commands still run at the end: they are left behind");
        }
    }

    /// Tells every hook that wants to know; never waits.
    pub fn tell(&self, event: &Arc<Event>) {
        for ((service, spec), Hook { queue, .. }) in &*self.hooks() {
            // An instance may have the name of a service.
            let other = |service: &ServiceName| event.kind == Kind::Pair || service.as_str() != event.service;
            if service.as_ref().is_some_and(other) {
                continue;
            }
            if queue.try_send(event.clone()).is_err() {
                self.metrics.record(NotifyResult::Dropped);
                let command = spec.command.join(" ");
                tracing::error!(command, %event, "{QUEUE} events wait for this notify command: it is not told of this one");
            }
        }
    }
}

async fn work(spec: HookSpec, mut queue: mpsc::Receiver<Arc<Event>>, metrics: Arc<NotifyMetrics>) {
    while let Some(event) = queue.recv().await {
        metrics.record(run(&spec, &event).await);
    }
}

/// Runs the command for one event.
async fn run(spec: &HookSpec, event: &Event) -> NotifyResult {
    let (seq, time) = (event.seq.to_string(), event.time_ms.to_string());
    let (kind, backend) = (event.kind.capitals(), event.backend.as_deref().unwrap_or("-"));
    let arguments = [kind, &event.service, backend, &event.from, &event.to, &event.reason];
    let variables = [
        ("LBD_TYPE", kind),
        ("LBD_SERVICE", &event.service),
        ("LBD_BACKEND", event.backend.as_deref().unwrap_or("")),
        ("LBD_FROM", &event.from),
        ("LBD_TO", &event.to),
        ("LBD_REASON", &event.reason),
        ("LBD_SEQ", &seq),
        ("LBD_TIME_MS", &time),
    ];
    let run = command::run(&spec.command, &arguments, &variables, &spec.user);
    let command = || spec.command.join(" ");
    match tokio::time::timeout(spec.timeout, run).await {
        Ok(Ok(())) => {
            tracing::debug!(command = command(), %event, "notify command done");
            NotifyResult::Ok
        }
        Ok(Err(error)) => {
            tracing::error!(command = command(), %event, %error, "notify command failed");
            NotifyResult::Failed
        }
        Err(_) => {
            tracing::error!(command = command(), %event, timeout = ?spec.timeout, "notify command ended: it took too long");
            NotifyResult::Timeout
        }
    }
}

#[cfg(test)]
mod tests;
