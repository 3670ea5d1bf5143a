//! BFD: with Debian's BIRD as the other end, and as the faster detector of a pair.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    lab::{Node, Process, Result, Shape, Topology, wait_until},
    require,
    skip::{Need, find_tool},
};
use lb_userspace::control::pair::PairView;
use nix::sys::signal::Signal;

/// Far more than anything here takes, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

fn topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 1, vips_on_link: true, ..Shape::default() })
}

fn settings(topology: &Topology, on: usize, rest: String) -> Settings {
    let www = Service::www([topology.vip4()]).nodes(&topology.backends);
    Settings { on, rest, ..Settings::of([www]) }
}

/// A `[[vrrp]]` with a second's interval, which tracks the sessions.
fn vrrp(priority: u8, sessions: &[String]) -> String {
    let names: Vec<String> = (0..sessions.len()).map(|at| format!("\"s{at}\"")).collect();
    format!(
        "\n[[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {priority}\n\
         addresses = [\"192.0.2.10/24\"]\ntrack_bfd = [{}]\n{}",
        names.join(", "),
        sessions.concat()
    )
}

fn session(at: usize, local: IpAddr, peer: IpAddr, interval: &str) -> String {
    format!(
        "\n[[bfd]]\nname = \"s{at}\"\nlocal = \"{local}\"\npeer = \"{peer}\"\ninterval = \"{interval}\"\nmultiplier = 5\n"
    )
}

fn view(balancer: &Balancer<'_>) -> PairView {
    let views: Vec<PairView> = balancer.json(&["pair"]);
    views.into_iter().next().expect("one instance")
}

fn wait_for_sessions(balancer: &Balancer<'_>, up: bool) -> Result<()> {
    let what = format!("the sessions of {} are {}", balancer.node.name, if up { "up" } else { "down" });
    wait_until(&what, PATIENCE, || view(balancer).bfd.iter().all(|session| (session.state == "up") == up))
        .inspect_err(|_| eprintln!("{:#?}\n{}", view(balancer), balancer.process().log()))
}

fn wait_for_state(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    wait_until(&format!("{} is {state}", balancer.node.name), PATIENCE, || view(balancer).state == state)
        .inspect_err(|_| eprintln!("{:#?}", view(balancer)))
}

struct Bird {
    process: Process,
    socket: PathBuf,
}

impl Bird {
    fn start(topology: &Topology, node: &Node, neighbours: &[(IpAddr, IpAddr)]) -> Result<Self> {
        let dir: &Path = topology.lab.dir();
        let (config, socket) = (dir.join("bird.conf"), dir.join("bird.ctl"));
        let sessions: String = neighbours
            .iter()
            .map(|(local, peer)| format!("  neighbor {peer} dev \"eth0\" local {local};\n"))
            .collect();
        let text = format!(
            "router id 10.0.0.99;\nprotocol device {{}}\nprotocol bfd {{\n  interface \"eth0\" {{\n    \
             min rx interval 100 ms;\n    min tx interval 100 ms;\n    multiplier 5;\n  }};\n{sessions}}}\n"
        );
        fs::write(&config, text).expect("the configuration is written");
        let mut command: Command = node.ns.command(find_tool("bird").expect("required"));
        command.arg("-f").arg("-c").arg(&config).arg("-s").arg(&socket);
        command.arg("-P").arg(dir.join("bird.pid"));
        Ok(Self { process: topology.lab.spawn("bird", command)?, socket })
    }

    /// The states of its sessions, as birdc shows them.
    fn states(&self) -> Vec<String> {
        let mut command = Command::new(find_tool("birdc").expect("comes with bird"));
        let output = command.arg("-s").arg(&self.socket).args(["show", "bfd", "sessions"]).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let rows = text.lines().filter(|line| line.contains("eth0"));
        rows.filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned)).collect()
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(&format!("BIRD's sessions are {what}"), PATIENCE, || {
            let states = self.states();
            states.len() == 2 && states.iter().all(|state| holds(state))
        })
        .inspect_err(|_| eprintln!("{:?}\n{}", self.states(), self.process.log()))
    }
}

#[test]
fn bird_is_a_good_peer() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bird"));
    let topology = topology()?;
    let [lb1, lb2] = &topology.lb;
    let (own, peer) = (lb1.addresses(), lb2.addresses());
    let sessions = [session(0, own[0], peer[0], "100ms"), session(1, own[1], peer[1], "100ms")];
    let mut one = Balancer::start(&topology, settings(&topology, 0, vrrp(150, &sessions)))?;
    let neighbours = [(peer[0], own[0]), (peer[1], own[1])];
    let bird = Bird::start(&topology, lb2, &neighbours)?;
    wait_for_sessions(&one, true)?;
    bird.wait_for("up", |state| state == "Up")?;
    // They stay, through the change of intervals, too.
    std::thread::sleep(Duration::from_secs(3));
    let since = view(&one).bfd.iter().map(|session| session.since).fold(0.0, f64::max);
    bird.wait_for("up", |state| state == "Up")?;
    let shown = one.lbctl(&["pair"]);
    assert!(shown.contains(&format!("public: BFD session s0 with {}: up for", peer[0])), "{shown}");

    // It hangs: five packets are missed.
    let began = Instant::now();
    bird.process.signal(Signal::SIGSTOP);
    wait_for_sessions(&one, false)?;
    eprintln!("silence was noticed after {:?}", began.elapsed());
    assert!(began.elapsed() >= Duration::from_millis(350), "sooner than five packets, jitter taken off");
    let log = one.process().log();
    assert_eq!(log.matches("bfd session changed").count() % 2, 0, "{log}");
    assert!(view(&one).bfd.iter().all(|session| session.since > since));
    bird.process.signal(Signal::SIGCONT);
    wait_for_sessions(&one, true)?;
    bird.wait_for("up", |state| state == "Up")?;

    // lbd is killed: BIRD notices. It comes back; and then it goes politely.
    one.kill();
    bird.wait_for("down", |state| state != "Up")?;
    one.restart()?;
    bird.wait_for("up", |state| state == "Up")?;
    one.stop()?;
    bird.wait_for("down", |state| state != "Up")?;
    bird.process.stop();
    Ok(())
}

#[test]
fn a_silent_master_is_replaced_long_before_its_advertisements_are_missed() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let [lb1, lb2] = &topology.lb;
    let of = |at: usize, own: &Node, peer: &Node, priority| {
        let session = session(0, own.addresses()[0], peer.addresses()[0], "50ms");
        settings(&topology, at, vrrp(priority, &[session]))
    };
    let one = Balancer::start(&topology, of(0, lb1, lb2, 150))?;
    let mut two = Balancer::start(&topology, of(1, lb2, lb1, 100))?;
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    wait_for_sessions(&one, true)?;
    wait_for_sessions(&two, true)?;
    wait_until("the backup hears the master", PATIENCE, || view(&two).master.is_some())?;

    one.process().signal(Signal::SIGSTOP);
    wait_for_state(&two, "master")?;
    assert_eq!(view(&two).reason, "the BFD session with the master went down");
    one.process().signal(Signal::SIGCONT);
    wait_for_state(&two, "backup")?;
    wait_for_state(&one, "master")?;
    wait_for_sessions(&two, true)?;

    // A session that ends politely is no end of the master.
    let before = view(&two).transitions;
    let mut one = one;
    one.configure(|settings| settings.rest = vrrp(150, &[]).replace("track_bfd = []\n", ""))?;
    one.reload();
    wait_for_sessions(&two, false)?;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(view(&two).transitions, before);
    two.stop()
}
