//! Random operations against a simple model, and random changes over random configurations.

use super::*;
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::{collections::BTreeMap, time::UNIX_EPOCH};

#[derive(Debug, Clone)]
enum Op {
    Add(&'static str, &'static str, u8, Option<u16>),
    Remove(&'static str, &'static str),
    Weight(&'static str, &'static str, u16),
    Admin(&'static str, &'static str, Admin),
    Restart,
    Reset,
}

const NAMES: [&str; 4] = ["web1", "web2", "web3", "web4"];

fn op() -> impl Strategy<Value = Op> {
    let service = || select(vec!["www", "dns", "none"]);
    let backend = || select(NAMES.to_vec());
    let weight = || select(vec![0u16, 1, 100, u16::MAX]);
    let admin = select(vec![Admin::Enabled, Admin::Draining, Admin::Disabled]);
    prop_oneof![
        6 => (service(), backend(), 1..6u8, option::of(weight())).prop_map(|(s, b, a, w)| Op::Add(s, b, a, w)),
        4 => (service(), backend()).prop_map(|(s, b)| Op::Remove(s, b)),
        3 => (service(), backend(), weight()).prop_map(|(s, b, w)| Op::Weight(s, b, w)),
        3 => (service(), backend(), admin).prop_map(|(s, b, a)| Op::Admin(s, b, a)),
        1 => Just(Op::Restart),
        1 => Just(Op::Reset),
    ]
}

/// The backends of each service as an operator would keep them in mind: address, weight, state.
type Mind = BTreeMap<(String, String), (IpAddr, u16, Admin)>;

fn mind(services: &[ServiceSpec], changes: &RuntimeChanges) -> Mind {
    let mut mind = Mind::new();
    for service in apply(services, changes).services {
        for backend in service.backends {
            let key = (service.spec.name.to_string(), backend.spec.name.to_string());
            let previous = mind.insert(key, (backend.spec.address, backend.spec.weight, backend.admin));
            assert_eq!(previous, None);
        }
    }
    mind
}

/// What the operation does to the picture; false if it must be refused.
fn step(mind: &mut Mind, initial: &Mind, op: &Op) -> bool {
    let key = |s: &str, b: &str| (s.to_owned(), b.to_owned());
    match *op {
        Op::Add(service, backend, last, weight) => {
            let at = key(service, backend);
            let taken = mind.iter().any(|((s, _), (address, ..))| s == service && *address == ip(last));
            let configured = initial.get(&at);
            let differs = configured.is_some_and(|(address, ..)| *address != ip(last));
            if service == "none" || mind.contains_key(&at) || taken || differs {
                return false;
            }
            let weight = weight.unwrap_or(configured.map_or(100, |(_, weight, _)| *weight));
            mind.insert(at, (ip(last), weight, Admin::Enabled));
            true
        }
        Op::Remove(service, backend) => mind.remove(&key(service, backend)).is_some(),
        Op::Weight(service, backend, weight) => {
            mind.get_mut(&key(service, backend)).map(|entry| entry.1 = weight).is_some()
        }
        Op::Admin(service, backend, admin) => {
            mind.get_mut(&key(service, backend)).map(|entry| entry.2 = admin).is_some()
        }
        Op::Restart => true,
        Op::Reset => {
            mind.clone_from(initial);
            true
        }
    }
}

fn perform(changes: &mut RuntimeChanges, file: &[ServiceSpec], op: &Op) -> bool {
    match *op {
        Op::Add(service, backend, last, weight) => {
            let backend = NewBackend { weight, ..new(backend, ip(last)) };
            changes.add_backend(file, &s(service), backend, stamp()).is_ok()
        }
        Op::Remove(service, backend) => {
            changes.remove_backend(file, &s(service), &b(backend), stamp()).is_ok()
        }
        Op::Weight(service, backend, weight) => {
            changes.set_weight(file, &s(service), &b(backend), weight, stamp()).is_ok()
        }
        Op::Admin(service, backend, admin) => {
            changes.set_admin(file, &s(service), &b(backend), admin, stamp()).is_ok()
        }
        Op::Restart => {
            let dir = tempfile::tempdir().unwrap();
            StateDir::open(dir.path()).unwrap().store(changes).unwrap();
            let loaded = StateDir::open(dir.path()).unwrap().load(UNIX_EPOCH).unwrap();
            assert_eq!(loaded.outcome, Outcome::Read);
            assert_eq!(loaded.changes, *changes);
            *changes = loaded.changes;
            true
        }
        Op::Reset => {
            assert_eq!(changes.list(), changes.reset());
            true
        }
    }
}

/// A configuration of two services with some of the names and addresses.
fn a_file() -> impl Strategy<Value = Vec<ServiceSpec>> {
    let backends = || vec((select(NAMES.to_vec()), 1..6u8), 0..4);
    (backends(), option::of(backends())).prop_map(|(www, dns)| {
        let distinct = |backends: Vec<(&'static str, u8)>| {
            let mut kept: Vec<(&str, u8)> = Vec::new();
            for (name, last) in backends {
                if !kept.iter().any(|(n, l)| *n == name || *l == last) {
                    kept.push((name, last));
                }
            }
            kept
        };
        let (www, dns) = (distinct(www), dns.map(distinct));
        let mut spec = vec![("www", "192.0.2.10", www.as_slice())];
        spec.extend(dns.as_ref().map(|dns| ("dns", "192.0.2.11", dns.as_slice())));
        services(&spec)
    })
}

proptest! {
    #[test]
    fn operations_do_what_the_operator_has_in_mind(ops in vec(op(), 0..40)) {
        let file = file();
        let mut changes = RuntimeChanges::default();
        let initial = mind(&file, &changes);
        let mut expected = initial.clone();
        for op in &ops {
            let before = changes.clone();
            let possible = step(&mut expected, &initial, op);
            prop_assert_eq!(perform(&mut changes, &file, op), possible, "{:?}", op);
            if !possible {
                prop_assert_eq!(&changes, &before);
            }
            prop_assert_eq!(mind(&file, &changes), expected.clone(), "{:?}", op);
            prop_assert!(apply(&file, &changes).stale.is_empty());
        }
    }

    /// After a reload of any other file, every change is either in force or reported, none both.
    #[test]
    fn no_change_is_lost_silently(first in a_file(), second in a_file(), ops in vec(op(), 0..30)) {
        let mut changes = RuntimeChanges::default();
        for op in &ops {
            perform(&mut changes, &first, op);
        }
        let before = changes.clone();
        let effective = apply(&second, &changes);
        prop_assert_eq!(&changes, &before);
        for change in changes.list() {
            let service = effective.service(&change.service);
            let backend = service.and_then(|service| service.backend(&change.backend));
            let in_force = match change.kind {
                ChangeKind::Added { .. } => backend.is_some_and(|b| b.origin == Origin::Runtime),
                ChangeKind::Removed => service.is_some_and(|s| s.removed.contains(&change.backend)),
                ChangeKind::Weight(weight) => backend
                    .is_some_and(|b| b.spec.weight == weight && b.weight_origin == Origin::Runtime),
                ChangeKind::Admin(admin) => {
                    backend.is_some_and(|b| b.admin == admin && b.admin_origin == Origin::Runtime)
                }
            };
            let reported = effective.stale.iter().filter(|stale| stale.change == change).count();
            prop_assert_eq!(usize::from(in_force) + reported, 1, "{}", change);
        }
        // What comes out is a configuration by the rules of one.
        for service in &effective.services {
            let mut addresses: Vec<_> = service.backends.iter().map(|b| b.spec.address).collect();
            addresses.sort();
            addresses.dedup();
            prop_assert_eq!(addresses.len(), service.backends.len());
        }
    }
}
