//! The sync link between two nodes: who may talk, and the master's role that goes over it without an outage.

use std::{
    fs,
    net::{IpAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    client,
    failover::prober::{Outage, Prober, Way},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::{link::SyncView, pair::PairView};
use nix::sys::signal::Signal;

/// Far more than anything takes, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
const VIP: &str = "192.0.2.10";
const PERIOD: Duration = Duration::from_millis(1);
/// Runs of each kind, of which the median counts.
const RUNS: usize = 3;
/// What a change of master that is agreed may cost on a machine that is busy with other things; on an idle one it is
/// none at all. A polite stop of keepalived costs ten times that.
const AGREED: Duration = Duration::from_millis(60);

fn topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 2, vips_on_link: true, sync_link: true, ..Shape::default() })
}

/// A file of keys that only root may read.
fn keys(topology: &Topology, name: &str, lines: &[&str]) -> PathBuf {
    let path = topology.lab.dir().join(name);
    fs::write(&path, lines.join("\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

const OLD: &str = "old 1111111111111111111111111111111111111111111111111111111111111111";
const NEW: &str = "new 2222222222222222222222222222222222222222222222222222222222222222";
const OTHER: &str = "other 3333333333333333333333333333333333333333333333333333333333333333";

/// A node of the pair: number, priority, interval of the advertisements, keys, further lines of `[sync]`.
fn node(
    topology: &Topology,
    on: usize,
    priority: u8,
    interval: &str,
    keys: &std::path::Path,
    extra: &str,
) -> Settings {
    let www = Service::www([topology.vip4()]).nodes(&topology.backends);
    let (own, other) = (on + 1, 2 - on);
    let rest = format!(
        "\n[sync]\nlisten = \"10.9.0.{own}:9760\"\npeers = [\"10.9.0.{other}:9760\"]\nkey_file = \"{}\"\n{extra}\n\
         [[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {priority}\n\
         addresses = [\"{VIP}/24\"]\nadvert_interval = \"{interval}\"\n",
        keys.display()
    );
    // The kernel of the node that has the address answers, and no other.
    let node = "answer_ping = false\n".to_owned();
    Settings { on, rest, node, interfaces: vec!["eth0".to_owned()], ..Settings::of([www]) }
}

fn pair(balancer: &Balancer<'_>) -> PairView {
    let views: Vec<PairView> = balancer.json(&["pair"]);
    views.into_iter().next().expect("one instance")
}

fn link(balancer: &Balancer<'_>) -> SyncView {
    let metrics =
        client::get(&balancer.node.ns, "127.0.0.1:9750".parse().unwrap(), "/api/snapshot.json", PATIENCE);
    let snapshot: serde_json::Value = serde_json::from_slice(&metrics.expect("a snapshot").body).unwrap();
    serde_json::from_value(snapshot["link"].clone()).expect("a link")
}

fn rejected(balancer: &Balancer<'_>, reason: &str) -> u64 {
    link(balancer).rejected.iter().find(|row| row.reason == reason).expect("a reason").packets
}

fn wait_for_state(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    let what = format!("{} is {state}", balancer.node.name);
    wait_until(&what, PATIENCE, || pair(balancer).state == state)
        .inspect_err(|_| eprintln!("{:?}\n{}", pair(balancer), balancer.process().log()))
}

fn wait_for_peer(balancer: &Balancer<'_>, peer: &str) -> Result<()> {
    let what = format!("{} sees {peer} and its heartbeats", balancer.node.name);
    let there = |view: &SyncView| {
        view.peers.iter().any(|p| p.name == peer && p.beating == Some(true) && !p.services_hash.is_empty())
    };
    wait_until(&what, PATIENCE, || there(&link(balancer)))
        .inspect_err(|_| eprintln!("{:?}\n{}", link(balancer), balancer.process().log()))
}

fn median(mut seen: Vec<Outage>, what: &str) -> Duration {
    seen.sort_by_key(Outage::sure);
    let shown = |seen: &Outage| format!("{:.1?} ({} lost, {:.1?} late)", seen.sure(), seen.lost, seen.late);
    eprintln!("{what}: {}", seen.iter().map(shown).collect::<Vec<_>>().join(", "));
    seen[seen.len() / 2].sure()
}

/// What a client sees while something is done, and a second longer.
fn watch(topology: &Topology, deed: impl FnOnce() -> Result<()>) -> Result<Outage> {
    let vip: IpAddr = VIP.parse().unwrap();
    lb_tests::lab::ping(&topology.client.ns, vip, 8, PATIENCE)?;
    let prober = Prober::start(&topology.client.ns, Way::Ping(vip), PERIOD).expect("a prober");
    std::thread::sleep(Duration::from_millis(300));
    deed()?;
    std::thread::sleep(Duration::from_secs(1));
    let trace = prober.stop();
    assert!(!trace.answers.is_empty(), "no request was answered");
    Ok(trace.outage(PERIOD))
}

#[test]
fn a_planned_change_of_master_costs_nothing() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let keys = keys(&topology, "keys", &[OLD]);
    // An interval of a second: nothing of it is waited for.
    let mut one = Balancer::start(&topology, node(&topology, 0, 150, "1s", &keys, ""))?;
    let two = Balancer::start(&topology, node(&topology, 1, 100, "1s", &keys, ""))?;
    wait_for_peer(&one, "lb2")?;
    wait_for_peer(&two, "lb1")?;
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;

    let (mut stops, mut returns, mut failovers, mut backs) = (vec![], vec![], vec![], vec![]);
    let mut asked = 0;
    for _ in 0..RUNS {
        // By the operator, and back by the end of it.
        failovers.push(watch(&topology, || {
            one.hand_over("public").expect("a hand-over");
            assert_eq!(pair(&one).state, "backup", "the answer comes when it is done");
            wait_for_state(&two, "master")
        })?);
        assert_eq!(pair(&two).reason, "the master handed over");
        assert!(pair(&one).handed_over);
        backs.push(watch(&topology, || {
            two.lbctl(&["pair", "hold"]);
            wait_for_state(&one, "master")
        })?);
        two.lbctl(&["pair", "hold", "off"]);
        // A stop, and the return of the better node.
        stops.push(watch(&topology, || {
            let begun = Instant::now();
            one.stop()?;
            eprintln!("a stop took {:?}", begun.elapsed());
            wait_for_state(&two, "master")
        })?);
        assert_eq!(pair(&two).reason, "the master handed over");
        returns.push(watch(&topology, || {
            one.restart()?;
            wait_for_peer(&two, "lb1")?;
            wait_for_state(&one, "master")
        })?);
        match pair(&one).reason.as_str() {
            "the master handed over" => asked += 1,
            // The start of a daemon, which loads its program, keeps both nodes' threads waiting on a busy machine.
            "the master's heartbeats have ended" => {}
            other => panic!("the better node asks for it: {other}"),
        }
        assert!(!pair(&two).handed_over, "it would take over again if the other's priority fell");
        wait_for_state(&two, "backup")?;
    }
    for (seen, what) in
        [(failovers, "pair failover"), (backs, "pair hold"), (stops, "SIGTERM"), (returns, "preemption")]
    {
        let median = median(seen, what);
        assert!(median <= AGREED, "{what}: {median:?}");
    }
    // No master heard another one, nor did anybody take over by itself.
    assert!(asked * 2 > RUNS, "{asked} of {RUNS} returns were agreed");
    if asked == RUNS {
        assert_eq!((pair(&one).split_brains, pair(&two).split_brains), (0, 0));
    }
    one.stop()
}

#[test]
fn heartbeats_tell_of_a_dead_master_long_before_the_advertisements() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let keys = keys(&topology, "keys", &[OLD]);
    let one = Balancer::start(&topology, node(&topology, 0, 150, "1s", &keys, "heartbeat = \"20ms\""))?;
    let two = Balancer::start(&topology, node(&topology, 1, 100, "1s", &keys, "heartbeat = \"20ms\""))?;
    wait_for_peer(&one, "lb2")?;
    wait_for_peer(&two, "lb1")?;
    wait_for_state(&one, "master")?;
    wait_until("the backup hears the master", PATIENCE, || pair(&two).master.is_some())?;

    // The link's own network is cut: the master lives, as the heartbeats over the other one tell.
    topology.lb[0].ns.ip("link set sync0 down\n")?;
    wait_until("the connection has ended", PATIENCE, || link(&two).peers.is_empty())?;
    assert_eq!((pair(&one).state.as_str(), pair(&two).state.as_str()), ("master", "backup"));
    topology.lb[0].ns.ip("link set sync0 up\n")?;
    wait_for_peer(&one, "lb2")?;
    wait_for_peer(&two, "lb1")?;
    assert_eq!(pair(&two).transitions.get("master"), Some(&0), "{:?}", pair(&two));

    // It hangs: three heartbeats and a bit, not three advertisements.
    let begun = Instant::now();
    one.process().signal(Signal::SIGSTOP);
    wait_for_state(&two, "master")?;
    let (took, why) = (begun.elapsed(), pair(&two).reason);
    // Awake, it is the better node again.
    one.process().signal(Signal::SIGCONT);
    eprintln!("a hang was noticed within {took:?}");
    assert_eq!(why, "the master's heartbeats have ended");
    assert!(took < Duration::from_millis(2500), "{took:?}: as late as by three advertisements");
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")
}

#[test]
fn keys_decide_who_may_talk_and_change_without_a_gap() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let (first, second) = (keys(&topology, "keys1", &[OLD]), keys(&topology, "keys2", &[OTHER]));
    let one = Balancer::start(&topology, node(&topology, 0, 150, "1s", &first, ""))?;
    let two = Balancer::start(&topology, node(&topology, 1, 100, "1s", &second, ""))?;
    // A wrong key: counted, said, of no effect.
    wait_until("the wrong key is counted", PATIENCE, || rejected(&one, "key") > 0)?;
    wait_until("the other node says why", PATIENCE, || {
        two.lbctl(&["pair"])
            .contains("no peer at 10.9.0.1:9760: the peer closed the connection at the handshake")
    })?;
    assert!(link(&one).peers.is_empty() && link(&two).peers.is_empty());
    assert!(one.process().log().contains("sync: refused"));
    assert!(two.lbctl(&["status"]).contains("no sync link to 10.9.0.1:9760"));

    // The right one, by a reload.
    keys(&topology, "keys2", &[OLD]);
    two.reload();
    wait_for_peer(&one, "lb2")?;
    wait_for_peer(&two, "lb1")?;
    let shown = one.lbctl(&["pair"]);
    assert!(shown.contains("lb2") && shown.contains("the same") && shown.contains("old"), "{shown}");
    let since = |balancer: &Balancer<'_>| link(balancer).peers[0].since;
    let key = |balancer: &Balancer<'_>| link(balancer).peers[0].key.clone();
    let before = (since(&one), since(&two));

    // The next one is known to both, then used, then the old one goes. The connection is the same all the time.
    for lines in [&[OLD, NEW][..], &[NEW, OLD], &[NEW]] {
        for (balancer, name) in [(&one, "keys1"), (&two, "keys2")] {
            keys(&topology, name, lines);
            balancer.reload();
        }
        let wanted = lines[0].split(' ').next().unwrap();
        wait_until(&format!("{wanted} is in use"), PATIENCE, || key(&one) == wanted && key(&two) == wanted)?;
    }
    // A link that only refused the old one would end it within that time.
    std::thread::sleep(Duration::from_secs(16));
    assert_eq!((since(&one), since(&two)), before, "no gap");

    // Others may read the file: the reload is refused, and the link goes on.
    fs::set_permissions(&first, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = one.lbctl_output(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("chmod 600"), "{said}");
    fs::set_permissions(&first, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(key(&one), "new");

    // Strangers: what they send is counted, and there is room for the peer whatever they do.
    let strangers: Vec<TcpStream> = topology.lb[1].ns.run(|| {
        let connect = || TcpStream::connect_timeout(&"10.9.0.1:9760".parse().unwrap(), PATIENCE);
        (0..40).filter_map(|_| connect().ok()).collect()
    });
    wait_until("too many are refused", PATIENCE, || rejected(&one, "busy") > 0)?;
    wait_until("those that say nothing are", PATIENCE, || rejected(&one, "timeout") > 0)?;
    drop(strangers);
    assert_eq!((since(&one), since(&two)), before);

    // Services that differ are seen on both nodes.
    one.lbctl(&["backend", "weight", "www", &topology.backends[0].name, "7"]);
    for balancer in [&one, &two] {
        wait_until("the difference is shown", PATIENCE, || {
            balancer.lbctl(&["pair"]).contains("DIFFERENT")
                && balancer.lbctl(&["status"]).contains("are configured otherwise")
        })?;
    }
    Ok(())
}
