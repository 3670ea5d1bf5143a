//! Frames that lie in several buffers.

use crate::rig::Rig;
use lb_common::core::DropReason;
use lb_tests::{
    kernel::Verdict,
    packets::{DOT1Q, Transport, check},
};

const JUMBO: u16 = 9000;

fn rig() -> Rig {
    let mut rig = Rig::new();
    let mut image = rig.world.image.clone();
    for backend in image.backends.values_mut() {
        backend.entry.mtu = JUMBO;
    }
    rig.balancer.set_image(&image);
    rig
}

/// What fits a jumbo egress goes, in every mode.
#[test]
fn jumbo_frames_are_forwarded() {
    let mut rig = rig();
    for (mode, overhead) in [("dsr4", 0), ("ipip4", 20), ("ipip6", 40), ("gue4", 28), ("gue6", 48)] {
        for protocol in ["tcp", "udp"] {
            for v6 in [false, true] {
                let service = format!("{mode}-{protocol}");
                let packet = rig.world.packet(&service, v6, 3);
                for len in [3400, 3500, 3600, 4096, 8000, usize::from(JUMBO) - overhead] {
                    let packet = packet.with_ip_len(len);
                    rig.forwards(&format!("{service}, {len} bytes"), &service, &packet);
                    let tagged = packet.with(|p| p.tags = vec![(DOT1Q, 5)]);
                    rig.forwards(&format!("{service}, {len} bytes, tagged"), &service, &tagged);
                }
            }
        }
    }
}

/// A length beyond all buffers is a lie; what is too big even for jumbo frames is answered.
#[test]
fn the_length_is_that_of_all_buffers() {
    let mut rig = rig();
    let packet = rig.world.packet("dsr4-tcp", false, 3).with_ip_len(6000);
    rig.drops("one byte more", &packet.with(|p| p.v4().total_len = Some(6001)).build(), DropReason::IpLength);
    for v6 in [false, true] {
        let packet = rig.world.packet("ipip4-tcp", v6, 3).with_ip_len(8981);
        let (outcome, moved) = rig.run(&packet.build());
        assert_eq!((outcome.verdict, moved.packets(DropReason::TooBig)), (Verdict::Tx, 1), "{moved:?}");
        let answer = check::parse(&outcome.frame).expect("an answer");
        let icmp = check::icmp(&answer).expect("an ICMP message");
        assert_eq!((icmp.rest, icmp.quote), (8980, &packet.ip()[..128]));
        let ping = packet.with(|p| p.transport = Transport::Echo(vec![5; 7000]));
        let (outcome, moved) = rig.run(&ping.build());
        assert_eq!((outcome.verdict, moved.packets(DropReason::EchoAnswered)), (Verdict::Tx, 1), "{moved:?}");
        check::icmp(&check::parse(&outcome.frame).expect("a reply")).expect("a right checksum");
    }
}
