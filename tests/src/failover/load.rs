//! Thousands of TCP connections with data in both directions, not in answer to each other, every byte checked where it
//! arrives.
//!
//! A byte is a function of connection, direction and place, so that a byte that is lost, repeated, moved or another
//! connection's is seen. At the end both sides close and the counts of both ends are compared.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Builder,
    time::{sleep, timeout},
};

use crate::{crowd::raise_file_limit, lab::Netns};

/// Bytes that a side writes at once.
const PIECE: usize = 600;
/// Between two pieces of a side.
const PACE: Duration = Duration::from_millis(700);
/// A connection that is not there by then never will be.
const CONNECT: Duration = Duration::from_secs(30);
/// For the rest of the data after both sides were told to end.
const FAREWELL: Duration = Duration::from_secs(60);
/// How often a server looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);

/// What one end of a connection has done.
#[derive(Debug, Default)]
struct Side {
    sent: AtomicU64,
    received: AtomicU64,
    /// When the last bytes came, in milliseconds since the ledger was opened.
    heard: AtomicU64,
    /// Has seen the other side's end, and all was right.
    done: AtomicBool,
}

#[derive(Debug)]
struct Line {
    number: u64,
    backend: Mutex<String>,
    client: Side,
    server: Side,
    broken: Mutex<Option<String>>,
}

/// Both ends write here what they have seen.
#[derive(Debug)]
pub struct Ledger {
    begun: Instant,
    lines: Mutex<HashMap<u64, Arc<Line>>>,
    next: AtomicU64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { begun: Instant::now(), lines: Mutex::default(), next: AtomicU64::new(1) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    fn open(&self) -> Arc<Line> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let line = Arc::new(Line {
            number,
            backend: Mutex::default(),
            client: Side::default(),
            server: Side::default(),
            broken: Mutex::default(),
        });
        lock(&self.lines).insert(number, Arc::clone(&line));
        line
    }
}

impl Line {
    fn broke(&self, ledger: &Ledger, side: &str, error: &io::Error) {
        let at = Duration::from_millis(ledger.now());
        let backend = lock(&self.backend).clone();
        let (there, back) = (&self.client, &self.server);
        lock(&self.broken).get_or_insert_with(|| {
            format!(
                "connection {} to {backend}, {side}, at {at:.1?}, {} bytes there and {} back: {error}",
                self.number,
                back.received.load(Ordering::Relaxed),
                there.received.load(Ordering::Relaxed)
            )
        });
    }
}

/// The byte at a place: of a direction (0 there, 1 back) of a connection.
fn fill(number: u64, direction: u64, place: u64, bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        let at = place + i as u64;
        // SplitMix64 of the eight-byte word that the place is in.
        let mut z = (number << 33 | direction << 32).wrapping_add(at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *byte = (z >> (at % 8 * 8)) as u8;
    }
}

/// Reads to the end, checking.
async fn listen(
    mut stream: OwnedReadHalf,
    line: &Line,
    direction: u64,
    own: &Side,
    ledger: &Ledger,
) -> io::Result<()> {
    let (mut buffer, mut expected) = (vec![0; 4096], vec![0; 4096]);
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let at = own.received.load(Ordering::Relaxed);
        fill(line.number, direction, at, &mut expected[..length]);
        if buffer[..length] != expected[..length] {
            return Err(io::Error::other(format!("other bytes than were sent, in {length} at {at}")));
        }
        own.received.store(at + length as u64, Ordering::Relaxed);
        own.heard.store(ledger.now(), Ordering::Relaxed);
    }
}

/// Writes piece by piece until it is to end, then closes.
async fn speak(
    mut stream: OwnedWriteHalf,
    line: &Line,
    direction: u64,
    own: &Side,
    end: impl Fn() -> bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    // Not all at the same moment.
    sleep(PACE.mul_f64(line.number as f64 * 0.618 % 1.0)).await;
    while !end() {
        let at = own.sent.load(Ordering::Relaxed);
        fill(line.number, direction, at, &mut piece);
        stream.write_all(&piece).await?;
        own.sent.store(at + PIECE as u64, Ordering::Relaxed);
        sleep(PACE).await;
    }
    stream.shutdown().await
}

/// A server at the address inside a namespace; dropping it ends it.
#[must_use = "the server ends when this is dropped"]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(ns: &Netns, name: &str, address: SocketAddr, ledger: &Arc<Ledger>) -> io::Result<Self> {
        raise_file_limit()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (for_thread, ledger, name) = (Arc::clone(&stop), Arc::clone(ledger), name.to_owned());
        let listener = ns.run(|| std::net::TcpListener::bind(address))?;
        listener.set_nonblocking(true)?;
        let thread = std::thread::spawn(move || {
            let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                while !for_thread.load(Ordering::SeqCst) {
                    if let Ok(Ok((stream, _))) = timeout(TICK, listener.accept()).await {
                        tokio::spawn(serve(stream, name.clone(), Arc::clone(&ledger)));
                    }
                }
            });
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(mut stream: TcpStream, name: String, ledger: Arc<Ledger>) {
    let mut number = [0; 8];
    // Who says nothing is nobody of ours.
    let Ok(Ok(_)) = timeout(CONNECT, stream.read_exact(&mut number)).await else { return };
    let Some(line) = lock(&ledger.lines).get(&u64::from_be_bytes(number)).cloned() else { return };
    *lock(&line.backend) = name;
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let ended = AtomicBool::new(false);
    let own = &line.server;
    let listening = async {
        let outcome = listen(reader, &line, 0, own, &ledger).await;
        ended.store(true, Ordering::Relaxed);
        outcome
    };
    let speaking = speak(writer, &line, 1, own, || ended.load(Ordering::Relaxed));
    match tokio::try_join!(listening, speaking) {
        Ok(_) => own.done.store(true, Ordering::Relaxed),
        Err(error) => line.broke(&ledger, "server", &error),
    }
}

/// What has become of a load.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Connections by backend.
    pub backends: BTreeMap<String, usize>,
    /// Bytes that arrived, in both directions, all of them as they were sent.
    pub bytes: u64,
    /// Connections that broke, and why.
    pub broken: Vec<String>,
}

/// Connections that are open.
#[must_use = "the connections are closed when this is dropped"]
pub struct Load {
    ledger: Arc<Ledger>,
    lines: Vec<Arc<Line>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Opens so many connections from inside a namespace, to the targets in turn, and returns when data has come both ways
    /// on all of them.
    pub fn open(ns: &Netns, targets: &[SocketAddr], count: usize, ledger: &Arc<Ledger>) -> io::Result<Self> {
        raise_file_limit()?;
        let lines: Vec<Arc<Line>> = (0..count).map(|_| ledger.open()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let work: Vec<(SocketAddr, Arc<Line>)> =
            targets.iter().copied().cycle().zip(lines.iter().cloned()).collect();
        let (for_thread, book) = (Arc::clone(&stop), Arc::clone(ledger));
        let thread = ns.run(|| {
            std::thread::spawn(move || {
                let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
                runtime.block_on(async {
                    let tasks: Vec<_> = work
                        .into_iter()
                        .map(|(target, line)| {
                            tokio::spawn(converse(target, line, Arc::clone(&book), Arc::clone(&for_thread)))
                        })
                        .collect();
                    for task in tasks {
                        let _ = task.await;
                    }
                });
            })
        });
        let load = Self { ledger: Arc::clone(ledger), lines, stop, thread: Some(thread) };
        let missing = load.silent_since(0, CONNECT);
        if missing.is_empty() {
            Ok(load)
        } else {
            Err(io::Error::other(format!(
                "{} of {count} connections have no data: {}",
                missing.len(),
                missing[0]
            )))
        }
    }

    /// The time of the ledger, for [`Load::silent_since`].
    pub fn now(&self) -> u64 {
        self.ledger.now()
    }

    /// Waits until every connection has had new data at both ends since that time; gives those that have not, and why
    /// as far as it is known.
    pub fn silent_since(&self, since: u64, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let broken = self.report().broken;
            if !broken.is_empty() {
                return broken;
            }
            let silent: Vec<String> = self.lines.iter().filter_map(|line| silent(line, since)).collect();
            if silent.is_empty() || Instant::now() >= deadline {
                return silent;
            }
            std::thread::sleep(TICK);
        }
    }

    pub fn report(&self) -> Report {
        let mut report = Report::default();
        for line in &self.lines {
            *report.backends.entry(lock(&line.backend).clone()).or_default() += 1;
            report.bytes +=
                [&line.client, &line.server].map(|s| s.received.load(Ordering::Relaxed)).iter().sum::<u64>();
            report.broken.extend(lock(&line.broken).clone());
        }
        report
    }

    /// Closes all; those whose two ends do not agree on what was sent are among the broken ones.
    pub fn close(mut self) -> Report {
        self.end();
        for line in &self.lines {
            let finished =
                || [&line.client, &line.server].iter().all(|side| side.done.load(Ordering::Relaxed));
            let deadline = Instant::now() + TICK * 20;
            while !finished() && lock(&line.broken).is_none() && Instant::now() < deadline {
                std::thread::sleep(TICK / 10);
            }
            let [sent, got, answered, heard] =
                [&line.client.sent, &line.server.received, &line.server.sent, &line.client.received]
                    .map(|n| n.load(Ordering::Relaxed));
            if (sent, answered) != (got, heard) || !finished() {
                let error = io::Error::other(format!(
                    "sent {sent}, arrived {got}; sent back {answered}, arrived {heard}"
                ));
                line.broke(&self.ledger, "at the end", &error);
            }
        }
        self.report()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
        let mut lines = lock(&self.ledger.lines);
        for line in &self.lines {
            lines.remove(&line.number);
        }
    }
}

fn silent(line: &Line, since: u64) -> Option<String> {
    let [client, server] = [&line.client, &line.server].map(|side| side.heard.load(Ordering::Relaxed));
    (client <= since || server <= since).then(|| {
        let backend = lock(&line.backend).clone();
        format!(
            "connection {} to {backend}: since {since} ms the client heard last at {client} ms, the server at {server} ms",
            line.number
        )
    })
}

async fn converse(target: SocketAddr, line: Arc<Line>, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    // A burst of thousands of SYNs would be a test of listen queues.
    sleep(Duration::from_micros(line.number % 4096 * 500)).await;
    let opened = async {
        let mut stream = timeout(CONNECT, TcpStream::connect(target)).await??;
        stream.set_nodelay(true)?;
        stream.write_all(&line.number.to_be_bytes()).await?;
        Ok::<_, io::Error>(stream.into_split())
    };
    let own = &line.client;
    let outcome = async {
        let (reader, writer) = opened.await?;
        let stopped = || stop.load(Ordering::Relaxed);
        let farewell = async {
            while !stopped() {
                sleep(TICK).await;
            }
            sleep(FAREWELL).await;
            Err::<(), _>(io::Error::other("the other side did not end"))
        };
        let both = async {
            tokio::try_join!(listen(reader, &line, 1, own, &ledger), speak(writer, &line, 0, own, stopped))
                .map(|_| ())
        };
        tokio::select! { outcome = both => outcome, late = farewell => late }
    }
    .await;
    match outcome {
        // The server ends after the client only.
        Ok(()) if stop.load(Ordering::Relaxed) => own.done.store(true, Ordering::Relaxed),
        Ok(()) => line.broke(&ledger, "client", &io::Error::other("the server ended it")),
        Err(error) => line.broke(&ledger, "client", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_their_place() {
        let bytes = |number, direction, place| {
            let mut bytes = [0; 64];
            fill(number, direction, place, &mut bytes);
            bytes
        };
        assert_eq!(bytes(1, 0, 8)[..56], bytes(1, 0, 0)[8..]);
        assert_eq!(bytes(1, 0, 3)[..61], bytes(1, 0, 0)[3..]);
        for other in [bytes(2, 0, 0), bytes(1, 1, 0), bytes(1, 0, 1), bytes(1, 0, 600)] {
            assert_ne!(bytes(1, 0, 0), other);
        }
    }
}
