//! The engine's own numbers: what held the loop, what changes took, how full the tables are.

use super::{engine::Engine, error::EngineError};
use crate::{
    control::api::TableView,
    metrics::TableEntries,
    plan::{Action, Flow},
};
use std::time::{Duration, Instant};

impl Engine {
    /// Makes the kernel what configuration, changes, health and next hops ask for.
    pub fn converge(&mut self) -> Result<Vec<Action>, EngineError> {
        let begun = Instant::now();
        let result = self.carry_out();
        self.converged(begun.elapsed(), result.as_deref().ok());
        result
    }

    /// Counts a change of the maps; `None` for one that failed.
    pub(super) fn converged(&mut self, took: Duration, actions: Option<&[Action]>) {
        self.instruments.pulse.converged(took, actions);
    }

    /// Does a piece of the loop's work and takes the time.
    pub(super) fn timed<T>(&mut self, work: &'static str, piece: impl FnOnce(&mut Self) -> T) -> T {
        let begun = Instant::now();
        let result = piece(self);
        self.instruments.pulse.work.observe(work, begun.elapsed());
        result
    }

    /// Use and room of the tables that hold something for each flow.
    pub(super) fn tables(&self) -> Vec<TableView> {
        let TableEntries { flows_ipv4, flows_ipv6, half_open_ipv4, half_open_ipv6 } =
            self.instruments.pulse.tables();
        let sessions = self.nat.living.values().map(|counts| counts.living).sum();
        let room = self.config.flows;
        [
            ("flows_ipv4", flows_ipv4, room.max_flows),
            ("flows_ipv6", flows_ipv6, room.max_flows),
            ("half_open_ipv4", half_open_ipv4, room.max_half_open),
            ("half_open_ipv6", half_open_ipv6, room.max_half_open),
            ("nat_sessions", sessions, room.max_sessions),
        ]
        .map(|(name, entries, capacity)| TableView {
            name: name.to_owned(),
            entries,
            capacity: capacity.into(),
        })
        .into()
    }

    /// Counts what a walk through the flow tables met.
    pub(super) fn note_tables<H, F>(&self, half_open: &[(Flow, H)], flows: &[(Flow, F)]) {
        let ipv4 = |flow: &Flow| matches!(flow, Flow::V4(_));
        let half4 = half_open.iter().filter(|(flow, _)| ipv4(flow)).count();
        let flows4 = flows.iter().filter(|(flow, _)| ipv4(flow)).count();
        self.instruments.pulse.set_tables(TableEntries {
            flows_ipv4: flows4 as u64,
            flows_ipv6: (flows.len() - flows4) as u64,
            half_open_ipv4: half4 as u64,
            half_open_ipv6: (half_open.len() - half4) as u64,
        });
    }
}
