//! The configuration file: read, checked, with every default filled in.
//!
//! [`parse_on`] takes text and returns data; only [`load`] touches the disk, and reads the files the text names. All problems of a file
//! are found at once, each named with file, line, column, key, what was found and what was expected;
//! one mistake gives one problem. What the keys mean is written in `examples/lbd.toml`.

mod address;
mod bgp;
mod check;
mod checks;
mod control;
mod digest;
mod duration;
mod error;
mod files;
mod firewall;
mod fleet;
mod gradual;
mod health;
mod include;
mod node;
mod passive;
mod pool;
mod quic;
mod reader;
mod resolver;
mod schema;
mod service;
mod settings;
mod snat;
mod suggest;
mod sync;
#[cfg(test)]
mod tests;
mod track;
mod vrrp;

pub use control::{ControlConfig, ControlTls};
pub use digest::{ServiceDigest, services_hash};
pub use duration::{format_duration, parse_duration};
pub use error::{ConfigError, Problem};
pub use files::{read_certificates, read_password};
pub use firewall::{FirewallConfig, prefixes_digest};
pub use fleet::FleetConfig;
pub use include::SourceFile;
pub use node::{FlowsConfig, MetricsConfig, NodeConfig, TunnelConfig};
pub use resolver::ResolverConfig;
pub use service::{DEFAULT_GUE_PORT, default_idle_timeout, default_seed};
pub use settings::{Origin, Origins, Setting};
pub use sync::read_sync_keys;

use crate::model::{
    BackendName, BgpSpec, HeldBy, HookSpec, NamedSpec, OWNER_PRIORITY, PairSpec, ServiceName, ServiceSpec,
    SyncSpec, VrrpSpec,
};
use error::printable;
use ipnet::IpNet;
use reader::{Notes, Refusal, Section};
use service::ServiceSettings;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};
use toml::de::DeTable;

/// A configuration in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from: the main file.
    pub file: String,
    /// Every file it was read from, the main one first.
    pub files: Vec<String>,
    pub node: NodeConfig,
    pub metrics: MetricsConfig,
    pub tunnel: TunnelConfig,
    /// Shared, since its lists may be long and most changes leave them alone.
    pub firewall: Arc<FirewallConfig>,
    pub flows: FlowsConfig,
    pub control: ControlConfig,
    pub resolver: ResolverConfig,
    /// Backends that are known by a name, by service; those of their addresses are not in `services` before they are
    /// looked up.
    pub names: BTreeMap<ServiceName, Vec<NamedSpec>>,
    /// In the order of the files; names are unique and no two services overlap.
    pub services: Vec<ServiceSpec>,
    /// In the order of the file; names are unique.
    pub vrrp: Vec<VrrpSpec>,
    /// What belongs to them: groups, scripts, files, sessions.
    pub pair: PairSpec,
    /// The link to the other node, if there is one.
    pub sync: Option<SyncSpec>,
    /// Where virtual addresses are announced, if they are.
    pub bgp: Option<BgpSpec>,
    /// Where the configuration is that all nodes share, if there is one.
    pub fleet: Option<FleetConfig>,
    /// Which of the files is the fleet's document, if it was read.
    pub fleet_file: Option<usize>,
    /// Commands told of every change of state, in the order of the file.
    pub notify: Vec<HookSpec>,
    /// Which of the settings the file set.
    pub origins: Origins,
}

impl Config {
    /// The virtual addresses whose packets are for services alone: those of instances with `accept = false`. An owner
    /// accepts whatever is its own (RFC 9568 section 6.4.3).
    #[must_use]
    pub fn declined(&self) -> BTreeSet<IpAddr> {
        let declines = |spec: &&VrrpSpec| {
            !spec.accept && (spec.priority != OWNER_PRIORITY || spec.held_by == HeldBy::Dataplane)
        };
        self.vrrp.iter().filter(declines).flat_map(|spec| spec.addresses.iter().map(IpNet::addr)).collect()
    }
}

/// Reads and checks a configuration file and those it includes.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    load_from(&read_files(path)?)
}

/// The texts of a configuration file and of those it includes.
pub fn read_files(path: &Path) -> Result<Vec<SourceFile>, ConfigError> {
    include::read_all(path)
}

/// Checks texts that were read, with the files they name.
pub fn load_from(files: &[SourceFile]) -> Result<Config, ConfigError> {
    load_with(files, None)
}

/// As [`load_from`], with the fleet's document; which has no effect where there is no `[fleet]`.
pub fn load_with(files: &[SourceFile], document: Option<&SourceFile>) -> Result<Config, ConfigError> {
    let mut config = parse_with(files, document, &hostname())?;
    firewall::read_files(Arc::make_mut(&mut config.firewall))?;
    files::check(&config)?;
    control::check(&config)?;
    sync::check(&config)?;
    fleet::check(&config)?;
    Ok(config)
}

fn hostname() -> String {
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    hostname.unwrap_or_else(|| "localhost".to_owned())
}

/// Reads and checks the text of a configuration; the node's default name is the host's.
pub fn parse(file_name: &str, text: &str) -> Result<Config, ConfigError> {
    parse_on(file_name, text, &hostname())
}

/// Reads and checks the text of a configuration for a host of that name. Pure: what it includes is not read.
pub fn parse_on(file_name: &str, text: &str, hostname: &str) -> Result<Config, ConfigError> {
    parse_files(&[SourceFile { name: file_name.to_owned(), text: text.to_owned() }], hostname)
}

/// Reads and checks the texts of a configuration, the main file first, for a host of that name. Pure.
///
/// # Panics
/// If there is no file.
pub fn parse_files(files: &[SourceFile], hostname: &str) -> Result<Config, ConfigError> {
    parse_with(files, None, hostname)
}

/// As [`parse_files`], with the fleet's document; which has no effect where there is no `[fleet]`. Pure.
///
/// # Panics
/// If there is no file.
pub fn parse_with(
    files: &[SourceFile],
    document: Option<&SourceFile>,
    hostname: &str,
) -> Result<Config, ConfigError> {
    let (own_files, document) = (files.len(), document.filter(|_| files.iter().any(has_fleet)));
    let files: Vec<&SourceFile> = files.iter().chain(document).collect();
    let notes = Notes::of(files.iter().map(|file| (file.name.as_str(), file.text.as_str())));
    let mut documents = Vec::with_capacity(files.len());
    let mut unreadable = Vec::new();
    for file in &files {
        match DeTable::parse(&file.text) {
            Ok(document) => documents.push(document.into_inner()),
            Err(error) => {
                let own = Notes::new(&file.name, &file.text);
                unreadable.extend(syntax(own, &file.text, &error).problems);
            }
        }
    }
    if !unreadable.is_empty() {
        return Err(ConfigError { problems: unreadable });
    }
    let roots = documents.iter().enumerate().map(|(i, document)| {
        let schema = match i {
            0 => &schema::ROOT,
            i if i < own_files => &schema::INCLUDED,
            _ => &schema::DOCUMENT,
        };
        Section::open(&notes, document, notes.base(i), "", Vec::new(), schema)
    });
    let roots: Vec<_> = roots.collect();
    let (own, of_fleet) = roots.split_at(own_files);
    of_fleet.iter().zip(&documents[own_files..]).for_each(|(root, table)| fleet::check_document(root, table));
    include::read(&roots[0]);
    // What is each node's own is refused in the document already.
    let single = |key| include::single(if fleet::is_shared(key) { &roots } else { own }, key);
    let node = match single("node") {
        Some((table, at)) => node::read_node(&notes, table, at, hostname),
        None => {
            if roots.iter().all(|root| root.position("node").is_none() && !root.hinted("node")) {
                let why = Refusal::expected("[node] with interfaces = [...]")
                    .but("name the interfaces that packets come in on");
                notes.problem(None, "node".to_owned(), "", "section [node] is missing".to_owned(), why);
            }
            // Never used: a problem is noted.
            node::read_node(&Notes::new("", ""), &DeTable::new(), 0, hostname)
        }
    };
    let metrics = single("metrics").map(|(table, at)| node::read_metrics(&notes, table, at));
    let tunnel = single("tunnel").map(|(table, at)| node::read_tunnel(&notes, table, at));
    let firewall = single("firewall").map(|(table, at)| firewall::read_firewall(&notes, table, at));
    let flows = single("flows").map(|(table, at)| node::read_flows(&notes, table, at));
    let control = single("control").map(|(table, at)| control::read(&notes, table, at));
    let resolver = single("resolver").map(|(table, at)| resolver::read(&notes, table, at));
    let sync = single("sync").and_then(|(table, at)| sync::read(&notes, table, at));
    let fleet = single("fleet").and_then(|(table, at)| fleet::read(&notes, table, at));
    // The fleet's services are the same on every node, whatever the defaults of its own files.
    let defaults = [own, of_fleet].map(|roots| {
        let defaults = include::single(roots, "defaults");
        let defaults = defaults.map(|(table, at)| ServiceSettings::read_defaults(&notes, table, at));
        defaults.unwrap_or(ServiceSettings::ABSENT)
    });
    let each = |key: &'static str| each_of(&roots, key);
    let mut drafts = Vec::new();
    let mut own_services = 0;
    for (roots, defaults) in [own, of_fleet].into_iter().zip(&defaults) {
        own_services = drafts.len();
        let tables = each_of(roots, "service");
        drafts.extend(
            tables.map(|((table, at), number)| service::read_service(&notes, table, at, number, defaults)),
        );
    }
    let bgp = single("bgp").map(|(table, at)| bgp::read(&notes, table, at));
    // Which services there will be is not known before the document has come.
    let complete = fleet.is_none() || document.is_some();
    bgp.iter().filter(|_| complete).for_each(|bgp| bgp.check(&drafts));
    check::check(&drafts);
    snat::check(&drafts);
    let routers: Vec<_> =
        each("vrrp").map(|((table, at), number)| vrrp::read(&notes, table, at, number)).collect();
    let numbered = |key| each(key).collect::<track::Tables<'_>>();
    let pair = PairSpec {
        scripts: track::read_scripts(&notes, numbered("vrrp_script")),
        files: track::read_files(&notes, numbered("vrrp_file")),
        bfd: track::read_bfd(&notes, numbered("bfd")),
        groups: track::read_groups(&notes, numbered("vrrp_group"), &vrrp::names(&routers)),
    };
    let known = drafts.iter().filter_map(service::ServiceDraft::name).collect();
    vrrp::check(&routers, &pair, complete.then_some(&known));
    let notify = pool::read_notify(&notes, each("notify").map(|(table, _)| table), None);
    let vrrp = routers.into_iter().filter_map(|router| router.build(&pair)).collect();
    let names = drafts.iter().filter_map(service::ServiceDraft::names).collect();
    let defaults = |number: usize| &defaults[usize::from(number >= own_services)];
    let built = drafts.into_iter().enumerate();
    let mut services: Vec<ServiceSpec> =
        built.filter_map(|(number, draft)| draft.build(defaults(number))).collect();
    // They would stay in the memory of the drafts, which are larger.
    services.shrink_to_fit();
    share_names(&mut services);
    Ok(Config {
        file: files[0].name.clone(),
        files: files.iter().map(|file| file.name.clone()).collect(),
        node,
        metrics: metrics.unwrap_or_default(),
        tunnel: tunnel.unwrap_or_default(),
        firewall: Arc::new(firewall.unwrap_or_default()),
        flows: flows.unwrap_or_default(),
        control: control.unwrap_or_default(),
        resolver: resolver.unwrap_or_default(),
        names,
        services,
        vrrp,
        pair,
        sync,
        bgp: bgp.map(bgp::BgpDraft::build),
        fleet,
        fleet_file: document.map(|_| own_files),
        notify,
        origins: Origins::new(notes.finish()?),
    })
}

/// The sections of a key that may occur several times, each with its number in its file.
fn each_of<'a, 'r>(
    roots: &'r [Section<'a>],
    key: &'static str,
) -> impl Iterator<Item = ((&'a DeTable<'a>, usize), usize)> + 'r {
    roots.iter().flat_map(move |root| root.tables(key).unwrap_or_default().into_iter().zip(1..))
}

/// A text that cannot be read has none: what is wrong with it is said elsewhere.
fn has_fleet(file: &SourceFile) -> bool {
    DeTable::parse(&file.text).is_ok_and(|document| document.get_ref().contains_key("fleet"))
}

/// Backends of many services have the same few names: each is kept once.
fn share_names(services: &mut [ServiceSpec]) {
    let mut names = HashSet::new();
    for backend in services.iter_mut().flat_map(|service| &mut service.backends) {
        match names.get(&backend.name) {
            Some(name) => backend.name = BackendName::clone(name),
            None => _ = names.insert(backend.name.clone()),
        }
    }
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
