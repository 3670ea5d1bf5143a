//! The authority's side: what is compared with what was sent.

use super::{
    Claim, Key, Scope, Table, Value, Whose,
    codec::{BACKEND_SIZE, BackendDef, Frame, ServiceDef, entry_size, key_size, room},
    entry::with_seen,
    scope::{Member, refresh_units},
};
use crate::plan::Ring;
use lb_common::abi::{FlowEntry, Slot};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Frames wait until the link has room; while more bytes than these do, nothing new is looked for.
const WAITING: usize = 2 << 20;

/// What was sent to one peer. Nothing is sent before [`Sender::begin`].
#[derive(Debug, Default)]
pub struct Sender {
    connected: bool,
    number: u32,
    parts: BTreeMap<u32, (ServiceDef, Ring)>,
    backends: BTreeMap<u32, BackendDef>,
    entries: HashMap<Key, Sent>,
    round: u32,
    /// As it was last said.
    claim: Claim,
    /// [`Frame::End`] was said.
    ended: bool,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// Entries sent and taken back, ever.
    pub put: u64,
    pub gone: u64,
}

#[derive(Debug)]
struct Sent {
    value: Value,
    part: u32,
    round: u32,
    /// It was another node's then: the peer may have taken another word since.
    is_copy: bool,
}

impl Sender {
    /// The peer is there, or asks for everything again.
    pub fn begin(&mut self) {
        // Numbers go on, so that a beginning that is lost is missed.
        let (put, gone, number) = (self.put, self.gone, self.number);
        *self = Self { connected: true, put, gone, number, ..Self::default() };
        self.say(&Frame::Begin);
    }

    /// The peer is gone.
    pub fn stop(&mut self) {
        let (put, gone) = (self.put, self.gone);
        *self = Self { put, gone, ..Self::default() };
    }

    /// The peer may think otherwise of an entry: it is told again, if it still is this node's own.
    pub fn tell_again(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    /// A peer is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// It has everything there was when it came.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Entries the peer has.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// The next frame to hand to the link.
    #[must_use]
    pub fn next(&self) -> Option<&Vec<u8>> {
        self.waiting.front()
    }

    /// The link has taken it.
    pub fn sent(&mut self) {
        if let Some(frame) = self.waiting.pop_front() {
            self.waiting_bytes -= frame.len();
        }
    }

    /// So much waits that nothing new should be looked for.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting_bytes >= WAITING
    }

    fn say(&mut self, frame: &Frame) {
        let bytes = frame.encode(self.number);
        self.number = self.number.wrapping_add(1);
        self.waiting_bytes += bytes.len();
        self.waiting.push_back(bytes);
    }

    /// To the node that sends to this one: begin again.
    pub fn ask_again(&mut self) {
        if self.connected {
            self.say(&Frame::Resync);
        }
    }

    /// Says what of services, backends and slot words is new. True if all of it is said.
    pub fn describe(&mut self, scope: &Scope) -> bool {
        if !self.connected {
            return true;
        }
        if self.claim != scope.claim {
            self.claim = scope.claim;
            self.say(&Frame::Claim(scope.claim));
            // They count only in this epoch.
            for (def, ring) in self.parts.values_mut() {
                if def.instance.is_empty() {
                    *ring = Ring::default();
                }
            }
        }
        let lost: Vec<u32> = self
            .parts
            .iter()
            .filter(|(id, (def, _))| {
                let now = scope.parts.get(id).filter(|part| part.tells());
                now.is_none_or(|part| self::define(**id, part) != *def)
            })
            .map(|(id, _)| *id)
            .collect();
        if !lost.is_empty() {
            for id in &lost {
                self.parts.remove(id);
            }
            self.backends.retain(|_, def| !lost.contains(&def.part));
            self.entries.retain(|_, sent| !lost.contains(&sent.part));
            for some in lost.chunks(room(4)) {
                self.say(&Frame::Forget(some.to_vec()));
            }
        }
        let mut new: Vec<BackendDef> = Vec::new();
        let owned = |part: &u32| scope.parts.get(part).is_some_and(Member::tells);
        for (id, part) in scope.parts.iter().filter(|(_, part)| part.tells()) {
            if !self.parts.contains_key(id) {
                let def = define(*id, part);
                self.say(&Frame::Service(def.clone()));
                self.parts.insert(*id, (def, Ring::default()));
                // So that the peer can tell what it has from what it had.
                self.ended = false;
            }
        }
        for (id, backend) in scope.backends.iter().filter(|(_, backend)| owned(&backend.part)) {
            let def = BackendDef {
                backend: *id,
                part: backend.part,
                name: backend.name.clone(),
                address: backend.address,
            };
            if self.backends.get(id) != Some(&def) {
                self.backends.insert(*id, def.clone());
                new.push(def);
            }
        }
        self.backends.retain(|id, _| scope.backends.get(id).is_some_and(|backend| owned(&backend.part)));
        for some in new.chunks(room(BACKEND_SIZE)) {
            self.say(&Frame::Backends(some.to_vec()));
        }
        let decides = |part: &Member| !part.is_shared() || scope.claim.leads;
        for (id, part) in scope.parts.iter().filter(|(_, part)| part.tells() && decides(part)) {
            if self.is_full() {
                return false;
            }
            self.words(*id, &part.ring);
        }
        true
    }

    /// Says which words of a ring differ, in runs.
    fn words(&mut self, id: u32, ring: &Ring) {
        let Some((_, old)) = self.parts.get_mut(&id) else { return };
        if old.is_same(ring) {
            return;
        }
        let old = std::mem::replace(old, ring.clone());
        // A few equal words cost less than another frame.
        const GAP: usize = 8;
        let differs = |i: &usize| old.get(*i) != ring.get(*i);
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for i in (0..ring.len()).filter(differs) {
            match runs.last_mut() {
                Some((first, end)) if i - *end < GAP && i - *first < room(8) - 1 => *end = i + 1,
                _ => runs.push((i, i + 1)),
            }
        }
        for (first, end) in runs {
            let words = (first..end).map(|i| ring.get(i).copied().unwrap_or(Slot(0)).0).collect();
            self.say(&Frame::Words { part: id, first: first as u32, words });
        }
    }

    /// Begins a look at every entry. All are shown to the round, then it is finished.
    pub fn round<'a>(&'a mut self, scope: &'a Scope, clock_ns: u64) -> Round<'a> {
        self.round = self.round.wrapping_add(1);
        Round {
            sender: self,
            scope,
            clock: FlowEntry::clock(clock_ns) as u16,
            put: BTreeMap::new(),
            whole: true,
        }
    }
}

fn define(id: u32, part: &Member) -> ServiceDef {
    ServiceDef {
        part: id,
        size: part.ring.len() as u32,
        seed: part.seed,
        refresh: refresh_units(part.idle),
        service: part.service.clone(),
        instance: part.instance.clone(),
    }
}

/// One look at every entry.
#[derive(Debug)]
pub struct Round<'a> {
    sender: &'a mut Sender,
    scope: &'a Scope,
    clock: u16,
    put: BTreeMap<Table, Vec<(Key, Value)>>,
    /// Nothing was left for the next one.
    whole: bool,
}

impl Round<'_> {
    /// An entry that is there.
    pub fn entry(&mut self, key: Key, value: Value, whose: Whose) {
        let Some((part, member)) = self.scope.part_of(value.entry.backend()) else { return };
        if !self.scope.owns(value.entry) {
            return;
        }
        let round = self.sender.round;
        let value = match whose {
            Whose::Own(lead) | Whose::Copied(lead) => {
                let met = value.entry.seen().wrapping_sub(lead);
                Value { entry: with_seen(value.entry, met), ..value }
            }
            Whose::Private => return,
        };
        let is_copy = matches!(whose, Whose::Copied(_));
        if is_copy && self.sender.ended && !self.sender.entries.contains_key(&key) {
            return;
        }
        if let Some(sent) = self.sender.entries.get_mut(&key) {
            sent.round = round;
            if is_copy {
                sent.is_copy = true;
                return;
            }
            let newer = value.entry.seen().wrapping_sub(sent.value.entry.seen());
            let same_time = Value { entry: with_seen(value.entry, sent.value.entry.seen()), ..value.clone() };
            // A clock that went back is no reason: entries are written by several processors.
            let is_refresh = newer >= refresh_units(member.idle) && newer < u16::MAX / 2;
            if same_time == sent.value && !is_refresh && !sent.is_copy {
                return;
            }
        }
        if self.sender.is_full() {
            self.whole = false;
            return;
        }
        let age = self.clock.wrapping_sub(value.entry.seen());
        // Seen after the clock was read.
        let age = if age > u16::MAX / 2 { 0 } else { age };
        let waits = self.put.entry(key.table).or_default();
        waits.push((key, Value { entry: with_seen(value.entry, age), ..value.clone() }));
        if waits.len() >= room(entry_size(key.table)) {
            let full = std::mem::take(waits);
            self.sender.put += full.len() as u64;
            self.sender.say(&Frame::Put(key.table, full));
        }
        self.sender.entries.insert(key, Sent { value, part, round, is_copy });
    }

    /// All entries were shown: those that were not are gone. True if the peer now knows everything there is.
    pub fn finish(self) -> bool {
        let Self { sender, put, mut whole, .. } = self;
        for (table, entries) in put.into_iter().filter(|(_, entries)| !entries.is_empty()) {
            sender.put += entries.len() as u64;
            sender.say(&Frame::Put(table, entries));
        }
        let (round, mut gone) = (sender.round, BTreeMap::<Table, Vec<Key>>::new());
        if sender.is_full() {
            whole &= sender.entries.values().all(|sent| sent.round == round);
        } else {
            sender.entries.retain(|key, sent| {
                if sent.round != round {
                    gone.entry(key.table).or_default().push(*key);
                }
                sent.round == round
            });
        }
        for (table, keys) in gone {
            sender.gone += keys.len() as u64;
            for some in keys.chunks(room(key_size(table))) {
                sender.say(&Frame::Gone(table, some.to_vec()));
            }
        }
        if whole {
            let last = if sender.ended { Frame::Idle } else { Frame::End };
            sender.ended = true;
            sender.say(&last);
        }
        whole
    }
}
