use super::*;
use proptest::prelude::*;

fn name(n: usize) -> BackendName {
    format!("web{n}").parse().unwrap()
}

fn spec() -> PassiveSpec {
    PassiveSpec::default()
}

fn repeats(n: usize, failed: u32, of: u32) -> Observed {
    let seen = Signals { syns: of, watched: of, repeats: failed, ..Signals::default() };
    Observed { backend: name(n), usable: true, seen }
}

fn ejected(detector: &Detector, backends: usize) -> Vec<usize> {
    (0..backends).filter(|n| detector.ejection(&name(*n)).is_some()).collect()
}

/// So many of `of`, each with this chance in thousandths.
fn drawn(rng: &mut impl Iterator<Item = u64>, of: u32, thousandths: u64) -> u32 {
    (0..of).filter(|_| rng.next().is_some_and(|bits| bits % 1000 < thousandths)).count() as u32
}

/// SplitMix64: every window of a case is different, and every run the same.
fn random(seed: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |i: u64| lb_common::hash::mix(seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

#[test]
fn the_bound_is_wilsons() {
    for (failed, of, expected) in [
        (0, 10, 0.0),
        (7, 10, 0.275),
        (8, 10, 0.348),
        (10, 10, 0.526),
        (20, 20, 0.690),
        (6, 20, 0.099),
        (500, 1000, 0.453),
    ] {
        assert!((lower_bound(failed, of) - expected).abs() < 0.001, "{}", lower_bound(failed, of));
    }
    let shares = |list: &[f64]| Shares([list.to_vec(), Vec::new(), Vec::new()]);
    for (list, own, expected) in [
        (&[][..], None, None),
        (&[0.1], None, Some(0.1)),
        (&[0.1], Some(0.1), None),
        (&[0.0, 1.0], None, Some(0.5)),
        (&[0.0, 1.0], Some(1.0), Some(0.0)),
        (&[0.0, 1.0], Some(0.0), Some(1.0)),
        (&[0.0, 0.25, 1.0], None, Some(0.25)),
        (&[0.0, 0.25, 1.0], Some(0.25), Some(0.5)),
        (&[0.0, 0.0, 0.0, 1.0], Some(0.0), Some(0.0)),
    ] {
        assert_eq!(shares(list).median_of_others(Sign::Repeats, own), expected, "{list:?} without {own:?}");
    }
}

#[test]
fn so_many_may_go() {
    let spec = |max_ejected| PassiveSpec { max_ejected, ..spec() };
    for (percent, usable, expected) in [
        (10, 0, 0),
        (10, 1, 0),
        (10, 2, 1),
        (10, 19, 1),
        (10, 20, 2),
        (10, 1000, 100),
        (100, 3, 2),
        (50, 3, 1),
        (0, 100, 0),
    ] {
        assert_eq!(allowed(&spec(percent), usable), expected, "{percent} % of {usable}");
    }
}

#[test]
fn a_bad_one_goes_after_its_windows_and_comes_back_on_probation() {
    let (spec, mut now, mut detector) = (spec(), Instant::now(), Detector::default());
    let bad = [repeats(0, 19, 20), repeats(1, 0, 20), repeats(2, 1, 20)];
    let good = [repeats(0, 0, 20), repeats(1, 0, 20), repeats(2, 1, 20)];
    let quiet = [repeats(0, 2, 2), repeats(1, 0, 20), repeats(2, 1, 20)];
    // Clients that wait for their second repetition: many SYNs, no news.
    let mut waiting = good.clone();
    waiting[0].seen = Signals { syns: 30, ..Signals::default() };
    assert_eq!(detector.judge(&spec, &bad, now), []);
    // A good window in between: it begins anew. One without enough connections says nothing.
    assert_eq!(detector.judge(&spec, &good, now), []);
    assert_eq!(detector.judge(&spec, &bad, now), []);
    assert_eq!(detector.judge(&spec, &quiet, now), []);
    assert_eq!(detector.judge(&spec, &waiting, now), []);
    let finding = Finding { sign: Sign::Repeats, failed: 19, of: 20, median: 3 };
    let gone = |times| Event::Ejected { backend: name(0), finding, lasts: spec.ejection_time * times, times };
    assert_eq!(detector.judge(&spec, &bad, now), [gone(1)]);
    assert_eq!(finding.to_string(), "19 of 20 SYNs came again without an answer, where the median is 3 %");
    assert_eq!(ejected(&detector, 3), [0]);
    // It is gone for its time, whatever is heard of it.
    assert_eq!(detector.judge(&spec, &bad, now), []);
    assert_eq!(detector.tick(&spec, now + spec.ejection_time - Duration::from_millis(1)), []);
    now += spec.ejection_time;
    assert_eq!(detector.tick(&spec, now), [Event::Returned { backend: name(0) }]);
    assert_eq!(ejected(&detector, 3), [] as [usize; 0]);
    // On probation one window is enough, and it lasts longer each time.
    assert_eq!(detector.judge(&spec, &bad, now), [gone(2)]);
    now += 2 * spec.ejection_time;
    assert_eq!(detector.tick(&spec, now).len(), 1);
    // Probation that is survived makes up for one ejection.
    now += spec.ejection_time;
    assert_eq!(detector.tick(&spec, now), []);
    assert_eq!(detector.judge(&spec, &bad, now), [gone(2)]);
    now += 2 * spec.ejection_time;
    assert_eq!(detector.tick(&spec, now).len(), 1);
    for _ in 0..3 {
        now += spec.ejection_time;
        assert_eq!(detector.tick(&spec, now), []);
    }
    assert_eq!(detector.judge(&spec, &bad, now), [], "no probation any more");
    assert_eq!(detector.judge(&spec, &bad, now), [gone(1)]);
    assert!(detector.forgive(&name(0)) && !detector.forgive(&name(1)));
    assert_eq!(ejected(&detector, 3), [] as [usize; 0]);
}

#[test]
fn an_ejection_has_a_longest_time() {
    let spec = PassiveSpec { max_ejection_time: Duration::from_secs(75), ..spec() };
    let (mut now, mut detector) = (Instant::now(), Detector::default());
    let bad = [repeats(0, 20, 20), repeats(1, 0, 20)];
    let mut lengths = Vec::new();
    while lengths.len() < 4 {
        for event in detector.judge(&spec, &bad, now) {
            let Event::Ejected { lasts, .. } = event else { panic!("{event:?}") };
            lengths.push(lasts.as_secs());
            now += lasts;
        }
        detector.tick(&spec, now);
    }
    assert_eq!(lengths, [30, 60, 75, 75]);
}

#[test]
fn what_all_have_in_common_ejects_nobody_and_is_said_once() {
    let (spec, now, mut detector) = (spec(), Instant::now(), Detector::default());
    let bad: Vec<Observed> = (0..3).map(|n| repeats(n, 20, 20)).collect();
    let finding = Finding { sign: Sign::Repeats, failed: 60, of: 60, median: 100 };
    assert_eq!(detector.judge(&spec, &bad, now), [Event::MostAlike { finding }]);
    for _ in 0..5 {
        assert_eq!(detector.judge(&spec, &bad, now), []);
    }
    assert!(detector.most_alike().is_some());
    let good: Vec<Observed> = (0..3).map(|n| repeats(n, 0, 20)).collect();
    assert_eq!(detector.judge(&spec, &good, now), []);
    assert_eq!(detector.most_alike(), None);
    // Two of three are most of them, one of two is not.
    let two = [repeats(0, 0, 20), repeats(1, 20, 20), repeats(2, 20, 20)];
    assert!(matches!(&detector.judge(&spec, &two, now)[..], [Event::MostAlike { .. }]));
    assert_eq!(detector.judge(&spec, &two, now), []);
    assert_eq!(detector.judge(&spec, &two[..2], now), []);
    assert!(matches!(&detector.judge(&spec, &two[..2], now)[..], [Event::Ejected { .. }]));
    assert_eq!(detector.most_alike(), None);
}

#[test]
fn more_bad_ones_than_may_go_stay_and_it_is_said_once() {
    let (spec, now, mut detector) = (spec(), Instant::now(), Detector::default());
    let mut window: Vec<Observed> = (0..8).map(|n| repeats(n, 0, 20)).collect();
    (window[2], window[5]) = (repeats(2, 17, 20), repeats(5, 20, 20));
    assert_eq!(detector.judge(&spec, &window, now), []);
    let events = detector.judge(&spec, &window, now);
    assert!(
        matches!(&events[..], [Event::Ejected { backend: worst, .. }, Event::Kept { backend, why: Withheld::Cap { allowed: 1 }, .. }]
            if *worst == name(5) && *backend == name(2)),
        "{events:?}"
    );
    assert_eq!(detector.judge(&spec, &window, now), []);
    assert!(detector.kept(&name(2)).unwrap().contains("max_ejected allows 1"));
    // A second one may, as soon as there are more.
    window.extend((8..20).map(|n| repeats(n, 0, 20)));
    let later = now + Duration::from_secs(1);
    assert!(matches!(&detector.judge(&spec, &window, later)[..], [Event::Ejected { .. }]));
    assert_eq!(detector.kept(&name(2)), None);
    // And is recalled when they are gone: the older ejection ends.
    for observed in &mut window[8..] {
        observed.usable = false;
    }
    let events = detector.judge(&spec, &window, later);
    assert!(
        matches!(&events[..], [Event::Recalled { backend }, Event::Kept { backend: kept, .. }]
            if *backend == name(5) && *kept == name(5)),
        "{events:?}"
    );
    assert_eq!(ejected(&detector, 20), [2]);
}

#[test]
fn resets_count_too() {
    let now = Instant::now();
    for sign in [Sign::Refused, Sign::Resets] {
        let mut detector = Detector::default();
        let mut window: Vec<Observed> = (0..3).map(|n| repeats(n, 0, 50)).collect();
        match sign {
            Sign::Refused => window[1].seen.refused = 48,
            _ => window[1].seen.resets = 70,
        }
        assert_eq!(detector.judge(&spec(), &window, now), []);
        let events = detector.judge(&spec(), &window, now);
        assert!(
            matches!(&events[..], [Event::Ejected { finding, .. }] if finding.sign == sign),
            "{events:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However windows, backends, states and time change: never more are ejected than may be, and one stays.
    #[test]
    fn the_cap_holds(
        max_ejected in 0..=100u8, windows in 1..4u32, seed: u64, backends in 1..12usize,
        steps in prop::collection::vec(any::<u64>(), 1..60),
    ) {
        let spec = PassiveSpec { max_ejected, windows, ..spec() };
        let (mut detector, mut now, mut rng) = (Detector::default(), Instant::now(), random(seed));
        for step in steps {
            let mut window: Vec<Observed> = (0..backends)
                .filter(|n| step >> n & 31 != 7)
                .map(|n| {
                    let of = (rng.next().unwrap() % 60) as u32;
                    let bad = (step >> (n % 7)) & 3 == 0;
                    let failed = drawn(&mut rng, of, if bad { 950 } else { 20 });
                    Observed { usable: rng.next().unwrap() % 5 != 0, ..repeats(n, failed, of) }
                })
                .collect();
            if step % 3 == 0 {
                let usable: Vec<&BackendName> = window.iter().filter(|o| o.usable).map(|o| &o.backend).collect();
                detector.limit(&spec, &usable, now);
            } else {
                detector.judge(&spec, &window, now);
            }
            window.retain(|o| o.usable);
            let out = window.iter().filter(|o| detector.ejection(&o.backend).is_some()).count();
            prop_assert!(out <= allowed(&spec, window.len()), "{out} of {}", window.len());
            prop_assert!(window.is_empty() || out < window.len());
            now += Duration::from_millis(step % 40_000);
            detector.tick(&spec, now);
        }
    }

    /// A network that fails between the clients and this node, or a flood whose SYNs nobody answers: all look the same.
    #[test]
    fn what_befalls_most_alike_ejects_nobody(
        seed: u64, backends in 2..30usize, thousandths in 0..=1000u64, volume in 10..400u32,
    ) {
        let (spec, now) = (PassiveSpec { max_ejected: 100, ..spec() }, Instant::now());
        let (mut detector, mut rng) = (Detector::default(), random(seed));
        for _ in 0..20 {
            let window: Vec<Observed> = (0..backends)
                .map(|n| {
                    let of = volume / 2 + (rng.next().unwrap() % u64::from(volume)) as u32;
                    repeats(n, drawn(&mut rng, of, thousandths), of)
                })
                .collect();
            let events = detector.judge(&spec, &window, now);
            prop_assert!(events.iter().all(|event| !event.changes_flows()), "{events:?}");
        }
    }

    /// One that answers next to nobody is found in as many windows as are asked for, whatever the noise of the others.
    #[test]
    fn one_bad_backend_is_found_in_time(
        seed: u64, backends in 2..30usize, volume in 20..400u32, windows in 1..5u32, noise in 0..50u64,
    ) {
        let (spec, now) = (PassiveSpec { windows, ..spec() }, Instant::now());
        let (mut detector, mut rng) = (Detector::default(), random(seed));
        for round in 1..=windows {
            let window: Vec<Observed> = (0..backends)
                .map(|n| repeats(n, drawn(&mut rng, volume, if n == 0 { 980 } else { noise }), volume))
                .collect();
            detector.judge(&spec, &window, now);
            prop_assert_eq!(ejected(&detector, backends), if round == windows { vec![0] } else { vec![] });
        }
    }
}

/// A restart changes nothing but the clock that times are told by.
#[test]
fn a_detector_goes_on_after_a_restart() {
    let (spec, start) = (spec(), Instant::now() + Duration::from_secs(100_000));
    let mut detector = Detector::default();
    let window: Vec<Observed> = (0..4).map(|n| repeats(n, if n == 1 { 50 } else { 0 }, 50)).collect();
    let mut now = start;
    for _ in 0..spec.windows {
        now += spec.interval;
        detector.judge(&spec, &window, now);
    }
    assert_eq!(ejected(&detector, 4), [1]);
    let until = detector.ejection(&name(1)).unwrap().until;

    let wall_ms = 1_800_000_000_000;
    let text = serde_json::to_string(&detector.to_keep(Moment { now, wall_ms })).unwrap();
    let later = |after: Duration| {
        // Another process, another monotonic clock.
        let at = Moment { now: start + Duration::from_secs(7), wall_ms: wall_ms + after.as_millis() as u64 };
        (Detector::going_on(serde_json::from_str(&text).unwrap(), spec.max_ejection_time, at), at.now)
    };
    let lasts = until - now;
    let (mut soon, then) = later(lasts / 4);
    let ejection = *soon.ejection(&name(1)).unwrap();
    assert_eq!(ejection.finding, detector.ejection(&name(1)).unwrap().finding);
    assert_eq!(ejection.until - then, lasts - lasts / 4);
    assert_eq!(soon.tick(&spec, ejection.until - Duration::from_millis(1)), []);
    assert_eq!(soon.tick(&spec, ejection.until), [Event::Returned { backend: name(1) }]);
    // The second one is longer, and one bad window is enough.
    let kept = soon.to_keep(Moment { now: ejection.until, wall_ms });
    let at = Moment { now: ejection.until, wall_ms };
    let mut again = Detector::going_on(kept, spec.max_ejection_time, at);
    let events = again.judge(&spec, &window, ejection.until + spec.interval);
    assert!(
        matches!(&events[..], [Event::Ejected { lasts: longer, times: 2, .. }] if *longer == 2 * lasts),
        "{events:?}"
    );

    // Over while nobody was there; and a clock that was set back makes nothing eternal.
    let (mut late, then) = later(2 * lasts);
    assert_eq!(late.tick(&spec, then), [Event::Returned { backend: name(1) }]);
    let at = Moment { now: start, wall_ms: 1000 };
    let back = Detector::going_on(serde_json::from_str(&text).unwrap(), spec.max_ejection_time, at);
    assert_eq!(back.ejection(&name(1)).unwrap().until, start + spec.max_ejection_time);
    assert!(Detector::default().to_keep(at).is_empty());
}
