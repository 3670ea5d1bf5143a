use super::*;
use crate::model::{
    Health::{Down, Unknown, Up},
    HealthCheck, HttpCheck,
};
use nix::errno::Errno;
use proptest::prelude::*;
use std::collections::HashMap;

const WALL: SystemTime = SystemTime::UNIX_EPOCH;
const INTERVAL: Duration = Duration::from_secs(1);

fn key(n: u16) -> TargetKey {
    TargetKey { service: "www".parse().unwrap(), backend: format!("web{n}").parse().unwrap() }
}

fn target(n: u16, initial: Health) -> Target {
    let spec = HealthSpec { interval: INTERVAL, rise: 2, fall: 2, ..HealthSpec::default() };
    let address = SocketAddr::from(([127, 0, 0, 1], 8000 + n));
    Target { key: key(n), address, vips: Arc::default(), spec: spec.into(), initial }
}

/// Each virtual address is checked at the port that is checked; other ones begin to count anew and keep the health.
#[test]
fn virtual_addresses_are_what_is_checked() {
    let vips = |list: &[&str]| list.iter().map(|vip| vip.parse().unwrap()).collect::<Arc<[IpAddr]>>();
    let mut via = Target { vips: vips(&["192.0.2.10", "2001:db8::10"]), ..target(1, Up) };
    let (mut bench, _) = Bench::new(&[via.clone(), target(2, Up)]);
    for _ in 0..4 {
        let job = bench.next();
        let aims: Vec<_> = job.aims.iter().map(|aim| aim.address.to_string()).collect();
        match &job.key {
            Some(of) => assert_eq!(
                (of, aims),
                (&key(1), vec!["192.0.2.10:8001".into(), "[2001:db8::10]:8001".into()])
            ),
            None => assert_eq!(aims, ["127.0.0.1:8002"]),
        }
        bench.end(&job, Err(ProbeFailure::Refused));
    }
    assert_eq!(bench.roster.by_key[&key(1)].state.health, Down);
    via.vips = vips(&["192.0.2.10"]);
    let applied = bench.apply(&[via, target(2, Up)]);
    assert_eq!((applied.stop.len(), applied.forget.len()), (1, 0));
    assert_eq!(bench.roster.by_key[&key(1)].state, fsm::State::new(Down));
}

fn with_check(check: HealthCheck, target: Target) -> Target {
    Target { spec: HealthSpec { check, ..(*target.spec).clone() }.into(), ..target }
}

/// A roster and its clock.
struct Bench {
    roster: Roster,
    now: Instant,
}

impl Bench {
    fn new(targets: &[Target]) -> (Self, Applied) {
        let mut bench = Self { roster: Roster::default(), now: Instant::now() };
        let applied = bench.apply(targets);
        (bench, applied)
    }

    fn apply(&mut self, targets: &[Target]) -> Applied {
        self.roster.apply(targets, self.now, WALL)
    }

    /// Goes on to the next check.
    fn next(&mut self) -> Job {
        self.now = self.now.max(self.roster.next_due().expect("a target waits"));
        self.roster.start(self.now).expect("it is due")
    }

    fn end(
        &mut self,
        job: &Job,
        result: Result<(), ProbeFailure>,
    ) -> (Option<HealthEvent>, Option<TargetStatus>) {
        let finished = self.roster.finished(job.id, result, self.now, WALL).expect("it is a target");
        (finished.event, finished.status.map(|status| (*status).clone()))
    }

    /// Runs the next check with that result.
    fn check(&mut self, result: Result<(), ProbeFailure>) -> (Option<HealthEvent>, Option<TargetStatus>) {
        let job = self.next();
        self.end(&job, result)
    }

    fn health(&self, n: u16) -> Health {
        self.roster.by_key[&key(n)].status.health
    }
}

const REFUSED: Result<(), ProbeFailure> = Err(ProbeFailure::Refused);

#[test]
fn results_become_events_and_statuses() {
    let (mut bench, applied) = Bench::new(&[target(1, Unknown)]);
    assert!(applied.events.is_empty());
    assert_eq!(applied.statuses[0].1.last, LastResult::Waiting);

    let (event, status) = bench.check(REFUSED);
    assert_eq!(event, None);
    assert_eq!(
        status.unwrap().reason(),
        "connection refused (still unknown: it has not failed often enough)"
    );
    let (event, status) = bench.check(REFUSED);
    let event = event.unwrap();
    assert_eq!((event.previous, event.health, event.reason.as_str()), (Unknown, Down, "connection refused"));
    assert_eq!((event.key, event.address), (key(1), target(1, Unknown).address));
    assert_eq!(status.unwrap().since, Some(WALL));
    assert_eq!(bench.check(REFUSED), (None, None), "nothing new");
    // Another reason is news, but no transition.
    let (event, status) = bench.check(Err(ProbeFailure::NotHttp));
    assert_eq!((event, status.unwrap().reason().as_str()), (None, "not an HTTP answer"));
    let (_, status) = bench.check(Ok(()));
    assert_eq!(
        status.unwrap().reason(),
        "check passed, not often enough yet; before that: not an HTTP answer"
    );
    let (event, _) = bench.check(Ok(()));
    let event = event.unwrap();
    assert_eq!((event.previous, event.health, event.reason.as_str()), (Down, Up, "check passed"));
    assert_eq!(bench.check(Ok(())), (None, None), "nothing new");
}

#[test]
fn the_pace_follows_the_results() {
    let fast = INTERVAL / 10;
    let target = target(1, Up);
    let spec =
        HealthSpec { fast_interval: Some(fast), backoff: Some(INTERVAL * 60), ..(*target.spec).clone() };
    let (mut bench, _) = Bench::new(&[Target { spec: spec.into(), ..target }]);
    // How long after the check the next one comes.
    let mut gap = |result: Result<(), ProbeFailure>| {
        let job = bench.next();
        bench.end(&job, result);
        let due = bench.roster.next_due().unwrap() - bench.now;
        (due, bench.health(1))
    };
    let around = |(gap, health): (Duration, Health), pace: Duration, expected: Health| {
        assert_eq!(health, expected);
        assert!(gap >= pace / 2 && gap <= pace * 3 / 2, "{gap:?} is not around {pace:?}");
    };
    around(gap(Ok(())), INTERVAL, Up);
    around(gap(REFUSED), fast, Up);
    // What says nothing about the backend changes nothing.
    around(gap(Err(ProbeFailure::Internal)), fast, Up);
    around(gap(REFUSED), INTERVAL, Down);
    for _ in 0..fsm::BACKOFF_AFTER {
        around(gap(REFUSED), INTERVAL, Down);
    }
    for pace in [2, 4, 8, 16, 32, 60, 60] {
        around(gap(REFUSED), INTERVAL * pace, Down);
    }
    around(gap(Ok(())), fast, Down);
    around(gap(Ok(())), INTERVAL, Up);
}

#[test]
fn what_this_host_lacks_changes_no_health() {
    let (mut bench, _) = Bench::new(&[target(1, Up)]);
    bench.check(REFUSED);
    for _ in 0..10 {
        let (event, _) = bench.check(Err(ProbeFailure::Local(Errno::EMFILE)));
        assert_eq!(event, None);
    }
    let reason = bench.roster.by_key[&key(1)].status.reason();
    assert_eq!(reason, "check could not run on this host: Too many open files");
    let (event, _) = bench.check(REFUSED);
    assert_eq!(event.unwrap().health, Down, "the first failure still counts");
}

#[test]
fn unchanged_targets_keep_counting() {
    let targets = [target(1, Up), target(2, Up)];
    let (mut bench, _) = Bench::new(&targets[..1]);
    bench.check(REFUSED);
    let running = bench.next();
    let due_later = bench.roster.by_key[&key(1)].checked.as_ref().unwrap().id;
    // What the caller says of the health of a target that is known does not count.
    let applied = bench.apply(&[target(2, Up), target(1, Unknown)]);
    assert_eq!(bench.roster.by_key[&key(1)].checked.as_ref().unwrap().id, due_later);
    assert!(applied.stop.is_empty() && applied.forget.is_empty() && applied.events.is_empty());
    assert_eq!(applied.statuses.len(), 1);
    let (event, _) = bench.end(&running, REFUSED);
    assert_eq!(event.unwrap().health, Down);
}

#[test]
fn another_spec_keeps_the_health_and_restarts_the_counters() {
    let (mut bench, _) = Bench::new(&[target(1, Unknown)]);
    bench.check(Ok(()));
    bench.check(Ok(()));
    bench.check(REFUSED);
    let running = bench.next();
    let mut changed = target(1, Unknown);
    Arc::make_mut(&mut changed.spec).interval = INTERVAL * 2;
    let applied = bench.apply(&[changed]);
    assert_eq!(applied.stop, [running.id]);
    assert!(applied.forget.is_empty() && applied.events.is_empty());
    assert_eq!((bench.health(1), applied.statuses[0].1.since), (Up, Some(WALL)));
    assert!(bench.roster.finished(running.id, REFUSED, bench.now, WALL).is_none(), "it was another check");
    assert_eq!(bench.check(REFUSED).0, None, "the failures before do not count");
    assert_eq!(bench.check(REFUSED).0.unwrap().previous, Up);
}

#[test]
fn who_stands_in_is_told_once_and_kept_while_checks_fail() {
    let stands_in = || Err(ProbeFailure::StandsIn { found: crate::model::Role::Primary });
    let (mut bench, _) = Bench::new(&[target(1, Unknown)]);
    let event = bench.check(stands_in()).0.expect("the role is known at once");
    assert_eq!(
        (event.previous, event.health, event.stood_in, event.stands_in),
        (Unknown, Unknown, false, true)
    );
    let event = bench.check(stands_in()).0.expect("it is up after `rise` passes, of which these are two");
    assert_eq!((event.previous, event.health, event.stands_in), (Unknown, Up, true));
    assert!(event.reason.contains("stands in"), "{}", event.reason);
    assert_eq!(bench.check(stands_in()).0, None);
    bench.check(REFUSED);
    let event = bench.check(REFUSED).0.expect("two failures take it down");
    assert_eq!((event.health, event.stood_in, event.stands_in), (Down, true, true));
    // Another check of the same server keeps it, another server does not have it.
    let mut changed = target(1, Down);
    Arc::make_mut(&mut changed.spec).interval = INTERVAL * 2;
    assert!(bench.apply(&[changed]).statuses[0].1.stands_in);
    let moved = Target { address: "127.0.0.2:80".parse().unwrap(), ..target(1, Unknown) };
    assert!(!bench.apply(&[moved]).statuses[0].1.stands_in);
    bench.check(stands_in());
    let event = bench.check(Ok(())).0.expect("a replica again");
    assert_eq!((event.health, event.stood_in, event.stands_in), (Up, true, false));
}

#[test]
fn another_address_is_another_target() {
    let (mut bench, _) = Bench::new(&[target(1, Down)]);
    let moved = Target { address: "127.0.0.2:80".parse().unwrap(), ..target(1, Unknown) };
    let applied = bench.apply(std::slice::from_ref(&moved));
    assert_eq!((applied.stop.len(), applied.forget), (1, vec![key(1)]));
    assert_eq!(bench.health(1), Unknown);
    assert_eq!(bench.next().aims[0].address, moved.address);
}

#[test]
fn removed_targets_stop() {
    let (mut bench, _) = Bench::new(&[target(1, Up)]);
    let running = bench.next();
    let applied = bench.apply(&[]);
    assert_eq!((applied.stop, applied.forget), (vec![running.id], vec![key(1)]));
    assert!(bench.roster.finished(running.id, Ok(()), bench.now, WALL).is_none());
    assert_eq!(bench.roster.next_due(), None);
}

#[test]
fn of_two_with_one_key_the_first_counts() {
    let other = Target { address: "127.0.0.2:80".parse().unwrap(), ..target(1, Down) };
    let (mut bench, applied) = Bench::new(&[target(1, Up), other]);
    assert_eq!(applied.statuses.len(), 1);
    assert_eq!(bench.next().aims[0].address, target(1, Up).address);
    assert!(bench.roster.start(bench.now + INTERVAL).is_none());
}

#[test]
fn without_a_check_it_is_up_at_once() {
    let unchecked = |n, initial| with_check(HealthCheck::None, target(n, initial));
    let (mut bench, applied) = Bench::new(&[unchecked(1, Down), unchecked(2, Up)]);
    let [event] = &applied.events[..] else { panic!("{:?}", applied.events) };
    assert_eq!((&event.key, event.previous, event.health), (&key(1), Down, Up));
    assert_eq!(event.reason, "not checked");
    assert_eq!(bench.roster.next_due(), None);
    // With a check again, it starts from there.
    bench.apply(&[target(1, Unknown), unchecked(2, Up)]);
    assert_eq!(bench.health(1), Up);
    bench.check(REFUSED);
    assert_eq!(bench.check(REFUSED).0.unwrap().previous, Up);
    let applied = bench.apply(&[unchecked(1, Unknown), unchecked(2, Up)]);
    assert_eq!((applied.events[0].previous, applied.events[0].health), (Down, Up));
}

#[test]
fn a_request_that_cannot_be_sent_leaves_the_health_alone() {
    let check = HttpCheck { path: "/a b".into(), ..HttpCheck::default() };
    let (mut bench, applied) = Bench::new(&[with_check(HealthCheck::Http(check), target(1, Up))]);
    assert!(applied.events.is_empty());
    assert_eq!(bench.health(1), Up);
    assert!(applied.statuses[0].1.reason().contains("path '/a b' cannot be sent"));
    assert_eq!(bench.roster.next_due(), None);
}

#[test]
fn the_check_has_a_port_of_its_own() {
    let mut with_port = target(1, Up);
    Arc::make_mut(&mut with_port.spec).port = Some(9);
    let (mut bench, _) = Bench::new(std::slice::from_ref(&with_port));
    assert_eq!(bench.next().aims[0].address, "127.0.0.1:9".parse().unwrap());
    assert_eq!(bench.roster.by_key[&key(1)].status.address, with_port.address);
}

proptest! {
    /// Whatever is set while checks run and end: those and only those that are wanted are kept, indices
    /// agree, and each target's events form a chain that ends at its health.
    #[test]
    fn the_books_agree(
        steps in prop::collection::vec(
            (prop::collection::btree_map(0..8u16, (0..3u8, any::<bool>()), 0..8), 0..6u32, any::<bool>()),
            1..30,
        ),
    ) {
        let (mut bench, _) = Bench::new(&[]);
        let mut told: HashMap<TargetKey, (SocketAddr, Health)> = HashMap::new();
        let mut running: Vec<Job> = Vec::new();
        for (wanted, checks, pass) in steps {
            let targets: Vec<_> = wanted
                .into_iter()
                .map(|(n, (kind, moved))| {
                    let check = if kind == 0 { HealthCheck::None } else { HealthCheck::Tcp };
                    let mut target = with_check(check, target(n, Down));
                    Arc::make_mut(&mut target.spec).interval *= u32::from(kind.max(1));
                    if moved {
                        target.address.set_port(1);
                    }
                    target
                })
                .collect();
            let applied = bench.apply(&targets);
            running.retain(|job| !applied.stop.contains(&job.id));
            for target in &targets {
                let entry = told.entry(target.key.clone()).or_insert((target.address, target.initial));
                if entry.0 != target.address {
                    *entry = (target.address, target.initial);
                }
            }
            told.retain(|key, _| targets.iter().any(|target| target.key == *key));
            let mut events = applied.events;
            for _ in 0..checks {
                bench.now += INTERVAL / 2;
                running.extend(std::iter::from_fn(|| bench.roster.start(bench.now)));
                if let Some(job) = running.pop() {
                    let result = if pass { Ok(()) } else { REFUSED };
                    events.extend(bench.end(&job, result).0);
                }
            }
            for event in events {
                let (address, health) = told.get_mut(&event.key).unwrap();
                prop_assert_eq!((*address, *health), (event.address, event.previous));
                prop_assert_ne!(event.previous, event.health);
                *health = event.health;
            }
            let roster = &bench.roster;
            prop_assert_eq!(roster.by_key.len(), targets.len());
            for target in &targets {
                let member = &roster.by_key[&target.key];
                prop_assert_eq!(member.status.address, target.address);
                prop_assert_eq!(&member.spec, &target.spec);
                prop_assert_eq!(told[&target.key].1, member.status.health);
                prop_assert_eq!(member.state.health, member.status.health);
            }
            let checked = roster.by_key.values().filter(|m| m.checked.is_some()).count();
            prop_assert_eq!((roster.by_id.len(), roster.schedule.len()), (checked, checked));
            prop_assert!(running.iter().all(|job| roster.by_id.contains_key(&job.id)));
        }
    }
}

/// Changes of a few lead where the whole set leads.
#[test]
fn a_few_change_as_all_do() {
    let all: Vec<_> = (0..6).map(|n| target(n, Up)).collect();
    let (mut few, _) = Bench::new(&all[..4]);
    let (mut whole, _) = Bench::new(&all[..4]);
    let mut moved = target(2, Up);
    moved.address.set_port(1);
    let mut paced = target(3, Up);
    Arc::make_mut(&mut paced.spec).interval = INTERVAL * 3;
    let gone = [key(0), key(77)];
    let set = [moved, paced, all[5].clone()];
    let (now, wall) = (few.now, WALL);
    let changed = few.roster.change(&gone, &set, now, wall);
    let wanted: Vec<_> = [all[1].clone()].into_iter().chain(set).collect();
    let applied = whole.roster.apply(&wanted, now, wall);
    let sorted = |of: &[TargetKey]| of.iter().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&changed.forget), sorted(&applied.forget));
    assert_eq!(changed.stop.len(), applied.stop.len());
    let members = |bench: &Bench| -> std::collections::BTreeMap<TargetKey, (SocketAddr, Arc<HealthSpec>)> {
        let by_key = bench.roster.by_key.iter();
        by_key.map(|(key, member)| (key.clone(), (member.status.address, Arc::clone(&member.spec)))).collect()
    };
    assert_eq!(members(&few), members(&whole));
}
