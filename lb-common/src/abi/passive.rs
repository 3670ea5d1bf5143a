//! Passive health: what the program sees of backends in the packets of their clients.

/// Value of `BACKEND_SIGNALS`, per CPU and backend, of TCP services with [`super::ServiceEntry::PASSIVE`]. The numbers wrap
/// around: who reads them takes differences, more often than four billion SYNs come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Signals {
    /// SYNs forwarded.
    pub syns: u32,
    /// Of these, those that were kept in `SYNS` to be known again: see [`SynCell`].
    pub watched: u32,
    /// Watched SYNs that came again: nobody answered the first. Each counts once.
    pub repeats: u32,
    /// Answers to a SYN that refuse it: RST and ACK with a sequence number of 0 (RFC 9293 section 3.10.7.1). Of modes
    /// whose replies come by.
    pub refused: u32,
    /// Other RSTs of the backend, of flows under way.
    pub resets: u32,
    pub pad: u32,
}

/// Which of the [`Signals`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u32)]
pub enum Signal {
    Syn = 0,
    Watched = 1,
    Repeat = 2,
    Refused = 3,
    Reset = 4,
}

impl Signals {
    /// The number of a signal.
    #[inline(always)]
    pub const fn of(&mut self, signal: Signal) -> &mut u32 {
        match signal {
            Signal::Syn => &mut self.syns,
            Signal::Watched => &mut self.watched,
            Signal::Repeat => &mut self.repeats,
            Signal::Refused => &mut self.refused,
            Signal::Reset => &mut self.resets,
        }
    }

    /// The sum of both, wrapping around.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            syns: self.syns.wrapping_add(other.syns),
            watched: self.watched.wrapping_add(other.watched),
            repeats: self.repeats.wrapping_add(other.repeats),
            refused: self.refused.wrapping_add(other.refused),
            resets: self.resets.wrapping_add(other.resets),
            pad: 0,
        }
    }

    /// What was added since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            syns: self.syns.wrapping_sub(earlier.syns),
            watched: self.watched.wrapping_sub(earlier.watched),
            repeats: self.repeats.wrapping_sub(earlier.repeats),
            refused: self.refused.wrapping_sub(earlier.refused),
            resets: self.resets.wrapping_sub(earlier.resets),
            pad: 0,
        }
    }
}

/// Value of `SYNS`: a SYN that may come again, one word read and written at once, from the low bits up:
/// `time:16 | repeated:1 | mark:47`. The mark is a hash of flow, initial sequence number and backend; 0 = no SYN.
///
/// A SYN keeps its cell for [`SynCell::HOLD_NS`] after it came last; another one that meets it there is not watched. That makes
/// the cells a sample of all SYNs that takes no more room however many come, and in which each connection counts once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct SynCell(pub u64);

/// What a cell says of a SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It is watched from now on; the cell becomes this.
    First(SynCell),
    /// It was watched, and nobody answered it; the cell becomes this.
    Again(SynCell),
    /// That was counted already; the cell becomes this.
    Still(SynCell),
    /// Nothing: another one has the cell, or a switch has sent it twice.
    Nothing,
}

impl SynCell {
    const TIME_SHIFT: u32 = 27;
    const TIME: u64 = 0xffff;
    const REPEATED: u64 = 1 << 16;
    const MARK_SHIFT: u32 = 17;

    /// How long a SYN keeps others from its cell: clients repeat it after 1 s and after 3 s (RFC 6298 sections 2.1 and 5.5).
    pub const HOLD_NS: u64 = 40 << Self::TIME_SHIFT;
    /// How long it is known where no other came: the last of Linux's repetitions are 64 s apart.
    pub const KEEP_NS: u64 = 520 << Self::TIME_SHIFT;
    /// What comes sooner is no client's repetition but the network's copy.
    pub const COPY_NS: u64 = 2 << Self::TIME_SHIFT;

    /// What this cell says of the SYN with this mark (its upper 47 bits count) at this time.
    #[inline(always)]
    pub const fn look(self, mark: u64, now_ns: u64) -> Seen {
        let now = now_ns >> Self::TIME_SHIFT & Self::TIME;
        let age = now.wrapping_sub(self.0 & Self::TIME) & Self::TIME;
        let same = (self.0 ^ mark) >> Self::MARK_SHIFT == 0;
        if same && self.0 != 0 && age <= Self::KEEP_NS >> Self::TIME_SHIFT {
            let cell = Self(self.0 & !Self::TIME | Self::REPEATED | now);
            return if self.0 & Self::REPEATED != 0 {
                Seen::Still(cell)
            } else if age >= Self::COPY_NS >> Self::TIME_SHIFT {
                Seen::Again(cell)
            } else {
                Seen::Nothing
            };
        }
        if self.0 == 0 || age > Self::HOLD_NS >> Self::TIME_SHIFT {
            return Seen::First(Self(mark >> Self::MARK_SHIFT << Self::MARK_SHIFT | now));
        }
        Seen::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn first(cell: SynCell, mark: u64, now: u64) -> SynCell {
        match cell.look(mark, now) {
            Seen::First(cell) => cell,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// A connection counts once and its repetitions once, as long as the client goes on trying; then the cell is free.
        #[test]
        fn a_repetition_counts_once(mark in 1u64 << 17.., start in 1..u64::MAX / 2, after in SynCell::COPY_NS + (1 << 27)..69 * SECOND) {
            let cell = first(SynCell::default(), mark, start);
            prop_assert_eq!(cell.look(mark, start), Seen::Nothing);
            let Seen::Again(mut cell) = cell.look(mark, start + after) else { panic!("not seen again") };
            let mut now = start + after;
            for gap in [0, 2, 4, 8, 16, 32, 64] {
                now += gap * SECOND;
                let Seen::Still(next) = cell.look(mark, now) else { panic!("{gap} s later") };
                cell = next;
            }
            first(cell, mark, now + 71 * SECOND);
        }

        /// Whoever comes while a cell is held changes nothing.
        #[test]
        fn others_wait(mark in 1u64 << 17.., other: u64, start in 1..u64::MAX / 2, after in 0..5 * SECOND) {
            prop_assume!(mark >> 17 != other >> 17);
            let cell = first(SynCell::default(), mark, start);
            prop_assert_eq!(cell.look(other, start + after), Seen::Nothing);
            first(cell, other, start + 6 * SECOND);
        }
    }
}
