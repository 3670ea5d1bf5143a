//! What a routing daemon on this host is told.

use super::ServiceName;
use std::time::Duration;

/// The table where nothing is said. Nobody looks packets up in it.
pub const DEFAULT_BGP_TABLE: u32 = 9750;

/// When a virtual address is taken back from the routing daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Withdraw {
    /// As soon as one of its services has lost its quorum.
    #[default]
    NoQuorum,
    /// When one of its services has nobody left who takes new flows; backups and panics keep it.
    Down,
}

/// `[bgp]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BgpSpec {
    /// The kernel's routing table that the routing daemon reads.
    pub table: u32,
    /// The services whose addresses are announced; empty: all.
    pub services: Vec<ServiceName>,
    pub withdraw: Withdraw,
    /// How long a service must have been up before its addresses are announced.
    pub delay: Duration,
    /// The routes stay when the daemon is stopped: forwarding goes on without it, health checks do not.
    pub keep_on_stop: bool,
}
