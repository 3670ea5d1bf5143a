//! The families of the pair.

use super::{
    encode::{counters, gauges},
    families,
    source::Snapshot,
};
use crate::{control::pair::PairView, vrrp::PHASES};
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

pub(super) fn encode(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let each = |view: &'_ PairView, state: &str| u64::from(view.state == state);
    let states = snapshot
        .pair
        .iter()
        .flat_map(|view| PHASES.map(|phase| ([view.name.as_str(), phase.name()], each(view, phase.name()))));
    gauges(encoder, &families::VRRP_STATE, states)?;
    let transitions = snapshot.pair.iter().flat_map(|view| {
        view.transitions.iter().map(|(state, count)| ([view.name.as_str(), state.as_str()], *count))
    });
    counters(encoder, &families::VRRP_TRANSITIONS, transitions)?;
    let rows = |value: fn(&PairView) -> u64| {
        snapshot.pair.iter().map(move |view| ([view.name.as_str()], value(view)))
    };
    gauges(encoder, &families::VRRP_PRIORITY, rows(|view| view.effective_priority.into()))?;
    gauges(encoder, &families::VRRP_FAULTS, rows(|view| view.faults.len() as u64))?;
    counters(encoder, &families::VRRP_SENT, rows(|view| view.adverts_sent))?;
    counters(encoder, &families::VRRP_RECEIVED, rows(|view| view.adverts_received))?;
    counters(encoder, &families::VRRP_SPLIT_BRAINS, rows(|view| view.split_brains))?;
    counters(encoder, &families::VRRP_CLAIMS, rows(|view| view.address_claims))?;
    let leases = snapshot.pair.iter().map(|view| ([view.name.as_str()], view.lease));
    gauges(encoder, &families::VRRP_LEASE, leases)?;
    let refused = snapshot.pair_refused.iter().map(|row| ([row.reason.as_str()], row.packets));
    counters(encoder, &families::VRRP_REFUSED, refused)
}
