//! One slot of a service's ring: a u64 that is read and written atomically.

/// How packets of a slot find their backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SlotState {
    /// `home == owner`: every packet goes there, no per-flow state is consulted.
    Plain = 0,
    /// The owner changed: new flows go to `owner`, flows with an entry to that entry's backend, all
    /// others to `home`, and are recorded.
    Moving = 1,
    /// `home == owner`, but entries that name other backends may still live: table first.
    Tracked = 2,
}

/// The word of one ring slot: `owner:24 | home:24 | state:2 | epoch:14`, from the low bits up.
///
/// Backend id 0 means "none". `epoch` counts the changes of the slot, so that a compare-and-swap
/// that lost a race is told from one that did not.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Slot(pub u64);

impl Slot {
    /// The largest backend id that fits a slot.
    pub const MAX_BACKEND: u32 = (1 << 24) - 1;
    const EPOCH_MASK: u64 = (1 << 14) - 1;

    /// A slot in the given state. Ids beyond [`Slot::MAX_BACKEND`] are cut off: the id allocator
    /// never hands one out.
    #[inline(always)]
    pub const fn new(owner: u32, home: u32, state: SlotState, epoch: u16) -> Self {
        Self(
            (owner & Self::MAX_BACKEND) as u64
                | ((home & Self::MAX_BACKEND) as u64) << 24
                | (state as u64) << 48
                | (epoch as u64 & Self::EPOCH_MASK) << 50,
        )
    }

    /// A plain slot: one backend for every packet.
    #[inline(always)]
    pub const fn plain(backend: u32, epoch: u16) -> Self {
        Self::new(backend, backend, SlotState::Plain, epoch)
    }

    /// Takes new flows.
    #[inline(always)]
    pub const fn owner(self) -> u32 {
        self.0 as u32 & Self::MAX_BACKEND
    }

    /// Takes packets of flows without an entry.
    #[inline(always)]
    pub const fn home(self) -> u32 {
        (self.0 >> 24) as u32 & Self::MAX_BACKEND
    }

    /// The state; the unused fourth code reads as tracked, which is always safe.
    #[inline(always)]
    pub const fn state(self) -> SlotState {
        match (self.0 >> 48) & 3 {
            0 => SlotState::Plain,
            1 => SlotState::Moving,
            _ => SlotState::Tracked,
        }
    }

    /// True if the flow table need not be asked; cheaper than `state()` on the fast path.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        (self.0 >> 48) & 3 == 0
    }

    /// Changes so far, modulo 2^14.
    #[inline(always)]
    pub const fn epoch(self) -> u16 {
        ((self.0 >> 50) & Self::EPOCH_MASK) as u16
    }

    /// The same slot with another owner, home and state, its epoch advanced.
    pub const fn with(self, owner: u32, home: u32, state: SlotState) -> Self {
        Self::new(owner, home, state, self.epoch().wrapping_add(1))
    }
}

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}(owner {}, home {}, epoch {})", self.state(), self.owner(), self.home(), self.epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_slot_gives_back_what_was_put_in(
            owner in 0..=Slot::MAX_BACKEND, home in 0..=Slot::MAX_BACKEND, state in 0..3u8, epoch in 0..1u16 << 14,
        ) {
            let state = [SlotState::Plain, SlotState::Moving, SlotState::Tracked][usize::from(state)];
            let slot = Slot::new(owner, home, state, epoch);
            prop_assert_eq!((slot.owner(), slot.home(), slot.state(), slot.epoch()), (owner, home, state, epoch));
            prop_assert_eq!(slot.is_plain(), state == SlotState::Plain);
            prop_assert_eq!(slot.with(home, owner, state).epoch(), (epoch + 1) % (1 << 14));
        }
    }

    /// The word is read by other versions of the program: its layout is fixed.
    #[test]
    fn the_layout_is_fixed() {
        assert_eq!(Slot::new(0x00ab_cdef, 0x0012_3456, SlotState::Moving, 0x2aaa).0, 0xaaa9_1234_56ab_cdef);
    }
}
