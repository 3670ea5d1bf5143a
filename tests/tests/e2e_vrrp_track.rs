//! What makes a node give its addresses away, and who is told: groups, tracked interfaces, scripts, files and services, the
//! operator's hold, notify commands and the event stream.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use lb_tests::{
    balancer::{Balancer, Service, Settings, program},
    lab::{Node, Process, Result, Shape, Topology, wait_until},
    require,
    skip::{Need, find_tool},
    web::{WebOptions, WebServer},
};
use lb_userspace::control::pair::PairView;
use nix::sys::signal::Signal;

/// Far more than any takeover takes, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const VIP: &str = "192.0.2.10";
const INSIDE: &str = "10.9.0.10";

fn topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 1, vips_on_link: true, sync_link: true, ..Shape::default() })
}

fn settings(topology: &Topology, on: usize, health: &str, rest: &str) -> Settings {
    let www = Service::www([topology.vip4()]).nodes(&topology.backends).health(health);
    let interfaces = vec!["eth0".to_owned()];
    Settings { on, rest: rest.to_owned(), interfaces, ..Settings::of([www]) }
}

const NO_CHECKS: &str = "type = \"none\"";

/// A `[[vrrp]]` for the clients' side.
fn public(priority: u8, extra: &str) -> String {
    format!(
        "\n[[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {priority}\n\
         addresses = [\"{VIP}/24\"]\nadvert_interval = \"100ms\"\n{extra}\n"
    )
}

/// And one for the link between the balancers, and the group of both.
fn grouped(priority: u8, extra: &str) -> String {
    public(priority, extra)
        + &format!(
            "\n[[vrrp]]\nname = \"inside\"\ninterface = \"sync0\"\nrouter_id = 52\npriority = {priority}\n\
             addresses = [\"{INSIDE}/24\"]\nadvert_interval = \"100ms\"\n\n\
             [[vrrp_group]]\nname = \"site\"\nmembers = [\"public\", \"inside\"]\n"
        )
}

fn views(balancer: &Balancer<'_>) -> Vec<PairView> {
    balancer.json(&["pair"])
}

fn view(balancer: &Balancer<'_>) -> PairView {
    views(balancer).into_iter().next().expect("an instance")
}

/// Every instance is in this state.
fn wait_for(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    let what = format!("{} is {state}", balancer.node.name);
    wait_until(&what, PATIENCE, || views(balancer).iter().all(|view| view.state == state))
        .inspect_err(|_| eprintln!("{:#?}", views(balancer)))
}

fn has(node: &Node, interface: &str, address: &str) -> bool {
    let shown = node.ns.exec("ip", &["-o", "addr", "show", "dev", interface]).expect("ip works");
    shown.contains(&format!(" {address}/"))
}

fn wait_for_addresses(node: &Node, there: bool) -> Result<()> {
    let what = format!("both addresses are {} {}", if there { "on" } else { "off" }, node.name);
    wait_until(&what, PATIENCE, || has(node, "eth0", VIP) == there && has(node, "sync0", INSIDE) == there)
}

fn missing(view: &PairView) -> Vec<(String, i16)> {
    view.missing.iter().map(|missing| (missing.cause.clone(), missing.weight)).collect()
}

#[test]
fn a_group_changes_together() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let [lb1, lb2] = &topology.lb;
    let one = Balancer::start(&topology, settings(&topology, 0, NO_CHECKS, &grouped(150, "")))?;
    let two = Balancer::start(&topology, settings(&topology, 1, NO_CHECKS, &grouped(100, "")))?;
    wait_for(&one, "master")?;
    wait_for(&two, "backup")?;
    wait_for_addresses(lb1, true)?;
    wait_for_addresses(lb2, false)?;
    assert!(one.lbctl(&["pair"]).contains("public: goes with the group site"));

    // One member's network is gone from this node: the other one moves along.
    topology.switch.ip("link set lb1 down\n")?;
    wait_for(&one, "fault")?;
    wait_for(&two, "master")?;
    wait_for_addresses(lb2, true)?;
    wait_for_addresses(lb1, false)?;
    for view in views(&one) {
        assert_eq!(missing(&view), [("interface eth0 is down or has no carrier".to_owned(), 0)], "{view:?}");
    }
    topology.switch.ip("link set lb1 up\n")?;
    wait_for(&one, "master")?;
    wait_for(&two, "backup")?;
    wait_for_addresses(lb1, true)?;

    // A hand-over of one is one of all, and lasts.
    one.lbctl(&["pair", "failover", "inside"]);
    wait_for(&two, "master")?;
    std::thread::sleep(Duration::from_secs(1));
    wait_for(&one, "backup")?;
    assert!(views(&one).iter().all(|view| view.handed_over), "{:?}", views(&one));
    // So is maintenance.
    two.lbctl(&["pair", "hold", "--instance", "public"]);
    wait_for(&one, "master")?;
    assert!(views(&two).iter().all(|view| view.held), "{:?}", views(&two));
    two.lbctl(&["pair", "hold", "--off", "--instance", "inside"]);
    assert!(views(&two).iter().all(|view| !view.held), "{:?}", views(&two));
    wait_for_addresses(lb1, true)?;
    wait_for_addresses(lb2, false)?;

    // A master that hangs on both networks is replaced on both.
    one.process().signal(Signal::SIGSTOP);
    wait_for(&two, "master")?;
    one.process().signal(Signal::SIGCONT);
    wait_for(&one, "master")?;
    wait_for(&two, "backup")
}

/// One that everybody may use: commands run as nobody.
fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
    directory
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("the file is written");
}

#[test]
fn scripts_files_and_services_count() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let open = open_directory();
    let dir = open.path();
    let (bad, load) = (dir.join("bad"), dir.join("load"));
    let rest = public(
        150,
        "track_scripts = [\"fault\", \"weight weight -40\"]\ntrack_files = [\"load weight -2\"]\n\
         track_services = [\"www weight -30\"]",
    );
    let script = |name: &str, file: &Path| {
        format!(
            "\n[[vrrp_script]]\nname = \"{name}\"\ncommand = [\"/bin/sh\", \"-c\", \"test ! -e {}\"]\n\
             interval = \"50ms\"\ntimeout = \"10s\"\nrise = 1\nfall = 2\n",
            file.display()
        )
    };
    let file = format!("\n[[vrrp_file]]\nname = \"load\"\nfile = \"{}\"\n", load.display());
    let rest = rest + &script("fault", &dir.join("broken")) + &script("weight", &bad) + &file;
    let health = "type = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\nrise = 1\nfall = 2\nport = 8080";
    let mut one = Balancer::start(&topology, settings(&topology, 0, health, &rest))?;
    let is = |priority: u8| {
        wait_until(&format!("priority {priority}"), PATIENCE, || view(&one).effective_priority == priority)
            .inspect_err(|_| eprintln!("{:#?}", view(&one)))
    };

    // Nobody listens on the backend.
    is(120)?;
    assert_eq!(missing(&view(&one)), [("service www is down".to_owned(), -30)]);
    write(&load, "10\n");
    is(100)?;
    write(&bad, "");
    is(60)?;
    wait_for(&one, "master")?;
    let shown = one.lbctl(&["pair"]);
    for line in [
        "60 of 150",
        "public: -30: service www is down",
        "public: -20: file load says 10",
        "public: -40: script weight: ended with status 1",
    ] {
        assert!(shown.contains(line), "{line}:\n{shown}");
    }
    // The backend's server comes.
    let node = &topology.backends[0];
    let options = WebOptions { ports: vec![8080], ..WebOptions::default() };
    let _web = WebServer::nginx_or_builtin(&topology.lab, &node.ns, &node.name, &options)?;
    is(90)?;
    fs::remove_file(&bad).expect("it is there");
    fs::remove_file(&load).expect("it is there");
    is(150)?;
    // A number may add to it too.
    write(&load, "-10");
    is(170)?;
    write(&load, "0");
    is(150)?;

    write(&dir.join("broken"), "");
    wait_for(&one, "fault")?;
    assert_eq!(missing(&view(&one)), [("script fault: ended with status 1".to_owned(), 0)]);
    // A reload on the way changes nothing of that.
    one.reload();
    wait_for(&one, "fault")?;
    fs::remove_file(dir.join("broken")).expect("it is there");
    wait_for(&one, "master")?;
    assert_eq!(view(&one).transitions["master"], 2);
    one.stop()
}

#[test]
fn a_program_that_was_taken_off_is_put_on_again_or_is_a_fault() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let mut settings = settings(&topology, 0, NO_CHECKS, &public(150, "track_xdp = true"));
    settings.interfaces = vec!["eth0".to_owned(), "sync0".to_owned()];
    let mut one = Balancer::start(&topology, settings)?;
    wait_for(&one, "master")?;
    // An interface with the program is gone, and comes back.
    topology.lb[0].ns.ip("link del sync0\n")?;
    wait_for(&one, "fault")?;
    assert_eq!(missing(&view(&one)), [("the program is not attached to sync0".to_owned(), 0)]);
    topology.lb[0].ns.ip("link add sync0 type dummy\nlink set sync0 up\n")?;
    wait_for(&one, "master")?;
    // It need not matter.
    one.configure(|settings| settings.rest = public(150, "track_xdp = -20"))?;
    one.reload();
    topology.lb[0].ns.ip("link del sync0\n")?;
    wait_until("it weighs", PATIENCE, || view(&one).effective_priority == 130)?;
    assert_eq!(view(&one).state, "master");
    one.configure(|settings| settings.rest = public(150, "track_xdp = false"))?;
    one.configure(|settings| settings.interfaces = vec!["eth0".to_owned()])?;
    one.reload();
    wait_until("it weighs no more", PATIENCE, || view(&one).effective_priority == 150)
}

#[test]
fn a_hold_outlives_the_daemon() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let mut one = Balancer::start(&topology, settings(&topology, 0, NO_CHECKS, &public(150, "")))?;
    wait_for(&one, "master")?;
    one.lbctl(&["pair", "hold"]);
    wait_for(&one, "backup")?;
    for polite in [true, false] {
        if polite {
            one.stop()?;
        } else {
            one.kill();
        }
        one.restart()?;
        let held = view(&one);
        assert!(held.held, "{held:?}");
        assert!(held.held_by.as_deref().is_some_and(|by| by.contains("uid 0")), "{held:?}");
        assert!(held.held_since.is_some_and(|since| since > 1e9), "{held:?}");
        // More than three intervals: it takes nothing.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(view(&one).state, "backup");
    }
    // One that comes later is held with all others; a reset of runtime changes ends no maintenance.
    one.configure(|settings| {
        settings.rest = grouped(150, "");
    })?;
    one.reload();
    one.lbctl(&["reset"]);
    assert!(views(&one).len() == 2 && views(&one).iter().all(|view| view.held), "{:?}", views(&one));
    let setting = one.config().settings.into_iter().find(|setting| setting.key == "vrrp.public.held");
    let setting = setting.expect("config show tells");
    assert_eq!((setting.origin.as_str(), &setting.value), ("runtime", &serde_json::json!(true)));
    assert!(one.lbctl(&["pair"]).contains("held by uid 0"));
    one.lbctl(&["pair", "hold", "--off"]);
    wait_for(&one, "master")?;
    one.kill();
    one.restart()?;
    wait_for(&one, "master")?;
    assert!(views(&one).iter().all(|view| !view.held && view.held_by.is_none()));
    one.stop()
}

fn watch(topology: &Topology, one: &Balancer<'_>) -> Result<Process> {
    let mut command: Command = one.node.ns.command(program("lbctl"));
    command.args(["--socket"]).arg(one.socket()).args(["watch", "-o", "json"]);
    topology.lab.spawn("watch", command)
}

#[test]
fn notify_commands_and_watchers_hear_of_the_pair_in_order() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let open = open_directory();
    let file = open.path().join("told");
    // Slower than the changes: what is told later still comes later.
    let script = open.path().join("notify");
    write(&script, &format!("#!/bin/sh\nsleep 0.2\necho \"$1 $2 $4 $5\" >> {}\n", file.display()));
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let hook = format!("\n[[notify]]\ncommand = [\"{}\"]\n", script.display());
    let mut one = Balancer::start(&topology, settings(&topology, 0, NO_CHECKS, &(public(150, "") + &hook)))?;
    wait_for(&one, "master")?;
    let watcher = watch(&topology, &one)?;
    watcher.wait_for_log("hello", PATIENCE)?;
    topology.switch.ip("link set lb1 down\n")?;
    wait_for(&one, "fault")?;
    topology.switch.ip("link set lb1 up\n")?;
    wait_for(&one, "master")?;
    let seen = || -> Vec<String> {
        let log = watcher.log();
        let events = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let pair = events.filter(|event| event["event"] == "pair");
        pair.map(|event| {
            assert_eq!(event["instance"], "public", "{event}");
            format!("{} {}", event["from"].as_str().unwrap_or("?"), event["to"].as_str().unwrap_or("?"))
        })
        .collect()
    };
    let way = ["master fault", "fault backup", "backup master"];
    wait_until("the watcher hears", PATIENCE, || seen().len() >= way.len())?;
    assert_eq!(seen(), way);
    // The end of the daemon is told before it ends.
    one.stop()?;
    let expected: Vec<String> = ["init backup", "backup master"]
        .into_iter()
        .chain(way)
        .chain(["master stop"])
        .map(|change| format!("PAIR public {change}"))
        .collect();
    let told = fs::read_to_string(&file).expect("it was told");
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    Ok(())
}

/// keepalived with the same group as the other node.
#[test]
fn a_group_with_keepalived() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("keepalived"));
    let topology = topology()?;
    let [lb1, lb2] = &topology.lb;
    let instance = |name: &str, interface: &str, id: u8, address: &str| {
        format!(
            "vrrp_instance {name} {{\nstate BACKUP\ninterface {interface}\nvirtual_router_id {id}\npriority 100\n\
             version 3\nadvert_int 0.1\nvirtual_ipaddress {{\n{address}/24\n}}\n}}\n"
        )
    };
    let text = format!(
        "global_defs {{\nvrrp_version 3\n}}\nvrrp_sync_group site {{\ngroup {{\npublic\ninside\n}}\n}}\n{}{}",
        instance("public", "eth0", 51, VIP),
        instance("inside", "sync0", 52, INSIDE)
    );
    let dir = topology.lab.dir().join("keepalived-group");
    fs::create_dir_all(&dir).expect("a directory");
    let config = dir.join("keepalived.conf");
    write(&config, &text);
    let mut command: Command = lb2.ns.command(find_tool("keepalived").expect("required"));
    command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"]).arg(&config);
    command.arg("--pid").arg(dir.join("pid")).arg("--vrrp_pid").arg(dir.join("vrrp.pid"));
    let other = topology.lab.spawn("keepalived", command)?;
    wait_for_addresses(lb2, true)?;

    // The same file, imported, is this node's, but for its priority.
    let one = Balancer::start(&topology, settings(&topology, 0, NO_CHECKS, &grouped(150, "")))?;
    wait_for(&one, "master")?;
    wait_for_addresses(lb1, true)?;
    wait_for_addresses(lb2, false)?;
    topology.switch.ip("link set lb1 down\n")?;
    wait_for(&one, "fault")?;
    wait_for_addresses(lb2, true)?;
    topology.switch.ip("link set lb1 up\n")?;
    wait_for(&one, "master")?;
    wait_for_addresses(lb2, false)?;
    other.signal(Signal::SIGTERM);
    other.wait(PATIENCE)?;
    Ok(())
}
