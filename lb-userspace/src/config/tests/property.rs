//! Properties of the parser: no text makes it panic, and what is printed reads back.

use super::{
    pair_parts::{link, parts},
    *,
};
use crate::model::{
    BackendSpec, BgpSpec, DnsCheck, ExecCheck, GradualSpec, GrpcCheck, GuardSpec, Health, HeldBy, HookSpec,
    LimitSpec, MAX_BURST_MS, MAX_RATE, MysqlCheck, OnAllDown, PassiveSpec, PoolSpec, QuicSpec, RedisCheck,
    Role, ServerId, SnatSpec, StatusRange, TlsSpec, TrackSpec, Tracked, TrackedFile, UdpCheck, Via,
    VrrpVersion, Withdraw,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SAMPLE: &str = include_str!("../../../../examples/lbd.toml");

/// Whatever comes, the answer is a configuration that reads back, or at least one problem, each on a
/// line of its own and inside the file.
fn check(text: &str) -> Result<(), TestCaseError> {
    match parse_on("lbd.toml", text, "host1") {
        Ok(config) => {
            let again = parse_on("lbd.toml", &config.to_toml(), "host2");
            let again = again.map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(&again.services, &config.services);
            prop_assert_eq!(again.hash(), config.hash());
        }
        Err(error) => {
            prop_assert!(!error.problems.is_empty());
            let shown = error.to_string();
            prop_assert_eq!(shown.lines().count(), error.problems.len(), "{}", &shown);
            prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{:?}", &shown);
            for problem in &error.problems {
                prop_assert!(problem.line <= text.matches('\n').count() + 1, "{problem}");
            }
        }
    }
    Ok(())
}

/// What a line of a configuration may be, right or wrong.
fn line() -> impl Strategy<Value = String> {
    let keys = select(vec![
        "name",
        "interfaces",
        "xdp_mode",
        "state_dir",
        "pin_dir",
        "run_dir",
        "answer_ping",
        "fragments",
        "listen",
        "source_ipv4",
        "gue_source_ipv6",
        "addresses",
        "address",
        "port",
        "protocol",
        "forward",
        "scheduler",
        "ring_size",
        "seed",
        "idle_timeout",
        "gue_port",
        "ports",
        "snat",
        "type",
        "path",
        "host",
        "method",
        "status",
        "interval",
        "timeout",
        "rise",
        "fall",
        "weight",
        "health",
        "backend",
        "service",
        "node",
        "nonsense",
    ]);
    let values = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        (-2..70_000i64).prop_map(|n| n.to_string()),
        "[ -~]{0,12}".prop_map(|text| format!("{text:?}")),
        select(vec![
            "true",
            "[]",
            "{}",
            "[[]]",
            "1979-05-27",
            "['eth0']",
            "'www'",
            "'10.0.0.1'",
            "['192.0.2.1']",
            "'tcp'",
            "'http'",
            "'1s'",
            "'8000-8099'",
            "'/x'",
            "'dsr'",
            "'nat'",
            "'snat'",
            "{ addresses = ['10.0.0.250'] }",
            "'100::/64'",
            "'off'",
            "[{ name = 'a' }]",
            "{ a = [1, {}] }",
        ])
        .prop_map(str::to_owned),
    ];
    let headers = select(vec![
        "[node]",
        "[metrics]",
        "[tunnel]",
        "[flows]",
        "[defaults]",
        "[defaults.health]",
        "[[service]]",
        "[service.health]",
        "[service.snat]",
        "[defaults.snat]",
        "[[service.backend]]",
        "[vrrp]",
        "[[vrrp]]",
        "[x]",
    ]);
    prop_oneof![
        5 => (keys, values).prop_map(|(key, value)| format!("{key} = {value}")),
        2 => headers.prop_map(str::to_owned),
        1 => Just("node.interfaces = ['eth0']".to_owned()),
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
}

fn health() -> impl Strategy<Value = HealthSpec> {
    let status = vec((100..=599u16, 100..=599u16), 1..4);
    let status = status.prop_map(|pairs| {
        pairs.into_iter().map(|(a, b)| StatusRange { lo: a.min(b), hi: a.max(b) }).collect::<Vec<_>>()
    });
    let tls =
        (option::of("[a-z][a-z0-9]{0,20}\\.example"), any::<bool>(), option::of("/[a-z]{1,20}/ca\\.pem"))
            .prop_map(|(server_name, verify, ca_file)| TlsSpec {
                server_name,
                verify,
                ca_file: ca_file.filter(|_| verify).map(Into::into),
            });
    let headers = vec(("X-[a-zA-Z0-9-]{1,10}", "[!-~]([ -~]{0,20}[!-~])?"), 0..4);
    let http = (
        select(vec!["GET", "HEAD", "OPTIONS", "POST"]),
        "/[!-\"$-~]{0,40}",
        option::of("[a-z0-9.-]{1,40}"),
        (headers, option::of("[a-z \\\\\".*\t]{1,20}")),
        status,
        option::of(tls.clone()),
    )
        .prop_map(|(method, path, host, (headers, body), status, tls)| {
            // What is no regular expression is not this test's matter.
            let body = body.filter(|body| method != "HEAD" && regex::bytes::Regex::new(body).is_ok());
            let method = method.to_owned();
            HealthCheck::Http(HttpCheck { method, path, host, headers, status, body, tls })
        });
    let udp = (vec(any::<u8>(), 0..40), option::of(vec(any::<u8>(), 1..40)))
        .prop_map(|(send, expect)| HealthCheck::Udp(UdpCheck { send, expect }));
    let dns = ("[a-z0-9]{1,20}(\\.[a-z-]{1,20}){0,2}", select(vec!["A", "NS", "TXT"]))
        .prop_map(|(name, record)| HealthCheck::Dns(DnsCheck { name, record: record.to_owned() }));
    let exec = (vec("[ -~]{0,20}", 0..4), "[a-z][a-z0-9-]{0,20}")
        .prop_filter("root may not", |(_, user)| user != "root")
        .prop_map(|(mut command, user)| {
            command.insert(0, "/usr/bin/check".to_owned());
            HealthCheck::Exec(ExecCheck { command, user })
        });
    let grpc = ("[a-z.]{0,20}", option::of(tls))
        .prop_map(|(service, tls)| HealthCheck::Grpc(GrpcCheck { service, tls }));
    let login = (
        option::of("[a-z]{1,20}"),
        option::of("/[a-z]{1,20}"),
        select(vec![Role::Any, Role::Primary, Role::Replica]),
    );
    let login = login.prop_map(|(user, file, role)| (user, file.map(std::path::PathBuf::from), role));
    let mysql = login.clone().prop_map(|(user, password_file, role)| {
        let role = if user.is_some() { role } else { Role::Any };
        let password_file = password_file.filter(|_| user.is_some());
        HealthCheck::Mysql(MysqlCheck { user, password_file, role })
    });
    let redis = login.prop_map(|(user, password_file, role)| {
        let user = user.filter(|_| password_file.is_some());
        HealthCheck::Redis(RedisCheck { user, password_file, role })
    });
    let check = prop_oneof![
        grpc,
        mysql,
        redis,
        Just(HealthCheck::None),
        Just(HealthCheck::Tcp),
        http,
        udp,
        Just(HealthCheck::Icmp),
        dns,
        exec
    ];
    (check, 10..=3_600_000u64, 1..=3_600_000u64, 1..=255u32, 1..=255u32, 1..=u16::MAX).prop_map(
        |(check, interval, timeout, rise, fall, port)| HealthSpec {
            via: if interval % 2 == 0 && !matches!(check, HealthCheck::None | HealthCheck::Exec(_)) {
                Via::Vip
            } else {
                Via::Backend
            },
            check,
            interval: Duration::from_millis(interval),
            timeout: Duration::from_millis(timeout.min(interval)),
            rise,
            fall,
            port: Some(port),
            initial: if fall % 2 == 0 { Health::Down } else { Health::Unknown },
            fast_interval: (rise % 2 == 0).then(|| Duration::from_millis(interval / 2 + 5)),
            backoff: (rise % 3 == 0).then(|| Duration::from_millis(interval + u64::from(port))),
        },
    )
}

fn port() -> impl Strategy<Value = PortSpec> {
    prop_oneof![
        Just(PortSpec::Any),
        (1..=u16::MAX).prop_map(PortSpec::Exact),
        (1..u16::MAX)
            .prop_flat_map(|lo| (Just(lo), lo + 1..=u16::MAX))
            .prop_map(|(lo, hi)| PortSpec::Range(lo, hi)),
    ]
}

fn prefixes() -> impl Strategy<Value = std::collections::BTreeSet<ipnet::IpNet>> {
    let net = (any::<IpAddr>(), 0..=32u8);
    let net = net.prop_map(|(address, len)| ipnet::IpNet::new(address, len).unwrap().trunc());
    proptest::collection::btree_set(net, 0..4)
}

fn guard() -> impl Strategy<Value = GuardSpec> {
    (prefixes(), proptest::array::uniform4(0..=MAX_RATE), 1..=MAX_BURST_MS).prop_map(
        |(allow, rates, burst_ms)| {
            let [
                packets_per_second,
                connections_per_second,
                source_packets_per_second,
                source_connections_per_second,
            ] = rates;
            let limits = LimitSpec {
                packets_per_second,
                connections_per_second,
                source_packets_per_second,
                source_connections_per_second,
                burst_ms,
            };
            GuardSpec { allow, limits }
        },
    )
}

fn passive() -> impl Strategy<Value = PassiveSpec> {
    let counts = (1..=100u32, 1..=1_000_000u32, 1..=100u8, 0..=100u8);
    let times = (1_000..=3_600_000u64, 1_000..=86_400_000u64, 1_000..=86_400_000u64);
    (counts, times).prop_map(
        |((windows, min_connections, threshold, max_ejected), (interval, first, longest))| PassiveSpec {
            interval: Duration::from_millis(interval),
            windows,
            min_connections,
            threshold,
            max_ejected,
            ejection_time: Duration::from_millis(first),
            max_ejection_time: Duration::from_millis(longest.max(first)),
        },
    )
}

/// A service whose addresses no service with another `index` has.
fn service(index: u16) -> impl Strategy<Value = ServiceSpec> {
    let backend = (name(), any::<u16>());
    let settings = (
        port(),
        select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Quic]),
        select(vec![Forward::Dsr, Forward::Ipip, Forward::Gue, Forward::Nat, Forward::Snat]),
        (1..=u16::MAX, any::<u16>()),
        option::of(select(vec![101u32, 10_007, 65_537])),
        0..=i64::MAX as u64,
        1_000..=86_400_000u64,
        1..=u16::MAX,
        (4..=15u8, 0..=6u8),
    );
    let beside = ((0..=86_400_000u64, option::of(0..100u8)), option::of(passive()));
    (name(), 1..4usize, settings, health(), vec(backend, 0..5), guard(), beside).prop_map(
        move |(
            name,
            addresses,
            settings,
            mut health,
            backends,
            mut guard,
            ((slow_start, max_disruption), passive),
        )| {
            if settings.2.rewrites() {
                health.via = Via::Backend;
            }
            if settings.1 == Protocol::Udp {
                guard.limits.connections_per_second = 0;
                guard.limits.source_connections_per_second = 0;
            }
            let (port, protocol, forward, (first, second), ring_size, seed, idle_timeout, gue_port, quic) =
                settings;
            // What keeps the IP version has IPv4 only and tells replies by their port.
            let nat = forward == Forward::Nat;
            let port = match port {
                PortSpec::Any | PortSpec::Range(..) if nat => PortSpec::Exact(first),
                port => port,
            };
            let address = |i: usize| {
                let i = i as u16;
                if nat || i.is_multiple_of(2) {
                    IpAddr::V4(Ipv4Addr::new(192, 0, index as u8, i as u8 + 1))
                } else {
                    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, index, 0, 0, 0, 0, i))
                }
            };
            let backends = backends.into_iter().enumerate().map(|(i, (name, weight))| BackendSpec {
                // Unique: no name of this length differs from another by its number alone.
                name: format!("{i}{}", &name[..name.len().min(60)]).parse().unwrap(),
                address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, i as u8 + 1)),
                port: (forward.rewrites() && i % 2 == 1).then_some(first),
                weight,
                backup: i % 3 == 2,
            });
            let mut backends: Vec<_> = backends.collect();
            for backend in &mut backends {
                backend.port = backend.port.filter(|own| port.single() != Some(*own));
            }
            let (server_id_length, config_id) = quic;
            let server_ids = backends.iter().zip(0u8..).map(|(backend, i)| {
                // Of every second one what its address makes.
                let text = format!("{i:0width$x}", width = 2 * usize::from(server_id_length));
                let id = if i % 2 == 0 {
                    ServerId::of_address(backend.address, server_id_length)
                } else {
                    text.parse().unwrap()
                };
                (backend.name.clone(), id)
            });
            let quic = QuicSpec { server_id_length, config_id, server_ids: server_ids.collect() };
            ServiceSpec {
                name: format!("{index}{}", &name[..name.len().min(60)]).parse().unwrap(),
                addresses: (0..addresses).map(address).collect(),
                port,
                protocol,
                forward,
                scheduler: [
                    Scheduler::Maglev,
                    Scheduler::SourceIp,
                    Scheduler::RoundRobin,
                    Scheduler::LeastConnections,
                ][usize::from(index) % 4],
                ring_size,
                seed,
                idle_timeout: Duration::from_millis(idle_timeout),
                gue_port,
                health,
                passive: passive.filter(|_| protocol == Protocol::Tcp),
                guard,
                gradual: GradualSpec { slow_start: Duration::from_millis(slow_start), max_disruption },
                pool: pool(index),
                quic: (protocol == Protocol::Quic).then_some(quic),
                snat: (forward == Forward::Snat).then(|| SnatSpec {
                    addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 9, index as u8, 1))],
                    ports: (first.min(second.max(1)), first.max(second)),
                }),
                backends,
            }
        },
    )
}

fn pool(index: u16) -> PoolSpec {
    let hook = |n: u64| HookSpec {
        command: vec![format!("/bin/hook{n}"), "a \"b\"".to_owned()],
        timeout: Duration::from_millis(100 + n),
        user: "nobody".to_owned(),
    };
    let n = u32::from(index);
    PoolSpec {
        quorum_up: 1 + n % 5,
        quorum_down: 1 + n % 5 / 2,
        panic_threshold: (n * 7 % 101) as u8,
        on_all_down: if n % 2 == 0 { OnAllDown::Drop } else { OnAllDown::Reject },
        notify: (0..u64::from(n % 3)).map(hook).collect(),
    }
}

fn router(index: u8) -> impl Strategy<Value = VrrpSpec> {
    let host = index + 1;
    let times = (1..255u64, 0..100_000u64, 1..=100u8, any::<[bool; 6]>(), 0..=253u8);
    (name(), 1..=255u8, times).prop_map(move |(name, priority, (units, ms, count, flags, weight))| {
        let [v2, six, unicast, preempt, tracked, pseudo_header] = flags;
        let version = if v2 { VrrpVersion::V2 } else { VrrpVersion::V3 };
        let four = ipnet::IpNet::new([192, 0, 2, host].into(), 24).unwrap();
        let other =
            ipnet::IpNet::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, host.into()).into(), 64).unwrap();
        let unicast_peers: Vec<IpAddr> =
            if unicast { vec!["10.0.0.3".parse().unwrap(), "fd00::3".parse().unwrap()] } else { Vec::new() };
        let delay = Duration::from_millis(ms);
        VrrpSpec {
            name: format!("{index}{name}")[..name.len().min(60)].parse().unwrap(),
            interface: format!("eth{index}"),
            router_id: host,
            version,
            priority,
            advert_interval: if v2 { Duration::from_secs(units) } else { Duration::from_millis(units * 10) },
            addresses: if six && !v2 { vec![four, other] } else { vec![four] },
            preempt,
            preempt_delay: delay,
            startup_delay: delay * 2,
            down_adverts: count,
            min_ttl: (!unicast_peers.is_empty() && pseudo_header).then_some(count),
            unicast_peers,
            pseudo_header,
            announce_repeat: count,
            announce_refresh: delay,
            held_by: if preempt { HeldBy::Interface } else { HeldBy::Dataplane },
            accept: preempt && pseudo_header,
            track_interfaces: if tracked {
                ["eth8", "eth9"].map(|name| Tracked { name: name.to_owned(), weight }).into()
            } else {
                Vec::new()
            },
            track: TrackSpec {
                scripts: vec![Tracked { name: "check".parse().unwrap(), weight }],
                files: vec![TrackedFile { name: "load".parse().unwrap(), weight: i16::from(weight) - 100 }],
                services: Vec::new(),
                xdp: if tracked { None } else { Some(weight) },
                peer_config: (unicast && weight > 0).then_some(weight),
                bfd: if six { vec!["fast".parse().unwrap()] } else { Vec::new() },
            },
            group: None,
        }
    })
}

fn config() -> impl Strategy<Value = Config> {
    let node = (
        name(),
        proptest::collection::hash_set("[a-z][a-z0-9._-]{0,14}", 1..4),
        select(vec![XdpMode::Auto, XdpMode::Native, XdpMode::Generic]),
        "/[a-zA-Z0-9 _\"'\\\\é-]{1,20}",
    );
    let node = node.prop_map(|(name, interfaces, xdp_mode, dir)| NodeConfig {
        name,
        interfaces: interfaces.into_iter().collect(),
        xdp_mode,
        state_dir: dir.clone().into(),
        pin_dir: format!("/sys/fs/bpf{dir}").into(),
        run_dir: format!("{dir}.run").into(),
        answer_ping: xdp_mode == XdpMode::Native,
        fragments: xdp_mode != XdpMode::Generic,
    });
    let listen = option::of((any::<IpAddr>(), 1..=u16::MAX));
    let listen = listen.prop_map(|listen| MetricsConfig {
        listen: listen.filter(|(ip, _)| !ip.is_multicast()).map(Into::into),
    });
    let tunnel = (8..=32u8, 32..=128u8, any::<bool>()).prop_map(|(v4, v6, gue)| TunnelConfig {
        source_ipv4: ipnet::Ipv4Net::new(Ipv4Addr::new(198, 18, 255, 255), v4).unwrap().trunc(),
        source_ipv6: ipnet::Ipv6Net::new(Ipv6Addr::new(0x2001, 0xdb8, 5, 5, 5, 5, 5, 5), v6).unwrap().trunc(),
        gue_source_ipv4: gue.then_some(Ipv4Addr::new(10, 0, 0, 1)),
        gue_source_ipv6: gue.then_some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    });
    let room = 1024..=1u32 << 24;
    let flows = (room.clone(), room.clone(), room).prop_map(|(max_flows, max_half_open, max_sessions)| {
        FlowsConfig { max_flows, max_half_open, max_sessions }
    });
    let services = (0..5u16).prop_flat_map(|count| (0..count).map(service).collect::<Vec<_>>());
    let firewall = (prefixes(), prefixes()).prop_map(|(deny, allow)| FirewallConfig {
        allow: allow.difference(&deny).copied().collect(),
        deny,
        ..FirewallConfig::default()
    });
    let vrrp = (0..3u8).prop_flat_map(|count| (0..count).map(router).collect::<Vec<_>>());
    let names = || vec("[a-z]{1,9}", 1..3);
    let control = (option::of("[a-z]{1,9}"), option::of("[a-z]{1,9}"), option::of(1..9u16), names(), names());
    let control = control.prop_map(|(admin_group, read_group, port, admins, readers)| ControlConfig {
        admin_group,
        read_group,
        tls: port.map(|port| ControlTls {
            listen: (Ipv4Addr::LOCALHOST, port).into(),
            cert_file: "/etc/lbd/a.crt".into(),
            key_file: "/etc/lbd/a.key".into(),
            client_ca_file: "/etc/lbd/ca.crt".into(),
            readers: readers.into_iter().filter(|name| !admins.contains(name)).collect(),
            admins,
        }),
    });
    (node, listen, tunnel, firewall, flows, services, vrrp, control).prop_map(
        |(node, metrics, tunnel, firewall, flows, services, mut vrrp, control)| Config {
            pair: parts(&mut vrrp),
            bgp: (vrrp.len() == 2).then(|| BgpSpec {
                table: 9751,
                services: Vec::new(),
                withdraw: Withdraw::Down,
                delay: Duration::from_millis(1500),
                keep_on_stop: vrrp[0].preempt,
            }),
            fleet: (vrrp.len() == 2).then(|| FleetConfig {
                endpoints: vec!["https://etcd1:2379".to_owned(), "https://[::1]:2379".to_owned()],
                prefix: "/lbd/a.b".to_owned(),
                ca_file: None,
                identity: Some(("/etc/lbd/a.crt".into(), "/etc/lbd/a.key".into())),
                login: Some(("lbd".to_owned(), "/etc/lbd/etcd.password".into())),
                lease: Duration::from_secs(7),
                commands: vrrp[0].preempt,
            }),
            fleet_file: None,
            notify: pool(vrrp.len() as u16 + 1).notify,
            file: "lbd.toml".to_owned(),
            node,
            metrics,
            control,
            tunnel,
            firewall: firewall.into(),
            flows,
            resolver: ResolverConfig::default(),
            names: BTreeMap::new(),
            services,
            sync: (vrrp.len() == 1).then(link),
            vrrp,
            files: vec![String::new()],
            origins: Origins::default(),
        },
    )
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,200}") {
        check(&text)?;
    }

    #[test]
    fn no_lines_panic(lines in vec(line(), 0..24)) {
        check(&lines.join("\n"))?;
    }

    #[test]
    fn no_damaged_sample_panics(from in 0..SAMPLE.len(), length in 0..40usize, put in "(?s).{0,6}") {
        let from = SAMPLE.floor_char_boundary(from);
        let to = SAMPLE.floor_char_boundary((from + length).min(SAMPLE.len()));
        check(&format!("{}{put}{}", &SAMPLE[..from], &SAMPLE[to..]))?;
    }

    #[test]
    fn what_is_printed_reads_back(config in config()) {
        let text = config.to_toml();
        let read = parse_on("lbd.toml", &text, "host1")
            .map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&read.node, &config.node);
        prop_assert_eq!(&read.metrics, &config.metrics);
        prop_assert_eq!(&read.tunnel, &config.tunnel);
        prop_assert_eq!(&read.firewall, &config.firewall);
        prop_assert_eq!(&read.control, &config.control);
        prop_assert_eq!(&read.flows, &config.flows);
        prop_assert_eq!(&read.sync, &config.sync);
        prop_assert_eq!(&read.fleet, &config.fleet);
        prop_assert_eq!(&read.services, &config.services);
        prop_assert_eq!(read.hash(), config.hash());
        prop_assert_eq!(read.shared_hash(), config.shared_hash());
    }
}
