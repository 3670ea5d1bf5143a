//! The dataplane outlives the daemon: kills, restarts, reloads and a removal, all under load.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, START, Service, Settings, assert_shares, text, web_servers},
    client::{Connection, Load, Requests},
    lab::{Arms, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

/// A gentle load on both virtual addresses; every request is a connection of its own.
fn load(topology: &Topology) -> Load {
    let targets = [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80));
    Requests::to_all(targets)
        .concurrency(4)
        .timeout(PATIENCE)
        .pause(Duration::from_millis(2))
        .start(&topology.client.ns)
}

/// Waits until so many more requests were answered.
fn more(load: &Load, count: u64) -> Result<()> {
    let before = load.report().ok();
    wait_until("requests to be answered", PATIENCE, || load.report().ok() >= before + count)
}

fn answers(topology: &Topology) -> bool {
    let vips = [topology.vip4(), topology.vip6()];
    Requests::to_all(vips.map(|vip| SocketAddr::new(vip, 80)))
        .timeout(Duration::from_secs(2))
        .run(&topology.client.ns, 20)
        .failed_count()
        == 0
}

/// Connections that stay open, one at least on every backend.
fn keep_alive(topology: &Topology, backends: usize) -> Vec<(String, Connection)> {
    let target = SocketAddr::new(topology.vip4(), 80);
    let mut kept: Vec<(String, Connection)> = Vec::new();
    for _ in 0..200 {
        let mut connection = Connection::open(&topology.client.ns, target, PATIENCE).expect("connected");
        let backend = connection.get("/").expect("an answer").backend().to_owned();
        if kept.iter().filter(|(name, _)| *name == backend).count() < 3 {
            kept.push((backend, connection));
        }
        if kept.len() == 3 * backends {
            return kept;
        }
    }
    panic!("not every backend answers: {:?}", kept.iter().map(|(name, _)| name).collect::<Vec<_>>());
}

/// The same backend answers on each connection as did before.
fn still_there(kept: &mut [(String, Connection)], when: &str) {
    for (backend, connection) in kept {
        let answer = connection.get("/").unwrap_or_else(|e| panic!("{when}: on {backend}: {e}"));
        assert_eq!(answer.backend(), backend, "{when}");
    }
}

#[test]
fn sigkill_restart_and_one_backend_more_fail_no_request() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).checked().nodes(&topology.backends[..2]);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let program = balancer.xdp_program("eth0").expect("a program");
    let mut kept = keep_alive(&topology, 2);
    let load = load(&topology);
    more(&load, 300)?;

    let counted = balancer.service("www");
    balancer.kill();
    more(&load, 500)?;
    assert_eq!(balancer.xdp_program("eth0"), Some(program));
    assert!(!balancer.lbctl_output(&["status"]).status.success(), "nobody answers on the socket");
    still_there(&mut kept, "without a daemon");

    balancer.restart()?;
    assert_eq!(balancer.xdp_program("eth0"), Some(program), "the pins were not adopted");
    let now = balancer.service("www");
    assert!(now.packets >= counted.packets + 3 * 500, "from {} to {}", counted.packets, now.packets);
    for (before, after) in counted.backends.iter().zip(&now.backends) {
        assert!(after.packets > before.packets, "{before:?} became {after:?}");
    }
    more(&load, 300)?;
    still_there(&mut kept, "after the restart");

    balancer.configure(|settings| {
        let node = &topology.backends[2];
        settings.services[0] = settings.services[0].clone().backend(&node.name, node.v4, 100);
    })?;
    let change = balancer.reload();
    assert!(!change.planned_only && change.changes.iter().any(|c| c.contains("web3")), "{change:?}");
    more(&load, 500)?;
    still_there(&mut kept, "after the reload");
    let report = load.stop();
    report.assert_all_answered();
    assert!(report.count("web3") > 0, "{report}");
    let target = SocketAddr::new(topology.vip4(), 80);
    let report = Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 3_000);
    report.assert_all_answered();
    assert_shares(&report, &[("web1", 1), ("web2", 1), ("web3", 1)]);
    still_there(&mut kept, "at the end");
    Ok(())
}

#[test]
fn forwarding_goes_on_after_sigterm_and_sighup_takes_a_new_file() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { arms: Arms::Two, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let programs = ["eth0", "eth1"].map(|name| balancer.xdp_program(name));
    assert!(programs.iter().all(Option::is_some), "{programs:?}");
    let load = load(&topology);
    more(&load, 200)?;
    balancer.stop()?;
    assert!(!balancer.socket().exists(), "the socket of a daemon that ended in order is gone");
    more(&load, 300)?;
    balancer.restart()?;
    assert_eq!(["eth0", "eth1"].map(|name| balancer.xdp_program(name)), programs);
    assert!(!balancer.process().log().contains("replaced the program"), "it is the same program");

    // A service more, by a signal.
    balancer.configure(|settings| {
        let second = settings.services[0].clone().name("www8080").port(8080);
        settings.services.push(second);
    })?;
    balancer.process().signal(Signal::SIGHUP);
    wait_until("the second service", PATIENCE, || balancer.services().len() == 2)?;
    // And away again: its port is the kernel's once more.
    balancer.configure(|settings| settings.services.truncate(1))?;
    balancer.process().signal(Signal::SIGHUP);
    wait_until("the second service to go", PATIENCE, || balancer.services().len() == 1)?;
    let explained = balancer.explain("tcp", "10.1.0.2:4000", "192.0.2.10:8080");
    assert_eq!(explained.verdict, "pass", "{explained:?}");
    load.stop().assert_all_answered();
    Ok(())
}

#[test]
fn a_bad_file_is_refused_and_the_running_configuration_stays() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    let (before, good) = (balancer.config(), balancer.config_text());
    let load = load(&topology);
    for (bad, said) in [
        (good.replace("weight = 100", "weight = \"much\""), "weight"),
        (good.replace("forward = \"dsr\"", "forward = \"teleport\""), "teleport"),
        (format!("{good}]"), "lbd.toml:"),
    ] {
        balancer.write_text(&bad)?;
        let output = balancer.lbctl_output(&["reload"]);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.contains("lbd.toml:") && err.contains(said), "{err}");
        let log = balancer.process().log().len();
        balancer.process().signal(Signal::SIGHUP);
        wait_until("the refusal in the log", PATIENCE, || {
            balancer.process().log()[log..].contains("reload refused")
        })?;
        assert_eq!(balancer.config(), before);
    }
    // Settings that only a start reads are named, and nothing of the rest is taken.
    balancer.write_text(&good.replace("/run\"", "/run2\"").replace("weight = 100", "weight = 7"))?;
    let output = balancer.lbctl_output(&["reload"]);
    let err = text(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("run_dir") && err.contains("restart"), "{err}");
    assert_eq!(balancer.config(), before);
    // A plan touches nothing.
    balancer.write_text(&good.replace("weight = 100", "weight = 7"))?;
    let plan: lb_userspace::control::api::ChangeView = balancer.json(&["reload", "--plan"]);
    assert!(plan.planned_only && plan.changes.len() == 3, "{plan:?}");
    assert_eq!(balancer.config(), before);
    load.stop().assert_all_answered();
    Ok(())
}

#[test]
fn detaching_removes_everything_by_either_way() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { arms: Arms::Two, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let nothing_is_left = |balancer: &Balancer<'_>, how: &str| {
        assert_eq!(["eth0", "eth1"].map(|name| balancer.xdp_program(name)), [None, None], "{how}");
        assert_eq!(balancer.pins(), Vec::<String>::new(), "{how}");
        assert!(!balancer.pin_dir().exists(), "{how}");
    };
    assert!(answers(&topology));
    assert!(!balancer.lbctl_output(&["detach"]).status.success(), "it wants to be sure");
    assert!(answers(&topology));
    let output = balancer.run_lbd(&["--detach"]);
    let err = text(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("in use by another lbd"), "{err}");
    assert!(answers(&topology));

    balancer.lbctl(&["detach", "--yes"]);
    let status = balancer.process().wait(PATIENCE)?;
    assert!(status.success(), "{status}");
    nothing_is_left(&balancer, "lbctl detach");

    balancer.restart()?;
    assert!(answers(&topology));
    balancer.kill();
    assert!(answers(&topology));
    for round in ["lbd --detach", "again"] {
        let output = balancer.run_lbd(&["--detach"]);
        assert!(output.status.success(), "{round}: {}", text(&output.stderr));
        nothing_is_left(&balancer, round);
    }
    assert!(!answers(&topology));
    Ok(())
}

#[test]
fn a_second_daemon_is_refused() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    let mode = std::fs::metadata(balancer.socket()).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    let pins = balancer.pins();
    let program = balancer.xdp_program("eth0");

    let output = balancer.run_lbd(&[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("another lbd") && err.lines().count() == 1, "{err}");

    // With another run_dir, but the same pins.
    balancer.write_text(
        &(balancer.config_text().replace("/run\"", "/run2\"") + "\n[metrics]\nlisten = \"off\"\n"),
    )?;
    let output = balancer.run_lbd(&[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("in use by another lbd") && err.contains("lbd-test-"), "{err}");

    assert_eq!((balancer.pins(), balancer.xdp_program("eth0")), (pins, program));
    assert!(balancer.process().is_running() && answers(&topology));
    balancer.status();
    Ok(())
}

/// What was pinned is also adopted where the daemon finds its state directory empty: the maps tell.
#[test]
fn a_restart_is_quick_and_changes_nothing() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).checked().nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let hash = balancer.status().config_hash;
    let pins = balancer.pins();
    let load = load(&topology);
    for round in 0..3 {
        balancer.kill();
        let begun = Instant::now();
        balancer.restart()?;
        assert!(begun.elapsed() < START / 4, "round {round} took {:?}", begun.elapsed());
        assert_eq!((balancer.status().config_hash, balancer.pins()), (hash.clone(), pins.clone()));
        let log = balancer.process().log();
        assert!(!log.contains("changing the maps"), "a restart changed the maps:\n{log}");
        more(&load, 100)?;
    }
    load.stop().assert_all_answered();
    Ok(())
}
