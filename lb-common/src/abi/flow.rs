//! The flow table: keys and entries.

/// Key of `FLOWS4`: fields as they stand in the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct FlowKey4 {
    pub src: [u8; 4],
    pub dst: [u8; 4],
    /// Source and destination port.
    pub ports: [u8; 4],
    /// IP protocol, host order.
    pub proto: u32,
}

/// Key of `FLOWS6`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct FlowKey6 {
    pub src: [u8; 16],
    pub dst: [u8; 16],
    pub ports: [u8; 4],
    pub proto: u32,
}

/// Value of the flow tables, one word read and written at once, from the low bits up:
/// `backend:24 | incarnation:8 | seen:16 | tag:12 | closing:1 | open:1 | zero:2`.
///
/// The bit `open` says that a handshake is under way. In `HALF_OPEN4` and `HALF_OPEN6`: this one ([`FlowEntry::is_half_open`]).
/// In `FLOWS4` and `FLOWS6`: another one of the same addresses and ports, which may have an entry there
/// ([`FlowEntry::is_pending`]).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct FlowEntry(pub u64);

impl FlowEntry {
    const CLOSING: u64 = 1 << 60;
    const OPEN: u64 = 1 << 61;

    /// Log2 of the unit of [`FlowEntry::seen`] in nanoseconds: about 2.1 s, so that 16 bits last 39 hours.
    pub const SEEN_SHIFT: u32 = 31;
    /// The unit itself.
    pub const UNIT_NS: u64 = 1 << Self::SEEN_SHIFT;

    /// Units that an entry may be ahead of the clock it is compared with: about two minutes.
    const FUTURE: u16 = 64;

    /// An entry of a flow seen at `now_ns` of the monotonic clock.
    #[inline(always)]
    pub const fn new(backend: u32, incarnation: u16, hash: u64, now_ns: u64, half_open: bool) -> Self {
        Self(
            (backend & 0x00ff_ffff) as u64
                | ((incarnation & 0xff) as u64) << 24
                | Self::clock(now_ns) << 32
                | (Self::tag_of(hash) as u64) << 48
                | if half_open { Self::OPEN } else { 0 },
        )
    }

    /// The time as entries keep it.
    #[inline(always)]
    pub const fn clock(now_ns: u64) -> u64 {
        (now_ns >> Self::SEEN_SHIFT) & 0xffff
    }

    /// The bits of a flow's hash that entries keep: elements of a hash map are recycled under its readers.
    #[inline(always)]
    pub const fn tag_of(hash: u64) -> u16 {
        (hash & 0xfff) as u16
    }

    /// The backend that has the flow.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 as u32 & 0x00ff_ffff
    }

    /// The backend's incarnation, its low eight bits.
    #[inline(always)]
    pub const fn incarnation(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// See [`FlowEntry::tag_of`].
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 48) as u16 & 0xfff
    }

    /// FIN or RST was seen, and nothing after.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        self.0 & Self::CLOSING != 0
    }

    /// Of an entry among the half-open ones: only a SYN was seen. Without it: confirmed where it lies, because there was
    /// no room among the confirmed ones.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    /// Of an entry among the confirmed ones: there may be a half-open one beside it. Never taken back but by a new entry.
    #[inline(always)]
    pub const fn is_pending(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    /// The same with a half-open one beside it.
    #[inline(always)]
    pub const fn pending(self) -> Self {
        Self(self.0 | Self::OPEN)
    }

    /// Time of the last packet.
    #[inline(always)]
    pub const fn seen(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// How long the flow has been silent at `now_ns`, in nanoseconds, rounded down to the clock's unit.
    ///
    /// A packet may come between the reading of the clock and that of the entry: an entry from the near future has
    /// not been silent at all.
    #[inline(always)]
    pub const fn idle_ns(self, now_ns: u64) -> u64 {
        let units = (Self::clock(now_ns) as u16).wrapping_sub(self.seen());
        if units > u16::MAX - Self::FUTURE { 0 } else { (units as u64) << Self::SEEN_SHIFT }
    }

    /// The entry after another packet.
    #[inline(always)]
    pub const fn touched(self, now_ns: u64, closing: bool) -> Self {
        let kept = self.0 & !(0xffff << 32) & !Self::CLOSING;
        Self(kept | Self::clock(now_ns) << 32 | if closing { Self::CLOSING } else { 0 })
    }

    /// The half-open entry after the packet that ends the handshake.
    #[inline(always)]
    pub const fn confirmed(self, now_ns: u64, closing: bool) -> Self {
        Self(self.touched(now_ns, closing).0 & !Self::OPEN)
    }
}

impl core::fmt::Debug for FlowEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let state = match (self.is_half_open(), self.is_closing()) {
            (true, false) => "open",
            (true, true) => "open, closing",
            (false, true) => "closing",
            (false, false) => "confirmed",
        };
        write!(f, "{state}(backend {}#{}, seen {})", self.backend(), self.incarnation(), self.seen())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_gives_back_what_was_put_in(backend in 0..1u32 << 24, incarnation: u16, hash: u64, now: u64, half: bool) {
            let entry = FlowEntry::new(backend, incarnation, hash, now, half);
            prop_assert_eq!(entry.backend(), backend);
            prop_assert_eq!(entry.incarnation(), incarnation as u8);
            prop_assert_eq!(entry.tag(), FlowEntry::tag_of(hash));
            prop_assert_eq!((entry.is_half_open(), entry.is_closing()), (half, false));
            let later = now.saturating_add(100 << FlowEntry::SEEN_SHIFT);
            prop_assert_eq!(entry.idle_ns(later) >> FlowEntry::SEEN_SHIFT, (later - now) >> FlowEntry::SEEN_SHIFT);
            let closed = entry.touched(later, true);
            prop_assert!(closed.is_closing() && closed.is_half_open() == half);
            prop_assert_eq!(entry.confirmed(later, true), FlowEntry::new(backend, incarnation, hash, later, false).touched(later, true));
            prop_assert!(closed.pending().is_pending() && closed.pending().is_closing());
            prop_assert_eq!((closed.backend(), closed.tag(), closed.idle_ns(later)), (backend, entry.tag(), 0));
            prop_assert!(!closed.touched(later, false).is_closing());
        }

        /// The daemon reads the clock, then the table: what was touched in between is the liveliest of all.
        #[test]
        fn an_entry_touched_after_the_clock_was_read_is_not_idle(now in 0..u64::MAX / 2, ahead in 0..100_000_000_000u64) {
            prop_assert_eq!(FlowEntry::new(1, 0, 0, now + ahead, false).idle_ns(now), 0);
        }
    }
}
