//! Shares that grow or shrink over a time: slow start, and weights that change gradually. Pure.
//!
//! A [`Ramp`] is a share at a beginning, the beginning, and a duration; where it leads is the backend's weight. What it
//! says at a time is a [`Progress`], and [`owners`] makes a ring of it: each slot has a threshold of its own, below which
//! it still has its owner of before and above which the one it will have in the end. So each slot that changes hands in the end does so once,
//! and no other does: a ramp moves the very slots that the change at once would move. [`Watch`] tells when a slow start begins.

use crate::{
    maglev,
    model::{BackendName, ServiceName},
};
use lb_common::hash::mix;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// All of the way, in the unit of [`Progress::done`].
pub const WHOLE: u32 = 1 << 16;
/// A ramp begins with what is due after its first second, so that a backend that recovers gets some flows at once.
const FIRST_MS: u64 = 1_000;
/// Places on the way at which ramps of one service can be at the same time. Each takes a ring; where there are more, they
/// are rounded.
const LEVELS: usize = 8;

/// Why a share changes gradually.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The backend recovered, was added, or enabled again.
    SlowStart,
    /// Its weight was changed over a time.
    Weight,
}

/// A share on its way to the backend's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// The share it began with, in 65,536ths of a weight of 1.
    pub from: u32,
    /// Milliseconds since 1970 (UTC), so that it goes on after a restart.
    pub began_ms: u64,
    pub over_ms: u64,
    pub cause: Cause,
}

/// How far a ramp is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The share it began with, in 65,536ths of a weight of 1.
    pub from: u32,
    /// 1 to 65,535 of 65,536 parts of the way.
    pub done: u32,
}

impl Ramp {
    /// How far it is; `None` once it is over. One that has not begun yet is over: somebody set the clock back, and a backend
    /// that waits for a time that was is worse than one that starts at once.
    #[must_use]
    pub fn progress(&self, now_ms: u64) -> Option<Progress> {
        let elapsed = now_ms.checked_sub(self.began_ms)?;
        if elapsed >= self.over_ms {
            return None;
        }
        let parts = u128::from(WHOLE) * u128::from(elapsed + FIRST_MS) / u128::from(self.over_ms + FIRST_MS);
        Some(Progress { from: self.from, done: (parts as u32).clamp(1, WHOLE - 1) })
    }

    /// Time until it is over.
    #[must_use]
    pub fn left(&self, now_ms: u64) -> Duration {
        let end = self.began_ms.saturating_add(self.over_ms);
        Duration::from_millis(if now_ms < self.began_ms { 0 } else { end.saturating_sub(now_ms) })
    }
}

impl Progress {
    /// The share on the way to a weight, in 65,536ths of a weight of 1.
    #[must_use]
    pub fn share(self, weight: u16) -> u32 {
        let (from, to) = (i64::from(self.from), i64::from(weight) << 16);
        (from + (to - from) * i64::from(self.done) / i64::from(WHOLE)) as u32
    }
}

/// A backend that takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub key: u64,
    pub weight: u16,
    pub ramp: Option<Progress>,
}

/// The owner of each slot, as an index into `members`; see the module. A member with weight 0 and without a ramp takes none.
///
/// Nobody's share is withheld for nobody's sake: a slot that would have no owner yet has the one it will have, and one that would have none
/// any more keeps the one it had to the end.
pub fn owners(seed: u64, size: u32, members: &[Member], rings: &mut maglev::Cache) -> maglev::SharedRing {
    let rounded = |done: u32, levels: usize| {
        if levels <= LEVELS {
            done
        } else {
            let step = WHOLE / LEVELS as u32;
            (done / step * step).max(step / 2)
        }
    };
    let dones: BTreeSet<u32> = members.iter().filter_map(|m| Some(m.ramp?.done)).collect();
    let of = |member: &Member| member.ramp.map(|r| rounded(r.done, dones.len()));
    // The farthest first: a slot that has passed the threshold of one has passed those of all before it.
    let levels: BTreeSet<Reverse<u32>> = members.iter().filter_map(of).map(Reverse).collect();
    let levels: Vec<u32> = levels.into_iter().map(|Reverse(done)| done).collect();
    let mut ring = |passed: usize| {
        let share = |member: &Member| match (member.ramp, of(member)) {
            (Some(ramp), Some(done)) if !levels[..passed].contains(&done) => ramp.from,
            _ => u32::from(member.weight) << 16,
        };
        let members: Vec<_> =
            members.iter().map(|m| maglev::Member { key: m.key, share: share(m) }).collect();
        let somebody = members.iter().any(|m| m.share > 0);
        somebody.then(|| rings.ring(seed, size, members))
    };
    let nobody = || maglev::SharedRing::nobody(size);
    if levels.is_empty() {
        return ring(0).unwrap_or_else(nobody);
    }
    let mut by_passed: Vec<Option<maglev::SharedRing>> = (0..=levels.len()).map(&mut ring).collect();
    for passed in (0..levels.len()).rev() {
        if by_passed[passed].is_none() {
            by_passed[passed] = by_passed[passed + 1].clone();
        }
    }
    // And as long as the last one is on its way out, it has what it had.
    for passed in 1..by_passed.len() {
        if by_passed[passed].is_none() {
            by_passed[passed] = by_passed[passed - 1].clone();
        }
    }
    let by_passed: Vec<_> = by_passed.into_iter().map(|ring| ring.unwrap_or_else(nobody)).collect();
    (0..size)
        .map(|slot| {
            let threshold = (mix(seed ^ mix(u64::from(slot))) % u64::from(WHOLE)) as u32;
            let passed = levels.iter().take_while(|done| **done > threshold).count();
            by_passed[passed].owner(slot)
        })
        .collect()
}

/// Who takes new flows, and since when; from that, when a slow start begins.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    services: BTreeMap<ServiceName, Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    /// When this daemon first met the service.
    since_ms: u64,
    backends: BTreeMap<BackendName, Taking>,
}

#[derive(Debug, Clone, Copy)]
struct Taking {
    now: bool,
    /// It took some before, or was not there when the service was met.
    counts: bool,
}

impl Watch {
    /// Takes note of who of a service takes new flows; the backends whose slow start begins.
    ///
    /// A service that is met for the first time starts as it is. Those of its backends that join within the time of a slow start (the first
    /// word of their checks, or their next hop, came later) belong to that start, unless they are known to be away then: found down by an earlier
    /// daemon, or put aside by an operator.
    ///
    /// Each backend comes with whether it takes new flows, and whether it is known to be away.
    pub fn look<'a>(
        &mut self,
        now_ms: u64,
        service: &ServiceName,
        slow_start: Duration,
        backends: impl Iterator<Item = (&'a BackendName, bool, bool)>,
    ) -> Vec<BackendName> {
        let first = !self.services.contains_key(service);
        let seen = self
            .services
            .entry(service.clone())
            .or_insert_with(|| Seen { since_ms: now_ms, backends: BTreeMap::new() });
        let starting = Duration::from_millis(now_ms.saturating_sub(seen.since_ms)) < slow_start;
        let (mut begin, mut present) = (Vec::new(), BTreeMap::new());
        for (name, takes, away) in backends {
            let before = seen.backends.get(name).copied();
            let before = before.unwrap_or(Taking { now: false, counts: !first });
            if takes && !before.now && (before.counts || !(first || starting)) && !slow_start.is_zero() {
                begin.push(name.clone());
            }
            present.insert(name.clone(), Taking { now: takes, counts: before.counts || takes || away });
        }
        seen.backends = present;
        begin
    }

    /// Forgets the services that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&ServiceName) -> bool) {
        self.services.retain(|name, _| is_there(name));
    }
}

#[cfg(test)]
mod tests;
