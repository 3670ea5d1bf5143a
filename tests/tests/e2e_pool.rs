//! Backends that are missing: who stands in, what clients are told, and who hears of it.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::{self, Connection, Requests},
    lab::{Node, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
    web::WebServer,
};
use lb_userspace::{
    control::api::{BackendView, PoolView},
    model::ServiceState,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// A client that has not been told for so long would not have been told.
const SILENCE: Duration = Duration::from_millis(700);
/// Refused clients know it by then: the goal is 100 ms, which a busy machine may need to wake them up.
const AT_ONCE: Duration = Duration::from_millis(100);

const OFTEN: &str =
    "type = \"http\"\npath = \"/healthz\"\ninterval = \"250ms\"\ntimeout = \"250ms\"\nrise = 1\nfall = 3";

fn www(topology: &Topology, nodes: &[Node], extra: &str) -> Service {
    Service::www([topology.vip4(), topology.vip6()]).nodes(nodes).health(OFTEN).extra(extra)
}

/// A section of the service written last.
fn backup(node: &Node) -> String {
    let Node { name, v4, .. } = node;
    format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{v4}\"\nbackup = true\n")
}

fn state_is(balancer: &Balancer<'_>, service: &str, state: ServiceState) -> Result<PoolView> {
    wait_until(&format!("{service} to be {state}"), PATIENCE, || {
        balancer.service(service).pool.state == state
    })?;
    Ok(balancer.service(service).pool)
}

/// Sets what `/healthz` of each server answers; waits until the checks have seen it.
fn healthy(balancer: &Balancer<'_>, servers: &[WebServer], wanted: &[bool]) -> Result<()> {
    for (server, up) in servers.iter().zip(wanted) {
        server.set_healthy(*up)?;
    }
    wait_until("the checks", PATIENCE, || {
        let backends = balancer.service("www").backends;
        let seen = |server: &WebServer, up: bool| {
            let health = backends.iter().find(|b| b.name == server.name()).map(|b| b.health.to_string());
            health.as_deref() == Some(if up { "up" } else { "down" })
        };
        servers.iter().zip(wanted).all(|(server, up)| seen(server, *up))
    })
}

fn targets(topology: &Topology) -> [SocketAddr; 2] {
    [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80))
}

/// Who answers new connections.
fn answered_by(topology: &Topology) -> Vec<String> {
    let report = Requests::to_all(targets(topology)).timeout(PATIENCE).run(&topology.client.ns, 60);
    report.assert_all_answered();
    report.answers.keys().cloned().collect()
}

fn metric(balancer: &Balancer<'_>, name: &str, labels: &[&str]) -> f64 {
    let target = SocketAddr::from(([127, 0, 0, 1], 9750));
    let answer = client::get(&balancer.node.ns, target, "/metrics", PATIENCE).expect("metrics");
    let text = String::from_utf8(answer.body).expect("text");
    let line = text.lines().find(|line| line.starts_with(name) && labels.iter().all(|l| line.contains(l)));
    let line = line.unwrap_or_else(|| panic!("no {name} with {labels:?}:\n{text}"));
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

/// The quickest of some refusals of new connections.
fn refused_within(topology: &Topology, target: SocketAddr) -> Duration {
    let once = || {
        let start = Instant::now();
        let error = TcpStream::connect_timeout(&target, PATIENCE).expect_err("nobody serves");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{target}");
        start.elapsed()
    };
    topology.client.ns.run(|| (0..10).map(|_| once()).min().expect("some"))
}

/// What a client hears of a datagram.
fn datagram(topology: &Topology, target: SocketAddr) -> ErrorKind {
    topology.client.ns.run(|| {
        let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).expect("a socket");
        socket.connect(target).expect("an address");
        socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
        socket.send(b"hello").expect("sent");
        socket.recv(&mut [0; 16]).expect_err("nobody serves").kind()
    })
}

/// `curl`'s exit status 7 is "connection refused", 28 a timeout.
fn curl(topology: &Topology, target: SocketAddr) -> Option<i32> {
    let mut command = topology.client.ns.command("curl");
    command.args(["-gs", "--max-time", "1", &format!("http://{target}/")]);
    command.output().expect("curl").status.code()
}

#[test]
fn rejected_clients_fail_fast_and_dropped_ones_wait() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("curl"));
    for forward in ["dsr", "ipip", "nat"] {
        let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
        let servers = web_servers(&topology, 0)?;
        // NAT between equal IP versions.
        let addresses =
            if forward == "nat" { vec![topology.vip4()] } else { targets(&topology).map(|t| t.ip()).into() };
        let tcp = || Service::www(addresses.clone()).nodes(&topology.backends).forward(forward);
        let udp =
            tcp().name("echo").udp().port(7).health("type = \"icmp\"").extra("on_all_down = \"reject\"");
        let settings = Settings::of([tcp().health(OFTEN).extra("on_all_down = \"reject\""), udp]);
        let mut balancer = Balancer::start(&topology, settings)?;
        state_is(&balancer, "www", ServiceState::Up)?;
        // One connection that is established when everybody goes.
        let mut kept = match forward {
            "dsr" => Some(
                Connection::open(&topology.client.ns, SocketAddr::new(topology.vip4(), 80), PATIENCE)
                    .expect("connected"),
            ),
            _ => None,
        };
        if let Some(kept) = &mut kept {
            kept.get("/").expect("an answer");
        }
        healthy(&balancer, &servers, &[false, false])?;
        let pool = state_is(&balancer, "www", ServiceState::Down)?;
        assert_eq!((pool.up, pool.enabled, pool.healthy), (false, 2, 0));
        assert_eq!(metric(&balancer, "lbd_service_up", &["www"]), 0.0);
        if let Some(kept) = &mut kept {
            let start = Instant::now();
            kept.get("/").expect_err("its backend is gone");
            assert!(start.elapsed() < PATIENCE, "it is told too");
        }
        for name in ["web1", "web2"] {
            balancer.lbctl(&["backend", "disable", "echo", name]);
        }
        for vip in addresses.clone() {
            let before = balancer.dropped("rejected");
            let quickest = refused_within(&topology, SocketAddr::new(vip, 80));
            assert!(quickest < AT_ONCE, "{forward}, {vip}: {quickest:?}");
            assert!(balancer.dropped("rejected") >= before + 10);
            assert_eq!(curl(&topology, SocketAddr::new(vip, 80)), Some(7), "{forward}, {vip}");
            let told = datagram(&topology, SocketAddr::new(vip, 7));
            assert_eq!(told, ErrorKind::ConnectionRefused, "{forward}, {vip}");
            let source = if vip.is_ipv4() { "10.1.0.2:4000" } else { "[fd00:1::2]:4000" };
            let explained = balancer.explain("tcp", source, &SocketAddr::new(vip, 80).to_string());
            assert_eq!(explained.verdict, "reject", "{explained:?}");
            assert!(explained.reason.starts_with("rejected: "), "{explained:?}");
        }
        // The same without: the client waits.
        balancer.configure(|settings| {
            for service in &mut settings.services {
                service.extra.clear();
            }
        })?;
        balancer.reload();
        for vip in addresses {
            assert_eq!(curl(&topology, SocketAddr::new(vip, 80)), Some(28), "{forward}, {vip}");
            assert_eq!(
                datagram(&topology, SocketAddr::new(vip, 7)),
                ErrorKind::WouldBlock,
                "{forward}, {vip}"
            );
        }
        assert!(balancer.dropped("no_backend") > 0);
        healthy(&balancer, &servers, &[true, true])?;
        state_is(&balancer, "www", ServiceState::Up)?;
    }
    Ok(())
}

#[test]
fn a_backup_takes_over_and_hands_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 4, ..Shape::default() })?;
    let servers = web_servers(&topology, 0)?;
    let (primaries, sorry) = (&topology.backends[..3], &topology.backends[3]);
    let service = www(&topology, primaries, "quorum_up = 3\nquorum_down = 2");
    let settings = Settings { rest: backup(sorry), ..Settings::of([service]) };
    let mut balancer = Balancer::start(&topology, settings)?;
    healthy(&balancer, &servers, &[true; 4])?;
    let view = balancer.service("www");
    let role =
        |view: &[BackendView], name: &str| view.iter().find(|b| b.name == name).map(|b| (b.backup, b.slots));
    assert_eq!(role(&view.backends, "web4"), Some((true, 0)));
    assert_eq!(answered_by(&topology), ["web1", "web2", "web3"]);
    let shown = balancer.lbctl(&["service", "show", "www"]);
    assert!(
        shown.contains("ROLE") && shown.contains("backup") && shown.contains("up with 3, down below 2"),
        "{shown}"
    );

    // Two are still a quorum; one is none, and the backup serves in its place.
    healthy(&balancer, &servers, &[true, true, false, true])?;
    let pool = state_is(&balancer, "www", ServiceState::Up)?;
    assert_eq!((pool.healthy, pool.enabled), (2, 3));
    assert_eq!(answered_by(&topology), ["web1", "web2"]);
    let mut kept = Connection::open(&topology.client.ns, targets(&topology)[0], PATIENCE).expect("connected");
    let of = kept.get("/").expect("an answer").backend().to_owned();
    let other = if of == "web1" { 1 } else { 0 };
    let mut left = [true, true, false, true];
    left[other] = false;
    healthy(&balancer, &servers, &left)?;
    let pool = state_is(&balancer, "www", ServiceState::DownBackup)?;
    assert!(!pool.up && pool.healthy == 1, "{pool:?}");
    assert_eq!(answered_by(&topology), ["web4"]);
    // Whose backend lives keeps it.
    assert_eq!(kept.get("/").expect("an answer").backend(), of);

    // Hysteresis: two were enough to stay up and are not enough to come up; and the next daemon knows it.
    healthy(&balancer, &servers, &[true, true, false, true])?;
    assert_eq!(state_is(&balancer, "www", ServiceState::DownBackup)?.healthy, 2);
    balancer.kill();
    balancer.restart()?;
    assert_eq!(state_is(&balancer, "www", ServiceState::DownBackup)?.healthy, 2);
    assert_eq!(answered_by(&topology), ["web4"]);
    let mut at_backup =
        Connection::open(&topology.client.ns, targets(&topology)[1], PATIENCE).expect("connected");
    assert_eq!(at_backup.get("/").expect("an answer").backend(), "web4");
    healthy(&balancer, &servers, &[true; 4])?;
    state_is(&balancer, "www", ServiceState::Up)?;
    assert_eq!(answered_by(&topology), ["web1", "web2", "web3"]);
    // It hands new connections back, and keeps its own.
    assert_eq!(at_backup.get("/").expect("an answer").backend(), "web4");
    assert_eq!(kept.get("/").expect("an answer").backend(), of);

    // Without any backup that can, those that are left serve on.
    healthy(&balancer, &servers, &[true, false, false, false])?;
    state_is(&balancer, "www", ServiceState::DownDegraded)?;
    assert_eq!(answered_by(&topology), ["web1"]);
    // One added at run time stands in as well.
    balancer.lbctl(&["backend", "remove", "www", "web3"]);
    balancer.lbctl(&["backend", "remove", "www", "web4"]);
    let address = sorry.v4.to_string();
    servers[3].set_healthy(true)?;
    balancer.lbctl(&["backend", "add", "www", "sorry", &address, "--backup"]);
    state_is(&balancer, "www", ServiceState::DownBackup)?;
    balancer.wait_for_backend("sorry to be up", "www", "sorry", PATIENCE, |b| b.backup && b.slots > 0)?;
    assert_eq!(answered_by(&topology), ["web4"]);
    Ok(())
}

#[test]
fn in_panic_all_enabled_backends_are_used() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 4, ..Shape::default() })?;
    let servers = web_servers(&topology, 0)?;
    let service = www(&topology, &topology.backends, "panic_threshold = \"50%\"\non_all_down = \"reject\"");
    let mut balancer = Balancer::start(&topology, Settings::of([service]))?;
    healthy(&balancer, &servers, &[true; 4])?;
    balancer.lbctl(&["backend", "disable", "www", "web4"]);
    // Two of three are enough, one of three is not. The servers themselves are well; their checks fail.
    healthy(&balancer, &servers, &[true, true, false, false])?;
    state_is(&balancer, "www", ServiceState::Up)?;
    assert_eq!(answered_by(&topology), ["web1", "web2"]);
    healthy(&balancer, &servers, &[true, false, false, false])?;
    let pool = state_is(&balancer, "www", ServiceState::UpPanic)?;
    assert_eq!((pool.up, pool.healthy, pool.enabled), (true, 1, 3));
    assert_eq!(answered_by(&topology), ["web1", "web2", "web3"], "not the disabled one");
    assert_eq!(metric(&balancer, "lbd_service_state", &["www", "up-panic"]), 1.0);
    assert!(balancer.lbctl(&["service", "show", "www"]).contains("PANIC"));
    assert!(balancer.process().log().contains("PANIC"));
    healthy(&balancer, &servers, &[false; 4])?;
    state_is(&balancer, "www", ServiceState::DownPanic)?;
    assert_eq!(metric(&balancer, "lbd_service_up", &["www"]), 0.0);
    assert_eq!(answered_by(&topology), ["web1", "web2", "web3"]);
    // Who was told not to panic, does not.
    balancer.configure(|settings| settings.services[0].extra = "on_all_down = \"reject\"\n".to_owned())?;
    balancer.reload();
    state_is(&balancer, "www", ServiceState::Down)?;
    refused_within(&topology, targets(&topology)[0]);
    Ok(())
}

/// A script that writes a line for each event, and where.
fn script(topology: &Topology, name: &str, line: &str) -> (PathBuf, PathBuf) {
    let directory = topology.lab.dir().join(name);
    fs::create_dir(&directory).expect("a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("for everybody");
    let (script, output) = (directory.join("hook"), directory.join("events"));
    fs::write(&script, format!("#!/bin/sh\n{line} >> {}\n", output.display())).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("executable");
    (script, output)
}

#[test]
fn hooks_are_told_in_order() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let servers = web_servers(&topology, 0)?;
    // The directory of a lab may be its owner's alone.
    fs::set_permissions(topology.lab.dir(), fs::Permissions::from_mode(0o755)).expect("for everybody");
    let (all, all_events) = script(&topology, "all", "sleep 0.1; echo \"$1 $2 $3 $4 $5 $(id -un)\"");
    let (own, own_events) = script(&topology, "own", "echo \"$LBD_SEQ $LBD_TYPE $LBD_SERVICE $LBD_TO\"");
    let service = www(&topology, &topology.backends, "quorum_up = 2");
    let other = Service::www([topology.vip4()]).name("other").port(81).nodes(&topology.backends[..1]);
    let hook = |section: &str, path: &PathBuf| format!("[[{section}]]\ncommand = [\"{}\"]\n", path.display());
    let mut settings = Settings::of([other, service]);
    settings.rest = format!(
        "{}{}[[notify]]\ncommand = [\"/bin/sh\", \"-c\", \"sleep 600\"]\ntimeout = \"100ms\"\n",
        hook("service.notify", &own),
        hook("notify", &all)
    );
    let balancer = Balancer::start(&topology, settings)?;
    let lines = |file: &PathBuf| -> Vec<String> {
        fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let wait = |file: &PathBuf, last: &str| {
        wait_until(&format!("'{last}'"), PATIENCE, || lines(file).iter().any(|line| line.ends_with(last)))
            .unwrap_or_else(|error| panic!("{error}: {:?}", lines(file)));
    };
    healthy(&balancer, &servers, &[true, true])?;
    healthy(&balancer, &servers, &[true, false])?;
    wait(&all_events, "SERVICE www - up down-degraded nobody");
    healthy(&balancer, &servers, &[false, false])?;
    wait(&all_events, "SERVICE www - down-degraded down nobody");
    healthy(&balancer, &servers, &[true, true])?;
    wait(&all_events, " up nobody");
    wait_until("both to be back", PATIENCE, || balancer.service("www").pool.state == ServiceState::Up)?;
    wait_until("the last event", PATIENCE, || {
        lines(&all_events).iter().filter(|line| line.starts_with("SERVICE www")).count() >= 4
            && lines(&all_events)
                .iter()
                .rev()
                .find(|l| l.starts_with("SERVICE www"))
                .is_some_and(|l| l.contains(" up nobody"))
    })?;
    let heard = lines(&all_events);
    let of = |wanted: &str| heard.iter().filter(|line| line.contains(wanted)).cloned().collect::<Vec<_>>();
    assert_eq!(&of("SERVICE other")[..], ["SERVICE other - new up nobody"]);
    let of_www = of("SERVICE www");
    assert_eq!(
        &of_www[..3],
        [
            "SERVICE www - new up nobody",
            "SERVICE www - up down-degraded nobody",
            "SERVICE www - down-degraded down nobody"
        ]
    );
    assert_eq!(
        of("BACKEND www web2"),
        ["unknown up", "up down", "down up"].map(|change| format!("BACKEND www web2 {change} nobody"))
    );
    // What follows from a backend comes behind it.
    let at = |line: &str| heard.iter().position(|l| l == line).unwrap_or_else(|| panic!("{line}: {heard:?}"));
    assert!(at("BACKEND www web2 up down nobody") < at("SERVICE www - up down-degraded nobody"), "{heard:?}");
    // A service's own hook hears of it alone, in the order of the numbers.
    let own = lines(&own_events);
    assert!(own.iter().all(|line| line.contains(" www ")), "{own:?}");
    let numbers: Vec<u64> =
        own.iter().map(|l| l.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")).collect();
    assert!(numbers.is_sorted() && numbers.len() >= 8, "{own:?}");
    // One that hangs is ended, and holds up nobody.
    wait_until("the timeouts", PATIENCE, || metric(&balancer, "lbd_notify_runs_total", &["timeout"]) >= 3.0)?;
    assert!(metric(&balancer, "lbd_notify_runs_total", &["ok"]) >= 8.0);
    assert_eq!(metric(&balancer, "lbd_notify_runs_total", &["failed"]), 0.0);
    Ok(())
}
