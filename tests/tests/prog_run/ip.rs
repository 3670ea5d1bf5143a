//! IPv4 options, IPv6 extension headers, fragments, lengths and TTL.

use crate::rig::Rig;
use lb_common::core::DropReason;
use lb_tests::packets::{Extension, Packet, SYN, Transport};

/// Every header length an IPv4 packet can have, in every mode.
#[test]
fn ipv4_options() {
    let mut rig = Rig::new();
    for mode in ["dsr4", "ipip4", "ipip6", "gue4", "gue6"] {
        for words in 0..=10 {
            for protocol in ["tcp", "udp"] {
                let service = format!("{mode}-{protocol}");
                let packet = rig.world.packet(&service, false, words as u16);
                let packet = packet.with(|p| p.v4().options = (0..4 * words).map(|i| i as u8).collect());
                rig.forwards(&format!("{service}, {words} words of options"), &service, &packet);
            }
        }
    }
}

/// Impossible versions and header lengths; a header longer than the packet.
#[test]
fn ipv4_header_length() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("dsr4-tcp", false, 1);
    for vihl in [0x40, 0x41, 0x44, 0x35, 0x55, 0x65, 0x05, 0xf5] {
        let bad = packet.with(|p| p.v4().version_ihl = Some(vihl));
        rig.drops(&format!("version and length {vihl:#x}"), &bad.build(), DropReason::IpHeader);
    }
    // Fifteen words, but the packet has eleven.
    let bad = packet.with(|p| p.v4().version_ihl = Some(0x4f));
    rig.drops("a header beyond the packet", &bad.build(), DropReason::IpLength);
    rig.forwards("the right one", "dsr4-tcp", &packet);
}

/// The total length may be shorter than the frame (padding), never longer, never inside the header.
#[test]
fn ip_length() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let packet = rig.world.packet("dsr4-tcp", v6, 1);
        let len = packet.ip().len() as u16;
        let says = |total: u16| {
            packet.with(|p| match v6 {
                false => p.v4().total_len = Some(total),
                true => p.v6().payload_len = Some(total.wrapping_sub(40)),
            })
        };
        rig.forwards("exactly the frame", "dsr4-tcp", &says(len));
        rig.drops("one byte beyond the frame", &says(len + 1).build(), DropReason::IpLength);
        rig.drops("as far beyond as can be", &says(u16::MAX).build(), DropReason::IpLength);
        let inside = if v6 { 39 } else { 19 };
        rig.drops("inside the header", &says(inside).build(), DropReason::IpLength);
        rig.drops("no payload", &says(inside + 1).build(), DropReason::IpLength);
        rig.drops("seven bytes of payload", &says(inside + 8).build(), DropReason::IpLength);
        rig.drops("half a TCP header", &says(inside + 9).build(), DropReason::TcpHeader);
        // The data cut off: the rest of the frame is padding.
        let header: u16 = if v6 { 60 } else { 40 };
        let shorter = says(header).build();
        let (outcome, moved) = rig.run(&shorter);
        assert_eq!(outcome.frame.len(), shorter.len());
        assert_eq!(moved.iter().map(|(_, stats)| stats.1).collect::<Vec<_>>(), [u64::from(header); 2]);
    }
    let jumbo = rig.world.packet("dsr4-tcp", true, 1).with(|p| p.v6().payload_len = Some(0));
    rig.drops("a jumbogram", &jumbo.build(), DropReason::IpLength);
}

/// The reserved bit; other fragments are in `fragments.rs`.
#[test]
fn ipv4_fragments() {
    let mut rig = Rig::new();
    for service in ["dsr4-tcp", "ipip4-udp"] {
        let packet = rig.world.packet(service, false, 1);
        let with = |fragment| packet.with(|p| p.v4().fragment = fragment);
        rig.forwards("don't fragment", service, &with(0x4000));
        rig.forwards("may be fragmented", service, &with(0));
        for fragment in [0x8000, 0xc000, 0xa000, 0xffff] {
            rig.drops(&format!("flags {fragment:#x}"), &with(fragment).build(), DropReason::IpFlags);
        }
        let ping = with(0x2000).with(|p| p.transport = Transport::Echo(vec![1; 64]));
        rig.passes("a ping in fragments is the kernel's", &ping.build());
        rig.passes("its second half", &ping.with(|p| p.v4().fragment = 8).build());
    }
}

/// Each kind of extension header, alone and of several sizes.
#[test]
fn ipv6_extension_headers() {
    let mut rig = Rig::new();
    for mode in ["dsr4", "ipip6", "gue4", "gue6"] {
        for protocol in ["tcp", "udp"] {
            let service = format!("{mode}-{protocol}");
            for number in [0, 43, 60, 135, 139, 140] {
                for units in [1, 2, 7, 59] {
                    let packet = rig.world.packet(&service, true, u16::from(units));
                    let packet = packet.with(|p| p.v6().extensions = vec![Extension::options(number, units)]);
                    rig.forwards(&format!("{service}, header {number}, {units} units"), &service, &packet);
                }
            }
            for words in [0, 1, 3, 9] {
                let packet = rig.world.packet(&service, true, 1);
                let packet = packet.with(|p| p.v6().extensions = vec![Extension::authentication(words)]);
                rig.forwards(&format!("{service}, authentication, {words} words"), &service, &packet);
            }
        }
    }
}

/// Six headers are walked through, a seventh is too many; 512 bytes in all, no more.
#[test]
fn ipv6_extension_limits() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("dsr4-tcp", true, 1);
    let chain = |units: &[u8]| {
        packet.with(|p| p.v6().extensions = units.iter().map(|u| Extension::options(60, *u)).collect())
    };
    for n in 1..=6 {
        rig.forwards(&format!("{n} headers"), "dsr4-tcp", &chain(&vec![1; n]));
    }
    rig.drops("seven headers", &chain(&[1; 7]).build(), DropReason::Ipv6Extension);
    rig.drops("thirty headers", &chain(&[1; 30]).build(), DropReason::Ipv6Extension);
    rig.forwards("512 bytes of headers", "dsr4-tcp", &chain(&[59]));
    rig.drops("520 bytes of headers", &chain(&[60]).build(), DropReason::Ipv6Extension);
    rig.forwards("512 bytes in six", "dsr4-tcp", &chain(&[54, 1, 1, 1, 1, 1]));
    rig.drops("520 bytes in six", &chain(&[55, 1, 1, 1, 1, 1]).build(), DropReason::Ipv6Extension);
    let mixed = packet.with(|p| {
        p.v6().extensions = vec![
            Extension::options(0, 1),
            Extension::options(60, 2),
            Extension::options(43, 1),
            Extension::fragment(0, false),
            Extension::authentication(3),
            Extension::options(60, 1),
        ];
    });
    rig.forwards("the order of RFC 8200 section 4.1", "dsr4-tcp", &mixed);
}

/// A chain that ends outside the packet or the frame.
#[test]
fn ipv6_extension_beyond_the_packet() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("dsr4-tcp", true, 1);
    let one = packet.with(|p| p.v6().extensions = vec![Extension::options(60, 1)]);
    // It says it is 16 bytes longer than the packet, and the frame has padding for it.
    let longer = one.with(|p| {
        p.v6().extensions[0].bytes[1] = 6;
        p.pad_to = 200;
    });
    rig.drops("into the padding", &longer.build(), DropReason::IpLength);
    let empty = one.with(|p| {
        p.transport = Transport::Other(6, vec![]);
        p.v6().extensions[0].bytes[1] = 1;
    });
    rig.drops("into nothing", &empty.build(), DropReason::IpLength);
    let cut = packet.with(|p| {
        p.transport = Transport::Other(60, vec![6, 0, 1, 4]);
    });
    rig.drops("half an extension header", &cut.build(), DropReason::Truncated);
    rig.forwards("the whole", "dsr4-tcp", &one);
}

/// Fragments of other protocols are the kernel's; an atomic fragment (RFC 6946) is a whole packet.
#[test]
fn ipv6_fragments() {
    let mut rig = Rig::new();
    for service in ["dsr4-tcp", "gue6-udp"] {
        let packet = rig.world.packet(service, true, 1);
        let with =
            |offset, more| packet.with(|p| p.v6().extensions = vec![Extension::fragment(offset, more)]);
        rig.forwards("an atomic fragment", service, &with(0, false));
        for (offset, more) in [(0, true), (1, false), (1, true), (0x1fff, false)] {
            let ping = with(offset, more).with(|p| p.transport = Transport::Echo(vec![1; 64]));
            rig.passes("a ping in fragments is the kernel's", &ping.build());
        }
        // The two reserved bits between offset and flag mean nothing (RFC 8200 section 4.5).
        let reserved = with(0, false).with(|p| p.v6().extensions[0].bytes[3] |= 0b110);
        rig.forwards("reserved bits", service, &reserved);
    }
}

/// A packet with a routing header that has segments left ends elsewhere.
#[test]
fn ipv6_routing_header() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("ipip6-tcp", true, 1);
    let with = |left| packet.with(|p| p.v6().extensions = vec![Extension::routing(left)]);
    rig.forwards("no segments left", "ipip6-tcp", &with(0));
    for left in [1, 2, 255] {
        rig.passes(&format!("{left} segments left"), &with(left).build());
    }
}

/// Versions that contradict the EtherType.
#[test]
fn ipv6_version() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("dsr4-tcp", true, 1);
    for version in [0, 4, 5, 7, 15] {
        let bad = packet.with(|p| p.v6().version = version);
        rig.drops(&format!("version {version}"), &bad.build(), DropReason::IpHeader);
    }
    rig.forwards("version 6", "dsr4-tcp", &packet);
}

/// TTL or hop limit 0 and 1 end here, 2 and more go on with one less, in every mode.
#[test]
fn ttl() {
    let mut rig = Rig::new();
    for mode in ["dsr4", "ipip4", "ipip6", "gue4", "gue6"] {
        for v6 in [false, true] {
            let service = format!("{mode}-tcp");
            let packet: Packet = rig.world.packet(&service, v6, 3).with(|p| p.tcp_mut().flags = SYN);
            for ttl in [0, 1] {
                crate::icmp::expires(&mut rig, &format!("{service}, TTL {ttl}"), &packet.with_ttl(ttl));
            }
            for ttl in [2, 3, 64, 128, 255] {
                rig.forwards(&format!("{service}, TTL {ttl}"), &service, &packet.with_ttl(ttl));
            }
        }
    }
}

/// The IPv4 checksum is updated, not made anew: one that was wrong arrives wrong, for the backend to drop; and
/// of all 65,536 headers that differ in the identification alone, every one arrives right.
#[test]
fn ipv4_checksum() {
    let mut rig = Rig::new();
    let packet = rig.world.packet("dsr4-tcp", false, 1);
    let mut frame = packet.build();
    frame[25] ^= 0x55;
    let out = rig.run(&frame).0.frame;
    let parsed = lb_tests::packets::check::parse(&out).expect("an IPv4 packet");
    assert!(!parsed.checksum_ok, "a wrong checksum must not be made right");
    for id in 0..=u16::MAX {
        let frame = packet.with(|p| p.v4().id = id).build();
        let out = rig.balancer.run(&frame).frame;
        let parsed = lb_tests::packets::check::parse(&out).expect("an IPv4 packet");
        assert!(parsed.checksum_ok && parsed.ttl == 63, "identification {id:#x}");
    }
}
