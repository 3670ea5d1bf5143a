//! Programs inside namespaces: logged, waited for, and ended for certain.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{SocketAddr, TcpStream},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, mpsc},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use super::{Error, Netns, Result, lock};

/// How long a program has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A program started by [`super::Lab::spawn`], the leader of its own process group; dropping it ends the group.
pub struct Process {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    name: String,
    log: PathBuf,
    pid: Pid,
    state: Mutex<State>,
}

enum State {
    /// Not reaped yet, so that the pid cannot mean another process.
    Running(Child),
    Reaped(ExitStatus),
}

impl Process {
    pub(super) fn spawn(name: &str, dir: &Path, mut command: Command) -> Result<Self> {
        let (log, file) = open_log(name, dir)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let log_error = |source| Error::File { path: log.clone(), what: "opening it twice", source };
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(log_error)?)
            .stderr(file)
            .process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: prctl and getppid are plain system
        // calls, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have died before the line above; then no signal would come.
                if nix::unistd::getppid().as_raw().cast_unsigned() == parent {
                    Ok(())
                } else {
                    Err(io::ErrorKind::BrokenPipe.into())
                }
            });
        }
        let child = spawn_on_lasting_thread(command).map_err(|source| Error::Spawn { program, source })?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let state = Mutex::new(State::Running(child));
        Ok(Self { shared: Arc::new(Shared { name: name.to_owned(), log, pid, state }) })
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    pub fn pid(&self) -> u32 {
        self.shared.pid.as_raw().cast_unsigned()
    }

    pub fn is_running(&self) -> bool {
        self.shared.is_running()
    }

    pub fn log_path(&self) -> &Path {
        &self.shared.log
    }

    /// All that the program has written to stdout and stderr so far.
    pub fn log(&self) -> String {
        self.shared.log()
    }

    /// Sends a signal to the program itself, not to its children.
    pub fn signal(&self, signal: Signal) {
        let state = lock(&self.shared.state);
        if matches!(*state, State::Running(_)) {
            let _ = kill(self.shared.pid, signal);
        }
    }

    /// SIGKILL to the program and its children, and waits until they are gone.
    pub fn kill(&self) -> ExitStatus {
        self.shared.end(Duration::ZERO)
    }

    /// SIGTERM, and SIGKILL after a grace of three seconds.
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.shared.end(GRACE)
    }

    /// Waits for the program to end by itself.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name());
        wait_until(&what, timeout, || !self.is_running()).map_err(|_| Error::Timeout {
            what: format!("{what}; the end of its log:\n{}", self.shared.tail()),
            waited: timeout,
        })?;
        Ok(self.shared.end(Duration::ZERO))
    }

    /// Waits until the program has written the text; fails at once when it ends before.
    pub fn wait_for_log(&self, text: &str, timeout: Duration) -> Result<()> {
        self.wait_for(&format!("`{text}` in the log"), timeout, || self.log().contains(text))
    }

    /// Waits until the program has made something true; fails at once when the program ends before.
    pub fn wait_for(&self, what: &str, timeout: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let running = self.is_running();
            if ready() {
                return Ok(());
            }
            if !running {
                return Err(Error::Ended {
                    name: self.name().to_owned(),
                    status: self.shared.end(Duration::ZERO),
                    log: self.shared.log.clone(),
                    tail: self.shared.tail(),
                });
            }
            if Instant::now() >= deadline {
                let what = format!("{what} of {}; the end of its log:\n{}", self.name(), self.shared.tail());
                return Err(Error::Timeout { what, waited: timeout });
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.print_tail();
        }
        self.stop();
    }
}

impl Shared {
    fn is_running(&self) -> bool {
        let state = lock(&self.state);
        match *state {
            State::Reaped(_) => false,
            State::Running(_) => {
                // WNOWAIT leaves the zombie, so that the pid stays taken until `end`.
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
                matches!(waitid(Id::Pid(self.pid), flags), Ok(WaitStatus::StillAlive))
            }
        }
    }

    /// Waits so long for the leader, then kills the group, and reaps.
    fn end(&self, grace: Duration) -> ExitStatus {
        let deadline = Instant::now() + grace;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        let mut state = lock(&self.state);
        let status = match &mut *state {
            State::Reaped(status) => *status,
            State::Running(child) => {
                let _ = kill(Pid::from_raw(-self.pid.as_raw()), Signal::SIGKILL);
                child.wait().unwrap_or_else(|_| ExitStatus::from_raw(libc::SIGKILL))
            }
        };
        *state = State::Reaped(status);
        status
    }

    fn log(&self) -> String {
        std::fs::read(&self.log).map_or_else(
            |e| format!("(its log {} cannot be read: {e})", self.log.display()),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// What a failing test wants to see of a program.
    pub(super) fn print_tail(&self) {
        if matches!(*lock(&self.state), State::Reaped(_)) {
            // Its handle's drop has printed it, or a test that waited for its end knows it.
            return;
        }
        let running = if self.is_running() { "running" } else { "ended" };
        eprintln!("--- {} ({running}), the end of its log:\n{}\n---", self.name, self.tail());
    }
}

/// Ends all at once, so that the graces run side by side.
pub(super) fn stop_all(processes: &[Arc<Shared>]) {
    for process in processes.iter().filter(|p| p.is_running()) {
        let _ = kill(process.pid, Signal::SIGTERM);
    }
    let deadline = Instant::now() + GRACE;
    for process in processes {
        process.end(deadline.saturating_duration_since(Instant::now()));
    }
}

fn open_log(name: &str, dir: &Path) -> Result<(PathBuf, File)> {
    let mut n = 1;
    loop {
        let path = dir.join(if n == 1 { format!("{name}.log") } else { format!("{name}-{n}.log") });
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
            Err(source) => return Err(Error::File { path, what: "making a log", source }),
        }
    }
}

/// The parent-death signal comes when the *thread* that forked ends, and tests start programs from short-lived
/// threads too: one thread that ends with the process forks for all.
fn spawn_on_lasting_thread(mut command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static FORKER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (send, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in jobs {
                let _ = reply.send(command.spawn());
            }
        });
        send
    });
    let (reply, answer) = mpsc::channel();
    command.env("LBD_LAB", "1");
    forker.send((command, reply)).map_err(io::Error::other)?;
    answer.recv().map_err(io::Error::other)?
}

const POLL: Duration = Duration::from_millis(10);

/// Waits until a condition holds.
pub fn wait_until(what: &str, timeout: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !ready() {
        if Instant::now() >= deadline {
            return Err(Error::Timeout { what: what.to_owned(), waited: timeout });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Waits until something accepts TCP connections at the address, as seen from inside the namespace.
pub fn wait_for_port(ns: &Netns, address: SocketAddr, timeout: Duration) -> Result<()> {
    let what = format!("a listener on {address} seen from {}", ns.name());
    ns.run(|| {
        wait_until(&what, timeout, || {
            TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
        })
    })
}
