//! Thousands of connections that live as long as a test does, every byte of them checked.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{lab::Netns, packets::Rng};

/// Bytes sent at once, and echoed.
const BLOCK: usize = 64;
/// Connections that have a block under way at the same time.
const BATCH: usize = 128;
/// A round takes at least so long: others want the machine too.
const ROUND: Duration = Duration::from_millis(1500);

/// Lets this process open as many files as it may.
pub fn raise_file_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// One connection to an `echo` process.
struct Member {
    stream: TcpStream,
    backend: String,
    number: u64,
    blocks: u64,
    spoke: Instant,
    alive: bool,
}

impl Member {
    fn open(target: SocketAddr, number: u64, timeout: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting)?;
        let backend = String::from_utf8_lossy(&greeting).trim_end_matches('\0').to_owned();
        Ok(Self { stream, backend, number, blocks: 0, spoke: Instant::now(), alive: true })
    }

    fn block(&self) -> Vec<u8> {
        Rng::new(self.number << 24 | self.blocks).bytes(BLOCK)
    }

    fn speak(&mut self) -> io::Result<()> {
        self.spoke = Instant::now();
        self.stream.write_all(&self.block())
    }

    fn listen(&mut self) -> io::Result<()> {
        let mut answer = [0; BLOCK];
        self.stream.read_exact(&mut answer)?;
        if answer[..] != self.block() {
            return Err(io::Error::other("other bytes came back"));
        }
        self.blocks += 1;
        Ok(())
    }
}

/// What has become of a crowd.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Connections by backend.
    pub backends: BTreeMap<String, usize>,
    /// Blocks that came back as they were.
    pub blocks: u64,
    /// The longest time between two blocks of a connection.
    pub silence: Duration,
    /// Connections that broke: which, where, after how many blocks, when and why.
    pub broken: Vec<String>,
}

/// Connections that speak in turn, in the background.
#[must_use = "the crowd leaves when this is dropped"]
pub struct Crowd {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    begun: Instant,
    stop: AtomicBool,
    rounds: AtomicU64,
    report: Mutex<Report>,
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn broke(&self, member: &mut Member, error: &io::Error) {
        member.alive = false;
        let Member { number, backend, blocks, .. } = member;
        let at = self.begun.elapsed();
        let line = format!("connection {number} to {backend}, {blocks} blocks, at {at:.1?}: {error}");
        self.with(|report| report.broken.push(line));
    }

    fn work(&self, mut members: Vec<Member>) {
        while !self.stop.load(Ordering::SeqCst) {
            let begun = Instant::now();
            for batch in members.chunks_mut(BATCH) {
                let mut silence = Duration::ZERO;
                for member in batch.iter_mut().filter(|m| m.alive) {
                    if member.blocks > 0 {
                        silence = silence.max(member.spoke.elapsed());
                    }
                    if let Err(error) = member.speak() {
                        self.broke(member, &error);
                    }
                }
                let mut blocks = 0;
                for member in batch.iter_mut().filter(|m| m.alive) {
                    match member.listen() {
                        Ok(()) => blocks += 1,
                        Err(error) => self.broke(member, &error),
                    }
                }
                self.with(|report| {
                    report.blocks += blocks;
                    report.silence = report.silence.max(silence);
                });
            }
            self.rounds.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(ROUND.saturating_sub(begun.elapsed()));
        }
    }
}

impl Crowd {
    /// Opens so many connections from inside a namespace, over all targets in turn; `threads` of them speak.
    pub fn gather(
        ns: &Netns,
        targets: &[SocketAddr],
        count: usize,
        threads: usize,
        timeout: Duration,
    ) -> io::Result<Self> {
        raise_file_limit()?;
        let open = |thread: usize| -> io::Result<Vec<Member>> {
            let own = (0..count).filter(|number| number / targets.len() % threads == thread);
            own.map(|number| Member::open(targets[number % targets.len()], number as u64, timeout)).collect()
        };
        let members: Vec<Vec<Member>> = ns.run(|| {
            std::thread::scope(|scope| {
                let opening: Vec<_> = (0..threads).map(|thread| scope.spawn(move || open(thread))).collect();
                opening
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a panic"))))
                    .collect::<io::Result<_>>()
            })
        })?;
        let mut report = Report::default();
        for member in members.iter().flatten() {
            *report.backends.entry(member.backend.clone()).or_default() += 1;
        }
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
            report: Mutex::new(report),
        });
        let threads = members
            .into_iter()
            .map(|members| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.work(members))
            })
            .collect();
        Ok(Self { shared, threads })
    }

    /// How often all connections of a thread have spoken, summed over the threads.
    pub fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::SeqCst)
    }

    pub fn report(&self) -> Report {
        self.shared.with(|report| report.clone())
    }

    /// Lets everyone finish its round.
    pub fn leave(mut self) -> Report {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}

/// Connections that come, say a few words and go, one after the other, in the background.
#[must_use = "nobody comes any more when this is dropped"]
pub struct Visitors(Crowd);

impl Visitors {
    /// From inside a namespace, to all targets in turn, with a pause between two.
    pub fn come(ns: &Netns, targets: Vec<SocketAddr>, pause: Duration, timeout: Duration) -> Self {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
            report: Mutex::new(Report::default()),
        });
        let for_thread = Arc::clone(&shared);
        let thread = ns.run(|| std::thread::spawn(move || for_thread.receive(&targets, pause, timeout)));
        Self(Crowd { shared, threads: vec![thread] })
    }

    pub fn report(&self) -> Report {
        self.0.report()
    }

    pub fn leave(self) -> Report {
        self.0.leave()
    }
}

impl Shared {
    fn receive(&self, targets: &[SocketAddr], pause: Duration, timeout: Duration) {
        for number in 0_u64.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let target = targets[number as usize % targets.len()];
            match Member::open(target, 1 << 32 | number, timeout) {
                Ok(mut member) => {
                    let said = (0..3).try_for_each(|_| member.speak().and_then(|()| member.listen()));
                    if let Err(error) = said {
                        self.broke(&mut member, &error);
                    }
                    self.with(|report| {
                        report.blocks += member.blocks;
                        *report.backends.entry(member.backend.clone()).or_default() += 1;
                    });
                }
                Err(error) => {
                    let at = self.begun.elapsed();
                    self.with(|r| {
                        r.broken.push(format!("visitor {number} to {target}, at {at:.1?}: {error}"));
                    });
                }
            }
            std::thread::sleep(pause);
        }
    }
}
