//! Moments and the spans between them. Pure: who has a clock passes the time in.

use crate::model::VrrpVersion;
use std::{ops::Add, time::Duration};

/// Nanoseconds of a clock that never jumps (`CLOCK_MONOTONIC`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// The time from an earlier moment to this one; zero if it is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// By how much a router of this priority waits longer than one of 256 would, so that the best one is first.
///
/// Version 2: (256 - priority) / 256 seconds (RFC 3768 section 6.1). Version 3: that part of the interval (RFC 9568
/// section 6.1).
pub fn skew(version: VrrpVersion, priority: u8, interval: Duration) -> Duration {
    let part = 256 - u32::from(priority);
    match version {
        VrrpVersion::V2 => Duration::from_secs(1) * part / 256,
        VrrpVersion::V3 => interval * part / 256,
    }
}

/// After which silence a master counts as gone (Master_Down_Interval, Active_Down_Interval): `adverts` intervals,
/// three in the RFCs, and the skew.
pub fn master_down(version: VrrpVersion, priority: u8, interval: Duration, adverts: u8) -> Duration {
    interval * u32::from(adverts) + skew(version, priority, interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use VrrpVersion::{V2, V3};

    #[test]
    fn the_figures_of_the_rfcs() {
        let ms = Duration::from_millis;
        assert_eq!(skew(V3, 100, ms(1000)), Duration::from_micros(609_375));
        assert_eq!(skew(V3, 255, ms(10)), Duration::from_nanos(39_062));
        // Version 2: a second's part whatever the interval.
        assert_eq!(skew(V2, 100, ms(10_000)), Duration::from_micros(609_375));
        assert_eq!(master_down(V3, 100, ms(10), 3), Duration::from_nanos(36_093_750));
        assert_eq!(master_down(V2, 100, ms(1000), 3), Duration::from_micros(3_609_375));
        // Nothing is rounded to whole units on the way: the longest interval, the lowest priority.
        assert_eq!(master_down(V3, 1, ms(40_950), 3), ms(122_850) + ms(40_950) * 255 / 256);
    }

    #[test]
    fn moments_end_at_the_end_of_time() {
        assert_eq!(Moment(5) + Duration::from_nanos(7), Moment(12));
        assert_eq!(Moment(5) + Duration::MAX, Moment(u64::MAX));
        assert_eq!(Moment(5).since(Moment(7)), Duration::ZERO);
    }
}
