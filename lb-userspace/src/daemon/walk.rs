//! All services with their counters, for a scrape or a list: read a part at a time, so that thousands of them do not
//! keep packets' neighbours, health and changes waiting.

use super::engine::Engine;
use crate::{
    control::{
        api::{ServiceView, SlotsView},
        command::{CommandError, Reply},
    },
    health::TargetKey,
    plan,
    state::EffectiveService,
};
use lb_common::abi::{Slot, SlotState};
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// One part takes at least one service and then not longer than this.
const PART: Duration = Duration::from_millis(1);

/// Those that wait for their list, and what finds ids quickly.
#[derive(Debug, Default)]
pub(super) struct Walks {
    waiting: VecDeque<Walk>,
    index: Index,
    /// Changes of the maps so far.
    pub converged: u64,
    census: HashMap<u32, Census>,
}

/// Slots of a ring by state, and by backend: those whose new flows it takes, and those whose new flows go elsewhere and whose
/// established ones are still with it. Rings have thousands, and change seldom.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) slots: SlotsView,
    pub(super) owned: Vec<(u32, u32)>,
    pub(super) leaving: Vec<(u32, u32)>,
}

impl Walks {
    /// Rings were written; whatever was counted is void.
    pub(super) fn slots_changed(&mut self) {
        self.census.clear();
    }

    /// As it was counted for the row.
    pub(super) fn census(&self, service: u32) -> Option<&Census> {
        self.census.get(&service)
    }
}

#[derive(Debug)]
struct Walk {
    reply: Reply<Vec<ServiceView>>,
    rows: Vec<ServiceView>,
}

/// Ids of the image, by name; made anew after the image was.
#[derive(Debug, Default)]
struct Index {
    made: Option<u64>,
    /// One of each part.
    services: HashMap<String, Vec<u32>>,
    /// Service and backend, sorted.
    backends: Vec<(u32, u32)>,
}

impl Engine {
    /// Lists all services; few of them at once, many over several turns of the loop.
    pub(super) fn begin_walk(&mut self, reply: Reply<Vec<ServiceView>>) {
        self.walks.waiting.push_back(Walk { reply, rows: Vec::new() });
        self.walk();
    }

    pub(super) fn is_walking(&self) -> bool {
        !self.walks.waiting.is_empty()
    }

    /// The next part of the oldest list.
    pub(super) fn walk(&mut self) {
        let Some(mut walk) = self.walks.waiting.pop_front() else { return };
        if walk.reply.is_closed() {
            return;
        }
        match self.more(&mut walk.rows) {
            Ok(true) => drop(walk.reply.send(Ok(walk.rows))),
            Ok(false) => self.walks.waiting.push_front(walk),
            Err(error) => drop(walk.reply.send(Err(error))),
        }
    }

    /// Adds rows; true if these are all.
    fn more(&mut self, rows: &mut Vec<ServiceView>) -> Result<bool, CommandError> {
        self.index();
        let begun = Instant::now();
        let services = &self.effective.services;
        let mut at = match rows.last() {
            None => 0,
            Some(last) => match services.iter().position(|s| s.spec.name.as_str() == last.name) {
                Some(at) => at + 1,
                // The configuration is another one by now.
                None => {
                    rows.clear();
                    0
                }
            },
        };
        while let Some(service) = self.effective.services.get(at) {
            for id in self.walks.index.services.get(service.spec.name.as_str()).into_iter().flatten() {
                if let Some(ring) = self.image.rings.get(id) {
                    self.walks.census.entry(*id).or_insert_with(|| count(ring));
                }
            }
            rows.push(self.row(service)?);
            at += 1;
            if begun.elapsed() >= PART {
                break;
            }
        }
        Ok(at >= self.effective.services.len())
    }

    /// The index must be of the present image.
    fn row(&self, service: &EffectiveService) -> Result<ServiceView, CommandError> {
        let index = &self.walks.index;
        let parts = index.services.get(service.spec.name.as_str()).map_or(&[][..], Vec::as_slice);
        let mut ids: HashMap<&str, Vec<u32>> = HashMap::new();
        for (_, backend) in parts.iter().flat_map(|id| index.backends_of(*id)) {
            if let Some(record) = self.image.backends.get(backend) {
                ids.entry(plan::name_of(&record.identity)).or_default().push(*backend);
            }
        }
        let reasons = service
            .backends
            .iter()
            .filter_map(|backend| {
                let key =
                    TargetKey { service: service.spec.name.clone(), backend: backend.spec.name.clone() };
                let reason = self.health_task.status(&key)?.reason();
                Some((key, reason))
            })
            .collect();
        self.service(service, parts, &ids, &reasons)
    }

    fn index(&mut self) {
        let (image, walks) = (&self.image, &mut self.walks);
        if walks.index.made == Some(walks.converged) {
            return;
        }
        let mut services: HashMap<String, Vec<u32>> = HashMap::with_capacity(image.services.len());
        for (id, record) in &image.services {
            services.entry(plan::name_of(&record.identity).to_owned()).or_default().push(*id);
        }
        let mut backends: Vec<(u32, u32)> =
            image.backends.iter().map(|(id, record)| (record.entry.service, *id)).collect();
        backends.sort_unstable();
        walks.index = Index { made: Some(walks.converged), services, backends };
    }
}

fn count<'a>(ring: impl IntoIterator<Item = &'a Slot>) -> Census {
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
    Census { slots, owned: owned.into_iter().collect(), leaving: leaving.into_iter().collect() }
}

impl Index {
    fn backends_of(&self, service: u32) -> &[(u32, u32)] {
        let from = self.backends.partition_point(|(of, _)| *of < service);
        let to = from + self.backends[from..].partition_point(|(of, _)| *of == service);
        &self.backends[from..to]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backends_of_a_service_are_found_in_the_sorted_list() {
        let index = Index { backends: vec![(1, 4), (1, 9), (3, 2), (7, 1)], ..Index::default() };
        assert_eq!(index.backends_of(1), [(1, 4), (1, 9)]);
        assert_eq!(index.backends_of(3), [(3, 2)]);
        assert_eq!(index.backends_of(7), [(7, 1)]);
        assert_eq!(index.backends_of(2), []);
        assert_eq!(index.backends_of(8), []);
    }
}
