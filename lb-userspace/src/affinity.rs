//! What a change of a service's backends does to the slots of its ring. Pure.
//!
//! Invariant: every live flow without an entry in the flow table lives at its slot's home. A slot is
//! `plain` (home = owner, the table is not asked), `moving` (the owner changed, flows without an entry stay at
//! home and are recorded) or `tracked` (home = owner again, but entries that name others may live).
//! The rules below are those of ARCHITECTURE.md, "Connection affinity".

use lb_common::abi::{Slot, SlotState};

/// The slot after a change that makes `wanted` the owner of new flows (0 = nobody can be).
///
/// `dead` tells which backends take no packets any more: down, removed or disabled. `track` is false for a service
/// whose flows are not recorded: there a slot changes hands at once.
#[must_use]
pub fn change(slot: Slot, wanted: u32, dead: impl Fn(u32) -> bool, track: bool) -> Slot {
    let (owner, home, state) = (slot.owner(), slot.home(), slot.state());
    if !track {
        return if state == SlotState::Plain && owner == wanted {
            slot
        } else {
            slot.with(wanted, wanted, SlotState::Plain)
        };
    }
    // A slot that nobody held has no flows to keep.
    let gone = |backend: u32| backend == 0 || dead(backend);
    let next = match (state, gone(owner), gone(home)) {
        // Both gone: nothing to keep there; entries may still name others.
        (SlotState::Moving, true, true) => (wanted, wanted, SlotState::Tracked),
        (SlotState::Plain | SlotState::Tracked, true, _)
        | (SlotState::Plain | SlotState::Tracked, _, true) => (wanted, wanted, state),
        // The home died: its flows are lost, those of the owner have entries; what has none goes to the owner.
        (SlotState::Moving, false, true) if owner == wanted => (owner, owner, SlotState::Tracked),
        (SlotState::Moving, false, true) => (wanted, owner, SlotState::Moving),
        (SlotState::Moving, _, false) => (wanted, home, SlotState::Moving),
        (SlotState::Plain | SlotState::Tracked, false, false) if owner == wanted => (owner, home, state),
        // Nobody wants new flows and the old backend lives (all are draining): it keeps what it has.
        (SlotState::Plain | SlotState::Tracked, false, false) => (wanted, home, SlotState::Moving),
    };
    if next == (owner, home, state) { slot } else { slot.with(next.0, next.1, next.2) }
}

/// A slot whose flows may live anywhere, each with an entry: as `tracked` until no such entry is left.
#[must_use]
pub fn track(slot: Slot) -> Slot {
    match slot.state() {
        SlotState::Plain => slot.with(slot.owner(), slot.home(), SlotState::Tracked),
        SlotState::Moving | SlotState::Tracked => slot,
    }
}

/// A moving slot once every flow that lives at its home without an entry has been silent for the idle
/// timeout: new home, entries still asked.
#[must_use]
pub fn settle(slot: Slot) -> Slot {
    match slot.state() {
        SlotState::Moving if slot.owner() != 0 => slot.with(slot.owner(), slot.owner(), SlotState::Tracked),
        SlotState::Moving | SlotState::Plain | SlotState::Tracked => slot,
    }
}

/// A tracked slot once no live entry of it names another backend: the table need not be asked any more.
#[must_use]
pub fn clear(slot: Slot) -> Slot {
    match slot.state() {
        SlotState::Tracked => slot.with(slot.owner(), slot.owner(), SlotState::Plain),
        SlotState::Moving | SlotState::Plain => slot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;
    const C: u32 = 3;

    fn slot(owner: u32, home: u32, state: SlotState) -> Slot {
        Slot::new(owner, home, state, 5)
    }

    /// Every rule as a row: slot before, wanted owner, dead backends, slot after.
    #[test]
    fn the_rules() {
        use SlotState::{Moving, Plain, Tracked};
        type Row<'a> = (&'a str, (u32, u32, SlotState), u32, &'a [u32], (u32, u32, SlotState));
        let rows: &[Row<'_>] = &[
            ("a new ring", (0, 0, Plain), A, &[], (A, A, Plain)),
            ("nothing changes", (A, A, Plain), A, &[], (A, A, Plain)),
            ("plain: a new owner", (A, A, Plain), B, &[], (B, A, Moving)),
            ("tracked: a new owner", (A, A, Tracked), B, &[], (B, A, Moving)),
            ("moving: another owner", (B, A, Moving), C, &[], (C, A, Moving)),
            ("moving: back home is still moving", (B, A, Moving), A, &[], (A, A, Moving)),
            ("plain: the owner dies", (A, A, Plain), B, &[A], (B, B, Plain)),
            ("tracked: the owner dies", (A, A, Tracked), B, &[A], (B, B, Tracked)),
            ("moving: the home dies", (B, A, Moving), B, &[A], (B, B, Tracked)),
            ("moving: the home dies, another owner", (B, A, Moving), C, &[A], (C, B, Moving)),
            ("moving: the owner dies", (B, A, Moving), C, &[B], (C, A, Moving)),
            ("moving: both die", (B, A, Moving), C, &[A, B], (C, C, Tracked)),
            ("all drain: established flows stay", (A, A, Plain), 0, &[], (0, A, Moving)),
            ("all are dead", (A, A, Plain), 0, &[A], (0, 0, Plain)),
            ("the first to come back", (0, 0, Plain), A, &[], (A, A, Plain)),
        ];
        for (name, (o, h, s), wanted, dead, expected) in rows {
            let before = slot(*o, *h, *s);
            let after = change(before, *wanted, |b| dead.contains(&b), true);
            assert_eq!((after.owner(), after.home(), after.state()), *expected, "{name}");
            let changed = (*o, *h, *s) != *expected;
            assert_eq!(after.epoch(), 5 + u16::from(changed), "{name}: the epoch counts changes");
        }
    }

    /// The full cross product: a live home never loses its untracked flows to a change, and a slot never
    /// becomes plain by one unless nobody lived there.
    #[test]
    fn a_living_home_is_never_left() {
        for state in [SlotState::Plain, SlotState::Moving, SlotState::Tracked] {
            for owner in 0..4 {
                for home in 0..4 {
                    if state != SlotState::Moving && owner != home {
                        continue;
                    }
                    for wanted in 0..4 {
                        for dead in 0..16u32 {
                            let is_dead = |b: u32| dead >> b & 1 == 1;
                            if is_dead(wanted) && wanted != 0 {
                                continue;
                            }
                            let after = change(slot(owner, home, state), wanted, is_dead, true);
                            let case = format!(
                                "{:?} wanted {wanted} dead {dead:04b}: {after:?}",
                                slot(owner, home, state)
                            );
                            if home != 0 && !is_dead(home) {
                                assert_eq!(after.home(), home, "{case}");
                            }
                            assert_eq!(after.owner(), wanted, "{case}");
                            assert!(after.home() == 0 || !is_dead(after.home()), "{case}");
                            if after.state() != SlotState::Moving {
                                assert_eq!(after.owner(), after.home(), "{case}");
                            }
                            if state != SlotState::Plain {
                                assert_ne!(after.state(), SlotState::Plain, "{case}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn settling_and_clearing_go_one_way() {
        let moving = slot(B, A, SlotState::Moving);
        let tracked = settle(moving);
        assert_eq!((tracked.owner(), tracked.home(), tracked.state()), (B, B, SlotState::Tracked));
        let plain = clear(tracked);
        assert_eq!((plain.owner(), plain.home(), plain.state()), (B, B, SlotState::Plain));
        assert_eq!(settle(plain), plain);
        assert_eq!(clear(moving), moving);
        let drained = slot(0, A, SlotState::Moving);
        assert_eq!(settle(drained), drained, "nobody to settle to: the last flows stay");
    }
}
