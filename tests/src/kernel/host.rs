//! The twin: the same core on the host, with the counting and sending of the kernel's shell written a second time.

use super::{Counter, Counters, Flows, INGRESS, Outcome, Verdict};
use lb_common::{
    abi::{
        BackendEntry, CidKey, FlowEntry, FlowKey4, FlowKey6, PortKey, PortRangeKey, ServiceEntry, Slot,
        VipEntry,
    },
    core::{Decision, DropReason, FlowCell, Tables, decide, forward, icmp},
    packet::Buffer,
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
            recorded: Cell::default(),
        };
        Self { tables, counters: Counters::default() }
    }

    /// Goes on with another image; flows stay.
    pub fn set_image(&mut self, image: &'a Image) {
        self.tables.image = Memory(image);
    }

    /// What it counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        counters.add_stats(Counter::FlowsRecorded, (self.tables.recorded.get(), 0));
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
            Decision::Pass => return Verdict::Pass,
            Decision::Drop(refusal) => return self.refuse(refusal.reason),
            Decision::Forward(to) => to,
        };
        match forward::rewrite(buffer, &to) {
            Ok(()) => {
                let bytes = u64::from(to.ip.total_len);
                self.counters.add_stats(Counter::Service(to.service), (1, bytes));
                self.counters.add_stats(Counter::Backend(to.backend_id), (1, bytes));
                if to.backend.ifindex == INGRESS { Verdict::Tx } else { Verdict::Redirect }
            }
            Err(DropReason::TooBig) => {
                if icmp::too_big(buffer, to.ip.l3, to.ip.v6, forward::path_mtu(to.backend)).is_none() {
                    return self.refuse(DropReason::TooBigUnanswered);
                }
                self.refuse(DropReason::TooBig);
                Verdict::Tx
            }
            Err(reason) => self.refuse(reason),
        }
    }

    fn refuse(&mut self, reason: DropReason) -> Verdict {
        self.counters.add_stats(reason.into(), (1, 0));
        Verdict::Drop
    }
}

/// An image, and flow tables beside it.
struct Recording<'a> {
    image: Memory<'a>,
    flows4: RefCell<BTreeMap<FlowKey4, Rc<Cell<u64>>>>,
    flows6: RefCell<BTreeMap<FlowKey6, Rc<Cell<u64>>>>,
    recorded: Cell<u64>,
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
    fn cid(&self, key: &CidKey) -> Option<u32> {
        self.image.cid(key)
    }
    /// Entries are compared without their time, so any will do.
    fn now_ns(&self) -> u64 {
        0
    }
    fn icmp_token(&self) -> bool {
        true
    }
}
