//! One connection to etcd: everything is read, then whatever changes is told as it changes.
//!
//! A connection that was lost is not resumed: reading everything anew costs one request, and no compaction of etcd's history can
//! get in between.

use super::{
    NodeRecord, PutRecord, Request,
    contact::contact,
    election::{Holder, Lease},
    handle::{Document, FleetError},
    thread::State,
};
use crate::config::read_password;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, KeyValue,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use std::{
    convert::Infallible,
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};

/// How long etcd may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a login, which is slow on purpose (bcrypt), and for what a user asks for, which may take one.
const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// A lease is renewed so many times before it would end.
const RENEWALS: u32 = 4;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Etcd(#[from] etcd_client::Error),
    #[error("no answer within {0:?}: {1}")]
    Silent(Duration, &'static str),
    #[error("{0}")]
    Refused(String),
    #[error("{}: {why}", file.display())]
    File { file: std::path::PathBuf, why: String },
    #[error("etcd ended the watch: {0}")]
    Watch(String),
    #[error("the lease has ended")]
    Lease,
}

async fn within<T, E: Into<Ended>>(
    what: &'static str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Ended> {
    limit(PATIENCE, what, answer).await
}

async fn limit<T, E: Into<Ended>>(
    patience: Duration,
    what: &'static str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Ended> {
    timeout(patience, answer).await.map_err(|_| Ended::Silent(patience, what))?.map_err(Into::into)
}

/// Connects, and stays connected until that fails. The client stays behind, for a farewell.
pub(super) async fn hold(
    state: &State,
    endpoint: &str,
    client: &mut Option<Client>,
    records: &mut watch::Receiver<Option<NodeRecord>>,
    requests: &mut mpsc::Receiver<Request>,
) -> Result<Infallible, Ended> {
    *client = None;
    let mut session = Session::open(state, connect(state, endpoint).await?).await?;
    *client = Some(session.client.clone());
    // A user who may only read shows here.
    let record = records.borrow().clone();
    session.register(record).await?;
    state.shared.show(|view| {
        view.endpoint = Some(endpoint.to_owned());
        view.error = None;
    });
    tracing::info!(endpoint, prefix = state.shared.config.prefix, "connected to etcd");
    session.run(records, requests).await
}

async fn connect(state: &State, endpoint: &str) -> Result<Client, Ended> {
    let config = &state.shared.config;
    let uri: http::Uri =
        endpoint.parse().map_err(|error| Ended::Etcd(etcd_client::Error::InvalidUri(error)))?;
    within("connecting", contact(config, &uri)).await?;
    let mut options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
    if let Some((user, file)) = &config.login {
        let password = read_password(file).map_err(|why| Ended::File { file: file.clone(), why })?;
        options = options.with_user(user, password);
    }
    if endpoint.starts_with("https") {
        let read = |file: &Path| {
            fs::read(file).map_err(|error| Ended::File { file: file.to_owned(), why: error.to_string() })
        };
        let mut tls = TlsOptions::new();
        tls = match &config.ca_file {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read(file)?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &config.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        options = options.with_tls(tls);
    }
    limit(LONG_PATIENCE, "logging in", Client::connect([endpoint], Some(options))).await
}

struct Session<'s> {
    state: &'s State,
    client: Client,
    keeper: LeaseKeeper,
    renewals: LeaseKeepAliveStream,
    watch: WatchStream,
    lease: Lease,
    /// When the renewal was sent that is not answered yet.
    sent: Option<Instant>,
    /// What is in etcd.
    document: Option<Document>,
    put: Option<(u64, PutRecord)>,
    registered: Option<NodeRecord>,
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl<'s> Session<'s> {
    async fn open(state: &'s State, mut client: Client) -> Result<Self, Ended> {
        let prefix = format!("{}/", state.shared.config.prefix);
        let all = Some(GetOptions::new().with_prefix());
        let found = within("reading", client.get(prefix.clone(), all)).await?;
        let revision = found.header().map_or(0, etcd_client::ResponseHeader::revision);
        let (lease, keeper, renewals) = lease(state, &mut client).await?;
        let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let watch = within("watching", client.watch(prefix, Some(options))).await?;
        let (document, put, registered) = Default::default();
        let mut session =
            Self { state, client, keeper, renewals, watch, lease, sent: None, document, put, registered };
        session.learn_all(found.kvs(), unsigned(revision));
        Ok(session)
    }

    async fn run(
        &mut self,
        records: &mut watch::Receiver<Option<NodeRecord>>,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Result<Infallible, Ended> {
        let mut tick = interval(self.lease.ttl / RENEWALS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let record = records.borrow_and_update().clone();
            self.register(record).await?;
            self.stand().await?;
            tokio::select! {
                message = self.watch.message() => {
                    let message = message?.ok_or_else(|| Ended::Watch("without a reason".to_owned()))?;
                    if message.canceled() {
                        return Err(Ended::Watch(message.cancel_reason().to_owned()));
                    }
                    self.learn(message.events());
                }
                answer = self.renewals.message() => {
                    let answer = answer?.ok_or(Ended::Lease)?;
                    if answer.ttl() <= 0 {
                        return Err(Ended::Lease);
                    }
                    if let Some(sent) = self.sent.take() {
                        let ttl = Duration::from_secs(unsigned(answer.ttl()));
                        self.state.set_lease(Some(Lease::renewed(self.lease.id, ttl, sent)));
                    }
                }
                _ = tick.tick() => {
                    if self.sent.is_some_and(|sent| sent.elapsed() > PATIENCE.min(self.lease.ttl / 2)) {
                        return Err(Ended::Silent(PATIENCE, "renewing the lease"));
                    }
                    if self.sent.is_none() {
                        self.sent = Some(Instant::now());
                        self.keeper.keep_alive().await?;
                    }
                }
                // An error says that the engine has gone, and this thread goes with it.
                Ok(()) = records.changed() => {}
                Some(request) = requests.recv() => self.serve(request),
            }
        }
    }

    /// Puts this node's record where all can see it.
    async fn register(&mut self, record: Option<NodeRecord>) -> Result<(), Ended> {
        if record.is_none() || record == self.registered {
            return Ok(());
        }
        let key = format!("{}/nodes/{}", self.state.shared.config.prefix, self.state.shared.node);
        let value = serde_json::to_string(&record).unwrap_or_default();
        let options = Some(PutOptions::new().with_lease(self.lease.id));
        within("registering", self.client.put(key, value, options)).await?;
        self.registered = record;
        Ok(())
    }

    /// Makes this node the authority if there is none.
    async fn stand(&mut self) -> Result<(), Ended> {
        if !self.state.may_stand() {
            return Ok(());
        }
        let key = format!("{}/authority", self.state.shared.config.prefix);
        let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
        let put = TxnOp::put(
            key.clone(),
            self.state.shared.node.clone(),
            Some(PutOptions::new().with_lease(self.lease.id)),
        );
        let txn = Txn::new().when([free]).and_then([put]).or_else([TxnOp::get(key, None)]);
        let answer = within("standing for election", self.client.txn(txn)).await?;
        let revision = unsigned(answer.header().map_or(0, etcd_client::ResponseHeader::revision));
        let holder = if answer.succeeded() {
            let node = self.state.shared.node.clone();
            Some(Holder { node, lease: self.lease.id, epoch: revision })
        } else {
            answer.op_responses().first().and_then(|response| match response {
                TxnOpResponse::Get(found) => found.kvs().first().map(holder),
                _ => None,
            })
        };
        self.state.learn_holder(holder, revision);
        Ok(())
    }

    /// Everything under the prefix, as of a revision.
    fn learn_all(&mut self, found: &[KeyValue], revision: u64) {
        self.state.shared.show(|view| {
            view.nodes.clear();
            view.namesake = false;
        });
        let mut of_authority = None;
        for pair in found {
            match self.name_of(pair).as_deref() {
                Some("authority") => of_authority = Some(holder(pair)),
                Some(_) => self.learn_one(pair, false),
                None => {}
            }
        }
        self.state.learn_holder_anew(of_authority, revision);
        self.tell_document(true);
    }

    /// What one or several transactions changed.
    fn learn(&mut self, events: &[etcd_client::Event]) {
        let before = self.document.as_ref().map(|document| document.generation);
        for event in events {
            let Some(pair) = event.kv() else { continue };
            let gone = event.event_type() == EventType::Delete;
            if self.name_of(pair).as_deref() == Some("authority") {
                let holder = (!gone).then(|| holder(pair));
                self.state.learn_holder(holder, unsigned(pair.mod_revision()));
            } else {
                self.learn_one(pair, gone);
            }
        }
        if self.document.as_ref().map(|document| document.generation) != before {
            self.tell_document(false);
        }
    }

    /// What follows the prefix.
    fn name_of(&self, pair: &KeyValue) -> Option<String> {
        let name = pair.key().strip_prefix(self.state.shared.config.prefix.as_bytes())?.strip_prefix(b"/")?;
        String::from_utf8(name.to_vec()).ok()
    }

    fn learn_one(&mut self, pair: &KeyValue, gone: bool) {
        let shared = &self.state.shared;
        let Some(name) = self.name_of(pair) else { return };
        let generation = unsigned(pair.mod_revision());
        if name == "config" {
            // A text that is none is refused like any other that cannot be read.
            let text = String::from_utf8_lossy(pair.value()).into_owned();
            let key = shared.config.key();
            self.document = (!gone).then_some(Document { key, generation, text, put: None });
        } else if name == "put" {
            let record = serde_json::from_slice(pair.value()).ok();
            self.put = record.filter(|_| !gone).map(|record| (generation, record));
        } else if let Some(node) = name.strip_prefix("nodes/") {
            let record: Option<NodeRecord> = serde_json::from_slice(pair.value()).ok();
            let own = node == shared.node;
            if own {
                let known = self.registered.as_ref().map(|record| &record.boot);
                let other = record.as_ref().map(|record| &record.boot);
                let (namesake, was) = (!gone && known.is_some() && known != other, shared.view().namesake);
                if namesake && !was {
                    tracing::error!(node, "another daemon registers itself under the name of this node");
                }
                shared.show(|view| view.namesake = namesake);
                if gone || namesake {
                    // Somebody has removed it; or both say again and again who they are, until one has another name.
                    self.registered = self.registered.take().filter(|_| namesake);
                }
            }
            shared.show(|view| match record.filter(|_| !gone) {
                Some(record) => _ = view.nodes.insert(node.to_owned(), record),
                None => _ = view.nodes.remove(node),
            });
        }
    }

    /// Tells the engine of the document. Both were written in one transaction, if the generations are one.
    fn tell_document(&mut self, anew: bool) {
        let put = self.put.as_ref();
        let shared = &self.state.shared;
        if let Some(document) = &mut self.document {
            document.put =
                put.filter(|(generation, _)| *generation == document.generation).map(|(_, put)| put.clone());
        }
        let document = self.document.clone();
        shared.show(|view| {
            view.stored = document.as_ref().map(|document| document.generation);
            view.put = document.as_ref().and_then(|document| document.put.clone());
        });
        shared.tell(|news| {
            news.deleted = document.is_none() && !anew;
            news.document = document;
        });
    }

    /// Beside everything else: renewals do not wait for it.
    fn serve(&self, request: Request) {
        let mut client = self.client.clone();
        let prefix = self.state.shared.config.prefix.clone();
        tokio::spawn(async move {
            match request {
                Request::Get(reply) => _ = reply.send(get(&mut client, &prefix).await),
                Request::Put { text, expected, record, reply } => {
                    _ = reply.send(put(&mut client, &prefix, text, expected, &record).await);
                }
            }
        });
    }
}

fn holder(pair: &KeyValue) -> Holder {
    Holder {
        node: String::from_utf8_lossy(pair.value()).into_owned(),
        lease: pair.lease(),
        epoch: unsigned(pair.create_revision()),
    }
}

/// The lease that this node has, renewed; a new one otherwise.
async fn lease(
    state: &State,
    client: &mut Client,
) -> Result<(Lease, LeaseKeeper, LeaseKeepAliveStream), Ended> {
    if let Some(lease) = state.lease() {
        let sent = Instant::now();
        // An error may be that etcd does not know it any more; any other comes again below.
        if let Ok((keeper, answers)) = within("renewing the lease", client.lease_keep_alive(lease.id)).await {
            let lease = Lease::renewed(lease.id, lease.ttl, sent);
            state.set_lease(Some(lease));
            return Ok((lease, keeper, answers));
        }
        state.set_lease(None);
    }
    let wanted = i64::try_from(state.shared.config.lease.as_secs()).unwrap_or(i64::MAX);
    let sent = Instant::now();
    let granted = within("asking for a lease", client.lease_grant(wanted, None)).await?;
    let ttl = Duration::from_secs(unsigned(granted.ttl()));
    let lease = Lease::renewed(granted.id(), ttl, sent);
    state.set_lease(Some(lease));
    let (keeper, answers) = within("renewing the lease", client.lease_keep_alive(lease.id)).await?;
    Ok((lease, keeper, answers))
}

async fn get(client: &mut Client, prefix: &str) -> Result<Option<Document>, FleetError> {
    let key = format!("{prefix}/config");
    let found = timeout(LONG_PATIENCE, client.get(key.clone(), None)).await;
    let found = found
        .map_err(|_| FleetError::Unreachable(format!("no answer within {LONG_PATIENCE:?}")))?
        .map_err(|error| FleetError::Unreachable(error.to_string()))?;
    Ok(found.kvs().first().map(|pair| Document {
        key,
        generation: unsigned(pair.mod_revision()),
        text: String::from_utf8_lossy(pair.value()).into_owned(),
        put: None,
    }))
}

async fn put(
    client: &mut Client,
    prefix: &str,
    text: String,
    expected: u64,
    record: &PutRecord,
) -> Result<u64, FleetError> {
    let key = format!("{prefix}/config");
    // A key that is not there has revision 0.
    let unmoved =
        Compare::mod_revision(key.clone(), CompareOp::Equal, i64::try_from(expected).unwrap_or(i64::MAX));
    let note = serde_json::to_string(record).unwrap_or_default();
    let write = [TxnOp::put(key.clone(), text, None), TxnOp::put(format!("{prefix}/put"), note, None)];
    let txn = Txn::new().when([unmoved]).and_then(write).or_else([TxnOp::get(key, None)]);
    let answer = timeout(LONG_PATIENCE, client.txn(txn)).await;
    let answer = answer.map_err(|_| FleetError::Unknown(format!("none within {LONG_PATIENCE:?}")))?;
    let answer = answer.map_err(|error| match error {
        // Cancelled, unknown, late, internal, unavailable, lost: what has been done nobody knows.
        etcd_client::Error::GRpcStatus(status)
            if [1, 2, 4, 13, 14, 15].contains(&i32::from(status.code())) =>
        {
            FleetError::Unknown(status.message().to_owned())
        }
        etcd_client::Error::GRpcStatus(status) => FleetError::Refused(status.message().to_owned()),
        other => FleetError::Unknown(other.to_string()),
    })?;
    if answer.succeeded() {
        return Ok(unsigned(answer.header().map_or(0, etcd_client::ResponseHeader::revision)));
    }
    let found = answer.op_responses().first().and_then(|response| match response {
        TxnOpResponse::Get(found) => found.kvs().first().map(|pair| unsigned(pair.mod_revision())),
        _ => None,
    });
    Err(FleetError::Moved { expected, found: found.unwrap_or(0) })
}
