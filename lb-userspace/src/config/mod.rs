//! The configuration file: read, checked, with every default filled in.
//!
//! [`parse_on`] takes text and returns data; only [`load`] touches the disk, and reads the files the text names. All problems of a file
//! are found at once, each named with file, line, column, key, what was found and what was expected;
//! one mistake gives one problem. What the keys mean is written in `examples/lbd.toml`.

mod address;
mod check;
mod checks;
mod duration;
mod error;
mod files;
mod firewall;
mod health;
mod node;
mod pool;
mod quic;
mod reader;
mod schema;
mod service;
mod settings;
mod snat;
mod suggest;
#[cfg(test)]
mod tests;
mod vrrp;

pub use duration::{format_duration, parse_duration};
pub use error::{ConfigError, Problem};
pub use files::{read_certificates, read_password};
pub use firewall::{FirewallConfig, prefixes_digest};
pub use node::{FlowsConfig, MetricsConfig, NodeConfig, TunnelConfig, XdpMode};
pub use service::{DEFAULT_GUE_PORT, default_idle_timeout, default_seed};
pub use settings::{Origin, Origins, Setting, services_hash};

use crate::model::{HookSpec, ServiceSpec, VrrpSpec};
use error::printable;
use reader::{Notes, Refusal, Section};
use service::ServiceSettings;
use std::{fs::File, io::Read, path::Path, sync::Arc};
use toml::de::DeTable;

/// Largest configuration file, in bytes: some twenty times that of 4,096 services.
const MAX_FILE: u64 = 64 << 20;

/// A configuration in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from.
    pub file: String,
    pub node: NodeConfig,
    pub metrics: MetricsConfig,
    pub tunnel: TunnelConfig,
    /// Shared, since its lists may be long and most changes leave them alone.
    pub firewall: Arc<FirewallConfig>,
    pub flows: FlowsConfig,
    /// In the order of the file; names are unique and no two services overlap.
    pub services: Vec<ServiceSpec>,
    /// In the order of the file; names are unique.
    pub vrrp: Vec<VrrpSpec>,
    /// Commands told of every change of state, in the order of the file.
    pub notify: Vec<HookSpec>,
    /// Which of the settings the file set.
    pub origins: Origins,
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let name = path.to_string_lossy();
    let fail = |found: String, expected: &str, advice: &str| {
        Notes::new(&name, "").fail(None, found, Refusal::expected(expected).but(advice))
    };
    let cannot_read = |error: std::io::Error| {
        let advice = "check the path and its permissions";
        fail(format!("cannot be read ({error})"), "a configuration file", advice)
    };
    let mut file = File::open(path).map_err(cannot_read)?;
    if file.metadata().map_err(cannot_read)?.is_dir() {
        return Err(fail("is a directory".to_owned(), "a configuration file", "name the file in it"));
    }
    let mut bytes = Vec::new();
    // Devices and pipes say nothing of their size.
    file.by_ref().take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail("is too large".to_owned(), "at most 64 MiB", "check that it is the right file"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => {
            let mut config = parse(&name, &text)?;
            firewall::read_files(Arc::make_mut(&mut config.firewall))?;
            files::check(&config)?;
            Ok(config)
        }
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let byte = error.as_bytes()[at];
            // What precedes is text, so that the position can be told.
            let before = String::from_utf8_lossy(&error.as_bytes()[..at]).into_owned();
            let why = Refusal::expected("text in UTF-8").but("save the file in that encoding");
            Err(Notes::new(&name, &before).fail(Some(at), format!("byte 0x{byte:02x}"), why))
        }
    }
}

/// Reads and checks the text of a configuration; the node's default name is the host's.
pub fn parse(file_name: &str, text: &str) -> Result<Config, ConfigError> {
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    parse_on(file_name, text, hostname.as_deref().unwrap_or("localhost"))
}

/// Reads and checks the text of a configuration for a host of that name. Pure.
pub fn parse_on(file_name: &str, text: &str, hostname: &str) -> Result<Config, ConfigError> {
    let notes = Notes::new(file_name, text);
    let document = match DeTable::parse(text) {
        Ok(document) => document.into_inner(),
        Err(error) => return Err(syntax(notes, text, &error)),
    };
    let root = Section::open(&notes, &document, 0, "", Vec::new(), &schema::ROOT);
    let node = match root.table("node") {
        Some((table, at)) => node::read_node(&notes, table, at, hostname),
        None => {
            if root.position("node").is_none() && !root.hinted("node") {
                let why = Refusal::expected("[node] with interfaces = [...]")
                    .but("name the interfaces that packets come in on");
                notes.problem(None, "node".to_owned(), "", "section [node] is missing".to_owned(), why);
            }
            // Never used: a problem is noted.
            node::read_node(&Notes::new("", ""), &DeTable::new(), 0, hostname)
        }
    };
    let metrics = root.table("metrics").map(|(table, at)| node::read_metrics(&notes, table, at));
    let tunnel = root.table("tunnel").map(|(table, at)| node::read_tunnel(&notes, table, at));
    let firewall = root.table("firewall").map(|(table, at)| firewall::read_firewall(&notes, table, at));
    let flows = root.table("flows").map(|(table, at)| node::read_flows(&notes, table, at));
    let defaults = root.table("defaults");
    let defaults = defaults.map(|(table, at)| ServiceSettings::read_defaults(&notes, table, at));
    let defaults = defaults.unwrap_or(ServiceSettings::ABSENT);
    let drafts = root.tables("service").unwrap_or_default().into_iter().zip(1..);
    let drafts: Vec<_> = drafts
        .map(|((table, at), number)| service::read_service(&notes, table, at, number, &defaults))
        .collect();
    check::check(&drafts);
    snat::check(&drafts);
    let routers = root.tables("vrrp").unwrap_or_default().into_iter().zip(1..);
    let routers: Vec<_> =
        routers.map(|((table, at), number)| vrrp::read(&notes, table, at, number)).collect();
    vrrp::check(&routers);
    let notify = pool::read_notify(&notes, &root, None);
    let vrrp = routers.into_iter().filter_map(vrrp::VrrpDraft::build).collect();
    let services = drafts.into_iter().filter_map(|draft| draft.build(&defaults)).collect();
    Ok(Config {
        file: file_name.to_owned(),
        node,
        metrics: metrics.unwrap_or_default(),
        tunnel: tunnel.unwrap_or_default(),
        firewall: Arc::new(firewall.unwrap_or_default()),
        flows: flows.unwrap_or_default(),
        services,
        vrrp,
        notify,
        origins: Origins(notes.finish()?),
    })
}

/// Notes what the TOML parser says. Only its first message: the rest may follow from it.
fn syntax(notes: Notes<'_>, text: &str, error: &toml::de::Error) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    let near = text.get(span.clone()).unwrap_or("").lines().next().unwrap_or("");
    let mut found = "not valid TOML".to_owned();
    if !near.is_empty() {
        found = format!("not valid TOML at '{}'", printable(near));
    }
    let message = match error.message() {
        "string values must be quoted, expected literal string" if near.is_empty() => "a value is missing",
        "string values must be quoted, expected literal string" => {
            "expected a number, true, false, or text in quotes"
        }
        other => other,
    };
    let why = if message == "duplicate key" {
        let header = notes.in_single_header(span.start);
        let advice = if header {
            "a section that may occur several times is written in double brackets, like [[service]]"
        } else {
            "remove one of the two"
        };
        Refusal::expected("each key once").but(advice)
    } else {
        Refusal::advice(printable(message))
    };
    notes.fail(Some(span.start), found, why)
}
