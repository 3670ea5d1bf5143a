//! Both nodes of a pair, and what can befall the master.

use std::{
    fmt::Write as _, fs, io::Write as _, net::Ipv4Addr, os::unix::fs::OpenOptionsExt as _, process::Command,
    time::Duration,
};

use lb_userspace::control::pair::PairView;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    balancer::{Balancer, Service, Settings},
    lab::{Error, Node, Process, Result, Shape, Topology, wait_until},
    skip::find_tool,
};

/// The address of the pair.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Of the echo servers behind it.
pub const PORT: u16 = 7;
/// Of the first node, the master, and of the second.
pub const PRIORITIES: [u8; 2] = [150, 100];
/// Far more than anything takes, on machines that are busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Name of the instance.
pub const INSTANCE: &str = "public";

/// What befalls the master, or what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL to all processes of the daemon
    Kill,
    /// SIGTERM
    Term,
    /// SIGSTOP to all processes of the daemon
    Hang,
    /// The cable is pulled: no carrier
    Link,
    /// The switch's port passes nothing, the link stays up
    Silent,
    /// The host is gone with its interfaces and processes
    Gone,
    /// The operator hands over (lbd only: keepalived has no such command)
    Failover,
    /// The better node comes back and preempts
    Preempt,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::Gone,
        Self::Silent,
        Self::Link,
        Self::Hang,
        Self::Kill,
        Self::Term,
        Self::Failover,
        Self::Preempt,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Term => "term",
            Self::Hang => "hang",
            Self::Link => "link",
            Self::Silent => "silent",
            Self::Gone => "gone",
            Self::Failover => "failover",
            Self::Preempt => "preempt",
        }
    }
}

/// The network of a pair: the addresses are on the link, so that whoever answers ARP has them.
pub fn network() -> Result<Topology> {
    Topology::new(&Shape {
        backends: 3,
        vips: vec![VIP.into()],
        vips_on_link: true,
        sync_link: true,
        ..Shape::default()
    })
}

/// A pair by one of the two products. Node 0 is the better one.
pub trait Pair {
    fn name(&self) -> &'static str;
    fn topology(&self) -> &Topology;
    /// Starts the daemon of a node that has none.
    fn start(&mut self, node: usize) -> Result<()>;
    /// Sends a signal to all processes of a node's daemon.
    fn signal(&self, node: usize, signal: Signal);
    /// Waits for the end of a daemon that was told to end, or kills it, and forgets it.
    fn reap(&mut self, node: usize) -> Result<()>;
    /// Hands over from a node to the other. `false`: it has no such command, is not master at this moment, or its peer would
    /// not take over.
    fn hand_over(&self, node: usize) -> Result<bool>;
    /// Whether each node believes of itself what it should: the first is master, the second backup.
    fn is_settled(&self) -> bool;
}

/// Makes a fault happen to node 0. The moment it returns, it has happened; `false`: it could not.
pub fn strike(pair: &mut dyn Pair, fault: Fault) -> Result<bool> {
    match fault {
        Fault::Kill => pair.signal(0, Signal::SIGKILL),
        Fault::Term => pair.signal(0, Signal::SIGTERM),
        Fault::Hang => pair.signal(0, Signal::SIGSTOP),
        Fault::Link => pair.topology().switch.ip("link set lb1 down\n")?,
        Fault::Silent => port_state(pair.topology(), "lb1", false)?,
        Fault::Gone => {
            pair.topology().unplug(0)?;
            pair.signal(0, Signal::SIGKILL);
        }
        Fault::Failover => return pair.hand_over(0),
        Fault::Preempt => pair.start(0)?,
    }
    Ok(true)
}

/// Takes away the cause of a fault of node 0, as an operator or service manager would.
pub fn mend(pair: &mut dyn Pair, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill | Fault::Term => {
            pair.reap(0)?;
            pair.start(0)
        }
        Fault::Hang => {
            pair.signal(0, Signal::SIGCONT);
            Ok(())
        }
        Fault::Link => pair.topology().switch.ip("link set lb1 up\n"),
        Fault::Silent => port_state(pair.topology(), "lb1", true),
        Fault::Gone => {
            pair.reap(0)?;
            pair.topology().plug(0)?;
            pair.start(0)
        }
        Fault::Failover => {
            // Where the machine stood still for three intervals, the better node has taken its address back already.
            pair.hand_over(1).map(drop)
        }
        Fault::Preempt => Ok(()),
    }
}

/// Lets a port of the switch pass all, or nothing in either direction with its link up.
pub fn port_state(topology: &Topology, port: &str, passes: bool) -> Result<()> {
    // BR_STATE_FORWARDING and BR_STATE_DISABLED.
    let state = if passes { "3" } else { "0" };
    topology.switch.exec("bridge", &["link", "set", "dev", port, "state", state]).map(drop)
}

/// An interval as lbd writes it.
fn interval_text(interval: Duration) -> String {
    format!("{}ms", interval.as_millis())
}

/// Two lbd.
pub struct Lbd<'t> {
    topology: &'t Topology,
    nodes: [Balancer<'t>; 2],
}

impl<'t> Lbd<'t> {
    /// Starts both, with a sync link or without.
    pub fn start(topology: &'t Topology, interval: Duration, linked: bool) -> Result<Self> {
        let node = |on: usize| {
            let www = Service::www([VIP.into()]).name("echo").udp().port(PORT).nodes(&topology.backends);
            let rest = if linked { sync(topology, on)? } else { String::new() };
            let vrrp = vrrp(INSTANCE, 51, PRIORITIES[on], interval, &[&format!("{VIP}/24")]);
            let settings = Settings { on, rest: vrrp + &rest, ..Settings::of([www]) };
            Balancer::start(topology, Settings { interfaces: vec!["eth0".to_owned()], ..settings })
        };
        Ok(Self { topology, nodes: [node(0)?, node(1)?] })
    }

    pub fn node(&self, node: usize) -> &Balancer<'t> {
        &self.nodes[node]
    }
}

/// A `[[vrrp]]`.
pub fn vrrp(name: &str, id: u8, priority: u8, interval: Duration, addresses: &[&str]) -> String {
    format!(
        "\n[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nrouter_id = {id}\npriority = {priority}\n\
         advert_interval = \"{}\"\naddresses = {addresses:?}\n",
        interval_text(interval)
    )
}

/// The `[sync]` of a node: over the link between the two, which `sync_link` of the shape makes.
pub fn sync(topology: &Topology, on: usize) -> Result<String> {
    let path = topology.lab.dir().join("sync.key");
    let fail = |source| Error::File { path: path.clone(), what: "writing the key of the sync link", source };
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&path).map_err(fail)?;
    writeln!(file, "{}", "5a".repeat(32)).map_err(fail)?;
    let address = |node: usize| topology.lb[node].interface("sync0").map(|i| format!("{}:9760", i.v4));
    let [own, peer] = [on, 1 - on].map(|node| address(node).unwrap_or_default());
    Ok(format!("\n[sync]\nlisten = \"{own}\"\npeers = [\"{peer}\"]\nkey_file = \"{}\"\n", path.display()))
}

/// The state of an instance, as far as the daemon can be asked.
pub fn state(balancer: &Balancer<'_>, instance: &str) -> Option<PairView> {
    let output = balancer.lbctl_output(&["-o", "json", "pair"]);
    let views: Vec<PairView> = serde_json::from_slice(&output.stdout).ok()?;
    views.into_iter().find(|view| view.name == instance)
}

impl Pair for Lbd<'_> {
    fn name(&self) -> &'static str {
        "lbd"
    }

    fn topology(&self) -> &Topology {
        self.topology
    }

    fn start(&mut self, node: usize) -> Result<()> {
        self.nodes[node].restart()
    }

    fn signal(&self, node: usize, signal: Signal) {
        self.nodes[node].process().signal(signal);
    }

    fn reap(&mut self, node: usize) -> Result<()> {
        let ended = self.nodes[node].process().wait(PATIENCE).map(drop);
        self.nodes[node].kill();
        ended
    }

    fn hand_over(&self, node: usize) -> Result<bool> {
        match self.nodes[node].hand_over(INSTANCE) {
            Ok(()) => Ok(true),
            Err(said) if said.contains("is backup, not master") => Ok(false),
            Err(said) => Err(Error::Refused(said)),
        }
    }

    fn is_settled(&self) -> bool {
        let is = |node: usize, wanted: &str| {
            state(&self.nodes[node], INSTANCE).is_some_and(|v| v.state == wanted && v.faults.is_empty())
        };
        is(0, "master") && is(1, "backup")
    }
}

/// Two keepalived.
pub struct Keepalived<'t> {
    topology: &'t Topology,
    interval: Duration,
    nodes: [Option<Process>; 2],
}

impl<'t> Keepalived<'t> {
    pub fn start(topology: &'t Topology, interval: Duration) -> Result<Self> {
        let mut pair = Self { topology, interval, nodes: [None, None] };
        pair.start(0)?;
        pair.start(1)?;
        Ok(pair)
    }

    fn config(&self, node: usize) -> String {
        let mut text = "global_defs {\nvrrp_version 3\n}\n".to_owned();
        let _ = write!(
            text,
            "vrrp_instance {INSTANCE} {{\nstate BACKUP\ninterface eth0\nvirtual_router_id 51\npriority {}\nversion 3\n\
             advert_int {}\nvirtual_ipaddress {{\n{VIP}/24\n}}\n}}\n",
            PRIORITIES[node],
            self.interval.as_secs_f64()
        );
        text
    }

    fn has_address(&self, node: &Node) -> bool {
        let shown = node.ns.exec("ip", &["-o", "addr", "show", "dev", "eth0"]).unwrap_or_default();
        shown.contains(&format!(" {VIP}/"))
    }
}

impl Pair for Keepalived<'_> {
    fn name(&self) -> &'static str {
        "keepalived"
    }

    fn topology(&self) -> &Topology {
        self.topology
    }

    fn start(&mut self, node: usize) -> Result<()> {
        let host = &self.topology.lb[node];
        // Killed, it leaves its address where it was, and at its start it does not clear it away.
        if self.has_address(host) {
            host.ns.ip(&format!("addr del {VIP}/24 dev eth0\n"))?;
        }
        let dir = self.topology.lab.dir().join(format!("keepalived{node}"));
        let file = dir.join("keepalived.conf");
        let fail = |source| Error::File { path: file.clone(), what: "writing the configuration", source };
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(fail)?;
        fs::write(&file, self.config(node)).map_err(fail)?;
        let program = find_tool("keepalived").ok_or(Error::NoTool("keepalived"))?;
        let mut command: Command = host.ns.command(program);
        command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"]).arg(&file);
        command.arg("--pid").arg(dir.join("pid")).arg("--vrrp_pid").arg(dir.join("vrrp.pid"));
        let process = self.topology.lab.spawn("keepalived", command)?;
        process.wait_for_log("Startup complete", PATIENCE)?;
        self.nodes[node] = Some(process);
        Ok(())
    }

    fn signal(&self, node: usize, signal: Signal) {
        let Some(process) = &self.nodes[node] else { return };
        // SIGTERM goes to the parent, as a service manager's does first; the others to all at once.
        let pid = process.pid().cast_signed();
        let pid = if signal == Signal::SIGTERM { pid } else { -pid };
        let _ = kill(Pid::from_raw(pid), signal);
    }

    fn reap(&mut self, node: usize) -> Result<()> {
        match self.nodes[node].take() {
            Some(process) => process.wait(PATIENCE).map(drop),
            None => Ok(()),
        }
    }

    fn hand_over(&self, _: usize) -> Result<bool> {
        Ok(false)
    }

    fn is_settled(&self) -> bool {
        self.has_address(&self.topology.lb[0]) && !self.has_address(&self.topology.lb[1])
    }
}

/// Waits until the first node alone has the address and both know it.
pub fn settle(pair: &dyn Pair, watcher: &super::watch::Watcher) -> Result<()> {
    let mut quiet = 0;
    let what = format!("{}: lb1 alone has the address", pair.name());
    wait_until(&what, PATIENCE, || {
        let sole = watcher.is_sole(&pair.topology().lb[0], VIP, Duration::from_millis(20)).unwrap_or(false);
        quiet = if sole && pair.is_settled() { quiet + 1 } else { 0 };
        quiet >= 3
    })
}
