//! The families of passive health checks.

use super::{
    encode::{counters, gauges},
    families,
    source::Snapshot,
};
use crate::control::passive::PassiveView;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

pub(super) fn encode(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let views = || {
        snapshot
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(move |backend| (service.name.as_str(), backend)))
    };
    let rows = |value: fn(&PassiveView) -> u64| {
        views().filter_map(move |(service, backend)| {
            Some(([service, backend.name.as_str()], value(backend.passive.as_ref()?)))
        })
    };
    gauges(encoder, &families::BACKEND_EJECTED, rows(|view| view.ejected.is_some().into()))?;
    counters(encoder, &families::BACKEND_SYNS, rows(|view| view.connections))?;
    counters(encoder, &families::BACKEND_WATCHED_SYNS, rows(|view| view.watched))?;
    counters(encoder, &families::BACKEND_SYN_REPEATS, rows(|view| view.syn_repeats))?;
    let resets = views().filter_map(|(service, backend)| {
        let view = backend.passive.as_ref()?;
        let name = backend.name.as_str();
        Some([([service, name, "handshake"], view.refused), ([service, name, "established"], view.resets)])
    });
    counters(encoder, &families::BACKEND_RESETS, resets.flatten())
}
