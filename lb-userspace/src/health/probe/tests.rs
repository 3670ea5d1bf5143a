//! The probes against real servers on loopback.

use super::{http::HttpProbe, *};
use crate::{
    health::testing::{Conduct, Refusing, Server, V4, V6, sockets_to},
    model::{HttpCheck, TlsSpec},
};
use proptest::prelude::*;

/// Long enough that a loaded machine does not reach it.
const LONG: Duration = Duration::from_secs(30);
/// For checks that are to reach it.
const SHORT: Duration = Duration::from_millis(200);

fn check() -> HttpCheck {
    HttpCheck { path: "/healthz?full=1".into(), ..HttpCheck::default() }
}

async fn http(server: &Server, timeout: Duration) -> Result<(), ProbeFailure> {
    let params = HttpProbe::new(&check(), server.address).unwrap();
    http::probe(server.address, &params, Deadline::after(timeout)).await
}

/// The result of an HTTP check of a server that conducts itself like that, in ample time.
async fn http_of(conduct: Conduct) -> Result<(), ProbeFailure> {
    http(&Server::start(V4, conduct).await, LONG).await
}

/// The same with a server that never comes to an end: checks that the deadline is kept.
async fn http_timeout_of(conduct: Conduct) -> Result<(), ProbeFailure> {
    let server = Server::start(V4, conduct).await;
    let started = Instant::now();
    let result = http(&server, SHORT).await;
    let took = started.elapsed();
    assert!(took >= SHORT, "{took:?}");
    assert!(took < SHORT + Duration::from_secs(10), "{took:?}");
    result
}

fn timeout_at(stage: Stage) -> Result<(), ProbeFailure> {
    Err(ProbeFailure::Timeout { stage, timeout: SHORT })
}

#[tokio::test]
async fn tcp_passes_where_something_listens() {
    for ip in [V4, V6] {
        let server = Server::start(ip, Conduct::send("")).await;
        assert_eq!(tcp::probe(server.address, Deadline::after(LONG)).await, Ok(()));
    }
}

#[tokio::test]
async fn tcp_passes_where_nobody_accepts_yet() {
    let listener = Refusing::bind((V4, 0).into()).listen(16);
    let address = listener.local_addr().unwrap();
    assert_eq!(tcp::probe(address, Deadline::after(LONG)).await, Ok(()));
}

#[tokio::test]
async fn refused_is_refused() {
    for ip in [V4, V6] {
        let refusing = Refusing::bind((ip, 0).into());
        let address = refusing.address();
        assert_eq!(tcp::probe(address, Deadline::after(LONG)).await, Err(ProbeFailure::Refused));
        let params = HttpProbe::new(&check(), address).unwrap();
        let result = http::probe(address, &params, Deadline::after(LONG)).await;
        assert_eq!(result.unwrap_err().to_string(), "connection refused");
    }
}

#[tokio::test]
async fn a_full_backlog_is_no_connection_in_time() {
    let listener = Refusing::bind((V4, 0).into()).listen(1);
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    // The kernel drops the SYNs that find the backlog full.
    while let Ok(stream) = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
        held.push(stream.unwrap());
        assert!(held.len() < 100, "the backlog does not fill");
    }
    let result = tcp::probe(address, Deadline::after(SHORT)).await;
    assert_eq!(result.unwrap_err().to_string(), "no connection within 200ms");
}

#[tokio::test]
async fn no_way_there_is_said() {
    // An interface index that does not exist: no packet leaves this host.
    let address = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, 0x7fff_fff0);
    let address = std::net::SocketAddr::from(address);
    let result = tcp::probe(address, Deadline::after(LONG)).await;
    assert!(matches!(result, Err(ProbeFailure::Broken(_) | ProbeFailure::Unreachable(_))), "{result:?}");
}

#[tokio::test]
async fn nothing_is_left_in_time_wait() {
    let server = Server::start(V4, Conduct::send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    for _ in 0..20 {
        assert_eq!(tcp::probe(server.address, Deadline::after(LONG)).await, Ok(()));
        assert_eq!(http(&server, LONG).await, Ok(()));
    }
    assert_eq!(sockets_to(server.address.port()), Vec::<String>::new());
}

#[tokio::test]
async fn http_request_is_as_documented() {
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    for ip in [V4, V6] {
        let mut server = Server::start(ip, Conduct::send(answer)).await;
        assert_eq!(http(&server, LONG).await, Ok(()));
        let port = server.address.port();
        let host = if ip == V4 { format!("127.0.0.1:{port}") } else { format!("[::1]:{port}") };
        assert_eq!(
            server.request().await,
            format!(
                "GET /healthz?full=1 HTTP/1.1\r\nhost: {host}\r\nuser-agent: lbd-health\r\n\
                 accept: */*\r\nconnection: close\r\n\r\n"
            )
        );
    }
}

#[tokio::test]
async fn http_head_and_host_of_the_configuration() {
    // A HEAD answer tells the length of the body it does not have.
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    let mut server = Server::start(V4, Conduct::hang(answer)).await;
    let check = HttpCheck { method: "HEAD".into(), host: Some("www.example".into()), ..check() };
    let params = HttpProbe::new(&check, server.address).unwrap();
    assert_eq!(http::probe(server.address, &params, Deadline::after(LONG)).await, Ok(()));
    let request = server.request().await;
    assert!(request.starts_with("HEAD /healthz?full=1 HTTP/1.1\r\nhost: www.example\r\n"), "{request}");
}

#[tokio::test]
async fn http_status_decides() {
    let status = |status: &str| http_of(Conduct::hang(format!("HTTP/1.1 {status}\r\n\r\n")));
    assert_eq!(
        status("503 Service Unavailable").await.unwrap_err().to_string(),
        "status 503, expected 200-299"
    );
    assert_eq!(status("301 Moved").await.unwrap_err().to_string(), "status 301, expected 200-299");
    assert_eq!(http_of(Conduct::send("HTTP/1.0 299 Fine\r\n\r\nuntil the connection closes")).await, Ok(()));
    assert_eq!(http_of(Conduct::send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")).await, Ok(()));
}

#[tokio::test]
async fn http_what_is_no_http() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\u{15}\u{3}\u{1}\u{0}\u{2}\u{2}",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "hello",
        "HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let result = http_of(Conduct::hang(garbage)).await;
        assert_eq!(result, Err(ProbeFailure::NotHttp), "{garbage:?}");
    }
}

#[tokio::test]
async fn http_hangs_end_by_the_deadline() {
    let ok = "HTTP/1.1 200 OK\r\n";
    assert_eq!(http_timeout_of(Conduct::hang("")).await, timeout_at(Stage::Answer));
    assert_eq!(http_timeout_of(Conduct::hang("HTTP/1.1 2")).await, timeout_at(Stage::Answer));
    assert_eq!(http_timeout_of(Conduct::forever(ok, "X", 10)).await, timeout_at(Stage::Answer));
    let continues = Conduct::forever("", "HTTP/1.1 100 Continue\r\n\r\n", 5);
    assert_eq!(http_timeout_of(continues).await, timeout_at(Stage::Answer));
    let trickle = Conduct::forever("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", "x", 10);
    assert_eq!(http_timeout_of(trickle).await, timeout_at(Stage::Body));
}

#[tokio::test]
async fn http_endless_headers() {
    let ok = "HTTP/1.1 200 OK\r\n";
    for again in ["X-More: of the same\r\n", "x"] {
        let again = again.repeat(1000);
        assert_eq!(http_of(Conduct::forever(ok, &again, 1)).await, Err(ProbeFailure::HeadTooLarge));
    }
}

#[tokio::test]
async fn http_early_ends() {
    let closed = |stage| Err(ProbeFailure::Closed { stage });
    assert_eq!(http_of(Conduct::send("")).await, closed(Stage::Answer));
    assert_eq!(http_of(Conduct::send("HTTP/1.1 200 OK\r\nCont")).await, closed(Stage::Answer));
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort";
    assert_eq!(http_of(Conduct::send(short)).await, closed(Stage::Body));
    let cut = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort";
    assert_eq!(http_of(Conduct::send(cut)).await, closed(Stage::Body));
}

#[tokio::test]
async fn http_an_endless_body_is_cut_off() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    assert_eq!(http_of(Conduct::forever(head, &chunk, 0)).await, Ok(()));
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(http_of(Conduct::forever(head, &chunk, 0)).await, Ok(()));
}

#[tokio::test]
async fn what_cannot_be_sent_is_said() {
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let reject = |check: HttpCheck, text: &str| {
        let failure = HttpProbe::new(&check, address).unwrap_err();
        assert!(failure.is_local());
        assert!(failure.to_string().contains(text), "{failure}");
    };
    reject(HttpCheck { method: "GE T".into(), ..check() }, "method 'GE T'");
    reject(HttpCheck { path: "/a b".into(), ..check() }, "path '/a b'");
    reject(HttpCheck { path: "no-slash".into(), ..check() }, "path 'no-slash'");
    reject(HttpCheck { host: Some("a\nb".into()), ..check() }, "host 'a\nb'");
}

#[test]
fn default_port_is_left_out_of_host() {
    let host = |address: &str| format!("{:?}", HttpProbe::new(&check(), address.parse().unwrap()).unwrap());
    let unverified = TlsSpec { verify: false, ..TlsSpec::default() };
    let https = HttpCheck { tls: Some(unverified), ..check() };
    let of = |address: &str| format!("{:?}", HttpProbe::new(&https, address.parse().unwrap()).unwrap());
    assert!(of("192.0.2.1:443").contains("\"host\": \"192.0.2.1\""));
    assert!(of("192.0.2.1:80").contains("\"host\": \"192.0.2.1:80\""));
    assert!(host("192.0.2.1:80").contains("\"host\": \"192.0.2.1\""));
    assert!(host("[2001:db8::1]:8080").contains("\"host\": \"[2001:db8::1]:8080\""));
    assert!(host("[fe80::1%7]:80").contains("\"host\": \"[fe80::1]\""));
}

/// An answer as a server bent on mischief might make one up: pieces of good ones and noise.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.0 204\r\n",
            "HTTP/1.1 503 Busy\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n",
            "Content-Length: 5\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Upgrade: h2c\r\n",
            "\r\n",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
            "ffffffffffffffff\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No answer makes the probe panic or outlast its server, and none passes that does not begin, after
    /// informational ones, with an HTTP/1 status line.
    #[test]
    fn no_answer_confuses_the_probe(answer in answer()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(http_of(Conduct::Send(answer.clone())));
        let text = String::from_utf8_lossy(&answer);
        if result.is_ok() {
            prop_assert!(text.trim_start_matches(['\r', '\n']).starts_with("HTTP/1."), "{}", text);
            prop_assert!(text.contains(" 200 ") || text.contains(" 204"), "{}", text);
        }
        prop_assert!(!matches!(result, Err(ProbeFailure::Timeout { .. })), "{:?}", result);
        prop_assert!(!result.is_err_and(|failure| failure.is_local()));
    }
}

#[test]
fn reasons_read_well() {
    let timeout = |stage| ProbeFailure::Timeout { stage, timeout: Duration::from_millis(500) }.to_string();
    assert_eq!(timeout(Stage::Connect), "no connection within 500ms");
    assert_eq!(timeout(Stage::Answer), "connected, but no answer within 500ms");
    assert_eq!(timeout(Stage::Body), "answer not complete within 500ms");
    let ranges = [StatusRange { lo: 200, hi: 299 }, StatusRange { lo: 304, hi: 304 }];
    let failure = ProbeFailure::Status { found: 503, expected: ranges.as_slice().into() };
    assert_eq!(failure.to_string(), "status 503, expected 200-299, 304");
    assert_eq!(
        ProbeFailure::Unreachable(Errno::EHOSTUNREACH).to_string(),
        "backend cannot be reached: No route to host"
    );
    assert_eq!(
        ProbeFailure::HeadTooLarge.to_string(),
        "HTTP answer with more than 64 KiB or 100 lines of header"
    );
}

#[test]
fn want_of_descriptors_is_not_the_backends_fault() {
    let of = |errno: Errno| ProbeFailure::from_io(&io::Error::from(errno), Stage::Connect);
    assert!(of(Errno::EMFILE).is_local());
    assert!(of(Errno::EADDRNOTAVAIL).is_local());
    assert!(!of(Errno::EHOSTUNREACH).is_local());
    assert!(!of(Errno::ETIMEDOUT).is_local());
    assert_eq!(of(Errno::ECONNREFUSED), ProbeFailure::Refused);
}

#[tokio::test]
async fn an_endless_timeout_is_a_long_one() {
    let step = async { Ok::<_, ProbeFailure>(7) };
    assert_eq!(Deadline::after(Duration::MAX).limit(Stage::Connect, step).await, Ok(7));
}

proptest! {
    #[test]
    fn status_set_is_the_union_of_its_ranges(
        ranges in prop::collection::vec((100..600u16, 100..600u16), 0..5),
        status in 0..700u16,
    ) {
        let ranges: Vec<_> =
            ranges.into_iter().map(|(a, b)| StatusRange { lo: a.min(b), hi: a.max(b) }).collect();
        let set = StatusSet::from(ranges.as_slice());
        let listed = ranges.iter().any(|r| (r.lo..=r.hi).collect::<Vec<_>>().contains(&status));
        prop_assert_eq!(set.contains(status), listed);
    }
}
