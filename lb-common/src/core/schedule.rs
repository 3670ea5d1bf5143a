//! Which backend of a scheduled service takes a new flow.

use super::Tables;
use crate::abi::Slot;

/// Words of a least-connections schedule looked at for one flow. A service with more backends compares another part of
/// them each time.
pub const SCANNED: u32 = 256;

/// A word of a least-connections schedule.
#[must_use]
pub const fn weighted(backend: u32, weight: u32) -> u64 {
    (backend & Slot::MAX_BACKEND) as u64 | (weight as u64) << 32
}

/// The backend whose turn it is, or the one with the fewest flows for its weight; 0 = nobody.
#[inline(always)]
pub fn pick<T: Tables>(tables: &T, service: u32, least_connections: bool) -> u32 {
    let Some((base, size)) = tables.schedule(service) else { return 0 };
    if size == 0 {
        return 0;
    }
    let turn = (tables.take_turn(service) % size as u64) as u32;
    if least_connections {
        return fewest(tables, base, size, turn);
    }
    backend_of(tables.schedule_word(base.wrapping_add(turn)).unwrap_or(0))
}

/// Begins at a place that goes round, and the first of equals wins: equals take turns.
#[inline(always)]
fn fewest<T: Tables>(tables: &T, base: u32, size: u32, start: u32) -> u32 {
    let (mut at, mut best, mut best_flows, mut best_weight) = (start, 0, 0u64, 0u64);
    for seen in 0..SCANNED {
        if seen >= size {
            break;
        }
        let word = tables.schedule_word(base.wrapping_add(at)).unwrap_or(0);
        at += 1;
        if at >= size {
            at = 0;
        }
        let (backend, weight) = (backend_of(word), word >> 32);
        // Counted down by the daemon and up by every CPU: it may be wrong by a few for a while, below zero as well.
        let flows = tables.active(backend);
        let flows = if flows >> 63 == 0 { flows } else { 0 };
        // flows / weight < best_flows / best_weight
        if best == 0 || flows.wrapping_mul(best_weight) < best_flows.wrapping_mul(weight) {
            (best, best_flows, best_weight) = (backend, flows, weight);
        }
    }
    best
}

#[inline(always)]
const fn backend_of(word: u64) -> u32 {
    word as u32 & Slot::MAX_BACKEND
}
