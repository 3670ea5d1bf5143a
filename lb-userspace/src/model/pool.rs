//! What a service does when backends are missing.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// When a service counts as up, who stands in, and what clients are told when nobody does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Healthy primaries that bring the service up, at least `quorum_down`.
    pub quorum_up: u32,
    /// With fewer healthy primaries the service is down; at least 1.
    pub quorum_down: u32,
    /// Panic with a smaller share of healthy primaries than this, in percent; 0 = never.
    pub panic_threshold: u8,
    pub on_all_down: OnAllDown,
    /// Told of changes of this service and its backends, besides the global ones.
    pub notify: Vec<HookSpec>,
}

impl Default for PoolSpec {
    /// Up with one healthy backend; what nobody serves is dropped.
    fn default() -> Self {
        Self {
            quorum_up: 1,
            quorum_down: 1,
            panic_threshold: 0,
            on_all_down: OnAllDown::Drop,
            notify: Vec::new(),
        }
    }
}

/// What becomes of packets that no backend takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnAllDown {
    /// The client waits.
    Drop,
    /// The client is told: a TCP reset, an ICMP "port unreachable".
    Reject,
}

/// A command told of changes of state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HookSpec {
    /// Absolute path and arguments.
    pub command: Vec<String>,
    /// It is ended when it takes longer.
    pub timeout: Duration,
    /// Who runs it.
    pub user: String,
}

/// What a service is as a whole: up with a quorum of healthy primaries, else down; and who serves it where that is not
/// its healthy primaries (up) or nobody (down).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    #[default]
    Up,
    /// Up, but so few primaries are healthy that all enabled ones are used.
    UpPanic,
    /// Nobody takes new flows.
    Down,
    /// Backups take new flows.
    DownBackup,
    /// All enabled primaries are used, healthy or not.
    DownPanic,
    /// The primaries that are healthy take new flows, though they are no quorum.
    DownDegraded,
}

impl ServiceState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Up, Self::UpPanic, Self::Down, Self::DownBackup, Self::DownPanic, Self::DownDegraded];

    /// Has the service its quorum?
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::UpPanic)
    }

    /// Are all enabled primaries used, healthy or not?
    #[must_use]
    pub fn is_panic(self) -> bool {
        matches!(self, Self::UpPanic | Self::DownPanic)
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::UpPanic => "up-panic",
            Self::Down => "down",
            Self::DownBackup => "down-backup",
            Self::DownPanic => "down-panic",
            Self::DownDegraded => "down-degraded",
        })
    }
}

impl fmt::Display for OnAllDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
        })
    }
}
