//! A fleet that takes its configuration from etcd (Debian's), and elects who has the word in it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Settings, text, web_servers},
    client::Requests,
    fleet::{Etcd, LEASE, PREFIX, document, view, write},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::fleet::FleetDocument;

const PATIENCE: Duration = Duration::from_secs(40);

/// A node without services of its own.
fn settings(on: usize, etcd: &str) -> Settings {
    let seconds = LEASE.as_secs();
    // Nobody listens at the first one: every node has to find the second.
    let rest = format!(
        "\n[fleet]\nendpoints = [\"http://127.0.0.1:9\", \"{etcd}\"]\nprefix = \"{PREFIX}\"\nlease = \"{seconds}s\"\n"
    );
    Settings { on, rest, ..Settings::default() }
}

/// All have the generation that is in etcd, and the same of everything.
fn agree(balancers: &[Balancer<'_>], generation: u64) -> Result<()> {
    let all = balancers.len();
    wait_until(&format!("generation {generation} on {all} nodes"), PATIENCE, || {
        balancers.iter().all(|balancer| {
            let view = view(balancer);
            let alike = |node: &lb_userspace::control::fleet::FleetNode| {
                node.generation == generation && node.same_services && node.same_rings
            };
            view.generation == Some(generation) && view.nodes.len() == all && view.nodes.iter().all(alike)
        })
    })
    .inspect_err(|_| {
        for balancer in balancers {
            eprintln!("{}", balancer.lbctl(&["fleet"]));
        }
    })
}

/// Those that say that they are the authority.
fn holders<'b>(balancers: &'b [Balancer<'_>]) -> Vec<&'b str> {
    let mine = balancers.iter().filter(|balancer| view(balancer).authority.mine);
    mine.map(|balancer| balancer.node.name.as_str()).collect()
}

#[test]
fn services_come_from_etcd_and_stay_without_it() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("etcd"), Need::Tool("etcdctl"));
    let topology = Topology::new(&Shape { backends: 3, more_balancers: 1, ..Shape::default() })?;
    let _web = web_servers(&topology, 0)?;
    let mut etcd = Etcd::start(&topology)?;
    let mut balancers: Vec<Balancer<'_>> =
        (0..3).map(|on| Balancer::start(&topology, settings(on, &etcd.url()))).collect::<Result<_>>()?;
    wait_until("three nodes", PATIENCE, || view(&balancers[0]).nodes.len() == 3)?;
    assert_eq!(balancers[0].status().services, 0);
    let found: FleetDocument = balancers[0].json(&["fleet", "get"]);
    assert_eq!((found.generation, found.text.as_str()), (0, ""));

    // The first document, through one of them.
    let file = write(&topology, "fleet.toml", &document(&topology, &[0, 1], ""));
    let said = balancers[1].lbctl(&["fleet", "put", &file]);
    assert!(said.contains("/lbd/test/config: generation ") && !said.contains("warning"), "{said}");
    let first = view(&balancers[1]).stored_generation.unwrap_or_else(|| {
        wait_until("the watch", PATIENCE, || view(&balancers[1]).stored_generation.is_some()).expect("soon");
        view(&balancers[1]).stored_generation.expect("some")
    });
    agree(&balancers, first)?;
    let target = SocketAddr::new(topology.vip4(), 80);
    balancers[0].wait_for_backend("next hops", "www", "web2", PATIENCE, |b| b.reachable && b.slots > 0)?;
    let report = Requests::to(target).run(&topology.client.ns, 60);
    report.assert_all_answered();
    assert!(report.count("web1") > 0 && report.count("web2") > 0, "{report}");
    let config = balancers[2].config();
    let name = config.settings.iter().find(|s| s.key == "service.www.name").expect("it is there");
    assert_eq!(name.origin, "fleet");
    assert_eq!(config.places["service.www.name"], format!("etcd:/lbd/test/config@{first}:4"));

    // From here on requests are answered, whatever happens.
    let load = Requests::to(target).pause(Duration::from_millis(20)).start(&topology.client.ns);

    // Nonsense does not get into etcd, nor does what was made from an older document.
    let refused = |balancer: &Balancer<'_>, arguments: &[&str], why: &[&str]| {
        let output = balancer.lbctl_output(arguments);
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && why.iter().all(|why| said.contains(why)),
            "{arguments:?}: {said}"
        );
    };
    let bad = write(&topology, "bad.toml", "[[service]]\nname = \"www\"\nprot = 80\n");
    refused(&balancers[0], &["fleet", "put", &bad], &["bad.toml:3:1: ", "unknown key 'prot'"]);
    let own = write(&topology, "own.toml", "[node]\ninterfaces = [\"eth0\"]\n");
    refused(
        &balancers[0],
        &["fleet", "put", &own],
        &["each node has its own: write it in the node's lbd.toml"],
    );
    refused(
        &balancers[0],
        &["fleet", "put", &file, "--if-generation", "1"],
        &["somebody has changed it since"],
    );

    // Two edit the document that they have read: the second one is told so.
    let read = balancers[0].lbctl(&["fleet", "get"]);
    let one = write(&topology, "one.toml", &format!("{read}# one\n"));
    let two = write(&topology, "two.toml", &format!("{read}# two\n"));
    balancers[0].lbctl(&["fleet", "put", &one]);
    refused(&balancers[1], &["fleet", "put", &two], &["somebody has changed it since"]);

    // A change reaches all.
    let three = write(&topology, "three.toml", &document(&topology, &[0, 1, 2], ""));
    let said: lb_userspace::control::fleet::PutAnswer = balancers[2].json(&["fleet", "put", &three]);
    assert_eq!(said.warnings, Vec::<String>::new());
    agree(&balancers, said.generation)?;
    assert!(balancers.iter().all(|balancer| balancer.service("www").backends.len() == 3));
    assert_eq!(view(&balancers[0]).put_by.expect("it came through lbd").node, "lb3");

    // What somebody writes past lbd is refused by all of them, and told.
    etcd.ctl(&["put", &format!("{PREFIX}/config"), "[[service]]\nname = 7\n"]);
    wait_until("the refusal", PATIENCE, || {
        balancers.iter().all(|b| view(b).refused.is_some_and(|it| it.reason.contains("name = 7")))
    })?;
    wait_until("the others' refusals", PATIENCE, || {
        view(&balancers[0]).nodes.iter().all(|node| node.refused.is_some())
    })?;
    let now = view(&balancers[0]);
    assert_eq!((now.generation, now.refusals), (Some(said.generation), 1));
    assert!(now.stored_generation > now.generation);
    assert_eq!(balancers[0].service("www").backends.len(), 3);
    balancers[0].reload();
    assert!(view(&balancers[0]).refused.is_some(), "a reload does not make it better");

    // Without etcd everything goes on, also over a restart.
    etcd.kill();
    wait_until("the loss to be seen", PATIENCE, || view(&balancers[0]).endpoint.is_none())?;
    balancers[0].lbctl(&["backend", "weight", "www", "web1", "50"]);
    balancers[0].lbctl(&["backend", "weight", "www", "web1", "100"]);
    let output = balancers[0].lbctl_output(&["fleet", "put", &file]);
    assert!(!output.status.success(), "there is no etcd to put it into");
    balancers[0].kill();
    let begun = Instant::now();
    balancers[0].restart()?;
    eprintln!("a start from the last good copy took {:.1?}", begun.elapsed());
    let alone = view(&balancers[0]);
    assert_eq!((alone.generation, alone.from_copy), (Some(said.generation), true));
    assert!(alone.error.is_some() && alone.authority.holder.is_none(), "{alone:?}");
    assert_eq!(balancers[0].service("www").backends.len(), 3);
    let shown = balancers[0].lbctl(&["fleet"]);
    assert!(shown.contains("(the last good copy on disk)") && shown.contains("not connected: "), "{shown}");

    // etcd comes back, and with it a new generation.
    etcd.again()?;
    wait_until("etcd to be found again", PATIENCE, || balancers.iter().all(|b| view(b).endpoint.is_some()))?;
    let said: lb_userspace::control::fleet::PutAnswer = balancers[0].json(&["fleet", "put", &file]);
    agree(&balancers, said.generation)?;
    assert_eq!(balancers[0].service("www").backends.len(), 2);
    assert!(!view(&balancers[0]).from_copy);

    // A history that is gone is no harm: everything is read anew.
    etcd.ctl(&["compact", &said.generation.to_string()]);
    let said: lb_userspace::control::fleet::PutAnswer = balancers[1].json(&["fleet", "put", &three]);
    agree(&balancers, said.generation)?;

    let report = load.stop();
    report.assert_all_answered();
    Ok(())
}

#[test]
fn one_node_has_the_word_and_never_two() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("etcd"), Need::Tool("etcdctl"));
    let topology = Topology::new(&Shape { backends: 1, more_balancers: 1, ..Shape::default() })?;
    let mut etcd = Etcd::start(&topology)?;
    let mut balancers: Vec<Balancer<'_>> =
        (0..3).map(|on| Balancer::start(&topology, settings(on, &etcd.url()))).collect::<Result<_>>()?;
    let elected = |balancers: &[Balancer<'_>], patience: Duration| -> Result<(usize, u64)> {
        let begun = Instant::now();
        wait_until("an authority that all know", patience, || {
            let one = holders(balancers);
            assert!(one.len() <= 1, "two at once: {one:?}");
            one.len() == 1 && balancers.iter().all(|b| view(b).authority.holder.as_deref() == Some(one[0]))
        })?;
        let holder = balancers.iter().position(|b| view(b).authority.mine).expect("one");
        let authority = view(&balancers[holder]).authority;
        eprintln!(
            "{} has the word after {:.1?}, epoch {}",
            balancers[holder].node.name,
            begun.elapsed(),
            authority.epoch
        );
        Ok((holder, authority.epoch))
    };
    let (first, epoch) = elected(&balancers, PATIENCE)?;

    // Killed: another one, once the lease has ended.
    let mut dead = balancers.remove(first);
    dead.kill();
    // How long etcd takes, and some time for a busy machine to ask three daemons.
    let (second, later) = elected(&balancers, LEASE + Duration::from_secs(1) + Duration::from_secs(2))?;
    assert!(later > epoch, "epochs grow: {epoch}, {later}");

    // Stopped politely: at once.
    let mut polite = balancers.remove(second);
    let begun = Instant::now();
    polite.stop()?;
    let stopped = begun.elapsed();
    let (_, last) = elected(&balancers, PATIENCE)?;
    let took = begun.elapsed();
    eprintln!("handed over within {took:.1?}, of which the end of the daemon took {stopped:.1?}");
    assert!(last > later && took < stopped + LEASE / 2, "the lease was given back: {took:?}");
    wait_until("the stopped node to be gone", PATIENCE, || view(&balancers[0]).nodes.len() == 1)?;

    // Without etcd nobody is it, no later than the lease would end.
    let begun = Instant::now();
    etcd.kill();
    wait_until("the word to be given up", PATIENCE, || !view(&balancers[0]).authority.mine)?;
    let took = begun.elapsed();
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    let authority = view(&balancers[0]).authority;
    assert_eq!((authority.holder, authority.epoch), (None, last), "the epoch is remembered");
    etcd.again()?;
    dead.restart()?;
    balancers.push(dead);
    let (_, again) = elected(&balancers, PATIENCE)?;
    assert!(again >= last);
    Ok(())
}
