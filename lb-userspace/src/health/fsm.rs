//! When a backend is up and when it is down: `rise` passed checks in a row bring it up, `fall` failed
//! ones take it down. Pure.
//!
//! The start is as strict as any later moment: a backend that is [`Health::Unknown`] becomes `Up` after
//! `rise` passes in a row and `Down` after `fall` failures in a row, never by a single result (unless
//! the threshold is 1). Since `Unknown` counts as up, a wrong early "down" would take a good backend out
//! of service on every start of the daemon, while a dead one is found within the usual
//! `fall` x interval + timeout. A backend that keeps alternating stays as it is, `Unknown` included.
//! A start in `Up` or `Down`, with what was known before a restart, is an ordinary state.

use crate::model::{Health, HealthSpec};
use std::time::Duration;

/// Results in a row that change the state. A 0 acts as 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Passed checks in a row that bring a backend up.
    pub rise: u32,
    /// Failed checks in a row that take it down.
    pub fall: u32,
}

impl From<&HealthSpec> for Thresholds {
    fn from(spec: &HealthSpec) -> Self {
        Self { rise: spec.rise, fall: spec.fall }
    }
}

/// What is known of one backend. At most one of the counters is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    pub health: Health,
    /// Passed checks since the last failed one or the start; stops at `u32::MAX`.
    pub passes: u32,
    /// Failed checks since the last passed one or the start; stops at `u32::MAX`.
    pub failures: u32,
}

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Passed,
    Failed,
    /// The check could not be run, for want of descriptors or memory here: nothing was learnt about the
    /// backend, so nothing changes.
    Inconclusive,
}

/// A change of health; `from` and `to` differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    pub from: Health,
    pub to: Health,
}

/// So many checks a backend fails after it was found down before it is checked less often.
pub const BACKOFF_AFTER: u32 = 10;

impl State {
    /// From the start of this check to the start of the next: shorter while the results contradict the health or
    /// nothing is known, longer and longer for what stays down.
    pub fn pace(&self, spec: &HealthSpec) -> Duration {
        let changing = match self.health {
            Health::Unknown => true,
            Health::Up => self.failures > 0,
            Health::Down => self.passes > 0,
        };
        let long_dead = self.failures.saturating_sub(spec.fall.max(1)).saturating_sub(BACKOFF_AFTER);
        match (changing, spec.fast_interval, spec.backoff) {
            (true, Some(fast), _) => fast,
            (false, _, Some(longest)) if self.health == Health::Down => {
                let factor = 1_u32.checked_shl(long_dead).unwrap_or(u32::MAX);
                spec.interval.saturating_mul(factor).min(longest)
            }
            _ => spec.interval,
        }
    }

    /// Starts with `health` known and nothing counted.
    pub fn new(health: Health) -> Self {
        Self { health, passes: 0, failures: 0 }
    }

    /// The state after `event`, and the change of health if there was one.
    #[must_use]
    pub fn step(self, event: Event, thresholds: Thresholds) -> (Self, Option<Transition>) {
        let passes = self.passes.saturating_add(1);
        let failures = self.failures.saturating_add(1);
        let rises = passes >= thresholds.rise;
        let falls = failures >= thresholds.fall;
        let to = match (self.health, event) {
            (Health::Unknown, Event::Passed) if rises => Health::Up,
            (Health::Unknown, Event::Failed) if falls => Health::Down,
            (Health::Unknown, Event::Passed | Event::Failed | Event::Inconclusive) => Health::Unknown,
            (Health::Up, Event::Failed) if falls => Health::Down,
            (Health::Up, Event::Passed | Event::Failed | Event::Inconclusive) => Health::Up,
            (Health::Down, Event::Passed) if rises => Health::Up,
            (Health::Down, Event::Passed | Event::Failed | Event::Inconclusive) => Health::Down,
        };
        let (passes, failures) = match event {
            Event::Passed => (passes, 0),
            Event::Failed => (0, failures),
            Event::Inconclusive => (self.passes, self.failures),
        };
        let transition = (to != self.health).then_some(Transition { from: self.health, to });
        (Self { health: to, passes, failures }, transition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Event::{Failed, Inconclusive, Passed};
    use Health::{Down, Unknown, Up};
    use proptest::prelude::*;

    const RULE: Thresholds = Thresholds { rise: 2, fall: 3 };

    /// Every state that counts below, at and above its threshold, with every event.
    #[test]
    fn full_cross_product() {
        #[rustfmt::skip]
        let rows = [
            // health, passes, failures, event   -> health, passes, failures
            ((Unknown, 0, 0), Passed,       (Unknown, 1, 0)),
            ((Unknown, 0, 0), Failed,       (Unknown, 0, 1)),
            ((Unknown, 0, 0), Inconclusive, (Unknown, 0, 0)),
            ((Unknown, 1, 0), Passed,       (Up,      2, 0)),
            ((Unknown, 1, 0), Failed,       (Unknown, 0, 1)),
            ((Unknown, 1, 0), Inconclusive, (Unknown, 1, 0)),
            ((Unknown, 0, 1), Passed,       (Unknown, 1, 0)),
            ((Unknown, 0, 1), Failed,       (Unknown, 0, 2)),
            ((Unknown, 0, 1), Inconclusive, (Unknown, 0, 1)),
            ((Unknown, 0, 2), Passed,       (Unknown, 1, 0)),
            ((Unknown, 0, 2), Failed,       (Down,    0, 3)),
            ((Unknown, 0, 2), Inconclusive, (Unknown, 0, 2)),
            ((Up,      0, 0), Passed,       (Up,      1, 0)),
            ((Up,      0, 0), Failed,       (Up,      0, 1)),
            ((Up,      0, 0), Inconclusive, (Up,      0, 0)),
            ((Up,      2, 0), Passed,       (Up,      3, 0)),
            ((Up,      2, 0), Failed,       (Up,      0, 1)),
            ((Up,      2, 0), Inconclusive, (Up,      2, 0)),
            ((Up,      0, 2), Passed,       (Up,      1, 0)),
            ((Up,      0, 2), Failed,       (Down,    0, 3)),
            ((Up,      0, 2), Inconclusive, (Up,      0, 2)),
            ((Down,    0, 0), Passed,       (Down,    1, 0)),
            ((Down,    0, 0), Failed,       (Down,    0, 1)),
            ((Down,    0, 0), Inconclusive, (Down,    0, 0)),
            ((Down,    1, 0), Passed,       (Up,      2, 0)),
            ((Down,    1, 0), Failed,       (Down,    0, 1)),
            ((Down,    1, 0), Inconclusive, (Down,    1, 0)),
            ((Down,    0, 3), Passed,       (Down,    1, 0)),
            ((Down,    0, 3), Failed,       (Down,    0, 4)),
            ((Down,    0, 3), Inconclusive, (Down,    0, 3)),
        ];
        for ((health, passes, failures), event, (health2, passes2, failures2)) in rows {
            let before = State { health, passes, failures };
            let (after, transition) = before.step(event, RULE);
            assert_eq!(
                after,
                State { health: health2, passes: passes2, failures: failures2 },
                "{before:?} {event:?}"
            );
            let expected = (health != health2).then_some(Transition { from: health, to: health2 });
            assert_eq!(transition, expected, "{before:?} {event:?}");
        }
    }

    #[test]
    fn thresholds_of_one_decide_at_once_and_zero_acts_as_one() {
        for n in [0, 1] {
            let rule = Thresholds { rise: n, fall: n };
            for start in [Unknown, Up, Down] {
                assert_eq!(State::new(start).step(Passed, rule).0.health, Up);
                assert_eq!(State::new(start).step(Failed, rule).0.health, Down);
            }
        }
    }

    #[test]
    fn counters_do_not_overflow() {
        let full = State { health: Up, passes: u32::MAX, failures: 0 };
        assert_eq!(full.step(Passed, RULE), (full, None));
        let full = State { health: Down, passes: 0, failures: u32::MAX };
        assert_eq!(full.step(Failed, RULE), (full, None));
    }

    #[test]
    fn the_pace_follows_the_state() {
        let (second, ms) = (Duration::from_secs(1), Duration::from_millis);
        let spec =
            HealthSpec { fast_interval: Some(ms(100)), backoff: Some(60 * second), ..HealthSpec::default() };
        let pace = |health, passes, failures| State { health, passes, failures }.pace(&spec);
        for (state, expected) in [
            ((Unknown, 0, 0), ms(100)),
            ((Up, 7, 0), second),
            ((Up, 0, 1), ms(100)),
            ((Down, 0, 0), second),
            ((Down, 0, 3), second),
            ((Down, 0, 13), second),
            ((Down, 0, 14), 2 * second),
            ((Down, 0, 18), 32 * second),
            ((Down, 0, 19), 60 * second),
            ((Down, 0, 100), 60 * second),
            ((Down, 0, u32::MAX), 60 * second),
            // One passed check, and it is news again.
            ((Down, 1, 0), ms(100)),
        ] {
            assert_eq!(pace(state.0, state.1, state.2), expected, "{state:?}");
        }
        let plain = HealthSpec::default();
        for state in [State::new(Unknown), State { health: Down, passes: 0, failures: 99 }] {
            assert_eq!(state.pace(&plain), second);
        }
    }

    /// The model: look at the whole history, inconclusive results left out. The health is decided by the
    /// last place where `rise` passes or `fall` failures stood in a row.
    fn model(start: Health, events: &[Event], rule: Thresholds) -> Health {
        let decisive: Vec<Event> = events.iter().copied().filter(|e| *e != Inconclusive).collect();
        (1..=decisive.len())
            .rev()
            .find_map(|end| {
                let ends_with = |event, n: u32| {
                    let n = n as usize;
                    n <= end && decisive[end - n..end].iter().all(|e| *e == event)
                };
                match (ends_with(Passed, rule.rise), ends_with(Failed, rule.fall)) {
                    (true, _) => Some(Up),
                    (_, true) => Some(Down),
                    (false, false) => None,
                }
            })
            .unwrap_or(start)
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(
            start in prop::sample::select(vec![Unknown, Up, Down]),
            rise in 1..5u32,
            fall in 1..5u32,
            events in prop::collection::vec(prop::sample::select(vec![Passed, Failed, Inconclusive]), 0..60),
        ) {
            let rule = Thresholds { rise, fall };
            let mut state = State::new(start);
            for (i, event) in events.iter().enumerate() {
                let (next, transition) = state.step(*event, rule);
                prop_assert_eq!(next.health, model(start, &events[..=i], rule));
                let expected = (next.health != state.health)
                    .then_some(Transition { from: state.health, to: next.health });
                prop_assert_eq!(transition, expected);
                prop_assert!(next.passes == 0 || next.failures == 0);
                state = next;
            }
        }
    }
}
