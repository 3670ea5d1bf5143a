//! Who is checked and what is known of each: the bookkeeping of the task. Pure; the time is passed in.

use super::{HealthEvent, LastResult, Target, TargetKey, TargetStatus};
use crate::{
    health::{
        fsm::{self, Thresholds},
        probe::{Probe, ProbeFailure},
        schedule::{Id, Schedule},
        via::Aim,
    },
    model::{Health, HealthSpec},
};
use indexmap::IndexMap;
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// The targets, their states and their schedule.
#[derive(Debug, Default)]
pub(super) struct Roster {
    schedule: Schedule,
    // A hash table of std keeps up to half of its places free, and these are large.
    by_key: IndexMap<TargetKey, Member>,
    /// The targets in the schedule; those that are not checked are not here.
    by_id: IndexMap<Id, TargetKey>,
}

#[derive(Debug)]
struct Member {
    vips: Arc<[IpAddr]>,
    spec: Arc<HealthSpec>,
    state: fsm::State,
    /// Shared with whoever shows it. Its address is where the target was said to be, without the check's own port.
    status: Arc<TargetStatus>,
    /// `None` where there is nothing to check, or nothing that could be sent.
    checked: Option<Checked>,
}

#[derive(Debug)]
struct Checked {
    id: Id,
    /// At least one.
    aims: Arc<[Aim]>,
}

/// One check to be run.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: Id,
    /// Of a check that goes to virtual addresses.
    pub(super) key: Option<TargetKey>,
    pub(super) aims: Arc<[Aim]>,
    pub(super) timeout: Duration,
}

/// What a change of the targets leads to.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Checks that have become pointless.
    pub(super) stop: Vec<Id>,
    /// Targets that are gone, or are other ones under the same name.
    pub(super) forget: Vec<TargetKey>,
    pub(super) events: Vec<HealthEvent>,
    /// The statuses that are new or changed.
    pub(super) statuses: Vec<(TargetKey, Arc<TargetStatus>)>,
}

/// What the end of a check leads to.
#[derive(Debug)]
pub(super) struct Finished<'a> {
    pub(super) key: &'a TargetKey,
    pub(super) kind: &'static str,
    pub(super) event: Option<HealthEvent>,
    /// The status, if it is another than before.
    pub(super) status: Option<Arc<TargetStatus>>,
}

impl Roster {
    /// Makes `targets` the ones that are checked. Of several with one key the first counts.
    pub(super) fn apply(&mut self, targets: &[Target], now: Instant, wall: SystemTime) -> Applied {
        let mut applied = Applied::default();
        let mut wanted = HashSet::with_capacity(targets.len());
        for target in targets {
            if !wanted.insert(&target.key) {
                tracing::error!(target = %target.key, "the same health check target twice; the first counts");
                continue;
            }
            self.set(target, now, wall, &mut applied);
        }
        let gone: Vec<_> = self.by_key.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in gone {
            self.remove(&key, &mut applied);
            applied.forget.push(key);
        }
        applied
    }

    /// Removes some targets, adds or replaces others.
    pub(super) fn change(
        &mut self,
        gone: &[TargetKey],
        set: &[Target],
        now: Instant,
        wall: SystemTime,
    ) -> Applied {
        let mut applied = Applied::default();
        for key in gone {
            if self.remove(key, &mut applied).is_some() {
                applied.forget.push(key.clone());
            }
        }
        set.iter().for_each(|target| self.set(target, now, wall, &mut applied));
        applied
    }

    fn set(&mut self, target: &Target, now: Instant, wall: SystemTime, applied: &mut Applied) {
        let health = match self.by_key.get(&target.key) {
            Some(member)
                if member.status.address == target.address
                    && member.spec == target.spec
                    && member.vips == target.vips =>
            {
                return;
            }
            // Another address is another server, of which nothing is known but what the caller says.
            Some(member) if member.status.address != target.address => {
                applied.forget.push(target.key.clone());
                target.initial
            }
            Some(member) => member.state.health,
            None => target.initial,
        };
        let old = self.remove(&target.key, applied);
        let old = old.filter(|old| old.status.address == target.address);
        self.add(target, health, old.map(|old| old.status), now, wall, applied);
    }

    fn remove(&mut self, key: &TargetKey, applied: &mut Applied) -> Option<Member> {
        let member = self.by_key.swap_remove(key)?;
        if let Some(Checked { id, .. }) = &member.checked {
            self.schedule.remove(*id);
            self.by_id.swap_remove(id);
            applied.stop.push(*id);
        }
        Some(member)
    }

    fn add(
        &mut self,
        target: &Target,
        health: Health,
        before: Option<Arc<TargetStatus>>,
        now: Instant,
        wall: SystemTime,
        applied: &mut Applied,
    ) {
        let Target { key, address, vips, spec, initial: _ } = target;
        let mut status = TargetStatus {
            address: *address,
            health,
            stands_in: before.as_ref().is_some_and(|before| before.stands_in),
            since: before.and_then(|before| before.since),
            last: LastResult::Waiting,
            last_failure: None,
        };
        let checked = match aims(target) {
            Ok(aims) if !aims.is_empty() => {
                let id = self.schedule.insert(hash_of(key), spec.interval, now);
                self.by_id.insert(id, key.clone());
                Some(Checked { id, aims: aims.into() })
            }
            Ok(_) => {
                status.last = LastResult::NotChecked;
                if health != Health::Up {
                    status.health = Health::Up;
                    status.since = Some(wall);
                    applied.events.push(status.event(key, (health, status.stands_in), wall));
                }
                None
            }
            Err(failure) => {
                tracing::error!(target = %key, "{failure}");
                status.last = LastResult::Inconclusive(failure.into());
                None
            }
        };
        let state = fsm::State::new(status.health);
        let status = Arc::new(status);
        applied.statuses.push((key.clone(), Arc::clone(&status)));
        let (vips, spec) = (Arc::clone(vips), Arc::clone(spec));
        let member = Member { vips, spec, state, status, checked };
        self.by_key.insert(key.clone(), member);
    }

    /// Targets that are checked.
    pub(super) fn len(&self) -> usize {
        self.schedule.len()
    }

    /// When [`Roster::start`] has something to do next.
    pub(super) fn next_due(&mut self) -> Option<Instant> {
        self.schedule.next_due()
    }

    /// A check that is due; it counts as running until [`Roster::finished`].
    pub(super) fn start(&mut self, now: Instant) -> Option<Job> {
        loop {
            let id = self.schedule.pop_due(now)?;
            let Some(key) = self.by_id.get(&id) else { continue };
            let member = self.by_key.get(key);
            if let Some((member, checked)) = member.and_then(|m| Some((m, m.checked.as_ref()?))) {
                return Some(Job {
                    id,
                    key: (!member.vips.is_empty()).then(|| key.clone()),
                    aims: Arc::clone(&checked.aims),
                    timeout: member.spec.timeout,
                });
            }
        }
    }

    /// Takes the result of a check; `None` for one of a target that is gone.
    pub(super) fn finished(
        &mut self,
        id: Id,
        result: Result<(), ProbeFailure>,
        now: Instant,
        wall: SystemTime,
    ) -> Option<Finished<'_>> {
        let Some(key) = self.by_id.get(&id) else {
            self.schedule.finished(id, now);
            return None;
        };
        let member = self.by_key.get_mut(key)?;
        let kind = member.checked.as_ref()?.aims.first()?.probe.kind();
        let before = member.status.stands_in;
        let mut stands_in = before;
        let (event, last) = match result {
            Ok(()) => {
                stands_in = false;
                (fsm::Event::Passed, LastResult::Passed)
            }
            Err(failure) if failure.stands_in() => {
                stands_in = true;
                (fsm::Event::Passed, LastResult::Passed)
            }
            Err(failure) if failure.is_local() => {
                (fsm::Event::Inconclusive, LastResult::Inconclusive(failure.into()))
            }
            Err(failure) => (fsm::Event::Failed, LastResult::Failed(failure.into())),
        };
        let (state, transition) = member.state.step(event, Thresholds::from(&*member.spec));
        member.state = state;
        self.schedule.set_interval(id, state.pace(&member.spec));
        self.schedule.finished(id, now);
        let role_changed = stands_in != before;
        let changed = transition.is_some() || role_changed || member.status.last != last;
        if changed {
            let status = Arc::make_mut(&mut member.status);
            status.health = state.health;
            status.stands_in = stands_in;
            if let LastResult::Failed(failure) = &last {
                status.last_failure = Some(Arc::clone(failure));
            }
            status.last = last;
        }
        if transition.is_some() {
            Arc::make_mut(&mut member.status).since = Some(wall);
        }
        let from = transition.map_or(state.health, |transition| transition.from);
        let event =
            (transition.is_some() || role_changed).then(|| member.status.event(key, (from, before), wall));
        Some(Finished { key, kind, event, status: changed.then(|| Arc::clone(&member.status)) })
    }
}

impl TargetStatus {
    /// `before`: what the health was, and whether it stood in.
    fn event(&self, key: &TargetKey, before: (Health, bool), at: SystemTime) -> HealthEvent {
        let (previous, stood_in) = before;
        HealthEvent {
            key: key.clone(),
            address: self.address,
            health: self.health,
            previous,
            stands_in: self.stands_in,
            stood_in,
            reason: self.reason(),
            at,
        }
    }
}

/// The checks of a target, ready to be run: none where there is nothing to check.
fn aims(target: &Target) -> Result<Vec<Aim>, ProbeFailure> {
    let own = checked_address(target.address, &target.spec);
    let vips = target.vips.iter().map(|vip| SocketAddr::new(*vip, own.port()));
    let addresses = if target.vips.is_empty() { vec![own] } else { vips.collect() };
    let ready = addresses.into_iter().map(|address| {
        let probe = Probe::prepare(&target.spec.check, address)?;
        Ok(probe.map(|probe| Aim { address, probe }))
    });
    ready.filter_map(Result::transpose).collect()
}

fn checked_address(address: SocketAddr, spec: &HealthSpec) -> SocketAddr {
    let mut checked = address;
    if let Some(port) = spec.port {
        checked.set_port(port);
    }
    checked
}

/// Stable within one build, so that a restart does not shift the checks.
fn hash_of(key: &TargetKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
