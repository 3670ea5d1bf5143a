//! Four balancers behind ECMP that share slots and flows: while etcd is away, and with schedulers that choose a backend anew for every
//! connection.

use std::{net::SocketAddr, thread::sleep};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    crowd::Crowd,
    ecmp::{PATIENCE, PORT, echo_servers, everybody_speaks, routers, wait_for_paths},
    fleet::{Charge, Etcd, LEASE, charge, leader, shared, view, wait_for_slots},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};

const NODES: usize = 4;
const ALL: [usize; NODES] = [0, 1, 2, 3];
const CONNECTIONS: usize = 200;
/// Of the service that chooses by the connections that backends have.
const LEAST: u16 = 8080;

fn service(topology: &Topology, name: &str, port: u16, scheduler: &str, backends: usize) -> Service {
    let health = "type = \"tcp\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\nrise = 1\nfall = 2\nport = 80";
    let service = Service::www([topology.vip4(), topology.vip6()]).name(name).port(port).health(health);
    let extra = format!("idle_timeout = \"10m\"\nscheduler = \"{scheduler}\"");
    service.extra(&extra).nodes(&topology.backends[..backends])
}

fn lab() -> Result<Topology> {
    Topology::new(&Shape { backends: 4, more_balancers: NODES - 2, ..Shape::default() })
}

fn start<'t>(topology: &'t Topology, services: &dyn Fn(usize) -> Vec<Service>) -> Result<Vec<Balancer<'t>>> {
    let settings =
        |on| Settings { on, rest: format!("\n[bgp]\n{}", shared(topology, on)), ..Settings::of(services(3)) };
    ALL.into_iter().map(|on| Balancer::start(topology, settings(on))).collect()
}

fn add_the_last_backend(
    balancers: &mut [Balancer<'_>],
    services: &dyn Fn(usize) -> Vec<Service>,
) -> Result<()> {
    for balancer in balancers {
        balancer.configure(|settings| settings.services = services(4))?;
        balancer.reload();
    }
    Ok(())
}

/// The cable of a balancer.
fn link(topology: &Topology, on: usize, state: &str) -> Result<()> {
    let name = &topology.balancers().nth(on).expect("there").name;
    topology.switch.ip(&format!("link set {name} {state}\n"))
}

fn speak(crowds: &[&Crowd]) -> Result<()> {
    crowds.iter().try_for_each(|crowd| everybody_speaks(crowd))
}

fn nobody_broke(crowds: impl IntoIterator<Item = Crowd>) {
    for report in crowds.into_iter().map(Crowd::leave) {
        assert!(report.broken.is_empty() && report.blocks > 0, "{:?}", report.broken);
    }
}

/// One leads, all others follow it, as etcd says.
fn wait_for_one(balancers: &[Balancer<'_>], among: &[usize]) -> Result<usize> {
    wait_until("one that decides, whom all follow", PATIENCE, || {
        let mine = among.iter().filter(|on| view(&balancers[**on]).authority.mine).count();
        assert!(mine <= 1, "two at once");
        let charges: Vec<_> = among.iter().map(|on| charge(&balancers[*on])).collect();
        let count = |wanted| charges.iter().filter(|charge| **charge == Some(wanted)).count();
        mine == 1 && count(Charge::Leads) == 1 && count(Charge::Follows) == among.len() - 1
    })
    .inspect_err(|_| {
        for on in among {
            eprintln!("{on}: {:?}", charge(&balancers[*on]));
        }
    })?;
    Ok(leader(balancers, among).expect("one"))
}

#[test]
fn connections_survive_the_loss_of_etcd_while_slots_move() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bird"), Need::Tool("etcd"), Need::Tool("etcdctl"));
    let topology = lab()?;
    let mut etcd = Etcd::start(&topology)?;
    let targets = [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, PORT));
    let _servers = echo_servers(&topology, &targets, env!("CARGO_BIN_EXE_echo"))?;
    let services = |backends| vec![service(&topology, "www", PORT, "maglev", backends)];
    let mut balancers = start(&topology, &services)?;
    let _birds = routers(&topology)?;
    wait_for_paths(&topology, NODES)?;
    let first = wait_for_one(&balancers, &ALL)?;
    let gather =
        || Crowd::gather(&topology.client.ns, &targets, CONNECTIONS, 2, PATIENCE).expect("connections");
    let before = gather();
    speak(&[&before])?;

    add_the_last_backend(&mut balancers, &services)?;
    wait_for_slots(&balancers, &ALL, "www", |moving| moving > 0)?;
    etcd.kill();
    let amid = gather();
    speak(&[&before, &amid])?;
    wait_until("nobody to decide", PATIENCE, || {
        balancers.iter().all(|b| matches!(charge(b), Some(Charge::Holds | Charge::Alone)))
    })?;
    assert!(balancers.iter().all(|b| !view(b).authority.mine && view(b).authority.holder.is_none()));

    // Slots stay as they are: whoever comes to another node goes on. The one that decided is the one that dies.
    link(&topology, first, "down")?;
    wait_for_paths(&topology, NODES - 1)?;
    let left: Vec<usize> = ALL.into_iter().filter(|on| *on != first).collect();
    let (before_alone, said) =
        (left.iter().all(|on| charge(&balancers[*on]) == Some(Charge::Holds)), "nobody decides still");
    eprintln!("{said}: {before_alone}");
    speak(&[&before, &amid])?;

    wait_until("each to decide for itself", PATIENCE, || {
        left.iter().all(|on| charge(&balancers[*on]) == Some(Charge::Alone))
    })?;
    let late = gather();
    speak(&[&before, &amid, &late])?;

    // etcd is back: one decides, and never two, and all have the same slots again.
    etcd.again()?;
    wait_for_one(&balancers, &left)?;
    wait_for_slots(&balancers, &left, "www", |_| true)?;
    speak(&[&before, &amid, &late])?;
    link(&topology, first, "up")?;
    wait_for_paths(&topology, NODES)?;
    let decides = wait_for_one(&balancers, &ALL)?;
    assert_ne!(decides, first, "whoever was away follows");
    wait_for_slots(&balancers, &ALL, "www", |_| true)?;
    speak(&[&before, &amid, &late])?;

    // And what it decides holds when paths change once more.
    balancers[decides].lbctl(&["backend", "drain", "www", &topology.backends[0].name]);
    wait_for_slots(&balancers, &ALL, "www", |moving| moving > 0)?;
    let dies = left.into_iter().find(|on| *on != decides).expect("there are three");
    link(&topology, dies, "down")?;
    wait_for_paths(&topology, NODES - 1)?;
    speak(&[&before, &amid, &late])?;
    nobody_broke([before, amid, late]);
    Ok(())
}

#[test]
fn connections_of_round_robin_and_least_connections_survive_other_paths() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bird"), Need::Tool("etcd"), Need::Tool("etcdctl"));
    let topology = lab()?;
    let _etcd = Etcd::start(&topology)?;
    let of = |port| [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, port));
    let (turns, least) = (of(PORT), of(LEAST));
    let targets = [turns, least].concat();
    let _servers = echo_servers(&topology, &targets, env!("CARGO_BIN_EXE_echo"))?;
    let services = |backends| {
        vec![
            service(&topology, "turns", PORT, "round-robin", backends),
            service(&topology, "least", LEAST, "least-connections", backends),
        ]
    };
    let mut balancers = start(&topology, &services)?;
    let _birds = routers(&topology)?;
    wait_for_paths(&topology, NODES)?;
    let decides = wait_for_one(&balancers, &ALL)?;
    let gather = |targets: &[SocketAddr]| {
        let crowd =
            Crowd::gather(&topology.client.ns, targets, CONNECTIONS, 2, PATIENCE).expect("connections");
        let backends = crowd.report().backends;
        eprintln!("{}: {backends:?}", targets[0]);
        (crowd, backends)
    };
    let ((first, shares), (second, others)) = (gather(&turns), gather(&least));
    for shares in [shares, others] {
        // Each of four nodes deals 50 connections to three backends.
        assert!(shares.len() == 3 && shares.values().all(|count| *count > CONNECTIONS / 6), "{shares:?}");
    }
    speak(&[&first, &second])?;

    let dies = ALL.into_iter().find(|on| *on != decides).expect("there are four");
    link(&topology, dies, "down")?;
    wait_for_paths(&topology, NODES - 1)?;
    speak(&[&first, &second])?;
    eprintln!("{dies} has died");
    link(&topology, dies, "up")?;
    wait_for_paths(&topology, NODES)?;
    wait_for_one(&balancers, &ALL)?;
    speak(&[&first, &second])?;
    eprintln!("{dies} is back");

    add_the_last_backend(&mut balancers, &services)?;
    let name = &topology.backends[3].name;
    for balancer in &balancers {
        for service in ["turns", "least"] {
            balancer.wait_for_backend("to take part", service, name, PATIENCE, |b| b.reachable)?;
        }
    }
    let ((third, shares), (fourth, others)) = (gather(&turns), gather(&least));
    for shares in [shares, others] {
        assert!(shares.get(name).is_some_and(|count| *count > 0), "{shares:?}");
    }
    let everybody = [&first, &second, &third, &fourth];
    speak(&everybody)?;
    link(&topology, decides, "down")?;
    wait_for_paths(&topology, NODES - 1)?;
    speak(&everybody)?;
    eprintln!("{decides} has died, which decided");
    let left: Vec<usize> = ALL.into_iter().filter(|on| *on != decides).collect();
    wait_for_one(&balancers, &left)?;
    sleep(LEASE);
    speak(&everybody)?;
    nobody_broke([first, second, third, fourth]);
    Ok(())
}
