//! The lab itself: what it builds works, what it ends is gone.

use std::{
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lb_tests::{
    client::{self, Connection, Requests},
    lab::{
        Arms, End, Error, Frame, Gateway, Lab, Mtu, Result, Shape, Sniffer, Topology, XdpProgram, ping,
        wait_for_port, wait_until,
    },
    require,
    skip::{Need, find_tool},
    web::{Kind, WebOptions, WebServer},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Ordinary traffic, balancers left out: the client reaches every backend's own addresses.
fn reaches_every_backend(topology: &Topology, kind: Kind) -> Result<()> {
    let options = WebOptions { ports: vec![80, 8080], big_bytes: 3_000_000 };
    let client = &topology.client;
    for node in &topology.backends {
        let server = WebServer::of_kind(kind, &topology.lab, &node.ns, &node.name, &options)?;
        for (address, own) in node.addresses().into_iter().zip(client.addresses()) {
            ping(&client.ns, address, 56, PATIENCE)?;
            let target = at(address, 8080);
            let report = Requests::to(target).concurrency(4).timeout(PATIENCE).run(&client.ns, 100);
            report.assert_all_answered();
            assert_eq!(report.count(&node.name), 100, "{report}");

            let get = |path| client::get(&client.ns, target, path, PATIENCE).expect("an answer");
            assert_eq!(get("/").body, format!("{}\n", node.name).as_bytes());
            assert_eq!(get("/").headers.get("x-client"), Some(own.to_string().as_str()));
            assert_eq!(get("/healthz").status, 200);
            server.set_healthy(false)?;
            assert_eq!(get("/healthz").status, 503);
            server.set_healthy(true)?;
            assert_eq!(get("/nowhere").status, 404);

            let download = client::download(&client.ns, target, 2_500_000, PATIENCE).expect("a download");
            assert_eq!((download.backend.as_str(), download.bytes), (node.name.as_str(), 2_500_000));
        }
    }
    Ok(())
}

#[test]
fn one_arm_carries_http_from_the_built_in_server() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let begun = Instant::now();
    let topology = Topology::new(&Shape::default())?;
    // Ten seconds for what takes a tenth of one: a machine may be busy, but a test must not wait for timeouts inside.
    assert!(begun.elapsed() < Duration::from_secs(10), "up after {:?}", begun.elapsed());
    reaches_every_backend(&topology, Kind::Builtin)
}

#[test]
fn one_arm_carries_http_from_nginx() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nginx"));
    reaches_every_backend(&Topology::new(&Shape { backends: 1, ..Shape::default() })?, Kind::Nginx)
}

#[test]
fn two_arms_with_another_mtu_and_a_sync_link_carry_http() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let shape = Shape {
        backends: 2,
        arms: Arms::Two,
        mtu: Mtu { back: 1600, ..Mtu::all(1500) },
        sync_link: true,
        ..Shape::default()
    };
    let topology = Topology::new(&shape)?;
    reaches_every_backend(&topology, Kind::Builtin)?;
    let [lb1, lb2] = &topology.lb;
    ping(&lb1.ns, lb2.interface("sync0").expect("a sync link").v6.into(), 56, PATIENCE)?;
    for node in [lb1, lb2] {
        for address in topology.backends[0].addresses() {
            ping(&node.ns, address, 56, PATIENCE)?;
        }
        ping(&topology.client.ns, node.interface("eth0").expect("a front leg").v4.into(), 56, PATIENCE)?;
    }
    // 1600 bytes with the headers.
    for (web1, payload) in topology.backends[0].addresses().into_iter().zip([1600 - 28, 1600 - 48]) {
        ping(&lb1.ns, web1, payload, PATIENCE)?;
        ping(&lb1.ns, web1, payload + 1, PATIENCE).expect_err("larger than the link");
        ping(&topology.client.ns, web1, payload, PATIENCE).expect_err("larger than the client's link");
    }
    Ok(())
}

fn to_vip(vip: IpAddr) -> impl Fn(&Frame) -> bool {
    move |frame| {
        !frame.outgoing
            && match vip {
                IpAddr::V4(ip) => frame.bytes.get(30..34) == Some(&ip.octets()),
                IpAddr::V6(ip) => frame.bytes.get(38..54) == Some(&ip.octets()),
            }
    }
}

#[test]
fn virtual_addresses_are_routed_to_the_balancer_chosen() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    for arms in [Arms::One, Arms::Two] {
        let topology = Topology::new(&Shape { backends: 1, arms, ..Shape::default() })?;
        let sniffers =
            [Sniffer::open(&topology.lb[0].ns, "eth0")?, Sniffer::open(&topology.lb[1].ns, "eth0")?];
        for chosen in [0, 1, 0] {
            topology.route_vips_to(chosen)?;
            for vip in [topology.vip4(), topology.vip6()] {
                sniffers.iter().try_for_each(Sniffer::drain)?;
                client::get(&topology.client.ns, at(vip, 80), "/", Duration::from_millis(300))
                    .expect_err("no balancer answers");
                let seen = sniffers[chosen].recv(PATIENCE, to_vip(vip))?;
                assert!(seen.is_some(), "{arms:?} {vip} missed lb{}", chosen + 1);
                assert_eq!(sniffers[1 - chosen].recv(Duration::ZERO, to_vip(vip))?, None);
            }
        }
    }
    Ok(())
}

/// The smallest balancer: IPv4 to 192.0.x.x leaves with constant MAC addresses, where it came from or elsewhere.
fn tiny_balancer(own: [u8; 6], backend: [u8; 6], redirect: Option<u32>) -> Result<XdpProgram> {
    use lb_tests::lab::insn::*;
    let word = |b: [u8; 6]| i32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let half = |b: [u8; 6]| i32::from(u16::from_le_bytes([b[4], b[5]]));
    let mut program = vec![
        load(U32, 2, 1, 0),
        load(U32, 3, 1, 4),
        mov_reg(4, 2),
        add(4, 34),
        mov(0, XDP_PASS),
        skip_if_greater(4, 3, 4),
        load(U16, 5, 2, 12),
        skip_if_not(5, i32::from(0x0800_u16.to_be()), 2),
        load(U16, 5, 2, 30),
        skip_if(5, i32::from(u16::from_le_bytes([192, 0])), 1),
        exit(),
        mov(5, word(backend)),
        store(U32, 2, 5, 0),
        mov(5, half(backend)),
        store(U16, 2, 5, 4),
        mov(5, word(own)),
        store(U32, 2, 5, 6),
        mov(5, half(own)),
        store(U16, 2, 5, 10),
    ];
    match redirect {
        None => program.push(mov(0, XDP_TX)),
        Some(ifindex) => program.extend([mov(1, ifindex.cast_signed()), mov(2, 0), call(REDIRECT)]),
    }
    program.push(exit());
    XdpProgram::load(&program)
}

/// The whole way of direct server return, by XDP_TX and by redirect; what is missing is nothing but a program on the
/// balancer.
#[test]
fn a_program_on_the_balancer_gets_http_through_by_direct_return() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    for arms in [Arms::One, Arms::Two] {
        let topology = Topology::new(&Shape { backends: 1, arms, ..Shape::default() })?;
        let (client, lb, web) = (&topology.client, &topology.lb[0], &topology.backends[0]);
        let options = WebOptions { big_bytes: 5_000_000, ..WebOptions::default() };
        let _server = WebServer::nginx_or_builtin(&topology.lab, &web.ns, "web1", &options)?;
        let target = at(topology.vip4(), 80);
        let no_answer = |why| {
            client::get(&client.ns, target, "/", Duration::from_millis(500)).expect_err(why);
        };
        no_answer("there is no balancer yet");
        let redirect = match arms {
            Arms::One => None,
            Arms::Two => Some(lb.ns.ifindex("eth1")?),
        };
        let link = tiny_balancer(lb.mac, web.mac, redirect)?.attach(&lb.ns, "eth0")?;
        let report = Requests::to(target).timeout(PATIENCE).run(&client.ns, 300);
        report.assert_all_answered();
        assert_eq!(report.count("web1"), 300);
        client::download(&client.ns, target, 5_000_000, PATIENCE).expect("a download");
        drop(link);
        no_answer("the program is gone");
    }
    Ok(())
}

/// A recognisable frame of an experimental EtherType, so that nobody else answers or sends one.
fn probe(number: u8) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0xbb, 0x02, 0, 0, 0, 0, 0xaa, 0x88, 0xb5, number];
    frame.resize(60, 0x5a);
    frame
}

fn bounced(number: u8) -> impl Fn(&Frame) -> bool {
    let mut expected = probe(number);
    let (to, from) = expected[..12].split_at_mut(6);
    to.swap_with_slice(from);
    move |frame| !frame.outgoing && frame.bytes == expected
}

#[test]
fn a_frame_sent_by_xdp_arrives_only_if_the_peer_has_a_program() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let lab = Lab::new()?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let mac = [2, 0, 0, 0, 0, 0xbb];
    lab.plan().veth(&End::new(&a, "eth0"), &End::new(&b, "eth0").mac(mac)).apply()?;
    assert_eq!(b.mac("eth0")?, mac);
    let sniffer = Sniffer::open(&a, "eth0")?;
    let bounce = XdpProgram::bounce()?.attach(&b, "eth0")?;
    for number in 0..5 {
        sniffer.send_frame(&probe(number))?;
        assert_eq!(sniffer.recv(Duration::from_millis(100), bounced(number))?, None, "no program was needed");
    }
    lab.attach_pass(&a, "eth0")?;
    for number in 10..15 {
        sniffer.send_frame(&probe(number))?;
        assert!(sniffer.recv(PATIENCE, bounced(number))?.is_some(), "frame {number} did not come back");
    }
    drop(bounce);
    sniffer.send_frame(&probe(20))?;
    assert_eq!(sniffer.recv(Duration::from_millis(100), bounced(20))?, None, "the program is still attached");
    Ok(())
}

/// The kernel hands over a tag beside its frame; the capture puts it back. Two tags, since only the outer one is taken.
#[test]
fn captures_show_vlan_tags() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let lab = Lab::new()?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    lab.plan().veth(&End::new(&a, "eth0"), &End::new(&b, "eth0")).apply()?;
    let (sender, sniffer) = (Sniffer::open(&a, "eth0")?, Sniffer::open(&b, "eth0")?);
    for tags in [&[0x81, 0, 0x20, 7][..], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]] {
        let mut frame = probe(1);
        frame.splice(12..12, tags.iter().copied());
        sender.send_frame(&frame)?;
        assert!(sniffer.recv(PATIENCE, |f| !f.outgoing && f.bytes == frame)?.is_some(), "{tags:x?}");
    }
    Ok(())
}

/// What XDP forwards it forwards as it sees it, so that checksums must be right on the wire.
#[test]
fn checksums_are_complete_on_the_wire() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let sniffer = Sniffer::open(&topology.router.ns, "client0")?;
    client::get(&topology.client.ns, at(topology.vip4(), 80), "/", Duration::from_millis(200))
        .expect_err("no balancer answers");
    let syn = sniffer.recv(PATIENCE, to_vip(topology.vip4()))?.expect("a SYN");
    let (ip, tcp) = syn.bytes[14..].split_at(20);
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).copied().map_or(0, u32::from)).sum()
    };
    let length = u32::try_from(tcp.len()).expect("a short segment");
    let mut sum = words(&ip[12..20]) + 6 + length + words(tcp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    assert_eq!(sum, 0xffff, "the TCP checksum of a SYN on the wire is wrong");
    Ok(())
}

#[test]
fn gateways_and_virtual_addresses_can_be_changed() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, vips_on_link: true, ..Shape::default() })?;
    let ns = &topology.backends[0].ns;
    for (gateway, v4, v6) in [
        (Gateway::Balancer(1), "via 10.0.0.3 ", "via fd00::3 "),
        (Gateway::Router, "via 10.0.0.1 ", "via fd00::1 "),
    ] {
        topology.set_gateway(0, gateway)?;
        let routes = ns.exec("ip", &["-4", "route", "show", "default"])?;
        assert!(routes.contains(v4) && routes.lines().count() == 1, "{routes}");
        let routes = ns.exec("ip", &["-6", "route", "show", "default"])?;
        assert!(routes.contains(v6) && routes.lines().count() == 1, "{routes}");
    }
    topology.add_vip([192, 0, 2, 99].into())?;
    let lo = ns.exec("ip", &["addr", "show", "dev", "lo"])?;
    assert!(
        ["192.0.2.10/32", "192.0.2.99/32", "2001:db8::10/128"].iter().all(|vip| lo.contains(vip)),
        "{lo}"
    );
    // The router asks for virtual addresses on the link; the backend has them and must keep silent.
    let router = &topology.router.ns;
    ping(router, topology.backends[0].v4.into(), 56, PATIENCE)?;
    router
        .exec("ping", &["-c1", "-W1", "192.0.2.10"])
        .expect_err("a backend answered ARP for a virtual address");
    router
        .exec("ping", &["-c1", "-W1", "2001:db8::10"])
        .expect_err("a backend answered ND for a virtual address");
    Ok(())
}

#[test]
fn a_killed_server_is_seen_in_the_report_and_comes_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    for kind in [Some(Kind::Builtin), find_tool("nginx").map(|_| Kind::Nginx)].into_iter().flatten() {
        let lab = Lab::new()?;
        let ns = lab.netns("web")?;
        let mut server = WebServer::of_kind(kind, &lab, &ns, "web", &WebOptions::default())?;
        let target = at([127, 0, 0, 1], 80);
        let mut kept = Connection::open(&ns, target, PATIENCE).expect("a connection");
        for _ in 0..3 {
            assert_eq!(kept.get("/").expect("an answer").backend(), "web");
        }
        let load = Requests::to(target).concurrency(2).pause(Duration::from_millis(1)).start(&ns);
        let answered = |n| wait_until("answers", PATIENCE, || load.report().ok() >= n);
        answered(10)?;
        assert_eq!(load.report().failed_count(), 0, "{}", load.report());
        server.kill();
        kept.get("/").expect_err("the server is gone, with its connections");
        wait_until("failures", PATIENCE, || load.report().failed_count() >= 5)?;
        let killed = load.elapsed();
        server.start(&lab)?;
        wait_for_port(&ns, target, PATIENCE)?;
        answered(load.report().ok() + 10)?;
        let report = load.stop();
        assert!(report.failures.iter().any(|f| f.at <= killed), "{report}");
        assert!(report.answers["web"].last_begun > killed, "{report}");
    }
    Ok(())
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

fn namespaces_of(prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// What a lab leaves on the machine while it lives.
struct Traces {
    prefix: String,
    dir: PathBuf,
    pids: Vec<u32>,
}

impl Traces {
    #[track_caller]
    fn assert_gone(&self) {
        assert_eq!(namespaces_of(&self.prefix), Vec::<String>::new());
        assert!(!self.dir.exists(), "{} is still there", self.dir.display());
        assert!(!Path::new("/run/lbd-lab").join(self.prefix.trim_end_matches('-')).exists());
        for pid in &self.pids {
            // A killed orphan is gone a moment after the kill.
            wait_until("a process to be gone", PATIENCE, || !alive(*pid)).expect("a process is left");
        }
    }
}

#[test]
fn nothing_is_left_after_a_drop_or_a_panic() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    for panics in [false, true] {
        let mut traces = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let topology = Topology::new(&Shape { backends: 1, ..Shape::default() }).expect("a topology");
            let lab = &topology.lab;
            let ns = &topology.backends[0].ns;
            let web = WebServer::nginx_or_builtin(lab, ns, "web1", &WebOptions::default()).expect("a server");
            // Neither SIGTERM nor the end of the shell alone would end these.
            let mut command = ns.command("sh");
            command.args(["-c", "trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1000; done"]);
            let stubborn = lab.spawn("stubborn", command).expect("a process");
            stubborn.wait_for_log("\n", PATIENCE).expect("its child's pid");
            let child: u32 = stubborn.log().trim().parse().expect("a pid");
            let pids: Vec<u32> = [stubborn.pid(), child].into_iter().chain(web.pid()).collect();
            assert!(pids.iter().all(|pid| alive(*pid)));
            assert_eq!(namespaces_of(lab.prefix()).len(), 6);
            traces = Some(Traces { prefix: lab.prefix().to_owned(), dir: lab.dir().to_owned(), pids });
            assert!(!panics, "on purpose");
        }));
        assert_eq!(outcome.is_err(), panics);
        traces.expect("the lab came up").assert_gone();
    }
    Ok(())
}

#[test]
fn labs_live_side_by_side() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let one = || -> Result<()> {
        let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
        topology
            .backends
            .iter()
            .try_for_each(|node| ping(&topology.client.ns, node.v6.into(), 56, PATIENCE).map(|_| ()))
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        all.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

#[test]
fn a_named_lab_is_the_only_one_of_its_name() -> Result<()> {
    require!(Need::Root);
    let name = format!("named{}", std::process::id());
    let first = Lab::named(&name)?;
    assert_eq!(first.netns("lb1")?.name(), format!("{name}-lb1"));
    assert!(matches!(Lab::named(&name), Err(Error::NameTaken { .. })));
    drop(first);
    assert_eq!(Lab::named(&name)?.netns("lb1")?.short_name(), "lb1");
    Ok(())
}

/// Set for the process that plays the other part in the next test.
const LEAVE: &str = "LBD_LAB_SMOKE_LEAVE";

fn leave_a_lab_behind() {
    let lab = Lab::new().expect("a lab");
    let ns = lab.netns("left").expect("a namespace");
    let mut command = ns.command("sh");
    command.args(["-c", "sleep 1000 & sleep 1000"]);
    let process = lab.spawn("sleep", command).expect("a process");
    let line = format!("left {} {} {} .\n", lab.prefix(), process.pid(), lab.dir().display());
    // Not println!: the harness keeps that back.
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("stderr");
    std::thread::sleep(Duration::from_secs(1000));
}

#[test]
fn what_a_killed_process_left_is_swept() -> Result<()> {
    require!(Need::Root);
    if std::env::var_os(LEAVE).is_some() {
        leave_a_lab_behind();
    }
    let scratch = Lab::new()?;
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "what_a_killed_process_left_is_swept"]).env(LEAVE, "1");
    let other = scratch.spawn("other", command)?;
    other.wait_for_log(" .\n", PATIENCE)?;
    let log = other.log();
    let line = log.lines().find(|line| line.ends_with(" .")).expect("its line");
    let words: Vec<&str> = line.split(' ').rev().collect();
    let traces = Traces {
        prefix: words[3].to_owned(),
        dir: words[1].into(),
        pids: vec![words[2].parse().expect("a pid")],
    };
    // A lab made meanwhile leaves it alone.
    drop(Lab::new()?);
    assert_eq!(namespaces_of(&traces.prefix).len(), 1);
    assert!(alive(traces.pids[0]) && traces.dir.exists());
    other.kill();
    drop(Lab::new()?);
    traces.assert_gone();
    Ok(())
}

/// `ip netns exec` hides bpffs; the lab's ways into a namespace do not.
#[test]
fn a_namespace_shows_its_own_interfaces_and_the_same_bpffs() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path("/sys/fs/bpf"));
    let lab = Lab::new()?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    lab.plan().veth(&End::new(&a, "only-here0"), &End::new(&b, "eth0")).apply()?;
    let same = "stat -c %d:%i /sys/fs/bpf";
    let outside = Command::new("sh").args(["-c", same]).output().expect("sh");
    let outside = String::from_utf8_lossy(&outside.stdout);
    assert_eq!(a.exec("sh", &["-c", same])?, outside);
    let script =
        format!("{same}; cat /sys/class/net/only-here0/mtu; ls /sys/class/net; ls -d {}", b.path().display());
    let output = a.command_with_sysfs("sh").args(["-c", &script]).output().expect("sh");
    let expected = format!("{outside}1500\nlo\nonly-here0\n{}\n", b.path().display());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{errors}");
    assert!(!Path::new("/sys/class/net/only-here0").exists(), "the outside was changed");
    Ok(())
}

#[test]
fn a_program_that_ends_early_is_reported_with_its_words() -> Result<()> {
    require!(Need::Root);
    let lab = Lab::new()?;
    let mut command = lab.netns("a")?.command("sh");
    command.args(["-c", "echo it went wrong >&2; exit 3"]);
    let process = lab.spawn("early", command)?;
    let text = process.wait_for("a miracle", PATIENCE, || false).expect_err("it ended").to_string();
    assert!(text.contains("it went wrong") && text.contains("exit status: 3"), "{text}");
    Ok(())
}
