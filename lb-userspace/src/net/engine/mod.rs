//! The state machine that keeps next hops fresh: netlink messages and the time in, requests and results
//! out. No clock, no socket.
//!
//! The kernel's links and neighbours are mirrored: a dump, then events. Routes are not: the kernel
//! itself is asked for the route to each destination, so that rules, metrics, tables and multipath hashes
//! are its business. A change of a route asks again for the destinations within its prefix; changes of
//! links, addresses, rules and nexthop objects ask again for all.
//!
//! Since answers and events arrive in the order in which they happened, the last word about anything is
//! the truth. Where messages were lost, or nothing is heard of a request, everything is asked again;
//! entries that a complete dump does not mention are gone.
//!
//! Results are published when things have been quiet for [`QUIET`], at the latest [`PATIENCE`] after the
//! first change, and not while an answer about the destination's route is outstanding.

use super::{
    link::{Link, LinkTable},
    neighbour::{Answer, Neighbour, NeighbourKey, Wanted},
    nexthop::{Egress, NextHop, Unresolved, egress},
    route::{Lookup, Route, concerned},
    wire::{Body, NEXTHOP_MESSAGES, Packet, Request},
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, route::RouteType};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

/// Changes are acted upon when there was none for this long ...
const QUIET: Duration = Duration::from_millis(5);
/// ... or this long after the first.
const PATIENCE: Duration = Duration::from_millis(50);
/// Everything is asked again this often, against what no event tells (learned path MTUs, kernel bugs).
const RESYNC: Duration = Duration::from_secs(30);
/// Pause before everything is asked again after a loss.
const RESYNC_AFTER_LOSS: Duration = Duration::from_millis(20);
/// A kernel that answers nothing for this long has lost the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests without an answer at any time: their answers must fit the socket's buffer.
const WINDOW: usize = 128;

/// What is known about a destination.
pub(super) type Resolution = Result<NextHop, Unresolved>;

#[derive(Default)]
struct Destination {
    lookup: Option<Arc<Lookup>>,
    /// A lookup is queued or on its way.
    asked: bool,
    /// Interface of the last usable route.
    last_egress: Option<u32>,
    /// The neighbour it counts as a user of.
    neighbour: Option<NeighbourKey>,
    /// What was last published.
    told: Option<Arc<Resolution>>,
}

/// One thing that thousands of destinations behind one gateway have in common, kept once.
struct Common<T>(Option<Arc<T>>);

impl<T: PartialEq> Common<T> {
    /// The value, in the memory of the one before where both are equal.
    fn share(&mut self, value: T) -> Arc<T> {
        if self.0.as_deref() != Some(&value) {
            self.0 = Some(Arc::new(value));
        }
        self.0.clone().expect("it was put there")
    }
}

#[derive(Default)]
struct Want {
    state: Wanted,
    users: BTreeSet<IpAddr>,
    /// Its place in `Engine::timers`.
    timer: Option<Instant>,
}

/// The dump that is being received: what it mentioned, or an event since its start.
#[derive(Default)]
struct Dump {
    links: HashSet<u32>,
    neighbours: HashSet<NeighbourKey>,
    interrupted: bool,
}

pub(super) struct Engine {
    /// The socket's port number; answers bear it.
    port: u32,
    sequence: u32,
    queue: VecDeque<Request>,
    in_flight: HashMap<u32, Request>,
    /// When the kernel last answered, or was last asked with nothing outstanding.
    progress: Instant,
    dump: Dump,
    resync_at: Instant,

    links: LinkTable,
    links_changed: bool,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    destinations: BTreeMap<IpAddr, Destination>,
    last_lookup: Common<Lookup>,
    last_told: Common<Resolution>,
    wants: HashMap<NeighbourKey, Want>,
    timers: BTreeSet<(Instant, NeighbourKey)>,

    /// Destinations whose route is to be asked for again.
    stale: BTreeSet<IpAddr>,
    /// Destinations whose result is to be computed again.
    dirty: BTreeSet<IpAddr>,
    /// First and last of the changes not acted upon yet.
    changes: Option<(Instant, Instant)>,
    outbox: BTreeMap<IpAddr, Resolution>,
    /// The kernel does not let us have neighbours probed; said once.
    probing_refused: bool,
    /// Counts changes that may give any packet another way.
    ways: u64,
}

impl Engine {
    pub(super) fn new(port: u32, now: Instant) -> Self {
        let mut engine = Self {
            port,
            sequence: 0,
            queue: VecDeque::new(),
            in_flight: HashMap::new(),
            progress: now,
            dump: Dump::default(),
            resync_at: now,
            links: LinkTable::default(),
            links_changed: false,
            neighbours: HashMap::new(),
            destinations: BTreeMap::new(),
            last_lookup: Common(None),
            last_told: Common(None),
            wants: HashMap::new(),
            timers: BTreeSet::new(),
            stale: BTreeSet::new(),
            dirty: BTreeSet::new(),
            changes: None,
            outbox: BTreeMap::new(),
            probing_refused: false,
            ways: 0,
        };
        engine.resync(now);
        engine
    }

    pub(super) fn set_destinations(&mut self, wanted: &HashSet<IpAddr>, now: Instant) {
        let gone: Vec<_> = self.destinations.keys().filter(|a| !wanted.contains(a)).copied().collect();
        gone.into_iter().for_each(|address| self.set_destination(address, false, now));
        wanted.iter().for_each(|address| self.set_destination(*address, true, now));
        // One after the other they leave the tree's nodes half empty.
        self.destinations = std::mem::take(&mut self.destinations).into_iter().collect();
    }

    /// Whether one destination is watched.
    pub(super) fn set_destination(&mut self, address: IpAddr, wanted: bool, now: Instant) {
        match (wanted, self.destinations.contains_key(&address)) {
            (false, true) => {
                self.depend(address, None, now);
                self.destinations.remove(&address);
                self.outbox.remove(&address);
                self.stale.remove(&address);
                self.dirty.remove(&address);
            }
            (true, false) => {
                self.destinations.insert(address, Destination { asked: true, ..Destination::default() });
                self.queue.push_back(Request::Route(address));
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Takes over a new socket after the old one failed.
    pub(super) fn reconnected(&mut self, port: u32, now: Instant) {
        self.port = port;
        self.lost(now);
    }

    /// Messages were lost: nothing outstanding can be relied upon.
    pub(super) fn lost(&mut self, now: Instant) {
        self.in_flight.clear();
        self.queue.clear();
        for destination in self.destinations.values_mut() {
            destination.asked = false;
        }
        self.resync_at = self.resync_at.min(now + RESYNC_AFTER_LOSS);
    }

    fn resync(&mut self, now: Instant) {
        self.resync_at = now + RESYNC;
        let dumps = [Request::Links, Request::Neighbours];
        let missing = dumps.into_iter().filter(|dump| {
            !self.queue.contains(dump) && !self.in_flight.values().any(|request| request == dump)
        });
        let missing: Vec<_> = missing.collect();
        self.queue.extend(missing);
        self.all_stale(now);
    }

    /// The next request to send, with its number.
    pub(super) fn next_request(&mut self, now: Instant) -> Option<(u32, Request)> {
        // The kernel runs one dump per socket at a time; it is asked for alone.
        let dumps = self.in_flight.len() == 1 && self.in_flight.values().any(Request::is_dump);
        if dumps || self.in_flight.len() >= WINDOW {
            return None;
        }
        let next = *self.queue.front()?;
        if next.is_dump() {
            if !self.in_flight.is_empty() {
                return None;
            }
            self.dump = Dump::default();
        }
        self.queue.pop_front();
        if self.in_flight.is_empty() {
            self.progress = now;
        }
        // 0 is the number of what answers nothing.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.in_flight.insert(self.sequence, next);
        Some((self.sequence, next))
    }

    /// When [`Engine::tick`] is next due.
    pub(super) fn deadline(&self) -> Instant {
        let answer = (!self.in_flight.is_empty()).then(|| self.progress + ANSWER_TIMEOUT);
        let timer = self.timers.first().map(|(at, _)| *at);
        let quiet = self.quiet_at();
        [answer, timer, quiet].into_iter().flatten().fold(self.resync_at, Instant::min)
    }

    fn quiet_at(&self) -> Option<Instant> {
        self.changes.map(|(first, last)| (last + QUIET).min(first + PATIENCE))
    }

    /// Does what is due by `now`.
    pub(super) fn tick(&mut self, now: Instant) {
        if !self.in_flight.is_empty() && now >= self.progress + ANSWER_TIMEOUT {
            tracing::warn!(requests = self.in_flight.len(), "the kernel left netlink requests unanswered");
            self.lost(now);
        }
        if now >= self.resync_at {
            self.resync(now);
        }
        while let Some((at, key)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, key));
            let create = !self.neighbours.contains_key(&key);
            let Some(want) = self.wants.get_mut(&key) else { continue };
            want.timer = None;
            let due = want.state.tick(now);
            if due.changed {
                self.dirty.extend(&want.users);
                self.changed(now);
            }
            if due.ask {
                self.queue.push_back(Request::Solicit { neighbour: key, create });
            }
            self.set_timer(key);
        }
        if self.quiet_at().is_some_and(|at| at <= now) {
            self.changes = None;
            self.act(now);
        }
    }

    /// Has the kernel find out a neighbour that no destination needs, once.
    pub(super) fn solicit(&mut self, neighbour: NeighbourKey) {
        let create = !self.neighbours.contains_key(&neighbour);
        let request = Request::Solicit { neighbour, create };
        let asked = self.queue.iter().chain(self.in_flight.values()).any(|other| *other == request);
        if !asked {
            self.queue.push_back(request);
        }
    }

    /// A number that is another one after any change of routes, of interfaces or of a neighbour's address.
    pub(super) fn ways(&self) -> u64 {
        self.ways
    }

    /// What changed since the last call, each destination once.
    pub(super) fn take_results(&mut self) -> Vec<(IpAddr, Resolution)> {
        std::mem::take(&mut self.outbox).into_iter().collect()
    }

    /// The interfaces, if they changed since the last call.
    pub(super) fn take_links(&mut self) -> Option<LinkTable> {
        std::mem::take(&mut self.links_changed).then(|| self.links.clone())
    }

    /// True if every destination has been given an answer that is not a transient one.
    pub(super) fn settled(&self) -> bool {
        let lasting = |told: &Arc<Resolution>| !told.as_ref().as_ref().is_err_and(Unresolved::is_transient);
        self.destinations.values().all(|d| d.told.as_ref().is_some_and(lasting))
    }

    pub(super) fn packet(&mut self, packet: Packet, now: Instant) {
        let answered = (packet.port == self.port).then_some(packet.sequence);
        let request = answered.and_then(|sequence| self.in_flight.get(&sequence).copied());
        match (packet.body, request) {
            (Body::Broken, _) => self.lost(now),
            (Body::Message(RouteNetlinkMessage::NewRoute(message)), Some(Request::Route(destination))) => {
                self.answered(packet.sequence, now);
                self.looked_up(destination, Lookup::Found(Route::from_message(&message)), now);
            }
            (Body::Message(message), request) => {
                if request.is_some() {
                    self.progress = now;
                    self.dump.interrupted |= packet.interrupted;
                }
                self.event(&message, now);
            }
            (Body::Unknown(kind), request) => {
                if NEXTHOP_MESSAGES.contains(&kind) {
                    self.ways += 1;
                    self.all_stale(now);
                }
                // An answer that cannot be read is still an answer.
                if let Some(Request::Route(destination)) = request {
                    self.answered(packet.sequence, now);
                    self.looked_up(destination, Lookup::Refused(libc::EPROTO), now);
                }
            }
            (Body::Done | Body::Error(_), None) => {}
            (Body::Done | Body::Error(0), Some(request)) => {
                self.answered(packet.sequence, now);
                self.dump.interrupted |= packet.interrupted;
                self.completed(request, now);
            }
            (Body::Error(errno), Some(request)) => {
                self.answered(packet.sequence, now);
                self.refused(request, errno, now);
            }
        }
    }

    fn answered(&mut self, sequence: u32, now: Instant) {
        self.in_flight.remove(&sequence);
        self.progress = now;
    }

    fn completed(&mut self, request: Request, now: Instant) {
        match request {
            Request::Links | Request::Neighbours if self.dump.interrupted => {
                self.queue.push_front(request);
            }
            Request::Links => {
                let gone = self.links.iter().map(|link| link.ifindex);
                let gone: Vec<_> = gone.filter(|ifindex| !self.dump.links.contains(ifindex)).collect();
                for ifindex in gone {
                    self.remove_link(ifindex, now);
                }
            }
            Request::Neighbours => {
                let gone = self.neighbours.keys().filter(|key| !self.dump.neighbours.contains(key));
                for key in gone.copied().collect::<Vec<_>>() {
                    self.set_neighbour(key, None, now);
                }
            }
            // The kernel acknowledged a lookup without an answer.
            Request::Route(destination) => {
                self.looked_up(destination, Lookup::Refused(libc::ENETUNREACH), now);
            }
            Request::Solicit { .. } => {}
        }
    }

    fn refused(&mut self, request: Request, errno: i32, now: Instant) {
        match request {
            Request::Links | Request::Neighbours => {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::debug!(?request, %error, "the kernel refused a netlink dump");
                self.resync_at = self.resync_at.min(now + Duration::from_millis(200));
            }
            Request::Route(destination) => self.looked_up(destination, Lookup::Refused(errno), now),
            Request::Solicit { neighbour, create } => {
                // The entry came or went on its own meanwhile: its event is on the way.
                let crossed = matches!((errno, create), (libc::EEXIST, true) | (libc::ENOENT, false));
                if !crossed && !std::mem::replace(&mut self.probing_refused, true) {
                    tracing::warn!(
                        address = %neighbour.address,
                        error = %std::io::Error::from_raw_os_error(errno),
                        "the kernel does not resolve a neighbour for us (CAP_NET_ADMIN missing, or its \
                         neighbour table is full: see net.ipv4.neigh.default.gc_thresh3)"
                    );
                }
                if let Some(want) = self.wants.get_mut(&neighbour) {
                    want.state.refused(now);
                    self.set_timer(neighbour);
                }
            }
        }
    }

    fn event(&mut self, message: &RouteNetlinkMessage, now: Instant) {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                if let Some(link) = Link::from_message(message) {
                    self.dump.links.insert(link.ifindex);
                    if self.links.insert(link) {
                        self.ways += 1;
                        self.links_changed = true;
                        self.all_stale(now);
                    }
                }
            }
            // A bridge says so of a port that leaves it.
            RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                self.dump.links.remove(&message.header.index);
                self.remove_link(message.header.index, now);
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                if let Some((key, neighbour)) = Neighbour::from_message(message) {
                    self.dump.neighbours.insert(key);
                    self.set_neighbour(key, Some(neighbour), now);
                }
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                if let Some((key, _)) = Neighbour::from_message(message) {
                    self.dump.neighbours.remove(&key);
                    self.set_neighbour(key, None, now);
                }
            }
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                self.ways += 1;
                if let Some(range) = concerned(message) {
                    let concerned: Vec<_> = self.destinations.range(range).map(|(a, _)| *a).collect();
                    if !concerned.is_empty() {
                        self.stale.extend(concerned);
                        self.changed(now);
                    }
                }
            }
            RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => {
                self.ways += 1;
                self.all_stale(now);
            }
            _ => {}
        }
    }

    fn remove_link(&mut self, ifindex: u32, now: Instant) {
        if self.links.remove(ifindex) {
            self.ways += 1;
            self.links_changed = true;
            self.all_stale(now);
        }
    }

    fn set_neighbour(&mut self, key: NeighbourKey, entry: Option<Neighbour>, now: Instant) {
        let old = match entry {
            Some(entry) => self.neighbours.insert(key, entry),
            None => self.neighbours.remove(&key),
        };
        let mac = |entry: Option<Neighbour>| entry.and_then(|entry| entry.reach.mac());
        if mac(old) != mac(entry) {
            self.ways += 1;
        }
        let Some(want) = self.wants.get_mut(&key) else { return };
        let before = want.state.answer();
        want.state.observe(entry.as_ref(), now);
        if want.state.answer() != before {
            self.dirty.extend(&want.users);
            self.changed(now);
        }
        self.set_timer(key);
    }

    fn looked_up(&mut self, address: IpAddr, lookup: Lookup, now: Instant) {
        let Some(destination) = self.destinations.get_mut(&address) else { return };
        destination.asked = false;
        destination.lookup = Some(self.last_lookup.share(lookup));
        // At once, so that the neighbour can answer before the result is due.
        self.resolve(address, now);
        self.dirty.insert(address);
        self.changed(now);
    }

    fn changed(&mut self, now: Instant) {
        self.changes = Some((self.changes.map_or(now, |(first, _)| first), now));
    }

    fn all_stale(&mut self, now: Instant) {
        self.stale.extend(self.destinations.keys());
        self.changed(now);
    }

    /// Asks again for what is stale, publishes what has changed.
    fn act(&mut self, now: Instant) {
        // In this order: what is asked about again and again must still be told in between.
        for address in std::mem::take(&mut self.dirty) {
            let Some(result) = self.resolve(address, now) else { continue };
            let Some(destination) = self.destinations.get_mut(&address) else { continue };
            if destination.asked {
                self.dirty.insert(address);
            } else if destination.told.as_deref() != Some(&result) {
                destination.told = Some(self.last_told.share(result.clone()));
                self.outbox.insert(address, result);
            }
        }
        for address in std::mem::take(&mut self.stale) {
            match self.destinations.get_mut(&address) {
                // Its answer may be older than the change: once more, after it.
                Some(destination) if destination.asked => {
                    self.stale.insert(address);
                }
                Some(destination) => {
                    destination.asked = true;
                    self.queue.push_back(Request::Route(address));
                }
                None => {}
            }
        }
    }

    /// The result by what is known now; `None` before the first answer about its route. Registers the
    /// neighbour it needs.
    fn resolve(&mut self, address: IpAddr, now: Instant) -> Option<Resolution> {
        let destination = self.destinations.get_mut(&address)?;
        let lookup = Arc::clone(destination.lookup.as_ref()?);
        if let Lookup::Found(Route { kind: RouteType::Unicast, ifindex: Some(ifindex), .. }) = &*lookup {
            destination.last_egress = Some(*ifindex);
        }
        let found = egress(address, &lookup, &self.links, destination.last_egress);
        self.depend(address, found.as_ref().ok().map(|egress| egress.neighbour), now);
        Some(found.and_then(|egress| {
            let answer = self.wants.get(&egress.neighbour).map(|want| want.state.answer());
            reach(&egress, answer.unwrap_or(Answer::Waiting))
        }))
    }

    /// Makes a destination the user of this neighbour and of no other.
    fn depend(&mut self, address: IpAddr, key: Option<NeighbourKey>, now: Instant) {
        let Some(destination) = self.destinations.get_mut(&address) else { return };
        if destination.neighbour == key {
            return;
        }
        if let Some(old) = std::mem::replace(&mut destination.neighbour, key)
            && let Some(want) = self.wants.get_mut(&old)
        {
            want.users.remove(&address);
            if want.users.is_empty() {
                if let Some(at) = want.timer {
                    self.timers.remove(&(at, old));
                }
                self.wants.remove(&old);
            }
        }
        if let Some(key) = key {
            let want = self.wants.entry(key).or_default();
            if want.users.is_empty() {
                want.state.observe(self.neighbours.get(&key), now);
            }
            want.users.insert(address);
            self.set_timer(key);
        }
    }

    fn set_timer(&mut self, key: NeighbourKey) {
        let Some(want) = self.wants.get_mut(&key) else { return };
        let wake = want.state.wake_at();
        if want.timer == wake {
            return;
        }
        if let Some(at) = want.timer {
            self.timers.remove(&(at, key));
        }
        want.timer = wake;
        self.timers.extend(wake.map(|at| (at, key)));
    }
}

fn reach(egress: &Egress, answer: Answer) -> Resolution {
    let (gateway, ifname) = (egress.neighbour.address, egress.neighbour_ifname.clone());
    match answer {
        Answer::Mac(mac) => Ok(egress.to(mac)),
        Answer::Waiting => Err(Unresolved::Resolving { gateway, ifname }),
        Answer::Silent => Err(Unresolved::NoNeighbour { gateway, ifname }),
    }
}
