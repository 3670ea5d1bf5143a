//! A `frontend`, `backend`, `listen` or `defaults` section.

use super::{
    super::{
        draft::{Health, Port},
        ledger::{Ledger, Lines},
    },
    reasons,
    server::{Checks, Server},
    syntax::{Line, time},
};
use crate::model::Scheduler;
use std::{net::IpAddr, time::Duration};
use toml_edit::{Array, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Scope {
    #[default]
    Defaults,
    Frontend,
    Backend,
    Listen,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Proxy {
    pub(super) name: String,
    pub(super) head: Line,
    pub(super) lines: Lines,
    pub(super) scope: Scope,
    pub(super) http: bool,
    pub(super) binds: Vec<Bind>,
    pub(super) default_backend: Option<(String, usize)>,
    pub(super) servers: Vec<Server>,
    /// A line without which the proxy must not be taken over, and why.
    pub(super) block: Option<(usize, String)>,
    balance: Option<Scheduler>,
    client: Option<Duration>,
    server: Option<Duration>,
    tunnel: Option<Duration>,
    check_timeout: Option<Duration>,
    kind: Option<&'static str>,
    keys: Vec<(&'static str, Value)>,
    checks: Checks,
}

/// An address and port that a proxy listens on.
#[derive(Debug, Clone)]
pub(super) struct Bind {
    pub(super) line: usize,
    pub(super) text: String,
    /// `None` for every address.
    pub(super) address: Option<IpAddr>,
    families: (bool, bool),
    pub(super) port: Port,
}

impl Bind {
    /// True if an address is of a family that is listened on.
    pub(super) fn takes(&self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.families.0 } else { self.families.1 }
    }
}

impl Proxy {
    /// Takes a line in.
    pub(super) fn read(&mut self, line: &Line, ledger: &mut Ledger) {
        let (value, lines, text) = (line.word(1), line.lines(), line.text());
        if let Some(why) = reasons::blocking(&line.words) {
            ledger.left(lines, &text, why);
            // Statistics in defaults only switch the page on.
            if self.scope != Scope::Defaults || line.word(0) != "stats" {
                let listens_only =
                    line.word(0) == "stats" && !matches!(value, "uri" | "enable" | "auth" | "admin");
                if !listens_only {
                    self.block.get_or_insert((line.number, why.to_owned()));
                }
            }
            return;
        }
        match line.word(0) {
            "mode" => match value {
                "tcp" | "http" => {
                    self.http = value == "http";
                    ledger.mapped(line.number);
                }
                other => {
                    let why = format!("lbd forwards TCP and UDP, whatever mode {other} is");
                    ledger.left(lines, &text, why.clone());
                    self.block.get_or_insert((line.number, why));
                }
            },
            "bind" => self.bind(line, ledger),
            "default_backend" => {
                self.default_backend = Some((value.to_owned(), line.number));
                ledger.mapped(line.number);
            }
            "balance" => self.balance(line, ledger),
            "server" => {
                if let Some(server) = Server::read(line, &self.checks, ledger) {
                    self.servers.push(server);
                }
            }
            "default-server" => {
                ledger.mapped(line.number);
                let mut checks = self.checks.clone();
                checks.read(line, 1, ledger);
                self.checks = checks;
            }
            "timeout" | "clitimeout" | "srvtimeout" | "contimeout" => self.timeout(line, ledger),
            "option" | "http-check" => self.check(line, ledger),
            // Prefix, number, name: as many servers as the name has addresses.
            "server-template" => {
                let mut words = line.words.clone();
                words.drain(2..words.len().min(3));
                let server = Line { number: line.number, words };
                if let Some(server) = Server::read(&server, &self.checks, ledger) {
                    self.servers.push(server);
                }
            }
            _ => ledger.left(lines, &text, reasons::line(&line.words)),
        }
    }

    fn timeout(&mut self, line: &Line, ledger: &mut Ledger) {
        let (which, value) = match line.word(0) {
            "clitimeout" => ("client", line.word(1)),
            "srvtimeout" => ("server", line.word(1)),
            "contimeout" => ("connect", line.word(1)),
            _ => (line.word(1), line.word(2)),
        };
        let to = match which {
            "client" => &mut self.client,
            "server" => &mut self.server,
            "tunnel" => &mut self.tunnel,
            "check" => &mut self.check_timeout,
            _ => return ledger.left(line.lines(), &line.text(), reasons::line(&line.words)),
        };
        match time(value) {
            Some(time) => {
                *to = Some(time);
                ledger.mapped(line.number);
            }
            None => ledger.left(line.lines(), &line.text(), "no time"),
        }
    }

    fn balance(&mut self, line: &Line, ledger: &mut Ledger) {
        let (scheduler, note) = match line.word(1) {
            "roundrobin" | "static-rr" | "" => (Scheduler::RoundRobin, None),
            "leastconn" => (Scheduler::LeastConnections, None),
            "source" => (Scheduler::SourceIp, None),
            "random" => (Scheduler::Maglev, Some("scheduler = \"maglev\": by a hash of addresses and ports")),
            "first" => (Scheduler::Maglev, Some("lbd spreads the load over all: scheduler = \"maglev\"")),
            _ => (Scheduler::Maglev, Some("lbd does not look into requests: scheduler = \"maglev\"")),
        };
        self.balance = Some(scheduler);
        ledger.mapped(line.number);
        if let Some(note) = note {
            ledger.differs(line.lines(), &line.text(), note);
        }
    }

    fn bind(&mut self, line: &Line, ledger: &mut Ledger) {
        let (lines, text) = (line.lines(), line.text());
        let mut both = false;
        let mut only6 = false;
        let mut rest = line.words.iter().skip(2).map(String::as_str);
        while let Some(word) = rest.next() {
            match word {
                "ssl" => {
                    return ledger.left(
                        lines,
                        &text,
                        "lbd does not end TLS: forward port 443 to backends that do",
                    );
                }
                "accept-proxy" | "accept-netscaler-cip" => {
                    return ledger.left(lines, &text, "lbd does not read the PROXY protocol");
                }
                "v4v6" => both = true,
                "v6only" => only6 = true,
                "transparent" | "tfo" | "defer-accept" | "strict-sni" | "allow-0rtt" | "expose-fd"
                | "quic-socket" => {
                    ledger.left(lines, word, "a matter of a proxy's own connections");
                }
                "interface" | "namespace" => {
                    let name = rest.next().unwrap_or_default();
                    ledger.left(
                        lines,
                        &format!("{word} {name}"),
                        "interfaces of [node] are for all services",
                    );
                }
                "name" | "id" => {
                    rest.next();
                }
                other => {
                    let value = rest.next().unwrap_or_default();
                    ledger.left(lines, &format!("{other} {value}"), "a matter of a proxy's own connections");
                }
            }
        }
        for one in line.word(1).split(',') {
            match listen(one, both, only6) {
                Ok((address, families, port)) => {
                    let text = format!("bind {one}");
                    self.binds.push(Bind { line: line.number, text, address, families, port });
                    ledger.mapped(line.number);
                }
                Err(why) => ledger.left(lines, &format!("bind {one}"), why),
            }
        }
    }

    fn check(&mut self, line: &Line, ledger: &mut Ledger) {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["option", "tcp-check"] => self.kind = Some("tcp"),
            ["option", "httpchk", rest @ ..] => {
                self.kind = Some("http");
                self.keys.clear();
                let (method, uri) = match rest {
                    [] => ("OPTIONS", "/"),
                    [uri] => ("OPTIONS", *uri),
                    [method, uri, ..] => (*method, *uri),
                };
                self.key("method", method.into());
                self.key("path", uri.into());
                if let Some(version) = rest.get(2) {
                    // Old files put a Host header behind the version.
                    let host = version.split(['\r', '\n']).chain(rest[3..].iter().copied());
                    if let Some((_, host)) = host.filter_map(|part| part.split_once(':')).next() {
                        self.key("host", host.trim().into());
                    }
                }
            }
            ["http-check", "send", rest @ ..] => {
                self.kind = Some("http");
                let mut rest = rest.iter();
                while let Some(word) = rest.next() {
                    let value = rest.next().copied().unwrap_or_default();
                    match *word {
                        "meth" => self.key("method", value.into()),
                        "uri" => self.key("path", value.into()),
                        "ver" => {}
                        "hdr" => {
                            let content = rest.next().copied().unwrap_or_default();
                            if value.eq_ignore_ascii_case("host") {
                                self.key("host", content.into());
                            } else {
                                self.key(
                                    "headers",
                                    Value::Array([format!("{value}: {content}")].into_iter().collect()),
                                );
                            }
                        }
                        other => ledger.left(line.lines(), other, "lbd's checks send no body"),
                    }
                }
            }
            ["http-check", "expect", "status", codes] => {
                let codes: Array = codes.split(',').collect();
                self.key("status", Value::Array(codes));
            }
            ["http-check", "expect", "string", text] => self.key("body", escape(text).into()),
            ["http-check", "expect", "rstring", regex] => self.key("body", (*regex).into()),
            ["option", "redis-check"] => self.plain("redis"),
            ["option", "mysql-check", rest @ ..] => {
                self.plain("mysql");
                if let ["user", user, ..] = rest {
                    self.key("user", (*user).into());
                }
            }
            [
                "option",
                name @ ("smtpchk" | "ldap-check" | "pgsql-check" | "ssl-hello-chk" | "external-check"),
                ..,
            ] => {
                let _ = name;
                self.plain("tcp");
                return ledger.differs(line.lines(), &line.text(), reasons::line(&line.words));
            }
            _ => return ledger.left(line.lines(), &line.text(), reasons::line(&line.words)),
        }
        ledger.mapped(line.number);
    }

    fn plain(&mut self, kind: &'static str) {
        self.kind = Some(kind);
        self.keys.clear();
    }

    fn key(&mut self, key: &'static str, value: Value) {
        self.keys.retain(|(other, _)| *other != key);
        self.keys.push((key, value));
    }

    pub(super) fn scheduler(&self) -> Scheduler {
        // haproxy's default.
        self.balance.unwrap_or(Scheduler::RoundRobin)
    }

    /// How long a connection may be silent on both sides.
    pub(super) fn idle(&self, back: &Self) -> Option<Duration> {
        self.tunnel.or(back.tunnel).or(self.client.max(back.server))
    }

    /// The check of the servers.
    pub(super) fn health(&self) -> Health {
        let Some(checked) = self.servers.iter().find(|server| server.checks.check) else {
            return Health { kind: Some("none"), ..Health::default() };
        };
        let checks = &checked.checks;
        let kind = self.kind.unwrap_or("tcp");
        let kind = if checks.tls && kind == "http" { "https" } else { kind };
        let mut keys = if matches!(kind, "tcp" | "none") { Vec::new() } else { self.keys.clone() };
        if kind == "https" && !checks.verify {
            keys.push(("verify", false.into()));
        }
        let interval = checks.inter.unwrap_or(Duration::from_secs(2));
        Health {
            kind: Some(kind),
            keys,
            interval: Some(interval),
            timeout: self.check_timeout.or(Some(interval)),
            fast_interval: checks.fastinter,
            rise: checks.rise.or(Some(2)),
            fall: checks.fall.or(Some(3)),
            port: checks.port,
            starts_down: false,
        }
    }
}

/// The text as a regular expression that matches nothing else.
fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, c| {
        if c.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(c);
        escaped
    })
}

type Listen = (Option<IpAddr>, (bool, bool), Port);

/// `192.0.2.1:80`, `:80`, `*:80`, `[::]:80`, `ipv6@2001:db8::1:80`, with a range of ports or not.
fn listen(text: &str, both: bool, only6: bool) -> Result<Listen, &'static str> {
    let (family, rest) = match text.split_once('@') {
        Some((family @ ("ipv4" | "ipv6"), rest)) => (family, rest),
        Some(_) => return Err("lbd forwards packets to addresses: no sockets, no QUIC of its own"),
        None => ("", text),
    };
    if rest.starts_with('/') {
        return Err("lbd forwards packets to addresses: no sockets");
    }
    let (host, port) = rest.rsplit_once(':').ok_or("it names no port")?;
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or("no port");
    let port = match port.split_once('-') {
        Some((first, last)) => Port::Range(number(first)?, number(last)?),
        None => Port::One(number(port)?),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (address, families) = match host {
        "" if family == "ipv6" => (None, (false, true)),
        "" | "*" | "0.0.0.0" => (None, (true, false)),
        "::" => (None, (both && !only6, true)),
        other => match other.parse() {
            Ok(address) => (Some(address), (true, true)),
            Err(_) => return Err("names are not looked up: write the address"),
        },
    };
    Ok((address, families, port))
}
