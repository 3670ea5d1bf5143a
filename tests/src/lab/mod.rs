//! A network of real hosts on one machine: namespaces joined by veth pairs and bridges.
//!
//! Everything hangs on a [`Lab`]: dropping it, also by a panic, ends the processes it started and removes its
//! namespaces and files. What a killed test leaves behind is swept when the next lab is made ([`owner`]).

pub(crate) mod bpf;
mod capture;
mod ethtool;
mod link;
mod netns;
mod owner;
mod ping;
mod process;
mod topology;
mod unplug;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

pub use bpf::{XdpLink, XdpProgram, insn};
pub use capture::{Frame, Sniffer};
pub use link::{End, Plan};
pub use netns::Netns;
pub use ping::ping;
pub use process::{Process, wait_for_port, wait_until};
pub use topology::{Arms, Gateway, Interface, Mtu, Node, Shape, Topology};

/// Why the lab could not do something. Each variant says what was tried, where, and what came back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network namespace {name}: {step} failed: {source} (making namespaces needs root)")]
    Namespace { name: String, step: &'static str, source: io::Error },
    #[error("a lab named {prefix} exists already (record {}): stop it first, or choose another name", record.display())]
    NameTaken { prefix: String, record: PathBuf },
    #[error("{}: {what} failed: {source}", path.display())]
    File { path: PathBuf, what: &'static str, source: io::Error },
    #[error("`ip -batch` in {place} refused:\n{stderr}\nfrom these lines:\n{script}")]
    Ip { place: String, stderr: String, script: String },
    #[error("{ns}: sysctl {key}={value} failed: {source}")]
    Sysctl { ns: String, key: String, value: String, source: io::Error },
    #[error("{ns}: interface {ifname}: {what} failed: {source}")]
    Interface { ns: String, ifname: String, what: &'static str, source: io::Error },
    #[error("bpf(2): {what} failed: {source}{log}")]
    Bpf { what: &'static str, source: io::Error, log: String },
    #[error("cannot start {program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("{name} ended early ({status}); the end of its log {}:\n{tail}", log.display())]
    Ended { name: String, status: ExitStatus, log: PathBuf, tail: String },
    #[error("`{command}` in {ns} ended with {status}:\n{output}")]
    Failed { ns: String, command: String, status: ExitStatus, output: String },
    #[error("waited {waited:?} in vain: {what}")]
    Timeout { what: String, waited: Duration },
    #[error("lbctl refused: {0}")]
    Refused(String),
    #[error("ping of {target} from {ns}: {source}")]
    Ping { ns: String, target: IpAddr, source: io::Error },
    #[error("{ns}: cannot listen on {address}: {source}")]
    Listen { ns: String, address: SocketAddr, source: io::Error },
    #[error("the program `{0}` is not installed; install it or do without what needs it")]
    NoTool(&'static str),
    #[error("a topology of {backends} backends does not fit: between 0 and {max} can be addressed")]
    TooManyBackends { backends: usize, max: usize },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The owner of namespaces, processes and files. Cheap to share by reference; all methods take `&self`.
pub struct Lab {
    prefix: String,
    record: owner::Record,
    dir: PathBuf,
    namespaces: Mutex<Vec<Netns>>,
    processes: Mutex<Vec<Arc<process::Shared>>>,
    links: Mutex<Vec<XdpLink>>,
    files: Mutex<()>,
}

impl Lab {
    /// A lab beside all others: its namespaces are `lbd-<pid>-<n>-<name>`.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::with_prefix(&format!("lbd-{}-{n}-", std::process::id()))
    }

    /// A lab for humans: its namespaces are `<name>-<node>`. Only one of a name can exist at a time.
    pub fn named(name: &str) -> Result<Self> {
        Self::with_prefix(&format!("{name}-"))
    }

    fn with_prefix(prefix: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(owner::DIR_PREFIX)
            .tempdir()
            .map_err(|source| Error::File { path: std::env::temp_dir(), what: "making a directory", source })?
            .keep();
        let record = match owner::Record::create(prefix, &dir) {
            Ok(record) => record,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&dir);
                return Err(error);
            }
        };
        Ok(Self {
            prefix: prefix.to_owned(),
            record,
            dir,
            namespaces: Mutex::default(),
            processes: Mutex::default(),
            links: Mutex::default(),
            files: Mutex::default(),
        })
    }

    /// What the names of this lab's namespaces begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The lab's own directory for logs, configuration files and sockets; removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the namespace `<prefix><name>`: loopback up, no router advertisements, no duplicate address
    /// detection, no reverse path filter.
    pub fn netns(&self, name: &str) -> Result<Netns> {
        let full = format!("{}{name}", self.prefix);
        self.record.note(&owner::Line::Netns(full.clone()))?;
        let ns = Netns::create(name, &full)?;
        lock(&self.namespaces).push(ns.clone());
        Ok(ns)
    }

    /// Starts collecting links, addresses and routes; see [`Plan::apply`].
    pub fn plan(&self) -> Plan {
        Plan::default()
    }

    /// Starts a program made by [`Netns::command`]; its output goes to `<dir>/<name>.log`. It is ended when the
    /// returned handle or the lab is dropped, whichever is first, and by the kernel should this process be killed.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let process = Process::spawn(name, &self.dir, command)?;
        lock(&self.processes).push(process.shared());
        if let Some(start) = owner::start_time(process.pid()) {
            self.record.note(&owner::Line::Process { pid: process.pid(), start })?;
        }
        Ok(process)
    }

    /// Attaches the pass-all XDP program natively to an interface, for as long as the lab lives: frames sent by
    /// XDP_TX or a redirect out of a veth arrive only if its peer has a program.
    pub fn attach_pass(&self, ns: &Netns, ifname: &str) -> Result<()> {
        let link = XdpProgram::pass()?.attach(ns, ifname)?;
        lock(&self.links).push(link);
        Ok(())
    }

    /// A file of the test pattern ([`crate::http::pattern`]), made once per size.
    pub fn pattern_file(&self, bytes: u64) -> Result<PathBuf> {
        let path = self.dir.join(format!("pattern-{bytes}"));
        let _one_writer = lock(&self.files);
        if !path.exists() {
            crate::http::write_pattern_file(&path, bytes).map_err(|source| Error::File {
                path: path.clone(),
                what: "writing the test pattern",
                source,
            })?;
        }
        Ok(path)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let processes = std::mem::take(&mut *lock(&self.processes));
        if std::thread::panicking() {
            processes.iter().for_each(|p| p.print_tail());
        }
        process::stop_all(&processes);
        lock(&self.links).clear();
        lock(&self.namespaces).drain(..).for_each(|ns| ns.remove());
        if std::env::var_os("LBD_LAB_KEEP").is_some() {
            eprintln!("the lab's files are kept in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
        self.record.remove();
    }
}

/// A panic of one test thread must not turn the clean-up of a lab into a second panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
