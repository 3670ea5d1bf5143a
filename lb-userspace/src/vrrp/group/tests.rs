use super::{super::fsm::Params, *};
use crate::{
    model::VrrpVersion,
    vrrp::{fsm::Heard, timing::Moment},
};
use proptest::prelude::*;
use std::{cmp::Ordering, time::Duration};

fn member(priority: u8) -> Machine {
    Machine::new(Params {
        version: VrrpVersion::V3,
        priority,
        interval: Duration::from_secs(1),
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        down_adverts: 3,
        grouped: true,
    })
}

fn at(ms: u64) -> Moment {
    Moment(ms * 1_000_000)
}

fn advert(priority: u8) -> Event {
    let source = [10, 0, 0, 2].into();
    Event::Advert(Heard { priority, interval: Duration::from_secs(1), source, order: Ordering::Less })
}

/// One event for one member, and all that follows from it.
fn step(members: &mut [Machine], who: usize, event: Event, now: Moment) -> Vec<(usize, Action)> {
    let mut said = Vec::new();
    let mut todo = std::collections::VecDeque::from([(who, event)]);
    while let Some((at, event)) = todo.pop_front() {
        let mut actions = Vec::new();
        members[at].step(event, now, &mut actions);
        let all: Vec<&Machine> = members.iter().collect();
        todo.extend(follow(&all, at, &actions));
        said.extend(actions.into_iter().map(|action| (at, action)));
    }
    said
}

fn started(priorities: [u8; 2]) -> [Machine; 2] {
    let mut members = priorities.map(member);
    for who in 0..2 {
        step(&mut members, who, Event::Start, at(0));
    }
    members
}

fn phases(members: &[Machine]) -> Vec<Phase> {
    members.iter().map(Machine::phase).collect()
}

#[test]
fn all_become_master_when_the_last_is_ready() {
    let mut members = started([150, 100]);
    step(&mut members, 0, Event::Timer, at(3500));
    assert_eq!(phases(&members), [Phase::Backup; 2], "the other network may have a master");
    let said = step(&mut members, 1, Event::Timer, at(3700));
    assert_eq!(phases(&members), [Phase::Master; 2]);
    let entered: Vec<_> = said.iter().filter(|(_, action)| matches!(action, Action::Entered(..))).collect();
    assert_eq!(entered.len(), 2, "{said:?}");
}

#[test]
fn a_master_on_one_network_keeps_the_group_back() {
    let mut members = started([150, 150]);
    step(&mut members, 0, Event::Timer, at(3500));
    step(&mut members, 1, advert(200), at(3600));
    for second in 4..60 {
        step(&mut members, 1, advert(200), at(second * 1000));
        step(&mut members, 0, Event::Timer, at(second * 1000));
        assert_eq!(phases(&members), [Phase::Backup; 2]);
    }
    // Heard again on the first: it is not ready any more, when the second's master leaves.
    step(&mut members, 0, advert(200), at(60_000));
    step(&mut members, 1, advert(0), at(60_100));
    step(&mut members, 1, Event::Timer, at(61_000));
    assert_eq!(phases(&members), [Phase::Backup; 2]);
    step(&mut members, 0, advert(0), at(61_100));
    step(&mut members, 0, Event::Timer, at(62_000));
    assert_eq!(phases(&members), [Phase::Master; 2]);
}

#[test]
fn one_that_goes_takes_the_others_along() {
    let master = || {
        let mut members = started([150, 100]);
        step(&mut members, 0, Event::HandoverRequested, at(100));
        assert_eq!(phases(&members), [Phase::Master; 2]);
        members
    };
    // To a better master: the other says good-bye, so that the peer need not wait there.
    let mut members = master();
    let said = step(&mut members, 0, advert(200), at(200));
    assert_eq!(phases(&members), [Phase::Backup; 2]);
    assert!(said.contains(&(1, Action::Send(0))), "{said:?}");
    assert!(!members[1].yielded);
    // By the operator: both leave the new master alone.
    let mut members = master();
    step(&mut members, 1, Event::HandOver { agreed: false }, at(200));
    assert_eq!(phases(&members), [Phase::Backup; 2]);
    assert!(members.iter().all(|member| member.yielded));
    for who in 0..2 {
        step(&mut members, who, advert(50), at(300));
    }
    for who in 0..2 {
        step(&mut members, who, Event::Timer, at(1500));
    }
    assert_eq!(phases(&members), [Phase::Backup; 2]);
    // By hold.
    let mut members = master();
    step(&mut members, 0, Event::Hold, at(200));
    assert_eq!(phases(&members), [Phase::Backup; 2]);
}

/// What the engine does with the gate: for all members at once.
fn gate(members: &mut [Machine], gated: bool) {
    members.iter_mut().for_each(|member| member.gated = gated);
}

fn link(members: &mut [Machine]) {
    members.iter_mut().for_each(|member| member.linked = true);
}

#[test]
fn a_gated_group_takes_over_where_there_is_no_master() {
    // It starts alone, and the peer's state will never come.
    let mut members = started([150, 100]);
    gate(&mut members, true);
    step(&mut members, 0, Event::Timer, at(3500));
    step(&mut members, 1, Event::Timer, at(3700));
    assert_eq!(phases(&members), [Phase::Master; 2]);
    // Its master dies, or leaves, before all was told; or a faster detector says so.
    let left: [fn(&mut [Machine], usize); 3] = [
        |_, _| (),
        |members, who| drop(step(members, who, advert(0), at(1100))),
        |members, who| drop(step(members, who, Event::MasterLost, at(1100))),
    ];
    for leave in left {
        let mut members = started([100, 100]);
        gate(&mut members, true);
        for who in 0..2 {
            step(&mut members, who, advert(200), at(1000));
        }
        for who in 0..2 {
            leave(&mut members, who);
        }
        for who in 0..2 {
            step(&mut members, who, Event::Timer, at(4700));
        }
        assert_eq!(phases(&members), [Phase::Master; 2]);
    }
}

#[test]
fn a_gated_group_leaves_a_living_master_alone() {
    let mut members = started([150, 150]);
    gate(&mut members, true);
    for second in 1..60 {
        for who in 0..2 {
            step(&mut members, who, advert(100), at(second * 1000));
            step(&mut members, who, Event::Timer, at(second * 1000 + 500));
            step(&mut members, who, Event::HandoverRequested, at(second * 1000 + 600));
        }
        assert_eq!(phases(&members), [Phase::Backup; 2]);
    }
    // The gate is closed after one member was ready to throw the master out.
    let mut members = started([150, 150]);
    for who in 0..2 {
        step(&mut members, who, advert(100), at(100));
    }
    step(&mut members, 0, Event::Timer, at(3500));
    gate(&mut members, true);
    step(&mut members, 1, Event::Timer, at(3500));
    assert_eq!(phases(&members), [Phase::Backup; 2]);
}

#[test]
fn a_better_group_asks_and_takes_over_before_the_old_master_stops() {
    let mut better = started([150, 150]);
    link(&mut better);
    for who in 0..2 {
        step(&mut better, who, advert(100), at(100));
    }
    assert_eq!(step(&mut better, 0, Event::Timer, at(3500)), [], "the other network's master may be better");
    let said = step(&mut better, 1, Event::Timer, at(3500));
    assert_eq!(said, [(0, Action::AskMaster), (1, Action::AskMaster)]);
    // What comes meanwhile is no reason to do without an answer.
    assert_eq!(step(&mut better, 0, advert(100), at(3550)), []);
    let mut old = started([100, 100]);
    step(&mut old, 0, Event::GroupMaster, at(0));
    assert_eq!(phases(&old), [Phase::Master; 2]);
    for who in 0..2 {
        assert_eq!(step(&mut old, who, Event::MakeWay, at(3560)), [(who, Action::AskPeer)]);
    }
    let taken = Action::Entered(Phase::Master, Cause::TakenOver);
    let said = step(&mut better, 0, Event::HandoverRequested, at(3570));
    assert_eq!(said, [(0, Action::Acquire), (0, taken), (1, Action::Acquire), (1, taken)]);
    // The old one serves each network until the successor does there.
    let said = step(&mut old, 0, Event::HandoverGranted, at(3580));
    assert_eq!(phases(&old), [Phase::Backup, Phase::Master], "{said:?}");
    let said = step(&mut old, 1, Event::HandoverGranted, at(3590));
    assert_eq!(phases(&old), [Phase::Backup; 2]);
    assert!(!said.contains(&(1, Action::Send(0))), "nobody need hurry: {said:?}");
    assert!(old.iter().all(|member| !member.yielded));
}

#[test]
fn a_better_group_without_an_answer_takes_over_by_itself() {
    let mut better = started([150, 150]);
    link(&mut better);
    for who in 0..2 {
        step(&mut better, who, advert(100), at(100));
    }
    for who in 0..2 {
        step(&mut better, who, Event::Timer, at(3500));
    }
    for who in 0..2 {
        step(&mut better, who, Event::Timer, at(4000));
    }
    assert_eq!(phases(&better), [Phase::Master; 2]);
    // One network's master is silent: that one is not asked, and so nobody is.
    let mut better = started([150, 150]);
    link(&mut better);
    step(&mut better, 0, advert(100), at(100));
    step(&mut better, 0, Event::Timer, at(3500));
    let said = step(&mut better, 1, Event::Timer, at(3500));
    assert!(!said.iter().any(|(_, action)| *action == Action::AskMaster), "{said:?}");
    assert_eq!(phases(&better), [Phase::Master; 2]);
}

#[test]
fn a_held_group_returns_when_it_is_released() {
    let mut members = started([150, 150]);
    step(&mut members, 0, Event::GroupMaster, at(0));
    // As the heartbeat does it where the peer can be asked.
    for who in 0..2 {
        members[who].held = true;
        step(&mut members, who, Event::MakeWay, at(1000));
    }
    step(&mut members, 0, Event::HandoverGranted, at(1010));
    // The second answer is lost.
    let said = step(&mut members, 1, Event::Timer, at(1500));
    assert!(said.contains(&(1, Action::Send(0))), "{said:?}");
    assert_eq!(phases(&members), [Phase::Backup; 2]);
    assert!(members.iter().all(|member| !member.yielded));
    for who in 0..2 {
        step(&mut members, who, Event::Release, at(60_000));
        step(&mut members, who, advert(100), at(60_100));
    }
    for who in 0..2 {
        step(&mut members, who, Event::Timer, at(63_500));
    }
    assert_eq!(phases(&members), [Phase::Master; 2]);
    // By `pair failover` it stays away, whichever answer comes first.
    for who in 0..2 {
        step(&mut members, who, Event::HandOver { agreed: true }, at(64_000));
    }
    for who in 0..2 {
        step(&mut members, 1 - who, Event::HandoverGranted, at(64_010));
    }
    assert!(members.iter().all(|member| member.yielded));
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => prop_oneof![Just(0u8), Just(90), Just(120), Just(200)].prop_map(advert),
        6 => Just(Event::Timer),
        1 => Just(Event::HandoverRequested),
        1 => Just(Event::HandOver { agreed: false }),
        1 => Just(Event::MasterLost),
    ]
}

proptest! {
    /// Whatever is heard on whichever network: never is one member master and another not.
    #[test]
    fn together_or_not_at_all(
        linked: bool,
        events in proptest::collection::vec((any_event(), 0usize..3, 0u64..4000, any::<bool>()), 1..80),
    ) {
        let mut members = [member(150), member(100), member(100)];
        members.iter_mut().for_each(|member| member.linked = linked);
        for who in 0..3 {
            step(&mut members, who, Event::Start, at(0));
        }
        let mut now = at(0);
        for (event, who, pause, gated) in events {
            now = now + Duration::from_millis(pause);
            gate(&mut members, gated);
            step(&mut members, who, event, now);
            let phases = phases(&members);
            prop_assert!(phases.iter().all(|phase| *phase == phases[0]), "{event:?} of {who}: {phases:?}");
        }
    }
}
