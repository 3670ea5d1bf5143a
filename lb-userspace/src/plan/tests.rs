//! Random histories of services and backends: what is built is what was wanted, step by step safe, and can be
//! taken back.

use super::{image::name_of, *};
use crate::{
    maglev,
    model::{
        Admin, BackendSpec, Forward, GradualSpec, GuardSpec, Health, HealthSpec, OnAllDown, PoolSpec,
        PortSpec, Protocol, Scheduler, ServiceSpec, SnatSpec,
    },
};
use lb_common::abi::{BackendEntry, MAX_SERVICES, ServiceEntry, Slot, SlotState, VipEntry};
use proptest::prelude::*;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

pub(super) fn tunnel() -> TunnelSettings {
    TunnelSettings {
        source_ipv4: "198.18.0.0/16".parse().unwrap(),
        source_ipv6: "100::/64".parse().unwrap(),
        gue_source_ipv4: None,
        gue_source_ipv6: None,
        vip_flags: VipEntry::ECHO,
        declined: BTreeSet::new(),
    }
}

pub(super) fn backend(number: u8, admin: Admin, health: Health, weight: u16, hop: bool) -> WantedBackend {
    WantedBackend {
        standby: false,
        panic: false,
        spec: BackendSpec {
            name: format!("web{number}").parse().unwrap(),
            address: IpAddr::from([10, 0, 0, number]),
            port: None,
            weight,
            backup: false,
        },
        admin,
        health,
        next_hop: hop.then_some(NextHopEntry {
            ifindex: 2,
            dst_mac: [2, 0, 0, 0, 1, number],
            src_mac: [2, 0, 0, 0, 0, 1],
            vlan: 0,
            mtu: 1500,
            source: Some(IpAddr::from([10, 0, 0, 254])),
        }),
        ramp: None,
    }
}

pub(super) fn service(
    number: u8,
    ports: &[PortSpec],
    ring_size: u32,
    backends: &[WantedBackend],
) -> Vec<WantedService> {
    ports
        .iter()
        .enumerate()
        .map(|(i, port)| WantedService {
            part: 0,
            spec: ServiceSpec {
                name: format!("s{number}-{i}").parse().unwrap(),
                addresses: vec![IpAddr::from([192, 0, 2, number])],
                port: *port,
                protocol: Protocol::Tcp,
                // Every mode that rewrites takes part in the histories.
                forward: match (number, port) {
                    (2, PortSpec::Exact(_)) => Forward::Nat,
                    (3, _) => Forward::Snat,
                    _ => Forward::Dsr,
                },
                scheduler: [
                    Scheduler::LeastConnections,
                    Scheduler::Maglev,
                    Scheduler::RoundRobin,
                    Scheduler::SourceIp,
                ][usize::from(number) % 4],
                ring_size: Some(ring_size),
                seed: 7,
                idle_timeout: Duration::from_secs(300),
                gue_port: 6080,
                snat: (number == 3).then(|| SnatSpec {
                    addresses: vec![IpAddr::from([10, 0, 1, ring_size as u8]), IpAddr::from([10, 0, 1, 1])],
                    ports: (1024, 65_535),
                }),
                health: HealthSpec::default(),
                passive: None,
                guard: GuardSpec::default(),
                gradual: GradualSpec::default(),
                pool: PoolSpec::default(),
                quic: None,
                backends: backends.iter().map(|b| b.spec.clone()).collect(),
            },
            ring_size,
            no_quorum: false,
            withdrawn: false,
            backends: backends.to_vec(),
        })
        .collect()
}

#[test]
fn addresses_that_are_for_services_alone() {
    let address = |n| IpAddr::from([192, 0, 2, n]);
    let declining = |declined: &[u8]| TunnelSettings {
        declined: declined.iter().map(|n| address(*n)).collect(),
        ..tunnel()
    };
    let wanted = service(1, &[PortSpec::Exact(80)], 7, &[backend(1, Admin::Enabled, Health::Up, 1, true)]);
    let empty = Image::empty(1 << 10, 64);
    let make = |from: &Image, tunnel: &TunnelSettings| {
        build(&wanted, from, tunnel, &BTreeSet::new(), &mut maglev::Cache::default()).unwrap()
    };
    let image = make(&empty, &declining(&[1, 9]));
    let flags = |n| image.vips[&address(n)].flags & VipEntry::DECLINED;
    assert_eq!((flags(1), flags(9)), (VipEntry::DECLINED, VipEntry::DECLINED));
    // One without a service has no rule, and goes when nothing wants it.
    assert!(image.vips[&address(9)].rules.iter().all(|rule| rule.lo > rule.hi));
    let after = make(&image, &declining(&[]));
    assert_eq!(after.vips.keys().collect::<Vec<_>>(), [&address(1)]);
    assert_eq!(after.vips[&address(1)].flags & VipEntry::DECLINED, 0);
}

/// What must hold after every single action: nobody points at something that is not there.
fn check_references(image: &Image) -> Result<(), TestCaseError> {
    let services: BTreeSet<u32> = image.services.keys().copied().collect();
    for (address, vip) in &image.vips {
        for rule in vip.rules.iter().filter(|r| r.lo <= r.hi) {
            prop_assert!(services.contains(&u32::from(rule.service)), "VIP {} points at no service", address);
        }
        if vip.flags & VipEntry::SPILLED != 0 {
            let any = image.ports.keys().any(|k| k.vip == vip.vip)
                || image.port_ranges.keys().any(|k| u32::from_be_bytes(k.vip) == vip.vip);
            prop_assert!(any, "VIP {} spilled to nothing", address);
        }
    }
    for service in image.ports.values().chain(image.port_ranges.values()) {
        prop_assert!(services.contains(service), "a port points at no service");
    }
    for id in &services {
        for slot in &image.rings[id] {
            for backend in [slot.owner(), slot.home()] {
                prop_assert!(
                    backend == 0 || image.backends.contains_key(&backend),
                    "{:?} of service {}",
                    slot,
                    id
                );
            }
        }
        for word in image.schedules.get(id).map_or(&[][..], |record| &record.words) {
            let backend = *word as u32 & Slot::MAX_BACKEND;
            let of = image.backends.get(&backend).map(|b| b.entry.service);
            prop_assert_eq!(of, Some(*id), "a word of the schedule of service {}", id);
        }
    }
    Ok(())
}

fn any_backends() -> impl Strategy<Value = Vec<WantedBackend>> {
    let one = (
        prop_oneof![4 => Just(Admin::Enabled), 1 => Just(Admin::Draining), 1 => Just(Admin::Disabled)],
        prop_oneof![4 => Just(Health::Up), 1 => Just(Health::Down), 1 => Just(Health::Unknown)],
        0..4u16,
        prop::bool::weighted(0.9),
    );
    proptest::collection::btree_map(1..8u8, one, 0..6).prop_map(|map| {
        map.into_iter()
            .map(|(n, (admin, health, weight, hop))| backend(n, admin, health, weight, hop))
            .collect()
    })
}

fn any_services() -> impl Strategy<Value = Vec<WantedService>> {
    let ports = prop_oneof![
        Just(vec![PortSpec::Exact(80)]),
        Just(vec![PortSpec::Exact(80), PortSpec::Exact(443), PortSpec::Any]),
        Just((1..=6).map(PortSpec::Exact).chain([PortSpec::Range(8000, 8099), PortSpec::Any]).collect()),
    ];
    proptest::collection::btree_map(1..5u8, (ports, prop_oneof![Just(13u32), Just(29)], any_backends()), 0..4)
        .prop_map(|map| {
            map.into_iter()
                .flat_map(|(n, (ports, size, backends))| service(n, &ports, size, &backends))
                .collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn histories_end_where_they_should(history in proptest::collection::vec(any_services(), 1..8)) {
        let mut image = Image::empty(4096, 512);
        for wanted in history {
            let before = image.clone();
            let goal = build(&wanted, &image, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default()).unwrap();
            let actions = diff(&image, &goal);
            for action in &actions {
                image.apply(action);
                check_references(&image)?;
            }
            prop_assert_eq!(&image, &goal);
            prop_assert!(diff(&image, &goal).is_empty());
            // The same wish again asks for nothing.
            prop_assert_eq!(&build(&wanted, &image, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default()).unwrap(), &goal);
            // What is there is what was wanted.
            prop_assert_eq!(goal.services.len(), wanted.len());
            for service in &wanted {
                let id = goal.service_id(service.spec.name.as_str()).unwrap();
                let takes: BTreeSet<&str> =
                    service.backends.iter().filter(|b| b.takes_new()).map(|b| b.spec.name.as_str()).collect();
                for slot in &goal.rings[&id] {
                    match slot.owner() {
                        0 => prop_assert!(takes.is_empty()),
                        owner => prop_assert!(takes.contains(name_of(&goal.backends[&owner].identity))),
                    }
                }
            }
            // And the way back leads back.
            let mut undone = image.clone();
            for action in actions.iter().rev() {
                undone.apply(&action.inverse());
            }
            undone.rings.retain(|id, _| undone.services.contains_key(id));
            prop_assert_eq!(undone, before);
        }
    }
}

#[test]
fn a_new_backend_takes_new_flows_only() {
    let mut backends: Vec<_> = (1..=3).map(|n| backend(n, Admin::Enabled, Health::Up, 1, true)).collect();
    let first = service(1, &[PortSpec::Exact(80)], 1009, &backends);
    let image =
        build(&first, &Image::empty(4096, 512), &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default())
            .unwrap();
    assert!(image.rings[&0].iter().all(|s| s.is_plain()));
    backends.push(backend(4, Admin::Enabled, Health::Up, 1, true));
    let second = service(1, &[PortSpec::Exact(80)], 1009, &backends);
    let next = build(&second, &image, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default()).unwrap();
    let (mut moved, four) = (0, 4);
    for (old, new) in image.rings[&0].iter().zip(&next.rings[&0]) {
        assert_eq!(new.home(), old.home(), "established flows stay");
        if new.owner() != old.owner() {
            assert_eq!(new.state(), SlotState::Moving);
            moved += 1;
        }
    }
    assert!(next.rings[&0].iter().filter(|s| s.owner() == four).count() > 200);
    assert!((240..290).contains(&moved), "{moved} of 1009 slots moved for a fourth backend");
}

#[test]
fn a_full_ring_array_says_what_it_needs() {
    let wanted = service(1, &[PortSpec::Exact(80)], 1009, &[]);
    let error =
        build(&wanted, &Image::empty(1000, 16), &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default())
            .unwrap_err();
    assert_eq!(error, BuildError::RingFull { needed: 1009, capacity: 1000 });
    let backends: Vec<_> = (1..=4).map(|n| backend(n, Admin::Enabled, Health::Up, 1, true)).collect();
    let wanted = service(1, &[PortSpec::Exact(80)], 13, &backends);
    let error =
        build(&wanted, &Image::empty(1000, 4), &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default())
            .unwrap_err();
    assert_eq!(error, BuildError::BackendsFull { capacity: 4 });
}

#[test]
fn ids_freed_a_moment_ago_are_not_given_out() {
    let wanted = service(1, &[PortSpec::Exact(80)], 13, &[backend(1, Admin::Enabled, Health::Up, 1, true)]);
    let image = build(
        &wanted,
        &Image::empty(100, 16),
        &tunnel(),
        &BTreeSet::from([1, 2]),
        &mut maglev::Cache::default(),
    )
    .unwrap();
    assert_eq!(image.backends.keys().copied().collect::<Vec<_>>(), [3]);
    assert!(image.rings[&0].iter().all(|s| *s == Slot::plain(3, 1)));
}

#[test]
fn as_many_services_fit_as_a_configuration_may_have() {
    let mut wanted = Vec::new();
    for number in 0..MAX_SERVICES {
        let [one] = <[_; 1]>::try_from(service(1, &[PortSpec::Exact(80)], 3, &[])).unwrap();
        let mut one = one;
        one.spec.name = format!("s{number}").parse().unwrap();
        one.spec.port = PortSpec::Exact(1 + number as u16);
        wanted.push(one);
    }
    let empty = Image::empty(3 * MAX_SERVICES, 16);
    let image = |wanted: &[WantedService], from: &Image| {
        build(wanted, from, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default())
    };
    let full = image(&wanted, &empty).unwrap();
    assert_eq!(full.services.len(), MAX_SERVICES as usize);
    assert_eq!(image(&wanted, &full), Ok(full));
    let mut one_more = wanted[0].clone();
    one_more.spec.name = "one-more".parse().unwrap();
    wanted.push(one_more);
    let found = wanted.len();
    assert_eq!(
        image(&wanted, &Image::empty(4 * MAX_SERVICES, 16)),
        Err(BuildError::TooManyServices { found })
    );
}

/// New words lie elsewhere, and what a program may still read is not given out; a service that is no longer scheduled
/// goes on asking the table for the flows that were placed.
#[test]
fn schedules_change_beside_their_readers() {
    let mut backends: Vec<_> = (1..=3).map(|n| backend(n, Admin::Enabled, Health::Up, 1, true)).collect();
    let build = |wanted: &[WantedService], from: &Image| {
        build(wanted, from, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default()).unwrap()
    };
    let round_robin = |backends: &[WantedBackend]| {
        let mut wanted = service(1, &[PortSpec::Exact(80)], 13, backends);
        wanted[0].spec.scheduler = Scheduler::RoundRobin;
        wanted
    };
    let image = build(&round_robin(&backends), &Image::empty(100, 16));
    assert_eq!(image.schedules[&0], ScheduleRecord { base: 0, words: vec![1, 2, 3] });
    assert_eq!(image.services[&0].entry.flags, ServiceEntry::ROUND_ROBIN);
    backends[1].admin = Admin::Draining;
    let mut tracking = Tracking::new(Instant::now());
    let drained = build(&round_robin(&backends), &image);
    assert_eq!(drained.schedules[&0], ScheduleRecord { base: 3, words: vec![1, 3] });
    let now = Instant::now();
    tracking.note_changes(&image, &drained, now);
    let mut resting = drained.clone();
    resting.resting = tracking.resting(now);
    assert_eq!(resting.resting, [(0, 3)]);
    backends[1].admin = Admin::Enabled;
    assert_eq!(build(&round_robin(&backends), &resting).schedules[&0].base, 5);
    assert_eq!(tracking.resting(now + 2 * GRACE), []);
    assert_eq!(build(&round_robin(&backends), &drained).schedules[&0].base, 0);

    let mut wanted = round_robin(&backends);
    wanted[0].spec.scheduler = Scheduler::Maglev;
    let plain = build(&wanted, &image);
    assert!(plain.schedules.is_empty());
    assert!(plain.rings[&0].iter().all(|s| s.state() == SlotState::Tracked));
    let position = |wanted: fn(&Action) -> bool| diff(&image, &plain).iter().position(wanted).unwrap();
    let slots = position(|a| matches!(a, Action::Slots { .. }));
    let service = position(|a| matches!(a, Action::Service { .. }));
    let schedule = position(|a| matches!(a, Action::Schedule { .. }));
    assert!(slots < service && service < schedule);
    wanted[0].spec.scheduler = Scheduler::SourceIp;
    assert!(!build(&wanted, &image).services.contains_key(&0), "other slots for all flows: another service");
}

/// Standby: no new flows, no harm. Panic: a backend that is down takes flows, and the tables still say what its check said.
#[test]
fn standby_keeps_and_panic_revives() {
    let mut backends: Vec<_> = (1..=2).map(|n| backend(n, Admin::Enabled, Health::Up, 100, true)).collect();
    let build = |wanted: &[WantedService], from: &Image| {
        build(wanted, from, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default()).unwrap()
    };
    let of = |backends: &[WantedBackend]| service(1, &[PortSpec::Exact(80)], 13, backends);
    let owners = |image: &Image| -> BTreeSet<u32> { image.rings[&0].iter().map(|s| s.owner()).collect() };
    let image = build(&of(&backends), &Image::empty(100, 16));
    assert_eq!(owners(&image), BTreeSet::from([1, 2]));
    backends[1].standby = true;
    let image = build(&of(&backends), &image);
    assert_eq!(owners(&image), BTreeSet::from([1]));
    assert_eq!(image.backends[&2].entry.flags, 0, "its flows live");
    // All are down: dead, until their health is not believed.
    for backend in &mut backends {
        (backend.health, backend.standby) = (Health::Down, false);
    }
    let image = build(&of(&backends), &image);
    assert_eq!((owners(&image), image.backends[&1].entry.incarnation), (BTreeSet::from([0]), 1));
    assert_eq!(image.backends[&1].entry.flags, BackendEntry::DOWN | BackendEntry::DEAD);
    for backend in &mut backends {
        backend.panic = true;
    }
    let mut wanted = of(&backends);
    wanted[0].no_quorum = true;
    wanted[0].spec.pool.on_all_down = OnAllDown::Reject;
    let image = build(&wanted, &image);
    assert_eq!(owners(&image), BTreeSet::from([1, 2]));
    assert_eq!(image.backends[&1].entry.flags, BackendEntry::DOWN);
    let flags = ServiceEntry::REJECT | ServiceEntry::NO_QUORUM;
    assert_eq!(image.services[&0].entry.flags & flags, flags);
    // The end of the panic is the end of what they had.
    let calm: Vec<_> = backends.iter().map(|b| WantedBackend { panic: false, ..b.clone() }).collect();
    let image = build(&of(&calm), &image);
    assert_eq!(image.backends[&1].entry.incarnation, 2);
    assert_eq!(image.services[&0].entry.flags & flags, 0);
}
