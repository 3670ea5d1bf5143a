//! The first line of defence: who may send at all, to which service, and how much.

use crate::rig::Rig;
use ipnet::IpNet;
use lb_common::core::DropReason;
use lb_tests::{
    kernel::{Verdict as Action, client_address},
    packets::{Packet, Rng, SYN},
};
use lb_userspace::{
    model::{Prefixes, Verdict},
    plan,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

const SERVICE: &str = "ipip4-tcp";

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn deny(rig: &mut Rig, prefixes: Prefixes) {
    plan::install(&mut rig.world.image, &Arc::new(prefixes));
    rig.balancer.set_image(&rig.world.image);
}

fn from(packet: &Packet, source: IpAddr) -> Packet {
    let (_, destination) = packet.addresses();
    let (src, dst) = packet.ports();
    Packet::tcp((source, src).into(), (destination, dst).into())
}

#[test]
fn denied_sources_and_exceptions() {
    let mut rig = Rig::new();
    let prefixes = [
        ("203.0.0.0/16", Verdict::Deny),
        ("203.0.1.0/24", Verdict::Allow),
        ("203.0.2.128/25", Verdict::Allow),
        ("203.0.1.7/32", Verdict::Deny),
        ("2001:db8:c::/48", Verdict::Deny),
        ("2001:db8:c::5/128", Verdict::Allow),
        ("2001:db9::/32", Verdict::Deny),
    ];
    deny(&mut rig, prefixes.map(|(prefix, verdict)| (net(prefix), verdict)).into());
    let v4 = rig.world.packet(SERVICE, false, 1);
    let v6 = rig.world.packet(SERVICE, true, 1);
    let rows = [
        (&v4, "203.0.0.1", true),
        (&v4, "203.0.1.1", false),
        (&v4, "203.0.1.7", true),
        (&v4, "203.0.2.1", true),
        (&v4, "203.0.2.129", false),
        (&v4, "203.1.0.1", false),
        (&v4, "202.255.255.255", false),
        (&v6, "2001:db8:c::1", true),
        (&v6, "2001:db8:c::5", false),
        (&v6, "2001:db9:1:2::3", true),
        (&v6, "2001:dba::1", false),
    ];
    let judge = |rig: &mut Rig, all: bool| {
        for (packet, source, denied) in rows {
            let packet = from(packet, source.parse().expect("an address"));
            if denied && !all {
                rig.drops(source, &packet.build(), DropReason::Denied);
            } else {
                rig.forwards(source, SERVICE, &packet);
            }
        }
    };
    judge(&mut rig, false);
    // Also what no service is asked for, and what is broken beyond the addresses.
    let other = Packet::udp(("203.0.0.1".parse::<IpAddr>().unwrap(), 9).into(), (v4.addresses().1, 9).into());
    rig.drops("no service", &other.build(), DropReason::Denied);
    let broken = from(&v4, "203.0.0.1".parse().unwrap()).with(|p| p.tcp_mut().flags = 0);
    rig.drops("no TCP", &broken.build(), DropReason::Denied);
    // Not what is for nobody here: the operator is not locked out.
    let host = Packet::tcp(("203.0.0.1".parse::<IpAddr>().unwrap(), 9).into(), ([192, 0, 3, 1], 22).into());
    rig.passes("to the host", &host.build());

    assert_eq!(rig.balancer.observe().denied, rig.world.image.denied, "the lists are read back");
    deny(&mut rig, Prefixes::new());
    judge(&mut rig, true);
    // Shorter than any mark of IPv6.
    deny(&mut rig, [(net("2000::/3"), Verdict::Deny), (net("2001:db8::/32"), Verdict::Allow)].into());
    rig.forwards("an exception", SERVICE, &v6);
    rig.drops("everybody else", &from(&v6, "2a00::1".parse().unwrap()).build(), DropReason::Denied);
    deny(&mut rig, [(net("2a00:1::/32"), Verdict::Deny)].into());
    rig.forwards("no short prefix any more", SERVICE, &from(&v6, "2a00::1".parse().unwrap()));
}

#[test]
fn one_hundred_thousand_prefixes() {
    let mut rig = Rig::new();
    let mut random = Rng::new(7);
    let mut prefixes = Prefixes::new();
    while prefixes.len() < 100_000 {
        let v6 = random.percent(30);
        let bits = (u128::from(random.bits()) << 64 | u128::from(random.bits())) & !(7 << 125) | 1 << 125;
        let (address, len): (IpAddr, _) = if v6 {
            (Ipv6Addr::from(bits).into(), 29 + random.below(100))
        } else {
            (Ipv4Addr::from(random.bits() as u32).into(), 12 + random.below(21))
        };
        let verdict = if random.percent(20) { Verdict::Allow } else { Verdict::Deny };
        prefixes.insert(IpNet::new(address, len as u8).unwrap().trunc(), verdict);
    }
    let start = Instant::now();
    deny(&mut rig, prefixes.clone());
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "a debug build writes 100,000 prefixes in {took:?}");
    assert_eq!(*rig.balancer.observe().denied, prefixes);
    let expected = |source: IpAddr| {
        let longest = (0..=if source.is_ipv4() { 32 } else { 128 }).rev();
        let mut nets = longest.map(|len| IpNet::new(source, len).unwrap().trunc());
        nets.find_map(|net| prefixes.get(&net)) == Some(&Verdict::Deny)
    };
    let packets = [rig.world.packet(SERVICE, false, 1), rig.world.packet(SERVICE, true, 1)];
    let known: Vec<IpAddr> =
        prefixes.keys().step_by(100).flat_map(|net| [net.network(), net.broadcast()]).collect();
    let random: Vec<IpAddr> = (0..2_000).map(|_| Ipv4Addr::from(random.bits() as u32).into()).collect();
    let mut denied = 0;
    for source in known.into_iter().chain(random) {
        let packet = from(&packets[usize::from(source.is_ipv6())], source);
        let outcome = rig.balancer.run(&packet.build());
        assert_eq!(outcome.verdict == Action::Drop, expected(source), "{source}");
        denied += u64::from(outcome.verdict == Action::Drop);
    }
    assert_eq!(rig.moved().packets(DropReason::Denied), denied);
    assert!(denied > 500, "{denied}");
    let start = Instant::now();
    deny(&mut rig, Prefixes::new());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(rig.balancer.observe().denied.is_empty());
}

/// Gives the service a guard, as the daemon would.
fn guard(rig: &mut Rig, change: impl FnOnce(&mut lb_userspace::model::GuardSpec)) {
    guard_of(rig, SERVICE, change);
}

fn guard_of(rig: &mut Rig, name: &str, change: impl FnOnce(&mut lb_userspace::model::GuardSpec)) {
    let service = rig.world.wanted.iter_mut().find(|s| s.spec.name.as_str() == name).expect("the service");
    change(&mut service.spec.guard);
    let mut rings = lb_userspace::maglev::Cache::default();
    let image = &rig.world.image;
    let goal =
        plan::build(&rig.world.wanted, image, &lb_tests::kernel::tunnel(), &Default::default(), &mut rings);
    let goal = goal.expect("an image");
    let id = goal.service_id(name).expect("the service");
    rig.world.image.services.insert(id, goal.services[&id]);
    rig.world.image.allowed = goal.allowed;
    rig.world.image.limits = goal.limits;
    rig.balancer.set_image(&rig.world.image);
    let observed = rig.balancer.observe();
    assert_eq!((&observed.allowed, &observed.limits), (&rig.world.image.allowed, &rig.world.image.limits));
}

#[test]
fn only_the_sources_on_a_services_list() {
    let mut rig = Rig::new();
    guard(&mut rig, |guard| guard.allow = [net("203.0.0.0/24"), net("2001:db8:c::4/126")].into());
    for v6 in [false, true] {
        let packet = rig.world.packet(SERVICE, v6, 5);
        rig.forwards("on the list", SERVICE, &packet);
        let stranger = from(&packet, client_address(v6, 300));
        rig.drops("not on it", &stranger.build(), DropReason::NotAllowed);
        let elsewhere = rig.world.packet("dsr4-tcp", v6, 300);
        rig.forwards("another service", "dsr4-tcp", &elsewhere);
    }
    guard(&mut rig, |guard| guard.allow.clear());
    let packet = rig.world.packet(SERVICE, false, 300);
    rig.forwards("no list", SERVICE, &packet);
}

#[test]
fn limits_of_a_source_and_of_the_service() {
    let mut rig = Rig::new();
    // So slow that no token comes back while the test runs.
    guard(&mut rig, |guard| {
        guard.limits.source_packets_per_second = 1;
        guard.limits.burst_ms = 10_000;
    });
    for v6 in [false, true] {
        let one = rig.world.packet(SERVICE, v6, 1);
        for _ in 0..10 {
            rig.forwards("within the burst", SERVICE, &one);
        }
        rig.drops("beyond it", &one.build(), DropReason::SourceLimit);
        // An IPv6 source is a /64.
        let neighbour = from(&one, client_address(v6, 2));
        if v6 {
            rig.drops("of the same /64", &neighbour.build(), DropReason::SourceLimit);
            let other = from(&one, "2001:db8:c:1::1".parse().unwrap());
            rig.forwards("another /64", SERVICE, &other);
        } else {
            rig.forwards("another source", SERVICE, &neighbour);
        }
    }
    guard(&mut rig, |guard| {
        guard.limits.source_packets_per_second = 0;
        guard.limits.source_connections_per_second = 1;
        guard.limits.burst_ms = 3_000;
    });
    let within = rig.world.packet(SERVICE, false, 7);
    let syn = within.with(|p| p.tcp_mut().flags = SYN);
    for _ in 0..3 {
        rig.forwards("a connection", SERVICE, &syn);
    }
    rig.drops("one too many", &syn.build(), DropReason::SourceLimit);
    rig.forwards("what is established goes on", SERVICE, &within);

    guard(&mut rig, |guard| {
        guard.limits.source_connections_per_second = 0;
        guard.limits.connections_per_second = 2;
        guard.limits.burst_ms = 1_000;
    });
    let from_client = |n| rig.world.packet(SERVICE, false, n).with(|p| p.tcp_mut().flags = SYN);
    let syns = [from_client(20), from_client(21), from_client(22)];
    rig.forwards("a connection", SERVICE, &syns[0]);
    rig.forwards("of another source", SERVICE, &syns[1]);
    rig.drops("the service has enough", &syns[2].build(), DropReason::ServiceLimit);
    std::thread::sleep(Duration::from_millis(520));
    rig.forwards("half a second later", SERVICE, &syns[2]);
    rig.drops("but one only", &syns[0].build(), DropReason::ServiceLimit);

    guard(&mut rig, |guard| guard.limits = lb_userspace::model::LimitSpec::default());
    for _ in 0..20 {
        rig.forwards("no limits any more", SERVICE, &syns[0]);
    }
    assert_eq!(rig.balancer.observe().limits.len(), 0);
}

#[test]
fn an_initial_packet_of_quic_is_a_new_connection() {
    let mut rig = Rig::new();
    guard_of(&mut rig, "quic4", |guard| {
        guard.limits.source_connections_per_second = 1;
        guard.limits.burst_ms = 3_000;
    });
    let of_kind = |first: u8| {
        // Version 1, and a connection ID of eight bytes that names no server.
        let datagram = [&[first, 0, 0, 0, 1, 8, 0xff][..], &[0xee; 60]].concat();
        rig.world.packet("quic4", false, 7).with(|p| *p.payload() = datagram)
    };
    let [initial, early, handshake] = [0xc0, 0xd0, 0xe0].map(of_kind);
    for _ in 0..3 {
        rig.forwards("a connection", "quic4", &initial);
    }
    rig.drops("one too many", &initial.build(), DropReason::SourceLimit);
    for _ in 0..5 {
        rig.forwards("0-RTT data of one", "quic4", &early);
        rig.forwards("a handshake goes on", "quic4", &handshake);
    }
}
