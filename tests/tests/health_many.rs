//! Thousands of backends, checked once a second: how late the checks are and what they cost. In a release build ten
//! thousand, with the bars of the field: `cargo test --release -p lb-tests --test health_many -- --nocapture`. In a debug
//! build a thousand, which show that each is checked in time for its interval.
//!
//! The backends are another host, behind a cable: what their side of a connection costs is done on another CPU, where
//! there is one, as the packets of each host are worked on by that host.

use lb_tests::{
    lab::{End, Lab, Netns, Result},
    require,
    skip::Need,
};
use lb_userspace::{
    health::{HealthTask, NoObserver, Target, TargetKey},
    model::{Health, HealthCheck, HealthSpec},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    unistd::Pid,
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

const RELEASE: bool = !cfg!(debug_assertions);
const BACKENDS: u32 = if RELEASE { 10_000 } else { 1_000 };
/// A debug build runs beside other tests.
const LATE: Duration = Duration::from_millis(if RELEASE { 100 } else { 2_000 });
const INTERVAL: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(if RELEASE { 20 } else { 10 });
const PORT: u16 = 7;

fn target(n: u32) -> Target {
    // Each has an address of its own, so that the listener can tell them apart.
    let address = SocketAddr::new(Ipv4Addr::from(0x0a07_0000 + n).into(), PORT);
    let key = TargetKey {
        service: "many".parse().expect("a name"),
        backend: format!("b{n}").parse().expect("a name"),
    };
    let spec = HealthSpec { check: HealthCheck::Tcp, interval: INTERVAL, ..HealthSpec::default() };
    Target { key, address, vips: Arc::default(), spec: spec.into(), initial: Health::Up }
}

/// When each target was checked.
type Seen = HashMap<IpAddr, Vec<Instant>>;

fn accept(listener: &TcpListener, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else { continue };
        // Some are reset before they are accepted.
        if let Ok(address) = stream.local_addr() {
            seen.entry(address.ip()).or_default().push(Instant::now());
        }
    }
    seen
}

/// Packets that come in there are worked on by that CPU, as an interface's queue has one that it interrupts.
fn receive_on(ns: &Netns, cpu: usize) {
    let mask = format!("{:x}", 1_u64 << cpu);
    let write = format!("echo {mask} > /sys/class/net/eth0/queues/rx-0/rps_cpus");
    let status = ns.command_with_sysfs("sh").args(["-c", &write]).status().expect("sh");
    assert!(status.success(), "{write}");
}

fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a CPU of this process");
}

#[test]
fn many_checks_are_on_time_and_cheap() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let lab = Lab::new()?;
    let (ns, servers) = (lab.netns("host")?, lab.netns("servers")?);
    let mut plan = lab.plan();
    plan.veth(&End::new(&ns, "eth0"), &End::new(&servers, "eth0"));
    plan.addr(&ns, "eth0", "10.8.0.1/24").addr(&servers, "eth0", "10.8.0.2/24");
    plan.route(&ns, "10.7.0.0/16 via 10.8.0.2").route(&servers, "local 10.7.0.0/16 dev lo");
    plan.apply()?;
    let cpus = sched_getaffinity(Pid::from_raw(0)).expect("CPUs");
    let mut cpus = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap_or(false));
    let pair = cpus.next().zip(cpus.next());
    if let Some((own, theirs)) = pair {
        receive_on(&ns, own);
        receive_on(&servers, theirs);
    }
    let listener = servers.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))).expect("a port");
    let stop = Arc::new(AtomicBool::new(false));
    let acceptor = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            pair.into_iter().for_each(|(_, theirs)| stay_on(theirs));
            accept(&listener, &stop)
        }
    });
    let begun = Instant::now();
    // One thread, as much as the daemon's checks may use.
    let measure = async || {
        let (events, _receiver) = tokio::sync::mpsc::channel(1024);
        let task = HealthTask::spawn(events, Arc::new(NoObserver));
        task.set_targets((0..BACKENDS).map(target).collect());
        tokio::time::sleep(WARM_UP).await;
        let used = || {
            let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("usage");
            let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            of(usage.user_time()) + of(usage.system_time())
        };
        let before = used();
        tokio::time::sleep(MEASURED).await;
        let used = used() - before;
        task.stop().await.expect("a task that did not panic");
        used / MEASURED.as_secs_f64()
    };
    let cpu = ns.run(|| {
        pair.into_iter().for_each(|(own, _)| stay_on(own));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(measure())
    });
    stop.store(true, Ordering::Relaxed);
    // One more, so that the acceptor looks up.
    drop(ns.run(|| std::net::TcpStream::connect(target(0).address)));
    let seen = acceptor.join().expect("the acceptor");
    let mut late: Vec<Duration> = Vec::new();
    for times in seen.values() {
        let measured: Vec<_> = times.iter().filter(|at| **at - begun > WARM_UP).collect();
        // Two starts are at most an interval apart; what is more is lateness.
        late.extend(measured.windows(2).map(|pair| (*pair[1] - *pair[0]).saturating_sub(INTERVAL)));
    }
    late.sort_unstable();
    let worst = late.last().copied().unwrap_or_default();
    let p999 = late.get(late.len() * 999 / 1000).copied().unwrap_or_default();
    eprintln!(
        "{} gaps of {} targets: 99.9 % late by {p999:?}, the worst by {worst:?}; {:.1} % of a core",
        late.len(),
        seen.len(),
        cpu * 100.0
    );
    assert!(seen.len() >= BACKENDS as usize, "every target is checked");
    assert!(late.len() as f64 > f64::from(BACKENDS) * (MEASURED.as_secs_f64() - 3.0), "{} gaps", late.len());
    assert!(worst < LATE, "{worst:?} late");
    assert!(cpu < 0.5, "{:.1} % of a core", cpu * 100.0);
    Ok(())
}
