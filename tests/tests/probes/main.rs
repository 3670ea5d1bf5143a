//! Health checks against real servers of their kind: up, hanging, refusing, with a wrong answer. Each test has a network
//! namespace of its own.

mod certificates;
mod datagrams;
mod grpc;
mod https;
mod leaks;
mod mysql;
mod plain;
mod python;
mod redis;

use lb_tests::lab::{Lab, Netns, Process, Result};
use lb_userspace::{
    health::{
        ProbeFailure,
        probe::{Deadline, Probe},
    },
    model::HealthCheck,
};
use nix::sys::signal::Signal;
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Long enough that a loaded machine does not reach it.
const LONG: Duration = Duration::from_secs(30);
/// For checks that are to reach it.
const SHORT: Duration = Duration::from_millis(300);
/// How long a real server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the servers run.
struct Host {
    lab: Lab,
    ns: Netns,
}

impl Host {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let ns = lab.netns("host")?;
        Ok(Self { lab, ns })
    }

    fn at(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// A new file of the lab.
    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.lab.dir().join(name);
        std::fs::write(&path, text).expect("a file of the lab");
        path
    }

    fn listen(&self, port: u16) -> TcpListener {
        self.ns.run(|| TcpListener::bind(Self::at(port))).expect("a free port")
    }

    /// Runs something of tokio's inside.
    fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.ns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work())
        })
    }

    /// One check of the server at `port`.
    fn check(
        &self,
        check: &HealthCheck,
        port: u16,
        timeout: Duration,
    ) -> std::result::Result<(), ProbeFailure> {
        self.check_at(check, Self::at(port), timeout)
    }

    fn check_at(
        &self,
        check: &HealthCheck,
        address: SocketAddr,
        timeout: Duration,
    ) -> std::result::Result<(), ProbeFailure> {
        let probe = Probe::prepare(check, address)?.expect("a check");
        self.run(async || probe.run(address, Deadline::after(timeout)).await)
    }

    /// What an operator reads of a check that ends for want of an answer, in time.
    #[track_caller]
    fn times_out(&self, check: &HealthCheck, port: u16) -> String {
        let started = Instant::now();
        let failure = self.check(check, port, SHORT).expect_err("nobody answers").to_string();
        let took = started.elapsed();
        assert!((SHORT..SHORT + Duration::from_secs(5)).contains(&took), "{took:?}");
        assert!(failure.contains("within 300ms"), "{failure}");
        failure
    }

    /// The check of a real server that has stopped in its tracks: the kernel takes connections, nobody answers. Then the
    /// server goes on, and all is well.
    #[track_caller]
    fn stops(&self, server: &Process, check: &HealthCheck, port: u16) -> String {
        assert_eq!(self.check(check, port, LONG), Ok(()));
        server.signal(Signal::SIGSTOP);
        let failure = self.times_out(check, port);
        server.signal(Signal::SIGCONT);
        assert_eq!(self.check(check, port, LONG), Ok(()));
        failure
    }

    /// What an operator reads of a check that fails.
    #[track_caller]
    fn fails(&self, check: &HealthCheck, port: u16) -> String {
        let failure = self.check(check, port, LONG).expect_err("a failure");
        assert!(!failure.is_local(), "the backend is to blame: {failure}");
        failure.to_string()
    }

    /// A server that accepts and never says a word ends the check in time; one that is not there at once.
    #[track_caller]
    fn hangs_and_refuses(&self, check: &HealthCheck) {
        let silent = self.listen(4000);
        self.times_out(check, 4000);
        drop(silent);
        assert_eq!(self.fails(check, 4000), "connection refused");
    }

    /// The probe runs many times and leaves no descriptor and no task.
    #[track_caller]
    fn leaks_nothing(&self, check: &HealthCheck, port: u16, passes: bool) {
        const TIMES: usize = 1000;
        let open = || std::fs::read_dir("/proc/thread-self/fd").expect("descriptors").count();
        let probe = Probe::prepare(check, Self::at(port)).expect("a probe").expect("a check");
        self.run(async || {
            let run = async || {
                let result = probe.run(Self::at(port), Deadline::after(LONG)).await;
                assert_eq!(result.is_ok(), passes, "{result:?}");
            };
            run().await;
            let before = open();
            for _ in 0..TIMES {
                run().await;
            }
            // What other tests of this process open and close meanwhile.
            let slack = 200;
            let after = open();
            assert!(after < before + slack, "{before} descriptors, then {after}");
            let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            assert!(tasks < 10, "{tasks} tasks are left");
        });
    }
}
