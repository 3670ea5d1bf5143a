//! The settings in force, one by one: for `config show`, for hashes, and as TOML.

use super::{
    Config, bgp,
    digest::{ServiceDigest, digest, services_hash},
    duration::format_duration,
    fleet, gradual, pool,
    reader::Place,
    resolver, sync, track, vrrp,
};
use crate::model::{
    Health, HealthCheck, HealthSpec, LimitSpec, MysqlCheck, PortSpec, RedisCheck, Role, ServiceName,
    ServiceSpec, StatusRange, TlsSpec, Via,
};
use serde_json::{Value, json};
use std::{
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration, on this line of this one of [`Config::files`]; for a setting taken from `[defaults]` the
    /// line there.
    File { file: usize, line: usize },
}

/// One setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Dotted path, e.g. `service.www.backend.web1.weight`.
    pub key: String,
    pub value: Value,
    pub origin: Origin,
}

/// Which settings are in the files, and where.
///
/// Of the paths only a hash is kept: there may be hundreds of thousands, for all of which together the odds that two
/// are taken for each other are one in a hundred million, and then a line is told wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins {
    /// Hash of the path, and place; in the order of the hashes.
    places: Box<[(u64, Place)]>,
}

impl Origins {
    /// From hashes of paths, as [`hash_path`] makes them, with their places. Of two with one hash the last counts.
    pub(super) fn new(mut places: Vec<(u64, Place)>) -> Self {
        places.reverse();
        places.sort_by_key(|(hash, _)| *hash);
        places.dedup_by_key(|(hash, _)| *hash);
        Self { places: places.into() }
    }

    /// Where a setting comes from, by the parts of its path.
    pub fn of(&self, path: &[String]) -> Origin {
        let hash = hash_path(path.iter().map(String::as_str));
        let found = self.places.binary_search_by_key(&hash, |(hash, _)| *hash).map(|at| self.places[at].1);
        found.map_or(Origin::Default, |Place { file, line }| Origin::File {
            file: file as usize,
            line: line as usize,
        })
    }
}

/// A hash of the parts of a path.
pub(super) fn hash_path<'p>(parts: impl Iterator<Item = &'p str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.for_each(|part| part.hash(&mut hasher));
    hasher.finish()
}

/// Path and value, in the order an operator would write them.
pub(super) type Entry = (Vec<String>, Value);

fn port(port: PortSpec) -> Value {
    match port {
        PortSpec::Exact(port) => json!(port),
        PortSpec::Range(..) => json!(port.to_string()),
        PortSpec::Any => json!(0),
    }
}

fn status(range: &StatusRange) -> Value {
    if range.lo == range.hi { json!(range.lo) } else { json!(format!("{}-{}", range.lo, range.hi)) }
}

/// Bytes as the configuration writes them.
fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn tls_entries(tls: &TlsSpec, entries: &mut Vec<(&'static str, Value)>) {
    entries.extend(tls.server_name.as_ref().map(|name| ("server_name", json!(name))));
    entries.push(("verify", json!(tls.verify)));
    entries.extend(tls.ca_file.as_ref().map(|file| ("ca_file", json!(file))));
}

fn login_entries(
    user: Option<&str>,
    password_file: Option<&Path>,
    role: Role,
    entries: &mut Vec<(&'static str, Value)>,
) {
    entries.extend(user.map(|user| ("user", json!(user))));
    entries.extend(password_file.map(|file| ("password_file", json!(file))));
    entries.push(("role", json!(role.to_string())));
}

fn health_entries(spec: &HealthSpec) -> Vec<(&'static str, Value)> {
    let mut entries = Vec::new();
    match &spec.check {
        HealthCheck::None => entries.push(("type", json!("none"))),
        HealthCheck::Tcp => entries.push(("type", json!("tcp"))),
        HealthCheck::Http(http) => {
            entries.push(("type", json!(if http.tls.is_some() { "https" } else { "http" })));
            entries.push(("method", json!(http.method)));
            entries.push(("path", json!(http.path)));
            entries.extend(http.host.as_ref().map(|host| ("host", json!(host))));
            if !http.headers.is_empty() {
                let fields = http.headers.iter().map(|(name, value)| format!("{name}: {value}"));
                entries.push(("headers", fields.collect()));
            }
            entries.push(("status", http.status.iter().map(status).collect()));
            entries.extend(http.body.as_ref().map(|body| ("body", json!(body))));
            if let Some(tls) = &http.tls {
                tls_entries(tls, &mut entries);
            }
        }
        HealthCheck::Udp(udp) => {
            entries.push(("type", json!("udp")));
            entries.push(("send", json!(escaped(&udp.send))));
            entries.extend(udp.expect.as_ref().map(|expect| ("expect", json!(escaped(expect)))));
        }
        HealthCheck::Icmp => entries.push(("type", json!("icmp"))),
        HealthCheck::Dns(dns) => {
            entries.push(("type", json!("dns")));
            entries.push(("name", json!(dns.name)));
            entries.push(("record", json!(dns.record)));
        }
        HealthCheck::Grpc(grpc) => {
            entries.push(("type", json!("grpc")));
            entries.push(("service", json!(grpc.service)));
            entries.push(("tls", json!(grpc.tls.is_some())));
            if let Some(tls) = &grpc.tls {
                tls_entries(tls, &mut entries);
            }
        }
        HealthCheck::Mysql(MysqlCheck { user, password_file, role }) => {
            entries.push(("type", json!("mysql")));
            login_entries(user.as_deref(), password_file.as_deref(), *role, &mut entries);
        }
        HealthCheck::Redis(RedisCheck { user, password_file, role }) => {
            entries.push(("type", json!("redis")));
            login_entries(user.as_deref(), password_file.as_deref(), *role, &mut entries);
        }
        HealthCheck::Exec(exec) => {
            entries.push(("type", json!("exec")));
            entries.push(("command", json!(exec.command)));
            entries.push(("user", json!(exec.user)));
        }
    }
    if spec.via == Via::Vip {
        entries.push(("via", json!("vip")));
    }
    entries.push(("interval", json!(format_duration(spec.interval))));
    entries.push(("timeout", json!(format_duration(spec.timeout))));
    entries.push(("rise", json!(spec.rise)));
    entries.push(("fall", json!(spec.fall)));
    entries.extend(spec.port.map(|port| ("port", json!(port))));
    entries.push(("initial", json!(if spec.initial == Health::Down { "down" } else { "up" })));
    entries.extend(spec.fast_interval.map(|pace| ("fast_interval", json!(format_duration(pace)))));
    entries.extend(spec.backoff.map(|pace| ("backoff", json!(format_duration(pace)))));
    entries
}

pub(super) fn service_entries(service: &ServiceSpec) -> Vec<Entry> {
    let base = ["service", service.name.as_str()];
    let mut entries = Vec::new();
    let mut push = |parts: &[&str], key: &str, value: Value| {
        let path = base.iter().chain(parts).chain([&key]).map(|part| (*part).to_owned()).collect();
        entries.push((path, value));
    };
    push(&[], "name", json!(service.name));
    push(&[], "addresses", json!(service.addresses));
    push(&[], "port", port(service.port));
    push(&[], "protocol", json!(service.protocol));
    push(&[], "forward", json!(service.forward));
    push(&[], "scheduler", json!(service.scheduler));
    if let Some(size) = service.ring_size {
        push(&[], "ring_size", json!(size));
    }
    push(&[], "seed", json!(service.seed));
    push(&[], "idle_timeout", json!(format_duration(service.idle_timeout)));
    push(&[], "gue_port", json!(service.gue_port));
    for (key, value) in gradual::entries(&service.gradual).into_iter().chain(pool::entries(&service.pool)) {
        push(&[], key, value);
    }
    if !service.guard.allow.is_empty() {
        push(&[], "allow", json!(service.guard.allow));
    }
    let limits = &service.guard.limits;
    for (key, rate) in limits.rates().into_iter().filter(|(_, rate)| *rate > 0) {
        push(&["limits"], key, json!(rate));
    }
    if *limits != LimitSpec::default() {
        let burst = Duration::from_millis(limits.burst_ms.into());
        push(&["limits"], "burst", json!(format_duration(burst)));
    }
    if let Some(snat) = &service.snat {
        let (lo, hi) = snat.ports;
        push(&["snat"], "addresses", json!(snat.addresses));
        push(&["snat"], "ports", json!(format!("{lo}-{hi}")));
    }
    for (key, value) in health_entries(&service.health) {
        push(&["health"], key, value);
    }
    if let Some(passive) = &service.passive {
        let mut push = |key, value| push(&["passive"], key, value);
        push("interval", json!(format_duration(passive.interval)));
        push("windows", json!(passive.windows));
        push("min_connections", json!(passive.min_connections));
        push("threshold", json!(passive.threshold));
        push("max_ejected", json!(passive.max_ejected));
        push("ejection_time", json!(format_duration(passive.ejection_time)));
        push("max_ejection_time", json!(format_duration(passive.max_ejection_time)));
    }
    if let Some(quic) = &service.quic {
        push(&["quic"], "server_id_length", json!(quic.server_id_length));
        push(&["quic"], "config_id", json!(quic.config_id));
    }
    for (number, key, value) in pool::notify_entries(&service.pool.notify) {
        push(&["notify", &number], key, value);
    }
    for backend in &service.backends {
        let parts = ["backend", backend.name.as_str()];
        push(&parts, "name", json!(backend.name));
        push(&parts, "address", json!(backend.address));
        if let Some(port) = backend.port {
            push(&parts, "port", json!(port));
        }
        push(&parts, "weight", json!(backend.weight));
        if backend.backup {
            push(&parts, "backup", json!(true));
        }
        if let Some(quic) = &service.quic {
            push(&parts, "server_id", json!(quic.server_id(backend).to_string()));
        }
    }
    entries
}

impl Config {
    fn node_entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut push = |section: &str, key: &str, value: Value| {
            entries.push((vec![section.to_owned(), key.to_owned()], value));
        };
        push("node", "name", json!(self.node.name));
        push("node", "interfaces", json!(self.node.interfaces));
        push("node", "xdp_mode", json!(self.node.xdp_mode.to_string()));
        push("node", "state_dir", json!(self.node.state_dir));
        push("node", "pin_dir", json!(self.node.pin_dir));
        push("node", "run_dir", json!(self.node.run_dir));
        push("node", "answer_ping", json!(self.node.answer_ping));
        push("node", "fragments", json!(self.node.fragments));
        let listen = self.metrics.listen.map_or("off".to_owned(), |address| address.to_string());
        push("metrics", "listen", json!(listen));
        push("tunnel", "source_ipv4", json!(self.tunnel.source_ipv4));
        push("tunnel", "source_ipv6", json!(self.tunnel.source_ipv6));
        if let Some(address) = self.tunnel.gue_source_ipv4 {
            push("tunnel", "gue_source_ipv4", json!(address));
        }
        if let Some(address) = self.tunnel.gue_source_ipv6 {
            push("tunnel", "gue_source_ipv6", json!(address));
        }
        let firewall = &self.firewall;
        if !firewall.deny.is_empty() {
            push("firewall", "deny", json!(firewall.deny));
        }
        if !firewall.allow.is_empty() {
            push("firewall", "allow", json!(firewall.allow));
        }
        if !firewall.deny_files.is_empty() {
            push("firewall", "deny_files", json!(firewall.deny_files));
        }
        for (key, value) in resolver::entries(&self.resolver) {
            push("resolver", key, value);
        }
        for (key, value) in self.bgp.iter().flat_map(bgp::entries) {
            push("bgp", key, value);
        }
        push("flows", "max_flows", json!(self.flows.max_flows));
        push("flows", "max_half_open", json!(self.flows.max_half_open));
        push("flows", "max_sessions", json!(self.flows.max_sessions));
        entries.extend(self.control.entries());
        entries.extend(self.sync.iter().flat_map(sync::entries));
        entries.extend(self.fleet.iter().flat_map(fleet::entries));
        entries
    }

    /// Those of every service, and of its backends by name.
    fn all_service_entries(&self) -> impl Iterator<Item = Entry> {
        self.services
            .iter()
            .flat_map(|service| service_entries(service).into_iter().chain(self.name_entries(&service.name)))
    }

    /// Those of a service's backends by name.
    fn name_entries<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = Entry> + 'a {
        let names = self.names.get(service).into_iter().flatten();
        names.flat_map(move |spec| {
            let path = |key: &str| {
                ["service", service.as_str(), "backend", spec.name.as_str(), key].map(str::to_owned).to_vec()
            };
            resolver::named_entries(spec).into_iter().map(move |(key, value)| (path(key), value))
        })
    }

    fn vrrp_entries(&self) -> impl Iterator<Item = Entry> {
        let routers = self.vrrp.iter().flat_map(|spec| {
            let path = |key: &str| vec!["vrrp".to_owned(), spec.name.to_string(), key.to_owned()];
            vrrp::entries(spec).into_iter().map(move |(key, value)| (path(key), value))
        });
        let parts = track::part_entries(&self.pair).into_iter();
        routers.chain(parts.map(|([section, name], key, value)| (vec![section, name, key.to_owned()], value)))
    }

    fn notify_entries(&self) -> impl Iterator<Item = Entry> {
        let path = |number: String, key: &str| vec!["notify".to_owned(), number, key.to_owned()];
        pool::notify_entries(&self.notify).map(move |(number, key, value)| (path(number, key), value))
    }

    /// What stands in the files of denied prefixes, as a digest: no setting that a file could say.
    fn list_entry(&self) -> Option<Entry> {
        let digest = &self.firewall.digest;
        (!digest.is_empty()).then(|| (vec!["firewall".to_owned(), "list_sha256".to_owned()], json!(digest)))
    }

    /// Everything but the services, and without the lines that the settings are on.
    pub fn without_services(&self) -> Self {
        Self {
            file: self.file.clone(),
            files: self.files.clone(),
            node: self.node.clone(),
            metrics: self.metrics.clone(),
            tunnel: self.tunnel.clone(),
            firewall: Arc::clone(&self.firewall),
            flows: self.flows,
            control: self.control.clone(),
            resolver: self.resolver.clone(),
            names: self.names.clone(),
            notify: self.notify.clone(),
            services: Vec::new(),
            vrrp: self.vrrp.clone(),
            pair: self.pair.clone(),
            sync: self.sync.clone(),
            bgp: self.bgp.clone(),
            fleet: self.fleet.clone(),
            fleet_file: self.fleet_file,
            origins: Origins::default(),
        }
    }

    /// Every setting in force, with where it comes from. Optional settings that nobody set are left out.
    pub fn settings(&self) -> Vec<Setting> {
        let services = self.all_service_entries();
        let entries = self
            .node_entries()
            .into_iter()
            .chain(self.list_entry())
            .chain(self.vrrp_entries())
            .chain(self.notify_entries())
            .chain(services);
        entries
            .map(|(path, value)| Setting { origin: self.origins.of(&path), key: path.join("."), value })
            .collect()
    }

    /// A hash over all that is in force, the first 16 hexadecimal digits of a SHA-256; comments,
    /// formatting, order, and whether a value was set or is the default do not matter.
    pub fn hash(&self) -> String {
        let digests: Vec<_> = self.services.iter().map(ServiceDigest::of).collect();
        self.hash_with(self.services.iter().map(|service| &service.name).zip(&digests))
    }

    /// The same, of these services instead.
    pub fn hash_with<'a>(
        &self,
        services: impl Iterator<Item = (&'a ServiceName, &'a ServiceDigest)>,
    ) -> String {
        let node = self.node_entries().into_iter().chain(self.list_entry()).chain(self.vrrp_entries());
        let names = self.names.keys().flat_map(|service| self.name_entries(service));
        let others = node.chain(self.notify_entries()).chain(names).collect();
        digest(others, services.map(|(name, digest)| (name, &digest.all)))
    }

    /// A hash over the services, equal on both nodes of a pair; see [`services_hash`].
    pub fn shared_hash(&self) -> String {
        let digests: Vec<_> = self.services.iter().map(ServiceDigest::of).collect();
        services_hash(self.services.iter().map(|service| &service.name).zip(&digests))
    }

    /// The configuration in force as a file that says the same, every default written out.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut header = String::new();
        let entries = self.node_entries().into_iter().map(|(path, value)| {
            let (section, key) = (format!("[{}]", path[0]), path[1].clone());
            (section, path, key, value)
        });
        let services = self.all_service_entries().filter_map(|(path, value)| {
            let (section, key) = match path.as_slice() {
                [_, _, key] => ("[[service]]", key),
                [_, _, part, key] if part == "limits" => ("[service.limits]", key),
                [_, _, part, key] if part == "quic" => ("[service.quic]", key),
                [_, _, part, key] if part == "passive" => ("[service.passive]", key),
                [_, _, part, key] if part == "snat" => ("[service.snat]", key),
                [_, _, _, key] => ("[service.health]", key),
                [_, _, part, _, key] if part == "notify" => ("[[service.notify]]", key),
                [_, _, _, _, key] => ("[[service.backend]]", key),
                _ => return None,
            };
            Some((section.to_owned(), path.clone(), key.clone(), value))
        });
        let routers = self
            .vrrp_entries()
            .map(|(path, value)| (format!("[[{}]]", path[0]), path.clone(), path[2].clone(), value));
        let hooks = self
            .notify_entries()
            .map(|(path, value)| ("[[notify]]".to_owned(), path.clone(), path[2].clone(), value));
        for (section, path, key, value) in entries.chain(routers).chain(hooks).chain(services) {
            // Each service and backend begins with its name, and a section of its own.
            let this = format!("{section}{}", path[..path.len() - 1].join("."));
            if this != header {
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{section}");
                header = this;
            }
            let _ = writeln!(text, "{key} = {}", toml_value(&value));
        }
        text
    }
}

/// A string, number or array of those as TOML.
fn toml_value(value: &Value) -> String {
    match value {
        // TOML's basic strings know all escapes of JSON's but `\/`, which serde_json does not write.
        Value::Array(values) => {
            format!("[{}]", values.iter().map(toml_value).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
