//! Clients that mean harm or know no better.

use super::engine::{Daemon, Manner, read_answer};
use lb_userspace::control::server::Limits;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

fn alive(daemon: &Daemon) {
    assert_eq!(daemon.http("GET", "/v1/status", "").0, 200);
}

#[test]
fn bytes_that_are_no_http() {
    let daemon = Daemon::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
    let garbage = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..2_000),
        "(GET|POST|PUT) /v1/[a-z/%]{0,20} HTTP/1.1\r\n([A-Za-z-]{1,20}: ?[ -~]{0,20}\r\n){0,4}(\r\n)?[ -~]{0,40}"
            .prop_map(String::into_bytes),
    ];
    runner
        .run(&garbage, |bytes| {
            let mut stream = daemon.connect();
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "));
            Ok(())
        })
        .unwrap();
    alive(&daemon);
}

#[test]
fn bodies_that_are_no_request() {
    let daemon = Daemon::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
    let json = prop_oneof![
        "\\PC{0,60}",
        "\\{(\"(name|address|port|weight)\": ?(\"[a-z0-9.:]{0,12}\"|[0-9]{1,6}|null|true),? ?){0,4}\\}",
    ];
    runner
        .run(&json, |body| {
            let (code, answer) = daemon.http("POST", "/v1/services/www/backends", &body);
            prop_assert!([200, 400, 409, 422].contains(&code), "{code}: {answer}");
            prop_assert!(code == 200 || answer["error"].is_string());
            Ok(())
        })
        .unwrap();
    alive(&daemon);
}

#[test]
fn half_a_request_is_given_up() {
    let limits = Limits { request_time: Duration::from_millis(300), ..Limits::default() };
    let daemon = Daemon::with(Manner::Answers, limits);
    let start = Instant::now();
    let mut heads: Vec<_> = (0..10).map(|_| daemon.connect()).collect();
    for stream in &mut heads {
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost:").unwrap();
    }
    let mut body = daemon.connect();
    body.write_all(
        b"POST /v1/reload HTTP/1.1\r\nHost: lbd\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{\"pl",
    )
    .unwrap();
    alive(&daemon);
    for stream in &mut heads {
        // Closed, with or without a word; the read's own timeout would be an error.
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(15), "this limit, not the HTTP library's own of 30 s");
    let (code, answer) = read_answer(&mut body);
    assert_eq!(code, 408);
    assert!(answer["error"].as_str().unwrap().contains("did not arrive within 300ms"));
    assert_eq!(daemon.asked_by(), Vec::<String>::new());
}

#[test]
fn too_much() {
    let daemon = Daemon::start();
    let large = format!(r#"{{"plan": true{}}}"#, " ".repeat(64 << 10));
    let (code, error) = daemon.refused("POST", "/v1/reload", &large);
    assert_eq!(code, 413);
    assert!(error.usage && error.error.contains("larger than 65536 bytes"), "{}", error.error);
    let exact = format!(r#"{{"plan": true{}}}"#, " ".repeat((64 << 10) - 14));
    assert_eq!(exact.len(), 64 << 10);
    assert_eq!(daemon.http("POST", "/v1/reload", &exact).0, 200);

    // The same without a length said beforehand.
    let mut stream = daemon.connect();
    stream
        .write_all(b"POST /v1/reload HTTP/1.1\r\nHost: lbd\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        .unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    for _ in 0..17 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    assert_eq!(read_answer(&mut stream).0, 413);

    let mut stream = daemon.connect();
    let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: lbd\r\nX: ");
    let _ = stream.write_all(&vec![b'x'; 1 << 20]);
    let _ = stream.write_all(b"\r\n\r\n");
    assert_eq!(read_answer(&mut stream).0, 431);

    let many = "X: y\r\n".repeat(1_000);
    let mut stream = daemon.connect();
    let _ = stream.write_all(format!("GET /v1/status HTTP/1.1\r\nHost: lbd\r\n{many}\r\n").as_bytes());
    assert_eq!(read_answer(&mut stream).0, 431);

    let deep = "[".repeat(60_000);
    assert_eq!(daemon.refused("POST", "/v1/reload", &deep).0, 400);
    alive(&daemon);
}

#[test]
fn many_at_once() {
    let limits = Limits { connections: 50, ..Limits::default() };
    let daemon = Daemon::with(Manner::Answers, limits);
    std::thread::scope(|scope| {
        for n in 0..200 {
            let daemon = &daemon;
            scope.spawn(move || match n % 4 {
                0 => alive(daemon),
                1 => assert_eq!(daemon.http("POST", "/v1/reload", r#"{"plan": true}"#).0, 200),
                2 => {
                    // Gone before the answer.
                    let _ = daemon.connect().write_all(b"GET /v1/services HTTP/1.1\r\nHost: lbd\r\n\r\n");
                }
                _ => {
                    let new = format!(r#"{{"name": "b{n}", "address": "10.1.0.{n}"}}"#);
                    assert_eq!(daemon.http("POST", "/v1/services/dns/backends", &new).0, 200);
                }
            });
        }
    });
    let (_, dns) = daemon.http("GET", "/v1/services/dns", "");
    assert_eq!(dns["backends"].as_array().unwrap().len(), 50);
    assert_eq!(daemon.asked_by().len(), 100);
}

#[test]
fn an_engine_that_ends_under_load() {
    let daemon = Daemon::with(Manner::DiesAsked, Limits::default());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(daemon.http("GET", "/v1/status", "").0, 503));
        }
    });
}

#[test]
fn idle_connections_are_closed() {
    // The helper's own read gives up after 30 s.
    let request_time = Duration::from_secs(300);
    let limits = Limits { connection_time: Duration::from_millis(200), request_time, ..Limits::default() };
    let daemon = Daemon::with(Manner::Answers, limits);
    let mut stream = daemon.connect();
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: lbd\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream).0, 200);
}
