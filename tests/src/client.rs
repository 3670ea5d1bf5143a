//! An HTTP client for tests: every request on a connection of its own, every answer counted by the backend that gave
//! it, every failure kept with its time and reason.
//!
//! The server closes first (`Connection: close` is sent and the end of the stream awaited), so that TIME_WAIT is the
//! server's and the client's ports do not run out.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    http::{self, Headers, HttpError, ResponseHead},
    lab::Netns,
};

/// Failures beyond so many are counted but not kept.
const KEPT_FAILURES: usize = 10_000;
/// A target that refuses at once must not be asked a hundred thousand times a second.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(5);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("connecting: {0}")]
    Connect(io::Error),
    #[error("sending the request: {0}")]
    Send(io::Error),
    #[error("after {received} bytes: {source}")]
    Receive { received: u64, source: io::Error },
    #[error("not whole after the allowed time; {received} bytes had come")]
    Timeout { received: u64 },
    #[error("closed after {received} bytes, before the answer was whole")]
    Closed { received: u64 },
    #[error("the answer is no HTTP: {0}")]
    Http(#[from] HttpError),
    #[error("the answer says neither its length nor that it ends with the connection")]
    NoLength,
    #[error("{backend} answered with status {status}")]
    Status { backend: String, status: u16 },
    #[error("the body's byte {at} is not what was sent")]
    Corrupt { at: u64 },
    #[error("the body has {received} bytes instead of {expected}")]
    WrongLength { expected: u64, received: u64 },
    #[error("bytes came after the answer's end")]
    Excess,
}

/// An answer that came whole.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Response {
    /// Who answered, by its `X-Backend` header.
    pub fn backend(&self) -> &str {
        backend(&self.headers)
    }
}

fn backend(headers: &Headers) -> &str {
    headers.get("x-backend").unwrap_or("(no X-Backend)")
}

/// A connection to send requests on, one after the other.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    target: SocketAddr,
    timeout: Duration,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects from inside a namespace; `timeout` is also that of each later request.
    pub fn open(ns: &Netns, target: SocketAddr, timeout: Duration) -> Result<Self, RequestError> {
        ns.run(|| Self::connect(target, timeout))
    }

    /// Connects from the calling thread's namespace.
    fn connect(target: SocketAddr, timeout: Duration) -> Result<Self, RequestError> {
        let stream = TcpStream::connect_timeout(&target, timeout).map_err(RequestError::Connect)?;
        stream.set_nodelay(true).map_err(RequestError::Connect)?;
        Ok(Self { stream, target, timeout, buffer: Vec::new() })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// One GET, the connection kept for more; any status is an answer.
    pub fn get(&mut self, path: &str) -> Result<Response, RequestError> {
        let deadline = Instant::now() + self.timeout;
        self.request(path, "", deadline)
    }

    /// One GET that ends the connection.
    fn get_and_close(mut self, path: &str, deadline: Instant) -> Result<Response, RequestError> {
        let response = self.request(path, "Connection: close\r\n", deadline)?;
        let received = response.body.len() as u64;
        match self.read_more(deadline, received) {
            Ok(_) => Err(RequestError::Excess),
            Err(RequestError::Closed { .. }) => Ok(response),
            Err(error) => Err(error),
        }
    }

    fn request(&mut self, path: &str, headers: &str, deadline: Instant) -> Result<Response, RequestError> {
        self.send(path, headers)?;
        let head = self.head(deadline)?;
        let mut body = Vec::new();
        self.body(&head, deadline, |_, piece| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    fn send(&mut self, path: &str, headers: &str) -> Result<(), RequestError> {
        let text = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.target);
        self.stream.write_all(text.as_bytes()).map_err(RequestError::Send)
    }

    fn head(&mut self, deadline: Instant) -> Result<ResponseHead, RequestError> {
        loop {
            if let Some((head, length)) = http::parse_response(&self.buffer)? {
                self.buffer.drain(..length);
                return Ok(head);
            }
            self.read_more(deadline, self.buffer.len() as u64)?;
        }
    }

    /// Hands on the body piece by piece, with the offset of each; returns its length.
    fn body(
        &mut self,
        head: &ResponseHead,
        deadline: Instant,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), RequestError>,
    ) -> Result<u64, RequestError> {
        let length = match head.headers.content_length() {
            Some(length) => Some(length),
            None if head.keep_alive || head.headers.get("transfer-encoding").is_some() => {
                return Err(RequestError::NoLength);
            }
            None => None,
        };
        let mut received = 0;
        loop {
            let left = length.map_or(u64::MAX, |length| length - received);
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            take(received, &self.buffer[..here])?;
            self.buffer.drain(..here);
            received += here as u64;
            if length == Some(received) {
                return Ok(received);
            }
            match self.read_more(deadline, received) {
                Err(RequestError::Closed { .. }) if length.is_none() => return Ok(received),
                other => other?,
            };
        }
    }

    fn read_more(&mut self, deadline: Instant, received: u64) -> Result<(), RequestError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(RequestError::Timeout { received });
        }
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => RequestError::Timeout { received },
            _ => RequestError::Receive { received, source },
        };
        self.stream.set_read_timeout(Some(left)).map_err(fail)?;
        let old = self.buffer.len();
        self.buffer.resize(old + 64 * 1024, 0);
        let result = self.stream.read(&mut self.buffer[old..]);
        self.buffer.truncate(old + result.as_ref().copied().unwrap_or(0));
        match result {
            Ok(0) => Err(RequestError::Closed { received }),
            Ok(_) => Ok(()),
            Err(source) => Err(fail(source)),
        }
    }
}

/// One GET on a connection of its own; any status is an answer.
pub fn get(ns: &Netns, target: SocketAddr, path: &str, timeout: Duration) -> Result<Response, RequestError> {
    ns.run(|| get_here(target, path, timeout))
}

fn get_here(target: SocketAddr, path: &str, timeout: Duration) -> Result<Response, RequestError> {
    let deadline = Instant::now() + timeout;
    Connection::connect(target, timeout)?.get_and_close(path, deadline)
}

/// A body that came whole and unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    pub backend: String,
    pub bytes: u64,
    pub elapsed: Duration,
    /// The longest time in which nothing came.
    pub longest_gap: Duration,
}

/// Fetches so many bytes of `/big` and compares each with the test pattern.
pub fn download(
    ns: &Netns,
    target: SocketAddr,
    bytes: u64,
    timeout: Duration,
) -> Result<Download, RequestError> {
    let start = Instant::now();
    let mut connection = Connection::open(ns, target, timeout)?;
    let deadline = start + timeout;
    // nginx has a file of a fixed size and obeys the range, the built-in server obeys the query.
    let range = format!("Range: bytes=0-{}\r\nConnection: close\r\n", bytes.saturating_sub(1));
    connection.send(&format!("/big?bytes={bytes}"), &range)?;
    let head = connection.head(deadline)?;
    let backend = backend(&head.headers).to_owned();
    if !matches!(head.status, 200 | 206) {
        return Err(RequestError::Status { backend, status: head.status });
    }
    let (mut last, mut longest_gap) = (Instant::now(), Duration::ZERO);
    let received = connection.body(&head, deadline, |offset, piece| {
        longest_gap = longest_gap.max(last.elapsed());
        last = Instant::now();
        http::pattern_mismatch(offset, piece).map_or(Ok(()), |at| Err(RequestError::Corrupt { at }))
    })?;
    if received != bytes {
        return Err(RequestError::WrongLength { expected: bytes, received });
    }
    Ok(Download { backend, bytes, elapsed: start.elapsed(), longest_gap })
}

/// What to ask for, how often at once, how patiently.
#[derive(Debug, Clone)]
pub struct Requests {
    targets: Vec<SocketAddr>,
    path: String,
    concurrency: usize,
    timeout: Duration,
    pause: Duration,
}

impl Requests {
    /// `/` of one target, eight at a time, five seconds each.
    pub fn to(target: SocketAddr) -> Self {
        Self::to_all([target])
    }

    /// As [`Requests::to`], the targets taken in turn.
    pub fn to_all(targets: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            targets: targets.into_iter().collect(),
            path: "/".to_owned(),
            concurrency: 8,
            timeout: Duration::from_secs(5),
            pause: Duration::ZERO,
        }
    }

    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// For the whole of a request, from connecting to the end of the stream.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What each of the concurrent clients waits after a request.
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Makes so many requests from inside a namespace and waits for all answers.
    pub fn run(&self, ns: &Netns, count: u64) -> Report {
        self.launch(ns, count).join()
    }

    /// Makes requests in the background until told to stop.
    pub fn start(&self, ns: &Netns) -> Load {
        self.launch(ns, u64::MAX)
    }

    fn launch(&self, ns: &Netns, count: u64) -> Load {
        let shared = Arc::new(Shared {
            requests: self.clone(),
            start: Instant::now(),
            limit: count,
            issued: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            report: Mutex::new(Report::default()),
        });
        // Threads started by a thread that is inside are inside as well.
        let threads = ns.run(|| {
            (0..self.concurrency)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || shared.work())
                })
                .collect()
        });
        Load { shared, threads }
    }
}

/// Requests in the background; dropping it stops them.
#[must_use = "the load ends when this is dropped"]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    requests: Requests,
    start: Instant,
    limit: u64,
    issued: AtomicU64,
    stop: AtomicBool,
    report: Mutex<Report>,
}

impl Load {
    /// The time since the start, as in [`Failure::at`].
    pub fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// What has come so far.
    pub fn report(&self) -> Report {
        let mut report = self.shared.report().clone();
        report.elapsed = self.elapsed();
        report
    }

    /// Stops and waits for the requests under way.
    pub fn stop(self) -> Report {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join()
    }

    fn join(mut self) -> Report {
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.report()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let Requests { targets, path, timeout, pause, .. } = &self.requests;
        while !self.stop.load(Ordering::SeqCst) {
            let number = self.issued.fetch_add(1, Ordering::Relaxed);
            if number >= self.limit || targets.is_empty() {
                return;
            }
            let target = targets[usize::try_from(number).unwrap_or_default() % targets.len()];
            let begun = self.start.elapsed();
            let result = get_here(target, path, *timeout).and_then(|response| match response.status {
                200..=299 => Ok(response),
                status => Err(RequestError::Status { backend: response.backend().to_owned(), status }),
            });
            let at = self.start.elapsed();
            match result {
                Ok(response) => self.report().answered(response.backend(), begun, at),
                Err(error) => {
                    self.report().failed(Failure { begun, at, target, error: Arc::new(error) });
                    std::thread::sleep(PAUSE_AFTER_FAILURE);
                }
            }
            if !pause.is_zero() {
                std::thread::sleep(*pause);
            }
        }
    }
}

/// A request that failed; times count from the start of the load.
#[derive(Debug, Clone)]
pub struct Failure {
    pub begun: Duration,
    pub at: Duration,
    pub target: SocketAddr,
    pub error: Arc<RequestError>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { begun, at, target, error } = self;
        write!(f, "{begun:.3?}..{at:.3?} {target}: {error}")
    }
}

/// What a backend answered; times count from the start of the load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    pub count: u64,
    /// When its first answer was complete.
    pub first: Duration,
    /// When the latest request that it answered was begun: none later went to it.
    pub last_begun: Duration,
}

/// The outcome of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// By the `X-Backend` header.
    pub answers: BTreeMap<String, Answers>,
    /// In order; at most 10,000 are kept, [`Report::failed_count`] counts all.
    pub failures: Vec<Failure>,
    pub elapsed: Duration,
    /// The longest time a successful request took.
    pub slowest: Duration,
    failed: u64,
}

impl Report {
    fn answered(&mut self, backend: &str, begun: Duration, at: Duration) {
        self.slowest = self.slowest.max(at.saturating_sub(begun));
        let answers =
            self.answers.entry(backend.to_owned()).or_insert(Answers { first: at, ..Answers::default() });
        answers.count += 1;
        answers.last_begun = answers.last_begun.max(begun);
    }

    fn failed(&mut self, failure: Failure) {
        self.failed += 1;
        if self.failures.len() < KEPT_FAILURES {
            self.failures.push(failure);
        }
    }

    /// Requests that were answered with a 2xx status.
    pub fn ok(&self) -> u64 {
        self.answers.values().map(|a| a.count).sum()
    }

    pub fn failed_count(&self) -> u64 {
        self.failed
    }

    /// How many answers a backend gave.
    pub fn count(&self, backend: &str) -> u64 {
        self.answers.get(backend).map_or(0, |a| a.count)
    }

    /// A backend's part of all answers, 0 to 1.
    pub fn share(&self, backend: &str) -> f64 {
        let all = self.ok();
        if all == 0 { 0.0 } else { self.count(backend) as f64 / all as f64 }
    }

    /// Fails a test with the summary unless every request was answered and at least one was made.
    ///
    /// # Panics
    /// See above.
    #[track_caller]
    pub fn assert_all_answered(&self) {
        assert!(self.failed == 0 && self.ok() > 0, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ok, failed, elapsed, slowest) = (self.ok(), self.failed, self.elapsed, self.slowest);
        write!(f, "{ok} answered, {failed} failed in {elapsed:.2?}, the slowest took {slowest:.2?}")?;
        for (name, answers) in &self.answers {
            write!(f, "\n  {name}: {} ({:.1} %)", answers.count, 100.0 * self.share(name))?;
        }
        self.failures.iter().take(20).try_for_each(|failure| write!(f, "\n  failed {failure}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_shares_and_keeps_no_more_failures_than_it_says() {
        let mut report = Report::default();
        let ms = Duration::from_millis;
        report.answered("a", ms(1), ms(4));
        report.answered("b", ms(7), ms(8));
        report.answered("a", ms(2), ms(3));
        report.answered("a", ms(9), ms(10));
        assert_eq!((report.ok(), report.count("a"), report.count("c")), (4, 3, 0));
        assert!((report.share("a") - 0.75).abs() < 1e-9);
        assert_eq!(report.slowest, ms(3));
        assert_eq!(report.answers["a"], Answers { count: 3, first: ms(4), last_begun: ms(9) });
        for _ in 0..KEPT_FAILURES + 5 {
            let target = SocketAddr::from(([192, 0, 2, 1], 80));
            let error = Arc::new(RequestError::Excess);
            report.failed(Failure { begun: ms(1), at: ms(2), target, error });
        }
        assert_eq!(report.failures.len(), KEPT_FAILURES);
        assert_eq!(report.failed_count(), KEPT_FAILURES as u64 + 5);
    }
}
