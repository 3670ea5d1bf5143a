//! Where a scenario of some name is, and taking it away.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{sys::signal::Signal, unistd::Pid};

/// A host, the zone it is in, and its addresses there as the internet could reach them.
#[derive(Debug, Clone, Copy)]
pub struct HostPlan {
    pub name: &'static str,
    pub zone: &'static str,
    pub addresses: &'static [&'static str],
}

const fn host(name: &'static str, zone: &'static str, addresses: &'static [&'static str]) -> HostPlan {
    HostPlan { name, zone, addresses }
}

/// All hosts but the router, which is every zone's switch too.
pub const HOSTS: [HostPlan; 12] = [
    host("client", "public", &["198.51.100.10", "2001:db8:c::10"]),
    host("dns", "dns", &["203.0.113.53", "2001:db8:53::53"]),
    host("lb1", "lb", &["192.0.2.2", "10.0.0.2", "2001:db8:d::2"]),
    host("lb2", "lb", &["192.0.2.3", "10.0.0.3", "2001:db8:d::3"]),
    host("web1", "web", &["10.0.1.11", "2001:db8:1::11"]),
    host("web2", "web", &["10.0.1.12", "2001:db8:1::12"]),
    host("web3", "web", &["10.0.1.13", "2001:db8:1::13"]),
    host("app1", "app", &["10.0.2.11", "2001:db8:2::11"]),
    host("app2", "app", &["10.0.2.12", "2001:db8:2::12"]),
    host("db1", "db", &["10.0.3.11", "2001:db8:3::11"]),
    host("db2", "db", &["10.0.3.12", "2001:db8:3::12"]),
    host("mon", "mon", &["10.0.4.10", "2001:db8:4::10"]),
];
pub const ROUTER: &str = "router";
/// All that it has: one pair for each zone, and one more where the balancers' network has two names.
pub const ROUTER_ADDRESSES: [&str; 15] = [
    "198.51.100.1",
    "2001:db8:c::1",
    "203.0.113.1",
    "2001:db8:53::1",
    "192.0.2.1",
    "10.0.0.1",
    "2001:db8:d::1",
    "10.0.1.1",
    "2001:db8:1::1",
    "10.0.2.1",
    "2001:db8:2::1",
    "10.0.3.1",
    "2001:db8:3::1",
    "10.0.4.1",
    "2001:db8:4::1",
];
pub const ZONES: [&str; 7] = ["public", "dns", "lb", "web", "app", "db", "mon"];
/// The virtual addresses behind which the internet finds the site: two for each balancer.
pub const PUBLIC: [&str; 4] = ["192.0.2.10", "192.0.2.20", "2001:db8:d::10", "2001:db8:d::20"];
pub const INTERNAL: [&str; 3] = ["10.0.0.10", "10.0.0.20", "10.0.0.30"];

const NETNS: &str = "/run/netns";

/// A scenario's name, directory and namespaces.
#[derive(Debug, Clone)]
pub struct Place {
    name: String,
}

/// For clap.
pub fn name(text: &str) -> Result<String, String> {
    let fits = (1..=24).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(text.to_owned()) } else { Err("1 to 24 lower-case letters, digits and `-`".to_owned()) }
}

impl Place {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything of it that is a file.
    pub fn dir(&self) -> PathBuf {
        Path::new("/var/tmp").join(format!("lbd-scenario-{}", self.name))
    }

    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir().join(host)
    }

    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    /// The cgroup that limits a host's CPU, where there is one.
    pub fn cgroup(&self, host: &str) -> PathBuf {
        let base = Path::new("/sys/fs/cgroup");
        let version1 = base.join("cpu");
        let base = if version1.join("cpu.cfs_quota_us").exists() || version1.is_dir() {
            version1
        } else {
            base.into()
        };
        base.join(format!("lbd-{}-{host}", self.name))
    }

    pub fn is_up(&self) -> bool {
        self.dir().join("up").exists()
    }

    pub fn root_only(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!("root is needed for namespaces and XDP: `cargo xtask scenario` asks sudo for it");
        }
        Ok(())
    }

    /// The pid of a host's first process, if that process lives.
    pub fn init(&self, host: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.host_dir(host).join("init")).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        // A pid is given anew some day; together with the time of its start it is one process.
        (start_time(pid.parse().ok()?)? == started).then(|| Pid::from_raw(pid.parse().unwrap_or(0)))
    }

    /// Ends a host as a power failure does: all its processes, mounts and pins with its first process.
    pub fn kill_host(&self, host: &str) -> Result<()> {
        if let Some(pid) = self.init(host) {
            nix::sys::signal::kill(pid, Signal::SIGKILL).with_context(|| format!("cannot end {host}"))?;
            super::wait_regardless(&format!("the end of {host}"), Duration::from_secs(20), || {
                if self.init(host).is_none() { Ok(()) } else { Err("it still runs".to_owned()) }
            })?;
        }
        let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).output();
        let _ = fs::remove_dir(self.cgroup(host));
        Ok(())
    }

    /// Removes every trace; what is not there any more is no error.
    pub fn destroy(&self) -> Result<()> {
        // At once: the kernel takes its time over each network namespace.
        std::thread::scope(|scope| {
            let threads: Vec<_> = HOSTS
                .iter()
                .map(|host| host.name)
                .chain([ROUTER])
                .map(|host| scope.spawn(move || self.kill_host(host)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("an end panicked")))
        })?;
        let dir = self.dir();
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        for host in HOSTS.iter().map(|host| host.name).chain([ROUTER]) {
            if Path::new(NETNS).join(self.namespace(host)).exists() {
                bail!("the network namespace {} cannot be removed", self.namespace(host));
            }
        }
        Ok(())
    }
}

/// When a process started, in ticks since boot; `None`: there is none, or it has ended and is not reaped yet.
pub fn start_time(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?;
    (state != "Z" && state != "X").then(|| rest.nth(18).map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let place = Place::new(&format!("unit-{}", std::process::id()));
        let dir = place.host_dir("lb1");
        fs::create_dir_all(&dir).unwrap();
        let me = std::process::id().cast_signed();
        let started = start_time(me).unwrap();
        fs::write(dir.join("init"), format!("{me} {started}")).unwrap();
        assert_eq!(place.init("lb1"), Some(Pid::from_raw(me)));
        fs::write(dir.join("init"), format!("{me} {started}1")).unwrap();
        assert_eq!(place.init("lb1"), None, "another process has that pid now");
        fs::remove_dir_all(place.dir()).unwrap();
    }

    #[test]
    fn names_stay_inside_their_directories() {
        assert!(name("foobar-2").is_ok());
        for bad in ["", "a/b", "..", "A", "x y"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
