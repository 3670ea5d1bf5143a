//! `vrrp_instance`.

use super::{
    super::{
        draft::{Draft, Part, Vrrp},
        ledger::Ledger,
        write::{texts, time},
    },
    Globals, NO_SYNC_DAEMON, seconds,
    syntax::Directive,
    track::Tracked,
};
use crate::model::DEFAULT_PRIORITY;
use ipnet::IpNet;
use std::{net::IpAddr, time::Duration};
use toml_edit::Value;

/// What is collected of an instance.
#[derive(Default)]
struct Instance {
    interface: Option<String>,
    router_id: Option<i64>,
    keys: Vec<(&'static str, Value)>,
    version: Option<u8>,
    addresses: Vec<IpNet>,
    tracked: Tracked,
}

pub(super) fn read(section: &Directive, globals: &Globals, draft: &mut Draft, ledger: &mut Ledger) {
    ledger.mapped(section.line);
    let mut of = Instance { version: globals.vrrp_version, ..Instance::default() };
    // An address on another interface is told by the instance's own.
    of.interface = section.child("interface").map(|directive| directive.word(1).to_owned());
    for directive in &section.children {
        setting(directive, &mut of, &draft.parts, ledger);
    }
    let (Some(interface), Some(router_id)) = (of.interface.filter(|name| !name.is_empty()), of.router_id)
    else {
        return ledger.left(section.lines(), &section.head(), "it has no interface or no virtual_router_id");
    };
    if of.addresses.is_empty() {
        return ledger.left(section.lines(), &section.head(), "none of its addresses could be taken over");
    }
    let all_v4 = of.addresses.iter().all(|net| net.addr().is_ipv4());
    // keepalived's default; IPv6 has version 3 only.
    let version = if all_v4 { of.version.unwrap_or(2) } else { 3 };
    let mut keys = vec![("router_id", router_id.into()), ("version", i64::from(version).into())];
    keys.append(&mut of.keys);
    let mut has = |key, value: Option<Value>| {
        if let Some(value) = value.filter(|_| !keys.iter().any(|(other, _)| *other == key)) {
            keys.push((key, value));
        }
    };
    let whole = |seconds: f64| time(Duration::from_millis((seconds.min(86_400.0) * 1000.0) as u64));
    has("startup_delay", globals.startup_delay.map(whole));
    has("announce_refresh", globals.garp_refresh.map(whole));
    has(
        "announce_repeat",
        globals.garp_repeat.filter(|n| (1..=100).contains(n)).map(|n| i64::from(n).into()),
    );
    if of.tracked.bonus > 0 {
        let base = keys.iter().position(|(key, _)| *key == "priority");
        let own = base.and_then(|at| keys[at].1.as_integer()).unwrap_or(i64::from(DEFAULT_PRIORITY));
        let raised = own + i64::from(of.tracked.bonus);
        keys.retain(|(key, _)| *key != "priority");
        keys.push(("priority", raised.clamp(1, 254).into()));
        let why = format!(
            "priority {raised} in place of {own}: what positive weights add while all is well; they are taken off otherwise"
        );
        ledger.differs(section.lines(), &section.head(), why);
    }
    keys.extend(of.tracked.keys());
    draft.vrrp.push(Vrrp {
        name: section.word(1).to_owned(),
        lines: section.lines(),
        interface,
        addresses: of.addresses,
        keys,
    });
}

fn setting(directive: &Directive, of: &mut Instance, parts: &[Part], ledger: &mut Ledger) {
    let (lines, value, head) = (directive.lines(), directive.word(1), directive.head());
    let mut key = |key, value: Value, ledger: &mut Ledger| {
        of.keys.retain(|(other, _)| *other != key);
        of.keys.push((key, value));
        ledger.mapped(directive.line);
    };
    match directive.name() {
        "interface" => ledger.mapped(directive.line),
        "virtual_router_id" => {
            of.router_id = value.parse().ok();
            ledger.mapped(directive.line);
        }
        "version" => {
            of.version = value.parse().ok();
            ledger.mapped(directive.line);
        }
        "priority" => match value.parse::<i64>() {
            Ok(priority) => key("priority", priority.into(), ledger),
            Err(_) => ledger.left(lines, &head, "no number"),
        },
        "advert_int" => match seconds(value) {
            Some(interval) => key("advert_interval", time(interval), ledger),
            None => ledger.left(lines, &head, "no time"),
        },
        "nopreempt" => key("preempt", false.into(), ledger),
        "preempt" => key("preempt", true.into(), ledger),
        "preempt_delay" => match seconds(value) {
            Some(delay) => key("preempt_delay", time(delay), ledger),
            None => ledger.mapped(directive.line),
        },
        "down_timer_adverts" => match value.parse::<i64>() {
            Ok(count) => key("down_adverts", count.into(), ledger),
            Err(_) => ledger.left(lines, &head, "no number"),
        },
        "garp_master_repeat" => match value.parse::<i64>() {
            Ok(count) => key("announce_repeat", count.into(), ledger),
            Err(_) => ledger.left(lines, &head, "no number"),
        },
        "garp_master_refresh" => match seconds(value) {
            Some(refresh) => key("announce_refresh", time(refresh), ledger),
            None => ledger.mapped(directive.line),
        },
        "unicast_peer" => {
            ledger.mapped(directive.line);
            let mut peers = Vec::new();
            for peer in &directive.children {
                match peer.name().parse::<IpAddr>() {
                    Ok(address) => peers.push(address),
                    Err(_) => {
                        ledger.left(peer.lines(), &peer.head(), "no address");
                        continue;
                    }
                }
                ledger.mapped(peer.line);
                if peer.words.len() > 1 {
                    ledger.left(
                        peer.lines(),
                        &peer.head(),
                        "of this the address alone: see min_ttl of [[vrrp]]",
                    );
                }
            }
            if !peers.is_empty() {
                key("unicast_peers", texts(peers), ledger);
            }
        }
        "virtual_ipaddress" => {
            ledger.mapped(directive.line);
            for address in &directive.children {
                virtual_address(address, of, ledger);
            }
        }
        "track_interface" | "track_script" | "track_process" | "track_file" | "track_bfd" => {
            of.tracked.read(directive, parts, ledger);
        }
        _ => ledger.left(lines, &head, reason(directive.name())),
    }
}

/// Why a setting of an instance has no equal.
fn reason(name: &str) -> &'static str {
    match name {
        "state" => "a node of lbd starts as backup; priority and preempt decide who becomes master",
        "authentication" => {
            "VRRP has no authentication any more (RFC 9568 section 9): both nodes of the pair must be lbd, or the other go without it"
        }
        "virtual_ipaddress_excluded" => {
            "lbd announces every address that it has: add them to addresses, up to 80 of each family"
        }
        "virtual_routes" | "virtual_rules" => "lbd sets addresses only, no routes and rules",
        "notify" | "notify_master" | "notify_backup" | "notify_fault" | "notify_stop" | "notify_deleted" => {
            "write the command as a [[notify]], which is told of every change of every instance"
        }
        "notify_master_rx_lower_pri" => {
            "write the command as a [[notify]], which is told of another master as PAIR from master to master"
        }
        "smtp_alert" => "lbd sends no mail: have an alert made from its metrics",
        "lvs_sync_daemon_interface" | "lvs_sync_daemon_inteface" => NO_SYNC_DAEMON,
        "use_vmac" | "use_ipvlan" | "vmac_xmit_base" | "vmac_addr" => {
            "lbd has the addresses on the interface itself and announces them with its own MAC address"
        }
        "unicast_src_ip" | "mcast_src_ip" => "lbd sends from the interface's first address",
        "garp_master_delay"
        | "garp_lower_prio_delay"
        | "garp_lower_prio_repeat"
        | "garp_master_refresh_repeat"
        | "garp_interval"
        | "gna_interval" => "lbd announces at once, announce_repeat times, and every announce_refresh",
        "dont_track_primary" | "linkbeat_use_polling" => "lbd always watches the interface itself",
        "debug" => "lbd has one log level: --log",
        _ => "lbd has no equal",
    }
}

fn virtual_address(directive: &Directive, of: &mut Instance, ledger: &mut Ledger) {
    let (lines, head) = (directive.lines(), directive.head());
    let text = directive.name();
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(net) = net else { return ledger.left(lines, &head, "no address") };
    let mut rest = directive.words[1..].iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "dev" => {
                let device = rest.next().map_or("", String::as_str);
                if of.interface.as_deref() != Some(device) {
                    let own = of.interface.as_deref().unwrap_or_default();
                    let why = format!(
                        "lbd has every address on the instance's own interface, {own}: give {device} a [[vrrp]] of its own"
                    );
                    return ledger.left(lines, &head, why);
                }
            }
            "brd" | "broadcast" | "scope" | "label" | "peer" | "preferred_lft" => {
                let value = rest.next().map_or("", String::as_str);
                ledger.left(
                    lines,
                    &format!("{word} {value}"),
                    "of this the address and its prefix length alone",
                );
            }
            other => ledger.left(lines, other, "of this the address and its prefix length alone"),
        }
    }
    ledger.mapped(directive.line);
    if of.addresses.iter().any(|other| other.addr() == net.addr()) {
        ledger.left(lines, &head, "the address stands there twice");
    } else {
        of.addresses.push(net);
    }
}
