//! What can be seen of the sessions from outside their thread.

use super::packet::{Diagnostic, Refusal, State};
use crate::model::BfdSpec;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

/// A session as it is.
#[derive(Debug, Clone)]
pub struct SessionView {
    pub spec: BfdSpec,
    pub state: State,
    pub diagnostic: Diagnostic,
    pub since: SystemTime,
    /// Why there is no socket, if there is none.
    pub trouble: Option<String>,
    pub counters: Arc<Counters>,
}

/// Of a session, since the start of the daemon.
#[derive(Debug, Default)]
pub struct Counters {
    pub sent: AtomicU64,
    /// Packets that passed all checks.
    pub received: AtomicU64,
    transitions: [AtomicU64; State::ALL.len()],
}

impl Counters {
    pub(super) fn entered(&self, state: State) {
        self.transitions[state as usize].fetch_add(1, Relaxed);
    }

    /// How often each state was entered.
    pub fn transitions(&self) -> impl Iterator<Item = (State, u64)> {
        State::ALL.into_iter().zip(&self.transitions).map(|(state, count)| (state, count.load(Relaxed)))
    }
}

/// Packets of no effect, by reason: whose they were nobody can tell.
#[derive(Debug, Default)]
pub struct Refused([AtomicU64; Refusal::LABELS.len()]);

impl Refused {
    pub(super) fn count(&self, refusal: &Refusal) {
        self.0[refusal.number()].fetch_add(1, Relaxed);
    }

    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::LABELS.into_iter().zip(&self.0).map(|(label, count)| (label, count.load(Relaxed)))
    }
}
