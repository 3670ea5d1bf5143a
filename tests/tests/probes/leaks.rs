//! A hundred thousand probes of every kind leave no descriptor, task, process or memory behind.

use crate::{
    Host, LONG,
    certificates::Authority,
    datagrams::{self, dnsmasq},
    https::{self, nginx, plain},
    mysql::{self, mariadb},
    plain::exec,
    python,
    redis::{PRIMARY, redis},
};
use lb_tests::{lab::Result, require, skip::Need};
use lb_userspace::{
    health::probe::{Deadline, Probe},
    model::{HealthCheck, HttpCheck, MysqlCheck, RedisCheck, Role, TlsSpec},
};
use nix::sys::resource::{UsageWho, getrusage};
use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Set for the process that runs the probes and nothing else.
const ALONE: &str = "LBD_TEST_LEAKS_ALONE";
const AT_ONCE: usize = 32;
/// What the allocator may keep of the busiest moment.
const GROWTH: u64 = 8 << 20;

/// A kind of check against a port: how often, how long it may take, and whether it passes.
struct Kind {
    name: &'static str,
    check: HealthCheck,
    port: u16,
    times: usize,
    timeout: Duration,
    passes: bool,
}

impl Kind {
    fn at_once(&self) -> usize {
        // The server has room for ten connections.
        if self.port == mysql::PORT { 4 } else { AT_ONCE }
    }
}

fn kinds(authority: &Authority) -> Vec<Kind> {
    let kind = |name, check, port, times, timeout, passes| Kind { name, check, port, times, timeout, passes };
    let well = |name, check, port, times| kind(name, check, port, times, LONG, true);
    let ill = |name, check, port, times, timeout| kind(name, check, port, times, timeout, false);
    let tls = TlsSpec { ca_file: Some(authority.file.clone()), ..TlsSpec::default() };
    let https = HealthCheck::Http(HttpCheck { tls: Some(tls), ..plain() });
    let redis = |role| HealthCheck::Redis(RedisCheck { user: None, password_file: None, role });
    let mysql = HealthCheck::Mysql(MysqlCheck { user: None, password_file: None, role: Role::Any });
    let (ms, refused, silent) = (Duration::from_millis, 4001, 4000);
    vec![
        well("tcp", HealthCheck::Tcp, https::PLAIN, 44_000),
        ill("tcp, refused", HealthCheck::Tcp, refused, 10_000, LONG),
        well("http", HealthCheck::Http(plain()), https::PLAIN, 15_000),
        ill("http, no answer", HealthCheck::Http(plain()), silent, 2_000, ms(5)),
        well("udp", datagrams::udp(Some(&[192, 0, 2, 7])), datagrams::PORT, 12_000),
        ill("udp, refused", datagrams::udp(None), refused, 1_000, LONG),
        well("dns", datagrams::dns("www.example.com", "A"), datagrams::PORT, 8_000),
        well("redis", redis(Role::Primary), PRIMARY, 3_500),
        ill("redis, the other role", redis(Role::Replica), PRIMARY, 500, LONG),
        well("grpc", python::of(""), python::PORT, 1_500),
        well("icmp", HealthCheck::Icmp, 0, 1_000),
        well("https", https.clone(), https::GOOD, 450),
        ill("https, not TLS", https, https::PLAIN, 50, LONG),
        well("mysql", mysql, mysql::PORT, 500),
        well("exec", exec(&["/bin/true"]), 0, 450),
        ill("exec, killed", exec(&["/bin/sleep", "60"]), 0, 50, ms(20)),
    ]
}

/// What this process holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    tasks: usize,
    children: usize,
}

impl Held {
    fn now() -> Self {
        let threads = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
        let children = threads.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").expect("descriptors").count(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            children: children.map(|list| list.split_whitespace().count()).sum(),
        }
    }
}

impl Held {
    /// Commands of checks that were given up are waited for by the runtime a moment later.
    async fn at_rest(children: usize) -> Self {
        let begun = Instant::now();
        loop {
            let now = Self::now();
            if (now.tasks, now.children) == (0, children) || begun.elapsed() > Duration::from_secs(10) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * 4096
}

/// So many probes of a kind, some at once.
async fn probe(kind: &Kind, times: usize) {
    let address = Host::at(kind.port);
    let probe = Arc::new(Probe::prepare(&kind.check, address).expect("a probe").expect("a check"));
    let mut running = JoinSet::new();
    for _ in 0..times {
        if running.len() >= kind.at_once() {
            let result: std::result::Result<_, _> =
                running.join_next().await.expect("one").expect("no panic");
            assert_eq!(result.is_ok(), kind.passes, "{}: {result:?}", kind.name);
        }
        let (probe, deadline) = (Arc::clone(&probe), Deadline::after(kind.timeout));
        running.spawn(async move { probe.run(address, deadline).await });
    }
    while let Some(result) = running.join_next().await {
        let result = result.expect("no panic");
        assert_eq!(result.is_ok(), kind.passes, "{}: {result:?}", kind.name);
    }
}

#[test]
fn a_hundred_thousand_probes_leave_nothing_behind() -> Result<()> {
    const NAME: &str = "leaks::a_hundred_thousand_probes_leave_nothing_behind";
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nginx"), Need::Tool("redis-server"));
    require!(Need::Tool("dnsmasq"), Need::Tool("mariadbd"), Need::Path(python::LIBRARY));
    if std::env::var_os(ALONE).is_none() {
        // The other tests of this process open and close what they need meanwhile.
        let own = std::env::current_exe().expect("the test's own path");
        let output = Command::new(own).args(["--exact", NAME, "--nocapture"]).env(ALONE, "1").output();
        let output = output.expect("the test can be started again");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        eprintln!("{said}");
        assert!(output.status.success() && said.contains("100000 probes"), "{}", output.status);
        return Ok(());
    }
    let host = Host::new()?;
    let authority = Authority::new(&host)?;
    let servers = [
        nginx(&host, &authority)?,
        redis(&host, PRIMARY, None, &[])?,
        dnsmasq(&host)?,
        python::server(&host, "grpc.health.v1.Health", python::PORT, &[])?,
        mariadb(&host)?,
    ];
    // Takes connections and never says a word.
    let _silent = host.listen(4000);
    let kinds = kinds(&authority);
    let all: usize = kinds.iter().map(|kind| kind.times).sum();
    host.run(async || {
        for kind in &kinds {
            probe(kind, kind.times.div_ceil(20).max(2 * AT_ONCE)).await;
        }
        let (before, resident_before) = (Held::at_rest(servers.len()).await, resident());
        assert_eq!((before.tasks, before.children), (0, servers.len()));
        let cpu = || {
            let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("usage");
            let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            of(usage.user_time()) + of(usage.system_time())
        };
        let begun = Instant::now();
        for kind in &kinds {
            let (started, used) = (Instant::now(), cpu());
            probe(kind, kind.times).await;
            let each = (cpu() - used) * 1e6 / kind.times as f64;
            eprintln!(
                "{:>6} {}: {:?}, {each:.0} us of a core each",
                kind.times,
                kind.name,
                started.elapsed()
            );
        }
        let (after, resident_after) = (Held::at_rest(servers.len()).await, resident());
        eprintln!(
            "{all} probes in {:?}: {before:?}, then {after:?}; {} KiB, then {} KiB",
            begun.elapsed(),
            resident_before >> 10,
            resident_after >> 10
        );
        assert_eq!(after, before);
        assert!(resident_after < resident_before + GROWTH);
    });
    Ok(())
}
