//! The families of the BFD sessions.

use super::{
    encode::{counters, gauges},
    families,
    source::Snapshot,
};
use crate::{bfd::packet::State, control::pair::BfdView};
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

pub(super) fn encode(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let sessions = &snapshot.bfd.sessions;
    let states = sessions.iter().flat_map(|view| {
        State::ALL.map(|state| ([view.name.as_str(), state.name()], u64::from(view.state == state.name())))
    });
    gauges(encoder, &families::BFD_STATE, states)?;
    let transitions = sessions.iter().flat_map(|view| {
        view.transitions.iter().map(|(state, count)| ([view.name.as_str(), state.as_str()], *count))
    });
    counters(encoder, &families::BFD_TRANSITIONS, transitions)?;
    let rows =
        |value: fn(&BfdView) -> u64| sessions.iter().map(move |view| ([view.name.as_str()], value(view)));
    counters(encoder, &families::BFD_SENT, rows(|view| view.packets_sent))?;
    counters(encoder, &families::BFD_RECEIVED, rows(|view| view.packets_received))?;
    let refused = snapshot.bfd.refused.iter().map(|row| ([row.reason.as_str()], row.packets));
    counters(encoder, &families::BFD_REFUSED, refused)
}
