//! `[service.health]` and `[defaults.health]`.

use super::{
    duration::{format_duration, parse_duration},
    reader::{Refusal, Section, Setting, integer, one_of, text, wrong_type},
};
use crate::model::{HealthCheck, HealthSpec, HttpCheck, PortSpec, Protocol, StatusRange};
use std::time::Duration;
use toml::de::DeValue;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Tcp,
    Http,
}

/// What one section says.
pub(super) struct HealthSettings {
    kind: Setting<Kind>,
    path: Setting<String>,
    host: Setting<String>,
    method: Setting<String>,
    status: Setting<Vec<StatusRange>>,
    interval: Setting<Duration>,
    timeout: Setting<Duration>,
    rise: Setting<u32>,
    fall: Setting<u32>,
    port: Setting<u16>,
}

impl HealthSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self {
        kind: Setting::Absent,
        path: Setting::Absent,
        host: Setting::Absent,
        method: Setting::Absent,
        status: Setting::Absent,
        interval: Setting::Absent,
        timeout: Setting::Absent,
        rise: Setting::Absent,
        fall: Setting::Absent,
        port: Setting::Absent,
    };

    pub(super) fn read(section: &Section<'_>) -> Self {
        let kinds = [("tcp", Kind::Tcp), ("http", Kind::Http), ("none", Kind::None)];
        Self {
            kind: section.word("type", &kinds, &["https", "udp", "icmp", "dns", "exec"]),
            path: section.text("path", PATH, path),
            host: section.text("host", HOST, host),
            method: section.text("method", &one_of(&METHODS), method),
            status: section.read("status", status),
            interval: duration(section, "interval", Duration::from_millis(10), Duration::from_secs(3600)),
            timeout: duration(section, "timeout", Duration::from_millis(1), Duration::from_secs(3600)),
            rise: section.integer("rise", 1, 255),
            fall: section.integer("fall", 1, 255),
            port: section.integer("port", 1, 65_535),
        }
    }

    /// Checks `[defaults.health]` by itself, so that what is wrong there is not said of every service.
    pub(super) fn check_defaults(&mut self, section: &Section<'_>) {
        let built_in = HealthSpec::default().interval;
        if let Some((timeout, at)) = self.timeout.get() {
            let interval = self.interval.value().copied().unwrap_or(built_in);
            if *timeout > interval && self.interval != Setting::Refused {
                too_long(section, at, *timeout, interval, self.interval.at());
                self.timeout = Setting::Refused;
            }
        }
    }
}

fn too_long(
    section: &Section<'_>,
    at: usize,
    timeout: Duration,
    interval: Duration,
    interval_at: Option<usize>,
) {
    let found = format!("timeout = \"{}\"", format_duration(timeout));
    let place = match interval_at {
        Some(at) => format!("line {}", section.notes.line(at)),
        None => "the default".to_owned(),
    };
    let expected = format!("at most the interval, \"{}\" ({place})", format_duration(interval));
    section.refuse(at, "timeout", found, Refusal::expected(expected));
}

/// What a health check is merged for.
pub(super) struct Checked<'s> {
    pub(super) protocol: Protocol,
    /// The service's ports, where they are known.
    pub(super) port: Option<PortSpec>,
    pub(super) defaults: &'s HealthSettings,
}

/// The check of a service. `section` is `[service.health]`, or stands for it where there is none.
pub(super) fn merge(section: &Section<'_>, own: &HealthSettings, of: &Checked<'_>) -> HealthSpec {
    let defaults = of.defaults;
    let built_in = HealthSpec::default();
    let kind_setting = own.kind.or(&defaults.kind);
    let kind = section.pick("type", kind_setting, default_kind(of.protocol));
    check_http_keys(section, own, kind_setting, kind);
    check_times(section, own, defaults);

    let interval = section.pick("interval", own.interval.or(&defaults.interval), built_in.interval);
    // The built-in time-out gives way to a shorter interval; one that was set does not.
    let timeout = section.pick("timeout", own.timeout.or(&defaults.timeout), built_in.timeout.min(interval));
    let port_setting = own.port.or(&defaults.port);
    let port = section.pick("port", &some(port_setting), None);
    let several = of.port.is_some_and(|port| port.single().is_none());
    if kind != Kind::None && several && *port_setting == Setting::Absent && *kind_setting != Setting::Refused
    {
        let why = Refusal::expected("the port to check, since the service has several")
            .but("or set type = \"none\"");
        section.refuse(section.at, "port", "port is missing".to_owned(), why);
    }
    let check = match kind {
        Kind::None => HealthCheck::None,
        Kind::Tcp => HealthCheck::Tcp,
        Kind::Http => HealthCheck::Http(HttpCheck {
            method: section.pick("method", own.method.or(&defaults.method), "GET".to_owned()),
            path: section.pick("path", own.path.or(&defaults.path), "/".to_owned()),
            host: section.pick("host", &some(own.host.or(&defaults.host)), None),
            status: section.pick(
                "status",
                own.status.or(&defaults.status),
                vec![StatusRange { lo: 200, hi: 299 }],
            ),
        }),
    };
    let rise = section.pick("rise", own.rise.or(&defaults.rise), built_in.rise);
    let fall = section.pick("fall", own.fall.or(&defaults.fall), built_in.fall);
    HealthSpec { check, interval, timeout, rise, fall, port }
}

/// A TCP connection says something about a TCP service; about a UDP or QUIC service nothing does by itself.
fn default_kind(protocol: Protocol) -> Kind {
    match protocol {
        Protocol::Tcp => Kind::Tcp,
        Protocol::Udp | Protocol::Quic => Kind::None,
    }
}

fn some<T: Clone>(setting: &Setting<T>) -> Setting<Option<T>> {
    match setting {
        Setting::Is(value, at) => Setting::Is(Some(value.clone()), *at),
        Setting::Absent => Setting::Absent,
        Setting::Refused => Setting::Refused,
    }
}

/// Keys that only an HTTP check has are refused with a TCP check; `none` may switch off any check.
fn check_http_keys(section: &Section<'_>, own: &HealthSettings, setting: &Setting<Kind>, kind: Kind) {
    let type_refused = *setting == Setting::Refused;
    let unchecked_udp = kind == Kind::None && *setting == Setting::Absent;
    if type_refused || kind == Kind::Http || (kind == Kind::None && !unchecked_udp) {
        return;
    }
    let keys = [
        ("path", own.path.at()),
        ("host", own.host.at()),
        ("method", own.method.at()),
        ("status", own.status.at()),
    ];
    let mut present: Vec<(&str, usize)> = keys.iter().filter_map(|(key, at)| Some((*key, (*at)?))).collect();
    present.sort_by_key(|(_, at)| *at);
    if let Some((first, at)) = present.first() {
        let keys: Vec<&str> = present.iter().map(|(key, _)| *key).collect();
        let found = format!("{} without type = \"http\"", keys.join(", "));
        let why = Refusal::advice("only an HTTP check uses that: set the type, or remove the rest");
        section.refuse(*at, first, found, why);
    }
}

/// The time-out is at most the interval, wherever the two were set.
fn check_times(section: &Section<'_>, own: &HealthSettings, defaults: &HealthSettings) {
    let built_in = HealthSpec::default().interval;
    let interval = own.interval.or(&defaults.interval);
    if let Some((timeout, at)) = own.timeout.get() {
        let limit = interval.value().copied().unwrap_or(built_in);
        if *timeout > limit && *interval != Setting::Refused {
            too_long(section, at, *timeout, limit, interval.at());
        }
    } else if let (Setting::Absent, Some((timeout, set)), Some((interval, at))) =
        (&own.timeout, defaults.timeout.get(), own.interval.get())
        && timeout > interval
    {
        let found = format!("interval = \"{}\"", format_duration(*interval));
        let line = section.notes.line(set);
        let why = Refusal::expected(format!(
            "at least the timeout, \"{}\" (line {line})",
            format_duration(*timeout)
        ))
        .but("set a timeout here too");
        section.refuse(at, "interval", found, why);
    }
}

/// Reads a key whose value is a duration of a range.
pub(super) fn duration(section: &Section<'_>, key: &str, lo: Duration, hi: Duration) -> Setting<Duration> {
    let expected = format!("a duration from \"{}\" to \"{}\"", format_duration(lo), format_duration(hi));
    section.read(key, |value| {
        let why = || Refusal::expected(expected.clone());
        if value.is_integer() {
            return wrong_type(&expected)
                .map_err(|why: Refusal| why.but("write it with a unit, like \"1s\""));
        }
        let text = text(value, &expected)?;
        match parse_duration(text) {
            Some(duration) if (lo..=hi).contains(&duration) => Ok(duration),
            Some(_) => Err(why()),
            None => Err(why().but("write it like \"500ms\", \"1s\" or \"1m30s\"")),
        }
    })
}

const PATH: &str = "an absolute path such as \"/healthz\"";

fn path(text: &str) -> Result<String, Refusal> {
    if !text.starts_with('/') {
        return Err(Refusal::expected(PATH));
    }
    if text.len() > 1024 || !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains('#') {
        return Err(Refusal::expected("at most 1024 visible ASCII characters, without '#'")
            .but("write others percent-encoded"));
    }
    Ok(text.to_owned())
}

const HOST: &str = "a host name such as \"www.example.com\"";

fn host(text: &str) -> Result<String, Refusal> {
    let valid = (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if valid { Ok(text.to_owned()) } else { Err(Refusal::expected(HOST)) }
}

const METHODS: [&str; 2] = ["GET", "HEAD"];

fn method(text: &str) -> Result<String, Refusal> {
    if METHODS.contains(&text) { Ok(text.to_owned()) } else { Err(Refusal::expected(one_of(&METHODS))) }
}

const STATUS: &str = "status codes from 100 to 599, such as 200, \"200-299\" or [200, \"301-302\"]";

fn status(value: &DeValue<'_>) -> Result<Vec<StatusRange>, Refusal> {
    let refused = || Refusal::expected(STATUS);
    let range = |value: &DeValue<'_>| {
        let (lo, hi) = if value.is_integer() {
            let code = integer(value, STATUS)?;
            (code, code)
        } else {
            let text = text(value, STATUS)?;
            let code = |text: &str| text.trim().parse::<i64>().ok();
            match text.split_once('-') {
                Some((lo, hi)) => (code(lo), code(hi)),
                None => (code(text), code(text)),
            }
        };
        match (lo, hi) {
            (Some(lo @ 100..=599), Some(hi @ 100..=599)) if lo <= hi => {
                Ok(StatusRange { lo: lo as u16, hi: hi as u16 })
            }
            _ => Err(refused()),
        }
    };
    match value {
        DeValue::Array(array) if array.is_empty() => Err(refused()),
        DeValue::Array(array) => array.iter().map(|element| range(element.get_ref())).collect(),
        other => Ok(vec![range(other)?]),
    }
}
