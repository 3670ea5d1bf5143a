//! Backends that die and come back while requests go on.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::{self, Connection, Report, Requests},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::model::Health;

const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(200);
const RISE: u32 = 2;
const FALL: u32 = 3;
/// For a machine that is busy with other tests.
const MARGIN: Duration = Duration::from_millis(1500);

fn checked(topology: &Topology) -> Service {
    Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends).health(&format!(
        "type = \"http\"\npath = \"/healthz\"\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\nrise = {RISE}\nfall = {FALL}",
        INTERVAL.as_millis(),
        TIMEOUT.as_millis()
    ))
}

fn health_is(balancer: &Balancer<'_>, backend: &str, health: Health) -> Result<()> {
    let what = format!("{backend} to be {health}");
    balancer.wait_for_backend(&what, "www", backend, PATIENCE, |b| b.health == health)
}

/// One connection that stays open on each backend.
fn keep_alive(topology: &Topology) -> Vec<(String, Connection)> {
    let target = SocketAddr::new(topology.vip4(), 80);
    let mut kept: Vec<(String, Connection)> = Vec::new();
    for _ in 0..200 {
        let mut connection = Connection::open(&topology.client.ns, target, PATIENCE).expect("connected");
        let backend = connection.get("/").expect("an answer").backend().to_owned();
        if kept.iter().all(|(name, _)| *name != backend) {
            kept.push((backend, connection));
        }
        if kept.len() == topology.backends.len() {
            return kept;
        }
    }
    panic!("not every backend answers");
}

fn metrics(balancer: &Balancer<'_>) -> String {
    let target = SocketAddr::from(([127, 0, 0, 1], 9750));
    let answer = client::get(&balancer.node.ns, target, "/metrics", PATIENCE).expect("metrics");
    String::from_utf8(answer.body).expect("text")
}

fn metric(balancer: &Balancer<'_>, name: &str, labels: &[&str]) -> f64 {
    let text = metrics(balancer);
    let line = text.lines().find(|line| line.starts_with(name) && labels.iter().all(|l| line.contains(l)));
    let line = line.unwrap_or_else(|| panic!("no {name} with {labels:?}:\n{text}"));
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

/// No failure after this moment of the load.
#[track_caller]
fn no_failure_after(report: &Report, limit: Duration) {
    assert!(report.failures.iter().all(|f| f.begun <= limit), "failures after {limit:?}: {report}");
}

#[test]
fn a_dead_backend_leaves_the_ring_and_comes_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let mut servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, Settings::of([checked(&topology)]))?;
    for node in &topology.backends {
        health_is(&balancer, &node.name, Health::Up)?;
    }
    let mut kept = keep_alive(&topology);
    let load = Requests::to_all([topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80)))
        .concurrency(4)
        .timeout(Duration::from_secs(5))
        .pause(Duration::from_millis(2))
        .start(&topology.client.ns);
    wait_until("some requests", PATIENCE, || load.report().ok() > 200)?;
    load.report().assert_all_answered();

    let killed = load.elapsed();
    servers[1].kill();
    health_is(&balancer, "web2", Health::Down)?;
    let noticed = load.elapsed();
    let allowed = INTERVAL * FALL + TIMEOUT + MARGIN;
    assert!(noticed - killed <= allowed, "down after {:?}", noticed - killed);
    // Long enough for the slowest request that met the dead one.
    std::thread::sleep(Duration::from_secs(1));
    let report = load.report();
    no_failure_after(&report, killed + allowed);
    assert!(report.failed_count() > 0, "the death was not met by a single request: {report}");
    assert!(report.answers["web2"].last_begun <= killed + MARGIN, "{report}");
    for (backend, connection) in &mut kept {
        let answer = connection.get("/");
        match answer {
            Ok(answer) => {
                assert_eq!(answer.backend(), backend);
            }
            Err(error) => assert_eq!(backend, "web2", "{error}"),
        }
    }
    kept.retain(|(backend, _)| backend != "web2");
    let view = balancer.service("www");
    let web2 = view.backends.iter().find(|b| b.name == "web2").expect("web2");
    assert!(
        web2.slots == 0 && web2.health_reason.as_ref().is_some_and(|r| r.contains("refused")),
        "{web2:?}"
    );
    assert_eq!(metric(&balancer, "lbd_backend_up", &["web2"]), 0.0);
    assert_eq!(metric(&balancer, "lbd_backend_up", &["web1"]), 1.0);

    let failed = load.report().failed_count();
    servers[1].start(&topology.lab)?;
    let started = Instant::now();
    let before = load.report().count("web2");
    wait_until("web2 to get requests again", PATIENCE, || load.report().count("web2") > before)?;
    let back = started.elapsed();
    assert!(back <= INTERVAL * RISE + TIMEOUT + MARGIN, "back after {back:?}");
    wait_until("some more requests", PATIENCE, || load.report().count("web2") > before + 50)?;
    for (backend, connection) in &mut kept {
        let answer = connection.get("/").unwrap_or_else(|e| panic!("{backend}: {e}"));
        assert_eq!(answer.backend(), backend);
    }
    let report = load.stop();
    assert_eq!(report.failed_count(), failed, "the return of web2 broke something: {report}");
    assert_eq!(metric(&balancer, "lbd_backend_up", &["web2"]), 1.0);
    Ok(())
}

/// A failing page is enough; the port still answers.
#[test]
fn a_status_that_is_not_accepted_takes_a_backend_out() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let servers = web_servers(&topology, 0)?;
    let mut balancer = Balancer::start(&topology, Settings::of([checked(&topology)]))?;
    health_is(&balancer, "web1", Health::Up)?;
    servers[0].set_healthy(false)?;
    health_is(&balancer, "web1", Health::Down)?;
    let view = balancer.service("www");
    assert!(view.backends[0].health_reason.as_ref().is_some_and(|r| r.contains("503")), "{view:?}");
    let target = SocketAddr::new(topology.vip6(), 80);
    let all_to_web2 = |when: &str| {
        let report = Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 100);
        report.assert_all_answered();
        assert_eq!(report.count("web2"), 100, "{when}: {report}");
    };
    all_to_web2("down");
    // The next daemon knows it from the maps, before its own first checks.
    balancer.kill();
    all_to_web2("without a daemon");
    balancer.restart()?;
    let view = balancer.service("www");
    assert_eq!((view.backends[0].health, view.backends[0].slots), (Health::Down, 0), "{view:?}");
    all_to_web2("after a restart");
    servers[0].set_healthy(true)?;
    health_is(&balancer, "web1", Health::Up)?;
    let report = Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 100);
    report.assert_all_answered();
    assert!(report.count("web1") > 0, "{report}");
    Ok(())
}

#[test]
fn a_backend_that_begins_down_gets_nothing_before_it_has_passed() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let servers = web_servers(&topology, 0)?;
    servers[1].set_healthy(false)?;
    // By failed checks alone it would never go down.
    let health = "type = \"http\"\npath = \"/healthz\"\ninterval = \"5s\"\nfast_interval = \"100ms\"\nfall = 255\n\
                  initial = \"down\"\nbackoff = \"10s\"";
    let service = Service::www([topology.vip4()]).nodes(&topology.backends).health(health);
    let balancer = Balancer::start(&topology, Settings::of([service]))?;
    health_is(&balancer, "web1", Health::Up)?;
    let target = SocketAddr::new(topology.vip4(), 80);
    for _ in 0..50 {
        let answer = client::get(&topology.client.ns, target, "/", PATIENCE).expect("an answer");
        assert_eq!(answer.backend(), "web1");
    }
    let view = balancer.service("www");
    let web2 = view.backends.iter().find(|b| b.name == "web2").expect("web2");
    assert_eq!((web2.health, web2.slots), (Health::Down, 0));
    servers[1].set_healthy(true)?;
    health_is(&balancer, "web2", Health::Up)
}

#[test]
fn with_all_down_packets_are_dropped_and_counted_until_one_is_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let mut servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, Settings::of([checked(&topology)]))?;
    let names = ["web1", "web2"];
    names.iter().try_for_each(|name| health_is(&balancer, name, Health::Up))?;
    assert_eq!(balancer.dropped("no_backend"), 0);
    servers.iter_mut().for_each(lb_tests::web::WebServer::kill);
    names.iter().try_for_each(|name| health_is(&balancer, name, Health::Down))?;
    for vip in [topology.vip4(), topology.vip6()] {
        let before = balancer.dropped("no_backend");
        let target = SocketAddr::new(vip, 80);
        client::get(&topology.client.ns, target, "/", Duration::from_millis(300)).expect_err("all are down");
        assert!(balancer.dropped("no_backend") > before);
        let source = if vip.is_ipv4() { "10.1.0.2:4000" } else { "[fd00:1::2]:4000" };
        let explained = balancer.explain("tcp", source, &target.to_string());
        assert_eq!(
            (explained.verdict.as_str(), explained.backend.as_deref()),
            ("drop", None),
            "{explained:?}"
        );
    }
    assert!(metric(&balancer, "lbd_drops_total", &["no_backend"]) > 0.0);
    servers[1].start(&topology.lab)?;
    health_is(&balancer, "web2", Health::Up)?;
    let report =
        Requests::to(SocketAddr::new(topology.vip4(), 80)).timeout(PATIENCE).run(&topology.client.ns, 50);
    report.assert_all_answered();
    assert_eq!(report.count("web2"), 50);
    Ok(())
}

/// A service with thousands of backends has as many checks under way, each with a socket.
#[test]
fn the_daemon_may_open_as_many_files_as_the_kernel_lets_it() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("prlimit"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let mut balancer = Balancer::prepare(&topology, Settings::of([checked(&topology)]))?;
    let lbd = balancer.lbd();
    let mut command = balancer.node.ns.command("prlimit");
    command.arg("--nofile=256:4096").arg(lbd.get_program()).args(lbd.get_args());
    balancer.restart_with(command)?;
    let limits =
        std::fs::read_to_string(format!("/proc/{}/limits", balancer.process().pid())).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    let numbers: Vec<&str> = line.split_whitespace().filter(|w| w.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers, ["4096", "4096"], "{line}");
    Ok(())
}
