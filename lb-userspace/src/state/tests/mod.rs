//! Tests of the changes: what they do, what they refuse, what stays on disk.

mod disk;
mod model;
mod names;
mod revision;
mod save;

use super::*;
use crate::{
    config,
    model::{Admin, BackendName, ServiceName, ServiceSpec},
};
use std::net::IpAddr;

/// A backend's name and the last byte of its address.
type Backend<'a> = (&'a str, u8);

/// Services of a configuration: name, address and backends.
fn services(spec: &[(&str, &str, &[Backend<'_>])]) -> Vec<ServiceSpec> {
    let mut text = "node.interfaces = ['eth0']\n".to_owned();
    for (name, address, backends) in spec {
        text += &format!("[[service]]\nname = '{name}'\naddresses = ['{address}']\nport = 80\n");
        for (backend, last) in *backends {
            text += &format!("[[service.backend]]\nname = '{backend}'\naddress = '10.0.0.{last}'\n");
        }
    }
    config::parse_on("lbd.toml", &text, "host1").unwrap_or_else(|error| panic!("{error}\n{text}")).services
}

fn file() -> Vec<ServiceSpec> {
    services(&[("www", "192.0.2.10", &[("web1", 1), ("web2", 2)]), ("dns", "192.0.2.11", &[])])
}

fn s(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn b(name: &str) -> BackendName {
    name.parse().unwrap()
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn stamp() -> Stamp {
    Stamp { at: 1_700_000_000, by: "uid 0".to_owned() }
}

fn new(name: &str, address: IpAddr) -> NewBackend {
    NewBackend { name: b(name), address, port: None, weight: None, backup: false }
}

/// The backends of a service in force: name, address, weight, state, origins.
fn shown(services: &[ServiceSpec], changes: &RuntimeChanges, service: &str) -> Vec<String> {
    let effective = apply(services, changes);
    let service = effective.service(&s(service)).unwrap();
    let specs: Vec<_> = service.backends.iter().map(|b| b.spec.clone()).collect();
    assert_eq!(service.spec.backends, specs);
    let backends = service.backends.iter().map(|b| {
        let (spec, origins) = (&b.spec, (b.origin, b.weight_origin, b.admin_origin));
        let (x, y, z) = origins;
        format!("{} {} {} {} {x}/{y}/{z}", spec.name, spec.address, spec.weight, b.admin)
    });
    backends.collect()
}

fn stale(services: &[ServiceSpec], changes: &RuntimeChanges) -> Vec<String> {
    apply(services, changes).stale.iter().map(ToString::to_string).collect()
}

#[test]
fn without_changes_the_configuration_is_in_force() {
    let effective = apply(&file(), &RuntimeChanges::default());
    assert_eq!(effective.services.iter().map(|s| s.spec.clone()).collect::<Vec<_>>(), file());
    assert_eq!(effective.stale, []);
    assert_eq!(
        shown(&file(), &RuntimeChanges::default(), "www"),
        ["web1 10.0.0.1 100 enabled file/file/file", "web2 10.0.0.2 100 enabled file/file/file"]
    );
}

#[test]
fn changes_are_laid_over_the_configuration() {
    let (file, mut changes) = (file(), RuntimeChanges::default());
    changes.add_backend(&file, &s("www"), new("web0", ip(9)), stamp()).unwrap();
    assert!(changes.set_weight(&file, &s("www"), &b("web2"), 7, stamp()).unwrap());
    assert!(!changes.set_weight(&file, &s("www"), &b("web2"), 7, stamp()).unwrap());
    assert!(changes.set_admin(&file, &s("www"), &b("web0"), Admin::Draining, stamp()).unwrap());
    assert!(!changes.set_admin(&file, &s("www"), &b("web1"), Admin::Enabled, stamp()).unwrap());
    changes.remove_backend(&file, &s("www"), &b("web1"), stamp()).unwrap();
    assert_eq!(
        shown(&file, &changes, "www"),
        ["web2 10.0.0.2 7 enabled file/runtime/file", "web0 10.0.0.9 100 draining runtime/runtime/runtime"]
    );
    assert_eq!(apply(&file, &changes).services[0].removed, [b("web1")]);
    let list: Vec<String> = changes.list().iter().map(ToString::to_string).collect();
    assert_eq!(
        list,
        [
            "service 'www', backend 'web0': added with address 10.0.0.9, weight 100",
            "service 'www', backend 'web0': draining",
            "service 'www', backend 'web1': removed",
            "service 'www', backend 'web2': weight 7",
        ]
    );
    assert_eq!(stale(&file, &changes), Vec::<String>::new());

    // What was removed comes back as it was, or with another weight.
    changes.add_backend(&file, &s("www"), new("web1", ip(1)), stamp()).unwrap();
    assert_eq!(shown(&file, &changes, "www")[0], "web1 10.0.0.1 100 enabled file/file/file");
    changes.remove_backend(&file, &s("www"), &b("web1"), stamp()).unwrap();
    let weighted = NewBackend { weight: Some(5), ..new("web1", ip(1)) };
    changes.add_backend(&file, &s("www"), weighted, stamp()).unwrap();
    assert_eq!(shown(&file, &changes, "www")[0], "web1 10.0.0.1 5 enabled file/runtime/file");

    // What was added is forgotten when it is removed.
    changes.remove_backend(&file, &s("www"), &b("web0"), stamp()).unwrap();
    assert!(!changes.list().iter().any(|change| change.backend == b("web0")));

    assert_eq!(changes.reset().len(), 2);
    assert!(changes.is_empty());
    assert_eq!(shown(&file, &changes, "www"), shown(&file, &RuntimeChanges::default(), "www"));
}

#[test]
fn enabling_leaves_no_trace() {
    let (file, mut changes) = (file(), RuntimeChanges::default());
    for admin in [Admin::Draining, Admin::Disabled, Admin::Enabled] {
        assert!(changes.set_admin(&file, &s("www"), &b("web1"), admin, stamp()).unwrap());
        assert_eq!(apply(&file, &changes).services[0].backends[0].admin, admin);
    }
    assert_eq!(changes, RuntimeChanges::default());
}

#[test]
fn what_is_refused_and_why() {
    let file = file();
    let add = |service: &str, backend: NewBackend| {
        let mut changes = RuntimeChanges::default();
        changes.remove_backend(&file, &s("www"), &b("web2"), stamp()).unwrap();
        let before = changes.clone();
        let error = changes.add_backend(&file, &s(service), backend, stamp()).unwrap_err();
        assert_eq!(changes, before);
        (error.kind(), error.to_string())
    };
    use ChangeErrorKind::{Conflict, Invalid, NotFound};
    let rows = [
        (add("wwww", new("x", ip(9))), NotFound, "no service 'wwww'; there are: www, dns"),
        (
            add("www", new("web1", ip(9))),
            Conflict,
            "service 'www' has a backend 'web1' already, with address 10.0.0.1; remove it first",
        ),
        (
            add("www", new("web2", ip(9))),
            Conflict,
            "backend 'web2' of service 'www' has address 10.0.0.2 in the configuration; add it with that address, \
             or choose another name",
        ),
        (
            add("www", new("web3", ip(1))),
            Conflict,
            "backend 'web1' of service 'www' has address 10.0.0.1 already; give it more weight instead",
        ),
        (
            add("www", new("web3", "192.0.2.10".parse().unwrap())),
            Invalid,
            "192.0.2.10 is an address of service 'www', which backends have on their loopback only; give the \
             backend's own address",
        ),
        (
            add("www", new("web3", "127.0.0.1".parse().unwrap())),
            Invalid,
            "127.0.0.1 is a loopback address; give a unicast address of the backend",
        ),
        (
            add("www", NewBackend { port: Some(8080), ..new("web3", ip(3)) }),
            Invalid,
            "port 8080 differs from port 80 of service 'www', and forward = \"dsr\" does not change ports, only \
             \"nat\" and \"snat\" do; leave it out",
        ),
    ];
    for ((kind, message), expected_kind, expected) in rows {
        assert_eq!((kind, message.as_str()), (expected_kind, expected));
    }

    let mut changes = RuntimeChanges::default();
    let error = changes.set_weight(&file, &s("www"), &b("web9"), 1, stamp()).unwrap_err();
    assert_eq!(error.to_string(), "service 'www' has no backend 'web9'; there are: web1, web2");
    let error = changes.set_admin(&file, &s("dns"), &b("ns1"), Admin::Draining, stamp()).unwrap_err();
    assert_eq!(error.to_string(), "service 'dns' has no backend 'ns1'; there is none");
    let error = changes.remove_backend(&file, &s("nope"), &b("web1"), stamp()).unwrap_err();
    assert_eq!(error.kind(), NotFound);
    assert_eq!(changes, RuntimeChanges::default());
    let same_port = NewBackend { port: Some(80), ..new("web3", ip(3)) };
    changes.add_backend(&file, &s("www"), same_port, stamp()).unwrap();
    assert_eq!(apply(&file, &changes).services[0].backends[2].spec.port, None);
}

#[test]
fn a_service_has_room_for_its_ring() {
    let (file, mut changes) = (file(), RuntimeChanges::default());
    assert!(changes.set_ring_size(&s("www"), 3));
    assert!(!changes.set_ring_size(&s("www"), 4), "not a prime");
    changes.add_backend(&file, &s("www"), new("web3", ip(3)), stamp()).unwrap();
    let error = changes.add_backend(&file, &s("www"), new("web4", ip(4)), stamp()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "service 'www' has room for 3 backends; remove one first, or give it a larger ring"
    );
    assert_eq!(apply(&file, &changes).services[0].spec.ring_size, Some(3));
    let mut configured = file.clone();
    configured[0].ring_size = Some(101);
    assert_eq!(apply(&configured, &changes).services[0].spec.ring_size, Some(101));
    changes.reset();
    assert_eq!(changes.ring_size(&s("www")), Some(3), "a reset does not rehash every flow");
}

#[test]
fn changes_without_a_place_are_kept_and_reported() {
    let (old, mut changes) = (file(), RuntimeChanges::default());
    changes.add_backend(&old, &s("www"), new("web3", ip(3)), stamp()).unwrap();
    changes.add_backend(&old, &s("www"), new("web4", ip(4)), stamp()).unwrap();
    changes.set_weight(&old, &s("www"), &b("web4"), 4, stamp()).unwrap();
    changes.set_weight(&old, &s("www"), &b("web2"), 9, stamp()).unwrap();
    changes.remove_backend(&old, &s("www"), &b("web1"), stamp()).unwrap();
    changes.add_backend(&old, &s("dns"), new("ns1", ip(53)), stamp()).unwrap();
    let before = changes.clone();

    // web2 is gone, web3 is in the file, web4's address belongs to another, dns is gone.
    let new_file = services(&[("www", "192.0.2.10", &[("web1", 1), ("web3", 33), ("web5", 4)])]);
    assert_eq!(
        stale(&new_file, &changes),
        [
            "service 'www', backend 'web3': added with address 10.0.0.3, weight 100: without effect: the \
             configuration now has a backend of this name, with address 10.0.0.33",
            "service 'www', backend 'web2': weight 9: without effect: the configuration no longer has the backend",
            "service 'www', backend 'web4': added with address 10.0.0.4, weight 100: without effect: backend 'web5' \
             has address 10.0.0.4 now",
            "service 'www', backend 'web4': weight 4: without effect: backend 'web5' has address 10.0.0.4 now",
            "service 'dns', backend 'ns1': added with address 10.0.0.53, weight 100: without effect: the \
             configuration no longer has the service",
        ]
    );
    assert_eq!(
        shown(&new_file, &changes, "www"),
        ["web3 10.0.0.33 100 enabled file/file/file", "web5 10.0.0.4 100 enabled file/file/file"]
    );
    assert_eq!(changes, before);
    // With the old file everything is back.
    assert_eq!(stale(&old, &changes), Vec::<String>::new());

    // An address that became the service's, and forgetting a change that has no effect.
    let vip = services(&[("www", "10.0.0.3", &[("web1", 1)])]);
    assert!(stale(&vip, &changes)[1].ends_with("10.0.0.3 is an address of the service now"));
    changes.remove_backend(&vip, &s("www"), &b("web3"), stamp()).unwrap();
    assert!(!changes.list().iter().any(|change| change.backend == b("web3")));
}
