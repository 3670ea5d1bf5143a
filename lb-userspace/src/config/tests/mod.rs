//! Tests of the configuration: what is accepted and what it means.

mod broken;
mod fleet;
mod include;
mod pair_parts;
mod property;

use super::*;
use crate::model::{Forward, HealthCheck, HealthSpec, HttpCheck, PortSpec, Protocol, Scheduler, XdpMode};
use std::time::Duration;

fn read(text: &str) -> Config {
    parse_on("lbd.toml", text, "host1").unwrap_or_else(|error| panic!("{error}"))
}

/// The sections a test does not look at.
const NODE: &str = "[node]\ninterfaces = ['eth0']\n";

fn origin(config: &Config, key: &str) -> Origin {
    let settings = config.settings();
    settings.iter().find(|s| s.key == key).unwrap_or_else(|| panic!("no setting {key}")).origin
}

fn value(config: &Config, key: &str) -> serde_json::Value {
    let settings = config.settings();
    settings.into_iter().find(|s| s.key == key).unwrap_or_else(|| panic!("no setting {key}")).value
}

#[test]
fn the_least_configuration_has_the_documented_defaults() {
    let config = read(
        "[node]\ninterfaces = ['eth0']\n[[service]]\nname = 'www'\naddresses = ['192.0.2.10']\nport = 80\n\
         [[service.backend]]\nname = 'a'\naddress = '10.0.0.1'\n",
    );
    assert_eq!(config.node.name, "host1");
    assert_eq!(config.node.interfaces, ["eth0"]);
    assert_eq!(config.node.xdp_mode, XdpMode::Auto);
    assert_eq!(config.node.state_dir, Path::new("/var/lib/lbd"));
    assert_eq!(config.node.pin_dir, Path::new("/sys/fs/bpf/lbd"));
    assert_eq!(config.node.run_dir, Path::new("/run/lbd"));
    assert_eq!(config.metrics.listen, Some("127.0.0.1:9750".parse().unwrap()));
    assert_eq!(config.tunnel.source_ipv4.to_string(), "198.18.0.0/16");
    assert_eq!(config.tunnel.source_ipv6.to_string(), "100::/64");
    assert_eq!((config.tunnel.gue_source_ipv4, config.tunnel.gue_source_ipv6), (None, None));
    let [service] = config.services.as_slice() else { panic!("{:?}", config.services) };
    assert_eq!(service.protocol, Protocol::Tcp);
    assert_eq!(service.forward, Forward::Dsr);
    assert_eq!(service.scheduler, Scheduler::Maglev);
    assert_eq!(service.ring_size, None);
    assert_eq!(service.seed, default_seed(&service.name));
    assert_eq!(service.idle_timeout, Duration::from_secs(300));
    assert_eq!(service.gue_port, 6080);
    assert_eq!(service.health, HealthSpec::default());
    assert_eq!(service.backends[0].weight, 100);
    assert_eq!(service.backends[0].port, None);
}

#[test]
fn the_sample_is_valid_and_says_what_it_means() {
    let text = include_str!("../../../../examples/lbd.toml");
    let config = read(text);
    assert_eq!(config.services.len(), 7);
    assert_eq!(config.flows, crate::config::FlowsConfig::default(), "they are said to be the defaults");
    let www = &config.services[0];
    assert_eq!(www.addresses.len(), 2);
    let check = HttpCheck {
        path: "/healthz".to_owned(),
        host: Some("www.example.com".to_owned()),
        headers: vec![("X-Probe".to_owned(), "lbd".to_owned())],
        body: Some("ok".to_owned()),
        ..HttpCheck::default()
    };
    assert_eq!(www.health.check, HealthCheck::Http(check));
    // What is commented out may be put in.
    let all = text.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if setting.contains(" = ") && setting.starts_with(|c: char| c.is_ascii_lowercase()) => {
            setting
        }
        Some(header) if header.starts_with("[[") || ["[sync]", "[bgp]", "[fleet]"].contains(&header) => {
            header
        }
        _ => line,
    });
    let all = read(&all.collect::<Vec<_>>().join("\n"));
    assert_eq!(all.services[0].ring_size, Some(65_537));
    assert_eq!(all.services[0].seed, 1);
    assert!(all.tunnel.gue_source_ipv6.is_some());
    assert_eq!((all.vrrp[0].router_id, all.vrrp[0].priority, all.vrrp[0].addresses.len()), (51, 150, 2));
}

#[test]
fn defaults_apply_where_a_service_says_nothing() {
    let config = read(&format!(
        "{NODE}[defaults]\nport = 8080\nprotocol = 'udp'\nforward = 'gue'\nring_size = 101\nseed = 5\n\
         idle_timeout = '10s'\ngue_port = 7000\n[defaults.health]\ntype = 'http'\npath = '/up'\nrise = 9\n\
         timeout = '5s'\ninterval = '6s'\n\
         [[service]]\nname = 'a'\naddresses = ['192.0.2.1']\n\
         [[service]]\nname = 'b'\naddresses = ['192.0.2.1']\nport = '1-9'\nprotocol = 'tcp'\nforward = 'ipip'\n\
         ring_size = 7\nseed = 6\nidle_timeout = '1m'\ngue_port = 1\nhealth = {{ type = 'none', rise = 1 }}\n"
    ));
    let [a, b] = config.services.as_slice() else { panic!() };
    assert_eq!((a.port, b.port), (PortSpec::Exact(8080), PortSpec::Range(1, 9)));
    assert_eq!((a.protocol, b.protocol), (Protocol::Udp, Protocol::Tcp));
    assert_eq!((a.forward, b.forward), (Forward::Gue, Forward::Ipip));
    assert_eq!((a.ring_size, b.ring_size), (Some(101), Some(7)));
    assert_eq!((a.seed, b.seed), (5, 6));
    assert_eq!((a.idle_timeout, b.idle_timeout), (Duration::from_secs(10), Duration::from_secs(60)));
    assert_eq!((a.gue_port, b.gue_port), (7000, 1));
    assert!(matches!(&a.health.check, HealthCheck::Http(http) if http.path == "/up"));
    assert_eq!(b.health.check, HealthCheck::None);
    assert_eq!((a.health.rise, b.health.rise), (9, 1));
    assert_eq!(a.health.timeout, Duration::from_secs(5));
}

#[test]
fn defaults_that_depend_on_the_protocol_or_another_setting() {
    let config = read(&format!(
        "{NODE}[[service]]\nname = 'dns'\naddresses = ['192.0.2.1']\nport = 53\nprotocol = 'udp'\n\
         [[service]]\nname = 'fast'\naddresses = ['192.0.2.1']\nport = 53\nhealth.interval = '100ms'\n"
    ));
    let [dns, fast] = config.services.as_slice() else { panic!() };
    assert_eq!(dns.idle_timeout, Duration::from_secs(30));
    assert_eq!(dns.health.check, HealthCheck::None);
    assert_eq!(fast.health.timeout, Duration::from_millis(100));
}

#[test]
fn an_idle_timeout_for_each_protocol() {
    let config = read(&format!(
        "{NODE}[defaults]\nport = 53\nidle_timeout = '10s'\nidle_timeout_udp = '20s'\n\
         [[service]]\nname = 'a'\naddresses = ['192.0.2.1']\n\
         [[service]]\nname = 'b'\naddresses = ['192.0.2.1']\nprotocol = 'udp'\n\
         [[service]]\nname = 'c'\naddresses = ['192.0.2.2']\nprotocol = 'udp'\nidle_timeout = '30s'\n\
         [flows]\nmax_flows = 5000\n"
    ));
    let seconds: Vec<u64> = config.services.iter().map(|s| s.idle_timeout.as_secs()).collect();
    assert_eq!(seconds, [10, 20, 30]);
    assert_eq!(config.flows, FlowsConfig { max_flows: 5000, ..FlowsConfig::default() });
}

#[test]
fn every_way_to_write_a_setting() {
    let service = |line: &str| {
        let text =
            format!("{NODE}[[service]]\nname = 's'\naddresses = ['192.0.2.1']\nhealth.port = 1\n{line}\n");
        read(&text).services.remove(0)
    };
    assert_eq!(service("port = 0").port, PortSpec::Any);
    assert_eq!(service("port = '80'").port, PortSpec::Exact(80));
    assert_eq!(service("port = 0x1F90").port, PortSpec::Exact(8080));
    assert_eq!(service("port = '8000-8099'").port, PortSpec::Range(8000, 8099));
    assert_eq!(service("port = 80\nseed = 9223372036854775807").seed, i64::MAX as u64);
    let status = |text: &str| {
        let health = service(&format!("port = 80\nhealth.type = 'http'\nhealth.status = {text}")).health;
        match health.check {
            HealthCheck::Http(http) => http.status.iter().map(|r| (r.lo, r.hi)).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(status("204"), [(204, 204)]);
    assert_eq!(status("'200-399'"), [(200, 399)]);
    assert_eq!(status("[200, '204', '300-302']"), [(200, 200), (204, 204), (300, 302)]);
    for off in ["", "off"] {
        assert_eq!(read(&format!("{NODE}[metrics]\nlisten = '{off}'")).metrics.listen, None);
    }
    // A check that is switched off keeps its settings; a backend's port may repeat the service's.
    assert_eq!(service("port = 80\nhealth.type = 'none'\nhealth.path = '/'").health.check, HealthCheck::None);
    let same = service("port = 80\n[[service.backend]]\nname = 'b'\naddress = '10.0.0.1'\nport = 80");
    assert_eq!(same.backends[0].port, None);
}

#[test]
fn services_that_do_not_overlap_are_accepted() {
    let service =
        |name: &str, rest: &str| format!("[[service]]\nname = '{name}'\nhealth.type = 'none'\n{rest}\n");
    let config = read(&format!(
        "{NODE}{}{}{}{}{}",
        service("a", "addresses = ['192.0.2.1', '2001:db8::1']\nport = 80"),
        service("b", "addresses = ['192.0.2.1']\nport = 80\nprotocol = 'udp'"),
        service("c", "addresses = ['192.0.2.1']\nport = '81-90'"),
        service("d", "addresses = ['192.0.2.1']\nport = 0"),
        service("e", "addresses = ['192.0.2.2']\nport = 80"),
    ));
    assert_eq!(config.services.len(), 5);
}

#[test]
fn settings_say_where_they_come_from() {
    let config = read(
        "[node]\ninterfaces = ['eth0']\n[defaults.health]\nrise = 5\n[[service]]\nname = 'www'\n\
         addresses = ['192.0.2.1']\nport = 80\n[[service.backend]]\nname = 'w.1'\naddress = '10.0.0.1'\nweight = 7\n",
    );
    assert_eq!(origin(&config, "node.name"), Origin::Default);
    assert_eq!(origin(&config, "node.interfaces"), Origin::File { file: 0, line: 2 });
    assert_eq!(origin(&config, "service.www.health.rise"), Origin::File { file: 0, line: 4 });
    assert_eq!(origin(&config, "service.www.health.fall"), Origin::Default);
    assert_eq!(origin(&config, "service.www.port"), Origin::File { file: 0, line: 8 });
    assert_eq!(origin(&config, "service.www.backend.w.1.weight"), Origin::File { file: 0, line: 12 });
    assert_eq!(value(&config, "service.www.backend.w.1.weight"), 7);
    assert_eq!(value(&config, "service.www.idle_timeout"), "5m");
    assert_eq!(value(&config, "service.www.health.timeout"), "500ms");
}

#[test]
fn hashes_follow_the_meaning_and_not_the_text() {
    let text = "[node]\nname = 'n'\ninterfaces = ['eth0', 'eth1']\n[[service]]\nname = 'a'\naddresses = ['192.0.2.1', '192.0.2.2']\n\
                port = 80\n[[service]]\nname = 'b'\naddresses = ['192.0.2.3']\nport = 80\nhealth.interval = '1000ms'\n";
    let same = "# comment\nservice = [{ port = '80', health.interval = '1s', addresses = ['192.0.2.3'], name = 'b' },\n\
                { name = \"a\", protocol = 'tcp', addresses = ['192.0.2.2', '192.0.2.1'], port = 80 }]\n\
                node = { interfaces = ['eth1', 'eth0'], name = 'n' }\n";
    let (first, second) = (read(text), read(same));
    assert_eq!(first.hash(), second.hash());
    assert_eq!(first.shared_hash(), second.shared_hash());
    assert_eq!(first.hash().len(), 16);
    assert_ne!(first.hash(), first.shared_hash());

    let other_node = read(&text.replace("'n'", "'m'"));
    assert_ne!(first.hash(), other_node.hash());
    assert_eq!(first.shared_hash(), other_node.shared_hash());
    let other_service = read(&text.replace("1000ms", "1001ms"));
    assert_ne!(first.shared_hash(), other_service.shared_hash());
    assert_ne!(first.hash(), other_service.hash());
}

/// Nodes of different versions must agree on these.
#[test]
fn golden_seeds() {
    let seed = |name: &str| default_seed(&name.parse().unwrap());
    assert_eq!(seed("www"), 6_103_751_098_806_257_360);
    assert_eq!(seed("dns"), 7_739_694_781_819_548_128);
}
