//! Ethernet and VLAN tags.

use crate::rig::Rig;
use lb_tests::packets::{DOT1AD, DOT1Q};

/// One and two tags, 802.1Q and 802.1ad; the tags of the ingress are gone at the egress.
#[test]
fn up_to_two_tags_are_read() {
    let mut rig = Rig::new();
    let taggings: [&[(u16, u16)]; 5] = [
        &[(DOT1Q, 1)],
        &[(DOT1AD, 4094)],
        &[(DOT1Q, 0xe005), (DOT1Q, 6)],
        &[(DOT1AD, 5), (DOT1Q, 0x1fff)],
        &[(DOT1Q, 0)],
    ];
    for tags in taggings {
        for mode in ["dsr4", "ipip4", "ipip6", "gue4", "gue6"] {
            for v6 in [false, true] {
                let service = format!("{mode}-tcp");
                for client in 0..8 {
                    let packet = rig.world.packet(&service, v6, client).with(|p| p.tags = tags.to_vec());
                    rig.forwards(&format!("{service}, tags {tags:x?}"), &service, &packet);
                }
            }
        }
    }
}

/// More tags, or two where the outer type is not ours, are the kernel's.
#[test]
fn other_taggings_pass() {
    let mut rig = Rig::new();
    let taggings: [&[(u16, u16)]; 5] = [
        &[(DOT1Q, 1), (DOT1Q, 2), (DOT1Q, 3)],
        &[(DOT1AD, 1), (DOT1Q, 2), (DOT1Q, 3)],
        &[(DOT1AD, 1), (DOT1AD, 2)],
        &[(DOT1Q, 1), (DOT1AD, 2)],
        &[(0x9100, 1)],
    ];
    for tags in taggings {
        for v6 in [false, true] {
            let packet = rig.world.packet("dsr4-tcp", v6, 1).with(|p| p.tags = tags.to_vec());
            rig.passes(&format!("tags {tags:x?}"), &packet.build());
        }
    }
}

/// Group addresses are never one balancer's alone.
#[test]
fn multicast_and_broadcast_pass() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let packet = rig.world.packet("dsr4-tcp", v6, 1);
        rig.forwards("unicast", "dsr4-tcp", &packet);
        for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [3, 0, 0, 0, 0, 1]] {
            rig.passes(&format!("to {mac:x?}"), &packet.with(|p| p.dst_mac = mac).build());
        }
    }
}

/// Other EtherTypes, and an EtherType that contradicts the packet.
#[test]
fn other_ether_types_pass() {
    let mut rig = Rig::new();
    for ether_type in [0x0806u16, 0x8847, 0x88cc, 0x0800 + 1, 60, 0x9000] {
        let mut frame = rig.world.packet("dsr4-tcp", false, 1).build();
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        rig.passes(&format!("EtherType {ether_type:#x}"), &frame);
    }
}

/// Frames too short for an IPv4 header can be nobody's, down to the shortest the kernel takes.
#[test]
fn short_frames_pass() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let frame = rig.world.packet("dsr4-tcp", v6, 1).build();
        // The destination address of an IPv6 header ends later.
        let header = if v6 { 54 } else { 34 };
        for len in 14..header {
            rig.passes(&format!("{len} bytes, IPv6 {v6}"), &frame[..len]);
        }
    }
}
