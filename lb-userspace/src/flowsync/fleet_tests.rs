//! Random histories of three nodes that forward the flows of one part at the same time.

use super::*;
use crate::plan::Ring;
use lb_common::abi::{FlowEntry, FlowKey4, Slot, SlotState};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

const NODES: usize = 3;
const BACKENDS: u32 = 4;
const SIZE: u32 = 13;
const UNIT: u64 = FlowEntry::UNIT_NS;
const IDLE: Duration = Duration::from_secs(60);
/// After so long without a packet nobody asks for a flow any more.
const LIFE: u64 = 70_000_000_000;

fn address(n: u32) -> IpAddr {
    IpAddr::from([10, 2, 0, n as u8])
}

/// The numbers of each node are its own.
fn id(node: usize, n: u32) -> u32 {
    10 * (node as u32 + 1) + n
}

fn scope(node: usize) -> Scope {
    let part = node as u32 + 1;
    let member = Member {
        service: "www".to_owned(),
        instance: String::new(),
        seed: 7,
        idle: IDLE,
        ring: (0..SIZE).map(|n| Slot::new(id(node, n % 2), id(node, n % 3), SlotState::Moving, 0)).collect(),
        records: true,
        is_authority: false,
    };
    let peer = |n: u32| {
        let name = format!("b{n}");
        (id(node, n), Peer { part, name, address: address(n), incarnation: node as u8, is_dead: false })
    };
    Scope {
        parts: BTreeMap::from([(part, member)]),
        backends: (0..BACKENDS).map(peer).collect(),
        claim: Claim::default(),
    }
}

struct Node {
    scope: Scope,
    table: HashMap<Key, Value>,
    /// Flows that it has met packets of.
    met: HashSet<Key>,
    copies: Copies,
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    words: Option<(u64, Ring)>,
}

/// The last packet of a flow.
#[derive(Debug, Clone, Copy)]
struct Truth {
    backend: u32,
    at: u64,
}

struct Fleet {
    nodes: Vec<Node>,
    now: u64,
    truth: HashMap<Key, Truth>,
}

fn key(n: u8) -> Key {
    let key = FlowKey4 { src: [10, 1, 0, n], dst: [192, 0, 2, 1], ports: [1, n, 0, 80], proto: 6 };
    Key::v4(Table::Flows4, &key)
}

impl Fleet {
    fn new() -> Self {
        let node = |node: usize| Node {
            scope: scope(node),
            table: HashMap::new(),
            met: HashSet::new(),
            copies: Copies::default(),
            senders: (0..NODES).map(|_| Sender::default()).collect(),
            receivers: (0..NODES).map(|_| Receiver::new(BTreeMap::new())).collect(),
            words: None,
        };
        let mut fleet =
            Self { nodes: (0..NODES).map(node).collect(), now: 5_000 * UNIT, truth: HashMap::new() };
        (0..NODES).for_each(|node| fleet.connect(node));
        fleet
    }

    /// New connections of a node with all others.
    fn connect(&mut self, node: usize) {
        for peer in (0..NODES).filter(|peer| *peer != node) {
            for (a, b) in [(node, peer), (peer, node)] {
                self.nodes[a].receivers[b].stop();
                self.nodes[a].senders[b].begin();
            }
        }
    }

    /// A packet of a flow comes to a node. One that the node does not know goes where the flow is, or to the backend that is named.
    fn packet(&mut self, key: Key, node: usize, backend: u32, begins: bool) {
        let alive = |at: u64, now: u64| now - at <= LIFE;
        let known = self.nodes[node].table.get(&key).map(|value| value.entry.backend() - id(node, 0));
        let truth = self.truth.get(&key).filter(|truth| alive(truth.at, self.now)).copied();
        let goes = match (begins, known, truth) {
            (true, ..) | (false, None, None) => backend,
            (false, Some(known), _) => known,
            (false, None, Some(truth)) => truth.backend,
        };
        if truth.is_some_and(|truth| truth.backend != goes) {
            // The clock of entries tells what comes later.
            self.now += 2 * UNIT;
        }
        let incarnation = u16::from(self.nodes[node].scope.backends[&id(node, goes)].incarnation);
        let entry = |now: u64| FlowEntry::new(id(node, goes), incarnation, 5, now, false);
        if self.nodes[node].table.get(&key).is_some_and(|value| value.entry == entry(self.now)) {
            // A packet at the very time that a copy is dated ahead to cannot be told from none.
            self.now += UNIT;
        }
        let entry = entry(self.now);
        self.nodes[node].table.insert(key, Value::flow(entry));
        self.nodes[node].met.insert(key);
        self.truth.insert(key, Truth { backend: goes, at: self.now });
    }

    /// Every node looks at its table and says what is new; `lost` names the frames that do not arrive.
    fn round(&mut self, lost: impl Fn(usize) -> bool) {
        let mut number = 0;
        for from in 0..NODES {
            let node = &mut self.nodes[from];
            node.copies.begin();
            let whose: Vec<_> = node
                .table
                .iter()
                .map(|(key, value)| (*key, value.clone(), node.scope.whose(key, value, &mut node.copies)))
                .collect();
            node.copies.end();
            for to in (0..NODES).filter(|to| *to != from) {
                let node = &mut self.nodes[from];
                node.senders[to].describe(&node.scope);
                let mut round = node.senders[to].round(&node.scope, self.now);
                for (key, value, whose) in &whose {
                    round.entry(*key, value.clone(), *whose);
                }
                round.finish();
                while let Some(frame) = self.nodes[from].senders[to].next().cloned() {
                    self.nodes[from].senders[to].sent();
                    number += 1;
                    if !lost(number - 1) {
                        let node = &mut self.nodes[to];
                        node.receivers[from].frame(&frame, &node.scope, self.now).unwrap();
                        self.carry_out(to, from);
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, to: usize, from: usize) {
        let node = &mut self.nodes[to];
        for effect in node.receivers[from].effects() {
            match effect {
                Effect::Offer(key, value, offer) => {
                    let here = node.table.get(&key);
                    if let Some(taken) = node.copies.takes(&key, here, &value, offer, &node.scope) {
                        node.copies.wrote(key, &value, taken);
                        node.table.insert(key, value);
                    } else if Copies::contests(node.table.get(&key), &value) {
                        node.senders.iter_mut().for_each(|sender| sender.tell_again(&key));
                    }
                }
                Effect::Words { followed, .. } => {
                    let known = |name: &str, address: IpAddr| {
                        let backends = &node.scope.backends;
                        let same = |peer: &Peer| peer.name == name && peer.address == address;
                        backends.iter().find(|(_, peer)| same(peer)).map(|(id, _)| *id)
                    };
                    let ring = followed.ring(known, |_| true);
                    node.words = Some((followed.fleet.unwrap(), ring));
                }
                Effect::AskAgain => node.senders[from].ask_again(),
                Effect::BeginAgain => node.senders[from].begin(),
                Effect::Complete(parts) => {
                    assert!(parts.is_empty(), "nothing is removed for being unknown there");
                }
                Effect::Put(..) | Effect::Gone(_) | Effect::Resize { .. } => panic!("{effect:?}"),
            }
        }
    }

    /// Every node forgets what is over.
    fn walk(&mut self) {
        let now = self.now;
        for node in &mut self.nodes {
            node.table.retain(|_, value| value.entry.idle_ns(now) <= LIFE);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (key, truth) in self.truth.iter().filter(|(_, truth)| self.now - truth.at <= LIFE - UNIT) {
            for (number, node) in self.nodes.iter().enumerate() {
                let Some(value) = node.table.get(key) else {
                    return Err(TestCaseError::fail(format!("node {number} lacks {key:?} {truth:?}")));
                };
                prop_assert_eq!(
                    value.entry.backend(),
                    id(number, truth.backend),
                    "node {} of {:?}",
                    number,
                    truth
                );
                prop_assert!(node.scope.is_alive(value.entry));
                // A node's own packets end what the copy was dated ahead by; the other node tells of its packets four times in T.
                let untold = if node.met.contains(key) { u64::from(scope::refresh_units(IDLE)) } else { 0 };
                // Both times of the clock of entries are rounded down.
                prop_assert!(
                    value.entry.idle_ns(self.now) <= self.now - truth.at + (1 + untold) * UNIT,
                    "node {}: {:?}",
                    number,
                    value
                );
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Over some node: ECMP may move a flow at any time.
    Packet {
        key: u8,
        node: usize,
        backend: u32,
    },
    /// The same addresses and ports again, placed anew.
    Begins {
        key: u8,
        node: usize,
        backend: u32,
    },
    Later(u64),
    Round(Option<usize>),
    /// All its connections are new ones.
    Reconnects(usize),
    /// It begins with empty tables.
    Restarts(usize),
    Walk,
}

fn step() -> impl Strategy<Value = Step> {
    let packet = || (0..12u8, 0..NODES, 0..BACKENDS);
    prop_oneof![
        10 => packet().prop_map(|(key, node, backend)| Step::Packet { key, node, backend }),
        3 => packet().prop_map(|(key, node, backend)| Step::Begins { key, node, backend }),
        4 => (0..12 * UNIT).prop_map(Step::Later),
        6 => proptest::option::weighted(0.3, 0..12usize).prop_map(Step::Round),
        1 => (0..NODES).prop_map(Step::Reconnects),
        1 => (0..NODES).prop_map(Step::Restarts),
        2 => Just(Step::Walk),
    ]
}

proptest! {
    /// Whatever was lost, and whoever restarted or moved: once everything is said, every node sends every flow where its last packet went, and
    /// forgets it no sooner than the node that saw that packet, or a quarter of T sooner where it has met packets of it itself.
    #[test]
    fn all_nodes_know_where_every_flow_is(steps in proptest::collection::vec(step(), 1..150)) {
        let mut fleet = Fleet::new();
        for step in steps {
            match step {
                Step::Packet { key: n, node, backend } => fleet.packet(key(n), node, backend, false),
                Step::Begins { key: n, node, backend } => fleet.packet(key(n), node, backend, true),
                Step::Later(by) => fleet.now += by,
                Step::Round(lost) => fleet.round(|number| Some(number) == lost),
                Step::Reconnects(node) => fleet.connect(node),
                Step::Restarts(node) => {
                    // What it alone knew is lost with it.
                    (0..3).for_each(|_| fleet.round(|_| false));
                    (fleet.nodes[node].table, fleet.nodes[node].copies) = Default::default();
                    fleet.nodes[node].met.clear();
                    fleet.connect(node);
                    (0..2).for_each(|_| fleet.round(|_| false));
                }
                Step::Walk => fleet.walk(),
            }
        }
        // What was lost is noticed by the next frame, and what was asked for in vain is asked for again.
        for _ in 0..8 {
            fleet.round(|_| false);
        }
        fleet.check()?;
    }
}

/// A handful of flows, each seen by one node only, is told by that node only and only once.
#[test]
fn at_rest_nothing_is_said() {
    let mut fleet = Fleet::new();
    for n in 0..12 {
        fleet.packet(key(n), usize::from(n) % NODES, 1, true);
    }
    fleet.round(|_| false);
    let told = |fleet: &Fleet| -> Vec<(u64, u64)> {
        fleet.nodes.iter().flat_map(|node| &node.senders).map(|sender| (sender.put, sender.gone)).collect()
    };
    let before = told(&fleet);
    for _ in 0..5 {
        fleet.now += UNIT;
        fleet.round(|_| false);
    }
    assert_eq!(told(&fleet), before);
    fleet.check().unwrap();
}

/// Who comes is told of the flows of a node that is gone.
#[test]
fn the_flows_of_a_dead_node_are_told_to_who_comes() {
    let mut fleet = Fleet::new();
    fleet.packet(key(1), 0, 3, true);
    fleet.round(|_| false);
    for node in [1, 2] {
        fleet.nodes[node].receivers[0].stop();
        fleet.nodes[node].senders[0].stop();
    }
    fleet.nodes[0] = Node {
        table: HashMap::new(),
        ..std::mem::replace(&mut fleet.nodes[0], Fleet::new().nodes.remove(0))
    };
    (fleet.nodes[2].table, fleet.nodes[2].copies) = Default::default();
    for (a, b) in [(1, 2), (2, 1)] {
        fleet.nodes[a].receivers[b].stop();
        fleet.nodes[a].senders[b].begin();
    }
    for to in [1, 2] {
        fleet.nodes[0].senders[to].stop();
    }
    fleet.round(|_| false);
    assert_eq!(fleet.nodes[2].table[&key(1)].entry.backend(), id(2, 3));
}

/// Words are those of the node that leads, and of nobody else; those that are said again in a later epoch count in that.
#[test]
fn words_are_the_authoritys() {
    let mut fleet = Fleet::new();
    fleet.round(|_| false);
    assert!(fleet.nodes.iter().all(|node| node.words.is_none()), "nobody leads");
    let said = |node: &Node, by: usize| -> Vec<(u32, u32)> {
        let slots = node.words.as_ref().unwrap().1.iter();
        slots.map(|slot| (slot.owner() - id(by, 0), slot.home() - id(by, 0))).collect()
    };
    let expected: Vec<(u32, u32)> = (0..SIZE).map(|n| (n % 2, n % 3)).collect();
    for epoch in [4, 9] {
        fleet.nodes[1].scope.claim = Claim { epoch, leads: true };
        fleet.nodes[0].scope.claim = Claim { epoch, leads: false };
        fleet.round(|_| false);
        for number in [0, 2] {
            let node = &fleet.nodes[number];
            assert_eq!(node.words.as_ref().unwrap().0, epoch);
            assert_eq!(said(node, number), expected);
            assert_eq!(node.receivers[1].claim(), Claim { epoch, leads: true });
        }
        assert!(fleet.nodes[1].words.is_none());
    }
    // It gives up: nothing of it counts from then on.
    fleet.nodes[1].scope.claim.leads = false;
    fleet.nodes[1].scope.parts.get_mut(&2).unwrap().ring = (0..SIZE).map(|_| Slot(0)).collect();
    fleet.nodes[0].words = None;
    fleet.round(|_| false);
    assert!(fleet.nodes[0].words.is_none());
    assert_eq!(fleet.nodes[0].receivers[1].claim(), Claim { epoch: 9, leads: false });
}
