//! Two nodes and one address: lbd with lbd, and lbd with Debian's keepalived.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    client,
    lab::{Lab, Node, Process, Result, Shape, Sniffer, Topology, wait_until},
    require,
    skip::{Need, find_tool},
    web::{WebOptions, WebServer},
};
use lb_userspace::{
    control::pair::PairView,
    model::VrrpVersion,
    vrrp::packet::{Advert, ChecksumForm},
};
use nix::sys::signal::Signal;

/// Far more than any takeover takes, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
const VIP4: &str = "192.0.2.10";
const VIP6: &str = "2001:db8::10";

fn topology() -> Result<Topology> {
    Topology::new(&Shape { backends: 2, vips_on_link: true, ..Shape::default() })
}

/// A `[[vrrp]]` with both addresses.
fn vrrp(priority: u8, extra: &str) -> String {
    let addresses = if extra.contains("addresses") {
        String::new()
    } else {
        format!("addresses = [\"{VIP4}/24\", \"{VIP6}/64\"]\n")
    };
    format!(
        "\n[[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {priority}\n{addresses}{extra}\n"
    )
}

fn settings(topology: &Topology, on: usize, rest: &str) -> Settings {
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    Settings { on, rest: rest.to_owned(), ..Settings::of([www]) }
}

fn pair(balancer: &Balancer<'_>) -> PairView {
    let views: Vec<PairView> = balancer.json(&["pair"]);
    views.into_iter().next().expect("one instance")
}

fn wait_for_state(balancer: &Balancer<'_>, state: &str) -> Result<()> {
    let what = format!("{} is {state}", balancer.node.name);
    wait_until(&what, PATIENCE, || pair(balancer).state == state)
        .inspect_err(|_| eprintln!("{:?}", pair(balancer)))
}

/// Whether the address is on eth0 of the node.
fn has(node: &Node, address: &str) -> bool {
    let shown = node.ns.exec("ip", &["-o", "addr", "show", "dev", "eth0"]).expect("ip works");
    shown.contains(&format!(" {address}/"))
}

fn wait_for_address(node: &Node, address: &str, there: bool) -> Result<()> {
    let what = format!("{address} is {} {}", if there { "on" } else { "off" }, node.name);
    wait_until(&what, PATIENCE, || has(node, address) == there)
}

/// The client gets an answer through the virtual addresses, by whichever node.
#[track_caller]
fn assert_served(topology: &Topology) {
    for vip in [topology.vip4(), topology.vip6()] {
        let target = SocketAddr::new(vip, 80);
        let answered = || client::get(&topology.client.ns, target, "/", Duration::from_secs(2)).is_ok();
        wait_until(&format!("{target} answers"), PATIENCE, answered).unwrap();
    }
}

fn webs(topology: &Topology) -> Vec<WebServer> {
    let options = WebOptions::default();
    let start = |node: &Node| WebServer::nginx_or_builtin(&topology.lab, &node.ns, &node.name, &options);
    topology.backends.iter().map(|node| start(node).expect("a web server")).collect()
}

fn packets_of(balancer: &Balancer<'_>) -> u64 {
    balancer.service("www").packets
}

#[test]
fn two_balancers_share_an_address() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let _webs = webs(&topology);
    let mut one =
        Balancer::start(&topology, settings(&topology, 0, &vrrp(150, "advert_interval = \"100ms\"")))?;
    let mut two =
        Balancer::start(&topology, settings(&topology, 1, &vrrp(100, "advert_interval = \"100ms\"")))?;
    let [lb1, lb2] = &topology.lb;

    // The higher priority has the addresses, and the packets.
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    for vip in [VIP4, VIP6] {
        wait_for_address(lb1, vip, true)?;
        wait_for_address(lb2, vip, false)?;
    }
    assert_served(&topology);
    assert!(packets_of(&one) > 0);
    // It began as backup; the first advertisement may be an interval away.
    wait_until("the backup hears the master", PATIENCE, || pair(&two).master.is_some())?;
    let seen = pair(&two);
    assert_eq!(
        (seen.master_priority, seen.priority, seen.effective_priority),
        (Some(150), 100, 100),
        "{seen:?}"
    );
    assert!(seen.master.is_some() && seen.faults.is_empty(), "{seen:?}");

    // A stop is told: no wait for three intervals.
    one.stop()?;
    wait_for_state(&two, "master")?;
    assert_eq!(pair(&two).reason, "the master left");
    for vip in [VIP4, VIP6] {
        wait_for_address(lb1, vip, false)?;
        wait_for_address(lb2, vip, true)?;
    }
    let before = packets_of(&two);
    assert_served(&topology);
    assert!(packets_of(&two) > before);

    // It comes back and preempts.
    one.restart()?;
    wait_for_state(&one, "master")?;
    wait_for_state(&two, "backup")?;
    wait_for_address(lb2, VIP4, false)?;
    assert_served(&topology);

    // A hand-over by the operator holds although the other has the lower priority.
    assert_eq!(
        two.lbctl_output(&["pair", "failover", "public"]).status.code(),
        Some(1),
        "only the master can"
    );
    one.lbctl(&["pair", "failover", "public"]);
    wait_for_state(&two, "master")?;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((pair(&one).state.as_str(), pair(&one).handed_over), ("backup", true));
    assert_served(&topology);

    // Back, by maintenance of the other.
    two.lbctl(&["pair", "hold"]);
    wait_for_state(&one, "master")?;
    assert!(pair(&two).held);

    // The daemon is killed. The one that is held takes nothing; released, it does.
    one.kill();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(pair(&two).state, "backup");
    two.lbctl(&["pair", "hold", "off"]);
    wait_for_state(&two, "master")?;
    assert_eq!(pair(&two).reason, "no master was heard");
    assert_served(&topology);

    // What it left behind is cleared away when it hears the new master; then it preempts.
    one.restart()?;
    wait_for_state(&one, "master")?;
    wait_for_address(lb1, VIP4, true)?;
    wait_for_address(lb2, VIP4, false)?;
    two.stop()
}

#[test]
fn a_lone_node_keeps_its_addresses_over_a_restart() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let mut one = Balancer::start(&topology, settings(&topology, 0, &vrrp(150, "")))?;
    wait_for_state(&one, "master")?;
    let lb1 = &topology.lb[0];
    wait_for_address(lb1, VIP4, true)?;
    one.kill();
    assert!(has(lb1, VIP4));
    one.restart()?;
    // With an interval of one second it is backup for three: the addresses stay all the same.
    while pair(&one).state != "master" {
        assert!(has(lb1, VIP4) && has(lb1, VIP6));
    }
    assert!(has(lb1, VIP4) && has(lb1, VIP6));

    // What others take away is put back and announced.
    let capture = Sniffer::open(&topology.router.ns, "lan0")?;
    lb1.ns.ip(&format!("addr del {VIP4}/24 dev eth0\n"))?;
    let gratuitous = |bytes: &[u8]| {
        bytes.len() >= 42
            && bytes[12..14] == [8, 6]
            && bytes[28..32] == [192, 0, 2, 10]
            && bytes[38..42] == [192, 0, 2, 10]
    };
    let announced = capture.recv(PATIENCE, |frame| gratuitous(&frame.bytes))?.expect("a gratuitous ARP");
    assert_eq!(announced.bytes[6..12], lb1.interfaces[0].mac);
    assert!(has(lb1, VIP4));
    assert!(one.process().log().contains("somebody removed a virtual address"));

    // A reload takes an address away and adds another; the state stays.
    one.configure(|settings| {
        settings.rest = vrrp(150, &format!("addresses = [\"{VIP6}/64\", \"192.0.2.77/24\"]"));
    })?;
    one.reload();
    wait_for_address(lb1, VIP4, false)?;
    wait_for_address(lb1, "192.0.2.77", true)?;
    let view = pair(&one);
    assert_eq!(view.state, "master");
    assert_eq!(view.transitions["master"], 1, "no flap: {view:?}");

    // The end of the last instance is the end of its addresses.
    one.configure(|settings| settings.rest.clear())?;
    one.reload();
    wait_for_address(lb1, "192.0.2.77", false)?;
    wait_for_address(lb1, VIP6, false)?;
    assert_eq!(one.lbctl(&["pair"]), "no [[vrrp]] in the configuration\n");
    one.stop()
}

#[test]
fn faults_and_tracking() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology =
        Topology::new(&Shape { backends: 1, vips_on_link: true, sync_link: true, ..Shape::default() })?;
    let extra = "advert_interval = \"100ms\"\ntrack_interfaces = [\"sync0\"]\ntrack_weight = 60";
    let mut settings = settings(&topology, 0, &vrrp(150, extra));
    settings.interfaces = vec!["eth0".to_owned()];
    let one = Balancer::start(&topology, settings)?;
    wait_for_state(&one, "master")?;
    let lb1 = &topology.lb[0];

    lb1.ns.ip("link set sync0 down\n")?;
    wait_until("the priority falls", PATIENCE, || pair(&one).effective_priority == 90)?;
    assert_eq!(pair(&one).faults, ["tracked interface sync0 is down"]);
    assert_eq!(pair(&one).state, "master", "a weight is no fault");
    lb1.ns.ip("link set sync0 up\n")?;
    wait_until("the priority rises", PATIENCE, || pair(&one).effective_priority == 150)?;

    topology.switch.ip("link set lb1 down\n")?;
    wait_for_state(&one, "fault")?;
    assert_eq!(pair(&one).faults, ["interface eth0 is down or has no carrier"]);
    wait_for_address(lb1, VIP4, false)?;
    topology.switch.ip("link set lb1 up\n")?;
    wait_for_state(&one, "master")?;
    wait_for_address(lb1, VIP4, true)?;
    Ok(())
}

/// A frame with an advertisement to the group, from the router's place.
fn frame(advert: &Advert, source: [u8; 4], ttl: u8, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let group = [224, 0, 0, 18];
    let mut payload = advert.encode(ChecksumForm::Pseudo, IpAddr::from(source), IpAddr::from(group));
    change(&mut payload);
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut ip = vec![0x45, 0xc0, length[0], length[1], 0, 0, 0, 0, ttl, 112, 0, 0];
    ip.extend(source);
    ip.extend(group);
    let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let check = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let mut frame = vec![1, 0, 0x5e, 0, 0, 18, 2, 0, 0, 0, 9, 9, 8, 0];
    frame.extend(ip);
    frame.extend(payload);
    frame
}

#[test]
fn a_node_that_hangs_is_replaced_and_makes_way() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let fast = |priority, on| settings(&topology, on, &vrrp(priority, "advert_interval = \"50ms\""));
    let one = Balancer::start(&topology, fast(100, 0))?;
    wait_for_state(&one, "master")?;
    let two = Balancer::start(&topology, fast(150, 1))?;
    wait_for_state(&two, "master")?;
    wait_for_state(&one, "backup")?;

    two.process().signal(Signal::SIGSTOP);
    wait_for_state(&one, "master")?;
    assert_eq!(pair(&one).reason, "no master was heard");
    two.process().signal(Signal::SIGCONT);
    // Awake, it still believes that it is master, hears the other, and says who is the better one.
    wait_for_state(&one, "backup")?;
    assert_eq!(pair(&one).reason, format!("{} is a better master", topology.lb[1].v4));
    let awake = pair(&two);
    assert_eq!((awake.state.as_str(), awake.transitions["master"]), ("master", 1));
    assert!(awake.split_brains > 0, "{awake:?}");
    wait_for_address(&topology.lb[0], VIP4, false)?;
    assert!(has(&topology.lb[1], VIP4));

    // A busy daemon misses nothing: neither of many reloads nor of its own start-up work comes a change of state.
    let before = pair(&one).transitions;
    for _ in 0..10 {
        two.reload();
    }
    assert_eq!(pair(&one).transitions, before);
    assert_eq!(pair(&two).transitions["master"], 1);
    Ok(())
}

/// Of each forged packet.
const TIMES: u32 = 7;

#[test]
fn forged_packets_have_no_effect() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = topology()?;
    let one = Balancer::start(&topology, settings(&topology, 0, &vrrp(150, "advert_interval = \"100ms\"")))?;
    wait_for_state(&one, "master")?;
    let port = Sniffer::open(&topology.router.ns, "lan0")?;
    let advert = |router_id| Advert {
        version: VrrpVersion::V3,
        router_id,
        priority: 254,
        interval: Duration::from_millis(100),
        addresses: vec![VIP4.parse().unwrap()],
    };
    let (peer, own) = ([10, 0, 0, 3], topology.lb[0].v4.octets());
    let rows = [
        ("ttl", frame(&advert(51), peer, 254, |_| {})),
        ("subnet", frame(&advert(51), [172, 16, 0, 1], 255, |_| {})),
        ("router_id", frame(&advert(52), peer, 255, |_| {})),
        ("own_address", frame(&advert(51), own, 255, |_| {})),
        ("checksum", frame(&advert(51), peer, 255, |payload| payload[2] ^= 1)),
        ("length", frame(&advert(51), peer, 255, |payload| payload.truncate(9))),
    ];
    let refused = || {
        let get = client::get(&one.node.ns, "127.0.0.1:9750".parse().unwrap(), "/metrics", PATIENCE);
        String::from_utf8_lossy(&get.expect("metrics").body).into_owned()
    };
    for (reason, frame) in rows {
        let line = |count| format!("lbd_vrrp_refused_packets_total{{reason=\"{reason}\"}} {count}\n");
        assert!(refused().contains(&line(0)), "{reason}");
        for _ in 0..TIMES {
            port.send_frame(&frame)?;
        }
        let counted = || refused().contains(&line(TIMES));
        // The kernel drops packets that say they come from itself before anybody sees them.
        if reason != "own_address" {
            wait_until(&format!("{reason} is counted"), PATIENCE, counted)?;
        }
    }
    let view = pair(&one);
    assert_eq!((view.state.as_str(), view.transitions["master"], view.adverts_received), ("master", 1, 0));
    // Each kind is told of once in a while.
    let log = one.process().log();
    let told = log.lines().filter(|line| line.contains("vrrp packet of no effect")).count();
    assert_eq!(told, 5, "{log}");

    // A good one from a better node has one.
    port.send_frame(&frame(&advert(51), peer, 255, |_| {}))?;
    wait_until("it yields", PATIENCE, || pair(&one).transitions["backup"] == 2)?;
    wait_for_state(&one, "master")
}

// ---- with keepalived --------------------------------------------------------------------------------------

/// One way in which both can talk.
#[derive(Debug, Clone, Copy)]
struct Way {
    version: u8,
    six: bool,
    unicast: bool,
}

const WAYS: [Way; 6] = [
    Way { version: 3, six: false, unicast: false },
    Way { version: 3, six: false, unicast: true },
    Way { version: 3, six: true, unicast: false },
    Way { version: 3, six: true, unicast: true },
    Way { version: 2, six: false, unicast: false },
    Way { version: 2, six: false, unicast: true },
];

impl Way {
    fn vip(self) -> &'static str {
        if self.six { VIP6 } else { VIP4 }
    }

    fn addresses(self, topology: &Topology) -> [IpAddr; 2] {
        [0, 1].map(|at: usize| topology.lb[at].addresses()[usize::from(self.six)])
    }

    fn lbd(self, topology: &Topology, priority: u8) -> String {
        let bits = if self.six { 64 } else { 24 };
        let mut extra = format!("version = {}\naddresses = [\"{}/{bits}\"]\n", self.version, self.vip());
        extra +=
            if self.version == 2 { "advert_interval = \"1s\"\n" } else { "advert_interval = \"100ms\"\n" };
        if self.unicast {
            extra += &format!("unicast_peers = [\"{}\"]\n", self.addresses(topology)[1]);
        }
        vrrp(priority, &extra)
    }

    fn keepalived(self, topology: &Topology, priority: u8) -> String {
        let [peer, own] = self.addresses(topology);
        let bits = if self.six { 64 } else { 24 };
        let interval = if self.version == 2 { "1" } else { "0.1" };
        let unicast = if self.unicast {
            format!("unicast_src_ip {own}\nunicast_peer {{\n{peer}\n}}\n")
        } else {
            String::new()
        };
        format!(
            "global_defs {{\nvrrp_version {}\n}}\nvrrp_instance public {{\nstate BACKUP\ninterface eth0\n\
             virtual_router_id 51\npriority {priority}\nversion {}\nadvert_int {interval}\n{unicast}\
             virtual_ipaddress {{\n{}/{bits}\n}}\n}}\n",
            self.version,
            self.version,
            self.vip()
        )
    }
}

/// What lbd wrote of VRRP.
fn story(lbd: &Balancer<'_>) -> String {
    let log = lbd.process().log();
    log.lines().filter(|line| line.contains("vrrp")).collect::<Vec<_>>().join("\n")
}

struct Keepalived(Process);

impl Keepalived {
    fn start(lab: &Lab, node: &Node, text: &str) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("keepalived").tempdir_in(lab.dir()).expect("a directory").keep();
        let file = dir.join("keepalived.conf");
        fs::write(&file, text).expect("the configuration is written");
        let mut command: Command = node.ns.command(find_tool("keepalived").expect("required"));
        command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"]).arg(&file);
        command.arg("--pid").arg(dir.join("pid")).arg("--vrrp_pid").arg(dir.join("vrrp.pid"));
        Ok(Self(lab.spawn("keepalived", command)?))
    }

    /// SIGTERM; it says good-bye and ends.
    fn stop(self) {
        self.0.signal(Signal::SIGTERM);
        self.0.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}:\n{}", self.0.log()));
    }
}

#[test]
fn keepalived_is_a_good_peer() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("keepalived"));
    let topology = topology()?;
    let [lb1, lb2] = &topology.lb;
    let mut lbd = Balancer::start(&topology, settings(&topology, 0, ""))?;
    for way in WAYS {
        let began = Instant::now();
        let vip = way.vip();
        let use_config = |lbd: &mut Balancer<'_>, text: String| -> Result<()> {
            lbd.configure(|settings| settings.rest = text)?;
            lbd.reload();
            Ok(())
        };
        let clear = |lbd: &mut Balancer<'_>| -> Result<()> {
            use_config(lbd, String::new())?;
            wait_for_address(lb1, vip, false)
        };

        // keepalived is there first; lbd is better and takes over; lbd leaves, and keepalived has it again.
        let other = Keepalived::start(&topology.lab, lb2, &way.keepalived(&topology, 100))?;
        let told = |why: lb_tests::lab::Error| panic!("{way:?}: {why}\n{}", other.0.log());
        wait_for_address(lb2, vip, true).unwrap_or_else(told);
        use_config(&mut lbd, way.lbd(&topology, 150))?;
        wait_for_address(lb1, vip, true).unwrap_or_else(told);
        wait_for_address(lb2, vip, false).unwrap_or_else(told);
        let view = pair(&lbd);
        assert_eq!(view.reason, "the master has a lower priority", "{way:?}: {view:?}\n{}", story(&lbd));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!has(lb2, vip), "{way:?}: keepalived believes lbd\n{}", other.0.log());
        clear(&mut lbd)?;
        wait_for_address(lb2, vip, true).unwrap_or_else(told);
        other.stop();

        // lbd is there first; keepalived is better.
        wait_for_address(lb2, vip, false)?;
        use_config(&mut lbd, way.lbd(&topology, 100))?;
        wait_for_address(lb1, vip, true)?;
        let other = Keepalived::start(&topology.lab, lb2, &way.keepalived(&topology, 150))?;
        let told = |why: lb_tests::lab::Error| panic!("{way:?}: {why}\n{}", other.0.log());
        wait_for_address(lb2, vip, true).unwrap_or_else(told);
        wait_for_address(lb1, vip, false).unwrap_or_else(told);
        wait_for_state(&lbd, "backup").unwrap_or_else(told);
        let view = pair(&lbd);
        assert_eq!(view.master_priority, Some(150), "{way:?}: {view:?}");

        // It stops politely, comes back, and is killed.
        other.stop();
        wait_for_address(lb1, vip, true)?;
        assert_eq!(pair(&lbd).reason, "the master left", "{way:?}");
        let other = Keepalived::start(&topology.lab, lb2, &way.keepalived(&topology, 150))?;
        // Its advertisement comes before its address.
        wait_for_address(lb1, vip, false)?;
        wait_for_address(lb2, vip, true)?;
        other.0.kill();
        wait_for_address(lb1, vip, true)?;
        assert_eq!(pair(&lbd).reason, "no master was heard", "{way:?}");
        // Killed, it left the address where it was.
        lb2.ns.ip(&format!("addr del {vip}/{} dev eth0\n", if way.six { 64 } else { 24 }))?;
        clear(&mut lbd)?;
        eprintln!("{way:?}: {:?}", began.elapsed());
    }
    lbd.stop()
}
