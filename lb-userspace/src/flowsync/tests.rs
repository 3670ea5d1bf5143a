//! Random histories of two tables: once everything is said, the standby has what the authority has.

use super::*;
use crate::plan::Ring;
use lb_common::abi::{FlowEntry, FlowKey4, FlowKey6, HalfOpen, SessionBack, SessionOut, Slot, SlotState};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

const SIZE: u32 = 13;
const UNIT: u64 = FlowEntry::UNIT_NS;
const NOW: u64 = 5_000 * UNIT;

fn address(n: u32) -> IpAddr {
    IpAddr::from([10, 2, 0, n as u8])
}

/// Two parts on both nodes, of instances "a" and "b", four backends each. The numbers of parts and backends differ from node
/// to node by `shift`.
fn scope(shift: u32, authority: [bool; 2]) -> Scope {
    let mut scope = Scope::default();
    for (i, instance) in ["a", "b"].into_iter().enumerate() {
        let part = shift + i as u32;
        let member = Member {
            service: "www".to_owned(),
            instance: instance.to_owned(),
            seed: 7,
            idle: Duration::from_secs(60),
            ring: (0..SIZE).map(|_| Slot(0)).collect(),
            records: true,
            is_authority: authority[i],
        };
        scope.parts.insert(part, member);
        for n in 0..4 {
            let peer = Peer {
                part,
                name: format!("b{n}"),
                address: address(n),
                incarnation: (shift % 7) as u8,
                is_dead: false,
            };
            scope.backends.insert(id(shift, i as u32, n), peer);
        }
    }
    scope
}

/// Id of the n-th backend of a part.
fn id(shift: u32, part: u32, n: u32) -> u32 {
    10 * shift + 5 * part + n
}

type Tables = BTreeMap<Key, Value>;

fn key(n: u8, table: u8) -> Key {
    let table = Table::ALL[usize::from(table) % 6];
    if table.is_v4() {
        let key = FlowKey4 { src: [10, 1, 0, n], dst: [192, 0, 2, 1], ports: [1, n, 0, 80], proto: 6 };
        Key::v4(table, &key)
    } else {
        let key = FlowKey6 { src: [n; 16], dst: [9; 16], ports: [1, n, 0, 80], proto: 17 };
        Key::v6(table, &key)
    }
}

fn value(key: Key, entry: FlowEntry) -> Value {
    let n = key.src[3];
    match key.table {
        Table::Flows4 | Table::Flows6 => Value::flow(entry),
        Table::HalfOpen4 | Table::HalfOpen6 => {
            Value::half_open(HalfOpen { entry: entry.0, isn: n.into(), pad: 0 })
        }
        Table::SessionsOut => {
            Value::out(&SessionOut { entry: entry.0, source: [n; 16], port: [7, n], flags: 3, isn: n.into() })
        }
        Table::SessionsBack => Value::back(&SessionBack {
            entry: entry.0,
            client: [n; 16],
            vip: [4; 16],
            client_port: [1, n],
            vip_port: [0, 80],
            service: 0,
        }),
    }
}

/// Both nodes and what lies between them.
struct World {
    authority: Scope,
    standby: Scope,
    sender: Sender,
    receiver: Receiver,
    now: u64,
    there: Tables,
    here: HashMap<Key, (Value, u32)>,
    words: BTreeMap<String, Ring>,
    asked_again: usize,
}

impl World {
    fn new() -> Self {
        let mut sender = Sender::default();
        sender.begin();
        Self {
            authority: scope(1, [true, true]),
            standby: scope(3, [false, false]),
            sender,
            receiver: Receiver::new(BTreeMap::new()),
            now: NOW,
            there: Tables::new(),
            here: HashMap::new(),
            words: BTreeMap::new(),
            asked_again: 0,
        }
    }

    /// One look at the tables; what it says arrives, but for the frames that `loses` names.
    fn round(&mut self, loses: impl Fn(usize) -> bool) {
        self.sender.describe(&self.authority);
        let mut round = self.sender.round(&self.authority, self.now);
        for (key, value) in &self.there {
            round.entry(*key, value.clone(), Whose::Own(0));
        }
        round.finish();
        let mut number = 0;
        while let Some(frame) = self.sender.next().cloned() {
            self.sender.sent();
            if !loses(number) {
                self.receiver.frame(&frame, &self.standby, self.now).unwrap();
                self.carry_out();
            }
            number += 1;
        }
    }

    fn carry_out(&mut self) {
        for effect in self.receiver.effects() {
            match effect {
                Effect::Put(key, value, part) => drop(self.here.insert(key, (value, part))),
                Effect::Gone(key) => drop(self.here.remove(&key)),
                Effect::Words { instance, followed, .. } => {
                    let part = self.standby.find("www", &instance).unwrap().0;
                    let known = |name: &str, address: IpAddr| {
                        let same =
                            |peer: &Peer| peer.part == part && peer.name == name && peer.address == address;
                        self.standby.backends.iter().find(|(_, peer)| same(peer)).map(|(id, _)| *id)
                    };
                    self.words.insert(instance, followed.ring(known, |_| true));
                }
                Effect::Complete(parts) => {
                    let receiver = &self.receiver;
                    self.here.retain(|key, (_, part)| !parts.contains(part) || receiver.has(key));
                }
                Effect::AskAgain => {
                    self.asked_again += 1;
                    self.sender.begin();
                }
                Effect::BeginAgain | Effect::Resize { .. } | Effect::Offer(..) => panic!("{effect:?}"),
            }
        }
    }

    /// Twenty entries, of both parts by turns.
    fn put_twenty(&mut self) {
        for n in 0..20 {
            let part = u32::from(n) % 2;
            self.step(Step::Put { key: n, table: n, part, backend: 1, stale: false, closing: false });
        }
    }

    /// What the standby should have: the authority's in its own numbers, none of it older.
    fn check(&self) -> Result<(), TestCaseError> {
        let live = |entry: FlowEntry| {
            self.authority
                .backends
                .get(&entry.backend())
                .is_some_and(|backend| !backend.is_dead && backend.incarnation == entry.incarnation())
        };
        let expected: Tables =
            self.there.iter().filter(|(_, v)| live(v.entry)).map(|(k, v)| (*k, v.clone())).collect();
        let mut known = 0;
        for (key, value) in &expected {
            let there = &self.authority.backends[&value.entry.backend()];
            let part = &self.authority.parts[&there.part];
            let (part, _) = self.standby.find(&part.service, &part.instance).unwrap();
            let same = |peer: &Peer| peer.part == part && peer.name == there.name;
            let Some((id, peer)) = self.standby.backends.iter().find(|(_, peer)| same(peer)) else {
                continue;
            };
            known += 1;
            let Some((found, of)) = self.here.get(key) else {
                return Err(TestCaseError::fail(format!("{key:?} is missing")));
            };
            let entry = found.entry;
            prop_assert_eq!(*of, part);
            prop_assert_eq!(entry.backend(), *id);
            prop_assert_eq!(entry.incarnation(), peer.incarnation.wrapping_sub(peer.is_dead.into()));
            prop_assert_eq!(entry.tag(), value.entry.tag());
            prop_assert_eq!(entry.is_closing(), value.entry.is_closing());
            prop_assert_eq!((&found.session, found.isn), (&value.session, value.isn));
            prop_assert!(
                entry.idle_ns(self.now) <= value.entry.idle_ns(self.now),
                "{:?} is older than {:?}",
                entry,
                value.entry
            );
        }
        prop_assert_eq!(self.here.len(), known);
        for part in self.authority.parts.values() {
            let words = &self.words[&part.instance];
            let (local, _) = self.standby.find("www", &part.instance).unwrap();
            prop_assert_eq!(words.len(), part.ring.len());
            let name = |scope: &Scope, of: u32, id: u32| {
                scope.backends.get(&id).filter(|peer| peer.part == of).map(|peer| peer.name.clone())
            };
            let (of, _) = self.authority.find("www", &part.instance).unwrap();
            for (mine, theirs) in words.iter().zip(&part.ring) {
                prop_assert_eq!((mine.state(), mine.epoch()), (theirs.state(), theirs.epoch()));
                for (mine, theirs) in [(mine.owner(), theirs.owner()), (mine.home(), theirs.home())] {
                    let theirs = name(&self.authority, of, theirs);
                    let there = theirs.clone().filter(|theirs| {
                        self.standby.backends.values().any(|peer| peer.part == local && peer.name == *theirs)
                    });
                    prop_assert_eq!(name(&self.standby, local, mine), there);
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Put {
        key: u8,
        table: u8,
        part: u32,
        backend: u32,
        stale: bool,
        closing: bool,
    },
    Touch {
        key: u8,
        table: u8,
    },
    Gone {
        key: u8,
        table: u8,
    },
    Later(u64),
    Slot {
        part: u32,
        slot: u32,
        owner: u32,
        home: u32,
    },
    /// A backend of the authority dies and comes back.
    Dies {
        part: u32,
        backend: u32,
    },
    Lives {
        part: u32,
        backend: u32,
    },
    /// The same at the standby.
    DiesHere {
        part: u32,
        backend: u32,
    },
    LivesHere {
        part: u32,
        backend: u32,
    },
    /// The standby's configuration has a backend, or not.
    Leaves {
        part: u32,
        backend: u32,
    },
    Comes {
        part: u32,
        backend: u32,
    },
    Round {
        lost: Option<usize>,
    },
    /// The connection is another one.
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    let of = || (0..2u32, 0..4u32);
    prop_oneof![
        12 => (any::<u8>(), any::<u8>(), of(), any::<bool>(), any::<bool>()).prop_map(
            |(key, table, (part, backend), stale, closing)| Step::Put { key: key % 40, table, part, backend, stale, closing }
        ),
        6 => (any::<u8>(), any::<u8>()).prop_map(|(key, table)| Step::Touch { key: key % 40, table }),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(key, table)| Step::Gone { key: key % 40, table }),
        4 => (0..20 * UNIT).prop_map(Step::Later),
        5 => (of(), 0..SIZE, 0..4u32).prop_map(|((part, owner), slot, home)| Step::Slot { part, slot, owner, home }),
        1 => of().prop_map(|(part, backend)| Step::Dies { part, backend }),
        2 => of().prop_map(|(part, backend)| Step::Lives { part, backend }),
        1 => of().prop_map(|(part, backend)| Step::DiesHere { part, backend }),
        2 => of().prop_map(|(part, backend)| Step::LivesHere { part, backend }),
        1 => of().prop_map(|(part, backend)| Step::Leaves { part, backend }),
        2 => of().prop_map(|(part, backend)| Step::Comes { part, backend }),
        6 => proptest::option::weighted(0.2, 0..6usize).prop_map(|lost| Step::Round { lost }),
        1 => Just(Step::Again),
    ]
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Put { key: n, table, part, backend, stale, closing } => {
                let key = key(n, table);
                let id = id(1, part, backend);
                let incarnation = self.authority.backends[&id].incarnation.wrapping_sub(stale.into());
                let entry = FlowEntry::new(id, incarnation.into(), u64::from(n) * 77, self.now, false);
                let entry = entry.touched(self.now, closing);
                self.there.insert(key, value(key, entry));
            }
            Step::Touch { key: n, table } => {
                if let Some(value) = self.there.get_mut(&key(n, table)) {
                    value.entry = value.entry.touched(self.now, false);
                }
            }
            Step::Gone { key: n, table } => drop(self.there.remove(&key(n, table))),
            Step::Later(by) => self.now += by,
            Step::Slot { part, slot, owner, home } => {
                let ring = &mut self.authority.parts.get_mut(&(1 + part)).unwrap().ring;
                ring.update(|words| {
                    let word = &mut words[slot as usize];
                    *word = word.with(id(1, part, owner), id(1, part, home), SlotState::Moving);
                });
            }
            Step::Dies { part, backend } => {
                let peer = self.authority.backends.get_mut(&id(1, part, backend)).unwrap();
                peer.incarnation = peer.incarnation.wrapping_add((!peer.is_dead).into());
                peer.is_dead = true;
            }
            Step::Lives { part, backend } => {
                self.authority.backends.get_mut(&id(1, part, backend)).unwrap().is_dead = false;
            }
            Step::DiesHere { part, backend } => {
                if let Some(peer) = self.standby.backends.get_mut(&id(3, part, backend)) {
                    peer.incarnation = peer.incarnation.wrapping_add((!peer.is_dead).into());
                    peer.is_dead = true;
                }
                self.rescope();
            }
            Step::LivesHere { part, backend } => {
                if let Some(peer) = self.standby.backends.get_mut(&id(3, part, backend)) {
                    peer.is_dead = false;
                }
                self.rescope();
            }
            Step::Leaves { part, backend } => {
                self.standby.backends.remove(&id(3, part, backend));
                self.rescope();
                // As the plan does it with the words it follows.
                self.reread();
            }
            Step::Comes { part, backend } => {
                let id = id(3, part, backend);
                let peer = scope(3, [false, false]).backends.remove(&id).unwrap();
                self.standby.backends.entry(id).or_insert(peer);
                self.rescope();
                self.reread();
            }
            Step::Round { lost } => self.round(|number| Some(number) == lost),
            Step::Again => {
                self.receiver.stop();
                self.sender.begin();
            }
        }
    }

    fn rescope(&mut self) {
        self.receiver.rescope(&self.standby);
        self.carry_out();
    }

    fn reread(&mut self) {
        self.receiver.say_words_again();
        self.carry_out();
    }
}

proptest! {
    #[test]
    fn the_standby_has_what_the_authority_has(steps in proptest::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        // What was lost is noticed by the next frame, and all of it is said again.
        for _ in 0..3 {
            world.round(|_| false);
        }
        world.check()?;
        prop_assert!(world.receiver.is_complete());
    }
}

/// A pair at rest has nothing to say but that it is there.
#[test]
fn at_rest_nothing_is_said() {
    let mut world = World::new();
    for n in 0..30 {
        world.step(Step::Put { key: n, table: n, part: 0, backend: 1, stale: false, closing: false });
    }
    world.round(|_| false);
    let (put, gone) = (world.sender.put, world.sender.gone);
    assert_eq!(put, 30);
    for _ in 0..5 {
        world.now += UNIT;
        world.round(|_| false);
    }
    assert_eq!((world.sender.put, world.sender.gone), (put, gone));
    // Traffic is told now and then: a quarter of 60 s is 6 units.
    world.now += 2 * UNIT;
    for n in 0..30 {
        world.step(Step::Touch { key: n, table: n });
    }
    world.round(|_| false);
    assert_eq!(world.sender.put, 60);
    world.check().unwrap();
}

/// Who becomes the authority keeps what it has, and takes no more of it from the other.
#[test]
fn the_new_authority_keeps_what_it_has() {
    let mut world = World::new();
    world.put_twenty();
    world.round(|_| false);
    assert_eq!(world.here.len(), 20);
    world.standby = scope(3, [true, false]);
    world.rescope();
    assert_eq!((world.here.len(), world.receiver.entries()), (20, 10));
    for n in 0..20 {
        world.step(Step::Gone { key: n, table: n });
    }
    world.step(Step::Put { key: 30, table: 0, part: 0, backend: 1, stale: false, closing: false });
    world.round(|_| false);
    assert_eq!(world.here.len(), 10, "those of its own part");
    assert_eq!(world.receiver.dropped.authority, 1);
    // The other one is told of, or not, by what it is master of.
    world.authority = scope(1, [false, true]);
    world.round(|_| false);
    assert_eq!(world.receiver.followed(), BTreeSet::from([4]));
}

/// The successor may be told to begin before the old master knows that it has ended: what it refuses until then it gets later.
#[test]
fn the_old_master_gets_what_it_refused() {
    let mut world = World::new();
    world.standby = scope(3, [true, true]);
    world.put_twenty();
    world.round(|_| false);
    assert!(world.here.is_empty() && world.receiver.followed().is_empty());
    world.standby = scope(3, [false, false]);
    world.rescope();
    assert_eq!(world.asked_again, 1);
    world.round(|_| false);
    world.check().unwrap();
}

/// Entries beyond what the tables hold are counted, not kept.
#[test]
fn the_copy_is_bounded() {
    let mut world = World::new();
    world.receiver = Receiver::new(Table::ALL.into_iter().map(|table| (table, 5)).collect());
    for n in 0..30 {
        world.step(Step::Put { key: n, table: 2, part: 0, backend: 1, stale: false, closing: false });
    }
    world.round(|_| false);
    assert_eq!((world.here.len(), world.receiver.entries(), world.receiver.dropped.full), (5, 5, 25));
}

/// A standby that lacks the service, or whose ring is another one, counts what it cannot take.
#[test]
fn what_is_unknown_is_counted() {
    let mut world = World::new();
    world.standby.parts.get_mut(&3).unwrap().seed = 8;
    world.standby.backends.remove(&id(3, 1, 2));
    for (n, part) in [(0, 0), (1, 1)] {
        world.step(Step::Put { key: n, table: 2, part, backend: 2, stale: false, closing: false });
    }
    world.round(|_| false);
    assert!(world.here.is_empty());
    assert_eq!((world.receiver.dropped.service, world.receiver.dropped.backend), (1, 1));
    assert_eq!(world.receiver.followed(), BTreeSet::from([4]));
}

/// More than fits is said in several rounds; nothing is forgotten.
#[test]
fn a_large_table_is_said_in_parts() {
    let mut world = World::new();
    for n in 0..200_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let key = FlowKey4 { src: [10, a, b, c], dst: [192, 0, 2, 1], ports: [1, 1, 0, 80], proto: 6 };
        let entry = FlowEntry::new(id(1, 0, 1), 1, 5, NOW, false);
        world.there.insert(Key::v4(Table::Flows4, &key), Value::flow(entry));
    }
    let mut rounds = 0;
    while !world.receiver.is_complete() {
        world.round(|_| false);
        rounds += 1;
    }
    assert!(rounds > 1);
    world.check().unwrap();
    world.there.clear();
    for _ in 0..rounds {
        world.round(|_| false);
    }
    assert!(world.here.is_empty());
}
