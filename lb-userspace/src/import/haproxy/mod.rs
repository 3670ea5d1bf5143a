//! `haproxy.cfg`.
//!
//! A proxy ends connections and opens its own; lbd forwards packets. What works on connections (TCP mode, or HTTP that is
//! passed on) becomes a service, what looks into requests cannot.

mod proxy;
mod reasons;
mod server;
mod syntax;

use super::{
    Options,
    draft::{At, Backend, Draft, Port, Service},
    ledger::{Ledger, Lines},
};
use crate::model::{Forward, Protocol};
use proxy::{Proxy, Scope};
use std::{collections::BTreeMap, net::IpAddr};
use syntax::Line;

pub(super) fn read(text: &str, options: &Options, ledger: &mut Ledger) -> Draft {
    let mut draft = Draft::default();
    let mut defaults: BTreeMap<String, Proxy> = BTreeMap::new();
    // A proxy without `from` has the defaults that stand last before it.
    let mut latest = Proxy::default();
    let mut proxies = Vec::new();
    for section in syntax::sections(text, ledger) {
        let (head, lines) = (&section.head, section.lines());
        let kind = head.word(0);
        let scope = match kind {
            "defaults" => Scope::Defaults,
            "frontend" => Scope::Frontend,
            "backend" => Scope::Backend,
            "listen" => Scope::Listen,
            "global" => {
                global(&section.lines, &mut draft, ledger);
                ledger.mapped(head.number);
                continue;
            }
            "" => {
                for line in &section.lines {
                    ledger.left(line.lines(), &line.text(), "before the first section");
                }
                continue;
            }
            _ => {
                ledger.left(lines, &head.text(), reasons::section(kind));
                continue;
            }
        };
        let from = head.words.iter().position(|word| word == "from").map(|at| head.word(at + 1).to_owned());
        let base = match (scope, from) {
            (Scope::Defaults, None) => Proxy::default(),
            (_, Some(name)) => match defaults.get(&name) {
                Some(base) => base.clone(),
                None => {
                    ledger.differs(
                        Lines::one(head.number),
                        &head.text(),
                        "there is no defaults section of that name",
                    );
                    latest.clone()
                }
            },
            (_, None) => latest.clone(),
        };
        ledger.mapped(head.number);
        let mut proxy = base;
        proxy.name = head.word(1).to_owned();
        proxy.head = head.clone();
        (proxy.lines, proxy.scope) = (lines, scope);
        for line in &section.lines {
            proxy.read(line, ledger);
        }
        if scope == Scope::Defaults {
            defaults.insert(proxy.name.clone(), proxy.clone());
            proxy.block = None;
            latest = proxy;
        } else {
            proxies.push(proxy);
        }
    }
    let mut used = Vec::new();
    for proxy in proxies.iter().filter(|proxy| matches!(proxy.scope, Scope::Frontend | Scope::Listen)) {
        services(proxy, &proxies, options, &mut used, &mut draft, ledger);
    }
    for proxy in proxies.iter().filter(|proxy| proxy.scope == Scope::Backend && !used.contains(&proxy.name)) {
        ledger.left(
            proxy.lines,
            &proxy.head.text(),
            "no frontend that was taken over has it as its default_backend",
        );
    }
    draft
}

fn global(lines: &[Line], draft: &mut Draft, ledger: &mut Ledger) {
    for line in lines {
        if line.word(0) == "node" && !line.word(1).is_empty() {
            draft.node_name = Some(super::draft::name(line.word(1)));
            ledger.mapped(line.number);
        } else {
            ledger.left(line.lines(), &line.text(), reasons::global(line.word(0)));
        }
    }
}

/// The services of a proxy that listens: one for each port.
fn services(
    front: &Proxy,
    all: &[Proxy],
    options: &Options,
    used: &mut Vec<String>,
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let head = front.head.text();
    if let Some((line, why)) = &front.block {
        return ledger.left(front.lines, &head, format!("not forwarded, for its line {line}: {why}"));
    }
    let back = if front.scope == Scope::Listen {
        front
    } else {
        let Some((name, _)) = &front.default_backend else {
            return ledger.left(front.lines, &head, "it has no default_backend");
        };
        match all
            .iter()
            .find(|proxy| proxy.name == *name && matches!(proxy.scope, Scope::Backend | Scope::Listen))
        {
            Some(back) => back,
            None => return ledger.left(front.lines, &head, format!("there is no backend {name}")),
        }
    };
    if let Some((line, why)) = &back.block {
        let why = format!("not forwarded, for line {line} of its backend: {why}");
        return ledger.left(front.lines, &head, why);
    }
    if back.servers.is_empty() {
        return ledger.left(front.lines, &head, "it has no server that could be taken over");
    }
    // Sessions of nat keep the IP version, so that each has a service of its own.
    let keeps_version = options.snat_addresses.is_empty();
    let mut listens: BTreeMap<(Port, bool), Vec<IpAddr>> = BTreeMap::new();
    for bind in &front.binds {
        let addresses: Vec<IpAddr> = match bind.address {
            Some(address) => vec![address],
            None => options.addresses.iter().copied().filter(|address| bind.takes(*address)).collect(),
        };
        if addresses.is_empty() {
            let why = "it listens on every address: say with --address which ones lbd shall have";
            ledger.left(Lines::one(bind.line), &bind.text, why);
            continue;
        }
        for address in addresses {
            let v6 = keeps_version && address.is_ipv6();
            if keeps_version && !back.servers.iter().any(|server| server.at.may_be(v6)) {
                let why = "its servers have the other IP version, which takes forward = \"snat\": name --snat-address";
                ledger.left(Lines::one(bind.line), &format!("bind {address}"), why);
                continue;
            }
            let listen = listens.entry((bind.port, v6)).or_default();
            if !listen.contains(&address) {
                listen.push(address);
            }
        }
    }
    if listens.is_empty() {
        return ledger.left(front.lines, &head, "no address of it could be taken over");
    }
    used.push(back.name.clone());
    note_ways(front, options, ledger);
    let several = listens.len() > 1;
    for ((port, v6), addresses) in listens {
        let number = match port {
            Port::Any => 0,
            Port::One(port) | Port::Range(port, _) => port,
        };
        let version = if v6 { "-v6" } else { "" };
        let name = if several { format!("{}-{number}{version}", front.name) } else { front.name.clone() };
        let mut backends: Vec<Backend> = Vec::new();
        for server in back.servers.iter().filter(|server| !keeps_version || server.at.may_be(v6)) {
            let backend = Backend {
                name: server.name.clone(),
                lines: Lines::one(server.line),
                directive: server.text.clone(),
                at: server.at.clone(),
                family: (keeps_version && !matches!(server.at, At::Address(_))).then_some(if v6 {
                    "ipv6"
                } else {
                    "ipv4"
                }),
                port: server.port,
                weight: Some(server.weight),
                backup: server.checks.backup,
            };
            backends.push(backend);
        }
        let mut service = Service {
            name,
            lines: front.lines,
            directive: head.clone(),
            addresses,
            port,
            protocol: Protocol::Tcp,
            forward: if options.snat_addresses.is_empty() { Forward::Nat } else { Forward::Snat },
            snat: options.snat_addresses.clone(),
            scheduler: back.scheduler(),
            idle_timeout: front.idle(back),
            // A service has one for all its backends.
            slow_start: back.servers.iter().filter_map(|server| server.checks.slow_start).max(),
            quorum: None,
            gue_port: None,
            health: back.health(),
            backends,
        };
        if !matches!(port, Port::One(_))
            && service.health.port.is_none()
            && service.health.kind != Some("none")
        {
            // Which of the ports to check nobody says.
            service.health.port = service.backends.iter().find_map(|backend| backend.port);
            if service.health.port.is_none() {
                service.health.kind = Some("none");
                ledger.differs(front.lines, &head, "a range of ports and no port to check: type = \"none\"");
            }
        }
        draft.services.push(service);
    }
}

/// What is different about forwarding packets in place of proxying.
fn note_ways(front: &Proxy, options: &Options, ledger: &mut Ledger) {
    let lines = Lines::one(front.head.number);
    let way = if options.snat_addresses.is_empty() {
        "forward = \"nat\": backends see the client's address, and their replies must go back through lbd (its address as \
         their gateway); with --snat-address they need not"
    } else {
        "forward = \"snat\": backends see one of the --snat-address addresses"
    };
    ledger.differs(lines, &front.head.text(), way);
    if front.http {
        let why = "requests are not looked into: a connection goes to one backend with all its requests";
        ledger.differs(lines, &format!("{} (mode http)", front.head.text()), why);
    }
}
