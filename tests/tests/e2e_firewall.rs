//! Lists and limits against real clients: who is denied gets nothing, everybody else all; what is changed at run time
//! lasts; a flood is cut while another client is served.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, text, web_servers},
    client::Requests,
    lab::{Node, Result, Shape, Topology},
    require,
    skip::Need,
};
use lb_userspace::control::firewall::{LimitsView, PrefixView};

const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for an answer, and for a SYN that was lost once.
const SOON: Duration = Duration::from_secs(4);

#[track_caller]
fn served(node: &Node, vip: IpAddr) {
    Requests::to(SocketAddr::new(vip, 80)).timeout(PATIENCE).run(&node.ns, 5).assert_all_answered();
}

#[track_caller]
fn not_served(balancer: &Balancer<'_>, node: &Node, vip: IpAddr, reason: &str) {
    let before = balancer.dropped(reason);
    let report = Requests::to(SocketAddr::new(vip, 80)).timeout(SOON).run(&node.ns, 1);
    assert_eq!(report.ok(), 0, "{report}");
    assert!(balancer.dropped(reason) > before, "nothing was dropped as {reason}");
}

#[test]
fn denied_clients_exceptions_and_what_lasts() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let [vip4, vip6] = [topology.vip4(), topology.vip6()];
    let www = Service::www([vip4, vip6]).nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let (client, router) = (&topology.client, &topology.router);
    for vip in [vip4, vip6] {
        served(client, vip);
        served(router, vip);
    }
    let hash = balancer.status().config_hash;

    let (host4, host6) = (client.v4.to_string(), client.v6.to_string());
    balancer.lbctl(&["deny", "add", &host4, &host6]);
    for vip in [vip4, vip6] {
        not_served(&balancer, client, vip, "denied");
        served(router, vip);
    }
    let explained = balancer.explain("tcp", &format!("{host4}:4000"), &format!("{vip4}:80"));
    assert_eq!((explained.verdict.as_str(), explained.reason.starts_with("denied")), ("drop", true));

    // The other way round: the whole net, but not this one.
    balancer.lbctl(&["deny", "remove", &host4, &host6]);
    balancer.lbctl(&["deny", "add", "0.0.0.0/0", "::/0"]);
    not_served(&balancer, client, vip4, "denied");
    let refused = balancer.lbctl_output(&["allow", "add", "0.0.0.0/0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is on the deny list"), "{}", text(&refused.stderr));
    balancer.lbctl(&["allow", "add", &host4, &host6]);
    for vip in [vip4, vip6] {
        served(client, vip);
        not_served(&balancer, router, vip, "denied");
    }

    balancer.kill();
    served(client, vip4);
    balancer.restart()?;
    served(client, vip6);
    not_served(&balancer, router, vip6, "denied");
    balancer.reload();
    let denied: Vec<PrefixView> = balancer.json(&["deny", "list"]);
    let denied: Vec<_> = denied.iter().map(|v| (v.prefix.to_string(), v.origin.as_str())).collect();
    assert_eq!(denied, [("0.0.0.0/0".to_owned(), "runtime"), ("::/0".to_owned(), "runtime")]);
    let status = balancer.status();
    assert_eq!((status.firewall.denied, status.firewall.allowed, status.runtime_changes), (2, 2, 4));
    assert_ne!(status.config_hash, hash);
    let shown = balancer.config().settings.into_iter().find(|s| s.key == "firewall.allowed");
    let shown = shown.expect("shown by config show");
    assert_eq!(shown.origin, "runtime");
    assert!(shown.value.to_string().contains(&format!("{host4}/32")), "{}", shown.value);

    balancer.lbctl(&["reset"]);
    assert_eq!(balancer.status().config_hash, hash);
    for vip in [vip4, vip6] {
        served(client, vip);
        served(router, vip);
    }
    Ok(())
}

#[test]
fn lists_of_the_configuration() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let vip = topology.vip4();
    let (client, router) = (&topology.client, &topology.router);
    let own = |port| Service::www([vip]).port(port).name(&format!("www{port}")).nodes(&topology.backends);
    let settings = Settings::of([own(80).extra(&format!("allow = [\"{}/32\"]", client.v4))]);
    let mut balancer = Balancer::prepare(&topology, settings)?;
    balancer.restart()?;
    served(client, vip);
    not_served(&balancer, router, vip, "not_allowed");

    // A file of 100,000 prefixes, and one that matters.
    let file = balancer.dir().join("deny.txt");
    let mut list = String::from("# made for the test\n");
    for n in 0..100_000u32 {
        let _ = writeln!(list, "{}/32", std::net::Ipv4Addr::from(0x6440_0000 + n * 37));
    }
    std::fs::write(&file, format!("{list}{} # the client\n", client.v4)).expect("written");
    let firewall = format!("[firewall]\ndeny = [\"198.51.100.0/24\"]\ndeny_files = [\"{}\"]", file.display());
    balancer.configure(|now| {
        now.services[0] = own(80);
        now.node = firewall;
    })?;
    balancer.reload();
    not_served(&balancer, client, vip, "denied");
    served(router, vip);
    assert_eq!(balancer.status().firewall.denied, 100_002);

    // What the file denies can be taken back at run time.
    balancer.lbctl(&["deny", "remove", &client.v4.to_string()]);
    served(client, vip);
    balancer.kill();
    balancer.restart()?;
    served(client, vip);
    assert_eq!(balancer.status().firewall.denied, 100_001);

    std::fs::write(&file, format!("{list}10.0.0.1/8\n")).expect("written");
    let refused = balancer.lbctl_output(&["reload"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("{}:100002:1: '10.0.0.1/8'", file.display())), "{said}");
    served(client, vip);

    // As many at once from the command line.
    std::fs::write(&file, &list).expect("written");
    balancer.lbctl(&["deny", "remove", "--file", &file.display().to_string()]);
    let start = Instant::now();
    balancer.lbctl(&["deny", "add", "--file", &file.display().to_string()]);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "a debug build adds 100,000 prefixes in {took:?}");
    assert_eq!(balancer.status().firewall.denied, 100_001);
    served(router, vip);
    Ok(())
}

#[test]
fn limits_cut_a_flood_and_serve_the_others() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let vip = topology.vip4();
    let (client, router) = (&topology.client, &topology.router);
    let www = Service::www([vip]).nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let flood = || Requests::to(SocketAddr::new(vip, 80)).concurrency(20).timeout(Duration::from_millis(700));
    flood().timeout(PATIENCE).run(&client.ns, 200).assert_all_answered();

    balancer.lbctl(&["limit", "set", "www", "source_connections_per_second=6", "burst=1s"]);
    let load = flood().start(&client.ns);
    std::thread::sleep(Duration::from_secs(2));
    served(router, vip);
    std::thread::sleep(Duration::from_secs(2));
    let seconds = load.elapsed().as_secs_f64() + 2.0;
    let report = load.stop();
    assert!(report.failed_count() > 0, "the flood was not cut: {report}");
    assert!((report.ok() as f64) < 6.0 * seconds + 6.0, "more than the limit in {seconds} s: {report}");
    assert!(report.ok() > 0, "nothing within the limit: {report}");
    assert!(balancer.dropped("source_limit") > 0);
    assert_eq!(balancer.dropped("service_limit"), 0);

    // Kept and shown, and taken back.
    balancer.kill();
    balancer.restart()?;
    let limits: Vec<LimitsView> = balancer.json(&["limit", "show", "www"]);
    assert_eq!((limits[0].limits.source_connections_per_second, limits[0].origin.as_str()), (6, "runtime"));
    let key = "service.www.limits.source_connections_per_second";
    let shown = balancer.config().settings.into_iter().find(|s| s.key == key).expect("shown");
    assert_eq!((shown.origin.as_str(), shown.value), ("runtime", 6.into()));
    balancer.lbctl(&["limit", "clear", "www"]);
    flood().timeout(PATIENCE).run(&client.ns, 200).assert_all_answered();

    // A ceiling of the service.
    balancer.lbctl(&["limit", "set", "www", "packets_per_second=20", "burst=1s"]);
    let report = flood().run(&client.ns, 60);
    assert!(report.failed_count() > 0, "{report}");
    assert!(balancer.dropped("service_limit") > 0);
    let bad = balancer.lbctl_output(&["limit", "set", "www", "pakets_per_second=20"]);
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad.stderr));
    balancer.lbctl(&["reset"]);
    served(client, vip);
    Ok(())
}
