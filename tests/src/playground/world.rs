//! The network, the web servers and the daemons of a playground. Dropping a [`World`] takes all of it away.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use lb_userspace::daemon;

use super::{
    args::{BringUp, Mode},
    failover::Finding,
    place::{Place, Premises},
    probe::{self, Snapshot},
    signals::Stop,
};
use crate::{
    client::{self, Report, Requests},
    lab::{Error, Lab, Mtu, Netns, Node, Process, Shape, Topology},
    web::{Kind, WebOptions, WebServer},
};

/// The service's name and port.
pub(super) const SERVICE: &str = "www";
const HTTP: u16 = 80;
/// Where a balancer's dashboard and metrics are, in its namespace.
pub(super) const DASHBOARD: u16 = 9750;
const GUE_PORT: u16 = 6080;
/// The sources of tunnelled packets: the daemon's default for IPIP, and the network of the balancers for GUE.
const TUNNEL_SOURCES: [&str; 4] = ["198.18.0.0/16", "100::/64", "10.0.0.0/16", "fd00::/64"];
/// Room for the outer headers, so that tunnels need no smaller packets from the client.
const TUNNEL_MTU: u32 = 1600;
/// A daemon of a debug build on a busy machine needs a few seconds.
const READY: Duration = Duration::from_secs(30);
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// What a probe waits; a balancer that is merely busy answers sooner.
const PROBE_TIME: Duration = Duration::from_millis(500);

/// The programs of this build.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    lbd: PathBuf,
    lbctl: PathBuf,
}

impl Programs {
    /// In the directory `LBD_BIN_DIR` tells, else beside this program.
    pub(super) fn find() -> Result<Self> {
        let dir = match std::env::var_os("LBD_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => {
                let own = std::env::current_exe().context("cannot tell where this program lies")?;
                own.parent().map(Path::to_owned).unwrap_or_default()
            }
        };
        let find = |name: &str| {
            let path = dir.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                bail!("{} does not exist; `cargo xtask build` makes it", path.display())
            }
        };
        Ok(Self { lbd: find("lbd")?, lbctl: find("lbctl")? })
    }

    pub(super) fn lbctl(&self) -> &Path {
        &self.lbctl
    }
}

/// A balancer and its daemon.
struct Balancer {
    node: Node,
    config: PathBuf,
    pin_dir: PathBuf,
    process: Option<Process>,
    plugged: bool,
}

impl Balancer {
    fn dashboard(&self) -> SocketAddr {
        SocketAddr::new(self.node.v4.into(), DASHBOARD)
    }

    fn start(&mut self, lab: &Lab, programs: &Programs) -> Result<()> {
        let mut command = self.node.ns.command(&programs.lbd);
        command.arg("--config").arg(&self.config).args(["--log", "info"]);
        self.process = Some(lab.spawn(&format!("lbd-{}", self.node.name), command)?);
        Ok(())
    }

    fn wait_until_ready(&self, router: &Netns, stop: &Stop) -> Result<()> {
        let process = self.process.as_ref().context("its lbd was not started")?;
        let forwards = || stop.is_asked_for() || matches!(self.probe(router), Finding::Forwards { .. });
        Ok(process.wait_for("the first answer", READY, forwards)?)
    }

    fn probe(&self, router: &Netns) -> Finding {
        probe::probe(router, self.dashboard(), &self.pin_dir.join("links"), PROBE_TIME)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.process.take());
        // Whatever this leaves, the end of the premises removes.
        let _ = daemon::detach(&daemon::Options { config: self.config.clone() });
    }
}

/// A playground's inside. The order of the fields is that of taking it away.
pub(super) struct World {
    balancers: Vec<Balancer>,
    web: Vec<WebServer>,
    programs: Programs,
    mode: Mode,
    topology: Topology,
    premises: Premises,
}

impl World {
    /// The network, still without anybody in it.
    pub(super) fn network(
        place: &Place,
        options: &BringUp,
        programs: Programs,
    ) -> Result<(Lab, Premises, Plan)> {
        let lab = Lab::named(place.name()).map_err(|error| match error {
            Error::NameTaken { .. } => anyhow!(
                "a playground named {0} is up already: `playground status` shows it, `playground down` ends it, and \
                 `--name OTHER` brings one up beside it",
                place.name()
            ),
            other => other.into(),
        })?;
        let premises = Premises::take(place)?;
        Ok((lab, premises, Plan { shape: shape(options), mode: options.forward, programs }))
    }

    pub(super) fn build((lab, premises, plan): (Lab, Premises, Plan)) -> Result<Self> {
        let topology = Topology::build(lab, &plan.shape)?;
        Ok(Self {
            balancers: Vec::new(),
            web: Vec::new(),
            programs: plan.programs,
            mode: plan.mode,
            topology,
            premises,
        })
    }

    /// Starts a web server on every backend, all at once.
    pub(super) fn start_web_servers(&mut self) -> Result<()> {
        let Topology { lab, backends, .. } = &self.topology;
        let options = WebOptions::default();
        self.web = thread::scope(|scope| {
            let start = |node: &Node| WebServer::nginx_or_builtin(lab, &node.ns, &node.name, &options);
            let threads: Vec<_> = backends.iter().map(|node| scope.spawn(move || start(node))).collect();
            threads.into_iter().map(join).collect::<Result<_, _>>()
        })?;
        Ok(())
    }

    /// Gives the backends the program that takes the outer headers off.
    pub(super) fn attach_decapsulators(&self) -> Result<()> {
        for node in &self.topology.backends {
            let pins = self.premises.pin_root().join(&node.name);
            let (lbctl, pins) = (text(self.programs.lbctl())?, text(&pins)?);
            let port = GUE_PORT.to_string();
            let from = TUNNEL_SOURCES.join(",");
            node.ns.exec(
                lbctl,
                &["decap", "attach", "eth0", "--from", &from, "--gue-port", &port, "--pin-dir", pins],
            )?;
        }
        Ok(())
    }

    /// Starts a daemon on both balancers and waits until both forward, or until that is not wanted any more.
    pub(super) fn start_balancers(&mut self, stop: &Stop) -> Result<()> {
        for node in self.topology.lb.clone() {
            let name = &node.name;
            let pin_dir = self.premises.pin_root().join(name);
            let run_dir = self.premises.run_dir().join(name);
            let config = self.topology.lab.dir().join(format!("{name}.toml"));
            let text = configuration(&Settings {
                name,
                state_dir: &self.topology.lab.dir().join(format!("{name}-state")),
                pin_dir: &pin_dir,
                run_dir: &run_dir,
                addresses: &self.topology.shape.vips,
                mode: self.mode,
                backends: &self.topology.backends,
            });
            std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
            let short = self.premises.run_dir().join(format!("{name}.sock"));
            symlink(run_dir.join("lbd.sock"), &short)
                .with_context(|| format!("cannot make {}", short.display()))?;
            let mut balancer = Balancer { node, config, pin_dir, process: None, plugged: true };
            balancer.start(&self.topology.lab, &self.programs)?;
            self.balancers.push(balancer);
        }
        let router = &self.topology.router.ns;
        self.balancers.iter().try_for_each(|balancer| balancer.wait_until_ready(router, stop))
    }

    /// One answer over each address family through each balancer, lb1 last: it keeps the virtual addresses.
    pub(super) fn await_answers(&self, stop: &Stop) -> Result<()> {
        for balancer in [1, 0] {
            self.topology.route_vips_to(balancer)?;
            for vip in &self.topology.shape.vips {
                self.await_answer(*vip, stop)
                    .with_context(|| format!("no answer through lb{} on {vip}", balancer + 1))?;
            }
        }
        Ok(())
    }

    fn await_answer(&self, vip: IpAddr, stop: &Stop) -> Result<()> {
        let deadline = Instant::now() + FIRST_ANSWER;
        loop {
            let target = SocketAddr::new(vip, HTTP);
            match client::get(&self.topology.client.ns, target, "/", Duration::from_secs(1)) {
                Ok(_) => return Ok(()),
                Err(_) if stop.is_asked_for() => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// So many requests from the client to each virtual address, each on a connection of its own.
    pub(super) fn requests(&self, count: u64) -> Vec<(IpAddr, Report)> {
        let run = |vip: &IpAddr| {
            let report = Requests::to(SocketAddr::new(*vip, HTTP)).run(&self.topology.client.ns, count);
            (*vip, report)
        };
        self.topology.shape.vips.iter().map(run).collect()
    }

    /// What the router finds when it asks both balancers at once.
    pub(super) fn probe(&self) -> [Finding; 2] {
        let router = &self.topology.router.ns;
        let ask = |index: usize| match self.balancers.get(index) {
            Some(balancer) => balancer.probe(router),
            None => Finding::Gone("was never started".to_owned()),
        };
        thread::scope(|scope| [0, 1].map(|index| scope.spawn(move || ask(index))).map(join))
    }

    pub(super) fn route_vips_to(&self, balancer: usize) -> Result<()> {
        Ok(self.topology.route_vips_to(balancer)?)
    }

    /// Breaks something; says what, for people.
    pub(super) fn fail(&mut self, node: &str, daemon: bool) -> Result<String> {
        if let Some(balancer) = self.balancers.iter_mut().find(|b| b.node.name == node) {
            if daemon {
                let Some(process) = balancer.process.take() else { bail!("{node} has no lbd running") };
                process.kill();
                return Ok(format!("{node}: lbd was killed; its XDP program goes on forwarding"));
            }
            plug(&self.topology, balancer, false)?;
            return Ok(format!("{node}: unplugged"));
        }
        if daemon {
            bail!("only lb1 and lb2 have a daemon");
        }
        let server = self.web_server(node)?;
        server.kill();
        Ok(format!("{node}: its web server was killed"))
    }

    /// Repairs what [`World::fail`] broke.
    pub(super) fn heal(&mut self, node: &str) -> Result<String> {
        if let Some(balancer) = self.balancers.iter_mut().find(|b| b.node.name == node) {
            plug(&self.topology, balancer, true)?;
            let restart = !balancer.process.as_ref().is_some_and(Process::is_running);
            if restart {
                balancer.start(&self.topology.lab, &self.programs)?;
            }
            let daemon = if restart { ", lbd started again" } else { "" };
            return Ok(format!("{node}: plugged in{daemon}"));
        }
        self.web_server(node)?;
        let Self { web, topology, .. } = self;
        web.iter_mut().filter(|server| server.name() == node).try_for_each(|s| s.start(&topology.lab))?;
        Ok(format!("{node}: its web server runs"))
    }

    fn web_server(&mut self, node: &str) -> Result<&mut WebServer> {
        let known = || "lb1, lb2, and web1 to the last web server can fail and heal".to_owned();
        self.web
            .iter_mut()
            .find(|server| server.name() == node)
            .with_context(|| format!("'{node}' cannot: {}", known()))
    }

    /// Every balancer and web server in a line of its own.
    pub(super) fn describe(&self, active: usize) -> String {
        let mut text = String::new();
        let findings = self.probe();
        for (index, (balancer, finding)) in self.balancers.iter().zip(&findings).enumerate() {
            let state = match finding {
                Finding::Forwards { backends, moving } => {
                    let settling = if *moving > 0 { ", its ring is settling" } else { "" };
                    format!("forwards to {backends} web servers{settling}")
                }
                Finding::NoDaemon => "forwards, its lbd does not run".to_owned(),
                Finding::Gone(why) => why.clone(),
            };
            let plugged = if balancer.plugged { "" } else { ", unplugged" };
            let role = if index == active { ", has the virtual addresses" } else { ", stands by" };
            let _ = writeln!(text, "{:<6} {state}{plugged}{role}", balancer.node.name);
        }
        let snapshot = self.snapshot_of(active);
        for node in &self.topology.backends {
            let seen = snapshot.as_ref().map_or_else(
                || "lbd is not there to say how it is".to_owned(),
                |snapshot| backend_line(snapshot, &node.name),
            );
            let _ = writeln!(text, "{:<6} {seen}", node.name);
        }
        text
    }

    /// The web servers in one line, with what each got since the last time (by name).
    pub(super) fn live_line(&self, active: usize, last: &mut BTreeMap<String, u64>) -> String {
        let mut text = format!("lb{}", active + 1);
        let services = self.snapshot_of(active).map_or_else(Vec::new, |snapshot| snapshot.services);
        for backend in services.iter().filter(|s| s.name == SERVICE).flat_map(|s| &s.backends) {
            let before = last.insert(backend.name.clone(), backend.packets).unwrap_or(backend.packets);
            // Less than before: counted by the other balancer.
            let new = backend.packets.saturating_sub(before);
            let state = if backend.admin == "enabled" { &backend.health } else { &backend.admin };
            let _ = write!(text, "   {} {state} {} packets (+{new})", backend.name, backend.packets);
        }
        text
    }

    fn snapshot_of(&self, balancer: usize) -> Option<Snapshot> {
        let balancer = self.balancers.get(balancer)?;
        probe::snapshot(&self.topology.router.ns, balancer.dashboard(), PROBE_TIME).ok()
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn lbctl(&self) -> &Path {
        self.programs.lbctl()
    }

    pub(super) fn web_kind(&self) -> Kind {
        self.web.first().map_or(Kind::Builtin, WebServer::kind)
    }
}

/// What is to be built.
pub(super) struct Plan {
    shape: Shape,
    mode: Mode,
    programs: Programs,
}

fn shape(options: &BringUp) -> Shape {
    let mtu = if options.forward.is_tunnel() {
        Mtu { client: 1500, front: TUNNEL_MTU, back: TUNNEL_MTU }
    } else {
        Mtu::all(1500)
    };
    Shape { backends: options.backends, mtu, ..Shape::default() }
}

/// Pulls or plugs the cable, at the switch: the balancer keeps its addresses and routes.
fn plug(topology: &Topology, balancer: &mut Balancer, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    topology.switch.ip(&format!("link set {} {state}\n", balancer.node.name))?;
    balancer.plugged = plugged;
    Ok(())
}

fn backend_line(snapshot: &Snapshot, name: &str) -> String {
    let found = snapshot
        .services
        .iter()
        .filter(|service| service.name == SERVICE)
        .flat_map(|service| &service.backends)
        .find(|backend| backend.name == name);
    match found {
        Some(backend) => format!("{}, {}, {} packets", backend.health, backend.admin, backend.packets),
        None => "is not in the configuration any more".to_owned(),
    }
}

/// What a balancer's configuration is made of.
struct Settings<'a> {
    name: &'a str,
    state_dir: &'a Path,
    pin_dir: &'a Path,
    run_dir: &'a Path,
    addresses: &'a [IpAddr],
    mode: Mode,
    backends: &'a [Node],
}

fn configuration(settings: &Settings<'_>) -> String {
    let Settings { name, state_dir, pin_dir, run_dir, addresses, mode, backends } = settings;
    let (state_dir, pin_dir, run_dir) = (state_dir.display(), pin_dir.display(), run_dir.display());
    let addresses: Vec<String> = addresses.iter().map(|vip| format!("\"{vip}\"")).collect();
    let mut text = format!(
        r#"[node]
name = "{name}"
interfaces = ["eth0"]
state_dir = "{state_dir}"
pin_dir = "{pin_dir}"
run_dir = "{run_dir}"

[metrics]
listen = "0.0.0.0:{DASHBOARD}"

[[service]]
name = "{SERVICE}"
addresses = [{}]
port = {HTTP}
forward = "{}"
# Short, so that one sees the ring settle after a change.
idle_timeout = "10s"
"#,
        addresses.join(", "),
        mode.name()
    );
    if *mode == Mode::Gue {
        let _ = writeln!(text, "gue_port = {GUE_PORT}");
    }
    text.push_str(
        r#"
[service.health]
type = "http"
path = "/healthz"
interval = "500ms"
timeout = "500ms"
rise = 2
fall = 3
"#,
    );
    for node in *backends {
        let _ = write!(
            text,
            "\n[[service.backend]]\nname = \"{}\"\naddress = \"{}\"\nweight = 100\n",
            node.name, node.v4
        );
    }
    text
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
