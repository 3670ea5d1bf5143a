//! The flow state of the pair, from the engine's side: what moves with which instance, whose words count, and what
//! happens when this node becomes master. The mirror itself is a thread of its own, see [`thread`].

#[path = "mirror_thread.rs"]
mod thread;

use super::engine::Engine;
use crate::{
    flowsync::{Member, Peer, Scope},
    link::{Link, LinkEvent},
    metrics::SyncMetrics,
    model::ServiceName,
    plan::{self, Followed, Instances},
    vrrp::fsm::Phase,
};
use lb_common::abi::{BackendEntry, ServiceEntry};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc};

/// A hand-over does not wait longer for the peer to have everything.
const FLUSH_PATIENCE: Duration = Duration::from_millis(500);
/// The thread may be in the middle of a look at the tables.
const SETTLE_PATIENCE: Duration = Duration::from_millis(100);

/// Names a part: service and instance.
type PartName = (String, String);

/// What the thread has for the engine.
#[derive(Debug, Default)]
struct Inbox {
    words: BTreeMap<PartName, Arc<Followed>>,
    sizes: BTreeMap<PartName, u32>,
}

/// Between the engine and the thread.
#[derive(Debug, Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// The peer that came last has sent all it had when it came.
    complete: AtomicBool,
    /// Something waits for the engine.
    news: Arc<Notify>,
    pub(super) metrics: Arc<SyncMetrics>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// To the thread.
#[derive(Debug)]
enum Order {
    Scope(Arc<Scope>),
    /// Answered when the link has everything.
    Flush(std::sync::mpsc::Sender<()>),
    /// Answered when all that has come from the link is worked off.
    Settle(std::sync::mpsc::Sender<()>),
}

/// What the engine knows of it.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    orders: Option<mpsc::UnboundedSender<Order>>,
    shared: Arc<Shared>,
    masters: BTreeSet<String>,
    is_dirty: bool,
}

impl Mirror {
    pub(super) fn new(metrics: Arc<SyncMetrics>) -> Self {
        Self { shared: Arc::new(Shared { metrics, ..Shared::default() }), ..Self::default() }
    }

    /// The image, the configuration or a role is another one.
    pub(super) fn changed(&mut self) {
        self.is_dirty = true;
    }

    /// Notified when [`Engine::mirror_news`] has something to do.
    pub(super) fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.news)
    }

    /// Has the peer told everything there is, and waits until it is on its way.
    pub(super) fn flush(&self, instance: &str) {
        let Some(orders) = &self.orders else { return };
        let (done, wait) = std::sync::mpsc::channel();
        let begun = Instant::now();
        if orders.send(Order::Flush(done)).is_err() || wait.recv_timeout(FLUSH_PATIENCE).is_err() {
            tracing::warn!(instance, "the peer may not have every flow: it takes over before all were told");
            return;
        }
        tracing::debug!(instance, took = ?begun.elapsed(), "the peer is told of every flow");
    }

    /// What has come from the peer until now is in the inbox.
    fn settle(&self) {
        let Some(orders) = &self.orders else { return };
        let (done, wait) = std::sync::mpsc::channel();
        if orders.send(Order::Settle(done)).is_err() || wait.recv_timeout(SETTLE_PATIENCE).is_err() {
            tracing::warn!("the last flows of the former master may be missing");
        }
    }

    /// Everything that the peer had when it came is here, whether or not it still is there. Without a link nothing is waited for.
    pub(super) fn is_ready(&self) -> bool {
        self.orders.is_none()
            || self.shared.complete.load(Ordering::Acquire) && self.shared.inbox().words.is_empty()
    }
}

impl Engine {
    /// Begins to mirror over a link.
    pub(super) fn start_mirror(&mut self, link: Link, events: mpsc::Receiver<LinkEvent>) {
        let (orders, inbox) = mpsc::unbounded_channel();
        let maps_dir: PathBuf = self.kernel.maps_dir();
        let shared = Arc::clone(&self.mirror.shared);
        match thread::spawn(maps_dir, link, events, inbox, shared) {
            Ok(()) => {
                self.mirror.orders = Some(orders);
                self.mirror.changed();
                self.tell_mirror();
            }
            Err(error) => {
                tracing::error!(%error, "flows are not mirrored: connections end when this node fails")
            }
        }
    }

    /// Tells the thread what there is now, if that is something else.
    pub(super) fn tell_mirror(&mut self) {
        if !std::mem::take(&mut self.mirror.is_dirty) {
            return;
        }
        let Some(orders) = &self.mirror.orders else { return };
        // The thread ends with the daemon.
        let _ = orders.send(Order::Scope(Arc::new(self.scope())));
    }

    /// The thread or the virtual routers have something to say.
    pub(super) fn mirror_news(&mut self) {
        self.note_masters();
        self.follow_words();
        self.tell_mirror();
    }

    /// The parts by service and instance, with their ids.
    fn parts(&self) -> BTreeMap<PartName, u32> {
        let instances = Instances::of(&self.config.vrrp);
        let ids: BTreeMap<(&str, u32), u32> = self
            .image
            .services
            .iter()
            .map(|(id, record)| ((plan::name_of(&record.identity), record.identity.port), *id))
            .collect();
        let mut parts = BTreeMap::new();
        for service in &self.effective.services {
            let name = service.spec.name.as_str();
            for (number, instance) in instances.parts(&service.spec) {
                if let (Some(instance), Some(id)) = (instance, ids.get(&(name, number))) {
                    parts.insert((name.to_owned(), instance.to_owned()), *id);
                }
            }
        }
        parts
    }

    fn scope(&self) -> Scope {
        let mut scope = Scope::default();
        for ((service, instance), id) in self.parts() {
            let (Some(record), Some(ring)) = (self.image.services.get(&id), self.image.rings.get(&id)) else {
                continue;
            };
            let recorded = ServiceEntry::SCHEDULED | ServiceEntry::SESSIONS | ServiceEntry::HAIRPIN;
            let member = Member {
                is_authority: self.mirror.masters.contains(&instance),
                service,
                instance,
                seed: record.entry.seed,
                idle: Duration::from_nanos(record.entry.idle_ns),
                records: record.entry.flags & recorded != 0,
                ring: ring.clone(),
            };
            scope.parts.insert(id, member);
        }
        for (id, record) in &self.image.backends {
            if scope.parts.contains_key(&record.entry.service) {
                let peer = Peer {
                    part: record.entry.service,
                    name: plan::name_of(&record.identity).to_owned(),
                    address: super::entries::address_of(&record.entry),
                    incarnation: record.entry.incarnation as u8,
                    is_dead: record.entry.flags & BackendEntry::DEAD != 0,
                };
                scope.backends.insert(*id, peer);
            }
        }
        scope
    }

    /// This node is master of other instances than before: it is in charge of the slots of those it has won.
    fn note_masters(&mut self) {
        let masters: BTreeSet<String> = self
            .pair
            .views()
            .iter()
            .filter(|view| view.phase == Phase::Master)
            .map(|view| view.spec.name.to_string())
            .collect();
        if masters == self.mirror.masters {
            return;
        }
        let before = std::mem::replace(&mut self.mirror.masters, masters);
        self.mirror.changed();
        // What came before is the last word of the former master.
        self.mirror.settle();
        let last = std::mem::take(&mut self.shared_inbox().words);
        self.apply_words(last, &before);
        let won: Vec<(PartName, u32)> = self
            .parts()
            .into_iter()
            .filter(|((_, instance), id)| {
                self.mirror.masters.contains(instance) && self.image.followed.contains_key(id)
            })
            .collect();
        if won.is_empty() {
            return;
        }
        let now = Instant::now();
        for (_, id) in &won {
            self.image.followed.remove(id);
        }
        self.tracking.restart(won.iter().map(|(_, id)| *id), &self.image, now);
        tracing::info!(parts = won.len(), "in charge of flows that another node had");
        let names: BTreeSet<ServiceName> =
            won.iter().filter_map(|((name, _), _)| name.parse().ok()).collect();
        if let Err(error) = self.converge_part(&names) {
            tracing::error!(%error, "could not carry out a takeover of flows; forwarding goes on as before");
        }
    }

    fn shared_inbox(&self) -> MutexGuard<'_, Inbox> {
        self.mirror.shared.inbox()
    }

    /// Writes the words that came from the peer.
    fn follow_words(&mut self) {
        let Inbox { words, sizes } = std::mem::take(&mut *self.shared_inbox());
        if !sizes.is_empty() {
            self.take_sizes(sizes);
        }
        if !words.is_empty() {
            let masters = self.mirror.masters.clone();
            self.apply_words(words, &masters);
        }
    }

    fn apply_words(&mut self, words: BTreeMap<PartName, Arc<Followed>>, masters: &BTreeSet<String>) {
        if words.is_empty() {
            return;
        }
        let parts = self.parts();
        for (name, followed) in words {
            let Some(id) = parts.get(&name).filter(|_| !masters.contains(&name.1)) else { continue };
            let is_new = !self.image.followed.contains_key(id);
            let Some(action) = self.image.follow(*id, &followed) else { continue };
            if is_new {
                tracing::info!(service = name.0, instance = name.1, "slots follow the master");
            }
            if matches!(&action, plan::Action::Slots { words, .. } if words.is_empty()) {
                continue;
            }
            if let Err(error) = self.change_slots(&[action]) {
                tracing::error!(%error, service = name.0, "could not write the master's slots");
            }
        }
    }

    /// Rings have the sizes of the master's, so that its words fit.
    fn take_sizes(&mut self, sizes: BTreeMap<PartName, u32>) {
        let instances = Instances::of(&self.config.vrrp);
        let mut chosen = false;
        for ((service, instance), size) in sizes {
            let Some(found) = self.config.services.iter().find(|s| s.name.as_str() == service) else {
                continue;
            };
            let in_charge = |(_, instance): (u32, Option<&str>)| {
                instance.is_some_and(|instance| self.mirror.masters.contains(instance))
            };
            let parts = instances.parts(found);
            let foreign = found.ring_size.is_some() || parts.into_iter().any(in_charge);
            if foreign || !crate::model::is_ring_size(size) || (size as usize) < found.backends.len() {
                tracing::warn!(
                    service,
                    instance,
                    size,
                    "the master's ring has a size that this node's cannot have"
                );
                continue;
            }
            tracing::info!(service, instance, size, "the ring gets the size of the master's");
            let name = found.name.clone();
            chosen |= self.changes.set_ring_size(&name, size);
        }
        if chosen {
            if let Err(error) = self.state_dir.store(&self.changes) {
                tracing::error!(%error, "the new sizes of rings are not durable");
            }
            self.converge_or_log("the ring sizes of the master");
        }
    }
}
