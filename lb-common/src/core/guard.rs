//! The first line of defence: who may send at all, who may use a service, and how much.
//!
//! Denied prefixes are in a trie (longest prefix wins, exceptions are entries too). A trie of 100,000 prefixes costs
//! several cache misses, so marks stand in front of it: IPv4 has two bits for each /24, which answer by themselves
//! unless something longer than /24 lies in it; IPv6 has a hashed bitmap, which answers "surely not". The marks of IPv4
//! are more than a second-level cache holds, so one bit for each /20, of which there are few enough, comes before them.

use super::{
    DropReason,
    affinity::{Place, Step},
};
use crate::{
    abi::{
        Arrivals, DENY, Limits, MARKS4_CAPACITY, MARKS6_CAPACITY, REGIONS4_CAPACITY, Rate, ServiceEntry,
        SourceKey,
    },
    hash,
    packet::Packet,
    wire::{ipv4, ipv6},
};

/// What `MARKS4` says of a /24: nothing in it is denied.
pub const MARK_CLEAN: u64 = 0;
/// All of it is denied.
pub const MARK_DENIED: u64 = 1;
/// `DENY4` knows.
pub const MARK_ASK: u64 = 2;
/// All of it is an exception inside a denied prefix: as good as clean, told apart for who looks at the map.
pub const MARK_EXCEPTION: u64 = 3;

/// Marks of one word of `MARKS4`.
pub const MARKS_PER_WORD: u32 = 32;

const _: () = assert!(MARKS4_CAPACITY * MARKS_PER_WORD == 1 << 24);

/// Length of the prefixes that have a bit in `REGIONS4`, set if anything in them is denied.
pub const REGION_LEN: u32 = 20;
const _: () = assert!(REGIONS4_CAPACITY * 64 == 1 << REGION_LEN);

/// Bits of a bit's number in `MARKS6`.
const MARK6_BITS: u32 = (MARKS6_CAPACITY * 64).ilog2();
const _: () = assert!(MARKS6_CAPACITY * 64 == 1 << MARK6_BITS);

/// The bit of `MARKS6` for denied prefixes of /48 and longer; `hi` is the upper half of the address, read big endian.
#[inline(always)]
pub const fn mark6_long(hi: u64) -> u32 {
    (hash::mix(1 << 48 | hi >> 16) >> (64 - MARK6_BITS)) as u32
}

/// The same for denied prefixes of /32 to /47. Shorter ones have no mark: see `Control::SHORT_PREFIXES6`.
#[inline(always)]
pub const fn mark6_middle(hi: u64) -> u32 {
    (hash::mix(2 << 48 | hi >> 32) >> (64 - MARK6_BITS)) as u32
}

/// What the firewall looks things up in. Addresses are numbers, read big endian; IPv6 ones in two halves.
pub trait Guard {
    /// A word of `REGIONS4`.
    fn regions4(&self, word: u32) -> u64;
    /// A word of `MARKS4`.
    fn marks4(&self, word: u32) -> u64;
    /// A word of `MARKS6`.
    fn marks6(&self, word: u32) -> u64;
    /// There are denied prefixes shorter than /32: the marks cannot answer.
    fn short_prefixes6(&self) -> bool;
    /// The verdict of the longest prefix in `DENY4`; 0 = there is none.
    fn verdict4(&self, address: u32) -> u32;
    /// The same of `DENY6`.
    fn verdict6(&self, hi: u64, lo: u64) -> u32;
    /// Is the source on the service's allow list?
    fn allowed4(&self, service: u32, address: u32) -> bool;
    /// The same for IPv6.
    fn allowed6(&self, service: u32, hi: u64, lo: u64) -> bool;
    /// The limits of a service.
    fn limits(&self, service: u32) -> Option<&Limits>;
    /// Theoretical arrival times of a service: of packets, of connections.
    fn service_arrivals(&self, service: u32) -> Option<[impl Arrival; 2]>;
    /// Theoretical arrival times of a source. One that is not there yet gets `first`, and the answer is `None`.
    fn source_arrivals(&self, key: &SourceKey, first: Arrivals) -> Option<[impl Arrival; 2]>;
    /// Nanoseconds of the monotonic clock.
    fn time_ns(&self) -> u64;
}

/// A theoretical arrival time, which all CPUs change.
pub trait Arrival {
    /// The time, read at once.
    fn load(&self) -> u64;
    /// Stores `new` if the time is still `seen`, at once; else what it is now.
    fn replace(&self, seen: u64, new: u64) -> Result<(), u64>;
}

/// BPF has the instruction, but Rust's `core` offers it for no target of that name.
#[cfg(target_has_atomic = "64")]
impl Arrival for &core::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        (**self).load(core::sync::atomic::Ordering::Relaxed)
    }

    fn replace(&self, seen: u64, new: u64) -> Result<(), u64> {
        use core::sync::atomic::Ordering::Relaxed;
        self.compare_exchange(seen, new, Relaxed, Relaxed).map(|_| ())
    }
}

/// Is an IPv4 source denied?
#[inline(always)]
pub fn denied4<G: Guard>(guard: &G, source: u32) -> bool {
    let region = source >> (32 - REGION_LEN);
    if guard.regions4(region / 64) >> (region % 64) & 1 == 0 {
        return false;
    }
    let block = source >> 8;
    let marks = guard.marks4(block / MARKS_PER_WORD);
    match marks >> (block % MARKS_PER_WORD * 2) & 3 {
        MARK_DENIED => true,
        MARK_ASK => guard.verdict4(source) == DENY,
        _ => false,
    }
}

/// Is an IPv6 source denied?
#[inline(always)]
pub fn denied6<G: Guard>(guard: &G, hi: u64, lo: u64) -> bool {
    let marked = |bit: u32| guard.marks6(bit / 64) >> (bit % 64) & 1 != 0;
    (marked(mark6_long(hi)) || marked(mark6_middle(hi)) || guard.short_prefixes6())
        && guard.verdict6(hi, lo) == DENY
}

/// Whether a packet may use a service, in one number that passes between kernel functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission(pub u64);

impl Admission {
    /// It may.
    pub const GRANTED: Self = Self(0);
    const NOT_ALLOWED: Self = Self(1);
    const SOURCE_LIMIT: Self = Self(2);
    const SERVICE_LIMIT: Self = Self(3);

    /// Why not, if so.
    #[inline(always)]
    #[must_use]
    pub const fn refusal(self) -> Option<DropReason> {
        match self.0 {
            0 => None,
            1 => Some(DropReason::NotAllowed),
            2 => Some(DropReason::SourceLimit),
            _ => Some(DropReason::ServiceLimit),
        }
    }
}

/// Asks the allow list and the limits of a service whose `flags` say that it has some. A source that is over its own
/// limit takes nothing from the service's.
#[inline(always)]
pub fn admit<P: Packet, G: Guard>(
    packet: &P,
    guard: &G,
    place: Place,
    service: u32,
    flags: u32,
    step: Step,
) -> Admission {
    let at = place.l3();
    let (allowed, key) = if place.is_v6() {
        let Some(ip) = packet.view::<{ ipv6::LEN }>(at) else { return Admission::NOT_ALLOWED };
        let (hi, lo) = (ip.u64::<{ ipv6::SRC }>(), ip.u64::<{ ipv6::SRC + 8 }>());
        // Whoever has one address of a /64 has all of them.
        let address = halves(hi, 0);
        (
            flags & ServiceEntry::ALLOW_LIST == 0 || guard.allowed6(service, hi, lo),
            SourceKey { address, service, pad: 0 },
        )
    } else {
        let Some(ip) = packet.view::<{ ipv4::LEN }>(at) else { return Admission::NOT_ALLOWED };
        let source = ip.u32::<{ ipv4::SRC }>();
        let address = halves(0, 0xffff << 32 | source as u64);
        (
            flags & ServiceEntry::ALLOW_LIST == 0 || guard.allowed4(service, source),
            SourceKey { address, service, pad: 0 },
        )
    };
    if !allowed {
        return Admission::NOT_ALLOWED;
    }
    if flags & ServiceEntry::LIMITED == 0 {
        return Admission::GRANTED;
    }
    let Some(limits) = guard.limits(service) else { return Admission::GRANTED };
    let (now, begins) = (guard.time_ns(), matches!(step, Step::Begin));
    if limits.source_packets.interval_ns | limits.source_connections.interval_ns != 0 {
        let first = Arrivals {
            packets: now.wrapping_add(limits.source_packets.interval_ns),
            connections: if begins { now.wrapping_add(limits.source_connections.interval_ns) } else { 0 },
        };
        if let Some(arrivals) = guard.source_arrivals(&key, first)
            && !(take(&arrivals[0], limits.source_packets, now)
                && (!begins || take(&arrivals[1], limits.source_connections, now)))
        {
            return Admission::SOURCE_LIMIT;
        }
    }
    if limits.packets.interval_ns | limits.connections.interval_ns != 0
        && let Some(arrivals) = guard.service_arrivals(service)
        && !(take(&arrivals[0], limits.packets, now)
            && (!begins || take(&arrivals[1], limits.connections, now)))
    {
        return Admission::SERVICE_LIMIT;
    }
    Admission::GRANTED
}

/// The bytes of an address in two halves.
#[inline(always)]
fn halves(hi: u64, lo: u64) -> [u8; 16] {
    (u128::from(hi) << 64 | u128::from(lo)).to_be_bytes()
}

/// Takes one token by the generic cell rate algorithm (ITU-T I.371, virtual scheduling): `arrival` is the theoretical
/// time of the next packet of one who sends exactly at the rate.
#[inline(always)]
pub fn take(arrival: &impl Arrival, rate: Rate, now: u64) -> bool {
    /// More CPUs at once on one bucket than lose this often are rarer than a clock's error.
    const ATTEMPTS: u32 = 3;
    if rate.interval_ns == 0 {
        return true;
    }
    let latest = now.wrapping_add(rate.burst_ns);
    let mut seen = arrival.load();
    for _ in 0..ATTEMPTS {
        let due = (if seen > now { seen } else { now }).wrapping_add(rate.interval_ns);
        if due > latest {
            if seen > latest {
                // The limit was lower a moment ago: its debts are not carried into the new one.
                let _ = arrival.replace(seen, latest);
            }
            return false;
        }
        match arrival.replace(seen, due) {
            Ok(()) => return true,
            Err(other) => seen = other,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;
    use proptest::prelude::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        let interval_ns = 1_000_000_000 / per_second;
        Rate { interval_ns, burst_ns: burst * interval_ns }
    }

    proptest! {
        /// Whatever the arrivals, no window gets more than its share and one burst; and who keeps to the rate is
        /// never refused.
        #[test]
        fn a_limit_is_a_limit(
            steps in proptest::collection::vec(0..20_000_000u64, 1..500), per_second in 1..100_000u64, burst in 1..300u64,
        ) {
            let rate = rate(per_second, burst);
            let arrival = AtomicU64::new(0);
            let (start, mut now, mut taken) = (5_000_000_000u64, 5_000_000_000u64, 0u64);
            for step in &steps {
                now += step;
                taken += u64::from(take(&&arrival, rate, now));
            }
            prop_assert!(taken <= burst + (now - start) / rate.interval_ns + 1);
            prop_assert!(taken >= burst.min(steps.len() as u64));
            // Rested for as long as the burst is worth, it is as new; then one packet an interval passes for ever.
            now += rate.burst_ns;
            for _ in 0..100 {
                now += rate.interval_ns;
                prop_assert!(take(&&arrival, rate, now));
            }
        }
    }

    #[test]
    fn a_limit_that_is_raised_counts_at_once() {
        let arrival = AtomicU64::new(0);
        let slow = rate(1, 100);
        assert_eq!((0..200).filter(|_| take(&&arrival, slow, 1)).count(), 100);
        let fast = rate(1_000, 10);
        assert!(!take(&&arrival, fast, 2), "its bucket is empty");
        assert!(
            take(&&arrival, fast, 2 + fast.burst_ns),
            "and full after its own burst's time, not after 100 s"
        );
        assert!(take(&&arrival, Rate::default(), 3), "no limit");
    }

    #[test]
    fn marks_of_ipv6_are_spread() {
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..10_000u64 {
            let hi = 0x2001_0db8_0000_0000 + (i << 16);
            assert!(mark6_long(hi) < 1 << MARK6_BITS && mark6_middle(hi) < 1 << MARK6_BITS);
            seen.insert(mark6_long(hi));
        }
        assert!(seen.len() > 9_900, "{} of 10,000 /48s have a mark of their own", seen.len());
        assert_ne!(mark6_middle(0), mark6_long(0));
    }
}
