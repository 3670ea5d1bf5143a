//! Backends that are known by a name.

use super::BackendName;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// What is asked of DNS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Query {
    /// Addresses of a host: A and AAAA records.
    Host(String),
    /// Hosts of a service with their ports and weights: SRV records, and the addresses of what they name.
    Srv(String),
}

/// A backend, or several, known by a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSpec {
    /// What the backends are called, with their address behind it.
    pub name: BackendName,
    pub query: Query,
    /// IPv4 and IPv6 addresses are taken.
    pub families: (bool, bool),
    pub port: Option<u16>,
    /// `None`: 100, or what an SRV record says.
    pub weight: Option<u16>,
    /// They stand in for the others.
    pub backup: bool,
    /// The backends that were made of it last.
    pub made: Vec<BackendName>,
}

/// An address that a name has, or had a short while ago.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Found {
    pub address: IpAddr,
    /// Of an SRV record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Of an SRV record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

/// Longest name of a backend that is known by a name: its address comes behind it.
pub const MAX_NAMED: usize = 23;

impl NamedSpec {
    /// The backend of an address: the same whenever the address is the same.
    pub fn backend(&self, address: IpAddr) -> Option<BackendName> {
        format!("{}-{}", self.name, address.to_string().replace(':', "-")).parse().ok()
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => f.write_str(name),
            Self::Srv(name) => write!(f, "SRV {name}"),
        }
    }
}
