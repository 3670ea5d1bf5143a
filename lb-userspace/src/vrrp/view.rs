//! What can be seen of the virtual routers from outside their thread.

use super::{
    Missing,
    fsm::{Cause, Phase},
    packet::Refusal,
    timing::master_down,
};
use crate::{dataplane::LeaseWord, model::VrrpSpec};
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

/// A virtual router as it is.
#[derive(Debug, Clone)]
pub struct RouterView {
    pub spec: Arc<VrrpSpec>,
    pub phase: Phase,
    /// In force, tracking included.
    pub priority: u8,
    /// The master that a backup hears, and its priority.
    pub master: Option<(IpAddr, u8)>,
    pub since: SystemTime,
    /// Why it is in this state.
    pub cause: Cause,
    /// What is missing.
    pub missing: Vec<Missing>,
    pub held: bool,
    /// It handed over, and leaves the new master alone.
    pub yielded: bool,
    /// It lacks the peer's state, and so leaves a living master alone.
    pub gated: bool,
    /// The node's own addresses on the router's interface that have a scope beyond it.
    pub own: Vec<IpAddr>,
    pub counters: Arc<Counters>,
    /// Until when the dataplane answers without the daemon.
    pub lease: Option<LeaseWord>,
    /// Whom a master's advertisements cannot be sent to, and why.
    pub unsent: Option<String>,
}

impl RouterView {
    /// How long after a farewell that nobody answers this node is master again.
    pub fn returns(&self) -> Duration {
        let spec = &self.spec;
        master_down(spec.version, self.priority, spec.advert_interval, spec.down_adverts)
    }
}

/// Counted since the start of the daemon.
#[derive(Debug, Default)]
pub struct Counters {
    pub sent: AtomicU64,
    pub sent_zero: AtomicU64,
    pub received: AtomicU64,
    pub received_zero: AtomicU64,
    /// Advertisements of lower priority that came while this node was master, and what the peer says by other ways.
    pub split_brains: AtomicU64,
    /// Claims of others to addresses of this node, while it was master.
    pub claims: AtomicU64,
    transitions: [AtomicU64; 4],
    phase: AtomicU8,
}

/// In the order of the counters.
pub const PHASES: [Phase; 4] = [Phase::Init, Phase::Backup, Phase::Master, Phase::Fault];

impl Counters {
    /// The state before a change to `next`.
    pub(super) fn last_phase(&self, next: Phase) -> Phase {
        PHASES[usize::from(self.phase.swap(next as u8, Relaxed)) % PHASES.len()]
    }

    pub(super) fn entered(&self, phase: Phase) {
        self.transitions[phase as usize].fetch_add(1, Relaxed);
    }

    /// How often each state was entered.
    pub fn transitions(&self) -> impl Iterator<Item = (Phase, u64)> {
        PHASES.into_iter().zip(&self.transitions).map(|(phase, count)| (phase, count.load(Relaxed)))
    }
}

/// Packets of no effect, by reason.
#[derive(Debug, Default)]
pub struct Refused([AtomicU64; Refusal::LABELS.len()]);

impl Refused {
    pub(super) fn count(&self, label: &str) {
        if let Some(at) = Refusal::LABELS.iter().position(|known| *known == label) {
            self.0[at].fetch_add(1, Relaxed);
        }
    }

    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::LABELS.into_iter().zip(&self.0).map(|(label, count)| (label, count.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_in_the_order_of_their_numbers() {
        for (at, phase) in PHASES.into_iter().enumerate() {
            assert_eq!(phase as usize, at);
        }
        let counters = Counters::default();
        assert_eq!(counters.last_phase(Phase::Backup), Phase::Init);
        assert_eq!(counters.last_phase(Phase::Master), Phase::Backup);
        counters.entered(Phase::Master);
        let expected = [(Phase::Init, 0), (Phase::Backup, 0), (Phase::Master, 1), (Phase::Fault, 0)];
        assert_eq!(counters.transitions().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let refused = Refused::default();
        refused.count(Refusal::OwnAddress.label());
        let counted: Vec<_> = refused.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("own_address", 1)]);
    }
}
