//! What looks at every service: all of them with their counters, for a scrape or a list, and the hash over their settings. Done a
//! part at a time, so that thousands of them do not keep packets' neighbours, health and changes waiting.

use super::engine::Engine;
use crate::{
    control::{
        api::{ServiceView, SlotsView, StatusView},
        command::{CommandError, Reply},
    },
    health::TargetKey,
    plan::{self, Index, Ring},
    state::EffectiveService,
};
use lb_common::abi::SlotState;
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// One part takes at least one service and then not longer than this.
const PART: Duration = Duration::from_millis(1);

/// Those that wait for their answer.
#[derive(Debug, Default)]
pub(super) struct Walks {
    waiting: VecDeque<Walk>,
    census: HashMap<u32, Census>,
}

/// Slots of a ring by state, and by backend: those whose new flows it takes, and those whose new flows go elsewhere and whose
/// established ones are still with it. Rings have thousands, and change seldom.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// What was counted.
    ring: Ring,
    pub(super) slots: SlotsView,
    pub(super) owned: Vec<(u32, u32)>,
    pub(super) leaving: Vec<(u32, u32)>,
}

impl Walks {
    /// As it was counted for the row.
    pub(super) fn census(&self, service: u32) -> Option<&Census> {
        self.census.get(&service)
    }
}

#[derive(Debug)]
enum Walk {
    Services { reply: Reply<Vec<ServiceView>>, rows: Vec<ServiceView> },
    Status(Reply<StatusView>),
}

impl Walk {
    /// Nobody waits for it any more.
    fn is_vain(&self) -> bool {
        match self {
            Self::Services { reply, .. } => reply.is_closed(),
            Self::Status(reply) => reply.is_closed(),
        }
    }
}

impl Engine {
    /// Lists all services; few of them at once, many over several turns of the loop.
    pub(super) fn begin_walk(&mut self, reply: Reply<Vec<ServiceView>>) {
        self.walks.waiting.push_back(Walk::Services { reply, rows: Vec::new() });
        self.walk();
    }

    /// Tells the status: at once where the hash in it is known.
    pub(super) fn begin_status(&mut self, reply: Reply<StatusView>) {
        if self.make_hashes(|| false) {
            drop(reply.send(self.status()));
        } else {
            // Before the lists: somebody may only want to know whether the daemon is well.
            self.walks.waiting.push_front(Walk::Status(reply));
            self.walk();
        }
    }

    pub(super) fn is_walking(&self) -> bool {
        !self.walks.waiting.is_empty()
    }

    /// The next part of what has waited longest.
    pub(super) fn walk(&mut self) {
        let Some(walk) = self.walks.waiting.pop_front().filter(|walk| !walk.is_vain()) else { return };
        let begun = Instant::now();
        match walk {
            Walk::Status(reply) => {
                if self.make_hashes(|| begun.elapsed() < PART) {
                    drop(reply.send(self.status()));
                } else {
                    self.walks.waiting.push_front(Walk::Status(reply));
                }
            }
            Walk::Services { reply, mut rows } => match self.more(&mut rows, begun) {
                Ok(true) => {
                    self.walks.census.retain(|id, _| self.image.rings.contains_key(id));
                    drop(reply.send(Ok(rows)));
                }
                Ok(false) => self.walks.waiting.push_front(Walk::Services { reply, rows }),
                Err(error) => drop(reply.send(Err(error))),
            },
        }
    }

    /// Adds rows; true if these are all.
    fn more(&mut self, rows: &mut Vec<ServiceView>, begun: Instant) -> Result<bool, CommandError> {
        self.index.get_or_insert_with(|| Index::of(&self.image));
        let services = &self.effective.services;
        let mut at = match rows.last() {
            None => 0,
            // Mostly where it was when this row was made.
            Some(last) if services.get(rows.len() - 1).is_some_and(|s| s.spec.name.as_str() == last.name) => {
                rows.len()
            }
            // The configuration is another one by now.
            Some(_) => {
                rows.clear();
                0
            }
        };
        while let Some(service) = self.effective.services.get(at) {
            let parts: Vec<u32> =
                self.index.iter().flat_map(|index| index.services(service.spec.name.as_str())).collect();
            for id in &parts {
                if let Some(ring) = self.image.rings.get(id)
                    && !self.walks.census.get(id).is_some_and(|census| census.ring.is_same(ring))
                {
                    self.walks.census.insert(*id, count(ring));
                }
            }
            rows.push(self.row(service, &parts)?);
            at += 1;
            if begun.elapsed() >= PART {
                break;
            }
        }
        Ok(at >= self.effective.services.len())
    }

    /// `parts`: its ids in the maps.
    fn row(&self, service: &EffectiveService, parts: &[u32]) -> Result<ServiceView, CommandError> {
        let mut ids: HashMap<&str, Vec<u32>> = HashMap::new();
        let backends = |id: &u32| self.index.iter().flat_map(|index| index.backends(*id)).collect::<Vec<_>>();
        for backend in parts.iter().flat_map(backends) {
            if let Some(record) = self.image.backends.get(&backend) {
                ids.entry(plan::name_of(&record.identity)).or_default().push(backend);
            }
        }
        let reasons = service
            .backends
            .iter()
            .filter_map(|backend| {
                let key = TargetKey::of(&service.spec.name, &backend.spec.name);
                let reason = self.health_task.status(&key)?.reason();
                Some((key, reason))
            })
            .collect();
        self.service(service, parts, &ids, &reasons)
    }
}

fn count(ring: &Ring) -> Census {
    let mut slots = SlotsView::default();
    let mut owned: HashMap<u32, u32> = HashMap::new();
    let mut leaving: HashMap<u32, u32> = HashMap::new();
    for slot in ring {
        slots.total += 1;
        *owned.entry(slot.owner()).or_default() += 1;
        if slot.home() != slot.owner() {
            *leaving.entry(slot.home()).or_default() += 1;
        }
        match slot.state() {
            SlotState::Plain => slots.plain += 1,
            SlotState::Moving => slots.moving += 1,
            SlotState::Tracked => slots.tracked += 1,
        }
    }
    Census {
        ring: ring.clone(),
        slots,
        owned: owned.into_iter().collect(),
        leaving: leaving.into_iter().collect(),
    }
}
