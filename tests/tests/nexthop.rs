//! Next hops against a real kernel: hosts are network namespaces joined by veth pairs.
//!
//! Needs root. Each test makes its own namespaces, named after this process, and removes them. The
//! watch runs on a thread inside the balancer's namespace, as the daemon would.

use lb_userspace::net::{
    bpffs::{self, Ensured},
    link::{self, LinkEvent},
    nexthop::{NextHop, Unresolved},
    watch::{LinkEvents, NextHopHandle, NextHopTask, NextHopUpdates},
};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    collections::HashMap,
    fs::File,
    io::Write as _,
    net::{IpAddr, UdpSocket},
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// For what takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A balancer `lb` with two interfaces: `e0` to host `a`, `e1` to host `b`. In 10.77.0.0/24 and
/// fd77::/64, and in 10.78.0.0/24 and fd78::/64, the balancer is 1 and the host is 2.
struct Net {
    id: String,
}

const LB_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 1];
const A_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 2];
const LB1_MAC: [u8; 6] = [2, 0x78, 0, 0, 0, 1];
const B_MAC: [u8; 6] = [2, 0x78, 0, 0, 0, 2];

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn output(command: &str) -> Output {
    Command::new("ip").args(command.split_whitespace()).output().expect("cannot run `ip` (iproute2)")
}

fn ip(command: &str) -> String {
    let out = output(command);
    assert!(out.status.success(), "ip {command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Says so where no test harness swallows it.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

impl Net {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let net = Self { id: format!("lbnh-{}-{number}", std::process::id()) };
        for host in ["lb", "a", "b"] {
            ip(&format!("netns add {}-{host}", net.id));
            net.ip(host, "link set lo up");
        }
        net.wire("e0", "a", "77", LB_MAC, A_MAC);
        net.wire("e1", "b", "78", LB1_MAC, B_MAC);
        net
    }

    /// Joins the balancer and a host.
    fn wire(&self, ifname: &str, host: &str, number: &str, lb_mac: [u8; 6], host_mac: [u8; 6]) {
        let (id, lb, far) = (&self.id, text(lb_mac), text(host_mac));
        ip(&format!(
            "link add {ifname} netns {id}-lb address {lb} type veth peer name e0 netns {id}-{host} address {far}"
        ));
        for (host, ifname, last) in [("lb", ifname, 1), (host, "e0", 2)] {
            // Without duplicate address detection, the addresses serve at once.
            self.ip(host, &format!("link set {ifname} addrgenmode none"));
            self.ip(host, &format!("link set {ifname} up"));
            self.ip(host, &format!("addr add 10.{number}.0.{last}/24 dev {ifname}"));
            for address in [format!("fe80::{last}"), format!("fd{number}::{last}")] {
                self.ip(host, &format!("addr add {address}/64 dev {ifname} nodad"));
            }
        }
    }

    fn ip(&self, host: &str, command: &str) -> String {
        ip(&format!("-n {}-{host} {command}", self.id))
    }

    /// Runs something on a thread inside a host.
    fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}-{host}", self.id);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let file = File::open(&path).unwrap();
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Has a host send a packet, and so ask for the receiver's MAC address and tell its own.
    fn speak(&self, host: &str, to: &str) {
        self.inside(host, || {
            let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let to: IpAddr = to.parse().unwrap();
            UdpSocket::bind(any).unwrap().send_to(b"hello", (to, 9)).unwrap();
        });
    }

    /// Runs a test inside the balancer.
    fn watch<F: Future<Output = ()>>(&self, test: impl FnOnce(Watch) -> F + Send) {
        self.inside("lb", || in_runtime(test));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in ["lb", "a", "b"] {
            output(&format!("netns del {}-{host}", self.id));
        }
    }
}

fn in_runtime<F: Future<Output = ()>>(test: impl FnOnce(Watch) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (handle, updates) = NextHopTask::spawn().unwrap();
        let links = handle.link_events();
        test(Watch { handle, updates, links, known: HashMap::new() }).await;
    });
}

struct Watch {
    handle: NextHopHandle,
    updates: NextHopUpdates,
    links: LinkEvents,
    known: HashMap<IpAddr, Result<NextHop, Unresolved>>,
}

impl Watch {
    fn destinations(&self, addresses: &[&str]) {
        self.handle.set_destinations(addresses.iter().map(|a| a.parse().unwrap()).collect());
    }

    /// Waits until the result for a destination is as expected.
    async fn until(&mut self, address: &str, expected: impl Fn(&Result<NextHop, Unresolved>) -> bool) {
        let address: IpAddr = address.parse().unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.known.get(&address).is_some_and(&expected) {
            match tokio::time::timeout_at(deadline, self.updates.recv()).await {
                Ok(Some(news)) => self.known.extend(news),
                Ok(None) => panic!("the watch ended"),
                Err(_) => panic!("{address}: still {:?}", self.known.get(&address)),
            }
        }
    }

    async fn until_mac(&mut self, address: &str, mac: [u8; 6]) -> NextHop {
        self.until(address, |result| result.as_ref().is_ok_and(|hop| hop.dst_mac == mac)).await;
        self.known[&address.parse::<IpAddr>().unwrap()].clone().unwrap()
    }

    async fn until_error(&mut self, address: &str, error: Unresolved) {
        self.until(address, |result| result.as_ref() == Err(&error)).await;
    }
}

fn direct(gateway: &str, ifname: &str) -> (IpAddr, String) {
    (gateway.parse().unwrap(), ifname.to_owned())
}

#[test]
fn neighbours_of_both_families_are_found_without_traffic() {
    let net = Net::new();
    net.watch(async |mut watch| {
        watch.destinations(&["10.77.0.2", "fd77::2", "10.78.0.2", "fd78::2"]);
        assert!(watch.handle.settled(PATIENCE).await);
        // Settled means that the answers are here already.
        watch.known.extend(watch.updates.try_recv().unwrap());
        let expected = |address: &str| {
            let first = address.contains("77");
            let source = address.replace(".2", ".1").replace("::2", "::1");
            NextHop {
                ifindex: link::ifindex_by_name(if first { "e0" } else { "e1" }).unwrap(),
                ifname: if first { "e0" } else { "e1" }.to_owned(),
                src_mac: if first { LB_MAC } else { LB1_MAC },
                dst_mac: if first { A_MAC } else { B_MAC },
                vlan: None,
                mtu: 1500,
                source: Some(source.parse().unwrap()),
            }
        };
        for address in ["10.77.0.2", "fd77::2", "10.78.0.2", "fd78::2"] {
            assert_eq!(watch.known[&address.parse::<IpAddr>().unwrap()], Ok(expected(address)), "{address}");
        }
        watch.destinations(&[]);
        assert!(watch.handle.settled(PATIENCE).await);
    });
}

#[test]
fn a_gateway_answers_for_what_lies_behind_it() {
    let net = Net::new();
    net.ip("lb", "route add 10.99.0.0/24 via 10.77.0.2 mtu 1400");
    net.ip("lb", "route add fd99::/64 via fd77::2");
    net.ip("lb", "route add 10.98.0.0/24 via inet6 fd77::2");
    net.watch(async |mut watch| {
        watch.destinations(&["10.99.0.5", "fd99::5", "10.98.0.5"]);
        let hop = watch.until_mac("10.99.0.5", A_MAC).await;
        assert_eq!((hop.ifname.as_str(), hop.mtu, hop.src_mac), ("e0", 1400, LB_MAC));
        assert_eq!(hop.source, Some("10.77.0.1".parse().unwrap()));
        assert_eq!(watch.until_mac("fd99::5", A_MAC).await.ifname, "e0");
        assert_eq!(watch.until_mac("10.98.0.5", A_MAC).await.ifname, "e0");
        // The same link, a smaller MTU.
        net.ip("lb", "link set e0 mtu 1300");
        watch.until("10.99.0.5", |result| result.as_ref().is_ok_and(|hop| hop.mtu == 1300)).await;
    });
}

#[test]
fn a_new_route_takes_over() {
    let net = Net::new();
    net.ip("lb", "route add 10.99.0.0/24 via 10.77.0.2");
    net.ip("lb", "route add fd99::/64 via fd77::2");
    net.watch(async |mut watch| {
        watch.destinations(&["10.99.0.5", "fd99::5"]);
        watch.until_mac("10.99.0.5", A_MAC).await;
        watch.until_mac("fd99::5", A_MAC).await;
        net.ip("lb", "route replace 10.99.0.0/24 via 10.78.0.2");
        net.ip("lb", "route replace fd99::/64 via fd78::2");
        assert_eq!(watch.until_mac("10.99.0.5", B_MAC).await.src_mac, LB1_MAC);
        watch.until_mac("fd99::5", B_MAC).await;
        // A longer prefix in another table, by a rule.
        net.ip("lb", "route add 10.99.0.5/32 via 10.77.0.2 table 100");
        net.ip("lb", "rule add to 10.99.0.0/24 lookup 100 priority 50");
        watch.until_mac("10.99.0.5", A_MAC).await;
        net.ip("lb", "rule del priority 50");
        watch.until_mac("10.99.0.5", B_MAC).await;
        net.ip("lb", "route del 10.99.0.0/24");
        watch.until_error("10.99.0.5", Unresolved::NoRoute).await;
    });
}

#[test]
fn a_changed_nexthop_object_is_noticed() {
    let net = Net::new();
    net.ip("lb", "nexthop add id 1 via 10.77.0.2 dev e0");
    net.ip("lb", "route add 10.99.0.0/24 nhid 1");
    net.watch(async |mut watch| {
        watch.destinations(&["10.99.0.5"]);
        watch.until_mac("10.99.0.5", A_MAC).await;
        net.ip("lb", "nexthop replace id 1 via 10.78.0.2 dev e1");
        watch.until_mac("10.99.0.5", B_MAC).await;
    });
}

#[test]
fn another_network_card_is_noticed_when_the_kernel_learns_of_it() {
    let net = Net::new();
    net.watch(async |mut watch| {
        watch.destinations(&["10.77.0.2"]);
        watch.until_mac("10.77.0.2", A_MAC).await;
        let other = [2, 0x77, 0, 0, 0, 0xee];
        net.ip("a", &format!("link set e0 address {}", text(other)));
        net.ip("a", "neigh flush dev e0");
        net.speak("a", "10.77.0.1");
        let start = Instant::now();
        watch.until_mac("10.77.0.2", other).await;
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // The balancer's own card, too.
        let own = [2, 0x77, 0, 0, 0, 0xdd];
        net.ip("lb", &format!("link set e0 address {}", text(own)));
        watch.until("10.77.0.2", |result| result.as_ref().is_ok_and(|hop| hop.src_mac == own)).await;
    });
}

#[test]
fn a_link_that_goes_down_takes_its_next_hops_along_until_it_is_up_again() {
    let net = Net::new();
    net.watch(async |mut watch| {
        watch.destinations(&["10.77.0.2", "fd77::2", "10.78.0.2"]);
        let down = || Unresolved::LinkDown("e0".to_owned());
        watch.until_mac("10.77.0.2", A_MAC).await;
        watch.until_mac("fd77::2", A_MAC).await;
        watch.until_mac("10.78.0.2", B_MAC).await;
        // The cable.
        net.ip("a", "link set e0 down");
        watch.until_error("10.77.0.2", down()).await;
        watch.until_error("fd77::2", down()).await;
        net.ip("a", "link set e0 up");
        watch.until_mac("10.77.0.2", A_MAC).await;
        // The switch on this side; the route goes with it.
        net.ip("lb", "link set e0 down");
        watch.until_error("10.77.0.2", down()).await;
        net.ip("lb", "link set e0 up");
        watch.until_mac("10.77.0.2", A_MAC).await;
        assert!(watch.known[&"10.78.0.2".parse::<IpAddr>().unwrap()].is_ok());
    });
}

#[test]
fn an_absent_host_is_told_and_found_when_it_comes() {
    let net = Net::new();
    net.watch(async |mut watch| {
        watch.destinations(&["10.77.0.3", "fd77::3"]);
        assert!(!watch.handle.settled(Duration::from_millis(500)).await);
        for address in ["10.77.0.3", "fd77::3"] {
            let (gateway, ifname) = direct(address, "e0");
            let error = Unresolved::NoNeighbour { gateway, ifname };
            assert!(error.to_string().starts_with(address), "{error}");
            watch.until_error(address, error).await;
        }
        assert!(watch.handle.settled(PATIENCE).await);
        net.ip("a", "addr add 10.77.0.3/24 dev e0");
        net.ip("a", "addr add fd77::3/64 dev e0 nodad");
        watch.until_mac("10.77.0.3", A_MAC).await;
        watch.until_mac("fd77::3", A_MAC).await;
    });
}

#[test]
fn static_neighbours_are_used_and_left_alone() {
    let net = Net::new();
    let (first, second) = ([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2]);
    for address in ["10.77.0.9", "fd77::9"] {
        net.ip("lb", &format!("neigh add {address} lladdr {} dev e0 nud permanent", text(first)));
    }
    net.watch(async |mut watch| {
        watch.destinations(&["10.77.0.9", "fd77::9", "10.77.0.8"]);
        watch.until_mac("10.77.0.9", first).await;
        watch.until_mac("fd77::9", first).await;
        // One that is made while its host is being asked for.
        watch.until("10.77.0.8", |result| result.is_err()).await;
        net.ip("lb", &format!("neigh replace 10.77.0.8 lladdr {} dev e0 nud permanent", text(first)));
        watch.until_mac("10.77.0.8", first).await;
        net.ip("lb", &format!("neigh replace 10.77.0.9 lladdr {} dev e0 nud permanent", text(second)));
        watch.until_mac("10.77.0.9", second).await;
        // Longer than the pause between two probes of a stale neighbour.
        tokio::time::sleep(Duration::from_secs(6)).await;
        for address in ["10.77.0.9", "fd77::9", "10.77.0.8"] {
            let entry = net.ip("lb", &format!("neigh show {address} dev e0"));
            assert!(entry.contains("PERMANENT"), "{entry}");
        }
    });
}

#[test]
fn a_stale_neighbour_is_confirmed() {
    let net = Net::new();
    net.ip("lb", &format!("neigh add 10.77.0.2 lladdr {} dev e0 nud stale", text(A_MAC)));
    net.watch(async |mut watch| {
        watch.destinations(&["10.77.0.2"]);
        watch.until_mac("10.77.0.2", A_MAC).await;
        let deadline = Instant::now() + PATIENCE;
        let confirmed = || net.ip("lb", "neigh show 10.77.0.2 dev e0").contains("REACHABLE");
        while !confirmed() {
            assert!(Instant::now() < deadline, "nobody probed the stale neighbour");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn what_leads_nowhere_says_why() {
    let net = Net::new();
    for family in [["10.9", ".0.0/24"], ["fd9", "::/64"]] {
        for (number, kind) in ["blackhole", "unreachable", "prohibit"].iter().enumerate() {
            net.ip("lb", &format!("route add {kind} {}{number}{}", family[0], family[1]));
        }
    }
    // A device without Ethernet, and a route through a tunnel of its own.
    net.ip("lb", "tuntap add tun0 mode tun");
    net.ip("lb", "link set tun0 up");
    net.ip("lb", "route add 10.93.0.0/24 dev tun0");
    net.watch(async |mut watch| {
        watch.destinations(&[
            "10.90.0.1",
            "10.91.0.1",
            "10.92.0.1",
            "fd90::1",
            "fd91::1",
            "fd92::1",
            "10.93.0.1",
            "10.77.0.1",
            "fd77::1",
            "10.77.0.255",
            "203.0.113.1",
            "2001:db8::1",
            "127.0.0.1",
        ]);
        for family in [["10.9", ".0.1"], ["fd9", "::1"]] {
            let address = |number: u8| format!("{}{number}{}", family[0], family[1]);
            watch.until_error(&address(0), Unresolved::Blackhole).await;
            watch.until_error(&address(1), Unresolved::Unreachable).await;
            watch.until_error(&address(2), Unresolved::Prohibit).await;
        }
        watch.until_error("10.93.0.1", Unresolved::NotEthernet("tun0".to_owned())).await;
        for address in ["10.77.0.1", "fd77::1", "127.0.0.1"] {
            watch.until_error(address, Unresolved::Local).await;
        }
        watch.until_error("10.77.0.255", Unresolved::NotUnicast).await;
        watch.until_error("203.0.113.1", Unresolved::NoRoute).await;
        watch.until_error("2001:db8::1", Unresolved::NoRoute).await;
        // A default route leads there.
        net.ip("lb", "route add default via 10.78.0.2");
        watch.until_mac("203.0.113.1", B_MAC).await;
        // The balancer gives up an address; the host takes it.
        net.ip("lb", "addr add 10.77.0.50/32 dev lo");
        watch.destinations(&["10.77.0.50"]);
        watch.until_error("10.77.0.50", Unresolved::Local).await;
        net.ip("a", "addr add 10.77.0.50/24 dev e0");
        net.ip("lb", "addr del 10.77.0.50/32 dev lo");
        watch.until_mac("10.77.0.50", A_MAC).await;
    });
}

#[test]
fn a_vlan_device_is_its_parent_and_a_tag() {
    let net = Net::new();
    let id = &net.id;
    let made = output(&format!("-n {id}-lb link add link e0 name e0.100 type vlan id 100"));
    if !made.status.success() {
        let error = String::from_utf8_lossy(&made.stderr);
        assert!(error.contains("Unknown device type") || error.contains("not supported"), "{error}");
        return skipped("next hops over a VLAN device: this kernel has none (CONFIG_VLAN_8021Q)");
    }
    net.ip("a", "link add link e0 name e0.100 type vlan id 100");
    for (host, last) in [("lb", 1), ("a", 2)] {
        net.ip(host, "link set e0.100 up");
        net.ip(host, &format!("addr add 10.79.0.{last}/24 dev e0.100"));
    }
    net.ip("lb", "link set e0.100 mtu 1400");
    net.ip("lb", "link add link e0.100 name inner type vlan id 7");
    net.ip("lb", "link set inner up");
    net.ip("lb", "route add 10.80.0.0/24 dev inner");
    net.watch(async |mut watch| {
        watch.destinations(&["10.79.0.2", "10.80.0.2"]);
        let hop = watch.until_mac("10.79.0.2", A_MAC).await;
        let e0 = link::ifindex_by_name("e0").unwrap();
        assert_eq!((hop.ifindex, hop.ifname.as_str(), hop.vlan, hop.mtu), (e0, "e0", Some(100), 1400));
        watch.until_error("10.80.0.2", Unresolved::NestedVlan("inner".to_owned())).await;
        net.ip("a", "link set e0 down");
        watch.until("10.79.0.2", |result| matches!(result, Err(Unresolved::LinkDown(_)))).await;
    });
}

#[test]
fn interfaces_are_followed() {
    let net = Net::new();
    net.watch(async |mut watch| {
        assert!(watch.handle.settled(PATIENCE).await);
        net.ip("lb", "link add extra type veth peer name extra-peer");
        let mut seen = Vec::new();
        let appeared = |seen: &[LinkEvent]| {
            seen.iter().any(|event| matches!(event, LinkEvent::Appeared(link) if link.name == "extra"))
        };
        while !appeared(&seen) {
            seen.extend(tokio::time::timeout(PATIENCE, watch.links.recv()).await.unwrap().unwrap());
        }
        assert!(watch.handle.links().require("extra").is_ok());
        let error = link::ifindex_by_name("eth9").unwrap_err().to_string();
        assert!(error.contains("'eth9'") && error.contains("e0, ") && error.contains("extra"), "{error}");
        let ifindex = link::ifindex_by_name("extra").unwrap();
        net.ip("lb", "link del extra");
        let gone = LinkEvent::Disappeared { ifindex, name: "extra".to_owned() };
        let mut seen = Vec::new();
        while !seen.contains(&gone) {
            seen.extend(tokio::time::timeout(PATIENCE, watch.links.recv()).await.unwrap().unwrap());
        }
        assert!(watch.handle.links().by_name("extra").is_none());
    });
}

/// Leaves the calling thread no capability but CAP_NET_ADMIN.
fn keep_only_net_admin() {
    const CAP_NET_ADMIN: u32 = 12;
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    // Effective, permitted, inheritable: bits 0 to 31, then the same of bits 32 to 63.
    let bits: [u32; 6] = [1 << CAP_NET_ADMIN, 1 << CAP_NET_ADMIN, 0, 0, 0, 0];
    // SAFETY: both pointers are to arrays of the size that version 3 of the call reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), bits.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn cap_net_admin_is_all_it_takes() {
    let net = Net::new();
    net.inside("lb", || {
        keep_only_net_admin();
        in_runtime(async |mut watch: Watch| {
            watch.destinations(&["10.77.0.2", "fd78::2"]);
            watch.until_mac("10.77.0.2", A_MAC).await;
            watch.until_mac("fd78::2", B_MAC).await;
        });
    });
}

#[test]
fn many_destinations_and_a_storm_of_events() {
    const HOSTS: usize = 2000;
    let net = Net::new();
    net.ip("lb", "route add 10.100.0.0/16 via 10.77.0.2");
    let addresses: Vec<String> = (0..HOSTS).map(|n| format!("10.100.{}.{}", n / 250, n % 250 + 1)).collect();
    net.watch(async |mut watch| {
        watch.destinations(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(watch.handle.settled(PATIENCE).await);
        let batch = std::env::temp_dir().join(format!("{}-batch", net.id));
        for (gateway, mac) in [("10.78.0.2", B_MAC), ("10.77.0.2", A_MAC), ("10.78.0.2", B_MAC)] {
            let lines = addresses.iter().map(|a| format!("route replace {a}/32 via {gateway}\n"));
            std::fs::write(&batch, lines.collect::<String>()).unwrap();
            net.ip("lb", &format!("-batch {}", batch.display()));
            for address in &addresses {
                watch.until_mac(address, mac).await;
            }
        }
        std::fs::remove_file(&batch).unwrap();
    });
}

#[test]
fn the_watch_ends_with_its_handle() {
    let net = Net::new();
    net.watch(async |mut watch| {
        drop(watch.handle);
        let end = tokio::time::timeout(PATIENCE, watch.updates.recv()).await.unwrap();
        assert_eq!(end, None);
        assert_eq!(tokio::time::timeout(PATIENCE, watch.links.recv()).await.unwrap(), None);
    });
}

#[test]
fn a_missing_bpf_file_system_is_mounted() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    // In a mount namespace of its own, where nobody misses what is unmounted.
    let work = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let unmount = || while umount2(bpffs::MOUNT_POINT, MntFlags::MNT_DETACH).is_ok() {};
        unmount();
        let pin_dir = Path::new("/sys/fs/bpf/lbd-test/deep");
        assert!(!bpffs::is_bpffs(pin_dir).unwrap());
        assert_eq!(bpffs::ensure(pin_dir).unwrap(), Ensured::Mounted);
        assert!(bpffs::is_bpffs(pin_dir).unwrap() && pin_dir.is_dir());
        assert_eq!(bpffs::ensure(pin_dir).unwrap(), Ensured::Present);
        // Without the right to mount, the advice is what to type.
        unmount();
        keep_only_net_admin();
        let error = bpffs::ensure(pin_dir).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
    };
    std::thread::spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
