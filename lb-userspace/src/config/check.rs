//! What no setting shows by itself: duplicates, overlaps and limits.

use super::{
    passive, quic,
    reader::{Refusal, Setting},
    service::ServiceDraft,
};
use crate::model::{MAX_BACKENDS, PortSpec, Protocol};
use lb_common::abi::{MAX_SERVICES, VIP_CAPACITY};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

/// Notes what is wrong between services and within them.
pub(super) fn check(services: &[ServiceDraft<'_>]) {
    if let Some(first) = services.get(MAX_SERVICES as usize) {
        let found = format!("{} services", services.len());
        let why = Refusal::expected(format!("at most {MAX_SERVICES}"));
        first.section.notes.problem(Some(first.section.at), "service".to_owned(), "", found, why);
        return;
    }
    for service in services {
        check_addresses(service);
        check_backends(service);
        quic::check(service);
        passive::check(service);
    }
    check_overlaps(services, &check_names(services));
    check_vips(services);
}

/// Notes duplicate names and returns the services whose name is one.
fn check_names(services: &[ServiceDraft<'_>]) -> HashSet<usize> {
    let mut lines = HashMap::new();
    let mut duplicates = HashSet::new();
    for (i, service) in services.iter().enumerate() {
        let Some((name, at)) = service.name.get() else { continue };
        if let Some(first) = lines.get(name) {
            let first = service.section.notes.place(*first, at);
            let why = Refusal::expected("a name that no other service has")
                .but(format!("the service on {first} has it"));
            service.section.refuse(at, "name", format!("name = \"{name}\""), why);
            duplicates.insert(i);
        } else {
            lines.insert(name, at);
        }
    }
    duplicates
}

fn check_addresses(service: &ServiceDraft<'_>) {
    let mut seen = HashSet::new();
    for (address, at) in service.addresses.value().into_iter().flatten() {
        if !seen.insert(address) {
            let found = format!("addresses has \"{address}\" twice");
            service.section.refuse(*at, "addresses", found, Refusal::expected("each address once"));
        }
    }
}

fn check_backends(service: &ServiceDraft<'_>) {
    let section = &service.section;
    let count = service.backends.len();
    if let Some(first) = service.backends.get(MAX_BACKENDS) {
        let why = Refusal::expected(format!("at most {MAX_BACKENDS}"));
        section.refuse(first.section.at, "backend", format!("{count} backends"), why);
        return;
    }
    if let Some((size, at)) = service.ring_size.get()
        && (*size as usize) < count
    {
        let why = Refusal::expected(format!("at least the number of backends, {count}"))
            .but("about 100 slots a backend share the load evenly");
        section.refuse(at, "ring_size", format!("ring_size = {size}"), why);
    }
    let vips: HashMap<IpAddr, usize> = service.addresses.value().into_iter().flatten().copied().collect();
    let (mut names, mut addresses) = (HashMap::new(), HashMap::new());
    for backend in &service.backends {
        let section = &backend.section;
        if let Some((name, at)) = backend.name.get() {
            let line = section.notes.line(at);
            if let Some(first) = names.get(name) {
                let why = Refusal::expected("a name that no other backend of the service has")
                    .but(format!("the backend on line {first} has it"));
                section.refuse(at, "name", format!("name = \"{name}\""), why);
                // Probably a copy: its address is not another mistake.
                continue;
            }
            names.insert(name, line);
        }
        let Some((address, at)) = backend.address.get() else { continue };
        let line = section.notes.line(at);
        let found = format!("address = \"{address}\"");
        if let Some(vip) = vips.get(address) {
            let why = Refusal::expected("the backend's own address").but(format!(
                "on line {} it is an address of the service, which backends have on their loopback only",
                section.notes.line(*vip)
            ));
            section.refuse(at, "address", found, why);
        } else if let Some(first) = addresses.get(address) {
            let why = Refusal::expected("an address that no other backend of the service has")
                .but(format!("the backend on line {first} has it; give one backend more weight instead"));
            section.refuse(at, "address", found, why);
        } else {
            addresses.insert(*address, line);
        }
    }
}

/// Ports of a service, its number, its protocol.
type Claim = (PortSpec, usize, Protocol);

/// Two services may not claim the same port of an address and protocol; QUIC is UDP. A copy of a service, seen by
/// its name, is one mistake and not two.
fn check_overlaps(services: &[ServiceDraft<'_>], copies: &HashSet<usize>) {
    let mut claims: HashMap<(IpAddr, u8), Vec<Claim>> = HashMap::new();
    for (i, service) in services.iter().enumerate() {
        let Some(addresses) = service.addresses.value() else { continue };
        let protocol = match &service.protocol {
            Setting::Is(protocol, _) => *protocol,
            Setting::Absent => Protocol::Tcp,
            Setting::Refused => continue,
        };
        let Some(port) = service.port.value() else { continue };
        if copies.contains(&i) {
            continue;
        }
        let conflict = addresses.iter().find_map(|(address, at)| {
            let others = claims.get(&(*address, protocol.number()))?;
            others
                .iter()
                .find(|(other, ..)| other.overlaps(*port))
                .map(|(other, j, theirs)| (*address, *at, *other, *j, *theirs))
        });
        if let Some((address, at, other, j, theirs)) = conflict {
            let first = &services[j].section;
            let ports = |port: PortSpec| match port {
                PortSpec::Any => "every port".to_owned(),
                PortSpec::Exact(_) => format!("port {port}"),
                PortSpec::Range(..) => format!("ports {port}"),
            };
            let found = format!("addresses has \"{address}\" with {protocol} {}", ports(*port));
            let why = Refusal::expected(format!(
                "no overlap with {} ({}), which has {theirs} {} there",
                first.place,
                first.notes.place(first.at, at),
                ports(other)
            ))
            .but("change address, port or protocol of one of them");
            service.section.refuse(at, "addresses", found, why);
            continue;
        }
        let distinct: HashSet<IpAddr> = addresses.iter().map(|(address, _)| *address).collect();
        for address in distinct {
            claims.entry((address, protocol.number())).or_default().push((*port, i, protocol));
        }
    }
}

/// The tables of virtual addresses have a size.
fn check_vips(services: &[ServiceDraft<'_>]) {
    let mut seen: [HashSet<IpAddr>; 2] = Default::default();
    for service in services {
        for (address, at) in service.addresses.value().into_iter().flatten() {
            let family = &mut seen[usize::from(address.is_ipv6())];
            family.insert(*address);
            if family.len() > VIP_CAPACITY as usize {
                let version = if address.is_ipv6() { "IPv6" } else { "IPv4" };
                let found = format!("addresses has \"{address}\", which makes {} of {version}", family.len());
                let why = Refusal::expected(format!("at most {VIP_CAPACITY} in all services"));
                service.section.refuse(*at, "addresses", found, why);
                return;
            }
        }
    }
}
