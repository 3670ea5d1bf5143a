//! Keeps next hops fresh. One task: it waits for netlink messages, for a new set of destinations and for
//! the engine's deadline; feeds the engine; sends its requests; hands out its results.
//!
//! The task lives on the runtime of the caller and ends when the handle or the receiver of results is
//! dropped. Its socket belongs to the network namespace of the thread that called
//! [`NextHopTask::spawn`].

use super::{
    NetError,
    engine::Engine,
    link::{LinkEvent, LinkTable},
    neighbour::NeighbourKey,
    nexthop::{NextHop, Unresolved},
    wire::{EventSocket, append},
};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc, watch};

/// A result: the next hop to a destination has become known, has changed, or is no more.
pub type Update = (IpAddr, Result<NextHop, Unresolved>);

/// Datagrams that are read before anything else is looked at.
const BURST: usize = 256;
/// Pause before another attempt when the netlink socket broke.
const REOPEN: Duration = Duration::from_secs(1);

/// Starts the watch.
pub struct NextHopTask {
    engine: Engine,
    socket: EventSocket,
    wanted: watch::Receiver<Wanted>,
    settled: watch::Sender<u64>,
    links: watch::Sender<Arc<LinkTable>>,
    ways: watch::Sender<u64>,
    solicits: mpsc::Receiver<NeighbourKey>,
    mailbox: Arc<Mailbox>,
    /// The version of the destinations that was last looked at.
    seen: u64,
}

/// Neighbours that wait to be asked for at most; whoever asks for more asks again.
const SOLICITS: usize = 256;

/// The destinations, and which version of them this is.
#[derive(Clone, Default)]
struct Wanted {
    version: u64,
    destinations: Arc<HashSet<IpAddr>>,
    /// Single changes with the versions they led to, of every version after `whole`.
    recent: VecDeque<(u64, IpAddr)>,
    whole: u64,
}

/// Single changes remembered; who has not looked for longer looks at all destinations.
const RECENT: usize = 1024;

impl Wanted {
    fn set(&mut self, destinations: HashSet<IpAddr>) {
        // Looking at tens of thousands again takes as long as the first time.
        if *self.destinations == destinations {
            return;
        }
        self.version += 1;
        self.destinations = Arc::new(destinations);
        self.recent.clear();
        self.whole = self.version;
    }

    fn change(&mut self, gone: &[IpAddr], new: &[IpAddr]) {
        self.version += 1;
        let destinations = Arc::make_mut(&mut self.destinations);
        gone.iter().for_each(|address| _ = destinations.remove(address));
        destinations.extend(new);
        self.recent.extend(gone.iter().chain(new).map(|address| (self.version, *address)));
        while self.recent.len() > RECENT {
            self.whole = self.recent.pop_front().map_or(self.whole, |(version, _)| version);
        }
    }

    /// What may have changed since a version; `None` for anything.
    fn since(&self, version: u64) -> Option<Vec<IpAddr>> {
        let after = self.recent.iter().skip_while(|(at, _)| *at <= version);
        (version >= self.whole).then(|| after.map(|(_, address)| *address).collect())
    }
}

/// What the rest of the daemon holds of the watch. Dropping it ends the watch.
pub struct NextHopHandle {
    wanted: watch::Sender<Wanted>,
    settled: watch::Receiver<u64>,
    links: watch::Receiver<Arc<LinkTable>>,
    ways: watch::Receiver<u64>,
    solicits: mpsc::Sender<NeighbourKey>,
}

/// Has the kernel find out neighbours.
#[derive(Clone)]
pub struct Solicitor(mpsc::Sender<NeighbourKey>);

impl Solicitor {
    /// Has the kernel ask for a neighbour, as if it had a packet for it. May be forgotten when there are many.
    pub fn solicit(&self, ifindex: u32, address: IpAddr) {
        let _ = self.0.try_send(NeighbourKey { ifindex, address });
    }
}

/// Results that wait to be taken: the latest of each destination.
#[derive(Default)]
struct Mailbox {
    results: Mutex<BTreeMap<IpAddr, Result<NextHop, Unresolved>>>,
    /// Woken when there are results, or there will be none any more.
    news: Notify,
    closed: AtomicBool,
}

/// Receives results. A slow receiver misses intermediate results, never the last one.
pub struct NextHopUpdates {
    mailbox: Arc<Mailbox>,
}

/// Receives what happens to interfaces.
pub struct LinkEvents {
    links: watch::Receiver<Arc<LinkTable>>,
    seen: Arc<LinkTable>,
}

impl NextHopTask {
    /// Subscribes and starts; must be called within a tokio runtime. The interfaces are known, and
    /// [`NextHopHandle::links`] has them, a moment later.
    pub fn spawn() -> Result<(NextHopHandle, NextHopUpdates), NetError> {
        let failed = |error| NetError::Netlink { doing: "watch links, routes and neighbours", error };
        let socket = EventSocket::open().map_err(failed)?;
        let (wanted, wanted_rx) = watch::channel(Wanted::default());
        let (settled, settled_rx) = watch::channel(0);
        let (links, links_rx) = watch::channel(Arc::default());
        let (ways, ways_rx) = watch::channel(0);
        let (solicits, solicits_rx) = mpsc::channel(SOLICITS);
        let mailbox = Arc::<Mailbox>::default();
        let task = Self {
            engine: Engine::new(socket.port, Instant::now()),
            socket,
            wanted: wanted_rx,
            settled,
            links,
            ways,
            solicits: solicits_rx,
            mailbox: Arc::clone(&mailbox),
            seen: 0,
        };
        tokio::spawn(task.run());
        let handle = NextHopHandle { wanted, settled: settled_rx, links: links_rx, ways: ways_rx, solicits };
        Ok((handle, NextHopUpdates { mailbox }))
    }

    async fn run(mut self) {
        while self.step().await {}
        self.mailbox.closed.store(true, Ordering::Release);
        self.mailbox.news.notify_one();
    }

    /// False when nobody wants results any more.
    async fn step(&mut self) -> bool {
        let now = Instant::now();
        self.engine.tick(now);
        self.publish();
        if let Err(error) = self.send(now).await {
            return self.reopen(&error).await;
        }
        let deadline = tokio::time::Instant::from_std(self.engine.deadline());
        tokio::select! {
            packets = self.socket.receive() => match packets {
                Ok(packets) => {
                    let now = Instant::now();
                    let mut packets = Ok(packets);
                    // Thousands of answers come at once.
                    for _ in 0..BURST {
                        let Ok(some) = packets else { break };
                        some.into_iter().for_each(|packet| self.engine.packet(packet, now));
                        packets = self.socket.receive_now();
                    }
                    match packets {
                        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost(),
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return self.reopen(&error).await,
                        Err(_) => {}
                        Ok(some) => some.into_iter().for_each(|packet| self.engine.packet(packet, now)),
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost(),
                Err(error) => return self.reopen(&error).await,
            },
            changed = self.wanted.changed() => {
                if changed.is_err() {
                    return false;
                }
                let wanted = self.wanted.borrow_and_update();
                match wanted.since(self.seen) {
                    None => self.engine.set_destinations(&wanted.destinations, Instant::now()),
                    Some(changed) => for address in changed {
                        let is = wanted.destinations.contains(&address);
                        self.engine.set_destination(address, is, Instant::now());
                    },
                }
                self.seen = wanted.version;
            }
            Some(neighbour) = self.solicits.recv() => self.engine.solicit(neighbour),
            () = tokio::time::sleep_until(deadline) => {}
        }
        // One of the two is ours.
        Arc::strong_count(&self.mailbox) > 1
    }

    fn lost(&mut self) {
        tracing::debug!("netlink events were lost; reading everything again");
        self.engine.lost(Instant::now());
    }

    async fn send(&mut self, now: Instant) -> io::Result<()> {
        let mut requests = Vec::new();
        while let Some((sequence, request)) = self.engine.next_request(now) {
            append(&mut requests, sequence, &request);
        }
        if requests.is_empty() {
            return Ok(());
        }
        match self.socket.send(&requests).await {
            // The queue of answers is full: what was lost of it is told by the next read.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.engine.lost(now);
                Ok(())
            }
            result => result,
        }
    }

    fn publish(&mut self) {
        if let Some(links) = self.engine.take_links() {
            self.links.send_replace(Arc::new(links));
        }
        let ways = self.engine.ways();
        if *self.ways.borrow() != ways {
            self.ways.send_replace(ways);
        }
        let results = self.engine.take_results();
        if !results.is_empty() {
            self.mailbox.lock().extend(results);
            self.mailbox.news.notify_one();
        }
        // The engine knows the version that was last looked at.
        let version = self.wanted.borrow().version;
        let seen = !self.wanted.has_changed().unwrap_or(false);
        if seen && *self.settled.borrow() != version && self.engine.settled() {
            self.settled.send_replace(version);
        }
    }

    /// A new socket in place of one that broke, as soon as there is one.
    async fn reopen(&mut self, error: &io::Error) -> bool {
        tracing::error!(%error, "the netlink socket broke; opening another");
        loop {
            tokio::time::sleep(REOPEN).await;
            if self.wanted.has_changed().is_err() {
                return false;
            }
            match EventSocket::open() {
                Ok(socket) => {
                    self.socket = socket;
                    self.engine.reconnected(self.socket.port, Instant::now());
                    return true;
                }
                Err(error) => tracing::error!(%error, "cannot open a netlink socket"),
            }
        }
    }
}

impl NextHopHandle {
    /// Names the destinations to watch, in place of those named before. Results of those that are new
    /// follow; there may still be one on its way of a destination that is no longer wanted.
    pub fn set_destinations(&self, destinations: HashSet<IpAddr>) {
        self.wanted.send_modify(|wanted| wanted.set(destinations));
    }

    /// As [`NextHopHandle::set_destinations`] for a few: those are not wanted any more, these are from now on.
    pub fn change_destinations(&self, gone: &[IpAddr], new: &[IpAddr]) {
        self.wanted.send_modify(|wanted| wanted.change(gone, new));
    }

    /// Waits until every destination of the last [`NextHopHandle::set_destinations`] has been answered
    /// (resolved, or known to be unreachable) and the answers can be taken; false if that takes longer.
    pub async fn settled(&self, patience: Duration) -> bool {
        let version = self.wanted.borrow().version;
        let mut settled = self.settled.clone();
        let reached = settled.wait_for(|reached| *reached >= version);
        matches!(tokio::time::timeout(patience, reached).await, Ok(Ok(_)))
    }

    /// The interfaces as last heard of; empty at the very start.
    pub fn links(&self) -> Arc<LinkTable> {
        Arc::clone(&self.links.borrow())
    }

    /// A number that is another one after any change of routes, of interfaces or of a neighbour's address.
    pub fn ways(&self) -> watch::Receiver<u64> {
        self.ways.clone()
    }

    /// Has the kernel find out neighbours that no destination needs.
    pub fn solicitor(&self) -> Solicitor {
        Solicitor(self.solicits.clone())
    }

    /// What happens to interfaces from now on.
    pub fn link_events(&self) -> LinkEvents {
        let mut links = self.links.clone();
        let seen = Arc::clone(&links.borrow_and_update());
        LinkEvents { links, seen }
    }
}

impl Mailbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, Result<NextHop, Unresolved>>> {
        // No code that holds the lock can leave it half changed.
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NextHopUpdates {
    /// The results that are new, in the order of their destinations; `None` once the watch has ended.
    /// Nothing is lost if this is dropped before it is done.
    pub async fn recv(&mut self) -> Option<Vec<Update>> {
        loop {
            if let Some(news) = self.try_recv() {
                return Some(news);
            }
            if self.mailbox.closed.load(Ordering::Acquire) {
                return self.try_recv();
            }
            self.mailbox.news.notified().await;
        }
    }

    /// The results that are new, if there are any.
    pub fn try_recv(&mut self) -> Option<Vec<Update>> {
        let results = std::mem::take(&mut *self.mailbox.lock());
        (!results.is_empty()).then(|| results.into_iter().collect())
    }
}

impl LinkEvents {
    /// The next changes; `None` once the watch has ended. An interface that came back as another (a new
    /// number) while nobody looked is told as gone and come; one that changed and changed back is not
    /// told. Nothing is lost if this is dropped before it is done.
    pub async fn recv(&mut self) -> Option<Vec<LinkEvent>> {
        loop {
            self.links.changed().await.ok()?;
            let now = Arc::clone(&self.links.borrow_and_update());
            let events = now.changes_since(&self.seen);
            self.seen = now;
            if !events.is_empty() {
                return Some(events);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_changes_are_told_as_long_as_they_are_remembered() {
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut wanted = Wanted::default();
        assert_eq!(wanted.since(0), Some(vec![]));
        wanted.set([address(1), address(2)].into());
        assert_eq!(wanted.since(0), None);
        let seen = wanted.version;
        wanted.change(&[address(1)], &[address(3)]);
        wanted.change(&[address(3)], &[]);
        assert_eq!(wanted.since(seen), Some(vec![address(1), address(3), address(3)]));
        assert_eq!(wanted.since(seen + 1), Some(vec![address(3)]));
        assert_eq!(wanted.since(wanted.version), Some(vec![]));
        assert_eq!(*wanted.destinations, [address(2)].into());
        (0..RECENT as u32).for_each(|n| wanted.change(&[], &[address(n)]));
        assert_eq!(wanted.since(seen + 1), None);
        assert_eq!(wanted.since(seen + 2).map(|changed| changed.len()), Some(RECENT));
    }
}
