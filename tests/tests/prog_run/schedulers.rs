//! Services whose flows are not placed by the ring: round-robin, least-connections, source-ip.

use crate::rig::Rig;
use lb_common::{abi::ServiceEntry, core::schedule::weighted, hash};
use lb_tests::{
    kernel::{Outcome, Verdict, client_address},
    packets::{ACK, FIN, Net, Packet, SYN},
};
use lb_userspace::plan::ScheduleRecord;
use std::collections::BTreeMap;

const TCP: &str = "dsr4-tcp";
const UDP: &str = "dsr4-udp";
const BASE: u32 = 100;

/// A service with these flags and words; its backends' ids.
fn scheduled(rig: &mut Rig, service: &str, flags: u32, words: impl Fn(u32) -> u64) -> Vec<u32> {
    let image = &mut rig.world.image;
    let id = image.service_id(service).unwrap();
    let backends: Vec<u32> =
        image.backends.iter().filter(|(_, b)| b.entry.service == id).map(|(id, _)| *id).collect();
    image.services.get_mut(&id).unwrap().entry.flags = flags;
    if flags & ServiceEntry::SCHEDULED != 0 {
        let words = backends.iter().map(|id| words(*id)).collect();
        image.schedules.insert(id, ScheduleRecord { base: BASE, words });
    }
    rig.balancer.set_image(image);
    backends
}

/// The backend that counts the packet.
fn goes_to(rig: &mut Rig, packet: &Packet) -> u32 {
    let (Outcome { verdict, .. }, moved) = rig.run(&packet.build());
    assert!(matches!(verdict, Verdict::Tx | Verdict::Redirect), "{verdict:?} {moved:?}");
    let backends = rig.world.image.backends.keys();
    let mut found = backends.filter(|id| moved.packets(lb_tests::kernel::Counter::Backend(**id)) == 1);
    let id = *found.next().expect("a backend");
    assert_eq!(found.next(), None);
    id
}

fn tcp(rig: &Rig, v6: bool, client: u16, flags: u8) -> Packet {
    rig.world.packet(TCP, v6, client).with(|p| {
        p.tcp_mut().flags = flags;
        p.tcp_mut().seq = 7000 + u32::from(flags & SYN == 0);
    })
}

#[test]
fn round_robin_is_equal_within_one() {
    let mut rig = Rig::new();
    let backends = scheduled(&mut rig, TCP, ServiceEntry::ROUND_ROBIN, u64::from);
    let mut counts = BTreeMap::<u32, u32>::new();
    for client in 0..100 {
        for v6 in [false, true] {
            let packet = tcp(&rig, v6, client, SYN);
            let backend = goes_to(&mut rig, &packet);
            *counts.entry(backend).or_default() += 1;
            for flags in [SYN, ACK, ACK, FIN | ACK] {
                let packet = tcp(&rig, v6, client, flags);
                assert_eq!(goes_to(&mut rig, &packet), backend);
            }
        }
    }
    assert_eq!(counts.len(), backends.len());
    let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(most - least <= 1, "{counts:?}");
}

/// Flows from before the service had a scheduler stay where they are: they have no entries, so for an idle timeout every
/// unknown flow is taken for one of them.
#[test]
fn datagrams_take_turns_by_flow() {
    let mut rig = Rig::new();
    let old = |rig: &mut Rig| -> Vec<u32> {
        let packets: Vec<_> = (100..140).map(|client| rig.world.packet(UDP, false, client)).collect();
        packets.iter().map(|packet| goes_to(rig, packet)).collect()
    };
    let before = old(&mut rig);
    let backends = scheduled(&mut rig, UDP, ServiceEntry::ROUND_ROBIN, u64::from);
    assert_eq!(old(&mut rig), before);
    rig.balancer.forget_homed();
    for round in 0..2 {
        assert_eq!(old(&mut rig), before, "recorded");
        for client in 0..30 {
            let packet = rig.world.packet(UDP, false, client);
            let backend = goes_to(&mut rig, &packet);
            assert_eq!(backend, backends[usize::from(client) % backends.len()], "round {round}");
        }
    }
}

#[test]
fn least_connections_avoids_the_loaded() {
    let mut rig = Rig::new();
    let backends = scheduled(&mut rig, TCP, ServiceEntry::LEAST_CONNECTIONS, |id| weighted(id, 1));
    let open = |rig: &mut Rig, client| {
        let syn = tcp(rig, false, client, SYN);
        let backend = goes_to(rig, &syn);
        let ack = tcp(rig, false, client, ACK);
        assert_eq!(goes_to(rig, &ack), backend);
        backend
    };
    let mut of: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
    let each = 10;
    for client in 0..each * backends.len() as u16 {
        of.entry(open(&mut rig, client)).or_default().push(client);
    }
    assert!(backends.iter().all(|id| rig.balancer.active(*id) == i64::from(each)));
    let empty = backends[0];
    for client in of[&empty].clone() {
        let fin = tcp(&rig, false, client, FIN | ACK);
        assert_eq!(goes_to(&mut rig, &fin), empty);
    }
    assert_eq!(rig.balancer.active(empty), 0);
    for client in 500..500 + each {
        assert_eq!(open(&mut rig, client), empty);
    }
    assert_eq!(rig.balancer.active(empty), i64::from(each));
    // What is forgotten is open no more.
    let flows = rig.balancer.entries();
    rig.balancer.forget(&flows);
    assert!(backends.iter().all(|id| rig.balancer.active(*id) == 0));
}

#[test]
fn the_source_alone_chooses_the_slot() {
    let mut rig = Rig::new();
    scheduled(&mut rig, TCP, ServiceEntry::SOURCE_IP, u64::from);
    let id = rig.world.image.service_id(TCP).unwrap();
    let entry = rig.world.image.services[&id].entry;
    let mut met = BTreeMap::<u32, u32>::new();
    for client in 0..60 {
        let packet = tcp(&rig, false, client, SYN);
        let Net::V4(header) = &packet.net else { panic!("IPv4") };
        assert_eq!(std::net::IpAddr::from(header.src), client_address(false, client));
        let hash = hash::flow4(entry.seed, u32::from(header.src), 0);
        let slot = hash::slot(hash, entry.ring_size) as usize;
        let expected = rig.world.image.rings[&id][slot].owner();
        *met.entry(expected).or_default() += 1;
        for port in [1024, 40_000, 50_001] {
            let packet = packet.with(|p| p.tcp_mut().src = port);
            assert_eq!(goes_to(&mut rig, &packet), expected);
        }
    }
    assert!(met.len() > 1);
}
