//! `[service.health]` and `[defaults.health]`.

use super::{
    checks::{CheckKeys, Http},
    duration::{format_duration, parse_duration},
    reader::{Refusal, Section, Setting, one_of, text, wrong_type},
};
use crate::model::{
    DnsCheck, ExecCheck, Forward, Health, HealthCheck, HealthSpec, PortSpec, Protocol, UdpCheck, Via,
};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Tcp,
    Http,
    Https,
    Grpc,
    Mysql,
    Redis,
    Udp,
    Icmp,
    Dns,
    Exec,
}

const KINDS: [(&str, Kind); 11] = [
    ("tcp", Kind::Tcp),
    ("http", Kind::Http),
    ("https", Kind::Https),
    ("grpc", Kind::Grpc),
    ("mysql", Kind::Mysql),
    ("redis", Kind::Redis),
    ("udp", Kind::Udp),
    ("icmp", Kind::Icmp),
    ("dns", Kind::Dns),
    ("exec", Kind::Exec),
    ("none", Kind::None),
];

/// What one section says.
pub(super) struct HealthSettings {
    kind: Setting<Kind>,
    via: Setting<Via>,
    /// The keys of the types in `checks`.
    keys: CheckKeys,
    send: Setting<Vec<u8>>,
    expect: Setting<Vec<u8>>,
    name: Setting<String>,
    record: Setting<String>,
    command: Setting<Vec<String>>,
    interval: Setting<Duration>,
    timeout: Setting<Duration>,
    rise: Setting<u32>,
    fall: Setting<u32>,
    port: Setting<u16>,
    initial: Setting<Health>,
    fast_interval: Setting<Duration>,
    backoff: Setting<Duration>,
}

impl HealthSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self {
        kind: Setting::Absent,
        via: Setting::Absent,
        keys: CheckKeys::ABSENT,
        send: Setting::Absent,
        expect: Setting::Absent,
        name: Setting::Absent,
        record: Setting::Absent,
        command: Setting::Absent,
        interval: Setting::Absent,
        timeout: Setting::Absent,
        rise: Setting::Absent,
        fall: Setting::Absent,
        port: Setting::Absent,
        initial: Setting::Absent,
        fast_interval: Setting::Absent,
        backoff: Setting::Absent,
    };

    pub(super) fn read(section: &Section<'_>) -> Self {
        Self {
            kind: section.word("type", &KINDS, &[]),
            via: section.word("via", &VIAS, &[]),
            keys: CheckKeys::read(section),
            send: section.text("send", BYTES, bytes),
            expect: section.text("expect", BYTES, bytes),
            name: section.text("name", NAME, dns_name),
            record: section.text("record", &one_of(&RECORDS), record),
            command: command(section),
            interval: duration(section, "interval", Duration::from_millis(10), Duration::from_secs(3600)),
            timeout: duration(section, "timeout", Duration::from_millis(1), Duration::from_secs(3600)),
            rise: section.integer("rise", 1, 255),
            fall: section.integer("fall", 1, 255),
            port: section.integer("port", 1, 65_535),
            initial: section.word("initial", &INITIAL, &[]),
            fast_interval: duration(
                section,
                "fast_interval",
                Duration::from_millis(10),
                Duration::from_secs(3600),
            ),
            backoff: duration(section, "backoff", Duration::from_millis(10), Duration::from_secs(24 * 3600)),
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
        Some(interval) => section.notes.place(interval, at),
        None => "the default".to_owned(),
    };
    let expected = format!("at most the interval, \"{}\" ({place})", format_duration(interval));
    section.refuse(at, "timeout", found, Refusal::expected(expected));
}

/// What a health check is merged for.
pub(super) struct Checked<'s> {
    pub(super) protocol: Protocol,
    pub(super) forward: Forward,
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
    check_keys(section, own, kind_setting, kind);
    check_times(section, own, defaults);

    let interval = section.pick("interval", own.interval.or(&defaults.interval), built_in.interval);
    // The built-in time-out gives way to a shorter interval; one that was set does not.
    let timeout = section.pick("timeout", own.timeout.or(&defaults.timeout), built_in.timeout.min(interval));
    let via = merge_via(section, own, of, kind);
    let port_setting = own.port.or(&defaults.port);
    let port = section.pick("port", &some(port_setting), None);
    let several = of.port.is_some_and(|port| port.single().is_none());
    // An echo request has no port, and a command may know better.
    let needs_port = !matches!(kind, Kind::None | Kind::Icmp | Kind::Exec);
    if needs_port && several && *port_setting == Setting::Absent && *kind_setting != Setting::Refused {
        let why = Refusal::expected("the port to check, since the service has several")
            .but("or set type = \"none\"");
        section.refuse(section.at, "port", "port is missing".to_owned(), why);
    }
    let check = match kind {
        Kind::None => HealthCheck::None,
        Kind::Tcp => HealthCheck::Tcp,
        Kind::Http => own.keys.http(section, &defaults.keys, Http::Plain),
        Kind::Https => own.keys.http(section, &defaults.keys, Http::Tls),
        Kind::Grpc => own.keys.grpc(section, &defaults.keys),
        Kind::Mysql => own.keys.mysql(section, &defaults.keys),
        Kind::Redis => own.keys.redis(section, &defaults.keys),
        Kind::Udp => HealthCheck::Udp(UdpCheck {
            send: section.pick("send", own.send.or(&defaults.send), Vec::new()),
            expect: section.pick("expect", &some(own.expect.or(&defaults.expect)), None),
        }),
        Kind::Icmp => HealthCheck::Icmp,
        Kind::Dns => HealthCheck::Dns(DnsCheck {
            name: section.pick("name", own.name.or(&defaults.name), ".".to_owned()),
            record: section.pick("record", own.record.or(&defaults.record), "NS".to_owned()),
        }),
        Kind::Exec => {
            let setting = own.command.or(&defaults.command);
            if *setting == Setting::Absent {
                section.missing("command", COMMAND);
            }
            HealthCheck::Exec(ExecCheck {
                command: section.pick("command", setting, Vec::new()),
                user: own.keys.system_user(section, &defaults.keys),
            })
        }
    };
    let rise = section.pick("rise", own.rise.or(&defaults.rise), built_in.rise);
    let fall = section.pick("fall", own.fall.or(&defaults.fall), built_in.fall);
    let initial = section.pick("initial", own.initial.or(&defaults.initial), built_in.initial);
    let fast = own.fast_interval.or(&defaults.fast_interval);
    check_pace(section, "fast_interval", fast, interval, "at most", |fast| fast <= interval);
    let backoff = own.backoff.or(&defaults.backoff);
    check_pace(section, "backoff", backoff, interval, "at least", |longest| longest >= interval);
    let fast_interval = section.pick("fast_interval", &some(fast), None);
    let backoff = section.pick("backoff", &some(backoff), None);
    HealthSpec { check, via, interval, timeout, rise, fall, port, initial, fast_interval, backoff }
}

/// Words for [`HealthSpec::via`].
pub(super) const VIAS: [(&str, Via); 2] = [("backend", Via::Backend), ("vip", Via::Vip)];

/// Refused where there is no virtual address on the backend, or no packet is sent; as a default it has no effect there.
fn merge_via(section: &Section<'_>, own: &HealthSettings, of: &Checked<'_>, kind: Kind) -> Via {
    let via = section.pick("via", own.via.or(&of.defaults.via), Via::Backend);
    let why = match (of.forward, kind) {
        _ if via == Via::Backend => return via,
        (Forward::Nat | Forward::Snat, _) => {
            "with forward = \"nat\" or \"snat\" the packets that reach a backend are addressed to the backend itself"
        }
        (_, Kind::None | Kind::Exec) => "a check of type \"none\" or \"exec\" sends no packet",
        (Forward::Dsr | Forward::Ipip | Forward::Gue, _) => return via,
    };
    if let Some(at) = own.via.at() {
        let why = Refusal::advice(format!("{why}: remove the line"));
        section.refuse(at, "via", "via = \"vip\"".to_owned(), why);
    }
    Via::Backend
}

/// Words for [`HealthSpec::initial`].
pub(super) const INITIAL: [(&str, Health); 2] = [("up", Health::Unknown), ("down", Health::Down)];

/// An interval that takes the place of the ordinary one lies on its right side.
fn check_pace(
    section: &Section<'_>,
    key: &str,
    setting: &Setting<Duration>,
    interval: Duration,
    side: &str,
    fits: impl Fn(Duration) -> bool,
) {
    if let Some((pace, at)) = setting.get()
        && !fits(*pace)
    {
        let found = format!("{key} = \"{}\"", format_duration(*pace));
        let why = Refusal::expected(format!("{side} the interval, \"{}\"", format_duration(interval)));
        section.refuse(at, key, found, why);
    }
}

/// A TCP connection says something about a TCP service; about a UDP or QUIC service nothing does by itself.
fn default_kind(protocol: Protocol) -> Kind {
    match protocol {
        Protocol::Tcp => Kind::Tcp,
        Protocol::Udp | Protocol::Quic => Kind::None,
    }
}

pub(super) fn some<T: Clone>(setting: &Setting<T>) -> Setting<Option<T>> {
    match setting {
        Setting::Is(value, at) => Setting::Is(Some(value.clone()), *at),
        Setting::Absent => Setting::Absent,
        Setting::Refused => Setting::Refused,
    }
}

/// Keys that only checks of one type have are refused with another; `none` may switch off any check.
fn check_keys(section: &Section<'_>, own: &HealthSettings, setting: &Setting<Kind>, kind: Kind) {
    let type_refused = *setting == Setting::Refused;
    let unchecked_udp = kind == Kind::None && *setting == Setting::Absent;
    if type_refused || (kind == Kind::None && !unchecked_udp) {
        return;
    }
    let mut keys = own.keys.places();
    keys.extend([
        (&[Kind::Udp][..], "send", own.send.at()),
        (&[Kind::Udp], "expect", own.expect.at()),
        (&[Kind::Dns], "name", own.name.at()),
        (&[Kind::Dns], "record", own.record.at()),
        (&[Kind::Exec], "command", own.command.at()),
    ]);
    let mut foreign: Vec<(&[Kind], &str, usize)> = keys
        .into_iter()
        .filter(|(of, ..)| !of.contains(&kind))
        .filter_map(|(of, key, at)| Some((of, key, at?)))
        .collect();
    foreign.sort_by_key(|(.., at)| *at);
    // One message for all keys of the same types.
    while let Some((of, first, at)) = foreign.first().copied() {
        let (same, rest): (Vec<_>, Vec<_>) = foreign.into_iter().partition(|(other, ..)| *other == of);
        let keys: Vec<&str> = same.iter().map(|(_, key, _)| *key).collect();
        let names: Vec<&str> =
            KINDS.into_iter().filter(|(_, kind)| of.contains(kind)).map(|(name, _)| name).collect();
        let names = one_of(&names);
        let found = format!("{} without type = {names}", keys.join(", "));
        let why = Refusal::advice(format!(
            "only a check of type {names} uses that: set the type, or remove the rest"
        ));
        section.refuse(at, first, found, why);
        foreign = rest;
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
        let place = section.notes.place(set, at);
        let why =
            Refusal::expected(format!("at least the timeout, \"{}\" ({place})", format_duration(*timeout)))
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

const BYTES: &str = "text of at most 512 bytes, others than visible ASCII as \\xNN, \\r, \\n or \\t";

/// Bytes as text: `\\xNN` for any byte, and the escapes of `[u8]::escape_ascii`.
fn bytes(text: &str) -> Result<Vec<u8>, Refusal> {
    let refused = || Refusal::expected(BYTES);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(quoted @ (b'\\' | b'"' | b'\'')) => quoted,
                Some(b'x') => {
                    let mut digit = || char::from(rest.next()?).to_digit(16);
                    let high = digit().ok_or_else(refused)?;
                    (high * 16 + digit().ok_or_else(refused)?) as u8
                }
                _ => return Err(refused()),
            },
            plain => plain,
        });
    }
    if bytes.len() <= 512 { Ok(bytes) } else { Err(refused()) }
}

const NAME: &str = "a domain name such as \"www.example.com\", or \".\"";

fn dns_name(text: &str) -> Result<String, Refusal> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let valid =
        text == "." || (text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label));
    if valid { Ok(text.to_owned()) } else { Err(Refusal::expected(NAME)) }
}

const RECORDS: [&str; 9] = ["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"];

fn record(text: &str) -> Result<String, Refusal> {
    if RECORDS.contains(&text) { Ok(text.to_owned()) } else { Err(Refusal::expected(one_of(&RECORDS))) }
}

pub(super) const COMMAND: &str =
    "an array of a program's absolute path and its arguments, such as [\"/usr/local/bin/check\", \"-v\"]";

pub(super) fn command(section: &Section<'_>) -> Setting<Vec<String>> {
    let mut first = true;
    let words = section.list("command", COMMAND, |value| {
        let word = text(value, COMMAND)?;
        let absolute = word.starts_with('/');
        if word.contains('\0') || (std::mem::take(&mut first) && !absolute) {
            return Err(Refusal::expected(COMMAND));
        }
        Ok(word.to_owned())
    });
    match words {
        Setting::Is(words, at) => Setting::Is(words.into_iter().map(|(word, _)| word).collect(), at),
        Setting::Absent => Setting::Absent,
        Setting::Refused => Setting::Refused,
    }
}
