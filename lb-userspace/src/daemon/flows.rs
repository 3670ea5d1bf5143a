//! The shell around [`crate::plan::Tracking`]: reads the clocks and the flow table, carries out what it asks for.

use super::engine::Engine;
pub(super) use crate::dataplane::monotonic_ns;
use crate::{
    dataplane::DataplaneError,
    plan::{Action, Image, Walk},
};
use lb_common::abi::ServiceEntry;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Between two walks through the flow table.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// The same while somebody waits for the end of a drain: what is forgotten is what it waits for.
const WATCHED_INTERVAL: Duration = Duration::from_millis(900);

/// When the flow table was looked at, and what it said.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// Flows that found no room since the maps were made.
    refused: u64,
    scanned: Option<Instant>,
    /// Somebody watches flows end: until then walks follow each other closely.
    pub(super) watched_until: Option<Instant>,
    /// By backend: flows and handshakes at the last walk.
    pub(super) on: BTreeMap<u32, u64>,
    /// By backend: by how much the count of its open flows was off at the last walk.
    off: BTreeMap<u32, i64>,
}

impl Engine {
    /// Before any id is given out: entries that name a backend of which nothing is left would else become entries of
    /// whoever gets its id.
    pub(super) fn forget_strangers(&mut self) -> Result<(), DataplaneError> {
        self.rounds.refused = self.kernel.maps().flow_stats()?.refused;
        let walk = self.read_flows()?;
        self.kernel.forget(&walk)?;
        self.sweep_sessions(monotonic_ns())
    }

    /// Handshakes first: one that is confirmed meanwhile is met among the flows.
    pub(super) fn read_flows(&self) -> Result<Walk, DataplaneError> {
        let half_open = self.kernel.maps().half_open()?;
        let flows = self.kernel.maps().flows()?;
        self.note_tables(&half_open, &flows);
        Ok(self.tracking.walk(&self.image, half_open, flows, monotonic_ns()))
    }

    /// One round, every second.
    pub(super) fn tend_flows(&mut self, now: Instant) {
        if let Err(error) = self.try_tend(now) {
            tracing::error!(%error, "could not look after the tracked flows");
        }
    }

    fn try_tend(&mut self, now: Instant) -> Result<(), DataplaneError> {
        self.tend_words(now);
        let refused = self.kernel.maps().flow_stats()?.refused;
        if refused != self.rounds.refused {
            let refused_now = refused.saturating_sub(self.rounds.refused);
            tracing::warn!(
                refused = refused_now,
                "flows found no room in the flow tables; slots settle later for it (see max_flows and max_half_open)"
            );
            self.rounds.refused = refused;
            self.tracking.note_refused(now);
        }
        let settled = self.tracking.settle(&self.image, now);
        self.change_slots(&settled)?;
        let watched = self.rounds.watched_until.is_some_and(|until| now < until);
        let interval = if watched { WATCHED_INTERVAL } else { SCAN_INTERVAL };
        let due = self.rounds.scanned.is_none_or(|at| now.duration_since(at) >= interval);
        if due && (self.tracking.is_busy(&self.image) || self.has_sessions()) {
            self.scan(now)?;
            self.rounds.scanned = Some(now);
        }
        Ok(())
    }

    /// Walks through the flow table: forgets what is over, and finds the tracked slots that need it no more.
    fn scan(&mut self, now: Instant) -> Result<(), DataplaneError> {
        let walk = self.read_flows()?;
        self.kernel.forget(&walk)?;
        self.put_counts_right(&walk);
        self.sweep_sessions(monotonic_ns())?;
        let cleared = self.tracking.clear(&self.image, &walk, now);
        self.change_slots(&cleared)?;
        self.tracking.walked(&walk, now);
        self.rounds.on = walk.on;
        Ok(())
    }

    /// The program and [`Kernel::forget`](crate::dataplane::Kernel::forget) count the open flows of least-connections
    /// services one by one; what they missed, two walks in a row agree on.
    fn put_counts_right(&mut self, walk: &Walk) {
        let mut off = BTreeMap::new();
        for (id, record) in &self.image.backends {
            let service = self.image.services.get(&record.entry.service);
            if service.is_none_or(|s| s.entry.flags & ServiceEntry::LEAST_CONNECTIONS == 0) {
                continue;
            }
            let now = walk.active.get(id).copied().unwrap_or(0) - self.kernel.maps().active(*id);
            let before = self.rounds.off.get(id).copied().unwrap_or(0);
            let by =
                if now.signum() == before.signum() { now.abs().min(before.abs()) * now.signum() } else { 0 };
            if by != 0 {
                tracing::debug!(backend = id, by, "the count of open flows was off");
                self.kernel.maps().adjust_active(*id, by);
            }
            off.insert(*id, now - by);
        }
        self.rounds.off = off;
    }

    pub(super) fn change_slots(&mut self, actions: &[Action]) -> Result<(), DataplaneError> {
        if actions.is_empty() {
            return Ok(());
        }
        for action in actions {
            tracing::debug!(%action, "slots settle");
        }
        self.kernel.execute(actions)?;
        // Rings alone change, and few of them.
        let rings = |image: &Image| {
            let ring = |action: &Action| match action {
                Action::Slots { service, .. } => Some((*service, image.rings.get(service)?.clone())),
                _ => None,
            };
            Image { rings: actions.iter().filter_map(ring).collect(), ..Image::default() }
        };
        let before = rings(&self.image);
        for action in actions {
            self.image.apply(action);
        }
        self.mirror.changed();
        self.tracking.note_part(&before, &rings(&self.image), Instant::now());
        Ok(())
    }
}
