//! `nat` and `snat` in a real network: nginx, iperf3 and a DNS server as backends, both families and between them, a
//! backend as its own client, errors inside, pools that run out, a daemon that dies.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::{self, Connection, Requests},
    echo::{dns_server, udp_echo},
    lab::{Gateway, Netns, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// What a download in these tests weighs.
const BIG: u64 = 20_000_000;

const VIP4: &str = "192.0.2.10";
const VIP6: &str = "2001:db8::10";
const POOL4: &str = "10.0.0.250";
const POOL6: &str = "fd00::250";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Backends that know nothing of virtual addresses.
fn topology(backends: usize) -> Result<Topology> {
    Topology::new(&Shape { backends, vips: Vec::new(), lb_forwarding: true, ..Shape::default() })
}

/// The balancer is the backends' gateway, as `nat` needs.
fn through_balancer(topology: &Topology) -> Result<()> {
    (0..topology.backends.len()).try_for_each(|i| topology.set_gateway(i, Gateway::Balancer(0)))
}

/// The addresses of the pool are the balancer's own.
fn own_pool(topology: &Topology) -> Result<()> {
    let mut plan = topology.lab.plan();
    let ns = &topology.lb[0].ns;
    plan.addr(ns, "eth0", &format!("{POOL4}/16")).addr(ns, "eth0", &format!("{POOL6}/64")).apply()
}

fn pool(service: Service) -> Service {
    service.forward("snat").extra(&format!("[service.snat]\naddresses = [\"{POOL4}\", \"{POOL6}\"]"))
}

/// A service in front of all backends' port 80.
fn web(topology: &Topology, vip: &str, v6_backends: bool) -> Service {
    let service = Service::www([ip(vip)]).port(8000).backend_port(80);
    if v6_backends { service.nodes6(&topology.backends) } else { service.nodes(&topology.backends) }
}

/// A thousand connections at once, whole downloads, and who the backends think the client is.
fn serves_http(topology: &Topology, vip: &str, expected_client: IpAddr) {
    let target = SocketAddr::new(ip(vip), 8000);
    let ns = &topology.client.ns;
    let answer = client::get(ns, target, "/", PATIENCE).unwrap_or_else(|e| panic!("{target}: {e}"));
    let seen = answer.headers.get("x-client").and_then(|text| text.parse().ok());
    assert_eq!(seen, Some(expected_client), "{target}");
    let report = Requests::to(target).concurrency(1000).timeout(PATIENCE).run(ns, 3000);
    report.assert_all_answered();
    for node in &topology.backends {
        assert!(report.share(&node.name) > 0.1, "{target}: {report}");
    }
    let download = client::download(ns, target, BIG, PATIENCE).unwrap_or_else(|e| panic!("{target}: {e}"));
    assert_eq!(download.bytes, BIG, "{target}");
}

#[test]
fn nat_serves_http_and_keeps_the_clients_address() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(3)?;
    through_balancer(&topology)?;
    let _servers = web_servers(&topology, BIG)?;
    let services =
        [web(&topology, VIP4, false).forward("nat"), web(&topology, VIP6, true).name("www6").forward("nat")];
    let balancer = Balancer::start(&topology, Settings::of(services))?;
    serves_http(&topology, VIP4, topology.client.v4.into());
    serves_http(&topology, VIP6, topology.client.v6.into());
    let nat = balancer.service("www").nat.expect("a service of nat has a view of it");
    assert_eq!((nat.always, nat.sessions), (false, 0), "one virtual address leads to each port");
    assert_eq!(balancer.status().warnings, Vec::<String>::new());
    Ok(())
}

#[test]
fn snat_serves_http_from_backends_that_know_nothing() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(3)?;
    own_pool(&topology)?;
    let _servers = web_servers(&topology, BIG)?;
    let services = [pool(web(&topology, VIP4, false)), pool(web(&topology, VIP6, true).name("www6"))];
    let balancer = Balancer::start(&topology, Settings::of(services))?;
    serves_http(&topology, VIP4, ip(POOL4));
    serves_http(&topology, VIP6, ip(POOL6));
    wait_until("the sessions are counted", PATIENCE, || {
        balancer.service("www").nat.is_some_and(|nat| nat.always && nat.sessions > 0)
    })?;
    // One for each of those open at once; a later connection from the same port may take over a closed one's session.
    let made = balancer.status().nat.made;
    assert!((2000..=7000).contains(&made), "{made}");
    assert_eq!(balancer.status().nat.exhausted, 0);
    Ok(())
}

#[test]
fn snat_crosses_the_ip_versions_either_way() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(2)?;
    own_pool(&topology)?;
    let _servers = web_servers(&topology, BIG)?;
    let services = [pool(web(&topology, VIP6, false)), pool(web(&topology, VIP4, true).name("www6"))];
    let _balancer = Balancer::start(&topology, Settings::of(services))?;
    serves_http(&topology, VIP6, ip(POOL4));
    serves_http(&topology, VIP4, ip(POOL6));
    Ok(())
}

/// Tries again what no answer came to.
fn again<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        match ask() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < 10 => {}
            answer => return answer,
        }
    }
}

/// The address in the answer to a query for `name`'s A record.
fn resolve(ns: &Netns, server: SocketAddr, name: &str) -> io::Result<[u8; 4]> {
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = ns.run(|| UdpSocket::bind(any))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    // Connected, so that only answers from the virtual address count.
    socket.connect(server)?;
    let id = socket.local_addr()?.port().to_be_bytes();
    // RFC 1035 section 4.1: one question, recursion desired.
    let mut query = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let mut answer = [0; 512];
    // The first reply may be lost while the next hop to the client is found out; a resolver asks again.
    let length = again(|| {
        socket.send(&query)?;
        socket.recv(&mut answer)
    })?;
    let answer = &answer[..length];
    let right = length == query.len() + 16 && answer[..2] == id && answer[12..query.len()] == query[12..];
    let address = answer.last_chunk::<4>().filter(|_| right);
    address.copied().ok_or_else(|| io::Error::other(format!("not an answer: {answer:02x?}")))
}

#[test]
fn a_dns_server_answers_over_udp_in_both_modes_and_families() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(2)?;
    through_balancer(&topology)?;
    own_pool(&topology)?;
    let mut servers = Vec::new();
    for (i, node) in topology.backends.iter().enumerate() {
        for address in node.addresses() {
            servers.push(dns_server(&node.ns, address, 5353, [203, 0, 113, i as u8 + 1])?);
            servers.push(dns_server(&node.ns, address, 5354, [203, 0, 113, i as u8 + 1])?);
        }
    }
    let dns = |name: &str, vip: &str, port| Service::www([ip(vip)]).name(name).udp().port(port);
    let services = [
        dns("nat4", VIP4, 53).forward("nat").backend_port(5353).nodes(&topology.backends),
        dns("nat6", VIP6, 53).forward("nat").backend_port(5353).nodes6(&topology.backends),
        pool(dns("snat4", VIP4, 54).backend_port(5354).nodes(&topology.backends)),
        pool(dns("snat6", VIP6, 54).backend_port(5354).nodes6(&topology.backends)),
        pool(dns("snat64", VIP6, 55).backend_port(5354).nodes(&topology.backends)),
    ];
    let _balancer = Balancer::start(&topology, Settings::of(services))?;
    for (vip, port) in [(VIP4, 53), (VIP6, 53), (VIP4, 54), (VIP6, 54), (VIP6, 55)] {
        let server = SocketAddr::new(ip(vip), port);
        let mut answers: BTreeMap<[u8; 4], u32> = BTreeMap::new();
        for _ in 0..60 {
            let address = resolve(&topology.client.ns, server, "www.example.net");
            *answers.entry(address.unwrap_or_else(|e| panic!("{server}: {e}"))).or_default() += 1;
        }
        assert_eq!(answers.len(), 2, "{server}: {answers:?}");
    }
    Ok(())
}

fn iperf(topology: &Topology, service: Service) -> Result<()> {
    let node = &topology.backends[0];
    let mut command = node.ns.command("iperf3");
    command.args(["--server", "--port", "5201", "--forceflush"]);
    let server = topology.lab.spawn("iperf3", command)?;
    server.wait_for_log("Server listening", PATIENCE)?;
    let vip = service.addresses[0].to_string();
    let forward = service.forward;
    let _balancer = Balancer::start(topology, Settings::of([service]))?;
    for direction in [&[][..], &["--reverse"][..]] {
        let arguments =
            ["--client", &vip, "--port", "5202", "--time", "4", "--json", "--connect-timeout", "5000"];
        let json = topology.client.ns.exec("iperf3", &[&arguments[..], direction].concat())?;
        let report: serde_json::Value = serde_json::from_str(&json).expect("JSON of iperf3");
        for interval in report["intervals"].as_array().expect("intervals") {
            let length = interval["sum"]["seconds"].as_f64().unwrap_or_default();
            let bytes = interval["sum"]["bytes"].as_u64().unwrap_or(0);
            // The last one may be a sliver.
            assert!(bytes > 0 || length < 0.5, "{forward}: a stall: {interval}");
        }
    }
    Ok(())
}

#[test]
fn iperf3_runs_both_ways_without_a_stall_by_nat() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("iperf3"));
    let topology = topology(1)?;
    through_balancer(&topology)?;
    let service = Service::www([ip(VIP4)]).port(5202).backend_port(5201).forward("nat");
    iperf(&topology, service.nodes(&topology.backends))
}

#[test]
fn iperf3_runs_both_ways_without_a_stall_by_snat_between_ip_versions() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("iperf3"));
    let topology = topology(1)?;
    own_pool(&topology)?;
    let service = Service::www([ip(VIP6)]).port(5202).backend_port(5201);
    iperf(&topology, pool(service.nodes(&topology.backends)))
}

/// A backend is a client of its own service: the only backend is itself, so that the answer can come from nowhere else.
#[test]
fn a_backend_reaches_itself_by_its_virtual_address() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(1)?;
    through_balancer(&topology)?;
    own_pool(&topology)?;
    let _servers = web_servers(&topology, BIG)?;
    let services = [
        web(&topology, VIP4, false).forward("nat"),
        web(&topology, VIP6, true).name("www6").forward("nat"),
        pool(web(&topology, VIP4, false).name("snat").port(8001)),
        pool(web(&topology, VIP6, true).name("snat6").port(8001)),
    ];
    let _balancer = Balancer::start(&topology, Settings::of(services))?;
    for (vip, port, seen) in
        [(VIP4, 8000, VIP4), (VIP6, 8000, VIP6), (VIP4, 8001, POOL4), (VIP6, 8001, POOL6)]
    {
        let target = SocketAddr::new(ip(vip), port);
        for _ in 0..20 {
            let answer = client::get(&topology.backends[0].ns, target, "/", PATIENCE);
            let answer = answer.unwrap_or_else(|e| panic!("{target}: {e}"));
            assert_eq!(answer.headers.get("x-client"), Some(seen), "{target}");
        }
    }
    Ok(())
}

/// One client socket speaks to two virtual addresses that lead to the same port of the same backend: nothing but a
/// session can tell the answers apart.
#[test]
fn two_virtual_addresses_share_a_backends_port() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(1)?;
    through_balancer(&topology)?;
    let node = &topology.backends[0];
    let _server = udp_echo(&node.ns, "web1", node.v4.into(), 5300)?;
    let service = |name: &str, vip: &str| {
        Service::www([ip(vip)]).name(name).udp().port(53).backend_port(5300).forward("nat").nodes([node])
    };
    let services = [service("a", "192.0.2.21"), service("b", "192.0.2.22")];
    let balancer = Balancer::start(&topology, Settings::of(services))?;
    assert!(balancer.service("a").nat.is_some_and(|nat| nat.always));
    let socket = topology.client.ns.run(|| UdpSocket::bind("0.0.0.0:4000")).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for round in 0..20u8 {
        for vip in ["192.0.2.21:53", "192.0.2.22:53"] {
            let target: SocketAddr = vip.parse().expect("an address");
            socket.send_to(&[round], target).expect("sent");
            let mut answer = [0; 64];
            let (length, from) = socket.recv_from(&mut answer).unwrap_or_else(|e| panic!("{vip}: {e}"));
            assert_eq!(
                (from, &answer[..length]),
                (target, &[b"web1:", &[round][..]].concat()[..]),
                "{round}"
            );
        }
    }
    Ok(())
}

/// The backend's port is closed: its ICMP error comes back from the virtual address and names the packet as the client
/// sent it, else the client's kernel would not believe it.
#[test]
fn an_error_of_the_backend_reaches_the_client() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(1)?;
    through_balancer(&topology)?;
    own_pool(&topology)?;
    let node = &topology.backends[0];
    let udp =
        |name: &str, vip: &str, port| Service::www([ip(vip)]).name(name).udp().port(port).backend_port(9);
    let services = [
        udp("nat4", VIP4, 1001).forward("nat").nodes([node]),
        udp("nat6", VIP6, 1001).forward("nat").nodes6([node]),
        pool(udp("snat4", VIP4, 1002).nodes([node])),
        pool(udp("snat6", VIP6, 1002).nodes6([node])),
        pool(udp("snat64", VIP6, 1003).nodes([node])),
        pool(udp("snat46", VIP4, 1003).nodes6([node])),
    ];
    let _balancer = Balancer::start(&topology, Settings::of(services))?;
    for (vip, port) in [(VIP4, 1001), (VIP6, 1001), (VIP4, 1002), (VIP6, 1002), (VIP6, 1003), (VIP4, 1003)] {
        let target = SocketAddr::new(ip(vip), port);
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = topology.client.ns.run(|| UdpSocket::bind(any)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        socket.connect(target).expect("connected");
        let error = again(|| {
            socket.send(b"anybody there?")?;
            socket.recv(&mut [0; 64])
        });
        let error = error.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{target}: {error}");
    }
    Ok(())
}

#[test]
fn a_pool_that_runs_out_is_told_and_recovers() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(1)?;
    own_pool(&topology)?;
    let node = &topology.backends[0];
    let _server = udp_echo(&node.ns, "web1", node.v4.into(), 5300)?;
    let service = Service::www([ip(VIP4)]).udp().port(53).backend_port(5300).forward("snat").nodes([node]);
    let service = service
        .extra("idle_timeout = \"4s\"")
        .extra(&format!("[service.snat]\naddresses = [\"{POOL4}\"]\nports = \"5000-5003\""));
    let balancer = Balancer::start(&topology, Settings::of([service]))?;
    let ask = |patience: Duration| {
        let socket = topology.client.ns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        socket.set_read_timeout(Some(patience)).expect("a timeout");
        socket.connect((ip(VIP4), 53)).expect("connected");
        socket.send(b"?").expect("sent");
        socket.recv(&mut [0; 64]).is_ok()
    };
    let answered = (0..12).filter(|_| ask(Duration::from_millis(300))).count();
    assert_eq!(answered, 4, "a port each");
    let status = balancer.status();
    assert_eq!((status.nat.made, status.nat.exhausted), (4, 8));
    assert_eq!(balancer.dropped("nat_exhausted"), 8);
    // 4 s and the margin of the clock of entries, then the next sweep.
    wait_until("an idle session's port is free again", PATIENCE, || ask(Duration::from_millis(300)))?;
    Ok(())
}

#[test]
fn connections_outlive_the_daemon() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(2)?;
    through_balancer(&topology)?;
    own_pool(&topology)?;
    let _servers = web_servers(&topology, BIG)?;
    let services =
        [web(&topology, VIP4, false).forward("nat"), pool(web(&topology, VIP6, false).name("www6"))];
    let mut balancer = Balancer::start(&topology, Settings::of(services))?;
    let open = |vip: &str| Connection::open(&topology.client.ns, SocketAddr::new(ip(vip), 8000), PATIENCE);
    let mut connections: Vec<Connection> =
        (0..20).map(|i| open(if i % 2 == 0 { VIP4 } else { VIP6 }).expect("a connection")).collect();
    let mut ask_all = |when: &str| {
        for (i, connection) in connections.iter_mut().enumerate() {
            connection.get("/").unwrap_or_else(|e| panic!("connection {i}, {when}: {e}"));
        }
    };
    ask_all("before");
    balancer.kill();
    ask_all("without a daemon");
    balancer.restart()?;
    ask_all("after the restart");
    // What was adopted is what would have been made.
    let plan = balancer.reload();
    assert_eq!(plan.changes, Vec::<String>::new());
    ask_all("after a reload");
    Ok(())
}

#[test]
fn a_host_that_does_not_forward_is_told_of() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, vips: Vec::new(), ..Shape::default() })?;
    let service = web(&topology, VIP4, false).forward("nat");
    let balancer = Balancer::start(&topology, Settings::of([service]))?;
    let sysctl = "net.ipv4.conf.eth0.forwarding";
    let warnings = balancer.status().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains(&format!("sysctl -w {sysctl}=1")), "{warnings:?}");
    assert!(balancer.lbctl(&["status"]).contains("WARNING: "));
    assert!(balancer.process().log().contains(sysctl));
    topology.lb[0].ns.sysctl(sysctl, "1")?;
    balancer.reload();
    assert_eq!(balancer.status().warnings, Vec::<String>::new());
    Ok(())
}

/// Datagrams in fragments, asked and answered.
#[test]
fn long_datagrams_are_echoed_in_both_modes_and_families() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(2)?;
    through_balancer(&topology)?;
    own_pool(&topology)?;
    let mut servers = Vec::new();
    for node in &topology.backends {
        for address in node.addresses() {
            for port in [5300, 5301] {
                servers.push(udp_echo(&node.ns, &node.name, address, port)?);
            }
        }
    }
    let echo = |name: &str, vip: &str, port: u16| {
        Service::www([ip(vip)]).name(name).udp().port(port).backend_port(5300 + port - 7)
    };
    let services = [
        echo("nat4", VIP4, 7).forward("nat").nodes(&topology.backends),
        echo("nat6", VIP6, 7).forward("nat").nodes6(&topology.backends),
        pool(echo("snat4", VIP4, 8).nodes(&topology.backends)),
        pool(echo("snat6", VIP6, 8).nodes6(&topology.backends)),
    ];
    let _balancer = Balancer::start(&topology, Settings::of(services))?;
    let sent: Vec<u8> = (0..4000u16).map(|i| (i % 251) as u8).collect();
    for (vip, port) in [(VIP4, 7), (VIP6, 7), (VIP4, 8), (VIP6, 8)] {
        let target = SocketAddr::new(ip(vip), port);
        let any: SocketAddr =
            if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
        for round in 0..20 {
            let socket = topology.client.ns.run(|| UdpSocket::bind(any)).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
            socket.connect(target).expect("connected");
            let mut answer = vec![0; 8000];
            let length = again(|| {
                socket.send(&sent)?;
                socket.recv(&mut answer)
            });
            let length = length.unwrap_or_else(|e| panic!("{target}, round {round}: {e}"));
            assert!(length == 4005 && answer.starts_with(b"web") && answer[5..length] == sent, "{target}");
        }
    }
    Ok(())
}

/// A second virtual address comes to lead to the same backend's port: from now on sessions tell who is answered, and those
/// who were there before have none.
#[test]
fn connections_outlive_a_second_way_to_their_backend() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology(2)?;
    through_balancer(&topology)?;
    let _servers = web_servers(&topology, BIG)?;
    let first = web(&topology, "192.0.2.21", false).name("first").forward("nat");
    let second = web(&topology, "192.0.2.22", false).name("second").forward("nat");
    let mut balancer = Balancer::start(&topology, Settings::of([first.clone()]))?;
    let (one, other) = (SocketAddr::new(ip("192.0.2.21"), 8000), SocketAddr::new(ip("192.0.2.22"), 8000));
    let open = |target| Connection::open(&topology.client.ns, target, PATIENCE).expect("a connection");
    let mut connections: Vec<Connection> = (0..30).map(|_| open(one)).collect();
    let ask_all = |when: &str, connections: &mut [Connection]| {
        for (i, connection) in connections.iter_mut().enumerate() {
            connection.get("/").unwrap_or_else(|e| panic!("connection {i}, {when}: {e}"));
        }
    };
    ask_all("before", &mut connections);
    let ns = &topology.client.ns;
    std::thread::scope(|scope| -> Result<()> {
        let download = scope.spawn(|| client::download(ns, one, BIG, PATIENCE));
        balancer.configure(|settings| settings.services = vec![first.clone(), second.clone()])?;
        balancer.reload();
        assert!(balancer.service("first").nat.is_some_and(|nat| nat.always));
        let download = download.join().expect("a download").unwrap_or_else(|e| panic!("the download: {e}"));
        assert_eq!(download.bytes, BIG);
        Ok(())
    })?;
    ask_all("after", &mut connections);
    connections.extend((0..10).map(|_| open(other)));
    ask_all("with others", &mut connections);
    // And back: what is unique again needs no session.
    balancer.configure(|settings| settings.services = vec![first.clone()])?;
    balancer.reload();
    connections.truncate(30);
    ask_all("alone again", &mut connections);
    assert_eq!(balancer.status().warnings, Vec::<String>::new());
    Ok(())
}
