//! Fragments: the first is decided by its ports, the others follow it.

use crate::{icmp::expires, rig::Rig};
use lb_common::{abi::VipEntry, core::DropReason};
use lb_tests::{
    kernel::{Verdict, vip},
    packets::{DOT1Q, Extension, Packet, SYN, Transport},
};

const MODES: [&str; 6] = ["dsr4", "dsr6", "ipip4", "ipip6", "gue4", "gue6"];

/// A datagram with so many bytes after the UDP header, in pieces.
fn pieces(rig: &Rig, service: &str, v6: bool, client: u16, size: usize) -> (Packet, Vec<Packet>) {
    let whole = rig.world.packet(service, v6, client);
    let whole = whole.with(|p| *p.payload() = (0..700).map(|i| i as u8).collect());
    let pieces = whole.fragments(0x1234_0000 + u32::from(client), size);
    (whole, pieces)
}

/// Every piece goes where the whole would have gone, in every mode, behind tags too.
#[test]
fn all_follow_the_first() {
    let mut rig = Rig::new();
    for mode in MODES {
        for v6 in [false, true] {
            for client in 0..6 {
                let service = format!("{mode}-udp");
                let (whole, mut pieces) = pieces(&rig, &service, v6, client, 256);
                assert_eq!(pieces.len(), 3);
                if client > 3 {
                    pieces.iter_mut().for_each(|p| p.tags = vec![(DOT1Q, 7)]);
                }
                for (i, piece) in pieces.iter().enumerate() {
                    let sent = rig.forwards_as(&format!("{service}, piece {i}"), &service, piece, &whole);
                    // No piece has a checksum of its own.
                    assert!(!sent.udp_checksum);
                }
                // The last one again, and the second after it.
                rig.forwards_as("again", &service, &pieces[2], &whole);
                rig.forwards_as("out of order", &service, &pieces[1], &whole);
            }
        }
    }
}

/// TCP too, if the header is whole in the first piece.
#[test]
fn tcp_in_pieces() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        for flags in [SYN, 0x18] {
            let whole = rig.world.packet("ipip4-tcp", v6, u16::from(flags)).with(|p| {
                p.tcp_mut().flags = flags;
                p.tcp_mut().options = vec![1; 12];
                p.tcp_mut().payload = vec![9; 100];
            });
            for piece in whole.fragments(u32::from(flags), 32) {
                rig.forwards_as("a piece", "ipip4-tcp", &piece, &whole);
            }
            // RFC 1858: the flags, or the options, are in the second piece.
            let tiny = whole.fragments(99, 24);
            rig.drops("options cut", &tiny[0].build(), DropReason::TcpHeader);
            let tiny = whole.fragments(98, 16);
            rig.drops("cut before the flags' end", &tiny[0].build(), DropReason::Truncated);
            // RFC 3128: one that would write over the flags.
            let (number, over) = (6, vec![0; 16]);
            let over = whole.fragments(u32::from(flags), 32)[0].with(|p| {
                p.transport = Transport::Other(number, over);
                match v6 {
                    false => p.v4().fragment = 1,
                    true => p.v6().extensions[0].bytes[2..4].copy_from_slice(&[0, 8]),
                }
            });
            rig.drops("at offset 8", &over.build(), DropReason::Fragment);
        }
    }
}

/// Another source, destination, protocol or identification is another datagram; none is known before its first piece.
#[test]
fn strangers_are_not_let_in() {
    let mut rig = Rig::new();
    // Traces are made older below, and no time lies before the machine's start.
    let up = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    std::thread::sleep(std::time::Duration::from_secs(40).saturating_sub(up.into()));
    for v6 in [false, true] {
        let (whole, all) = pieces(&rig, "gue4-udp", v6, 1, 256);
        rig.drops("before the first", &all[1].build(), DropReason::FragmentUnknown);
        rig.forwards_as("the first", "gue4-udp", &all[0], &whole);
        rig.forwards_as("the second", "gue4-udp", &all[1], &whole);
        let other = whole.fragments(0x1234_0002, 256);
        rig.drops("another identification", &other[1].build(), DropReason::FragmentUnknown);
        let other = pieces(&rig, "gue4-udp", v6, 2, 256).0.fragments(0x1234_0001, 256);
        rig.drops("another source", &other[1].build(), DropReason::FragmentUnknown);
        let other = pieces(&rig, "gue6-udp", v6, 1, 256).0.fragments(0x1234_0001, 256);
        rig.drops("another destination", &other[1].build(), DropReason::FragmentUnknown);
        if !v6 {
            let other = all[1].with(|p| p.transport = Transport::Other(6, vec![0; 32]));
            rig.drops("another protocol", &other.build(), DropReason::FragmentUnknown);
        }
        rig.balancer.age_fragments(29_000_000_000);
        rig.forwards_as("29 s later", "gue4-udp", &all[2], &whole);
        rig.balancer.age_fragments(2_000_000_000);
        rig.drops("31 s later", &all[2].build(), DropReason::FragmentUnknown);
        // RFC 791: longer than 65,535 bytes.
        let ping_of_death = all[1].with(|p| match v6 {
            false => p.v4().fragment = 0x1fff,
            true => p.v6().extensions[0].bytes[2..4].copy_from_slice(&[0xff, 0xf8]),
        });
        rig.drops("beyond the end of all datagrams", &ping_of_death.build(), DropReason::Fragment);
    }
}

/// A datagram for a port without a service is the kernel's, all of it.
#[test]
fn what_is_for_no_service_passes_whole() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let whole = pieces(&rig, "dsr4-udp", v6, 1, 256).0.with(|p| p.udp_mut().dst = 5353);
        for piece in whole.fragments(77, 256) {
            rig.passes("a piece", &piece.build());
        }
    }
}

/// The walk through the extension headers goes on behind the fragment header of a first fragment.
#[test]
fn options_behind_the_fragment_header() {
    let mut rig = Rig::new();
    let whole = rig.world.packet("ipip4-udp", true, 3);
    let first = whole.with(|p| {
        p.v6().extensions =
            vec![Extension::options(0, 1), Extension::fragment(0, true), Extension::options(60, 2)];
    });
    rig.forwards_as("first", "ipip4-udp", &first, &whole);
    let later = whole.with(|p| {
        p.v6().extensions = vec![Extension::options(0, 1), Extension::fragment(4, false)];
        // The next header of the fragmentable part, as in the first piece.
        p.transport = Transport::Other(60, vec![3; 40]);
    });
    rig.forwards_as("later", "ipip4-udp", &later, &whole);
}

/// First pieces are told what becomes of them, others are not (RFC 1122 section 3.2.2).
#[test]
fn only_first_pieces_are_answered() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let (whole, all) = pieces(&rig, "ipip4-udp", v6, 1, 256);
        expires(&mut rig, "the first", &all[0].with_ttl(1));
        rig.drops("unknown", &all[1].build(), DropReason::FragmentUnknown);
        rig.forwards_as("the first", "ipip4-udp", &all[0], &whole);
        rig.drops("the second", &all[1].with_ttl(1).build(), DropReason::TtlExceededUnanswered);
    }
    // An egress that is smaller than the pieces: the first one's sender is told, and of the others no trace is kept.
    for v6 in [false, true] {
        let whole = rig.world.packet("mtu150", v6, 1).with_ip_len(400);
        let pieces = whole.fragments(5, 200);
        let (outcome, moved) = rig.run(&pieces[0].build());
        assert_eq!((outcome.verdict, moved.packets(DropReason::TooBig)), (Verdict::Tx, 1));
        rig.drops("the second", &pieces[1].build(), DropReason::TooBigUnanswered);
    }
}

/// `fragments = false`: all are dropped and counted.
#[test]
fn fragments_can_be_refused() {
    let mut rig = Rig::new();
    let mut image = rig.world.image.clone();
    for v6 in [false, true] {
        image.vips.get_mut(&vip(12, v6)).unwrap().flags &= !VipEntry::FRAGMENTS;
    }
    rig.balancer.set_image(&image);
    for v6 in [false, true] {
        for piece in pieces(&rig, "ipip4-udp", v6, 1, 256).1 {
            rig.drops("off", &piece.build(), DropReason::Fragment);
        }
        let (whole, all) = pieces(&rig, "dsr4-udp", v6, 1, 256);
        rig.forwards_as("on", "dsr4-udp", &all[0], &whole);
    }
}
