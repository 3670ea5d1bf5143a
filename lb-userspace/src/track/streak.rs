//! When a script is up and when it is down. Pure.

/// So many results of a kind in a row turn it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Streak {
    rise: u8,
    fall: u8,
    up: bool,
    /// Results in a row that contradict it.
    against: u8,
}

impl Streak {
    pub(super) const fn new(rise: u8, fall: u8, up: bool) -> Self {
        Self { rise, fall, up, against: 0 }
    }

    /// A result; what it is from now on if that is news.
    pub(super) fn step(&mut self, passed: bool) -> Option<bool> {
        if passed == self.up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.against < if self.up { self.fall } else { self.rise } {
            return None;
        }
        (self.up, self.against) = (passed, 0);
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(rise: u8, fall: u8, up: bool, results: &str) -> String {
        let mut streak = Streak::new(rise, fall, up);
        let step = |result| match streak.step(result == '+') {
            None => '.',
            Some(true) => 'U',
            Some(false) => 'D',
        };
        results.chars().map(step).collect()
    }

    #[test]
    fn only_so_many_in_a_row_count() {
        assert_eq!(told(2, 3, true, "--+--+---"), "........D");
        assert_eq!(told(2, 3, false, "+-+-++"), ".....U");
        assert_eq!(told(1, 1, true, "-+-"), "DUD");
        assert_eq!(told(255, 255, true, &"-".repeat(255)), format!("{}D", ".".repeat(254)));
    }

    proptest! {
        /// News comes exactly after a row of that length, and turns over what was.
        #[test]
        fn rows_decide(rise in 1u8..6, fall in 1u8..6, up: bool, results in proptest::collection::vec(any::<bool>(), 0..60)) {
            let mut streak = Streak::new(rise, fall, up);
            let mut now = up;
            for (at, result) in results.iter().enumerate() {
                if let Some(news) = streak.step(*result) {
                    prop_assert_ne!(news, now);
                    let row = usize::from(if now { fall } else { rise });
                    prop_assert!(at + 1 >= row && results[at + 1 - row..=at].iter().all(|r| *r == news));
                    now = news;
                }
            }
        }
    }
}
