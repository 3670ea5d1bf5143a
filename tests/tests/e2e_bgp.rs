//! Four balancers without VRRP behind a router that spreads packets over all that announce the address (ECMP): lbd's
//! routes, Debian's BIRD on every host, a Linux router.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    crowd::Crowd,
    lab::{Node, Process, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::bgp::BgpView;

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: usize = 4;
const CONNECTIONS: usize = 600;
const PORT: u16 = 80;

/// One BIRD in a namespace.
struct Bird {
    _process: Process,
}

impl Bird {
    fn start(topology: &Topology, node: &Node, config: &str) -> Result<Self> {
        let file = |suffix: &str| topology.lab.dir().join(format!("bird-{}.{suffix}", node.name));
        let config = format!("log stderr all;\nrouter id {};\nprotocol device {{}}\n{config}", node.v4);
        fs::write(file("conf"), config).expect("the configuration is written");
        let mut command = node.ns.command("bird");
        command.arg("-f").arg("-c").arg(file("conf")).arg("-s").arg(file("ctl"));
        Ok(Self { _process: topology.lab.spawn(&format!("bird-{}", node.name), command)? })
    }
}

/// What an operator of a balancer would write: it reads lbd's table and tells the router.
fn speaker(router: &Node, node: &Node) -> String {
    let each = |family: u8, local: String, neighbour: String| {
        format!(
            "ipv{family} table lbd{family};\n\
             protocol kernel kernel{family} {{ kernel table 9750; learn; \
             ipv{family} {{ table lbd{family}; import all; export none; }}; }}\n\
             protocol bgp router{family} {{ local {local} as 65001; neighbor {neighbour} as 65000; bfd on; {TIMERS} \
             ipv{family} {{ table lbd{family}; import none; export all; next hop self; }}; }}\n"
        )
    };
    format!(
        "{BFD}{}{}",
        each(4, node.v4.to_string(), router.v4.to_string()),
        each(6, node.v6.to_string(), router.v6.to_string())
    )
}

const TIMERS: &str =
    "hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2; error forget time 1;";
const BFD: &str = "protocol bfd { interface \"*\" { interval 100 ms; multiplier 5; }; }\n";

/// The router: all paths of equal length are used.
fn listener(topology: &Topology) -> String {
    let mut text = format!(
        "{BFD}protocol kernel {{ merge paths on; ipv4 {{ import none; export all; }}; }}\n\
         protocol kernel {{ merge paths on; ipv6 {{ import none; export all; }}; }}\n"
    );
    for node in topology.balancers() {
        for (family, neighbour) in [(4, node.v4.to_string()), (6, node.v6.to_string())] {
            let local =
                if family == 4 { topology.router.v4.to_string() } else { topology.router.v6.to_string() };
            text += &format!(
                "protocol bgp {}v{family} {{ local {local} as 65000; neighbor {neighbour} as 65001; bfd on; {TIMERS} \
                 ipv{family} {{ import all; export none; }}; }}\n",
                node.name
            );
        }
    }
    text
}

/// Next hops of the router to an address.
fn paths(topology: &Topology, address: &str) -> usize {
    let family = if address.contains(':') { "-6" } else { "-4" };
    let shown = topology.router.ns.exec("ip", &[family, "route", "show", address]).expect("ip works");
    shown.matches("via ").count()
}

fn wait_for_paths(topology: &Topology, count: usize) -> Result<()> {
    for vip in [topology.vip4(), topology.vip6()] {
        wait_until(&format!("{count} paths to {vip}"), PATIENCE, || {
            paths(topology, &vip.to_string()) == count
        })
        .inspect_err(|_| {
            let all = topology.router.ns.exec("ip", &["route"]).unwrap_or_default();
            eprintln!("{all}");
        })?;
    }
    Ok(())
}

/// On the virtual addresses, and on their own for the checks.
fn echo_servers(topology: &Topology, targets: &[SocketAddr]) -> Result<Vec<Process>> {
    let start = |node: &Node| -> Result<Process> {
        let own = SocketAddr::new(node.v4.into(), PORT);
        let mut command = node.ns.command(env!("CARGO_BIN_EXE_echo"));
        command.arg(&node.name).args(targets.iter().chain([&own]).map(SocketAddr::to_string));
        let server = topology.lab.spawn(&format!("echo-{}", node.name), command)?;
        server.wait_for_log("ready", PATIENCE)?;
        Ok(server)
    };
    topology.backends.iter().map(start).collect()
}

fn settings(topology: &Topology, on: usize) -> Settings {
    let health = "type = \"tcp\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\nrise = 1\nfall = 2\nport = 80";
    let www = Service::www([topology.vip4(), topology.vip6()]).health(health).extra("quorum_up = 2");
    Settings { on, rest: "\n[bgp]\n".to_owned(), ..Settings::of([www.nodes(&topology.backends)]) }
}

fn packets(balancers: &[Balancer<'_>]) -> Vec<u64> {
    balancers.iter().map(|balancer| balancer.service("www").packets).collect()
}

/// Everybody has spoken, some of them over other paths than before.
fn everybody_speaks(crowd: &Crowd) -> Result<()> {
    let rounds = crowd.rounds();
    wait_until("everyone to speak twice more", PATIENCE, || crowd.rounds() > rounds + 8)?;
    let broken = crowd.report().broken;
    assert!(broken.is_empty(), "{} connections broke: {:#?}", broken.len(), &broken[..broken.len().min(5)]);
    Ok(())
}

#[test]
fn connections_survive_nodes_that_come_and_go_behind_ecmp() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bird"));
    let begun = Instant::now();
    let topology = Topology::new(&Shape { backends: 3, more_balancers: NODES - 2, ..Shape::default() })?;
    // The routes to the virtual addresses are to come by BGP.
    topology.router.ns.ip("route del 192.0.2.0/24\nroute del 2001:db8::/64\n")?;
    for key in ["net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"] {
        topology.router.ns.sysctl(key, "1")?;
    }
    let targets = [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, PORT));
    let servers = echo_servers(&topology, &targets)?;
    let mut balancers: Vec<Balancer<'_>> = (0..NODES - 1)
        .map(|on| Balancer::start(&topology, settings(&topology, on)))
        .collect::<Result<_>>()?;
    let mut birds = vec![Bird::start(&topology, &topology.router, &listener(&topology))?];
    for node in topology.balancers() {
        birds.push(Bird::start(&topology, node, &speaker(&topology.router, node))?);
    }
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
