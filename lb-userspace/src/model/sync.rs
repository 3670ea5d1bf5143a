//! The link to the other node of the pair.

use sha2::{Digest as _, Sha256};
use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

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

/// A pre-shared key. Its secret is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SyncKey {
    /// For people.
    pub id: String,
    secret: [u8; 32],
}

impl SyncKey {
    /// Without a name it is called by the beginning of its hash.
    pub fn new(id: Option<&str>, secret: [u8; 32]) -> Self {
        let digest = || Sha256::digest(secret)[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id: id.map_or_else(digest, str::to_owned), secret }
    }

    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }
}

impl fmt::Debug for SyncKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SyncKey({:?})", self.id)
    }
}
