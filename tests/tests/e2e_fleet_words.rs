//! Four balancers behind ECMP while the backends change: connections that the router moves from node to node go on where the nodes
//! share slots and flows, and do not where they share nothing.

use std::{net::SocketAddr, time::Instant};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    crowd::{Crowd, Report},
    ecmp::{PATIENCE, PORT, echo_servers, everybody_speaks, routers, wait_for_paths},
    fleet::{Etcd, leader, shared, wait_for_slots},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};

const NODES: usize = 4;
const CONNECTIONS: usize = 200;

/// Three of the four backends: the last one comes later.
fn www(topology: &Topology, backends: usize) -> Service {
    let health = "type = \"tcp\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\nrise = 1\nfall = 2\nport = 80";
    let www = Service::www([topology.vip4(), topology.vip6()]).health(health);
    www.extra("idle_timeout = \"10m\"").nodes(&topology.backends[..backends])
}

fn settings(topology: &Topology, on: usize, backends: usize, shares: bool) -> Settings {
    let rest = if shares { shared(topology, on) } else { String::new() };
    let services = [www(topology, backends)];
    Settings { on, rest: format!("\n[bgp]\n{rest}"), ..Settings::of(services) }
}

/// All of these nodes have the same slots under way, and some.
fn wait_for_moving(balancers: &[Balancer<'_>], among: &[usize]) -> Result<()> {
    wait_for_slots(balancers, among, "www", |moving| moving > 0)
}

fn add_the_last_backend(topology: &Topology, balancers: &mut [Balancer<'_>], among: &[usize]) -> Result<()> {
    for on in among {
        balancers[*on]
            .configure(|settings| settings.services = vec![www(topology, topology.backends.len())])?;
        balancers[*on].lbctl(&["reload"]);
    }
    Ok(())
}

/// A backend comes; while its slots move more connections are made; a node dies, another joins, then the one that decides dies.
fn a_bad_day(shares: bool) -> Result<Vec<Report>> {
    let begun = Instant::now();
    let topology = Topology::new(&Shape { backends: 4, more_balancers: NODES - 2, ..Shape::default() })?;
    let _etcd = if shares { Some(Etcd::start(&topology)?) } else { None };
    let targets = [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, PORT));
    let _servers = echo_servers(&topology, &targets, env!("CARGO_BIN_EXE_echo"))?;
    let mut balancers: Vec<Balancer<'_>> = (0..NODES - 1)
        .map(|on| Balancer::start(&topology, settings(&topology, on, 3, shares)))
        .collect::<Result<_>>()?;
    let _birds = routers(&topology)?;
    wait_for_paths(&topology, NODES - 1)?;
    let first = [0, 1, 2];
    if shares {
        wait_until("an authority", PATIENCE, || leader(&balancers, &first).is_some())?;
    }
    let decides = if shares { leader(&balancers, &first).expect("an authority") } else { 0 };
    let gather =
        || Crowd::gather(&topology.client.ns, &targets, CONNECTIONS, 2, PATIENCE).expect("connections");
    let speaks = |crowds: &[&Crowd]| -> Result<()> {
        for crowd in crowds {
            if shares {
                everybody_speaks(crowd)?;
            } else {
                let rounds = crowd.rounds();
                wait_until("everyone to speak", PATIENCE * 3, || crowd.rounds() > rounds + 4)?;
            }
        }
        Ok(())
    };
    let before = gather();
    speaks(&[&before])?;
    eprintln!("{:5.1?}: everybody is there, {decides} decides", begun.elapsed());

    add_the_last_backend(&topology, &mut balancers, &first)?;
    wait_for_moving(&balancers, &first)?;
    let amid = gather();
    let late = amid.report().backends;
    assert!(late.get(&topology.backends[3].name).is_some_and(|count| *count > 0), "{late:?}");
    speaks(&[&before, &amid])?;
    eprintln!("{:5.1?}: slots move", begun.elapsed());

    let dies = first.into_iter().find(|on| *on != decides).expect("there are three");
    let die = |on: usize| {
        topology.switch.ip(&format!("link set {} down\n", topology.balancers().nth(on).expect("there").name))
    };
    die(dies)?;
    wait_for_paths(&topology, NODES - 2)?;
    speaks(&[&before, &amid])?;
    eprintln!("{:5.1?}: {dies} has died", begun.elapsed());

    balancers.push(Balancer::start(&topology, settings(&topology, NODES - 1, 4, shares))?);
    wait_for_paths(&topology, NODES - 1)?;
    speaks(&[&before, &amid])?;
    assert!(balancers[NODES - 1].service("www").packets > 0, "the new node has a share");
    eprintln!("{:5.1?}: one has joined", begun.elapsed());

    die(decides)?;
    wait_for_paths(&topology, NODES - 2)?;
    speaks(&[&before, &amid])?;
    eprintln!("{:5.1?}: {decides} has died, too", begun.elapsed());
    let left: Vec<usize> = (0..NODES).filter(|on| ![dies, decides].contains(on)).collect();
    if shares {
        wait_until("another authority", PATIENCE, || leader(&balancers, &left).is_some())?;
        // And what it decides holds, too.
        let decides = leader(&balancers, &left).expect("an authority");
        balancers[decides].lbctl(&["backend", "drain", "www", &topology.backends[0].name]);
        wait_for_moving(&balancers, &left)?;
        speaks(&[&before, &amid])?;
        eprintln!("{:5.1?}: {decides} decides, and drains a backend", begun.elapsed());
    }
    Ok([before, amid].map(Crowd::leave).into())
}

#[test]
fn connections_survive_a_change_of_backends_and_of_nodes_at_once() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bird"), Need::Tool("etcd"));
    for report in a_bad_day(true)? {
        assert!(report.broken.is_empty() && report.blocks > 0, "{:?}", report.broken);
    }
    Ok(())
}

/// What the test above shows is not for nothing.
#[test]
fn connections_break_where_nothing_is_shared() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bird"));
    let broken: usize = a_bad_day(false)?.iter().map(|report| report.broken.len()).sum();
    assert!(broken > 0, "no connection broke without [fleet] and [sync]");
    eprintln!("{broken} connections broke");
    Ok(())
}
