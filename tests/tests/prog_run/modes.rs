//! Every mode, inner and outer family, protocol: the packet that leaves.

use crate::rig::{Rig, Sent};
use lb_tests::{kernel::client_address, packets::Packet};
use lb_userspace::model::Forward;
use std::collections::BTreeSet;

const MODES: [&str; 6] = ["dsr4", "dsr6", "ipip4", "ipip6", "gue4", "gue6"];

/// 12 services, both inner families, 64 clients each: every backend is met, by XDP_TX, redirect and into a VLAN.
#[test]
fn every_mode_reaches_the_predicted_backend() {
    let mut rig = Rig::new();
    for mode in MODES {
        for protocol in ["tcp", "udp"] {
            let service = format!("{mode}-{protocol}");
            for v6 in [false, true] {
                let mut met = BTreeSet::new();
                for client in 0..64 {
                    let packet = rig.world.packet(&service, v6, client);
                    let what = format!("{service}, inner IPv6 {v6}, client {client}");
                    met.insert(rig.forwards(&what, &service, &packet).backend_id);
                }
                assert_eq!(met.len(), 3, "{service}: every backend takes part");
            }
        }
    }
}

/// TCP without and with options and data, UDP empty and odd: in every mode, with any DSCP and ECN.
#[test]
fn sizes_and_classes_of_service() {
    let mut rig = Rig::new();
    for mode in MODES {
        for v6 in [false, true] {
            for (i, tos) in [0x00, 0x01, 0x02, 0x03, 0xb8, 0xff].into_iter().enumerate() {
                let tcp = format!("{mode}-tcp");
                let packet = rig.world.packet(&tcp, v6, i as u16).with_tos(tos).with(|p| {
                    p.tcp_mut().options = vec![1; 4 * i];
                    p.tcp_mut().payload = vec![0x5a; 17 * i];
                });
                rig.forwards(&format!("{tcp}, TOS {tos:#x}"), &tcp, &packet);
                let udp = format!("{mode}-udp");
                let packet = rig.world.packet(&udp, v6, i as u16).with_tos(tos);
                let packet = packet.with(|p| p.udp_mut().payload = vec![0xa5; i * i]);
                rig.forwards(&format!("{udp}, TOS {tos:#x}"), &udp, &packet);
            }
        }
    }
}

/// Frames are padded to 60 bytes on the wire: the padding stays behind the packet and is not counted.
#[test]
fn padding_stays_behind_the_packet() {
    let mut rig = Rig::new();
    for mode in MODES {
        let service = format!("{mode}-udp");
        for client in 0..6 {
            let packet = rig.world.packet(&service, false, client);
            let packet = packet.with(|p| {
                p.udp_mut().payload = vec![1];
                p.pad_to = 60;
            });
            assert_eq!(packet.build().len(), 60);
            rig.forwards(&service, &service, &packet);
        }
    }
}

/// One flow has one outer header, other flows have others: network cards and links spread them.
#[test]
fn the_outer_header_varies_with_the_flow() {
    let mut rig = Rig::new();
    for mode in ["ipip4", "ipip6", "gue4", "gue6"] {
        let service = format!("{mode}-tcp");
        let mut outers = BTreeSet::new();
        for client in 0..64 {
            let packet = rig.world.packet(&service, false, client);
            let first = rig.forwards(&service, &service, &packet);
            let later = packet.with(|p| {
                p.tcp_mut().seq += 1000;
                p.tcp_mut().payload = b"more".to_vec();
            });
            assert_eq!(rig.forwards(&service, &service, &later), first, "one flow, one way");
            outers.insert(first.outer.expect("an outer header"));
        }
        // 64 flows over at least 14 bits: a collision or two may happen.
        assert!(outers.len() >= 60, "{service}: {} outer headers for 64 flows", outers.len());
        if mode == "gue4" {
            let ports: BTreeSet<u16> = outers.iter().map(|(_, _, port)| *port).collect();
            assert!(ports.len() >= 60, "GUE varies its source port");
        }
    }
}

/// GUE over IPv6 has a checksum (RFC 8200 section 8.1) wherever one can be derived; etherparse sums it in full.
#[test]
fn gue_over_ipv6_has_a_checksum() {
    let mut rig = Rig::new();
    let mut send = |service: &str, packet: &Packet| -> Sent { rig.forwards(service, service, packet) };
    let world = lb_tests::kernel::plain_world();
    for v6 in [false, true] {
        for client in 0..32 {
            let tcp = world.packet("gue6-tcp", v6, client).with_tos(client as u8);
            assert!(send("gue6-tcp", &tcp).udp_checksum);
            let udp = world.packet("gue6-udp", v6, client).with_ttl(2 + client as u8);
            assert!(send("gue6-udp", &udp).udp_checksum);
            // No checksum inside: none to derive ours from (RFC 6936).
            let none = udp.with(|p| p.udp_mut().no_checksum = true);
            assert!(!send("gue6-udp", &none).udp_checksum);
            let surplus = udp.with(|p| p.udp_mut().surplus = vec![client as u8, 7, 7]);
            assert!(!send("gue6-udp", &surplus).udp_checksum);
            let short = udp.with(|p| p.udp_mut().length = Some(9));
            assert!(!send("gue6-udp", &short).udp_checksum);
            if !v6 {
                let options = tcp.with(|p| p.v4().options = vec![1, 1, 1, client as u8]);
                assert!(send("gue6-tcp", &options).udp_checksum);
            }
            assert!(!send("gue4-udp", &world.packet("gue4-udp", v6, client)).udp_checksum);
        }
    }
}

/// A client keeps its backend whichever of the service's addresses of its family it uses, and whatever the packet carries.
#[test]
fn a_flow_keeps_its_backend() {
    let mut rig = Rig::new();
    for client in 0..50 {
        let packet = rig.world.packet("ipip4-tcp", true, client);
        let first = rig.forwards("first", "ipip4-tcp", &packet);
        for change in 0..4u8 {
            let packet = packet.with(|p| {
                p.tcp_mut().flags = [0x02, 0x10, 0x18, 0x11][usize::from(change)];
                p.v6().flow_label = change.into();
                p.v6().hop_limit = 10 + change;
                p.tags = vec![(0x8100, change.into()); usize::from(change % 3)];
            });
            let again = rig.forwards("again", "ipip4-tcp", &packet);
            assert_eq!(again.backend_id, first.backend_id);
        }
    }
}

/// The world's modes are what the names say: guards the table above against a typing error.
#[test]
fn the_world_is_what_it_says() {
    let world = lb_tests::kernel::plain_world();
    for (mode, forward, v6) in [
        ("dsr4", Forward::Dsr, false),
        ("dsr6", Forward::Dsr, true),
        ("ipip4", Forward::Ipip, false),
        ("ipip6", Forward::Ipip, true),
        ("gue4", Forward::Gue, false),
        ("gue6", Forward::Gue, true),
    ] {
        let service = world.service(&format!("{mode}-tcp"));
        assert_eq!(service.spec.forward, forward);
        assert!(service.backends.iter().all(|b| b.spec.address.is_ipv6() == v6));
    }
    assert_ne!(client_address(false, 1), client_address(false, 2));
}
