//! A service: what clients connect to.

use super::{
    BackendSpec, GradualSpec, GuardSpec, HealthSpec, PassiveSpec, PoolSpec, PortSpec, QuicSpec, ServiceName,
    SnatSpec,
};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, time::Duration};

/// A service as configured, all defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    pub name: ServiceName,
    /// The virtual addresses; at least one, no duplicates.
    pub addresses: Vec<IpAddr>,
    pub port: PortSpec,
    pub protocol: Protocol,
    pub forward: Forward,
    pub scheduler: Scheduler,
    /// Slots of the Maglev ring, a prime up to 65,537; by default chosen from the number of backends
    /// when the service is first made, and kept.
    pub ring_size: Option<u32>,
    /// Seed of the flow hash and the ring; the same on every node that shares the VIP.
    pub seed: u64,
    /// A flow that was silent for longer may be forgotten.
    pub idle_timeout: Duration,
    /// UDP port of `forward = "gue"`.
    pub gue_port: u16,
    /// Sources of `forward = "snat"`; of no other mode.
    pub snat: Option<SnatSpec>,
    pub health: HealthSpec,
    /// Passive health checks; of [`Protocol::Tcp`], and only of it.
    pub passive: Option<PassiveSpec>,
    pub guard: GuardSpec,
    pub gradual: GradualSpec,
    pub pool: PoolSpec,
    /// Of [`Protocol::Quic`], and only of it.
    pub quic: Option<QuicSpec>,
    /// Unique names and unique addresses.
    pub backends: Vec<BackendSpec>,
}

/// Transport protocol of a service.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    /// UDP whose packets go where their connection ID says.
    Quic,
}

/// How packets reach the backends.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// Direct server return: only the MAC addresses change.
    Dsr,
    /// IP in IP.
    Ipip,
    /// Generic UDP Encapsulation.
    Gue,
    /// Destination rewritten; replies come back through the balancer.
    Nat,
    /// Source and destination rewritten.
    Snat,
}

/// How a backend is chosen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// Consistent hashing of source address and both ports.
    Maglev,
    /// Consistent hashing of the source address alone.
    SourceIp,
    /// In turn; every flow is recorded.
    RoundRobin,
    /// The backend with the fewest open flows for its weight; every flow is recorded.
    LeastConnections,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::abi::PROTO_TCP,
            Self::Udp | Self::Quic => lb_common::abi::PROTO_UDP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Quic => "quic",
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Nat => "nat",
            Self::Snat => "snat",
        })
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Maglev => "maglev",
            Self::SourceIp => "source-ip",
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
        })
    }
}
