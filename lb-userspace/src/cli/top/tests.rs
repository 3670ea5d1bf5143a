//! Pictures as recorded, keys, and the arithmetic.

use super::{
    draw,
    reading::{Rates, Reading},
    state::{App, Outcome, Sort, View},
};
use crate::{
    control::{
        api::{DropView, ServiceView, StatusView},
        pair::PairView,
    },
    model::ServiceState,
};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyModifiers},
    style::{Color, Modifier},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn backend(name: &str, health: &str, admin: &str, slots: u32, packets: u64) -> Value {
    json!({
        "name": name, "address": "10.0.0.11", "port": 80, "weight": 100, "admin": admin, "health": health,
        "health_reason": "connection refused", "slots": slots, "reachable": name != "web4", "origin": "file",
        "packets": packets, "bytes": packets * 100,
    })
}

fn service(name: &str, packets: u64, backends: &[Value]) -> ServiceView {
    serde_json::from_value(json!({
        "name": name, "addresses": ["192.0.2.10", "2001:db8::10"], "port": "443", "protocol": "tcp",
        "forward": "dsr", "scheduler": "maglev", "packets": packets, "bytes": packets * 100,
        "slots": {"total": 1000, "plain": 900, "moving": 60, "tracked": 40}, "backends": backends,
    }))
    .unwrap()
}

/// After so many seconds of which each brought 1,234 packets.
fn reading(seconds: u64) -> Reading {
    let packets = |share: u64| 1_234 * seconds * share / 100;
    let status: StatusView = serde_json::from_value(json!({
        "node": "lb1", "version": "0.1.0", "abi": "00", "program": "11", "kernel": "6.12.0", "uptime_seconds": 3725.0,
        "pid": 7, "config_file": "/etc/lbd/lbd.toml", "config_hash": "aa", "runtime_changes": 0,
        "interfaces": [
            {"name": "eth0", "ifindex": 2, "mode": "native"},
            {"name": "eth1", "ifindex": 3, "mode": "generic", "warning": "the driver has no XDP"},
        ],
        "services": 2, "backends": 5, "map_bytes": 34_000_000, "tracked_flows": 4711,
        "tables": [
            {"name": "flows_ipv4", "entries": 4711, "capacity": 131_072},
            {"name": "flows_ipv6", "entries": 110_000, "capacity": 131_072},
        ],
    }))
    .unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let pair: PairView = serde_json::from_value(json!({
        "name": "public", "interface": "eth0", "router_id": 51, "version": 3, "state": "master", "priority": 150,
        "effective_priority": 90, "addresses": ["192.0.2.10/24"], "peers": [], "since": now - 7265.5, "reason": "x",
        "faults": ["tracked interface eth1 is down"], "held": false, "handed_over": false, "adverts_sent": 1,
        "adverts_received": 1, "split_brains": 0, "transitions": {},
    }))
    .unwrap();
    let www = [
        backend("web1", "up", "enabled", 600, packets(60)),
        backend("web2", "down", "enabled", 0, packets(0)),
        backend("web3", "up", "draining", 0, packets(10)),
        backend("web4", "up", "enabled", 300, packets(30)),
    ];
    let drops =
        |reason: &str, packets| DropView { reason: reason.into(), packets, help: "what it is".into() };
    let mut dns = service("dns\x1b[31m", 0, &[backend("ns1", "down", "enabled", 0, 0)]);
    dns.pool.state = ServiceState::Down;
    Reading {
        at: Instant::now() - Duration::from_secs(100) + Duration::from_secs(seconds),
        status,
        services: vec![service("www", packets(100), &www), dns],
        drops: vec![drops("ttl", 3), drops("no_backend", 20 * seconds), drops("deny", 0)],
        pair: vec![pair],
    }
}

fn app() -> App {
    let mut app = App::default();
    app.take(Ok(reading(10)));
    app.take(Ok(reading(12)));
    app
}

fn picture(app: &mut App, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, app)).unwrap();
    terminal
}

fn shown(app: &mut App, width: u16, height: u16) -> String {
    draw::lines(picture(app, width, height).backend().buffer()).join("\n") + "\n"
}

/// The golden files are what `LBD_BLESS=1 cargo test -p lb-userspace --lib top` wrote last.
#[track_caller]
fn golden(file: &str, found: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top/golden").join(file);
    if std::env::var_os("LBD_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, expected, "{file}; found:\n{found}");
}

fn press(app: &mut App, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        assert_eq!(app.key(code, KeyModifiers::NONE), Outcome::Goes, "{key:?}");
    }
}

#[test]
fn the_pictures_are_as_recorded() {
    golden("services.txt", &shown(&mut app(), 80, 24));
    let mut one = app();
    press(&mut one, "\nj\n");
    golden("backends.txt", &shown(&mut one, 80, 24));
    let mut all = app();
    press(&mut all, "bsssS");
    golden("all.txt", &shown(&mut all, 120, 18));
    let mut help = app();
    press(&mut help, "?");
    golden("help.txt", &shown(&mut help, 80, 24));
    let mut old = app();
    old.take(Err("nobody answers".to_owned()));
    press(&mut old, "/ns");
    golden("old.txt", &shown(&mut old, 80, 14));
    golden("narrow.txt", &shown(&mut one, 40, 16));
    golden("once.txt", &draw::text(&mut app(), 100));
}

/// Every state has a word or a sign besides its colour, and the selected row is marked without one.
#[test]
fn no_state_is_told_by_colour_alone() {
    let mut app = app();
    press(&mut app, "b");
    let terminal = picture(&mut app, 80, 24);
    let buffer = terminal.backend().buffer();
    let lines = draw::lines(buffer);
    let row = |name: &str| lines.iter().position(|line| line.contains(name)).unwrap();
    let cells = |y: usize| (0..80).map(move |x| &buffer[(x, y as u16)]);
    assert!(lines[row("web2")].contains("! down") && lines[row("web4")].contains("! no hop"));
    assert!(cells(row("web2")).any(|cell| cell.fg == Color::Red));
    assert!(cells(row("web1")).all(|cell| cell.modifier.contains(Modifier::REVERSED)));
    assert!(cells(row("web2")).all(|cell| !cell.modifier.contains(Modifier::REVERSED)));
}

#[test]
fn no_size_and_no_key_panics() {
    let mut app = app();
    for keys in ["", "\n", "\n", "\x1b", "b", "/zzz", "\n", "?", "x", "sS", "p"] {
        press(&mut app, keys);
        for (width, height) in [(1, 1), (2, 50), (80, 1), (10, 3), (40, 10), (80, 24), (300, 5)] {
            picture(&mut app, width, height);
        }
    }
    let mut empty = App::default();
    press(&mut empty, "jkGg\nbsS\x1b");
    picture(&mut empty, 80, 24);
}

#[test]
fn nothing_of_the_daemon_reaches_the_terminal_as_control() {
    let text = draw::text(&mut app(), 80);
    assert!(text.contains("dns?[31m"), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn rates_are_differences_by_time_and_what_begins_anew_has_none() {
    let (before, now) = (reading(10), reading(12));
    let rates = Rates::between(&before, &now);
    let close = |rate: f64, expected: f64| (rate - expected).abs() < 1.0;
    let www = rates.of("www", None).unwrap();
    assert!(close(www.packets, 1234.0) && close(www.bits / 800.0, 1234.0), "{www:?}");
    assert!(close(rates.of("www", Some("web1")).unwrap().packets, 740.4));
    assert!(close(rates.dropped("no_backend").unwrap(), 20.0));
    assert_eq!(rates.dropped("ttl"), Some(0.0));
    assert!(close(rates.sum.unwrap().packets, 1234.0));
    // A restart of the machine, and a service that was not there.
    let mut anew = reading(14);
    anew.services[0].packets = 5;
    anew.services[1].name = "new".to_owned();
    let rates = Rates::between(&now, &anew);
    assert_eq!((rates.of("www", None), rates.of("new", None)), (None, None));
    // The clock stood still.
    assert_eq!(Rates::between(&now, &now).of("www", None), None);
}

#[test]
fn keys_move_sort_filter_open_and_end() {
    let mut app = app();
    let names = |app: &App| -> Vec<String> {
        let name =
            |item: &super::state::Item<'_>| item.backend.map_or(&item.service.name, |b| &b.name).clone();
        app.items().iter().map(name).collect()
    };
    assert_eq!(names(&app)[0], "www");
    press(&mut app, "jjj");
    assert_eq!(app.selected, 1, "the last row is the last");
    press(&mut app, "k\n");
    assert_eq!(app.view, View::Backends(Some("www".to_owned())));
    assert_eq!(names(&app), ["web1", "web2", "web3", "web4"]);
    press(&mut app, "ss");
    assert_eq!(
        (app.sort, names(&app)),
        (Sort::Packets, ["web1", "web4", "web3", "web2"].map(str::to_owned).into())
    );
    press(&mut app, "ss");
    assert_eq!(names(&app), ["web2", "web4", "web3", "web1"], "down, no next hop, draining");
    press(&mut app, "S");
    assert_eq!(names(&app)[0], "web1");
    press(&mut app, "/WEB3");
    assert_eq!(names(&app), ["web3"]);
    press(&mut app, "q");
    assert_eq!(app.filter, "WEB3q", "a letter of the filter ends nothing");
    app.key(KeyCode::Backspace, KeyModifiers::NONE);
    press(&mut app, "\n\n");
    assert!(app.details && !app.typing);
    press(&mut app, "\x1b\x1b\x1b");
    assert_eq!((app.view.clone(), app.filter.as_str(), app.selected), (View::Services, "", 0));
    press(&mut app, "p");
    let before = app.reading.as_ref().unwrap().at;
    app.take(Ok(reading(14)));
    assert_eq!(app.reading.as_ref().unwrap().at, before, "the picture is held");
    assert_eq!(app.key(KeyCode::Char('q'), KeyModifiers::NONE), Outcome::Ends);
    press(&mut app, "/");
    assert_eq!(app.key(KeyCode::Char('c'), KeyModifiers::CONTROL), Outcome::Ends);
}

#[test]
fn numbers_have_three_digits() {
    for (value, text) in [
        (0.0, "0"),
        (0.4, "0.4"),
        (9.0, "9.0"),
        (42.0, "42"),
        (999.0, "999"),
        (1000.0, "1.00k"),
        (1234.0, "1.23k"),
        (12_345.0, "12.3k"),
        (99_949.0, "99.9k"),
        (99_950.0, "100k"),
        (999_600.0, "1.00M"),
        (5e9, "5.00G"),
        (2e19, "20E"),
        (-1.0, "0"),
        (f64::NAN, "0"),
    ] {
        assert_eq!(draw::scaled(value), text, "{value}");
    }
}

#[test]
fn an_interval_is_a_number_of_seconds() {
    assert_eq!(super::interval("0.5"), Ok(Duration::from_millis(500)));
    for bad in ["0", "0.1", "61", "-1", "NaN", "inf", "1s", ""] {
        assert!(super::interval(bad).unwrap_err().contains("expected seconds"), "{bad}");
    }
}
