//! The TCP check: open a connection, close it with a RST. The backend's program sees a connection that
//! is reset at once, which some log.

use super::{Deadline, ProbeFailure, Stage, connect};
use std::net::SocketAddr;

/// Passes if the connection opens in time.
pub async fn probe(address: SocketAddr, deadline: Deadline) -> Result<(), ProbeFailure> {
    deadline.limit(Stage::Connect, connect(address)).await.map(drop)
}
