//! The daemon's hold on the link.

use super::{
    beat::Beats,
    outbox::Outbox,
    task,
    view::{LinkView, PeerState, Reason, Rejected, Successor, Traffic},
    wire::{Hello, MAX_FRAME, Message, Role, Status},
};
use crate::{
    model::{SyncKey, SyncSpec, VrrpName},
    telemetry::Throttle,
    vrrp::{RouterView, Words},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{mpsc, watch};

/// The name of a peer's node.
pub type PeerId = Arc<str>;

/// A complaint of each kind is logged once in this time.
const COMPLAINTS: Duration = Duration::from_secs(10);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// What comes from the link, in the order it came from each peer.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection is there. Nothing of an earlier one counts any more: what was not answered may be lost.
    Up { peer: PeerId, hello: Hello },
    /// At most [`MAX_FRAME`] bytes.
    Frame(PeerId, Vec<u8>),
    /// A frame was refused before; now there is room for some.
    Room(PeerId),
    /// The peer gives this node the master's role. All frames that it sent before came before.
    TakeOver { peer: PeerId, instance: VrrpName },
    /// The peer, of higher priority, asks for the master's role.
    Wanted { peer: PeerId, instance: VrrpName },
    /// The connection has ended.
    Down { peer: PeerId, cause: String },
}

/// A frame that is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// [`LinkEvent::Room`] will tell when it is worth another attempt.
    #[error("the queue to the peer is full")]
    Queue,
    #[error("there is no connection to the peer")]
    Down,
    #[error("a frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
}

/// What the link is told by the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub spec: SyncSpec,
    /// At least one.
    pub keys: Vec<SyncKey>,
    /// The name of this node.
    pub node: String,
}

/// A peer that is connected.
pub(super) struct Peer {
    pub name: PeerId,
    pub address: SocketAddr,
    pub since: SystemTime,
    pub installed: Instant,
    pub hello: Hello,
    pub version: u16,
    /// By this node.
    pub dialled: bool,
    pub outbox: Outbox,
    pub traffic: Arc<Traffic>,
    pub status: Mutex<Status>,
    pub key: Mutex<SyncKey>,
    /// Tells its task to end.
    pub end: tokio::sync::Notify,
}

/// What the handle shares with the tasks.
pub(super) struct Shared {
    pub settings: watch::Sender<Arc<Settings>>,
    pub peers: Mutex<BTreeMap<PeerId, Arc<Peer>>>,
    pub waiting: Mutex<BTreeMap<SocketAddr, String>>,
    pub traffic: Mutex<BTreeMap<PeerId, Arc<Traffic>>>,
    pub rejected: Rejected,
    pub complaints: Mutex<Throttle<Reason>>,
    pub events: mpsc::Sender<LinkEvent>,
    /// Counts the peers that came or went.
    pub changed: watch::Sender<u64>,
    /// This node's own.
    pub status: watch::Sender<Status>,
    pub boot: String,
    pub beats: Beats,
    /// Who gave this node which role.
    pub givers: Mutex<BTreeMap<VrrpName, PeerId>>,
    pub words: Mutex<Option<Words>>,
    pub stop: watch::Sender<bool>,
}

/// Like [`Mutex::lock`]; what is behind these locks is whole at any time.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random octets.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    Ok(bytes)
}

impl Shared {
    /// Counts what had no effect, and says so once in a while.
    pub(super) fn reject(&self, reason: Reason, from: &dyn fmt::Display, why: &dyn fmt::Display) {
        self.rejected.count(reason);
        if let Some(more) = lock(&self.complaints).admit(reason, Instant::now()) {
            tracing::warn!(%from, reason = reason.label(), %why, more, "sync: refused");
        }
    }

    pub(super) fn peer(&self, name: &str) -> Option<Arc<Peer>> {
        lock(&self.peers).get(name).cloned()
    }

    /// Whom a word about an instance is for.
    fn addressee(&self, role: Role, instance: &VrrpName) -> Option<Arc<Peer>> {
        if role == Role::Taken {
            let giver = lock(&self.givers).remove(instance)?;
            return self.peer(&giver);
        }
        let wanted = if role == Role::TakeOver { "backup" } else { "master" };
        let priority = |peer: &Arc<Peer>| {
            let status = lock(&peer.status);
            let instance = status.instances.get(instance)?;
            (instance.state == wanted).then_some(instance.priority)
        };
        let peers = lock(&self.peers);
        let fit = peers.values().filter_map(|peer| Some((priority(peer)?, peer)));
        fit.max_by_key(|(priority, _)| *priority).map(|(_, peer)| Arc::clone(peer))
    }
}

/// The handle. Cheap to clone; no call waits but [`Link::stop`].
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("connected", &self.connected()).finish()
    }
}

impl Link {
    /// Starts the link's threads, in the network namespace of the caller.
    pub fn spawn(settings: Settings, events: mpsc::Sender<LinkEvent>) -> io::Result<Self> {
        let boot = random::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let shared = Arc::new(Shared {
            settings: watch::Sender::new(Arc::new(settings)),
            peers: Mutex::default(),
            waiting: Mutex::default(),
            traffic: Mutex::default(),
            rejected: Rejected::default(),
            complaints: Mutex::new(Throttle::new(COMPLAINTS)),
            events,
            changed: watch::Sender::new(0),
            status: watch::Sender::new(Status::default()),
            boot,
            beats: Beats::default(),
            givers: Mutex::default(),
            words: Mutex::default(),
            stop: watch::Sender::new(false),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let for_task = Arc::clone(&shared);
        thread::Builder::new()
            .name("sync-link".to_owned())
            .spawn(move || runtime.block_on(task::run(for_task)))?;
        let for_beats = Arc::clone(&shared);
        thread::Builder::new().name("sync-beat".to_owned()).spawn(move || super::beat::run(&for_beats))?;
        Ok(Self { shared })
    }

    /// Other settings. Connections go on; keys in use that are gone are replaced.
    pub fn configure(&self, settings: Settings) {
        self.shared.settings.send_if_modified(|now| {
            let differs = **now != settings;
            if differs {
                *now = Arc::new(settings);
            }
            differs
        });
    }

    /// Sends a frame to a peer behind those before.
    pub fn try_send(&self, peer: &str, frame: Vec<u8>) -> Result<(), Full> {
        if frame.len() > MAX_FRAME {
            return Err(Full::TooLong(frame.len()));
        }
        let peer = self.shared.peer(peer).ok_or(Full::Down)?;
        if peer.outbox.push_frame(frame) { Ok(()) } else { Err(Full::Queue) }
    }

    /// Says a word about a virtual router to the peer it concerns, behind the frames before. False: there is none.
    pub fn say(&self, role: Role, instance: &VrrpName) -> bool {
        let Some(peer) = self.shared.addressee(role, instance) else { return false };
        peer.outbox.push(Message::Role(role, instance.clone()));
        true
    }

    /// Whether [`Link::say`] would find somebody.
    pub fn reaches(&self, role: Role, instance: &VrrpName) -> bool {
        self.shared.addressee(role, instance).is_some()
    }

    /// Who would take over an instance that this node is master of, as far as the peers have told.
    pub fn successor(&self, instance: &VrrpName) -> Successor {
        let peers = lock(&self.shared.peers);
        let told = |peer: &Arc<Peer>| {
            let instance = lock(&peer.status).instances.get(instance).cloned()?;
            Some((Arc::clone(&peer.name), instance))
        };
        Successor::among(peers.len(), peers.values().filter_map(told))
    }

    /// Where words for this node's virtual routers go, and what they tell of themselves.
    pub fn connect_vrrp(&self, words: Words, mut views: watch::Receiver<Arc<Vec<RouterView>>>) {
        *lock(&self.shared.words) = Some(words);
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            loop {
                let instances = task::instances(&views.borrow_and_update());
                let Some(shared) = shared.upgrade() else { return };
                shared.status.send_if_modified(|status| {
                    let differs = status.instances != instances;
                    status.instances = instances;
                    differs
                });
                drop(shared);
                if views.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Tells the peers the hash over this node's services.
    pub fn tell_services(&self, hash: &str) {
        self.shared.status.send_if_modified(|status| {
            let differs = status.services != hash;
            if differs {
                hash.clone_into(&mut status.services);
            }
            differs
        });
    }

    /// The peers that are connected.
    pub fn connected(&self) -> Vec<PeerId> {
        lock(&self.shared.peers).keys().cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn listen(&self) -> SocketAddr {
        self.shared.settings.borrow().spec.listen
    }

    /// As if VRRP told it: name, state, priority.
    #[cfg(test)]
    pub(super) fn tell_instances<const N: usize>(&self, instances: [(&str, &str, u8); N]) {
        use super::wire::InstanceStatus;
        let each = instances.map(|(name, state, priority)| {
            let name = name.parse().expect("a name");
            (name, InstanceStatus { state: state.to_owned(), priority, gated: false, own: Vec::new() })
        });
        self.shared.status.send_modify(|status| status.instances = each.into());
    }

    /// What had no effect, by reason.
    pub fn rejected(&self) -> Vec<(&'static str, u64)> {
        self.shared.rejected.counts().collect()
    }

    pub fn view(&self) -> LinkView {
        let peers: Vec<Arc<Peer>> = lock(&self.shared.peers).values().cloned().collect();
        let state = |peer: Arc<Peer>| {
            let rtt = peer.traffic.rtt.load(Relaxed);
            PeerState {
                name: Arc::clone(&peer.name),
                address: peer.address,
                since: peer.since,
                software: peer.hello.software.clone(),
                version: peer.version,
                key: lock(&peer.key).id.clone(),
                status: lock(&peer.status).clone(),
                sent: peer.traffic.sent.load(Relaxed),
                received: peer.traffic.received.load(Relaxed),
                queued: peer.outbox.bytes() as u64,
                rtt: (rtt > 0).then(|| Duration::from_nanos(rtt)),
                beating: self.shared.beats.beating(&peer.name),
            }
        };
        let waiting = lock(&self.shared.waiting).iter().map(|(at, why)| (*at, why.clone())).collect();
        LinkView { peers: peers.into_iter().map(state).collect(), waiting }
    }

    /// Says farewell to the peers, and ends.
    pub fn stop(&self) {
        let peers: Vec<Arc<Peer>> = lock(&self.shared.peers).values().cloned().collect();
        self.shared.beats.stop();
        for peer in peers {
            peer.outbox.push(Message::Close("its daemon ends".to_owned()));
        }
        let begun = Instant::now();
        while begun.elapsed() < FAREWELL && !self.connected().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        self.shared.stop.send_replace(true);
        // Whoever still has this handle shall not find those whose farewell took too long.
        lock(&self.shared.peers).clear();
    }
}
