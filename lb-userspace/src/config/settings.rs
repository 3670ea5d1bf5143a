//! The settings in force, one by one: for `config show`, for hashes, and as TOML.

use super::{Config, duration::format_duration, reader::Place, resolver, vrrp};
use crate::model::{
    Health, HealthCheck, HealthSpec, LimitSpec, MysqlCheck, PortSpec, RedisCheck, Role, ServiceSpec,
    StatusRange, TlsSpec,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, fmt::Write, path::Path, time::Duration};

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

/// Which settings are in the files, by path, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins(pub(super) HashMap<Vec<String>, Place>);

impl Origins {
    /// Where a setting comes from, by the parts of its path.
    pub fn of(&self, path: &[String]) -> Origin {
        self.0.get(path).map_or(Origin::Default, |place| Origin::File { file: place.file, line: place.line })
    }
}

/// Path and value, in the order an operator would write them.
type Entry = (Vec<String>, Value);

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

fn service_entries(service: &ServiceSpec) -> Vec<Entry> {
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
    if let Some(quic) = &service.quic {
        push(&["quic"], "server_id_length", json!(quic.server_id_length));
        push(&["quic"], "config_id", json!(quic.config_id));
    }
    for backend in &service.backends {
        let parts = ["backend", backend.name.as_str()];
        push(&parts, "name", json!(backend.name));
        push(&parts, "address", json!(backend.address));
        if let Some(port) = backend.port {
            push(&parts, "port", json!(port));
        }
        push(&parts, "weight", json!(backend.weight));
        if let Some(quic) = &service.quic {
            push(&parts, "server_id", json!(quic.server_id(backend).to_string()));
        }
    }
    entries
}

/// SHA-256 over entries, the first 16 hexadecimal digits. The order of services, backends and
/// addresses in the file does not matter.
fn digest(mut entries: Vec<Entry>) -> String {
    for (path, value) in &mut entries {
        if let (Some("addresses" | "interfaces"), Value::Array(values)) =
            (path.last().map(String::as_str), value)
        {
            values.sort_by_key(Value::to_string);
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let bytes = Sha256::digest(json!(entries).to_string());
    bytes.iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A hash over services only, in force or in a file: equal on nodes that forward alike. The first 16
/// hexadecimal digits of a SHA-256.
pub fn services_hash(services: &[ServiceSpec]) -> String {
    digest(services.iter().flat_map(service_entries).collect())
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
        push("flows", "max_flows", json!(self.flows.max_flows));
        push("flows", "max_half_open", json!(self.flows.max_half_open));
        push("flows", "max_sessions", json!(self.flows.max_sessions));
        entries
    }

    /// Those of every service, and of its backends by name.
    fn all_service_entries(&self) -> impl Iterator<Item = Entry> {
        self.services.iter().flat_map(|service| {
            let names = self.names.get(&service.name).into_iter().flatten();
            let of_names = names.flat_map(|spec| {
                let path = |key: &str| {
                    ["service", service.name.as_str(), "backend", spec.name.as_str(), key]
                        .map(str::to_owned)
                        .to_vec()
                };
                resolver::named_entries(spec).into_iter().map(move |(key, value)| (path(key), value))
            });
            service_entries(service).into_iter().chain(of_names)
        })
    }

    fn vrrp_entries(&self) -> impl Iterator<Item = Entry> {
        self.vrrp.iter().flat_map(|spec| {
            let path = |key: &str| vec!["vrrp".to_owned(), spec.name.to_string(), key.to_owned()];
            vrrp::entries(spec).into_iter().map(move |(key, value)| (path(key), value))
        })
    }

    /// What stands in the files of denied prefixes, as a digest: no setting that a file could say.
    fn list_entry(&self) -> Option<Entry> {
        let digest = &self.firewall.digest;
        (!digest.is_empty()).then(|| (vec!["firewall".to_owned(), "list_sha256".to_owned()], json!(digest)))
    }

    /// Every setting in force, with where it comes from. Optional settings that nobody set are left out.
    pub fn settings(&self) -> Vec<Setting> {
        let services = self.all_service_entries();
        let entries = self
            .node_entries()
            .into_iter()
            .chain(self.list_entry())
            .chain(self.vrrp_entries())
            .chain(services);
        entries
            .map(|(path, value)| Setting { origin: self.origins.of(&path), key: path.join("."), value })
            .collect()
    }

    /// A hash over all that is in force, the first 16 hexadecimal digits of a SHA-256; comments,
    /// formatting, order, and whether a value was set or is the default do not matter.
    pub fn hash(&self) -> String {
        let services = self.all_service_entries();
        let node = self.node_entries().into_iter().chain(self.list_entry()).chain(self.vrrp_entries());
        digest(node.chain(services).collect())
    }

    /// A hash over the services, equal on both nodes of a pair; see [`services_hash`].
    pub fn shared_hash(&self) -> String {
        services_hash(&self.services)
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
                [_, _, part, key] if part == "snat" => ("[service.snat]", key),
                [_, _, _, key] => ("[service.health]", key),
                [_, _, _, _, key] => ("[[service.backend]]", key),
                _ => return None,
            };
            Some((section.to_owned(), path.clone(), key.clone(), value))
        });
        let routers = self
            .vrrp_entries()
            .map(|(path, value)| ("[[vrrp]]".to_owned(), path.clone(), path[2].clone(), value));
        for (section, path, key, value) in entries.chain(routers).chain(services) {
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
