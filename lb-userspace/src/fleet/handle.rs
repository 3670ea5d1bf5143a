//! What the engine holds of the fleet's thread.

use super::{Authority, NodeRecord, PutRecord, thread};
use crate::config::FleetConfig;
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::Builder,
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

/// Requests that wait at most.
const QUEUE: usize = 16;

/// The document as etcd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub key: String,
    /// The revision of etcd that wrote it.
    pub generation: u64,
    /// TOML, unchecked.
    pub text: String,
    /// Who wrote it, if that was done through lbd.
    pub put: Option<PutRecord>,
}

/// What is known of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The member that answers; none while nobody does.
    pub endpoint: Option<String>,
    /// Why nobody does.
    pub error: Option<String>,
    /// Generation of the document in etcd, as last seen; none if there is none.
    pub stored: Option<u64>,
    /// Who wrote it.
    pub put: Option<PutRecord>,
    /// Nodes with a lease, by name, as last seen.
    pub nodes: BTreeMap<String, NodeRecord>,
    /// Another daemon has registered under this node's name.
    pub namesake: bool,
}

/// What has come since the last look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    /// The latest document, if it is another one.
    pub document: Option<Document>,
    /// The document is deleted.
    pub deleted: bool,
    pub authority: Option<Authority>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    #[error("etcd does not answer: {0}")]
    Unreachable(String),
    #[error(
        "the document in etcd is of generation {found}, not {expected}: somebody has changed it since; get it, and put your change into that"
    )]
    Moved { expected: u64, found: u64 },
    #[error("etcd did not take it: {0}")]
    Refused(String),
    #[error(
        "no answer of etcd ({0}); it may have taken the document: look (`lbctl fleet status`) before you repeat it"
    )]
    Unknown(String),
}

/// What etcd is asked for.
#[derive(Debug)]
pub enum Request {
    Get(oneshot::Sender<Result<Option<Document>, FleetError>>),
    /// Writes the document if the one in etcd is of generation `expected` (0: if there is none), and answers with its generation.
    Put {
        text: String,
        expected: u64,
        record: PutRecord,
        reply: oneshot::Sender<Result<u64, FleetError>>,
    },
}

/// What both sides see.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: FleetConfig,
    pub node: String,
    view: Mutex<View>,
    news: Mutex<News>,
    told: Arc<Notify>,
    stands: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Changes the view.
    pub fn show(&self, change: impl FnOnce(&mut View)) {
        change(&mut lock(&self.view));
    }

    pub fn view(&self) -> View {
        lock(&self.view).clone()
    }

    pub fn stands(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }

    /// Tells the engine.
    pub fn tell(&self, change: impl FnOnce(&mut News)) {
        change(&mut lock(&self.news));
        self.told.notify_one();
    }
}

/// The fleet's thread. Dropping it ends the thread without a word to etcd; [`FleetHandle::stop`] gives the lease back.
#[derive(Debug)]
pub struct FleetHandle {
    shared: Arc<Shared>,
    record: watch::Sender<Option<NodeRecord>>,
    requests: mpsc::Sender<Request>,
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<()>,
}

impl FleetHandle {
    /// Starts the thread, which connects by itself for as long as it takes. `told` is woken whenever [`FleetHandle::take`] has something.
    pub fn spawn(config: FleetConfig, node: String, told: Arc<Notify>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            config,
            node,
            view: Mutex::new(View { error: Some("not asked yet".to_owned()), ..View::default() }),
            news: Mutex::default(),
            told,
            stands: AtomicBool::new(true),
        });
        let (record, records) = watch::channel(None);
        let (requests, asked) = mpsc::channel(QUEUE);
        let (stop, stopped) = watch::channel(false);
        let (ending, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let of_thread = Arc::clone(&shared);
        Builder::new().name("lbd-fleet".to_owned()).spawn(move || {
            runtime.block_on(thread::run(of_thread, records, asked, stopped));
            drop(ending);
        })?;
        Ok(Self { shared, record, requests, stop, ended })
    }

    /// The settings it was started with: those of the section, and the node's name.
    #[must_use]
    pub fn settings(&self) -> (&FleetConfig, &str) {
        (&self.shared.config, &self.shared.node)
    }

    #[must_use]
    pub fn view(&self) -> View {
        self.shared.view()
    }

    /// What has come since the last look.
    #[must_use]
    pub fn take(&self) -> News {
        std::mem::take(&mut *lock(&self.shared.news))
    }

    /// What this node says of itself from now on.
    pub fn register(&self, record: NodeRecord) {
        self.record.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&record);
            if differs {
                *known = Some(record);
            }
            differs
        });
    }

    /// Whether this node stands for election where there is no authority; it does until it is told otherwise. One that is
    /// elected already stays so.
    pub fn stand(&self, stands: bool) {
        self.shared.stands.store(stands, Ordering::Relaxed);
    }

    /// Passes a request on; gives it back where too many wait.
    pub fn ask(&self, request: Request) -> Result<(), Request> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(request) | mpsc::error::TrySendError::Closed(request) => request,
        })
    }

    /// Gives the lease back, at once and without waiting: another node may be the authority then.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the thread has ended, at most so long.
    pub async fn ended(self, patience: Duration) {
        let _ = timeout(patience, self.ended).await;
    }
}
