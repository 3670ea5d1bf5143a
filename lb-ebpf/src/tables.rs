//! The core's tables over the maps.

use crate::maps;
use aya_ebpf::{helpers::bpf_ktime_get_ns, maps::lpm_trie::Key};
use lb_common::{
    abi::{BackendEntry, PortKey, PortRangeKey, ServiceEntry, Slot, VipEntry},
    core::Tables,
};

/// ICMP messages a second and CPU, and in one burst (RFC 4443 section 2.4 (f) wants a token bucket).
const ICMP_RATE: u64 = 1_000;
const ICMP_BURST: u64 = 100;

/// The maps of this program.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        // SAFETY: the value is plain data; the kernel frees it after a grace period this program is inside of.
        unsafe { maps::VIPS4.get(&address) }
    }

    #[inline(always)]
    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        // SAFETY: as in `vip4`.
        unsafe { maps::VIPS6.get(address) }
    }

    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<u32> {
        // SAFETY: as in `vip4`.
        unsafe { maps::PORTS.get(key) }.copied()
    }

    #[inline(always)]
    fn port_range(&self, key: &PortRangeKey) -> Option<u32> {
        let mut data = [0; 8];
        data[..4].copy_from_slice(&key.vip);
        data[4..6].copy_from_slice(&key.proto);
        data[6..].copy_from_slice(&key.port);
        maps::PORT_RANGES.get(Key::new(key.prefix_len, data)).copied()
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        maps::SERVICES.get(id)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        let word = maps::RING.get_ptr(index)?;
        // SAFETY: an array element of 8 bytes, 8-aligned; the daemon writes it with one atomic store. BPF has
        // no atomic load: a volatile one is a single load instruction, never torn and never repeated.
        Some(Slot(unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        maps::BACKENDS.get(id)
    }

    #[inline(always)]
    fn icmp_token(&self) -> bool {
        let Some(bucket) = maps::ICMP_BUCKET.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own element, and XDP does not preempt itself.
        unsafe { (*bucket).take(bpf_ktime_get_ns(), ICMP_RATE, ICMP_BURST) }
    }
}
