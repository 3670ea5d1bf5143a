//! `keepalived.conf`.

mod checker;
mod syntax;
mod track;
mod virtual_server;
mod vrrp;

use super::{
    Options,
    draft::{self, Draft},
    ledger::{Ledger, Lines},
};
use std::{collections::BTreeMap, net::IpAddr};
use syntax::Directive;

pub(super) fn read(text: &str, options: &Options, ledger: &mut Ledger) -> Draft {
    let directives = syntax::parse(text, options.id.as_deref(), ledger);
    let mut draft = Draft::default();
    let mut globals = Globals::default();
    // Whatever stands later counts for what stands before.
    for directive in &directives {
        match directive.name() {
            "global_defs" => global_defs(directive, &mut globals, ledger),
            "virtual_server_group" => {
                globals.groups.insert(directive.word(1).to_owned(), directive.clone());
            }
            "vrrp_sync_group" | "vrrp_script" | "vrrp_track_process" | "vrrp_track_file" | "track_file"
            | "bfd_instance" => track::define(directive, &mut draft, ledger),
            _ => {}
        }
    }
    draft.node_name = globals.router_id.take();
    let mut used = Vec::new();
    for directive in &directives {
        let lines = directive.lines();
        match directive.name() {
            "global_defs" => {}
            "virtual_server_group" => {}
            "vrrp_instance" => vrrp::read(directive, &globals, &mut draft, ledger),
            "virtual_server" => {
                if directive.word(1) == "group" {
                    used.push(directive.word(2).to_owned());
                }
                virtual_server::read(directive, &globals, &mut draft, ledger);
            }
            "vrrp_sync_group" | "vrrp_script" | "vrrp_track_process" | "vrrp_track_file" | "track_file"
            | "bfd_instance" => {}
            "include" | "includer" | "includem" | "includew" | "includeb" | "includea" => ledger.left(
                lines,
                &directive.head(),
                "not followed: import that file by itself, and have lbd read the result with include = \"conf.d/*.toml\"",
            ),
            "static_ipaddress" | "static_routes" | "static_rules" => ledger.left(
                lines,
                directive.name(),
                "lbd leaves the host's own addresses, routes and rules to the system's network configuration",
            ),
            "net_namespace" | "net_namespace_ipvs" | "namespace_with_ipsets" | "instance" | "use_pid_dir" => {
                ledger.left(lines, &directive.head(), "lbd runs in the namespace it is started in");
            }
            "SSL" => ledger.left(lines, "SSL", "lbd's checks show no certificate of their own"),
            "garp_group" | "linkbeat_interfaces" | "interface_up_down_delays" | "track_group" => {
                ledger.left(lines, &directive.head(), "lbd has no equal");
            }
            _ => ledger.left(lines, &directive.head(), "unknown here"),
        }
    }
    for (name, group) in &globals.groups {
        if !used.contains(name) {
            ledger.left(group.lines(), &group.head(), "no virtual_server uses it");
        }
    }
    draft
}

/// What counts for the whole file.
#[derive(Default)]
struct Globals {
    router_id: Option<String>,
    vrrp_version: Option<u8>,
    startup_delay: Option<f64>,
    garp_repeat: Option<u8>,
    garp_refresh: Option<f64>,
    groups: BTreeMap<String, Directive>,
}

fn global_defs(section: &Directive, globals: &mut Globals, ledger: &mut Ledger) {
    ledger.mapped(section.line);
    for directive in &section.children {
        let (lines, value) = (directive.lines(), directive.word(1));
        let number = value.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        match directive.name() {
            "router_id" if !value.is_empty() => {
                let name: String = draft::name(value).chars().take(63).collect();
                globals.router_id = Some(name);
                ledger.mapped(directive.line);
            }
            "vrrp_version" if matches!(value, "2" | "3") => {
                globals.vrrp_version = value.parse().ok();
                ledger.mapped(directive.line);
            }
            "vrrp_startup_delay" if number.is_some() => {
                globals.startup_delay = number;
                ledger.mapped(directive.line);
            }
            "vrrp_garp_master_repeat" if value.parse::<u8>().is_ok() => {
                globals.garp_repeat = value.parse().ok();
                ledger.mapped(directive.line);
            }
            "vrrp_garp_master_refresh" if number.is_some() => {
                globals.garp_refresh = number;
                ledger.mapped(directive.line);
            }
            "notification_email"
            | "notification_email_from"
            | "smtp_server"
            | "smtp_connect_timeout"
            | "smtp_helo_name"
            | "smtp_alert"
            | "smtp_alert_checker"
            | "smtp_alert_vrrp" => {
                ledger.left(
                    lines,
                    &directive.head(),
                    "lbd sends no mail: have an alert made from its metrics",
                );
            }
            "lvs_sync_daemon" => ledger.left(lines, &directive.head(), NO_SYNC_DAEMON),
            "script_user" | "enable_script_security" => {
                ledger.left(
                    lines,
                    &directive.head(),
                    "checks of type exec run as nobody, or as their user says",
                );
            }
            _ => ledger.left(lines, &directive.head(), "a setting of keepalived itself"),
        }
    }
}

const NO_SYNC_DAEMON: &str =
    "not needed for what lbd forwards by its hash: the other node's table is the same";

/// Time in seconds, as keepalived has it; none if it is no time.
fn seconds(text: &str) -> Option<std::time::Duration> {
    let seconds = text.parse::<f64>().ok().filter(|s| s.is_finite() && *s > 0.0 && *s <= 1e7)?;
    // Whole milliseconds are all that lbd writes.
    Some(std::time::Duration::from_millis((seconds * 1000.0).round().max(1.0) as u64))
}

/// `192.0.2.1 80`, or the first alone for every port.
fn endpoint(address: &str, port: &str) -> Option<(IpAddr, u16)> {
    let port = if port.is_empty() { 0 } else { port.parse().ok()? };
    Some((address.parse().ok()?, port))
}

/// The lines from one directive to another.
fn through(from: &Directive, to: &Directive) -> Lines {
    Lines { from: from.line, to: to.last }
}
