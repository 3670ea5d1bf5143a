//! The control plane at its largest: 4,096 services of 16 backends each.
//!
//! The bars are those of an optimized daemon (`LBD_BIN_DIR=target/release`). An unoptimized one has more time. Time is that of the
//! clock where the machine does little else, and the CPU time of the daemon where it is busy: others' work is not the
//! daemon's.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use lb_common::abi::{BackendEntry, Identity};
use lb_tests::{
    balancer::{Balancer, Service, Settings, program},
    client,
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::{
    control::client::Client,
    control::request::NewBackend,
    model::{Admin, BackendName, ServiceName},
    plan::name_of,
};

const SERVICES: usize = 4096;
const BACKENDS: usize = 16;
const CHANGES: usize = 1200;
/// Changes while others list and scrape.
const BESIDE: usize = 300;
const RELOADS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(120);

/// What may be asked of the daemon under test.
struct Bars {
    /// From the start until it serves; on a busy machine the CPU time of its busiest thread.
    load: Duration,
    /// From a change's request to its answer, of 99 in 100; on a busy machine the CPU time of one on average.
    change: Duration,
    /// The same while somebody lists everything and scrapes all the time.
    beside: Duration,
    /// Resident, in MiB.
    memory: u64,
}

fn bars() -> Bars {
    if program("lbd").components().any(|part| part.as_os_str() == "release") {
        Bars {
            load: Duration::from_secs(2),
            change: Duration::from_millis(20),
            beside: Duration::from_millis(50),
            memory: 150,
        }
    } else {
        // Unoptimized code takes ten to twenty times as long, and its program text is larger.
        Bars {
            load: Duration::from_secs(60),
            change: Duration::from_millis(400),
            beside: Duration::from_secs(1),
            memory: 250,
        }
    }
}

fn vip(service: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 100 + u8::try_from(service / 256).expect("few addresses"))
}

/// Every backend is a host of its own, behind one gateway.
fn address(service: usize, backend: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(
        u32::from_be_bytes([10, 128, 0, 0]) + u32::try_from(service * 32 + backend + 1).unwrap(),
    )
}

fn services(health: &str) -> Vec<Service> {
    (0..SERVICES)
        .map(|s| {
            let port = 10_000 + u16::try_from(s % 256).expect("a port");
            let service = Service::www([vip(s).into()]).name(&format!("s{s}")).port(port).health(health);
            (0..BACKENDS).fold(service, |service, b| service.backend(&format!("web{b}"), address(s, b), 100))
        })
        .collect()
}

/// A line of `/proc/PID/status`, in KiB.
fn resident(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

fn memory(pid: u32) -> String {
    let mut text = String::new();
    for name in ["VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM"] {
        let _ = write!(text, "{name} {:.1} MiB  ", resident(pid, name) as f64 / 1024.0);
    }
    text
}

/// True if others want the CPUs, too: more than one process was ready in the last minute, on average.
fn busy() -> bool {
    let load = fs::read_to_string("/proc/loadavg").expect("the kernel tells");
    load.split_whitespace().next().and_then(|load| load.parse::<f64>().ok()).is_none_or(|load| load > 1.0)
}

/// The time that counts.
fn fair(wall: Duration, cpu: Duration) -> Duration {
    if busy() { cpu } else { wall }
}

/// What the busiest thread of a process has used of the CPUs.
fn busiest(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon runs");
    threads.map(|thread| cpu_of(&thread.expect("a thread").path())).max().expect("a thread")
}

/// What a process has used of the CPUs.
fn cpu(pid: u32) -> Duration {
    cpu_of(Path::new(&format!("/proc/{pid}")))
}

fn cpu_of(dir: &Path) -> Duration {
    let stat = fs::read_to_string(dir.join("stat")).expect("the daemon runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    // utime and stime, the 14th and 15th of proc(5), in ticks of 10 ms.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// The backends as the maps have them.
struct Backends {
    names: Array<MapData, Identity>,
    entries: Array<MapData, BackendEntry>,
}

impl Backends {
    fn open(pins: &Path) -> Self {
        let open = |name: &str| {
            let dir = fs::read_dir(pins).expect("pins").map(|e| e.expect("an entry").path());
            let dir: Vec<PathBuf> = dir.filter(|p| p.join("BACKENDS").exists()).collect();
            Map::Array(MapData::from_pin(dir[0].join(name)).expect("a pinned map"))
        };
        Self {
            names: Array::try_from(open("BACKEND_NAMES")).expect("an array"),
            entries: Array::try_from(open("BACKENDS")).expect("an array"),
        }
    }

    fn find(&self, service: usize, backend: usize) -> u32 {
        let octets = address(service, backend).octets();
        let is = |id: &u32| self.entries.get(id, 0).is_ok_and(|e| e.kind != 0 && e.outer_dst[..4] == octets);
        (1..self.entries.len()).find(is).expect("the backend is in the maps")
    }
}

/// 50th and 99th of a hundred, and the longest.
fn percentiles(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    [at(50), at(99), times[times.len() - 1]]
}

/// Starts the daemon and says how long that took.
fn load(balancer: &mut Balancer<'_>, what: &str) -> Result<Duration> {
    let begun = Instant::now();
    balancer.restart_with({
        let mut command = balancer.node.ns.command(program("lbd"));
        command.arg("--config").arg(balancer.config_file()).args(["--log", "info"]).env_remove("RUST_LOG");
        command
    })?;
    let pid = balancer.process().pid();
    let (wall, used, busiest) = (begun.elapsed(), cpu(pid), busiest(pid));
    let status = balancer.status();
    assert_eq!((status.services, status.backends), (SERVICES, SERVICES * BACKENDS));
    eprintln!("{what}: {wall:?}, {used:?} of CPU time, {busiest:?} of one thread; {}", memory(pid));
    Ok(fair(wall, busiest))
}

fn at_full_size(health: &str) -> Result<()> {
    // One after the other: two such daemons would be measured against each other.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let mut balancer = Balancer::prepare(&topology, Settings::of(services(health)))?;
    let gateway = topology.backends[0].v4;
    balancer.node.ns.ip(&format!("route add 10.128.0.0/9 via {gateway}\n"))?;
    let bars = bars();
    let used = load(&mut balancer, "first start")?;
    assert!(used <= bars.load, "the first start used {used:?}");

    let backends = Backends::open(balancer.pin_dir());
    let client = Client::new(balancer.socket());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let service = |s: usize| format!("s{s}").parse::<ServiceName>().expect("a name");
    let backend = |b: usize| format!("web{b}").parse::<BackendName>().expect("a name");
    let pid = balancer.process().pid();
    let chosen: Vec<_> = (0..40).map(|i| (i * 977 % SERVICES, i % BACKENDS)).collect();
    let ids: Vec<_> = chosen.iter().map(|(s, b)| backends.find(*s, *b)).collect();
    let (mut answers, begun, before) = (Vec::new(), Instant::now(), cpu(pid));
    for change in 0..CHANGES {
        let ((s, b), id) = (chosen[change % chosen.len()], ids[change % chosen.len()]);
        let (service, backend) = (service(s), backend(b));
        let asked = Instant::now();
        if change / chosen.len() % 2 == 0 {
            let weight = 1 + u16::try_from(change % 900).expect("a weight");
            runtime.block_on(client.backend_weight(&service, &backend, weight)).expect("an answer");
            answers.push(asked.elapsed());
            let identity = backends.names.get(&id, 0).expect("a name");
            assert_eq!((identity.weight, name_of(&identity)), (weight.into(), backend.as_str()));
        } else {
            let admin = if change / chosen.len() % 4 == 1 { Admin::Draining } else { Admin::Enabled };
            runtime.block_on(client.backend_admin(&service, &backend, admin)).expect("an answer");
            answers.push(asked.elapsed());
            let entry = backends.entries.get(&id, 0).expect("an entry");
            assert_eq!(entry.flags & BackendEntry::DRAINING != 0, admin == Admin::Draining);
        }
    }
    let used = (cpu(pid) - before) / u32::try_from(CHANGES).unwrap();
    let [half, most, longest] = percentiles(answers);
    eprintln!(
        "{CHANGES} changes in {:?}: p50 {half:?}, p99 {most:?}, longest {longest:?}; {used:?} of CPU time each",
        begun.elapsed()
    );
    eprintln!("after the changes: {}", memory(pid));
    let took = fair(most, used);
    assert!(took <= bars.change, "a change took {took:?}");

    // Backends that come and go, too.
    let (mut answers, before) = (Vec::new(), cpu(pid));
    for s in (0..SERVICES).step_by(SERVICES / 50) {
        let new = NewBackend {
            name: backend(BACKENDS),
            address: address(s, BACKENDS).into(),
            port: None,
            weight: None,
            backup: false,
        };
        let asked = Instant::now();
        runtime.block_on(client.backend_add(&service(s), &new)).expect("an answer");
        answers.push(asked.elapsed());
        backends.find(s, BACKENDS);
        let asked = Instant::now();
        runtime.block_on(client.backend_remove(&service(s), &backend(BACKENDS))).expect("an answer");
        answers.push(asked.elapsed());
    }
    let used = (cpu(pid) - before) / u32::try_from(answers.len()).unwrap();
    let [half, most, longest] = percentiles(answers);
    eprintln!(
        "backends added and removed: p50 {half:?}, p99 {most:?}, longest {longest:?}; {used:?} of CPU time each"
    );
    let took = fair(most, used);
    assert!(took <= bars.change, "a change took {took:?}");

    beside_lists(&balancer, &bars)?;
    let begun = Instant::now();
    let listed = runtime.block_on(client.services()).expect("a list").len();
    eprintln!("a list of all services: {:?}", begun.elapsed());
    assert_eq!(listed, SERVICES);
    let settled = |pid| resident(pid, "VmRSS") / 1024 <= bars.memory;
    let fits = wait_until("the daemon's memory", Duration::from_secs(15), || settled(pid));
    eprintln!("in the end: {}", memory(pid));
    fits?;

    // What an earlier daemon left is taken over.
    balancer.kill();
    let used = load(&mut balancer, "a start on full maps")?;
    assert!(used <= bars.load, "the second start used {used:?}");
    let pid = balancer.process().pid();
    let fits = wait_until("the daemon's memory", Duration::from_secs(15), || settled(pid));
    eprintln!("after that start: {}", memory(pid));
    fits?;
    wait_until("the daemon's answer", PATIENCE, || balancer.lbctl_output(&["status"]).status.success())
}

/// Changes while one client lists all services and another scrapes the metrics, again and again; and the memory after many of
/// them, and after reloads.
fn beside_lists(balancer: &Balancer<'_>, bars: &Bars) -> Result<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (stop, socket) = (AtomicBool::new(false), &balancer.socket());
    let (answers, lists, scrapes, used) = thread::scope(|scope| {
        // Whatever happens below, the two end.
        let _end = Stop(&stop);
        let lister = scope.spawn(|| {
            let (client, runtime, mut lists) = (Client::new(socket), runtime(), 0);
            while !stop.load(Ordering::Relaxed) {
                let list = runtime.block_on(client.services()).expect("a list");
                assert_eq!(list.len(), SERVICES);
                lists += 1;
            }
            lists
        });
        let scraper = scope.spawn(|| {
            let mut scrapes = 0;
            while !stop.load(Ordering::Relaxed) {
                // A busy machine may take longer than a scrape may take: that is said, and no failure here.
                scrapes += usize::from(scrape(balancer));
            }
            scrapes
        });
        let (client, runtime) = (Client::new(socket), runtime());
        let (mut answers, pid) = (Vec::new(), balancer.process().pid());
        let before = busiest(pid);
        for change in 0..BESIDE {
            let service = format!("s{}", change * 977 % SERVICES).parse::<ServiceName>().expect("a name");
            let backend = format!("web{}", change % BACKENDS).parse::<BackendName>().expect("a name");
            let weight = 1 + u16::try_from(change % 900).expect("a weight");
            let asked = Instant::now();
            runtime.block_on(client.backend_weight(&service, &backend, weight)).expect("an answer");
            answers.push(asked.elapsed());
            // An operator's pace: the lists get on, too.
            thread::sleep(Duration::from_millis(10));
        }
        let used = busiest(pid) - before;
        stop.store(true, Ordering::Relaxed);
        (answers, lister.join().expect("the lister"), scraper.join().expect("the scraper"), used)
    });
    let [half, most, longest] = percentiles(answers);
    eprintln!(
        "{BESIDE} changes beside {lists} lists and {scrapes} scrapes: p50 {half:?}, p99 {most:?}, longest {longest:?}; \
         {used:?} of CPU time of the busiest thread"
    );
    assert!(lists > 0, "no list was answered");
    // Where others want the CPUs, too, the wall clock says little, and the CPU time is mostly that of the lists.
    let bar = if busy() { bars.beside * 20 } else { bars.beside };
    assert!(most <= bar, "a change beside lists took {most:?}");

    let client = Client::new(socket);
    let runtime = runtime();
    let pid = balancer.process().pid();
    let mut sizes = Vec::new();
    for _ in 0..RELOADS {
        runtime.block_on(client.reload(false)).expect("a reload");
        // It is given back three seconds later.
        thread::sleep(Duration::from_secs(5));
        sizes.push(resident(pid, "VmRSS") / 1024);
    }
    eprintln!("MiB after each of {} reloads: {sizes:?}", sizes.len());
    // The first ones fill holes that the start left.
    assert!(sizes[RELOADS - 1] <= sizes[RELOADS / 2] + 8, "memory grows with every reload: {sizes:?} MiB");
    Ok(())
}

/// False if the daemon could not answer in time.
fn scrape(balancer: &Balancer<'_>) -> bool {
    let target = SocketAddr::from(([127, 0, 0, 1], 9750));
    let answer = client::get(&balancer.node.ns, target, "/metrics", PATIENCE).expect("an answer");
    answer.status == 200
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn sixty_five_thousand_backends_without_checks() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    at_full_size("type = \"none\"")
}

/// So seldom that their results do not matter here.
#[test]
fn sixty_five_thousand_backends_with_checks() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    at_full_size("type = \"tcp\"\ninterval = \"1h\"\ntimeout = \"1s\"")
}
