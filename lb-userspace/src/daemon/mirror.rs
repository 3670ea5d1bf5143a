//! The flow state of the pair, from the engine's side: what moves with which instance, whose words count, and what
//! happens when this node becomes master. The mirror itself is a thread of its own, see [`thread`].

#[path = "mirror_thread.rs"]
mod thread;

use super::{engine::Engine, words::Words};
use crate::{
    flowsync::{Claim, Member, Peer, Scope},
    link::{Link, LinkEvent, PeerId},
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

/// Events that wait for the engine at most, frames not among them.
const EVENTS: usize = 64;

/// Names a part: service and instance.
pub(super) type PartName = (String, String);

/// What the thread has for the engine.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The peers that are there, and whose words they have of the parts of a fleet.
    pub(super) claims: BTreeMap<PeerId, Claim>,
    pub(super) words: BTreeMap<PartName, Arc<Followed>>,
    sizes: BTreeMap<PartName, u32>,
}

impl Inbox {
    fn take(&mut self, part: PartName, followed: Arc<Followed>) {
        // Two may believe to be the authority for a moment.
        if self.words.get(&part).is_none_or(|other| other.fleet <= followed.fleet) {
            self.words.insert(part, followed);
        }
    }
}

/// Between the engine and the thread.
#[derive(Debug, Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// The peer that came last has sent all it had when it came.
    complete: AtomicBool,
    /// When some peer last may have had other words or flows than this node.
    unsure: Mutex<Option<Instant>>,
    /// Something waits for the engine.
    news: Arc<Notify>,
    pub(super) metrics: Arc<SyncMetrics>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_unsure(&self) {
        *self.unsure.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn unsure(&self) -> Option<Instant> {
        *self.unsure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// To the thread.
#[derive(Debug)]
enum Order {
    Link(Option<Link>),
    Scope(Arc<Scope>),
    /// Answered when the link has everything.
    Flush(std::sync::mpsc::Sender<()>),
    /// Answered when all that has come from the link is worked off.
    Settle(std::sync::mpsc::Sender<()>),
}

/// What the engine knows of it.
#[derive(Debug)]
pub(super) struct Mirror {
    orders: mpsc::UnboundedSender<Order>,
    /// Until the thread has it.
    inbox: Option<mpsc::UnboundedReceiver<Order>>,
    has_link: bool,
    pub(super) shared: Arc<Shared>,
    masters: BTreeSet<String>,
    pub(super) words: Words,
    is_dirty: bool,
}

impl Mirror {
    pub(super) fn new(metrics: Arc<SyncMetrics>) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        Self {
            orders,
            inbox: Some(inbox),
            has_link: false,
            shared: Arc::new(Shared { metrics, ..Shared::default() }),
            masters: BTreeSet::new(),
            words: Words::default(),
            is_dirty: false,
        }
    }

    /// Frames go over this link from now on.
    pub(super) fn set_link(&mut self, link: Option<Link>) {
        self.has_link = link.is_some();
        self.is_dirty = true;
        let _ = self.orders.send(Order::Link(link));
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
        if !self.has_link || self.inbox.is_some() {
            return;
        }
        let (done, wait) = std::sync::mpsc::channel();
        let begun = Instant::now();
        if self.orders.send(Order::Flush(done)).is_err() || wait.recv_timeout(FLUSH_PATIENCE).is_err() {
            tracing::warn!(instance, "the peer may not have every flow: it takes over before all were told");
            return;
        }
        tracing::debug!(instance, took = ?begun.elapsed(), "the peer is told of every flow");
    }

    /// What has come from the peer until now is in the inbox.
    pub(super) fn settle(&self) {
        if !self.has_link || self.inbox.is_some() {
            return;
        }
        let (done, wait) = std::sync::mpsc::channel();
        if self.orders.send(Order::Settle(done)).is_err() || wait.recv_timeout(SETTLE_PATIENCE).is_err() {
            tracing::warn!("the last flows of the former master may be missing");
        }
    }

    /// Everything that the peer had when it came is here, whether or not it still is there. Without a link nothing is waited for.
    pub(super) fn is_ready(&self) -> bool {
        !self.has_link || self.shared.complete.load(Ordering::Acquire) && self.shared.inbox().words.is_empty()
    }
}

impl Engine {
    /// Begins to mirror. What comes from the link is read by the mirror first; the rest is for the engine, in order.
    pub(super) fn start_mirror(&mut self) -> mpsc::Receiver<LinkEvent> {
        let (forward, rest) = mpsc::channel(EVENTS);
        let (Some(events), Some(orders)) = (self.pair.handover.reader.take(), self.mirror.inbox.take())
        else {
            return rest;
        };
        let shared = Arc::clone(&self.mirror.shared);
        let maps_dir: PathBuf = self.kernel.maps_dir();
        match thread::spawn(&maps_dir, events, orders, forward, shared) {
            Ok(()) => {
                self.mirror.changed();
                self.mirror_news();
            }
            Err(error) => {
                tracing::error!(%error, "flows are not mirrored: connections end when this node fails");
            }
        }
        rest
    }

    /// Tells the thread what there is now, if that is something else.
    pub(super) fn tell_mirror(&mut self) {
        if self.mirror.has_link && std::mem::take(&mut self.mirror.is_dirty) {
            // The thread ends with the daemon.
            let _ = self.mirror.orders.send(Order::Scope(Arc::new(self.scope())));
        }
    }

    /// The thread or the virtual routers have something to say.
    pub(super) fn mirror_news(&mut self) {
        self.note_masters();
        self.tend_words(Instant::now());
        self.follow_words();
        self.tell_mirror();
        // Whoever waits for the peer's state may have it now.
        self.tend_link();
    }

    /// The parts by service and instance, with their ids.
    pub(super) fn parts(&self) -> BTreeMap<PartName, u32> {
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
                let shared = self.mirror.words.is_on().then_some("");
                if let (Some(instance), Some(id)) = (instance.or(shared), ids.get(&(name, number))) {
                    parts.insert((name.to_owned(), instance.to_owned()), *id);
                }
            }
        }
        parts
    }

    fn scope(&self) -> Scope {
        let mut scope = Scope { claim: self.mirror.words.claim(), ..Scope::default() };
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
        let won = self.parts().into_iter();
        let won = won.filter(|((_, instance), _)| self.mirror.masters.contains(instance));
        self.lead(won.map(|(_, id)| id).collect());
    }

    /// No node's words come any more.
    pub(super) fn lead_all(&mut self) {
        self.lead(self.image.followed.keys().copied().collect());
    }

    /// This node decides on the slots of these parts from now on, from how they are; as it does on those that follow nobody.
    fn lead(&mut self, parts: Vec<u32>) {
        let led: Vec<u32> = parts.into_iter().filter(|id| self.image.followed.remove(id).is_some()).collect();
        if led.is_empty() {
            return;
        }
        self.tracking.restart(led.iter().copied(), &self.image, Instant::now());
        tracing::info!(parts = led.len(), "in charge of flows that another node had");
        let records = led.iter().filter_map(|id| self.image.services.get(id));
        let names: BTreeSet<ServiceName> =
            records.filter_map(|record| plan::name_of(&record.identity).parse().ok()).collect();
        if let Err(error) = self.converge_part(&names) {
            tracing::error!(%error, "could not carry out a takeover of flows; forwarding goes on as before");
        }
    }

    pub(super) fn shared_inbox(&self) -> MutexGuard<'_, Inbox> {
        self.mirror.shared.inbox()
    }

    /// Writes the words that came from the peer.
    pub(super) fn follow_words(&mut self) {
        let (words, sizes) = {
            let mut inbox = self.shared_inbox();
            (std::mem::take(&mut inbox.words), std::mem::take(&mut inbox.sizes))
        };
        if !self.mirror.has_link {
            return;
        }
        if !sizes.is_empty() {
            self.take_sizes(sizes);
        }
        if !words.is_empty() {
            let masters = self.mirror.masters.clone();
            self.apply_words(words, &masters);
        }
    }

    pub(super) fn apply_words(
        &mut self,
        words: BTreeMap<PartName, Arc<Followed>>,
        masters: &BTreeSet<String>,
    ) {
        if words.is_empty() {
            return;
        }
        let parts = self.parts();
        for (name, followed) in words {
            let Some(id) = parts.get(&name).filter(|_| !masters.contains(&name.1)) else { continue };
            let is_new = !self.image.followed.contains_key(id);
            if !self.mirror.words.takes(followed.fleet) {
                continue;
            }
            let Some(action) = self.image.follow(*id, &followed) else { continue };
            self.mirror.words.came(*id);
            if is_new && followed.fleet.is_some() {
                tracing::info!(service = name.0, "slots follow the fleet's authority");
            } else if is_new {
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
            let leads = instance.is_empty() && self.mirror.words.claim().leads;
            let foreign = leads || found.ring_size.is_some() || parts.into_iter().any(in_charge);
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
