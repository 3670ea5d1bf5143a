//! What `explain`, `flows` and `trace` ask and answer. As in [`super::api`]: fields are added, never renamed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The headers of a packet as it leaves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HeadersView {
    pub destination_mac: String,
    pub source_mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The header the balancer put in front; absent where it put none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<HeaderView>,
    /// The client's packet.
    pub packet: HeaderView,
    /// Bytes of the frame.
    pub length: usize,
}

/// One IP header and the ports after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderView {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// `tcp`, `udp`, `ipip`, ... or the number.
    pub protocol: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Default for HeaderView {
    fn default() -> Self {
        let nowhere = IpAddr::from([0, 0, 0, 0]);
        Self {
            source: nowhere,
            destination: nowhere,
            protocol: String::new(),
            source_port: None,
            destination_port: None,
            ttl: 0,
        }
    }
}

impl std::fmt::Display for HeaderView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |ip: IpAddr, port: Option<u16>| {
            port.map_or_else(|| ip.to_string(), |port| SocketAddr::new(ip, port).to_string())
        };
        let (source, destination) =
            (end(self.source, self.source_port), end(self.destination, self.destination_port));
        write!(f, "{} {source} -> {destination}, TTL {}", self.protocol, self.ttl)
    }
}

/// `GET /v1/flows`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskFlows {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Flows that are listed at most; all are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl AskFlows {
    /// Listed at most, where nothing else is asked for.
    pub const LIMIT: usize = 1_000;
}

/// `flows`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FlowsView {
    /// Flows that fit the question.
    pub total: u64,
    pub half_open: u64,
    pub confirmed: u64,
    pub closing: u64,
    /// As many of them as were asked for.
    pub flows: Vec<FlowView>,
}

/// One tracked flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    pub protocol: String,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// Absent where its backend is gone.
    pub service: Option<String>,
    pub backend: Option<String>,
    /// `half-open`, `confirmed` or `closing`.
    pub state: String,
    /// Since the last packet, to two seconds.
    pub idle_seconds: u64,
    /// Source towards the backend, where it is not the client's (NAT sessions).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translated: Option<SocketAddr>,
}

/// `GET /v1/trace`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskTrace {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Prefix of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub source: Option<ipnet::IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest: Option<SocketAddr>,
    /// `drop`, `forward` or `pass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// One packet in so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
}

/// One line of `trace`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "lines pass one at a time, most of them packets")]
pub enum TraceLine {
    Packet(TraceView),
    /// Records that this trace did not get since the last line of this kind.
    Lost {
        lost: u64,
    },
}

/// A packet and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceView {
    /// Seconds since 1970.
    pub time: f64,
    /// `forward`, `drop` or `pass`.
    pub verdict: String,
    /// Why it was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub service: Option<String>,
    pub backend: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    pub protocol: String,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Bytes of the frame.
    pub length: u32,
    pub interface: String,
}
