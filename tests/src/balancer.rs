//! The real daemon in a topology: its configuration, its processes, its command line.
//!
//! `lbd` and `lbctl` are taken from `$LBD_BIN_DIR`, else from beside the running test (`target/debug`); build them
//! first (`cargo xtask test` does). Every balancer has directories of its own, so that many run side by side; what a
//! killed test leaves under /sys/fs/bpf is swept when the next balancer is made.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use lb_userspace::control::api::{ChangeView, ConfigView, DropView, ExplainView, ServiceView, StatusView};
use serde::de::DeserializeOwned;

use crate::{
    client::Report,
    lab::{Error, Node, Process, Result, Topology, wait_until},
    web::{WebOptions, WebServer},
};

/// A start includes loading the program: seconds in a debug build on a busy machine.
pub const START: Duration = Duration::from_secs(60);
const BPFFS: &str = "/sys/fs/bpf";
const PREFIX: &str = "lbd-test-";

/// Where a program of the product is.
///
/// # Panics
/// When it was not built.
pub fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("LBD_BIN_DIR").map_or_else(
        || {
            // target/debug/deps/TEST-HASH, or a program beside it in target/debug
            let own = std::env::current_exe().expect("the test's own path");
            let beside = own.parent().filter(|dir| dir.join(name).exists());
            beside.or_else(|| own.ancestors().nth(2)).expect("the target directory").to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: build it first (cargo build -p lb-userspace)", path.display());
    path
}

/// One `[[service]]` of a configuration.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub protocol: &'static str,
    pub forward: &'static str,
    /// Further lines of the section, TOML.
    pub extra: String,
    /// Lines of `[service.health]`, TOML.
    pub health: String,
    /// Name, address and weight.
    pub backends: Vec<(String, IpAddr, u16)>,
    /// The port all backends listen on where that is not the service's.
    pub backend_port: Option<u16>,
}

impl Service {
    /// A TCP service called www on port 80, not checked, without backends.
    pub fn www(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            name: "www".to_owned(),
            addresses: addresses.into_iter().collect(),
            port: 80,
            protocol: "tcp",
            forward: "dsr",
            extra: String::new(),
            health: "type = \"none\"".to_owned(),
            backends: Vec::new(),
            backend_port: None,
        }
    }

    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    pub fn backend_port(mut self, port: u16) -> Self {
        self.backend_port = Some(port);
        self
    }

    pub fn udp(mut self) -> Self {
        self.protocol = "udp";
        self
    }

    pub fn forward(mut self, forward: &'static str) -> Self {
        self.forward = forward;
        self
    }

    /// Further lines of the section.
    pub fn extra(mut self, lines: &str) -> Self {
        self.extra = format!("{}{lines}\n", self.extra);
        self
    }

    /// The lines of `[service.health]`.
    pub fn health(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.health);
        self
    }

    /// HTTP checks of /healthz, often.
    pub fn checked(self) -> Self {
        self.health(
            "type = \"http\"\npath = \"/healthz\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\nrise = 2\nfall = 3",
        )
    }

    pub fn backend(mut self, name: &str, address: impl Into<IpAddr>, weight: u16) -> Self {
        self.backends.push((name.to_owned(), address.into(), weight));
        self
    }

    /// Nodes with their IPv4 addresses, all of weight 100.
    pub fn nodes<'n>(self, nodes: impl IntoIterator<Item = &'n Node>) -> Self {
        nodes.into_iter().fold(self, |service, node| service.backend(&node.name, node.v4, 100))
    }

    /// As [`Service::nodes`], with their IPv6 addresses.
    pub fn nodes6<'n>(self, nodes: impl IntoIterator<Item = &'n Node>) -> Self {
        nodes.into_iter().fold(self, |service, node| service.backend(&node.name, node.v6, 100))
    }

    fn toml(&self) -> String {
        let Self { name, addresses, port, protocol, forward, extra, health, backends, backend_port } = self;
        let addresses: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
        let addresses = addresses.join(", ");
        let mut text = format!(
            "\n[[service]]\nname = \"{name}\"\naddresses = [{addresses}]\nport = {port}\nprotocol = \"{protocol}\"\n\
             forward = \"{forward}\"\n{extra}[service.health]\n{health}\n"
        );
        for (name, address, weight) in backends {
            let _ = write!(
                text,
                "[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\nweight = {weight}\n"
            );
            if let Some(port) = backend_port {
                let _ = writeln!(text, "port = {port}");
            }
        }
        text
    }
}

/// What a balancer is made from.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub services: Vec<Service>,
    /// All of the node's by default.
    pub interfaces: Vec<String>,
    /// Further lines of `[node]`, TOML.
    pub node: String,
    /// Further sections, TOML.
    pub rest: String,
    /// Which balancer of the topology: 0 and 1 are the pair.
    pub on: usize,
}

impl Settings {
    pub fn of(services: impl IntoIterator<Item = Service>) -> Self {
        Self { services: services.into_iter().collect(), ..Self::default() }
    }
}

/// A daemon on a balancer of a topology. Dropping it kills the daemon and removes all it pinned.
pub struct Balancer<'t> {
    topology: &'t Topology,
    pub node: &'t Node,
    settings: Settings,
    dir: PathBuf,
    pin_dir: PathBuf,
    process: Option<Process>,
    /// Pin directories of decapsulators.
    decaps: Vec<PathBuf>,
}

impl<'t> Balancer<'t> {
    /// Writes the configuration, starts the daemon and waits until it is ready.
    pub fn start(topology: &'t Topology, settings: Settings) -> Result<Self> {
        let mut balancer = Self::prepare(topology, settings)?;
        balancer.restart()?;
        Ok(balancer)
    }

    /// As [`Balancer::start`], with decapsulators on all backends.
    pub fn start_tunnelled(topology: &'t Topology, settings: Settings) -> Result<Self> {
        let mut balancer = Self::prepare(topology, settings)?;
        balancer.decapsulate()?;
        balancer.restart()?;
        Ok(balancer)
    }

    /// Writes the configuration only.
    pub fn prepare(topology: &'t Topology, mut settings: Settings) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let node = topology.balancers().nth(settings.on).expect("the topology has that many balancers");
        if settings.interfaces.is_empty() {
            settings.interfaces = node.interfaces.iter().map(|i| i.name.clone()).collect();
        }
        let dir = topology.lab.dir().join(format!("lbd{number}"));
        let pin_dir = Path::new(BPFFS).join(format!("{PREFIX}{}-{number}", std::process::id()));
        let balancer = Self { topology, node, settings, dir, pin_dir, process: None, decaps: Vec::new() };
        make_dir(&balancer.dir)?;
        balancer.write_config()?;
        Ok(balancer)
    }

    /// The decapsulation program on every backend's eth0, for the tunnel modes.
    pub fn decapsulate(&mut self) -> Result<()> {
        self.decapsulate_from(std::slice::from_ref(self.node))
    }

    /// As [`Balancer::decapsulate`], for what either balancer of a pair sends.
    pub fn decapsulate_for_both(&mut self) -> Result<()> {
        self.decapsulate_from(&self.topology.lb)
    }

    fn decapsulate_from(&mut self, senders: &[Node]) -> Result<()> {
        for backend in &self.topology.backends {
            let pins = self.pin_dir.join(format!("decap-{}", backend.name));
            let own = senders.iter().flat_map(|node| &node.interfaces);
            let own = own.flat_map(|i| [i.v4.to_string(), i.v6.to_string()]);
            let mut command = backend.ns.command(program("lbctl"));
            command.args(["decap", "attach", "eth0", "--pin-dir"]).arg(&pins).arg("--from");
            command.args(["198.18.0.0/16", "100::/64"]).args(own);
            make_dir(&pins)?;
            self.decaps.push(pins);
            succeed(backend.ns.name(), &mut command)?;
        }
        Ok(())
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// The directory of the configuration file, and of state_dir and run_dir.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/lbd.sock")
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join("lbd.toml")
    }

    /// Changes the configuration and writes the file; the daemon is not told.
    pub fn configure(&mut self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        change(&mut self.settings);
        self.write_config()
    }

    /// Writes any text as the configuration.
    pub fn write_text(&self, text: &str) -> Result<()> {
        let path = self.config_file();
        fs::write(&path, text).map_err(|source| Error::File {
            path,
            what: "writing the configuration",
            source,
        })
    }

    fn write_config(&self) -> Result<()> {
        self.write_text(&self.config_text())
    }

    /// The configuration as TOML.
    pub fn config_text(&self) -> String {
        let interfaces: Vec<String> = self.settings.interfaces.iter().map(|i| format!("\"{i}\"")).collect();
        let mut text = format!(
            "[node]\nname = \"{}\"\ninterfaces = [{}]\nstate_dir = \"{}\"\npin_dir = \"{}\"\nrun_dir = \"{}\"\n{}\n",
            self.node.name,
            interfaces.join(", "),
            self.state_dir().display(),
            self.pin_dir.display(),
            self.dir.join("run").display(),
            self.settings.node,
        );
        self.settings.services.iter().for_each(|service| text.push_str(&service.toml()));
        text.push_str(&self.settings.rest);
        text
    }

    /// The command `lbd --config FILE` in the balancer's namespace.
    pub fn lbd(&self) -> Command {
        let mut command = self.node.ns.command(program("lbd"));
        command.arg("--config").arg(self.config_file()).env_remove("RUST_LOG").args(["--log", "debug"]);
        command
    }

    /// Starts a daemon and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        let command = self.lbd();
        self.restart_with(command)
    }

    /// As [`Balancer::restart`], by a command of the caller's.
    pub fn restart_with(&mut self, command: Command) -> Result<()> {
        let process = self.topology.lab.spawn("lbd", command)?;
        process.wait_for_log(" ready ", START)?;
        self.process = Some(process);
        Ok(())
    }

    /// The running daemon.
    ///
    /// # Panics
    /// When none was started.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the daemon was started")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM; fails when the daemon does not end with status 0.
    ///
    /// # Panics
    /// When none was started.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process.take().expect("the daemon was started");
        process.signal(nix::sys::signal::Signal::SIGTERM);
        let status = process.wait(START)?;
        assert!(status.success(), "lbd ended with {status} after SIGTERM:\n{}", process.log());
        Ok(())
    }

    /// `lbd --config FILE` with further arguments, run to its end.
    pub fn run_lbd(&self, arguments: &[&str]) -> Output {
        let mut command = self.node.ns.command(program("lbd"));
        command.arg("--config").arg(self.config_file()).args(arguments).env_remove("RUST_LOG");
        command.output().expect("lbd can be started")
    }

    /// `lbctl` with these arguments, whatever comes of it.
    pub fn lbctl_output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("lbctl"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command.output().expect("lbctl can be started")
    }

    /// `lbctl` with these arguments; what it wrote.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn lbctl(&self, arguments: &[&str]) -> String {
        let output = self.lbctl_output(arguments);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "lbctl {}: {}\n{out}{err}", arguments.join(" "), output.status);
        out
    }

    /// Hands an instance over as soon as the peer has what it needs for it; what lbctl said of why not, where it cannot.
    pub fn hand_over(&self, instance: &str) -> std::result::Result<(), String> {
        let begun = Instant::now();
        loop {
            let output = self.lbctl_output(&["pair", "failover", instance]);
            let said = text(&output.stderr);
            if output.status.success() {
                return Ok(());
            }
            if !said.contains("try again in a moment") || begun.elapsed() > START {
                return Err(said);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `lbctl -o json` with these arguments, read into the API's types.
    ///
    /// # Panics
    /// When it fails or writes something else.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let out = self.lbctl(&[&["-o", "json"], arguments].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("lbctl {}: {e}\n{out}", arguments.join(" ")))
    }

    #[track_caller]
    pub fn services(&self) -> Vec<ServiceView> {
        self.json(&["service", "list"])
    }

    #[track_caller]
    pub fn service(&self, name: &str) -> ServiceView {
        self.json(&["service", "show", name])
    }

    #[track_caller]
    pub fn status(&self) -> StatusView {
        self.json(&["status"])
    }

    #[track_caller]
    pub fn config(&self) -> ConfigView {
        self.json(&["config", "show"])
    }

    #[track_caller]
    pub fn reload(&self) -> ChangeView {
        self.json(&["reload"])
    }

    /// Packets dropped for a reason.
    #[track_caller]
    pub fn dropped(&self, reason: &str) -> u64 {
        let drops: Vec<DropView> = self.json(&["drops", "--all"]);
        drops.iter().find(|d| d.reason == reason).unwrap_or_else(|| panic!("no reason {reason}")).packets
    }

    #[track_caller]
    pub fn explain(&self, protocol: &str, source: &str, destination: &str) -> ExplainView {
        self.json(&["explain", protocol, source, destination])
    }

    /// Waits until a backend of a service is as wanted.
    pub fn wait_for_backend(
        &self,
        what: &str,
        service: &str,
        backend: &str,
        patience: Duration,
        wanted: impl Fn(&lb_userspace::control::api::BackendView) -> bool,
    ) -> Result<()> {
        wait_until(what, patience, || {
            self.service(service).backends.iter().any(|b| b.name == backend && wanted(b))
        })
    }

    /// The id of the XDP program on an interface, by what the kernel says.
    pub fn xdp_program(&self, ifname: &str) -> Option<u64> {
        let out = self.node.ns.exec("ip", &["-j", "link", "show", "dev", ifname]).ok()?;
        serde_json::from_str::<serde_json::Value>(&out).ok()?[0]["xdp"]["prog"]["id"].as_u64()
    }

    /// What is pinned, as paths below the pin directory.
    pub fn pins(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.pin_dir, &mut found);
        let mut found: Vec<String> = found
            .iter()
            .filter_map(|path| Some(path.strip_prefix(&self.pin_dir).ok()?.display().to_string()))
            .filter(|path| !path.starts_with("decap-"))
            .collect();
        found.sort();
        found
    }
}

impl Drop for Balancer<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.process.is_some() {
            let output = self.lbctl_output(&["service", "list"]);
            eprintln!("--- lbctl service list:\n{}{}", text(&output.stdout), text(&output.stderr));
            let output = self.lbctl_output(&["drops"]);
            eprintln!("--- lbctl drops:\n{}{}", text(&output.stdout), text(&output.stderr));
        }
        self.kill();
        // Unpinning the links detaches; the maps go with their last user.
        let _ = fs::remove_dir_all(&self.pin_dir);
    }
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            list(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// Removes the pins of tests that were killed.
fn sweep() {
    for entry in fs::read_dir(BPFFS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
        if let Some(pid) = owner.and_then(|pid| pid.parse::<u32>().ok())
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::File { path: path.to_owned(), what: "making a directory", source })
        }
        _ => Ok(()),
    }
}

fn succeed(ns: &str, command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| Error::Spawn { program: name.clone(), source })?;
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    Err(Error::Failed {
        ns: ns.to_owned(),
        command: format!("{name} {}", arguments.join(" ")),
        status: output.status,
        output: text(&output.stdout) + &text(&output.stderr),
    })
}

/// What a program wrote.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A web server on every backend, called like its node.
pub fn web_servers(topology: &Topology, big_bytes: u64) -> Result<Vec<WebServer>> {
    let options = WebOptions { ports: vec![80], big_bytes };
    let node = |node: &Node| WebServer::nginx_or_builtin(&topology.lab, &node.ns, &node.name, &options);
    topology.backends.iter().map(node).collect()
}

/// Fails unless each backend answered its weighted share, give or take a tenth of it or five standard deviations of a
/// fair draw, whichever is more, and nobody else answered.
///
/// # Panics
/// See above.
#[track_caller]
pub fn assert_shares(report: &Report, weights: &[(&str, u32)]) {
    let (all, sum) = (report.ok() as f64, f64::from(weights.iter().map(|(_, w)| w).sum::<u32>()));
    for (name, weight) in weights {
        let share = f64::from(*weight) / sum;
        let (mean, deviation) = (all * share, (all * share * (1.0 - share)).sqrt());
        let off = (report.count(name) as f64 - mean).abs();
        assert!(off <= (mean / 10.0).max(5.0 * deviation), "{name} should have had {mean:.0}: {report}");
    }
    for name in report.answers.keys() {
        assert!(
            weights.iter().any(|(expected, _)| expected == name),
            "{name} should have had nothing: {report}"
        );
    }
}
