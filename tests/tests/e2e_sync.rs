//! Connections outlive the node that balanced them: two lbd, a crowd of connections whose every byte is checked, and a
//! master that dies a second after its backends changed, or hands over and takes back.

use std::{
    fs::OpenOptions,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    crowd::Crowd,
    lab::{Node, Process, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::pair::PairView;

const PATIENCE: Duration = Duration::from_secs(60);
const LEFT: &str = "192.0.2.10";
const RIGHT: &str = "192.0.2.11";
/// Where replies of `nat` and `snat` backends go: it moves with the instance.
const INSIDE: &str = "10.0.0.254";
const CONNECTIONS: usize = 300;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Two balancers, web1 to web3, and whatever runs on them.
struct World {
    topology: Topology,
    _servers: Vec<Process>,
    key_file: PathBuf,
}

impl World {
    fn new(forward: &str) -> Result<Self> {
        let rewrites = forward != "dsr";
        let vips = [LEFT, RIGHT].map(ip);
        let shape = Shape {
            vips: if rewrites { Vec::new() } else { vips.to_vec() },
            vips_on_link: true,
            sync_link: true,
            lb_forwarding: true,
            ..Shape::default()
        };
        let topology = Topology::new(&shape)?;
        let mut servers = Vec::new();
        for node in &topology.backends {
            let mut command = node.ns.command(env!("CARGO_BIN_EXE_echo"));
            command.arg(&node.name);
            for address in if rewrites { vec![node.v4.into()] } else { vips.to_vec() } {
                command.arg(SocketAddr::new(address, 80).to_string());
            }
            if forward == "nat" {
                node.ns.exec("ip", &["route", "replace", "default", "via", INSIDE])?;
            }
            let server = topology.lab.spawn(&format!("echo-{}", node.name), command)?;
            server.wait_for_log("ready", PATIENCE)?;
            servers.push(server);
        }
        let key_file = topology.lab.dir().join("sync.key");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&key_file)
            .expect("a file");
        file.write_all(format!("{}\n", "5a".repeat(32)).as_bytes()).expect("written");
        Ok(Self { topology, _servers: servers, key_file })
    }

    /// Of a node, which is to be master of one instance or of both.
    fn settings(&self, on: usize, service: Service, priorities: &[(&str, u8)]) -> Settings {
        let mut rest = format!(
            "\n[sync]\nlisten = \"10.9.0.{}:9760\"\npeers = [\"10.9.0.{}:9760\"]\nkey_file = \"{}\"\n",
            on + 1,
            2 - on,
            self.key_file.display()
        );
        for (i, (name, priority)) in priorities.iter().enumerate() {
            let addresses = match i {
                0 => format!("\"{LEFT}/24\", \"{INSIDE}/16\""),
                _ => format!("\"{RIGHT}/24\""),
            };
            rest += &format!(
                "\n[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nrouter_id = {}\npriority = {priority}\n\
                 addresses = [{addresses}]\nadvert_interval = \"100ms\"\n",
                51 + i
            );
        }
        let interfaces = vec!["eth0".to_owned()];
        Settings { on, rest, interfaces, ..Settings::of([service]) }
    }

    fn gather(&self, targets: &[&str]) -> Crowd {
        let targets: Vec<_> = targets.iter().map(|vip| SocketAddr::new(ip(vip), 80)).collect();
        let ns = &self.topology.client.ns;
        let crowd = Crowd::gather(ns, &targets, CONNECTIONS, 2, PATIENCE).expect("connections");
        assert!(crowd.report().backends.len() >= 2, "{:?}", crowd.report());
        crowd
    }
}

fn state(balancer: &Balancer<'_>, instance: &str) -> String {
    let views: Vec<PairView> = balancer.json(&["pair"]);
    views.into_iter().find(|view| view.name == instance).expect("the instance").state
}

fn wait_for_state(balancer: &Balancer<'_>, instance: &str, wanted: &str) -> Result<()> {
    let what = format!("{} is {wanted} of {instance}", balancer.node.name);
    wait_until(&what, PATIENCE, || state(balancer, instance) == wanted)
        .inspect_err(|_| eprintln!("{}", balancer.process().log()))
}

/// Everybody has spoken so often since, and nobody broke.
fn goes_on(crowd: &Crowd, rounds: u64, what: &str) {
    let before = crowd.rounds();
    wait_until(what, PATIENCE, || crowd.rounds() >= before + 2 * rounds || !crowd.report().broken.is_empty())
        .unwrap_or_else(|error| panic!("{what}: {error}, {:?}", crowd.report()));
    let report = crowd.report();
    assert!(report.broken.is_empty(), "{what}: {} broken: {:?}", report.broken.len(), report.broken);
}

/// web1 drains and web3 comes, on both nodes.
fn change(balancers: [&Balancer<'_>; 2], newcomer: &Node) {
    for balancer in balancers {
        balancer.lbctl(&["backend", "drain", "www", "web1"]);
        balancer.lbctl(&["backend", "add", "www", &newcomer.name, &newcomer.v4.to_string()]);
    }
}

/// The node is dead and its cables are out.
fn bury(topology: &Topology, balancer: &mut Balancer<'_>) -> Result<()> {
    balancer.kill();
    plug(topology, balancer, "down")
}

/// At the switch, so that the node keeps its routes.
fn plug(topology: &Topology, balancer: &Balancer<'_>, state: &str) -> Result<()> {
    topology.switch.exec("ip", &["link", "set", &balancer.node.name, state])?;
    balancer.node.ns.exec("ip", &["link", "set", "sync0", state]).map(|_| ())
}

/// The node comes back as after a crash of the machine.
fn raise(topology: &Topology, balancer: &mut Balancer<'_>) -> Result<()> {
    let ns = &balancer.node.ns;
    for address in [format!("{LEFT}/24"), format!("{RIGHT}/24"), format!("{INSIDE}/16")] {
        // It had only those that it was master of.
        let _ = ns.exec("ip", &["addr", "del", &address, "dev", "eth0"]);
    }
    plug(topology, balancer, "up")?;
    balancer.restart()
}

fn survives(forward: &'static str, scheduler: &str) -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let world = World::new(forward)?;
    let nodes = &world.topology.backends;
    let mut www = Service::www([ip(LEFT)])
        .forward(forward)
        .extra(&format!("scheduler = \"{scheduler}\""))
        .nodes(&nodes[..2]);
    if forward == "snat" {
        www = www.extra(&format!("[service.snat]\naddresses = [\"{INSIDE}\"]"));
    }
    let mut one = Balancer::start(&world.topology, world.settings(0, www.clone(), &[("left", 150)]))?;
    let two = Balancer::start(&world.topology, world.settings(1, www, &[("left", 100)]))?;
    wait_for_state(&one, "left", "master")?;
    wait_for_state(&two, "left", "backup")?;
    let followed = || two.process().log().contains("slots follow the master");
    wait_until("the standby follows", PATIENCE, followed)?;

    let crowd = world.gather(&[LEFT]);
    change([&one, &two], &nodes[2]);
    std::thread::sleep(Duration::from_secs(1));
    if scheduler == "maglev" {
        assert_eq!(one.service("www").slots, two.service("www").slots);
        assert!(two.service("www").slots.moving > 0);
    }
    bury(&world.topology, &mut one)?;
    wait_for_state(&two, "left", "master")?;
    goes_on(&crowd, 3, "after the master's death");

    // Back again it takes over what the other has; nobody notices, and nobody would if it left again.
    raise(&world.topology, &mut one)?;
    wait_for_state(&one, "left", "master")?;
    wait_for_state(&two, "left", "backup")?;
    goes_on(&crowd, 3, "after its return");
    one.hand_over("left").expect("a hand-over");
    wait_for_state(&two, "left", "master")?;
    goes_on(&crowd, 3, "after a hand-over");
    let report = crowd.leave();
    assert!(report.broken.is_empty(), "{:?}", report.broken);
    eprintln!("{forward} {scheduler}: {} blocks, longest silence {:?}", report.blocks, report.silence);
    Ok(())
}

#[test]
fn connections_by_dsr_survive_a_takeover() -> Result<()> {
    survives("dsr", "maglev")
}

#[test]
fn connections_by_nat_survive_a_takeover() -> Result<()> {
    survives("nat", "maglev")
}

#[test]
fn connections_by_snat_survive_a_takeover() -> Result<()> {
    survives("snat", "maglev")
}

#[test]
fn connections_by_round_robin_survive_a_takeover() -> Result<()> {
    survives("dsr", "round-robin")
}

/// One service with two addresses, each node master of one: each is the authority for its own flows.
#[test]
fn both_nodes_are_active_and_one_dies() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let world = World::new("dsr")?;
    let nodes = &world.topology.backends;
    let www = Service::www([LEFT, RIGHT].map(ip)).nodes(&nodes[..2]);
    let settings = |on, left, right| world.settings(on, www.clone(), &[("left", left), ("right", right)]);
    let mut one = Balancer::start(&world.topology, settings(0, 150, 100))?;
    let two = Balancer::start(&world.topology, settings(1, 100, 150))?;
    for (balancer, master, backup) in [(&one, "left", "right"), (&two, "right", "left")] {
        wait_for_state(balancer, master, "master")?;
        wait_for_state(balancer, backup, "backup")?;
        let followed = || balancer.process().log().contains("slots follow the master");
        wait_until("it follows the other", PATIENCE, followed)?;
    }
    // Two rings, and one service for whoever looks.
    let view = one.service("www");
    assert_eq!((view.backends.len(), one.services().len()), (2, 1));
    let slots: u32 = view.backends.iter().map(|backend| backend.slots).sum();
    assert_eq!(slots, view.slots.total);

    let crowd = world.gather(&[LEFT, RIGHT]);
    change([&one, &two], &nodes[2]);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(one.service("www").slots, two.service("www").slots);
    bury(&world.topology, &mut one)?;
    wait_for_state(&two, "left", "master")?;
    assert_eq!(state(&two, "right"), "master");
    goes_on(&crowd, 3, "after the death of one");
    let report = crowd.leave();
    assert!(report.broken.is_empty(), "{:?}", report.broken);
    Ok(())
}
