//! The link to the other node of the pair.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Where nothing is said: how often the nodes tell each other that they live.
pub const DEFAULT_SYNC_HEARTBEAT: Duration = Duration::from_millis(10);
/// Where nothing is said: how long a node that returns waits for the peer's state.
pub const DEFAULT_TAKEOVER_WAIT: Duration = Duration::from_secs(10);
/// Peers that one node has at most.
pub const MAX_SYNC_PEERS: usize = 8;
/// Keys that one file has at most: each is tried on every connection that comes in.
pub const MAX_SYNC_KEYS: usize = 8;

/// `[sync]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncSpec {
    /// For connections over TCP, and for heartbeats over UDP at the same port.
    pub listen: SocketAddr,
    /// Where the peers listen.
    pub peers: Vec<SocketAddr>,
    pub key_file: PathBuf,
    /// Zero: none are sent.
    pub heartbeat: Duration,
    /// Bytes a second to each peer; no limit where absent.
    pub max_bandwidth: Option<u64>,
    /// How long a node that has the peer's state not yet leaves a living master alone.
    pub takeover_wait: Duration,
}
