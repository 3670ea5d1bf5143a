//! Which backend of a scheduled service takes a new flow.

use super::Tables;
use crate::abi::Slot;

/// Words of a least-connections schedule compared for one flow. A service with more backends compares another part of them
/// each time.
pub const COMPARED: u32 = 256;

/// Nobody has been compared yet.
const NOBODY: u64 = u64::MAX;

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
    let turn = tables.take_turn(service);
    if least_connections {
        return fewest(tables, base, size, turn);
    }
    backend_of(turn_of(tables, base, size, turn))
}

/// Begins at a place that goes round, and the first of equals wins: equals take turns.
#[inline(always)]
fn fewest<T: Tables>(tables: &T, base: u32, size: u32, turn: u64) -> u32 {
    let mut best = NOBODY;
    for seen in 0..COMPARED {
        if seen >= size {
            break;
        }
        best = tables.less_loaded(base, size, turn.wrapping_add(seen as u64), best);
    }
    if best == NOBODY { 0 } else { backend_of(best) }
}

/// The backend whose turn it is in a least-connections schedule, if it has fewer flows for its weight than the best so far,
/// or that one: `backend:24 | load:40` from the low bits up, the load in flows for a weight of 65,536.
///
/// The turn becomes a place here and not in the loop around this: a compiler makes a branch at the end of the array of it,
/// and the verifier follows both ways at every place.
#[inline(always)]
pub fn less_loaded<T: Tables>(tables: &T, base: u32, size: u32, turn: u64, best: u64) -> u64 {
    const MAX_FLOWS: u64 = 0x00ff_ffff;
    let word = turn_of(tables, base, size, turn);
    let (backend, weight) = (backend_of(word), word >> 32);
    // Counted down by the daemon and up by every CPU: it may be wrong by a few for a while, below zero as well.
    let flows = tables.active(backend);
    let flows = if flows >> 63 != 0 {
        0
    } else if flows > MAX_FLOWS {
        MAX_FLOWS
    } else {
        flows
    };
    let weight = if weight == 0 { 1 } else { weight };
    let load = (flows << 16) / weight;
    if backend != 0 && load < best >> 24 { load << 24 | backend as u64 } else { best }
}

/// The word of a schedule whose turn it is; 0 = none.
#[inline(always)]
fn turn_of<T: Tables>(tables: &T, base: u32, size: u32, turn: u64) -> u64 {
    if size == 0 {
        return 0;
    }
    tables.schedule_word(base.wrapping_add((turn % size as u64) as u32)).unwrap_or(0)
}

#[inline(always)]
const fn backend_of(word: u64) -> u32 {
    word as u32 & Slot::MAX_BACKEND
}
