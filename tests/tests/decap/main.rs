//! The decapsulator: its program packet by packet through `BPF_PROG_TEST_RUN`, then attached to a veth pair in a
//! network namespace of the test's own. Needs root.

#![expect(clippy::print_stdout, reason = "a failing row is found by what was printed last")]

mod packet;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::{
        TestRun, TestRunOptions, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use ipnet::IpNet;
use lb_common::core::decap::{BYTES, PACKETS, Reason};
use lb_userspace::{control::api::DecapView, dataplane};
use nix::sched::{CloneFlags, unshare};
use packet::{BALANCER4, BALANCER6, STRANGER4, STRANGER6, frame, inner, ip4, ip6, udp};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

const DROP: u32 = 1;
const PASS: u32 = 2;

/// How the inner packet is wrapped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tunnel {
    Ipip,
    /// Variant 1: the IP packet follows the UDP header.
    Gue1,
    /// Variant 0: four bytes of header between them.
    Gue0,
}
const TUNNELS: [Tunnel; 3] = [Tunnel::Ipip, Tunnel::Gue1, Tunnel::Gue0];

fn wrap(tunnel: Tunnel, outer6: bool, stranger: bool, tos: u8, inner: &[u8]) -> Vec<u8> {
    let protocol = if inner[0] >> 4 == 6 { 41 } else { 4 };
    let (next, payload) = match tunnel {
        Tunnel::Ipip => (protocol, inner.to_vec()),
        Tunnel::Gue1 => (17, udp(6080, inner)),
        Tunnel::Gue0 => (17, udp(6080, &[&[0, protocol, 0, 0], inner].concat())),
    };
    if outer6 {
        ip6(if stranger { STRANGER6 } else { BALANCER6 }, next, tos, &payload)
    } else {
        ip4(if stranger { STRANGER4 } else { BALANCER4 }, next, tos, &payload)
    }
}

/// The program in the kernel, attached to nothing.
struct Loaded(Ebpf);

#[derive(Debug, PartialEq)]
struct Ran {
    verdict: u32,
    frame: Vec<u8>,
    /// Packets, bytes, then refusals in the order of `Reason::ALL`.
    counted: [u64; 5],
}

impl Loaded {
    fn new() -> Self {
        let mut ebpf =
            EbpfLoader::new().load(dataplane::DECAP).expect("load the decapsulator; root is needed");
        let mut allow: LpmTrie<_, [u8; 4], u32> = LpmTrie::try_from(ebpf.map_mut("ALLOW4").unwrap()).unwrap();
        allow.insert(&Key::new(16, [198, 18, 0, 0]), 1, 0).unwrap();
        let mut allow: LpmTrie<_, [u8; 16], u32> =
            LpmTrie::try_from(ebpf.map_mut("ALLOW6").unwrap()).unwrap();
        let mut network = [0; 16];
        network[0] = 0xfd;
        allow.insert(&Key::new(64, network), 1, 0).unwrap();
        let program: &mut Xdp = ebpf.program_mut("decap").unwrap().try_into().unwrap();
        program.load().expect("the verifier accepts the decapsulator");
        let mut loaded = Self(ebpf);
        loaded.set_port(6080);
        loaded
    }

    fn set_port(&mut self, port: u32) {
        let mut settings: Array<_, u32> = Array::try_from(self.0.map_mut("SETTINGS").unwrap()).unwrap();
        settings.set(0, port, 0).unwrap();
    }

    fn counters(&self) -> [u64; 5] {
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(self.0.map("COUNTERS").unwrap()).unwrap();
        let [malformed, congestion, no_room] = Reason::ALL.map(Reason::counter);
        [PACKETS, BYTES, malformed, congestion, no_room]
            .map(|index| counters.get(&index, 0).unwrap().iter().sum())
    }

    fn run(&mut self, frame: &[u8]) -> Ran {
        let before = self.counters();
        let mut out = vec![0; frame.len() + 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let program: &mut Xdp = self.0.program_mut("decap").unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap();
        let (verdict, len) = (result.return_value, result.data_size_out as usize);
        out.truncate(len);
        let after = self.counters();
        Ran { verdict, frame: out, counted: std::array::from_fn(|i| after[i] - before[i]) }
    }

    #[track_caller]
    fn passes_untouched(&mut self, frame: &[u8]) {
        let expected = Ran { verdict: PASS, frame: frame.to_vec(), counted: [0; 5] };
        assert_eq!(self.run(frame), expected);
    }

    #[track_caller]
    fn decapsulates(&mut self, frame: &[u8], vlan: Option<u16>, inner: &[u8]) {
        let counted = [1, inner.len() as u64, 0, 0, 0];
        let expected = Ran { verdict: PASS, frame: packet::frame(vlan, inner), counted };
        assert_eq!(self.run(frame), expected);
    }

    #[track_caller]
    fn refuses(&mut self, frame: &[u8], reason: Reason) {
        let ran = self.run(frame);
        let mut counted = [0; 5];
        counted[2 + reason as usize] = 1;
        assert_eq!((ran.verdict, ran.counted), (DROP, counted));
    }
}

#[test]
fn every_combination_comes_off() {
    let mut program = Loaded::new();
    for tunnel in TUNNELS {
        for (outer6, inner6) in [(false, false), (false, true), (true, false), (true, true)] {
            for vlan in [None, Some(0x6064)] {
                println!("{tunnel:?}, outer v6 {outer6}, inner v6 {inner6}, tag {vlan:?}");
                let inner = inner(inner6, 0xb8);
                program.decapsulates(&frame(vlan, &wrap(tunnel, outer6, false, 0xb8, &inner)), vlan, &inner);
            }
        }
    }
}

#[test]
fn the_link_layers_padding_is_kept_out_of_the_count() {
    let mut program = Loaded::new();
    let inner = ip4([203, 0, 113, 5], 17, 0, &[0; 8]);
    let mut padded = frame(None, &wrap(Tunnel::Ipip, false, false, 0, &inner));
    padded.extend([0; 9]);
    let ran = program.run(&padded);
    assert_eq!((ran.verdict, ran.counted), (PASS, [1, 28, 0, 0, 0]));
    assert_eq!(ran.frame[..14 + 28], frame(None, &inner));
}

#[test]
fn only_balancers_are_listened_to() {
    let mut program = Loaded::new();
    for tunnel in TUNNELS {
        for outer6 in [false, true] {
            program.passes_untouched(&frame(None, &wrap(tunnel, outer6, true, 0, &inner(false, 0))));
        }
    }
}

#[test]
fn what_is_no_tunnel_packet_passes() {
    let mut program = Loaded::new();
    let inner = inner(false, 0);
    for outer6 in [false, true] {
        let outer = |next, payload: &[u8]| {
            frame(
                None,
                &if outer6 { ip6(BALANCER6, next, 0, payload) } else { ip4(BALANCER4, next, 0, payload) },
            )
        };
        // Another port, TCP, ICMP, a UDP header that is not there whole.
        program.passes_untouched(&outer(17, &udp(6081, &inner)));
        program.passes_untouched(&outer(6, &inner));
        program.passes_untouched(&outer(1, &inner));
        program.passes_untouched(&outer(17, &[0xc1, 0x23, 0x17]));
    }
    program.passes_untouched(&frame(None, &inner));
    // ARP, two tags, a group address.
    let mut arp = frame(None, &inner);
    arp[12..14].copy_from_slice(&[8, 6]);
    program.passes_untouched(&arp);
    let tunnelled = wrap(Tunnel::Ipip, false, false, 0, &inner);
    let mut twice = frame(Some(5), &tunnelled);
    twice.splice(12..12, [0x81, 0, 0, 9]);
    program.passes_untouched(&twice);
    let mut group = frame(None, &tunnelled);
    group[0] |= 1;
    program.passes_untouched(&group);
    program.passes_untouched(&frame(None, &tunnelled)[..33]);
    // IPIP goes on when GUE is off.
    program.set_port(0);
    program.passes_untouched(&frame(None, &wrap(Tunnel::Gue1, false, false, 0, &inner)));
    program.decapsulates(&frame(None, &tunnelled), None, &inner);
}

#[test]
fn fragments_options_and_broken_outer_headers_are_left_to_the_kernel() {
    let mut program = Loaded::new();
    for tunnel in TUNNELS {
        let outer = wrap(tunnel, false, false, 0, &inner(false, 0));
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut outer = outer.clone();
            change(&mut outer);
            frame(None, &outer)
        };
        program.passes_untouched(&changed(&|ip| {
            ip[6] = 0x20;
            packet::seal(ip);
        }));
        program.passes_untouched(&changed(&|ip| {
            ip[6..8].copy_from_slice(&[0, 5]);
            packet::seal(ip);
        }));
        program.passes_untouched(&changed(&|ip| {
            ip[0] = 0x46;
            packet::seal(ip);
        }));
        program.passes_untouched(&changed(&|ip| ip[8] ^= 4));
    }
    // The fragment header of IPv6 (44).
    let mut fragment = vec![4, 0, 0, 1, 0, 0, 0, 1];
    fragment.extend(inner(false, 0));
    program.passes_untouched(&frame(None, &ip6(BALANCER6, 44, 0, &fragment)));
    let mut version = frame(None, &wrap(Tunnel::Ipip, true, false, 0, &inner(false, 0)));
    version[14] = 0x50;
    program.passes_untouched(&version);
}

/// RFC 6040 section 4.2, figure 4, on the wire, checksum included.
#[test]
fn congestion_marks_are_combined() {
    const DSCP_IN: u8 = 0x28;
    const DSCP_OUT: u8 = 0xb8;
    let mut program = Loaded::new();
    let table: [(u8, [Option<u8>; 4]); 4] = [
        (0, [Some(0), Some(0), Some(0), None]),
        (2, [Some(2), Some(2), Some(1), Some(3)]),
        (1, [Some(1), Some(1), Some(1), Some(3)]),
        (3, [Some(3), Some(3), Some(3), Some(3)]),
    ];
    for (inside, row) in table {
        for (outside, expected) in [0u8, 2, 1, 3].into_iter().zip(row) {
            for (outer6, inner6) in [(false, false), (false, true), (true, false), (true, true)] {
                println!("inner {inside:02b}, outer {outside:02b}, outer v6 {outer6}, inner v6 {inner6}");
                let packet =
                    wrap(Tunnel::Ipip, outer6, false, DSCP_OUT | outside, &inner(inner6, DSCP_IN | inside));
                match expected {
                    Some(ecn) => {
                        program.decapsulates(&frame(None, &packet), None, &inner(inner6, DSCP_IN | ecn));
                    }
                    None => program.refuses(&frame(None, &packet), Reason::Congestion),
                }
            }
        }
    }
}

#[test]
fn malformed_tunnel_packets_are_refused() {
    let mut program = Loaded::new();
    let whole = inner(false, 0);
    for outer6 in [false, true] {
        let outer = |next, payload: &[u8]| {
            if outer6 { ip6(BALANCER6, next, 0, payload) } else { ip4(BALANCER4, next, 0, payload) }
        };
        let mut refused = |what: &str, ip: &[u8]| {
            println!("{what}, outer v6 {outer6}");
            program.refuses(&frame(None, ip), Reason::Malformed);
        };
        // The outer length ends beyond the frame, or inside the inner packet.
        let good = outer(4, &whole);
        refused("frame cut", &good[..good.len() - 1]);
        refused("inner header cut", &outer(4, &whole[..19]));
        refused("inner packet cut", &outer(4, &whole[..whole.len() - 1]));
        refused("inner IPv6 packet cut", &outer(41, &inner(true, 0)[..79]));
        refused("no inner packet", &outer(4, &[]));
        refused("IPv6 inside where IPv4 is promised", &outer(4, &inner(true, 0)));
        refused("IPv4 inside where IPv6 is promised", &outer(41, &whole));
        let mut short = whole.clone();
        short[2..4].copy_from_slice(&[0, 19]);
        refused("inner length within its header", &outer(4, &short));
        let mut version = whole.clone();
        version[0] = 0x75;
        refused("GUE variant 1 with version 7", &outer(17, &udp(6080, &version)));
        let gue0 = |header: [u8; 4]| outer(17, &udp(6080, &[&header[..], &whole[..]].concat()));
        refused("variant 0 of IPv6 with IPv4 inside", &gue0([0, 41, 0, 0]));
        refused("variant 0 of TCP", &gue0([0, 6, 0, 0]));
        refused("a control message", &gue0([0x20, 4, 0, 0]));
        refused("optional fields", &gue0([0x01, 4, 0, 0]));
        refused("flags", &gue0([0, 4, 0x80, 0]));
        refused("variant 2", &gue0([0x80, 4, 0, 0]));
        refused("GUE header cut", &outer(17, &udp(6080, &[0, 4])));
        let mut length = udp(6080, &whole);
        length[5] -= 1;
        refused("UDP length that is not the IP length's", &outer(17, &length));
    }
}

#[test]
fn balancer_and_decapsulator_share_no_map() {
    let maps = |elf| {
        let ebpf = EbpfLoader::new().load(elf).unwrap();
        let mut names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        names.sort();
        names
    };
    let decap = maps(dataplane::DECAP);
    assert_eq!(decap, ["ALLOW4", "ALLOW6", "COUNTERS", "SETTINGS"]);
    let lb = maps(dataplane::LB);
    assert!(!lb.is_empty() && decap.iter().all(|name| !lb.contains(name)), "{lb:?}");
}

/// A namespace that this thread is in, with the veth pair `lbd-a`, `lbd-b`, and a pin directory. The namespace
/// and its interfaces end with the thread.
struct Bench {
    pins: PathBuf,
}

impl Bench {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; root is needed");
        ip("link add lbd-a type veth peer name lbd-b");
        for name in ["lbd-a", "lbd-b"] {
            ip(&format!("link set {name} up"));
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = PathBuf::from(format!("/sys/fs/bpf/lbd-decap-{}-{number}", std::process::id()));
        Self { pins }
    }

    fn attach(&self, sources: &[&str], gue_port: u16) -> anyhow::Result<()> {
        let sources: Vec<IpNet> = sources.iter().map(|s| s.parse().unwrap()).collect();
        dataplane::decap::attach("lbd-b", &sources, gue_port, &self.pins)
    }

    fn show(&self) -> Vec<DecapView> {
        dataplane::decap::show(&self.pins).unwrap()
    }

    /// The pin of the link, its id in the kernel, the name of the program it holds.
    fn link(&self) -> (PathBuf, u32, String) {
        let index = nix::net::if_::if_nametoindex("lbd-b").unwrap();
        let path = self.pins.join(format!("decap/{index}/links/native-{index}"));
        let info = FdLink::from(PinnedLink::from_pin(&path).unwrap()).info().unwrap();
        let program = loaded_programs().flatten().find(|p| p.id() == info.program_id()).unwrap();
        (path, info.id(), program.name_as_str().unwrap().to_owned())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.pins);
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().expect("run ip");
    assert!(status.success(), "ip {args}");
}

/// A packet socket on an interface.
struct Wire(std::os::fd::OwnedFd);

impl Wire {
    fn open(name: &str) -> Self {
        use nix::sys::socket::*;
        use std::os::fd::AsRawFd;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .unwrap();
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: nix::net::if_::if_nametoindex(name).unwrap() as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address lives through the call and the size is its own.
        let done = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0)).unwrap();
        Self(fd)
    }

    fn send(&self, frame: &[u8]) {
        use std::os::fd::AsRawFd;
        let sent = nix::sys::socket::send(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }

    /// The next frame of the test's MAC addresses.
    fn receive(&self) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "no frame arrived");
            let mut buffer = vec![0; 2048];
            match nix::unistd::read(&self.0, &mut buffer) {
                Ok(len) if buffer[..12] == frame(None, &[0x45])[..12] => {
                    buffer.truncate(len);
                    return buffer;
                }
                Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Runs a test in a thread of its own, whose namespace ends with it.
fn in_namespace(test: impl FnOnce(&Bench) + Send + 'static) {
    let result = std::thread::spawn(move || test(&Bench::new())).join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn attached_it_stays_and_serves_until_it_is_detached() {
    in_namespace(|bench| {
        assert_eq!(bench.show(), []);
        bench.attach(&["198.18.5.5/16", "fd00::/64"], 6080).unwrap();
        let (from, to) = (Wire::open("lbd-a"), Wire::open("lbd-b"));
        let (v4, v6) = (inner(false, 0), inner(true, 0));
        from.send(&frame(None, &wrap(Tunnel::Ipip, false, false, 0, &v4)));
        assert_eq!(to.receive(), frame(None, &v4));
        from.send(&frame(None, &wrap(Tunnel::Gue1, true, false, 0, &v6)));
        assert_eq!(to.receive(), frame(None, &v6));
        let stranger = frame(None, &wrap(Tunnel::Ipip, false, true, 0, &v4));
        from.send(&stranger);
        assert_eq!(to.receive(), stranger);

        let views = bench.show();
        let [view] = &views[..] else { panic!("{views:?}") };
        assert_eq!((view.interface.as_str(), view.mode.as_str(), view.gue_port), ("lbd-b", "native", 6080));
        // Host bits are cut off.
        assert_eq!(view.sources, ["198.18.0.0/16", "fd00::/64"]);
        assert_eq!((view.packets, view.bytes), (2, (v4.len() + v6.len()) as u64));
        assert!(view.refused.len() == Reason::ALL.len() && view.refused.iter().all(|r| r.packets == 0));

        dataplane::decap::detach("lbd-b", &bench.pins).unwrap();
        assert!(!bench.pins.exists(), "the pin directory is gone");
        assert_eq!(bench.show(), []);
        let tunnelled = frame(None, &wrap(Tunnel::Ipip, false, false, 0, &v4));
        from.send(&tunnelled);
        assert_eq!(to.receive(), tunnelled);
        let error = dataplane::decap::detach("lbd-b", &bench.pins).unwrap_err().to_string();
        assert!(error.contains("lbd-b does not have"), "{error}");
    });
}

#[test]
fn the_list_changes_in_place_without_a_gap() {
    in_namespace(|bench| {
        bench.attach(&["198.18.0.0/16"], 6080).unwrap();
        let link = bench.link();
        let done = AtomicBool::new(false);
        let inner = inner(false, 0);
        let packets = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let (from, to) = (Wire::open("lbd-a"), Wire::open("lbd-b"));
                let tunnelled = frame(None, &wrap(Tunnel::Gue0, false, false, 0, &inner));
                let mut packets = 0;
                while !done.load(Ordering::Relaxed) {
                    from.send(&tunnelled);
                    assert_eq!(to.receive(), frame(None, &inner), "packet {packets}");
                    packets += 1;
                }
                packets
            });
            for _ in 0..4 {
                bench.attach(&["198.18.0.0/16", "10.0.0.0/8"], 6080).unwrap();
                bench.attach(&["0.0.0.0/0", "198.18.0.0/16", "fd00::/8"], 6080).unwrap();
                bench.attach(&["198.18.0.0/16"], 6080).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            sender.join().unwrap()
        });
        assert_eq!(bench.link(), link, "the same link all the time");
        let views = bench.show();
        assert_eq!(views[0].sources, ["198.18.0.0/16"]);
        assert_eq!(views[0].packets, packets, "the counters were kept");
        // Another port and other sources.
        bench.attach(&["::/0"], 5555).unwrap();
        let views = bench.show();
        assert_eq!((&views[0].sources[..], views[0].gue_port), (&["::/0".to_owned()][..], 5555));
    });
}

#[test]
fn a_program_of_another_version_is_replaced_in_its_link() {
    in_namespace(|bench| {
        bench.attach(&["198.18.0.0/16"], 6080).unwrap();
        let (path, id, name) = bench.link();
        assert_eq!(name, "decap");
        // Stands for the other version: any other program, under the same link.
        let mut other = EbpfLoader::new().load(dataplane::BENCH).unwrap();
        let program: &mut Xdp = other.program_mut("floor4_one").unwrap().try_into().unwrap();
        program.load().unwrap();
        let link = FdLink::from(PinnedLink::from_pin(&path).unwrap()).try_into().unwrap();
        let link = program.attach_to_link(link).unwrap();
        drop(program.take_link(link).unwrap());
        assert_eq!(bench.link(), (path.clone(), id, "floor4_one".to_owned()));
        bench.attach(&["198.18.0.0/16"], 6080).unwrap();
        assert_eq!(bench.link(), (path, id, "decap".to_owned()));
    });
}

#[test]
fn an_interface_that_is_taken_is_left_alone() {
    in_namespace(|bench| {
        let mut lb = EbpfLoader::new().load(dataplane::LB).unwrap();
        let program: &mut Xdp = lb.program_mut("lb").unwrap().try_into().unwrap();
        program.load().unwrap();
        let link = program.attach("lbd-b", XdpMode::Driver).unwrap();
        let error = bench.attach(&["198.18.0.0/16"], 6080).unwrap_err().to_string();
        assert!(error.contains("lbd-b") && error.contains("the balancer itself"), "{error}");
        let left = fs::read_dir(bench.pins.join("decap")).unwrap().count();
        assert_eq!((left, bench.show()), (0, Vec::new()));
        program.detach(link).unwrap();

        bench.attach(&["198.18.0.0/16"], 6080).unwrap();
        let elsewhere = bench.pins.join("elsewhere");
        let source = ["198.18.0.0/16".parse().unwrap()];
        let error = dataplane::decap::attach("lbd-b", &source, 6080, &elsewhere).unwrap_err().to_string();
        assert!(error.contains("pinned in another directory"), "{error}");
        assert_eq!(bench.show().len(), 1);
    });
}

#[test]
fn a_pin_of_another_namespace_is_recognised() {
    in_namespace(|bench| {
        bench.attach(&["198.18.0.0/16"], 6080).unwrap();
        let pins = bench.pins.clone();
        // The interface indexes of a fresh namespace are the same again.
        in_namespace(move |other| {
            let source = ["198.18.0.0/16".parse().unwrap()];
            let error = dataplane::decap::attach("lbd-b", &source, 6080, &pins).unwrap_err().to_string();
            assert!(error.contains("another network namespace"), "{error}");
            assert_eq!(dataplane::decap::show(&pins).unwrap(), []);
            assert!(dataplane::decap::detach("lbd-b", &pins).is_err());
            drop(other.show());
        });
        assert_eq!(bench.show().len(), 1);
    });
}

#[test]
fn an_interface_that_is_gone_leaves_nothing_behind() {
    in_namespace(|bench| {
        bench.attach(&["198.18.0.0/16"], 6080).unwrap();
        let index = nix::net::if_::if_nametoindex("lbd-b").unwrap();
        ip("link del lbd-a");
        assert_eq!(bench.show(), []);
        ip(&format!("link add lbd-b index {index} type veth peer name lbd-a"));
        assert!(dataplane::decap::detach("lbd-b", &bench.pins).is_err());
        bench.attach(&["fd00::/64"], 6080).unwrap();
        let views = bench.show();
        assert_eq!((views.len(), &views[0].sources[..]), (1, &["fd00::/64".to_owned()][..]));
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    in_namespace(|bench| {
        let error = |result: anyhow::Result<()>| result.unwrap_err().to_string();
        assert!(error(bench.attach(&[], 6080)).contains("no source"));
        let source = ["198.18.0.0/16".parse().unwrap()];
        let attach = |name: &str, pins: &Path| error(dataplane::decap::attach(name, &source, 6080, pins));
        let missing = attach("lbd-x", &bench.pins);
        assert!(missing.contains("no interface lbd-x") && missing.contains("lbd-a"), "{missing}");
        let elsewhere = attach("lbd-b", Path::new("/tmp/lbd-no-bpffs"));
        assert!(elsewhere.contains("not on a BPF file system"), "{elsewhere}");
        let many: Vec<String> = (0..=1024).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(error(bench.attach(&many, 6080)).contains("at most 1024"));
        bench.attach(&many[..1024], 6080).unwrap();
        // A full list is replaced by another full one.
        let others: Vec<String> = (0..1024).map(|i| format!("172.{}.{}.0/24", i / 256, i % 256)).collect();
        bench.attach(&others.iter().map(String::as_str).collect::<Vec<_>>(), 6080).unwrap();
        assert_eq!(bench.show()[0].sources.len(), 1024);
    });
}
