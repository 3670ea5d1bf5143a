//! Outliers: backends whose clients fare worse than those of the other backends of the service.
//!
//! Pure: what was counted in a window and the time go in, ejections and what is to be said of them come out. A backend is
//! compared with the median of the others, so that what befalls all of them alike (a network between the clients and
//! this node, a flood of SYNs nobody answers) ejects nobody. What a few connections say is not believed more than chance
//! allows: the lower bound of the confidence interval (Wilson's, three standard deviations) must be beyond the
//! threshold, in several windows in a row. However many are bad, few are ejected at once, and one always stays.

use crate::model::{BackendName, PassiveSpec};
use lb_common::abi::Signals;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

mod kept;
#[cfg(test)]
mod tests;

pub use kept::{Kept, KeptState, Moment};

/// Standard deviations that a share may be off by chance.
const DEVIATIONS: f64 = 3.0;
/// So many times the others' median is worse than them.
const TIMES_MEDIAN: f64 = 3.0;

/// What was seen of a backend in a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub backend: BackendName,
    /// It takes new flows unless it is ejected.
    pub usable: bool,
    pub seen: Signals,
}

/// What speaks against a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sign {
    /// SYNs that nobody answered.
    Repeats,
    /// SYNs answered by an RST.
    Refused,
    /// RSTs in established connections.
    Resets,
}

const SIGNS: [Sign; 3] = [Sign::Repeats, Sign::Refused, Sign::Resets];

impl Sign {
    /// How many of how many. What is counted may belong to connections of the window before.
    fn of(self, seen: &Signals) -> (u32, u32) {
        let (failed, of) = match self {
            Self::Repeats => (seen.repeats, seen.watched),
            Self::Refused => (seen.refused, seen.syns),
            Self::Resets => (seen.resets, seen.syns),
        };
        (failed, of.max(failed))
    }
}

/// What was found of a backend, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    pub sign: Sign,
    pub failed: u32,
    pub of: u32,
    /// Of the backends it is compared with, in percent.
    pub median: u8,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sign, failed, of, median } = self;
        let what = match sign {
            Sign::Repeats => "SYNs came again without an answer",
            Sign::Refused => "SYNs were refused by a reset",
            Sign::Resets => "connections were reset",
        };
        write!(f, "{failed} of {of} {what}, where the median is {median} %")
    }
}

/// Why a backend that is bad is not ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// So many are, and no more may be.
    Cap { allowed: usize },
    /// `max_ejected = 0`.
    Never,
    /// It is the last one.
    Last,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cap { allowed } => write!(f, "not ejected: max_ejected allows {allowed} at once"),
            Self::Never => f.write_str("not ejected: max_ejected = 0"),
            Self::Last => f.write_str("not ejected: it is the last that takes connections"),
        }
    }
}

/// What came of a window, or of the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Takes no new flows for so long; for the `times`th time.
    Ejected { backend: BackendName, finding: Finding, lasts: Duration, times: u32 },
    /// Takes new flows again, on probation: its time is over.
    Returned { backend: BackendName },
    /// The same, though its time is not over: too few others are left.
    Recalled { backend: BackendName },
    /// Is bad and stays; said once as long as it stays so.
    Kept { backend: BackendName, finding: Finding, why: Withheld },
    /// Most backends are bad: nobody of them is to blame. Said once as long as it stays so.
    MostAlike { finding: Finding },
}

impl Event {
    /// Does it change who takes new flows?
    #[must_use]
    pub fn changes_flows(&self) -> bool {
        match self {
            Self::Ejected { .. } | Self::Returned { .. } | Self::Recalled { .. } => true,
            Self::Kept { .. } | Self::MostAlike { .. } => false,
        }
    }
}

/// An ejection that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    pub finding: Finding,
    pub since: Instant,
    pub until: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// Bad windows in a row.
    streak: u32,
    /// Ejections that count for the length of the next one.
    times: u32,
    ejection: Option<Ejection>,
    /// On probation until then: one bad window ejects.
    probation: Option<Instant>,
    kept: Option<(Finding, Withheld)>,
}

/// The judge of one service's backends.
#[derive(Debug, Default)]
pub struct Detector {
    backends: BTreeMap<BackendName, State>,
    most_alike: Option<Finding>,
}

/// How many of so many usable backends may be ejected at once.
#[must_use]
pub fn allowed(spec: &PassiveSpec, usable: usize) -> usize {
    if spec.max_ejected == 0 {
        return 0;
    }
    (usable * usize::from(spec.max_ejected) / 100).max(1).min(usable.saturating_sub(1))
}

impl Detector {
    /// The ejection of a backend.
    #[must_use]
    pub fn ejection(&self, backend: &BackendName) -> Option<&Ejection> {
        self.backends.get(backend)?.ejection.as_ref()
    }

    /// Is anybody ejected?
    #[must_use]
    pub fn has_ejections(&self) -> bool {
        self.backends.values().any(|state| state.ejection.is_some())
    }

    /// Why a backend that is bad takes new flows all the same, in words.
    #[must_use]
    pub fn kept(&self, backend: &BackendName) -> Option<String> {
        let (finding, why) = self.backends.get(backend)?.kept?;
        Some(format!("{finding}; {why}"))
    }

    /// What most backends have in common, in words.
    #[must_use]
    pub fn most_alike(&self) -> Option<String> {
        self.most_alike.map(|finding| finding.to_string())
    }

    /// An operator trusts the backend again; false if it was not ejected.
    pub fn forgive(&mut self, backend: &BackendName) -> bool {
        self.backends.remove(backend).is_some_and(|state| state.ejection.is_some())
    }

    /// Ends what is over.
    pub fn tick(&mut self, spec: &PassiveSpec, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for (backend, state) in &mut self.backends {
            if state.ejection.is_some_and(|ejection| ejection.until <= now) {
                state.release(spec, now);
                events.push(Event::Returned { backend: backend.clone() });
            } else if state.ejection.is_none() && state.probation.is_some_and(|until| until <= now) {
                // So long without a bad window: one ejection less counts.
                state.times = state.times.saturating_sub(1);
                state.probation = (state.times > 0).then(|| now + spec.ejection_time);
            }
        }
        events
    }

    /// Recalls ejected backends when fewer than before may be ejected, the oldest ejection first. `usable` are the backends
    /// that take new flows unless they are ejected; who is not among them is no longer counted.
    pub fn limit(&mut self, spec: &PassiveSpec, usable: &[&BackendName], now: Instant) -> Vec<Event> {
        let allowed = allowed(spec, usable.len());
        let mut out: Vec<(Instant, &BackendName)> =
            usable.iter().filter_map(|name| Some((self.ejection(name)?.since, *name))).collect();
        out.sort_unstable();
        let excess = out.len().saturating_sub(allowed);
        let mut events = Vec::new();
        for (_, backend) in &out[..excess] {
            if let Some(state) = self.backends.get_mut(*backend) {
                state.release(spec, now);
                events.push(Event::Recalled { backend: (*backend).clone() });
            }
        }
        events
    }

    /// Judges a window. `window` has every backend of the service; those it has not are forgotten.
    pub fn judge(&mut self, spec: &PassiveSpec, window: &[Observed], now: Instant) -> Vec<Event> {
        let names: BTreeSet<&BackendName> = window.iter().map(|observed| &observed.backend).collect();
        self.backends.retain(|name, _| names.contains(name));
        let usable: Vec<&BackendName> = window.iter().filter(|o| o.usable).map(|o| &o.backend).collect();
        let mut events = self.limit(spec, &usable, now);
        let judged: Vec<&Observed> =
            window.iter().filter(|o| o.usable && self.ejection(&o.backend).is_none()).collect();
        let shares = Shares::of(spec, &judged);
        events.extend(self.judge_pool(spec, &judged, &shares));

        let mut bad: Vec<(f64, &Observed, Finding)> = Vec::new();
        for observed in &judged {
            let (heard, worst) = worst(spec, observed, &shares);
            let state = self.backends.entry(observed.backend.clone()).or_default();
            match worst {
                Some((bound, finding)) => {
                    state.streak = state.streak.saturating_add(1);
                    let enough = if state.probation.is_some() { 1 } else { spec.windows };
                    if state.streak >= enough {
                        bad.push((bound, observed, finding));
                    }
                }
                None if heard => {
                    state.streak = 0;
                    state.kept = None;
                }
                // Too few connections to say anything: neither better nor worse.
                None => {}
            }
        }
        // The worst first, if not all may go.
        bad.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.backend.cmp(&b.1.backend)));
        let allowed = allowed(spec, usable.len());
        let mut out = usable.iter().filter(|name| self.ejection(name).is_some()).count();
        for (_, observed, finding) in bad {
            let Some(state) = self.backends.get_mut(&observed.backend) else { continue };
            let backend = observed.backend.clone();
            if out < allowed {
                out += 1;
                state.times = state.times.saturating_add(1);
                let lasts = spec.ejection_time.saturating_mul(state.times).min(spec.max_ejection_time);
                let lasts = lasts.max(spec.ejection_time);
                state.ejection = Some(Ejection { finding, since: now, until: now + lasts });
                (state.kept, state.probation, state.streak) = (None, None, 0);
                events.push(Event::Ejected { backend, finding, lasts, times: state.times });
                continue;
            }
            let why = match allowed {
                _ if spec.max_ejected == 0 => Withheld::Never,
                0 => Withheld::Last,
                allowed => Withheld::Cap { allowed },
            };
            if state.kept.replace((finding, why)).is_none_or(|(_, before)| before != why) {
                events.push(Event::Kept { backend, finding, why });
            }
        }
        events
    }

    /// Are most of them bad?
    fn judge_pool(&mut self, spec: &PassiveSpec, judged: &[&Observed], shares: &Shares) -> Option<Event> {
        let several = |sign: &Sign| shares.sign(*sign).len() > 1;
        let found = SIGNS.into_iter().filter(several).find_map(|sign| {
            // The lower of two in the middle: one of two backends is not all of them.
            let sorted = shares.sign(sign);
            let median = *sorted.get((sorted.len() - 1) / 2)?;
            let counts = judged.iter().map(|observed| sign.of(&observed.seen));
            let (failed, of) =
                counts.fold((0u32, 0u32), |a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1)));
            let finding = Finding { sign, failed, of, median: percent(median) };
            (median >= f64::from(spec.threshold) / 100.0).then_some(finding)
        });
        let before = self.most_alike;
        if SIGNS.iter().any(several) {
            self.most_alike = found;
        }
        found.filter(|_| before.is_none()).map(|finding| Event::MostAlike { finding })
    }
}

impl State {
    fn release(&mut self, spec: &PassiveSpec, now: Instant) {
        self.ejection = None;
        self.streak = 0;
        self.probation = Some(now + spec.ejection_time);
    }
}

/// Of each sign the shares of those with enough connections, in order.
struct Shares([Vec<f64>; 3]);

impl Shares {
    fn of(spec: &PassiveSpec, judged: &[&Observed]) -> Self {
        Self(SIGNS.map(|sign| {
            let shares = judged.iter().filter_map(|observed| share(spec, sign, &observed.seen));
            let mut shares: Vec<f64> = shares.collect();
            shares.sort_by(f64::total_cmp);
            shares
        }))
    }

    fn sign(&self, sign: Sign) -> &[f64] {
        &self.0[sign as usize]
    }

    /// The median of a sign of all but the one with this share, which is among them if it has one.
    fn median_of_others(&self, sign: Sign, own: Option<f64>) -> Option<f64> {
        let sorted = self.sign(sign);
        let skip = own.and_then(|own| sorted.binary_search_by(|share| share.total_cmp(&own)).ok());
        let at = |i: usize| sorted.get(if skip.is_some_and(|skip| i >= skip) { i + 1 } else { i }).copied();
        median(sorted.len() - usize::from(skip.is_some()), at)
    }
}

/// The failed share of a backend that had enough connections.
fn share(spec: &PassiveSpec, sign: Sign, seen: &Signals) -> Option<f64> {
    let (failed, of) = sign.of(seen);
    (of >= spec.min_connections.max(1)).then(|| f64::from(failed) / f64::from(of))
}

/// Was there enough to judge the backend by; and what speaks most against it, with the least share it may be.
fn worst(spec: &PassiveSpec, observed: &Observed, shares: &Shares) -> (bool, Option<(f64, Finding)>) {
    let mut heard = false;
    let mut worst: Option<(f64, Finding)> = None;
    for sign in SIGNS {
        let Some(own) = share(spec, sign, &observed.seen) else { continue };
        let Some(median) = shares.median_of_others(sign, Some(own)) else { continue };
        // Only who answers SYNs is good: that others were not refused says nothing of a backend that answers nobody.
        heard |= sign == Sign::Repeats;
        let (failed, of) = sign.of(&observed.seen);
        let bound = lower_bound(failed, of);
        let limit = (f64::from(spec.threshold) / 100.0).max(TIMES_MEDIAN * median);
        if bound > limit && worst.is_none_or(|(before, _)| bound > before) {
            worst = Some((bound, Finding { sign, failed, of, median: percent(median) }));
        }
    }
    (heard, worst)
}

/// The middle of so many in order; of two in the middle their mean.
fn median(count: usize, at: impl Fn(usize) -> Option<f64>) -> Option<f64> {
    Some(f64::midpoint(at(count.checked_sub(1)? / 2)?, at(count / 2)?))
}

/// The least share that `failed` of `of` may come from by chance: the lower bound of Wilson's score interval (1927).
fn lower_bound(failed: u32, of: u32) -> f64 {
    let (n, z2) = (f64::from(of.max(1)), DEVIATIONS * DEVIATIONS);
    let share = f64::from(failed) / n;
    let spread = DEVIATIONS * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    (share + z2 / (2.0 * n) - spread) / (1.0 + z2 / n)
}

fn percent(share: f64) -> u8 {
    (share * 100.0).round().clamp(0.0, 100.0) as u8
}
