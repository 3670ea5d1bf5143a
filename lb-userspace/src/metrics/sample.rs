//! A snapshot for tests, with every state and with names that need an escape.

use super::{Instruments, NotifyResult, ProcessView, Snapshot};
use crate::{
    control::api::{
        BackendView, DropView, FirewallView, InterfaceView, NatTotals, NatView, PoolView, ServiceView,
        SlotsView, StatusView, TableView,
    },
    control::bgp::{AnnouncedView, BgpView},
    control::fleet::{FleetAuthority, FleetNode, FleetView, RingView},
    control::link::{PeerView, SyncView},
    control::pair::{BfdStats, BfdView, PairView, RefusedView},
    control::passive::{EjectionView, PassiveView},
    model::{Admin, Forward, Health, Protocol, Scheduler, ServiceState},
};
use std::time::Duration;

pub(super) fn backend(name: &str, admin: Admin, health: Health) -> BackendView {
    BackendView {
        name: name.to_owned(),
        address: "10.0.0.11".parse().unwrap(),
        port: Some(443),
        weight: 100,
        backup: name == "web2",
        server_id: None,
        admin,
        health,
        health_reason: None,
        slots: 150,
        reachable: true,
        origin: "file".to_owned(),
        packets: 600,
        bytes: 60_000,
        gradual: crate::control::gradual::GradualView::default(),
        passive: None,
    }
}

pub(super) fn service(name: &str, backends: Vec<BackendView>) -> ServiceView {
    ServiceView {
        name: name.to_owned(),
        addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        port: "443".to_owned(),
        protocol: Protocol::Tcp,
        forward: Forward::Dsr,
        scheduler: Scheduler::Maglev,
        packets: 1200,
        bytes: 120_000,
        quic: None,
        nat: (name == "dns.v6").then(|| NatView {
            always: true,
            sessions: 17,
            unanswered: 5,
            addresses: vec!["10.0.0.250".parse().unwrap()],
            ports: Some("1024-65535".to_owned()),
        }),
        pool: pool(name),
        slots: SlotsView { total: 307, plain: 300, moving: 5, tracked: 2 },
        backends,
    }
}

fn pool(name: &str) -> PoolView {
    match name {
        "www" => PoolView { enabled: 3, healthy: 2, ..PoolView::default() },
        _ => PoolView { state: ServiceState::DownPanic, up: false, enabled: 1, ..PoolView::default() },
    }
}

fn pair(name: &str, state: &str) -> PairView {
    PairView {
        missing: Vec::new(),
        group: None,
        bfd: Vec::new(),
        hold_by: None,
        hold_since: None,
        name: name.to_owned(),
        interface: "eth0".to_owned(),
        router_id: 51,
        version: 3,
        state: state.to_owned(),
        priority: 150,
        effective_priority: 90,
        addresses: vec!["192.0.2.10/24".to_owned()],
        peers: Vec::new(),
        master: Some("10.2.0.3".parse().unwrap()),
        master_priority: Some(100),
        since: 1.5,
        reason: "no master was heard".to_owned(),
        faults: vec!["tracked interface eth1 is down".to_owned()],
        held: false,
        handed_over: false,
        waits_for_state: false,
        adverts_sent: 11,
        adverts_received: 12,
        split_brains: 2,
        address_claims: 0,
        held_by: "interface".to_owned(),
        lease: 3.0,
        warnings: Vec::new(),
        transitions: [("backup".to_owned(), 1), ("master".to_owned(), 1)].into(),
    }
}

pub(super) fn snapshot() -> Snapshot {
    let interface = |name: &str, ifindex, mode: &str, warning: Option<&str>| InterfaceView {
        name: name.to_owned(),
        ifindex,
        mode: mode.to_owned(),
        warning: warning.map(str::to_owned),
    };
    let mut web2 = backend("web2", Admin::Draining, Health::Down);
    web2.slots = 0;
    web2.reachable = false;
    web2.health_reason = Some("connection refused".to_owned());
    web2.packets = u64::MAX;
    let mut web1 = backend("web1", Admin::Enabled, Health::Up);
    web1.passive = Some(PassiveView {
        connections: 500,
        watched: 490,
        syn_repeats: 3,
        refused: 2,
        resets: 1,
        ..PassiveView::default()
    });
    web2.passive = Some(PassiveView {
        ejected: Some(EjectionView { reason: "19 of 20".to_owned(), until: 1_800_000_000, seconds_left: 25 }),
        ..PassiveView::default()
    });
    Snapshot {
        process: Some(ProcessView {
            cpu_seconds: 1.25,
            resident_bytes: 23_000_000,
            virtual_bytes: 400_000_000,
            open_files: 61,
            max_files: 1024,
            started: 1_750_000_000.5,
        }),
        pair: vec![pair("public", "master"), pair("inner\"side", "fault")],
        fleet: FleetView {
            configured: true,
            endpoint: Some("http://10.9.0.5:2379".to_owned()),
            generation: Some(17),
            stored_generation: Some(18),
            applied: 3,
            refusals: 1,
            services_hash: "8899aabb44556677".to_owned(),
            authority: FleetAuthority { mine: true, holder: Some("lb1".to_owned()), epoch: 12 },
            nodes: vec![FleetNode::default(); 3],
            rings: vec![RingView { service: "www".to_owned(), seed: i64::MAX as u64, size: 65_537 }],
            ..FleetView::default()
        },
        bgp: BgpView {
            table: Some(9750),
            addresses: vec![AnnouncedView {
                address: "192.0.2.10".parse().unwrap(),
                announced: true,
                reason: "every service on it is up".to_owned(),
            }],
            error: None,
        },
        pair_refused: vec![
            RefusedView { reason: "ttl".to_owned(), packets: 3 },
            RefusedView { reason: "checksum".to_owned(), packets: 0 },
        ],
        bfd: BfdStats {
            sessions: vec![BfdView {
                name: "fast".to_owned(),
                peer: "10.2.0.3".parse().unwrap(),
                state: "up".to_owned(),
                since: 1.5,
                trouble: None,
                packets_sent: 300,
                packets_received: 298,
                transitions: [("down".to_owned(), 1), ("up".to_owned(), 2)].into(),
            }],
            refused: vec![RefusedView { reason: "ttl".to_owned(), packets: 4 }],
        },
        link: Some(SyncView {
            peers: vec![PeerView {
                name: "lb2".to_owned(),
                address: "10.9.0.2:9760".to_owned(),
                since: 1_750_000_000.0,
                version: "0.1.0".to_owned(),
                protocol: 1,
                key: "spring".to_owned(),
                services_hash: "00ff00ff00ff00ff".to_owned(),
                same_services: false,
                instances: [("public".to_owned(), "backup".to_owned())].into(),
                sent_bytes: 5000,
                received_bytes: 6000,
                queued_bytes: 70,
                rtt_seconds: Some(0.0005),
                beating: Some(true),
            }],
            waiting: Vec::new(),
            rejected: vec![RefusedView { reason: "key".to_owned(), packets: 2 }],
        }),
        status: StatusView {
            node: "lb1".to_owned(),
            version: "0.1.0".to_owned(),
            abi: "0123456789abcdef".to_owned(),
            program: "fedcba9876543210".to_owned(),
            kernel: "6.18.0".to_owned(),
            uptime_seconds: 12.5,
            pid: 4711,
            config_file: "C:\\lbd\n\"quoted\".toml".to_owned(),
            config_hash: "00112233aabbccdd".to_owned(),
            services_hash: "8899aabb44556677".to_owned(),
            runtime_changes: 2,
            revision: 0,
            interfaces: vec![
                interface("eth0", 2, "native", None),
                interface("eth1", 3, "generic", Some("the driver has no XDP")),
            ],
            services: 2,
            backends: 3,
            map_bytes: 123_456_789,
            tracked_flows: 42,
            firewall: FirewallView { denied: 3, allowed: 1 },
            half_open_flows: 17,
            refused_flows: 5,
            warnings: vec!["forwarding is off on eth1".to_owned()],
            nat: NatTotals { made: 1000, exhausted: 7, full: 1 },
            tables: vec![TableView { name: "flows_ipv4".to_owned(), entries: 42, capacity: 131_072 }],
        },
        services: vec![
            service("www", vec![web1, web2]),
            service("dns.v6", vec![backend("ns1", Admin::Disabled, Health::Unknown)]),
        ],
        drops: vec![
            DropView { reason: "ttl".to_owned(), packets: 3, help: "TTL or hop limit 1".to_owned() },
            DropView { reason: "no_backend".to_owned(), packets: 0, help: "no backend".to_owned() },
        ],
    }
}

pub(super) fn instruments() -> Instruments {
    let instruments = Instruments::default();
    let health = &instruments.health;
    health.observe("www", "http", Duration::from_micros(500), true);
    health.observe("www", "http", Duration::from_millis(3), true);
    health.observe("www", "http", Duration::from_secs(60), false);
    health.observe("gone", "tcp", Duration::from_millis(1), true);
    let pulse = &instruments.pulse;
    pulse.work.observe("health", Duration::from_micros(700));
    pulse.late(Duration::from_millis(3));
    pulse.probe_late(Duration::from_micros(50));
    pulse.converged(Duration::from_millis(2), Some(&[]));
    pulse.converged(Duration::from_millis(900), None);
    pulse.health_changed("www", Health::Down);
    pulse.health_changed("www", Health::Down);
    pulse.health_changed("gone", Health::Up);
    pulse.hop_changed(true);
    pulse.links_changed();
    pulse.asked(true);
    instruments.requests.observe("GET /v1/status", Duration::from_micros(300));
    instruments.reloads.record(true);
    instruments.reloads.record(true);
    instruments.reloads.record(false);
    instruments.notify.record(NotifyResult::Ok);
    instruments.notify.record(NotifyResult::Timeout);
    instruments
}
