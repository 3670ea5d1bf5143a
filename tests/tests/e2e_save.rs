//! Runtime changes written back into the configuration: the file says them, and nothing moves.

use std::{collections::BTreeMap, fs, time::Duration};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    lab::{Result, Shape, Topology},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Which backend each of many flows goes to.
fn choices(balancer: &Balancer<'_>, vip: &str) -> BTreeMap<u16, Option<String>> {
    let flow = |port: u16| (port, balancer.explain("tcp", &format!("198.51.100.7:{port}"), vip).backend);
    (4000..4060).map(flow).collect()
}

#[test]
fn changes_are_saved_and_no_flow_moves() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 4, ..Shape::default() })?;
    let settings = Settings::of([Service::www([topology.vip4()]).nodes(&topology.backends[..3])]);
    let balancer = Balancer::start(&topology, settings)?;
    let file = balancer.config_file();
    // The service in a file of its own, with a comment.
    let text = balancer.config_text();
    let at = text.find("[[service]]").expect("a service");
    let directory = file.parent().expect("a directory").join("conf.d");
    fs::create_dir_all(&directory).expect("a directory");
    fs::write(directory.join("www.toml"), format!("# The web.\n{}", &text[at..])).expect("written");
    balancer.write_text(&format!("include = \"conf.d/*.toml\"\n{}", &text[..at]))?;
    assert!(balancer.lbctl(&["reload", "--plan"]).contains("nothing would change"));
    balancer.reload();
    let config = balancer.config();
    let place = &config.places["service.www.port"];
    assert!(place.contains("conf.d/www.toml:"), "{place}");

    let web4 = topology.backends[3].v4.to_string();
    balancer.lbctl(&["backend", "add", "www", "web4", &web4]);
    balancer.wait_for_backend("web4's next hop", "www", "web4", PATIENCE, |b| b.reachable && b.slots > 0)?;
    balancer.lbctl(&["backend", "weight", "www", "web1", "250"]);
    balancer.lbctl(&["backend", "remove", "www", "web2"]);
    balancer.lbctl(&["backend", "drain", "www", "web3"]);
    let vip = format!("{}:80", topology.vip4());
    let shares = || {
        balancer.service("www").backends.into_iter().map(|b| (b.name, b.slots, b.weight)).collect::<Vec<_>>()
    };
    let (before, hash, flows) = (shares(), balancer.status().config_hash, choices(&balancer, &vip));
    assert_eq!(balancer.status().runtime_changes, 4);

    let printed = balancer.lbctl(&["save", "--print"]);
    assert!(printed.starts_with("# The web.\n") && printed.contains("weight = 250"), "{printed}");
    assert_eq!(balancer.status().runtime_changes, 4, "printing changes nothing");
    let said = balancer.lbctl(&["save"]);
    assert!(said.starts_with("3 runtime changes saved\n"), "{said}");
    assert!(said.contains("kept as a runtime change: service 'www', backend 'web3': draining"), "{said}");
    let saved = fs::read_to_string(directory.join("www.toml")).expect("text");
    assert_eq!(saved, printed);
    assert!(fs::read_to_string(directory.join("www.toml.bak")).expect("text").contains("web2"));

    let same = |when: &str| {
        assert_eq!(shares(), before, "{when}");
        assert_eq!(balancer.status().config_hash, hash, "{when}");
        assert_eq!(balancer.status().runtime_changes, 1, "{when}");
        assert_eq!(choices(&balancer, &vip), flows, "{when}");
    };
    same("after save");
    let view = balancer.reload();
    assert!(view.changes.is_empty(), "{view:?}");
    same("after a reload");
    assert!(balancer.lbctl(&["save"]).starts_with("no runtime change to save\n"));

    // Somebody else was at the file meanwhile: nothing of theirs is taken for lbd's, and nothing is lost.
    balancer.lbctl(&["backend", "weight", "www", "web1", "80"]);
    fs::write(directory.join("www.toml"), saved.replace("weight = 250", "weight = 40")).expect("written");
    let refused = balancer.lbctl_output(&["save"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("someone has changed it since"));
    assert_eq!(balancer.status().runtime_changes, 2);
    Ok(())
}
