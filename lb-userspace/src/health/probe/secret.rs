//! Passwords of checks: in a file of their own, read for each check, so that a changed one counts at once.

use super::ProbeFailure;
use std::path::Path;

/// The first line of a file.
pub(super) async fn read(file: &Path) -> Result<String, ProbeFailure> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || crate::config::read_password(&path)).await;
    let read = read.map_err(|_| ProbeFailure::Internal)?;
    read.map_err(|why| ProbeFailure::CannotRun { what: format!("{} {why}", file.display()) })
}
