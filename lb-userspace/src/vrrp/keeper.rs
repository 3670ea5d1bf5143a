//! The thread that keeps the addresses: it watches the interfaces, tells the heartbeat about them, puts the virtual
//! addresses on and takes them off, and announces them.
//!
//! Apart from the heartbeat, because netlink may wait for a lock of the kernel. The heartbeat never waits for this
//! thread: its orders are one atomic word for each virtual router, of which the latest counts.

mod lend;
mod promote;

use super::{
    announce::{Schedule, frames},
    heartbeat::{Inbox, Input},
    netlink::{Address, Events, Link, Requests},
    notice::{Notice, Notices},
    socket::{FramePort, Port},
    timing::Moment,
    wake::{Alarm, Waker, clock},
};
use crate::{
    dataplane::{Addresses, LeaseWord},
    model::{Family, HeldBy, VrrpName, VrrpSpec},
};
use ipnet::IpNet;
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Events of many interfaces at once, as at a start of containers, are one look.
const SETTLE: Duration = Duration::from_millis(5);
/// Even without an event: a second look, in case one was missed.
const RESYNC: Duration = Duration::from_secs(10);
/// What is missing is tried again this often.
const RETRY: Duration = Duration::from_millis(500);

/// What the heartbeat wants of one virtual router: in the low bits whether the addresses are to be there, above it a
/// number that grows with every word.
/// And the lease of its addresses, once the keeper has given it one.
#[derive(Debug, Default)]
pub(super) struct Order {
    word: AtomicU64,
    lease: OnceLock<LeaseWord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing was said yet: addresses stay as they are.
    AsIs,
    Keep,
    Absent,
}

const WISH: u64 = 3;
const STEP: u64 = WISH + 1;

impl Order {
    /// Says what is wanted; `Keep` again announces again.
    pub(super) fn say(&self, wish: Wish) {
        let bits = match wish {
            Wish::AsIs => 0,
            Wish::Keep => 1,
            Wish::Absent => 2,
        };
        let next = (self.word.load(Ordering::Relaxed) & !WISH).wrapping_add(STEP) | bits;
        // Written by the heartbeat alone.
        self.word.store(next, Ordering::Release);
    }

    fn read(&self) -> (u64, Wish) {
        let word = self.word.load(Ordering::Acquire);
        let wish = match word & WISH {
            1 => Wish::Keep,
            2 => Wish::Absent,
            _ => Wish::AsIs,
        };
        (word, wish)
    }

    /// There before the heartbeat starts the router.
    pub(super) fn lease(&self) -> Option<&LeaseWord> {
        self.lease.get()
    }

    fn lend(&self, lease: LeaseWord) {
        // The first one stays.
        let _ = self.lease.set(lease);
    }
}

/// What the heartbeat knows of an interface.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub running: bool,
    /// Its own addresses, without the virtual ones.
    pub nets: Vec<IpNet>,
    pub port4: Option<Arc<Port>>,
    pub port6: Option<Arc<Port>>,
    /// Why a socket could not be opened.
    pub trouble: Option<String>,
}

impl Interface {
    pub(super) fn port(&self, family: Family) -> Option<&Arc<Port>> {
        match family {
            Family::V4 => self.port4.as_ref(),
            Family::V6 => self.port6.as_ref(),
        }
    }

    /// The address that packets to a destination come from: over IPv6 a link-local one to the group and to
    /// link-local peers, a global one to others.
    pub(super) fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        let local = |address: &Ipv6Addr| address.is_unicast_link_local();
        let v4 = |net: &IpNet| if let IpAddr::V4(address) = net.addr() { Some(address) } else { None };
        let v6 = |net: &IpNet| if let IpAddr::V6(address) = net.addr() { Some(address) } else { None };
        match destination {
            IpAddr::V4(destination) if !destination.is_multicast() => {
                let near = self.nets.iter().find(|net| net.contains(&IpAddr::V4(destination)));
                near.or(self.nets.iter().find(|net| v4(net).is_some())).and_then(v4).map(IpAddr::V4)
            }
            IpAddr::V4(_) => self.nets.iter().find_map(v4).map(IpAddr::V4),
            IpAddr::V6(destination) => {
                let link = destination.is_multicast() || local(&destination);
                self.nets.iter().filter_map(v6).find(|address| local(address) == link).map(IpAddr::V6)
            }
        }
    }
}

/// By name; an interface that is not there is not in here.
pub(super) type Interfaces = BTreeMap<String, Interface>;

/// What the keeper is told: the virtual routers with their orders. In place of those before; addresses of those that
/// are gone are taken off.
#[derive(Debug, Default)]
pub(super) struct Charge {
    /// Comes back with the interfaces of these routers.
    pub number: u64,
    pub routers: Vec<(Arc<VrrpSpec>, Arc<Order>)>,
}

/// What the threads share with the keeper.
#[derive(Debug, Default)]
pub(super) struct Desk {
    charge: Mutex<Option<Charge>>,
    stop: AtomicBool,
}

impl Desk {
    pub(super) fn charge(&self, charge: Charge) {
        *self.charge.lock().unwrap_or_else(PoisonError::into_inner) = Some(charge);
    }

    /// Carries out the orders that stand, and ends.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Kept {
    spec: Arc<VrrpSpec>,
    order: Arc<Order>,
    seen: u64,
    wish: Wish,
    schedule: Schedule,
}

pub(super) struct Keeper {
    desk: Arc<Desk>,
    alarm: Alarm,
    heart: Inbox,
    notices: Notices,
    events: Events,
    requests: Requests,
    frames: FramePort,
    kept: BTreeMap<VrrpName, Kept>,
    links: Vec<Link>,
    addresses: Vec<Address>,
    ports: BTreeMap<(String, Family), (u32, Arc<Port>)>,
    told: Option<Vec<String>>,
    charge: u64,
    look_at: Moment,
    /// Routers whose addresses were just ordered.
    acquired: Vec<VrrpName>,
    complained: BTreeMap<VrrpName, String>,
    lent: lend::Lent,
    /// Interfaces whose secondary addresses cannot be kept, which was said.
    unpromoted: BTreeSet<String>,
}

impl Keeper {
    /// In the network namespace of the calling thread.
    pub(super) fn new(
        desk: Arc<Desk>,
        heart: Inbox,
        notices: Notices,
        addresses: Addresses,
    ) -> io::Result<(Self, Waker)> {
        let (waker, alarm) = super::wake::pair()?;
        let keeper = Self {
            desk,
            alarm,
            heart,
            notices,
            events: Events::open()?,
            requests: Requests::open()?,
            frames: FramePort::open()?,
            kept: BTreeMap::new(),
            links: Vec::new(),
            addresses: Vec::new(),
            ports: BTreeMap::new(),
            told: None,
            charge: 0,
            look_at: clock(),
            acquired: Vec::new(),
            complained: BTreeMap::new(),
            lent: lend::Lent::adopt(addresses),
            unpromoted: BTreeSet::new(),
        };
        Ok((keeper, waker))
    }

    pub(super) fn run(mut self) {
        loop {
            self.wait();
            self.alarm.drain();
            let now = clock();
            if self.events.drain().unwrap_or(true) {
                self.look_at = self.look_at.min(now + SETTLE);
            }
            let charged = self.take_charge();
            let ordered = self.take_orders(now);
            if charged || now >= self.look_at {
                self.look(now);
            }
            if ordered || charged {
                self.apply_all(now);
            }
            self.announce(clock());
            for name in std::mem::take(&mut self.acquired) {
                self.heart.send_waiting(Input::Acquired(name));
            }
            // Orders are given before the stop.
            if self.desk.stop.load(Ordering::Acquire) {
                if self.take_orders(now) {
                    self.apply_all(now);
                }
                self.take_back();
                return;
            }
        }
    }

    fn wait(&self) {
        let due = self.kept.values().filter_map(|kept| kept.schedule.due()).chain([self.look_at]).min();
        let timeout = due.map_or(RESYNC, |due| due.since(clock()));
        let mut fds = [
            PollFd::new(self.alarm.fd(), PollFlags::POLLIN),
            PollFd::new(self.events.fd(), PollFlags::POLLIN),
        ];
        // Interrupted or timed out: the loop looks at everything either way.
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None);
    }

    fn take_charge(&mut self) -> bool {
        let charge = self.desk.charge.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(charge) = charge else { return false };
        (self.charge, self.told) = (charge.number, None);
        let mut before = std::mem::take(&mut self.kept);
        for (spec, order) in charge.routers {
            let old = before.remove(&spec.name);
            let kept = match old {
                Some(old) if Arc::ptr_eq(&old.order, &order) => {
                    self.remove_given_up(&old.spec, &spec);
                    let mut schedule = old.schedule;
                    schedule.tune(spec.announce_repeat, spec.announce_refresh);
                    Kept { spec: Arc::clone(&spec), schedule, ..old }
                }
                old => {
                    if let Some(old) = old {
                        self.remove_given_up(&old.spec, &spec);
                    }
                    let schedule = Schedule::new(spec.announce_repeat, spec.announce_refresh);
                    Kept { spec: Arc::clone(&spec), order, seen: 0, wish: Wish::AsIs, schedule }
                }
            };
            self.lease(&kept);
            self.kept.insert(spec.name.clone(), kept);
        }
        for gone in before.values() {
            self.remove_all(&gone.spec, &gone.spec.addresses.clone());
        }
        true
    }

    /// Addresses that a router no longer has.
    fn remove_given_up(&mut self, old: &VrrpSpec, new: &VrrpSpec) {
        let moved = old.interface != new.interface;
        let gone: Vec<IpNet> =
            old.addresses.iter().filter(|net| moved || !new.addresses.contains(net)).copied().collect();
        self.remove_all(old, &gone);
    }

    /// True if any order is new.
    fn take_orders(&mut self, now: Moment) -> bool {
        let mut any = false;
        for (name, kept) in &mut self.kept {
            let (word, wish) = kept.order.read();
            if word == kept.seen {
                continue;
            }
            any = true;
            if wish == Wish::Keep {
                self.acquired.push(name.clone());
            }
            match (kept.wish, wish) {
                (Wish::Keep, Wish::Keep) => kept.schedule.again(now),
                (Wish::AsIs | Wish::Absent, Wish::Keep) => kept.schedule.begin(now),
                (_, Wish::Absent | Wish::AsIs) => kept.schedule.stop(),
            }
            (kept.seen, kept.wish) = (word, wish);
        }
        any
    }

    /// Reads interfaces and addresses, tells the heartbeat, and mends what is not as it should be.
    fn look(&mut self, now: Moment) {
        self.look_at = now + RESYNC;
        let read = self.requests.links().and_then(|links| Ok((links, self.requests.addresses()?)));
        match read {
            Ok((links, addresses)) => (self.links, self.addresses) = (links, addresses),
            Err(error) => {
                self.notices.send(Notice::Netlink(error.to_string()));
                self.look_at = now + RETRY;
                return;
            }
        }
        // First the leases have their places: who is told of the interfaces may become master.
        self.lend();
        self.tell();
        self.mend(now);
    }

    fn index(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|link| link.name == name).map(|link| link.index)
    }

    /// The interfaces of the routers, and those that they watch.
    fn tell(&mut self) {
        let virtual_addresses: Vec<IpAddr> =
            self.kept.values().flat_map(|kept| kept.spec.addresses.iter().map(IpNet::addr)).collect();
        let mut wanted: BTreeMap<String, [bool; 2]> = BTreeMap::new();
        for kept in self.kept.values() {
            let families = wanted.entry(kept.spec.interface.clone()).or_default();
            for family in kept.spec.families() {
                families[usize::from(family == Family::V6)] = true;
            }
            for tracked in &kept.spec.track_interfaces {
                wanted.entry(tracked.name.clone()).or_default();
            }
        }
        let mut interfaces = Interfaces::new();
        for (name, [v4, v6]) in wanted {
            let Some(link) = self.links.iter().find(|link| link.name == name).cloned() else { continue };
            let mut own: Vec<&Address> = self.addresses.iter().filter(|a| a.index == link.index).collect();
            own.retain(|a| !a.tentative && !virtual_addresses.contains(&a.net.addr()));
            // The primary ones first, in the kernel's order.
            own.sort_by_key(|a| a.secondary);
            let nets = own.iter().map(|a| a.net).collect();
            let mut trouble = None;
            let mut port = |wanted: bool, family| {
                if !wanted {
                    return None;
                }
                match self.port(&name, link.index, family) {
                    Ok(port) => Some(port),
                    Err(error) => {
                        trouble = Some(format!("cannot open a socket on {name}: {error}"));
                        None
                    }
                }
            };
            let (port4, port6) = (port(v4, Family::V4), port(v6, Family::V6));
            if trouble.is_some() {
                self.look_at = self.look_at.min(clock() + RETRY);
            }
            interfaces.insert(name, Interface { running: link.running, nets, port4, port6, trouble });
        }
        self.ports.retain(|(name, _), (index, _)| {
            interfaces.contains_key(name) && self.links.iter().any(|link| link.index == *index)
        });
        // Sockets are compared by the interface's number, which is in the text by the port's.
        let text = interfaces.iter().map(|(name, interface)| format!("{name} {interface:?}")).collect();
        if self.told.as_ref() != Some(&text) {
            self.told = Some(text);
            self.heart.send_waiting(Input::Interfaces(self.charge, interfaces));
        }
    }

    fn port(&mut self, name: &str, index: u32, family: Family) -> io::Result<Arc<Port>> {
        let key = (name.to_owned(), family);
        if let Some((known, port)) = self.ports.get(&key)
            && *known == index
        {
            return Ok(Arc::clone(port));
        }
        let port = Arc::new(Port::open(family, name, index)?);
        self.ports.insert(key, (index, Arc::clone(&port)));
        Ok(port)
    }

    /// Puts back what somebody took away.
    fn mend(&mut self, now: Moment) {
        let mut put_back = Vec::new();
        let on_it = |kept: &&mut Kept| kept.wish == Wish::Keep && kept.spec.held_by == HeldBy::Interface;
        for kept in self.kept.values_mut().filter(on_it) {
            let link = self.links.iter().find(|link| link.name == kept.spec.interface);
            let Some(index) = link.filter(|link| link.running).map(|link| link.index) else { continue };
            for net in &kept.spec.addresses {
                let there = |a: &Address| a.index == index && a.net.addr() == net.addr();
                if !self.addresses.iter().any(there) {
                    put_back.push((kept.spec.name.clone(), index, *net));
                }
            }
        }
        for (name, index, net) in put_back {
            self.promote(index);
            match self.requests.add(index, net) {
                Ok(added) => {
                    if added {
                        self.notices.send(Notice::PutBack { name: name.clone(), address: net.addr() });
                    }
                    self.complained.remove(&name);
                    if let Some(kept) = self.kept.get_mut(&name) {
                        kept.schedule.begin(now);
                    }
                }
                Err(error) => self.complain(&name, net, &error),
            }
        }
    }

    fn complain(&mut self, name: &VrrpName, net: IpNet, error: &io::Error) {
        self.look_at = self.look_at.min(clock() + RETRY);
        let text = format!("{net}: {error}");
        if self.complained.get(name) != Some(&text) {
            self.notices.send(Notice::Address { name: name.clone(), text: text.clone() });
            self.complained.insert(name.clone(), text);
        }
    }

    /// Does what was ordered.
    fn apply_all(&mut self, now: Moment) {
        let routers: Vec<_> = self.kept.values().map(|kept| (Arc::clone(&kept.spec), kept.wish)).collect();
        // What goes first: where the kernel takes more off with it, that is put on again in this turn.
        for (spec, wish) in &routers {
            match wish {
                Wish::Absent => self.remove_all(spec, &spec.addresses),
                Wish::Keep if spec.held_by == HeldBy::Dataplane => self.clear_interface(&spec.name),
                Wish::AsIs | Wish::Keep => {}
            }
        }
        for (spec, wish) in routers {
            match wish {
                Wish::AsIs | Wish::Absent => {}
                Wish::Keep if spec.held_by == HeldBy::Dataplane => {}
                Wish::Keep => {
                    if self.index(&spec.interface).is_none() {
                        self.look_at = now;
                    }
                    let Some(index) = self.index(&spec.interface) else {
                        self.acquired.retain(|name| *name != spec.name);
                        continue;
                    };
                    self.promote(index);
                    for net in &spec.addresses {
                        match self.requests.add(index, *net) {
                            Ok(_) => {}
                            Err(error) => {
                                self.acquired.retain(|name| *name != spec.name);
                                self.complain(&spec.name, *net, &error);
                            }
                        }
                    }
                }
            }
        }
        self.settle();
    }

    fn remove_all(&mut self, spec: &VrrpSpec, addresses: &[IpNet]) {
        let Some(index) = self.index(&spec.interface) else { return };
        let there = |net: &IpNet| self.addresses.iter().any(|a| a.index == index && a.net == *net);
        if spec.held_by == HeldBy::Interface || addresses.iter().any(there) {
            self.promote(index);
        }
        for net in addresses {
            if let Err(error) = self.requests.remove(index, *net) {
                self.complain(&spec.name, *net, &error);
            }
        }
    }

    fn announce(&mut self, now: Moment) {
        for kept in self.kept.values_mut() {
            if !kept.schedule.tick(now) {
                continue;
            }
            let Some(link) = self.links.iter().find(|link| link.name == kept.spec.interface) else {
                continue;
            };
            // A link without addresses of its own kind has no neighbours to tell.
            let Some(mac) = link.mac else { continue };
            let router = forwards_ipv6(&link.name);
            for net in &kept.spec.addresses {
                for frame in frames(net.addr(), mac, router) {
                    // The next one of the burst may do better.
                    let _ = self.frames.send(link.index, &frame);
                }
            }
        }
    }
}

fn forwards_ipv6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(nets: &[&str]) -> Interface {
        let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
        Interface { running: true, nets, port4: None, port6: None, trouble: None }
    }

    #[test]
    fn the_source_fits_the_destination() {
        let it = interface(&["10.0.0.1/24", "10.1.0.1/24", "fd00::1/64", "fe80::1/64"]);
        let source = |to: &str| it.source(to.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(source("224.0.0.18").as_deref(), Some("10.0.0.1"));
        assert_eq!(source("10.1.0.2").as_deref(), Some("10.1.0.1"), "the network of the peer");
        assert_eq!(source("192.0.2.1").as_deref(), Some("10.0.0.1"), "behind a router");
        assert_eq!(source("ff02::12").as_deref(), Some("fe80::1"));
        assert_eq!(source("fe80::2").as_deref(), Some("fe80::1"));
        assert_eq!(source("fd00::2").as_deref(), Some("fd00::1"));
        assert_eq!(interface(&["fd00::1/64"]).source("ff02::12".parse().unwrap()), None);
        assert_eq!(interface(&["fd00::1/64"]).source([10, 0, 0, 2].into()), None);
    }

    #[test]
    fn the_latest_order_counts() {
        let order = Order::default();
        assert_eq!(order.read(), (0, Wish::AsIs));
        order.say(Wish::Keep);
        let first = order.read();
        assert_eq!(first.1, Wish::Keep);
        order.say(Wish::Keep);
        assert_ne!(order.read(), first, "said again, it is new");
        order.say(Wish::Absent);
        assert_eq!(order.read().1, Wish::Absent);
    }
}
