//! The engine against a model of the kernel: after any history, with events lost or late, it ends up
//! with what an engine that has just started finds, and with what is true.

use super::{
    model::{FIRST, Iface, Kernel, Mac, PORT, SECOND, TAG, Target, VLAN, ip, mac},
    *,
};
use netlink_packet_route::{
    neighbour::{NeighbourAttribute, NeighbourState},
    route::RouteAttribute,
    rule::RuleMessage,
};
use proptest::prelude::*;
use std::net::Ipv4Addr;

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
