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

/// An image, and the entry of the one flow that is asked about. Entries that would be written are not kept.
#[derive(Debug, Clone, Copy)]
pub struct MemoryOfFlow<'a> {
    pub image: Memory<'a>,
    pub entry: Option<FlowEntry>,
}

struct Read(FlowEntry);

impl FlowCell for Read {
    fn load(&self) -> FlowEntry {
        self.0
    }

    fn store(&self, _: FlowEntry) {}
}

impl Tables for MemoryOfFlow<'_> {
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        self.image.vip4(address)
    }

    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        self.image.vip6(address)
    }

    fn port(&self, key: &PortKey) -> Option<u32> {
        self.image.port(key)
    }

    fn port_range(&self, key: &PortRangeKey) -> Option<u32> {
        self.image.port_range(key)
    }

    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        self.image.service(id)
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.image.slot(index)
    }

    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        self.image.backend(id)
    }

    fn flow4(&self, _: &FlowKey4) -> Option<impl FlowCell> {
        self.entry.map(Read)
    }

    fn flow6(&self, _: &FlowKey6) -> Option<impl FlowCell> {
        self.entry.map(Read)
    }

    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool {
        self.image.add_flow4(key, entry)
    }

    fn add_flow6(&self, key: &FlowKey6, entry: FlowEntry) -> bool {
        self.image.add_flow6(key, entry)
    }

    fn now_ns(&self) -> u64 {
        self.image.now_ns()
    }

    fn icmp_token(&self) -> bool {
        self.image.icmp_token()
    }
}
