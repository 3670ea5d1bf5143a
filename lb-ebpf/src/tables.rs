//! The core's tables over the maps.

use crate::{maps, outline};
use aya_ebpf::{bindings::xdp_md, helpers::bpf_ktime_get_ns, maps::lpm_trie::Key};
use lb_common::{
    abi::{
        BackendEntry, CidKey, FlowEntry, FlowKey4, FlowKey6, ICMP_BUCKET, PortKey, PortRangeKey,
        ServiceEntry, Slot, VipEntry,
    },
    core::{
        FlowCell, Tables,
        affinity::{Place, Step},
        parse::Chain,
        quic::{Format, Route},
    },
    packet::Packet,
};

/// ICMP messages a second and CPU, and in one burst (RFC 4443 section 2.4 (f) wants a token bucket).
const ICMP_RATE: u64 = 1_000;
const ICMP_BURST: u64 = 100;

/// Takes a token from one of this CPU's buckets.
#[inline(always)]
pub(crate) fn token(bucket: u32, rate: u64, burst: u64) -> bool {
    let Some(bucket) = maps::BUCKETS.get_ptr_mut(bucket) else { return false };
    // SAFETY: this CPU's own element, and XDP does not preempt itself.
    unsafe { (*bucket).take(bpf_ktime_get_ns(), rate, burst) }
}

/// Insert only where there is no entry: another CPU may have seen the flow first.
const BPF_NOEXIST: u64 = 1;

/// The place of an entry in a flow table.
struct Cell(*mut u64);

impl FlowCell for Cell {
    #[inline(always)]
    fn load(&self) -> FlowEntry {
        // SAFETY: a value of 8 bytes, 8-aligned, which the kernel keeps until this program returns. A
        // volatile read is one load instruction: never torn.
        FlowEntry(unsafe { self.0.read_volatile() })
    }

    #[inline(always)]
    fn store(&self, entry: FlowEntry) {
        // SAFETY: as in `load`.
        unsafe { self.0.write_volatile(entry.0) };
    }
}

/// Counts an insertion. One that lost the race against another CPU found its flow recorded.
#[inline(always)]
fn added(result: Result<(), i32>) -> bool {
    const EEXIST: i32 = -17;
    let fine = matches!(result, Ok(()) | Err(EEXIST));
    if let Some(stats) = maps::FLOW_STATS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe {
            if fine {
                (*stats).inserted += 1;
            } else {
                (*stats).refused += 1;
            }
        }
    }
    fine
}

/// The maps of this program, and the context that functions out of line need.
pub struct Maps {
    ctx: *mut xdp_md,
}

impl Maps {
    /// The maps, for this program run.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }
}

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
    fn extensions<P: Packet>(&self, _: &P, l3: usize, first: u8) -> Chain {
        Chain(outline::opaque(outline::extensions(self.ctx, l3 as u64, first.into())))
    }

    #[inline(always)]
    fn choose<P: Packet>(&self, _: &P, place: Place, slot: Slot, hash: u64, step: Step) -> u32 {
        outline::choose(self.ctx, place.0, slot.0, hash, step as u64) as u32
    }

    #[inline(always)]
    fn flow4(&self, key: &FlowKey4) -> Option<impl FlowCell> {
        maps::FLOWS4.get_ptr_mut(key).map(Cell)
    }

    #[inline(always)]
    fn flow6(&self, key: &FlowKey6) -> Option<impl FlowCell> {
        maps::FLOWS6.get_ptr_mut(key).map(Cell)
    }

    #[inline(always)]
    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool {
        added(maps::FLOWS4.insert(key, entry.0, BPF_NOEXIST))
    }

    #[inline(always)]
    fn add_flow6(&self, key: &FlowKey6, entry: FlowEntry) -> bool {
        added(maps::FLOWS6.insert(key, entry.0, BPF_NOEXIST))
    }

    #[inline(always)]
    fn cid(&self, key: &CidKey) -> Option<u32> {
        // SAFETY: as in `vip4`.
        unsafe { maps::CIDS.get(key) }.copied()
    }

    #[inline(always)]
    fn quic<P: Packet>(&self, _: &P, place: Place, format: Format) -> Route {
        Route(outline::quic(self.ctx, place.0, format.0))
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper call without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn icmp_token(&self) -> bool {
        token(ICMP_BUCKET, ICMP_RATE, ICMP_BURST)
    }
}
