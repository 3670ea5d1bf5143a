//! The engine against a model of the kernel: after any history, with events lost or late, it ends up
//! with what an engine that has just started finds, and with what is true.

use super::*;
use netlink_packet_route::{
    link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
    rule::RuleMessage,
};
use proptest::prelude::*;
use std::net::Ipv4Addr;

type Mac = [u8; 6];

const PORT: u32 = 77;
const FIRST: u32 = 2;
const SECOND: u32 = 3;
/// A VLAN device on the first.
const VLAN: u32 = 4;
const TAG: u16 = 100;

fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

fn ip(third: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, third, last)
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Iface {
    up: bool,
    mac: Mac,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Direct(u32),
    Gateway(u32, Ipv4Addr),
    Refused(i32),
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    state: NeighbourState,
    mac: Option<Mac>,
    /// When the kernel's timer for it fires.
    timer: Option<Instant>,
}

/// The kernel, as far as the engine sees it, and the hosts around it.
#[derive(Clone, Default)]
struct Kernel {
    links: BTreeMap<u32, Iface>,
    /// By prefix length (0 or 24) and third byte.
    routes: BTreeMap<(u8, u8), Target>,
    neighbours: BTreeMap<(u32, Ipv4Addr), Entry>,
    hosts: BTreeMap<(u32, Ipv4Addr), Mac>,
    outgoing: VecDeque<Packet>,
    /// Probes of entries that must not be probed.
    trespasses: usize,
}

impl Kernel {
    fn say(&mut self, port: u32, sequence: u32, body: Body) {
        self.outgoing.push_back(Packet { port, sequence, interrupted: false, body });
    }

    fn event(&mut self, message: RouteNetlinkMessage) {
        self.say(0, 0, Body::Message(message));
    }

    fn link_message(&self, ifindex: u32) -> LinkMessage {
        let iface = self.links.get(&ifindex).copied().unwrap_or(Iface { up: false, mac: mac(0) });
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.link_layer_type = LinkLayerType::Ether;
        if iface.up {
            message.header.flags = LinkFlags::Up | LinkFlags::Running;
        }
        message.attributes = vec![
            LinkAttribute::IfName(format!("eth{ifindex}")),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(iface.mac.to_vec()),
        ];
        if ifindex == VLAN {
            message.attributes.push(LinkAttribute::Link(FIRST));
            let data = LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(TAG)]));
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), data]));
        }
        message
    }

    fn neighbour_message(&self, key: (u32, Ipv4Addr)) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = key.0;
        message.attributes.push(NeighbourAttribute::Destination(key.1.into()));
        if let Some(entry) = self.neighbours.get(&key) {
            message.header.state = entry.state;
            message.attributes.extend(entry.mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.to_vec())));
        }
        message
    }

    fn route_message((length, third): (u8, u8)) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = length;
        if length > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(ip(third, 0))));
        }
        message
    }

    fn set_neighbour(&mut self, key: (u32, Ipv4Addr), state: NeighbourState, mac: Option<Mac>) {
        self.neighbours.insert(key, Entry { state, mac, timer: None });
        let message = self.neighbour_message(key);
        self.event(RouteNetlinkMessage::NewNeighbour(message));
    }

    fn forget_neighbour(&mut self, key: (u32, Ipv4Addr)) {
        if self.neighbours.remove(&key).is_some() {
            let message = self.neighbour_message(key);
            self.event(RouteNetlinkMessage::DelNeighbour(message));
        }
    }

    fn set_link(&mut self, ifindex: u32, iface: Option<Iface>) {
        let before = self.links.get(&ifindex).copied();
        let lost = before.is_some_and(|b| b.up) && !iface.is_some_and(|i| i.up);
        if lost {
            for key in self.neighbours.keys().copied().filter(|k| k.0 == ifindex).collect::<Vec<_>>() {
                self.forget_neighbour(key);
            }
        }
        if iface.is_none() {
            // Routes of an interface that goes vanish without a word.
            self.routes
                .retain(|_, t| !matches!(t, Target::Direct(i) | Target::Gateway(i, _) if *i == ifindex));
        }
        match iface {
            Some(iface) => {
                self.links.insert(ifindex, iface);
                let message = self.link_message(ifindex);
                self.event(RouteNetlinkMessage::NewLink(message));
            }
            None if self.links.remove(&ifindex).is_some() => {
                let message = self.link_message(ifindex);
                self.event(RouteNetlinkMessage::DelLink(message));
            }
            None => {}
        }
    }

    fn set_route(&mut self, prefix: (u8, u8), target: Option<Target>) {
        match target {
            Some(Target::Direct(i) | Target::Gateway(i, _)) if !self.links.contains_key(&i) => {}
            Some(target) => {
                self.routes.insert(prefix, target);
                self.event(RouteNetlinkMessage::NewRoute(Self::route_message(prefix)));
            }
            None => {
                if self.routes.remove(&prefix).is_some() {
                    self.event(RouteNetlinkMessage::DelRoute(Self::route_message(prefix)));
                }
            }
        }
    }

    fn lookup(&self, address: Ipv4Addr) -> Target {
        let [_, _, third, _] = address.octets();
        let found = self.routes.get(&(24, third)).or_else(|| self.routes.get(&(0, 0)));
        found.copied().unwrap_or(Target::Refused(libc::ENETUNREACH))
    }

    fn request(&mut self, sequence: u32, request: Request, now: Instant) {
        let answer = |kernel: &mut Self, body| kernel.say(PORT, sequence, body);
        match request {
            Request::Links => {
                for ifindex in self.links.keys().copied().collect::<Vec<_>>() {
                    let message = self.link_message(ifindex);
                    answer(self, Body::Message(RouteNetlinkMessage::NewLink(message)));
                }
                answer(self, Body::Done);
            }
            Request::Neighbours => {
                for key in self.neighbours.keys().copied().collect::<Vec<_>>() {
                    let message = self.neighbour_message(key);
                    answer(self, Body::Message(RouteNetlinkMessage::NewNeighbour(message)));
                }
                answer(self, Body::Done);
            }
            Request::Route(IpAddr::V4(address)) => {
                let mut message = Self::route_message((32, 0));
                message.header.kind = RouteType::Unicast;
                match self.lookup(address) {
                    Target::Refused(errno) => return answer(self, Body::Error(errno)),
                    Target::Local => message.header.kind = RouteType::Local,
                    Target::Direct(ifindex) => message.attributes.push(RouteAttribute::Oif(ifindex)),
                    Target::Gateway(ifindex, gateway) => {
                        message.attributes.push(RouteAttribute::Oif(ifindex));
                        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
                    }
                }
                answer(self, Body::Message(RouteNetlinkMessage::NewRoute(message)));
            }
            Request::Solicit {
                neighbour: NeighbourKey { ifindex, address: IpAddr::V4(address) },
                create,
            } => {
                let errno = self.solicit((ifindex, address), create, now);
                answer(self, Body::Error(errno));
            }
            Request::Route(_) | Request::Solicit { .. } => answer(self, Body::Error(libc::EINVAL)),
        }
    }

    fn solicit(&mut self, key: (u32, Ipv4Addr), create: bool, now: Instant) -> i32 {
        let answers = self.hosts.contains_key(&key);
        match (self.neighbours.get_mut(&key), create) {
            _ if !self.links.get(&key.0).is_some_and(|link| link.up) => libc::ENETDOWN,
            (Some(_), true) => libc::EEXIST,
            (None, false) => libc::ENOENT,
            (None, true) => {
                self.set_neighbour(key, NeighbourState::Incomplete, None);
                self.start_timer(key, now + Duration::from_millis(if answers { 2 } else { 3000 }));
                0
            }
            (Some(entry), false) => {
                match entry.state {
                    NeighbourState::Failed => entry.state = NeighbourState::Incomplete,
                    // Without an event, as in the kernel.
                    NeighbourState::Stale => entry.state = NeighbourState::Delay,
                    NeighbourState::Permanent => self.trespasses += 1,
                    _ => {}
                }
                if matches!(entry.state, NeighbourState::Incomplete | NeighbourState::Delay)
                    && entry.timer.is_none()
                {
                    let wait = if answers { 2 } else { 3000 };
                    self.start_timer(key, now + Duration::from_millis(wait));
                }
                0
            }
        }
    }

    fn start_timer(&mut self, key: (u32, Ipv4Addr), at: Instant) {
        if let Some(entry) = self.neighbours.get_mut(&key) {
            entry.timer = Some(at);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.neighbours.values().filter_map(|entry| entry.timer).min()
    }

    fn tick(&mut self, now: Instant) {
        let due: Vec<_> = self
            .neighbours
            .iter()
            .filter(|(_, e)| e.timer.is_some_and(|at| at <= now))
            .map(|(k, _)| *k)
            .collect();
        for key in due {
            match self.hosts.get(&key).copied() {
                Some(mac) => self.set_neighbour(key, NeighbourState::Reachable, Some(mac)),
                None => self.set_neighbour(key, NeighbourState::Failed, None),
            }
        }
    }
}

/// A kernel, an engine, what the engine told, and the time.
struct World {
    kernel: Kernel,
    engine: Engine,
    told: BTreeMap<IpAddr, Resolution>,
    destinations: HashSet<IpAddr>,
    now: Instant,
    /// Let the engine ask for everything again from time to time.
    periodic: bool,
}

impl World {
    fn new(kernel: Kernel, now: Instant) -> Self {
        let engine = Engine::new(PORT, now);
        Self { kernel, engine, told: BTreeMap::new(), destinations: HashSet::new(), now, periodic: false }
    }

    fn watch(&mut self, destinations: impl IntoIterator<Item = IpAddr>) {
        self.destinations = destinations.into_iter().collect();
        self.engine.set_destinations(&self.destinations, self.now);
        self.told.retain(|address, _| self.destinations.contains(address));
    }

    /// Sends requests and delivers at most so many messages. Gets as far as a periodic resync only if
    /// told to: the events must suffice.
    fn pump(&mut self, mut messages: usize) {
        loop {
            if !self.periodic && self.engine.resync_at > self.now + RESYNC_AFTER_LOSS {
                self.engine.resync_at = self.now + 2 * RESYNC;
            }
            self.engine.tick(self.now);
            while let Some((sequence, request)) = self.engine.next_request(self.now) {
                self.kernel.request(sequence, request, self.now);
            }
            for (address, result) in self.engine.take_results() {
                assert!(self.destinations.contains(&address), "a result for nobody");
                self.told.insert(address, result);
            }
            if messages == 0 {
                return;
            }
            let Some(packet) = self.kernel.outgoing.pop_front() else { return };
            messages -= 1;
            self.engine.packet(packet, self.now);
        }
    }

    fn lose_everything(&mut self) {
        self.kernel.outgoing.clear();
        self.engine.lost(self.now);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.pump(usize::MAX);
            let next = self.kernel.deadline().into_iter().fold(self.engine.deadline(), Instant::min);
            if next >= end {
                self.now = end;
                return;
            }
            // Nothing may be due that was just done.
            self.now = next.max(self.now + Duration::from_micros(10));
            self.kernel.tick(self.now);
        }
    }

    /// What is true, from the kernel's tables alone.
    fn truth(&self, address: IpAddr) -> Resolution {
        let IpAddr::V4(v4) = address else { unreachable!("the model has IPv4 only") };
        let (ifindex, gateway) = match self.kernel.lookup(v4) {
            Target::Direct(ifindex) => (ifindex, v4),
            Target::Gateway(ifindex, gateway) => (ifindex, gateway),
            Target::Local => return Err(Unresolved::Local),
            Target::Refused(libc::EINVAL) => return Err(Unresolved::Blackhole),
            Target::Refused(_) => return Err(Unresolved::NoRoute),
        };
        let sender = if ifindex == VLAN { FIRST } else { ifindex };
        let name = |ifindex: u32| format!("eth{ifindex}");
        if !self.kernel.links.contains_key(&sender) {
            return Err(Unresolved::NoVlanParent(name(ifindex)));
        }
        for ifindex in [ifindex, sender] {
            if !self.kernel.links[&ifindex].up {
                return Err(Unresolved::LinkDown(name(ifindex)));
            }
        }
        let entry = self.kernel.neighbours.get(&(ifindex, gateway));
        match entry.and_then(|entry| entry.mac) {
            Some(dst_mac) => Ok(NextHop {
                ifindex: sender,
                ifname: name(sender),
                src_mac: self.kernel.links[&ifindex].mac,
                dst_mac,
                vlan: (ifindex == VLAN).then_some(TAG),
                mtu: 1500,
                source: None,
            }),
            None => Err(Unresolved::NoNeighbour { gateway: gateway.into(), ifname: name(ifindex) }),
        }
    }

    /// Lets everything settle and compares.
    fn check(&mut self) {
        self.run(Duration::from_secs(60));
        assert!(self.engine.settled());
        assert_eq!(self.kernel.trespasses, 0, "a static neighbour was probed");
        let mut fresh = World::new(self.kernel.clone(), self.now);
        fresh.kernel.outgoing.clear();
        fresh.watch(self.destinations.clone());
        fresh.run(Duration::from_secs(60));
        for address in self.destinations.clone() {
            let (told, truth) = (&self.told[&address], self.truth(address));
            match (told, &truth) {
                // An engine with a past knows the interface that took the route along.
                (Err(Unresolved::LinkDown(_)), Err(Unresolved::NoRoute)) => {}
                _ => assert_eq!(told, &truth, "{address}"),
            }
            assert_eq!(fresh.told[&address], fresh.truth(address), "{address}, asked anew");
        }
    }
}

fn two_networks() -> Kernel {
    let mut kernel = Kernel::default();
    for ifindex in [FIRST, SECOND, VLAN] {
        kernel.set_link(ifindex, Some(Iface { up: true, mac: mac(ifindex as u8) }));
    }
    kernel.set_route((24, 0), Some(Target::Direct(FIRST)));
    kernel.set_route((24, 1), Some(Target::Direct(SECOND)));
    kernel.set_route((24, 2), Some(Target::Direct(VLAN)));
    kernel.set_route((0, 0), Some(Target::Gateway(SECOND, ip(1, 1))));
    for (key, last) in [((FIRST, ip(0, 1)), 11), ((SECOND, ip(1, 1)), 12), ((VLAN, ip(2, 1)), 13)] {
        kernel.hosts.insert(key, mac(last));
    }
    kernel.outgoing.clear();
    kernel
}

fn world() -> World {
    World::new(two_networks(), Instant::now())
}

fn hop(world: &World, address: Ipv4Addr) -> &NextHop {
    world.told[&address.into()].as_ref().unwrap()
}

#[test]
fn every_way_out_is_found_and_told_once() {
    let mut world = world();
    world.watch([ip(0, 1), ip(1, 1), ip(2, 1), ip(9, 9)].map(IpAddr::V4));
    world.run(Duration::from_millis(100));
    assert!(world.engine.settled());
    assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(11));
    assert_eq!((hop(&world, ip(2, 1)).vlan, hop(&world, ip(2, 1)).ifindex), (Some(TAG), FIRST));
    assert_eq!((hop(&world, ip(9, 9)).ifindex, hop(&world, ip(9, 9)).dst_mac), (SECOND, mac(12)));
    world.told.clear();
    world.run(Duration::from_secs(100));
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn a_burst_of_changes_is_told_once() {
    let mut world = world();
    world.watch([ip(0, 1).into()]);
    world.run(Duration::from_millis(100));
    let mut tellings = 0;
    for last in 0..20 {
        world.kernel.set_neighbour((FIRST, ip(0, 1)), NeighbourState::Reachable, Some(mac(100 + last)));
        world.told.clear();
        world.run(Duration::from_millis(1));
        tellings += world.told.len();
    }
    assert_eq!(tellings, 0);
    world.run(QUIET);
    assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(119));
}

#[test]
fn a_flood_of_changes_does_not_silence_it() {
    let mut world = world();
    world.watch([ip(0, 1).into()]);
    world.run(Duration::from_millis(100));
    world.told.clear();
    world.kernel.set_neighbour((FIRST, ip(0, 1)), NeighbourState::Reachable, Some(mac(99)));
    for _ in 0..100 {
        world.kernel.event(RouteNetlinkMessage::NewRule(RuleMessage::default()));
        world.run(Duration::from_millis(1));
    }
    assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(99));
}

#[test]
fn a_dead_link_is_told_though_its_routes_are_gone() {
    let mut world = world();
    world.kernel.routes.remove(&(0, 0));
    world.watch([ip(0, 1).into()]);
    world.run(Duration::from_millis(100));
    world.kernel.routes.remove(&(24, 0));
    world.kernel.set_link(FIRST, Some(Iface { up: false, mac: mac(2) }));
    world.run(Duration::from_millis(100));
    assert_eq!(world.told[&ip(0, 1).into()], Err(Unresolved::LinkDown("eth2".to_owned())));
    world.kernel.set_link(FIRST, Some(Iface { up: true, mac: mac(2) }));
    world.kernel.set_route((24, 0), Some(Target::Direct(FIRST)));
    world.run(Duration::from_millis(100));
    assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(11));
}

#[test]
fn an_absent_host_is_waited_for_then_told_then_found() {
    let mut world = world();
    world.kernel.hosts.clear();
    world.watch([ip(0, 1).into()]);
    world.run(Duration::from_millis(100));
    let (gateway, ifname) = (IpAddr::V4(ip(0, 1)), "eth2".to_owned());
    let waiting = Err(Unresolved::Resolving { gateway, ifname: ifname.clone() });
    assert_eq!(world.told[&gateway], waiting);
    assert!(!world.engine.settled());
    world.run(Duration::from_secs(5));
    assert_eq!(world.told[&gateway], Err(Unresolved::NoNeighbour { gateway, ifname }));
    assert!(world.engine.settled());
    world.told.clear();
    world.run(Duration::from_secs(20));
    assert!(world.told.is_empty(), "silence is told once: {:?}", world.told);
    world.kernel.hosts.insert((FIRST, ip(0, 1)), mac(55));
    world.run(Duration::from_secs(5));
    assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(55));
}

#[test]
fn a_collected_neighbour_is_asked_again_without_an_interruption() {
    let mut world = world();
    world.watch([ip(0, 1).into()]);
    world.run(Duration::from_millis(100));
    world.told.clear();
    world.kernel.forget_neighbour((FIRST, ip(0, 1)));
    world.run(Duration::from_secs(2));
    assert!(world.told.is_empty(), "{:?}", world.told);
    assert_eq!(world.kernel.neighbours[&(FIRST, ip(0, 1))].state, NeighbourState::Reachable);
}

#[test]
fn a_silent_kernel_is_asked_again() {
    let mut world = world();
    world.watch([ip(0, 1).into()]);
    world.engine.tick(world.now);
    assert!(world.engine.next_request(world.now).is_some());
    world.run(ANSWER_TIMEOUT + Duration::from_secs(1));
    assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(11));
}

#[test]
fn what_no_event_told_is_found_by_the_next_resync() {
    let mut world = world();
    world.watch([ip(0, 1).into()]);
    world.run(Duration::from_millis(100));
    world.kernel.routes.insert((24, 0), Target::Gateway(SECOND, ip(1, 1)));
    world.run(2 * RESYNC);
    assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(11));
    for last in [12, 14] {
        world.kernel.hosts.insert((SECOND, ip(1, 1)), mac(last));
        world.kernel.neighbours.clear();
        (world.periodic, world.engine.resync_at) = (true, world.engine.resync_at.min(world.now + RESYNC));
        world.run(RESYNC + Duration::from_secs(1));
        assert_eq!(hop(&world, ip(0, 1)).dst_mac, mac(last));
    }
}

#[test]
fn an_interrupted_dump_is_repeated_and_forgets_nothing() {
    let mut world = world();
    world.watch([ip(0, 1).into()]);
    world.run(Duration::from_millis(100));
    let links = world.engine.take_links().unwrap();
    world.engine.resync(world.now);
    let (sequence, request) = world.engine.next_request(world.now).unwrap();
    assert_eq!(request, Request::Links);
    let done = Packet { port: PORT, sequence, interrupted: true, body: Body::Done };
    world.engine.packet(done, world.now);
    assert_eq!(world.engine.next_request(world.now).unwrap().1, Request::Links);
    assert_eq!(world.engine.links, links);
}

#[test]
fn another_process_number_is_no_answer() {
    let mut world = world();
    world.watch([ip(0, 1).into()]);
    let (sequence, _) = world.engine.next_request(world.now).unwrap();
    for port in [0, PORT + 1] {
        world.engine.packet(Packet { port, sequence, interrupted: false, body: Body::Done }, world.now);
    }
    assert_eq!(world.engine.in_flight.len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Link(u32, Option<Iface>),
    Route((u8, u8), Option<Target>),
    Host((u32, Ipv4Addr), Option<Mac>),
    Entry((u32, Ipv4Addr), NeighbourState, Mac),
    Forget((u32, Ipv4Addr)),
    Watch(Vec<IpAddr>),
    Deliver(usize),
    Lose,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let ifindex = || FIRST..=VLAN;
    let address = || (0u8..4, 1u8..3).prop_map(|(third, last)| ip(third, last));
    let key = move || (ifindex(), address());
    let any_mac = || (20u8..30).prop_map(mac);
    let iface = (any::<bool>(), any_mac()).prop_map(|(up, mac)| Iface { up, mac });
    let target = prop_oneof![
        4 => ifindex().prop_map(Target::Direct),
        4 => (ifindex(), address()).prop_map(|(i, a)| Target::Gateway(i, a)),
        1 => Just(Target::Refused(libc::EINVAL)),
        1 => Just(Target::Local),
    ];
    let prefix = prop_oneof![1 => Just((0, 0)), 3 => (0u8..4).prop_map(|third| (24, third))];
    let state = prop_oneof![
        Just(NeighbourState::Reachable),
        Just(NeighbourState::Stale),
        Just(NeighbourState::Permanent),
        Just(NeighbourState::Failed),
    ];
    prop_oneof![
        (ifindex(), proptest::option::weighted(0.8, iface)).prop_map(|(i, l)| Step::Link(i, l)),
        (prefix, proptest::option::weighted(0.7, target)).prop_map(|(p, t)| Step::Route(p, t)),
        (key(), proptest::option::of(any_mac())).prop_map(|(k, m)| Step::Host(k, m)),
        (key(), state, any_mac()).prop_map(|(k, s, m)| Step::Entry(k, s, m)),
        key().prop_map(Step::Forget),
        proptest::collection::vec(address().prop_map(IpAddr::V4), 0..6).prop_map(Step::Watch),
        (0usize..20).prop_map(Step::Deliver),
        Just(Step::Lose),
        (0u64..8000).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_it_tells_the_truth(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = world();
        world.watch([ip(0, 1), ip(1, 2), ip(3, 1)].map(IpAddr::V4));
        for step in steps {
            match step {
                Step::Link(ifindex, iface) => world.kernel.set_link(ifindex, iface),
                Step::Route(prefix, target) => world.kernel.set_route(prefix, target),
                Step::Host(key, None) => drop(world.kernel.hosts.remove(&key)),
                Step::Host(key, Some(mac)) => drop(world.kernel.hosts.insert(key, mac)),
                Step::Entry(key, state, mac) => {
                    if world.kernel.links.get(&key.0).is_some_and(|link| link.up) {
                        let mac = (state != NeighbourState::Failed).then_some(mac);
                        world.kernel.set_neighbour(key, state, mac);
                        // Until the operator's change is known, it can be run over.
                        if state == NeighbourState::Permanent {
                            world.pump(usize::MAX);
                        }
                    }
                }
                Step::Forget(key) => world.kernel.forget_neighbour(key),
                Step::Watch(destinations) => world.watch(destinations),
                Step::Deliver(messages) => world.pump(messages),
                Step::Lose => world.lose_everything(),
                Step::Wait(time) => world.run(Duration::from_millis(time)),
            }
        }
        world.check();
    }

    /// Whatever the messages say.
    #[test]
    fn no_sequence_of_messages_panics(
        messages in proptest::collection::vec(
            (0u32..3, 0u32..12, 0u8..12, any::<bool>(), 0u32..6, any::<[u8; 2]>(), any::<u8>(), 0u64..3000),
            0..200,
        ),
    ) {
        let kernel = two_networks();
        let mut engine = Engine::new(PORT, Instant::now());
        let mut now = Instant::now();
        engine.set_destinations(&[ip(0, 1), ip(1, 1), ip(2, 1)].map(IpAddr::V4).into(), now);
        for (port, sequence, what, interrupted, ifindex, [third, last], state, time) in messages {
            now += Duration::from_millis(time);
            engine.tick(now);
            while engine.next_request(now).is_some() {}
            let mut neighbour = kernel.neighbour_message((ifindex, ip(third % 4, last % 4)));
            neighbour.header.state = u16::from(state).into();
            neighbour.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2; usize::from(last % 9)]));
            let mut route = Kernel::route_message((state, third));
            route.header.kind = last.into();
            route.attributes.push(RouteAttribute::Oif(ifindex));
            let body = match what {
                0 => Body::Done,
                1 => Body::Broken,
                2 => Body::Unknown(100 + u16::from(state % 8)),
                3 => Body::Error(i32::from(last)),
                4 => Body::Message(RouteNetlinkMessage::NewLink(kernel.link_message(ifindex))),
                5 => Body::Message(RouteNetlinkMessage::DelLink(kernel.link_message(ifindex))),
                6 => Body::Message(RouteNetlinkMessage::NewNeighbour(neighbour)),
                7 => Body::Message(RouteNetlinkMessage::DelNeighbour(neighbour)),
                8 => Body::Message(RouteNetlinkMessage::NewRoute(route)),
                9 => Body::Message(RouteNetlinkMessage::DelRoute(route)),
                10 => Body::Message(RouteNetlinkMessage::NewRule(RuleMessage::default())),
                _ => Body::Error(0),
            };
            engine.packet(Packet { port: PORT + port, sequence, interrupted, body }, now);
            engine.take_results();
            // Timers and users agree, and nothing is kept for nobody.
            let timers: BTreeSet<_> = engine.wants.iter().filter_map(|(k, w)| Some((w.timer?, *k))).collect();
            prop_assert_eq!(&timers, &engine.timers);
            for (key, want) in &engine.wants {
                prop_assert!(!want.users.is_empty());
                for user in &want.users {
                    prop_assert_eq!(engine.destinations[user].neighbour, Some(*key));
                }
            }
        }
    }
}
