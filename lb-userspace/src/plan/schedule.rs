//! Schedules of round-robin and least-connections services: their words, and where in the array they lie. Pure.

use super::{Image, WantedService};
use crate::model::Scheduler;
use lb_common::{
    abi::{SCHEDULE_CAPACITY, ServiceEntry},
    core::schedule::weighted,
};

/// Words a backend of a round-robin service takes at most, on average. Weights that need more are rounded.
const WORDS_PER_BACKEND: u64 = 64;

/// A service's schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleRecord {
    /// First of its words in `SCHEDULE`.
    pub base: u32,
    /// At least one: nobody to take new flows is no schedule.
    pub words: Vec<u64>,
}

impl ScheduleRecord {
    fn range(&self) -> (u32, u32) {
        (self.base, self.words.len() as u32)
    }
}

/// The flags of a service with this scheduler.
#[must_use]
pub fn flags(scheduler: Scheduler) -> u32 {
    match scheduler {
        Scheduler::Maglev => 0,
        Scheduler::SourceIp => ServiceEntry::SOURCE_IP,
        Scheduler::RoundRobin => ServiceEntry::ROUND_ROBIN,
        Scheduler::LeastConnections => ServiceEntry::LEAST_CONNECTIONS,
    }
}

/// The words of a service's schedule; `ids` are those of its backends.
pub(super) fn words(service: &WantedService, ids: &[u32], words_per_backend: u64) -> Vec<u64> {
    let members: Vec<(u32, u64)> = ids
        .iter()
        .zip(&service.backends)
        .filter(|(_, backend)| backend.takes_new())
        .map(|(id, backend)| (*id, u64::from(backend.share())))
        .collect();
    // Whole weights stay what they are; on the way between two of them, the largest is as large as can be.
    let ramping = service.backends.iter().any(|backend| backend.ramp.is_some());
    let largest = members.iter().map(|(_, share)| *share).max().unwrap_or(1);
    let weight = |share: u64| if ramping { (share * 65_535 / largest).max(1) } else { share >> 16 };
    match service.spec.scheduler {
        Scheduler::Maglev | Scheduler::SourceIp => Vec::new(),
        Scheduler::RoundRobin => turns(&members, words_per_backend),
        Scheduler::LeastConnections => {
            members.iter().map(|(id, share)| weighted(*id, weight(*share) as u32)).collect()
        }
    }
}

/// Turns in proportion to the weights, those of each member spread as evenly as they can be.
fn turns(members: &[(u32, u64)], words_per_backend: u64) -> Vec<u64> {
    let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
    let total: u64 = members.iter().map(|(_, weight)| weight / divisor).sum();
    let room = words_per_backend * members.len() as u64;
    let counts: Vec<u64> = members
        .iter()
        .map(|(_, weight)| match weight / divisor {
            exact if total <= room => exact,
            // Rounded down, so that all fit; but nobody with a weight gets nothing.
            large => (large * room / total).max(1),
        })
        .collect();
    // Turn k of a member with n of them is due at (k + 1/2) / n; as whole numbers, so that equal is equal.
    let mut due: Vec<(u64, usize)> = Vec::with_capacity(counts.iter().sum::<u64>() as usize);
    for (member, count) in counts.iter().enumerate() {
        due.extend((0..*count).map(|k| (((2 * k + 1) << 32) / (2 * count), member)));
    }
    due.sort_unstable();
    due.into_iter().map(|(_, member)| u64::from(members[member].0)).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Free places of the schedule array.
pub(super) struct Words<'a> {
    observed: &'a Image,
    /// In use or at rest, in order.
    taken: Vec<(u32, u32)>,
}

impl<'a> Words<'a> {
    pub(super) fn of(observed: &'a Image) -> Self {
        let used = observed.schedules.values().map(ScheduleRecord::range);
        let mut taken: Vec<_> = used.chain(observed.resting.iter().copied()).collect();
        taken.sort_unstable();
        Self { observed, taken }
    }

    /// The schedule of a service: where it lies, if its words stay the same; else a place that nobody reads. Where there is
    /// little room, weights are rounded. `Ok(None)`: no schedule is needed. `Err`: there is no room.
    pub(super) fn place(
        &mut self,
        id: Option<u32>,
        service: &WantedService,
        ids: &[u32],
    ) -> Result<Option<ScheduleRecord>, usize> {
        let mut needed = 0;
        for shift in 0..=WORDS_PER_BACKEND.ilog2() {
            let words = words(service, ids, WORDS_PER_BACKEND >> shift);
            if words.is_empty() {
                return Ok(None);
            }
            if let Some(kept) = id.and_then(|id| self.observed.schedules.get(&id))
                && kept.words == words
            {
                return Ok(Some(kept.clone()));
            }
            if let Some(base) = self.take(words.len() as u32) {
                return Ok(Some(ScheduleRecord { base, words }));
            }
            needed = words.len();
        }
        Err(needed)
    }

    fn take(&mut self, size: u32) -> Option<u32> {
        let mut at = 0;
        let mut place = self.taken.len();
        for (i, (base, len)) in self.taken.iter().enumerate() {
            if base.saturating_sub(at) >= size {
                place = i;
                break;
            }
            at = at.max(base + len);
        }
        if self.observed.schedule_capacity.min(SCHEDULE_CAPACITY).saturating_sub(at) < size {
            return None;
        }
        self.taken.insert(place, (at, size));
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn counts(words: &[u64]) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        for word in words {
            *counts.entry(*word).or_default() += 1;
        }
        counts
    }

    #[test]
    fn turns_are_interleaved() {
        assert_eq!(turns(&[(1, 100), (2, 100), (3, 100)], 64), [1, 2, 3]);
        assert_eq!(turns(&[(7, 50)], 64), [7]);
        assert_eq!(turns(&[(1, 4), (2, 2)], 64), [1, 2, 1]);
        assert_eq!(turns(&[(1, 5), (2, 1), (3, 1)], 64), [1, 1, 1, 2, 3, 1, 1]);
        assert!(turns(&[], 64).is_empty());
    }

    proptest! {
        /// Exact where there is room, within a turn of the share where there is not; and at any moment every member has had
        /// its share within one turn for each member.
        #[test]
        fn turns_are_in_proportion(weights in proptest::collection::vec(1..1000u64, 1..20), room in 1..64u64) {
            let members: Vec<_> = (1..).zip(weights.iter().copied()).collect();
            let order = turns(&members, room);
            prop_assert!(order.len() as u64 <= (room + 1) * members.len() as u64);
            let found = counts(&order);
            let total: u64 = weights.iter().sum();
            let divisor = weights.iter().fold(0, |d, w| gcd(d, *w));
            let exact = total / divisor <= room * members.len() as u64;
            for (id, weight) in &members {
                let share = *weight as f64 / total as f64 * (room * members.len() as u64) as f64;
                let found = found[&u64::from(*id)];
                if exact {
                    prop_assert_eq!(found, weight / divisor);
                } else {
                    prop_assert!((found as f64 - share).abs() <= 1.0, "{found} turns, share {share}");
                }
            }
            for (id, _) in &members {
                let each = found[&u64::from(*id)] as f64 / order.len() as f64;
                let mut had = 0f64;
                for (taken, word) in order.iter().enumerate() {
                    had += f64::from(u8::from(*word == u64::from(*id)));
                    let due = (taken + 1) as f64 * each;
                    prop_assert!((had - due).abs() <= members.len() as f64, "{had} of {due} after {taken}");
                }
            }
        }

        /// What is given out overlaps nothing that is in use or at rest.
        #[test]
        fn places_do_not_overlap(sizes in proptest::collection::vec(1..40u32, 1..12), rests in proptest::collection::btree_set(0..10u32, 0..5)) {
            let mut image = Image { schedule_capacity: 256, ..Image::default() };
            image.resting = rests.iter().map(|at| (at * 20, 10)).collect();
            let mut words = Words::of(&image);
            let mut taken: Vec<(u32, u32)> = image.resting.clone();
            for size in sizes {
                if let Some(base) = words.take(size) {
                    prop_assert!(base + size <= 256);
                    prop_assert!(taken.iter().all(|(b, s)| base + size <= *b || b + s <= base));
                    taken.push((base, size));
                }
            }
        }
    }
}
