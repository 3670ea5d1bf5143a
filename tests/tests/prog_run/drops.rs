//! Every reason to drop, each with its nearest neighbour that is not dropped.

use crate::rig::Rig;
use lb_common::core::DropReason;
use lb_tests::{
    kernel::{Counter, Counters, Verdict, client_address},
    packets::{Extension, Packet, Transport, check},
};
use std::collections::BTreeSet;

/// Which service takes the neighbour.
struct Row {
    reason: DropReason,
    dropped: Packet,
    neighbour: Packet,
    service: &'static str,
}

fn rows(rig: &Rig) -> Vec<Row> {
    let tcp4 = rig.world.packet("dsr4-tcp", false, 5);
    let tcp6 = rig.world.packet("dsr4-tcp", true, 5);
    let udp4 = rig.world.packet("dsr4-udp", false, 5);
    let row = |reason, service, neighbour: &Packet, dropped| Row {
        reason,
        service,
        dropped,
        neighbour: neighbour.clone(),
    };
    let len = tcp4.ip().len() as u16;
    let hops = |n| tcp6.with(|p| p.v6().extensions = vec![Extension::options(60, 1); n]);
    vec![
        row(
            DropReason::Truncated,
            "dsr4-udp",
            &udp4,
            udp4.with(|p| {
                p.transport = Transport::Other(17, vec![0x9c, 0x40, 0, 80, 0, 8, 0]);
            }),
        ),
        row(DropReason::IpHeader, "dsr4-tcp", &tcp4, tcp4.with(|p| p.v4().version_ihl = Some(0x44))),
        row(DropReason::IpLength, "dsr4-tcp", &tcp4, tcp4.with(|p| p.v4().total_len = Some(len + 1))),
        row(DropReason::IpFlags, "dsr4-tcp", &tcp4, tcp4.with(|p| p.v4().fragment = 0xc000)),
        row(DropReason::Fragment, "dsr4-tcp", &tcp4, tcp4.with(|p| p.v4().fragment = 1)),
        row(DropReason::FragmentUnknown, "dsr4-tcp", &tcp4, tcp4.with(|p| p.v4().fragment = 3)),
        row(
            DropReason::TtlExceededUnanswered,
            "dsr4-tcp",
            &tcp4.with_ttl(2),
            tcp4.with_ttl(1).with(|p| p.v4().src = [127, 0, 0, 1].into()),
        ),
        row(DropReason::IcmpQuote, "dsr4-tcp", &tcp4, {
            let (router, vip) = (client_address(false, 9), tcp4.addresses().1);
            // One byte less than the ports.
            Packet::icmp_error(router, vip, (3, 4, 1400), &tcp4.reversed().ip()[..23])
        }),
        row(DropReason::EchoUnanswered, "dsr4-tcp", &tcp4, {
            let ping = tcp4.with(|p| p.transport = Transport::Echo(vec![1; 8]));
            ping.with(|p| p.v4().src = [0, 0, 0, 0].into())
        }),
        row(DropReason::Ipv6Extension, "dsr4-tcp", &hops(6), hops(7)),
        row(DropReason::TcpHeader, "dsr4-tcp", &tcp4, tcp4.with(|p| p.tcp_mut().data_offset = Some(4))),
        row(DropReason::TcpFlags, "dsr4-tcp", &tcp4, tcp4.with(|p| p.tcp_mut().flags = 0)),
        row(DropReason::UdpLength, "dsr4-udp", &udp4, udp4.with(|p| p.udp_mut().length = Some(7))),
        row(DropReason::NoBackend, "dsr4-tcp", &tcp4, rig.world.packet("empty", false, 5)),
        row(
            DropReason::RejectedUnanswered,
            "dsr4-tcp",
            &tcp4,
            rig.world.packet("refusing-tcp", false, 5).with(|p| p.v4().src = [127, 0, 0, 1].into()),
        ),
        row(DropReason::NoNextHop, "dsr4-tcp", &tcp4, rig.world.packet("no-hop", false, 5)),
        row(
            DropReason::TooBigUnanswered,
            "mtu100",
            &rig.world.packet("mtu100", false, 5).with_ip_len(80),
            rig.world.packet("mtu100", false, 5).with_ip_len(81).with(|p| p.v4().src = [240, 0, 0, 1].into()),
        ),
    ]
}

/// All reasons are met here or in the two tests below; none is missed when one is added.
#[test]
fn every_reason_has_a_packet_and_a_neighbour() {
    let mut rig = Rig::new();
    let mut met = BTreeSet::new();
    for row in rows(&rig) {
        rig.drops(row.reason.name(), &row.dropped.build(), row.reason);
        rig.forwards(&format!("beside {}", row.reason.name()), row.service, &row.neighbour);
        met.insert(row.reason as u32);
    }
    // Answered, so the verdict is another: `icmp.rs`, `echo.rs`, `reject.rs`. Held: `held.rs`. No headroom and contradictions: below.
    for elsewhere in [
        DropReason::TooBig,
        DropReason::TtlExceeded,
        DropReason::EchoAnswered,
        DropReason::Rejected,
        DropReason::FragmentHeld,
        DropReason::NoHeadroom,
        DropReason::Internal,
        // `neighbour.rs`.
        DropReason::NeighbourAnswered,
        DropReason::NeighbourUnanswered,
        DropReason::LeaseOver,
        DropReason::NotAccepted,
    ] {
        assert!(met.insert(elsewhere as u32));
    }
    // Of lists and limits, which this world has none of.
    met.extend(DropReason::Denied as u32..=DropReason::ServiceLimit as u32);
    // In `nat.rs`.
    for nat in [DropReason::NatSession, DropReason::NatExhausted, DropReason::NatUntranslatable] {
        assert!(met.insert(nat as u32));
    }
    // No row fills a table of sessions yet: this reason is not tested.
    assert!(met.insert(DropReason::NatFull as u32));
    let missing: Vec<_> = DropReason::ALL.iter().filter(|r| !met.contains(&(**r as u32))).collect();
    assert!(missing.is_empty(), "no packet is dropped for {missing:?}");
}

/// The same with both families, in every mode: what is wrong is wrong for every service.
#[test]
fn no_backend_and_no_next_hop_in_both_families() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for client in 0..10 {
            let packet = rig.world.packet("empty", v6, client);
            rig.drops("every backend is disabled", &packet.build(), DropReason::NoBackend);
            let packet = rig.world.packet("no-hop", v6, client);
            rig.drops("no neighbour entry", &packet.build(), DropReason::NoNextHop);
        }
    }
}

/// Tables that contradict themselves never send a packet anywhere.
#[test]
fn contradictions_are_counted() {
    let mut rig = Rig::new();
    for (address, reason) in rig.world.broken.clone() {
        for client in 0..8 {
            let source = (client_address(false, client), 1000 + client).into();
            let packet = Packet::tcp(source, (address, 80).into());
            rig.drops(&format!("VIP {address}"), &packet.build(), reason);
            let other = Packet::udp(source, (address, 80).into());
            rig.passes(&format!("VIP {address}, UDP"), &other.build());
        }
    }
}

/// A backend that is the VIP itself: each run puts one more header in front, 28 bytes each, until the room in front of the
/// frame (256 bytes, 40 of them the kernel's) is used up.
#[test]
fn no_headroom() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("itself", false, 1);
    let (service, backend) = {
        let to = rig.world.predict("itself", &packet);
        (to.service_id, to.backend_id)
    };
    let len = packet.ip().len() as u64;
    let bytes = (0..7).map(|i| len + 28 * i).sum();
    for (runs, last) in [(7, Verdict::Tx), (8, Verdict::Drop)] {
        let outcome = rig.balancer.run_again(&packet.build(), runs);
        assert_eq!(outcome.verdict, last, "{runs} runs");
        let mut counted = Counters::default();
        counted.add_stats(Counter::Service(service), (7, bytes));
        counted.add_stats(Counter::Backend(backend), (7, bytes));
        if last == Verdict::Drop {
            counted.add_stats(DropReason::NoHeadroom.into(), (1, 0));
        } else {
            let parsed = check::parse(&outcome.frame).expect("seven headers");
            assert_eq!(parsed.ip.len() as u64, len + 7 * 28);
            assert!(parsed.checksum_ok && check::udp(&parsed).is_ok());
        }
        assert_eq!(rig.moved(), counted, "{runs} runs");
    }
}

/// What is written is what is read back: the image in the maps is the image asked for, contradictions aside.
#[test]
fn the_maps_hold_the_image() {
    let rig = Rig::new();
    let observed = rig.balancer.observe();
    let wanted = &rig.world.image;
    assert_eq!(observed.vips, wanted.vips);
    assert_eq!(observed.ports, wanted.ports);
    assert_eq!(observed.port_ranges, wanted.port_ranges);
    assert_eq!(observed.backends, wanted.backends);
    for (id, ring) in &observed.rings {
        assert_eq!(Some(ring), wanted.rings.get(id), "ring of service {id}");
    }
    let beyond = wanted.services.len() - observed.services.len();
    assert_eq!(beyond, 1, "only the ring beyond the array is not read back");
}
