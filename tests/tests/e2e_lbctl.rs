//! The command line against a running daemon: what it changes takes effect, lasts, is shown, and can be dropped.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, assert_shares, text, web_servers},
    client::{Connection, Report, Requests},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::{
    control::api::BackendView,
    model::{Admin, Health},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn www(topology: &Topology, backends: usize) -> Settings {
    Settings::of([Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends[..backends])])
}

fn requests(topology: &Topology, count: u64) -> Report {
    let vips = [topology.vip4(), topology.vip6()];
    let report = Requests::to_all(vips.map(|vip| SocketAddr::new(vip, 80)))
        .timeout(PATIENCE)
        .run(&topology.client.ns, count);
    report.assert_all_answered();
    report
}

fn backend(balancer: &Balancer<'_>, name: &str) -> Option<BackendView> {
    balancer.service("www").backends.into_iter().find(|b| b.name == name)
}

/// Where the setting of this name comes from, and its value.
fn setting(balancer: &Balancer<'_>, key: &str) -> Option<(String, serde_json::Value)> {
    balancer.config().settings.into_iter().find(|s| s.key == key).map(|s| (s.origin, s.value))
}

#[test]
fn runtime_changes_take_effect_last_and_can_be_dropped() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 4, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let mut balancer = Balancer::start(&topology, www(&topology, 3))?;
    assert_shares(&requests(&topology, 2_000), &[("web1", 1), ("web2", 1), ("web3", 1)]);
    let hash = balancer.status().config_hash;

    let web4 = topology.backends[3].v4.to_string();
    balancer.lbctl(&["backend", "add", "www", "web4", &web4, "--weight", "200"]);
    balancer.wait_for_backend("web4's next hop", "www", "web4", PATIENCE, |b| b.reachable && b.slots > 0)?;
    balancer.lbctl(&["backend", "weight", "www", "web1", "300"]);
    balancer.lbctl(&["backend", "remove", "www", "web2"]);
    let changed = [("web1", 300), ("web3", 100), ("web4", 200)];
    assert_shares(&requests(&topology, 2_000), &changed);

    let shown = |balancer: &Balancer<'_>| {
        let runtime =
            |key: &str| setting(balancer, key).filter(|(origin, _)| origin == "runtime").map(|s| s.1);
        assert_eq!(runtime("service.www.backend.web4.address"), Some(web4.as_str().into()));
        assert_eq!(runtime("service.www.backend.web4.weight"), Some(200.into()));
        assert_eq!(runtime("service.www.backend.web1.weight"), Some(300.into()));
        assert_eq!(runtime("service.www.backend.web2"), Some("removed".into()));
        let file = ("file".to_owned(), 100.into());
        assert_eq!(setting(balancer, "service.www.backend.web3.weight"), Some(file));
        let origins: Vec<_> =
            balancer.service("www").backends.into_iter().map(|b| (b.name, b.origin)).collect();
        let expected = [("web1", "runtime"), ("web3", "file"), ("web4", "runtime")];
        assert_eq!(origins, expected.map(|(n, o)| (n.to_owned(), o.to_owned())));
    };
    shown(&balancer);
    let status = balancer.status();
    assert_ne!(status.config_hash, hash);
    assert_eq!(status.runtime_changes, 3);

    balancer.kill();
    balancer.restart()?;
    shown(&balancer);
    assert_shares(&requests(&topology, 2_000), &changed);
    // A reload does not lose them.
    balancer.reload();
    shown(&balancer);
    assert_eq!(balancer.status().config_hash, status.config_hash);

    balancer.lbctl(&["reset"]);
    assert_eq!(balancer.status().runtime_changes, 0);
    assert_eq!(balancer.status().config_hash, hash);
    wait_until("web2 to be back", PATIENCE, || backend(&balancer, "web2").is_some_and(|b| b.slots > 0))?;
    assert_shares(&requests(&topology, 2_000), &[("web1", 1), ("web2", 1), ("web3", 1)]);
    balancer.kill();
    balancer.restart()?;
    assert_eq!(balancer.status().config_hash, hash);
    assert!(backend(&balancer, "web4").is_none());
    Ok(())
}

/// Connections that stay open, three on every backend.
fn keep_alive(topology: &Topology) -> Vec<(String, Connection)> {
    let target = SocketAddr::new(topology.vip4(), 80);
    let mut kept: Vec<(String, Connection)> = Vec::new();
    for _ in 0..300 {
        let mut connection = Connection::open(&topology.client.ns, target, PATIENCE).expect("connected");
        let backend = connection.get("/").expect("an answer").backend().to_owned();
        if kept.iter().filter(|(name, _)| *name == backend).count() < 3 {
            kept.push((backend, connection));
        }
        if kept.len() == 3 * topology.backends.len() {
            return kept;
        }
    }
    panic!("not every backend answers");
}

fn all_alive(kept: &mut [(String, Connection)], when: &str) {
    for (backend, connection) in kept {
        let answer = connection.get("/").unwrap_or_else(|e| panic!("{when}: on {backend}: {e}"));
        assert_eq!(answer.backend(), backend, "{when}");
    }
}

#[test]
fn draining_keeps_connections_and_disabling_ends_them() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, www(&topology, 3))?;
    let mut kept = keep_alive(&topology);

    balancer.lbctl(&["backend", "drain", "www", "web2"]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        all_alive(&mut kept, "while web2 drains");
        assert_eq!(requests(&topology, 20).count("web2"), 0);
        std::thread::sleep(Duration::from_millis(200));
    }
    let web2 = backend(&balancer, "web2").expect("web2");
    assert_eq!((web2.admin, web2.slots), (Admin::Draining, 0), "{web2:?}");

    balancer.lbctl(&["backend", "enable", "www", "web2"]);
    all_alive(&mut kept, "after the drain was taken back");
    assert!(requests(&topology, 200).count("web2") > 0);
    all_alive(&mut kept, "after new connections");

    balancer.lbctl(&["backend", "disable", "www", "web2"]);
    assert_eq!(backend(&balancer, "web2").expect("web2").admin, Admin::Disabled);
    assert_eq!(requests(&topology, 200).count("web2"), 0);
    for (backend, connection) in &mut kept {
        match connection.get("/") {
            Ok(answer) => assert_eq!(answer.backend(), backend),
            Err(_) => assert_eq!(backend, "web2"),
        }
    }
    kept.retain(|(name, _)| name != "web2");
    all_alive(&mut kept, "the others");
    assert_eq!(kept.len(), 6);
    Ok(())
}

/// An established connection is not moved by any change that leaves its backend alive.
#[test]
fn connections_stay_where_they_are_through_changes_of_weights_and_members() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 4, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, www(&topology, 4))?;
    let mut kept = keep_alive(&topology);
    let load = Requests::to_all([topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80)))
        .concurrency(3)
        .timeout(PATIENCE)
        .pause(Duration::from_millis(2))
        .start(&topology.client.ns);
    let web4 = topology.backends[3].v4.to_string();
    let changes: &[&[&str]] = &[
        &["weight", "www", "web1", "10"],
        &["weight", "www", "web2", "1000"],
        &["drain", "www", "web4"],
        &["weight", "www", "web1", "500"],
        &["enable", "www", "web4"],
        &["weight", "www", "web2", "0"],
        &["weight", "www", "web2", "100"],
        &["drain", "www", "web1"],
        &["drain", "www", "web3"],
        &["enable", "www", "web1"],
    ];
    for change in changes {
        balancer.lbctl(&[&["backend"], *change].concat());
        std::thread::sleep(Duration::from_millis(100));
        all_alive(&mut kept, &change.join(" "));
    }
    load.stop().assert_all_answered();
    // Removing one without draining it ends its connections, and no others.
    balancer.lbctl(&["backend", "remove", "www", "web4"]);
    kept.retain(|(name, _)| name != "web4");
    all_alive(&mut kept, "removal of web4");
    balancer.lbctl(&["backend", "add", "www", "web4", &web4]);
    all_alive(&mut kept, "web4 again");
    Ok(())
}

#[test]
fn the_json_of_the_service_list_has_the_fields_of_the_contract() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let mut settings = www(&topology, 2);
    settings
        .services
        .push(Service::www([topology.vip4()]).name("dns").udp().port(53).nodes(&topology.backends));
    let balancer = Balancer::start(&topology, settings)?;
    requests(&topology, 10);
    let list: serde_json::Value = balancer.json(&["service", "list"]);
    let list = list.as_array().expect("an array");
    assert_eq!(list.len(), 2);
    for service in list {
        for key in
            ["name", "addresses", "port", "protocol", "forward", "scheduler", "packets", "bytes", "backends"]
        {
            assert!(service.get(key).is_some(), "{key}: {service}");
        }
        for backend in service["backends"].as_array().expect("an array") {
            for key in ["name", "address", "port", "weight", "admin", "health", "packets", "bytes"] {
                assert!(backend.get(key).is_some(), "{key}: {backend}");
            }
        }
    }
    let www = &list[0];
    assert_eq!(www["name"], "www");
    assert_eq!(www["addresses"], serde_json::json!(["192.0.2.10", "2001:db8::10"]));
    assert_eq!(
        (&www["protocol"], &www["forward"], &www["scheduler"]),
        (&"tcp".into(), &"dsr".into(), &"maglev".into())
    );
    assert_eq!(www["backends"][0]["admin"], "enabled");
    assert_eq!(www["backends"][0]["address"], "10.0.0.11");
    assert!(www["packets"].as_u64() >= Some(30));
    assert_eq!((&list[1]["name"], &list[1]["protocol"]), (&"dns".into(), &"udp".into()));
    Ok(())
}

#[test]
fn mistakes_are_told_and_change_nothing() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, www(&topology, 2))?;
    let before = (balancer.config(), balancer.services().iter().map(|s| s.slots).collect::<Vec<_>>());
    for (arguments, said) in [
        (&["backend", "add", "wwww", "web9", "10.0.0.19"][..], "wwww"),
        (&["backend", "add", "www", "web1", "10.0.0.19"], "web1"),
        (&["backend", "add", "www", "web9", "10.0.0.11"], "web1"),
        (&["backend", "add", "www", "web9", "192.0.2.10"], "192.0.2.10"),
        (&["backend", "add", "www", "web9", "10.0.0.19:81"], "81"),
        (&["backend", "add", "www", "web9", "127.0.0.1"], "loopback"),
        (&["backend", "remove", "www", "web9"], "web9"),
        (&["backend", "weight", "www", "web1", "70000"], "65535"),
        (&["backend", "drain", "www", "web9"], "web9"),
        (&["service", "show", "wwww"], "www"),
        (&["explain", "tcp", "10.1.0.2:1", "[2001:db8::10]:80"], "famil"),
    ] {
        let output = balancer.lbctl_output(arguments);
        let err = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {:?}", output.status);
        assert!(err.contains(said) && output.stdout.is_empty(), "{arguments:?}: {err}");
    }
    let after = (balancer.config(), balancer.services().iter().map(|s| s.slots).collect::<Vec<_>>());
    assert_eq!(after, before);
    assert_eq!(balancer.status().runtime_changes, 0);
    Ok(())
}

/// What explain says of a packet is what becomes of it.
#[test]
fn explain_agrees_with_what_happens() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, www(&topology, 3))?;
    balancer.lbctl(&["backend", "weight", "www", "web3", "50"]);
    for vip in [topology.vip4(), topology.vip6()] {
        let target = SocketAddr::new(vip, 80);
        for _ in 0..25 {
            let mut connection = Connection::open(&topology.client.ns, target, PATIENCE).expect("connected");
            let answer = connection.get("/").expect("an answer");
            let source = connection.local_addr().expect("an address").to_string();
            let explained = balancer.explain("tcp", &source, &target.to_string());
            assert_eq!(explained.verdict, "forward", "{explained:?}");
            assert_eq!(explained.service.as_deref(), Some("www"));
            assert_eq!(explained.backend.as_deref(), Some(answer.backend()), "{source}: {explained:?}");
        }
    }
    for (protocol, destination) in
        [("udp", "192.0.2.10:80"), ("tcp", "192.0.2.10:81"), ("tcp", "192.0.2.11:80")]
    {
        let explained = balancer.explain(protocol, "10.1.0.2:4000", destination);
        assert_eq!(
            (explained.verdict.as_str(), explained.backend),
            ("pass", None),
            "{protocol} {destination}"
        );
    }
    assert!(balancer.service("www").backends.iter().all(|b| b.health == Health::Up));
    Ok(())
}
