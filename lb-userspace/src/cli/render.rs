//! The answers as text for people.

use super::table::{Align::Left, Align::Right, bytes, count, duration, pairs, printable, table};
use crate::control::api::*;
use crate::model::{Admin, Health, OnAllDown, Protocol, ServiceState};
use std::fmt::Write as _;
use std::net::SocketAddr;

pub fn status(view: &StatusView) -> String {
    let changes = match view.runtime_changes {
        0 => "as in the file".to_owned(),
        n => format!("with {} by lbctl", count(n, "change")),
    };
    let mut text = pairs(&[
        ("node", view.node.clone()),
        ("daemon", format!("lbd {}, pid {}, up {}", view.version, view.pid, duration(view.uptime_seconds))),
        ("kernel", view.kernel.clone()),
        ("program", format!("{}, map layout {}", view.program, view.abi)),
        ("configuration", format!("{}, hash {}, {changes}", view.config_file, view.config_hash)),
        ("services", format!("{} with {}", view.services, count(view.backends, "backend"))),
        ("map memory", bytes(view.map_bytes)),
    ]);
    if view.interfaces.is_empty() {
        text.push_str("\nattached to no interface: no packet is balanced\n");
    } else {
        text.push('\n');
        text += &table(
            [("INTERFACE", Left), ("INDEX", Right), ("MODE", Left), ("WARNING", Left)],
            view.interfaces.iter().map(|i| {
                [i.name.clone(), i.ifindex.to_string(), i.mode.clone(), i.warning.clone().unwrap_or_default()]
            }),
        );
    }
    for warning in &view.warnings {
        let _ = writeln!(text, "\nWARNING: {}", printable(warning));
    }
    text
}

/// Sessions and where they come from.
fn nat(view: &NatView) -> String {
    let which = if view.always { "of every flow" } else { "of backends that are clients" };
    let mut text = format!("{} {which}", count_of(view.sessions, "session"));
    if view.unanswered > 0 {
        let _ = write!(text, ", {} not answered yet", view.unanswered);
    }
    if !view.addresses.is_empty() {
        let from: Vec<_> = view.addresses.iter().map(ToString::to_string).collect();
        let _ = write!(text, ", from {}", from.join(", "));
    }
    if let Some(ports) = &view.ports {
        let _ = write!(text, " ports {ports}");
    }
    text
}

fn count_of(number: u64, what: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), what)
}

/// The state of a service and what it follows from.
fn pool(view: &PoolView) -> String {
    let PoolView { state, enabled, healthy, quorum_up, quorum_down, .. } = view;
    let meaning = match state {
        ServiceState::Up => "",
        ServiceState::UpPanic | ServiceState::DownPanic => {
            " (PANIC: every enabled backend is used, whatever its health)"
        }
        ServiceState::Down => " (nobody takes new flows)",
        ServiceState::DownBackup => " (backups take new flows)",
        ServiceState::DownDegraded => " (no quorum; the healthy ones serve on)",
    };
    let mut text = format!("{state}{meaning}; {healthy} of {enabled} enabled primaries healthy");
    let _ = match quorum_up == quorum_down {
        true => write!(text, ", quorum {quorum_up}"),
        false => write!(text, ", up with {quorum_up}, down below {quorum_down}"),
    };
    if view.panic_threshold > 0 {
        let _ = write!(text, ", panic below {}%", view.panic_threshold);
    }
    let _ = write!(text, "; on_all_down = {}", view.on_all_down);
    text
}

/// A backend that is not known to be down counts as up: it takes flows.
fn up(backend: &BackendView) -> bool {
    backend.health != Health::Down && backend.admin != Admin::Disabled
}

fn up_of_all(view: &ServiceView) -> String {
    format!("{}/{}", view.backends.iter().filter(|b| up(b)).count(), view.backends.len())
}

fn addresses(view: &ServiceView, separator: &str) -> String {
    view.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

pub fn services(views: &[ServiceView]) -> String {
    if views.is_empty() {
        return "no services: add one to the configuration file and run `lbctl reload`\n".to_owned();
    }
    table(
        [
            ("NAME", Left),
            ("ADDRESS", Left),
            ("PORT", Left),
            ("PROTO", Left),
            ("FORWARD", Left),
            ("SCHEDULER", Left),
            ("STATE", Left),
            ("PACKETS", Right),
            ("BYTES", Right),
            ("BACKENDS", Right),
        ],
        views.iter().map(|s| {
            [
                s.name.clone(),
                addresses(s, ","),
                s.port.clone(),
                s.protocol.to_string(),
                s.forward.to_string(),
                s.scheduler.to_string(),
                s.pool.state.to_string(),
                s.packets.to_string(),
                s.bytes.to_string(),
                up_of_all(s),
            ]
        }),
    )
}

pub fn service(view: &ServiceView) -> String {
    let port = if view.port == "0" { "every port".to_owned() } else { format!("port {}", view.port) };
    let SlotsView { total, plain, moving, tracked } = view.slots;
    let slots = if plain == total {
        format!("{total}, none changing")
    } else {
        format!("{total}: {plain} plain, {moving} moving, {tracked} tracked")
    };
    let connection_ids = view.quic.as_ref().map_or_else(String::new, |quic| {
        let length = count(quic.server_id_length.into(), "byte");
        format!("; server ids of {length} in connection IDs, config id {}", quic.config_id)
    });
    let mut rows = vec![
        ("service", view.name.clone()),
        ("addresses", addresses(view, ", ")),
        ("ports", format!("{}, {port}{connection_ids}", view.protocol)),
        ("forward", view.forward.to_string()),
        ("scheduler", view.scheduler.to_string()),
        ("slots", slots),
        ("nat", view.nat.as_ref().map(nat).unwrap_or_default()),
        ("traffic", format!("{} packets, {} bytes", view.packets, view.bytes)),
        ("backends", format!("{} up", up_of_all(view))),
        ("state", pool(&view.pool)),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    let mut text = pairs(&rows);
    text.push('\n');
    if view.backends.is_empty() {
        let fate = if view.pool.on_all_down == OnAllDown::Reject { "rejected" } else { "dropped" };
        let _ = writeln!(text, "no backends: every packet is {fate}; see `lbctl backend add --help`");
        return text;
    }
    text += &table(
        [
            ("NAME", Left),
            ("ADDRESS", Left),
            ("PORT", Right),
            ("ROLE", Left),
            ("WEIGHT", Right),
            ("ADMIN", Left),
            ("HEALTH", Left),
            ("SLOTS", Right),
            ("FLOWS", Right),
            ("PACKETS", Right),
            ("BYTES", Right),
            ("NOTE", Left),
        ],
        view.backends.iter().map(|b| {
            [
                b.name.clone(),
                b.address.to_string(),
                b.port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
                if b.backup { "backup" } else { "primary" }.to_owned(),
                super::gradual::weight(b),
                b.admin.to_string(),
                b.health.to_string(),
                b.slots.to_string(),
                (b.gradual.tracked_flows + b.gradual.sessions).to_string(),
                b.packets.to_string(),
                b.bytes.to_string(),
                note(b),
            ]
        }),
    );
    text
}

fn note(backend: &BackendView) -> String {
    let mut notes = Vec::new();
    // While it is up the last reason is history.
    if backend.health != Health::Up
        && let Some(reason) = &backend.health_reason
    {
        notes.push(reason.clone());
    }
    if let Some(passive) = &backend.passive {
        if let Some(ejection) = &passive.ejected {
            let left = duration(ejection.seconds_left as f64);
            notes.push(format!("ejected for {left} more: {}", ejection.reason));
        }
        notes.extend(passive.suspect.clone());
    }
    if let Some(id) = &backend.server_id {
        notes.push(format!("server id {id}"));
    }
    if !backend.reachable {
        notes.push("unreachable: no next hop".to_owned());
    }
    notes.extend(super::gradual::notes(&backend.gradual));
    if backend.origin != "file" {
        notes.push(format!("set at {}", backend.origin));
    }
    notes.join("; ")
}

pub fn drops(views: &[DropView], all: bool) -> String {
    let total: u64 = views.iter().map(|d| d.packets).fold(0, u64::saturating_add);
    if total == 0 && !all {
        return "no drops\n".to_owned();
    }
    table(
        [("REASON", Left), ("PACKETS", Right), ("MEANING", Left)],
        views
            .iter()
            .filter(|d| all || d.packets > 0)
            .map(|d| [d.reason.clone(), d.packets.to_string(), d.help.clone()]),
    )
}

pub fn config(view: &ConfigView) -> String {
    let mut text = format!("# {}, hash {}\n", printable(&view.file), printable(&view.hash));
    let lines: Vec<_> = view.settings.iter().map(|s| format!("{} = {}", s.key, s.value)).collect();
    // Long lists of addresses shall not push every origin to the right.
    let width = lines.iter().map(|line| line.chars().count()).filter(|n| *n <= 60).max().unwrap_or(0);
    for (line, setting) in lines.iter().zip(&view.settings) {
        let place = view.places.get(&setting.key).map(|place| format!(" {}", printable(place)));
        let origin = setting.origin.clone() + &super::changes::signature(setting.by.as_deref(), setting.at);
        let _ = writeln!(
            text,
            "{:width$}  # {}{}",
            printable(line),
            printable(&origin),
            place.unwrap_or_default()
        );
    }
    text
}

pub fn change(view: &ChangeView) -> String {
    let mut text = format!("{}\n", printable(&view.message));
    for change in &view.changes {
        let _ = writeln!(text, "  {}", printable(change));
    }
    if let Some(plan) = &view.plan {
        text += &super::gradual::plan(plan);
    } else if view.revision > 0 && !view.planned_only {
        let _ = writeln!(text, "revision {}", view.revision);
    }
    if view.planned_only {
        let _ = writeln!(text, "nothing was touched: this was only the plan");
    }
    text
}

pub fn explain(
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    view: &ExplainView,
) -> String {
    let service = view.service.as_deref().map(|name| format!("service {name}"));
    let what = match (view.verdict.as_str(), &view.backend, service) {
        ("forward", Some(backend), Some(service)) => {
            format!("is forwarded to backend {backend} of {service}")
        }
        ("forward", None, Some(service)) => format!("is forwarded by {service}"),
        ("drop", _, Some(service)) => format!("is dropped by {service}"),
        ("drop", _, None) => "is dropped".to_owned(),
        ("reject", _, Some(service)) => format!("is rejected by {service}"),
        ("pass", _, _) => "is left to the kernel".to_owned(),
        (verdict, _, _) => format!("gets the verdict {verdict}"),
    };
    let mut text = format!("A {protocol} packet from {source} to {destination} {}.\n", printable(&what));
    let _ = writeln!(text, "  why     {}", printable(&view.reason));
    if let Some(slot) = view.slot {
        let state = view.slot_state.as_ref().map(|state| format!(", {state}")).unwrap_or_default();
        let _ = writeln!(text, "  slot    {slot}{}", printable(&state));
    }
    if let Some(egress) = &view.egress {
        let _ = writeln!(text, "  egress  {}", printable(egress));
    }
    if let Some(flow) = &view.flow {
        let _ = writeln!(text, "  flow    recorded, {}", printable(flow));
    }
    if let Some(headers) = &view.headers {
        super::observe::headers(&mut text, headers);
    }
    // Worth a word only where it is not as it should be.
    if let Some(by) = view.by.as_ref().filter(|by| by.starts_with("the daemon")) {
        let _ = writeln!(text, "  by      {}", printable(by));
    }
    text
}

/// The number of refused packets, and of what kind they were.
fn refused(drops: &[DropView]) -> String {
    let some: Vec<_> = drops.iter().filter(|d| d.packets > 0).collect();
    let kinds: Vec<_> = some.iter().map(|d| format!("{} {}", d.packets, d.reason)).collect();
    if kinds.is_empty() { "0".to_owned() } else { kinds.join(", ") }
}

pub fn decap(views: &[DecapView]) -> String {
    if views.is_empty() {
        return "the decapsulation program is attached to no interface\n".to_owned();
    }
    table(
        [
            ("INTERFACE", Left),
            ("INDEX", Right),
            ("MODE", Left),
            ("GUE PORT", Right),
            ("PACKETS", Right),
            ("BYTES", Right),
            ("REFUSED", Right),
            ("FROM", Left),
        ],
        views.iter().map(|d| {
            [
                d.interface.clone(),
                d.ifindex.to_string(),
                d.mode.clone(),
                d.gue_port.to_string(),
                d.packets.to_string(),
                d.bytes.to_string(),
                refused(&d.refused),
                d.sources.join(","),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_in_words() {
        let none = DropView { reason: "ttl".to_owned(), packets: 0, help: "expired".to_owned() };
        assert_eq!(drops(std::slice::from_ref(&none), false), "no drops\n");
        assert_eq!(drops(&[none], true), "REASON  PACKETS  MEANING\nttl           0  expired\n");
        assert!(services(&[]).starts_with("no services"));
        assert!(decap(&[]).contains("no interface"));
    }

    #[test]
    fn one_long_setting_does_not_push_the_others_aside() {
        let setting = |key: &str, value: String| SettingView {
            key: key.to_owned(),
            value: value.into(),
            origin: "file".to_owned(),
            by: None,
            at: None,
        };
        let settings = vec![setting("a", "x".to_owned()), setting("b", "y".repeat(70))];
        let places = [("b".to_owned(), "d/b.toml:3".to_owned())].into();
        let view = ConfigView { file: "f".to_owned(), hash: "h".to_owned(), settings, places };
        let long = "y".repeat(70);
        let shown = format!("# f, hash h\na = \"x\"  # file\nb = \"{long}\"  # file d/b.toml:3\n");
        assert_eq!(config(&view), shown);
    }

    #[test]
    fn a_verdict_of_a_newer_daemon_is_shown_as_it_is() {
        let view = ExplainView {
            verdict: "answer".to_owned(),
            service: None,
            backend: None,
            reason: "ping of a virtual address".to_owned(),
            ..ExplainView::default()
        };
        let (from, to) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        assert!(explain(Protocol::Udp, from, to, &view).contains("gets the verdict answer."));
    }
}
