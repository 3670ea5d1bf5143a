//! Schedulers other than the ring, with real connections.

use std::{net::SocketAddr, time::Duration};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::{Connection, Report, Requests},
    lab::{Result, Shape, Topology},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn www(topology: &Topology, scheduler: &str) -> Service {
    Service::www([topology.vip4(), topology.vip6()]).extra(&format!("scheduler = \"{scheduler}\""))
}

fn requests(topology: &Topology, count: u64) -> Report {
    let target = SocketAddr::new(topology.vip4(), 80);
    let report = Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, count);
    report.assert_all_answered();
    report
}

fn open(topology: &Topology) -> (Connection, String) {
    let target = SocketAddr::new(topology.vip4(), 80);
    let mut connection = Connection::open(&topology.client.ns, target, PATIENCE).expect("connected");
    let backend = connection.get("/").expect("an answer").backend().to_owned();
    (connection, backend)
}

#[test]
fn round_robin_gives_each_backend_its_turns() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let balancer =
        Balancer::start(&topology, Settings::of([www(&topology, "round-robin").nodes(&topology.backends)]))?;
    assert_eq!(balancer.service("www").scheduler.to_string(), "round-robin");
    let counts = |report: &Report| -> Vec<u64> {
        topology.backends.iter().map(|node| report.count(&node.name)).collect()
    };
    let found = counts(&requests(&topology, 301));
    assert!(found.iter().max().unwrap() - found.iter().min().unwrap() <= 1, "{found:?}");

    // A backend that weighs twice as much as the other two gets half.
    balancer.lbctl(&["backend", "weight", "www", "web1", "200"]);
    let found = counts(&requests(&topology, 400));
    assert!(found.iter().zip([200, 100, 100]).all(|(found, due)| found.abs_diff(due) <= 1), "{found:?}");

    // A drain counts at once for new connections; an open one stays.
    let (mut connection, backend) = loop {
        let open = open(&topology);
        if open.1 == "web1" {
            break open;
        }
    };
    balancer.lbctl(&["backend", "drain", "www", &backend]);
    assert_eq!(requests(&topology, 50).count(&backend), 0);
    assert_eq!(connection.get("/").expect("an answer").backend(), backend);
    Ok(())
}

#[test]
fn least_connections_spares_the_loaded_backend() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let service = www(&topology, "least-connections").nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([service]))?;
    balancer.lbctl(&["backend", "drain", "www", "web2"]);
    balancer.lbctl(&["backend", "drain", "www", "web3"]);
    let mut held: Vec<_> = (0..20).map(|_| open(&topology)).collect();
    assert!(held.iter().all(|(_, backend)| backend == "web1"));
    balancer.lbctl(&["backend", "enable", "www", "web2"]);
    balancer.lbctl(&["backend", "enable", "www", "web3"]);
    let more: Vec<_> = (0..30).map(|_| open(&topology)).collect();
    let count = |name: &str| more.iter().filter(|(_, backend)| backend == name).count();
    assert_eq!((count("web1"), count("web2"), count("web3")), (0, 15, 15));
    for (connection, backend) in &mut held {
        assert_eq!(connection.get("/").expect("an answer").backend(), backend);
    }
    // Closed ones count no more: web1 has the fewest now.
    drop(held);
    std::thread::sleep(Duration::from_millis(500));
    assert!((0..10).map(|_| open(&topology)).collect::<Vec<_>>().iter().all(|(_, b)| b == "web1"));
    Ok(())
}

#[test]
fn source_ip_keeps_a_client_on_one_backend() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let service = www(&topology, "source-ip").nodes(&topology.backends);
    let _balancer = Balancer::start(&topology, Settings::of([service]))?;
    let report = requests(&topology, 100);
    let most = topology.backends.iter().map(|node| report.count(&node.name)).max();
    assert_eq!(most, Some(100), "{report}");
    Ok(())
}
