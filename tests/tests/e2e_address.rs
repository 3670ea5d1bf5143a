//! Virtual addresses of two nodes as their neighbours see them: who answers for an address, held by the dataplane or by
//! the interface, whatever becomes of the daemons.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use lb_common::csum;
use lb_tests::{
    balancer::{Balancer, Service, Settings},
    echo,
    failover::{
        nodes::sync,
        prober::{Prober, Way},
    },
    lab::{Node, Result, Shape, Sniffer, Topology, ping, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::pair::PairView;
use nix::sys::signal::Signal;

/// Far more than any takeover takes, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(100);
/// How long answers are waited for: the slowest answer of a busy machine.
const ANSWERS: Duration = Duration::from_millis(400);
const PORT: u16 = 5353;
/// Between two datagrams of a client.
const PERIOD: Duration = Duration::from_millis(1);

type Mac = [u8; 6];

fn topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 1, vips_on_link: true, ..Shape::default() })
}

fn start<'t>(topology: &'t Topology, on: usize, held_by: &str) -> Result<Balancer<'t>> {
    start_with(topology, on, held_by, "")
}

/// `more`: lines of `[[vrrp]]`, and sections.
fn start_with<'t>(topology: &'t Topology, on: usize, held_by: &str, more: &str) -> Result<Balancer<'t>> {
    let priority = [150, 100][on];
    let rest = format!(
        "\n[[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {priority}\n\
         addresses = [\"192.0.2.10/24\", \"2001:db8::10/64\"]\nadvert_interval = \"100ms\"\nheld_by = \"{held_by}\"\n{more}"
    );
    let udp = Service::www([topology.vip4(), topology.vip6()]).name("echo").port(PORT).udp();
    let settings = Settings { on, rest, ..Settings::of([udp.nodes(&topology.backends)]) };
    Balancer::start(topology, Settings { interfaces: vec!["eth0".to_owned()], ..settings })
}

fn pair(balancer: &Balancer<'_>) -> PairView {
    let views: Vec<PairView> = balancer.json(&["pair"]);
    views.into_iter().next().expect("one instance")
}

fn wait_for_state(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    wait_until(&format!("{} is {state}", balancer.node.name), PATIENCE, || pair(balancer).state == state)
        .inspect_err(|_| eprintln!("{:?}", pair(balancer)))
}

fn has(node: &Node, address: &str) -> bool {
    let shown = node.ns.exec("ip", &["-o", "addr", "show", "dev", "eth0"]).expect("ip works");
    shown.contains(&format!(" {address}/"))
}

/// "Who has the address", from the router, to everybody. `source`: of the sender, unspecified for a probe.
fn question(router: &Node, address: IpAddr, source: IpAddr) -> Vec<u8> {
    let mac = router.interfaces[0].mac;
    match (address, source) {
        (IpAddr::V4(address), IpAddr::V4(source)) => {
            let mut frame = vec![0xff; 6];
            frame.extend(mac);
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(mac);
            frame.extend(source.octets());
            frame.extend([0; 6]);
            frame.extend(address.octets());
            frame
        }
        (IpAddr::V6(address), IpAddr::V6(source)) => {
            let target = address.octets();
            let [.., a, b, c] = target;
            let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
            let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
            message.extend(target);
            if !source.is_unspecified() {
                message.extend([1, 1]);
                message.extend(mac);
            }
            let length = u16::try_from(message.len()).unwrap().to_be_bytes();
            let parts: [&[u8]; 5] = [&message, &source.octets(), &group, &length, &[0, 58]];
            let sum: u64 = parts.iter().map(|part| csum::sum_bytes(part)).sum();
            message[2..4].copy_from_slice(&csum::finish(sum).to_ne_bytes());
            let mut frame = vec![0x33, 0x33, 0xff, a, b, c];
            frame.extend(mac);
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length);
            frame.extend([58, 255]);
            frame.extend(source.octets());
            frame.extend(group);
            frame.extend(message);
            frame
        }
        _ => unreachable!("of one family"),
    }
}

/// The MAC address in an answer for an address: an ARP reply, or a neighbour advertisement with its option.
fn answer(frame: &[u8], address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(address) => (frame.len() >= 42
            && frame[12..14] == [8, 6]
            && frame[20..22] == [0, 2]
            && frame[28..32] == address.octets())
        .then(|| frame[22..28].try_into().unwrap()),
        IpAddr::V6(address) => (frame.len() >= 86
            && frame[12..14] == [0x86, 0xdd]
            && (frame[20], frame[21], frame[54]) == (58, 255, 136)
            && frame[62..78] == address.octets()
            && frame[78..80] == [2, 1])
        .then(|| frame[80..86].try_into().unwrap()),
    }
}

fn own(router: &Node, address: IpAddr) -> IpAddr {
    let own = if address.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    assert!(!router.interfaces.is_empty());
    own.parse().unwrap()
}

/// Everybody who answers for an address.
fn answerers(topology: &Topology, address: IpAddr, source: IpAddr) -> BTreeSet<Mac> {
    let router = &topology.router;
    let port = Sniffer::open(&router.ns, &router.interfaces[0].name).expect("a capture");
    port.send_frame(&question(router, address, source)).expect("a question");
    let mut found = BTreeSet::new();
    let deadline = Instant::now() + ANSWERS;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let wanted =
            |frame: &lb_tests::lab::Frame| !frame.outgoing && answer(&frame.bytes, address).is_some();
        let Some(frame) = port.recv(left, wanted).expect("a frame") else { break };
        found.extend(answer(&frame.bytes, address));
    }
    found
}

fn macs(nodes: &[&Node]) -> BTreeSet<Mac> {
    nodes.iter().map(|node| node.interfaces[0].mac).collect()
}

/// Asks for both addresses a few times: these nodes answer, each time, and no others.
#[track_caller]
fn assert_answers(topology: &Topology, nodes: &[&Node]) {
    for _ in 0..3 {
        for vip in [topology.vip4(), topology.vip6()] {
            let found = answerers(topology, vip, own(&topology.router, vip));
            assert_eq!(found, macs(nodes), "who answers for {vip}");
        }
    }
}

fn wait_for_answers(topology: &Topology, nodes: &[&Node]) -> Result<()> {
    let right = |vip| answerers(topology, vip, own(&topology.router, vip)) == macs(nodes);
    wait_until("the right nodes answer", PATIENCE, || right(topology.vip4()) && right(topology.vip6()))
}

/// A client that sends a datagram every millisecond to the service and expects it back.
fn probe(topology: &Topology, vip: IpAddr) -> Prober {
    Prober::start(&topology.client.ns, Way::Udp((vip, PORT).into()), PERIOD).expect("a prober")
}

fn echo_servers(topology: &Topology) -> Result<[echo::Server; 2]> {
    let [vip4, vip6] = [topology.vip4(), topology.vip6()];
    let node = &topology.backends[0];
    Ok([echo::udp_echo(&node.ns, "four", vip4, PORT)?, echo::udp_echo(&node.ns, "six", vip6, PORT)?])
}

/// The neighbour entry that a kernel has for an address.
fn neighbour(node: &Node, vip: IpAddr) -> String {
    node.ns.exec("ip", &["neigh", "show", &vip.to_string()]).expect("ip works")
}

fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn the_dataplane_holds_the_addresses() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("arping"));
    let topology = topology()?;
    let _servers = echo_servers(&topology)?;
    let [lb1, lb2] = &topology.lb;
    let mut one = start(&topology, 0, "dataplane")?;
    let two = start(&topology, 1, "dataplane")?;
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    wait_for_answers(&topology, &[lb1])?;
    for node in [lb1, lb2] {
        assert!(!has(node, "192.0.2.10") && !has(node, "2001:db8::10"), "{}", node.name);
    }
    assert_answers(&topology, &[lb1]);
    let view = pair(&one);
    assert_eq!(view.held_by, "dataplane");
    assert!(view.lease > 0.0 && view.lease <= 0.3, "{view:?}");
    assert!(one.dropped("neighbour_answered") > 0);

    // The kernels of clients resolve them, and their probes of what they know are answered: nothing ever fails.
    for vip in [topology.vip4(), topology.vip6()] {
        wait_until(&format!("{vip} answers a ping"), PATIENCE, || {
            ping(&topology.client.ns, vip, 56, Duration::from_secs(1)).is_ok()
        })?;
        let known = neighbour(&topology.router, vip);
        assert!(known.contains(&colons(lb1.interfaces[0].mac)), "{known}");
        let lan = &topology.router.interfaces[0].name;
        let address = vip.to_string();
        topology.router.ns.exec("ip", &["neigh", "change", &address, "dev", lan, "nud", "probe"])?;
        wait_until("the unicast probe is answered", PATIENCE, || {
            neighbour(&topology.router, vip).contains("REACHABLE")
        })?;
        // Somebody tries whether the address is free.
        let nobody: IpAddr = if vip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        assert_eq!(answerers(&topology, vip, nobody), macs(&[lb1]));
    }
    let lan = &topology.router.interfaces[0].name;
    let said = topology.router.ns.exec("arping", &["-c", "3", "-w", "10", "-I", lan, "192.0.2.10"])?;
    let replies = said.lines().filter(|line| line.to_lowercase().contains("reply from 192.0.2.10")).count();
    let right = said.to_lowercase().matches(&colons(lb1.interfaces[0].mac)).count();
    assert!(replies >= 1 && right == replies, "{said}");

    // The role moves, and the addresses with it.
    one.stop()?;
    wait_for_state(&two, "master")?;
    wait_for_answers(&topology, &[lb2])?;
    assert_answers(&topology, &[lb2]);
    one.restart()?;
    wait_for_state(&one, "master")?;
    wait_for_answers(&topology, &[lb1])?;
    assert_answers(&topology, &[lb1]);

    // A reload gives them to the interface, and back.
    for (held_by, on_it) in [("interface", true), ("dataplane", false)] {
        one.configure(|settings| {
            let other = if on_it { "dataplane" } else { "interface" };
            let (from, to) = (format!("held_by = \"{other}\""), format!("held_by = \"{held_by}\""));
            settings.rest = settings.rest.replace(&from, &to);
        })?;
        one.reload();
        wait_until(&format!("held by the {held_by}"), PATIENCE, || {
            has(lb1, "192.0.2.10") == on_it && has(lb1, "2001:db8::10") == on_it
        })?;
        assert_answers(&topology, &[lb1]);
        assert_eq!(pair(&one).state, "master");
    }
    Ok(())
}

/// The daemon of the master is killed, or hangs: the peer takes the addresses, and from then on it alone answers.
fn silence(held_by: &str, signal: Signal) -> Result<()> {
    let topology = topology()?;
    let _servers = echo_servers(&topology)?;
    let [lb1, lb2] = &topology.lb;
    let mut one = start(&topology, 0, held_by)?;
    let two = start(&topology, 1, held_by)?;
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    wait_for_answers(&topology, &[lb1])?;
    let probers = [topology.vip4(), topology.vip6()].map(|vip| probe(&topology, vip));
    thread::sleep(Duration::from_millis(500));

    if signal == Signal::SIGKILL {
        one.kill();
    } else {
        one.process().signal(signal);
    }
    wait_for_state(&two, "master")?;
    wait_for_answers(&topology, &[lb2])?;
    assert_answers(&topology, &[lb2]);
    assert_eq!(has(lb1, "192.0.2.10"), held_by == "interface", "nobody was there to take it off");
    for (prober, family) in probers.into_iter().zip(["IPv4", "IPv6"]) {
        let trace = prober.stop();
        let (longest, answers) = (trace.outage(PERIOD).sure(), trace.answers.len());
        eprintln!("{held_by}, {signal}, {family}: longest outage {longest:?}, {answers} answers");
        assert!(answers > 0);
        // Forwarding goes on meanwhile: what is lost is what a busy machine does not get to.
        assert!(longest < Duration::from_secs(5), "{family}: {longest:?}");
    }

    // It comes back as if nothing had been.
    if signal == Signal::SIGKILL {
        one.restart()?;
    } else {
        one.process().signal(Signal::SIGCONT);
    }
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    wait_for_answers(&topology, &[lb1])?;
    assert_answers(&topology, &[lb1]);
    assert!(!has(lb2, "192.0.2.10"));
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_no_second_answer() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    silence("dataplane", Signal::SIGKILL)
}

#[test]
fn a_killed_daemon_leaves_no_second_answer_of_its_kernel() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    silence("interface", Signal::SIGKILL)
}

#[test]
fn a_daemon_that_hangs_leaves_no_second_answer() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    silence("interface", Signal::SIGSTOP)
}

#[test]
fn a_lone_node_answers_without_its_daemon() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    for held_by in ["dataplane", "interface"] {
        let topology = topology()?;
        let lb1 = &topology.lb[0];
        let mut one = start(&topology, 0, held_by)?;
        wait_for_state(&one, "master")?;
        wait_for_answers(&topology, &[lb1])?;
        one.process().signal(Signal::SIGSTOP);
        thread::sleep(8 * INTERVAL);
        assert_answers(&topology, &[lb1]);
        one.process().signal(Signal::SIGCONT);
        one.kill();
        thread::sleep(8 * INTERVAL);
        assert_answers(&topology, &[lb1]);
        one.restart()?;
        // Backup for three intervals, without a gap.
        while pair(&one).state != "master" {
            assert_eq!(
                answerers(&topology, topology.vip4(), own(&topology.router, topology.vip4())),
                macs(&[lb1])
            );
        }
        assert_answers(&topology, &[lb1]);
        // A polite stop gives them up.
        one.stop()?;
        wait_for_answers(&topology, &[])?;
    }
    Ok(())
}

/// The link to the peer is taken out of the configuration: each of the two is alone then, as far as it knows.
#[test]
fn without_its_link_a_node_forgets_its_peer() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let shape = Shape { backends: 2, vips_on_link: true, sync_link: true, ..Shape::default() };
    let topology = Topology::new(&shape)?;
    let lb1 = &topology.lb[0];
    let [first, second] = [&topology.backends[0].name, &topology.backends[1].name];
    let link = [sync(&topology, 0)?, sync(&topology, 1)?];
    let node =
        |on: usize| start_with(&topology, on, "dataplane", &format!("track_peer_config = -10\n{}", link[on]));
    let (mut one, mut two) = (node(0)?, node(1)?);
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    // Both have the same word, the standby by the link; and each knows of the other that its services differ then.
    let shares = |balancer: &Balancer<'_>| {
        let slots = |name: &str| {
            let view = balancer.service("echo").backends.into_iter().find(|backend| backend.name == name);
            view.expect("a backend").slots
        };
        (slots(first), slots(second))
    };
    wait_until("the standby follows", PATIENCE, || two.process().log().contains("slots follow the master"))?;
    one.lbctl(&["backend", "weight", "echo", second, "30"]);
    for balancer in [&one, &two] {
        wait_until("the difference counts", PATIENCE, || {
            pair(balancer).missing.iter().any(|missing| missing.weight == -10)
        })?;
    }
    wait_until("the standby has the master's slots", PATIENCE, || shares(&two).0 > 2 * shares(&two).1)?;

    // What the peer was is forgotten.
    for (balancer, link) in [&mut one, &mut two].into_iter().zip(&link) {
        balancer.configure(|settings| settings.rest = settings.rest.replace(link, ""))?;
        balancer.reload();
        wait_until("nothing is missing", PATIENCE, || pair(balancer).missing.is_empty())?;
    }
    // The standby decides on its slots by itself.
    wait_until("it has its own slots", PATIENCE, || shares(&two).0.abs_diff(shares(&two).1) < 10)?;
    two.lbctl(&["backend", "weight", "echo", first, "30"]);
    wait_until("it has those of its weights", PATIENCE, || shares(&two).1 > 2 * shares(&two).0)?;

    // And nobody is known who would take over from a master that is silent.
    two.kill();
    one.process().signal(Signal::SIGSTOP);
    thread::sleep(8 * INTERVAL);
    assert_answers(&topology, &[lb1]);
    one.process().signal(Signal::SIGCONT);
    wait_for_state(&one, "master")
}

/// `accept`: what no service takes is the host's, or nobody's.
#[test]
fn what_no_service_takes() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let _servers = echo_servers(&topology)?;
    let lb1 = &topology.lb[0];
    let mut one = start(&topology, 0, "interface")?;
    wait_for_state(&one, "master")?;
    wait_for_answers(&topology, &[lb1])?;
    let vips = [topology.vip4(), topology.vip6()];
    // The IPv6 address, on the interface a moment ago, and without duplicate address detection.
    let listeners = vips.map(|vip| lb1.ns.run(|| TcpListener::bind((vip, 7000)).expect("an own address")));
    let reached = |vip: IpAddr| {
        let target = SocketAddr::new(vip, 7000);
        topology.client.ns.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)).is_ok())
    };
    for vip in vips {
        wait_until(&format!("{vip} is the host's"), PATIENCE, || reached(vip))?;
    }
    one.configure(|settings| settings.rest.push_str("accept = false\n"))?;
    one.reload();
    for vip in vips {
        let before = one.dropped("not_accepted");
        assert!(!reached(vip), "{vip}");
        assert!(one.dropped("not_accepted") > before);
        ping(&topology.client.ns, vip, 56, Duration::from_secs(5))?;
        let prober = probe(&topology, vip);
        thread::sleep(Duration::from_secs(1));
        assert!(!prober.stop().answers.is_empty(), "the service of {vip} goes on");
    }
    // Neighbours find it all the same.
    assert_answers(&topology, &[lb1]);
    let told = one.explain("tcp", "10.1.0.2:40000", "192.0.2.10:7000");
    assert!(told.reason.contains("not_accepted"), "{told:?}");
    drop(listeners);
    Ok(())
}

#[test]
fn a_split_brain_is_seen_and_healed() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let [lb1, lb2] = &topology.lb;
    // A command that writes down what it is told, as another user.
    let open = tempfile::tempdir().expect("a directory");
    let told = open.path().join("told");
    let script = open.path().join("notify");
    fs::write(&script, format!("#!/bin/sh\necho \"$1 $2 $4 $5 $6\" >> {}\n", told.display())).unwrap();
    for (path, mode) in [(open.path(), 0o777), (script.as_path(), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let hook = format!("[[notify]]\ncommand = [\"{}\"]\n", script.display());
    let hears = |what: &str| {
        let start = format!("PAIR public master master {what}");
        wait_until(&format!("the command is told: {start}"), PATIENCE, || {
            fs::read_to_string(&told).is_ok_and(|text| text.lines().any(|line| line.starts_with(&start)))
        })
    };
    let one = start_with(&topology, 0, "dataplane", &hook)?;
    let two = start(&topology, 1, "dataplane")?;
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    let before = pair(&one).split_brains;

    // Everybody sees both nodes, but they do not see each other.
    let isolate = |on: &str| {
        for port in ["lb1", "lb2"] {
            let line = format!("link set dev {port} type bridge_slave isolated {on}\n");
            topology.switch.ip(&line).expect("ip works");
        }
    };
    isolate("on");
    wait_for_state(&two, "master")?;
    wait_for_answers(&topology, &[lb1, lb2])?;
    // Longer than any burst of announcements of the takeover of either.
    thread::sleep(Duration::from_secs(7));
    let router = &topology.router;
    let capture = Sniffer::open(&router.ns, &router.interfaces[0].name)?;
    isolate("off");
    wait_for_state(&two, "backup")?;
    assert_eq!(pair(&one).state, "master");
    // Hosts that believed the other one learn better, of both families.
    for vip in [topology.vip4(), topology.vip6()] {
        let announced = |frame: &lb_tests::lab::Frame| {
            !frame.outgoing
                && frame.bytes[0] & 1 != 0
                && answer(&frame.bytes, vip) == Some(lb1.interfaces[0].mac)
        };
        assert!(capture.recv(PATIENCE, announced)?.is_some(), "{vip} is announced again");
    }
    wait_for_answers(&topology, &[lb1])?;
    assert_answers(&topology, &[lb1]);
    wait_until("it is counted", PATIENCE, || pair(&one).split_brains > before)?;
    one.process().wait_for_log("another node was master too", PATIENCE)?;
    hears("split brain: ")?;

    // Somebody who is no router at all answers for the addresses.
    let stranger = [2, 0, 0, 0, 9, 9];
    let mut claim = vec![0xff; 6];
    claim.extend(stranger);
    claim.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    claim.extend(stranger);
    claim.extend([192, 0, 2, 10]);
    claim.extend([0xff; 6]);
    claim.extend([192, 0, 2, 10]);
    capture.drain()?;
    capture.send_frame(&claim)?;
    wait_until("the claim is counted", PATIENCE, || pair(&one).address_claims > 0)?;
    one.process().wait_for_log("02:00:00:00:09:09", PATIENCE)?;
    hears("192.0.2.10 is claimed by ")?;
    let announced = |frame: &lb_tests::lab::Frame| {
        !frame.outgoing && answer(&frame.bytes, topology.vip4()) == Some(lb1.interfaces[0].mac)
    };
    assert!(capture.recv(PATIENCE, announced)?.is_some(), "it is contradicted");
    assert_eq!(pair(&one).state, "master");
    assert_answers(&topology, &[lb1]);
    Ok(())
}
