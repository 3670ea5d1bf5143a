//! TCP and UDP headers.

use crate::rig::Rig;
use lb_common::core::DropReason;
use lb_tests::kernel::Verdict;
use lb_tests::packets::{ACK, FIN, RST, SYN};

/// All 256 combinations of flags: what a TCP sends goes on, the rest is dropped.
#[test]
fn tcp_flags() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let packet = rig.world.packet("dsr4-tcp", v6, 1);
        for flags in 0..=255u8 {
            let has = |flag| flags & flag != 0;
            let possible = match (has(SYN), has(FIN), has(RST)) {
                (true, false, false) | (false, false, true) => true,
                (false, _, false) => has(ACK),
                _ => false,
            };
            let packet = packet.with(|p| p.tcp_mut().flags = flags);
            let what = format!("flags {flags:#010b}, IPv6 {v6}");
            if possible {
                rig.forwards(&what, "dsr4-tcp", &packet);
            } else {
                rig.drops(&what, &packet.build(), DropReason::TcpFlags);
            }
        }
    }
}

/// The data offset: five words at least, and inside the packet.
#[test]
fn tcp_data_offset() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        // Four bytes of data: six words in all.
        let packet = rig.world.packet("ipip4-tcp", v6, 2);
        for offset in 0..16 {
            let packet = packet.with(|p| p.tcp_mut().data_offset = Some(offset));
            let what = format!("data offset {offset}, IPv6 {v6}");
            if (5..=6).contains(&offset) {
                rig.forwards(&what, "ipip4-tcp", &packet);
            } else {
                rig.drops(&what, &packet.build(), DropReason::TcpHeader);
                // Padding of the frame is no part of the segment.
                let padded = packet.with(|p| p.pad_to = 200);
                rig.drops(&format!("{what}, padded"), &padded.build(), DropReason::TcpHeader);
            }
        }
        let full = packet.with(|p| p.tcp_mut().options = vec![1; 40]);
        rig.forwards("40 bytes of options", "ipip4-tcp", &full);
    }
}

/// The UDP length: a header at least, and inside the packet.
#[test]
fn udp_length() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        // Five bytes of data: thirteen in all.
        let packet = rig.world.packet("gue4-udp", v6, 2);
        for length in (0..=20).chain([100, 1000, 65_535]) {
            let packet = packet.with(|p| p.udp_mut().length = Some(length));
            let what = format!("UDP length {length}, IPv6 {v6}");
            if (8..=13).contains(&length) {
                rig.forwards(&what, "gue4-udp", &packet);
            } else {
                rig.drops(&what, &packet.build(), DropReason::UdpLength);
                let padded = packet.with(|p| p.pad_to = 200);
                rig.drops(&format!("{what}, padded"), &padded.build(), DropReason::UdpLength);
            }
        }
        rig.forwards("no data", "gue4-udp", &packet.with(|p| p.payload().clear()));
        rig.forwards("no checksum", "gue4-udp", &packet.with(|p| p.udp_mut().no_checksum = true));
    }
}

/// A packet cut inside its transport header, its IP length cut with it: the frame's end is met first.
#[test]
fn cut_inside_the_transport_header() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for (service, header) in [("dsr4-tcp", 20), ("dsr4-udp", 8)] {
            let packet = rig.world.packet(service, v6, 3);
            let l4 = if v6 { 40 } else { 20 };
            for kept in 0..=header + 2 {
                let mut frame = packet.build();
                let total = l4 + kept;
                frame.truncate(14 + total);
                let (at, says) = if v6 { (18, kept) } else { (16, total) };
                frame[at..at + 2].copy_from_slice(&(says as u16).to_be_bytes());
                let what = format!("{service}: {kept} bytes of its header, IPv6 {v6}");
                if kept < header {
                    rig.drops(&what, &frame, DropReason::Truncated);
                } else if header == 8 {
                    // The UDP length still says thirteen.
                    rig.drops(&what, &frame, DropReason::UdpLength);
                } else {
                    assert_ne!(rig.run(&frame).0.verdict, Verdict::Drop, "{what}");
                }
            }
        }
    }
}
