//! The command check: passes if the command ends with status 0 in time. It runs without a shell, as an unprivileged user, in
//! `/`, with a small environment that tells it about the backend; what it says is not read.

use super::{Deadline, ProbeFailure, Stage};
use crate::model::ExecCheck;
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::{Pid, User},
};
use std::{net::SocketAddr, os::unix::process::ExitStatusExt as _, process::Stdio};
use tokio::process::Command;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Ends what the command started with it, also when the check is given up.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // An error means that nobody is left.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Passes if the command does.
pub async fn probe(address: SocketAddr, check: &ExecCheck, deadline: Deadline) -> Result<(), ProbeFailure> {
    let cannot = |what: String| ProbeFailure::CannotRun { what };
    let [program, arguments @ ..] = check.command.as_slice() else {
        return Err(cannot("the command is empty".to_owned()));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LBD_ADDRESS", address.ip().to_string())
        .env("LBD_PORT", address.port().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own: children of the command end with it.
        .process_group(0)
        .kill_on_drop(true);
    // A daemon without privileges stays who it is.
    if nix::unistd::geteuid().is_root() {
        let user = User::from_name(&check.user).ok().flatten();
        let user = user.ok_or_else(|| cannot(format!("there is no user '{}'", check.user)))?;
        // Rust's Command drops the supplementary groups of root with the user id.
        command.gid(user.gid.as_raw()).uid(user.uid.as_raw());
    }
    let mut child = command.spawn().map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        cannot(format!("{program}: {}", errno.desc()))
    })?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let mut group = Group(pid);
    let status = deadline
        .limit(Stage::Answer, async { child.wait().await.map_err(|_| ProbeFailure::Internal) })
        .await
        .map_err(|failure| match failure {
            ProbeFailure::Timeout { timeout, .. } => ProbeFailure::CommandTimeout { timeout },
            other => other,
        })?;
    // What it left in the background is ended too; the leader's id may be given out again only after the group is gone.
    drop(std::mem::replace(&mut group, Group(None)));
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(ProbeFailure::Exit { code }),
        (None, signal) => Err(ProbeFailure::Killed { signal: signal.unwrap_or(0) }),
    }
}
