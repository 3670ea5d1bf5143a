//! `virtual_server` with its `real_server`s.

use super::{
    super::{
        draft::{At, Backend, Draft, Health, Port, Service},
        ipvsadm::{PERSISTENCE, UNWEIGHTED, heeds_weights, scheduler},
        ledger::{Ledger, Lines},
    },
    Globals, checker, endpoint, seconds,
    syntax::Directive,
    through,
};
use crate::model::{Forward, Protocol, Scheduler};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Addresses by port.
type Listens = BTreeMap<Port, Vec<IpAddr>>;

pub(super) fn read(section: &Directive, globals: &Globals, draft: &mut Draft, ledger: &mut Ledger) {
    let (lines, head) = (section.lines(), section.head());
    let mut listens = Listens::new();
    match section.word(1) {
        "fwmark" => return ledger.left(lines, &head, FWMARK),
        "group" => {
            let Some(group) = globals.groups.get(section.word(2)) else {
                return ledger.left(lines, &head, "there is no virtual_server_group of that name");
            };
            ledger.mapped(group.line);
            for member in &group.children {
                member_of(member, &mut listens, ledger);
            }
        }
        address => match endpoint(address, section.word(2)) {
            Some((address, port)) => listens.entry(port_of(port)).or_default().push(address),
            None => return ledger.left(lines, &head, "no address and port"),
        },
    }
    if listens.is_empty() {
        return ledger.left(lines, &head, "none of its addresses could be taken over");
    }
    ledger.mapped(section.line);
    let Some(mut service) = settings(section, ledger) else { return };
    if let Some(sorry) = section.child("sorry_server") {
        sorry_server(sorry, &mut service, ledger);
    }
    let several = listens.len() > 1;
    for (port, addresses) in listens {
        let shown = match port {
            Port::Any => "any".to_owned(),
            Port::One(port) | Port::Range(port, _) => port.to_string(),
        };
        let name = match section.word(1) {
            "group" if several => format!("{}-{shown}", section.word(2)),
            "group" => section.word(2).to_owned(),
            address => format!("{}-{shown}", address.replace(':', "-")),
        };
        service.name = name;
        service.port = port;
        service.addresses = addresses;
        draft.services.push(service.clone());
    }
}

const FWMARK: &str =
    "lbd does not see firewall marks: write a service with the addresses and ports that are marked";

fn port_of(port: u16) -> Port {
    if port == 0 { Port::Any } else { Port::One(port) }
}

/// `10.0.0.1 80`, `10.0.0.3-10 80` or `fwmark 1`.
fn member_of(member: &Directive, listens: &mut Listens, ledger: &mut Ledger) {
    let (lines, head) = (member.lines(), member.head());
    if member.name() == "fwmark" {
        return ledger.left(lines, &head, FWMARK);
    }
    let (first, last) = member.name().split_once('-').unwrap_or((member.name(), ""));
    let Some((first, port)) = endpoint(first, member.word(1)) else {
        return ledger.left(lines, &head, "no address and port");
    };
    ledger.mapped(member.line);
    let addresses = listens.entry(port_of(port)).or_default();
    if last.is_empty() {
        addresses.push(first);
        return;
    }
    // The last part of an address counts up to this one: decimal in IPv4, hexadecimal in IPv6.
    let range: Option<Vec<IpAddr>> = match first {
        IpAddr::V4(v4) => last.parse::<u8>().ok().map(|last| {
            let [a, b, c, d] = v4.octets();
            (d..=last).map(|d| IpAddr::from([a, b, c, d])).collect()
        }),
        IpAddr::V6(v6) => u16::from_str_radix(last, 16).ok().map(|last| {
            let mut parts = v6.segments();
            (parts[7]..=last)
                .map(|part| {
                    parts[7] = part;
                    IpAddr::from(parts)
                })
                .collect()
        }),
    };
    match range {
        Some(range) if (1..=256).contains(&range.len()) => addresses.extend(range),
        _ => ledger.left(lines, &head, "no range of at most 256 addresses"),
    }
}

/// The service but for its name, addresses and port; nothing if lbd forwards nothing of the kind.
fn settings(section: &Directive, ledger: &mut Ledger) -> Option<Service> {
    let mut service = Service {
        name: String::new(),
        lines: section.lines(),
        directive: section.head(),
        addresses: Vec::new(),
        port: Port::Any,
        protocol: Protocol::Tcp,
        forward: Forward::Nat,
        snat: Vec::new(),
        scheduler: Scheduler::LeastConnections,
        idle_timeout: None,
        slow_start: None,
        quorum: None,
        gue_port: None,
        health: Health::default(),
        backends: Vec::new(),
    };
    // keepalived's default.
    let mut interval = Duration::from_secs(60);
    let mut persistent = false;
    let mut unweighted = None;
    let (mut quorum, mut hysteresis) = (1u32, 0u32);
    let mut starts_down = false;
    let mut of_service = checker::Defaults::default();
    for directive in &section.children {
        let (lines, head, value) = (directive.lines(), directive.head(), directive.word(1));
        match directive.name() {
            "lb_algo" | "lvs_sched" => {
                let with_port = ["mh-port", "sh-port"].iter().any(|flag| section.child(flag).is_some());
                let (of_lbd, note) = scheduler(value, with_port);
                service.scheduler = of_lbd;
                unweighted = (!heeds_weights(value)).then(|| (lines, head.clone()));
                ledger.mapped(directive.line);
                if let Some(note) = note {
                    ledger.differs(lines, &head, note);
                }
            }
            "lb_kind" | "lvs_method" => match forward(directive, &mut service) {
                Ok(()) => ledger.mapped(directive.line),
                Err(why) => {
                    ledger.left(section.lines(), &section.head(), format!("{head}: {why}"));
                    return None;
                }
            },
            "protocol" => match value {
                "TCP" => ledger.mapped(directive.line),
                "UDP" => {
                    service.protocol = Protocol::Udp;
                    ledger.mapped(directive.line);
                }
                other => {
                    let why = format!("lbd forwards TCP and UDP, not {other}");
                    ledger.left(section.lines(), &section.head(), why);
                    return None;
                }
            },
            "delay_loop" => match seconds(value) {
                Some(time) => {
                    interval = time;
                    ledger.mapped(directive.line);
                }
                None => ledger.left(lines, &head, "no time"),
            },
            "persistence_timeout" => {
                persistent = true;
                ledger.mapped(directive.line);
                ledger.differs(lines, &head, PERSISTENCE);
            }
            "alpha" => {
                starts_down = true;
                ledger.mapped(directive.line);
            }
            "connect_timeout" | "retry" | "delay_before_retry" | "virtualhost" | "warmup" => {
                of_service.set(directive, ledger);
            }
            "quorum" | "hysteresis" => match value.parse::<u32>() {
                Ok(number) if directive.name() == "quorum" => {
                    quorum = number.max(1);
                    ledger.mapped(directive.line);
                }
                Ok(number) => {
                    hysteresis = number;
                    ledger.mapped(directive.line);
                }
                Err(_) => ledger.left(lines, &head, "no whole number"),
            },
            "mh-port" | "sh-port" => ledger.mapped(directive.line),
            // Read by themselves.
            "real_server" | "sorry_server" => {}
            name => ledger.left(lines, &head, reason(name)),
        }
    }
    if persistent {
        service.scheduler = Scheduler::SourceIp;
    }
    real_servers(section, &mut service, &of_service, ledger);
    if let Some((lines, head)) = unweighted.filter(|_| !persistent && service.weights_differ()) {
        ledger.differs(lines, &head, UNWEIGHTED);
    }
    if (quorum, hysteresis) != (1, 0) {
        service.quorum = Some((quorum.saturating_add(hysteresis), quorum.saturating_sub(hysteresis).max(1)));
        if service.backends.iter().any(|backend| backend.weight != Some(1)) {
            let lines = section
                .child("quorum")
                .or(section.child("hysteresis"))
                .map_or(section.lines(), Directive::lines);
            ledger.differs(lines, "quorum", "lbd counts healthy backends, keepalived adds up their weights");
        }
    }
    service.health.interval = Some(interval);
    service.health.starts_down = starts_down;
    Some(service)
}

fn forward(directive: &Directive, service: &mut Service) -> Result<(), String> {
    service.forward = match directive.word(1) {
        "DR" => Forward::Dsr,
        "NAT" => Forward::Nat,
        "TUN" => Forward::Ipip,
        other => return Err(format!("lbd has no way of forwarding called {other}")),
    };
    let mut rest = directive.words[2..].iter().map(String::as_str);
    while let Some(word) = rest.next() {
        match (word, rest.next()) {
            ("type", Some("ipip")) => {}
            ("type", Some("gue")) => service.forward = Forward::Gue,
            ("type", Some("gre")) => return Err("lbd has no GRE tunnels, only IP in IP and GUE".to_owned()),
            ("port", Some(port)) => {
                service.gue_port = Some(port.parse().map_err(|_| "the port is no number".to_owned())?);
            }
            ("nocsum" | "csum" | "remcsum", _) => {}
            (other, _) => return Err(format!("'{other}' is unknown")),
        }
    }
    Ok(())
}

/// Why a setting of a virtual server has no equal.
fn reason(name: &str) -> &'static str {
    match name {
        "quorum_up" | "quorum_down" => {
            "write the command as one of [[service.notify]], which is run for every change and told which it is"
        }
        "omega" => "lbd runs no commands when it ends, and goes on forwarding",
        "persistence_granularity" => "the hash is over the whole address of a client",
        "persistence_engine" => "lbd does not read what a protocol says inside",
        "ops" | "flag-1" | "flag-2" | "flag-3" | "mh-fallback" | "sh-fallback" | "hashed" => {
            "lbd has none of the kernel's flags for schedulers"
        }
        "ha_suspend" => "lbd checks whether or not this node is the master",
        "inhibit_on_failure" => {
            "a backend that is down gets no new flows and stays in the table, as lbd has it"
        }
        "smtp_alert" => "lbd sends no mail: have an alert made from its metrics",
        "ip_family" => "an address says it by itself",
        "snmp_name" => "the service's name is in the metrics",
        "sorry_server_inhibit" => {
            "a backup that takes over leaves established flows with the others, as lbd has it"
        }
        "sorry_server_lvs_method" => "a service has one way of forwarding",
        _ => "lbd has no equal",
    }
}

fn sorry_server(directive: &Directive, service: &mut Service, ledger: &mut Ledger) {
    let (lines, head) = (directive.lines(), directive.head());
    let Some((address, port)) = endpoint(directive.word(1), directive.word(2)) else {
        return ledger.left(lines, &head, "no address and port");
    };
    ledger.mapped(directive.line);
    if service.health.kind != Some("none") {
        ledger.differs(
            lines,
            &head,
            "a backup is checked like the other backends, and takes over only if it is healthy",
        );
    }
    service.backends.push(Backend {
        name: address.to_string().replace(':', "-"),
        lines,
        directive: head,
        at: At::Address(address),
        family: None,
        port: Some(port).filter(|port| *port > 0),
        weight: Some(1),
        backup: true,
    });
}

fn real_servers(
    section: &Directive,
    service: &mut Service,
    of_service: &checker::Defaults,
    ledger: &mut Ledger,
) {
    let servers = section.children.iter().filter(|directive| directive.name() == "real_server");
    // The check of the first server that has one counts for all.
    let mut check: Option<(Option<Health>, usize)> = None;
    for server in servers {
        let (lines, head) = (server.lines(), server.head());
        let Some((address, port)) = endpoint(server.word(1), server.word(2)) else {
            ledger.left(lines, &head, "no address and port");
            continue;
        };
        ledger.mapped(server.line);
        let mut backend = Backend {
            name: address.to_string().replace(':', "-"),
            lines,
            directive: head.clone(),
            at: At::Address(address),
            family: None,
            port: Some(port).filter(|port| *port > 0),
            weight: Some(1),
            backup: false,
        };
        let own = real_server(server, &mut backend, service.protocol, of_service, ledger);
        service.backends.push(backend);
        match &check {
            None => check = Some((own, server.line)),
            Some((first, line)) if *first != own => {
                let why = format!("a service has one check for all its backends: that of line {line}");
                let at = server.children.iter().find(|d| checker::is_checker(d.name())).unwrap_or(server);
                ledger.left(through(at, at), at.name(), why);
            }
            Some(_) => {}
        }
    }
    match check {
        Some((Some(health), _)) => service.health = health,
        Some((None, line)) => {
            service.health.kind = Some("none");
            ledger.differs(
                Lines::one(line),
                "real_server",
                "it has no check that lbd has, so that every backend counts as up: set [service.health]",
            );
        }
        None => service.health.kind = Some("none"),
    }
}

/// The backend's settings and its check.
fn real_server(
    server: &Directive,
    backend: &mut Backend,
    protocol: Protocol,
    of_service: &checker::Defaults,
    ledger: &mut Ledger,
) -> Option<Health> {
    let mut defaults = of_service.clone();
    for directive in &server.children {
        let (lines, head, value) = (directive.lines(), directive.head(), directive.word(1));
        match directive.name() {
            "weight" => match value.parse() {
                Ok(weight) => {
                    backend.weight = Some(weight);
                    ledger.mapped(directive.line);
                }
                Err(_) => ledger.left(lines, &head, "no number"),
            },
            "connect_timeout" | "retry" | "delay_before_retry" | "virtualhost" | "warmup" => {
                defaults.set(directive, ledger);
            }
            "delay_loop" => ledger.left(lines, &head, "a service has one interval for all its backends"),
            "notify_up" | "notify_down" => {
                ledger.left(lines, &head, "write the command as one of [[service.notify]], which is run for every change and told which it is");
            }
            "uthreshold" | "lthreshold" => {
                ledger.left(lines, &head, "lbd has no limit of connections of a backend");
            }
            "lvs_method" | "lb_kind" => ledger.left(lines, &head, "a service has one way of forwarding"),
            "inhibit_on_failure" | "smtp_alert" | "alpha" => {
                ledger.left(lines, &head, reason(directive.name()));
            }
            name if checker::is_checker(name) => {}
            _ => ledger.left(lines, &head, "lbd has no equal"),
        }
    }
    let mut found: Option<Health> = None;
    for directive in server.children.iter().filter(|directive| checker::is_checker(directive.name())) {
        if found.is_some() {
            ledger.left(directive.lines(), directive.name(), "a service has one check: the first");
        } else {
            found = checker::read(directive, protocol, &defaults, ledger);
        }
    }
    found
}
