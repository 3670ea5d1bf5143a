//! A backend and its three states: administrative, health, weight.

use super::BackendName;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// Largest weight of a backend.
pub const MAX_WEIGHT: u16 = 65_535;

/// Weight of a backend where none is given.
pub const DEFAULT_WEIGHT: u16 = 100;
/// Most backends of one service.
pub const MAX_BACKENDS: usize = 4096;

/// A backend as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    pub name: BackendName,
    pub address: IpAddr,
    /// The port it listens on where that is not the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share of new flows, relative to the other backends' weights; 0 takes none.
    pub weight: u16,
    /// It takes new flows only while the others are no quorum.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
}

/// What the operator wants of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    #[default]
    Enabled,
    /// No new flows; established ones go on.
    Draining,
    /// No packets at all; established flows end.
    Disabled,
}

/// What the health checks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Passed `rise` checks in a row, or is not checked.
    Up,
    /// Failed `fall` checks in a row.
    Down,
    /// Not decided yet; counts as up.
    #[default]
    Unknown,
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
        })
    }
}
