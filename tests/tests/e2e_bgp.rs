//! Four balancers without VRRP behind a router that spreads packets over all that announce the address (ECMP): lbd's
//! routes, Debian's BIRD on every host, a Linux router.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    crowd::Crowd,
    ecmp::{PATIENCE, PORT, echo_servers, everybody_speaks, paths, routers, wait_for_paths},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::bgp::BgpView;

const NODES: usize = 4;
const CONNECTIONS: usize = 600;

fn settings(topology: &Topology, on: usize) -> Settings {
    let health = "type = \"tcp\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\nrise = 1\nfall = 2\nport = 80";
    let www = Service::www([topology.vip4(), topology.vip6()]).health(health).extra("quorum_up = 2");
    Settings { on, rest: "\n[bgp]\n".to_owned(), ..Settings::of([www.nodes(&topology.backends)]) }
}

fn packets(balancers: &[Balancer<'_>]) -> Vec<u64> {
    balancers.iter().map(|balancer| balancer.service("www").packets).collect()
}

#[test]
fn connections_survive_nodes_that_come_and_go_behind_ecmp() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bird"));
    let begun = Instant::now();
    let topology = Topology::new(&Shape { backends: 3, more_balancers: NODES - 2, ..Shape::default() })?;
    let targets = [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, PORT));
    let servers = echo_servers(&topology, &targets, env!("CARGO_BIN_EXE_echo"))?;
    let mut balancers: Vec<Balancer<'_>> = (0..NODES - 1)
        .map(|on| Balancer::start(&topology, settings(&topology, on)))
        .collect::<Result<_>>()?;
    let _birds = routers(&topology)?;
    wait_for_paths(&topology, NODES - 1)?;
    eprintln!("{:5.1?}: the router has {} paths", begun.elapsed(), NODES - 1);
    let view: BgpView = balancers[0].json(&["bgp"]);
    assert_eq!((view.table, view.error), (Some(9750), None));
    assert!(
        view.addresses.len() == 2 && view.addresses.iter().all(|it| it.announced),
        "{:?}",
        view.addresses
    );

    let crowd = Crowd::gather(&topology.client.ns, &targets, CONNECTIONS, 4, PATIENCE).expect("connections");
    everybody_speaks(&crowd)?;
    let before = packets(&balancers);
    assert!(before.iter().all(|count| *count > 0), "every node has its share: {before:?}");

    // One joins: the router gives it a share of the connections that others had.
    balancers.push(Balancer::start(&topology, settings(&topology, NODES - 1))?);
    wait_for_paths(&topology, NODES)?;
    everybody_speaks(&crowd)?;
    assert!(balancers[NODES - 1].service("www").packets > 0, "the new node has a share");
    eprintln!("{:5.1?}: one has joined", begun.elapsed());

    // One dies, with everything on it.
    topology.switch.ip("link set lb2 down\n")?;
    wait_for_paths(&topology, NODES - 1)?;
    everybody_speaks(&crowd)?;
    eprintln!("{:5.1?}: one has died", begun.elapsed());
    topology.switch.ip("link set lb2 up\n")?;
    wait_for_paths(&topology, NODES)?;
    everybody_speaks(&crowd)?;

    // One is stopped: its routes are withdrawn first.
    balancers[2].stop()?;
    wait_for_paths(&topology, NODES - 1)?;
    everybody_speaks(&crowd)?;
    // One is killed: it goes on forwarding, and the router goes on sending to it.
    balancers[0].kill();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(paths(&topology, &topology.vip4().to_string()), NODES - 1);
    everybody_speaks(&crowd)?;
    balancers[0].restart()?;
    let report = crowd.leave();
    assert!(report.broken.is_empty() && report.blocks > 0, "{:?}", report.broken);
    eprintln!("{:5.1?}: {} blocks, longest silence {:.1?}", begun.elapsed(), report.blocks, report.silence);

    // Maintenance: a node that is held announces nothing.
    balancers[3].lbctl(&["pair", "hold"]);
    wait_for_paths(&topology, NODES - 2)?;
    balancers[3].lbctl(&["pair", "hold", "--off"]);
    wait_for_paths(&topology, NODES - 1)?;

    // The service loses its quorum: every node takes its addresses back, and announces them again.
    servers[1].kill();
    servers[2].kill();
    wait_for_paths(&topology, 0)?;
    let view: BgpView = balancers[1].json(&["bgp"]);
    assert!(view.addresses.iter().all(|it| !it.announced && it.reason == "www is down-degraded"), "{view:?}");
    drop(servers);
    Ok(())
}

#[test]
fn a_table_is_kept_and_left_as_the_configuration_says() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let node = &topology.lb[0];
    let shown = |family: &str, table: &str| {
        // A table without routes is an error to ip.
        node.ns.exec("ip", &[family, "route", "show", "table", table]).unwrap_or_default()
    };
    let has = |table: &str, there: [bool; 2]| {
        wait_until(&format!("routes {there:?} in table {table}"), PATIENCE, || {
            [
                shown("-4", table).contains("blackhole 192.0.2.10"),
                shown("-6", table).contains("blackhole 2001:db8::10"),
            ] == there
        })
    };
    let www =
        |topology: &Topology| Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let mut settings = Settings::of([www(&topology)]);
    settings.rest = "\n[bgp]\ntable = 1234\non_stop = \"keep\"\n".to_owned();
    // Routes of somebody else in the table are none of ours.
    node.ns.ip("route add blackhole 198.51.100.9/32 table 1234 proto static\n")?;
    let mut balancer = Balancer::start(&topology, settings)?;
    has("1234", [true, true])?;
    // What somebody removes comes back.
    node.ns.ip("route del blackhole 192.0.2.10/32 table 1234\n")?;
    has("1234", [true, true])?;
    balancer.stop()?;
    has("1234", [true, true])?;
    // An address that is no longer there while the daemon was away.
    balancer.configure(|settings| {
        settings.services[0].addresses.retain(std::net::IpAddr::is_ipv6);
        settings.rest = "\n[bgp]\ntable = 1234\n".to_owned();
    })?;
    balancer.restart()?;
    has("1234", [false, true])?;
    // Another table, by a reload.
    balancer
        .configure(|settings| settings.rest = "\n[bgp]\ntable = 4321\nservices = [\"www\"]\n".to_owned())?;
    balancer.lbctl(&["reload"]);
    has("1234", [false, false])?;
    has("4321", [false, true])?;
    balancer.stop()?;
    has("4321", [false, false])?;
    assert!(shown("-4", "1234").contains("198.51.100.9"), "the stranger's route is still there");
    Ok(())
}
