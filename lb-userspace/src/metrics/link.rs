//! The families of the sync link.

use super::{
    encode::{counters, gauges},
    families,
    source::Snapshot,
};
use crate::control::link::PeerView;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

pub(super) fn encode(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Some(link) = &snapshot.link else { return Ok(()) };
    let rows =
        |value: fn(&PeerView) -> u64| link.peers.iter().map(move |peer| ([peer.name.as_str()], value(peer)));
    gauges(encoder, &families::SYNC_CONNECTED, rows(|_| 1))?;
    gauges(encoder, &families::SYNC_WAITING, [([], link.waiting.len() as u64)])?;
    let both = link.peers.iter().flat_map(|peer| {
        let name = peer.name.as_str();
        [([name, "sent"], peer.sent_bytes), ([name, "received"], peer.received_bytes)]
    });
    counters(encoder, &families::SYNC_BYTES, both)?;
    gauges(encoder, &families::SYNC_QUEUED, rows(|peer| peer.queued_bytes))?;
    let rtt = link.peers.iter().filter_map(|peer| Some(([peer.name.as_str()], peer.rtt_seconds?)));
    gauges(encoder, &families::SYNC_RTT, rtt)?;
    let told = link.peers.iter().filter(|peer| !peer.services_hash.is_empty());
    let differs = told.map(|peer| ([peer.name.as_str()], u64::from(!peer.same_services)));
    gauges(encoder, &families::SYNC_DIFFERS, differs)?;
    let beating = link.peers.iter().filter_map(|peer| Some(([peer.name.as_str()], u64::from(peer.beating?))));
    gauges(encoder, &families::SYNC_BEATING, beating)?;
    let rejected = link.rejected.iter().map(|row| ([row.reason.as_str()], row.packets));
    counters(encoder, &families::SYNC_REJECTED, rejected)
}
