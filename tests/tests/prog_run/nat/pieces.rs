//! Fragments through NAT: each leaves as the fragment of the packet with the other addresses would, either way.

use super::*;

/// A datagram of three pieces.
fn long(src: SocketAddr, dst: SocketAddr) -> Packet {
    Packet::udp(src, dst).with(|p| {
        p.udp_mut().payload = (0..3000u16).map(|i| (i % 251) as u8).collect();
        if let Net::V4(ip) = &mut p.net {
            ip.fragment = 0;
        }
    })
}

const SIZE: usize = 1200;

/// The pieces of a packet leave as those of `expected`, the last one first when they have been seen once.
#[track_caller]
fn follow(lab: &mut Lab, packet: &Packet, expected: &Packet, macs: [u8; 12], id: u32) {
    let (pieces, wanted) = (packet.fragments(id, SIZE), expected.fragments(id, SIZE));
    assert_eq!(pieces.len(), 3);
    for (piece, wanted) in pieces.iter().zip(&wanted).chain(pieces.iter().zip(&wanted).rev()) {
        lab.becomes(piece, wanted, macs);
        let tagged = piece.with(|p| p.tags = vec![(0x8100, 7)]);
        lab.becomes(&tagged, wanted, macs);
    }
}

#[test]
fn either_way() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        for (n, port) in [NAT, SNAT].into_iter().enumerate() {
            let from = SocketAddr::from((client(v6, 1), 40_000));
            let (vip, to) = (SocketAddr::from((udp_vip(v6), port)), SocketAddr::from((server(v6), BEHIND)));
            let at = source(&lab.run(&Packet::udp(from, vip)));
            let packet = long(from, vip);
            let reply = moved(&packet, to, at);
            // No piece is known before its first one. What cannot be told from others' traffic is the kernel's.
            let early = &packet.fragments(9, SIZE)[1];
            lab.drops(early, DropReason::FragmentUnknown);
            let early = &reply.fragments(9, SIZE)[2];
            if port == NAT {
                assert_eq!(lab.run(early).verdict, Verdict::Pass);
            } else {
                lab.drops(early, DropReason::FragmentUnknown);
            }
            let id = 0x100 + n as u32;
            assert_eq!(at == from, port == NAT);
            follow(&mut lab, &packet, &moved(&packet, at, to), BACKEND_MAC, id);
            follow(&mut lab, &reply, &moved(&packet, vip, from), CLIENT_MAC, id + 32);
        }
    }
}

/// TCP in pieces, too: nothing but its header must be whole in the first.
#[test]
fn of_tcp() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let (vip, to) = (SocketAddr::from((vip(v6), SNAT)), SocketAddr::from((server(v6), BEHIND)));
        let syn = Packet::tcp(from, vip).with(|p| p.tcp_mut().flags = SYN);
        let at = source(&lab.run(&syn));
        let packet = Packet::tcp(from, vip).with(|p| p.tcp_mut().payload = vec![9; 3000]);
        follow(&mut lab, &packet, &moved(&packet, at, to), BACKEND_MAC, 1);
        let reply = moved(&packet, to, at);
        follow(&mut lab, &reply, &moved(&packet, vip, from), CLIENT_MAC, 2);
    }
}

/// A backend that is its own client, whose replies go to the virtual address.
#[test]
fn hairpins() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let (from, to) = (SocketAddr::from((server(v6), 40_000)), SocketAddr::from((server(v6), BEHIND)));
        let vip = SocketAddr::from((udp_vip(v6), HAIRPIN));
        let at = source(&lab.run(&Packet::udp(from, vip)));
        assert_eq!(at.ip(), vip.ip());
        let packet = long(from, vip);
        follow(&mut lab, &packet, &moved(&packet, at, to), BACKEND_MAC, 1);
        let reply = moved(&packet, to, at);
        follow(&mut lab, &reply, &moved(&packet, vip, from), CLIENT_MAC, 2);
    }
}

/// What would need a header of the other version in each piece is dropped and counted, and so is a piece that does not fit.
#[test]
fn what_does_not_pass() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let cross = SocketAddr::from((udp_vip(v6), CROSS));
        let packet = long(from, cross);
        let at = crossed(&Packet::udp(from, cross), &lab.run(&Packet::udp(from, cross)), BACKEND_MAC);
        lab.drops(&packet.fragments(1, SIZE)[0], DropReason::Fragment);
        lab.drops(&packet.fragments(1, SIZE)[1], DropReason::FragmentUnknown);
        lab.drops(&long(at.1, at.0).fragments(2, SIZE)[0], DropReason::Fragment);

        let vip = SocketAddr::from((udp_vip(v6), SNAT));
        let to = SocketAddr::from((server(v6), BEHIND));
        let at = source(&lab.run(&Packet::udp(from, vip)));
        let packet = long(from, vip);
        let reply = moved(&packet, to, at);
        follow(&mut lab, &reply, &moved(&packet, vip, from), CLIENT_MAC, 3);
        let pieces = reply.fragments(3, SIZE);
        lab.drops(&pieces[1].with_ttl(1), DropReason::TtlExceededUnanswered);
        lab.exit(client(v6, 1), 1000);
        lab.drops(&pieces[1], DropReason::TooBigUnanswered);
        lab.exit(client(v6, 1), 1500);
        // Somebody else's datagram.
        let other = reply.fragments(4, SIZE);
        lab.drops(&other[1], DropReason::FragmentUnknown);
    }
}
