//! NAT in the image: who needs sessions, what replies are rewritten to, where pools lie.

use super::{
    nat::mapped,
    tests::{backend, service, tunnel},
    *,
};
use crate::{
    maglev,
    model::{Admin, Forward, Health, PortSpec, SnatSpec},
};
use lb_common::abi::{ForwardKind, NatKey, NatOrigin, ServiceEntry, VipEntry};
use std::{collections::BTreeSet, net::IpAddr};

fn image(wanted: &[WantedService], observed: &Image) -> Result<Image, BuildError> {
    build(wanted, observed, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default())
}

fn made(wanted: &[WantedService]) -> Image {
    image(wanted, &Image::empty(4096, 512)).unwrap()
}

fn nat(number: u8, port: PortSpec, listens: Option<u16>, backends: &[u8]) -> WantedService {
    let backends: Vec<_> = backends
        .iter()
        .map(|n| {
            let mut backend = backend(*n, Admin::Enabled, Health::Up, 1, true);
            backend.spec.port = listens;
            backend
        })
        .collect();
    let mut service = service(number, &[port], 13, &backends).remove(0);
    service.spec.forward = Forward::Nat;
    service.spec.snat = None;
    service
}

fn snat(number: u8, addresses: &[IpAddr]) -> WantedService {
    let mut service = nat(number, PortSpec::Exact(80), None, &[1]);
    service.spec.forward = Forward::Snat;
    service.spec.snat = Some(SnatSpec { addresses: addresses.to_vec(), ports: (2000, 3000) });
    service
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(backend: u8, port: u16) -> NatKey {
    NatKey { address: mapped(IpAddr::from([10, 0, 0, backend])), port: port.to_be_bytes(), proto: 6 }
}

fn flags(image: &Image, id: u32) -> u32 {
    image.services[&id].entry.flags & (ServiceEntry::HAIRPIN | ServiceEntry::SESSIONS)
}

fn pooled(image: &Image, vip: IpAddr) -> bool {
    image.vips[&vip].flags & VipEntry::POOL != 0
}

#[test]
fn one_virtual_port_for_each_of_a_backends_needs_no_session() {
    let image = made(&[nat(1, PortSpec::Exact(80), Some(8080), &[1, 2])]);
    assert_eq!(flags(&image, 0), ServiceEntry::HAIRPIN);
    assert!(image.nat.on && image.nat.pools.is_empty());
    // A key for each port and one for each address.
    assert_eq!(image.nat.origins.len(), 4);
    let origin = image.nat.origins[&key(2, 8080)];
    assert_eq!((origin.vip, origin.port), (mapped(ip("192.0.2.1")), 80u16.to_be_bytes()));
    assert_eq!((origin.service, origin.backend, origin.flags), (0, 2, 0));
    assert!(image.nat.origins.contains_key(&NatKey { port: [0; 2], proto: 0, ..key(1, 0) }));
    assert!(pooled(&image, ip("192.0.2.1")));
    let entry = image.backends[&1].entry;
    assert_eq!((entry.kind, entry.port), (ForwardKind::Nat as u8, 8080));
}

#[test]
fn two_ways_to_one_port_need_sessions() {
    let alone = nat(3, PortSpec::Exact(80), None, &[9]);
    // Two services, two addresses of one, and several ports to one.
    let shared = [nat(1, PortSpec::Exact(80), None, &[1]), nat(2, PortSpec::Exact(80), None, &[1])];
    let mut two_addresses = nat(1, PortSpec::Exact(80), None, &[1]);
    two_addresses.spec.addresses.push(ip("192.0.2.77"));
    let many_to_one = nat(1, PortSpec::Range(80, 81), Some(8080), &[1]);
    for ambiguous in [shared.to_vec(), vec![two_addresses], vec![many_to_one]] {
        let count = ambiguous.len() as u32;
        let image = made(&[ambiguous, vec![alone.clone()]].concat());
        for id in 0..count {
            assert_eq!(flags(&image, id), ServiceEntry::HAIRPIN | ServiceEntry::SESSIONS);
        }
        assert_eq!(flags(&image, count), ServiceEntry::HAIRPIN, "whoever shares nothing is left alone");
        let marked = image.nat.origins.iter().filter(|(_, o)| o.flags & NatOrigin::SESSIONS != 0);
        assert!(marked.clone().count() == 1 && marked.clone().all(|(k, _)| k.address == key(1, 0).address));
    }
    // A range that keeps its ports is unique port by port.
    let range = made(&[nat(1, PortSpec::Range(80, 89), None, &[1])]);
    assert_eq!((flags(&range, 0), range.nat.origins.len()), (ServiceEntry::HAIRPIN, 11));
    assert_eq!(range.nat.origins[&key(1, 85)].port, 85u16.to_be_bytes());
}

#[test]
fn a_pool_has_its_addresses_by_family_and_an_entry_among_the_vips() {
    let image = made(&[snat(1, &[ip("fd00::250"), ip("10.0.0.250"), ip("10.0.0.251")])]);
    assert_eq!(flags(&image, 0), ServiceEntry::SESSIONS);
    assert!(!image.nat.on && image.nat.origins.is_empty());
    let pool = image.nat.pools[&0];
    assert_eq!((pool.base, pool.v4, pool.v6, pool.lo, pool.hi), (0, 2, 1, 2000, 3000));
    let addresses: Vec<_> = image.nat.addresses.values().map(|a| unmapped(*a)).collect();
    assert_eq!(addresses, [ip("10.0.0.250"), ip("10.0.0.251"), ip("fd00::250")]);
    for address in addresses {
        let vip = image.vips[&address];
        assert!(pooled(&image, address), "{address}");
        assert!(vip.rules.iter().all(|rule| rule.lo > rule.hi), "{address}");
    }
    assert!(!pooled(&image, ip("192.0.2.1")));
}

/// A packet may be reading the pool that goes: nothing is written over it.
#[test]
fn a_pool_that_changes_moves_and_one_that_does_not_stays() {
    let before = made(&[snat(1, &[ip("10.0.0.250")]), snat(2, &[ip("10.0.0.251")])]);
    let wanted = [snat(1, &[ip("10.0.0.250"), ip("10.0.0.252")]), snat(2, &[ip("10.0.0.251")])];
    let after = image(&wanted, &before).unwrap();
    assert_eq!((after.nat.pools[&0].base, after.nat.pools[&1].base), (2, before.nat.pools[&1].base));
    let mut seen = before.clone();
    for action in diff(&before, &after) {
        seen.apply(&action);
        for pool in seen.nat.pools.values() {
            let places = pool.base..pool.base + u32::from(pool.v4) + u32::from(pool.v6);
            assert!(places.into_iter().all(|i| seen.nat.addresses.contains_key(&i)), "{action}: {pool:?}");
        }
    }
    assert_eq!(seen, after);
}

#[test]
fn tables_that_would_overflow_are_refused() {
    let error = image(&[nat(1, PortSpec::Range(1, 65_535), None, &[1, 2])], &Image::empty(4096, 512));
    assert_eq!(error, Err(BuildError::TooManyNatPorts { found: 131_072 }));
    let many: Vec<IpAddr> = (0..4097u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    assert_eq!(
        image(&[snat(1, &many)], &Image::empty(4096, 512)),
        Err(BuildError::PoolsFull { needed: 4097 })
    );
}
