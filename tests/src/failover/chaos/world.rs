//! Both nodes at work, each master of one address, with a disk and a clock of their own.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};

use crate::{
    balancer::{Balancer, Service, Settings},
    failover::{
        load::{Ledger, Load, Server},
        nodes::{PATIENCE, state, sync, vrrp},
    },
    lab::{Error, Process, Result, Shape, Topology},
};

/// The first is the first node's, the second the second's.
pub const VIPS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 11)];
const NAMES: [&str; 2] = ["one", "two"];
/// Of each node's state_dir.
const DISK: &str = "256k";

pub fn network() -> Result<Topology> {
    Topology::new(&Shape {
        vips: VIPS.map(Into::into).into(),
        vips_on_link: true,
        sync_link: true,
        ..Shape::default()
    })
}

/// A mount namespace in which a node's state_dir is a small file system; a process holds it.
struct Disk {
    holder: Process,
    namespace: File,
}

pub struct World<'t> {
    pub topology: &'t Topology,
    nodes: [Balancer<'t>; 2],
    disks: [Disk; 2],
    clocks: [Option<PathBuf>; 2],
    pub ledger: Arc<Ledger>,
    _servers: Vec<Server>,
}

impl<'t> World<'t> {
    /// Brings both nodes up, with a sync link or without.
    pub fn start(topology: &'t Topology, interval: Duration, linked: bool) -> Result<Self> {
        let ledger = Arc::new(Ledger::default());
        let mut servers = Vec::new();
        for node in &topology.backends {
            // Any address: both virtual ones.
            let address = SocketAddr::from(([0, 0, 0, 0], 80));
            let server = Server::start(&node.ns, &node.name, address, &ledger);
            servers.push(server.map_err(|source| Error::Listen {
                ns: node.name.clone(),
                address,
                source,
            })?);
        }
        let prepare = |on: usize| {
            let www = Service::www(VIPS.map(Into::into)).nodes(&topology.backends);
            let mut text = if linked { sync(topology, on)? } else { String::new() };
            for (at, vip) in VIPS.iter().enumerate() {
                let priority = if at == on { 150 } else { 100 };
                text += &vrrp(NAMES[at], 51 + at as u8, priority, interval, &[&format!("{vip}/24")]);
            }
            let settings =
                Settings { on, rest: text, interfaces: vec!["eth0".to_owned()], ..Settings::of([www]) };
            Balancer::prepare(topology, settings)
        };
        let nodes = [prepare(0)?, prepare(1)?];
        let disks = [disk(topology, &nodes[0])?, disk(topology, &nodes[1])?];
        let clocks = nodes.each_ref().map(|node| faketime().map(|_| node.dir().join("clock")));
        let mut world = Self { topology, nodes, disks, clocks, ledger, _servers: servers };
        for node in 0..2 {
            world.jump(node, 0);
            world.run(node)?;
        }
        Ok(world)
    }

    pub fn load(&self, connections: usize) -> std::io::Result<Load> {
        let targets = VIPS.map(|vip| SocketAddr::new(vip.into(), 80));
        Load::open(&self.topology.client.ns, &targets, connections, &self.ledger)
    }

    fn run(&mut self, node: usize) -> Result<()> {
        let mut command = self.nodes[node].lbd();
        if let Ok(namespace) = self.disks[node].namespace.try_clone() {
            // SAFETY: between fork and exec only async-signal-safe calls are allowed: setns is one plain system call,
            // and the descriptor lives as long as the closure, which owns a copy.
            unsafe {
                command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNS)?));
            }
        }
        if let (Some(library), Some(clock)) = (faketime(), &self.clocks[node]) {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
            // Nothing can make a monotonic clock jump: settimeofday and NTP do not touch it.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
            command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DISABLE_SHM", "1");
        }
        self.nodes[node].restart_with(command)
    }

    /// Reaps a daemon that was told to end, and starts another.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        self.nodes[node].process().wait(PATIENCE)?;
        self.nodes[node].kill();
        self.run(node)
    }

    pub fn signal(&self, node: usize, signal: Signal) {
        self.nodes[node].process().signal(signal);
    }

    /// Whether clocks can jump here.
    pub fn has_clocks() -> bool {
        faketime().is_some()
    }

    /// Sets the wall clock that the daemon sees so many hours off.
    pub fn jump(&self, node: usize, hours: i8) {
        if let Some(clock) = &self.clocks[node] {
            let _ = fs::write(clock, format!("{hours:+}h\n"));
        }
    }

    /// A file on the node's disk that can take all of it.
    pub fn filler(&self, node: usize) -> PathBuf {
        let inside = self.nodes[node].state_dir();
        let root = format!("/proc/{}/root", self.disks[node].holder.pid());
        PathBuf::from(root).join(inside.strip_prefix("/").unwrap_or(&inside)).join("filler")
    }

    /// A change at run time that takes no traffic from anybody, and is to be kept on the disk.
    pub fn change(&self, node: usize) {
        let _ = self.nodes[node].lbctl_output(&["backend", "weight", "www", "web1", "100"]);
    }

    /// Whether each node knows itself master of its own address and backup of the other's, without a fault.
    pub fn is_settled(&self) -> bool {
        (0..2).all(|node| {
            NAMES.iter().enumerate().all(|(at, name)| {
                let wanted = if at == node { "master" } else { "backup" };
                state(&self.nodes[node], name).is_some_and(|v| v.state == wanted && v.faults.is_empty())
            })
        })
    }

    /// What both nodes say of themselves, and the ends of their logs.
    pub fn story(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let pair = node.lbctl_output(&["pair"]);
            text += &format!("--- {}:\n{}", node.node.name, String::from_utf8_lossy(&pair.stdout));
            let log = node.process().log();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" DEBUG ")).collect();
            text += &lines[lines.len().saturating_sub(40)..].join("\n");
            text.push('\n');
        }
        text
    }
}

fn disk(topology: &Topology, node: &Balancer<'_>) -> Result<Disk> {
    let state = node.state_dir();
    let fail = |what| {
        let path = state.clone();
        move |source| Error::File { path, what, source }
    };
    fs::create_dir_all(&state).map_err(fail("making the mount point"))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command
        .arg("mount -t tmpfs -o size=\"$1\",mode=0700 tmpfs \"$0\" && echo mounted && exec sleep infinity");
    command.arg(&state).arg(DISK);
    let holder = topology.lab.spawn("disk", command)?;
    holder.wait_for_log("mounted", PATIENCE)?;
    let namespace =
        File::open(format!("/proc/{}/ns/mnt", holder.pid())).map_err(fail("opening its mount namespace"))?;
    Ok(Disk { holder, namespace })
}

/// The library that gives a program another wall clock.
fn faketime() -> Option<PathBuf> {
    let entries = fs::read_dir("/usr/lib").ok()?;
    let here = entries.flatten().map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    here.into_iter().find(|path| path.exists())
}
