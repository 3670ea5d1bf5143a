//! What the network throws at a balancer: path MTUs smaller than the links, errors of routers on the way, pings,
//! traceroute, fragments and jumbo frames, with the real daemon and real stacks at both ends.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client,
    echo::{self, Server, tcp_sink, udp_echo},
    lab::{Arms, Mtu, Result, Shape, Topology, ping},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(120);
const FIFTY_MEGABYTES: u64 = 50_000_000;

/// Both families' services of a mode, over backends of the same family.
fn services(topology: &Topology, forward: &'static str, port: u16) -> Vec<Service> {
    let nodes = &topology.backends;
    vec![
        Service::www([topology.vip4()]).port(port).forward(forward).nodes(nodes),
        Service::www([topology.vip6()]).name("www6").port(port).forward(forward).nodes6(nodes),
    ]
}

/// A backend's link of 1,400 bytes behind ipip, a client of 1,500: 50 MB up and 50 MB down, no black hole.
#[test]
fn a_small_link_behind_ipip_is_no_black_hole() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let mtu = Mtu { client: 1500, front: 1500, back: 1400 };
    let topology = Topology::new(&Shape { backends: 1, arms: Arms::Two, mtu, ..Shape::default() })?;
    let _servers = web_servers(&topology, FIFTY_MEGABYTES)?;
    let vips = [topology.vip4(), topology.vip6()];
    let node = &topology.backends[0];
    let _sinks: Vec<_> =
        vips.iter().map(|vip| tcp_sink(&node.ns, "web1", *vip, 9000)).collect::<Result<_>>()?;
    let mut all = services(&topology, "ipip", 80);
    let up = services(&topology, "ipip", 9000);
    all.extend(up.into_iter().zip(["up", "up6"]).map(|(service, name)| service.name(name)));
    let balancer = Balancer::start_tunnelled(&topology, Settings::of(all))?;
    for vip in vips {
        let told = balancer.dropped("too_big");
        let line = echo::upload(&topology.client.ns, SocketAddr::new(vip, 9000), FIFTY_MEGABYTES, PATIENCE);
        let line = line.unwrap_or_else(|e| panic!("upload to {vip}: {e}; {}", balancer.lbctl(&["drops"])));
        assert_eq!(line, "web1 50000000 ok");
        assert!(balancer.dropped("too_big") > told, "{vip}: nobody was told of the MTU");
        let down = client::download(&topology.client.ns, SocketAddr::new(vip, 80), FIFTY_MEGABYTES, PATIENCE);
        let down = down.unwrap_or_else(|e| panic!("download from {vip}: {e}"));
        assert!(down.longest_gap < Duration::from_secs(10), "{down:?}");
    }
    Ok(())
}

/// The router's link to the client is smaller than both ends believe: its errors about what the backends send go to
/// the virtual address, and must reach the one of three backends that sent it.
fn a_small_link_at_the_client(forward: &'static str) -> Result<()> {
    let topology = Topology::new(&Shape { backends: 3, ..Shape::default() })?;
    topology.router.ns.ip("link set client0 mtu 1300\n")?;
    let _servers = web_servers(&topology, FIFTY_MEGABYTES)?;
    let settings = Settings::of(services(&topology, forward, 80));
    let balancer = match forward {
        "dsr" => Balancer::start(&topology, settings)?,
        _ => Balancer::start_tunnelled(&topology, settings)?,
    };
    for vip in [topology.vip4(), topology.vip6()] {
        let target = SocketAddr::new(vip, 80);
        let mut served = BTreeSet::new();
        for bytes in [FIFTY_MEGABYTES, 1_000_000].into_iter().chain([200_000; 22]) {
            let download = client::download(&topology.client.ns, target, bytes, PATIENCE);
            let download = download
                .unwrap_or_else(|e| panic!("{forward} {target}: {e}; {}", balancer.lbctl(&["drops"])));
            assert!(download.longest_gap < Duration::from_secs(10), "{forward} {target}: {download:?}");
            served.insert(download.backend);
        }
        assert_eq!(served.len(), 3, "{forward} {target}: {served:?}");
        // Each of them has learned it, by an error that came through the balancer.
        let to = topology.client.addresses()[usize::from(vip.is_ipv6())].to_string();
        for node in &topology.backends {
            let route = node.ns.exec("ip", &["route", "get", &to, "from", &vip.to_string()])?;
            assert!(route.contains("mtu 1300"), "{}: {route}", node.name);
        }
    }
    assert_eq!(balancer.dropped("icmp_quote"), 0);
    Ok(())
}

#[test]
fn errors_reach_the_backend_they_are_about_by_dsr() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    a_small_link_at_the_client("dsr")
}

#[test]
fn errors_reach_the_backend_they_are_about_by_ipip() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    a_small_link_at_the_client("ipip")
}

#[test]
fn errors_reach_the_backend_they_are_about_by_gue() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    a_small_link_at_the_client("gue")
}

#[test]
fn a_virtual_address_answers_pings() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let mut balancer = Balancer::start(&topology, Settings::of(services(&topology, "dsr", 80)))?;
    for vip in [topology.vip4(), topology.vip6()] {
        for payload in [0, 1, 56, 1400] {
            ping(&topology.client.ns, vip, payload, PATIENCE)?;
        }
    }
    assert!(balancer.dropped("echo_answered") >= 8);
    // No interface of the balancer has the address: left to its kernel, nobody answers.
    balancer.configure(|settings| settings.node = "answer_ping = false\n".to_owned())?;
    balancer.reload();
    let silence = ping(&topology.client.ns, topology.vip4(), 56, Duration::from_secs(2));
    assert!(silence.is_err(), "a ping was answered with answer_ping = false");
    Ok(())
}

/// A socket that is told of errors on the way, so that the next receive fails with them.
fn probe(topology: &Topology, target: SocketAddr, ttl: u32) -> io::Result<UdpSocket> {
    let v4 = target.is_ipv4();
    let any: SocketAddr = if v4 { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = topology.client.ns.run(|| UdpSocket::bind(any))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let (level, hops, errors) = match v4 {
        true => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_RECVERR),
        false => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_RECVERR),
    };
    for (name, value) in [(hops, ttl as libc::c_int), (errors, 1)] {
        // SAFETY: the pointer and size are those of an integer on the stack.
        let result = unsafe {
            let size = size_of_val(&value) as libc::socklen_t;
            libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    socket.connect(target)?;
    Ok(socket)
}

/// What `traceroute` does: a datagram whose TTL ends at the balancer, two hops away, is answered by it.
#[test]
fn traceroute_sees_the_balancer() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let service = |s: Service| s.udp();
    let all: Vec<_> = services(&topology, "dsr", 5300).into_iter().map(service).collect();
    let balancer = Balancer::start(&topology, Settings::of(all))?;
    for vip in [topology.vip4(), topology.vip6()] {
        let before = balancer.dropped("ttl_exceeded");
        let socket = probe(&topology, SocketAddr::new(vip, 5300), 2).expect("a socket");
        let start = Instant::now();
        let error = loop {
            assert!(start.elapsed() < PATIENCE, "{vip}: no answer to a TTL that ends at the balancer");
            socket.send(b"probe").expect("sent");
            match socket.recv(&mut [0; 64]) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) => break e,
                Ok(n) => panic!("{n} bytes of an answer to a packet that should not arrive"),
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
        assert!(balancer.dropped("ttl_exceeded") > before);
    }
    Ok(())
}

const MODES: [(&str, u16); 3] = [("dsr", 5300), ("ipip", 5301), ("gue", 5302)];

/// Echo servers on all backends, and a daemon with a UDP service of each mode over backends of both families.
fn datagram_services<'t>(topology: &'t Topology, node: &str) -> Result<(Vec<Server>, Balancer<'t>)> {
    let (mut servers, mut all) = (Vec::new(), Vec::new());
    for (forward, port) in MODES {
        for node in &topology.backends {
            for vip in [topology.vip4(), topology.vip6()] {
                servers.push(udp_echo(&node.ns, &node.name, vip, port)?);
            }
        }
        for (service, name) in services(topology, forward, port).into_iter().zip(["4", "6"]) {
            all.push(service.udp().name(&format!("{forward}{name}")));
        }
    }
    let settings = Settings { node: node.to_owned(), ..Settings::of(all) };
    Ok((servers, Balancer::start_tunnelled(topology, settings)?))
}

/// Sends a datagram until its echo comes; how often it was sent.
fn ask(topology: &Topology, target: SocketAddr, len: usize) -> u32 {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = topology.client.ns.run(|| UdpSocket::bind(any)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    socket.connect(target).expect("connected");
    let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let mut answer = vec![0; 65_536];
    for times in 1..=30 {
        // An error of an earlier packet may be reported here.
        let _ = socket.send(&payload);
        if let Ok(length) = socket.recv(&mut answer) {
            assert!(answer[..length].ends_with(&payload), "{target}: another datagram came back");
            return times;
        }
    }
    panic!("no answer from {target} to {len} bytes")
}

/// Datagrams of 8 kB in six fragments, room for the tunnels: each arrives whole at once.
#[test]
fn datagrams_in_fragments_arrive_whole_in_every_mode() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let mtu = Mtu { client: 1500, front: 1500, back: 1600 };
    let topology = Topology::new(&Shape { arms: Arms::Two, mtu, ..Shape::default() })?;
    // What the backends answer is to fit the client's link: this is about the other direction.
    for node in &topology.backends {
        for router in topology.router.addresses() {
            node.ns.ip(&format!("route replace default via {router} mtu 1500\n"))?;
        }
    }
    let (_servers, balancer) = datagram_services(&topology, "")?;
    let mut again = 0;
    for (_, port) in MODES {
        for vip in [topology.vip4(), topology.vip6()] {
            for len in [1472, 1473, 3000, 8000, 8001, 20_000].repeat(3) {
                again += ask(&topology, SocketAddr::new(vip, port), len) - 1;
            }
        }
    }
    assert!(again <= 1, "{again} of 108 datagrams had to be sent again: {}", balancer.lbctl(&["drops"]));
    assert_eq!(balancer.dropped("fragment"), 0);
    Ok(())
}

/// No room for the tunnels: the first datagram is lost, its sender is told, and the next one arrives.
#[test]
fn senders_of_fragments_learn_the_mtu() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let (_servers, balancer) = datagram_services(&topology, "")?;
    for (_, port) in &MODES[1..] {
        for vip in [topology.vip4(), topology.vip6()] {
            ask(&topology, SocketAddr::new(vip, *port), 8000);
        }
    }
    assert!(balancer.dropped("too_big") > 0);
    Ok(())
}

/// Links of 9,000 bytes, native mode: packets of 8 kB in several buffers.
#[test]
fn jumbo_frames_go_through_in_native_mode() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { mtu: Mtu::all(9000), ..Shape::default() })?;
    let (_servers, balancer) = datagram_services(&topology, "xdp_mode = \"native\"\n")?;
    for (forward, port) in MODES {
        for (vip, family) in [(topology.vip4(), 4), (topology.vip6(), 6)] {
            let before = balancer.service(&format!("{forward}{family}")).packets;
            for len in [3000, 4000, 8000] {
                ask(&topology, SocketAddr::new(vip, port), len);
            }
            // One packet for each datagram: none was cut into fragments.
            let after = balancer.service(&format!("{forward}{family}"));
            assert!(after.packets - before < 10, "{forward}{family}: {after:?}");
            assert!(after.bytes > 15_000, "{forward}{family}: {after:?}");
        }
    }
    for address in [topology.vip4(), topology.vip6()] {
        ping(&topology.client.ns, address, 8000, PATIENCE)?;
    }
    Ok(())
}
