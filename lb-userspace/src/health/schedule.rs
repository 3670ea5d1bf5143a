//! When which target is checked next. Pure: the caller passes the time in.
//!
//! A target's first check comes at an offset within its interval that is taken from a hash of its name,
//! so that thousands of targets spread evenly, also when all are added at once. From there it has a
//! fixed cadence: ticks 97.5 % of the interval apart, and on each a jitter of up to 2.5 % of the
//! interval that does not add up, so there is no drift. Two starts are therefore 95 to 100 % of the
//! interval apart, never more, and a dead backend is found within `fall` x interval + timeout.
//!
//! A target is either waiting in the heap or running ([`Schedule::pop_due`] to [`Schedule::finished`]),
//! so two checks of one target never overlap. Lateness causes no burst:
//! - ticks missed while a check ran are left out, not made up for;
//! - two starts are never closer than half the interval;
//! - what is found late by more than half its interval (the machine slept, or too many checks hung) waits
//!   for its next tick, which keeps the spread, but only once in a row, so that nobody starves;
//! - a check that outlasted its tick by less than that is followed by the next one at once, and the
//!   target's cadence goes on from there: with a timeout as long as the interval, a hanging backend is
//!   still checked once per interval.
//!
//! A target's interval may change with each check ([`Schedule::set_interval`]). Each interval has a grid of ticks of its own,
//! whose place depends on the target alone: thousands of targets that were checked faster for a while and go back to
//! their ordinary interval together are spread as before. The step from one grid to another is half an interval to one
//! and a half.
//!
//! Everything is O(log n) per check.

use indexmap::IndexMap;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// Shorter intervals act as this one: the resolution of the timer.
pub const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// Longer intervals act as this one; keeps the arithmetic on [`Instant`] far from its end.
pub const MAX_INTERVAL: Duration = Duration::from_secs(30 * 24 * 3600);

/// One in how many parts of the interval the jitter is at most.
const JITTER_PART: u64 = 40;

/// Names one target of a [`Schedule`]; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    next_id: u64,
    entries: IndexMap<Id, Entry>,
    /// The due time of every waiting target, and stale pairs of removed ones.
    heap: BinaryHeap<Reverse<(Instant, Id)>>,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    /// From where the grids are measured.
    anchor: Instant,
    /// Nanoseconds.
    interval: u64,
    /// The present tick, without its jitter.
    tick: Instant,
    /// Counts ticks, to draw the jitter.
    count: u64,
    /// The last time it was due it was put off.
    put_off: bool,
    /// When the running check was started.
    running: Option<Instant>,
}

impl Entry {
    fn jitter(&self) -> Duration {
        let part = self.interval / JITTER_PART;
        Duration::from_nanos(mix(self.hash ^ mix(self.count)) % part.max(1))
    }

    fn period(&self) -> u64 {
        self.interval - self.interval / JITTER_PART
    }

    fn half(&self) -> Duration {
        Duration::from_nanos(self.interval / 2)
    }

    fn due(&self) -> Instant {
        self.tick + self.jitter()
    }

    fn advance(&mut self, ticks: u64) {
        self.tick += Duration::from_nanos(self.period().saturating_mul(ticks));
        self.count = self.count.wrapping_add(ticks);
    }

    /// Goes on to the first tick at `earliest` or later.
    fn advance_to(&mut self, earliest: Instant) {
        let behind = earliest.saturating_duration_since(self.tick).as_nanos();
        let ticks = behind.div_ceil(u128::from(self.period()));
        self.advance(u64::try_from(ticks).unwrap_or(u64::MAX));
    }
}

impl Schedule {
    /// Number of targets.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without targets.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a target; `hash` decides where in the interval its checks lie. A target whose interval
    /// changes is removed and added again.
    pub fn insert(&mut self, hash: u64, interval: Duration, now: Instant) -> Id {
        let id = Id(self.next_id);
        self.next_id += 1;
        let interval = nanoseconds(interval);
        let mut entry =
            Entry { hash, anchor: now, interval, tick: now, count: 0, put_off: false, running: None };
        entry.tick += Duration::from_nanos(mix(hash) % entry.period());
        self.heap.push(Reverse((entry.due(), id)));
        self.entries.insert(id, entry);
        id
    }

    /// Forgets a target, running or not.
    pub fn remove(&mut self, id: Id) {
        self.entries.swap_remove(&id);
        // Stale pairs lie in the heap until they are due; with long intervals and frequent changes they
        // would pile up.
        if self.heap.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.heap.retain(|Reverse((_, id))| entries.contains_key(id));
        }
    }

    /// The time at which [`Schedule::pop_due`] has something to say next.
    pub fn next_due(&mut self) -> Option<Instant> {
        while let Some(Reverse((due, id))) = self.heap.peek() {
            if self.entries.contains_key(id) {
                return Some(*due);
            }
            self.heap.pop();
        }
        None
    }

    /// A target to check now, the longest due first; it counts as running until
    /// [`Schedule::finished`].
    pub fn pop_due(&mut self, now: Instant) -> Option<Id> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((due, id))) = self.heap.pop() else { break };
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if !entry.put_off && now - due > entry.half() {
                entry.put_off = true;
                // Not the present instant itself: a tick there would be popped again by this call.
                entry.advance_to(now + Duration::from_nanos(1));
                self.heap.push(Reverse((entry.due(), id)));
                continue;
            }
            entry.put_off = false;
            entry.running = Some(now);
            return Some(id);
        }
        None
    }

    /// From the running check on `id` has another interval. Without effect for a target that is not running.
    pub fn set_interval(&mut self, id: Id, interval: Duration) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(started) = entry.running else { return };
        let interval = nanoseconds(interval);
        if interval == entry.interval {
            return;
        }
        entry.interval = interval;
        // The last tick of the new grid that is not after the start, or one before its first.
        let period = u128::from(entry.period());
        let offset = u128::from(mix(entry.hash)) % period;
        let since = started.saturating_duration_since(entry.anchor).as_nanos();
        let behind = (since + period - offset) % period;
        let behind = Duration::from_nanos(u64::try_from(behind).unwrap_or(u64::MAX));
        entry.tick = started.checked_sub(behind).unwrap_or(started);
    }

    /// The check of `id` has ended, and its next one is due again in time. Without effect for a target
    /// that was removed or is not running.
    pub fn finished(&mut self, id: Id, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(started) = entry.running.take() else { return };
        let earliest = started + entry.half();
        entry.advance(1);
        if entry.due() < earliest {
            entry.advance_to(earliest);
        }
        let mut due = entry.due();
        if due < now {
            if now - due <= entry.half() {
                entry.tick = now;
                due = now;
            } else {
                entry.advance_to(now);
                due = entry.due();
            }
        }
        self.heap.push(Reverse((due, id)));
    }
}

fn nanoseconds(interval: Duration) -> u64 {
    let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL).as_nanos();
    u64::try_from(interval).expect("MAX_INTERVAL fits into 64 bits of nanoseconds")
}

/// The finalizer of splitmix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn thousands_added_at_once_spread_evenly() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        for n in 0..10_000 {
            schedule.insert(n, SECOND, start);
        }
        let mut buckets = [0u32; 100];
        let mut now = start;
        let mut checked = 0;
        while now < start + SECOND {
            while schedule.pop_due(now).is_some() {
                buckets[usize::try_from((now - start).as_millis() / 10).unwrap()] += 1;
                checked += 1;
            }
            now += MS;
        }
        assert!(checked > 9_900, "first checks come within the interval: {checked}");
        // Random offsets: the mean is 102 with a deviation of 10. The ends are softened by the jitter.
        assert!(buckets[4..96].iter().all(|n| (50..160).contains(n)), "{buckets:?}");
    }

    #[test]
    fn on_time_spacing_is_within_the_interval_and_does_not_drift() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let id = schedule.insert(7, SECOND, start);
        let first = schedule.next_due().unwrap();
        let mut last = None;
        let mut jittered = false;
        for n in 0..10_000u32 {
            let due = schedule.next_due().unwrap();
            let tick = first + SECOND.mul_f64(0.975) * n;
            assert!(due + 25 * MS >= tick && due <= tick + 25 * MS, "tick {n} drifted");
            if let Some(last) = last {
                let gap = due - last;
                assert!((950 * MS..=SECOND).contains(&gap), "{gap:?}");
                jittered |= gap != 975 * MS;
            }
            last = Some(due);
            assert_eq!(schedule.pop_due(due - Duration::from_nanos(1)), None);
            assert_eq!(schedule.pop_due(due), Some(id));
            schedule.finished(id, due + 300 * MS);
        }
        assert!(jittered);
    }

    #[test]
    fn a_running_target_is_not_due() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let id = schedule.insert(1, SECOND, start);
        let due = schedule.next_due().unwrap();
        assert_eq!(schedule.pop_due(due), Some(id));
        assert_eq!(schedule.next_due(), None);
        assert_eq!(schedule.pop_due(due + 100 * SECOND), None);
        schedule.finished(id, due + 100 * SECOND);
        let next = schedule.next_due().unwrap();
        assert!(next >= due + 100 * SECOND && next <= due + 101 * SECOND, "missed ticks are left out");
        schedule.finished(id, due + 100 * SECOND);
        assert_eq!(schedule.heap.len(), 1, "finished twice is finished once");
    }

    #[test]
    fn a_timeout_as_long_as_the_interval_keeps_the_pace() {
        let mut schedule = Schedule::default();
        let id = schedule.insert(3, SECOND, Instant::now());
        let mut now = schedule.next_due().unwrap();
        let first = now;
        for _ in 0..1000 {
            assert_eq!(schedule.pop_due(now), Some(id));
            now += SECOND + MS;
            schedule.finished(id, now);
            now = now.max(schedule.next_due().unwrap());
        }
        assert!(now - first <= 1005 * SECOND, "{:?}", now - first);
    }

    #[test]
    fn after_a_long_sleep_the_checks_are_still_spread() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        for n in 0..1000 {
            schedule.insert(n, SECOND, start);
        }
        let woken = start + 60 * SECOND;
        assert_eq!(schedule.pop_due(woken), None);
        let mut most = 0;
        let mut all = 0;
        for ms in 1..=1025 {
            let mut n = 0;
            while schedule.pop_due(woken + ms * MS).is_some() {
                n += 1;
            }
            all += n;
            most = most.max(n);
        }
        assert_eq!(all, 1000, "every target is checked within one interval");
        assert!(most < 20, "{most} checks within one millisecond");
    }

    #[test]
    fn targets_that_change_their_pace_together_stay_spread() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        for n in 0..1000 {
            schedule.insert(n, SECOND, start);
        }
        let mut last: HashMap<Id, (Instant, Duration)> = HashMap::new();
        let mut buckets = [0u32; 100];
        for ms in 0..6000 {
            let now = start + ms * MS;
            // Two seconds each: ordinary, fast, ordinary.
            let interval = if (2000..4000).contains(&ms) { 100 * MS } else { SECOND };
            while let Some(id) = schedule.pop_due(now) {
                if let Some((before, paced)) = last.insert(id, (now, interval)) {
                    let gap = now - before;
                    assert!(gap + MS >= paced / 2 && gap <= paced * 3 / 2 + MS, "{gap:?} with {paced:?}");
                }
                schedule.set_interval(id, interval);
                schedule.finished(id, now);
                if ms >= 5000 {
                    buckets[(ms as usize - 5000) / 10] += 1;
                }
            }
        }
        let checked: u32 = buckets.iter().sum();
        assert!((1000..1060).contains(&checked), "{checked}");
        assert!(buckets.iter().all(|n| *n < 30), "{buckets:?}");
    }

    #[test]
    fn removed_targets_do_not_come_up_and_do_not_pile_up() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let kept = schedule.insert(0, SECOND, start);
        for n in 0..10_000 {
            let id = schedule.insert(n, MAX_INTERVAL, start);
            schedule.remove(id);
        }
        assert!(schedule.heap.len() < 100);
        assert_eq!(schedule.len(), 1);
        let due = schedule.next_due().unwrap();
        assert_eq!(schedule.pop_due(due), Some(kept));
        assert_eq!(schedule.pop_due(start + 2 * MAX_INTERVAL), None);
        schedule.remove(kept);
        schedule.finished(kept, start + SECOND);
        assert_eq!(schedule.next_due(), None);
        assert!(schedule.is_empty());
    }

    #[test]
    fn extreme_intervals_do_not_panic() {
        let start = Instant::now();
        for interval in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let mut schedule = Schedule::default();
            schedule.insert(u64::MAX, interval, start);
            let mut now = start;
            for _ in 0..50 {
                now = schedule.next_due().unwrap();
                let id = schedule.pop_due(now).unwrap();
                schedule.finished(id, now);
            }
            let pace = (now - start) / 50;
            assert!((MIN_INTERVAL * 9 / 10..=MAX_INTERVAL).contains(&pace));
        }
    }

    proptest! {
        /// Whatever the loop does wrong (sleeps, runs late, has long checks), nobody starves, no target
        /// runs twice at once, and starts are at least half an interval apart.
        #[test]
        fn no_target_starves_or_bursts(
            targets in prop::collection::vec((any::<u64>(), 10..2000u64), 1..20),
            steps in prop::collection::vec((0..3000u64, 0..8usize, any::<u64>()), 1..200),
        ) {
            let start = Instant::now();
            let mut schedule = Schedule::default();
            let mut last_start: HashMap<Id, (Duration, Option<Instant>)> = HashMap::new();
            for (hash, interval) in &targets {
                let interval = ms(*interval);
                last_start.insert(schedule.insert(*hash, interval, start), (interval, None));
            }
            let mut running: Vec<Id> = Vec::new();
            let mut now = start;
            // Since when a target waits, and when it was first overdue without having been started.
            let mut waits: HashMap<Id, (Instant, Option<Instant>)> =
                last_start.keys().map(|id| (*id, (start, None))).collect();
            for (sleep, checks, choice) in steps {
                now += ms(sleep);
                while let Some(id) = schedule.pop_due(now) {
                    prop_assert!(!running.contains(&id), "two checks at once");
                    running.push(id);
                    let (interval, last) = last_start.get_mut(&id).unwrap();
                    if let Some(last) = last {
                        prop_assert!(now - *last >= *interval / 2, "a burst");
                    }
                    *last = Some(now);
                    waits.remove(&id);
                }
                for (id, (since, overdue)) in &mut waits {
                    let interval = last_start[id].0;
                    match overdue {
                        None => *overdue = (now - *since >= interval * 3 / 2).then_some(now),
                        Some(first) => {
                            prop_assert!(now - *first <= interval, "put off twice in a row");
                        }
                    }
                }
                for _ in 0..checks.min(running.len()) {
                    let chosen = choice % u64::try_from(running.len()).unwrap();
                    let id = running.swap_remove(usize::try_from(chosen).unwrap());
                    schedule.finished(id, now);
                    waits.insert(id, (now, None));
                }
            }
        }

        /// A loop that is on time keeps every gap between 95 % and 100 % of the interval, as long as
        /// checks end before their next tick.
        #[test]
        fn on_time_gaps(hash: u64, interval in 1..100_000u64, took in prop::collection::vec(0..94u64, 1..100)) {
            let interval = ms(interval);
            let start = Instant::now();
            let mut schedule = Schedule::default();
            let id = schedule.insert(hash, interval, start);
            let mut last: Option<Instant> = None;
            for percent in took {
                let due = schedule.next_due().unwrap();
                match last {
                    None => prop_assert!(due - start <= interval),
                    Some(last) => {
                        prop_assert!(due - last <= interval);
                        prop_assert!(due - last >= interval * 95 / 100);
                    }
                }
                prop_assert_eq!(schedule.pop_due(due), Some(id));
                schedule.finished(id, due + interval * u32::try_from(percent).unwrap() / 100);
                last = Some(due);
            }
        }
    }
}
