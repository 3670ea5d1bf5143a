//! What `ipvsadm-save -n` prints, and `ipvsadm-restore` reads: a command line of ipvsadm each.

use super::{
    draft::{At, Backend, Draft, Health, Port, Service},
    ledger::{Ledger, Lines},
};
use crate::model::{Forward, Protocol, Scheduler};
use std::{iter::Peekable, net::IpAddr, str::SplitWhitespace};

/// The virtual service a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    protocol: Protocol,
    address: IpAddr,
    port: u16,
}

/// A line, taken apart.
#[derive(Debug, Default)]
struct Line<'a> {
    command: Option<Command>,
    key: Option<Result<Key, String>>,
    scheduler: Option<&'a str>,
    persistent: bool,
    /// The hash of the scheduler is over the source port too.
    with_port: bool,
    real: Option<&'a str>,
    forward: Option<Forward>,
    tunnel: Option<&'a str>,
    tunnel_port: Option<&'a str>,
    weight: Option<&'a str>,
    /// Options without an equal, with the reason.
    left: Vec<(&'a str, &'static str)>,
    unknown: Vec<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    AddService,
    AddServer,
    Other,
}

pub(super) fn read(text: &str, ledger: &mut Ledger) -> Draft {
    let mut draft = Draft::default();
    let mut keys: Vec<Key> = Vec::new();
    let mut unweighted = Vec::new();
    for (number, text) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let lines = Lines::one(number);
        let line = parse(text);
        if let Some(word) = line.unknown.first() {
            ledger.left(lines, text, format!("'{word}' is no option that ipvsadm-save writes"));
            continue;
        }
        let key = match &line.key {
            Some(Ok(key)) => *key,
            Some(Err(why)) => {
                ledger.left(lines, text, why.clone());
                continue;
            }
            None => {
                ledger.left(lines, text, "it names no virtual service");
                continue;
            }
        };
        match line.command {
            Some(Command::AddService) if keys.contains(&key) => {
                ledger.left(lines, text, "the service was added by a line before");
            }
            Some(Command::AddService) => {
                keys.push(key);
                let name = line.scheduler.filter(|name| !line.persistent && !heeds_weights(name));
                unweighted.push(name.map(|name| format!("-s {name}")));
                draft.services.push(service(key, &line, lines, text, ledger));
            }
            Some(Command::AddServer) => match keys.iter().position(|other| *other == key) {
                Some(index) => server(&mut draft.services[index], key, &line, lines, text, ledger),
                None => ledger.left(lines, text, "no line before adds its virtual service"),
            },
            _ => ledger.left(lines, text, "only -A and -a make something"),
        }
    }
    for (service, option) in draft.services.iter().zip(unweighted) {
        if let Some(option) = option.filter(|_| service.weights_differ()) {
            ledger.differs(service.lines, &option, UNWEIGHTED);
        }
    }
    for service in draft.services.iter().filter(|service| service.backends.is_empty()) {
        ledger.differs(
            service.lines,
            &service.directive,
            "no real server was taken over: it has no backends yet",
        );
    }
    draft
}

fn service(key: Key, line: &Line<'_>, lines: Lines, text: &str, ledger: &mut Ledger) -> Service {
    ledger.mapped(lines.from);
    for (option, reason) in &line.left {
        ledger.left(lines, option, *reason);
    }
    let (mut scheduler, note) = scheduler(line.scheduler.unwrap_or("wlc"), line.with_port);
    if let Some(note) = note {
        ledger.differs(lines, &format!("-s {}", line.scheduler.unwrap_or("wlc")), note);
    }
    if line.persistent {
        scheduler = Scheduler::SourceIp;
        ledger.differs(lines, "-p", PERSISTENCE);
    }
    ledger.differs(lines, text, "ipvsadm has no health checks: type = \"none\" is written, set a real one");
    let address = key.address.to_string().replace(':', "-");
    Service {
        name: format!("{}-{address}-{}", key.protocol, key.port),
        lines,
        directive: text.to_owned(),
        addresses: vec![key.address],
        port: if key.port == 0 { Port::Any } else { Port::One(key.port) },
        protocol: key.protocol,
        forward: Forward::Dsr,
        snat: Vec::new(),
        scheduler,
        idle_timeout: None,
        slow_start: None,
        quorum: None,
        gue_port: None,
        health: Health { kind: Some("none"), ..Health::default() },
        backends: Vec::new(),
    }
}

/// What `-p` and keepalived's `persistence_timeout` become.
pub(super) const PERSISTENCE: &str = "scheduler = \"source-ip\": a client's connections go to one backend by a hash of its address, without a time";

/// What `rr` and `lc` become where servers have different weights.
pub(super) const UNWEIGHTED: &str =
    "this scheduler of IPVS does not look at weights, lbd's does: make the backends' weights equal";

/// Whether a scheduler of IPVS looks at weights other than 0.
pub(super) fn heeds_weights(name: &str) -> bool {
    !matches!(name, "rr" | "lc")
}

/// The scheduler of lbd for one of IPVS, and what is different about it; `with_port`: of those that hash, over the source
/// port too.
pub(super) fn scheduler(name: &str, with_port: bool) -> (Scheduler, Option<&'static str>) {
    match name {
        "rr" | "wrr" => (Scheduler::RoundRobin, None),
        "lc" | "wlc" => (Scheduler::LeastConnections, None),
        // ip_vs_mh and ip_vs_sh: the source address alone, unless mh-port or sh-port is set.
        "sh" | "mh" if with_port => (Scheduler::Maglev, None),
        "sh" | "mh" => (Scheduler::SourceIp, None),
        "sed" | "nq" | "twos" => {
            (Scheduler::LeastConnections, Some("scheduler = \"least-connections\" is the nearest"))
        }
        "fo" | "ovf" => (
            Scheduler::Maglev,
            Some("lbd spreads the load over all: scheduler = \"maglev\"; make others weight 0"),
        ),
        "dh" | "lblc" | "lblcr" => {
            (Scheduler::Maglev, Some("a hash of the destination is for caches: scheduler = \"maglev\""))
        }
        _ => (Scheduler::Maglev, Some("lbd has no such scheduler: scheduler = \"maglev\"")),
    }
}

fn server(service: &mut Service, key: Key, line: &Line<'_>, lines: Lines, text: &str, ledger: &mut Ledger) {
    let Some(real) = line.real else {
        return ledger.left(lines, text, "it names no real server");
    };
    let (address, port) = match endpoint(real) {
        Ok((address, port)) => (address, port),
        Err(why) => return ledger.left(lines, text, why),
    };
    let forward = match (line.forward.unwrap_or(Forward::Dsr), line.tunnel) {
        (Forward::Ipip, Some("gue")) => Forward::Gue,
        (Forward::Ipip, Some("gre")) => {
            return ledger.left(lines, text, "lbd has no GRE tunnels, only IP in IP and GUE");
        }
        (forward, _) => forward,
    };
    if service.backends.is_empty() {
        service.forward = forward;
    } else if service.forward != forward {
        let first = service.forward;
        let why = format!(
            "a service has one way of forwarding, here \"{first}\" as its first server, not \"{forward}\""
        );
        return ledger.left(lines, text, why);
    }
    if forward == Forward::Gue
        && let Some(port) = line.tunnel_port
    {
        match port.parse::<u16>() {
            Ok(port) if port > 0 => match service.gue_port {
                Some(first) if first != port => {
                    return ledger.left(lines, text, format!("a service has one port for GUE, here {first}"));
                }
                _ => service.gue_port = Some(port),
            },
            _ => return ledger.left(lines, text, "--tun-port is no port"),
        }
    }
    let weight = match line.weight.map_or(Ok(1), str::parse) {
        Ok(weight) => weight,
        Err(_) => return ledger.left(lines, text, "the weight is no number"),
    };
    for (option, reason) in &line.left {
        ledger.left(lines, option, *reason);
    }
    ledger.mapped(lines.from);
    let shown = address.to_string().replace(':', "-");
    service.backends.push(Backend {
        name: if port == key.port { shown } else { format!("{shown}-{port}") },
        lines,
        directive: text.to_owned(),
        at: At::Address(address),
        family: None,
        port: Some(port),
        weight: Some(weight),
        backup: false,
    });
}

/// `192.0.2.1:80` or `[2001:db8::1]:80`; without a port it is 0.
fn endpoint(text: &str) -> Result<(IpAddr, u16), String> {
    let numeric = || format!("'{text}' is no address and port: save with `ipvsadm-save -n`");
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok((address, 0));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(numeric)?;
    let address = host.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| numeric())?;
    Ok((address, port.parse().map_err(|_| numeric())?))
}

fn parse(text: &str) -> Line<'_> {
    let mut line = Line::default();
    let mut words = text.split_whitespace().peekable();
    if matches!(words.peek().copied(), Some("ipvsadm" | "/sbin/ipvsadm")) {
        words.next();
    }
    while let Some(word) = words.next() {
        option(&mut line, word, &mut words);
    }
    line
}

fn option<'a>(line: &mut Line<'a>, word: &'a str, words: &mut Peekable<SplitWhitespace<'a>>) {
    let virtual_service = |protocol, words: &mut Peekable<SplitWhitespace<'_>>| {
        let text = words.next().unwrap_or_default();
        endpoint(text).map(|(address, port)| Key { protocol, address, port })
    };
    // An option whose value may be left out.
    let optional = |words: &mut Peekable<SplitWhitespace<'_>>| {
        words.next_if(|next| !next.starts_with('-'));
    };
    const THRESHOLD: &str = "lbd has no limit of connections of a backend";
    match word {
        "-A" | "--add-service" => line.command = Some(Command::AddService),
        "-a" | "--add-server" => line.command = Some(Command::AddServer),
        "-E" | "-e" | "-D" | "-d" | "-C" | "-R" | "-Z" | "--edit-service" | "--edit-server"
        | "--delete-service" | "--delete-server" | "--clear" | "--restore" | "--zero" => {
            line.command = Some(Command::Other);
        }
        "-t" | "--tcp-service" => line.key = Some(virtual_service(Protocol::Tcp, words)),
        "-u" | "--udp-service" => line.key = Some(virtual_service(Protocol::Udp, words)),
        "-f" | "--fwmark-service" => {
            words.next();
            let why = "lbd does not see firewall marks: write a service with the addresses and ports that are marked";
            line.key = Some(Err(why.to_owned()));
        }
        "--sctp-service" => {
            words.next();
            line.key = Some(Err("lbd forwards TCP and UDP only".to_owned()));
        }
        "-s" | "--scheduler" => line.scheduler = words.next(),
        "-p" | "--persistent" => {
            line.persistent = true;
            optional(words);
        }
        "-M" | "--netmask" => {
            words.next();
            line.left.push((word, "the hash is over the whole address of a client"));
        }
        "--pe" => {
            words.next();
            line.left.push((word, "lbd does not read what a protocol says inside"));
        }
        "-o" | "--ops" => line.left.push((word, "lbd has no such mode: a flow stays with its backend")),
        "-b" | "--sched-flags" => {
            for flag in words.next().unwrap_or_default().split(',') {
                match flag {
                    "mh-port" | "sh-port" => line.with_port = true,
                    _ => line.left.push((word, "lbd has none of these flags")),
                }
            }
        }
        "-r" | "--real-server" => line.real = words.next(),
        "-g" | "--gatewaying" => line.forward = Some(Forward::Dsr),
        "-i" | "--ipip" => line.forward = Some(Forward::Ipip),
        "-m" | "--masquerading" => line.forward = Some(Forward::Nat),
        "--tun-type" => line.tunnel = words.next(),
        "--tun-port" => line.tunnel_port = words.next(),
        "--tun-nocsum" | "--tun-csum" | "--tun-remcsum" => {
            line.left.push((word, "lbd decides about the checksum of GUE by itself"));
        }
        "-w" | "--weight" => line.weight = words.next(),
        "-x" | "--u-threshold" | "-y" | "--l-threshold" => {
            words.next();
            if words.peek().is_some() || line.command == Some(Command::AddServer) {
                line.left.push((word, THRESHOLD));
            }
        }
        "-6" | "-n" | "--numeric" => {}
        other => line.unknown.push(other),
    }
}
