//! Balancers behind a router that spreads packets over all that announce the address: BIRD on every host, echo servers behind.

use std::{fs, net::SocketAddr, time::Duration};

use crate::{
    crowd::Crowd,
    lab::{Error, Node, Process, Result, Topology, wait_until},
};

/// Far more than anything takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Of the echo servers.
pub const PORT: u16 = 80;

/// One BIRD in a namespace.
pub struct Bird {
    _process: Process,
}

impl Bird {
    fn start(topology: &Topology, node: &Node, config: &str) -> Result<Self> {
        let file = |suffix: &str| topology.lab.dir().join(format!("bird-{}.{suffix}", node.name));
        let config = format!("log stderr all;\nrouter id {};\nprotocol device {{}}\n{config}", node.v4);
        let path = file("conf");
        fs::write(&path, config).map_err(|source| Error::File {
            path,
            what: "writing BIRD's configuration",
            source,
        })?;
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
pub fn paths(topology: &Topology, address: &str) -> usize {
    let family = if address.contains(':') { "-6" } else { "-4" };
    let shown = topology.router.ns.exec("ip", &[family, "route", "show", address]).unwrap_or_default();
    shown.matches("via ").count()
}

pub fn wait_for_paths(topology: &Topology, count: usize) -> Result<()> {
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

/// BIRD on the router and on every balancer, and a router that spreads by ports what it gets routes for.
pub fn routers(topology: &Topology) -> Result<Vec<Bird>> {
    // The routes to the virtual addresses are to come by BGP.
    topology.router.ns.ip("route del 192.0.2.0/24\nroute del 2001:db8::/64\n")?;
    for key in ["net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"] {
        topology.router.ns.sysctl(key, "1")?;
    }
    let mut birds = vec![Bird::start(topology, &topology.router, &listener(topology))?];
    for node in topology.balancers() {
        birds.push(Bird::start(topology, node, &speaker(&topology.router, node))?);
    }
    Ok(birds)
}

/// On the virtual addresses, and on their own for the checks.
pub fn echo_servers(topology: &Topology, targets: &[SocketAddr], program: &str) -> Result<Vec<Process>> {
    let start = |node: &Node| -> Result<Process> {
        let own = SocketAddr::new(node.v4.into(), PORT);
        let mut command = node.ns.command(program);
        command.arg(&node.name).args(targets.iter().chain([&own]).map(SocketAddr::to_string));
        let server = topology.lab.spawn(&format!("echo-{}", node.name), command)?;
        server.wait_for_log("ready", PATIENCE)?;
        Ok(server)
    };
    topology.backends.iter().map(start).collect()
}

/// Everybody has spoken, some of them over other paths than before.
///
/// # Panics
/// When a connection is broken.
pub fn everybody_speaks(crowd: &Crowd) -> Result<()> {
    let rounds = crowd.rounds();
    wait_until("everyone to speak twice more", PATIENCE, || crowd.rounds() > rounds + 8)?;
    let broken = crowd.report().broken;
    assert!(broken.is_empty(), "{} connections broke: {:#?}", broken.len(), &broken[..broken.len().min(5)]);
    Ok(())
}
