//! The marks in front of the deny list's tries. What they mean is said in `lb_common::core::guard`.

use crate::model::{Prefixes, Verdict, of_family};
use ipnet::IpNet;
use lb_common::{
    abi::{MARKS4_CAPACITY, MARKS6_CAPACITY},
    core::guard::{
        MARK_ASK, MARK_CLEAN, MARK_DENIED, MARK_EXCEPTION, MARKS_PER_WORD, REGION_LEN, mark6_long,
        mark6_middle,
    },
};

/// The words of `MARKS4`.
#[must_use]
pub fn marks4(prefixes: &Prefixes) -> Vec<u64> {
    let mut words = vec![0; MARKS4_CAPACITY as usize];
    let mut nets: Vec<_> = of_family(prefixes, false)
        .filter_map(|(net, verdict)| match net {
            IpNet::V4(net) => Some((net.prefix_len(), net.network().to_bits() >> 8, verdict)),
            IpNet::V6(_) => None,
        })
        .collect();
    // The longer ones over the shorter ones; those within a /24 after all that hold one.
    nets.sort_by_key(|(len, ..)| *len);
    for (len, block, verdict) in nets {
        let covering = match verdict {
            Verdict::Deny => MARK_DENIED,
            Verdict::Allow => MARK_EXCEPTION,
        };
        if len <= 24 {
            fill(&mut words, block, 1 << (24 - len), covering);
            continue;
        }
        // One that says what the whole block is anyway changes nothing.
        let agrees = matches!(
            (get(&words, block), verdict),
            (MARK_DENIED, Verdict::Deny) | (MARK_CLEAN | MARK_EXCEPTION, Verdict::Allow)
        );
        if !agrees {
            fill(&mut words, block, 1, MARK_ASK);
        }
    }
    words
}

fn get(words: &[u64], block: u32) -> u64 {
    words[(block / MARKS_PER_WORD) as usize] >> (block % MARKS_PER_WORD * 2) & 3
}

/// Marks `count` blocks, an aligned power of two.
fn fill(words: &mut [u64], block: u32, count: u32, mark: u64) {
    let (word, bit) = ((block / MARKS_PER_WORD) as usize, block % MARKS_PER_WORD * 2);
    let pattern = mark * 0x5555_5555_5555_5555;
    if count >= MARKS_PER_WORD {
        words[word..word + (count / MARKS_PER_WORD) as usize].fill(pattern);
    } else {
        let mask = ((1u64 << (count * 2)) - 1) << bit;
        words[word] = words[word] & !mask | pattern & mask;
    }
}

/// The words of `REGIONS4` in front of these of `MARKS4`.
#[must_use]
pub fn regions4(marks4: &[u64]) -> Vec<u64> {
    /// Bits that the marks of a region take: half a word.
    const BITS: u32 = 2 << (24 - REGION_LEN);
    const WORDS: usize = 64 * BITS as usize / 64;
    let region_words = marks4.chunks_exact(WORDS).map(|marks| {
        let regions =
            marks.iter().flat_map(|word| (0..64).step_by(BITS as usize).map(move |bit| word >> bit));
        let denied = regions.map(|marks| {
            // Of the two bits of "clean" and of "exception", both are the same.
            (marks ^ marks >> 1) & 0x5555_5555_5555_5555 & ((1 << BITS) - 1) != 0
        });
        denied.enumerate().fold(0, |word, (bit, denied)| word | u64::from(denied) << bit)
    });
    region_words.collect()
}

/// The words of `MARKS6`, and whether there are denied prefixes too short for them.
#[must_use]
pub fn marks6(prefixes: &Prefixes) -> (Vec<u64>, bool) {
    let (mut words, mut short) = (vec![0u64; MARKS6_CAPACITY as usize], false);
    // Exceptions need no mark: they lie inside of what has one.
    for (net, _) in of_family(prefixes, true).filter(|(_, verdict)| *verdict == Verdict::Deny) {
        let IpNet::V6(net) = net else { continue };
        let hi = (net.network().to_bits() >> 64) as u64;
        let bit = match net.prefix_len() {
            48.. => mark6_long(hi),
            32..=47 => mark6_middle(hi),
            _ => {
                short = true;
                continue;
            }
        };
        words[(bit / 64) as usize] |= 1 << (bit % 64);
    }
    (words, short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{
        abi::{Arrivals, Limits, SourceKey},
        core::guard::{Arrival, Guard, denied4, denied6},
    };
    use proptest::prelude::*;
    use std::{
        cell::Cell,
        net::{IpAddr, Ipv4Addr, Ipv6Addr},
        sync::atomic::AtomicU64,
    };

    /// The maps: marks by this module, tries by the plainest search there is.
    struct Maps<'a> {
        prefixes: &'a Prefixes,
        regions4: Vec<u64>,
        marks4: Vec<u64>,
        marks6: (Vec<u64>, bool),
        /// The marks of /24s were.
        looked: Cell<bool>,
        /// The trie was.
        asked: Cell<bool>,
    }

    impl<'a> Maps<'a> {
        fn new(prefixes: &'a Prefixes) -> Self {
            let (marks4, marks6) = (marks4(prefixes), marks6(prefixes));
            let regions4 = regions4(&marks4);
            Self { prefixes, regions4, marks4, marks6, looked: Cell::new(false), asked: Cell::new(false) }
        }

        fn denies(&self, address: IpAddr) -> bool {
            self.looked.set(false);
            self.asked.set(false);
            match address {
                IpAddr::V4(v4) => denied4(self, v4.to_bits()),
                IpAddr::V6(v6) => denied6(self, (v6.to_bits() >> 64) as u64, v6.to_bits() as u64),
            }
        }
    }

    fn longest(prefixes: &Prefixes, address: IpAddr) -> Option<Verdict> {
        let holding = prefixes.iter().filter(|(net, _)| net.contains(&address));
        holding.max_by_key(|(net, _)| net.prefix_len()).map(|(_, verdict)| *verdict)
    }

    impl Guard for Maps<'_> {
        fn regions4(&self, word: u32) -> u64 {
            self.regions4[word as usize]
        }
        fn marks4(&self, word: u32) -> u64 {
            self.looked.set(true);
            self.marks4[word as usize]
        }
        fn marks6(&self, word: u32) -> u64 {
            self.marks6.0[word as usize]
        }
        fn short_prefixes6(&self) -> bool {
            self.marks6.1
        }
        fn verdict4(&self, address: u32) -> u32 {
            self.asked.set(true);
            longest(self.prefixes, Ipv4Addr::from(address).into()).map_or(0, Verdict::number)
        }
        fn verdict6(&self, hi: u64, lo: u64) -> u32 {
            self.asked.set(true);
            let address = Ipv6Addr::from(u128::from(hi) << 64 | u128::from(lo));
            longest(self.prefixes, address.into()).map_or(0, Verdict::number)
        }
        fn allowed4(&self, _: u32, _: u32) -> bool {
            true
        }
        fn allowed6(&self, _: u32, _: u64, _: u64) -> bool {
            true
        }
        fn limits(&self, _: u32) -> Option<&Limits> {
            None
        }
        fn service_arrivals(&self, _: u32) -> Option<[impl Arrival; 2]> {
            None::<[&AtomicU64; 2]>
        }
        fn source_arrivals(&self, _: &SourceKey, _: Arrivals) -> Option<[impl Arrival; 2]> {
            None::<[&AtomicU64; 2]>
        }
        fn time_ns(&self) -> u64 {
            0
        }
    }

    /// Prefixes of few bits that differ, so that they lie in one another.
    fn prefixes() -> impl Strategy<Value = Prefixes> {
        let bits = prop_oneof![0..4u32, any::<u32>()];
        let v4 = (bits, 0..=32u8).prop_map(|(bits, len)| {
            let address = Ipv4Addr::from(0x0a00_0000 ^ (bits & 3) << 30 ^ (bits >> 2 & 0xfff));
            IpNet::new(address.into(), len).unwrap().trunc()
        });
        let v6 = (any::<u16>(), 0..=128u8).prop_map(|(bits, len)| {
            let bits = u128::from(bits);
            let address = 0x2001_0db8 << 96
                ^ (bits & 3) << 94
                ^ (bits >> 2 & 3) << 80
                ^ (bits >> 4 & 3) << 63
                ^ bits >> 6;
            IpNet::new(Ipv6Addr::from(address).into(), len).unwrap().trunc()
        });
        let verdict = prop_oneof![Just(Verdict::Deny), Just(Verdict::Deny), Just(Verdict::Allow)];
        proptest::collection::btree_map(prop_oneof![v4, v6], verdict, 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Marks and tries together say what the longest prefix says: for addresses at and just beyond both ends of
        /// every prefix, and for any others.
        #[test]
        fn the_longest_prefix_decides(
            prefixes in prefixes(), probes in proptest::collection::vec(any::<IpAddr>(), 50),
        ) {
            let maps = Maps::new(&prefixes);
            let edges = prefixes.keys().flat_map(|net| {
                let (first, last) = (net.network(), net.broadcast());
                let step = |address: IpAddr, by: i32| match address {
                    IpAddr::V4(v4) => IpAddr::from(Ipv4Addr::from(v4.to_bits().wrapping_add_signed(by))),
                    IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from(v6.to_bits().wrapping_add_signed(by.into()))),
                };
                [first, last, step(first, -1), step(last, 1)]
            });
            for address in edges.chain(probes) {
                let expected = longest(&prefixes, address) == Some(Verdict::Deny);
                prop_assert_eq!(maps.denies(address), expected, "{}", address);
            }
        }
    }

    #[test]
    fn marks_are_looked_at_only_where_something_is_denied() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let prefixes = Prefixes::from([
            (net("203.0.96.0/19"), Verdict::Deny),
            (net("203.0.112.0/20"), Verdict::Allow),
            (net("198.51.111.255/32"), Verdict::Deny),
            (net("192.0.2.0/24"), Verdict::Allow),
        ]);
        let maps = Maps::new(&prefixes);
        let probe = |text: &str| (maps.denies(text.parse().unwrap()), maps.looked.get());
        assert_eq!(probe("203.0.111.1"), (true, true));
        assert_eq!(probe("203.0.112.1"), (false, false), "all of the /20 is an exception");
        assert_eq!(probe("198.51.96.0"), (false, true), "what is denied is at the other end of its /20");
        assert_eq!(probe("198.51.95.255"), (false, false));
        assert_eq!(probe("198.51.112.0"), (false, false));
        assert_eq!(probe("192.0.2.1"), (false, false));
        let denying = maps.regions4.iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!(denying, 2, "a bit for half of the /19, one for the single address");
    }

    #[test]
    fn the_trie_is_asked_only_where_it_must_be() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let prefixes = Prefixes::from([
            (net("203.0.112.0/20"), Verdict::Deny),
            (net("203.0.113.0/24"), Verdict::Allow),
            (net("198.51.100.9/32"), Verdict::Deny),
            (net("203.0.114.128/25"), Verdict::Deny),
            (net("2001:db8:bad::/48"), Verdict::Deny),
        ]);
        let maps = Maps::new(&prefixes);
        let probe = |text: &str| (maps.denies(text.parse().unwrap()), maps.asked.get());
        assert_eq!(probe("203.0.112.1"), (true, false));
        assert_eq!(probe("203.0.113.1"), (false, false));
        assert_eq!(probe("203.0.114.200"), (true, false), "denied by the shorter prefix as well");
        assert_eq!(probe("198.51.100.9"), (true, true));
        assert_eq!(probe("198.51.100.8"), (false, true));
        assert_eq!(probe("192.0.2.1"), (false, false));
        assert_eq!(probe("2001:db8:bad::1"), (true, true));
        assert_eq!(probe("2001:db8:bae::1"), (false, false));
    }
}
