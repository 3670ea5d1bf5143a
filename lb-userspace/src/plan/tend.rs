//! Looking after the slots that changed hands and the flows recorded for them: when moving slots settle, tracked
//! slots become plain, silent flows are forgotten, and ids of removed backends are free again. Pure.
//!
//! The rules are those of ARCHITECTURE.md, "Connection affinity". [`Tracking`] knows since when what is under way;
//! the daemon tells it every change of the maps and carries out what it asks for.

use super::{Action, Image, Memory};
use crate::affinity;
use lb_common::{
    abi::{BackendEntry, FlowEntry, FlowKey4, FlowKey6, HalfOpen, ServiceEntry, Slot, SlotState},
    core::{Tables, affinity::HANDSHAKE_NS, find_service},
    hash,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// A flow that has not answered its SYN is kept so long.
pub const HALF_OPEN_LIFE: Duration = Duration::from_nanos(HANDSHAKE_NS);
/// A flow whose last word of its own was FIN or RST is kept so long after its last packet. Most have ended; one that is
/// half closed and silent for longer is outside the promise.
pub const CLOSING_LIFE: Duration = Duration::from_secs(60);
/// Beyond the idle timeout: the clock of entries counts units of two seconds.
pub const MARGIN: Duration = Duration::from_secs(10);
/// After a word of the maps changed, every packet that met the old word is through by then.
pub const GRACE: Duration = Duration::from_secs(1);

/// Words and flows take at most so long from one node of a fleet to another; where they take longer, that is noted.
pub const LAG: Duration = Duration::from_secs(10);

/// Names one tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    V4(FlowKey4),
    V6(FlowKey6),
}

/// Since when what is under way.
#[derive(Debug)]
pub struct Tracking {
    /// What began before this daemon counts from its start.
    started: Instant,
    /// By service id and slot, of those that are not plain: when its word last changed.
    changed: BTreeMap<u32, BTreeMap<u32, Instant>>,
    /// When a flow last found no room.
    refused: Option<Instant>,
    /// Services whose flows other nodes forward as well: when one of those last may have had other words, or flows that this node
    /// does not know of.
    shared: BTreeMap<u32, Instant>,
    /// Backend ids that are not given out again until no packet in flight and no tracked flow names them.
    freed: Vec<(Instant, u32)>,
    /// Base and size of places in the schedule array that programs under way may still read.
    resting: Vec<(Instant, (u32, u32))>,
    /// Living flows and handshakes at the last walk.
    flows: usize,
    half_open: usize,
}

/// Slots that name a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Naming {
    /// Whose new flows it takes.
    pub owned: u32,
    /// Whose new flows go elsewhere, and whose flows without an entry still come to it.
    pub leaving: u32,
    /// Of these, the ones that nobody takes over.
    pub stuck: u32,
    /// When the last of the others settles.
    pub settles: Option<Instant>,
}

/// What a walk through the flow table found.
#[derive(Debug, Default)]
pub struct Walk {
    /// Flows to forget, with the entries they had.
    pub over: Vec<(Flow, FlowEntry)>,
    /// Handshakes to forget, with the entries they had.
    pub half_over: Vec<(Flow, HalfOpen)>,
    /// Flows that go on, and handshakes.
    pub living: usize,
    pub half_open: usize,
    /// By backend of a least-connections service: its open flows.
    pub active: BTreeMap<u32, i64>,
    /// By backend: flows and handshakes that go on.
    pub on: BTreeMap<u32, u64>,
    /// Service and slot of those that live elsewhere than at home.
    foreign: BTreeSet<(u32, u32)>,
}

impl Tracking {
    /// Nothing is known of what began before now.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            changed: BTreeMap::new(),
            refused: None,
            shared: BTreeMap::new(),
            freed: Vec::new(),
            resting: Vec::new(),
            flows: 0,
            half_open: 0,
        }
    }

    /// Takes note of a change that was carried out before `now`.
    pub fn note_changes(&mut self, before: &Image, after: &Image, now: Instant) {
        self.note_part(before, after, now);
        self.changed.retain(|id, slots| after.rings.contains_key(id) && !slots.is_empty());
    }

    /// As [`Tracking::note_changes`], of images of some services only, the same ones.
    pub fn note_part(&mut self, before: &Image, after: &Image, now: Instant) {
        for (id, ring) in &after.rings {
            let old = before.rings.get(id);
            if ring.is_plain() {
                self.changed.remove(id);
                continue;
            }
            if old.is_some_and(|old| old.is_same(ring)) {
                continue;
            }
            for (i, slot) in ring.iter().enumerate() {
                if old.and_then(|old| old.get(i)) == Some(slot) {
                    continue;
                }
                if slot.state() == SlotState::Plain {
                    if let Some(slots) = self.changed.get_mut(id) {
                        slots.remove(&(i as u32));
                    }
                } else {
                    self.changed.entry(*id).or_default().insert(i as u32, now);
                }
            }
        }
        let gone = before.backends.keys().filter(|id| !after.backends.contains_key(id));
        self.freed.extend(gone.map(|id| (now, *id)));
        self.resting.retain(|(at, _)| now.saturating_duration_since(*at) <= GRACE);
        for (id, old) in &before.schedules {
            if after.schedules.get(id).is_none_or(|new| new.base != old.base) {
                self.resting.push((now, (old.base, old.words.len() as u32)));
            }
        }
    }

    /// Takes note of flows that found no room: what cannot be recorded stays at home, so homes stay too.
    pub fn note_refused(&mut self, now: Instant) {
        self.refused = Some(now);
    }

    /// Other nodes forward flows of these services, too, and of no others; `unsure` is when one of them last may have had other
    /// words, or flows that this node does not know of.
    pub fn note_shared(&mut self, services: impl IntoIterator<Item = u32>, unsure: Instant) {
        self.shared = services.into_iter().map(|id| (id, unsure)).collect();
    }

    /// This node was not in charge of these services until now: what is under way with their slots begins anew.
    pub fn restart(&mut self, services: impl IntoIterator<Item = u32>, image: &Image, now: Instant) {
        for id in services {
            let Some(ring) = image.rings.get(&id) else { continue };
            let moving = (0..).zip(ring).filter(|(_, slot)| !slot.is_plain()).map(|(at, _)| (at, now));
            self.changed.insert(id, moving.collect());
        }
    }

    /// Flows that were tracked and alive at the last walk.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows
    }

    /// Handshakes that were under way at the last walk.
    #[must_use]
    pub fn half_open(&self) -> usize {
        self.half_open
    }

    /// Base and size of places in the schedule array that must not be given out.
    #[must_use]
    pub fn resting(&self, now: Instant) -> Vec<(u32, u32)> {
        let rests = |at: &Instant| now.saturating_duration_since(*at) <= GRACE;
        self.resting.iter().filter(|(at, _)| rests(at)).map(|(_, range)| *range).collect()
    }

    /// Backend ids that must not be given out.
    #[must_use]
    pub fn reserved(&self) -> BTreeSet<u32> {
        self.freed.iter().map(|(_, id)| *id).collect()
    }

    /// True if a walk through the flow table may find something to do.
    #[must_use]
    pub fn is_busy(&self, image: &Image) -> bool {
        self.flows + self.half_open > 0
            || image.services.values().any(|s| is_scheduled(&s.entry))
            || !self.freed.is_empty()
            || image.rings.values().any(|ring| !ring.is_plain())
    }

    /// Moving slots whose home nobody without an entry can live at any more get their owner for a home.
    #[must_use]
    pub fn settle(&self, image: &Image, now: Instant) -> Vec<Action> {
        slot_actions(image, |id, index, slot| {
            if slot.state() == SlotState::Moving && now > self.settles(image, id, index) {
                affinity::settle(slot)
            } else {
                slot
            }
        })
    }

    /// When a moving slot settles, unless it begins to move again or a flow finds no room.
    fn settles(&self, image: &Image, service: u32, index: u32) -> Instant {
        let idle = Duration::from_nanos(image.services[&service].entry.idle_ns);
        let began = self.changed(service, index);
        let began = self.refused.map_or(began, |refused| began.max(refused));
        self.shared.get(&service).map_or(began, |unsure| began.max(*unsure) + LAG) + idle
    }

    fn changed(&self, service: u32, index: u32) -> Instant {
        let slots = self.changed.get(&service);
        slots.and_then(|slots| slots.get(&index)).copied().unwrap_or(self.started)
    }

    /// The slots that name a backend, as owner or as home, and when the last of them that moves away from it settles. A slot that nobody
    /// takes over never does.
    #[must_use]
    pub fn naming(&self, image: &Image, backend: u32) -> Naming {
        let mut naming = Naming::default();
        let Some(record) = image.backends.get(&backend) else { return naming };
        let service = record.entry.service;
        for (i, slot) in image.rings.get(&service).into_iter().flatten().enumerate() {
            naming.owned += u32::from(slot.owner() == backend);
            if slot.owner() != backend && slot.home() == backend {
                naming.leaving += 1;
                if slot.owner() == 0 {
                    naming.stuck += 1;
                } else {
                    naming.settles = naming.settles.max(Some(self.settles(image, service, i as u32)));
                }
            }
        }
        naming
    }

    /// Judges every handshake and every flow, in the order they were read in, before `clock_ns` of the monotonic clock.
    #[must_use]
    pub fn walk(
        &self,
        image: &Image,
        half_open: Vec<(Flow, HalfOpen)>,
        flows: Vec<(Flow, FlowEntry)>,
        clock_ns: u64,
    ) -> Walk {
        let mut walk = Walk::default();
        for (flow, half) in half_open {
            let entry = FlowEntry(half.entry);
            let under_way = entry.is_half_open();
            if walk.lives(image, &flow, entry, under_way, clock_ns) {
                *(if under_way { &mut walk.half_open } else { &mut walk.living }) += 1;
            } else {
                walk.half_over.push((flow, half));
            }
        }
        for (flow, entry) in flows {
            if walk.lives(image, &flow, entry, false, clock_ns) {
                walk.living += 1;
            } else {
                walk.over.push((flow, entry));
            }
        }
        walk
    }

    /// Tracked slots of which nobody lives elsewhere become plain. `now` is a time before the table was walked through.
    #[must_use]
    pub fn clear(&self, image: &Image, walk: &Walk, now: Instant) -> Vec<Action> {
        slot_actions(image, |id, index, slot| {
            let unsure = self.shared.get(&id).map(|unsure| *unsure + LAG);
            let since = self.changed(id, index);
            let since = unsure.map_or(since, |unsure| unsure.max(since + LAG));
            let quiet = now.saturating_duration_since(since) > GRACE;
            if quiet && !walk.foreign.contains(&(id, index)) { affinity::clear(slot) } else { slot }
        })
    }

    /// A walk that began at `now` is over and its flows are forgotten: what was freed before is free.
    pub fn walked(&mut self, walk: &Walk, now: Instant) {
        self.flows = walk.living;
        self.half_open = walk.half_open;
        self.freed.retain(|(at, _)| now.saturating_duration_since(*at) <= GRACE);
    }
}

impl Walk {
    /// True for an entry to keep. One that lives elsewhere than at home keeps its slot tracked.
    fn lives(
        &mut self,
        image: &Image,
        flow: &Flow,
        entry: FlowEntry,
        under_way: bool,
        clock_ns: u64,
    ) -> bool {
        let place = locate(image, flow).filter(|place| FlowEntry::tag_of(place.hash) == entry.tag());
        let Some(place) = place else { return false };
        let slot = image.rings[&place.service][place.slot as usize];
        let service = &image.services[&place.service].entry;
        let longest = Duration::from_nanos(service.idle_ns) + MARGIN;
        let limit = match (under_way, entry.is_closing()) {
            (true, _) => longest.min(HALF_OPEN_LIFE),
            (false, true) => longest.min(CLOSING_LIFE),
            (false, false) => longest,
        };
        let asked = !slot.is_plain() || is_scheduled(service);
        let over = Duration::from_nanos(entry.idle_ns(clock_ns)) > limit || !asked;
        // The master says which flows of such a service there are.
        let is_mirrored = || image.followed.get(&place.service).is_some_and(|it| it.fleet.is_none());
        if over && !is_mirrored() || !is_alive(image, entry) {
            return false;
        }
        *self.on.entry(entry.backend()).or_default() += 1;
        if entry.backend() != slot.home() && !is_scheduled(service) {
            self.foreign.insert((place.service, place.slot));
        }
        if service.flags & ServiceEntry::LEAST_CONNECTIONS != 0 && !under_way && !entry.is_closing() {
            *self.active.entry(entry.backend()).or_default() += 1;
        }
        true
    }
}

/// Every packet of such a service asks the flow tables.
fn is_scheduled(service: &ServiceEntry) -> bool {
    service.flags & ServiceEntry::SCHEDULED != 0
}

/// The changes of slots: service, index, word now -> word then.
fn slot_actions(image: &Image, change: impl Fn(u32, u32, Slot) -> Slot) -> Vec<Action> {
    let mut actions = Vec::new();
    // Nothing is under way where every slot is plain.
    for (id, ring) in image.rings.iter().filter(|(_, ring)| !ring.is_plain()) {
        if image.followed.contains_key(id) {
            continue;
        }
        let base = image.services[id].entry.ring_base;
        let words: Vec<_> = ring
            .iter()
            .enumerate()
            .map(|(i, slot)| (base + i as u32, *slot, change(*id, i as u32, *slot)))
            .filter(|(_, old, new)| old != new)
            .collect();
        if !words.is_empty() {
            actions.push(Action::Slots { service: *id, words });
        }
    }
    actions
}

struct Place {
    service: u32,
    slot: u32,
    hash: u64,
}

/// Where a tracked flow belongs; `None` if no service has its destination any more.
fn locate(image: &Image, flow: &Flow) -> Option<Place> {
    let tables = Memory(image);
    let (vip, ports, proto) = match flow {
        Flow::V4(key) => (tables.vip4(key.dst)?, u32::from_be_bytes(key.ports), key.proto),
        Flow::V6(key) => (tables.vip6(&key.dst)?, u32::from_be_bytes(key.ports), key.proto),
    };
    let service = find_service(&tables, vip, proto as u8, ports as u16)?;
    let entry = &image.services.get(&service)?.entry;
    let hash = |ports| match flow {
        Flow::V4(key) => hash::flow4(entry.seed, u32::from_be_bytes(key.src), ports),
        Flow::V6(key) => {
            let src = u128::from_be_bytes(key.src);
            hash::flow6(entry.seed, (src >> 64) as u64, src as u64, ports)
        }
    };
    let of_slot = if entry.flags & ServiceEntry::SOURCE_IP == 0 { hash(ports) } else { hash(0) };
    Some(Place { service, slot: hash::slot(of_slot, entry.ring_size), hash: hash(ports) })
}

fn is_alive(image: &Image, entry: FlowEntry) -> bool {
    image.backends.get(&entry.backend()).is_some_and(|record| {
        record.entry.flags & BackendEntry::DEAD == 0 && record.entry.incarnation as u8 == entry.incarnation()
    })
}
