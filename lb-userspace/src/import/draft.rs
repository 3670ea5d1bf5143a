//! A configuration of lbd in the making.

use super::{
    Kind, Options, Texts,
    ledger::{Ledger, Lines},
    write,
};
use crate::{
    config,
    model::{DEFAULT_WEIGHT, Forward, MAX_WEIGHT, Protocol, Scheduler},
};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr, time::Duration};
use toml_edit::Value;

/// Sections by and by; the names are made unique at the end.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) interfaces: Vec<String>,
    /// The interfaces are a guess.
    pub(super) guessed: bool,
    pub(super) node_name: Option<String>,
    pub(super) vrrp: Vec<Vrrp>,
    pub(super) parts: Vec<Part>,
    pub(super) services: Vec<Service>,
}

#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) lines: Lines,
    /// The directive it was made from.
    pub(super) directive: String,
    pub(super) addresses: Vec<IpAddr>,
    /// As lbd writes it: a number, a range, or 0.
    pub(super) port: Port,
    pub(super) protocol: Protocol,
    pub(super) forward: Forward,
    pub(super) snat: Vec<IpAddr>,
    pub(super) scheduler: Scheduler,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) slow_start: Option<Duration>,
    /// Healthy backends that bring the service up, and fewer of which take it down.
    pub(super) quorum: Option<(u32, u32)>,
    pub(super) gue_port: Option<u16>,
    pub(super) health: Health,
    pub(super) backends: Vec<Backend>,
}

/// Ports of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port {
    Any,
    One(u16),
    Range(u16, u16),
}

impl Service {
    /// Of those that take flows at all.
    pub(super) fn weights_differ(&self) -> bool {
        let mut weights =
            self.backends.iter().filter(|b| !b.backup).map(|b| b.weight.unwrap_or(1)).filter(|w| *w > 0);
        weights.next().is_some_and(|first| weights.any(|other| other != first))
    }
}

/// `[service.health]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// `type`; the default where there is none.
    pub(super) kind: Option<&'static str>,
    /// The keys of the type.
    pub(super) keys: Vec<(&'static str, Value)>,
    pub(super) interval: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) fast_interval: Option<Duration>,
    pub(super) rise: Option<u32>,
    pub(super) fall: Option<u32>,
    pub(super) port: Option<u16>,
    pub(super) starts_down: bool,
}

impl PartialEq for Health {
    fn eq(&self, other: &Self) -> bool {
        write::health(self) == write::health(other)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) lines: Lines,
    pub(super) directive: String,
    pub(super) at: At,
    /// `ipv4` or `ipv6`, of a name that has both and whose service has one.
    pub(super) family: Option<&'static str>,
    pub(super) port: Option<u16>,
    pub(super) weight: Option<u32>,
    pub(super) backup: bool,
}

/// Where a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    Address(IpAddr),
    /// A name of DNS: each of its addresses becomes a backend.
    Host(String),
    /// A name of SRV records.
    Srv(String),
}

impl At {
    /// May it be of this IP version?
    pub(super) fn may_be(&self, v6: bool) -> bool {
        match self {
            Self::Address(address) => address.is_ipv6() == v6,
            Self::Host(_) | Self::Srv(_) => true,
        }
    }
}

/// `[[vrrp]]`.
#[derive(Debug, Clone)]
pub(super) struct Vrrp {
    pub(super) name: String,
    pub(super) lines: Lines,
    pub(super) interface: String,
    pub(super) addresses: Vec<IpNet>,
    pub(super) keys: Vec<(&'static str, Value)>,
}

/// What virtual routers refer to: `[[vrrp_group]]`, `[[vrrp_script]]`, `[[vrrp_file]]` or `[[bfd]]`.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) lines: Lines,
    pub(super) keys: Vec<(&'static str, Value)>,
    /// For those that track it without one of their own; written there.
    pub(super) weight: i16,
}

/// Longest name of a backend that is a name of DNS, less the room for a number.
const LONGEST_NAMED: usize = 20;

/// A name that lbd takes, as near to the one given as can be.
pub(super) fn name(given: &str) -> String {
    const LONGEST: usize = 63;
    let tame = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let mut name: String = given.chars().map(tame).take(LONGEST).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        name.insert(0, 'x');
        name.truncate(LONGEST);
    }
    name
}

/// Gives later ones of the same name a number.
fn make_unique<'a>(names: impl Iterator<Item = &'a mut String>) {
    let mut taken = BTreeSet::new();
    for name in names {
        *name = self::name(name);
        if !taken.insert(name.clone()) {
            let mut stem = name.clone();
            stem.truncate(56);
            let free = (2..).map(|n: u32| format!("{stem}-{n}")).find(|candidate| !taken.contains(candidate));
            *name = free.unwrap_or_default();
            taken.insert(name.clone());
        }
    }
}

impl Draft {
    /// Fills in what belongs to the whole.
    pub(super) fn settle(&mut self, options: &Options, ledger: &mut Ledger) {
        if options.interfaces.is_empty() {
            self.guessed = true;
            self.interfaces = self.vrrp.iter().map(|vrrp| vrrp.interface.clone()).collect();
            self.interfaces.sort();
            self.interfaces.dedup();
            if self.interfaces.is_empty() {
                self.interfaces.push("eth0".to_owned());
            }
        } else {
            self.interfaces.clone_from(&options.interfaces);
        }
        make_unique(self.vrrp.iter_mut().map(|vrrp| &mut vrrp.name));
        make_unique(self.services.iter_mut().map(|service| &mut service.name));
        for service in &mut self.services {
            for backend in service.backends.iter_mut().filter(|b| !matches!(b.at, At::Address(_))) {
                // The addresses' names are made of it.
                backend.name = name(&backend.name).chars().take(LONGEST_NAMED).collect();
            }
            make_unique(service.backends.iter_mut().map(|backend| &mut backend.name));
            service.settle(ledger);
        }
    }

    /// Leaves out what the configuration's reader refuses, with its words.
    pub(super) fn refuse_what_lbd_refuses(&mut self, ledger: &mut Ledger) {
        // Each round takes at least one thing away, or the rest of them at once.
        loop {
            let text = write::toml(Kind::Ipvsadm, &Texts::default(), self, &[]);
            let Err(error) = config::parse_on("lbd.toml", &text, "host") else { return };
            let before = self.size();
            for problem in &error.problems {
                let mut why = problem.found.clone();
                for part in [&problem.expected, &problem.advice].into_iter().flatten() {
                    why = format!("{why}; {part}");
                }
                self.leave_out(&problem.key, &format!("lbd refuses it: {why}"), ledger);
            }
            if self.size() == before {
                let why = format!("lbd refuses the whole of it: {error}");
                for service in self.services.drain(..) {
                    ledger.left(service.lines, &service.directive, why.clone());
                }
                for part in self.parts.drain(..) {
                    ledger.left(part.lines, &format!("{} {}", part.kind, part.name), why.clone());
                }
                for vrrp in self.vrrp.drain(..) {
                    ledger.left(vrrp.lines, &vrrp.name, why.clone());
                }
                if self.size() == before {
                    // Nothing is left but the interfaces and the name of the node.
                    self.interfaces = vec!["eth0".to_owned()];
                    self.guessed = true;
                    if self.node_name.take().is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn size(&self) -> usize {
        self.vrrp.len()
            + self.parts.len()
            + self.services.iter().map(|service| 1 + service.backends.len()).sum::<usize>()
    }

    /// Takes the section out that a setting belongs to.
    fn leave_out(&mut self, key: &str, why: &str, ledger: &mut Ledger) {
        // Names hold dots, so that a key is compared from its beginning.
        if let Some(rest) = key.strip_prefix("vrrp.") {
            let index = self.vrrp.iter().position(|vrrp| rest.starts_with(&format!("{}.", vrrp.name)));
            if let Some(index) = index {
                let vrrp = self.vrrp.remove(index);
                ledger.left(vrrp.lines, &format!("vrrp {}", vrrp.name), why);
            }
            return;
        }
        let is = |part: &Part| key.starts_with(&format!("{}.{}.", part.kind, part.name));
        if let Some(index) = self.parts.iter().position(is) {
            let part = self.parts.remove(index);
            ledger.left(part.lines, &format!("{} {}", part.kind, part.name), why);
            return;
        }
        let Some(rest) = key.strip_prefix("service.") else { return };
        let begins = |service: &Service| rest.starts_with(&format!("{}.", service.name));
        // The longest name that fits.
        let index = (0..self.services.len())
            .filter(|i| begins(&self.services[*i]))
            .max_by_key(|i| self.services[*i].name.len());
        let Some(index) = index else { return };
        let service = &mut self.services[index];
        if let Some(of_backend) = rest[service.name.len() + 1..].strip_prefix("backend.") {
            let longest = (0..service.backends.len())
                .filter(|i| of_backend.starts_with(&format!("{}.", service.backends[*i].name)))
                .max_by_key(|i| service.backends[*i].name.len());
            if let Some(backend) = longest {
                let backend = service.backends.remove(backend);
                ledger.left(backend.lines, &backend.directive, why);
                return;
            }
        }
        let service = self.services.remove(index);
        ledger.left(service.lines, &service.directive, why);
    }
}

impl Service {
    /// Fits what is too large for lbd, and leaves out what says nothing.
    fn settle(&mut self, ledger: &mut Ledger) {
        let weights: BTreeSet<Option<u32>> = self.backends.iter().map(|backend| backend.weight).collect();
        if weights.len() == 1 && weights.iter().all(|weight| *weight != Some(0)) {
            for backend in &mut self.backends {
                backend.weight = None;
            }
        }
        let mixed = weights.contains(&None) && weights.len() > 1;
        for backend in &mut self.backends {
            if mixed {
                // Whoever says nothing has weight 1 in all three programs.
                backend.weight = backend.weight.or(Some(1));
            }
            if let Some(weight) = backend.weight.filter(|weight| *weight > u32::from(MAX_WEIGHT)) {
                backend.weight = Some(MAX_WEIGHT.into());
                ledger.differs(
                    backend.lines,
                    &backend.directive,
                    format!("weight {weight} is {MAX_WEIGHT} here, the most"),
                );
            }
            if backend.weight == Some(DEFAULT_WEIGHT.into()) {
                backend.weight = None;
            }
            let same = matches!((self.port, backend.port), (Port::One(a), Some(b)) if a == b);
            if same || matches!(self.port, Port::Any) && backend.port == Some(0) {
                backend.port = None;
            }
            if let Some(port) = backend.port.filter(|_| !self.forward.rewrites()) {
                backend.port = None;
                let reason =
                    format!("port {port} is not used: forward = \"{}\" keeps the client's", self.forward);
                ledger.differs(backend.lines, &backend.directive, reason);
            }
        }
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(86_400));
        self.idle_timeout = self.idle_timeout.map(|time| time.clamp(least, most));
        self.health.settle();
    }
}

impl Health {
    /// The limits of lbd: time-outs and the fast interval are at most the interval.
    fn settle(&mut self) {
        let hour = Duration::from_secs(3600);
        let interval = self.interval.get_or_insert(Duration::from_secs(1));
        *interval = (*interval).clamp(Duration::from_millis(10), hour);
        let interval = *interval;
        self.timeout = self.timeout.map(|time| time.clamp(Duration::from_millis(1), interval));
        self.fast_interval = self
            .fast_interval
            .map(|time| time.clamp(Duration::from_millis(10), interval))
            .filter(|t| *t < interval);
        self.rise = self.rise.map(|times| times.clamp(1, 255));
        self.fall = self.fall.map(|times| times.clamp(1, 255));
    }
}
