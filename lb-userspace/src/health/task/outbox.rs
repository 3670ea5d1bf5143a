//! Transitions on their way to a receiver that may be slow: at most one per target. Pure.

use super::{HealthEvent, TargetKey};
use std::collections::{HashMap, VecDeque};

/// A queue in which a later transition of a target joins the one that still waits: the receiver learns
/// the latest health, seen from the last one it was told.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    next: u64,
    /// In the order of the first transition; entries without their like in `waiting` are stale.
    order: VecDeque<(u64, TargetKey)>,
    waiting: HashMap<TargetKey, (u64, HealthEvent)>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a transition. One that leads back to what the receiver was told last cancels out with the
    /// one that waits.
    pub(super) fn push(&mut self, event: HealthEvent) {
        match self.waiting.get_mut(&event.key) {
            Some((_, waiting)) if (waiting.previous, waiting.stood_in) == (event.health, event.stands_in) => {
                self.forget(&event.key);
            }
            Some((_, waiting)) => {
                *waiting = HealthEvent { previous: waiting.previous, stood_in: waiting.stood_in, ..event };
            }
            None => {
                self.order.push_back((self.next, event.key.clone()));
                self.waiting.insert(event.key.clone(), (self.next, event));
                self.next += 1;
            }
        }
    }

    /// Drops what waits of a target.
    pub(super) fn forget(&mut self, key: &TargetKey) {
        self.waiting.remove(key);
        if self.order.len() > 2 * self.waiting.len() + 64 {
            let waiting = &self.waiting;
            self.order.retain(|(number, key)| waiting.get(key).is_some_and(|(n, _)| n == number));
        }
    }

    /// The transition that has waited longest.
    pub(super) fn pop(&mut self) -> Option<HealthEvent> {
        let event = self.next_event();
        if self.waiting.is_empty() {
            // There may have been as many as there are targets.
            self.order = VecDeque::new();
            self.waiting = HashMap::new();
        }
        event
    }

    fn next_event(&mut self) -> Option<HealthEvent> {
        while let Some((number, key)) = self.order.pop_front() {
            if self.waiting.get(&key).is_some_and(|(n, _)| *n == number) {
                return self.waiting.remove(&key).map(|(_, event)| event);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Health::{self, Down, Unknown, Up};
    use proptest::prelude::*;
    use std::time::SystemTime;

    fn event(n: u8, previous: Health, health: Health) -> HealthEvent {
        let key = TargetKey { service: "s".parse().unwrap(), backend: format!("b{n}").parse().unwrap() };
        let address = "127.0.0.1:1".parse().unwrap();
        let (stands_in, stood_in) = (false, false);
        let at = SystemTime::UNIX_EPOCH;
        HealthEvent { key, address, previous, stood_in, health, stands_in, reason: "test".into(), at }
    }

    #[test]
    fn what_a_target_is_fit_for_is_not_lost_between_two_changes_of_health() {
        let role = |stood_in, stands_in, event: HealthEvent| HealthEvent { stood_in, stands_in, ..event };
        let mut outbox = Outbox::default();
        outbox.push(role(false, true, event(1, Up, Up)));
        outbox.push(role(true, true, event(1, Up, Down)));
        outbox.push(role(true, true, event(1, Down, Up)));
        assert_eq!(drain(&mut outbox), [role(false, true, event(1, Up, Up))]);
        outbox.push(role(true, false, event(1, Up, Up)));
        outbox.push(role(false, true, event(1, Up, Up)));
        assert!(outbox.is_empty());
    }

    fn drain(outbox: &mut Outbox) -> Vec<HealthEvent> {
        std::iter::from_fn(|| outbox.pop()).collect()
    }

    #[test]
    fn later_transitions_join_the_waiting_one() {
        let mut outbox = Outbox::default();
        outbox.push(event(1, Unknown, Up));
        outbox.push(event(2, Unknown, Down));
        outbox.push(event(1, Up, Down));
        assert_eq!(drain(&mut outbox), [event(1, Unknown, Down), event(2, Unknown, Down)]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn there_and_back_is_nothing() {
        let mut outbox = Outbox::default();
        outbox.push(event(1, Up, Down));
        outbox.push(event(1, Down, Up));
        assert!(outbox.is_empty());
        outbox.push(event(1, Up, Down));
        assert_eq!(drain(&mut outbox), [event(1, Up, Down)]);
    }

    #[test]
    fn the_forgotten_do_not_come_back_or_pile_up() {
        let mut outbox = Outbox::default();
        for _ in 0..1000 {
            outbox.push(event(1, Up, Down));
            outbox.forget(&event(1, Up, Down).key);
        }
        assert!(outbox.order.len() < 100);
        outbox.push(event(1, Down, Up));
        assert_eq!(drain(&mut outbox), [event(1, Down, Up)]);
    }

    proptest! {
        /// A receiver that applies what it gets ends with the true health of every target, and each
        /// event continues from the one before.
        #[test]
        fn the_receiver_ends_with_the_truth(
            steps in prop::collection::vec((0..5u8, prop::sample::select(vec![Up, Down]), any::<bool>()), 0..200),
        ) {
            let mut outbox = Outbox::default();
            let mut truth = [Unknown; 5];
            let mut told = [Unknown; 5];
            let mut receive = |outbox: &mut Outbox| {
                let Some(event) = outbox.pop() else { return false };
                let n = usize::from(event.key.backend.as_str().as_bytes()[1] - b'0');
                assert_eq!(told[n], event.previous);
                assert_ne!(event.health, event.previous);
                told[n] = event.health;
                true
            };
            for (n, health, pop) in steps {
                let now = &mut truth[usize::from(n)];
                if *now != health {
                    outbox.push(event(n, *now, health));
                    *now = health;
                }
                if pop {
                    receive(&mut outbox);
                }
            }
            while receive(&mut outbox) {}
            prop_assert!(outbox.is_empty());
            prop_assert_eq!(truth, told);
        }
    }
}
