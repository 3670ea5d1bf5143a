//! The tables the core reads, as a trait: BPF maps in the kernel, plain memory elsewhere; and the token
//! bucket that limits what the balancer sends of its own.

use super::{
    affinity::{Place, Step, choose_flow},
    found::Found,
    fragment,
    guard::Admission,
    parse::{Chain, walk_extensions},
    passive,
    quic::{self, Format, Route},
    quote, schedule,
};
use crate::abi::{
    AddressEntry, AddressKey, BackendEntry, Bucket, CidKey, FlowEntry, FlowKey4, FlowKey6, FragmentKey,
    FragmentTrace, HalfOpen, Lease, PortKey, PortRangeKey, ServiceEntry, Signal, Slot, VipEntry,
};
use crate::packet::Packet;

/// What the core looks things up in. Addresses are as they stand in the packet.
pub trait Tables {
    /// The VIP of an IPv4 address.
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry>;
    /// The VIP of an IPv6 address.
    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry>;
    /// The service of an id.
    fn service(&self, id: u32) -> Option<&ServiceEntry>;
    /// A word of the ring array, read atomically.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// The backend of an id.
    fn backend(&self, id: u32) -> Option<&BackendEntry>;
    /// Nanoseconds of the monotonic clock.
    fn now_ns(&self) -> u64;

    // Tables that are empty need not be there.

    /// Service of an exact port of a VIP with many rules.
    #[inline(always)]
    fn port(&self, _: &PortKey) -> Option<u32> {
        None
    }
    /// Service of a port range of a VIP with many rules: longest prefix match.
    #[inline(always)]
    fn port_range(&self, _: &PortRangeKey) -> Option<u32> {
        None
    }
    /// The backend whose server id is in QUIC connection IDs.
    #[inline(always)]
    fn cid(&self, _: &CidKey) -> Option<u32> {
        None
    }
    /// Where the first fragment of a datagram went.
    #[inline(always)]
    fn fragment_trace(&self, _: &FragmentKey) -> Option<FragmentTrace> {
        None
    }
    /// Keeps where it went, in the place of what was there.
    #[inline(always)]
    fn add_fragment_trace(&self, _: &FragmentKey, _: &FragmentTrace) {}

    /// The switches of the whole program: the flags of `Control`.
    #[inline(always)]
    fn switches(&self) -> u32 {
        0
    }

    /// A word of the marks of `nat` backends' addresses; without marks every address may be one.
    #[inline(always)]
    fn nat_marks(&self, _word: u32) -> u64 {
        u64::MAX
    }

    /// Walks the IPv6 extension headers. A rare path: the kernel program puts it out of line, where the
    /// verifier goes through it once and not once for each way that leads there.
    #[inline(always)]
    fn extensions<P: Packet>(&self, packet: &P, l3: usize, first: u8) -> Chain {
        walk_extensions(packet, l3, first)
    }

    /// Chooses the backend of a flow that the flow tables are asked about; 0 = nobody. `isn` counts where the place says so.
    /// As rare as `extensions`.
    #[inline(always)]
    fn choose<P: Packet>(&self, packet: &P, place: Place, slot: Slot, hash: u64, isn: u32) -> u32
    where
        Self: Sized,
    {
        choose_flow(packet, self, place, slot, hash, isn)
    }

    // What follows belongs to flows. Tables that keep none need none of it.

    /// The entry of a flow, to read and to write.
    #[inline(always)]
    fn flow4(&self, _: &FlowKey4) -> Option<impl FlowCell> {
        None::<NoCell>
    }
    /// The same for IPv6.
    #[inline(always)]
    fn flow6(&self, _: &FlowKey6) -> Option<impl FlowCell> {
        None::<NoCell>
    }
    /// Records a flow; false if there is no room. An entry that is there already stays as it is.
    #[inline(always)]
    fn add_flow4(&self, _: &FlowKey4, _: FlowEntry) -> bool {
        false
    }
    /// The same for IPv6.
    #[inline(always)]
    fn add_flow6(&self, _: &FlowKey6, _: FlowEntry) -> bool {
        false
    }
    /// The half-open entry of a flow.
    #[inline(always)]
    fn half_open4(&self, _: &FlowKey4) -> Option<impl HalfOpenCell> {
        None::<NoCell>
    }
    /// The same for IPv6.
    #[inline(always)]
    fn half_open6(&self, _: &FlowKey6) -> Option<impl HalfOpenCell> {
        None::<NoCell>
    }
    /// Records a handshake in the place of any other of the same flow; false if there is no room.
    #[inline(always)]
    fn add_half_open4(&self, _: &FlowKey4, _: HalfOpen) -> bool {
        false
    }
    /// The same for IPv6.
    #[inline(always)]
    fn add_half_open6(&self, _: &FlowKey6, _: HalfOpen) -> bool {
        false
    }
    /// Forgets a handshake.
    #[inline(always)]
    fn remove_half_open4(&self, _: &FlowKey4) {}
    /// The same for IPv6.
    #[inline(always)]
    fn remove_half_open6(&self, _: &FlowKey6) {}

    /// Base and size of a service's schedule, read at once.
    #[inline(always)]
    fn schedule(&self, _: u32) -> Option<(u32, u32)> {
        None
    }
    /// A word of a schedule, read at once.
    #[inline(always)]
    fn schedule_word(&self, _: u32) -> Option<u64> {
        None
    }
    /// Takes the next turn of a service: how many were taken before.
    #[inline(always)]
    fn take_turn(&self, _: u32) -> u64 {
        0
    }
    /// When a datagram flow of a scheduled service last stayed at home without an entry; 0 = never.
    #[inline(always)]
    fn homed_ns(&self, _: u32) -> u64 {
        0
    }
    /// One did now.
    #[inline(always)]
    fn note_homed(&self, _: u32, _now_ns: u64) {}
    /// Flows under way of a backend of a least-connections service.
    #[inline(always)]
    fn active(&self, _: u32) -> u64 {
        0
    }
    /// One such flow more, or one less.
    #[inline(always)]
    fn count_active(&self, _: u32, _more: bool) {}
    /// Chooses the backend of a new flow of a scheduled service; 0 = nobody.
    #[inline(always)]
    fn pick(&self, service: u32, least_connections: bool) -> u32
    where
        Self: Sized,
    {
        schedule::pick(self, service, least_connections)
    }

    /// The less loaded of the backend whose turn it is and the best so far: see [`schedule::less_loaded`].
    #[inline(always)]
    fn less_loaded(&self, base: u32, size: u32, turn: u64, best: u64) -> u64
    where
        Self: Sized,
    {
        schedule::less_loaded(self, base, size, turn, best)
    }

    /// Is an IPv4 source denied? Asked only where [`VipEntry::FILTERED`] says so; tables without lists deny nobody.
    #[inline(always)]
    fn denied4(&self, _source: u32) -> bool {
        false
    }

    /// The same for IPv6, in two halves.
    #[inline(always)]
    fn denied6(&self, _hi: u64, _lo: u64) -> bool {
        false
    }

    /// May a packet use a service? Asked only where the service's flags say so.
    #[inline(always)]
    fn admit<P: Packet>(
        &self,
        _packet: &P,
        _place: Place,
        _service: u32,
        _flags: u32,
        _step: Step,
    ) -> Admission {
        Admission::GRANTED
    }

    /// What becomes of an ICMP message to a VIP. As rare as `extensions`, like all that follow.
    #[inline(always)]
    fn icmp<P: Packet>(&self, packet: &P, place: Place) -> Found
    where
        Self: Sized,
    {
        quote::icmp(packet, self, place)
    }

    /// What becomes of a fragment behind the first.
    #[inline(always)]
    fn fragment<P: Packet>(&self, packet: &P, l3: usize, v6: bool) -> Found
    where
        Self: Sized,
    {
        fragment::follow(packet, self, l3, v6)
    }

    /// Keeps a fragment whose first one has not come yet, to see it again a moment later; false: it cannot be kept. Tables
    /// that nobody waits for keep none.
    #[inline(always)]
    fn hold<P: Packet>(&self, _packet: &P, _l3: usize, _v6: bool) -> bool {
        false
    }

    /// Leaves the trace of a first fragment that goes to `backend`, or to nobody of a service
    /// ([`fragment::KERNEL`]).
    #[inline(always)]
    fn trace<P: Packet>(&self, packet: &P, l3: usize, v6: bool, backend: u32, entropy: u32)
    where
        Self: Sized,
    {
        fragment::trace(packet, self, l3, v6, backend, entropy);
    }

    // What follows belongs to virtual addresses of VRRP: see [`super::neighbour`].

    /// A virtual address, where it is asked for.
    #[inline(always)]
    fn address(&self, _: &AddressKey) -> Option<AddressEntry> {
        None
    }
    /// The lease of an address, read at once.
    #[inline(always)]
    fn lease(&self, _index: u32) -> Lease {
        Lease::NONE
    }
    /// Ends a lease, if it is still this one.
    #[inline(always)]
    fn end_lease(&self, _index: u32, _old: Lease) {}
    /// May a question be answered now? Limits how often.
    #[inline(always)]
    fn may_answer(&self) -> bool {
        true
    }
    /// Tells the daemon of a claim to an address, perhaps not of every one.
    #[inline(always)]
    fn claimed(&self, _: &AddressKey, _lease: u32, _mac: (u32, u16), _now_ns: u64) {}

    /// A cell of `SYNS`.
    #[inline(always)]
    fn syn_cell(&self, _index: u32) -> Option<u64> {
        None
    }
    /// Writes it at once.
    #[inline(always)]
    fn set_syn_cell(&self, _index: u32, _cell: u64) {}
    /// Counts a sign of a backend's health.
    #[inline(always)]
    fn count_signal(&self, _backend: u32, _signal: Signal) {}
    /// See [`passive::watch`]. As rare as `extensions`: asked for SYNs of services whose flags say so.
    #[inline(always)]
    fn watch<P: Packet>(&self, packet: &P, place: Place, backend: u32, flow: u64, chooser: u64)
    where
        Self: Sized,
    {
        passive::watch(packet, self, place, backend, flow, chooser);
    }

    /// Reads the QUIC header of a datagram. As rare as `extensions`: services of other protocols do without.
    #[inline(always)]
    fn quic<P: Packet>(&self, packet: &P, place: Place, format: Format) -> Route
    where
        Self: Sized,
    {
        quic::route(packet, self, place, format)
    }
}

/// The place of a flow's entry in the table.
pub trait FlowCell {
    /// The entry, read at once.
    fn load(&self) -> FlowEntry;
    /// Replaces it at once.
    fn store(&self, entry: FlowEntry);
    /// Replaces it if it is still the one that was read: another CPU may have been quicker.
    #[inline(always)]
    fn exchange(&self, old: FlowEntry, new: FlowEntry) -> bool {
        let same = self.load().0 == old.0;
        if same {
            self.store(new);
        }
        same
    }
}

/// The place of a half-open entry.
pub trait HalfOpenCell: FlowCell {
    /// The initial sequence number of its SYN.
    fn isn(&self) -> u32;
}

/// The cell of tables that keep no flows.
pub enum NoCell {}

impl FlowCell for NoCell {
    fn load(&self) -> FlowEntry {
        match *self {}
    }
    fn store(&self, _: FlowEntry) {
        match *self {}
    }
}

impl HalfOpenCell for NoCell {
    fn isn(&self) -> u32 {
        match *self {}
    }
}

/// A flow's key, of either family.
pub trait FlowKey: Copy {
    /// The flow's entry.
    fn find<T: Tables>(&self, tables: &T) -> Option<impl FlowCell>;
    /// Records the flow.
    fn add<T: Tables>(&self, tables: &T, entry: FlowEntry) -> bool;
    /// The flow's half-open entry.
    fn half_open<T: Tables>(&self, tables: &T) -> Option<impl HalfOpenCell>;
    /// Records the handshake.
    fn add_half_open<T: Tables>(&self, tables: &T, entry: HalfOpen) -> bool;
    /// Forgets the handshake.
    fn remove_half_open<T: Tables>(&self, tables: &T);
}

impl FlowKey for FlowKey4 {
    #[inline(always)]
    fn find<T: Tables>(&self, tables: &T) -> Option<impl FlowCell> {
        tables.flow4(self)
    }
    #[inline(always)]
    fn add<T: Tables>(&self, tables: &T, entry: FlowEntry) -> bool {
        tables.add_flow4(self, entry)
    }
    #[inline(always)]
    fn half_open<T: Tables>(&self, tables: &T) -> Option<impl HalfOpenCell> {
        tables.half_open4(self)
    }
    #[inline(always)]
    fn add_half_open<T: Tables>(&self, tables: &T, entry: HalfOpen) -> bool {
        tables.add_half_open4(self, entry)
    }
    #[inline(always)]
    fn remove_half_open<T: Tables>(&self, tables: &T) {
        tables.remove_half_open4(self);
    }
}

impl FlowKey for FlowKey6 {
    #[inline(always)]
    fn find<T: Tables>(&self, tables: &T) -> Option<impl FlowCell> {
        tables.flow6(self)
    }
    #[inline(always)]
    fn add<T: Tables>(&self, tables: &T, entry: FlowEntry) -> bool {
        tables.add_flow6(self, entry)
    }
    #[inline(always)]
    fn half_open<T: Tables>(&self, tables: &T) -> Option<impl HalfOpenCell> {
        tables.half_open6(self)
    }
    #[inline(always)]
    fn add_half_open<T: Tables>(&self, tables: &T, entry: HalfOpen) -> bool {
        tables.add_half_open6(self, entry)
    }
    #[inline(always)]
    fn remove_half_open<T: Tables>(&self, tables: &T) {
        tables.remove_half_open6(self);
    }
}

impl Bucket {
    /// Takes one token at time `now_ns`, after refilling at `rate` tokens a second up to `burst`.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64, rate: u64, burst: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let elapsed = now_ns.saturating_sub(self.refilled_ns);
        if self.refilled_ns == 0 || elapsed >= SECOND {
            self.tokens =
                if self.refilled_ns == 0 || rate >= burst { burst } else { (self.tokens + rate).min(burst) };
            self.refilled_ns = now_ns;
        } else {
            let earned = elapsed * rate / SECOND;
            if earned > 0 {
                self.tokens = (self.tokens + earned).min(burst);
                // Whole tokens only: the rest of the time goes on counting.
                self.refilled_ns += earned * SECOND / rate.max(1);
            }
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_gives_no_more_than_burst_and_rate(
            steps in proptest::collection::vec(0..50_000_000u64, 1..400), rate in 1..2_000u64, burst in 1..200u64,
        ) {
            let mut bucket = Bucket::default();
            let (start, mut now, mut taken) = (1_000u64, 1_000u64, 0u64);
            for step in steps {
                now += step;
                taken += u64::from(bucket.take(now, rate, burst));
            }
            prop_assert!(taken <= burst + (now - start) * rate / 1_000_000_000 + 1);
        }
    }

    #[test]
    fn an_empty_bucket_fills_at_its_rate() {
        let mut bucket = Bucket::default();
        assert_eq!((0..20).filter(|_| bucket.take(1, 10, 5)).count(), 5);
        assert!(!bucket.take(50_000_000, 10, 5));
        assert!(bucket.take(101_000_001, 10, 5));
        assert!(!bucket.take(101_000_002, 10, 5));
    }
}
