//! The twin: the same core on the host, with the counting and sending of the kernel's shell written a second time.

use super::{Counter, Counters, Flows, INGRESS, Outcome, Verdict};
use lb_common::{
    abi::{
        AddressEntry, AddressKey, BackendEntry, CidKey, Control, FlowEntry, FlowKey4, FlowKey6, FragmentKey,
        FragmentTrace, HalfOpen, Lease, PortKey, PortRangeKey, ServiceEntry, Signal, Slot, VipEntry,
    },
    core::{
        AnswerKind, Decision, DropReason, FlowCell, HalfOpenCell, Neighbour, Part, Tables,
        affinity::{Place, Step},
        decide, echo, forward, fragment,
        guard::Admission,
        icmp::{self, Message},
        neighbour::{self, Resolved},
        reject,
    },
    hash,
    packet::{Buffer, Packet},
};
use lb_userspace::plan::{Image, Memory};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

/// The balancer on the host, over an image.
pub struct Host<'a> {
    tables: Recording<'a>,
    counters: Counters,
}

impl<'a> Host<'a> {
    /// A balancer that has counted nothing yet. Its ICMP answers are not limited.
    #[must_use]
    pub fn new(image: &'a Image) -> Self {
        let tables = Recording {
            image: Memory(image),
            flows4: RefCell::default(),
            flows6: RefCell::default(),
            half_open4: RefCell::default(),
            half_open6: RefCell::default(),
            turns: RefCell::default(),
            active: RefCell::default(),
            recorded: Cell::default(),
            traces: RefCell::default(),
            syns: RefCell::default(),
            signals: RefCell::default(),
            addresses: BTreeMap::new(),
            leases: RefCell::default(),
        };
        Self { tables, counters: Counters::default() }
    }

    /// The virtual addresses that it may answer for, and their leases. Its clock stands at 0.
    pub fn set_addresses(
        &mut self,
        addresses: &BTreeMap<AddressKey, AddressEntry>,
        leases: &BTreeMap<u32, Lease>,
    ) {
        self.tables.addresses.clone_from(addresses);
        self.tables.leases = RefCell::new(leases.clone());
    }

    /// The leases as they are by now.
    #[must_use]
    pub fn leases(&self) -> BTreeMap<u32, Lease> {
        self.tables.leases.borrow().clone()
    }

    /// Goes on with another image; flows stay.
    pub fn set_image(&mut self, image: &'a Image) {
        self.tables.image = Memory(image);
    }

    /// Forgets the traces of fragments.
    pub fn forget_fragments(&mut self) {
        self.tables.traces.borrow_mut().clear();
    }

    /// What it counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        counters.add_stats(Counter::FlowsRecorded, (self.tables.recorded.get(), 0));
        for ((backend, signal), count) in self.tables.signals.borrow().iter() {
            counters.add_stats(Counter::Signal(*backend, *signal), (*count, 0));
        }
        counters
    }

    /// The flows it knows.
    #[must_use]
    pub fn flows(&self) -> Flows {
        let mut flows = Flows::default();
        for (key, word) in self.tables.flows4.borrow().iter() {
            flows.add4(*key, FlowEntry(word.get()));
        }
        for (key, word) in self.tables.flows6.borrow().iter() {
            flows.add6(*key, FlowEntry(word.get()));
        }
        for (key, half) in self.tables.half_open4.borrow().iter() {
            flows.add_half_open4(*key, half.get());
        }
        for (key, half) in self.tables.half_open6.borrow().iter() {
            flows.add_half_open6(*key, half.get());
        }
        flows
    }

    /// What the kernel should do with a frame that comes in by [`INGRESS`].
    pub fn run(&mut self, frame: &[u8]) -> Outcome {
        let mut buffer = Buffer::new(frame);
        let verdict = self.handle(&mut buffer);
        Outcome { verdict, frame: buffer.frame().to_vec() }
    }

    fn handle(&mut self, buffer: &mut Buffer) -> Verdict {
        let to = match decide(buffer, &self.tables) {
            Decision::Pass | Decision::Back(_) => return Verdict::Pass,
            Decision::Neighbour(at) => return self.neighbour(buffer, at),
            Decision::Drop(refusal) => return self.refuse(refusal.reason),
            Decision::Answer(answer) => {
                let (l3, v6) = (answer.l3, answer.v6);
                let told = match answer.kind {
                    AnswerKind::Echo => echo::reply(buffer, l3, v6),
                    AnswerKind::Expired => icmp::tell(buffer, l3, v6, Message::expired(v6)),
                    AnswerKind::Reset => reject::reset(buffer, l3, answer.header_len, v6),
                    AnswerKind::Unreachable => icmp::tell(buffer, l3, v6, Message::port_unreachable(v6)),
                };
                return self.answered(told, answer.kind.answered(), answer.kind.unanswered());
            }
            Decision::Forward(to) | Decision::Session(to, _) | Decision::Steer(to) => to,
        };
        if to.ip.part == Part::First {
            let entropy = hash::entropy(to.hash);
            fragment::trace(buffer, &self.tables, to.ip.l3, to.ip.v6, to.backend_id, entropy);
        }
        match forward::rewrite(buffer, &to) {
            Ok(()) => {
                let bytes = u64::from(to.ip.total_len);
                self.counters.add_stats(Counter::Service(to.service), (1, bytes));
                self.counters.add_stats(Counter::Backend(to.backend_id), (1, bytes));
                if to.backend.ifindex == INGRESS { Verdict::Tx } else { Verdict::Redirect }
            }
            Err(DropReason::TooBig) => {
                let message = Message::too_big(to.ip.v6, forward::path_mtu(to.backend));
                let told = match to.ip.may_be_answered() {
                    true => icmp::tell(buffer, to.ip.l3, to.ip.v6, message),
                    false => None,
                };
                self.answered(told, DropReason::TooBig, DropReason::TooBigUnanswered)
            }
            Err(reason) => self.refuse(reason),
        }
    }

    fn neighbour(&mut self, buffer: &mut Buffer, at: Neighbour) -> Verdict {
        let resolve = if at.v6 { neighbour::neighbour } else { neighbour::arp };
        let resolved = resolve(buffer, &self.tables, at.l3, INGRESS);
        match resolved {
            Resolved::ANSWERED => {
                self.refuse(DropReason::NeighbourAnswered);
                Verdict::Tx
            }
            Resolved::UNANSWERED => self.refuse(DropReason::NeighbourUnanswered),
            Resolved::OVER => self.refuse(DropReason::LeaseOver),
            _ => Verdict::Pass,
        }
    }

    fn answered(&mut self, told: Option<()>, yes: DropReason, no: DropReason) -> Verdict {
        if told.is_none() {
            return self.refuse(no);
        }
        self.refuse(yes);
        Verdict::Tx
    }

    fn refuse(&mut self, reason: DropReason) -> Verdict {
        self.counters.add_stats(reason.into(), (1, 0));
        Verdict::Drop
    }
}

/// An image, and flow tables and traces of fragments beside it.
struct Recording<'a> {
    image: Memory<'a>,
    flows4: RefCell<BTreeMap<FlowKey4, Rc<Cell<u64>>>>,
    flows6: RefCell<BTreeMap<FlowKey6, Rc<Cell<u64>>>>,
    half_open4: RefCell<BTreeMap<FlowKey4, Rc<Cell<HalfOpen>>>>,
    half_open6: RefCell<BTreeMap<FlowKey6, Rc<Cell<HalfOpen>>>>,
    turns: RefCell<BTreeMap<u32, u64>>,
    active: RefCell<BTreeMap<u32, u64>>,
    recorded: Cell<u64>,
    traces: RefCell<BTreeMap<FragmentKey, FragmentTrace>>,
    syns: RefCell<BTreeMap<u32, u64>>,
    signals: RefCell<BTreeMap<(u32, Signal), u64>>,
    addresses: BTreeMap<AddressKey, AddressEntry>,
    leases: RefCell<BTreeMap<u32, Lease>>,
}

struct Entry(Rc<Cell<u64>>);

impl FlowCell for Entry {
    fn load(&self) -> FlowEntry {
        FlowEntry(self.0.get())
    }

    fn store(&self, entry: FlowEntry) {
        self.0.set(entry.0);
    }
}

struct Handshake(Rc<Cell<HalfOpen>>);

impl FlowCell for Handshake {
    fn load(&self) -> FlowEntry {
        FlowEntry(self.0.get().entry)
    }

    fn store(&self, entry: FlowEntry) {
        self.0.set(HalfOpen { entry: entry.0, ..self.0.get() });
    }
}

impl HalfOpenCell for Handshake {
    fn isn(&self) -> u32 {
        self.0.get().isn
    }
}

impl Recording<'_> {
    fn record<K: Ord>(&self, flows: &RefCell<BTreeMap<K, Rc<Cell<u64>>>>, key: K, entry: FlowEntry) -> bool {
        flows.borrow_mut().entry(key).or_insert_with(|| Rc::new(Cell::new(entry.0)));
        self.recorded.set(self.recorded.get() + 1);
        true
    }
}

impl Tables for Recording<'_> {
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
    fn flow4(&self, key: &FlowKey4) -> Option<impl FlowCell> {
        self.flows4.borrow().get(key).cloned().map(Entry)
    }
    fn flow6(&self, key: &FlowKey6) -> Option<impl FlowCell> {
        self.flows6.borrow().get(key).cloned().map(Entry)
    }
    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool {
        self.record(&self.flows4, *key, entry)
    }
    fn add_flow6(&self, key: &FlowKey6, entry: FlowEntry) -> bool {
        self.record(&self.flows6, *key, entry)
    }
    fn half_open4(&self, key: &FlowKey4) -> Option<impl HalfOpenCell> {
        self.half_open4.borrow().get(key).cloned().map(Handshake)
    }
    fn half_open6(&self, key: &FlowKey6) -> Option<impl HalfOpenCell> {
        self.half_open6.borrow().get(key).cloned().map(Handshake)
    }
    fn add_half_open4(&self, key: &FlowKey4, half: HalfOpen) -> bool {
        self.half_open4.borrow_mut().insert(*key, Rc::new(Cell::new(half)));
        true
    }
    fn add_half_open6(&self, key: &FlowKey6, half: HalfOpen) -> bool {
        self.half_open6.borrow_mut().insert(*key, Rc::new(Cell::new(half)));
        true
    }
    fn remove_half_open4(&self, key: &FlowKey4) {
        self.half_open4.borrow_mut().remove(key);
    }
    fn remove_half_open6(&self, key: &FlowKey6) {
        self.half_open6.borrow_mut().remove(key);
    }
    fn schedule(&self, id: u32) -> Option<(u32, u32)> {
        self.image.schedule(id)
    }
    fn schedule_word(&self, index: u32) -> Option<u64> {
        self.image.schedule_word(index)
    }
    fn take_turn(&self, id: u32) -> u64 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(id).or_default();
        *turn += 1;
        *turn - 1
    }
    fn active(&self, backend: u32) -> u64 {
        self.active.borrow().get(&backend).copied().unwrap_or(0)
    }
    fn count_active(&self, backend: u32, more: bool) {
        let mut active = self.active.borrow_mut();
        let count = active.entry(backend).or_default();
        *count = count.wrapping_add(if more { 1 } else { u64::MAX });
    }
    fn cid(&self, key: &CidKey) -> Option<u32> {
        self.image.cid(key)
    }
    /// Entries are compared without their time, so any will do.
    fn now_ns(&self) -> u64 {
        0
    }
    fn syn_cell(&self, index: u32) -> Option<u64> {
        Some(self.syns.borrow().get(&index).copied().unwrap_or(0))
    }
    fn set_syn_cell(&self, index: u32, cell: u64) {
        self.syns.borrow_mut().insert(index, cell);
    }
    fn count_signal(&self, backend: u32, signal: Signal) {
        *self.signals.borrow_mut().entry((backend, signal)).or_default() += 1;
    }
    fn fragment_trace(&self, key: &FragmentKey) -> Option<FragmentTrace> {
        self.traces.borrow().get(key).copied()
    }
    fn add_fragment_trace(&self, key: &FragmentKey, trace: &FragmentTrace) {
        self.traces.borrow_mut().insert(*key, *trace);
    }
    fn switches(&self) -> u32 {
        if self.addresses.is_empty() { 0 } else { Control::ADDRESSES }
    }
    fn address(&self, key: &AddressKey) -> Option<AddressEntry> {
        self.addresses.get(key).copied()
    }
    fn lease(&self, index: u32) -> Lease {
        self.leases.borrow().get(&index).copied().unwrap_or(Lease::NONE)
    }
    fn end_lease(&self, index: u32, _: Lease) {
        self.leases.borrow_mut().insert(index, Lease::OVER);
    }
    fn denied4(&self, source: u32) -> bool {
        self.image.denied4(source)
    }
    fn denied6(&self, hi: u64, lo: u64) -> bool {
        self.image.denied6(hi, lo)
    }
    fn admit<P: Packet>(&self, packet: &P, place: Place, service: u32, flags: u32, step: Step) -> Admission {
        self.image.admit(packet, place, service, flags, step)
    }
}
