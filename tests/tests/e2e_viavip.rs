//! `via = "vip"`: the virtual address is checked on each backend as the traffic reaches it. Beside each service that is checked
//! so there is one with the same backends that are checked by their own addresses, which notices none of what is broken.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, program, web_servers},
    lab::{Arms, Netns, Node, Result, Shape, Topology},
    require,
    skip::Need,
};
use lb_userspace::model::Health;

const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(200);
const FALL: u32 = 3;
/// For a machine that is busy with other tests.
const MARGIN: Duration = Duration::from_secs(4);

fn health(more: &str) -> String {
    let (interval, timeout) = (INTERVAL.as_millis(), TIMEOUT.as_millis());
    format!("interval = \"{interval}ms\"\ntimeout = \"{timeout}ms\"\nrise = 2\nfall = {FALL}\n{more}")
}

/// What a scenario runs in.
struct Stage {
    forward: &'static str,
    /// The backends are named by their IPv6 addresses.
    v6: bool,
    arms: Arms,
    gue_port: Option<u16>,
}

impl Stage {
    const fn of(forward: &'static str, v6: bool) -> Self {
        Self { forward, v6, arms: Arms::One, gue_port: None }
    }

    /// Both services have both virtual addresses: with either family of backends one of the two crosses families.
    fn services(&self, topology: &Topology) -> [Service; 2] {
        let http = "type = \"http\"\npath = \"/healthz\"";
        let service = |name: &str, port: u16, more: &str| {
            let service = Service::www([topology.vip4(), topology.vip6()]).name(name).port(port);
            let service = service.forward(self.forward).health(&health(&format!("{http}\n{more}")));
            let service = match self.gue_port {
                Some(port) => service.extra(&format!("gue_port = {port}")),
                None => service,
            };
            if self.v6 { service.nodes6(&topology.backends) } else { service.nodes(&topology.backends) }
        };
        [service("vip", 80, "via = \"vip\""), service("own", 8080, "port = 80")]
    }

    fn tunnels(&self) -> bool {
        self.forward != "dsr"
    }
}

/// `lbctl decap` on a backend.
fn decap(balancer: &Balancer<'_>, backend: &Node, action: &str, more: &[&str]) {
    let pins = balancer.pin_dir().join(format!("decap-{}", backend.name));
    std::fs::create_dir_all(&pins).expect("a directory for pins");
    let mut command = backend.ns.command(program("lbctl"));
    command.args(["decap", action, "eth0", "--pin-dir"]).arg(pins).args(more);
    let output = command.output().expect("lbctl can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

struct Play<'t> {
    topology: &'t Topology,
    balancer: Balancer<'t>,
    gue_port: Option<u16>,
}

impl<'t> Play<'t> {
    fn begin(topology: &'t Topology, stage: &Stage) -> Result<Self> {
        let mut settings = Settings::of(stage.services(topology));
        settings.on = 0;
        let mut play =
            Self { topology, balancer: Balancer::prepare(topology, settings)?, gue_port: stage.gue_port };
        if stage.tunnels() {
            topology.backends.iter().for_each(|backend| play.attach_decap(backend));
        }
        play.balancer.restart()?;
        Ok(play)
    }

    fn attach_decap(&self, backend: &Node) {
        let own = self.balancer.node.interfaces.iter().flat_map(|i| [i.v4.to_string(), i.v6.to_string()]);
        let own: Vec<String> = own.collect();
        let port = self.gue_port.unwrap_or(6080).to_string();
        let mut more = vec!["--gue-port", &port, "--from", "198.18.0.0/16", "100::/64"];
        more.extend(own.iter().map(String::as_str));
        decap(&self.balancer, backend, "attach", &more);
    }

    #[track_caller]
    fn becomes(&self, service: &str, backend: &str, health: Health) -> Duration {
        let started = Instant::now();
        let what = format!("{service}/{backend} to be {health}");
        let waited =
            self.balancer.wait_for_backend(&what, service, backend, PATIENCE, |b| b.health == health);
        waited.unwrap_or_else(|e| panic!("{e}: {:?}", self.balancer.service(service).backends));
        started.elapsed()
    }

    /// web2 is found down in time by its virtual address; the reason names it; its own address is well all the while.
    #[track_caller]
    fn noticed(&self, why: &str) {
        let took = self.becomes("vip", "web2", Health::Down);
        let allowed = INTERVAL * FALL + TIMEOUT + MARGIN;
        assert!(took <= allowed, "down after {took:?}");
        let view = self.balancer.service("vip");
        let web2 = view.backends.iter().find(|b| b.name == "web2").expect("web2");
        let reason = web2.health_reason.clone().unwrap_or_default();
        assert!(reason.contains("on the backend: ") && reason.contains(why), "{reason}");
        self.all("own", Health::Up);
        let web1 = view.backends.iter().find(|b| b.name == "web1").expect("web1");
        assert_eq!(web1.health, Health::Up, "{web1:?}");
    }

    #[track_caller]
    fn all(&self, service: &str, health: Health) {
        let view = self.balancer.service(service);
        assert!(view.backends.iter().all(|b| b.health == health), "{:?}", view.backends);
    }

    #[track_caller]
    fn both_up(&self) {
        for service in ["vip", "own"] {
            for backend in &self.topology.backends {
                self.becomes(service, &backend.name, Health::Up);
            }
        }
    }
}

/// What an operator sees of this node's network: nothing of it is to be of a daemon that is gone.
fn traces(ns: &Netns) -> String {
    let ip = |args: &[&str]| ns.exec("ip", args).expect("ip");
    let listeners = |file: &str| {
        let table = ns.exec("cat", &[file]).expect("a table of sockets");
        table.lines().filter(|line| line.split_whitespace().nth(3) == Some("0A")).count()
    };
    let links = ip(&["-br", "link"]);
    let names: Vec<&str> = links.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let rules = [ip(&["rule"]), ip(&["-6", "rule"])];
    format!("{names:?} {rules:?} {} {}", listeners("/proc/net/tcp"), listeners("/proc/net/tcp6"))
}

/// A server of the built-in kind on one address alone.
struct OnlyThere {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    ns: Netns,
}

impl OnlyThere {
    fn start(ns: &Netns, address: IpAddr) -> Self {
        let address = SocketAddr::new(address, 80);
        let listener = ns.run(|| TcpListener::bind(address)).expect("the port is free");
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let _ = stream.read(&mut [0; 1024]);
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        Self { stop, address, ns: ns.clone() }
    }
}

impl Drop for OnlyThere {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // So that the thread looks up.
        let _ = self.ns.run(|| std::net::TcpStream::connect(self.address));
    }
}

/// Everything that can be wrong with a backend's end of the way, one after the other.
fn scenario(stage: &Stage) -> Result<()> {
    let topology = Topology::new(&Shape { backends: 2, arms: stage.arms, ..Shape::default() })?;
    let mut servers = web_servers(&topology, 0)?;
    let lb = &topology.lb[0];
    let before = traces(&lb.ns);
    let mut play = Play::begin(&topology, stage)?;
    play.both_up();
    let web2 = &topology.backends[1];

    // The virtual address is missing, of either family.
    for vip in [topology.vip4(), topology.vip6()] {
        let bits = if vip.is_ipv4() { 32 } else { 128 };
        web2.ns.ip(&format!("addr del {vip}/{bits} dev lo\n"))?;
        play.noticed(&vip.to_string());
        web2.ns.ip(&format!("addr add {vip}/{bits} dev lo\n"))?;
        play.both_up();
    }
    // The end of the tunnel is missing.
    if stage.tunnels() {
        decap(&play.balancer, web2, "detach", &[]);
        play.noticed("no connection within");
        play.attach_decap(web2);
        play.both_up();
    }
    // The server listens on the backend's own address only.
    servers[1].kill();
    play.becomes("vip", "web2", Health::Down);
    let only = OnlyThere::start(&web2.ns, if stage.v6 { web2.v6.into() } else { web2.v4.into() });
    play.becomes("own", "web2", Health::Up);
    play.noticed("connection refused");
    drop(only);
    servers[1].start(&topology.lab)?;
    play.both_up();

    // A master of VRRP has the virtual addresses on an interface of its own.
    let (v4, v6) = (topology.vip4(), topology.vip6());
    lb.ns.ip(&format!("addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0\n"))?;
    let since = Instant::now();
    while since.elapsed() < 2 * (INTERVAL * FALL + TIMEOUT) {
        play.all("vip", Health::Up);
        std::thread::sleep(INTERVAL);
    }
    web2.ns.ip(&format!("addr del {v4}/32 dev lo\n"))?;
    play.noticed(&v4.to_string());
    web2.ns.ip(&format!("addr add {v4}/32 dev lo\n"))?;
    play.both_up();
    lb.ns.ip(&format!("addr del {v4}/32 dev eth0\naddr del {v6}/128 dev eth0\n"))?;

    // A daemon that is killed leaves nothing, and the next one checks as ever.
    play.balancer.kill();
    assert_eq!(traces(&lb.ns), before);
    play.balancer.restart()?;
    play.both_up();
    servers[1].kill();
    play.becomes("vip", "web2", Health::Down);
    play.balancer.lbctl(&["detach", "--yes"]);
    play.balancer.process().wait(PATIENCE)?;
    assert_eq!(traces(&lb.ns), before);
    Ok(())
}

/// A node without an IPv6 address cannot check the IPv6 address of a service, and checks the other one all the same.
#[test]
fn one_family_that_cannot_be_checked_does_not_hide_the_other() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    topology.lb[0].ns.exec("ip", &["-6", "addr", "flush", "dev", "eth0"])?;
    let play = Play::begin(&topology, &Stage::of("dsr", false))?;
    play.both_up();
    let (web2, v4) = (&topology.backends[1], topology.vip4());
    web2.ns.ip(&format!("addr del {v4}/32 dev lo\n"))?;
    play.noticed(&v4.to_string());
    web2.ns.ip(&format!("addr add {v4}/32 dev lo\n"))?;
    play.both_up();
    Ok(())
}

#[test]
fn dsr_by_ipv4() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    scenario(&Stage::of("dsr", false))
}

#[test]
fn dsr_by_ipv6_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    scenario(&Stage { arms: Arms::Two, ..Stage::of("dsr", true) })
}

#[test]
fn ipip_over_ipv4() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    scenario(&Stage::of("ipip", false))
}

#[test]
fn ipip_over_ipv6() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    scenario(&Stage::of("ipip", true))
}

#[test]
fn gue_over_ipv4_at_a_port_of_its_own() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    scenario(&Stage { gue_port: Some(5555), ..Stage::of("gue", false) })
}

#[test]
fn gue_over_ipv6_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    scenario(&Stage { arms: Arms::Two, ..Stage::of("gue", true) })
}

/// Datagrams, echo requests and plain connections go the same way; what ICMP says of them comes back.
#[test]
fn every_kind_of_packet_goes_through_the_tunnel() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/dev/net/tun"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let vips = [topology.vip4(), topology.vip6()];
    let _servers = web_servers(&topology, 0)?;
    let echo = |node: &Node| {
        let sockets = vips.map(|vip| {
            let socket = node.ns.run(|| UdpSocket::bind((vip, 7))).expect("the port is free");
            // So that the thread below looks whether it is to end.
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
            socket
        });
        let stop = Arc::<AtomicBool>::default();
        let threads = sockets.map(|socket| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut buffer = [0; 512];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..length], from);
                    }
                }
            })
        });
        (stop, threads)
    };
    for node in &topology.backends {
        // Else most checks of a port where nothing listens would meet silence, which passes.
        for key in ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"] {
            node.ns.sysctl(key, "0")?;
        }
    }
    let ends: Vec<_> = topology.backends.iter().map(echo).collect();
    let service = |name: &str, port: u16, lines: &str| {
        let service = Service::www(vips).name(name).port(port).forward("gue").nodes(&topology.backends);
        service.health(&health(&format!("via = \"vip\"\n{lines}")))
    };
    let udp = |name: &str, lines: &str| {
        service(name, 7, &format!("type = \"udp\"\nsend = \"ping\"\n{lines}")).udp()
    };
    let services = [
        service("tcp", 80, "type = \"tcp\""),
        service("icmp", 81, "type = \"icmp\""),
        udp("answered", "expect = \"ping\""),
        // Another service at the same port would overlap.
        udp("silent", "").port(9),
        // Nothing listens there, of which ICMP tells.
        udp("watched", "port = 7").port(8),
    ];
    let balancer = Balancer::start_tunnelled(&topology, Settings::of(services))?;
    let becomes = |service: &str, backend: &str, health: Health| {
        let what = format!("{service}/{backend} to be {health}");
        let waited = balancer.wait_for_backend(&what, service, backend, PATIENCE, |b| b.health == health);
        waited.unwrap_or_else(|e| panic!("{e}: {:?}", balancer.service(service).backends));
    };
    let reason = |service: &str, backend: &str| {
        let view = balancer.service(service);
        view.backends
            .into_iter()
            .find(|b| b.name == backend)
            .and_then(|b| b.health_reason)
            .unwrap_or_default()
    };
    for backend in ["web1", "web2"] {
        for service in ["tcp", "icmp", "answered", "watched"] {
            becomes(service, backend, Health::Up);
        }
        becomes("silent", backend, Health::Down);
        assert!(reason("silent", backend).contains("connection refused"), "{}", reason("silent", backend));
    }
    let (stop, threads) = ends.into_iter().nth(1).expect("web2");
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("the echo"));
    for service in ["answered", "watched"] {
        becomes(service, "web2", Health::Down);
        assert!(reason(service, "web2").contains("connection refused"), "{}", reason(service, "web2"));
    }
    let web2 = &topology.backends[1];
    web2.ns.sysctl("net.ipv4.icmp_echo_ignore_all", "1")?;
    becomes("icmp", "web2", Health::Down);
    web2.ns.sysctl("net.ipv4.icmp_echo_ignore_all", "0")?;
    becomes("icmp", "web2", Health::Up);
    for service in ["tcp", "icmp", "answered", "watched"] {
        let view = balancer.service(service);
        assert_eq!(view.backends[0].health, Health::Up, "{:?}", view.backends);
    }
    Ok(())
}

/// The wish comes and goes with a reload; without the right to make a namespace it is refused, and says what is missing.
#[test]
fn a_reload_opens_and_closes_the_way() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("setpriv"), Need::Path("/dev/net/tun"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let checked = |more: &str| {
        let vips = [topology.vip4(), topology.vip6()];
        Service::www(vips).nodes(&topology.backends).health(&health(&format!("type = \"tcp\"\n{more}")))
    };
    let mut balancer = Balancer::prepare(&topology, Settings::of([checked("")]))?;
    let weak = |balancer: &Balancer<'_>| {
        let mut command = balancer.node.ns.command("setpriv");
        command.arg("--bounding-set=-sys_admin").arg(program("lbd"));
        command.arg("--config").arg(balancer.config_file()).env_remove("RUST_LOG").args(["--log", "debug"]);
        command
    };
    let threads = |balancer: &Balancer<'_>| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", balancer.process().pid())).expect("threads");
        let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "vip-checks").count()
    };
    let command = weak(&balancer);
    balancer.restart_with(command)?;
    balancer.configure(|settings| settings.services = vec![checked("via = \"vip\"")])?;
    let refused = balancer.lbctl_output(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("CAP_SYS_ADMIN"), "{said}");
    balancer.wait_for_backend("web1 to be up", "www", "web1", PATIENCE, |b| b.health == Health::Up)?;
    balancer.stop()?;

    balancer.restart()?;
    assert_eq!(threads(&balancer), 1);
    balancer.wait_for_backend("web1 to be up", "www", "web1", PATIENCE, |b| b.health == Health::Up)?;
    let web1 = &topology.backends[0];
    web1.ns.ip(&format!("addr del {}/32 dev lo\n", topology.vip4()))?;
    balancer.wait_for_backend("web1 to be down", "www", "web1", PATIENCE, |b| b.health == Health::Down)?;
    balancer.configure(|settings| settings.services = vec![checked("")])?;
    balancer.reload();
    balancer.wait_for_backend("web1 to be up", "www", "web1", PATIENCE, |b| b.health == Health::Up)?;
    assert_eq!(threads(&balancer), 0);
    balancer.configure(|settings| settings.services = vec![checked("via = \"vip\"")])?;
    balancer.reload();
    balancer.wait_for_backend("web1 to be down", "www", "web1", PATIENCE, |b| b.health == Health::Down)?;
    assert_eq!(threads(&balancer), 1);
    Ok(())
}
