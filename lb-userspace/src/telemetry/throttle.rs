//! At most one message per key and period.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Keys remembered at once. Where there are more, the one silent for longest is forgotten, and with it
/// the count of what it suppressed.
const MAX_KEYS: usize = 4096;

/// Decides which messages are logged, so that a fault that repeats says so without filling the disk.
/// Pure: the caller passes the time.
#[derive(Debug)]
pub struct Throttle<K> {
    period: Duration,
    keys: HashMap<K, Seen>,
}

#[derive(Debug)]
struct Seen {
    admitted: Instant,
    suppressed: u64,
}

impl<K: Eq + Hash + Clone> Throttle<K> {
    /// Lets one message per key pass in every `period`.
    pub fn new(period: Duration) -> Self {
        Self { period, keys: HashMap::new() }
    }

    /// `Some(n)` if the message is to be logged, `n` being how many of this key were suppressed since the
    /// last one that was; `None` if it is to be suppressed.
    pub fn admit(&mut self, key: K, now: Instant) -> Option<u64> {
        if let Some(seen) = self.keys.get_mut(&key) {
            if now.saturating_duration_since(seen.admitted) < self.period {
                seen.suppressed += 1;
                return None;
            }
            seen.admitted = now;
            return Some(std::mem::take(&mut seen.suppressed));
        }
        if self.keys.len() >= MAX_KEYS {
            self.make_room(now);
        }
        self.keys.insert(key, Seen { admitted: now, suppressed: 0 });
        Some(0)
    }

    fn make_room(&mut self, now: Instant) {
        let period = self.period;
        self.keys
            .retain(|_, seen| seen.suppressed > 0 || now.saturating_duration_since(seen.admitted) < period);
        while self.keys.len() >= MAX_KEYS {
            let oldest = self.keys.iter().min_by_key(|(_, seen)| seen.admitted).map(|(key, _)| key.clone());
            match oldest {
                Some(key) => self.keys.remove(&key),
                None => break,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[test]
    fn one_message_per_key_and_period() {
        let mut throttle = Throttle::new(PERIOD);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(throttle.admit("a", at(0)), Some(0));
        assert_eq!(throttle.admit("a", at(1)), None);
        assert_eq!(throttle.admit("b", at(1)), Some(0), "another key");
        assert_eq!(throttle.admit("a", at(9_999)), None);
        assert_eq!(throttle.admit("a", at(10_000)), Some(2));
        assert_eq!(throttle.admit("a", at(20_000)), Some(0), "the count began anew");
    }

    #[test]
    fn memory_is_bounded() {
        let mut throttle = Throttle::new(PERIOD);
        let start = Instant::now();
        for key in 0..MAX_KEYS as u64 + 500 {
            assert_eq!(throttle.admit(key, start + Duration::from_nanos(key)), Some(0));
            assert!(throttle.keys.len() <= MAX_KEYS);
        }
        let newest = MAX_KEYS as u64 + 499;
        assert_eq!(throttle.admit(newest, start + Duration::from_secs(1)), None, "the newest are kept");
        assert_eq!(throttle.admit(u64::MAX, start + 2 * PERIOD), Some(0));
        assert_eq!(throttle.keys.len(), 2, "one with a count to report, and the new one");
    }

    proptest! {
        /// No message is lost: each is either logged or counted in a later one.
        #[test]
        fn every_message_is_accounted_for(steps in proptest::collection::vec((0..3_u8, 0..8_u64), 0..200)) {
            let mut throttle = Throttle::new(PERIOD);
            let mut now = Instant::now();
            let mut last: HashMap<u8, (Instant, u64)> = HashMap::new();
            for (key, seconds) in steps {
                now += Duration::from_secs(seconds);
                let expected = match last.get_mut(&key) {
                    Some((admitted, suppressed)) if now - *admitted < PERIOD => {
                        *suppressed += 1;
                        None
                    }
                    Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
                    None => {
                        last.insert(key, (now, 0));
                        Some(0)
                    }
                };
                prop_assert_eq!(throttle.admit(key, now), expected);
            }
        }
    }
}
