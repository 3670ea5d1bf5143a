//! The TCP check: open a connection, close it with a RST. The backend's program sees a connection that
//! is reset at once, which some log.

use super::{Deadline, Peer, ProbeFailure, Stage, open};

/// Passes if the connection opens in time.
pub async fn probe(peer: impl Into<Peer>, deadline: Deadline) -> Result<(), ProbeFailure> {
    deadline.limit(Stage::Connect, open(peer.into())).await.map(drop)
}
