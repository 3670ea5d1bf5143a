//! NAT: what leaves is what the builder makes of the same packet with the other addresses, checksums summed anew.

use aya::maps::{Array, HashMap, PerCpuValues};
use lb_common::{
    abi::{
        BackendEntry, Control, Exit, ForwardKind, NatKey, NatOrigin, NatStats, Pool, PortRule, ServiceEntry,
        Slot, VipEntry,
    },
    core::{
        DropReason,
        nat::{Address, mark},
    },
};
use lb_tests::{
    kernel::{INGRESS, Outcome, Program, Verdict},
    packets::{FIN, Net, Packet, SYN, Transport, check, describe},
};
use lb_userspace::dataplane;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

mod across;
mod anew;
mod garbage;
mod pieces;
mod resets;
mod sessions;

const BACKEND_MAC: [u8; 12] = [2, 0, 0, 0, 9, 1, 2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 12] = [2, 0, 0, 0, 8, 1, 2, 0, 0, 0, 0, 1];
/// Ports of every VIP: `nat`; `snat`; `snat` with a backend of the other family; `nat` with hairpins.
const NAT: u16 = 80;
const SNAT: u16 = 81;
const CROSS: u16 = 82;
const HAIRPIN: u16 = 83;
/// The port behind each, if it is another.
const BEHIND: u16 = 8080;

struct Lab {
    program: Program,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn vip(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::10" } else { "192.0.2.10" })
}

fn server(v6: bool) -> IpAddr {
    ip(if v6 { "fd00::1" } else { "10.0.0.1" })
}

fn pool(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8:f::1" } else { "198.51.100.1" })
}

fn client(v6: bool, n: u8) -> IpAddr {
    ip(&if v6 { format!("2001:db8:c::{n:x}") } else { format!("203.0.113.{n}") })
}

fn address(of: IpAddr) -> Address {
    match of {
        IpAddr::V4(v4) => Address::mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => Address::read(&v6.octets()),
    }
}

fn mapped(of: IpAddr) -> [u8; 16] {
    address(of).bytes()
}

impl Lab {
    fn new() -> Self {
        Self::with_room(&[])
    }

    /// With maps of other sizes.
    fn with_room(more: &[(&'static str, u32)]) -> Self {
        let capacities = [("RING", 64), ("BACKENDS", 64), ("BACKEND_STATS", 64), ("BACKEND_NAMES", 64)];
        let capacities = [&capacities[..], more].concat();
        let mut lab = Self { program: Program::load(dataplane::LB, "lb", &capacities) };
        lab.array("CONTROL", 0, Control { flags: Control::NAT, ..Control::default() });
        for v6 in [false, true] {
            // Services 1 to 4 of IPv4, 5 to 8 of IPv6; each with the backend of its number and a ring of one slot.
            let first = if v6 { 5 } else { 1 };
            let (mut tcp, mut udp) = (
                VipEntry { vip: 1, flags: VipEntry::POOL | VipEntry::FRAGMENTS, rules: [PortRule::NONE; 4] },
                0,
            );
            tcp.rules[0] = PortRule { lo: NAT, hi: HAIRPIN, service: 0, proto: 6, pad: 0 };
            for (i, port) in [NAT, SNAT, CROSS, HAIRPIN].into_iter().enumerate() {
                let id = first + i as u32;
                // One rule for each port; UDP of `nat`, `snat` and the crossing is a VIP of its own.
                tcp.rules[i] = PortRule { lo: port, hi: port, service: id as u16, proto: 6, pad: 0 };
                udp = id;
                let to_v6 = v6 != (port == CROSS);
                let kind = if matches!(port, NAT | HAIRPIN) { ForwardKind::Nat } else { ForwardKind::Snat };
                let flags = match port {
                    NAT => 0,
                    HAIRPIN => ServiceEntry::HAIRPIN,
                    _ => ServiceEntry::SESSIONS,
                };
                let entry =
                    ServiceEntry { ring_base: id, ring_size: 1, seed: 7, flags, ..ServiceEntry::default() };
                lab.array("SERVICES", id, entry);
                lab.array("RING", id, Slot::plain(id, 0).0);
                lab.array("BACKENDS", id, backend(id, kind, server(to_v6)));
                let (v4, v6) = if to_v6 { (0, 1) } else { (1, 0) };
                let pool = Pool { base: u32::from(to_v6), v4, v6, lo: 20_000, hi: 20_063, pad: 0 };
                lab.array("POOLS", id, pool);
            }
            assert_ne!(udp, 0);
            lab.vip(vip(v6), tcp);
            let mut other = tcp;
            other.rules.iter_mut().for_each(|rule| rule.proto = 17);
            lab.vip(udp_vip(v6), other);
            lab.vip(
                pool(v6),
                VipEntry { vip: 2, flags: VipEntry::POOL | VipEntry::FRAGMENTS, rules: [PortRule::NONE; 4] },
            );
            lab.array("POOL_ADDRESSES", u32::from(v6), mapped(pool(v6)));
            for (proto, vip) in [(6, vip(v6)), (17, udp_vip(v6))] {
                let key = NatKey { address: mapped(server(v6)), port: BEHIND.to_be_bytes(), proto };
                let origin = NatOrigin {
                    vip: mapped(vip),
                    service: first,
                    port: NAT.to_be_bytes(),
                    ..NatOrigin::default()
                };
                lab.nats(key, origin);
            }
            lab.nats(NatKey { address: mapped(server(v6)), port: [0; 2], proto: 0 }, NatOrigin::default());
            for n in 0..200 {
                lab.exit(client(v6, n), 1500);
            }
            lab.exit(server(v6), 1500);
        }
        lab
    }

    fn array<V: aya::Pod>(&mut self, name: &str, index: u32, value: V) {
        let map = self.program.ebpf().map_mut(name).expect(name);
        Array::<_, V>::try_from(map).expect(name).set(index, value, 0).expect(name);
    }

    fn nats(&mut self, key: NatKey, origin: NatOrigin) {
        let map = self.program.ebpf().map_mut("NATS").expect("NATS");
        HashMap::<_, NatKey, NatOrigin>::try_from(map).expect("NATS").insert(key, origin, 0).expect("NATS");
        let bit = mark(Address::read(&key.address));
        let map = self.program.ebpf().map_mut("NAT_MARKS").expect("NAT_MARKS");
        let mut marks = Array::<_, u64>::try_from(map).expect("NAT_MARKS");
        let word = marks.get(&(bit / 64), 0).expect("a word");
        marks.set(bit / 64, word | 1 << (bit % 64), 0).expect("NAT_MARKS");
    }

    fn vip(&mut self, address: IpAddr, entry: VipEntry) {
        match address {
            IpAddr::V4(v4) => {
                let map = self.program.ebpf().map_mut("VIPS4").expect("VIPS4");
                HashMap::<_, [u8; 4], VipEntry>::try_from(map)
                    .expect("VIPS4")
                    .insert(v4.octets(), entry, 0)
                    .expect("VIPS4");
            }
            IpAddr::V6(v6) => {
                let map = self.program.ebpf().map_mut("VIPS6").expect("VIPS6");
                HashMap::<_, [u8; 16], VipEntry>::try_from(map)
                    .expect("VIPS6")
                    .insert(v6.octets(), entry, 0)
                    .expect("VIPS6");
            }
        }
    }

    /// The way to a client, asked for in the far future, so that it holds for ever.
    fn exit(&mut self, to: IpAddr, mtu: u16) {
        let exit = Exit {
            destination: mapped(to),
            asked_ns: u64::MAX / 2,
            ifindex: INGRESS,
            l2: CLIENT_MAC,
            mtu,
            ..Exit::default()
        };
        let cpus = aya::util::nr_cpus().expect("the number of CPUs");
        let mut exits = self.program.per_cpu::<Exit>("EXITS");
        let values = PerCpuValues::try_from(vec![exit; cpus]).expect("a value for each CPU");
        exits.set(Exit::place(address(to)), values, 0).expect("EXITS");
    }

    fn run(&mut self, packet: &Packet) -> Outcome {
        self.program.run(&packet.build())
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.program.per_cpu::<u64>("DROPS").get(&(reason as u32), 0).expect("DROPS").iter().sum()
    }

    fn stats(&self) -> NatStats {
        let all = self.program.per_cpu::<NatStats>("NAT_STATS").get(&0, 0).expect("NAT_STATS");
        all.iter().fold(NatStats::default(), |a, b| NatStats {
            made: a.made + b.made,
            exhausted: a.exhausted + b.exhausted,
            full: a.full + b.full,
            pad: 0,
        })
    }

    #[track_caller]
    fn drops(&mut self, packet: &Packet, reason: DropReason) {
        let before = self.dropped(reason);
        let out = self.run(packet);
        assert_eq!(out.verdict, Verdict::Drop, "{}", describe(&out.frame));
        assert_eq!(self.dropped(reason), before + 1, "{reason:?}");
    }

    /// The packet leaves as `expected`, with these MAC addresses.
    #[track_caller]
    fn becomes(&mut self, packet: &Packet, expected: &Packet, macs: [u8; 12]) {
        let out = self.run(packet);
        assert_eq!(
            out.verdict,
            Verdict::Tx,
            "in: {}\nout: {}",
            describe(&packet.build()),
            describe(&out.frame)
        );
        let ttl = match &packet.net {
            Net::V4(ip) => ip.ttl,
            Net::V6(ip) => ip.hop_limit,
        };
        let expected = expected.with_ttl(ttl - 1).with(|p| {
            p.tags.clear();
            p.dst_mac.copy_from_slice(&macs[..6]);
            p.src_mac.copy_from_slice(&macs[6..]);
        });
        let wanted = expected.build();
        assert_eq!(out.frame, wanted, "\nout:    {}\nwanted: {}", describe(&out.frame), describe(&wanted));
    }
}

fn udp_vip(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::11" } else { "192.0.2.11" })
}

fn backend(id: u32, kind: ForwardKind, at: IpAddr) -> BackendEntry {
    let mut outer_dst = [0; 16];
    match at {
        IpAddr::V4(v4) => outer_dst[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => outer_dst = v6.octets(),
    }
    BackendEntry {
        l2: BACKEND_MAC,
        ifindex: INGRESS,
        outer_dst,
        mtu: 1500,
        kind: kind as u8,
        family: if at.is_ipv6() { 6 } else { 4 },
        port: BEHIND,
        service: id,
        ..BackendEntry::default()
    }
}

/// The same packet between other ends.
fn moved(packet: &Packet, src: SocketAddr, dst: SocketAddr) -> Packet {
    packet.with(|p| {
        match (&mut p.net, src.ip(), dst.ip()) {
            (Net::V4(net), IpAddr::V4(src), IpAddr::V4(dst)) => (net.src, net.dst) = (src, dst),
            (Net::V6(net), IpAddr::V6(src), IpAddr::V6(dst)) => (net.src, net.dst) = (src, dst),
            _ => panic!("two families"),
        }
        match &mut p.transport {
            Transport::Tcp(tcp) => (tcp.src, tcp.dst) = (src.port(), dst.port()),
            Transport::Udp(udp) => (udp.src, udp.dst) = (src.port(), dst.port()),
            other => panic!("{other:?}"),
        }
    })
}

/// TCP and UDP, with and without data, options and checksum, in a VLAN and not.
fn shapes(src: SocketAddr, vip: SocketAddr, udp_vip: SocketAddr) -> Vec<(Packet, SocketAddr)> {
    let tcp = Packet::tcp(src, vip);
    let udp = Packet::udp(src, udp_vip);
    let mut all = vec![
        (tcp.with(|p| p.tcp_mut().flags = SYN), vip),
        (tcp.with(|p| p.tcp_mut().options = vec![1; 12]), vip),
        (tcp.with(|p| p.tcp_mut().payload = vec![0xff; 1001]), vip),
        (tcp.with(|p| p.tags = vec![(0x8100, 7)]), vip),
        (tcp.with_tos(0xb9).with_ttl(2), vip),
        (udp.clone(), udp_vip),
        (udp.with(|p| p.udp_mut().payload.clear()), udp_vip),
        (udp.with(|p| p.tags = vec![(0x88a8, 7), (0x8100, 8)]), udp_vip),
    ];
    if !src.is_ipv6() {
        all.push((udp.with(|p| p.udp_mut().no_checksum = true), udp_vip));
        all.push((tcp.with(|p| p.v4().options = vec![1; 8]), vip));
    }
    all
}

/// `nat`: the destination on the way in, the source on the way back, and nothing else.
#[test]
fn nat_there_and_back() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        for n in 1..20 {
            let from = SocketAddr::from((client(v6, n), 40_000 + u16::from(n) * 997));
            let to = SocketAddr::from((server(v6), BEHIND));
            for (packet, vip) in shapes(from, (vip(v6), NAT).into(), (udp_vip(v6), NAT).into()) {
                lab.becomes(&packet, &moved(&packet, from, to), BACKEND_MAC);
                let reply = moved(&packet, to, from);
                lab.becomes(&reply, &moved(&packet, vip, from), CLIENT_MAC);
            }
        }
    }
    assert_eq!(lab.stats(), NatStats::default(), "no session");
}

/// A UDP checksum that comes out as zero is sent as all ones (RFC 768); every value of the sum is met.
#[test]
fn a_udp_checksum_is_never_zero_by_accident() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let to = SocketAddr::from((server(v6), BEHIND));
        let packet = Packet::udp(from, (udp_vip(v6), NAT).into());
        // The payload that makes the sum after the change what makes the checksum zero, or nearly so.
        let plain = moved(&packet.with(|p| p.udp_mut().payload = vec![0, 0]), from, to).build();
        let at = plain.len() - 4;
        let check = u16::from_be_bytes([plain[at], plain[at + 1]]);
        for near in 0..5u16 {
            let payload = check.wrapping_add(near).wrapping_sub(2).to_be_bytes().to_vec();
            let packet = packet.with(|p| p.udp_mut().payload = payload);
            lab.becomes(&packet, &moved(&packet, from, to), BACKEND_MAC);
        }
    }
}

/// What a reply must be, and where it must not go.
#[test]
fn replies_that_do_not_leave() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let (here, there) =
            (SocketAddr::from((server(v6), BEHIND)), SocketAddr::from((client(v6, 1), 40_000)));
        let reply = Packet::tcp(here, there);
        lab.drops(&reply.with_ttl(1), DropReason::TtlExceeded);
        // Another port of the backend, another host: nothing of ours.
        for other in
            [Packet::tcp((server(v6), 22).into(), there), Packet::tcp((client(v6, 9), BEHIND).into(), there)]
        {
            let out = lab.run(&other);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, other.build()));
        }
        // Loopback forwards nothing: a reply to this host is its own.
        let local = ip(if v6 { "::1" } else { "127.0.0.1" });
        let own = Packet::tcp(here, (local, 40_000).into());
        let out = lab.run(&own);
        assert_eq!((out.verdict, out.frame), (Verdict::Pass, own.build()));
        // Larger than the way to the client takes: the backend is told.
        lab.exit(client(v6, 1), 1400);
        let before = lab.dropped(DropReason::TooBig);
        let out = lab.run(&reply.with_ip_len(1401));
        assert_eq!(out.verdict, Verdict::Tx);
        let parsed = check::parse(&out.frame).expect("a frame");
        assert_eq!((parsed.dst, check::icmp(&parsed).expect("an ICMP message").rest), (here.ip(), 1400));
        assert_eq!(lab.dropped(DropReason::TooBig), before + 1);
        lab.exit(client(v6, 1), 1500);
    }
}

/// The source a packet left with.
fn source(out: &Outcome) -> SocketAddr {
    let parsed = check::parse(&out.frame).expect("a frame");
    let port = u16::from_be_bytes([parsed.payload[0], parsed.payload[1]]);
    (parsed.src, port).into()
}

/// `snat`: a source of the pool, the same for every packet of a flow; the way back restores both ends.
#[test]
fn snat_there_and_back() {
    let mut lab = Lab::new();
    let mut made = 0;
    for v6 in [false, true] {
        for n in 1..10 {
            let from = SocketAddr::from((client(v6, n), 40_000 + u16::from(n)));
            let to = SocketAddr::from((server(v6), BEHIND));
            let mut taken = [None, None];
            for (packet, vip) in shapes(from, (vip(v6), SNAT).into(), (udp_vip(v6), SNAT).into()) {
                let out = lab.run(&packet);
                let at = source(&out);
                assert_eq!(at.ip(), pool(v6));
                assert!((20_000..=20_063).contains(&at.port()), "{at}");
                let index = usize::from(vip.ip() == udp_vip(v6));
                made += u64::from(taken[index].is_none());
                assert_eq!(*taken[index].get_or_insert(at), at, "one flow, one source");
                lab.becomes(&packet, &moved(&packet, at, to), BACKEND_MAC);
                let reply = moved(&packet, to, at);
                lab.becomes(&reply, &moved(&packet, vip, from), CLIENT_MAC);
            }
        }
    }
    assert_eq!(lab.stats().made, made);
}

/// TCP that nobody knows has no session, and begins none.
#[test]
fn only_a_beginning_makes_a_session() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let packet = Packet::tcp((client(v6, 1), 40_000).into(), (vip(v6), SNAT).into());
        lab.drops(&packet, DropReason::NatSession);
        // To the pool, from nobody's backend: the kernel's.
        let stray = Packet::tcp((server(v6), BEHIND).into(), (pool(v6), 20_000).into());
        assert_eq!(lab.run(&stray).verdict, Verdict::Pass);
    }
    assert_eq!(lab.stats(), NatStats::default());
}

/// A session of a backend that died: what is under way ends, what begins goes to its successor.
#[test]
fn a_dead_backend_takes_its_sessions_with_it() {
    let mut lab = Lab::new();
    let packet = Packet::tcp((client(false, 1), 40_000).into(), (vip(false), SNAT).into());
    let syn = packet.with(|p| p.tcp_mut().flags = SYN);
    assert_eq!(lab.run(&syn).verdict, Verdict::Tx);
    let entry = backend(2, ForwardKind::Snat, server(false));
    lab.array(
        "BACKENDS",
        2,
        BackendEntry { flags: BackendEntry::DEAD | BackendEntry::DOWN, incarnation: 1, ..entry },
    );
    lab.array("BACKENDS", 20, backend(20, ForwardKind::Snat, ip("10.0.0.20")));
    lab.array("RING", 2, Slot::plain(20, 1).0);
    lab.drops(&packet, DropReason::NatSession);
    for packet in [&syn, &packet] {
        let out = lab.run(packet);
        assert_eq!(check::parse(&out.frame).expect("a frame").dst, ip("10.0.0.20"));
    }
    assert_eq!(lab.stats().made, 2);
}

/// A backend that is a client of its own service: it sees the VIP, on a port of no service; other clients are seen as
/// themselves, without a session.
#[test]
fn hairpin() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let to = SocketAddr::from((server(v6), BEHIND));
        let vip = SocketAddr::from((vip(v6), HAIRPIN));
        for port in [40_000, HAIRPIN, NAT] {
            let from = SocketAddr::from((server(v6), port));
            let packet = Packet::tcp(from, vip).with(|p| p.tcp_mut().flags = SYN);
            let at = source(&lab.run(&packet));
            assert_eq!(at.ip(), vip.ip());
            assert!(![NAT, SNAT, CROSS, HAIRPIN].contains(&at.port()));
            assert_eq!(at.port() == port, port == 40_000, "its own port where that is free");
            lab.becomes(&packet, &moved(&packet, at, to), BACKEND_MAC);
            let reply = moved(&packet, to, at);
            lab.becomes(&reply, &moved(&packet, vip, from), CLIENT_MAC);
        }
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let packet = Packet::tcp(from, vip);
        lab.becomes(&packet, &moved(&packet, from, to), BACKEND_MAC);
    }
    assert_eq!(lab.stats().made, 6);
}

/// An IPv4 VIP with an IPv6 backend and the reverse: header, ends and checksums of the other version, there and back.
#[test]
fn crossings() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let from = SocketAddr::from((client(v6, 1), 40_000));
        for (packet, vip) in shapes(from, (vip(v6), CROSS).into(), (udp_vip(v6), CROSS).into()) {
            if matches!(&packet.transport, Transport::Udp(udp) if udp.no_checksum) {
                lab.drops(&packet, DropReason::NatUntranslatable);
                continue;
            }
            let out = lab.run(&packet);
            let at = crossed(&packet, &out, BACKEND_MAC);
            assert_eq!((at.0.ip(), at.1), (pool(!v6), (server(!v6), BEHIND).into()));
            let reply = match &packet.transport {
                Transport::Tcp(_) => Packet::tcp(at.1, at.0),
                _ => Packet::udp(at.1, at.0),
            };
            let out = lab.run(&reply);
            assert_eq!(crossed(&reply, &out, CLIENT_MAC), (vip, from));
        }
    }
}

/// The ends of a packet that changed its IP version, all else being as it was.
#[track_caller]
fn crossed(packet: &Packet, out: &Outcome, macs: [u8; 12]) -> (SocketAddr, SocketAddr) {
    assert_eq!(out.verdict, Verdict::Tx, "in: {}", describe(&packet.build()));
    let parsed = check::parse(&out.frame).expect("a frame");
    let (tos, ttl) = match &packet.net {
        Net::V4(ip) => (ip.tos, ip.ttl),
        Net::V6(ip) => (ip.traffic_class, ip.hop_limit),
    };
    assert_eq!(parsed.src.is_ipv6(), !packet.is_v6());
    assert_eq!((parsed.tos, parsed.ttl), (tos, ttl - 1));
    assert!(parsed.checksum_ok && parsed.vlans.is_empty() && parsed.padding.is_empty());
    assert_eq!([parsed.dst_mac, parsed.src_mac].concat(), macs);
    let header = match &packet.transport {
        Transport::Tcp(_) => {
            check::tcp(&parsed).expect("a TCP checksum");
            18
        }
        _ => {
            assert!(check::udp(&parsed).expect("a UDP checksum").has_checksum);
            8
        }
    };
    let sent = packet.ip();
    let segment = &sent[sent.len() - parsed.payload.len()..];
    assert_eq!(parsed.payload[header..], segment[header..], "behind ports and checksum nothing changes");
    let port = |i: usize| u16::from_be_bytes([parsed.payload[i], parsed.payload[i + 1]]);
    ((parsed.src, port(0)).into(), (parsed.dst, port(2)).into())
}

/// An ICMP error about a packet.
fn error(from: IpAddr, to: IpAddr, about: &[u8]) -> Packet {
    let number = if from.is_ipv6() { 58 } else { 1 };
    // Port unreachable.
    let mut bytes =
        vec![if from.is_ipv6() { 1 } else { 3 }, if from.is_ipv6() { 4 } else { 3 }, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(about);
    let mut covered = bytes.clone();
    if let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) {
        covered.extend_from_slice(&[0; 1][..bytes.len() % 2]);
        covered.extend_from_slice(&from.octets());
        covered.extend_from_slice(&to.octets());
        covered.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        covered.extend_from_slice(&58u32.to_be_bytes());
    }
    let mut sum: u32 =
        covered.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[2..4].copy_from_slice(&(!sum as u16).to_be_bytes());
    Packet::between(from, to, Transport::Other(number, bytes))
}

/// Errors from the backend's side quote what the client sent, with eight bytes of it and with more.
#[test]
fn errors_from_the_backends() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let router = ip(if v6 { "fd00::fe" } else { "10.0.0.254" });
        for (port, n) in [(NAT, 1), (SNAT, 2)] {
            let from = SocketAddr::from((client(v6, n), 40_000));
            let to = SocketAddr::from((server(v6), BEHIND));
            for (packet, vip) in shapes(from, (vip(v6), port).into(), (udp_vip(v6), port).into()) {
                let packet = packet.with(|p| p.tags.clear());
                let out = lab.run(&packet);
                let at = source(&out);
                let headers = if v6 { 40 } else { usize::from(packet.ip()[0] & 0xf) * 4 };
                let least = headers + 8;
                for len in [least, packet.ip().len().min(500)] {
                    let inside = moved(&packet, at, to).with_ttl(9).ip();
                    let known = moved(&packet, from, vip).with_ttl(9).ip();
                    for reporter in [to.ip(), router] {
                        let seen = if reporter == to.ip() { vip.ip() } else { reporter };
                        let inner = error(reporter, at.ip(), &inside[..len]);
                        let outer = error(seen, from.ip(), &known[..len]);
                        lab.becomes(&inner, &outer, CLIENT_MAC);
                    }
                }
            }
        }
        // About somebody else's packet.
        let strange = Packet::tcp((client(v6, 1), 1).into(), (client(v6, 2), 2).into()).ip();
        let stray = error(router, client(v6, 1), &strange);
        assert_eq!(lab.run(&stray).verdict, Verdict::Pass);
    }
}
