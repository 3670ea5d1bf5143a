//! The master dies, and no connection notices: two thousand of them with data in both directions, every byte checked.
//! `LBD_ROUNDS=20` is the long form.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    failover::{
        load::{Ledger, Load, Server},
        nodes::{PATIENCE, PRIORITIES, VIP, state, sync, vrrp},
    },
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};

const CONNECTIONS: usize = 2_000;
/// Of the cases that are there for what they forward by, not for the load.
const FEW: usize = 200;
const INTERVAL: Duration = Duration::from_millis(100);
/// What moves with the address, so that replies find the balancer that is master.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const POOL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 250);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// TCP's own patience doubles with every loss; a connection that moves again by then is alive.
const REVIVAL: Duration = Duration::from_secs(20);

fn rounds(default: usize) -> usize {
    std::env::var("LBD_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How a service is made, and what happens a second before each fault.
#[derive(Debug, Clone, Copy)]
struct Case {
    forward: &'static str,
    scheduler: &'static str,
    /// A backend is drained, or enabled again.
    change: bool,
    /// The virtual address and the backends are of IPv6.
    v6: bool,
    connections: usize,
    rounds: usize,
}

impl Case {
    const fn new(forward: &'static str, scheduler: &'static str, change: bool) -> Self {
        Self { forward, scheduler, change, v6: false, connections: CONNECTIONS, rounds: 2 }
    }

    const fn few(self) -> Self {
        Self { connections: FEW, rounds: 1, ..self }
    }
}

struct Pair<'t> {
    topology: &'t Topology,
    nodes: [Balancer<'t>; 2],
    round: usize,
}

impl Pair<'_> {
    fn wait_for(&self, node: usize, wanted: &str) -> Result<()> {
        let what = format!("{} is {wanted}", self.nodes[node].node.name);
        wait_until(&what, PATIENCE, || state(&self.nodes[node], "public").is_some_and(|v| v.state == wanted))
            .inspect_err(|_| eprintln!("{:?}", self.nodes.each_ref().map(|node| state(node, "public"))))
    }

    /// On both, as a configuration management would; the master first.
    fn change(&mut self) {
        self.round += 1;
        let verb = if self.round % 2 == 1 { "drain" } else { "enable" };
        for node in &self.nodes {
            node.lbctl(&["backend", verb, "www", "web2"]);
        }
    }

    /// The host of the master is gone from one moment to the next.
    fn die(&mut self) -> Result<()> {
        self.topology.unplug(0)?;
        self.nodes[0].kill();
        self.wait_for(1, "master")
    }

    fn come_back(&mut self) -> Result<()> {
        self.topology.plug(0)?;
        self.nodes[0].restart()?;
        self.wait_for(0, "master")?;
        self.wait_for(1, "backup")
    }

    /// On a machine that is too busy for it, three heartbeats are late together now and then, and the better node, which left
    /// the other one alone after its hand-over, takes it for dead. Nobody else takes over, and for no other reason: a
    /// change of master that nobody asked for would show here.
    fn taken_back(&self, from: usize) -> bool {
        let views = self.nodes.each_ref().map(|node| state(node, "public").expect("it answers"));
        if views[from].state == "master" {
            return false;
        }
        let why = views[1 - from].reason.as_str();
        eprintln!("{} is {} already: {why}", self.nodes[from].node.name, views[from].state);
        let silence = ["the master's heartbeats have ended", "no master was heard"];
        assert!(from == 1 && silence.contains(&why), "{views:#?}");
        true
    }

    fn hand_over(&mut self, from: usize) -> Result<()> {
        if self.taken_back(from) {
            return Ok(());
        }
        self.nodes[from].hand_over("public").expect("a hand-over");
        self.wait_for(1 - from, "master")?;
        self.wait_for(from, "backup")
    }
}

#[track_caller]
fn assert_alive(load: &Load, what: &str) {
    let silent = load.silent_since(load.now(), REVIVAL);
    let shown = &silent[..silent.len().min(10)];
    assert!(silent.is_empty(), "{what}: {} connections do not go on: {shown:#?}", silent.len());
}

fn survive(case: Case) -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bridge"));
    let Case { forward, scheduler, change, v6, connections, rounds: least } = case;
    let rewritten = matches!(forward, "nat" | "snat");
    let vip = if v6 { IpAddr::from(VIP6) } else { IpAddr::from(VIP) };
    let topology = Topology::new(&Shape {
        vips: if rewritten { Vec::new() } else { vec![vip] },
        vips_on_link: true,
        sync_link: true,
        lb_forwarding: rewritten,
        ..Shape::default()
    })?;
    let ledger = Arc::new(Ledger::default());
    let mut servers = Vec::new();
    for node in &topology.backends {
        let address = SocketAddr::new(if rewritten { node.v4.into() } else { vip }, 80);
        servers.push(Server::start(&node.ns, &node.name, address, &ledger).expect("a server"));
        if forward == "nat" {
            let mut plan = topology.lab.plan();
            plan.gateway(&node.ns, GATEWAY.into()).apply()?;
        }
    }
    let nodes = [0, 1].map(|on: usize| {
        let www = Service::www([vip]).forward(forward);
        let mut www = if v6 { www.nodes6(&topology.backends) } else { www.nodes(&topology.backends) };
        www = www.extra(&format!("scheduler = \"{scheduler}\""));
        if forward == "snat" {
            www = www.extra(&format!("[service.snat]\naddresses = [\"{POOL}\"]"));
        }
        let own = match forward {
            "nat" => vec![format!("{VIP}/24"), format!("{GATEWAY}/16")],
            "snat" => vec![format!("{VIP}/24"), format!("{POOL}/16")],
            _ if v6 => vec![format!("{VIP6}/64")],
            _ => vec![format!("{VIP}/24")],
        };
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let rest = vrrp("public", 51, PRIORITIES[on], INTERVAL, &own) + &sync(&topology, on).expect("a key");
        let settings = Settings { on, rest, interfaces: vec!["eth0".to_owned()], ..Settings::of([www]) };
        let mut balancer = Balancer::prepare(&topology, settings).expect("a configuration");
        if matches!(forward, "ipip" | "gue") && on == 0 {
            balancer.decapsulate_for_both().expect("decapsulators");
        }
        balancer.restart().expect("a balancer");
        balancer
    });
    let mut pair = Pair { topology: &topology, nodes, round: 0 };
    pair.wait_for(0, "master")?;
    let target = SocketAddr::new(vip, 80);
    for round in 1..=rounds(least) {
        let begun = Instant::now();
        let told = |what: &str| eprintln!("{:>6.1?} {what}", begun.elapsed());
        let load = Load::open(&topology.client.ns, &[target], connections, &ledger).expect("connections");
        told("open");
        let before = |pair: &mut Pair<'_>| {
            if change {
                pair.change();
            }
            std::thread::sleep(Duration::from_secs(1));
        };
        before(&mut pair);
        pair.die()?;
        assert_alive(&load, "the master's host is gone");
        told("the master's host is gone");
        // Nothing changes while a node is away: it would return with other backends than its peer.
        std::thread::sleep(Duration::from_secs(1));
        pair.come_back()?;
        assert_alive(&load, "it has come back");
        told("it has come back");
        before(&mut pair);
        pair.hand_over(0)?;
        assert_alive(&load, "it has handed over");
        told("it has handed over");
        before(&mut pair);
        pair.hand_over(1)?;
        assert_alive(&load, "it was handed back");
        told("it was handed back");
        let report = load.close();
        eprintln!("{case:?}, round {round}: {} bytes, {:?}", report.bytes, report.backends);
        assert_eq!(report.broken, [""; 0], "{case:?}");
        assert!(report.backends.len() >= 2, "{report:?}");
    }
    Ok(())
}

#[test]
fn maglev_with_a_change_of_backends() -> Result<()> {
    survive(Case::new("dsr", "maglev", true))
}

#[test]
fn tunnelled() -> Result<()> {
    survive(Case::new("ipip", "maglev", false))
}

#[test]
fn round_robin() -> Result<()> {
    survive(Case::new("dsr", "round-robin", true))
}

#[test]
fn nat() -> Result<()> {
    survive(Case::new("nat", "maglev", true))
}

#[test]
fn snat() -> Result<()> {
    survive(Case::new("snat", "maglev", true))
}

#[test]
fn snat_with_round_robin() -> Result<()> {
    survive(Case::new("snat", "round-robin", true).few())
}

/// The neighbours learn of the new master by neighbour advertisements.
#[test]
fn tunnelled_by_gue_over_ipv6() -> Result<()> {
    survive(Case { v6: true, ..Case::new("gue", "maglev", true).few() })
}
