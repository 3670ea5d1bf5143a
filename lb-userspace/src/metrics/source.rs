//! Where the numbers come from.

use crate::control::{
    api::{DropView, InterfaceView, ServiceView, StatusView},
    bgp::BgpView,
    command::{Command, CommandError, Commands, Reply},
    fleet::{FleetCommand, FleetView},
    link::SyncView,
    pair::{PairCommand, PairView, RefusedView},
};
use serde::Serialize;
use std::{future::Future, time::Duration};
use tokio::sync::oneshot;

/// Everything one page or one scrape shows, as `/api/snapshot.json` serves it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    pub status: StatusView,
    pub services: Vec<ServiceView>,
    pub drops: Vec<DropView>,
    pub pair: Vec<PairView>,
    pub pair_refused: Vec<RefusedView>,
    /// Absent without `[sync]`.
    pub link: Option<SyncView>,
    pub bgp: BgpView,
    pub fleet: FleetView,
    /// Absent where /proc cannot be read.
    pub process: Option<super::ProcessView>,
}

/// Why there is no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("the daemon is shutting down")]
    Stopped,
    #[error("the daemon did not answer within {} s; its log tells what it is doing", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("the daemon could not read its own state: {0}")]
    Failed(#[from] CommandError),
}

/// Answers with the present state of the daemon. Called once per request, possibly several times at
/// once; the future may be dropped at any await.
pub trait Source: Send + Sync + 'static {
    fn snapshot(&self) -> impl Future<Output = Result<Snapshot, SnapshotError>> + Send;

    /// The part that does not grow with the configuration.
    fn status(&self) -> impl Future<Output = Result<StatusView, SnapshotError>> + Send {
        async { Ok(self.snapshot().await?.status) }
    }
}

/// The daemon's loop as the source. The answers are taken one after the other: a change in
/// between shows in the later ones only.
impl Source for Commands {
    async fn status(&self) -> Result<StatusView, SnapshotError> {
        ask(self, Command::Status).await
    }

    async fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        Ok(Snapshot {
            status: ask(self, Command::Status).await?,
            services: ask(self, Command::Services).await?,
            drops: ask(self, Command::Drops).await?,
            pair: ask(self, |reply| Command::Pair(PairCommand::List(reply))).await?,
            pair_refused: ask(self, |reply| Command::Pair(PairCommand::Refused(reply))).await?,
            link: ask(self, |reply| Command::Pair(PairCommand::Link(reply))).await?,
            bgp: ask(self, Command::Bgp).await?,
            fleet: ask(self, |reply| Command::Fleet(FleetCommand::Status(reply))).await?,
            process: super::process::read().ok(),
        })
    }
}

async fn ask<T>(commands: &Commands, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, SnapshotError> {
    let (reply, answer) = oneshot::channel();
    commands.send(command(reply)).await.map_err(|_| SnapshotError::Stopped)?;
    Ok(answer.await.map_err(|_| SnapshotError::Stopped)??)
}

/// Why this node cannot forward, in words; `None` if the program is attached everywhere.
pub(super) fn unhealthy(status: &StatusView) -> Option<String> {
    if status.interfaces.is_empty() {
        return Some("the program is attached to no interface".to_owned());
    }
    let missing: Vec<String> = status
        .interfaces
        .iter()
        .filter(|interface| !attached(interface))
        .map(|interface| {
            let why = interface.warning.as_deref().unwrap_or(&interface.mode);
            format!("the program is not attached to {}: {why}", interface.name)
        })
        .collect();
    (!missing.is_empty()).then(|| missing.join("\n"))
}

/// True if packets of this interface pass the program.
pub(super) fn attached(interface: &InterfaceView) -> bool {
    matches!(interface.mode.as_str(), "native" | "generic")
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn the_daemons_loop_is_a_source() {
        let (commands, mut inbox) = mpsc::channel(1);
        let expected = sample::snapshot();
        let answers = expected.clone();
        let daemon = tokio::spawn(async move {
            while let Some(command) = inbox.recv().await {
                match command {
                    Command::Status(reply) => drop(reply.send(Ok(answers.status.clone()))),
                    Command::Services(reply) => drop(reply.send(Ok(answers.services.clone()))),
                    Command::Drops(reply) => drop(reply.send(Ok(answers.drops.clone()))),
                    Command::Pair(PairCommand::List(reply)) => drop(reply.send(Ok(answers.pair.clone()))),
                    Command::Pair(PairCommand::Refused(reply)) => {
                        drop(reply.send(Ok(answers.pair_refused.clone())));
                    }
                    Command::Pair(PairCommand::Link(reply)) => drop(reply.send(Ok(answers.link.clone()))),
                    Command::Bgp(reply) => drop(reply.send(Ok(answers.bgp.clone()))),
                    Command::Fleet(FleetCommand::Status(reply)) => {
                        drop(reply.send(Ok(answers.fleet.clone())));
                    }
                    other => panic!("a scrape must not send {other:?}"),
                }
            }
        });
        let found = commands.snapshot().await.unwrap();
        assert!(found.process.is_some());
        assert_eq!(Snapshot { process: expected.process, ..found }, expected);
        drop(commands);
        daemon.await.unwrap();
    }

    #[tokio::test]
    async fn a_stopped_or_failing_loop_is_an_error() {
        let (commands, mut inbox) = mpsc::channel(1);
        let failing = CommandError::Failed("map lookup: EBADF".to_owned());
        let error = failing.clone();
        let daemon = tokio::spawn(async move {
            let Some(Command::Status(reply)) = inbox.recv().await else { panic!("expected Status") };
            reply.send(Err(error)).unwrap();
            drop(inbox.recv().await);
        });
        assert_eq!(commands.snapshot().await, Err(SnapshotError::Failed(failing)));
        assert_eq!(commands.snapshot().await, Err(SnapshotError::Stopped), "the reply was dropped");
        daemon.await.unwrap();
        assert_eq!(commands.snapshot().await, Err(SnapshotError::Stopped), "the loop is gone");
    }

    #[test]
    fn an_interface_without_the_program_is_unhealthy() {
        let mut snapshot = sample::snapshot();
        assert_eq!(unhealthy(&snapshot.status), None, "a warning about generic mode is no failure");
        snapshot.status.interfaces[1].mode = "detached".to_owned();
        snapshot.status.interfaces[1].warning = Some("the interface is gone".to_owned());
        assert_eq!(
            unhealthy(&snapshot.status).as_deref(),
            Some("the program is not attached to eth1: the interface is gone")
        );
        snapshot.status.interfaces.clear();
        assert_eq!(unhealthy(&snapshot.status).as_deref(), Some("the program is attached to no interface"));
    }
}
