//! The balancer's host works as if no balancer were there: what is for no service goes to its kernel untouched.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::Requests,
    echo::{tcp_sink, upload},
    lab::{Netns, Result, Shape, Topology, ping},
    require,
    skip::Need,
};
use lb_userspace::control::api::DropView;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that greets first, as ssh does, then gives back what it gets.
struct Greeter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const GREETING: &str = "SSH-2.0-lab\r\n";

impl Greeter {
    fn start(ns: &Netns, port: u16) -> io::Result<Self> {
        let listener = ns.run(|| TcpListener::bind(("::", port)))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => drop(std::thread::spawn(move || greet(stream))),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn greet(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.write_all(GREETING.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// A session as ssh would have it.
fn session(ns: &Netns, target: SocketAddr) -> io::Result<()> {
    let mut stream = ns.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    assert_eq!(greeting, GREETING.as_bytes());
    for i in 0..20_u8 {
        let sent = vec![i; 1 + usize::from(i) * 100];
        stream.write_all(&sent)?;
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, sent);
    }
    Ok(())
}

/// What the host answers by itself.
fn host_works(topology: &Topology, vips: [IpAddr; 2]) -> Result<()> {
    let (client, lb) = (&topology.client.ns, &topology.lb[0]);
    for address in lb.addresses().into_iter().chain(vips) {
        for payload in [0, 56, 1400] {
            ping(client, address, payload, PATIENCE)?;
        }
        session(client, SocketAddr::new(address, 2222))
            .unwrap_or_else(|e| panic!("{address} port 2222: {e}"));
        let refused = client
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(address, 2223), PATIENCE))
            .expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{address}");
        port_unreachable(client, SocketAddr::new(address, 2224));
        // The service's port by another protocol.
        port_unreachable(client, SocketAddr::new(address, 80));
    }
    // And the host as a client.
    for address in topology.client.addresses().into_iter().chain(topology.backends[0].addresses()) {
        ping(&lb.ns, address, 56, PATIENCE)?;
    }
    Ok(())
}

/// The kernel says so by ICMP.
fn port_unreachable(ns: &Netns, target: SocketAddr) {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = ns.run(|| UdpSocket::bind(any)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    socket.connect(target).expect("connected");
    // The kernel limits how many of these it sends.
    for _ in 0..10 {
        let _ = socket.send(b"anybody?");
        match socket.recv(&mut [0; 16]) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return,
            Err(_) => {}
            Ok(length) => panic!("{target} answered {length} bytes"),
        }
    }
    panic!("{target}: no ICMP port unreachable");
}

#[test]
fn the_host_itself_works_as_before() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let lb = &topology.lb[0];
    let vips = [topology.vip4(), topology.vip6()];
    // As keepalived would have it: the virtual addresses are on the interface.
    topology
        .lab
        .plan()
        .addr(&lb.ns, "eth0", &format!("{}/32", vips[0]))
        .addr(&lb.ns, "eth0", &format!("{}/128", vips[1]))
        .apply()?;
    let _greeter = Greeter::start(&lb.ns, 2222).expect("a server");
    let _servers = web_servers(&topology, 0)?;
    host_works(&topology, vips)?;

    let www = Service::www(vips).nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    let load = Requests::to_all(vips.map(|vip| SocketAddr::new(vip, 80)))
        .concurrency(2)
        .timeout(PATIENCE)
        .start(&topology.client.ns);
    host_works(&topology, vips)?;
    let report = load.stop();
    report.assert_all_answered();
    assert_eq!(report.answers.len(), 3, "{report}");
    // A large upload to the host's own address passes the program packet by packet.
    let _sink = tcp_sink(&lb.ns, "lb1", lb.v4.into(), 9000)?;
    let line = upload(&topology.client.ns, SocketAddr::new(lb.v4.into(), 9000), 5_000_000, PATIENCE);
    assert_eq!(line.expect("an answer"), "lb1 5000000 ok");

    let drops: Vec<DropView> = balancer.json(&["drops"]);
    // The echo requests that were answered are counted there too.
    let answered = |drop: &DropView| drop.reason == "echo_answered";
    assert!(drops.iter().all(|drop| (drop.packets == 0) != answered(drop)), "{drops:?}");
    drop(balancer);
    host_works(&topology, vips)
}
