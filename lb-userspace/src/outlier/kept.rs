//! What outlives the daemon of its ejections. Pure: between the monotonic clock of the daemon that judges and the wall clock that
//! the next one shares with it.

use super::{Detector, Ejection, Finding, State};
use crate::model::BackendName;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What is known of a service's backends that are ejected or on probation; times are milliseconds since 1970 (UTC).
pub type Kept = BTreeMap<BackendName, KeptState>;

/// See [`Kept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptState {
    /// Ejections that count for the length of the next one.
    times: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ejection: Option<KeptEjection>,
    /// When its probation ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probation_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptEjection {
    finding: Finding,
    since_ms: u64,
    until_ms: u64,
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now: Instant,
    /// Milliseconds since 1970 (UTC).
    pub wall_ms: u64,
}

impl Moment {
    fn wall(self, at: Instant) -> u64 {
        let ms = |time: Duration| time.as_millis() as u64;
        match at.checked_duration_since(self.now) {
            Some(ahead) => self.wall_ms.saturating_add(ms(ahead)),
            None => self.wall_ms.saturating_sub(ms(self.now - at)),
        }
    }

    /// Not further ahead than `most`: the clock may have been set.
    fn ahead(self, wall_ms: u64, most: Duration) -> Instant {
        self.now + Duration::from_millis(wall_ms.saturating_sub(self.wall_ms)).min(most)
    }
}

impl Detector {
    /// What changes only when something is found, ends or is forgiven: whoever has written it down may compare.
    #[must_use]
    pub fn standing(&self) -> Vec<(BackendName, u32, Option<Ejection>, Option<Instant>)> {
        let marked = self.backends.iter().filter(|(_, state)| state.times > 0);
        marked.map(|(name, state)| (name.clone(), state.times, state.ejection, state.probation)).collect()
    }

    /// What the next daemon should know.
    #[must_use]
    pub fn to_keep(&self, at: Moment) -> Kept {
        let marked = self.backends.iter().filter(|(_, state)| state.times > 0);
        marked
            .map(|(name, state)| {
                let ejection = state.ejection.map(|ejection| KeptEjection {
                    finding: ejection.finding,
                    since_ms: at.wall(ejection.since),
                    until_ms: at.wall(ejection.until),
                });
                let probation_ms = state.probation.map(|until| at.wall(until));
                (name.clone(), KeptState { times: state.times, ejection, probation_ms })
            })
            .collect()
    }

    /// Goes on where another daemon ended. An ejection whose time has come meanwhile ends at the next [`Detector::tick`]. None lasts
    /// longer than `longest`, nor a probation, whatever the clock says.
    #[must_use]
    pub fn going_on(kept: Kept, longest: Duration, at: Moment) -> Self {
        let state = |kept: KeptState| State {
            times: kept.times,
            ejection: kept.ejection.map(|ejection| {
                let past = Duration::from_millis(at.wall_ms.saturating_sub(ejection.since_ms));
                Ejection {
                    finding: ejection.finding,
                    since: at.now.checked_sub(past).unwrap_or(at.now),
                    until: at.ahead(ejection.until_ms, longest),
                }
            }),
            probation: kept.probation_ms.map(|until| at.ahead(until, longest)),
            ..State::default()
        };
        let backends = kept.into_iter().map(|(name, kept)| (name, state(kept)));
        Self { backends: backends.collect(), most_alike: None }
    }
}
