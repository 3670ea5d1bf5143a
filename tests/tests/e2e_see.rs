//! Seeing what the balancer does: explain, flows and trace of the real daemon.

use lb_tests::{
    balancer::{Balancer, Service, Settings, program, web_servers},
    client::{Connection, Requests},
    lab::{Gateway, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::{
    api::ExplainView,
    observe::{FlowsView, TraceLine, TraceView},
};
use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn explain(balancer: &Balancer<'_>, source: &str, target: &str, flags: &str) -> ExplainView {
    balancer.json(&["explain", "tcp", source, target, "--flags", flags])
}

#[test]
fn explain_and_flows_before_and_during_a_drain() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    let vip = SocketAddr::new(topology.vip4(), 80);
    let target = vip.to_string();

    // A connection to the backend that will be drained.
    let (mut connection, client) = loop {
        let mut connection = Connection::open(&topology.client.ns, vip, PATIENCE).expect("connected");
        if connection.get("/").expect("an answer").backend() == "web1" {
            let client = connection.local_addr().expect("an address");
            break (connection, client);
        }
    };
    let source = client.to_string();
    let packets = balancer.service("www").packets;
    for flags in ["syn", "ack", "fin,ack"] {
        let view = explain(&balancer, &source, &target, flags);
        assert!(view.by.as_deref().is_some_and(|by| by.starts_with("the program in the kernel")), "{view:?}");
        assert_eq!((view.verdict.as_str(), view.backend.as_deref()), ("forward", Some("web1")), "{view:?}");
        assert_eq!((view.service.as_deref(), view.slot_state.as_deref()), (Some("www"), Some("plain")));
        let headers = view.headers.expect("headers");
        assert_eq!((headers.packet.source, headers.packet.source_port), (client.ip(), Some(client.port())));
        assert_eq!((headers.packet.ttl, headers.outer), (63, None));
    }
    let refused = explain(&balancer, &source, &target, "syn,fin");
    assert_eq!(refused.verdict, "drop", "{refused:?}");
    assert!(refused.reason.starts_with("tcp_flags"), "{refused:?}");
    assert_eq!(balancer.dropped("tcp_flags"), 0, "explaining drops nothing");
    assert_eq!(balancer.service("www").packets, packets, "nor does it count");
    assert_eq!(balancer.json::<FlowsView>(&["flows"]).total, 0, "plain slots track nothing");

    balancer.lbctl(&["backend", "drain", "www", "web1"]);
    let new = explain(&balancer, &source, &target, "syn");
    assert_eq!(
        (new.backend.as_deref(), new.slot_state.as_deref()),
        (Some("web2"), Some("moving")),
        "{new:?}"
    );
    assert_eq!((new.slot_owner.as_deref(), new.slot_home.as_deref()), (Some("web2"), Some("web1")));
    assert_eq!(explain(&balancer, &source, &target, "ack").backend.as_deref(), Some("web1"));
    assert_eq!(balancer.json::<FlowsView>(&["flows"]).total, 0, "explaining records nothing");

    assert_eq!(connection.get("/").expect("an answer").backend(), "web1", "it stays where it was");
    let flows: FlowsView = balancer.json(&["flows", "--service", "www", "--backend", "web1"]);
    let flow = flows.flows.iter().find(|flow| flow.client == client).unwrap_or_else(|| panic!("{flows:?}"));
    assert_eq!((flow.vip, flow.protocol.as_str(), flow.state.as_str()), (vip, "tcp", "confirmed"));
    assert_eq!((flow.service.as_deref(), flow.backend.as_deref()), (Some("www"), Some("web1")));
    let recorded = explain(&balancer, &source, &target, "ack");
    assert_eq!((recorded.backend.as_deref(), recorded.flow.as_deref()), (Some("web1"), Some("confirmed")));
    assert_eq!(balancer.json::<FlowsView>(&["flows", "--backend", "nobody"]).total, 0);
    assert!(!balancer.lbctl_output(&["flows", "--service", "nothing"]).status.success());
    Ok(())
}

/// An `lbctl trace` that ends with the test.
struct Tracer(Option<Child>);

impl Tracer {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it runs")
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn trace(balancer: &Balancer<'_>, arguments: &[&str]) -> Tracer {
    let mut command = Command::new(program("lbctl"));
    command.arg("--socket").arg(balancer.socket()).args(["-o", "json", "trace"]).args(arguments);
    Tracer(Some(command.stdout(Stdio::piped()).spawn().expect("lbctl can be started")))
}

fn lines(mut tracer: Tracer) -> Vec<TraceView> {
    let output = tracer.0.take().expect("it runs").wait_with_output().expect("lbctl ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .filter_map(|line| match serde_json::from_str(line).expect(line) {
            TraceLine::Packet(view) => Some(view),
            TraceLine::Lost { .. } => None,
        })
        .collect()
}

#[test]
fn trace_shows_packets_and_leaves_nothing_behind() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    let target = SocketAddr::new(topology.vip4(), 80);
    let plain = balancer.xdp_program("eth0");
    assert!(plain.is_some());

    // Two that end by themselves, and one that vanishes.
    let forwarded = trace(&balancer, &["--verdict", "forward", "--service", "www", "--count", "5"]);
    let dropped = trace(&balancer, &["--verdict", "drop", "--dest", &target.to_string(), "--count", "2"]);
    let mut vanishes = trace(&balancer, &["--sample", "3"]);
    wait_until("three traces", PATIENCE, || balancer.process().log().contains("tracing one_packet_in=1"))?;
    wait_until("the tracing program", PATIENCE, || balancer.xdp_program("eth0") != plain)?;
    // All three must be there: those that came later wait for their answers.
    std::thread::sleep(Duration::from_millis(500));
    Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 20).assert_all_answered();
    let forwarded = lines(forwarded);
    assert_eq!(forwarded.len(), 5);
    for view in &forwarded {
        assert_eq!((view.verdict.as_str(), view.destination), ("forward", target), "{view:?}");
        assert_eq!((view.service.as_deref(), view.interface.as_str()), (Some("www"), "eth0"), "{view:?}");
        assert!(view.backend.as_deref().is_some_and(|b| b.starts_with("web")), "{view:?}");
        assert!(view.source.ip().is_ipv4() && view.source.port() > 0 && view.slot.is_some(), "{view:?}");
    }
    for backend in ["web1", "web2"] {
        balancer.lbctl(&["backend", "disable", "www", backend]);
    }
    let gone = Connection::open(&topology.client.ns, target, Duration::from_secs(4));
    assert!(gone.is_err(), "nobody is there to answer");
    let dropped = lines(dropped);
    assert_eq!(dropped.len(), 2);
    for view in &dropped {
        assert_eq!((view.verdict.as_str(), view.reason.as_deref()), ("drop", Some("no_backend")), "{view:?}");
        assert_eq!((view.destination, view.backend.as_deref()), (target, None), "{view:?}");
    }

    assert_ne!(balancer.xdp_program("eth0"), plain, "one still traces");
    vanishes.child().kill().expect("killed");
    vanishes.child().wait().expect("its end");
    wait_until("the end of tracing", Duration::from_secs(2), || balancer.xdp_program("eth0") == plain)?;
    for backend in ["web1", "web2"] {
        balancer.lbctl(&["backend", "enable", "www", backend]);
    }
    Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 20).assert_all_answered();
    Ok(())
}

/// A daemon that dies while somebody traces leaves the tracing program; the next one does not.
#[test]
fn a_restart_ends_a_trace() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4()]).nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let target = SocketAddr::new(topology.vip4(), 80);
    let plain = balancer.xdp_program("eth0");
    let mut left = trace(&balancer, &[]);
    wait_until("the tracing program", PATIENCE, || balancer.xdp_program("eth0") != plain)?;
    let tracing = balancer.xdp_program("eth0");
    balancer.kill();
    Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 20).assert_all_answered();
    assert!(left.child().wait().is_ok(), "lbctl notices that lbd is gone");
    balancer.restart()?;
    assert_ne!(balancer.xdp_program("eth0"), tracing);
    let view = explain(&balancer, "10.1.0.2:4000", &target.to_string(), "syn");
    assert!(view.by.is_some_and(|by| by.starts_with("the program in the kernel")));
    Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 20).assert_all_answered();
    Ok(())
}

/// The services of NAT in front of one web server: by `nat` port 8000, by `snat` port 8001, and by `snat` for clients of the
/// other IP version.
fn behind_nat(topology: &Topology) -> Result<[Service; 3]> {
    topology.set_gateway(0, Gateway::Balancer(0))?;
    let mut plan = topology.lab.plan();
    plan.addr(&topology.lb[0].ns, "eth0", "10.0.0.250/16").apply()?;
    let pool = "[service.snat]\naddresses = [\"10.0.0.250\"]";
    let service = |name: &str, vip: &str, port| {
        let vip = vip.parse().expect("an address");
        Service::www([vip]).name(name).port(port).backend_port(80).nodes(&topology.backends)
    };
    Ok([
        service("nat", "192.0.2.10", 8000).forward("nat"),
        service("snat", "192.0.2.10", 8001).forward("snat").extra(pool),
        service("snat64", "2001:db8::10", 8001).forward("snat").extra(pool),
    ])
}

/// The services of [`behind_nat`].
const NAT_SERVICES: [(&str, &str, u16); 3] =
    [("nat", "192.0.2.10", 8000), ("snat", "192.0.2.10", 8001), ("snat64", "2001:db8::10", 8001)];

/// One backend behind a balancer that forwards.
fn nat_topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 1, vips: Vec::new(), lb_forwarding: true, ..Shape::default() })
}

#[test]
fn explain_of_nat_in_both_directions() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = nat_topology()?;
    let _servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, Settings::of(behind_nat(&topology)?))?;
    let backend = SocketAddr::new(topology.backends[0].v4.into(), 80);
    for (name, vip, port) in NAT_SERVICES {
        let target = SocketAddr::new(vip.parse().expect("an address"), port);
        let new = SocketAddr::new(
            if target.is_ipv4() { topology.client.v4.into() } else { topology.client.v6.into() },
            999,
        );
        let asked = explain(&balancer, &new.to_string(), &target.to_string(), "syn");
        assert!(
            asked.by.as_deref().is_some_and(|by| by.starts_with("the program in the kernel")),
            "{asked:?}"
        );
        assert_eq!((asked.verdict.as_str(), asked.service.as_deref()), ("forward", Some(name)), "{asked:?}");
        assert!(asked.backend.as_deref() == Some("web1") && asked.slot.is_some(), "{asked:?}");
        assert!(asked.reason.contains(&format!("destination becomes {backend}")), "{asked:?}");
        assert_eq!(balancer.status().nat.made, 0, "explaining makes no session");
    }
    // The middle of a connection that nobody knows.
    let strange = explain(&balancer, "10.1.0.2:999", "192.0.2.10:8001", "ack");
    assert!(strange.verdict == "drop" && strange.reason.starts_with("nat_session"), "{strange:?}");
    assert_eq!(balancer.dropped("nat_session"), 0);

    let mut made = 0;
    for (name, vip, port) in
        [("nat", "192.0.2.10", 8000), ("snat", "192.0.2.10", 8001), ("snat64", "2001:db8::10", 8001)]
    {
        let target = SocketAddr::new(vip.parse().expect("an address"), port);
        let mut connection = Connection::open(&topology.client.ns, target, PATIENCE).expect("connected");
        let answer = connection.get("/").expect("an answer");
        let client = connection.local_addr().expect("an address");
        made += u64::from(name != "nat");
        let there = explain(&balancer, &client.to_string(), &target.to_string(), "ack");
        assert_eq!(
            (there.verdict.as_str(), there.backend.as_deref()),
            ("forward", Some("web1")),
            "{there:?}"
        );
        let headers = there.headers.unwrap_or_else(|| panic!("{name}"));
        assert_eq!((headers.packet.destination, headers.packet.destination_port), (backend.ip(), Some(80)));
        // Who the backend thinks the client is.
        let seen = answer.headers.get("x-client").expect("the backend tells");
        assert_eq!(headers.packet.source.to_string(), *seen, "{name}");
        let source = SocketAddr::new(headers.packet.source, headers.packet.source_port.expect("a port"));
        assert_eq!(source == client, name == "nat");

        let back = explain(&balancer, &backend.to_string(), &source.to_string(), "ack");
        assert_eq!((back.verdict.as_str(), back.backend.as_deref()), ("forward", Some("web1")), "{back:?}");
        assert_eq!(back.service.as_deref(), Some(name), "{back:?}");
        assert!(back.reason.contains(&format!("from {target} to {client}")), "{back:?}");
        assert_eq!(balancer.status().nat.made, made);
        connection.get("/").unwrap_or_else(|e| panic!("{name}, after it was explained: {e}"));
    }
    Ok(())
}

#[test]
fn trace_of_nat_in_both_directions() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = nat_topology()?;
    let _servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, Settings::of(behind_nat(&topology)?))?;
    let backend = SocketAddr::new(topology.backends[0].v4.into(), 80);
    for (name, vip, port) in NAT_SERVICES {
        let target = SocketAddr::new(vip.parse().expect("an address"), port);
        let plain = balancer.xdp_program("eth0");
        let tracer = trace(&balancer, &["--service", name, "--count", "30"]);
        wait_until("the tracing program", PATIENCE, || balancer.xdp_program("eth0") != plain)?;
        Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 10).assert_all_answered();
        let seen = lines(tracer);
        assert_eq!(seen.len(), 30, "{name}");
        for view in &seen {
            assert_eq!(
                (view.verdict.as_str(), view.backend.as_deref()),
                ("forward", Some("web1")),
                "{view:?}"
            );
            assert!(view.destination == target || view.source == backend, "{view:?}");
        }
        let back = seen.iter().filter(|view| view.source == backend).count();
        assert!((1..30).contains(&back), "{name}: {seen:?}");
        wait_until("the end of tracing", PATIENCE, || balancer.xdp_program("eth0") == plain)?;
    }
    Ok(())
}
