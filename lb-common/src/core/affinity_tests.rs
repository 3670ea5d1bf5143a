//! The rules of the flow tables, a sequence of packets each.

use super::{
    FlowCell, HalfOpenCell, NoCell, Tables,
    affinity::{Ask, Place, Step, choose},
    schedule::weighted,
};
use crate::{
    abi::{
        BackendEntry, CidKey, FlowEntry, FlowKey4, FlowKey6, FragmentKey, FragmentTrace, HalfOpen, PortKey,
        PortRangeKey, ServiceEntry, Slot,
        SlotState::{self, Moving, Plain, Tracked},
        VipEntry,
    },
    core::{Ip, Part},
    wire::proto,
};
use std::{cell::Cell, cell::RefCell, collections::BTreeMap, rc::Rc, vec, vec::Vec};

const SERVICE: u32 = 5;
const HASH: u64 = 0x1234_5678_9abc_def0;
/// Backends: the home, the owner, and another.
const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;
const SECOND: u64 = 1_000_000_000;
/// The service's idle timeout, in seconds, and how long the daemon keeps entries: silent ones, ended ones and handshakes.
const IDLE: u64 = 120;
const KEPT: u64 = IDLE + 10;
const CLOSING_KEPT: u64 = 60;
const HANDSHAKE_KEPT: u64 = 30;

/// Flow tables with so much room, and a schedule.
struct World {
    service: ServiceEntry,
    backends: Vec<BackendEntry>,
    flows: RefCell<BTreeMap<FlowKey4, Rc<Cell<u64>>>>,
    half_open: RefCell<BTreeMap<FlowKey4, Rc<Cell<HalfOpen>>>>,
    room: Cell<usize>,
    half_room: Cell<usize>,
    schedule: RefCell<Vec<u64>>,
    turns: Cell<u64>,
    homed: Cell<u64>,
    active: RefCell<BTreeMap<u32, i64>>,
    now: Cell<u64>,
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
    fn port(&self, _: &PortKey) -> Option<u32> {
        None
    }
    fn port_range(&self, _: &PortRangeKey) -> Option<u32> {
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
    fn flow6(&self, _: &FlowKey6) -> Option<impl FlowCell> {
        None::<NoCell>
    }
    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool {
        let mut flows = self.flows.borrow_mut();
        if !flows.contains_key(key) && flows.len() >= self.room.get() {
            return false;
        }
        flows.entry(*key).or_insert_with(|| Rc::new(Cell::new(entry.0)));
        true
    }
    fn add_flow6(&self, _: &FlowKey6, _: FlowEntry) -> bool {
        false
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
    fn cid(&self, _: &CidKey) -> Option<u32> {
        None
    }
    fn now_ns(&self) -> u64 {
        self.now.get()
    }
    fn fragment_trace(&self, _: &FragmentKey) -> Option<FragmentTrace> {
        None
    }
    fn add_fragment_trace(&self, _: &FragmentKey, _: &FragmentTrace) {}
}

/// Where packets of one slot go.
struct Rig {
    world: World,
    slot: Slot,
    flags: u32,
    proto: u8,
}

impl Rig {
    fn new(owner: u32, home: u32, state: SlotState) -> Self {
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

    fn scheduled(flags: u32, words: &[u64]) -> Self {
        let rig = Self { flags, ..Self::new(A, A, Plain) };
        *rig.world.schedule.borrow_mut() = words.to_vec();
        rig
    }

    fn slot(&mut self, owner: u32, home: u32, state: SlotState) {
        self.slot = Slot::new(owner, home, state, 0);
    }

    fn packet(&self, client: u8, step: Step, seq: u32) -> u32 {
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

    fn syn(&self, client: u8, isn: u32) -> u32 {
        self.packet(client, Step::Begin, isn)
    }

    fn data(&self, client: u8, seq: u32) -> u32 {
        self.packet(client, Step::Within, seq)
    }

    fn ack(&self, client: u8, seq: u32) -> u32 {
        self.packet(client, Step::Acknowledge, seq)
    }

    fn fin(&self, client: u8, seq: u32) -> u32 {
        self.packet(client, Step::End, seq)
    }

    /// Flows and handshakes recorded.
    fn entries(&self) -> (usize, usize) {
        (self.world.flows.borrow().len(), self.world.half_open.borrow().len())
    }

    fn entry(&self, client: u8) -> FlowEntry {
        FlowEntry(self.world.flows.borrow()[&key(client)].get())
    }

    fn pass(&self, seconds: u64) {
        self.world.now.set(self.world.now.get() + seconds * SECOND);
    }

    /// Time passes, then the daemon forgets what is over.
    fn walk(&self, seconds: u64) {
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
    fn reborn(&mut self, backend: u32) {
        self.world.backends[backend as usize].incarnation += 1;
    }
}

fn key(client: u8) -> FlowKey4 {
    FlowKey4 { src: [203, 0, 113, client], dst: [192, 0, 2, 1], ports: [0x9c, 0x40, 0, 80], proto: 6 }
}

#[test]
fn a_handshake_on_a_moving_slot_is_confirmed_by_its_sequence_number() {
    for isn in [0, 7, u32::MAX - 5] {
        let rig = Rig::new(B, A, Moving);
        assert_eq!(rig.syn(1, isn), B);
        assert_eq!(rig.entries(), (0, 1));
        assert_eq!(rig.syn(1, isn), B, "sent again");
        assert_eq!(rig.data(1, isn.wrapping_add(65_536)), B, "the last of the first window");
        assert_eq!(rig.entries(), (1, 0), "promoted");
        assert_eq!(rig.data(1, isn.wrapping_add(99_999_999)), B);
        for stranger in [isn, isn.wrapping_sub(1), isn.wrapping_add(65_537), isn ^ 1 << 31] {
            let rig = Rig::new(B, A, Moving);
            assert_eq!((rig.syn(1, isn), rig.data(1, stranger)), (B, A), "{isn} {stranger}");
        }
    }
}

/// An established flow that has no entry yet lives at home; a SYN that somebody makes up in its name changes nothing.
#[test]
fn a_forged_syn_takes_no_flow_away() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!(rig.syn(1, 1_000_000), B);
    assert_eq!(rig.data(1, 77), A);
    assert_eq!(rig.syn(1, 2_000_000), A, "it is recorded now");
    assert_eq!(rig.data(1, 78), A);
}

#[test]
fn what_goes_home_anyway_needs_no_entry() {
    let rig = Rig::new(B, B, Tracked);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
    assert_eq!(rig.entries(), (0, 0));
    let rig = Rig::new(A, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.entries()), (A, (0, 0)));
    assert_eq!((rig.data(1, 6), rig.entries()), (A, (1, 0)), "a moving slot records who lives at home");
}

/// The owner goes back while a handshake with the one in between has not been answered; the client tries again with a
/// sequence number close to the first.
#[test]
fn a_new_handshake_at_home_takes_the_place_of_an_old_one_elsewhere() {
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!(rig.syn(1, 1000), B);
    rig.slot(A, A, Moving);
    assert_eq!(rig.syn(1, 1500), A);
    assert_eq!(rig.data(1, 1501), A);
}

#[test]
fn a_closing_flow_gives_way_to_a_new_one() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!((rig.data(1, 10), rig.fin(1, 11)), (A, A));
    assert!(rig.entry(1).is_closing());
    assert_eq!(rig.syn(1, 500_000), B);
    assert_eq!(rig.entries(), (1, 1));
    assert_eq!(rig.data(1, 12), A, "the old one has more to say");
    assert!(!rig.entry(1).is_closing() && rig.entry(1).is_pending());
    assert_eq!(rig.data(1, 500_001), B, "and the new one is confirmed all the same");
    assert_eq!(rig.entries(), (1, 0));
    assert_eq!(rig.data(1, 500_100), B);
    assert!(!rig.entry(1).is_pending());
}

#[test]
fn a_living_flow_is_not_moved_by_a_syn() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!((rig.data(1, 10), rig.syn(1, 99)), (A, A));
    assert_eq!((rig.entries(), rig.entry(1).is_pending()), ((1, 0), false));
}

/// The same addresses and ports again after so long a silence that the daemon may forget the entry between the SYN and its
/// acknowledgement, up to the last moment of a handshake: both go to the same backend.
#[test]
fn a_handshake_outlives_the_entry_that_its_syn_met() {
    for room in [100, 0] {
        for silence in 0..KEPT + 60 {
            for wait in [1, HANDSHAKE_KEPT - 3] {
                let rig = Rig::new(B, A, Moving);
                assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
                rig.pass(silence);
                rig.world.half_room.set(room);
                let to = rig.syn(1, 1 << 20);
                rig.walk(wait);
                assert_eq!(rig.data(1, (1 << 20) + 1), to, "{silence} s, {wait} s, room {room}");
            }
        }
    }
}

/// The same for a flow that ended, and a handshake that finds no room.
#[test]
fn without_room_a_closing_entry_outlives_the_handshake() {
    for silence in 0..CLOSING_KEPT + 10 {
        let mut rig = Rig::new(B, A, Moving);
        assert_eq!((rig.data(1, 10), rig.fin(1, 11)), (A, A));
        rig.pass(silence);
        rig.world.half_room.set(0);
        rig.slot(C, B, Moving);
        let to = rig.syn(1, 500_000);
        rig.walk(HANDSHAKE_KEPT - 3);
        assert_eq!(rig.ack(1, 500_001), to, "{silence} s");
        rig.walk(IDLE - 3);
        assert_eq!(rig.data(1, 500_001), to, "{silence} s: the new flow lives as long as any");
    }
}

/// The handshake's last step comes when it has been forgotten, or after a stranger's SYN took its place: it meets the entry that
/// closes, and from then on the flow lives there.
#[test]
fn a_flow_that_comes_too_late_to_be_confirmed_lives_on_in_the_closing_entry() {
    for forged in [false, true] {
        let mut rig = Rig::new(B, A, Moving);
        assert_eq!((rig.data(1, 10), rig.fin(1, 11), rig.ack(1, 12)), (A, A, A));
        assert!(rig.entry(1).is_closing(), "the last word of most connections");
        assert_eq!(rig.syn(1, 500_000), B);
        if forged {
            assert_eq!(rig.syn(1, 900_000_000), B);
        } else {
            rig.walk(HANDSHAKE_KEPT + 3);
            assert_eq!(rig.entries(), (1, 0));
        }
        assert_eq!(rig.ack(1, 500_001), A);
        rig.slot(B, B, Tracked);
        rig.walk(IDLE - 3);
        assert_eq!(rig.ack(1, 500_001), A, "forged {forged}");
    }
}

/// The same for one that was confirmed among the handshakes.
#[test]
fn an_entry_confirmed_in_place_outlives_the_handshake() {
    for closing in [false, true] {
        for silence in 0..KEPT + 10 {
            let mut rig = Rig::new(B, A, Moving);
            rig.world.room.set(0);
            assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
            if closing {
                assert_eq!(rig.fin(1, 7), B);
            }
            rig.pass(silence);
            rig.slot(C, A, Moving);
            let to = rig.syn(1, 1 << 20);
            if !closing && silence <= IDLE - 3 {
                assert_eq!(to, B, "{silence} s: the flow lives");
            }
            rig.walk(HANDSHAKE_KEPT - 3);
            assert_eq!(rig.ack(1, (1 << 20) + 1), to, "{silence} s, closing {closing}");
            rig.walk(IDLE - 3);
            assert_eq!(
                rig.data(1, (1 << 20) + 1),
                to,
                "{silence} s, closing {closing}: it lives as long as any"
            );
        }
    }
}

/// A flow that was silent for longer than the idle timeout is over: its successor goes where new flows go. One that was
/// silent for less is not, and no SYN takes it away.
#[test]
fn a_silent_flow_gives_way_to_a_new_one_after_the_idle_timeout_only() {
    for silence in 0..KEPT + 60 {
        let rig = Rig::new(B, A, Moving);
        assert_eq!(rig.data(1, 10), A);
        rig.pass(silence);
        let to = rig.syn(1, 1 << 20);
        match silence {
            0..=IDLE => assert_eq!(to, A, "{silence} s"),
            _ if silence > IDLE + 5 => assert_eq!(to, B, "{silence} s"),
            _ => {}
        }
        assert_eq!(rig.data(1, 11), A, "{silence} s: a stranger's SYN, perhaps");
    }
}

/// Who makes up SYNs keeps no entry alive.
#[test]
fn syns_keep_no_entry_alive() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!(rig.data(1, 10), A);
    for isn in 0..20 {
        rig.walk(10);
        rig.syn(1, isn << 20);
    }
    assert_eq!(rig.entries(), (0, 1));
    rig.walk(HANDSHAKE_KEPT + 3);
    assert_eq!(rig.entries(), (0, 0));
}

#[test]
fn a_full_table_of_handshakes_sends_new_flows_home() {
    let rig = Rig::new(B, A, Moving);
    rig.world.half_room.set(1);
    assert_eq!((rig.syn(1, 5), rig.syn(2, 5)), (B, A));
    assert_eq!((rig.data(1, 6), rig.data(2, 6)), (B, A));
    // One that has a place keeps it.
    assert_eq!((rig.syn(3, 5), rig.syn(3, 50), rig.data(3, 51)), (B, B, B));
}

/// A SYN for which there is no room, on a flow that closes: its acknowledgement will meet the old entry. It went home once,
/// and the next packet to another backend.
#[test]
fn without_room_a_new_flow_follows_the_closing_one() {
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!((rig.data(1, 10), rig.fin(1, 11)), (A, A));
    rig.world.half_room.set(0);
    rig.slot(C, B, Moving);
    assert_eq!(rig.syn(1, 500_000), A);
    assert_eq!(rig.data(1, 500_001), A);
}

/// A handshake that was recorded must not be lost because there is no room among the confirmed: it stays where it is.
#[test]
fn a_handshake_is_confirmed_in_place_where_there_is_no_room() {
    let mut rig = Rig::new(B, A, Moving);
    rig.world.room.set(0);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.data(1, 900_000)), (B, B, B));
    assert_eq!(rig.entries(), (0, 1));
    rig.slot(C, A, Moving);
    assert_eq!(rig.data(1, 900_001), B);
    assert_eq!(rig.fin(1, 900_002), B);
    // Nothing could hold both.
    assert_eq!((rig.syn(1, 7), rig.data(1, 8)), (B, B));
}

#[test]
fn a_fin_alone_is_recorded_as_closing() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!(rig.fin(1, 9), A);
    assert!(rig.entry(1).is_closing());
    let rig = Rig::new(B, B, Tracked);
    assert_eq!((rig.fin(1, 9), rig.entries()), (B, (0, 0)));
}

#[test]
fn entries_of_another_life_are_misses() {
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.syn(2, 5)), (B, B, B));
    rig.reborn(B);
    assert_eq!(rig.data(1, 7), A, "to the home, in the place of the dead entry");
    assert_eq!((rig.entries(), rig.entry(1).backend()), ((1, 1), A));
    assert_eq!(rig.data(2, 6), A, "a handshake of another life confirms nothing");
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
    rig.reborn(B);
    assert_eq!((rig.syn(1, 70), rig.data(1, 71)), (B, B));
}

#[test]
fn nobody_takes_new_flows_while_all_drain() {
    let rig = Rig::new(0, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.data(2, 6)), (0, A, A));
    assert_eq!(rig.entries(), (2, 0));
}

#[test]
fn round_robin_takes_turns_and_keeps_flows() {
    let mut rig = Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[A.into(), B.into(), C.into()]);
    for client in 0..30u8 {
        let turn = [A, B, C][usize::from(client) % 3];
        assert_eq!((rig.syn(client, 5), rig.syn(client, 5)), (turn, turn), "no turn for a SYN sent again");
        assert_eq!((rig.data(client, 6), rig.data(client, 1 << 30)), (turn, turn));
    }
    // Drained: no new flows at once, the old ones stay.
    *rig.world.schedule.borrow_mut() = vec![B.into(), C.into()];
    rig.slot(B, A, Moving);
    assert!((40..60).all(|client| rig.syn(client, 5) != A));
    assert_eq!(rig.data(0, 1 << 30), A);
    rig.world.schedule.borrow_mut().clear();
    assert_eq!(rig.syn(70, 5), 0, "nobody is left");
    assert_eq!(rig.data(80, 5), A, "unknown: home");
}

#[test]
fn a_scheduled_flow_without_room_stays_with_the_ring() {
    let rig = Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into(), C.into()]);
    rig.world.half_room.set(0);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.syn(2, 5)), (A, A, A));
    let rig = Rig { proto: proto::UDP, ..rig };
    rig.world.room.set(0);
    assert_eq!((rig.data(1, 0), rig.data(1, 0)), (A, A));
}

/// A datagram flow that found no room is at home, and nothing tells it from a new one when there is room again: until it
/// would be over anyway, unknown flows go home and are recorded there.
#[test]
fn a_datagram_flow_that_found_no_room_is_not_placed_anew() {
    for flags in [ServiceEntry::ROUND_ROBIN, ServiceEntry::LEAST_CONNECTIONS] {
        let words = [weighted(B, 1), weighted(C, 1)];
        let rig = Rig { proto: proto::UDP, ..Rig::scheduled(flags, &words) };
        assert_ne!(rig.data(9, 0), A, "placed");
        rig.world.room.set(1);
        assert_eq!(rig.data(1, 0), A);
        rig.pass(IDLE / 2);
        assert_eq!((rig.data(1, 0), rig.data(9, 0) != A), (A, true));
        rig.pass(IDLE / 2);
        rig.world.room.set(100);
        assert_eq!((rig.data(1, 0), rig.data(2, 0)), (A, A), "it may be older than it looks");
        assert_eq!(rig.entries().0, 3);
        let counts = [A, B, C].map(|id| rig.world.active(id)).iter().sum::<u64>();
        assert_eq!(counts, if flags == ServiceEntry::LEAST_CONNECTIONS { 3 } else { 0 });
        rig.pass(IDLE + 5);
        assert_ne!(rig.data(3, 0), A, "nobody without an entry is left");
        assert_eq!((rig.data(1, 0), rig.data(2, 0)), (A, A));
    }
}

/// Of a full flow table: each flow that could not be recorded, again and again while others find room.
#[test]
fn a_datagram_flow_at_home_stays_while_the_table_is_full_now_and_then() {
    let rig = Rig { proto: proto::UDP, ..Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into(), C.into()]) };
    let mut at = BTreeMap::new();
    for round in 0..60_usize {
        rig.world.room.set([0, 3, 1, 9, 5, 0, 0, 2, 12][round % 9]);
        for client in 0..10 {
            let now = rig.data(client, 0);
            assert_eq!(*at.entry(client).or_insert(now), now, "round {round}, client {client}");
        }
        rig.walk(IDLE - 3);
    }
}

#[test]
fn a_word_of_another_service_is_not_obeyed() {
    let mut rig = Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into()]);
    rig.world.backends[B as usize].service = SERVICE + 1;
    assert_eq!(rig.syn(1, 5), A);
}

#[test]
fn scheduled_datagrams_are_placed_at_once_and_stay() {
    let mut rig =
        Rig { proto: proto::UDP, ..Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into(), C.into()]) };
    assert_eq!((rig.data(1, 0), rig.data(2, 0), rig.data(1, 0), rig.data(2, 0)), (B, C, B, C));
    rig.reborn(B);
    assert_eq!((rig.data(1, 0), rig.data(1, 0)), (B, B), "a new life, a new turn");
}

#[test]
fn least_connections_counts_open_flows() {
    let words: Vec<u64> = [(A, 1), (B, 1), (C, 2)].map(|(id, weight)| weighted(id, weight)).to_vec();
    let rig = Rig::scheduled(ServiceEntry::LEAST_CONNECTIONS, &words);
    let mut clients = BTreeMap::<u32, Vec<u8>>::new();
    for client in 0..40 {
        let backend = rig.syn(client, 5);
        assert_eq!((rig.data(client, 6), rig.data(client, 7)), (backend, backend));
        clients.entry(backend).or_default().push(client);
    }
    let counts = |rig: &Rig| [A, B, C].map(|id| rig.world.active(id));
    assert_eq!(counts(&rig), [10, 10, 20]);
    for client in &clients[&B] {
        rig.fin(*client, 8);
        rig.fin(*client, 9);
    }
    assert_eq!(counts(&rig), [10, 0, 20], "a FIN counts once");
    assert!((100..105).all(|client| rig.syn(client, 5) == B));
    rig.data(clients[&B][0], 10);
    assert_eq!(counts(&rig), [10, 1, 20], "data brings it back");
    // A new connection with the addresses and ports of one that closed.
    let first = clients[&A][0];
    rig.fin(first, 11);
    assert_eq!(counts(&rig), [9, 1, 20]);
    assert_eq!((rig.syn(first, 1 << 20), rig.data(first, (1 << 20) + 1)), (B, B));
    assert_eq!(counts(&rig), [9, 2, 20]);
    rig.world.active.borrow_mut().insert(C, -3);
    assert_eq!(rig.syn(200, 5), C, "less than nothing is nothing");
}

/// All backends are compared, not a part of them; equals take turns.
#[test]
fn least_connections_finds_the_only_one_with_room() {
    for size in [1, 2, 17, 255, 256] {
        let words: Vec<u64> = (1..=size).map(|id| weighted(id, 10)).collect();
        let rig = Rig::scheduled(ServiceEntry::LEAST_CONNECTIONS, &words);
        let picked = |rig: &Rig| crate::core::schedule::pick(&rig.world, SERVICE, true);
        let mut turns: Vec<u32> = (0..size).map(|_| picked(&rig)).collect();
        turns.sort_unstable();
        assert_eq!(turns, (1..=size).collect::<Vec<_>>());
        for id in 1..=size {
            rig.world.active.borrow_mut().insert(id, 1000);
        }
        for id in 1..=size {
            rig.world.active.borrow_mut().insert(id, 999);
            assert!((0..3).all(|_| picked(&rig) == id), "{id} of {size}");
            rig.world.active.borrow_mut().insert(id, 1000);
        }
    }
    let rig = Rig::scheduled(ServiceEntry::LEAST_CONNECTIONS, &[weighted(A, 65_535), weighted(B, 1)]);
    rig.world.active.borrow_mut().extend([(A, 65_534), (B, 1)]);
    assert_eq!(crate::core::schedule::pick(&rig.world, SERVICE, true), A, "65,534 / 65,535 is less than one");
    rig.world.active.borrow_mut().extend([(A, 1 << 40), (B, 1 << 41)]);
    assert_eq!(crate::core::schedule::pick(&rig.world, SERVICE, true), A, "whatever the counts say");
}

/// The case that matters for speed asks for one entry; the marks tell it from the others.
#[test]
fn an_entry_with_a_handshake_beside_it_is_marked() {
    let rig = Rig::new(B, A, Moving);
    rig.data(1, 10);
    assert!(!rig.entry(1).is_pending());
    rig.fin(1, 11);
    rig.syn(1, 500_000);
    assert!(rig.entry(1).is_pending());
}
