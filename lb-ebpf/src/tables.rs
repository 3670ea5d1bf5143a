//! The core's tables over the maps.

use crate::{atomic, maps, outline};
use aya_ebpf::{bindings::xdp_md, helpers::bpf_ktime_get_ns, maps::lpm_trie::Key};
use lb_common::{
    abi::{
        BackendEntry, CidKey, FlowEntry, FlowKey4, FlowKey6, HalfOpen, ICMP_BUCKET, PortKey, PortRangeKey,
        ServiceEntry, Slot, VipEntry,
    },
    core::{
        FlowCell, HalfOpenCell, Tables,
        affinity::Place,
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

    #[inline(always)]
    fn exchange(&self, old: FlowEntry, new: FlowEntry) -> bool {
        // SAFETY: as in `load`.
        unsafe { atomic::exchange(self.0, old.0, new.0) }
    }
}

/// The place of a half-open entry. Elements are replaced as a whole; only the entry's word is written in place.
struct HalfCell(*mut HalfOpen);

impl HalfCell {
    #[inline(always)]
    fn entry(&self) -> Cell {
        // SAFETY: the first field of a map value that the kernel keeps until this program returns.
        Cell(unsafe { &raw mut (*self.0).entry })
    }
}

impl FlowCell for HalfCell {
    #[inline(always)]
    fn load(&self) -> FlowEntry {
        self.entry().load()
    }

    #[inline(always)]
    fn store(&self, entry: FlowEntry) {
        self.entry().store(entry);
    }

    #[inline(always)]
    fn exchange(&self, old: FlowEntry, new: FlowEntry) -> bool {
        self.entry().exchange(old, new)
    }
}

impl HalfOpenCell for HalfCell {
    #[inline(always)]
    fn isn(&self) -> u32 {
        // SAFETY: as in `HalfCell::entry`; 4-aligned.
        unsafe { (&raw const (*self.0).isn).read_volatile() }
    }
}

/// Counts a handshake that found no room.
#[inline(always)]
fn begun(result: Result<(), i32>) -> bool {
    if result.is_err()
        && let Some(stats) = maps::FLOW_STATS.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own element.
        unsafe { (*stats).refused += 1 };
    }
    result.is_ok()
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
    fn choose<P: Packet>(&self, _: &P, place: Place, slot: Slot, hash: u64, isn: u32) -> u32 {
        outline::choose(self.ctx, place.0, slot.0, hash, isn.into()) as u32
    }

    #[inline(always)]
    fn half_open4(&self, key: &FlowKey4) -> Option<impl HalfOpenCell> {
        maps::HALF_OPEN4.get_ptr_mut(key).map(HalfCell)
    }

    #[inline(always)]
    fn half_open6(&self, key: &FlowKey6) -> Option<impl HalfOpenCell> {
        maps::HALF_OPEN6.get_ptr_mut(key).map(HalfCell)
    }

    #[inline(always)]
    fn add_half_open4(&self, key: &FlowKey4, entry: HalfOpen) -> bool {
        begun(maps::HALF_OPEN4.insert(key, entry, 0))
    }

    #[inline(always)]
    fn add_half_open6(&self, key: &FlowKey6, entry: HalfOpen) -> bool {
        begun(maps::HALF_OPEN6.insert(key, entry, 0))
    }

    #[inline(always)]
    fn remove_half_open4(&self, key: &FlowKey4) {
        // Gone already: another CPU was quicker.
        let _ = maps::HALF_OPEN4.remove(key);
    }

    #[inline(always)]
    fn remove_half_open6(&self, key: &FlowKey6) {
        // As for IPv4.
        let _ = maps::HALF_OPEN6.remove(key);
    }

    #[inline(always)]
    fn schedule(&self, id: u32) -> Option<(u32, u32)> {
        let schedule = maps::SCHEDULES.get_ptr(id)?;
        // SAFETY: base and size are the first 8 bytes of an array element, 8-aligned, which the daemon writes with one
        // atomic store.
        let word = unsafe { schedule.cast::<u64>().read_volatile() };
        Some((word as u32, (word >> 32) as u32))
    }

    #[inline(always)]
    fn schedule_word(&self, index: u32) -> Option<u64> {
        let word = maps::SCHEDULE.get_ptr(index)?;
        // SAFETY: as in `slot`.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn take_turn(&self, id: u32) -> u64 {
        let Some(schedule) = maps::SCHEDULES.get_ptr_mut(id) else { return 0 };
        // SAFETY: a field of 8 bytes, 8-aligned, of an array element.
        unsafe { atomic::add(&raw mut (*schedule).turns, 1) }
    }

    #[inline(always)]
    fn active(&self, backend: u32) -> u64 {
        let Some(count) = maps::ACTIVE.get_ptr(backend) else { return 0 };
        // SAFETY: as in `slot`.
        unsafe { count.read_volatile() }
    }

    #[inline(always)]
    fn count_active(&self, backend: u32, more: bool) {
        let Some(count) = maps::ACTIVE.get_ptr_mut(backend) else { return };
        // SAFETY: an array element of 8 bytes, 8-aligned.
        unsafe { atomic::add(count, if more { 1 } else { u64::MAX }) };
    }

    #[inline(always)]
    fn pick(&self, service: u32, least_connections: bool) -> u32 {
        outline::opaque(outline::pick(self.ctx, service.into(), least_connections.into())) as u32
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
