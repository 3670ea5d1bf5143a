//! Running a command of this host: without a shell, as an unprivileged user, in `/`, with a small environment, and no longer
//! than the caller waits.

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::{Pid, User},
};
use std::{os::unix::process::ExitStatusExt as _, process::Stdio};
use tokio::process::Command;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command did not end with status 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    CannotRun(String),
    #[error("ended with status {0}")]
    Exit(i32),
    #[error("ended by signal {0}")]
    Killed(i32),
    #[error("it could not be waited for")]
    Lost,
}

/// Ends what the command started with it, also when the wait for it is given up.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // An error means that nobody is left.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Runs a program (absolute path and arguments, then `more` of them) with these variables as `user`; what it says is not
/// read. Dropping the future ends it and all it started.
pub async fn run(
    command: &[String],
    more: &[&str],
    variables: &[(&str, &str)],
    user: &str,
) -> Result<(), RunError> {
    let [program, arguments @ ..] = command else {
        return Err(RunError::CannotRun("the command is empty".to_owned()));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(more)
        .env_clear()
        .env("PATH", PATH)
        .envs(variables.iter().copied())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own: children of the command end with it.
        .process_group(0)
        .kill_on_drop(true);
    // A daemon without privileges stays who it is.
    if nix::unistd::geteuid().is_root() {
        let found = User::from_name(user).ok().flatten();
        let found = found.ok_or_else(|| RunError::CannotRun(format!("there is no user '{user}'")))?;
        // Rust's Command drops the supplementary groups of root with the user id.
        command.gid(found.gid.as_raw()).uid(found.uid.as_raw());
    }
    let mut child = command.spawn().map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        RunError::CannotRun(format!("{program}: {}", errno.desc()))
    })?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let group = Group(pid);
    let status = child.wait().await.map_err(|_| RunError::Lost)?;
    // What it left in the background is ended too; the leader's id may be given out again only after the group is gone.
    drop(group);
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(RunError::Exit(code)),
        (None, signal) => Err(RunError::Killed(signal.unwrap_or(0))),
    }
}
