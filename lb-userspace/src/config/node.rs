//! The sections about this node: `[node]`, `[metrics]`, `[tunnel]`, `[flows]`.

use super::{
    address,
    error::printable,
    reader::{Notes, Refusal, Section, Setting, text},
    schema,
};
use crate::model::XdpMode;
use ipnet::{Ipv4Net, Ipv6Net};
use lb_common::abi::{FLOW_CAPACITY, HALF_OPEN_CAPACITY, SESSION_CAPACITY};
use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};
use toml::de::DeTable;

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The host's name by default.
    pub name: String,
    /// Interfaces the program is attached to; at least one, no duplicates.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    pub state_dir: PathBuf,
    pub pin_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Echo requests to virtual addresses are answered by the program.
    pub answer_ping: bool,
    /// Fragments are forwarded.
    pub fragments: bool,
}

/// `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// `None` if nobody is to listen.
    pub listen: Option<SocketAddr>,
}

/// `[flows]`: room for tracked flows, of either IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowsConfig {
    pub max_flows: u32,
    /// Handshakes under way.
    pub max_half_open: u32,
    /// NAT sessions of both versions together.
    pub max_sessions: u32,
}

impl Default for FlowsConfig {
    fn default() -> Self {
        Self { max_flows: FLOW_CAPACITY, max_half_open: HALF_OPEN_CAPACITY, max_sessions: SESSION_CAPACITY }
    }
}

/// `[tunnel]`: the outer source addresses of `ipip` and `gue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelConfig {
    /// The outer source of `ipip` over IPv4 lies in here; the host bits vary with the flow.
    pub source_ipv4: Ipv4Net,
    /// The same over IPv6.
    pub source_ipv6: Ipv6Net,
    /// The outer source of `gue` over IPv4, where it is not the address of the egress interface.
    pub gue_source_ipv4: Option<Ipv4Addr>,
    /// The same over IPv6.
    pub gue_source_ipv6: Option<Ipv6Addr>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9750))) }
    }
}

impl Default for TunnelConfig {
    /// Networks that no host has: 198.18.0.0/16 (RFC 2544) and 100::/64 (RFC 6666).
    fn default() -> Self {
        Self {
            source_ipv4: Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 16),
            source_ipv6: Ipv6Net::new_assert(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
            gue_source_ipv4: None,
            gue_source_ipv6: None,
        }
    }
}

const NODE_NAME: &str = "1 to 64 letters, digits, '-', '_' or '.'";

fn node_name(text: &str) -> Result<String, Refusal> {
    let valid = (1..=64).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if valid { Ok(text.to_owned()) } else { Err(Refusal::expected(NODE_NAME)) }
}

pub(super) fn read_node<'a>(
    notes: &'a Notes<'a>,
    table: &'a DeTable<'a>,
    at: usize,
    hostname: &str,
) -> NodeConfig {
    let node = Section::open(notes, table, at, "[node]", vec!["node".to_owned()], &schema::NODE);
    let interfaces =
        node.list("interfaces", address::INTERFACES, |v| address::interface(text(v, address::INTERFACES)?));
    let mut seen = HashMap::new();
    for (name, at) in interfaces.value().into_iter().flatten() {
        if seen.insert(name, *at).is_some() {
            let found = format!("interfaces has \"{}\" twice", printable(name));
            node.refuse(*at, "interfaces", found, Refusal::expected("each interface once"));
        }
    }
    if node.position("interfaces").is_none() {
        node.missing("interfaces", address::INTERFACES);
    }
    let interfaces = match interfaces {
        Setting::Is(names, at) => Setting::Is(names.into_iter().map(|(name, _)| name).collect(), at),
        Setting::Absent => Setting::Absent,
        Setting::Refused => Setting::Refused,
    };
    let modes = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    let directory = |key, default: &str, parse: fn(&str) -> Result<PathBuf, Refusal>| {
        node.pick(key, &node.text(key, address::DIRECTORY, parse), PathBuf::from(default))
    };
    NodeConfig {
        name: node.pick("name", &node.text("name", NODE_NAME, node_name), hostname.to_owned()),
        interfaces: node.pick("interfaces", &interfaces, Vec::new()),
        xdp_mode: node.pick("xdp_mode", &node.word("xdp_mode", &modes, &[]), XdpMode::default()),
        state_dir: directory("state_dir", "/var/lib/lbd", address::directory),
        pin_dir: directory("pin_dir", "/sys/fs/bpf/lbd", address::pin_directory),
        run_dir: directory("run_dir", "/run/lbd", address::socket_directory),
        answer_ping: node.pick("answer_ping", &node.switch("answer_ping"), true),
        fragments: node.pick("fragments", &node.switch("fragments"), true),
    }
}

pub(super) fn read_metrics<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> MetricsConfig {
    let metrics = Section::open(notes, table, at, "[metrics]", vec!["metrics".to_owned()], &schema::METRICS);
    let listen = metrics.text("listen", address::LISTEN, address::listen);
    MetricsConfig { listen: metrics.pick("listen", &listen, MetricsConfig::default().listen) }
}

pub(super) fn read_flows<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> FlowsConfig {
    let flows = Section::open(notes, table, at, "[flows]", vec!["flows".to_owned()], &schema::FLOWS);
    let room = |key, default| flows.pick(key, &flows.integer(key, 1024, 1 << 24), default);
    let default = FlowsConfig::default();
    FlowsConfig {
        max_flows: room("max_flows", default.max_flows),
        max_half_open: room("max_half_open", default.max_half_open),
        max_sessions: room("max_sessions", default.max_sessions),
    }
}

pub(super) fn read_tunnel<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> TunnelConfig {
    let tunnel = Section::open(notes, table, at, "[tunnel]", vec!["tunnel".to_owned()], &schema::TUNNEL);
    let default = TunnelConfig::default();
    let source4 = tunnel.text("source_ipv4", "a network such as \"198.18.0.0/16\"", address::network4);
    let source6 = tunnel.text("source_ipv6", "a network such as \"100::/64\"", address::network6);
    let gue4 = tunnel.text("gue_source_ipv4", "an IPv4 address", |text| address::unicast4(text).map(Some));
    let gue6 = tunnel.text("gue_source_ipv6", "an IPv6 address", |text| address::unicast6(text).map(Some));
    TunnelConfig {
        source_ipv4: tunnel.pick("source_ipv4", &source4, default.source_ipv4),
        source_ipv6: tunnel.pick("source_ipv6", &source6, default.source_ipv6),
        gue_source_ipv4: tunnel.pick("gue_source_ipv4", &gue4, None),
        gue_source_ipv6: tunnel.pick("gue_source_ipv6", &gue6, None),
    }
}
