//! Fragments in any order, with the real daemon and real stacks at both ends; and what a flood of them costs.

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    echo::{Server, udp_echo},
    lab::{Arms, Result, Shape, Sniffer, Topology, wait_until},
    packets::{Packet, Rng, Transport, Udp},
    require,
    skip::Need,
};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);
const MODES: [(&str, u16); 3] = [("dsr", 5300), ("ipip", 5301), ("gue", 5302)];
/// The program stops holding this long after the daemon's last word, and a bit.
const FORGOTTEN: Duration = Duration::from_millis(3_500);

/// Echo servers on all backends, and a daemon with a UDP service of each mode and family.
fn services<'t>(topology: &'t Topology, node: &str) -> Result<(Vec<Server>, Balancer<'t>)> {
    let (mut servers, mut all) = (Vec::new(), Vec::new());
    for (forward, port) in MODES {
        for node in &topology.backends {
            for vip in [topology.vip4(), topology.vip6()] {
                servers.push(udp_echo(&node.ns, &node.name, vip, port)?);
            }
        }
        let service = |vip, family: &str| {
            Service::www([vip]).port(port).udp().forward(forward).name(&format!("{forward}{family}"))
        };
        all.push(service(topology.vip4(), "4").nodes(&topology.backends));
        all.push(service(topology.vip6(), "6").nodes6(&topology.backends));
    }
    let settings = Settings { node: node.to_owned(), ..Settings::of(all) };
    Ok((servers, Balancer::start_tunnelled(topology, settings)?))
}

/// A client that makes its fragments itself.
struct Client<'t> {
    topology: &'t Topology,
    link: Sniffer,
    socket: UdpSocket,
    target: SocketAddr,
    id: u32,
}

impl<'t> Client<'t> {
    /// A client whose way to the target is known to work.
    fn new(topology: &'t Topology, target: SocketAddr, id: u32) -> Result<Self> {
        let link = Sniffer::open(&topology.client.ns, &topology.client.interfaces[0].name)?;
        let own = topology.client.addresses()[usize::from(target.is_ipv6())];
        let socket = topology.client.ns.run(|| UdpSocket::bind((own, 0))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let start = Instant::now();
        loop {
            socket.send_to(b"hello", target).expect("sent");
            if socket.recv(&mut [0; 64]).is_ok() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "no answer from {target}");
        }
        // Answers of datagrams that were sent again.
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        while socket.recv(&mut [0; 64]).is_ok() {}
        Ok(Self { topology, link, socket, target, id })
    }

    /// The frames of a datagram, a fragment each.
    fn frames(&mut self, from: SocketAddr, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        self.id += 1;
        let udp = Udp {
            src: from.port(),
            dst: self.target.port(),
            length: None,
            no_checksum: false,
            payload: payload.to_vec(),
            surplus: Vec::new(),
        };
        let router = self.topology.router.interface("client0").expect("the router's end");
        let whole = Packet::between(from.ip(), self.target.ip(), Transport::Udp(udp)).with(|p| {
            p.src_mac = self.topology.client.mac;
            p.dst_mac = router.mac;
        });
        whole.fragments(self.id, size).iter().map(Packet::build).collect()
    }

    fn send(&self, frames: &[Vec<u8>], order: &[usize], pause: Duration) -> Result<()> {
        for (i, at) in order.iter().enumerate() {
            if i > 0 {
                std::thread::sleep(pause);
            }
            self.link.send_frame(&frames[*at])?;
        }
        self.link.drain()
    }

    /// The number at the end of an answer.
    fn answer(&self) -> Option<u32> {
        let mut answer = [0; 4096];
        let length = self.socket.recv(&mut answer).ok()?;
        let number = answer[..length].last_chunk::<4>().expect("a number");
        assert!(length > 1_200, "{length} bytes came back");
        Some(u32::from_be_bytes(*number))
    }

    /// Sends datagrams in every order but the right one; the fragments that went before their first.
    fn ask_all(&mut self, count: u32) -> Result<u64> {
        const ORDERS: [&[usize]; 6] =
            [&[1, 0], &[2, 1, 0], &[1, 2, 0], &[2, 0, 1], &[1, 0, 2], &[3, 1, 2, 0]];
        let own = self.socket.local_addr().expect("an address");
        let (mut early, mut open) = (0, BTreeSet::new());
        self.socket.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout");
        for number in 0..count {
            let order = ORDERS[number as usize % ORDERS.len()];
            let mut payload = vec![number as u8; 1_200];
            payload.extend(number.to_be_bytes());
            // A multiple of 8, and as many fragments as the order has.
            let size = (payload.len() + 8).div_ceil(order.len()).next_multiple_of(8);
            let frames = self.frames(own, &payload, size);
            assert_eq!(frames.len(), order.len());
            // Some of them well apart.
            let pause = Duration::from_millis(if number % 10 == 9 { 15 } else { 0 });
            self.send(&frames, order, pause)?;
            early += order.iter().position(|at| *at == 0).expect("a first") as u64;
            open.insert(number);
            while let Some(number) = self.answer() {
                assert!(open.remove(&number), "{}: datagram {number} answered twice", self.target);
            }
        }
        let start = Instant::now();
        while !open.is_empty() && start.elapsed() < Duration::from_secs(5) {
            if let Some(number) = self.answer() {
                assert!(open.remove(&number), "{}: datagram {number} answered twice", self.target);
            }
        }
        assert!(open.is_empty(), "{}: not answered: {open:?}", self.target);
        Ok(early)
    }
}

/// 200 datagrams of each mode and family, none in order: all are answered, and every fragment that came early was held.
fn in_any_order(arms: Arms, node: &str) -> Result<()> {
    let topology = Topology::new(&Shape { arms, ..Shape::default() })?;
    let (_servers, balancer) = services(&topology, node)?;
    // Ports do not tell datagrams apart: no identification comes twice.
    let mut ids = (0..).step_by(1_000);
    for (forward, port) in MODES {
        for (vip, family) in [(topology.vip4(), 4), (topology.vip6(), 6)] {
            let service = format!("{forward}{family}");
            for id in ids.by_ref().take(4) {
                let mut client = Client::new(&topology, SocketAddr::new(vip, port), id)?;
                let held = balancer.dropped("fragment_held");
                let sent = balancer.service(&service).packets;
                let early = client.ask_all(50)?;
                assert_eq!(balancer.dropped("fragment_held") - held, early, "{service}");
                // 48 datagrams are eight times all orders, two more are of the first two; counted once each.
                let fragments = 8 * (2 + 3 * 4 + 4) + 2 + 3;
                assert_eq!(balancer.service(&service).packets - sent, fragments, "{service}");
            }
        }
    }
    assert_eq!(balancer.dropped("fragment_unknown"), 0, "{}", balancer.lbctl(&["drops"]));
    Ok(())
}

#[test]
fn datagrams_in_any_order_arrive_back_out_of_the_same_interface() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    in_any_order(Arms::One, "")
}

#[test]
fn datagrams_in_any_order_arrive_out_of_another_interface() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    in_any_order(Arms::Two, "")
}

#[test]
fn datagrams_in_any_order_arrive_in_generic_mode() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    in_any_order(Arms::Two, "xdp_mode = \"generic\"\n")
}

/// A port that no service has is the balancer's own kernel's: it gets all fragments too.
#[test]
fn the_balancers_own_kernel_gets_its_datagrams() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let (_servers, balancer) = services(&topology, "")?;
    for vip in [topology.vip4(), topology.vip6()] {
        let bits = if vip.is_ipv4() { 32 } else { 128 };
        balancer.node.ns.ip(&format!("addr add {vip}/{bits} dev lo nodad\n"))?;
        let _server = udp_echo(&balancer.node.ns, "own", vip, 7000)?;
        Client::new(&topology, SocketAddr::new(vip, 7000), 0)?.ask_all(20)?;
    }
    Ok(())
}

/// Time that a process has run, and the memory it has.
fn cost(pid: u32) -> (Duration, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<_> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|t| t.parse::<u64>().expect("ticks")).sum();
    let memory = fs::read_to_string(format!("/proc/{pid}/statm")).expect("a process");
    let pages: u64 = memory.split_whitespace().nth(1).expect("pages").parse().expect("a number");
    (Duration::from_millis(ticks * 10), pages * 4096)
}

/// Later fragments from everywhere whose first ones never come: other datagrams are answered, the daemon's time and memory are
/// bounded, and each fragment is counted in the end.
#[test]
fn a_flood_of_fragments_without_first_ones_is_bounded() -> Result<()> {
    const FLOOD: Duration = Duration::from_secs(6);
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let (_servers, balancer) = services(&topology, "")?;
    let pid = balancer.process().pid();
    for vip in [topology.vip4(), topology.vip6()] {
        let target = SocketAddr::new(vip, 5300);
        let client = Client::new(&topology, target, 0)?;
        let mut flooder = Client::new(&topology, target, 1 << 14)?;
        let mut rng = Rng::new(7);
        let frames: Vec<_> = (0..4_000)
            .map(|_| {
                let host = rng.below(60_000) as u16;
                let ip: IpAddr = match vip {
                    IpAddr::V4(_) => [10, 200, host.to_be_bytes()[0], host.to_be_bytes()[1]].into(),
                    IpAddr::V6(_) => [0x2001, 0xdb8, 0xfeed, 0, 0, 0, 0, host].into(),
                };
                flooder.frames(SocketAddr::new(ip, 9), &[0; 1_000], 512).remove(1)
            })
            .collect();
        let before = (balancer.dropped("fragment_held"), balancer.dropped("fragment_unknown"));
        let ((cpu, memory), start) = (cost(pid), Instant::now());
        let (mut sent, mut asked) = (0, 0);
        let mut answer = [0; 64];
        client.socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        while start.elapsed() < FLOOD {
            for frame in frames.iter().skip(sent % 4_000).take(200) {
                flooder.link.send_frame(frame)?;
                sent += 1;
            }
            client.socket.send_to(b"in between", target).expect("sent");
            asked += 1;
            let length = client.socket.recv(&mut answer).expect("an answer in the middle of a flood");
            assert!(answer[..length].ends_with(b"in between"));
        }
        let (took, (cpu_after, memory_after)) = (start.elapsed(), cost(pid));
        let busy = (cpu_after - cpu).as_secs_f64() / took.as_secs_f64();
        let grown = memory_after.saturating_sub(memory) >> 20;
        wait_until("the held ones are given up", PATIENCE, || {
            let unknown = balancer.dropped("fragment_unknown");
            std::thread::sleep(Duration::from_millis(500));
            balancer.dropped("fragment_unknown") == unknown
        })?;
        let held = balancer.dropped("fragment_held") - before.0;
        let unknown = balancer.dropped("fragment_unknown") - before.1;
        eprintln!(
            "{vip}: {sent} fragments, {held} held, {unknown} unknown, {asked} answered; daemon {busy:.2} CPUs, {grown} MiB"
        );
        assert!(sent > 20_000, "{sent} fragments are no flood");
        let cpus = std::thread::available_parallelism().expect("CPUs").get() as u64;
        assert!(held > 400 && held <= cpus * (400 + 2_000 * (took.as_secs() + 1)), "{held} held");
        assert!(unknown >= held && unknown <= sent as u64, "{unknown} unknown, {held} held, {sent} sent");
        assert!(busy < 0.5, "{busy} CPUs");
        assert!(grown < 16, "{grown} MiB more");
    }
    Ok(())
}

/// Without a daemon nobody waits: early fragments are dropped and counted at once, all else goes on.
#[test]
fn without_a_daemon_early_fragments_are_dropped() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let (_servers, mut balancer) = services(&topology, "")?;
    let mut client = Client::new(&topology, SocketAddr::new(topology.vip4(), 5300), 0)?;
    let own = client.socket.local_addr().expect("an address");
    client.ask_all(10)?;
    let (held, unknown) = (balancer.dropped("fragment_held"), balancer.dropped("fragment_unknown"));
    balancer.kill();
    std::thread::sleep(FORGOTTEN);
    for _ in 0..10 {
        let frames = client.frames(own, &[1; 1_200], 512);
        client.send(&frames, &[2, 1, 0], Duration::ZERO)?;
    }
    // In order they arrive.
    let frames = client.frames(own, &[2; 1_200], 512);
    client.send(&frames, &[0, 1, 2], Duration::ZERO)?;
    client.socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    assert_eq!(client.answer(), Some(0x0202_0202));
    balancer.restart()?;
    assert_eq!(balancer.dropped("fragment_held"), held);
    assert_eq!(balancer.dropped("fragment_unknown") - unknown, 20);
    client.ask_all(10)?;
    Ok(())
}
