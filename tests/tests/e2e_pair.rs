//! What can go wrong between two nodes that are both well: an advertisement that cannot be sent to everybody, two masters
//! that only the sync link shows, a kernel that takes more addresses off than it was told to.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    client,
    failover::nodes::sync,
    lab::{Node, Result, Shape, Topology, ping, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::{link::SyncView, pair::PairView};

/// Far more than anything takes, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(100);
const VRRP_PACKETS: &str = "meta l4proto 112";

fn topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 2, vips_on_link: true, sync_link: true, ..Shape::default() })
}

/// `more`: lines of `[[vrrp]]`, and sections.
fn start<'t>(topology: &'t Topology, on: usize, more: &str) -> Result<Balancer<'t>> {
    let priority = [150, 100][on];
    let rest = format!(
        "\n[[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {priority}\n\
         advert_interval = \"100ms\"\n{more}\n{}",
        sync(topology, on)?
    );
    let www = Service::www([topology.vip4()]).nodes(&topology.backends);
    let settings = Settings { on, rest, interfaces: vec!["eth0".to_owned()], ..Settings::of([www]) };
    Balancer::start(topology, settings)
}

fn pairs(balancer: &Balancer<'_>) -> Vec<PairView> {
    balancer.json(&["pair"])
}

fn pair(balancer: &Balancer<'_>) -> PairView {
    pairs(balancer).into_iter().next().expect("an instance")
}

fn wait_for_state(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    let what = format!("{} is {state}", balancer.node.name);
    wait_until(&what, PATIENCE, || pair(balancer).state == state)
        .inspect_err(|_| eprintln!("{:?}\n{}", pair(balancer), balancer.process().log()))
}

/// By the sync link.
fn wait_for_peer(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    let link = || -> SyncView {
        let page =
            client::get(&balancer.node.ns, "127.0.0.1:9750".parse().unwrap(), "/api/snapshot.json", PATIENCE);
        let snapshot: serde_json::Value =
            serde_json::from_slice(&page.expect("a snapshot").body).expect("JSON");
        serde_json::from_value(snapshot["link"].clone()).expect("a link")
    };
    let is =
        |view: SyncView| view.peers.iter().any(|p| p.instances.get("public").is_some_and(|s| s == state));
    wait_until(&format!("{} knows that its peer is {state}", balancer.node.name), PATIENCE, || is(link()))?;
    // The lease is looked at once a second.
    thread::sleep(Duration::from_secs(2));
    Ok(())
}

fn filter(node: &Node, hook: &str, what: &str) -> Result<()> {
    let rule = format!(
        "table inet between {{ chain {hook} {{ type filter hook {hook} priority 0; {what} drop; }}; }}"
    );
    node.ns.exec("nft", &[&rule]).map(drop)
}

fn unfilter(node: &Node) -> Result<()> {
    node.ns.exec("nft", &["delete table inet between"]).map(drop)
}

/// A command that writes down what it is told, and where.
fn hook(directory: &Path, name: &str) -> (String, PathBuf) {
    let (script, file) = (directory.join(name), directory.join(format!("{name}.told")));
    fs::write(&script, format!("#!/bin/sh\necho \"$1 $2 $4 $5 $6\" >> {}\n", file.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    (format!("\n[[notify]]\ncommand = [\"{}\"]\n", script.display()), file)
}

/// For the user that the commands run as.
fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

/// The peer hears the master all the same, and nobody else takes the address: the master must go on answering.
fn unsent(more: [&str; 2], begin: impl Fn(&Node), end: impl Fn(&Node), cause: &str) -> Result<()> {
    let topology = topology()?;
    let lb1 = &topology.lb[0];
    let one = start(&topology, 0, more[0])?;
    let two = start(&topology, 1, more[1])?;
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    wait_for_peer(&one, "backup")?;

    begin(lb1);
    thread::sleep(10 * INTERVAL);
    let answers = || {
        topology.router.ns.exec("ip", &["neigh", "flush", "all"]).expect("ip works");
        ping(&topology.client.ns, topology.vip4(), 56, Duration::from_secs(2)).is_ok()
    };
    wait_until("neighbours find the address", PATIENCE, answers)
        .inspect_err(|_| eprintln!("{:?}\n{}", pair(&one), one.process().log()))?;
    assert_eq!((pair(&one).state.as_str(), pair(&two).state.as_str()), ("master", "backup"));
    // It is said where somebody looks.
    wait_until("the warning", PATIENCE, || pair(&one).warnings.iter().any(|text| text.contains(cause)))?;
    assert!(
        one.lbctl(&["pair"]).contains("public: warning: advertisements cannot be sent"),
        "{:?}",
        pair(&one)
    );
    one.process().wait_for_log("an advertisement could not be sent", PATIENCE)?;
    assert_eq!(pair(&one).faults, [""; 0]);
    end(lb1);
    wait_until("no warning", PATIENCE, || pair(&one).warnings.is_empty())
}

#[test]
fn a_family_that_cannot_be_sent_does_not_silence_the_master() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nft"));
    let both = "addresses = [\"192.0.2.10/24\", \"2001:db8::10/64\"]\nheld_by = \"dataplane\"";
    let begin = |lb1: &Node| filter(lb1, "output", &format!("meta nfproto ipv6 {VRRP_PACKETS}")).unwrap();
    unsent([both; 2], begin, |lb1| unfilter(lb1).unwrap(), "to ff02::12")
}

#[test]
fn a_peer_that_cannot_be_sent_to_does_not_silence_the_master() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nft"));
    let node = |peers: &str| {
        format!("addresses = [\"192.0.2.10/24\"]\nheld_by = \"dataplane\"\nunicast_peers = [{peers}]")
    };
    let more = [node("\"203.0.113.9\", \"10.0.0.3\""), node("\"10.0.0.2\"")];
    let begin = |lb1: &Node| filter(lb1, "output", &format!("ip daddr 203.0.113.9 {VRRP_PACKETS}")).unwrap();
    unsent([&more[0], &more[1]], begin, |lb1| unfilter(lb1).unwrap(), "to 203.0.113.9")
}

#[test]
fn two_masters_that_do_not_hear_each_other_know_by_the_link() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nft"));
    let topology = topology()?;
    let open = open_directory();
    let (hooks, told): (Vec<String>, Vec<PathBuf>) =
        ["one", "two"].iter().map(|name| hook(open.path(), name)).unzip();
    let more = |on: usize| {
        format!(
            "addresses = [\"192.0.2.10/24\", \"2001:db8::10/64\"]\nheld_by = \"dataplane\"\n{}",
            hooks[on]
        )
    };
    let one = start(&topology, 0, &more(0))?;
    let two = start(&topology, 1, &more(1))?;
    let nodes = [&one, &two];
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    wait_for_peer(&two, "master")?;
    // What is agreed is no split brain, though both are master for a moment.
    one.hand_over("public").expect("a hand-over");
    wait_for_state(&two, "master")?;
    wait_for_state(&one, "backup")?;
    wait_for_peer(&one, "master")?;
    two.hand_over("public").expect("a hand-over");
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;

    let silent = |node: &Balancer<'_>| !node.process().log().contains("both nodes are master");
    assert!(nodes.into_iter().all(silent), "{}\n{}", one.process().log(), two.process().log());
    for node in nodes {
        filter(node.node, "input", VRRP_PACKETS)?;
    }
    wait_for_state(&two, "master")?;
    let before = nodes.map(|node| pair(node).split_brains);
    for ((node, before), told) in nodes.into_iter().zip(before).zip(&told) {
        let name = &node.node.name;
        wait_until(&format!("{name} counts it"), PATIENCE, || pair(node).split_brains > before)?;
        node.process().wait_for_log("both nodes are master", PATIENCE)?;
        let heard = "PAIR public master master split brain: 10.9.0.";
        wait_until(&format!("the command of {name} is told"), PATIENCE, || {
            fs::read_to_string(told).is_ok_and(|text| text.lines().any(|line| line.starts_with(heard)))
        })?;
    }
    assert_eq!(pair(&one).state, "master");

    // As soon as they hear each other again, there is one.
    for node in nodes {
        unfilter(node.node)?;
    }
    wait_for_state(&two, "backup")?;
    assert_eq!(pair(&one).state, "master");
    wait_for_peer(&one, "backup")?;
    let after = nodes.map(|node| pair(node).split_brains);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(nodes.map(|node| pair(node).split_brains), after);
    Ok(())
}

/// The first address of a network, by which the kernel takes the others off, leaves with its instance; those of another
/// instance, and the node's own, stay.
#[test]
fn addresses_do_not_go_with_the_first_of_their_network() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let lb1 = &topology.lb[0];
    let setting = |of: &str| format!("/proc/sys/net/ipv4/conf/{of}/promote_secondaries");
    for of in ["all", "eth0"] {
        lb1.ns.run(|| fs::write(setting(of), "0")).expect("root may");
    }
    let other: Ipv4Addr = "198.51.100.20".parse().unwrap();
    let third: Ipv4Addr = "198.51.100.30".parse().unwrap();
    let shown = || lb1.ns.exec("ip", &["-o", "-4", "addr", "show", "dev", "eth0"]).expect("ip works");
    let has = |address: &str| shown().contains(&format!(" {address}/"));

    // Proof of what the kernel does: with the first one the others go.
    let change = |verb: &str, address: Ipv4Addr| {
        lb1.ns.exec("ip", &["addr", verb, &format!("{address}/24"), "dev", "eth0"]).map(drop)
    };
    change("add", other)?;
    change("add", third)?;
    change("del", other)?;
    assert!(!has("198.51.100.30"), "{}", shown());

    let second = format!(
        "[[vrrp]]\nname = \"other\"\ninterface = \"eth0\"\nrouter_id = 52\nadvert_interval = \"100ms\"\n\
         addresses = [\"{other}/24\"]\n"
    );
    let mut one = start(&topology, 0, "addresses = [\"198.51.100.10/24\"]")?;
    wait_until("the first is there", PATIENCE, || has("198.51.100.10"))?;
    one.configure(|settings| settings.rest.push_str(&second))?;
    one.reload();
    wait_until("the other is there", PATIENCE, || has("198.51.100.20"))?;
    change("add", third)?;
    let mut command = lb1.ns.command("ip");
    command.args(["-4", "monitor", "address"]);
    let monitor = topology.lab.spawn("monitor", command)?;
    let first_seen = || {
        lb1.ns.exec("ip", &["addr", "add", "203.0.113.77/32", "dev", "eth0"]).expect("ip works");
        lb1.ns.exec("ip", &["addr", "del", "203.0.113.77/32", "dev", "eth0"]).expect("ip works");
        monitor.log().contains("203.0.113.77")
    };
    wait_until("the monitor sees changes", PATIENCE, first_seen)?;

    one.lbctl(&["pair", "hold", "--instance", "public"]);
    wait_until("the first is gone", PATIENCE, || !has("198.51.100.10"))?;
    monitor.wait_for_log("198.51.100.10", PATIENCE)?;
    thread::sleep(Duration::from_secs(1));
    assert!(has("198.51.100.20") && has("198.51.100.30"), "{}", shown());
    let log = monitor.log();
    let taken = |line: &&str| {
        line.contains("Deleted") && (line.contains("198.51.100.20/") || line.contains("198.51.100.30/"))
    };
    assert_eq!(log.lines().find(taken), None, "{log}");
    let said = one.process().log();
    assert!(!said.contains("somebody removed a virtual address"), "{said}");
    assert!(said.contains("promote_secondaries is 1 now"), "{said}");
    assert_eq!(lb1.ns.run(|| fs::read_to_string(setting("eth0"))).expect("it is there").trim(), "1");
    Ok(())
}
