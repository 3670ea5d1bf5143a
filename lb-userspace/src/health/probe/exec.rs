//! The command check: passes if the command ends with status 0 in time. How it runs, see [`crate::command`]; two variables tell
//! it about the backend.

use super::{Deadline, ProbeFailure, Stage};
use crate::{
    command::{self, RunError},
    model::ExecCheck,
};
use std::net::SocketAddr;

/// Passes if the command does.
pub async fn probe(address: SocketAddr, check: &ExecCheck, deadline: Deadline) -> Result<(), ProbeFailure> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let variables = [("LBD_ADDRESS", ip.as_str()), ("LBD_PORT", port.as_str())];
    let run = async {
        command::run(&check.command, &[], &variables, &check.user).await.map_err(|error| match error {
            RunError::CannotRun(what) => ProbeFailure::CannotRun { what },
            RunError::Exit(code) => ProbeFailure::Exit { code },
            RunError::Killed(signal) => ProbeFailure::Killed { signal },
            RunError::Lost => ProbeFailure::Internal,
        })
    };
    deadline.limit(Stage::Answer, run).await.map_err(|failure| match failure {
        ProbeFailure::Timeout { timeout, .. } => ProbeFailure::CommandTimeout { timeout },
        other => other,
    })
}
