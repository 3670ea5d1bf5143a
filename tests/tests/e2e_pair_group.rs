//! Groups, owners and the sync link together: what is agreed over the link is agreed for every member of a group, and the
//! wait for the peer's state ends where there is no peer.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::pair::PairView;

/// Far more than anything takes, for machines that are busy with other things; less than the wait for a peer's state.
const PATIENCE: Duration = Duration::from_secs(40);
const INTERVAL: Duration = Duration::from_millis(200);
const AGREED: &str = "the master handed over";

fn topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 1, vips_on_link: true, sync_link: true, ..Shape::default() })
}

/// A node of a pair with a link and an instance `public`; `rest` is what else there is.
fn node(topology: &Topology, on: usize, priority: u8, rest: &str) -> Settings {
    let key = topology.lab.dir().join("keys");
    fs::write(&key, "key 1111111111111111111111111111111111111111111111111111111111111111").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (own, other) = (on + 1, 2 - on);
    let rest = format!(
        "\n[sync]\nlisten = \"10.9.0.{own}:9760\"\npeers = [\"10.9.0.{other}:9760\"]\nkey_file = \"{}\"\n\
         takeover_wait = \"60s\"\n\n\
         [[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {priority}\n\
         addresses = [\"192.0.2.10/24\"]\nadvert_interval = \"{INTERVAL:?}\"\n{rest}",
        key.display()
    );
    let www = Service::www([topology.vip4()]).nodes(&topology.backends).health("type = \"none\"");
    Settings { on, rest, interfaces: vec!["eth0".to_owned()], ..Settings::of([www]) }
}

fn grouped(priority: u8) -> String {
    format!(
        "\n[[vrrp]]\nname = \"inside\"\ninterface = \"sync0\"\nrouter_id = 52\npriority = {priority}\n\
         addresses = [\"10.9.0.10/24\"]\nadvert_interval = \"{INTERVAL:?}\"\n\n\
         [[vrrp_group]]\nname = \"site\"\nmembers = [\"public\", \"inside\"]\n"
    )
}

fn views(balancer: &Balancer<'_>) -> Vec<PairView> {
    balancer.json(&["pair"])
}

/// Every instance is in this state.
fn wait_for(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    let what = format!("{} is {state}", balancer.node.name);
    wait_until(&what, PATIENCE, || views(balancer).iter().all(|view| view.state == state))
        .inspect_err(|_| eprintln!("{:#?}\n{}", views(balancer), balancer.process().log()))
}

/// The backup has the master's state, and each knows so of the other.
fn wait_for_pair(master: &Balancer<'_>, backup: &Balancer<'_>) -> Result<()> {
    wait_for(master, "master")?;
    wait_for(backup, "backup")?;
    wait_until("the backup has the master's state", PATIENCE, || {
        views(backup).iter().all(|view| !view.waits_for_state)
    })?;
    let link = |balancer: &Balancer<'_>| balancer.lbctl(&["pair"]).contains("the same");
    wait_until("both see each other", PATIENCE, || link(master) && link(backup))?;
    // The word that the gate is open goes over the link.
    std::thread::sleep(Duration::from_millis(500));
    Ok(())
}

fn stays(balancer: &Balancer<'_>, state: &str) {
    for _ in 0..10 {
        std::thread::sleep(INTERVAL);
        assert!(views(balancer).iter().all(|view| view.state == state), "{:#?}", views(balancer));
    }
}

#[test]
fn a_group_goes_over_the_link_together() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    // Alone: there is nobody's state to wait for.
    let one = Balancer::start(&topology, node(&topology, 0, 150, &grouped(150)))?;
    wait_for(&one, "master")?;
    let two = Balancer::start(&topology, node(&topology, 1, 100, &grouped(100)))?;
    wait_for_pair(&one, &two)?;

    // Maintenance, and its end: both ways every member is handed over.
    one.lbctl(&["pair", "hold"]);
    wait_for(&two, "master")?;
    wait_for(&one, "backup")?;
    assert!(views(&two).iter().all(|view| view.reason == AGREED), "{:#?}", views(&two));
    assert!(views(&one).iter().all(|view| view.held && !view.handed_over), "{:#?}", views(&one));
    one.lbctl(&["pair", "hold", "--off"]);
    wait_for(&one, "master")?;
    wait_for(&two, "backup")?;
    assert!(views(&one).iter().all(|view| view.reason == AGREED), "{:#?}", views(&one));
    assert!(views(&two).iter().all(|view| !view.handed_over), "{:#?}", views(&two));

    // Nobody would take it.
    two.lbctl(&["pair", "hold"]);
    std::thread::sleep(Duration::from_millis(500));
    let output = one.lbctl_output(&["pair", "failover", "inside"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("On lb2 ") && error.contains(" is held"),
        "{output:?}"
    );
    stays(&one, "master");
    two.lbctl(&["pair", "hold", "--off"]);
    std::thread::sleep(Duration::from_millis(500));
    let said = one.lbctl(&["pair", "failover", "inside"]);
    assert!(said.contains("inside is handed over to the peer"), "{said}");
    wait_for(&two, "master")?;
    wait_for(&one, "backup")?;
    assert!(views(&two).iter().all(|view| view.reason == AGREED), "{:#?}", views(&two));
    assert!(views(&one).iter().all(|view| view.handed_over), "{:#?}", views(&one));
    stays(&one, "backup");
    Ok(())
}

#[test]
fn an_owner_that_handed_over_stays_backup() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let one = Balancer::start(&topology, node(&topology, 0, 255, ""))?;
    wait_for(&one, "master")?;
    let two = Balancer::start(&topology, node(&topology, 1, 100, ""))?;
    wait_for_pair(&one, &two)?;
    one.hand_over("public").expect("a hand-over");
    wait_for(&two, "master")?;
    stays(&one, "backup");
    stays(&two, "master");
    // It hears its successor, by whose silence it would be master again.
    assert!(
        views(&one).iter().all(|view| view.handed_over && view.adverts_received > 0),
        "{:#?}",
        views(&one)
    );
    drop(two);
    wait_for(&one, "master")
}
