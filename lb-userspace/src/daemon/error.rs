//! What can go wrong in the daemon.

use crate::{
    config::ConfigError,
    control::{command::CommandError, socket::BindError},
    dataplane::DataplaneError,
    metrics,
    net::{
        NetError,
        bpffs::BpffsError,
        caps::{CapsError, MissingCapabilities},
    },
    plan::BuildError,
    state::{ChangeError, ChangeErrorKind, StateError},
};
use std::{io, path::PathBuf};

/// A change was not carried out; everything is as before.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Change(#[from] ChangeError),
    #[error("{0}")]
    State(#[from] StateError),
    #[error("{0}")]
    Dataplane(#[from] DataplaneError),
    #[error("{0}")]
    Build(#[from] BuildError),
    #[error("{prefix}: {error}")]
    Prefix { prefix: ipnet::IpNet, error: crate::model::PrefixError },
    #[error(
        "{plan}; that is more of service '{service}' than max_disruption = \"{allowed}%\" allows: do it in smaller steps \
         (weight --over, drain), or say --force"
    )]
    Disruption { service: String, plan: String, allowed: u8 },
    #[error("{0}")]
    Tls(crate::control::tls::TlsError),
    #[error("{0}")]
    Via(#[from] crate::health::ViaError),
    #[error("{0}")]
    Save(#[from] super::save::SaveFailure),
    #[error("the VRRP threads could not be started: {0}")]
    Vrrp(std::io::Error),
    #[error("the sync link: {0}")]
    Link(std::io::Error),
    #[error("cannot announce addresses to a routing daemon: {0}")]
    Announce(std::io::Error),
    #[error("the thread that asks etcd could not be started: {0}")]
    Fleet(std::io::Error),
    #[error("{0}")]
    Pair(crate::vrrp::RequestError),
    #[error(
        "{key} is {found} in the file and {running} in the running daemon, and takes effect only at a start: restart lbd (forwarding goes on meanwhile)"
    )]
    NeedsRestart { key: &'static str, found: String, running: String },
}

impl From<EngineError> for CommandError {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::Config(_) | EngineError::Prefix { .. } | EngineError::Tls(_) => Self::Invalid(text),
            EngineError::Change(error) => match error.kind() {
                ChangeErrorKind::NotFound => Self::NotFound(text),
                ChangeErrorKind::Invalid => Self::Invalid(text),
                ChangeErrorKind::Conflict => Self::Conflict(text),
            },
            EngineError::NeedsRestart { .. } | EngineError::Disruption { .. } | EngineError::Save(_) => {
                Self::Conflict(text)
            }
            EngineError::State(_)
            | EngineError::Dataplane(_)
            | EngineError::Build(_)
            | EngineError::Via(_)
            | EngineError::Vrrp(_)
            | EngineError::Link(_)
            | EngineError::Announce(_)
            | EngineError::Fleet(_)
            | EngineError::Pair(_) => Self::Failed(text),
        }
    }
}

/// The daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Usage or configuration: exit status 2.
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Log(#[from] crate::telemetry::log::LogError),
    #[error("{0}")]
    Caps(#[from] CapsError),
    #[error("{0}")]
    Missing(#[from] MissingCapabilities),
    #[error("{0}")]
    Bpffs(#[from] BpffsError),
    #[error("{0}")]
    Socket(#[from] BindError),
    #[error("{0}")]
    Metrics(#[from] metrics::BindError),
    #[error("{0}")]
    Tls(#[from] crate::control::tls::TlsError),
    #[error("{0}")]
    Net(#[from] NetError),
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("{pin_dir} is in use by another lbd; stop it, or name another pin_dir")]
    PinDirInUse { pin_dir: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl StartError {
    /// Exit status: 2 for usage and configuration, else 1.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Log(_) | Self::Tls(_) | Self::Engine(EngineError::Config(_)) => 2,
            _ => 1,
        }
    }
}
