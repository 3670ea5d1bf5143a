//! Compare and set by revision, at the server and on the command line.

use super::engine::{Daemon, REVISION};
use lb_userspace::control::api::{ConfigView, SettingView};
use lb_userspace::control::changes::{ChangesView, RuntimeChangeView};
use lb_userspace::control::command::{Answer, Command, CommandError};
use lb_userspace::control::guard::Guarded;
use lb_userspace::control::watch::{WatchView, Watcher, Watchers};
use lb_userspace::events::{Bus, Kind, News};
use serde_json::json;
use std::io::{Read, Write};
use std::process::{self, Output};

/// The engine's part: `act` carries out what is not refused.
pub fn obey(guarded: Guarded, act: impl FnOnce(Command)) {
    let Guarded { command, if_revision, verdict } = guarded;
    if if_revision.is_some_and(|wanted| !wanted.contains(&REVISION)) {
        let _ = verdict.send(Err(CommandError::Moved(format!("the runtime state has revision {REVISION}"))));
        return;
    }
    act(command);
    let _ = verdict.send(Ok(REVISION));
}

pub fn changes() -> ChangesView {
    let change = |backend: Option<&str>, change: &str| RuntimeChangeView {
        service: Some("www".to_owned()),
        backend: backend.map(str::to_owned),
        change: change.to_owned(),
        by: Some("uid 0 (root)".to_owned()),
        at: Some(1_700_000_000),
        without_effect: None,
    };
    let gone = "the configuration no longer has the backend".to_owned();
    ChangesView {
        revision: REVISION,
        file: "/var/lib/lbd/runtime.json".to_owned(),
        changes: vec![
            change(Some("web3"), "draining"),
            RuntimeChangeView { without_effect: Some(gone), ..change(Some("web9"), "weight 50") },
            change(None, "limits: packets_per_second 1000"),
        ],
    }
}

/// The answer to a request, as it comes.
fn raw(daemon: &Daemon, request: &str) -> String {
    let mut stream = daemon.connect();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn lbctl(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = process::Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command.arg("--socket").arg(&daemon.socket).args(arguments).output().unwrap()
}

pub fn config() -> ConfigView {
    let row = |key: &str, value, origin: &str| SettingView {
        key: key.to_owned(),
        value,
        origin: origin.to_owned(),
        by: (origin == "runtime").then(|| "uid 0 (root)".to_owned()),
        at: (origin == "runtime").then_some(1_700_000_000),
    };
    ConfigView {
        file: "/etc/lbd/lbd.toml".to_owned(),
        hash: "fedcba9876543210".to_owned(),
        settings: vec![
            row("node.name", json!("lb1"), "file"),
            row("node.xdp_mode", json!("auto"), "default"),
            row("service.www.addresses", json!(["192.0.2.10", "2001:db8::10"]), "file"),
            row("service.www.backend.web3.admin", json!("draining"), "runtime"),
        ],
        places: [("node.name".to_owned(), "/etc/lbd/lbd.toml:2".to_owned())].into(),
    }
}

#[test]
fn a_request_for_another_revision_is_refused_and_not_carried_out() {
    let daemon = Daemon::start();
    let put = |condition: &str| {
        let body = r#"{"weight": 5}"#;
        let condition =
            if condition.is_empty() { String::new() } else { format!("If-Match: {condition}\r\n") };
        raw(
            &daemon,
            &format!(
                "PUT /v1/services/www/backends/web1/weight HTTP/1.1\r\nHost: lbd\r\nConnection: close\r\n{condition}Content-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
    };
    let done = |answer: &str| answer.starts_with("HTTP/1.1 200");
    for condition in ["", "\"7\"", "7", "\"3\", \"7\"", "*"] {
        let answer = put(condition);
        assert!(done(&answer), "{condition}: {answer}");
        assert!(answer.to_lowercase().contains("\r\netag: \"7\"\r\n"), "{answer}");
    }
    let asked = daemon.asked_by().len();
    for condition in ["\"6\"", "\"8\", \"9\""] {
        let answer = put(condition);
        assert!(answer.starts_with("HTTP/1.1 412"), "{condition}: {answer}");
        assert!(
            answer.contains("the runtime state has revision 7") && answer.contains("\"usage\":false"),
            "{answer}"
        );
    }
    // Serde would take an array for the fields of an object, and [] for a reset of everything.
    for (path, body) in [("reset", "[]"), ("reset", " [null, null]"), ("detach", "[]"), ("reload", "[true]")]
    {
        let (code, error) = daemon.refused("POST", &format!("/v1/{path}"), body);
        assert!(code == 400 && error.error.contains("an array; expected"), "{path} {body}: {}", error.error);
    }
    for condition in ["W/\"7\"", "x"] {
        let answer = put(condition);
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("is no revision"),
            "{condition}: {answer}"
        );
    }
    assert_eq!(daemon.asked_by().len(), asked, "none of these reached the engine");
}

#[test]
fn the_command_line_says_which_revision_it_means() {
    let daemon = Daemon::start();
    let refused = lbctl(&daemon, &["backend", "weight", "www", "web1", "3", "--if-revision", "6"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the runtime state has revision 7"));
    assert!(
        lbctl(&daemon, &["--if-revision", "7", "backend", "weight", "www", "web1", "3"]).status.success()
    );
    for without_meaning in [&["completions", "bash"][..], &["watch"], &["trace"], &["detach", "--yes"]] {
        let output = lbctl(&daemon, &[&["--if-revision", "7"], without_meaning].concat());
        assert_eq!(output.status.code(), Some(2), "{without_meaning:?}");
    }
}

/// Three things happened, and no more do.
pub fn watch(after: Option<&str>) -> Answer<Watcher> {
    let bus = Bus::default();
    for to in ["down", "up", "down"] {
        bus.publish(News {
            kind: Kind::Backend,
            service: "www".to_owned(),
            backend: Some("web1".to_owned()),
            from: "?".to_owned(),
            to: to.to_owned(),
            reason: String::new(),
        });
    }
    // Whoever says "N" has seen N of them.
    let after = after.map(|seen| format!("{}-{seen}", bus.epoch()));
    Watchers::new(bus).admit(after.as_deref())
}

#[test]
fn a_watch_resumes_where_its_reader_was() {
    let daemon = Daemon::start();
    let events = |since: &[&str]| {
        let output = lbctl(&daemon, &[&["watch", "-o", "json"], since].concat());
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<WatchView>(line).unwrap()).collect::<Vec<_>>()
    };
    let names = |events: &[WatchView]| {
        events.iter().map(|e| (e.event.clone(), e.to.clone().unwrap_or_default())).collect::<Vec<_>>()
    };
    let event = |name: &str, to: &str| (name.to_owned(), to.to_owned());
    assert_eq!(names(&events(&[])), [event("hello", "")]);
    assert_eq!(
        names(&events(&["--since", "1"])),
        [event("hello", ""), event("backend", "up"), event("backend", "down")]
    );
    assert_eq!(names(&events(&["--since", "3"])), [event("hello", "")]);
    assert_eq!(names(&events(&["--since", "4"])), [event("reset", "")]);
    assert_eq!(names(&events(&["--since", "x"])), [event("reset", "")]);
    assert_eq!(
        names(&events(&["--since", "1", "--count", "1"])),
        [event("hello", ""), event("backend", "up")]
    );
}
