//! One balancer and what is expected of it.

use lb_common::{core::DropReason, hash};
use lb_tests::{
    kernel::{Balancer, Counter, Counters, INGRESS, Outcome, Predicted, Verdict, World, plain_world},
    packets::{
        Net, Packet, Transport,
        check::{self, Parsed},
        describe,
    },
};
use lb_userspace::model::Forward;
use std::net::IpAddr;

/// Services whose counters are read, unused ids among them.
const SERVICES: u32 = 64;

pub struct Rig {
    pub world: World,
    pub balancer: Balancer,
    before: Counters,
}

/// What of a packet that was sent varies with the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub backend_id: u32,
    /// Source, flow label and UDP source port of the outer header.
    pub outer: Option<(IpAddr, u32, u16)>,
    pub udp_checksum: bool,
}

impl Rig {
    pub fn new() -> Self {
        let world = plain_world();
        let balancer = Balancer::new(&world.image);
        let before = balancer.counters(SERVICES);
        assert_eq!(before, Counters::default(), "a program just loaded has counted nothing");
        Self { world, balancer, before }
    }

    /// What moved since the last call.
    pub fn moved(&mut self) -> Counters {
        let now = self.balancer.counters(SERVICES);
        let moved = now.since(&self.before);
        self.before = now;
        moved
    }

    #[track_caller]
    pub fn run(&mut self, frame: &[u8]) -> (Outcome, Counters) {
        let outcome = self.balancer.run(frame);
        (outcome, self.moved())
    }

    /// The kernel gets the frame untouched, and nothing is counted.
    #[track_caller]
    pub fn passes(&mut self, what: &str, frame: &[u8]) {
        let (outcome, moved) = self.run(frame);
        assert_eq!(outcome.verdict, Verdict::Pass, "{what}: {moved:?}\n{}", describe(frame));
        assert_eq!(outcome.frame, frame, "{what}: a frame that passes is untouched");
        assert_eq!(moved, Counters::default(), "{what}");
    }

    /// The frame is dropped for this reason, and nothing else is counted.
    #[track_caller]
    pub fn drops(&mut self, what: &str, frame: &[u8], reason: DropReason) {
        let (outcome, moved) = self.run(frame);
        let expected = Counters::one(reason.into(), 0);
        assert_eq!((outcome.verdict, &moved), (Verdict::Drop, &expected), "{what}\n{}", describe(frame));
    }

    /// The packet goes to the backend that ring and hash predict, as the service's mode says, and is counted.
    #[track_caller]
    pub fn forwards(&mut self, what: &str, service: &str, packet: &Packet) -> Sent {
        self.forwards_as(what, service, packet, packet)
    }

    /// The same for a packet that goes where the packets of another one's flow go.
    #[track_caller]
    pub fn forwards_as(&mut self, what: &str, service: &str, packet: &Packet, flow: &Packet) -> Sent {
        let frame = packet.build();
        let (outcome, moved) = self.run(&frame);
        let to = self.world.predict(service, flow);
        let verdict = if to.hop.ifindex == INGRESS { Verdict::Tx } else { Verdict::Redirect };
        assert_eq!(outcome.verdict, verdict, "{what}: {moved:?}\n{}", describe(&frame));
        let len = packet.ip().len() as u64;
        let counted = Counters::one(Counter::Service(to.service_id), len)
            .and(&Counters::one(Counter::Backend(to.backend_id), len));
        assert_eq!(moved, counted, "{what}");
        check_sent(packet, &frame, &outcome.frame, &to).unwrap_or_else(|why| {
            panic!("{what}: {why}\nin: {}\nout: {}", describe(&frame), describe(&outcome.frame))
        })
    }
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    ensure(found == expected, || format!("{what} is {found:?}, expected {expected:?}"))
}

fn ttl(packet: &Packet) -> u8 {
    match &packet.net {
        Net::V4(ip) => ip.ttl,
        Net::V6(ip) => ip.hop_limit,
    }
}

/// The frame that was sent, header by header.
fn check_sent(packet: &Packet, frame: &[u8], out: &[u8], to: &Predicted<'_>) -> Result<Sent, String> {
    let outer = check::parse(out)?;
    same("destination MAC", &outer.dst_mac, &to.hop.dst_mac)?;
    same("source MAC", &outer.src_mac, &to.hop.src_mac)?;
    let vlans = if to.hop.vlan == 0 { vec![] } else { vec![to.hop.vlan] };
    same("VLAN tags", &outer.vlans, &vlans)?;
    same("IPv4 header checksum", &outer.checksum_ok, &true)?;
    let inner = packet.with_ttl(ttl(packet) - 1).ip();
    let padding = &frame[packet.l3() + packet.ip().len()..];
    same("padding", &outer.padding, &padding)?;
    let mut sent = Sent { backend_id: to.backend_id, outer: None, udp_checksum: false };
    let mut source_port = 0;
    let carried = match to.service.spec.forward {
        Forward::Dsr => {
            same("the packet", &outer.ip, &&inner[..])?;
            transport_checksum(packet, &outer)?;
            return Ok(sent);
        }
        Forward::Ipip => {
            same("outer protocol", &outer.protocol, &if packet.is_v6() { 41 } else { 4 })?;
            let (bits, low) = match (outer.src, to.backend.spec.address) {
                (IpAddr::V4(src), IpAddr::V4(_)) => {
                    same("outer source net", &&src.octets()[..2], &&[198, 18][..])?;
                    (16, src.to_bits())
                }
                (IpAddr::V6(src), IpAddr::V6(_)) => {
                    same("outer source net", &(src.to_bits() >> 32), &(0x0100 << 80))?;
                    (32, src.to_bits() as u32)
                }
                (src, dst) => return Err(format!("outer source {src} for a backend at {dst}")),
            };
            let varied = hash::entropy(to.hash) & (u32::MAX >> (32 - bits));
            same("host bits of the outer source", &(low & (u32::MAX >> (32 - bits))), &varied)?;
            outer.payload
        }
        Forward::Gue => {
            same("outer protocol", &outer.protocol, &17)?;
            same("outer source", &Some(outer.src), &to.hop.source)?;
            let udp = check::udp(&outer)?;
            same("GUE port", &udp.dst, &to.service.spec.gue_port)?;
            ensure(udp.src >= 0xc000, || format!("source port {} is not ephemeral", udp.src))?;
            (source_port, sent.udp_checksum) = (udp.src, udp.has_checksum);
            udp.payload
        }
        // Their rows, in `nat.rs`, say what they expect themselves.
        Forward::Nat | Forward::Snat => return Err("a rewritten packet in the rows of tunnels".to_owned()),
    };
    same("outer destination", &outer.dst, &to.backend.spec.address)?;
    same("outer TTL", &outer.ttl, &64)?;
    let tos = match &packet.net {
        Net::V4(ip) => ip.tos,
        Net::V6(ip) => ip.traffic_class,
    };
    same("outer TOS", &outer.tos, &tos)?;
    same("outer don't-fragment and id", &(outer.dont_fragment, outer.id), &(true, 0))?;
    same("the inner packet", &carried, &&inner[..])?;
    let reread = check::parse_ip(carried)?;
    same("inner IPv4 header checksum", &reread.checksum_ok, &true)?;
    transport_checksum(packet, &reread)?;
    sent.outer = Some((outer.src, outer.flow_label, source_port));
    Ok(sent)
}

/// The client's checksum still holds for what arrives, where etherparse can get at it.
fn transport_checksum(packet: &Packet, ip: &Parsed<'_>) -> Result<(), String> {
    match &packet.transport {
        Transport::Tcp(_) if ip.protocol == 6 => check::tcp(ip),
        Transport::Udp(udp) if ip.protocol == 17 && udp.surplus.is_empty() && udp.length.is_none() => {
            check::udp(ip).map(|_| ())
        }
        _ => Ok(()),
    }
}
