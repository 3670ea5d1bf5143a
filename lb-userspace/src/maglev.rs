//! The Maglev ring: consistent hashing with weights. Pure.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4. Every member
//! walks its own permutation of the slots and takes the next free one when it is its turn. Weights are turns: a
//! member of weight w takes its k-th slot at time k/w (stride scheduling), so that each ends up with its share
//! of the slots and a change of one weight disturbs the others' turns little.
//!
//! The ring is a contract between nodes: it depends on the seed, the size and the set of members, not on
//! their order, and golden vectors in the tests hold it in place.

use lb_common::hash::mix;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

/// One member: a key that is the same on every node, and its share; share 0 takes no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    /// Identifies the member: see [`key`].
    pub key: u64,
    /// Relative share of the slots, in 65,536ths of a weight of 1. Whole weights make the very ring that they always made.
    pub share: u32,
}

impl Member {
    /// A member with a whole weight.
    #[must_use]
    pub fn new(key: u64, weight: u16) -> Self {
        Self { key, share: u32::from(weight) << 16 }
    }
}

/// Primes to choose a ring's size from, each about twice the one before (the largest is Maglev's own).
const SIZES: [u32; 7] = [1_009, 2_003, 4_099, 8_191, 16_381, 32_749, 65_537];

/// Size of a new ring for `backends` backends: a prime of about 100 slots for each of twice as many, so
/// that the service can grow; at least 1,009, at most 65,537.
#[must_use]
pub fn default_size(backends: usize) -> u32 {
    let wanted = u32::try_from(backends.max(1).saturating_mul(200)).unwrap_or(u32::MAX);
    SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(lb_common::abi::MAX_RING)
}

/// True for a size a ring may have: a prime, so that every skip walks all slots.
#[must_use]
pub fn is_valid_size(size: u32) -> bool {
    (3..=lb_common::abi::MAX_RING).contains(&size)
        && (2..).take_while(|d| d * d <= size).all(|d| !size.is_multiple_of(d))
}

/// A member's key from its address and port, the same on every node.
#[must_use]
pub fn key(address: std::net::IpAddr, port: u16) -> u64 {
    let bits = match address {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        std::net::IpAddr::V6(v6) => v6.to_bits(),
    };
    mix(mix(bits as u64) ^ ((bits >> 64) as u64)) ^ mix(u64::from(port) + 1)
}

/// The key of a backend in the rings of its service.
#[must_use]
pub fn key_of(backend: &crate::model::BackendSpec) -> u64 {
    key(backend.address, backend.port.unwrap_or(0))
}

/// The owner of each slot, as an index into `members`; `None` for every slot if no member has a weight.
///
/// Members with equal keys share one place: the caller keeps keys distinct.
#[must_use]
pub fn ring(seed: u64, size: u32, members: &[Member]) -> Vec<Option<u32>> {
    owners(seed, size, members).iter().map(|owner| index(*owner)).collect()
}

/// Marks a slot without an owner.
const NOBODY: u16 = u16::MAX;

fn index(owner: u16) -> Option<u32> {
    (owner != NOBODY).then_some(owner.into())
}

fn owners(seed: u64, size: u32, members: &[Member]) -> Box<[u16]> {
    assert!(size >= 2, "a ring has at least two slots");
    assert!(members.len() < usize::from(NOBODY), "{} members of a ring", members.len());
    let mut slots = vec![NOBODY; size as usize].into_boxed_slice();
    let mut order: Vec<u16> =
        (0..members.len() as u16).filter(|i| members[usize::from(*i)].share > 0).collect();
    order.sort_by_key(|i| members[usize::from(*i)].key);
    let mut walks: Vec<Walk> =
        order.iter().map(|i| Walk::new(seed, members[usize::from(*i)].key, size)).collect();
    let share = |place: usize| members[usize::from(order[place])].share;
    let Some(first) = (!order.is_empty()).then(|| share(0)) else { return slots };
    if (1..order.len()).all(|place| share(place) == first) {
        // Turn by turn, each round in the order of the keys.
        for place in (0..order.len()).cycle().take(size as usize) {
            walks[place].take(&mut slots, order[place]);
        }
        return slots;
    }
    // Turns, the earliest first; ties in the order of the keys.
    let mut turns: BinaryHeap<Reverse<(u64, usize)>> =
        (0..order.len()).map(|place| Reverse((turn(0, share(place)), place))).collect();
    for _ in 0..size {
        let Some(mut next) = turns.peek_mut() else { break };
        let Reverse((at, place)) = &mut *next;
        walks[*place].take(&mut slots, order[*place]);
        walks[*place].turns += 1;
        *at = turn(walks[*place].turns, share(*place));
    }
    slots
}

/// A ring as [`ring`] gives it, shared.
#[derive(Debug, Clone)]
pub struct SharedRing(Arc<[u16]>);

impl SharedRing {
    /// The ring of a service that nobody takes new flows of.
    #[must_use]
    pub fn nobody(size: u32) -> Self {
        std::iter::repeat_n(None, size as usize).collect()
    }

    /// The owner of a slot.
    #[must_use]
    pub fn owner(&self, slot: u32) -> Option<u32> {
        index(self.0[slot as usize])
    }

    /// The owner of each slot.
    pub fn iter(&self) -> impl Iterator<Item = Option<u32>> {
        self.0.iter().map(|owner| index(*owner))
    }
}

impl FromIterator<Option<u32>> for SharedRing {
    fn from_iter<T: IntoIterator<Item = Option<u32>>>(owners: T) -> Self {
        let word = |owner: Option<u32>| owner.map_or(NOBODY, |member| member as u16);
        Self(owners.into_iter().map(word).collect())
    }
}

/// Rings computed before: of the few services that change again and again, and go back and forth between two states.
#[derive(Debug, Default)]
pub struct Cache {
    rings: HashMap<u64, (Inputs, SharedRing)>,
    /// Slots of all of them.
    slots: usize,
    ahead: Ahead,
}

/// Rings of many services that will probably be wanted, made before it is known for certain. Shared.
#[derive(Debug, Clone, Default)]
pub struct Ahead(Arc<HashMap<u64, (Inputs, SharedRing)>>);

impl Ahead {
    /// The rings of these services: seed, size, members.
    pub fn make(services: impl IntoIterator<Item = (u64, u32, Vec<Member>)>) -> Self {
        let ring = |(seed, size, members)| {
            let inputs = Inputs { seed, size, members };
            let made = inputs.make();
            (inputs.hash(), (inputs, made))
        };
        Self(Arc::new(services.into_iter().map(ring).collect()))
    }
}

/// Slots a cache holds at most, of two bytes each. The rings of thousands of services are made anew within half a second,
/// and would take more memory than all the rest.
const CACHED_SLOTS: usize = 1 << 20;

/// What a ring depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Inputs {
    seed: u64,
    size: u32,
    members: Vec<Member>,
}

impl Inputs {
    fn hash(&self) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(self)
    }

    fn make(&self) -> SharedRing {
        SharedRing(owners(self.seed, self.size, &self.members).into())
    }
}

impl Cache {
    /// With rings that were made ahead, until [`Cache::forget_ahead`].
    #[must_use]
    pub fn with(ahead: Ahead) -> Self {
        Self { ahead, ..Self::default() }
    }

    /// An empty one for another thread, with the same rings made ahead.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self::with(self.ahead.clone())
    }

    /// Those that were not wanted yet were made for nothing, and would take much memory.
    pub fn forget_ahead(&mut self) {
        self.ahead = Ahead::default();
    }

    /// As [`ring`], from memory where these very members had this ring before.
    pub fn ring(&mut self, seed: u64, size: u32, members: Vec<Member>) -> SharedRing {
        let inputs = Inputs { seed, size, members };
        let hash = inputs.hash();
        if let Some((_, slots)) = self.ahead.0.get(&hash).filter(|(known, _)| *known == inputs) {
            return slots.clone();
        }
        match self.rings.get(&hash) {
            Some((known, slots)) if *known == inputs => slots.clone(),
            _ => {
                let slots = inputs.make();
                if self.slots + size as usize > CACHED_SLOTS {
                    self.rings.clear();
                    self.slots = 0;
                }
                self.slots += size as usize;
                self.rings.insert(hash, (inputs, slots.clone()));
                slots
            }
        }
    }
}

/// Time of turn number `done` (from 0) of a member, in units of 2^-24 of a round of weight 1. At most 65,537 turns
/// shifted by 40 fit.
fn turn(done: u64, share: u32) -> u64 {
    ((done + 1) << 40) / u64::from(share)
}

/// A member's walk through its permutation.
struct Walk {
    at: u32,
    skip: u32,
    /// Slots taken so far.
    turns: u64,
}

impl Walk {
    fn new(seed: u64, key: u64, size: u32) -> Self {
        let first = mix(seed ^ key);
        let second = mix(first ^ 0x6c62_6421);
        let size = u64::from(size);
        Self { at: (first % size) as u32, skip: (second % (size - 1) + 1) as u32, turns: 0 }
    }

    /// Takes the next free slot; there is one.
    fn take(&mut self, slots: &mut [u16], member: u16) {
        let size = slots.len() as u32;
        loop {
            let slot = &mut slots[self.at as usize];
            // Both are less than the size, which is at most 2^17.
            let next = self.at + self.skip;
            self.at = if next >= size { next - size } else { next };
            if *slot == NOBODY {
                *slot = member;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(n: u32, weight: impl Fn(u32) -> u16) -> Vec<Member> {
        (0..n)
            .map(|i| Member::new(key(std::net::Ipv4Addr::from_bits(0x0a00_000b + i).into(), 0), weight(i)))
            .collect()
    }

    fn counts(ring: &[Option<u32>], n: usize) -> Vec<usize> {
        let mut counts = vec![0; n];
        for slot in ring {
            counts[slot.expect("a full ring") as usize] += 1;
        }
        counts
    }

    #[test]
    fn golden_vectors() {
        let three = ring(7, 13, &members(3, |_| 1));
        assert_eq!(three.iter().map(|s| s.unwrap()).collect::<Vec<_>>(), GOLDEN_EQUAL);
        let weighted = ring(7, 13, &members(3, |i| [3, 1, 1][i as usize]));
        assert_eq!(weighted.iter().map(|s| s.unwrap()).collect::<Vec<_>>(), GOLDEN_WEIGHTED);
        let large = ring(0x6c_6264, 65_537, &members(100, |i| 50 + i as u16));
        let digest = large.iter().fold(0u64, |hash, slot| mix(hash ^ u64::from(slot.unwrap())));
        assert_eq!(digest, GOLDEN_LARGE, "{digest:#x}");
    }

    #[test]
    fn rings_made_ahead_are_the_rings() {
        let (wanted, other) = (members(5, |i| 1 + i as u16), members(5, |_| 1));
        let ahead = Ahead::make([(7, 1_009, wanted.clone())]);
        let mut cache = Cache::with(ahead);
        let made = |members: &[Member]| ring(7, 1_009, members);
        for members in [&wanted, &other] {
            assert_eq!(cache.ring(7, 1_009, members.clone()).iter().collect::<Vec<_>>(), made(members));
        }
        assert_eq!(cache.slots, 1_009, "what was made ahead is not made again");
        assert_eq!(cache.beside().ring(7, 1_009, wanted.clone()).iter().collect::<Vec<_>>(), made(&wanted));
        cache.forget_ahead();
        cache.ring(7, 1_009, wanted);
        assert_eq!(cache.slots, 2 * 1_009, "it is forgotten");
    }

    const GOLDEN_EQUAL: [u32; 13] = [2, 2, 0, 2, 1, 1, 0, 0, 0, 1, 2, 2, 1];
    const GOLDEN_WEIGHTED: [u32; 13] = [2, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 2, 0];
    const GOLDEN_LARGE: u64 = 0x4dd6_705b_0ff5_fc8e;

    #[test]
    fn equal_members_differ_by_at_most_a_few_slots() {
        let counts = counts(&ring(1, 65_537, &members(200, |_| 100)), 200);
        let (min, max) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
        assert!(max - min <= 1, "{min} to {max}");
    }

    #[test]
    fn removing_one_of_ten_moves_less_than_one_percent_of_the_rest() {
        for seed in 0..5 {
            let all = members(10, |_| 100);
            let before = ring(seed, 65_537, &all);
            for removed in 0..10u32 {
                let mut left = all.clone();
                left[removed as usize].share = 0;
                let after = ring(seed, 65_537, &left);
                let moved = before.iter().zip(&after).filter(|(b, a)| **b != Some(removed) && b != a).count();
                let rest = before.iter().filter(|b| **b != Some(removed)).count();
                assert!(moved * 100 < rest, "seed {seed}: {moved} of {rest} moved without need");
            }
        }
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            assert!(is_valid_size(size), "{size}");
        }
        assert_eq!(default_size(0), 1_009);
        assert_eq!(default_size(3), 1_009);
        assert_eq!(default_size(100), 32_749);
        assert_eq!(default_size(4_096), 65_537);
        assert!(!is_valid_size(1) && !is_valid_size(65_536) && !is_valid_size(65_539));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_member_gets_its_share(seed: u64, weights in proptest::collection::vec(0..1000u16, 1..40)) {
            let size = 16_381;
            let ring = ring(seed, size, &members(weights.len() as u32, |i| weights[i as usize]));
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            if total == 0 {
                prop_assert!(ring.iter().all(Option::is_none));
                return Ok(());
            }
            for (weight, count) in weights.iter().zip(counts(&ring, weights.len())) {
                let share = f64::from(size) * f64::from(*weight) / total as f64;
                // Stride scheduling lags by at most a turn for every other member (Waldspurger 1995, section 3).
                let lag = 1.0 + weights.len() as f64 / 4.0;
                prop_assert!((count as f64 - share).abs() <= lag, "weight {} of {}: {} slots, share {}", weight, total, count, share);
            }
        }

        #[test]
        fn the_order_of_members_does_not_matter(seed: u64, n in 2..30u32, by in 1..29usize) {
            let ordered = members(n, |i| 10 + i as u16);
            let mut turned = ordered.clone();
            turned.rotate_left(by % n as usize);
            let a: Vec<_> = ring(seed, 1_009, &ordered).iter().map(|s| ordered[s.unwrap() as usize].key).collect();
            let b: Vec<_> = ring(seed, 1_009, &turned).iter().map(|s| turned[s.unwrap() as usize].key).collect();
            prop_assert_eq!(a, b);
        }
    }
}
