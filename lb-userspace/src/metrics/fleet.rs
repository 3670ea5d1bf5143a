//! The families of the fleet, and of what has to be the same on all its nodes.

use super::{
    encode::{counters, gauge, gauges},
    families,
    source::Snapshot,
};
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

pub(super) fn encode(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let fleet = &snapshot.fleet;
    let rings: Vec<_> =
        fleet.rings.iter().map(|ring| (ring.service.as_str(), ring.seed.to_string(), ring.size)).collect();
    let rings = rings.iter().map(|(service, seed, size)| ([*service, seed.as_str()], u64::from(*size)));
    gauges(encoder, &families::RING, rings)?;
    if !fleet.configured {
        return Ok(());
    }
    gauge(encoder, &families::FLEET_CONNECTED, &u64::from(fleet.endpoint.is_some()))?;
    gauge(encoder, &families::FLEET_GENERATION, &fleet.generation.unwrap_or(0))?;
    gauge(encoder, &families::FLEET_STORED, &fleet.stored_generation.unwrap_or(0))?;
    let documents = [(["applied"], fleet.applied), (["refused"], fleet.refusals)];
    counters(encoder, &families::FLEET_DOCUMENTS, documents)?;
    gauge(encoder, &families::FLEET_REFUSING, &u64::from(fleet.refused.is_some()))?;
    gauge(encoder, &families::FLEET_AUTHORITY, &u64::from(fleet.authority.mine))?;
    gauge(encoder, &families::FLEET_EPOCH, &fleet.authority.epoch)?;
    gauge(encoder, &families::FLEET_NODES, &(fleet.nodes.len() as u64))
}
