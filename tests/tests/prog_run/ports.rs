//! Which service a port belongs to.

use crate::rig::Rig;
use lb_common::core::DropReason;
use lb_tests::{
    kernel::{client_address, vip},
    packets::{Packet, Transport},
};

fn tcp(vip_number: u8, v6: bool, port: u16) -> Packet {
    Packet::tcp((client_address(v6, 9), 50_000).into(), (vip(vip_number, v6), port).into())
}

fn udp(vip_number: u8, v6: bool, port: u16) -> Packet {
    Packet::udp((client_address(v6, 9), 50_000).into(), (vip(vip_number, v6), port).into())
}

/// Rules inside the VIP's entry: exact before range before every port.
#[test]
fn inline_rules() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for (port, service) in [
            (80, "inline-exact"),
            (79, "inline-any"),
            (81, "inline-any"),
            (7999, "inline-any"),
            (8000, "inline-range"),
            (8050, "inline-range"),
            (8099, "inline-range"),
            (8100, "inline-any"),
            (0, "inline-any"),
            (65535, "inline-any"),
        ] {
            rig.forwards(&format!("TCP {port}"), service, &tcp(20, v6, port));
        }
        rig.forwards("UDP 53", "inline-udp", &udp(20, v6, 53));
        for port in [80, 52, 54, 8000] {
            rig.passes(&format!("UDP {port} belongs to nobody"), &udp(20, v6, port).build());
        }
    }
}

/// Rules in the two port maps.
#[test]
fn spilled_rules() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for (port, service) in [
            (80, Some("spill-80")),
            (81, Some("spill-81")),
            (82, Some("spill-82")),
            (79, None),
            (83, None),
            (7999, None),
            (8000, Some("spill-range")),
            (8063, Some("spill-range")),
            (8098, Some("spill-range")),
            (8099, None),
            (9000, None),
            (9001, Some("spill-odd-range")),
            (9002, Some("spill-odd-range")),
            (9004, Some("spill-odd-range")),
            (9006, Some("spill-odd-range")),
            (9007, None),
            (0, None),
            (65535, None),
        ] {
            let packet = tcp(21, v6, port);
            match service {
                Some(service) => {
                    rig.forwards(&format!("TCP {port}"), service, &packet);
                }
                None => rig.passes(&format!("TCP {port} belongs to nobody"), &packet.build()),
            }
        }
        for (port, service) in [
            (53, "spill-udp"),
            (52, "spill-any-udp"),
            (80, "spill-any-udp"),
            (8000, "spill-any-udp"),
            (0, "spill-any-udp"),
            (65535, "spill-any-udp"),
        ] {
            rig.forwards(&format!("UDP {port}"), service, &udp(21, v6, port));
        }
    }
}

/// A neighbour of a VIP, another protocol, another port: the kernel's, untouched, however odd.
#[test]
fn what_is_for_no_service_passes() {
    let mut rig = Rig::new();
    let to_no_vip = |p: &mut Packet| p.net = tcp(9, p.is_v6(), 80).net;
    for v6 in [false, true] {
        rig.forwards("the service", "dsr4-tcp", &tcp(10, v6, 80));
        rig.passes("another port", &tcp(10, v6, 81).build());
        rig.passes("port 22 of a VIP", &tcp(10, v6, 22).build());
        rig.passes("an address that is no VIP", &tcp(9, v6, 80).build());
        // What is not for a service is not judged either.
        rig.passes("no VIP, TTL 1", &tcp(9, v6, 80).with_ttl(1).build());
        rig.passes("no service, TTL 1", &tcp(10, v6, 22).with_ttl(1).build());
        rig.passes("no service, no flags", &tcp(10, v6, 22).with(|p| p.tcp_mut().flags = 0).build());
        let echo = tcp(10, v6, 80).with(|p| p.transport = Transport::Echo(vec![7; 56]));
        rig.passes("a ping to an address that is no VIP", &echo.with(to_no_vip).build());
        for protocol in [2u8, 47, 50, 89, 103, 112, 132, 253] {
            let other = tcp(10, v6, 80).with(|p| p.transport = Transport::Other(protocol, vec![0; 32]));
            rig.passes(&format!("protocol {protocol}"), &other.build());
        }
    }
    // The other protocol's service of the same port is another service.
    rig.forwards("UDP", "dsr4-udp", &udp(10, false, 80));
    rig.drops("no backend", &tcp(23, false, 80).build(), DropReason::NoBackend);
}
