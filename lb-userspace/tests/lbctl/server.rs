//! Every route, right and wrong.

use super::engine::{Daemon, Manner, read_answer};
use lb_userspace::control::api::*;
use lb_userspace::control::server::Limits;
use serde_json::json;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

#[test]
fn what_can_be_read() {
    let daemon = Daemon::start();
    let (code, status) = daemon.http("GET", "/v1/status", "");
    assert_eq!(code, 200);
    assert_eq!(status["node"], "lb1");
    assert_eq!(status["interfaces"][0], json!({"name": "eth0", "ifindex": 2, "mode": "native"}));
    serde_json::from_value::<StatusView>(status).unwrap();

    let (code, services) = daemon.http("GET", "/v1/services", "");
    assert_eq!((code, services.as_array().unwrap().len()), (200, 2));
    let (code, www) = daemon.http("GET", "/v1/services/www", "");
    assert_eq!(code, 200);
    assert_eq!(www, services[0]);
    let fields: Vec<_> = www.as_object().unwrap().keys().map(String::as_str).collect();
    for field in
        ["name", "addresses", "port", "protocol", "forward", "scheduler", "packets", "bytes", "backends"]
    {
        assert!(fields.contains(&field), "{field}");
    }
    assert_eq!(www["backends"][2]["admin"], "draining");

    assert_eq!(daemon.http("GET", "/v1/drops", "").1[2]["packets"], 3_000);
    assert_eq!(daemon.http("GET", "/v1/config", "").1["settings"][3]["origin"], "runtime");
    assert_eq!(daemon.asked_by(), Vec::<String>::new());
}

#[test]
fn explain_reads_its_query() {
    let daemon = Daemon::start();
    let ask = |query: &str| daemon.http("GET", &format!("/v1/explain?{query}"), "");
    let (code, answer) = ask("protocol=tcp&source=198.51.100.7:4000&destination=192.0.2.10:443");
    assert_eq!(code, 200);
    assert_eq!(
        (&answer["verdict"], &answer["service"], &answer["backend"]),
        (&json!("forward"), &json!("www"), &json!("web1"))
    );
    let (code, answer) = ask("protocol=udp&source=%5B2001:db8::7%5D:4000&destination=%5B2001:db8::10%5D:443");
    assert_eq!((code, &answer["verdict"]), (200, &json!("pass")));

    let wrong = |query: &str| daemon.refused("GET", &format!("/v1/explain?{query}"), "");
    for (query, part) in [
        ("", "missing field"),
        ("protocol=sctp&source=1.2.3.4:5&destination=1.2.3.4:5", "expected tcp, udp or quic"),
        ("protocol=tcp&source=1.2.3.4&destination=1.2.3.4:5", "the port is missing"),
        ("protocol=tcp&source=1.2.3.4:5&destination=1.2.3.4:99999", "is not an address with a port"),
        ("protocol=tcp&source=1.2.3.4:5&destination=[::1]:5", "different families"),
        ("protocol=tcp&source=1.2.3.4:5&destination=1.2.3.4:5&x=1", "unknown field `x`"),
        ("protocol=tcp&protocol=udp&source=1.2.3.4:5&destination=1.2.3.4:5", "duplicate field"),
    ] {
        let (code, error) = wrong(query);
        assert_eq!(code, 400, "{query}");
        assert!(error.usage && error.error.contains(part), "{query}: {}", error.error);
    }
}

#[test]
fn changes_are_done_and_signed() {
    let daemon = Daemon::start();
    let new = r#"{"name": "web4", "address": "10.0.0.14", "port": 8443, "weight": 50}"#;
    let (code, answer) = daemon.http("POST", "/v1/services/www/backends", new);
    assert_eq!(
        (code, answer),
        (
            200,
            json!({"message": "backend web4 added to www", "changes": [], "planned_only": false, "revision": 0})
        )
    );
    let web4 = || daemon.http("GET", "/v1/services/www", "").1["backends"][3].clone();
    assert_eq!((&web4()["port"], &web4()["weight"]), (&json!(8443), &json!(50)));
    let put = |path: &str, body: &str| {
        let (code, answer) = daemon.http("PUT", &format!("/v1/services/www/backends/web4/{path}"), body);
        assert_eq!(code, 200, "{answer}");
    };
    put("weight", r#"{"weight": 7}"#);
    put("admin", r#"{"admin": "draining"}"#);
    assert_eq!((&web4()["weight"], &web4()["admin"]), (&json!(7), &json!("draining")));
    assert_eq!(daemon.http("DELETE", "/v1/services/www/backends/web4", "").0, 200);
    assert_eq!(web4(), serde_json::Value::Null);
    let (code, plan) = daemon.http("POST", "/v1/reload", r#"{"plan": true}"#);
    assert_eq!((code, &plan["planned_only"]), (200, &json!(true)));
    assert_eq!(daemon.http("POST", "/v1/detach", "").0, 200);

    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap();
    let by = match user {
        Some(user) => format!("uid {} ({})", user.uid, user.name),
        None => format!("uid {}", nix::unistd::geteuid()),
    };
    assert_eq!(daemon.asked_by(), vec![by; 6]);
}

#[test]
fn what_the_engine_refuses_keeps_its_kind() {
    let daemon = Daemon::start();
    for (method, path, body, code, usage, part) in [
        ("GET", "/v1/services/wwww", "", 404, false, "no service 'wwww'; there are: www, dns"),
        ("DELETE", "/v1/services/www/backends/web9", "", 404, false, "www has no backend 'web9'"),
        (
            "POST",
            "/v1/services/www/backends",
            r#"{"name": "web1", "address": "10.0.0.1"}"#,
            409,
            false,
            "already",
        ),
        (
            "POST",
            "/v1/services/www/backends",
            r#"{"name": "web4", "address": "224.0.0.1"}"#,
            422,
            true,
            "multicast",
        ),
        ("POST", "/v1/reload", "", 422, true, "lbd.toml:7"),
        ("POST", "/v1/reset", "{}", 500, false, "disk full"),
    ] {
        let (found, error) = daemon.refused(method, path, body);
        assert_eq!((found, error.usage), (code, usage), "{method} {path}: {}", error.error);
        assert!(error.error.contains(part), "{}", error.error);
    }
}

#[test]
fn wrong_requests_say_what_was_expected() {
    let daemon = Daemon::start();
    let (add, weight, admin) = (
        "/v1/services/www/backends",
        "/v1/services/www/backends/web1/weight",
        "/v1/services/www/backends/web1/admin",
    );
    for (method, path, body, code, part) in [
        ("GET", "/", "", 404, "every path begins with /v1/"),
        ("GET", "/v2/status", "", 404, "no such path: /v2/status"),
        ("GET", "/v1/pears", "", 404, "is lbctl newer than lbd?"),
        ("GET", "/v1/services/", "", 404, "no such path"),
        ("DELETE", "/v1/status", "", 405, "DELETE is not possible on /v1/status"),
        ("BREW", "/v1/status", "", 405, "BREW is not possible"),
        ("GET", "/v1/services/-x", "", 400, "'-x' is not a name"),
        ("GET", "/v1/services/%ff", "", 400, "path of the request"),
        ("DELETE", "/v1/services/www/backends/a%20b", "", 400, "the backend in the path"),
        ("POST", add, "", 400, "missing field `name`"),
        ("POST", add, "{", 400, "EOF"),
        ("POST", add, "[]", 400, "expected {\"name\""),
        ("POST", add, "null", 400, "expected {\"name\""),
        ("POST", add, r#"{"name": "web4"}"#, 400, "missing field `address`"),
        ("POST", add, r#"{"name": "web 4", "address": "10.0.0.1"}"#, 400, "'web 4' is not a name"),
        ("POST", add, r#"{"name": "web4", "address": "10.0.0.256"}"#, 400, "address: invalid IP address"),
        (
            "POST",
            add,
            r#"{"name": "web4", "address": "10.0.0.1", "wieght": 1}"#,
            400,
            "unknown field `wieght`",
        ),
        ("POST", add, r#"{"name": "web4", "name": "web5", "address": "10.0.0.1"}"#, 400, "duplicate field"),
        ("POST", add, r#"{"name": "web4", "address": "10.0.0.1", "port": 0}"#, 422, "expected 1 to 65535"),
        ("POST", add, r#"{"name": "web4", "address": "10.0.0.1", "port": "80"}"#, 400, "port: invalid type"),
        ("POST", add, r#"{"name": "web4", "address": "10.0.0.1"} x"#, 400, "trailing characters"),
        ("PUT", weight, r#"{"weight": 70000}"#, 400, "weight: invalid value: integer `70000`"),
        ("PUT", weight, r#"{"weight": -1}"#, 400, "expected {\"weight\": 50}"),
        ("PUT", weight, r#"{"weight": 1.5}"#, 400, "invalid type: floating point"),
        ("PUT", weight, "", 400, "missing field `weight`"),
        ("PUT", admin, r#"{"admin": "off"}"#, 400, "unknown variant `off`"),
        ("POST", "/v1/reload", r#"{"plan": "yes"}"#, 400, "expected a boolean"),
        ("POST", "/v1/reset", r#"{"all": true}"#, 400, "unknown field `all`"),
    ] {
        let (found, error) = daemon.refused(method, path, body);
        assert_eq!(found, code, "{method} {path} {body}: {}", error.error);
        assert!(error.usage, "{method} {path} {body}");
        assert!(error.error.contains(part), "{method} {path} {body}: {}", error.error);
    }
    assert_eq!(daemon.asked_by(), Vec::<String>::new());
}

#[test]
fn an_engine_that_does_not_answer() {
    let limits = Limits { answer_time: Duration::from_millis(200), ..Limits::default() };
    for (manner, part) in [
        (Manner::Silent, "did not answer within 200ms"),
        (Manner::DiesAsked, "control loop has failed"),
        (Manner::Gone, "control loop has failed"),
    ] {
        let daemon = Daemon::with(manner, limits);
        for (method, path) in [("GET", "/v1/services/www"), ("POST", "/v1/reload")] {
            let (code, error) = daemon.refused(method, path, "");
            assert_eq!((code, error.usage), (503, false));
            assert!(error.error.contains(part), "{}", error.error);
        }
    }
    // Its inbox takes four, the fifth finds no room.
    let daemon = Daemon::with(Manner::Stuck, limits);
    let errors: Vec<_> = (0..5).map(|_| daemon.refused("GET", "/v1/status", "").1.error).collect();
    assert!(errors[..4].iter().all(|error| error.contains("a change may still be carried out")));
    assert!(errors[4].contains("too busy") && errors[4].contains("nothing was changed"), "{}", errors[4]);
}

#[test]
fn shutdown_finishes_what_is_under_way() {
    let mut daemon = Daemon::with(Manner::Slow(Duration::from_millis(500)), Limits::default());
    let mut idle = daemon.connect();
    idle.write_all(b"GET /v1/status HTTP/1.1\r\nHost: lbd\r\n\r\n").unwrap();
    let mut first = [0; 15];
    idle.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");

    let mut busy = daemon.connect();
    busy.write_all(b"GET /v1/status HTTP/1.1\r\nHost: lbd\r\n\r\n").unwrap();
    daemon.wait_taken(2);
    let start = Instant::now();
    daemon.shut_down();
    assert!(start.elapsed() < Duration::from_secs(4), "an idle client must not hold it up");
    assert_eq!(read_answer(&mut busy).0, 200);
    assert_eq!(std::fs::read_dir(daemon.directory()).unwrap().count(), 0);
}
