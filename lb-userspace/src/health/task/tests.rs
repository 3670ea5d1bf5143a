//! The whole task against real servers on loopback.

use super::*;
use crate::{
    health::testing::{Conduct, Refusing, Server, V4, sockets_to},
    model::{
        Health::{Down, Unknown, Up},
        HealthCheck, HttpCheck,
    },
};
use std::sync::atomic::{AtomicUsize, Ordering};

const INTERVAL: Duration = Duration::from_millis(50);
/// So long that a check of a server that answers does not reach it, however loaded the machine is.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What a loaded machine may add to anything.
const SLACK: Duration = Duration::from_secs(20);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn key(n: usize) -> TargetKey {
    TargetKey { service: "www".parse().unwrap(), backend: format!("web{n}").parse().unwrap() }
}

fn tcp(n: usize, address: SocketAddr) -> Target {
    let spec = HealthSpec {
        check: HealthCheck::Tcp,
        interval: INTERVAL,
        timeout: TIMEOUT,
        rise: 2,
        fall: 3,
        ..HealthSpec::default()
    };
    Target { key: key(n), address, vips: Arc::default(), spec: spec.into(), initial: Unknown }
}

fn http(n: usize, address: SocketAddr) -> Target {
    let check = HttpCheck::default();
    let target = tcp(n, address);
    Target { spec: HealthSpec { check: HealthCheck::Http(check), ..(*target.spec).clone() }.into(), ..target }
}

/// A check of a server that does not answer.
fn impatient(target: Target) -> Target {
    Target { spec: HealthSpec { timeout: INTERVAL, ..(*target.spec).clone() }.into(), ..target }
}

fn start(capacity: usize) -> (HealthHandle, mpsc::Receiver<HealthEvent>) {
    let (events, receiver) = mpsc::channel(capacity);
    (HealthTask::spawn(events, Arc::new(NoObserver)), receiver)
}

async fn next(events: &mut mpsc::Receiver<HealthEvent>) -> HealthEvent {
    tokio::time::timeout(SLACK, events.recv()).await.expect("an event in time").expect("the task runs")
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < SLACK, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Counts what it is told.
#[derive(Default)]
struct Counter {
    passed: AtomicUsize,
    failed: AtomicUsize,
}

impl ProbeObserver for Counter {
    fn observed(&self, _key: &TargetKey, kind: &'static str, duration: Duration, ok: bool) {
        assert_eq!(kind, "tcp");
        assert!(duration < SLACK);
        if ok { &self.passed } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn tcp_goes_down_and_comes_back() {
    let (sender, mut events) = mpsc::channel(10);
    let counter = Arc::new(Counter::default());
    let handle = HealthTask::spawn(sender, Arc::clone(&counter) as Arc<dyn ProbeObserver>);
    // An address of its own, so that no other test can take the port while it changes hands.
    let refusing = Refusing::bind("127.45.1.1:0".parse().unwrap());
    let address = refusing.address();
    handle.set_targets(vec![tcp(1, address)]);

    let event = next(&mut events).await;
    assert_eq!((event.previous, event.health), (Unknown, Down));
    assert_eq!(event.reason, "connection refused");
    assert!(counter.failed.load(Ordering::Relaxed) >= 3, "not before the third failure");

    let listener = refusing.listen(1024);
    let changed = Instant::now();
    let event = next(&mut events).await;
    assert_eq!((event.previous, event.health), (Down, Up));
    assert!(changed.elapsed() < INTERVAL * 2 + TIMEOUT + SLACK);
    assert!(counter.passed.load(Ordering::Relaxed) >= 2, "not before the second pass");
    assert_eq!(handle.status(&key(1)).unwrap().health, Up);

    let failed = counter.failed.load(Ordering::Relaxed);
    drop(listener);
    let _refusing = Refusing::bind(address);
    let event = next(&mut events).await;
    assert_eq!((event.key, event.previous, event.health), (key(1), Up, Down));
    assert!(counter.failed.load(Ordering::Relaxed) >= failed + 3);
    assert_eq!(handle.reasons()[&key(1)], "connection refused");
    handle.stop().await.unwrap();
}

#[tokio::test]
async fn http_goes_down_and_comes_back() {
    let (handle, mut events) = start(10);
    let server = Server::start(V4, Conduct::send(OK)).await;
    handle.set_targets(vec![http(1, server.address)]);
    assert_eq!(next(&mut events).await.health, Up);

    server.change(Conduct::send("HTTP/1.1 503 Busy\r\n\r\n"));
    let event = next(&mut events).await;
    assert_eq!((event.health, event.reason.as_str()), (Down, "status 503, expected 200-299"));

    // Another reason comes without an event.
    server.change(Conduct::hang("220 mail.example ESMTP\r\n"));
    until("the new reason", || handle.reasons()[&key(1)] == "not an HTTP answer").await;

    server.change(Conduct::send(OK));
    let event = next(&mut events).await;
    assert_eq!((event.previous, event.health), (Down, Up));
    assert_eq!(handle.statuses()[&key(1)].since, Some(event.at));
}

/// The promise to the operator, with a margin for the machine: down within `fall` x interval + timeout,
/// counted from the moment the server stops to answer.
#[tokio::test]
async fn a_server_that_hangs_is_down_in_time() {
    let (handle, mut events) = start(10);
    let server = Server::start(V4, Conduct::send(OK)).await;
    handle.set_targets(vec![Target { initial: Up, ..impatient(http(1, server.address)) }]);
    until("a check that passed", || handle.status(&key(1)).is_some_and(|s| s.last == LastResult::Passed))
        .await;
    server.change(Conduct::hang(""));
    let hung = Instant::now();
    let event = next(&mut events).await;
    assert!(hung.elapsed() < INTERVAL * 3 + INTERVAL + Duration::from_secs(2), "{:?}", hung.elapsed());
    assert_eq!((event.previous, event.health), (Up, Down));
    assert_eq!(event.reason, "connected, but no answer within 50ms");
}

#[tokio::test]
async fn a_removed_target_is_left_alone() {
    let (handle, mut events) = start(10);
    let server = Server::start(V4, Conduct::send(OK)).await;
    let other = Server::start(V4, Conduct::send(OK)).await;
    handle.set_targets(vec![http(1, server.address), http(2, other.address)]);
    let both = [next(&mut events).await.key, next(&mut events).await.key];
    assert!(both.contains(&key(1)) && both.contains(&key(2)));

    handle.set_targets(vec![http(2, other.address)]);
    until("the removal", || handle.status(&key(1)).is_none()).await;
    until("the last connection's end", || server.open() == 0).await;
    let (before, others) = (server.accepted(), other.accepted());
    until("checks of the other", || other.accepted() >= others + 10).await;
    // A connection that was in the backlog when its check was aborted may still come up.
    assert!(server.accepted() <= before + 1);
}

#[tokio::test]
async fn a_removed_target_ends_its_running_check() {
    let (handle, _events) = start(10);
    let server = Server::start(V4, Conduct::hang("")).await;
    let mut target = http(1, server.address);
    Arc::make_mut(&mut target.spec).timeout = Duration::from_secs(3600);
    handle.set_targets(vec![target]);
    until("a check that hangs", || server.open() == 1).await;
    handle.set_targets(Vec::new());
    until("its end", || server.open() == 0).await;
}

#[tokio::test]
async fn no_check_is_up_at_once() {
    let (handle, mut events) = start(10);
    let mut target = tcp(1, "192.0.2.1:1".parse().unwrap());
    Arc::make_mut(&mut target.spec).check = HealthCheck::None;
    Arc::make_mut(&mut target.spec).interval = Duration::from_secs(3600);
    handle.set_targets(vec![target]);
    let event = next(&mut events).await;
    assert_eq!((event.health, event.reason.as_str()), (Up, "not checked"));
}

#[tokio::test]
async fn a_receiver_that_does_not_listen_delays_and_loses_nothing() {
    let (handle, mut events) = start(1);
    let server = Server::start(V4, Conduct::send(OK)).await;
    let targets: Vec<_> = (0..50).map(|n| http(n, server.address)).collect();
    let all = |health: Health| {
        let statuses = handle.statuses();
        statuses.len() == 50 && statuses.values().all(|status| status.health == health)
    };
    handle.set_targets(targets);
    until("all up", || all(Up)).await;
    server.change(Conduct::send("HTTP/1.1 500 Oops\r\n\r\n"));
    until("all down, with the events of before unread", || all(Down)).await;

    let mut told: HashMap<TargetKey, Health> = HashMap::new();
    while told.len() < 50 || told.values().any(|health| *health != Down) {
        let event = next(&mut events).await;
        let before = told.insert(event.key, event.health).unwrap_or(Unknown);
        assert_eq!(before, event.previous);
    }
    // One event was in the channel, the other 49 targets' have become one each.
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn the_limit_of_running_checks_is_kept_and_nobody_starves() {
    let (sender, mut events) = mpsc::channel(100);
    let handle = HealthTask::spawn_limited(sender, Arc::new(NoObserver), 4);
    let server = Server::start(V4, Conduct::hang("")).await;
    handle.set_targets((0..20).map(|n| impatient(http(n, server.address))).collect());
    let mut down = std::collections::HashSet::new();
    while down.len() < 20 {
        let event = next(&mut events).await;
        assert_eq!(event.health, Down);
        down.insert(event.key);
    }
    // The server learns of a connection's end a little later than the task.
    assert!(server.most_open() <= 8, "{} at once", server.most_open());
}

#[tokio::test]
async fn it_ends_with_its_handle_or_its_receiver() {
    let server = Server::start(V4, Conduct::hang("")).await;
    let target = Target { initial: Up, ..http(1, server.address) };

    let (handle, mut events) = start(10);
    handle.set_targets(vec![target.clone()]);
    until("a check", || server.open() > 0).await;
    drop(handle);
    assert_eq!(tokio::time::timeout(SLACK, events.recv()).await.unwrap(), None);
    until("no connection", || server.open() == 0).await;

    let (handle, events) = start(10);
    handle.set_targets(vec![target]);
    until("a check", || server.open() > 0).await;
    drop(events);
    until("the end", || handle.task.is_finished()).await;
    until("no connection", || server.open() == 0).await;
}

/// A check that panics is a bug here: its target is neither taken down nor forgotten.
#[tokio::test]
async fn a_panic_is_not_the_backends_fault() {
    let targets = [Target { initial: Up, ..tcp(1, "127.0.0.1:1".parse().unwrap()) }];
    let mut shell = Shell {
        observer: Arc::new(NoObserver),
        way: VipWay::default(),
        max_running: 1,
        board: Arc::default(),
        roster: Roster::default(),
        outbox: Outbox::default(),
        checks: JoinSet::new(),
        running: HashMap::new(),
        complained: None,
        begun: Instant::now(),
    };
    let applied = shell.roster.apply(&targets, Instant::now(), SystemTime::now());
    shell.applied(applied);
    let due = shell.roster.next_due().unwrap();
    let job = shell.roster.start(due).unwrap();
    let check = shell.checks.spawn(async { panic!("on purpose, in a test") });
    shell.running.insert(job.id, check);
    let ended = shell.checks.join_next().await.unwrap();
    shell.ended(ended);
    assert!(shell.running.is_empty() && shell.outbox.is_empty());
    assert!(shell.roster.next_due().is_some(), "it is checked again");
    let status = shell.board.lock()[&key(1)].clone();
    assert_eq!(
        (status.health, status.last.clone()),
        (Up, LastResult::Inconclusive(ProbeFailure::Internal.into()))
    );
}

/// Two thousand targets, half of them hanging: all are decided, and when they are removed nothing is
/// left of them, neither tasks nor sockets.
#[tokio::test]
async fn two_thousand_targets_come_and_go() {
    const N: usize = 2000;
    let metrics = tokio::runtime::Handle::current().metrics();
    // Enough room in the backlog for a burst: a SYN that is dropped comes again after a second.
    let listener = Refusing::bind((V4, 0).into()).listen(4096);
    let quick = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let _ = listener.accept().await;
        }
    });
    let silent = Server::start(V4, Conduct::hang("")).await;
    let (sender, mut events) = mpsc::channel(64);
    let handle = HealthTask::spawn_limited(sender, Arc::new(NoObserver), 200);
    tokio::task::yield_now().await;
    let tasks = metrics.num_alive_tasks();

    let targets = (0..N).map(|n| {
        let mut target = if n % 2 == 0 { tcp(n, quick) } else { impatient(http(n, silent.address)) };
        Arc::make_mut(&mut target.spec).interval = Duration::from_secs(1);
        let spec = Arc::make_mut(&mut target.spec);
        (spec.rise, spec.fall) = (1, 1);
        target
    });
    handle.set_targets(targets.collect());
    let mut health = HashMap::new();
    while health.len() < N
        || health.iter().any(|(key, health)| {
            let n: usize = key_number(key);
            *health != if n.is_multiple_of(2) { Up } else { Down }
        })
    {
        let event = next(&mut events).await;
        health.insert(event.key, event.health);
    }
    until("some checks to run", || silent.open() > 0).await;
    handle.set_targets(Vec::new());
    until("no tasks left", || metrics.num_alive_tasks() <= tasks).await;
    assert_eq!(handle.statuses().len(), 0);
    until("no sockets left", || {
        sockets_to(quick.port()).is_empty() && sockets_to(silent.address.port()).is_empty()
    })
    .await;
    handle.stop().await.unwrap();
}

fn key_number(key: &TargetKey) -> usize {
    key.backend.as_str()["web".len()..].parse().unwrap()
}
