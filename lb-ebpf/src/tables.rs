//! The core's tables over the maps.

use crate::{atomic, guard, hold, maps, observe, outline};
use aya_ebpf::{bindings::xdp_md, helpers::bpf_ktime_get_ns, maps::lpm_trie::Key};
use lb_common::{
    abi::{
        AddressEntry, AddressKey, BackendEntry, CLAIM_BUCKET, CidKey, ClaimEvent, EventHeader, FlowEntry,
        FlowKey4, FlowKey6, FragmentKey, FragmentTrace, HalfOpen, Lease, NEIGHBOUR_BUCKET, PortKey,
        PortRangeKey, ServiceEntry, Signal, Slot, VipEntry,
    },
    core::{
        FlowCell, HalfOpenCell, Tables,
        affinity::{Place, Step},
        found::Found,
        guard::{Admission, denied4, denied6},
        parse::Chain,
        quic::{Format, Route},
    },
    packet::Packet,
};

/// ICMP messages a second and CPU, and in one burst (RFC 4443 section 2.4 (f) wants a token bucket).
pub(crate) const ICMP_RATE: u64 = 1_000;
pub(crate) const ICMP_BURST: u64 = 100;
/// Echo replies a second and CPU, and in one burst: monitors ask often, and an answer costs no more than a packet does.
pub(crate) const ECHO_RATE: u64 = 10_000;
pub(crate) const ECHO_BURST: u64 = 1_000;
/// TCP resets a second and CPU, and in one burst: many clients, each of which is to fail fast.
pub(crate) const RESET_RATE: u64 = 10_000;
pub(crate) const RESET_BURST: u64 = 1_000;

/// Answers a second and CPU to who asks for a virtual address, and in one burst: more than a large network asks after
/// a takeover.
const NEIGHBOUR_RATE: u64 = 10_000;
const NEIGHBOUR_BURST: u64 = 1_000;
/// Claims a second and CPU of which the daemon is told.
const CLAIM_RATE: u64 = 10;
const CLAIM_BURST: u64 = 10;

/// Takes a token from one of this CPU's buckets.
#[inline(always)]
pub(crate) fn token(bucket: u32, rate: u64, burst: u64) -> bool {
    let Some(bucket) = maps::BUCKETS.get_ptr_mut(bucket) else { return false };
    if observe::dry() {
        // SAFETY: as below; what is taken is taken from a copy.
        return unsafe { { *bucket }.take(bpf_ktime_get_ns(), rate, burst) };
    }
    // SAFETY: this CPU's own element, and XDP does not preempt itself.
    unsafe { (*bucket).take(bpf_ktime_get_ns(), rate, burst) }
}

/// Insert only where there is no entry: another CPU may have seen the flow first.
pub(crate) const BPF_NOEXIST: u64 = 1;
/// There is one already.
pub(crate) const EEXIST: i32 = -17;

/// The place of an entry in a flow table.
pub(crate) struct Cell(pub(crate) *mut u64);

impl FlowCell for Cell {
    #[inline(always)]
    fn load(&self) -> FlowEntry {
        // SAFETY: a value of 8 bytes, 8-aligned, which the kernel keeps until this program returns. A
        // volatile read is one load instruction: never torn.
        FlowEntry(unsafe { self.0.read_volatile() })
    }

    #[inline(always)]
    fn store(&self, entry: FlowEntry) {
        if !observe::dry() {
            // SAFETY: as in `load`.
            unsafe { self.0.write_volatile(entry.0) };
        }
    }

    #[inline(always)]
    fn exchange(&self, old: FlowEntry, new: FlowEntry) -> bool {
        // SAFETY: as in `load`.
        observe::dry() || unsafe { atomic::exchange(self.0, old.0, new.0) }.is_ok()
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

/// A flow that was looked up.
#[inline(always)]
fn found(cell: Option<*mut u64>) -> Option<Cell> {
    let cell = Cell(cell?);
    if observe::watched() {
        observe::flow(cell.load());
    }
    Some(cell)
}

/// Counts an insertion. One that lost the race against another CPU found its flow recorded.
#[inline(always)]
fn added(result: Result<(), i32>) -> bool {
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
pub struct Maps<const OBSERVED: bool> {
    ctx: *mut xdp_md,
}

impl Maps<false> {
    /// The maps, for this program run.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        Self::of(ctx)
    }
}

impl<const OBSERVED: bool> Maps<OBSERVED> {
    /// The same; `OBSERVED` notes what the core asks for on its fast path. Rare paths ask [`observe::watched`].
    #[inline(always)]
    pub(crate) fn of(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    /// The context.
    #[inline(always)]
    pub(crate) fn ctx(&self) -> *mut xdp_md {
        self.ctx
    }
}

impl<const OBSERVED: bool> Tables for Maps<OBSERVED> {
    #[inline(always)]
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        // SAFETY: the value is plain data; the kernel frees it after a grace period this program is inside of.
        let vip = unsafe { maps::VIPS4.get(&address) };
        if OBSERVED && vip.is_some() {
            observe::vip();
        }
        vip
    }

    #[inline(always)]
    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        // SAFETY: as in `vip4`.
        let vip = unsafe { maps::VIPS6.get(address) };
        if OBSERVED && vip.is_some() {
            observe::vip();
        }
        vip
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
        let service = maps::SERVICES.get(id);
        if OBSERVED && let Some(entry) = service {
            observe::service(id, entry.ring_base);
        }
        service
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        let word = maps::RING.get_ptr(index)?;
        // SAFETY: an array element of 8 bytes, 8-aligned; the daemon writes it with one atomic store. BPF has
        // no atomic load: a volatile one is a single load instruction, never torn and never repeated.
        let slot = Slot(unsafe { word.read_volatile() });
        if OBSERVED {
            observe::slot(index, slot);
        }
        Some(slot)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        maps::BACKENDS.get(id)
    }

    #[inline(always)]
    fn switches(&self) -> u32 {
        maps::CONTROL.get(0).map_or(0, |control| control.flags)
    }

    #[inline(always)]
    fn nat_marks(&self, word: u32) -> u64 {
        // SAFETY: an array element of 8 bytes, 8-aligned; the daemon writes it with one atomic store.
        maps::NAT_MARKS.get_ptr(word).map_or(0, |word| unsafe { word.read_volatile() })
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
        if observe::dry() {
            return observe::recorded();
        }
        begun(maps::HALF_OPEN4.insert(key, entry, 0))
    }

    #[inline(always)]
    fn add_half_open6(&self, key: &FlowKey6, entry: HalfOpen) -> bool {
        if observe::dry() {
            return observe::recorded();
        }
        begun(maps::HALF_OPEN6.insert(key, entry, 0))
    }

    #[inline(always)]
    fn remove_half_open4(&self, key: &FlowKey4) {
        if !observe::dry() {
            // Gone already: another CPU was quicker.
            let _ = maps::HALF_OPEN4.remove(key);
        }
    }

    #[inline(always)]
    fn remove_half_open6(&self, key: &FlowKey6) {
        if !observe::dry() {
            // As for IPv4.
            let _ = maps::HALF_OPEN6.remove(key);
        }
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
        unsafe {
            let turns = &raw mut (*schedule).turns;
            if observe::dry() { turns.read_volatile() } else { atomic::add(turns, 1) }
        }
    }

    #[inline(always)]
    fn homed_ns(&self, id: u32) -> u64 {
        let Some(schedule) = maps::SCHEDULES.get_ptr(id) else { return 0 };
        // SAFETY: as in `take_turn`; one load instruction.
        unsafe { (&raw const (*schedule).homed_ns).read_volatile() }
    }

    #[inline(always)]
    fn note_homed(&self, id: u32, now_ns: u64) {
        if observe::dry() {
            return;
        }
        let Some(schedule) = maps::SCHEDULES.get_ptr_mut(id) else { return };
        // SAFETY: as in `homed_ns`; one store instruction, and any CPU's clock will do.
        unsafe { (&raw mut (*schedule).homed_ns).write_volatile(now_ns) };
    }

    #[inline(always)]
    fn less_loaded(&self, base: u32, size: u32, turn: u64, best: u64) -> u64 {
        outline::opaque(outline::less_loaded(base.into(), size.into(), turn, best))
    }

    #[inline(always)]
    fn active(&self, backend: u32) -> u64 {
        let Some(count) = maps::ACTIVE.get_ptr(backend) else { return 0 };
        // SAFETY: as in `slot`.
        unsafe { count.read_volatile() }
    }

    #[inline(always)]
    fn count_active(&self, backend: u32, more: bool) {
        if observe::dry() {
            return;
        }
        let Some(count) = maps::ACTIVE.get_ptr_mut(backend) else { return };
        // SAFETY: an array element of 8 bytes, 8-aligned.
        unsafe { atomic::add(count, if more { 1 } else { u64::MAX }) };
    }

    #[inline(always)]
    fn pick(&self, service: u32, least_connections: bool) -> u32 {
        outline::opaque(outline::pick(service.into(), least_connections.into())) as u32
    }

    #[inline(always)]
    fn icmp<P: Packet>(&self, _: &P, place: Place) -> Found {
        let v6 = place.0 >> 32 & 1 != 0;
        Found(if v6 { outline::icmp6(self.ctx, place.0) } else { outline::icmp4(self.ctx, place.0) })
    }

    #[inline(always)]
    fn fragment<P: Packet>(&self, _: &P, l3: usize, v6: bool) -> Found {
        let l3 = l3 as u64;
        Found(if v6 { outline::fragment6(self.ctx, l3) } else { outline::fragment4(self.ctx, l3) })
    }

    #[inline(always)]
    fn hold<P: Packet>(&self, _: &P, l3: usize, v6: bool) -> bool {
        hold::hold(self.ctx, l3 as u64, v6.into()) != 0
    }

    #[inline(always)]
    fn trace<P: Packet>(&self, _: &P, l3: usize, v6: bool, backend: u32, entropy: u32) {
        let (l3, backend, entropy) = (l3 as u64, backend.into(), entropy.into());
        if v6 {
            outline::trace6(self.ctx, l3, backend, entropy);
        } else {
            outline::trace4(self.ctx, l3, backend, entropy);
        }
    }

    #[inline(always)]
    fn fragment_trace(&self, key: &FragmentKey) -> Option<FragmentTrace> {
        // SAFETY: as in `vip4`; an element that is recycled meanwhile gives a trace of another datagram, whose backend and
        // service are compared with each other.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn add_fragment_trace(&self, key: &FragmentKey, trace: &FragmentTrace) {
        if !observe::dry() {
            // No room: the fragments that follow are counted as unknown.
            let _ = maps::FRAGMENTS.insert(key, trace, 0);
        }
    }

    #[inline(always)]
    fn flow4(&self, key: &FlowKey4) -> Option<impl FlowCell> {
        found(maps::FLOWS4.get_ptr_mut(key))
    }

    #[inline(always)]
    fn flow6(&self, key: &FlowKey6) -> Option<impl FlowCell> {
        found(maps::FLOWS6.get_ptr_mut(key))
    }

    #[inline(always)]
    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool {
        if observe::dry() {
            return observe::recorded();
        }
        added(maps::FLOWS4.insert(key, entry.0, BPF_NOEXIST))
    }

    #[inline(always)]
    fn add_flow6(&self, key: &FlowKey6, entry: FlowEntry) -> bool {
        if observe::dry() {
            return observe::recorded();
        }
        added(maps::FLOWS6.insert(key, entry.0, BPF_NOEXIST))
    }

    #[inline(always)]
    fn denied4(&self, source: u32) -> bool {
        denied4(self, source)
    }

    #[inline(always)]
    fn denied6(&self, hi: u64, lo: u64) -> bool {
        denied6(self, hi, lo)
    }

    #[inline(always)]
    fn admit<P: Packet>(&self, _: &P, place: Place, service: u32, flags: u32, step: Step) -> Admission {
        let flags = u64::from(flags) << 8 | step as u64;
        Admission(outline::opaque(guard::admit(self.ctx, place.0, service.into(), flags)))
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
    fn address(&self, key: &AddressKey) -> Option<AddressEntry> {
        // SAFETY: as in `vip4`.
        unsafe { maps::ADDRESSES.get(key) }.copied()
    }

    #[inline(always)]
    fn lease(&self, index: u32) -> Lease {
        // SAFETY: as in `slot`.
        Lease(maps::LEASES.get_ptr(index).map_or(0, |word| unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn end_lease(&self, index: u32, old: Lease) {
        if observe::dry() {
            return;
        }
        if let Some(word) = maps::LEASES.get_ptr_mut(index) {
            // SAFETY: an array element of 8 bytes, 8-aligned. Renewed meanwhile: the daemon is there again.
            let _ = unsafe { atomic::exchange(word, old.0, Lease::OVER.0) };
        }
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        token(NEIGHBOUR_BUCKET, NEIGHBOUR_RATE, NEIGHBOUR_BURST)
    }

    #[inline(always)]
    fn claimed(&self, key: &AddressKey, lease: u32, mac: (u32, u16), now_ns: u64) {
        if observe::dry() || !token(CLAIM_BUCKET, CLAIM_RATE, CLAIM_BURST) {
            return;
        }
        // A full buffer loses it: the other node claims again.
        let Some(mut event) = maps::EVENTS.reserve::<ClaimEvent>(0) else { return };
        let ([a, b, c, d], [e, f]) = (mac.0.to_ne_bytes(), mac.1.to_ne_bytes());
        event.write(ClaimEvent {
            header: EventHeader { kind: EventHeader::CLAIM, size: size_of::<ClaimEvent>() as u32 },
            address: key.address,
            time_ns: now_ns,
            ifindex: key.ifindex,
            mac: [a, b, c, d, e, f],
            pad: [0; 2],
            lease,
        });
        event.submit(0);
    }

    #[inline(always)]
    fn syn_cell(&self, index: u32) -> Option<u64> {
        let word = maps::SYNS.get_ptr(index)?;
        // SAFETY: an array element of 8 bytes, 8-aligned; one load instruction, never torn.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn set_syn_cell(&self, index: u32, cell: u64) {
        if observe::dry() {
            return;
        }
        if let Some(word) = maps::SYNS.get_ptr_mut(index) {
            // SAFETY: as in `syn_cell`; whichever CPU writes last has the cell.
            unsafe { word.write_volatile(cell) };
        }
    }

    #[inline(always)]
    fn count_signal(&self, backend: u32, signal: Signal) {
        if observe::dry() {
            return;
        }
        if let Some(signals) = maps::BACKEND_SIGNALS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own element, and XDP does not preempt itself; no other reference to it is kept.
            let count = unsafe { (*signals).of(signal) };
            *count = count.wrapping_add(1);
        }
    }

    #[inline(always)]
    fn watch<P: Packet>(&self, _: &P, place: Place, backend: u32, flow: u64, chooser: u64) {
        outline::watch(self.ctx, place.0, backend.into(), flow, chooser);
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper call without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}
