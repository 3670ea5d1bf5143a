//! `[resolver]`, and names in the place of addresses.

use super::{
    address,
    duration::format_duration,
    health::duration,
    reader::{Notes, Refusal, Section, Setting, text},
    schema,
};
use crate::model::{BackendName, MAX_NAMED, NamedSpec, Query};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use toml::de::DeTable;

/// `[resolver]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverConfig {
    /// Those of `/etc/resolv.conf` where there are none.
    pub servers: Vec<SocketAddr>,
    /// Names are asked again after their TTL, but no sooner and no later than these.
    pub min_ttl: Duration,
    pub max_ttl: Duration,
    /// How long an address that a name has no more keeps its flows.
    pub drain: Duration,
}

impl Default for ResolverConfig {
    fn default() -> Self {
        let (second, five_minutes) = (Duration::from_secs(1), Duration::from_secs(300));
        Self { servers: Vec::new(), min_ttl: second, max_ttl: five_minutes, drain: five_minutes }
    }
}

const SERVERS: &str =
    "an array of addresses, with a port or without, such as [\"10.0.0.53\", \"[2001:db8::53]:5353\"]";

fn server(text: &str) -> Result<SocketAddr, Refusal> {
    let address = text.parse::<SocketAddr>().ok();
    let address = address.or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, 53)));
    let valid = |address: &SocketAddr| address.port() > 0 && !address.ip().is_unspecified();
    address.filter(valid).ok_or_else(|| Refusal::expected(SERVERS))
}

pub(super) fn read<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> ResolverConfig {
    let path = vec!["resolver".to_owned()];
    let section = Section::open(notes, table, at, "[resolver]", path, &schema::RESOLVER);
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    let servers = if section.is_empty_array("servers") {
        Setting::Absent
    } else {
        section.list("servers", SERVERS, |value| server(text(value, SERVERS)?))
    };
    let servers = servers.map(|servers| servers.into_iter().map(|(server, _)| server).collect());
    let default = ResolverConfig::default();
    let min = duration(&section, "min_ttl", second, day);
    let max = duration(&section, "max_ttl", second, day);
    let config = ResolverConfig {
        servers: section.pick("servers", &servers, Vec::new()),
        min_ttl: section.pick("min_ttl", &min, default.min_ttl),
        max_ttl: section.pick("max_ttl", &max, default.max_ttl),
        drain: section.pick("drain", &duration(&section, "drain", Duration::ZERO, day), default.drain),
    };
    if config.min_ttl > config.max_ttl {
        let at = min.at().or(max.at()).unwrap_or(at);
        let found = format!("min_ttl = \"{}\"", format_duration(config.min_ttl));
        let why = Refusal::expected(format!("at most max_ttl, \"{}\"", format_duration(config.max_ttl)));
        section.refuse(at, "min_ttl", found, why);
    }
    config
}

/// Every setting: key and value, as in the file.
pub(super) fn entries(config: &ResolverConfig) -> Vec<(&'static str, Value)> {
    let mut entries = Vec::new();
    if !config.servers.is_empty() {
        let servers: Vec<String> = config.servers.iter().map(ToString::to_string).collect();
        entries.push(("servers", json!(servers)));
    }
    for (key, time) in [("min_ttl", config.min_ttl), ("max_ttl", config.max_ttl), ("drain", config.drain)] {
        entries.push((key, json!(format_duration(time))));
    }
    entries
}

/// What a backend's address may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Address(IpAddr),
    Name(String),
}

pub(super) const TARGET: &str =
    "an IPv4 or IPv6 address such as \"192.0.2.10\", or a name of DNS such as \"web1.example.net\"";

/// An address or a host's name.
pub(super) fn target(text: &str) -> Result<Target, Refusal> {
    if is_name(text) {
        return Ok(Target::Name(text.to_owned()));
    }
    address::backend(text).map(Target::Address)
}

/// A name of the DNS: labels of letters, digits, `-` and `_`, the last one no number.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && !numeric && name.split('.').all(label)
}

const SRV: &str = "a name of SRV records such as \"_http._tcp.example.net\"";

pub(super) fn srv(text: &str) -> Result<String, Refusal> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(Refusal::expected(SRV)) }
}

/// Keys of a backend that is known by a name.
pub(super) struct NamedDraft {
    pub(super) host: Setting<String>,
    pub(super) srv: Setting<String>,
    family: Setting<(bool, bool)>,
}

impl NamedDraft {
    pub(super) fn read(section: &Section<'_>, host: Setting<String>) -> Self {
        let families = [("any", (true, true)), ("ipv4", (true, false)), ("ipv6", (false, true))];
        let draft =
            Self { host, srv: section.text("srv", SRV, srv), family: section.word("family", &families, &[]) };
        if let Some(at) = draft.srv.at()
            && section.position("address").is_some()
        {
            let why = Refusal::advice("a backend has one of the two: remove the other");
            section.refuse(at, "srv", "srv beside address".to_owned(), why);
        } else if let Some(at) = draft.family.at()
            && draft.is_address()
        {
            let why = Refusal::advice("an address has its family: the key is for names");
            section.refuse(at, "family", "family with an address".to_owned(), why);
        }
        draft
    }

    fn is_address(&self) -> bool {
        self.host == Setting::Absent && self.srv == Setting::Absent
    }

    /// The name, if it is one.
    pub(super) fn build(
        &self,
        section: &Section<'_>,
        name: &Setting<BackendName>,
        port: Option<u16>,
        weight: &Setting<u16>,
        backup: bool,
    ) -> Option<NamedSpec> {
        let (name, at) = name.get()?;
        let query = match (&self.host, &self.srv) {
            (Setting::Is(host, _), _) => Query::Host(section.pick("address", &self.host, host.clone())),
            (_, Setting::Is(srv, _)) => Query::Srv(section.pick("srv", &self.srv, srv.clone())),
            _ => return None,
        };
        if name.as_str().len() > MAX_NAMED {
            let why = Refusal::expected(format!("at most {MAX_NAMED} characters for a backend by name"))
                .but("its addresses come behind it");
            section.refuse(at, "name", format!("name = \"{name}\""), why);
        }
        section.pick("name", &Setting::Is(name.clone(), at), name.clone());
        let weight = weight.clone().map(|weight: u16| Some(weight));
        Some(NamedSpec {
            name: name.clone(),
            query,
            families: section.pick("family", &self.family, (true, true)),
            port,
            weight: section.pick("weight", &weight, None),
            backup,
            made: Vec::new(),
        })
    }
}

/// Settings of a backend that is known by a name.
pub(super) fn named_entries(spec: &NamedSpec) -> Vec<(&'static str, Value)> {
    let mut entries = vec![("name", json!(spec.name))];
    entries.push(match &spec.query {
        Query::Host(name) => ("address", json!(name)),
        Query::Srv(name) => ("srv", json!(name)),
    });
    match spec.families {
        (true, true) => {}
        (v4, _) => entries.push(("family", json!(if v4 { "ipv4" } else { "ipv6" }))),
    }
    entries.extend(spec.port.map(|port| ("port", json!(port))));
    entries.extend(spec.weight.map(|weight| ("weight", json!(weight))));
    if spec.backup {
        entries.push(("backup", json!(true)));
    }
    entries
}
