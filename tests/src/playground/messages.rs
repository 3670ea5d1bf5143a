//! What a playground prints.

use std::{fmt::Write as _, net::IpAddr, path::Path};

use super::{
    place::Place,
    relay::Relay,
    world::{SERVICE, World},
};
use crate::{client::Report, web::Kind};

/// What to try, when everything is up.
pub(super) fn welcome(place: &Place, world: &World, relays: &Relays) -> String {
    let topology = world.topology();
    let sudo = if std::env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    let lbctl = format!(
        "{sudo}{} --socket {}",
        shown(world.lbctl()),
        place.lbctl_socket(&topology.lb[0].name).display()
    );
    let own = std::env::current_exe().map_or_else(|_| "playground".to_owned(), |path| shown(&path));
    let name = if place.name() == "playground" { String::new() } else { format!(" --name {}", place.name()) };
    let play = |verb: &str, rest: &str| format!("{sudo}{own} {verb}{name} {rest}");
    let (vip4, vip6) = (topology.vip4(), topology.vip6());
    let (site, dashboards) = (relays.site.address(), [&relays.dashboards[0], &relays.dashboards[1]]);
    let servers = match world.web_kind() {
        Kind::Nginx => "nginx servers",
        Kind::Builtin => "built-in web servers (nginx is not installed)",
    };
    let mut text = format!(
        "\nThe playground is up: client, router, the balancers lb1 and lb2 (XDP, {}), {} {servers}.\n",
        world.mode().name(),
        topology.backends.len(),
    );
    let mut section = |title: &str, lines: &[(&str, String)]| {
        let _ = writeln!(text, "\n{title}");
        for (what, line) in lines {
            let _ = writeln!(text, "  # {what}\n  {line}");
        }
    };
    section(
        "The site",
        &[
            ("from here, through the client's namespace, the router and XDP", format!("curl http://{site}/")),
            (
                "nine connections: see who answers",
                format!("for i in $(seq 9); do curl -s http://{site}/; done"),
            ),
            ("as the client itself", play("exec", &format!("client curl -s http://{vip4}/"))),
            ("IPv6", play("exec", &format!("client curl -s -g 'http://[{vip6}]/'"))),
        ],
    );
    section(
        "The balancer",
        &[
            (
                "dashboards of lb1 and lb2, for a browser here",
                format!("http://{}/  http://{}/", dashboards[0].address(), dashboards[1].address()),
            ),
            ("services, then one with its backends and counters", format!("{lbctl} service list")),
            ("", format!("{lbctl} service show {SERVICE}")),
            (
                "no new connections for web2 (of lb1; lb2 has its own socket); `enable` ends it",
                format!("{lbctl} backend drain {SERVICE} web2"),
            ),
            (
                "what would happen to a packet",
                format!("{lbctl} explain tcp {}:40000 {vip4}:80", topology.client.v4),
            ),
            ("metrics", play("exec", "lb1 curl -s http://127.0.0.1:9750/metrics")),
        ],
    );
    section(
        "Break something",
        &[
            (
                "kill a web server: within 2 s nobody is sent there any more; `heal web2` brings it back",
                play("fail", "web2"),
            ),
            (
                "kill the daemon of lb1: the kernel goes on forwarding; `heal lb1` starts it again",
                play("fail", "lb1 --daemon"),
            ),
            ("unplug lb1: lb2 takes over; `heal lb1` plugs it in", play("fail", "lb1")),
            ("who does what at the moment", play("status", "")),
        ],
    );
    text.push_str(
        "\nFailover: this version of lbd does not speak VRRP. Here the router does it: it asks both balancers\n\
         four times a second and sends the virtual addresses to lb2 while lb1 is gone, and back when lb1's\n\
         ring has settled, some 15 s after `heal lb1`. Both compute the same ring from the same\n\
         configuration, so connections go on where they were, unless you have changed (drained, say)\n\
         only one of the two by lbctl.\n\
         \nCtrl-C ends the playground and removes every trace of it.\n",
    );
    // An empty comment continues the one above.
    text.replace("  # \n", "").replace(" \n", "\n")
}

/// The ports of the host's loopback.
pub(super) struct Relays {
    pub site: Relay,
    pub dashboards: [Relay; 2],
}

/// Who answered the requests of a self-check.
pub(super) fn distribution(reports: &[(IpAddr, Report)]) -> String {
    reports.iter().fold(String::new(), |mut text, (vip, report)| {
        let _ = writeln!(text, "{vip}: {report}");
        text
    })
}

/// A path as one would type it here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let relative = here.as_deref().and_then(|here| path.strip_prefix(here).ok());
    match relative {
        Some(relative) if relative.components().count() > 1 => relative.display().to_string(),
        _ => path.display().to_string(),
    }
}
