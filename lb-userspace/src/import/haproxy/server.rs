//! `server` and `default-server`.

use super::{
    super::{draft::At, ledger::Ledger},
    syntax::{Line, time},
};
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) at: At,
    pub(super) port: Option<u16>,
    pub(super) weight: u32,
    pub(super) checks: Checks,
}

/// What a server says of its checks and its share.
#[derive(Debug, Clone, Default)]
pub(super) struct Checks {
    pub(super) check: bool,
    pub(super) inter: Option<Duration>,
    pub(super) fastinter: Option<Duration>,
    pub(super) rise: Option<u32>,
    pub(super) fall: Option<u32>,
    pub(super) port: Option<u16>,
    pub(super) tls: bool,
    pub(super) verify: bool,
    weight: Option<u32>,
    pub(super) slow_start: Option<Duration>,
    pub(super) backup: bool,
    disabled: bool,
    /// Why it cannot be a backend.
    refused: Option<&'static str>,
}

impl Server {
    /// The server of a line; nothing if it cannot be a backend.
    pub(super) fn read(line: &Line, defaults: &Checks, ledger: &mut Ledger) -> Option<Self> {
        let (lines, text) = (line.lines(), format!("server {} {}", line.word(1), line.word(2)));
        let mut checks = defaults.clone();
        // `default-server` is for those that follow, and says whether they are checked.
        checks.read(line, 3, ledger);
        if let Some(why) = checks.refused {
            ledger.left(lines, &text, why);
            return None;
        }
        let (at, port) = match target(line.word(2)) {
            Ok(target) => target,
            Err(why) => {
                ledger.left(lines, &text, why);
                return None;
            }
        };
        if !matches!(at, At::Address(_)) {
            let why = "a name: each of its addresses becomes a backend, asked for again by its TTL (see \"Backends by name\")";
            ledger.differs(lines, &text, why);
        }
        // Its records have the ports.
        let port = port.filter(|_| !matches!(at, At::Srv(_)));
        ledger.mapped(line.number);
        let weight = if checks.disabled {
            ledger.differs(lines, &text, "disabled: weight 0 here, which takes no new connections");
            0
        } else {
            checks.weight.unwrap_or(1)
        };
        Some(Self { name: line.word(1).to_owned(), line: line.number, text, at, port, weight, checks })
    }
}

impl Checks {
    /// Takes the parameters from a word on.
    pub(super) fn read(&mut self, line: &Line, from: usize, ledger: &mut Ledger) {
        let lines = line.lines();
        let mut rest = line.words.iter().skip(from).map(String::as_str);
        while let Some(word) = rest.next() {
            let mut value = || rest.next().unwrap_or_default().to_owned();
            let wrong = |value: &str, ledger: &mut Ledger| {
                ledger.left(lines, &format!("{word} {value}"), "not understood");
            };
            match word {
                "check" => self.check = true,
                "no-check" => self.check = false,
                "inter" | "fastinter" => {
                    let text = value();
                    let Some(time) = time(&text) else {
                        wrong(&text, ledger);
                        continue;
                    };
                    if word == "inter" { self.inter = Some(time) } else { self.fastinter = Some(time) }
                }
                "rise" | "fall" | "weight" => {
                    let text = value();
                    let Ok(number) = text.parse() else {
                        wrong(&text, ledger);
                        continue;
                    };
                    match word {
                        "rise" => self.rise = Some(number),
                        "fall" => self.fall = Some(number),
                        _ => self.weight = Some(number),
                    }
                }
                "port" => match value().parse() {
                    Ok(port) => self.port = Some(port).filter(|port| *port > 0),
                    Err(_) => wrong("", ledger),
                },
                "check-ssl" => self.tls = true,
                "verify" => self.verify = value() == "required",
                "disabled" => self.disabled = true,
                "enabled" => self.disabled = false,
                "backup" => self.backup = true,
                "no-backup" => self.backup = false,
                "ssl" => {
                    self.refused = Some("lbd does not speak TLS to backends: forward the clients' own TLS");
                }
                "send-proxy" | "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                    self.refused = Some("lbd adds no PROXY header: the backend would wait for one");
                }
                "socks4" => {
                    self.refused = Some("lbd forwards to the backend itself, not through a SOCKS proxy");
                }
                "check-via-socks4" => {}
                "slowstart" => {
                    let text = value();
                    match time(&text) {
                        Some(time) => self.slow_start = Some(time),
                        None => wrong(&text, ledger),
                    }
                }
                "downinter" => {
                    ledger.left(lines, &format!("downinter {}", value()), "see backoff of [service.health]");
                }
                "cookie" => {
                    let why = "lbd knows no cookies: scheduler = \"source-ip\" keeps a client at its backend";
                    ledger.left(lines, &format!("cookie {}", value()), why);
                }
                "maxconn" | "minconn" | "maxqueue" => {
                    ledger.left(
                        lines,
                        &format!("{word} {}", value()),
                        "lbd opens no connections and has no queue",
                    );
                }
                "addr" => {
                    ledger.left(lines, &format!("addr {}", value()), "lbd checks the backend's own address");
                }
                "check-send-proxy" | "non-stick" | "stick" | "tfo" | "allow-0rtt" | "no-ssl" => {
                    ledger.left(lines, word, "a matter of a proxy's own connections");
                }
                other => {
                    ledger.left(
                        lines,
                        &format!("{other} {}", value()),
                        "a matter of a proxy's own connections",
                    );
                }
            }
        }
    }
}

/// `192.0.2.1:80`, `[2001:db8::1]:80`, `web.example.net:80`, one of those without a port, `_http._tcp.example.net`.
fn target(text: &str) -> Result<(At, Option<u16>), &'static str> {
    let rest = match text.split_once('@') {
        Some(("ipv4" | "ipv6", rest)) => rest,
        Some(_) => return Err("lbd forwards packets to addresses: no sockets"),
        None => text,
    };
    if rest.starts_with('/') {
        return Err("lbd forwards packets to addresses: no sockets");
    }
    if let Ok(address) = rest.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok((At::Address(address), None));
    }
    let Some((host, port)) = rest.rsplit_once(':') else { return Ok((named(rest)?, None)) };
    let at = match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(address) => At::Address(address),
        Err(_) => named(host)?,
    };
    if port.starts_with(['+', '-']) {
        return Err("lbd has one port for a backend, none that is relative to the client's");
    }
    Ok((at, Some(port.parse().ok().filter(|port: &u16| *port > 0).ok_or("no port")?)))
}

/// A name of DNS.
fn named(host: &str) -> Result<At, &'static str> {
    let host = host.trim_end_matches('.');
    if host.contains('$') {
        return Err("lbctl knows no variables of the environment: write it out");
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    if !host.split('.').all(is_label) {
        return Err("neither an address nor a name");
    }
    Ok(if host.starts_with('_') { At::Srv(host.to_owned()) } else { At::Host(host.to_owned()) })
}
