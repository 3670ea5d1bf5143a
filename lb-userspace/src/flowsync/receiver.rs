//! The standby's side: a copy of what the authority says, in this node's own numbers.

use super::{
    BackendDef, Claim, DecodeError, Frame, Key, Scope, ServiceDef, Table, Value,
    entry::{with_backend, with_seen},
};
use crate::plan::Followed;
use lb_common::abi::{FlowEntry, MAX_RING, Slot};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// What is to be done with this node's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write an entry. The number is the part's on this node.
    Put(Key, Value, u32),
    /// An entry of a part whose flows this node forwards as well: it counts where this node knows nothing newer.
    Offer(Key, Value, Offer),
    /// Remove an entry.
    Gone(Key),
    /// The words of a part.
    Words { service: String, instance: String, followed: Arc<Followed> },
    /// The ring of a part has another size there.
    Resize { service: String, instance: String, size: u32 },
    /// The authority has said all there was: of these parts of this node every entry that is not in the copy is old.
    Complete(BTreeSet<u32>),
    /// Frames are missing: the authority is to begin again.
    AskAgain,
    /// The authority is this node's standby, and asks for everything.
    BeginAgain,
}

/// Looks of the authority after which a request to begin again is repeated.
const UNHEARD: u8 = 2;

/// Entries that were not taken over, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// This node has no such service, ring size or seed.
    pub service: u64,
    /// This node has no such backend.
    pub backend: u64,
    /// There are more than the tables hold.
    pub full: u64,
    /// This node is master of the part, too.
    pub authority: u64,
}

/// What belongs to an entry that is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The part's number on this node.
    pub part: u32,
    /// Units of the entries' clock by which the entry is dated ahead of the last packet that the peer has told of.
    pub lead: u16,
}

/// What one peer said.
#[derive(Debug, Default)]
pub struct Receiver {
    next: Option<u32>,
    claim: Claim,
    /// The authority was asked to begin again, and has not yet.
    asked: bool,
    /// Looks of the authority that ended since without a beginning.
    unheard: u8,
    complete: bool,
    parts: BTreeMap<u32, Part>,
    backends: HashMap<u32, BackendDef>,
    targets: HashMap<u32, Target>,
    copy: HashMap<Key, Value>,
    /// Entries of each table that the copy holds at most.
    limits: BTreeMap<Table, usize>,
    held: BTreeMap<Table, usize>,
    effects: Vec<Effect>,
    /// Entries received and taken back, ever.
    pub put: u64,
    pub gone: u64,
    pub dropped: Dropped,
}

#[derive(Debug)]
struct Part {
    def: ServiceDef,
    words: Vec<Slot>,
    /// Slots that were said once; words count when all were.
    said: usize,
    changed: bool,
    /// Its number on this node, if it follows here.
    local: Option<u32>,
    /// This node is master of it, too: what is said of it is not kept.
    is_own: bool,
}

/// A backend in this node's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    backend: u32,
    incarnation: u8,
    part: u32,
}

impl Receiver {
    /// A copy of at most so many entries of each table.
    #[must_use]
    pub fn new(limits: BTreeMap<Table, usize>) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The connection is another one: nothing is known until it begins.
    pub fn stop(&mut self) {
        (self.next, self.asked) = (None, false);
        self.forget_all();
    }

    fn ask_again(&mut self) {
        self.forget_all();
        (self.asked, self.unheard) = (true, 0);
        self.effects.push(Effect::AskAgain);
    }

    fn forget_all(&mut self) {
        self.complete = false;
        self.claim = Claim::default();
        self.parts.clear();
        self.backends.clear();
        self.targets.clear();
        self.copy.clear();
        self.held.clear();
    }

    /// All that the authority had when it came has been received.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whose words the peer has of parts without an instance.
    #[must_use]
    pub fn claim(&self) -> Claim {
        self.claim
    }

    /// Entries of the copy.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.copy.len()
    }

    /// True if the entry is in the copy, and its backend is one of this node's.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        self.copy.get(key).is_some_and(|value| self.targets.contains_key(&value.entry.backend()))
    }

    /// The parts of this node that follow the peer and have only what it has.
    #[must_use]
    pub fn followed(&self) -> BTreeSet<u32> {
        self.parts
            .values()
            .filter(|part| !part.is_shared())
            .filter(|part| part.said >= part.words.len())
            .filter_map(|part| part.local)
            .collect()
    }

    /// What is to be done since this was last asked.
    pub fn effects(&mut self) -> Vec<Effect> {
        for part in self.parts.values_mut() {
            let counts = !part.is_shared() || self.claim.leads;
            if counts && part.local.is_some() && part.changed && part.said >= part.words.len() {
                part.changed = false;
                let of_part = |def: &&BackendDef| def.part == part.def.part;
                let names = self.backends.values().filter(of_part);
                let followed = Followed {
                    words: part.words.clone().into(),
                    names: names.map(|def| (def.backend, (def.name.clone(), def.address))).collect(),
                    fleet: part.is_shared().then_some(self.claim.epoch),
                };
                // Words before the entries that matter because of them.
                let (service, instance) = (part.def.service.clone(), part.def.instance.clone());
                self.effects.insert(0, Effect::Words { service, instance, followed: Arc::new(followed) });
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// This node's own parts and backends are these now: what differs because of it is written again.
    pub fn rescope(&mut self, scope: &Scope) {
        let mut missed = false;
        for part in self.parts.values_mut() {
            let (local, is_own) = (local_of(&part.def, scope), is_own(&part.def, scope));
            part.changed |= local != part.local;
            missed |= part.is_own && !is_own;
            (part.local, part.is_own) = (local, is_own);
        }
        if missed {
            // The other one was master before this node knew that it is not any more.
            self.ask_again();
            return;
        }
        // What this node has become the authority for is its own.
        let own = self.parts.values().filter(|part| part.is_own);
        let left: BTreeSet<u32> = own.map(|part| part.def.part).collect();
        let before = std::mem::take(&mut self.targets);
        let known: HashMap<_, _> = scope
            .backends
            .iter()
            .map(|(id, peer)| ((peer.part, peer.name.as_str(), peer.address), (*id, peer)))
            .collect();
        let target = |def: &BackendDef| {
            let local = self.parts.get(&def.part)?.local?;
            let (id, peer) = known.get(&(local, def.name.as_str(), def.address))?;
            // Dead here, alive there: its flows are found again when it lives here, and nobody is sent to it before.
            let incarnation = peer.incarnation.wrapping_sub(peer.is_dead.into());
            Some(Target { backend: *id, incarnation, part: local })
        };
        self.targets = self.backends.iter().filter_map(|(id, def)| Some((*id, target(def)?))).collect();
        if before == self.targets && left.is_empty() {
            return;
        }
        let backends = &self.backends;
        let held = &mut self.held;
        self.copy.retain(|key, value| {
            let keep = backends.get(&value.entry.backend()).is_some_and(|def| !left.contains(&def.part));
            if !keep {
                *held.entry(key.table).or_default() -= 1;
            }
            keep
        });
        for (key, value) in &self.copy {
            let (old, new) = (before.get(&value.entry.backend()), self.targets.get(&value.entry.backend()));
            if old == new {
                continue;
            }
            let of = backends.get(&value.entry.backend()).and_then(|def| self.parts.get(&def.part));
            let Some(part) = of else { continue };
            match new {
                Some(target) => self.effects.push(put(*key, value, *target, part)),
                // Who forwards flows itself forgets them itself.
                None if part.is_shared() => {}
                None => self.effects.push(Effect::Gone(*key)),
            }
        }
    }

    /// Takes in a frame at `clock_ns` of the monotonic clock.
    pub fn frame(&mut self, bytes: &[u8], scope: &Scope, clock_ns: u64) -> Result<(), DecodeError> {
        let (frame, number) = Frame::decode(bytes)?;
        if frame == Frame::Begin {
            self.forget_all();
            (self.next, self.asked) = (Some(number), false);
        }
        match self.next {
            Some(next) if next == number => {
                self.next = Some(number.wrapping_add(1));
                // Said before the authority heard the request.
                if self.asked && frame != Frame::Resync {
                    // The request may be lost, too.
                    self.unheard += u8::from(matches!(frame, Frame::Idle | Frame::End));
                    if self.unheard > UNHEARD {
                        self.ask_again();
                    }
                    return Ok(());
                }
            }
            // A request does not depend on the stream it comes in.
            _ if frame == Frame::Resync => {
                self.effects.push(Effect::BeginAgain);
                return Ok(());
            }
            // What is missing may be the beginning that was asked for.
            Some(_) | None => {
                self.ask_again();
                self.next = Some(number.wrapping_add(1));
                return Ok(());
            }
        }
        match frame {
            Frame::Begin | Frame::Idle | Frame::Unknown(_) => {}
            Frame::Claim(claim) => {
                self.claim = claim;
                for part in self.parts.values_mut().filter(|part| part.is_shared()) {
                    (part.said, part.changed) = (0, true);
                    if claim.leads {
                        self.effects.extend(resize(&part.def, scope));
                    }
                }
            }
            Frame::Service(def) => {
                if def.size > MAX_RING {
                    return Err(DecodeError::Malformed(2));
                }
                let part = Part {
                    words: vec![Slot(0); def.size as usize],
                    said: 0,
                    changed: true,
                    local: local_of(&def, scope),
                    is_own: is_own(&def, scope),
                    def,
                };
                if !part.is_shared() || self.claim.leads {
                    self.effects.extend(resize(&part.def, scope));
                }
                self.parts.insert(part.def.part, part);
            }
            Frame::Backends(defs) => {
                for def in defs {
                    if let Some(part) = self.parts.get_mut(&def.part) {
                        part.changed = true;
                    }
                    self.backends.insert(def.backend, def);
                }
                self.rescope(scope);
            }
            Frame::Words { part, first, words } => {
                let Some(part) = self.parts.get_mut(&part) else { return Err(DecodeError::Malformed(4)) };
                let place = first as usize..first as usize + words.len();
                let Some(slots) = part.words.get_mut(place) else { return Err(DecodeError::Malformed(4)) };
                for (slot, word) in slots.iter_mut().zip(&words) {
                    *slot = Slot(*word);
                }
                part.said = part.said.saturating_add(words.len());
                part.changed = true;
            }
            Frame::Put(_, entries) => {
                self.put += entries.len() as u64;
                for (key, value) in entries {
                    self.take(key, value, clock_ns);
                }
            }
            Frame::Gone(_, keys) => {
                self.gone += keys.len() as u64;
                for key in keys {
                    if let Some(old) = self.copy.remove(&key) {
                        *self.held.entry(key.table).or_default() -= 1;
                        let def = self.backends.get(&old.entry.backend());
                        let part = def.and_then(|def| self.parts.get(&def.part));
                        // The peer tells of it no more, because another does or because the flow is over.
                        let is_shared = part.is_some_and(Part::is_shared);
                        if !is_shared && self.targets.contains_key(&old.entry.backend()) {
                            self.effects.push(Effect::Gone(key));
                        }
                    }
                }
            }
            Frame::End => {
                self.complete = true;
                self.effects.push(Effect::Complete(self.followed()));
            }
            Frame::Forget(parts) => self.forget(&parts.into_iter().collect()),
            Frame::Resync => self.effects.push(Effect::BeginAgain),
        }
        Ok(())
    }

    /// All words are effects once more.
    #[cfg(test)]
    pub(super) fn say_words_again(&mut self) {
        self.parts.values_mut().for_each(|part| part.changed = true);
    }

    fn forget(&mut self, parts: &BTreeSet<u32>) {
        let (backends, held) = (&self.backends, &mut self.held);
        self.copy.retain(|key, value| {
            let keep = backends.get(&value.entry.backend()).is_some_and(|def| !parts.contains(&def.part));
            if !keep {
                *held.entry(key.table).or_default() -= 1;
            }
            keep
        });
        self.backends.retain(|_, def| !parts.contains(&def.part));
        self.parts.retain(|id, _| !parts.contains(id));
        let backends = &self.backends;
        self.targets.retain(|id, _| backends.contains_key(id));
    }

    fn take(&mut self, key: Key, value: Value, clock_ns: u64) {
        let Some(def) = self.backends.get(&value.entry.backend()) else {
            self.dropped.backend += 1;
            return;
        };
        let Some(part) = self.parts.get(&def.part) else {
            self.dropped.service += 1;
            return;
        };
        if part.local.is_none() {
            if part.is_own {
                self.dropped.authority += 1;
                return;
            }
            self.dropped.service += 1;
        }
        let held = self.held.entry(key.table).or_default();
        let is_new = !self.copy.contains_key(&key);
        if is_new && self.limits.get(&key.table).is_some_and(|limit| *held >= *limit) {
            self.dropped.full += 1;
            return;
        }
        *held += usize::from(is_new);
        let clock = FlowEntry::clock(clock_ns) as u16;
        // Newer packets of the flow may not be told of for so long.
        let seen = clock.wrapping_sub(value.entry.seen()).wrapping_add(part.lead(key.table));
        let value = Value { entry: with_seen(value.entry, seen), ..value };
        match self.targets.get(&value.entry.backend()) {
            Some(target) => self.effects.push(put(key, &value, *target, part)),
            None => {
                self.dropped.backend += u64::from(part.local.is_some());
                // It was another backend's, which this node has.
                let old = self.copy.get(&key).map(|old| old.entry.backend());
                if !part.is_shared() && old.is_some_and(|backend| self.targets.contains_key(&backend)) {
                    self.effects.push(Effect::Gone(key));
                }
            }
        }
        self.copy.insert(key, value);
    }
}

impl Part {
    /// All nodes of the fleet forward its flows.
    fn is_shared(&self) -> bool {
        self.def.instance.is_empty()
    }

    /// Units by which entries are dated ahead. A handshake is not told twice, and ends soon.
    fn lead(&self, table: Table) -> u16 {
        let half_open = matches!(table, Table::HalfOpen4 | Table::HalfOpen6);
        if self.is_shared() && half_open { 0 } else { self.def.refresh }
    }
}

fn put(key: Key, value: &Value, target: Target, of: &Part) -> Effect {
    let entry = with_backend(value.entry, target.backend, target.incarnation);
    let value = Value { entry, ..value.clone() };
    if of.is_shared() {
        return Effect::Offer(key, value, Offer { part: target.part, lead: of.lead(key.table) });
    }
    Effect::Put(key, value, target.part)
}

/// What is to be done if this node's ring has another size than that of who decides.
fn resize(def: &ServiceDef, scope: &Scope) -> Option<Effect> {
    let (_, member) = scope.find(&def.service, &def.instance)?;
    let differs = !member.is_authority && member.ring.len() != def.size as usize;
    let (service, instance) = (def.service.clone(), def.instance.clone());
    differs.then_some(Effect::Resize { service, instance, size: def.size })
}

/// This node is master of a part of the peer's.
fn is_own(def: &ServiceDef, scope: &Scope) -> bool {
    scope.find(&def.service, &def.instance).is_some_and(|(_, member)| member.is_authority)
}

/// The part of this node that follows one of the peer's.
fn local_of(def: &ServiceDef, scope: &Scope) -> Option<u32> {
    let (id, member) = scope.find(&def.service, &def.instance)?;
    let same = member.seed == def.seed && member.ring.len() == def.size as usize;
    (same && !member.is_authority).then_some(id)
}
