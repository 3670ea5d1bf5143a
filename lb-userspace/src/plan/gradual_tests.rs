//! Shares on their way, and what a change does, by the plan itself.

use super::{
    tests::{backend, service, tunnel},
    *,
};
use crate::{
    maglev,
    model::{Admin, Health, PortSpec},
    ramp::{Progress, WHOLE},
};
use lb_common::abi::SlotState;
use proptest::prelude::*;
use std::{collections::BTreeSet, time::Instant};

/// Service 0 is least-connections, 1 maglev, 2 round-robin.
fn wanted(number: u8, backends: &[WantedBackend]) -> Vec<WantedService> {
    service(number, &[PortSpec::Exact(80)], 1_009, backends)
}

fn up(number: u8, weight: u16) -> WantedBackend {
    backend(number, Admin::Enabled, Health::Up, weight, true)
}

fn built(wanted: &[WantedService], image: &Image) -> Image {
    build(wanted, image, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default()).unwrap()
}

fn owned(image: &Image, name: &str) -> usize {
    let (id, _) = image.backends.iter().find(|(_, b)| name_of(&b.identity) == name).unwrap();
    image.rings.values().flatten().filter(|slot| slot.owner() == *id).count()
}

/// In every kind of scheduling a tenth of the way is about a tenth of the weight.
#[test]
fn a_share_on_its_way_counts_for_every_scheduler() {
    let slow = WantedBackend { ramp: Some(Progress { from: 0, done: WHOLE / 10 }), ..up(3, 100) };
    let backends = [up(1, 100), up(2, 100), slow];
    let image = built(&wanted(1, &backends), &Image::empty(4096, 512));
    assert!((10..=60).contains(&owned(&image, "web3")), "{}", owned(&image, "web3"));
    let image = built(&wanted(2, &backends), &Image::empty(4096, 512));
    let schedule = image.schedules.values().next().unwrap();
    let (id, _) = image.backends.iter().find(|(_, b)| name_of(&b.identity) == "web3").unwrap();
    let turns = schedule.words.iter().filter(|word| **word == u64::from(*id)).count();
    let share = turns as f64 / schedule.words.len() as f64;
    assert!((share - 0.1 / 2.1).abs() < 0.01, "{turns} of {}", schedule.words.len());
    let image = built(&wanted(4, &backends), &Image::empty(4096, 512));
    let weights: Vec<u64> = image.schedules.values().next().unwrap().words.iter().map(|w| w >> 32).collect();
    assert!(weights[0] == weights[1] && weights[2].abs_diff(weights[0] / 10) < 10, "{weights:?}");
    // Whole weights are written as they always were.
    let image = built(&wanted(4, &[up(1, 7), up(2, 3)]), &Image::empty(4096, 512));
    let weights: Vec<u64> = image.schedules.values().next().unwrap().words.iter().map(|w| w >> 32).collect();
    assert_eq!(weights, [7, 3]);
}

/// Slots settle by their own time: one that moves later does not keep the others.
#[test]
fn each_slot_settles_by_its_own_time() {
    let start = Instant::now();
    let mut tracking = Tracking::new(start);
    let empty = Image::empty(4096, 512);
    let first = built(&wanted(1, &[up(1, 100), up(2, 100)]), &empty);
    tracking.note_changes(&empty, &first, start);
    let step = |image: &Image, done| {
        let slow = WantedBackend { ramp: Some(Progress { from: 0, done }), ..up(3, 100) };
        built(&wanted(1, &[up(1, 100), up(2, 100), slow]), image)
    };
    let idle = std::time::Duration::from_secs(300);
    let second = step(&first, WHOLE / 4);
    tracking.note_changes(&first, &second, start);
    let third = step(&second, WHOLE / 2);
    tracking.note_changes(&second, &third, start + idle / 2);
    let moving =
        |image: &Image| image.rings.values().flatten().filter(|s| s.state() == SlotState::Moving).count();
    let (early, all) = (moving(&second), moving(&third));
    assert!(early > 50 && all > early + 50, "{early}, {all}");
    let settled = |at| tracking.settle(&third, at).iter().map(count_words).sum::<usize>();
    assert_eq!(settled(start + idle / 2), 0);
    assert_eq!(settled(start + idle + idle / 4), early);
    assert_eq!(settled(start + idle * 2), all);
    // What a drain is told of a backend that the slots leave.
    let web1 = third.backends.iter().find(|(_, b)| name_of(&b.identity) == "web1").unwrap().0;
    let naming = tracking.naming(&third, *web1);
    assert!(naming.leaving > 0 && naming.stuck == 0, "{naming:?}");
    assert_eq!(naming.settles, Some(start + idle / 2 + idle));
}

fn count_words(action: &Action) -> usize {
    match action {
        Action::Slots { words, .. } => words.len(),
        other => panic!("{other}"),
    }
}

fn any_backends() -> impl Strategy<Value = Vec<WantedBackend>> {
    let one = (0..3u8, 0..6u8, 0..4u16, prop::option::of((0..4u32, 1..WHOLE)));
    proptest::collection::btree_map(1..8u8, one, 0..6).prop_map(|map| {
        map.into_iter()
            .map(|(n, (admin, health, weight, ramp))| {
                let admin = [Admin::Enabled, Admin::Draining, Admin::Disabled][usize::from(admin)];
                let health = if health == 0 { Health::Down } else { Health::Up };
                let ramp = ramp.map(|(from, done)| Progress { from: from << 16, done });
                WantedBackend { ramp, ..backend(n, admin, health, weight, true) }
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// What the plan says of a change is what the words of the ring then show; and as long as anybody takes new flows, each slot
    /// has an owner that does.
    #[test]
    fn a_plan_counts_what_happens(history in proptest::collection::vec(any_backends(), 2..6), number in 1..5u8) {
        let mut image = Image::empty(4096, 512);
        for backends in history {
            let mut wanted = wanted(number, &backends);
            let next = built(&wanted, &image);
            wanted.iter_mut().flat_map(|s| &mut s.backends).for_each(|b| b.ramp = None);
            let last = built(&wanted, &image);
            let found = impact(&image, &next, &last);
            let (before, after, end) = (image.rings.get(&0), &next.rings[&0], &last.rings[&0]);
            let takes = backends.iter().any(WantedBackend::takes_new);
            prop_assert!(after.iter().all(|slot| (slot.owner() != 0) == takes));
            let Some(before) = before else {
                prop_assert!(found.is_empty() || found.iter().all(|s| s.is_new));
                image = next;
                continue;
            };
            let count = |test: &dyn Fn(usize) -> bool| (0..after.len()).filter(|i| test(*i)).count() as u32;
            let moved = count(&|i| before[i].owner() != 0 && before[i].owner() != after[i].owner());
            let ended = count(&|i| before[i].home() != 0 && before[i].home() != after[i].home());
            let later = count(&|i| after[i].owner() != end[i].owner());
            let plan = found.first().cloned().unwrap_or_default();
            prop_assert_eq!((plan.slots_moved, plan.slots_ended, plan.slots_later), (moved, ended, later));
            prop_assert!(plan.slots_disrupted >= moved.max(ended) && plan.slots_disrupted <= moved + ended);
            // Homes end with their backends only.
            for (slot, new) in before.iter().zip(after) {
                if slot.home() != new.home() && slot.home() != 0 {
                    let gone = next.backends.get(&slot.home()).is_none_or(|b| b.entry.flags & lb_common::abi::BackendEntry::DEAD != 0);
                    prop_assert!(gone);
                }
            }
            image = next;
        }
    }

    /// A service that goes, or another in its place, is disrupted whole.
    #[test]
    fn a_service_that_goes_is_disrupted_whole(weights in proptest::collection::vec(1..100u16, 1..5)) {
        let backends: Vec<_> = (1..).zip(&weights).map(|(n, weight)| up(n, *weight)).collect();
        let image = built(&wanted(1, &backends), &Image::empty(8192, 512));
        let none = built(&[], &image);
        let found = impact(&image, &none, &none);
        prop_assert_eq!(found.len(), 1);
        prop_assert!(found[0].is_gone && found[0].slots_disrupted == 1_009 && found[0].ending.len() == weights.len());
        let other = built(&service(1, &[PortSpec::Exact(80)], 2_003, &backends), &image);
        let found = impact(&image, &other, &other);
        prop_assert_eq!(found.iter().map(|s| (s.is_new, s.is_gone)).collect::<Vec<_>>(), [(true, false), (false, true)]);
    }
}
