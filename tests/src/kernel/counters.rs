//! All counters of the balancer as one value.

use lb_common::{
    abi::{FlowEntry, FlowKey4, FlowKey6, HalfOpen, Signal},
    core::DropReason,
};
use std::{collections::BTreeMap, fmt};

/// One counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    Service(u32),
    Backend(u32),
    /// By number, so that one without a reason is noticed.
    Drop(u32),
    FlowsRecorded,
    FlowsRefused,
    /// Of a backend.
    Signal(u32, Signal),
}

impl From<DropReason> for Counter {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason as u32)
    }
}

/// Packets and bytes of every counter that is not zero (drops count packets only).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Counters(BTreeMap<Counter, (u64, u64)>);

impl Counters {
    /// A counter that moved by one packet of so many bytes.
    #[must_use]
    pub fn one(counter: Counter, bytes: u64) -> Self {
        let mut counters = Self::default();
        counters.add_stats(counter, (1, bytes));
        counters
    }

    /// Adds packets and bytes to a counter.
    pub fn add_stats(&mut self, counter: Counter, (packets, bytes): (u64, u64)) {
        if (packets, bytes) != (0, 0) {
            let stats = self.0.entry(counter).or_default();
            stats.0 += packets;
            stats.1 += bytes;
        }
    }

    /// Packets of one counter.
    #[must_use]
    pub fn of(&self, counter: Counter) -> u64 {
        self.0.get(&counter).map_or(0, |stats| stats.0)
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for (counter, stats) in &other.0 {
            self.add_stats(*counter, *stats);
        }
        self
    }

    /// What moved since `before`. No counter goes back.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut moved = Self::default();
        for (counter, (packets, bytes)) in &self.0 {
            let (p, b) = before.0.get(counter).copied().unwrap_or_default();
            assert!(*packets >= p && *bytes >= b, "{counter:?} went back");
            moved.add_stats(*counter, (packets - p, bytes - b));
        }
        for counter in before.0.keys() {
            assert!(self.0.contains_key(counter), "{counter:?} went back to zero");
        }
        moved
    }

    /// Packets of one counter.
    #[must_use]
    pub fn packets(&self, counter: impl Into<Counter>) -> u64 {
        self.0.get(&counter.into()).map_or(0, |stats| stats.0)
    }

    /// The counters and their packets and bytes.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, (u64, u64))> + '_ {
        self.0.iter().map(|(counter, stats)| (*counter, *stats))
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (counter, stats) in &self.0 {
            match counter {
                Counter::Drop(number) => {
                    let name = DropReason::ALL.get(*number as usize).map_or("unknown reason", |r| r.name());
                    map.entry(&name, &stats.0);
                }
                counter => {
                    map.entry(counter, stats);
                }
            }
        }
        map.finish()
    }
}

/// The tracked flows, their entries without the time of the last packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flows {
    pub v4: BTreeMap<FlowKey4, FlowEntry>,
    pub v6: BTreeMap<FlowKey6, FlowEntry>,
    /// Handshakes: the entry and the initial sequence number.
    pub half_open4: BTreeMap<FlowKey4, (FlowEntry, u32)>,
    pub half_open6: BTreeMap<FlowKey6, (FlowEntry, u32)>,
}

impl Flows {
    const TIMELESS: u64 = !(0xffff << 32);

    pub(super) fn add4(&mut self, key: FlowKey4, entry: FlowEntry) {
        self.v4.insert(key, FlowEntry(entry.0 & Self::TIMELESS));
    }

    pub(super) fn add6(&mut self, key: FlowKey6, entry: FlowEntry) {
        self.v6.insert(key, FlowEntry(entry.0 & Self::TIMELESS));
    }

    pub(super) fn add_half_open4(&mut self, key: FlowKey4, half: HalfOpen) {
        self.half_open4.insert(key, (FlowEntry(half.entry & Self::TIMELESS), half.isn));
    }

    pub(super) fn add_half_open6(&mut self, key: FlowKey6, half: HalfOpen) {
        self.half_open6.insert(key, (FlowEntry(half.entry & Self::TIMELESS), half.isn));
    }
}
