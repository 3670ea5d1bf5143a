//! `[service.snat]`, `[defaults.snat]`, and what `nat` and `snat` do not allow.

use super::{
    address,
    reader::{Refusal, Section, Setting, integer, text, wrong_type},
    schema::Schema,
    service::ServiceDraft,
};
use crate::model::{DEFAULT_SNAT_PORTS, Forward, Misfit, PortSpec, Protocol, SnatSpec, misfit};
use lb_common::abi::{NAT_CAPACITY, POOL_ADDRESS_CAPACITY};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};
use toml::de::DeValue;

/// What one of the two sections says, or both.
#[derive(Debug, Clone)]
pub(super) struct SnatSettings {
    addresses: Setting<Vec<(IpAddr, usize)>>,
    ports: Setting<(u16, u16)>,
    /// Where the section is.
    at: Option<usize>,
}

const ADDRESSES: &str = "an array of this node's addresses such as [\"10.0.0.250\", \"fd00::250\"]";
const SECTION: &str = "[service.snat] with addresses such as [\"10.0.0.250\", \"fd00::250\"]";
const PORTS: &str = "a port or a range of ports such as \"1024-65535\"";

impl SnatSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self { addresses: Setting::Absent, ports: Setting::Absent, at: None };

    /// Reads the subsection `snat` of `parent`.
    pub(super) fn read(parent: &Section<'_>, schema: &'static Schema) -> Self {
        let Some((table, at)) = parent.table("snat") else { return Self::ABSENT };
        let place = match parent.path.first().map(String::as_str) {
            Some("service") => format!("{}, snat", parent.place),
            _ => schema.header.to_owned(),
        };
        let path = [parent.path.as_slice(), &["snat".to_owned()]].concat();
        let section = Section::open(parent.notes, table, at, place, path, schema);
        Self {
            addresses: section.list("addresses", ADDRESSES, |v| address::unicast(text(v, address::ADDRESS)?)),
            ports: section.read("ports", ports),
            at: Some(at),
        }
    }

    /// These, with `defaults` for what they leave out.
    pub(super) fn or(&self, defaults: &Self) -> Self {
        Self {
            addresses: self.addresses.or(&defaults.addresses).clone(),
            ports: self.ports.or(&defaults.ports).clone(),
            at: self.at,
        }
    }

    /// The pool, if it is there; the places of its settings are noted.
    pub(super) fn build(&self, service: &Section<'_>) -> Option<SnatSpec> {
        let (addresses, at) = self.addresses.get()?;
        let path = |key: &'static str| service.path.iter().map(String::as_str).chain(["snat", key]);
        service.notes.origin(path("addresses"), at);
        if let Some(at) = self.ports.at() {
            service.notes.origin(path("ports"), at);
        }
        Some(SnatSpec {
            addresses: addresses.iter().map(|(address, _)| *address).collect(),
            ports: self.ports.value().copied().unwrap_or(DEFAULT_SNAT_PORTS),
        })
    }

    fn pool(&self) -> Vec<IpAddr> {
        self.addresses.value().into_iter().flatten().map(|(address, _)| *address).collect()
    }
}

fn ports(value: &DeValue<'_>) -> Result<(u16, u16), Refusal> {
    let refused = || Refusal::expected(PORTS);
    let spec = match value {
        DeValue::Integer(_) => {
            let number = integer(value, PORTS)?.ok_or_else(refused)?;
            PortSpec::try_from(number).map_err(|_| refused())?
        }
        DeValue::String(text) => text.parse::<PortSpec>().map_err(|error| refused().but(error.why))?,
        _ => return wrong_type(PORTS),
    };
    match spec {
        PortSpec::Any => Err(refused().but("port 0 is no port to send from")),
        PortSpec::Exact(_) | PortSpec::Range(..) => Ok(spec.bounds()),
    }
}

/// Notes what `nat` and `snat` do not allow, within services and between them.
pub(super) fn check(services: &[ServiceDraft<'_>]) {
    let mut room = Room { origins: NAT_CAPACITY as usize, pool: POOL_ADDRESS_CAPACITY as usize };
    for service in services {
        check_backend_ports(service);
        match service.forward.value().copied().unwrap_or(Forward::Dsr) {
            Forward::Nat => check_nat(service, &mut room),
            Forward::Snat => check_snat(service, services, &mut room),
            Forward::Dsr | Forward::Ipip | Forward::Gue => {}
        }
        let other = |forward: &&Forward| **forward != Forward::Snat;
        let forward = match &service.forward {
            Setting::Is(forward, _) => Some(forward),
            Setting::Absent => Some(&Forward::Dsr),
            Setting::Refused => None,
        };
        if let (Some(at), Some(forward)) = (service.snat.at, forward.filter(other)) {
            let why = Refusal::advice("only \"snat\" has a pool: remove the section, or change forward");
            let found = format!("a section [service.snat] with forward = \"{forward}\"");
            service.section.refuse(at, "snat", found, why);
        }
    }
}

/// What is left of the tables of all services.
struct Room {
    origins: usize,
    pool: usize,
}

fn check_backend_ports(service: &ServiceDraft<'_>) {
    let forward = service.forward.value().copied().unwrap_or(Forward::Dsr);
    if forward.rewrites() || service.forward == Setting::Refused {
        return;
    }
    let Some(of_service) = service.port.value() else { return };
    for backend in &service.backends {
        if let Some((port, at)) = backend.port.get().filter(|(port, _)| of_service.single() != Some(**port)) {
            let why = Refusal::expected(format!("the service's port, {of_service}")).but(format!(
                "forward = \"{forward}\" does not change ports, only \"nat\" and \"snat\" do: remove it"
            ));
            backend.section.refuse(at, "port", format!("port = {port}"), why);
        }
    }
}

fn check_nat(service: &ServiceDraft<'_>, room: &mut Room) {
    let section = &service.section;
    let vips: Vec<IpAddr> = service.addresses.value().into_iter().flatten().map(|(a, _)| *a).collect();
    if let (Some((PortSpec::Any, at)), false) = (service.port.get(), service.port == Setting::Refused) {
        let why = Refusal::expected("a port or a range of ports").but(
            "forward = \"nat\" tells replies by the port they come from; list the ports, or use \"snat\"",
        );
        section.refuse(at, "port", "port = 0".to_owned(), why);
        return;
    }
    if vips.iter().any(IpAddr::is_ipv4)
        && let Some((v6, at)) = service.addresses.value().into_iter().flatten().find(|(a, _)| a.is_ipv6())
    {
        let why = Refusal::expected("addresses of one IP version")
            .but("forward = \"nat\" keeps the IP version: make a service for each, or use \"snat\"");
        section.refuse(*at, "addresses", format!("addresses has \"{v6}\" beside IPv4 addresses"), why);
        return;
    }
    check_misfits(service, &vips, Forward::Nat, &[]);
    let Some((lo, hi)) = service.port.value().map(|port| port.bounds()) else { return };
    let ports = usize::from(hi - lo) + 1;
    let needed: usize =
        service.backends.iter().map(|b| 1 + if b.port.value().is_some() { 1 } else { ports }).sum();
    if needed > room.origins {
        let at = service.port.at().unwrap_or(section.at);
        let found = format!("{ports} ports of {} backends", service.backends.len());
        let why = Refusal::expected(format!(
            "at most {NAT_CAPACITY} ports of backends in all \"nat\" services together"
        ))
        .but("name fewer ports, or use \"snat\"");
        section.refuse(at, "port", found, why);
    }
    room.origins = room.origins.saturating_sub(needed);
}

fn check_misfits(service: &ServiceDraft<'_>, vips: &[IpAddr], forward: Forward, pool: &[IpAddr]) {
    for backend in &service.backends {
        let Some((address, at)) = backend.address.get() else { continue };
        let Some(why) = misfit(forward, vips, pool, *address) else { continue };
        let expected = match why {
            Misfit::OtherFamily { backend_v6: true } => Refusal::expected("an IPv4 address"),
            Misfit::OtherFamily { backend_v6: false } => Refusal::expected("an IPv6 address"),
            Misfit::InPool => Refusal::expected("the backend's own address"),
            Misfit::NoPoolAddress { .. } => Refusal::default(),
        };
        backend.section.refuse(
            at,
            "address",
            format!("address = \"{address}\""),
            expected.but(why.to_string()),
        );
    }
}

fn check_snat(service: &ServiceDraft<'_>, services: &[ServiceDraft<'_>], room: &mut Room) {
    let section = &service.section;
    let Some((addresses, _)) = service.snat.addresses.get() else {
        if service.snat.addresses == Setting::Absent {
            let at = service.snat.at.or(service.forward.at()).unwrap_or(section.at);
            let why = Refusal::expected(SECTION).but(
                "packets leave with these as their source: replies to them must come to this node, and no other host may have them",
            );
            section.refuse(at, "snat.addresses", "snat.addresses is missing".to_owned(), why);
        }
        return;
    };
    let mut seen = HashSet::new();
    for (address, at) in addresses {
        if !seen.insert(*address) {
            let found = format!("snat.addresses has \"{address}\" twice");
            section.refuse(*at, "snat.addresses", found, Refusal::expected("each address once"));
        }
    }
    if seen.len() > room.pool {
        let at = service.snat.addresses.at().unwrap_or(section.at);
        let found = format!("snat.addresses has {}", seen.len());
        let why = Refusal::expected(format!("at most {POOL_ADDRESS_CAPACITY} in all services"));
        section.refuse(at, "snat.addresses", found, why);
    }
    room.pool = room.pool.saturating_sub(seen.len());
    check_pool_ports(service, services, addresses);
    check_misfits(service, &[], Forward::Snat, &service.snat.pool());
}

/// What is for a service is never for a session: the ports of a pool's address are those that no service of the
/// protocol has there.
fn check_pool_ports(
    service: &ServiceDraft<'_>,
    services: &[ServiceDraft<'_>],
    addresses: &[(IpAddr, usize)],
) {
    let protocol = |s: &ServiceDraft<'_>| s.protocol.value().copied().unwrap_or(Protocol::Tcp);
    let (lo, hi) = service.snat.ports.value().copied().unwrap_or(DEFAULT_SNAT_PORTS);
    let own: HashMap<IpAddr, usize> = addresses.iter().copied().collect();
    for other in services.iter().filter(|other| protocol(other) == protocol(service)) {
        let (Some(vips), Some(port)) = (other.addresses.value(), other.port.value()) else { continue };
        let (first, last) = port.bounds();
        if first > hi || last < lo {
            continue;
        }
        if let Some((address, at)) = vips.iter().find_map(|(vip, _)| Some((vip, *own.get(vip)?))) {
            let claimed = match port {
                PortSpec::Any => "every port".to_owned(),
                PortSpec::Exact(_) => format!("port {port}"),
                PortSpec::Range(..) => format!("ports {port}"),
            };
            let found = format!("snat.addresses has \"{address}\" with ports {lo}-{hi}");
            let why = Refusal::expected(format!(
                "no overlap with {} ({}), which has {} {claimed} there",
                other.section.place,
                other.section.notes.place(other.section.at, at),
                protocol(service),
            ))
            .but("take another address, or set ports in [service.snat]");
            service.section.refuse(at, "snat.addresses", found, why);
            return;
        }
    }
}
