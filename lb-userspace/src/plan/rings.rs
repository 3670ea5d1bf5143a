//! The rings of all services of a plan. Pure; many rings are made on all CPUs.

use super::{Ring, WantedService};
use crate::{affinity, maglev, ramp};
use lb_common::abi::Slot;
use std::{collections::HashSet, num::NonZero, thread};

/// Rings for which a further thread is worth its start: some hundred microseconds of work.
const WORTH_A_THREAD: usize = 64;

/// A ring to be made.
pub(super) struct Job<'a> {
    pub service: &'a WantedService,
    pub before: Option<&'a Ring>,
    /// Flows may live anywhere, whatever the slots say.
    pub placed: bool,
}

/// The rings of some services, each job with its place in `ids`: the service's id and those of its backends.
pub(super) fn make(
    jobs: &[(usize, Job<'_>)],
    ids: &[(u32, Vec<u32>)],
    rings: &mut maglev::Cache,
) -> Vec<(usize, Ring)> {
    let some = |jobs: &[(usize, Job<'_>)], rings: &mut maglev::Cache| -> Vec<(usize, Ring)> {
        jobs.iter().map(|(at, job)| (*at, job.ring(&ids[*at].1, rings))).collect()
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cpus.min(jobs.len() / WORTH_A_THREAD).max(1);
    let (own, others) = jobs.split_at(jobs.len().div_ceil(threads));
    if others.is_empty() {
        return some(own, rings);
    }
    thread::scope(|scope| {
        let chunks = others.chunks(own.len());
        let others: Vec<_> = chunks
            .map(|jobs| (jobs, rings.beside()))
            .map(|(jobs, mut rings)| scope.spawn(move || some(jobs, &mut rings)))
            .collect();
        let mut made = some(own, rings);
        for other in others {
            match other.join() {
                Ok(rings) => made.extend(rings),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        made
    })
}

impl Job<'_> {
    /// The words: the owners by Maglev, each word changed by the rules of [`affinity`].
    fn ring(&self, ids: &[u32], rings: &mut maglev::Cache) -> Ring {
        let Self { service, before, placed } = *self;
        let members: Vec<_> = service
            .backends
            .iter()
            .map(|b| ramp::Member {
                key: maglev::key_of(&b.spec),
                weight: if b.takes_new() { b.spec.weight } else { 0 },
                ramp: b.ramp.filter(|_| b.takes_new()),
            })
            .collect();
        let alive: HashSet<u32> =
            service.backends.iter().zip(ids).filter(|(b, _)| !b.is_dead()).map(|(_, id)| *id).collect();
        let changed = |slot: Slot, owner: u32| {
            let slot = affinity::change(slot, owner, |id| !alive.contains(&id), !service.withdrawn);
            if placed { affinity::track(slot) } else { slot }
        };
        let owners = ramp::owners(service.spec.seed, service.ring_size, &members, rings);
        let owners = owners.iter().map(|owner| owner.map_or(0, |member| ids[member as usize]));
        // Neighbours are strangers, but the same few words meet the same few owners again and again.
        let mut known: [Option<(Slot, u32, Slot)>; 64] = [None; 64];
        let mut words = Vec::with_capacity(service.ring_size as usize);
        for (i, owner) in owners.enumerate() {
            let slot = before.and_then(|words| words.get(i)).copied().unwrap_or_default();
            let place =
                (slot.0.wrapping_add(u64::from(owner)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize;
            words.push(match known[place] {
                Some((from, to, word)) if (from, to) == (slot, owner) => word,
                _ => {
                    let word = changed(slot, owner);
                    known[place] = Some((slot, owner, word));
                    word
                }
            });
        }
        words.into()
    }
}
