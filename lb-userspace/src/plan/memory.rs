//! The core's tables over an image in memory: for `explain` and for tests on the host.

use super::Image;
use lb_common::{
    abi::{BackendEntry, FlowEntry, FlowKey4, FlowKey6, PortKey, PortRangeKey, ServiceEntry, Slot, VipEntry},
    core::{FlowCell, Tables},
};
use std::net::IpAddr;

/// An image, looked up as the program looks up its maps. It holds no flows and records none; ICMP tokens never run out.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a>(pub &'a Image);

/// An image holds no flows.
enum NoCell {}

impl FlowCell for NoCell {
    fn load(&self) -> FlowEntry {
        match *self {}
    }

    fn store(&self, _: FlowEntry) {
        match *self {}
    }
}

impl Tables for Memory<'_> {
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        self.0.vips.get(&IpAddr::from(address))
    }

    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        self.0.vips.get(&IpAddr::from(*address))
    }

    fn port(&self, key: &PortKey) -> Option<u32> {
        self.0.ports.get(key).copied()
    }

    fn port_range(&self, key: &PortRangeKey) -> Option<u32> {
        let bits = |k: &PortRangeKey| u16::from_be_bytes(k.port);
        self.0
            .port_ranges
            .iter()
            .filter(|(k, _)| {
                let significant = k.prefix_len - PortRangeKey::FIXED_BITS;
                let mask = u16::MAX.checked_shl(16 - significant).unwrap_or(0);
                k.vip == key.vip && k.proto == key.proto && bits(k) == bits(key) & mask
            })
            .max_by_key(|(k, _)| k.prefix_len)
            .map(|(_, service)| *service)
    }

    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        self.0.services.get(&id).map(|record| &record.entry)
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.0.services.iter().find_map(|(id, record)| {
            let at = index.checked_sub(record.entry.ring_base)?;
            self.0.rings.get(id)?.get(at as usize).copied()
        })
    }

    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        self.0.backends.get(&id).map(|record| &record.entry)
    }

    fn flow4(&self, _: &FlowKey4) -> Option<impl FlowCell> {
        None::<NoCell>
    }

    fn flow6(&self, _: &FlowKey6) -> Option<impl FlowCell> {
        None::<NoCell>
    }

    fn add_flow4(&self, _: &FlowKey4, _: FlowEntry) -> bool {
        true
    }

    fn add_flow6(&self, _: &FlowKey6, _: FlowEntry) -> bool {
        true
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn icmp_token(&self) -> bool {
        true
    }
}
