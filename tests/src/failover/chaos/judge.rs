//! Whether two nodes answered for one address for too long. Pure: what was seen goes in, stretches come out.

use std::time::Duration;

/// One look at one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Since the begin of the watch.
    pub at: Duration,
    /// How many nodes answered.
    pub answers: usize,
    /// Whether the network lets the nodes see each other, by what was done to it.
    pub joined: bool,
}

/// The longest stretches of a time, of one address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Findings {
    /// Two nodes answered although they could see each other.
    pub two: Duration,
    /// When that began.
    pub two_at: Duration,
    /// Two nodes answered while the network kept them apart, which no protocol can help.
    pub apart: Duration,
    /// Nobody answered.
    pub none: Duration,
}

/// From looks in the order of time. A stretch lasts from its first look to its last: two looks are the least that
/// prove a duration. One look with a single answer ends a stretch of two.
pub fn judge(looks: &[Look]) -> Findings {
    let mut findings = Findings::default();
    let stretch = |wanted: &dyn Fn(&Look) -> bool| {
        let (mut longest, mut from): ((Duration, Duration), Option<Duration>) = Default::default();
        for look in looks {
            if !wanted(look) {
                from = None;
                continue;
            }
            let begin = *from.get_or_insert(look.at);
            if look.at - begin > longest.0 {
                longest = (look.at - begin, begin);
            }
        }
        longest
    };
    (findings.two, findings.two_at) = stretch(&|look| look.answers > 1 && look.joined);
    findings.apart = stretch(&|look| look.answers > 1 && !look.joined).0;
    findings.none = stretch(&|look| look.answers == 0).0;
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look every 50 ms; a digit is the number of answers, and a letter (a for 0, c for 2) that the nodes are apart.
    fn looks(text: &str) -> Vec<Look> {
        let look = |(i, c): (usize, char)| Look {
            at: Duration::from_millis(50 * i as u64),
            answers: c.to_digit(10).unwrap_or_else(|| c as u32 - 'a' as u32) as usize,
            joined: c.is_ascii_digit(),
        };
        text.chars().enumerate().map(look).collect()
    }

    fn millis(text: &str) -> [u128; 3] {
        let found = judge(&looks(text));
        [found.two, found.apart, found.none].map(|d| d.as_millis())
    }

    #[test]
    fn stretches_are_measured_from_first_to_last() {
        assert_eq!(millis("1111"), [0, 0, 0]);
        assert_eq!(millis("1122211"), [100, 0, 0]);
        // Begun apart, it counts from when they are joined.
        assert_eq!(millis("11cccc2221"), [100, 150, 0]);
        assert_eq!(millis("1100001"), [0, 0, 150]);
        // A healthy look in between is an end.
        assert_eq!(millis("122212221"), [100, 0, 0]);
        assert_eq!(millis("1bbb1"), [0, 0, 0]);
        assert_eq!(judge(&looks("1112222")).two_at, Duration::from_millis(150));
        assert_eq!(judge(&[]), Findings::default());
    }
}
