//! What is seen of the link from outside.

use super::wire::{InstanceStatus, Status};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

/// Why something that came had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A handshake by none of the keys.
    Key,
    /// A record that was changed on its way, or recorded and sent again.
    Corrupt,
    Oversize,
    Truncated,
    Malformed,
    /// A handshake that did not end in time.
    Timeout,
    Version,
    /// A connection to this node itself.
    Itself,
    /// More handshakes at once than there may be.
    Busy,
    /// A heartbeat by none of the keys.
    Beat,
    /// A heartbeat that came before.
    BeatReplayed,
}

impl Reason {
    pub const ALL: [Self; 11] = [
        Self::Key,
        Self::Corrupt,
        Self::Oversize,
        Self::Truncated,
        Self::Malformed,
        Self::Timeout,
        Self::Version,
        Self::Itself,
        Self::Busy,
        Self::Beat,
        Self::BeatReplayed,
    ];

    /// For the metric.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Corrupt => "corrupt",
            Self::Oversize => "oversize",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::Timeout => "timeout",
            Self::Version => "version",
            Self::Itself => "itself",
            Self::Busy => "busy",
            Self::Beat => "heartbeat",
            Self::BeatReplayed => "heartbeat_replayed",
        }
    }
}

/// Counted since the start of the daemon.
#[derive(Debug, Default)]
pub struct Rejected([AtomicU64; Reason::ALL.len()]);

impl Rejected {
    pub(super) fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Relaxed);
    }

    /// By reason.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.into_iter().map(|reason| (reason.label(), self.0[reason as usize].load(Relaxed)))
    }
}

/// Of one connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Nanoseconds of the last ping's way there and back; 0: none yet.
    pub rtt: AtomicU64,
}

/// A peer that is connected.
#[derive(Debug, Clone)]
pub struct PeerState {
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub since: SystemTime,
    pub software: String,
    /// Of the protocol.
    pub version: u16,
    /// Name of the key in use.
    pub key: String,
    pub status: Status,
    /// Bytes since the daemon's start, by all connections to it.
    pub sent: u64,
    pub received: u64,
    /// Bytes of frames that wait to be sent.
    pub queued: u64,
    pub rtt: Option<Duration>,
    /// Whether its heartbeats come; `None`: they are switched off.
    pub beating: Option<bool>,
}

/// The link as it is.
#[derive(Debug, Clone, Default)]
pub struct LinkView {
    pub peers: Vec<PeerState>,
    /// Addresses of the configuration that lead to no connected peer, and why, as far as it is known.
    pub waiting: Vec<(SocketAddr, String)>,
}

/// Who would take over an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Successor {
    Fit,
    /// This peer is there and would not.
    Unfit(Arc<str>, Unfit),
    /// No peer is connected.
    NoPeer,
    /// None of the peers has an instance of that name.
    NoInstance,
}

/// Why a peer that is there does not take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    Held,
    Fault,
    /// It lacks the master's state.
    Gated,
    /// Its instance does not run.
    Stopped,
}

impl Successor {
    /// `peers`: how many are connected. `instances`: of those that have it, with the peer's name.
    pub(super) fn among(peers: usize, instances: impl Iterator<Item = (Arc<str>, InstanceStatus)>) -> Self {
        let mut found = if peers == 0 { Self::NoPeer } else { Self::NoInstance };
        for (peer, instance) in instances {
            let why = match instance.state.as_str() {
                "held" => Unfit::Held,
                "fault" => Unfit::Fault,
                "init" => Unfit::Stopped,
                "backup" if instance.gated => Unfit::Gated,
                // Master already, or what a later version calls it.
                _ => return Self::Fit,
            };
            if !matches!(found, Self::Unfit(..)) {
                found = Self::Unfit(peer, why);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fit_peer_is_a_successor() {
        let told = |name: &str, state: &str, gated| {
            let instance = InstanceStatus { state: state.to_owned(), priority: 100, gated, own: Vec::new() };
            (Arc::from(name), instance)
        };
        let among =
            |peers, told: &[(Arc<str>, InstanceStatus)]| Successor::among(peers, told.iter().cloned());
        assert_eq!(among(0, &[]), Successor::NoPeer);
        assert_eq!(among(1, &[]), Successor::NoInstance);
        assert_eq!(among(1, &[told("b", "backup", false)]), Successor::Fit);
        assert_eq!(among(1, &[told("b", "master", false)]), Successor::Fit);
        for (state, gated, why) in [
            ("held", false, Unfit::Held),
            ("held", true, Unfit::Held),
            ("fault", true, Unfit::Fault),
            ("init", false, Unfit::Stopped),
            ("backup", true, Unfit::Gated),
        ] {
            let one = told("b", state, gated);
            assert_eq!(among(1, std::slice::from_ref(&one)), Successor::Unfit("b".into(), why));
            assert_eq!(among(2, &[one.clone(), told("c", "backup", false)]), Successor::Fit);
            assert_eq!(among(2, &[one, told("c", "held", false)]), Successor::Unfit("b".into(), why));
        }
    }

    #[test]
    fn reasons_are_in_the_order_of_their_numbers() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
        let rejected = Rejected::default();
        rejected.count(Reason::Busy);
        let counted: Vec<_> = rejected.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("busy", 1)]);
    }
}
