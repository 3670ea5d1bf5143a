//! The family of `[bgp]`.

use super::{encode::gauges, families, source::Snapshot};
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

pub(super) fn encode(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let addresses: Vec<_> =
        snapshot.bgp.addresses.iter().map(|it| (it.address.to_string(), u64::from(it.announced))).collect();
    gauges(
        encoder,
        &families::BGP_ANNOUNCED,
        addresses.iter().map(|(address, announced)| ([address.as_str()], *announced)),
    )
}
