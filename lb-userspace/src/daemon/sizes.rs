//! How much room a configuration takes: in the maps, and in the memory of the daemon.

use crate::{config::Config, dataplane::Capacities, maglev, state::RuntimeChanges};
use std::time::{Duration, Instant};

/// Maps that are made larger than by default have sizes that are multiples of these.
const RING_STEP: u32 = 1 << 20;
const BACKENDS_STEP: u32 = 1 << 14;

/// Least capacities for a configuration, with an eighth to spare: maps that were made large enough need not be replaced by
/// larger ones, with the program, before the first packet.
pub(super) fn needed(config: &Config, changes: &RuntimeChanges) -> Capacities {
    let least = Capacities::default();
    let ring = |service: &crate::model::ServiceSpec| {
        let size = service.ring_size.or_else(|| changes.ring_size(&service.name));
        u64::from(size.unwrap_or_else(|| maglev::default_size(service.backends.len())))
    };
    let slots = config.services.iter().map(ring).sum();
    let backends = config.services.iter().map(|service| service.backends.len() as u64).sum();
    Capacities {
        ring: with_room(slots, least.ring, RING_STEP),
        backends: with_room(backends, least.backends, BACKENDS_STEP),
        ..least
    }
}

fn with_room(entries: u64, least: u32, step: u32) -> u32 {
    let wanted = (entries + entries / 8).next_multiple_of(u64::from(step));
    if entries < u64::from(least) { least } else { u32::try_from(wanted).unwrap_or(u32::MAX) }
}

/// To be called before the first thread is started. With one arena, what reading the configuration leaves free is used for what
/// is made of it; by default each thread has its own. And large tables stay mappings of their own, which are given back at
/// once when they are replaced; by default the first to be freed ends that.
pub fn prepare_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) only sets parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// When memory is to be given back: at once, and again after things have calmed down.
#[derive(Debug, Default)]
pub(super) struct Calm(Option<Instant>);

impl Calm {
    /// Checks, next hops and the first answers take a moment after a start and a reload.
    const AFTER: Duration = Duration::from_secs(3);

    pub(super) fn disturb(&mut self) {
        release_memory();
        self.0 = Some(Instant::now());
    }

    /// To be called now and then.
    pub(super) fn tick(&mut self) {
        if self.0.is_some_and(|since| since.elapsed() >= Self::AFTER) {
            self.0 = None;
            release_memory();
        }
    }
}

/// Gives memory that nobody needs any more back to the kernel: reading a large configuration takes many times what it
/// becomes, and malloc keeps that for later.
fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is safe to call at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_configurations_get_the_default() {
        assert_eq!(with_room(0, 1 << 20, RING_STEP), 1 << 20);
        assert_eq!(with_room((1 << 20) - 1, 1 << 20, RING_STEP), 1 << 20);
        assert_eq!(with_room(1 << 20, 1 << 20, RING_STEP), 2 << 20);
        // 4,096 services of 16 backends.
        assert_eq!(with_room(4096 * 4099, 1 << 20, RING_STEP), 19 << 20);
        assert_eq!(with_room(65_536, 1 << 14, BACKENDS_STEP), 5 << 14);
    }
}
