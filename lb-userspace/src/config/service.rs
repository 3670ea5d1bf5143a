//! `[[service]]` with its backends, and `[defaults]`.

use super::{
    address,
    firewall::{self, LimitSettings},
    gradual::GradualSettings,
    health::{self, Checked, HealthSettings, duration},
    passive::PassiveSettings,
    pool::{self, PoolSettings},
    quic::{self, QuicDraft},
    reader::{Notes, Refusal, Section, Setting, integer, text, wrong_type},
    resolver::{self, NamedDraft, Target},
    schema,
    snat::SnatSettings,
};
use crate::model::{
    BackendName, BackendSpec, DEFAULT_WEIGHT, Forward, GuardSpec, HealthSpec, HookSpec, LimitSpec, MAX_RING,
    MAX_WEIGHT, MIN_RING, NamedSpec, PortSpec, Protocol, Scheduler, ServerId, ServiceName, ServiceSpec,
    is_ring_size,
};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};
use toml::de::{DeTable, DeValue};

/// Port of `forward = "gue"` where none is set: the one assigned to GUE.
pub const DEFAULT_GUE_PORT: u16 = 6080;

/// The idle time-out of a service that has none: what its clients commonly stay silent for.
pub fn default_idle_timeout(protocol: Protocol) -> Duration {
    match protocol {
        Protocol::Tcp => Duration::from_secs(300),
        Protocol::Udp => Duration::from_secs(30),
        // Twice what most stacks negotiate (RFC 9000 section 10.1): the hash is asked for connections alone whose IDs
        // name no server.
        Protocol::Quic => Duration::from_secs(60),
    }
}

/// The seed of a service that has none, the same on every node: the first 63 bits of a SHA-256 over
/// its name. Part of the contract between nodes and versions: another value moves every flow.
pub fn default_seed(name: &ServiceName) -> u64 {
    let digest = Sha256::new().chain_update(b"lbd service seed\0").chain_update(name.as_str()).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first) >> 1
}

/// What `[defaults]` or one `[[service]]` says.
pub(super) struct ServiceSettings {
    port: Setting<PortSpec>,
    protocol: Setting<Protocol>,
    forward: Setting<Forward>,
    scheduler: Setting<Scheduler>,
    ring_size: Setting<u32>,
    seed: Setting<u64>,
    idle_timeout: Setting<Duration>,
    /// Of `[defaults]` only.
    idle_timeout_tcp: Setting<Duration>,
    idle_timeout_udp: Setting<Duration>,
    gue_port: Setting<u16>,
    allow: Setting<BTreeSet<IpNet>>,
    /// Of the defaults only: a service's own are read together with them.
    limits: LimitSettings,
    gradual: GradualSettings,
    pub(super) health: HealthSettings,
    snat: SnatSettings,
    passive: PassiveSettings,
    pool: PoolSettings,
}

impl ServiceSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self {
        port: Setting::Absent,
        protocol: Setting::Absent,
        forward: Setting::Absent,
        scheduler: Setting::Absent,
        ring_size: Setting::Absent,
        seed: Setting::Absent,
        idle_timeout: Setting::Absent,
        idle_timeout_tcp: Setting::Absent,
        idle_timeout_udp: Setting::Absent,
        gue_port: Setting::Absent,
        allow: Setting::Absent,
        limits: LimitSettings::ABSENT,
        gradual: GradualSettings::ABSENT,
        health: HealthSettings::ABSENT,
        snat: SnatSettings::ABSENT,
        passive: PassiveSettings::ABSENT,
        pool: PoolSettings::ABSENT,
    };

    fn read(section: &Section<'_>) -> Self {
        let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("quic", Protocol::Quic)];
        let forwards = [
            ("dsr", Forward::Dsr),
            ("ipip", Forward::Ipip),
            ("gue", Forward::Gue),
            ("nat", Forward::Nat),
            ("snat", Forward::Snat),
        ];
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        Self {
            port: section.read("port", port),
            protocol: section.word("protocol", &protocols, &[]),
            forward: section.word("forward", &forwards, &[]),
            scheduler: section.word(
                "scheduler",
                &[
                    ("maglev", Scheduler::Maglev),
                    ("source-ip", Scheduler::SourceIp),
                    ("round-robin", Scheduler::RoundRobin),
                    ("least-connections", Scheduler::LeastConnections),
                ],
                &[],
            ),
            ring_size: section.read("ring_size", ring_size),
            seed: section.integer("seed", 0, i64::MAX),
            idle_timeout: duration(section, "idle_timeout", second, day),
            idle_timeout_tcp: Setting::Absent,
            idle_timeout_udp: Setting::Absent,
            gue_port: section.integer("gue_port", 1, 65_535),
            allow: firewall::read_allow(section),
            limits: LimitSettings::ABSENT,
            gradual: GradualSettings::read(section),
            health: HealthSettings::ABSENT,
            snat: SnatSettings::ABSENT,
            passive: PassiveSettings::ABSENT,
            pool: PoolSettings::read(section),
        }
    }

    pub(super) fn read_defaults<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> Self {
        let path = vec!["defaults".to_owned()];
        let section = Section::open(notes, table, at, "[defaults]", path.clone(), &schema::DEFAULTS);
        let mut settings = Self::read(&section);
        settings.limits = LimitSettings::read_defaults(&section);
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        settings.idle_timeout_tcp = duration(&section, "idle_timeout_tcp", second, day);
        settings.idle_timeout_udp = duration(&section, "idle_timeout_udp", second, day);
        if let Some((table, at)) = section.table("health") {
            let path = [path, vec!["health".to_owned()]].concat();
            let section =
                Section::open(notes, table, at, "[defaults.health]", path, &schema::DEFAULTS_HEALTH);
            settings.health = HealthSettings::read(&section);
            settings.health.check_defaults(&section);
        }
        settings.snat = SnatSettings::read(&section, &schema::DEFAULTS_SNAT);
        settings.passive = PassiveSettings::read(&section, &schema::DEFAULTS_PASSIVE);
        settings
    }
}

const PORT: &str = "a port from 1 to 65535, a range such as \"8000-8099\", or 0 for every port";

fn port(value: &DeValue<'_>) -> Result<PortSpec, Refusal> {
    let refused = || Refusal::expected(PORT);
    match value {
        DeValue::Integer(_) => {
            let number = integer(value, PORT)?.ok_or_else(refused)?;
            PortSpec::try_from(number).map_err(|_| refused())
        }
        DeValue::String(text) => text.parse::<PortSpec>().map_err(|error| refused().but(error.why)),
        _ => wrong_type(PORT),
    }
}

fn ring_size(value: &DeValue<'_>) -> Result<u32, Refusal> {
    let expected = format!("a prime from {MIN_RING} to {MAX_RING}");
    let number = integer(value, &expected)?.and_then(|n| u32::try_from(n).ok());
    match number.filter(|n| (MIN_RING..=MAX_RING).contains(n)) {
        Some(size) if is_ring_size(size) => Ok(size),
        // The bounds are prime themselves, so there is one on either side.
        Some(size) => {
            let below = (MIN_RING..size).rev().find(|n| is_ring_size(*n)).unwrap_or(MIN_RING);
            let above = (size..=MAX_RING).find(|n| is_ring_size(*n)).unwrap_or(MAX_RING);
            Err(Refusal::expected(expected).but(format!("the nearest are {below} and {above}")))
        }
        None => Err(Refusal::expected(expected)),
    }
}

/// A service as far as it could be read, for comparison with the others.
pub(super) struct ServiceDraft<'a> {
    pub(super) section: Section<'a>,
    pub(super) name: Setting<ServiceName>,
    pub(super) addresses: Setting<Vec<(IpAddr, usize)>>,
    /// From the service or the defaults.
    pub(super) port: Setting<PortSpec>,
    pub(super) protocol: Setting<Protocol>,
    pub(super) forward: Setting<Forward>,
    pub(super) snat: SnatSettings,
    pub(super) passive: PassiveSettings,
    pub(super) backends: Vec<BackendDraft<'a>>,
    pub(super) ring_size: Setting<u32>,
    pub(super) quic: QuicDraft<'a>,
    settings: ServiceSettings,
    health: HealthSpec,
    limits: LimitSpec,
    notify: Vec<HookSpec>,
}

/// A backend as far as it could be read.
pub(super) struct BackendDraft<'a> {
    pub(super) section: Section<'a>,
    pub(super) name: Setting<BackendName>,
    pub(super) address: Setting<IpAddr>,
    named: NamedDraft,
    pub(super) port: Setting<u16>,
    weight: Setting<u16>,
    backup: Setting<bool>,
    pub(super) server_id: Setting<ServerId>,
}

const NAME: &str = "1 to 63 letters, digits, '-', '_' or '.', the first a letter or digit";

fn name<T: std::str::FromStr<Err = crate::model::NameError>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error: crate::model::NameError| Refusal::expected(NAME).but(error.why))
}

const ADDRESSES: &str = "an array of addresses such as [\"192.0.2.10\", \"2001:db8::10\"]";

/// Reads the service that is the `index`th of the file.
pub(super) fn read_service<'a>(
    notes: &'a Notes<'a>,
    table: &'a DeTable<'a>,
    at: usize,
    index: usize,
    defaults: &ServiceSettings,
) -> ServiceDraft<'a> {
    let (place, part) = match Section::peek(table, "name") {
        Some(name) => (format!("service '{name}'"), name),
        None => (format!("service #{index}"), format!("#{index}")),
    };
    let path = vec!["service".to_owned(), part];
    let section = Section::open(notes, table, at, place, path, &schema::SERVICE);
    let settings = ServiceSettings::read(&section);
    let name = section.text("name", NAME, name);
    let addresses = section.list("addresses", ADDRESSES, |v| address::unicast(text(v, address::ADDRESS)?));
    let port = settings.port.or(&defaults.port).clone();
    let protocol = settings.protocol.or(&defaults.protocol).clone();
    let ring_size = settings.ring_size.or(&defaults.ring_size).clone();
    if name == Setting::Absent {
        section.missing("name", NAME);
    }
    if section.position("addresses").is_none() {
        section.missing("addresses", ADDRESSES);
    }
    if port == Setting::Absent {
        section.missing("port", PORT);
    }
    let backends = section.tables("backend").unwrap_or_default();
    let backends =
        backends.into_iter().enumerate().map(|(i, (table, at))| read_backend(&section, table, at, i + 1));
    let backends = backends.collect();
    let forward = settings.forward.or(&defaults.forward).clone();
    let health = read_health(&section, &port, &protocol, &forward, defaults);
    let limits = firewall::read_limits(&section, protocol.value().copied(), &defaults.limits);
    let quic = quic::read(&section);
    let snat = SnatSettings::read(&section, &schema::SERVICE_SNAT).or(&defaults.snat);
    let passive = PassiveSettings::read(&section, &schema::SERVICE_PASSIVE).or(&defaults.passive);
    ServiceDraft {
        name,
        addresses,
        port,
        protocol,
        forward,
        snat,
        passive,
        backends,
        ring_size,
        quic,
        settings,
        health,
        limits,
        notify: pool::read_notify(notes, section.tables("notify").unwrap_or_default(), Some(&section)),
        section,
    }
}

fn read_health(
    service: &Section<'_>,
    port: &Setting<PortSpec>,
    protocol: &Setting<Protocol>,
    forward: &Setting<Forward>,
    defaults: &ServiceSettings,
) -> HealthSpec {
    let of = Checked {
        protocol: protocol.value().copied().unwrap_or(Protocol::Tcp),
        forward: forward.value().copied().unwrap_or(Forward::Dsr),
        port: port.value().copied(),
        defaults: &defaults.health,
    };
    let place = format!("{}, health", service.place);
    let path = [service.path.as_slice(), &["health".to_owned()]].concat();
    match service.table("health") {
        Some((table, at)) => {
            let section = Section::open(service.notes, table, at, place, path, &schema::SERVICE_HEALTH);
            health::merge(&section, &HealthSettings::read(&section), &of)
        }
        // What stands there is no section, which is said already.
        None if service.position("health").is_some() => HealthSpec::default(),
        None => {
            let nothing = DeTable::new();
            let section =
                Section::open(service.notes, &nothing, service.at, place, path, &schema::SERVICE_HEALTH);
            health::merge(&section, &HealthSettings::ABSENT, &of)
        }
    }
}

fn read_backend<'a>(
    service: &Section<'a>,
    table: &'a DeTable<'a>,
    at: usize,
    index: usize,
) -> BackendDraft<'a> {
    let (place, part) = match Section::peek(table, "name") {
        Some(name) => (format!("{}, backend '{name}'", service.place), name),
        None => (format!("{}, backend #{index}", service.place), format!("#{index}")),
    };
    let path = [service.path.as_slice(), &["backend".to_owned(), part]].concat();
    let section = Section::open(service.notes, table, at, place, path, &schema::BACKEND);
    let name = section.text("name", NAME, name);
    let (address, host) = match section.text("address", resolver::TARGET, resolver::target) {
        Setting::Is(Target::Address(address), at) => (Setting::Is(address, at), Setting::Absent),
        Setting::Is(Target::Name(name), at) => (Setting::Absent, Setting::Is(name, at)),
        Setting::Absent => (Setting::Absent, Setting::Absent),
        Setting::Refused => (Setting::Refused, Setting::Absent),
    };
    let named = NamedDraft::read(&section, host);
    let weight = section.integer("weight", 0, i64::from(MAX_WEIGHT));
    if name == Setting::Absent {
        section.missing("name", NAME);
    }
    if section.position("address").is_none() && section.position("srv").is_none() {
        section.missing("address", resolver::TARGET);
    }
    let port = section.integer("port", 1, 65_535);
    let server_id = quic::read_server_id(&section);
    let backup = section.switch("backup");
    BackendDraft { section, name, address, named, port, weight, backup, server_id }
}

impl ServiceDraft<'_> {
    pub(super) fn name(&self) -> Option<&ServiceName> {
        self.name.value()
    }

    /// The backends that are known by a name, if there are any.
    pub(super) fn names(&self) -> Option<(ServiceName, Vec<NamedSpec>)> {
        let quic = self.protocol.value() == Some(&Protocol::Quic);
        let named = |backend: &BackendDraft<'_>| {
            let port = backend.section.pick("port", &backend.port.clone().map(Some), None);
            let backup = backend.section.pick("backup", &backend.backup, false);
            let spec = backend.named.build(&backend.section, &backend.name, port, &backend.weight, backup);
            if let (true, Some(spec)) = (quic, &spec) {
                let why = Refusal::expected("an address").but("QUIC's server ids are of addresses that stay");
                backend.section.refuse(
                    backend.section.at,
                    "address",
                    format!("the name {}", spec.query),
                    why,
                );
            }
            spec
        };
        let names: Vec<_> = self.backends.iter().filter_map(named).collect();
        self.name.value().filter(|_| !names.is_empty()).map(|name| (name.clone(), names))
    }

    /// The service, if everything it needs is there.
    pub(super) fn build(self, defaults: &ServiceSettings) -> Option<ServiceSpec> {
        let (section, own) = (&self.section, &self.settings);
        let name = self.name.value()?.clone();
        let addresses = self.addresses.value()?;
        let protocol = section.pick("protocol", &self.protocol, Protocol::Tcp);
        section.pick("name", &self.name, name.clone());
        section.pick("addresses", &self.addresses, Vec::new());
        let ring_size = match self.ring_size {
            Setting::Is(size, at) => section.pick("ring_size", &Setting::Is(Some(size), at), None),
            Setting::Absent | Setting::Refused => None,
        };
        let seed = section.pick("seed", own.seed.or(&defaults.seed), default_seed(&name));
        let of_protocol = match protocol {
            Protocol::Tcp => &defaults.idle_timeout_tcp,
            Protocol::Udp => &defaults.idle_timeout_udp,
            Protocol::Quic => &Setting::Absent,
        };
        let forward = section.pick("forward", &self.forward, Forward::Dsr);
        let port = *self.port.value()?;
        let backends = self.backends.iter().filter_map(|b| b.build(forward, port)).collect();
        Some(ServiceSpec {
            addresses: addresses.iter().map(|(address, _)| *address).collect(),
            port: section.pick("port", &self.port, port),
            protocol,
            forward,
            scheduler: section.pick("scheduler", own.scheduler.or(&defaults.scheduler), Scheduler::Maglev),
            ring_size,
            seed,
            idle_timeout: section.pick(
                "idle_timeout",
                own.idle_timeout.or(of_protocol).or(&defaults.idle_timeout),
                default_idle_timeout(protocol),
            ),
            gue_port: section.pick("gue_port", own.gue_port.or(&defaults.gue_port), DEFAULT_GUE_PORT),
            snat: if forward == Forward::Snat { self.snat.build(section) } else { None },
            health: self.health,
            passive: self.passive.build(section, protocol),
            guard: GuardSpec {
                allow: section.pick("allow", own.allow.or(&defaults.allow), BTreeSet::new()),
                limits: self.limits,
            },
            gradual: own.gradual.build(section, &defaults.gradual),
            pool: own.pool.build(section, &defaults.pool, self.notify),
            quic: self.quic.build(protocol, &self.backends),
            backends,
            name,
        })
    }
}

impl BackendDraft<'_> {
    fn build(&self, forward: Forward, of_service: PortSpec) -> Option<BackendSpec> {
        let name = self.name.value()?.clone();
        let address = *self.address.value()?;
        Some(BackendSpec {
            name: self.section.pick("name", &self.name, name),
            address: self.section.pick("address", &self.address, address),
            // In the other modes it can only repeat the service's.
            port: match self.section.pick("port", &self.port.clone().map(Some), None) {
                port if forward.rewrites() && port != of_service.single() => port,
                _ => None,
            },
            weight: self.section.pick("weight", &self.weight, DEFAULT_WEIGHT),
            backup: self.section.pick("backup", &self.backup, false),
        })
    }
}
