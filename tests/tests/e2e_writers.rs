//! Many writers at once: none undoes what another did, none is turned away, and the daemon does not grow.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::Requests,
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::{
    control::client::{Client, ClientError},
    model::{BackendName, ServiceName},
};

/// Clients that count, several on each key, so that each must know what the others did.
const COUNTERS: usize = 25;
const KEYS: usize = 5;
/// Clients that set weights of their own without a condition.
const SETTERS: usize = 25;
const PATIENCE: Duration = Duration::from_secs(30);
/// Increments after which the test says something, however slow the machine is.
const ENOUGH: u64 = 10;
/// What the allocator may keep between the first third and the end.
const GROWTH_KIB: u64 = 8 << 10;

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn name(key: usize) -> BackendName {
    format!("c{key}").parse().expect("a name")
}

#[derive(Default)]
struct Counts {
    increments: [AtomicU64; KEYS],
    refused: AtomicU64,
    sets: AtomicU64,
    slowest_us: AtomicU64,
}

impl Counts {
    fn increments(&self) -> u64 {
        self.increments.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// Adds one to the weight of a backend, again and again, each time only if nobody changed anything since it looked.
async fn count(client: Client, key: usize, counts: Arc<Counts>, stop: Arc<AtomicBool>) -> u64 {
    let (service, backend): (ServiceName, _) = ("counters".parse().expect("a name"), name(key));
    let mut mine = 0;
    while !stop.load(Ordering::Relaxed) {
        let view = client.changes().await.expect("a reader is answered");
        let revision = view.revision;
        let own = view.changes.iter().find(|c| c.backend.as_deref() == Some(backend.as_str()));
        // As in the file, before the first change.
        let weight =
            own.map_or(1, |c| c.change.strip_prefix("weight ").expect("a weight").parse().expect("a number"));
        let conditional = client.clone().if_revision(Some(revision));
        let asked = Instant::now();
        match conditional.backend_weight(&service, &backend, weight + 1).await {
            Ok(view) => {
                assert_eq!(view.revision, revision + 1);
                counts.increments[key].fetch_add(1, Ordering::Relaxed);
                counts.slowest_us.fetch_max(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
                mine += 1;
            }
            Err(ClientError::Answer { status, .. }) if status == 412 => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error}"),
        }
    }
    mine
}

/// Sets the weight of a backend of its own; what it was at last.
///
/// After every few it rests until somebody has counted: a condition on the revision holds only where nobody else changes
/// anything between a look and a change, and on a machine with a slow disk those are far apart.
async fn set(client: Client, number: usize, counts: Arc<Counts>, stop: Arc<AtomicBool>) -> u16 {
    let mut counted = 0;
    let service: ServiceName = if number < 3 { "www" } else { "setters" }.parse().expect("a name");
    let backend = if number < 3 { format!("web{}", number + 1) } else { format!("s{number}") };
    let backend: BackendName = backend.parse().expect("a name");
    let mut weight = 50;
    for sets in 1.. {
        while sets % 4 == 0 && counts.increments() <= counted && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        counted = counts.increments();
        if stop.load(Ordering::Relaxed) {
            break;
        }
        weight = 50 + (weight + 37) % 100;
        let asked = Instant::now();
        client.backend_weight(&service, &backend, weight).await.expect("a writer is answered");
        counts.slowest_us.fetch_max(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
        counts.sets.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100 + 13 * number as u64)).await;
    }
    weight
}

#[test]
fn fifty_writers_lose_nothing_while_traffic_flows() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let seconds = std::env::var("LBD_WRITERS_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let vip = topology.vip4();
    let www = Service::www([vip]).nodes(&topology.backends).extra("ring_size = 1009");
    let filler = |service: &str, port, letter: &str, count: usize, net: u8| {
        let service = Service::www([vip]).name(service).port(port).extra("ring_size = 1009");
        (0..count).fold(service, |service, n| {
            service.backend(&format!("{letter}{n}"), [10, 66, net, n as u8 + 1], 1)
        })
    };
    let services = [www, filler("counters", 81, "c", KEYS, 0), filler("setters", 82, "s", SETTERS, 1)];
    let mut balancer = Balancer::prepare(&topology, Settings::of(services))?;
    balancer.node.ns.ip("route add unreachable 10.66.0.0/16\n")?;
    // What the test measures is not the log.
    let mut command = balancer.node.ns.command(lb_tests::balancer::program("lbd"));
    command.arg("--config").arg(balancer.config_file()).env_remove("RUST_LOG");
    balancer.restart_with(command)?;
    let pid = balancer.process().pid();
    let first = balancer.status().revision;

    let load = Requests::to(SocketAddr::new(vip, 80))
        .concurrency(4)
        .timeout(PATIENCE)
        .pause(Duration::from_millis(5))
        .start(&topology.client.ns);
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let client = Client::new(balancer.socket());
    let shared = || (client.clone(), Arc::clone(&counts), Arc::clone(&stop));
    let counters: Vec<_> = (0..COUNTERS)
        .map(|n| {
            let (client, counts, stop) = shared();
            runtime.spawn(count(client, n % KEYS, counts, stop))
        })
        .collect();
    let setters: Vec<_> = (0..SETTERS)
        .map(|n| {
            let (client, counts, stop) = shared();
            runtime.spawn(set(client, n, counts, stop))
        })
        .collect();
    std::thread::sleep(Duration::from_secs(seconds) / 3);
    let early = rss_kib(pid);
    std::thread::sleep(Duration::from_secs(seconds) * 2 / 3);
    let late = rss_kib(pid);
    let enough = || counts.increments() >= ENOUGH && counts.refused.load(Ordering::Relaxed) > 0;
    wait_until("somebody counted, and somebody came in between", 4 * PATIENCE, enough)?;
    stop.store(true, Ordering::Relaxed);
    let mine: Vec<u64> =
        counters.into_iter().map(|task| runtime.block_on(task).expect("no request failed")).collect();
    let weights: Vec<u16> =
        setters.into_iter().map(|task| runtime.block_on(task).expect("no request failed")).collect();
    let report = load.stop();

    let increments: Vec<u64> = counts.increments.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    let (total, refused) = (increments.iter().sum::<u64>(), counts.refused.load(Ordering::Relaxed));
    let sets = counts.sets.load(Ordering::Relaxed);
    eprintln!(
        "{seconds} s: {total} increments, {refused} refused and repeated, {sets} sets ({} changes/s), slowest {} ms; \
         RSS {early} -> {late} KiB; {} web requests answered",
        (total + sets) / seconds,
        counts.slowest_us.load(Ordering::Relaxed) / 1_000,
        report.ok()
    );
    report.assert_all_answered();
    assert!(refused > 0, "nobody ever came in between: the test proves nothing");
    assert!(total >= ENOUGH && mine.iter().sum::<u64>() == total, "{mine:?}");
    let of = |service: &str, backend: &str| {
        let view = balancer.service(service);
        view.backends.iter().find(|b| b.name == backend).expect("the backend").weight
    };
    for (key, count) in increments.iter().enumerate() {
        assert_eq!(
            u64::from(of("counters", &format!("c{key}"))),
            1 + count,
            "no increment of c{key} is lost"
        );
    }
    for (number, weight) in weights.iter().enumerate().skip(3) {
        assert_eq!(of("setters", &format!("s{number}")), *weight);
    }
    // A set of the weight that a backend has already is no change, and counts for none.
    let revision = balancer.status().revision;
    assert!(revision - first <= total + sets && revision - first >= total, "{first} -> {revision}");
    assert!(late <= early + GROWTH_KIB, "the daemon grew from {early} KiB to {late} KiB");
    Ok(())
}
