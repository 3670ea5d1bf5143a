//! The draft as TOML.

use super::{
    Kind,
    draft::{Draft, Health, Port, Service},
    ledger::{Remark, shown},
};
use crate::config::format_duration;
use crate::model::{Forward, Protocol, Scheduler};
use std::fmt::Write as _;
use std::time::Duration;
use toml_edit::{Array, Value};

/// An array of texts.
pub(super) fn texts(items: impl IntoIterator<Item = impl ToString>) -> Value {
    Value::Array(items.into_iter().map(|item| item.to_string()).collect::<Array>())
}

pub(super) fn time(duration: Duration) -> Value {
    Value::from(format_duration(duration))
}

fn line(text: &mut String, key: &str, value: &Value) {
    let _ = writeln!(text, "{key} = {value}");
}

/// The settings of a check, in the order they are written.
pub(super) fn health(health: &Health) -> String {
    let mut text = String::new();
    if let Some(kind) = health.kind {
        line(&mut text, "type", &kind.into());
    }
    if health.kind == Some("none") {
        return text;
    }
    for (key, value) in &health.keys {
        line(&mut text, key, value);
    }
    let times =
        [("interval", health.interval), ("timeout", health.timeout), ("fast_interval", health.fast_interval)];
    for (key, duration) in times {
        if let Some(duration) = duration {
            line(&mut text, key, &time(duration));
        }
    }
    for (key, count) in [("rise", health.rise), ("fall", health.fall), ("port", health.port.map(u32::from))] {
        if let Some(count) = count {
            line(&mut text, key, &i64::from(count).into());
        }
    }
    if health.starts_down {
        line(&mut text, "initial", &"down".into());
    }
    text
}

fn port(port: Port) -> Value {
    match port {
        Port::Any => 0.into(),
        Port::One(port) => i64::from(port).into(),
        Port::Range(first, last) => format!("{first}-{last}").into(),
    }
}

fn service(text: &mut String, service: &Service) {
    let from = service.lines.from;
    let _ = writeln!(text, "\n# Line {from}: {}\n[[service]]", shown(&service.directive));
    line(text, "name", &service.name.as_str().into());
    line(text, "addresses", &texts(&service.addresses));
    line(text, "port", &port(service.port));
    line(text, "protocol", &service.protocol.to_string().into());
    line(text, "forward", &service.forward.to_string().into());
    if service.scheduler != Scheduler::Maglev {
        line(text, "scheduler", &service.scheduler.to_string().into());
    }
    if let Some(idle) = service.idle_timeout {
        line(text, "idle_timeout", &time(idle));
    }
    if let Some(time) = service.slow_start {
        line(text, "slow_start", &self::time(time));
    }
    if let Some((up, down)) = service.quorum {
        line(text, "quorum_up", &i64::from(up).into());
        line(text, "quorum_down", &i64::from(down).into());
    }
    if let Some(port) = service.gue_port.filter(|_| service.forward == Forward::Gue) {
        line(text, "gue_port", &i64::from(port).into());
    }
    if service.forward == Forward::Snat {
        text.push_str("\n[service.snat]\n");
        line(text, "addresses", &texts(&service.snat));
    }
    let checks = health(&service.health);
    let usual = if service.protocol == Protocol::Tcp { "type = \"tcp\"\n" } else { "type = \"none\"\n" };
    if checks != usual {
        let _ = write!(text, "\n[service.health]\n{checks}");
    }
    for backend in &service.backends {
        text.push_str("\n[[service.backend]]\n");
        line(text, "name", &backend.name.as_str().into());
        line(text, "address", &backend.address.to_string().into());
        if let Some(port) = backend.port {
            line(text, "port", &i64::from(port).into());
        }
        if let Some(weight) = backend.weight {
            line(text, "weight", &i64::from(weight).into());
        }
        if backend.backup {
            line(text, "backup", &true.into());
        }
    }
}

/// The whole file.
pub(super) fn toml(kind: Kind, name: &str, draft: &Draft, remarks: &[Remark]) -> String {
    let mut text = format!("# Made by `lbctl import {}` from {}.\n", kind.name(), shown(name));
    if remarks.is_empty() {
        text.push_str("# All of it was taken over.\n");
    } else {
        text.push_str("# What differs and what was left out, by line of that file:\n");
    }
    for remark in remarks {
        // Reasons may quote what stands in the file.
        let remark: String =
            remark.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(text, "#   {remark}");
    }
    text.push_str("\n[node]\n");
    if let Some(name) = &draft.node_name {
        line(&mut text, "name", &name.as_str().into());
    }
    if draft.guessed {
        text.push_str("# Check this: the interfaces that packets come in on.\n");
    }
    line(&mut text, "interfaces", &texts(&draft.interfaces));
    for vrrp in &draft.vrrp {
        let _ = writeln!(text, "\n# Line {}\n[[vrrp]]", vrrp.lines.from);
        line(&mut text, "name", &vrrp.name.as_str().into());
        line(&mut text, "interface", &vrrp.interface.as_str().into());
        for (key, value) in &vrrp.keys {
            line(&mut text, key, value);
        }
        line(&mut text, "addresses", &texts(&vrrp.addresses));
    }
    for part in &draft.parts {
        let _ = writeln!(text, "\n# Line {}\n[[{}]]", part.lines.from, part.kind);
        line(&mut text, "name", &part.name.as_str().into());
        for (key, value) in &part.keys {
            line(&mut text, key, value);
        }
    }
    for each in &draft.services {
        service(&mut text, each);
    }
    text
}
