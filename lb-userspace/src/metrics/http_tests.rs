//! The listener, over real sockets on loopback, against friendly and hostile clients.

use super::{Format, Limits, Snapshot, SnapshotError, Source, encode, sample, serve_with_limits};
use crate::control::command::CommandError;
use proptest::prelude::*;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Longer than anything takes on a loaded machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// `None` never answers.
type Behaviour = Option<Result<Snapshot, SnapshotError>>;

#[derive(Clone)]
struct Fake(Arc<Mutex<Behaviour>>);

impl Source for Fake {
    async fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        let answer = self.0.lock().unwrap().clone();
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

struct Server {
    address: SocketAddr,
    source: Fake,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let source = Fake(Arc::new(Mutex::new(Some(Ok(sample::snapshot())))));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve_with_limits(
            listener,
            source.clone(),
            sample::instruments(),
            limits,
            async move { drop(stopped.await) },
        ));
        Self { address, source, stop: Some(stop), task }
    }

    fn set(&self, behaviour: Behaviour) {
        *self.source.0.lock().unwrap() = behaviour;
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `bytes` and reads until the server closes.
    async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        // The server may have answered and closed before all was written.
        let _ = stream.write_all(bytes).await;
        until_closed(&mut stream).await
    }

    async fn request(&self, method: &str, path: &str, headers: &str) -> Answer {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: lbd\r\nConnection: close\r\n{headers}\r\n");
        Answer::parse(&self.raw(head.as_bytes()).await)
    }

    async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "").await
    }
}

async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server never closed");
    answer
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

#[tokio::test]
async fn metrics_come_in_the_format_asked_for() {
    let server = Server::start(Limits::default()).await;
    for (accept, format) in [
        ("", Format::Text),
        ("Accept: text/plain\r\n", Format::Text),
        ("Accept: application/openmetrics-text\r\n", Format::OpenMetrics),
        ("Accept: text/plain;q=0.1\r\nAccept: application/openmetrics-text;q=0.2\r\n", Format::OpenMetrics),
    ] {
        let answer = server.request("GET", "/metrics", accept).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some(format.content_type()), "{accept}");
        assert_eq!(answer.header("vary"), Some("accept"));
        let expected = encode(Arc::new(sample::snapshot()), sample::instruments(), format).unwrap();
        assert_eq!(answer.body, expected, "{accept}");
    }
}

#[tokio::test]
async fn the_page_and_its_data_are_served() {
    let server = Server::start(Limits::default()).await;
    let page = server.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(page.body, include_str!("dashboard.html"));
    for (path, kind, text) in super::dashboard::FILES {
        let file = server.get(path).await;
        assert_eq!((file.status, file.header("content-type")), (200, Some(kind)), "{path}");
        assert_eq!(file.body, text, "{path}");
    }
    let data = server.get("/api/snapshot.json").await;
    assert_eq!((data.status, data.header("content-type")), (200, Some("application/json")));
    assert_eq!(data.body, serde_json::to_string(&sample::snapshot()).unwrap());
    let head = server.request("HEAD", "/", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn nothing_but_reading_is_offered_and_every_answer_is_guarded() {
    let server = Server::start(Limits::default()).await;
    let mut answers = Vec::new();
    for path in ["/", "/dashboard.css", "/dashboard.js", "/metrics", "/healthz", "/api/snapshot.json"] {
        answers.push(server.get(path).await);
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = server.request(method, path, "Content-Length: 0\r\n").await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("get,head"), "{method} {path}");
            answers.push(answer);
        }
    }
    let missing = server.get("/etc/passwd").await;
    assert_eq!(missing.status, 404);
    answers.push(missing);
    server.set(Some(Err(SnapshotError::Stopped)));
    answers.push(server.get("/metrics").await);
    for answer in answers {
        let policy = answer.header("content-security-policy").unwrap_or_else(|| panic!("{answer:?}"));
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
        assert!(policy.contains("frame-ancestors 'none'"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn healthz_tells_what_is_wrong() {
    let limits = Limits {
        health_deadline: Duration::from_millis(200),
        scrape_deadline: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let check = async |path: &str, status: u16, body: &str| {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{path}");
    };
    check("/healthz", 200, "ok\n").await;

    let mut snapshot = sample::snapshot();
    snapshot.status.interfaces[0].mode = "detached".to_owned();
    snapshot.status.interfaces[0].warning = Some("another program took its place".to_owned());
    server.set(Some(Ok(snapshot)));
    let detached = "the program is not attached to eth0: another program took its place\n";
    check("/healthz", 503, detached).await;
    assert_eq!(server.get("/metrics").await.status, 200, "the numbers are still there");

    server.set(Some(Err(SnapshotError::Failed(CommandError::Failed("EBADF".to_owned())))));
    check("/healthz", 503, "the daemon could not read its own state: EBADF\n").await;
    check("/metrics", 503, "the daemon could not read its own state: EBADF\n").await;

    server.set(None);
    for path in ["/healthz", "/metrics", "/api/snapshot.json"] {
        check(path, 503, "the daemon did not answer within 0.2 s; its log tells what it is doing\n").await;
    }
    server.set(Some(Ok(sample::snapshot())));
    check("/healthz", 200, "ok\n").await;
}

#[tokio::test]
async fn garbage_gets_no_answer_but_an_error() {
    let server = Server::start(Limits::default()).await;
    let long = format!("GET /metrics HTTP/1.1\r\nHost: lbd\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"\0\0\0\0\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let answer = server.raw(garbage).await;
        let shown = String::from_utf8_lossy(&garbage[..garbage.len().min(40)]);
        let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 4");
        assert!(refused, "{shown:?}: {}", String::from_utf8_lossy(&answer));
        assert_eq!(server.get("/healthz").await.status, 200, "after {shown:?}");
    }
}

#[tokio::test]
async fn a_client_that_dawdles_is_cut_off() {
    // The age of a connection is not what ends it here.
    let hour = Duration::from_secs(3600);
    let limits = Limits { header_timeout: Duration::from_secs(1), connection_age: hour, ..Limits::default() };
    let server = Server::start(limits).await;
    let mut silent = server.connect().await;
    let mut dripping = server.connect().await;
    dripping.write_all(b"GET /metrics HTTP/1.1\r\nHost: l").await.unwrap();
    let (mut read, mut write) = dripping.split();
    let drip = async {
        while write.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut rest = Vec::new();
    tokio::select! {
        () = drip => unreachable!("pending after the write failed"),
        ended = timeout(PATIENCE, read.read_to_end(&mut rest)) => drop(ended.expect("never cut off")),
    }
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    until_closed(&mut silent).await;
    // The same limit holds between two requests of one connection.
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: lbd\r\n\r\n").await.unwrap();
    assert!(until_closed(&mut idle).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    // Several times what the socket buffers of loopback hold.
    let mut snapshot = sample::snapshot();
    snapshot.drops[0].help = "x".repeat(16 << 20);
    let whole = serde_json::to_string(&snapshot).unwrap().len();
    // On a busy machine a connection may reach its age before the answer begins: that tells nothing.
    for age in [1, 4, 16, 64].map(Duration::from_secs) {
        let limits = Limits { connection_age: age, linger: Duration::from_millis(200), ..Limits::default() };
        let server = Server::start(limits).await;
        server.set(Some(Ok(snapshot.clone())));
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stuck = socket.connect(server.address).await.unwrap();
        stuck.write_all(b"GET /api/snapshot.json HTTP/1.1\r\nHost: lbd\r\n\r\n").await.unwrap();
        stuck.readable().await.unwrap();
        // The kernel knows: as long as the server holds the connection it is established on its side.
        let held = async {
            while established(server.address.port()) > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(age + PATIENCE, held).await.expect("the server holds the connection for ever");
        let got = until_closed(&mut stuck).await.len();
        assert!(got < whole, "all {whole} bytes arrived");
        if got > 0 {
            return;
        }
    }
    panic!("no answer began");
}

/// Connections accepted on this port of this network namespace, by the kernel's table (state 01).
fn established(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            Some((fields.next()?.ends_with(&local), fields.nth(1)?))
        })
        .filter(|(ours, state)| *ours && *state == "01")
        .count()
}

#[tokio::test]
async fn idle_clients_do_not_keep_a_scraper_out() {
    // Only room made for others ends an idle connection here.
    let hour = Duration::from_secs(3600);
    let limits = Limits { connections: 4, header_timeout: hour, connection_age: hour, ..Limits::default() };
    let server = Server::start(limits).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(server.connect().await);
    }
    let answer = timeout(PATIENCE, server.get("/healthz")).await.expect("kept out");
    assert_eq!(answer.status, 200);
    until_closed(&mut idle[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_scrape_at_once() {
    let server = Arc::new(Server::start(Limits::default()).await);
    let expected = encode(Arc::new(sample::snapshot()), sample::instruments(), Format::Text).unwrap();
    let mut scrapes = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (server, expected) = (server.clone(), expected.clone());
        scrapes.spawn(async move {
            for _ in 0..5 {
                let answer = server.get("/metrics").await;
                assert_eq!((answer.status, &answer.body), (200, &expected));
                assert_eq!(server.get("/healthz").await.body, "ok\n");
            }
        });
    }
    while let Some(scrape) = scrapes.join_next().await {
        scrape.unwrap();
    }
}

#[tokio::test]
async fn shutdown_ends_everything() {
    let mut server = Server::start(Limits::default()).await;
    let mut idle = server.connect().await;
    assert_eq!(server.get("/healthz").await.status, 200);
    server.stop.take().unwrap().send(()).unwrap();
    timeout(PATIENCE, &mut server.task).await.expect("still serving").unwrap();
    until_closed(&mut idle).await;
    TcpStream::connect(server.address).await.expect_err("nobody listens any more");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is sent, the next scrape is answered.
    #[test]
    fn no_bytes_stop_the_server(
        chunks in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                "(GET|HEAD|POST) /[a-z.]{0,12} HTTP/1.[01]\r\n".prop_map(String::into_bytes),
                "(Host|Accept|Content-Length|Transfer-Encoding): [ -~]{0,20}\r\n".prop_map(String::into_bytes),
                Just(b"\r\n".to_vec()),
            ],
            0..8,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let status = runtime.block_on(async {
            let limits = Limits { header_timeout: Duration::from_millis(5), ..Limits::default() };
            let server = Server::start(limits).await;
            let mut stream = server.connect().await;
            let _ = stream.write_all(&chunks.concat()).await;
            let _ = stream.shutdown().await;
            until_closed(&mut stream).await;
            // A head that took longer than the short limit on a busy machine was not answered: ask again.
            for _ in 0..100 {
                let answer = server.raw(b"GET /healthz HTTP/1.0\r\n\r\n").await;
                if !answer.is_empty() && !answer.starts_with(b"HTTP/1.1 408") {
                    return Answer::parse(&answer).status;
                }
            }
            0
        });
        prop_assert_eq!(status, 200);
    }
}
