//! Nodes that have etcd (Debian's) in common, on the router's host.

use std::{fs, io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt as _, time::Duration};

use lb_userspace::control::fleet::FleetView;

use crate::{
    balancer::{Balancer, text},
    ecmp::PATIENCE,
    lab::{Node, Process, Result, Topology, wait_for_port, wait_until},
};

pub const PREFIX: &str = "/lbd/test";
/// Of the nodes' leases.
pub const LEASE: Duration = Duration::from_secs(3);
const PORT: u16 = 2379;

/// One etcd, alone.
pub struct Etcd<'t> {
    topology: &'t Topology,
    scheme: &'static str,
    arguments: Vec<String>,
    /// Of etcdctl.
    pub login: Vec<String>,
    process: Option<Process>,
}

impl<'t> Etcd<'t> {
    pub fn start(topology: &'t Topology) -> Result<Self> {
        Self::start_with(topology, "http", Vec::new(), Vec::new())
    }

    /// With further arguments of etcd and of etcdctl.
    pub fn start_with(
        topology: &'t Topology,
        scheme: &'static str,
        arguments: Vec<String>,
        login: Vec<String>,
    ) -> Result<Self> {
        let mut etcd = Self { topology, scheme, arguments, login, process: None };
        etcd.again()?;
        Ok(etcd)
    }

    pub fn url(&self) -> String {
        format!("{}://{}:{PORT}", self.scheme, self.topology.router.v4)
    }

    /// Starts it with what it has on disk.
    pub fn again(&mut self) -> Result<()> {
        let router = &self.topology.router;
        let peer = "http://127.0.0.1:2380";
        let mut command = router.ns.command("etcd");
        command.arg("--data-dir").arg(self.topology.lab.dir().join("etcd"));
        command.args(["--name", "etcd1", "--listen-client-urls", &self.url()]);
        command.args(["--advertise-client-urls", &self.url(), "--listen-peer-urls", peer]);
        command.args(["--initial-advertise-peer-urls", peer, "--initial-cluster", &format!("etcd1={peer}")]);
        command.args(&self.arguments);
        self.process = Some(self.topology.lab.spawn("etcd", command)?);
        wait_for_port(&router.ns, SocketAddr::new(router.v4.into(), PORT), PATIENCE)
    }

    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// `etcdctl` with these arguments.
    ///
    /// # Panics
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.topology.router.ns.command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(&self.login);
        let output = command.args(arguments).output().expect("etcdctl starts");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

/// `[sync]` and `[fleet]` of a node that shares slots and flows with all other balancers.
///
/// # Panics
/// When the file of the key cannot be written.
pub fn shared(topology: &Topology, on: usize) -> String {
    let key = topology.lab.dir().join("sync.key");
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&key).expect("a file");
    writeln!(file, "{}", "5a".repeat(32)).expect("a key");
    let address = |node: &Node| format!("{}:9760", node.v4);
    let addresses: Vec<String> = topology.balancers().map(address).collect();
    let (own, mut peers) = (addresses[on].clone(), addresses);
    peers.remove(on);
    format!(
        "[sync]\nlisten = \"{own}\"\npeers = {peers:?}\nkey_file = \"{}\"\n\
         [fleet]\nendpoints = [\"http://{}:{PORT}\"]\nprefix = \"{PREFIX}\"\nlease = \"{}s\"\n",
        key.display(),
        topology.router.v4,
        LEASE.as_secs(),
    )
}

/// The fleet's document: one service with these of the backends, and these lines.
pub fn document(topology: &Topology, backends: &[usize], more: &str) -> String {
    let mut text = format!(
        "[defaults]\nring_size = 4099\n[[service]]\nname = \"www\"\naddresses = [\"{}\"]\nport = 80\n\
         protocol = \"tcp\"\nforward = \"dsr\"\nhealth.type = \"none\"\n{more}\n",
        topology.vip4()
    );
    for node in backends.iter().map(|number| &topology.backends[*number]) {
        text += &format!("[[service.backend]]\nname = \"{}\"\naddress = \"{}\"\n", node.name, node.v4);
    }
    text
}

/// A file of the lab, and its path.
///
/// # Panics
/// When it cannot be written.
pub fn write(topology: &Topology, name: &str, text: &str) -> String {
    let path = topology.lab.dir().join(name);
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

pub fn view(balancer: &Balancer<'_>) -> FleetView {
    balancer.json(&["fleet"])
}

/// What a node last said of who decides over the slots.
pub fn charge(balancer: &Balancer<'_>) -> Option<Charge> {
    let log = balancer.process().log();
    log.lines()
        .rev()
        .find_map(|line| Charge::ALL.iter().find(|(_, said)| line.contains(said)).map(|(c, _)| *c))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    Leads,
    Follows,
    Holds,
    Alone,
}

impl Charge {
    const ALL: [(Self, &str); 4] = [
        (Self::Leads, "this node decides over the slots of the fleet"),
        (Self::Follows, "another node decides over the slots of the fleet"),
        (Self::Holds, "nobody decides over the slots of the fleet"),
        (Self::Alone, "no authority of the fleet for too long: this node decides for itself"),
    ];
}

/// The node that decides for all, among those that live.
pub fn leader(balancers: &[Balancer<'_>], among: &[usize]) -> Option<usize> {
    among.iter().copied().find(|on| charge(&balancers[*on]) == Some(Charge::Leads))
}

/// All of these nodes have as many slots of each kind, and each backend as many on all of them; those under way are passed to `wanted`.
pub fn wait_for_slots(
    balancers: &[Balancer<'_>],
    among: &[usize],
    service: &str,
    wanted: impl Fn(u32) -> bool,
) -> Result<()> {
    let of = |on: &usize| {
        let view = balancers[*on].service(service);
        let backends: Vec<_> = view.backends.iter().map(|b| (b.name.to_string(), b.slots)).collect();
        let slots = view.slots;
        (slots.plain, slots.moving, slots.tracked, backends)
    };
    wait_until("the same slots on every node", PATIENCE, || {
        let slots: Vec<_> = among.iter().map(of).collect();
        wanted(slots[0].1) && slots.iter().all(|of| *of == slots[0])
    })
    .inspect_err(|_| {
        for on in among {
            eprintln!("{on}: {:?} {:?}", charge(&balancers[*on]), of(on));
        }
    })
}
