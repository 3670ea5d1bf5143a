//! What a virtual router watches besides its own interface: `track_*` of `[[vrrp]]`, and what that names.

use super::{ServiceName, VrrpName};
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// Something that is watched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tracked<N = String> {
    pub name: N,
    /// Taken off the priority while it is missing; 0 is a fault.
    pub weight: u8,
}

/// A file whose number counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrackedFile {
    pub name: VrrpName,
    /// Its number times this is added to the priority; where it is 0, a number other than 0 is a fault.
    pub weight: i16,
}

/// What a virtual router watches besides interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackSpec {
    pub scripts: Vec<Tracked<VrrpName>>,
    pub files: Vec<TrackedFile>,
    /// Services that have no quorum.
    pub services: Vec<Tracked<ServiceName>>,
    /// Taken off while the program is not on every interface, 0 for a fault; none: it does not matter.
    pub xdp: Option<u8>,
    /// Taken off while the peer's configuration is another one.
    pub peer_config: Option<u8>,
    /// Sessions that tell when the master is gone.
    pub bfd: Vec<VrrpName>,
}

impl Default for TrackSpec {
    fn default() -> Self {
        Self {
            scripts: Vec::new(),
            files: Vec::new(),
            services: Vec::new(),
            xdp: Some(0),
            peer_config: None,
            bfd: Vec::new(),
        }
    }
}

/// `[[vrrp_group]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    pub name: VrrpName,
    /// Two at least.
    pub members: Vec<VrrpName>,
}

/// `[[vrrp_script]]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScriptSpec {
    pub name: VrrpName,
    /// Absolute path and arguments.
    pub command: Vec<String>,
    /// From the start of one run to that of the next; one that takes longer delays it.
    pub interval: Duration,
    /// It is ended, and counts as failed, when it takes longer.
    pub timeout: Duration,
    /// Successes in a row that bring it up.
    pub rise: u8,
    /// Failures in a row that bring it down.
    pub fall: u8,
    /// Who runs it.
    pub user: String,
    /// What it counts as before it has said anything.
    pub initial_up: bool,
    /// For those who track it without a weight of their own.
    pub weight: u8,
}

/// `[[vrrp_file]]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileSpec {
    pub name: VrrpName,
    pub path: PathBuf,
    /// For those who track it without a weight of their own.
    pub weight: i16,
}

/// `[[bfd]]`: a session with another node (RFC 5881).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BfdSpec {
    pub name: VrrpName,
    pub peer: IpAddr,
    /// This node's address, of the same family.
    pub local: IpAddr,
    /// Between two packets, either way (Desired Min TX Interval, Required Min RX Interval).
    pub interval: Duration,
    /// Packets that may be missed (Detect Mult).
    pub multiplier: u8,
}

/// What belongs to the virtual routers, of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairSpec {
    pub groups: Vec<GroupSpec>,
    pub scripts: Vec<ScriptSpec>,
    pub files: Vec<FileSpec>,
    pub bfd: Vec<BfdSpec>,
}
