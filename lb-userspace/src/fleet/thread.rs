//! The thread: one member of etcd after the other until one answers, and what is known meanwhile.

use super::{
    NodeRecord, Request,
    contact::explain,
    election::{Election, Holder, Lease},
    handle::{FleetError, Shared},
    session::{self, Ended},
};
use std::{
    collections::BTreeMap,
    future::pending,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, sleep_until, timeout},
};

/// Between two rounds over all members, the first time and at most; each time up to half more or less.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// How long etcd may take to take the lease back as the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// What outlives a connection.
pub(super) struct State {
    pub shared: Arc<Shared>,
    election: Mutex<Told>,
    /// The lease is another one, or good for longer.
    renewed: Notify,
}

#[derive(Default)]
struct Told {
    election: Election,
    told: super::Authority,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.election.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lease(&self) -> Option<Lease> {
        self.lock().election.lease()
    }

    pub fn set_lease(&self, lease: Option<Lease>) {
        self.lock().election.set_lease(lease);
        self.settle();
        self.renewed.notify_one();
    }

    pub fn learn_holder(&self, holder: Option<Holder>, revision: u64) {
        self.lock().election.learn(holder, revision);
        self.settle();
    }

    pub fn learn_holder_anew(&self, holder: Option<Holder>, revision: u64) {
        self.lock().election.learn_anew(holder, revision);
        self.settle();
    }

    pub fn may_stand(&self) -> bool {
        self.shared.stands() && self.lock().election.is_open(Instant::now())
    }

    /// Tells the engine who the authority is, if that is another one than it was told.
    fn settle(&self) {
        let mut told = self.lock();
        let now = told.election.authority(Instant::now());
        if told.told != now {
            told.told = now.clone();
            self.shared.tell(|news| news.authority = Some(now));
        }
    }

    /// Ends this node's authority with its lease, whatever else is waited for.
    async fn guard(&self) {
        loop {
            let until = self.lease().map(|lease| lease.until).filter(|until| *until > Instant::now());
            tokio::select! {
                () = async { match until {
                    Some(until) => sleep_until(until.into()).await,
                    None => pending().await,
                } } => self.settle(),
                () = self.renewed.notified() => {}
            }
        }
    }
}

/// A random number, good enough not to do the same as all others.
pub(super) fn arbitrary() -> u64 {
    RandomState::new().build_hasher().finish()
}

pub(super) async fn run(
    shared: Arc<Shared>,
    records: watch::Receiver<Option<NodeRecord>>,
    requests: mpsc::Receiver<Request>,
    mut stop: watch::Receiver<bool>,
) {
    let state = State { shared, election: Mutex::default(), renewed: Notify::new() };
    let mut client = None;
    tokio::select! {
        () = connect_for_ever(&state, &mut client, records, requests) => {}
        () = state.guard() => {}
        // An error says that nobody holds the handle any more.
        _ = stop.wait_for(|stop| *stop) => {}
    }
    if let (Some(mut client), Some(lease)) = (client, state.lease()) {
        let _ = timeout(FAREWELL, client.lease_revoke(lease.id)).await;
    }
}

async fn connect_for_ever(
    state: &State,
    client: &mut Option<etcd_client::Client>,
    mut records: watch::Receiver<Option<NodeRecord>>,
    mut requests: mpsc::Receiver<Request>,
) {
    let endpoints = &state.shared.config.endpoints;
    // Nodes that start together shall not all ask the same member.
    let mut next = arbitrary() as usize % endpoints.len();
    let mut failed = 0;
    let mut pause = PAUSES.0;
    // The last error of each that the log has as a warning.
    let mut told: BTreeMap<&str, String> = BTreeMap::new();
    loop {
        let endpoint = &endpoints[next];
        let begun = Instant::now();
        let Err(error) = session::hold(state, endpoint, client, &mut records, &mut requests).await;
        let was_connected = state.shared.view().endpoint.is_some();
        let error_said = explain(&state.shared.config, &error);
        let why = format!("{endpoint}: {error_said}");
        // One that ends as soon as it is there is no better than none.
        if was_connected && begun.elapsed() > PAUSES.1 {
            (failed, pause) = (0, PAUSES.0);
            told.clear();
        }
        let news = told.insert(endpoint, error_said.clone()).as_ref() != Some(&error_said);
        if news && was_connected {
            tracing::warn!(endpoint, error = error_said, "the connection to etcd ended");
        } else if news {
            tracing::warn!(endpoint, error = error_said, "etcd does not answer; it is asked again and again");
        } else {
            tracing::debug!(endpoint, error = error_said, took = ?begun.elapsed(), "etcd does not answer");
        }
        state.shared.show(|view| {
            view.endpoint = None;
            view.error = Some(why.clone());
        });
        if let Ended::Lease = error {
            // The member is well; what is gone is the lease.
            state.set_lease(None);
            continue;
        }
        next = (next + 1) % endpoints.len();
        failed += 1;
        if failed < endpoints.len() {
            continue;
        }
        failed = 0;
        let jitter = pause / 2 + pause.mul_f64((arbitrary() % 1000) as f64 / 1000.0);
        pause = (pause * 2).min(PAUSES.1);
        refuse_for(jitter, &why, &mut requests).await;
    }
}

/// Waits; whoever asks meanwhile is told why there is no answer.
async fn refuse_for(time: Duration, why: &str, requests: &mut mpsc::Receiver<Request>) {
    let over = sleep(time);
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return,
            Some(request) = requests.recv() => {
                let error = FleetError::Unreachable(why.to_owned());
                match request {
                    Request::Get(reply) => drop(reply.send(Err(error))),
                    Request::Put { reply, .. } => drop(reply.send(Err(error))),
                }
            }
        }
    }
}
