//! What a new document of the fleet (in Debian's etcd) may move at once.

use std::time::Duration;

use lb_tests::{
    balancer::{Balancer, Settings, text},
    fleet::{Etcd, PREFIX, document, view, write},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::fleet::PutAnswer;

const PATIENCE: Duration = Duration::from_secs(40);

/// `[fleet]` of a node.
fn section(endpoint: &str) -> String {
    format!("\n[fleet]\nendpoints = [\"{endpoint}\"]\nprefix = \"{PREFIX}\"\nlease = \"3s\"\n")
}

fn connected(balancer: &Balancer<'_>) -> Result<()> {
    wait_until("etcd to answer", PATIENCE, || view(balancer).endpoint.is_some())
}

#[test]
fn a_document_stays_within_the_budget_unless_forced() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("etcd"), Need::Tool("etcdctl"));
    let topology = Topology::new(&Shape { backends: 3, ..Shape::default() })?;
    let budget = |share: &str| format!("max_disruption = \"{share}\"");
    let etcd = Etcd::start(&topology)?;
    let mut nodes: Vec<Balancer<'_>> = (0..2)
        .map(|on| {
            Balancer::start(&topology, Settings { on, rest: section(&etcd.url()), ..Settings::default() })
        })
        .collect::<Result<_>>()?;
    nodes.iter().try_for_each(connected)?;
    let put = |node: &Balancer<'_>, file: &str, more: &[&str]| -> PutAnswer {
        node.json(&[&["fleet", "put", file], more].concat())
    };
    let taken = |nodes: &[Balancer<'_>], generation, backends: usize| -> Result<()> {
        wait_until("the generation", PATIENCE, || {
            nodes.iter().all(|n| view(n).generation == Some(generation))
        })?;
        assert!(nodes.iter().all(|node| node.service("www").backends.len() == backends));
        Ok(())
    };
    let three = write(&topology, "three.toml", &document(&topology, &[0, 1, 2], &budget("10%")));
    let first = put(&nodes[0], &three, &[]).generation;
    taken(&nodes, first, 3)?;

    // Too much, also with a budget that would allow it: the running one counts.
    let two = write(&topology, "two.toml", &document(&topology, &[0, 1], &budget("100%")));
    let output = nodes[0].lbctl_output(&["fleet", "put", &two]);
    let said = text(&output.stderr);
    eprintln!("{said}");
    assert!(
        !output.status.success() && ["max_disruption", "www", "--force"].iter().all(|w| said.contains(w)),
        "{said}"
    );
    assert_eq!(view(&nodes[0]).stored_generation, Some(first), "nothing was written");

    // Past lbd: every node refuses it, and one of them takes it when it is told to.
    etcd.ctl(&["put", &format!("{PREFIX}/config"), &document(&topology, &[0, 1], &budget("10%"))]);
    wait_until("the refusals", PATIENCE, || {
        nodes.iter().all(|n| view(n).refused.is_some_and(|it| it.reason.contains("max_disruption")))
    })?;
    let stored = view(&nodes[0]).stored_generation.expect("one");
    assert!(stored > first && view(&nodes[0]).generation == Some(first));
    nodes[0].reload();
    assert!(view(&nodes[0]).refused.is_some(), "still too much");
    nodes[0].lbctl(&["reload", "--force"]);
    taken(&nodes[..1], stored, 2)?;
    assert_eq!((view(&nodes[0]).refused, view(&nodes[1]).generation), (None, Some(first)));

    // Back again, which moves as much on the node that took it; the other has had that all the time.
    let back = put(&nodes[0], &three, &["--force"]).generation;
    taken(&nodes, back, 3)?;
    assert!(nodes.iter().all(|node| view(node).refused.is_none()));

    // Forced: every node takes it, also one that was away.
    nodes[1].kill();
    let forced = put(&nodes[0], &two, &["--force"]).generation;
    taken(&nodes[..1], forced, 2)?;
    assert!(view(&nodes[0]).put_by.expect("through lbd").force);
    nodes[1].restart()?;
    taken(&nodes, forced, 2)?;
    assert_eq!(view(&nodes[1]).refusals, 0);
    Ok(())
}
