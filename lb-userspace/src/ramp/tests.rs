use super::*;
use proptest::prelude::*;

fn members(weights: &[u16]) -> Vec<Member> {
    let key = |i: usize| maglev::key(std::net::Ipv4Addr::from_bits(0x0a00_000b + i as u32).into(), 0);
    weights
        .iter()
        .enumerate()
        .map(|(i, weight)| Member { key: key(i), weight: *weight, ramp: None })
        .collect()
}

fn ring(members: &[Member]) -> Vec<Option<u32>> {
    owners(7, 1_009, members, &mut maglev::Cache::default()).iter().collect()
}

fn ramp(from: u16, over_ms: u64) -> Ramp {
    Ramp { from: u32::from(from) << 16, began_ms: 5_000, over_ms, cause: Cause::Weight }
}

fn moved(a: &[Option<u32>], b: &[Option<u32>]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

#[test]
fn it_begins_small_and_ends_on_time() {
    let ramp = ramp(0, 60_000);
    assert_eq!(ramp.progress(5_000).map(|p| p.share(100) >> 16), Some(1));
    assert_eq!(ramp.progress(35_000).map(|p| p.share(100) >> 16), Some(50));
    assert!(ramp.progress(64_999).is_some_and(|p| p.share(100) < 100 << 16));
    assert_eq!(ramp.progress(65_000), None);
    assert_eq!(ramp.left(35_000), Duration::from_secs(30));
    assert_eq!(ramp.progress(4_999), None, "the clock was set back");
    assert_eq!(ramp.left(4_999), Duration::ZERO);
}

#[test]
fn without_ramps_it_is_the_ring_of_maglev() {
    let some = members(&[100, 0, 50]);
    let plain: Vec<_> = some.iter().map(|m| maglev::Member::new(m.key, m.weight)).collect();
    assert_eq!(ring(&some)[..], maglev::ring(7, 1_009, &plain)[..]);
    assert!(ring(&[]).iter().all(Option::is_none));
}

/// Recovering is what the others would else do alone; alone, nothing is withheld.
#[test]
fn nobody_waits_for_nobody() {
    let half = Some(Progress { from: 0, done: WHOLE / 2 });
    let just = Some(Progress { from: 0, done: 1 });
    let mut some = members(&[100, 100]);
    some.iter_mut().for_each(|m| m.ramp = half);
    assert_eq!(ring(&some), ring(&members(&[100, 100])), "all at once: their shares are what they will be");
    some[1].ramp = just;
    let owners = ring(&some);
    assert!(owners.iter().all(Option::is_some));
    assert!(owners.iter().filter(|o| **o == Some(1)).count() < 3, "the second has hardly begun");
    // A weight that goes to nothing, of the only one.
    let mut last = members(&[0]);
    last[0].ramp = Some(Progress { from: 100 << 16, done: WHOLE - 1 });
    assert!(ring(&last).contains(&Some(0)));
}

#[test]
fn many_ramps_at_once_are_rounded_and_still_begin_and_end() {
    let mut some = members(&[100; 40]);
    for (i, member) in some.iter_mut().enumerate().skip(1) {
        member.ramp = Some(Progress { from: 0, done: 1 + i as u32 * 1_600 });
    }
    let mut rings = maglev::Cache::default();
    let owners: Vec<_> = owners(7, 8_191, &some, &mut rings).iter().collect();
    let count = |n: u32| owners.iter().filter(|o| **o == Some(n)).count();
    assert!(count(1) > 0 && count(1) < count(39) && count(39) < count(0), "{} {}", count(1), count(39));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Step by step: the share only grows (or only shrinks), every slot that changes hands in the end does so once, no other
    /// does, the end is the ring of the weight, and no step is much larger than its time.
    #[test]
    fn a_ramp_moves_what_the_change_moves_and_each_slot_once(
        others in proptest::collection::vec(1..300u16, 1..12),
        from in 0..300u16,
        to in 0..300u16,
        seconds in 5..600u64,
    ) {
        prop_assume!(from != to);
        let ramp = ramp(from, seconds * 1000);
        let mut some = members(&[&[to], &others[..]].concat());
        let end = ring(&some);
        let start = ring(&members(&[&[from], &others[..]].concat()));
        let mut before = start.clone();
        let (mut total, mut share) = (0, u32::from(from) << 16);
        let mut rings = maglev::Cache::default();
        for second in 0..=seconds {
            some[0].ramp = ramp.progress(5_000 + second * 1000);
            prop_assert_eq!(some[0].ramp.is_none(), second == seconds);
            let now: Vec<_> = owners(7, 1_009, &some, &mut rings).iter().collect();
            let step = moved(&before, &now);
            let due = moved(&start, &end) as f64 / (seconds + 1) as f64;
            prop_assert!((step as f64) < due + 6.0 * due.sqrt() + 6.0, "{} slots at once, {} are due", step, due);
            total += step;
            let next = some[0].ramp.map_or(u32::from(to) << 16, |p| p.share(to));
            let monotone = if to > from { next >= share } else { next <= share };
            prop_assert!(monotone, "{} after {}", next, share);
            (before, share) = (now, next);
        }
        prop_assert_eq!(&before, &end);
        prop_assert_eq!(total, moved(&start, &end));
    }

    /// Also of several: at any moment each slot has an owner, and in the end it is that of the weights.
    #[test]
    fn several_ramps_end_where_they_lead(
        ramps in proptest::collection::vec((0..200u16, 0..200u16, 0..60u64, 1..60u64), 1..6),
    ) {
        prop_assume!(ramps.iter().any(|(_, to, ..)| *to > 0));
        let mut some = members(&ramps.iter().map(|(_, to, ..)| *to).collect::<Vec<_>>());
        let end = ring(&some);
        let mut rings = maglev::Cache::default();
        for second in (0..=120).step_by(3) {
            for (member, (from, _, began, over)) in some.iter_mut().zip(&ramps) {
                let ramp = Ramp { from: u32::from(*from) << 16, began_ms: began * 1000, over_ms: over * 1000, cause: Cause::SlowStart };
                member.ramp = ramp.progress(second * 1000);
            }
            let now: Vec<_> = owners(7, 1_009, &some, &mut rings).iter().collect();
            prop_assert!(now.iter().all(Option::is_some));
            if second == 120 {
                prop_assert_eq!(&now, &end);
            }
        }
    }
}

#[test]
fn when_a_slow_start_begins() {
    let service: ServiceName = "www".parse().unwrap();
    let [a, b, c]: [BackendName; 3] = ["a", "b", "c"].map(|n| n.parse().unwrap());
    let minute = Duration::from_secs(60);
    let mut watch = Watch::default();
    let mut look = |ms: u64, some: &[(&BackendName, bool)]| {
        let names = watch.look(ms, &service, minute, some.iter().map(|(name, takes)| (*name, *takes, false)));
        names.iter().map(ToString::to_string).collect::<Vec<_>>().concat()
    };
    assert_eq!(look(0, &[(&a, true), (&b, false)]), "", "a start is no recovery");
    assert_eq!(look(3_000, &[(&a, true), (&b, true)]), "", "nor is the first word of the checks soon after");
    assert_eq!(look(4_000, &[(&a, true), (&b, false)]), "");
    assert_eq!(look(5_000, &[(&a, true), (&b, true)]), "b", "it recovered");
    assert_eq!(look(6_000, &[(&a, true), (&b, true)]), "", "once");
    assert_eq!(look(7_000, &[(&a, true), (&b, true), (&c, false)]), "", "added, no next hop yet");
    assert_eq!(look(8_000, &[(&a, true), (&b, true), (&c, true)]), "c", "added");
    assert_eq!(look(9_000, &[(&a, true)]), "", "removed");
    assert_eq!(look(9_500, &[(&a, true), (&b, true)]), "b", "and added again");
    // One that was down when the daemon started, and for long.
    let mut watch = Watch::default();
    let none: Vec<BackendName> = Vec::new();
    assert_eq!(watch.look(0, &service, minute, [(&a, false, false)].into_iter()), none);
    assert_eq!(watch.look(61_000, &service, minute, [(&a, true, false)].into_iter()), vec![a.clone()]);
    // Without slow start nothing begins.
    assert_eq!(watch.look(62_000, &service, Duration::ZERO, [(&a, false, false)].into_iter()), none);
    assert_eq!(watch.look(63_000, &service, Duration::ZERO, [(&a, true, false)].into_iter()), none);
    // Known to be down, or disabled, when the daemon starts: it recovers, however soon.
    let mut watch = Watch::default();
    assert_eq!(watch.look(0, &service, minute, [(&a, false, true)].into_iter()), none);
    assert_eq!(watch.look(1_000, &service, minute, [(&a, true, false)].into_iter()), vec![a]);
}
