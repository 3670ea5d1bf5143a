//! Questions for virtual addresses of VRRP, and claims to them. Frames and answers are written out here, byte by byte.

use crate::{icmp::stay_on_one_cpu, rig::Rig};
use lb_common::{
    abi::{AddressEntry, AddressKey, Lease, VipEntry},
    core::DropReason,
    csum, hash,
};
use lb_tests::{
    kernel::{Counters, Host, INGRESS, Verdict, vip},
    packets::{Transport, describe},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

type Mac = [u8; 6];

const OURS: Mac = [2, 0, 0, 0, 7, 7];
const THEIRS: Mac = [2, 0, 0, 0, 0, 9];
const BROADCAST: Mac = [0xff; 6];
const FOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);
const CLIENT4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const FRESH: Lease = Lease::until(u64::MAX / 2, true);

const ANSWERED: DropReason = DropReason::NeighbourAnswered;
const UNANSWERED: DropReason = DropReason::NeighbourUnanswered;

fn key(address: IpAddr, vlan: u32) -> AddressKey {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    AddressKey { address, ifindex: INGRESS, vlan }
}

fn entry(flags: u32) -> AddressEntry {
    AddressEntry { lease: 3, flags, mac: OURS, pad: [0; 2] }
}

/// Both addresses, and one of a service, untagged and in two kinds of VLAN.
fn table(flags: u32) -> BTreeMap<AddressKey, AddressEntry> {
    let addresses = [FOUR.into(), SIX.into(), vip(10, false), vip(10, true)];
    let vlans = [0, 7, 5 << 16 | 6];
    addresses.iter().flat_map(|a| vlans.map(|vlan| (key(*a, vlan), entry(flags)))).collect()
}

fn rig(flags: u32, lease: Lease) -> Rig {
    let mut rig = Rig::new();
    rig.balancer.set_addresses(&table(flags), &BTreeMap::from([(3, lease)]));
    rig.balancer.claims();
    rig
}

fn link(to: Mac, from: Mac, tags: &[u8], kind: [u8; 2]) -> Vec<u8> {
    [&to[..], &from, tags, &kind].concat()
}

const TAGS: [&[u8]; 4] = [
    &[],
    &[0x81, 0, 0x60, 7],
    // Priority alone.
    &[0x81, 0, 0xe0, 0],
    &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6],
];

struct Arp {
    to: Mac,
    operation: u8,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
}

impl Arp {
    fn request(address: Ipv4Addr) -> Self {
        Self { to: BROADCAST, operation: 1, sender: (THEIRS, CLIENT4), target: ([0; 6], address) }
    }

    fn frame(&self, tags: &[u8]) -> Vec<u8> {
        let mut frame = link(self.to, self.sender.0, tags, [8, 6]);
        frame.extend([0, 1, 8, 0, 6, 4, 0, self.operation]);
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac);
            frame.extend(address.octets());
        }
        frame
    }
}

fn with_checksum(mut message: Vec<u8>, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    message[2..4].fill(0);
    let parts: [&[u8]; 5] = [&message, &source.octets(), &destination.octets(), &length, &[0, 58]];
    let sum: u64 = parts.iter().map(|part| csum::sum_bytes(part)).sum();
    message[2..4].copy_from_slice(&csum::finish(sum).to_ne_bytes());
    message
}

fn ipv6(to: Mac, from: Mac, tags: &[u8], ends: (Ipv6Addr, Ipv6Addr), hops: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = link(to, from, tags, [0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend([58, hops]);
    frame.extend(ends.0.octets());
    frame.extend(ends.1.octets());
    frame.extend(message);
    frame
}

#[derive(Clone)]
struct Solicitation {
    target: Ipv6Addr,
    source: Ipv6Addr,
    /// To the target itself: a probe.
    unicast: bool,
    options: Vec<u8>,
    hops: u8,
}

impl Solicitation {
    fn of(target: Ipv6Addr) -> Self {
        let options = [&[1, 1][..], &THEIRS].concat();
        Self { target, source: CLIENT6, unicast: false, options, hops: 255 }
    }

    fn frame(&self, tags: &[u8]) -> Vec<u8> {
        let [.., a, b, c] = self.target.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        let (to, destination) =
            if self.unicast { (OURS, self.target) } else { ([0x33, 0x33, 0xff, a, b, c], group) };
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(self.target.octets());
        message.extend(&self.options);
        let message = with_checksum(message, self.source, destination);
        ipv6(to, THEIRS, tags, (self.source, destination), self.hops, &message)
    }

    fn answer(&self, tags: &[u8], flags: u8) -> Vec<u8> {
        let (to, destination) = match self.source.is_unspecified() {
            true => ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap()),
            false => (THEIRS, self.source),
        };
        let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
        message.extend(self.target.octets());
        message.extend([2, 1]);
        message.extend(OURS);
        let message = with_checksum(message, self.target, destination);
        ipv6(to, OURS, tags, (self.target, destination), 255, &message)
    }
}

#[track_caller]
fn answers(rig: &mut Rig, what: &str, frame: &[u8], expected: &[u8]) {
    let (outcome, moved) = rig.run(frame);
    assert_eq!(outcome.verdict, Verdict::Tx, "{what}: {moved:?}\n{}", describe(frame));
    assert_eq!(moved, Counters::one(ANSWERED.into(), 0), "{what}");
    assert_eq!(outcome.frame, expected, "{what}\nin: {}\nout: {}", describe(frame), describe(&outcome.frame));
}

#[test]
fn arp_is_answered() {
    let mut rig = rig(AddressEntry::ANSWER, FRESH);
    let IpAddr::V4(served) = vip(10, false) else { unreachable!() };
    for address in [FOUR, served] {
        for tags in TAGS {
            // To everybody, and the probe of a host that knows the answer; a host that has no address yet.
            for (to, sender) in [(BROADCAST, CLIENT4), (OURS, CLIENT4), (BROADCAST, Ipv4Addr::UNSPECIFIED)] {
                let request = Arp { to, sender: (THEIRS, sender), ..Arp::request(address) };
                let reply =
                    Arp { to: THEIRS, operation: 2, sender: (OURS, address), target: (THEIRS, sender) };
                answers(&mut rig, "a request", &request.frame(tags), &reply.frame(tags));
                // Padding stays.
                let pad = |frame: Vec<u8>| [&frame[..], &[0xee; 18]].concat();
                answers(&mut rig, "padded", &pad(request.frame(tags)), &pad(reply.frame(tags)));
            }
        }
    }
    assert_eq!(rig.balancer.claims(), []);
}

#[test]
fn other_arp_is_the_kernels() {
    let mut rig = rig(AddressEntry::ANSWER, FRESH);
    let elsewhere = Ipv4Addr::new(192, 0, 2, 98);
    rig.passes("another address", &Arp::request(elsewhere).frame(&[]));
    rig.passes("another VLAN", &Arp::request(FOUR).frame(&[0x81, 0, 0, 8]));
    rig.passes("a reply", &Arp { operation: 2, ..Arp::request(FOUR) }.frame(&[]));
    let own = Arp { sender: (OURS, FOUR), target: ([0; 6], FOUR), ..Arp::request(FOUR) };
    rig.passes("this node's own announcement", &own.frame(&[]));
    let frame = Arp::request(FOUR).frame(&[]);
    for at in 14..20 {
        let mut other = frame.clone();
        other[at] ^= 1;
        rig.passes("no ARP of IPv4 over Ethernet", &other);
    }
    for len in 14..frame.len() {
        rig.passes("cut", &frame[..len]);
    }
    let mut group = Arp::request(FOUR);
    group.sender.0[0] |= 1;
    rig.drops("a sender that is a group", &group.frame(&[]), UNANSWERED);
    assert_eq!(rig.balancer.claims(), []);

    rig.balancer.set_addresses(&BTreeMap::new(), &BTreeMap::new());
    rig.passes("no addresses", &frame);
}

#[test]
fn neighbour_solicitations_are_answered() {
    const FLAGS: u8 = 0x60;
    let IpAddr::V6(served) = vip(10, true) else { unreachable!() };
    for (flag, router) in [(0, 0), (AddressEntry::ROUTER, 0x80)] {
        let mut rig = rig(AddressEntry::ANSWER | flag, FRESH);
        for target in [SIX, served] {
            for tags in TAGS {
                let asked = Solicitation::of(target);
                answers(&mut rig, "asked", &asked.frame(tags), &asked.answer(tags, FLAGS | router));
                let bare = Solicitation { options: Vec::new(), ..asked.clone() };
                answers(&mut rig, "no option", &bare.frame(tags), &bare.answer(tags, FLAGS | router));
                for unicast in [&asked, &bare] {
                    let probe = Solicitation { unicast: true, ..unicast.clone() };
                    answers(&mut rig, "a probe", &probe.frame(tags), &probe.answer(tags, FLAGS | router));
                }
                for units in 2..6 {
                    let mut options = asked.options.clone();
                    options.extend([14, 1, 1, 2, 3, 4, 5, 6].repeat(units - 1));
                    let many = Solicitation { options, ..asked.clone() };
                    answers(&mut rig, "options", &many.frame(tags), &many.answer(tags, FLAGS | router));
                }
                // Somebody tries whether the address is free; with the nonce of RFC 7527, too.
                for options in [Vec::new(), vec![14, 1, 1, 2, 3, 4, 5, 6]] {
                    let source = Ipv6Addr::UNSPECIFIED;
                    let tried = Solicitation { source, options, ..asked.clone() };
                    answers(&mut rig, "tried", &tried.frame(tags), &tried.answer(tags, 0x20 | router));
                }
            }
        }
        assert_eq!(rig.balancer.claims(), []);
    }
}

#[test]
fn what_is_no_valid_solicitation_is_dropped_or_the_kernels() {
    let mut rig = rig(AddressEntry::ANSWER, FRESH);
    let asked = Solicitation::of(SIX);
    let frame = asked.frame(&[]);
    rig.passes("another address", &Solicitation::of("2001:db8::1".parse().unwrap()).frame(&[]));
    rig.passes("another VLAN", &asked.frame(&[0x81, 0, 0, 8]));
    for kind in [128, 133, 134, 137] {
        let mut other = frame.clone();
        other[54] = kind;
        rig.passes("another type", &other);
    }
    let mut other = frame.clone();
    other[20] = 17;
    rig.passes("another protocol", &other);
    for len in 14..14 + 40 + 24 {
        rig.passes("cut", &frame[..len]);
    }
    let mut rows = vec![
        ("from farther away", Solicitation { hops: 254, ..asked.clone() }.frame(&[])),
        (
            "too long",
            Solicitation { options: [14, 1, 0, 0, 0, 0, 0, 0].repeat(6), ..asked.clone() }.frame(&[]),
        ),
        ("no whole units", Solicitation { options: vec![14, 1, 0, 0], ..asked.clone() }.frame(&[])),
        ("cut in its option", frame[..frame.len() - 1].to_vec()),
        (
            "nobody with an address",
            Solicitation { source: Ipv6Addr::UNSPECIFIED, ..asked.clone() }.frame(&[]),
        ),
        (
            "nobody to one",
            Solicitation {
                source: Ipv6Addr::UNSPECIFIED,
                unicast: true,
                options: Vec::new(),
                ..asked.clone()
            }
            .frame(&[]),
        ),
        ("from a group", Solicitation { source: "ff02::9".parse().unwrap(), ..asked.clone() }.frame(&[])),
    ];
    let mut code = frame.clone();
    code[55] = 1;
    rows.push(("a code", code));
    for at in [22, 40, 60, 70, 80] {
        let mut damaged = frame.clone();
        // The target stays, by which it is known as a question of ours.
        let at = if (62..78).contains(&at) { 58 } else { at };
        damaged[at] ^= 0x10;
        rows.push(("damaged", damaged));
    }
    for (what, frame) in rows {
        rig.drops(what, &frame, UNANSWERED);
    }
}

/// What the lease says, of an address that the program answers for and of one that the kernel has.
#[test]
fn leases_decide() {
    let past = |peer| Lease::until(1000, peer);
    let four = Arp::request(FOUR).frame(&[]);
    let six = Solicitation::of(SIX);
    let unicast = Solicitation { unicast: true, ..six.clone() };
    let reply = Arp { to: THEIRS, operation: 2, sender: (OURS, FOUR), target: (THEIRS, CLIENT4) }.frame(&[]);
    for (flags, lease, answered, over) in [
        (AddressEntry::ANSWER, FRESH, true, false),
        (AddressEntry::ANSWER, past(true), false, true),
        (AddressEntry::ANSWER, past(false), true, false),
        (AddressEntry::ANSWER, Lease::OVER, false, true),
        (AddressEntry::ANSWER, Lease::NONE, false, false),
        (0, FRESH, false, false),
        (0, past(true), false, true),
        (0, past(false), false, false),
        (0, Lease::OVER, false, true),
        (0, Lease::NONE, false, false),
    ] {
        let mut rig = rig(flags, lease);
        let what = format!("flags {flags}, {lease:?}");
        let rows = [
            (&four, &reply),
            (&six.frame(&[]), &six.answer(&[], 0x60)),
            (&unicast.frame(&[]), &unicast.answer(&[], 0x60)),
        ];
        for (frame, expected) in rows {
            match (answered, over) {
                (true, _) => answers(&mut rig, &what, frame, expected),
                (_, true) => rig.drops(&what, frame, DropReason::LeaseOver),
                _ => rig.passes(&what, frame),
            }
        }
        assert_eq!(rig.balancer.lease(3), lease);
    }
}

fn advertisement(target: Ipv6Addr, from: Mac, hops: u8) -> Vec<u8> {
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(from);
    let message = with_checksum(message, target, all);
    ipv6([0x33, 0x33, 0, 0, 0, 1], from, &[], (target, all), hops, &message)
}

/// Another node says that it has an address: the daemon is told, or, where there is none, the lease ends.
#[test]
fn claims_are_noticed() {
    let announcement = |operation, from| {
        Arp { to: BROADCAST, operation, sender: (from, FOUR), target: (BROADCAST, FOUR) }.frame(&[])
    };
    let claims = [
        (key(FOUR.into(), 0), announcement(1, THEIRS)),
        (key(FOUR.into(), 0), announcement(2, THEIRS)),
        // Whoever asks for something else with the address as its own.
        (
            key(FOUR.into(), 0),
            Arp { sender: (THEIRS, FOUR), ..Arp::request(Ipv4Addr::new(192, 0, 2, 5)) }.frame(&[]),
        ),
        (key(SIX.into(), 0), advertisement(SIX, THEIRS, 255)),
    ];
    let none = [
        announcement(1, OURS),
        announcement(2, OURS),
        advertisement(SIX, OURS, 255),
        advertisement(SIX, THEIRS, 64),
        advertisement("2001:db8::1".parse().unwrap(), THEIRS, 255),
    ];
    for flags in [0, AddressEntry::ANSWER] {
        let mut rig = rig(flags, FRESH);
        for (key, frame) in &claims {
            rig.passes("a claim", frame);
            let told = rig.balancer.claims();
            assert_eq!(told.len(), 1, "{}", describe(frame));
            let found = (told[0].address, told[0].ifindex, told[0].mac, told[0].lease);
            assert_eq!(found, (key.address, INGRESS, THEIRS, 3));
            assert!(told[0].time_ns > 0);
            assert_eq!(rig.balancer.lease(3), FRESH, "VRRP settles it");
        }
        for frame in &none {
            rig.passes("no claim", frame);
            assert_eq!(rig.balancer.claims(), []);
        }

        // The daemon has been silent for long, and nobody was known who could take over: now somebody is.
        let question = Arp::request(FOUR).frame(&[]);
        for (_, frame) in &claims {
            let alone = Lease::until(1000, false);
            rig.balancer.set_addresses(&table(flags), &BTreeMap::from([(3, alone)]));
            for frame in &none {
                rig.passes("no claim", frame);
            }
            assert_eq!(rig.balancer.lease(3), alone);
            let (outcome, _) = rig.run(frame);
            assert!(matches!(outcome.verdict, Verdict::Pass | Verdict::Drop));
            assert_eq!(rig.balancer.lease(3), Lease::OVER);
            rig.drops("from now on", &question, DropReason::LeaseOver);
            assert_eq!(rig.balancer.claims(), []);
        }
        for lease in [Lease::OVER, Lease::NONE] {
            rig.balancer.set_addresses(&table(flags), &BTreeMap::from([(3, lease)]));
            rig.passes("not ours to defend", &advertisement(SIX, THEIRS, 255));
            assert_eq!((rig.balancer.claims(), rig.balancer.lease(3)), (Vec::new(), lease));
        }
    }
}

#[test]
fn answers_take_tokens() {
    stay_on_one_cpu();
    let mut rig = rig(AddressEntry::ANSWER, FRESH);
    let six = Solicitation::of(SIX);
    for frame in [Arp::request(FOUR).frame(&[]), six.frame(&[])] {
        rig.balancer.set_tokens(3);
        for _ in 0..3 {
            assert_eq!(rig.run(&frame).0.verdict, Verdict::Tx);
        }
        rig.drops("without a token", &frame, UNANSWERED);
    }
    rig.balancer.set_tokens(3);
    for _ in 0..5 {
        rig.passes("a claim", &advertisement(SIX, THEIRS, 255));
    }
    assert_eq!(rig.balancer.claims().len(), 3);
}

/// `accept = false`: what no service takes is dropped, but for what finds the address.
#[test]
fn what_is_not_accepted() {
    let mut rig = Rig::new();
    let mut image = rig.world.image.clone();
    for v6 in [false, true] {
        image.vips.get_mut(&vip(10, v6)).unwrap().flags |= VipEntry::DECLINED;
    }
    rig.balancer.set_image(&image);
    for v6 in [false, true] {
        let packet = rig.world.packet("dsr4-tcp", v6, 1);
        rig.forwards("of its service", "dsr4-tcp", &packet);
        let other = packet.with(|p| p.tcp_mut().dst = 81);
        rig.drops("of no service", &other.build(), DropReason::NotAccepted);
        let strange = packet.with(|p| p.transport = Transport::Other(89, vec![0; 20]));
        rig.drops("of another protocol", &strange.build(), DropReason::NotAccepted);
        let echo = packet.with(|p| p.transport = Transport::Echo(vec![1; 8]));
        let (outcome, moved) = rig.run(&echo.build());
        assert_eq!(outcome.verdict, Verdict::Tx);
        assert_eq!(moved, Counters::one(DropReason::EchoAnswered.into(), 0));
        image.vips.get_mut(&vip(10, v6)).unwrap().flags &= !VipEntry::ECHO;
        rig.balancer.set_image(&image);
        rig.drops("an echo request for the kernel", &echo.build(), DropReason::NotAccepted);
    }
    let IpAddr::V6(served) = vip(10, true) else { unreachable!() };
    let probe = Solicitation { unicast: true, ..Solicitation::of(served) };
    rig.passes("a solicitation", &probe.frame(&[]));
    let mut advertised = probe.frame(&[]);
    advertised[54] = 136;
    rig.passes("an advertisement", &advertised);
}

/// Damaged questions and claims: the program in the kernel does what the core does on the host.
#[test]
fn garbage_of_neighbours() {
    let image = Rig::new().world.image;
    for (flags, lease) in [
        (AddressEntry::ANSWER, FRESH),
        (AddressEntry::ANSWER | AddressEntry::ROUTER, FRESH),
        (AddressEntry::ANSWER, Lease::OVER),
        (0, FRESH),
    ] {
        let mut rig = rig(flags, lease);
        let mut host = Host::new(&image);
        host.set_addresses(&table(flags), &BTreeMap::from([(3, lease)]));
        let mut state = 0x6e65_6967u64;
        let mut random = |below: usize| {
            state = hash::mix(state.wrapping_add(1));
            usize::try_from(state % below as u64).unwrap()
        };
        for _ in 0..20_000 {
            let tags = TAGS[random(TAGS.len())];
            let mut frame = match random(5) {
                0 => Arp::request(FOUR).frame(tags),
                1 => Arp { sender: (THEIRS, FOUR), ..Arp::request(FOUR) }.frame(tags),
                2 => Solicitation { unicast: random(2) == 0, ..Solicitation::of(SIX) }.frame(tags),
                3 => Solicitation { options: vec![1; 8 * random(7)], ..Solicitation::of(SIX) }.frame(tags),
                _ => advertisement(SIX, THEIRS, 255),
            };
            for _ in 0..random(4) {
                let at = random(frame.len());
                frame[at] = random(256) as u8;
            }
            match random(4) {
                0 => frame.truncate(14 + random(frame.len() - 13)),
                1 => frame.extend(vec![0xee; random(40)]),
                _ => {}
            }
            let (ours, theirs) = (host.run(&frame), rig.balancer.run(&frame));
            assert_eq!(theirs.verdict, ours.verdict, "{}", describe(&frame));
            if ours.verdict != Verdict::Drop {
                assert_eq!(theirs.frame, ours.frame, "{}", describe(&frame));
            }
        }
        assert_eq!(rig.moved(), host.counters());
    }
}
