//! `HTTP_GET`, `TCP_CHECK` and the other checkers of a real server.

use super::{
    super::{draft::Health, ledger::Ledger, write::texts},
    seconds,
    syntax::Directive,
};
use crate::model::Protocol;
use std::time::Duration;
use toml_edit::{Array, Value};

/// What the server, or the service, says for all checkers.
#[derive(Debug, Clone, Default)]
pub(super) struct Defaults {
    timeout: Option<Duration>,
    fast: Option<Duration>,
    retry: Option<u32>,
    host: Option<String>,
}

impl Defaults {
    /// Takes one setting in.
    pub(super) fn set(&mut self, directive: &Directive, ledger: &mut Ledger) {
        let value = directive.word(1);
        let known = match directive.name() {
            "connect_timeout" => set(&mut self.timeout, seconds(value)),
            "delay_before_retry" => set(&mut self.fast, seconds(value)),
            "retry" | "nb_get_retry" => set(&mut self.retry, value.parse().ok()),
            "virtualhost" => set(&mut self.host, Some(value.to_owned()).filter(|host| !host.is_empty())),
            "warmup" => {
                ledger.left(directive.lines(), &directive.head(), "lbd spreads the first checks by itself");
                return;
            }
            _ => false,
        };
        if known {
            ledger.mapped(directive.line);
        } else {
            ledger.left(directive.lines(), &directive.head(), "not understood");
        }
    }

    fn health(&self, kind: &'static str) -> Health {
        Health {
            kind: Some(kind),
            timeout: self.timeout,
            fast_interval: self.fast,
            // Up after one success; down after the first failure and all retries.
            rise: Some(1),
            fall: self.retry.map(|retry| retry.saturating_add(1)),
            ..Health::default()
        }
    }
}

fn set<T>(to: &mut Option<T>, value: Option<T>) -> bool {
    let known = value.is_some();
    *to = value.or(to.take());
    known
}

pub(super) fn is_checker(name: &str) -> bool {
    name.ends_with("_CHECK") || matches!(name, "HTTP_GET" | "SSL_GET")
}

/// The check; nothing if lbd has none like it.
pub(super) fn read(
    section: &Directive,
    protocol: Protocol,
    of_server: &Defaults,
    ledger: &mut Ledger,
) -> Option<Health> {
    let mut defaults = of_server.clone();
    let (name, lines) = (section.name(), section.lines());
    match name {
        "FILE_CHECK" | "BFD_CHECK" => {
            ledger.left(lines, name, "lbd has no such check");
            return None;
        }
        "SMTP_CHECK" => {
            let instead =
                if protocol == Protocol::Tcp { "a TCP connection is tried" } else { "none is made" };
            ledger.left(lines, name, format!("lbd does not speak SMTP: {instead} in its place"));
            return (protocol == Protocol::Tcp).then(|| of_server.health("tcp"));
        }
        _ => ledger.mapped(section.line),
    }
    let mut port = None;
    let mut keys: Vec<(&'static str, Value)> = Vec::new();
    let mut command = None;
    let mut sni = false;
    let mut urls = Vec::new();
    for directive in &section.children {
        let (value, head, lines) = (directive.word(1), directive.head(), directive.lines());
        let mut key = |key, value: Value, ledger: &mut Ledger| {
            keys.push((key, value));
            ledger.mapped(directive.line);
        };
        match (name, directive.name()) {
            (
                _,
                "connect_timeout" | "delay_before_retry" | "retry" | "nb_get_retry" | "virtualhost"
                | "warmup",
            ) => {
                defaults.set(directive, ledger);
            }
            (_, "connect_port") => match value.parse::<u16>() {
                Ok(number) => {
                    port = Some(number).filter(|port| *port > 0);
                    ledger.mapped(directive.line);
                }
                Err(_) => ledger.left(lines, &head, "no port"),
            },
            (_, "connect_ip") => ledger.left(lines, &head, "lbd checks the backend's own address"),
            (_, "bindto" | "bind_if" | "bind_port" | "fwmark") => {
                ledger.left(lines, &head, "lbd lets the routing choose where a check leaves from");
            }
            (_, "alpha") => ledger.left(lines, &head, "a service has one initial state: initial = \"down\""),
            ("HTTP_GET" | "SSL_GET", "url") => urls.push(directive),
            ("SSL_GET", "enable_sni") => {
                sni = true;
                ledger.mapped(directive.line);
            }
            ("HTTP_GET" | "SSL_GET", "http_protocol") => {
                ledger.left(lines, &head, "lbd asks in HTTP/1.1");
            }
            ("MISC_CHECK", "misc_path") => command = Some(directive),
            ("MISC_CHECK", "misc_timeout") => {
                defaults.timeout = seconds(value).or(defaults.timeout);
                ledger.mapped(directive.line);
            }
            ("MISC_CHECK", "user") => key("user", value.into(), ledger),
            ("MISC_CHECK", "misc_dynamic") => {
                ledger.left(lines, &head, "a command says up or down, no weight");
            }
            ("DNS_CHECK", "name") => key("name", value.trim_end_matches('.').into(), ledger),
            ("DNS_CHECK", "type") => key("record", value.into(), ledger),
            ("UDP_CHECK", "payload") => match bytes(&directive.words[1..]) {
                Some(payload) => key("send", payload.into(), ledger),
                None => ledger.left(lines, &head, "no bytes in hexadecimal"),
            },
            ("UDP_CHECK", "require_reply") => {
                let reply = bytes(&directive.words[1..]);
                match reply.filter(|reply| !reply.is_empty()) {
                    Some(reply) => key("expect", reply.into(), ledger),
                    None => ledger.left(
                        lines,
                        &head,
                        "lbd cannot ask for any answer at all: set expect, or silence passes",
                    ),
                }
            }
            _ => ledger.left(lines, &head, "lbd has no equal"),
        }
    }
    let mut health = match name {
        "TCP_CHECK" => defaults.health("tcp"),
        "PING_CHECK" => defaults.health("icmp"),
        "UDP_CHECK" => defaults.health("udp"),
        "DNS_CHECK" => defaults.health("dns"),
        "HTTP_GET" | "SSL_GET" => http(section, &urls, &mut defaults, sni, &mut keys, ledger)?,
        "MISC_CHECK" => {
            let command = command.and_then(|directive| exec(directive, ledger));
            let Some(command) = command else {
                ledger.left(lines, name, "its command is no absolute path: no check is made");
                return None;
            };
            keys.insert(0, ("command", command));
            defaults.health("exec")
        }
        _ => {
            ledger.left(lines, name, "lbd has no such check");
            return None;
        }
    };
    health.port = port;
    health.keys = keys;
    Some(health)
}

/// The command with its arguments, all in one word or not.
fn exec(directive: &Directive, ledger: &mut Ledger) -> Option<Value> {
    let words: Vec<&str> = directive.words[1..].iter().flat_map(|word| word.split_whitespace()).collect();
    if !words.first()?.starts_with('/') {
        return None;
    }
    ledger.mapped(directive.line);
    Some(texts(words))
}

/// Bytes in hexadecimal as lbd escapes them.
fn bytes(words: &[String]) -> Option<String> {
    let digits: String = words.concat();
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    Some(bytes?.escape_ascii().to_string())
}

fn http(
    section: &Directive,
    urls: &[&Directive],
    defaults: &mut Defaults,
    sni: bool,
    keys: &mut Vec<(&'static str, Value)>,
    ledger: &mut Ledger,
) -> Option<Health> {
    let tls = section.name() == "SSL_GET";
    let mut host = defaults.host.take();
    let mut status = Array::new();
    for (i, url) in urls.iter().enumerate() {
        if i > 0 {
            ledger.left(url.lines(), "url", "a check asks for one path: the first");
            continue;
        }
        ledger.mapped(url.line);
        for directive in &url.children {
            let (value, head, lines) = (directive.word(1), directive.head(), directive.lines());
            match directive.name() {
                "path" => {
                    keys.push(("path", value.into()));
                    ledger.mapped(directive.line);
                }
                "virtualhost" => {
                    host = Some(value.to_owned());
                    ledger.mapped(directive.line);
                }
                "status_code" => {
                    let ranges = directive.words[1..].iter().flat_map(|word| word.split(','));
                    for range in ranges.filter(|range| !range.is_empty()) {
                        status.push(range);
                    }
                    ledger.mapped(directive.line);
                }
                "regex" => {
                    keys.push(("body", value.into()));
                    ledger.mapped(directive.line);
                    ledger.differs(
                        lines,
                        &head,
                        "lbd's regular expressions know no look-around and no back-references",
                    );
                }
                "digest" => ledger.left(
                    lines,
                    &head,
                    "lbd compares no digests: the status decides; set body to a regular expression",
                ),
                "tls_compliant" => ledger.left(lines, &head, "lbd is strict about the end of TLS"),
                _ => ledger.left(lines, &head, "lbd has no equal"),
            }
        }
    }
    if !status.is_empty() {
        keys.push(("status", Value::Array(status)));
    }
    if let Some(host) = host {
        if tls && sni {
            keys.push(("server_name", host.as_str().into()));
        }
        keys.push(("host", host.into()));
    }
    if tls {
        // keepalived takes any certificate.
        keys.push(("verify", false.into()));
    }
    Some(defaults.health(if tls { "https" } else { "http" }))
}
