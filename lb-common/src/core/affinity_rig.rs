//! Flow tables, a schedule and packets of one slot, for tests of the rules.

use super::{
    FlowCell, HalfOpenCell, Tables,
    affinity::{Ask, Place, Step, choose},
};
use crate::{
    abi::{
        BackendEntry, FlowEntry, FlowKey4, HalfOpen, ServiceEntry, Slot,
        SlotState::{self, Plain},
        VipEntry,
    },
    core::{Ip, Part},
    wire::proto,
};
use std::{cell::Cell, cell::RefCell, collections::BTreeMap, rc::Rc, vec, vec::Vec};

pub(super) const SERVICE: u32 = 5;
const HASH: u64 = 0x1234_5678_9abc_def0;
/// Backends: the home, the owner, and another.
pub(super) const A: u32 = 1;
pub(super) const B: u32 = 2;
pub(super) const C: u32 = 3;
const SECOND: u64 = 1_000_000_000;
/// The service's idle timeout, in seconds, and how long the daemon keeps entries: silent ones, ended ones and handshakes.
pub(super) const IDLE: u64 = 120;
pub(super) const KEPT: u64 = IDLE + 10;
pub(super) const CLOSING_KEPT: u64 = 60;
pub(super) const HANDSHAKE_KEPT: u64 = 30;

/// Flow tables with so much room, and a schedule.
pub(super) struct World {
    pub(super) service: ServiceEntry,
    pub(super) backends: Vec<BackendEntry>,
    pub(super) flows: RefCell<BTreeMap<FlowKey4, Rc<Cell<u64>>>>,
    pub(super) half_open: RefCell<BTreeMap<FlowKey4, Rc<Cell<HalfOpen>>>>,
    pub(super) room: Cell<usize>,
    pub(super) half_room: Cell<usize>,
    pub(super) schedule: RefCell<Vec<u64>>,
    pub(super) turns: Cell<u64>,
    pub(super) homed: Cell<u64>,
    pub(super) active: RefCell<BTreeMap<u32, i64>>,
    pub(super) now: Cell<u64>,
}

struct At(Rc<Cell<u64>>);

impl FlowCell for At {
    fn load(&self) -> FlowEntry {
        FlowEntry(self.0.get())
    }
    fn store(&self, entry: FlowEntry) {
        self.0.set(entry.0);
    }
}

struct HalfAt(Rc<Cell<HalfOpen>>);

impl FlowCell for HalfAt {
    fn load(&self) -> FlowEntry {
        FlowEntry(self.0.get().entry)
    }
    fn store(&self, entry: FlowEntry) {
        self.0.set(HalfOpen { entry: entry.0, ..self.0.get() });
    }
}

impl HalfOpenCell for HalfAt {
    fn isn(&self) -> u32 {
        self.0.get().isn
    }
}

impl Tables for World {
    fn vip4(&self, _: [u8; 4]) -> Option<&VipEntry> {
        None
    }
    fn vip6(&self, _: &[u8; 16]) -> Option<&VipEntry> {
        None
    }
    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        (id == SERVICE).then_some(&self.service)
    }
    fn slot(&self, _: u32) -> Option<Slot> {
        None
    }
    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        self.backends.get(id as usize)
    }
    fn flow4(&self, key: &FlowKey4) -> Option<impl FlowCell> {
        self.flows.borrow().get(key).cloned().map(At)
    }
    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool {
        let mut flows = self.flows.borrow_mut();
        if !flows.contains_key(key) && flows.len() >= self.room.get() {
            return false;
        }
        flows.entry(*key).or_insert_with(|| Rc::new(Cell::new(entry.0)));
        true
    }
    fn half_open4(&self, key: &FlowKey4) -> Option<impl HalfOpenCell> {
        self.half_open.borrow().get(key).cloned().map(HalfAt)
    }
    fn add_half_open4(&self, key: &FlowKey4, entry: HalfOpen) -> bool {
        let mut half_open = self.half_open.borrow_mut();
        if !half_open.contains_key(key) && half_open.len() >= self.half_room.get() {
            return false;
        }
        half_open.insert(*key, Rc::new(Cell::new(entry)));
        true
    }
    fn remove_half_open4(&self, key: &FlowKey4) {
        self.half_open.borrow_mut().remove(key);
    }
    fn schedule(&self, id: u32) -> Option<(u32, u32)> {
        (id == SERVICE).then(|| (0, self.schedule.borrow().len() as u32))
    }
    fn schedule_word(&self, index: u32) -> Option<u64> {
        self.schedule.borrow().get(index as usize).copied()
    }
    fn take_turn(&self, _: u32) -> u64 {
        self.turns.replace(self.turns.get() + 1)
    }
    fn homed_ns(&self, _: u32) -> u64 {
        self.homed.get()
    }
    fn note_homed(&self, id: u32, now_ns: u64) {
        assert_eq!(id, SERVICE);
        self.homed.set(now_ns);
    }
    fn active(&self, backend: u32) -> u64 {
        self.active.borrow().get(&backend).copied().unwrap_or(0) as u64
    }
    fn count_active(&self, backend: u32, more: bool) {
        *self.active.borrow_mut().entry(backend).or_default() += if more { 1 } else { -1 };
    }
    fn now_ns(&self) -> u64 {
        self.now.get()
    }
}

/// Where packets of one slot go.
pub(super) struct Rig {
    pub(super) world: World,
    pub(super) slot: Slot,
    pub(super) flags: u32,
    pub(super) proto: u8,
}

impl Rig {
    pub(super) fn new(owner: u32, home: u32, state: SlotState) -> Self {
        let backend = BackendEntry { kind: 1, service: SERVICE, ..BackendEntry::default() };
        let world = World {
            service: ServiceEntry { idle_ns: IDLE * SECOND, ..ServiceEntry::default() },
            backends: vec![BackendEntry::default(), backend, backend, backend],
            flows: RefCell::default(),
            half_open: RefCell::default(),
            room: Cell::new(100),
            half_room: Cell::new(100),
            schedule: RefCell::default(),
            turns: Cell::new(0),
            homed: Cell::new(0),
            active: RefCell::default(),
            now: Cell::new(1 << 40),
        };
        Self { world, slot: Slot::new(owner, home, state, 0), flags: 0, proto: proto::TCP }
    }

    pub(super) fn scheduled(flags: u32, words: &[u64]) -> Self {
        let rig = Self { flags, ..Self::new(A, A, Plain) };
        *rig.world.schedule.borrow_mut() = words.to_vec();
        rig
    }

    pub(super) fn slot(&mut self, owner: u32, home: u32, state: SlotState) {
        self.slot = Slot::new(owner, home, state, 0);
    }

    pub(super) fn packet(&self, client: u8, step: Step, seq: u32) -> u32 {
        let ip = Ip {
            l3: 14,
            header_len: 20,
            v6: false,
            total_len: 60,
            tos: 0,
            proto: self.proto,
            part: Part::Whole,
        };
        let ask = Ask {
            place: Place::of(&ip).of_service(SERVICE, self.flags).at(step),
            slot: self.slot,
            hash: HASH + u64::from(client),
            seq,
            now_ns: self.world.now.get(),
        };
        choose(&self.world, &ask, &key(client))
    }

    pub(super) fn syn(&self, client: u8, isn: u32) -> u32 {
        self.packet(client, Step::Begin, isn)
    }

    pub(super) fn data(&self, client: u8, seq: u32) -> u32 {
        self.packet(client, Step::Within, seq)
    }

    pub(super) fn ack(&self, client: u8, seq: u32) -> u32 {
        self.packet(client, Step::Acknowledge, seq)
    }

    pub(super) fn fin(&self, client: u8, seq: u32) -> u32 {
        self.packet(client, Step::End, seq)
    }

    /// Flows and handshakes recorded.
    pub(super) fn entries(&self) -> (usize, usize) {
        (self.world.flows.borrow().len(), self.world.half_open.borrow().len())
    }

    pub(super) fn entry(&self, client: u8) -> FlowEntry {
        FlowEntry(self.world.flows.borrow()[&key(client)].get())
    }

    pub(super) fn pass(&self, seconds: u64) {
        self.world.now.set(self.world.now.get() + seconds * SECOND);
    }

    /// Time passes, then the daemon forgets what is over.
    pub(super) fn walk(&self, seconds: u64) {
        self.pass(seconds);
        let now = self.world.now.get();
        let idle = |entry: u64| FlowEntry(entry).idle_ns(now);
        self.world.half_open.borrow_mut().retain(|_, half| {
            let entry = FlowEntry(half.get().entry);
            let kept = match (entry.is_half_open(), entry.is_closing()) {
                (true, _) => HANDSHAKE_KEPT,
                (false, true) => CLOSING_KEPT,
                (false, false) => KEPT,
            };
            idle(entry.0) <= kept * SECOND
        });
        self.world.flows.borrow_mut().retain(|_, entry| {
            let kept = if FlowEntry(entry.get()).is_closing() { CLOSING_KEPT } else { KEPT };
            idle(entry.get()) <= kept * SECOND
        });
    }

    /// The backend dies and comes back.
    pub(super) fn reborn(&mut self, backend: u32) {
        self.world.backends[backend as usize].incarnation += 1;
    }
}

fn key(client: u8) -> FlowKey4 {
    FlowKey4 { src: [203, 0, 113, client], dst: [192, 0, 2, 1], ports: [0x9c, 0x40, 0, 80], proto: 6 }
}
