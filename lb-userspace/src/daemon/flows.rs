//! Looking after the slots that changed hands and the flows recorded for them: moving slots settle, tracked
//! slots become plain, silent flows are forgotten.

use super::engine::Engine;
use crate::{
    affinity,
    dataplane::{DataplaneError, Flow},
    plan::{Action, Image, Memory},
};
use lb_common::{
    abi::{BackendEntry, FlowEntry, Slot, SlotState},
    core::{Tables, find_service},
    hash,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// A flow that has not answered its SYN, or has ended, is kept so long.
const SHORT_LIFE: Duration = Duration::from_secs(30);
/// Beyond the idle timeout: the clock of entries counts units of two seconds.
const MARGIN: Duration = Duration::from_secs(10);
/// After a slot's word changed, every packet that met the old word is through by then.
const GRACE: Duration = Duration::from_secs(1);
/// Between two walks through the flow table.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);

/// Since when what is under way.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    /// By service id: when one of its slots last began to move.
    moving: BTreeMap<u32, Instant>,
    /// By service id: when its slots last became tracked.
    tracked: BTreeMap<u32, Instant>,
    /// Flows that found no room, and when that number last rose.
    refused: (u64, Option<Instant>),
    scanned: Option<Instant>,
    /// Flows in the table at the last walk.
    pub flows: usize,
}

impl Tracking {
    /// Takes note of slots that begin to move or become tracked.
    pub(super) fn note_changes(&mut self, before: &Image, after: &Image, now: Instant) {
        for (id, ring) in &after.rings {
            let old = before.rings.get(id);
            for (i, slot) in ring.iter().enumerate() {
                if old.and_then(|old| old.get(i)) == Some(slot) {
                    continue;
                }
                match slot.state() {
                    SlotState::Moving => _ = self.moving.insert(*id, now),
                    SlotState::Tracked => _ = self.tracked.insert(*id, now),
                    SlotState::Plain => {}
                }
            }
        }
        self.moving.retain(|id, _| after.rings.contains_key(id));
        self.tracked.retain(|id, _| after.rings.contains_key(id));
    }
}

impl Engine {
    /// One round, every second.
    pub(super) fn tend_flows(&mut self, now: Instant) {
        if let Err(error) = self.try_tend(now) {
            tracing::error!(%error, "could not look after the tracked flows");
        }
    }

    fn try_tend(&mut self, now: Instant) -> Result<(), DataplaneError> {
        let refused = self.kernel.maps().flow_stats()?.refused;
        if refused != self.tracking.refused.0 {
            tracing::warn!(
                refused = refused.saturating_sub(self.tracking.refused.0),
                "flows found no room in the flow table; slots settle later for it"
            );
            self.tracking.refused = (refused, Some(now));
        }
        self.settle(now)?;
        let busy =
            self.tracking.flows > 0 || !self.freed.is_empty() || self.any_slot(|slot| !slot.is_plain());
        if busy && self.tracking.scanned.is_none_or(|at| now.duration_since(at) >= SCAN_INTERVAL) {
            self.scan(now)?;
            self.tracking.scanned = Some(now);
        }
        Ok(())
    }

    fn any_slot(&self, test: impl Fn(Slot) -> bool) -> bool {
        self.image.rings.values().flatten().any(|slot| test(*slot))
    }

    /// Moving slots whose silent flows may be forgotten get their new home.
    fn settle(&mut self, now: Instant) -> Result<(), DataplaneError> {
        let due: BTreeSet<u32> = self
            .image
            .services
            .iter()
            .filter(|(id, record)| {
                // A slot that was moving when this daemon started counts from the start.
                let began = self.tracking.moving.get(id).copied().unwrap_or(self.started);
                let began = self.tracking.refused.1.map_or(began, |refused| began.max(refused));
                now.duration_since(began) > Duration::from_nanos(record.entry.idle_ns)
            })
            .map(|(id, _)| *id)
            .collect();
        self.change_slots(now, |id, _, slot| if due.contains(&id) { affinity::settle(slot) } else { slot })
    }

    /// Walks through the flow table: forgets what is over, and finds the tracked slots that need it no more.
    fn scan(&mut self, now: Instant) -> Result<(), DataplaneError> {
        let clock = monotonic_ns();
        let flows = self.kernel.maps().flows()?;
        let mut foreign: BTreeSet<(u32, u32)> = BTreeSet::new();
        let (mut over, mut living) = (Vec::new(), 0);
        for (flow, entry) in flows {
            let Some((service, index)) = locate(&self.image, &flow) else {
                over.push((flow, entry));
                continue;
            };
            let idle = Duration::from_nanos(entry.idle_ns(clock));
            let limit = if entry.is_closing() || entry.is_half_open() {
                SHORT_LIFE
            } else {
                Duration::from_nanos(self.image.services[&service].entry.idle_ns) + MARGIN
            };
            let slot = self.image.rings[&service][index as usize];
            if idle > limit || !alive(&self.image, entry) || slot.is_plain() {
                over.push((flow, entry));
                continue;
            }
            living += 1;
            if entry.backend() != slot.home() {
                foreign.insert((service, index));
            }
        }
        self.tracking.flows = living;
        self.kernel.forget(&over)?;
        // Tracked for a while, and nobody lives elsewhere: the table need not be asked any more.
        let settled: BTreeSet<u32> = self
            .image
            .rings
            .keys()
            .copied()
            .filter(|id| {
                let since = self.tracking.tracked.get(id).copied().unwrap_or(self.started);
                now.duration_since(since) > GRACE
            })
            .collect();
        self.change_slots(now, |id, index, slot| {
            if settled.contains(&id) && !foreign.contains(&(id, index)) {
                affinity::clear(slot)
            } else {
                slot
            }
        })?;
        // Entries of freed ids are gone with the others that name no living backend.
        self.freed.retain(|(at, _)| now.duration_since(*at) <= GRACE);
        Ok(())
    }

    /// Rewrites slots: service, index, word now -> word then.
    fn change_slots(
        &mut self,
        now: Instant,
        change: impl Fn(u32, u32, Slot) -> Slot,
    ) -> Result<(), DataplaneError> {
        let mut actions = Vec::new();
        for (id, ring) in &self.image.rings {
            let base = self.image.services[id].entry.ring_base;
            let words: Vec<_> = ring
                .iter()
                .enumerate()
                .map(|(i, slot)| (base + i as u32, *slot, change(*id, i as u32, *slot)))
                .filter(|(_, old, new)| old != new)
                .collect();
            if !words.is_empty() {
                tracing::debug!(service = id, slots = words.len(), "slots settle");
                actions.push(Action::Slots { service: *id, words });
            }
        }
        if actions.is_empty() {
            return Ok(());
        }
        self.kernel.execute(&actions)?;
        let before = self.image.clone();
        for action in &actions {
            self.image.apply(action);
        }
        self.tracking.note_changes(&before, &self.image, now);
        Ok(())
    }
}

/// Service id and slot of a tracked flow; `None` if no service has its destination any more.
fn locate(image: &Image, flow: &Flow) -> Option<(u32, u32)> {
    let tables = Memory(image);
    let (vip, ports, proto) = match flow {
        Flow::V4(key) => (tables.vip4(key.dst)?, u32::from_be_bytes(key.ports), key.proto),
        Flow::V6(key) => (tables.vip6(&key.dst)?, u32::from_be_bytes(key.ports), key.proto),
    };
    let service = find_service(&tables, vip, proto as u8, ports as u16)?;
    let entry = tables.service(service)?;
    let hash = match flow {
        Flow::V4(key) => hash::flow4(entry.seed, u32::from_be_bytes(key.src), ports),
        Flow::V6(key) => {
            let src = u128::from_be_bytes(key.src);
            hash::flow6(entry.seed, (src >> 64) as u64, src as u64, ports)
        }
    };
    Some((service, hash::slot(hash, entry.ring_size)))
}

fn alive(image: &Image, entry: FlowEntry) -> bool {
    image.backends.get(&entry.backend()).is_some_and(|record| {
        record.entry.flags & BackendEntry::DEAD == 0 && record.entry.incarnation as u8 == entry.incarnation()
    })
}

/// The clock of flow entries: `bpf_ktime_get_ns`.
fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
