//! What the control API answers. The JSON field names are a contract with scripts: add, never rename.

use crate::model::{Admin, Forward, Health, OnAllDown, Protocol, Scheduler, ServiceState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// `lbctl status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusView {
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Hash of the map layout, as in the pin directory's name.
    pub abi: String,
    /// Tag of the attached program, 16 hex digits.
    pub program: String,
    pub kernel: String,
    pub uptime_seconds: f64,
    pub pid: u32,
    pub config_file: String,
    /// SHA-256 over the configuration in force, runtime changes included, 16 hex digits.
    pub config_hash: String,
    /// SHA-256 over the services alone: equal on both nodes of a pair that is configured alike.
    #[serde(default)]
    pub services_hash: String,
    /// Runtime changes in force.
    pub runtime_changes: usize,
    /// Revision of the runtime state: one more with each change, dropped ones included.
    #[serde(default)]
    pub revision: u64,
    pub interfaces: Vec<InterfaceView>,
    pub services: usize,
    pub backends: usize,
    /// Map memory in bytes, as the kernel accounts it.
    pub map_bytes: u64,
    /// Settings of this host that stand in the way of a service, each with what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Flows in the flow table, as of at most some seconds ago: only those of slots that changed hands.
    #[serde(default)]
    pub tracked_flows: usize,
    /// Prefixes of the firewall.
    #[serde(default)]
    pub firewall: FirewallView,
    /// Handshakes in the flow tables, as of then.
    #[serde(default)]
    pub half_open_flows: usize,
    /// Flows and handshakes that found no room in the flow tables since the maps were made.
    #[serde(default)]
    pub refused_flows: u64,
    #[serde(default)]
    pub nat: NatTotals,
    /// Tables that hold something for each flow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableView>,
}

/// Use and room of a table, in entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableView {
    /// `flows_ipv4`, `flows_ipv6`, `half_open_ipv4`, `half_open_ipv6` or `nat_sessions`.
    pub name: String,
    /// As of at most some seconds ago.
    pub entries: u64,
    pub capacity: u64,
}

/// Prefixes in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FirewallView {
    pub denied: usize,
    /// Exceptions inside denied prefixes.
    pub allowed: usize,
}

/// One interface with the program attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceView {
    pub name: String,
    pub ifindex: u32,
    /// `native` or `generic`.
    pub mode: String,
    /// Why the mode is not native, or what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// One service, as in `service list` and `service show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// "443", "8000-8099", "0" (every port).
    pub port: String,
    pub protocol: Protocol,
    pub forward: Forward,
    pub scheduler: Scheduler,
    pub packets: u64,
    pub bytes: u64,
    /// How its servers form their connection IDs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicView>,
    /// Slots of its ring, by state.
    pub slots: SlotsView,
    /// NAT sessions and where they come from, of services that may have some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatView>,
    #[serde(default)]
    pub pool: PoolView,
    pub backends: Vec<BackendView>,
}

/// A service as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PoolView {
    /// `up`, `up-panic`, `down`, `down-backup`, `down-panic` or `down-degraded`.
    pub state: ServiceState,
    /// It has its quorum.
    pub up: bool,
    /// Primaries that are enabled, with a weight.
    pub enabled: usize,
    /// Those of them that can take new flows.
    pub healthy: usize,
    pub quorum_up: u32,
    pub quorum_down: u32,
    /// In percent; 0 = never.
    pub panic_threshold: u8,
    pub on_all_down: OnAllDown,
}

impl Default for PoolView {
    fn default() -> Self {
        Self {
            state: ServiceState::Up,
            up: true,
            enabled: 0,
            healthy: 0,
            quorum_up: 1,
            quorum_down: 1,
            panic_threshold: 0,
            on_all_down: OnAllDown::Drop,
        }
    }
}

/// Connection IDs of a QUIC service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuicView {
    /// Bytes of a server id.
    pub server_id_length: u8,
    /// The three upper bits of their first octet.
    pub config_id: u8,
}

/// NAT of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatView {
    /// Every flow has a session; else only those of clients that are backends themselves.
    pub always: bool,
    /// As of at most some seconds ago.
    pub sessions: u64,
    /// Of these, handshakes that no backend has answered yet.
    pub unanswered: u64,
    /// Source addresses towards the backends; none where the client's is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Their ports, e.g. "1024-65535".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
}

/// NAT of the whole node, counted since the maps were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, JsonSchema)]
pub struct NatTotals {
    pub made: u64,
    /// Sessions refused: no port of the pool was free.
    pub exhausted: u64,
    /// Sessions refused: no room in the tables.
    pub full: u64,
}

/// How many slots of a ring are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, JsonSchema)]
pub struct SlotsView {
    pub total: u32,
    pub plain: u32,
    pub moving: u32,
    pub tracked: u32,
}

/// One backend of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendView {
    pub name: String,
    pub address: IpAddr,
    /// Port it is reached on; absent where the service has several ports.
    pub port: Option<u16>,
    pub weight: u16,
    /// It takes new flows only while the others are no quorum.
    #[serde(default)]
    pub backup: bool,
    /// In the connection IDs it gives out, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<String>,
    pub admin: Admin,
    pub health: Health,
    /// Last reason given by the health check, e.g. "connection refused".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_reason: Option<String>,
    /// Slots whose new flows it takes.
    pub slots: u32,
    /// The next hop is known; without one its packets are dropped.
    pub reachable: bool,
    /// Where this backend or its changed settings come from: "file" or "runtime".
    pub origin: String,
    pub packets: u64,
    pub bytes: u64,
    #[serde(flatten)]
    pub gradual: super::gradual::GradualView,
    /// What its clients met, where the service has passive health checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<super::passive::PassiveView>,
}

/// One row of `drops`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DropView {
    pub reason: String,
    pub packets: u64,
    /// What the reason means, in one line.
    pub help: String,
}

/// `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ExplainView {
    /// `forward`, `drop`, `reject` (dropped, and the sender told) or `pass` (left to the kernel).
    pub verdict: String,
    pub service: Option<String>,
    pub backend: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// Slot of the ring and its state, where a ring was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_state: Option<String>,
    /// "tx" or "redirect to eth1", with the MAC addresses and the outer header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,
    /// Of a slot that changed hands: who takes new flows, and who has those that are not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_home: Option<String>,
    /// The flow is recorded: `half-open`, `confirmed` or `closing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// The packet as it would leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<super::observe::HeadersView>,
    /// Who decided: the program in the kernel, or the daemon in its place and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// Answer to a change: what it did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChangeView {
    /// One line for a person, e.g. "backend web4 added to www".
    pub message: String,
    /// What changed (or, with `plan`, would change), a line each.
    pub changes: Vec<String>,
    /// True if nothing was touched because only the plan was asked for.
    pub planned_only: bool,
    /// With `plan`: what would become of slots and flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<super::gradual::PlanView>,
    /// Revision of the runtime state after it.
    #[serde(default)]
    pub revision: u64,
}

/// One setting of `config show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SettingView {
    /// Dotted path, e.g. `service.www.backend.web1.weight`.
    pub key: String,
    pub value: serde_json::Value,
    /// `default`, `file`, `dns` or `runtime`.
    pub origin: String,
    /// Who changed it at run time, e.g. "uid 0 (root)".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When, in seconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
}

/// `config show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigView {
    pub file: String,
    pub hash: String,
    pub settings: Vec<SettingView>,
    /// File and line of each setting whose origin is `file`, by key, as `/etc/lbd/conf.d/www.toml:7`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<String, String>,
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorView {
    /// What was found, where, what was expected and what to do.
    pub error: String,
    /// True if the request or the configuration is wrong (exit status 2), false if it could not be
    /// carried out (exit status 1).
    pub usage: bool,
}

/// One interface of a backend with the decapsulation program, as in `decap show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DecapView {
    pub interface: String,
    pub ifindex: u32,
    /// `native` or `generic`.
    pub mode: String,
    /// Prefixes of the balancers it takes packets from.
    pub sources: Vec<String>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// Packets taken out of their tunnel, and the bytes of the IP packets that were inside.
    pub packets: u64,
    pub bytes: u64,
    /// Tunnel packets dropped, by reason.
    pub refused: Vec<DropView>,
}
