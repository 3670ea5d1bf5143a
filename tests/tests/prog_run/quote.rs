//! ICMP errors to a VIP: to the backend whose packet they quote.

use crate::rig::Rig;
use lb_common::{
    abi::{Slot, SlotState},
    core::DropReason,
};
use lb_tests::{
    kernel::client_address,
    packets::{DOT1Q, Extension, Packet, SYN, Transport},
};
use std::net::IpAddr;

/// Types and codes of errors, IPv4 and IPv6.
const ERRORS: [&[(u8, u8, u32)]; 2] =
    [&[(3, 4, 1400), (3, 1, 0), (11, 0, 0), (12, 0, 0)], &[(1, 4, 0), (2, 0, 1280), (3, 0, 0), (4, 1, 40)]];

fn router(v6: bool) -> IpAddr {
    client_address(v6, 0xfefe)
}

/// The error of a router about a packet of the backend to the client of `flow`.
fn about(flow: &Packet, message: (u8, u8, u32), quoted: usize) -> Packet {
    let quote = flow.reversed().ip();
    let vip = flow.addresses().1;
    Packet::icmp_error(router(flow.is_v6()), vip, message, &quote[..quoted.min(quote.len())])
}

/// The whole packet quoted, or only the 8 bytes of transport header that RFC 792 promises; every mode.
#[test]
fn the_right_backend_hears_of_it() {
    let mut rig = Rig::new();
    for mode in ["dsr4", "dsr6", "ipip4", "ipip6", "gue4", "gue6"] {
        for protocol in ["tcp", "udp"] {
            for v6 in [false, true] {
                let service = format!("{mode}-{protocol}");
                for client in 0..8 {
                    let flow = rig.world.packet(&service, v6, client).with_ip_len(200);
                    let header = if v6 { 40 } else { 20 };
                    for message in ERRORS[usize::from(v6)] {
                        for quoted in [header + 4, header + 8, 100, 128, 200] {
                            let error = about(&flow, *message, quoted);
                            let what = format!("{service}, {message:?}, {quoted} bytes");
                            rig.forwards_as(&what, &service, &error, &flow);
                        }
                    }
                    let error = about(&flow, ERRORS[usize::from(v6)][0], 128);
                    rig.forwards_as("tagged", &service, &error.with(|p| p.tags = vec![(DOT1Q, 3)]), &flow);
                }
            }
        }
    }
}

/// IP options and extension headers, outside and in the quote.
#[test]
fn headers_of_other_lengths() {
    let mut rig = Rig::new();
    let flow = rig.world.packet("ipip4-tcp", false, 5);
    let error = about(&flow.with(|p| p.v4().options = vec![1; 40]), (3, 4, 1400), 68);
    rig.forwards_as("options in the quote", "ipip4-tcp", &error, &flow);
    let error = about(&flow, (3, 4, 1400), 28).with(|p| p.v4().options = vec![1; 20]);
    rig.forwards_as("options outside", "ipip4-tcp", &error, &flow);
    let first = about(&flow.with(|p| p.v4().fragment = 0x2000), (3, 4, 1400), 28);
    rig.forwards_as("the first fragment of a packet", "ipip4-tcp", &first, &flow);
    let flow = rig.world.packet("ipip4-tcp", true, 5);
    let extensions = vec![Extension::options(60, 2), Extension::fragment(0, true)];
    let error = about(&flow.with(|p| p.v6().extensions = extensions), (2, 0, 1280), 100);
    rig.forwards_as("extensions in the quote", "ipip4-tcp", &error, &flow);
    let error = about(&flow, (2, 0, 1280), 48).with(|p| p.v6().extensions = vec![Extension::options(60, 1)]);
    rig.forwards_as("extensions outside", "ipip4-tcp", &error, &flow);
}

/// A quote that does not tell the flow.
#[test]
fn bad_quotes_are_counted() {
    let mut rig = Rig::new();
    let flow = rig.world.packet("ipip4-tcp", false, 5);
    let error = |packet: &Packet, quoted| about(packet, (3, 4, 1400), quoted).build();
    rig.drops("ports cut", &error(&flow, 23), DropReason::IcmpQuote);
    rig.drops("no ports", &error(&flow, 20), DropReason::IcmpQuote);
    for length in [0x44, 0x40, 0x65] {
        let lies = flow.with(|p| p.v4().version_ihl = Some(length));
        rig.drops("header length", &error(&lies, 40), DropReason::IcmpQuote);
    }
    rig.drops("later fragment", &error(&flow.with(|p| p.v4().fragment = 9), 40), DropReason::IcmpQuote);
    // Its own length ends before the ports it seems to quote.
    let short = about(&flow, (3, 4, 1400), 40).with(|p| p.v4().total_len = Some(20 + 8 + 22));
    rig.drops("the error's length", &short.build(), DropReason::IcmpQuote);
    let flow = rig.world.packet("ipip4-tcp", true, 5);
    let error = |packet: &Packet, quoted| about(packet, (2, 0, 1280), quoted).build();
    rig.drops("ports cut", &error(&flow, 43), DropReason::IcmpQuote);
    let later = flow.with(|p| p.v6().extensions = vec![Extension::fragment(2, true)]);
    rig.drops("later fragment", &error(&later, 60), DropReason::IcmpQuote);
    let endless = flow.with(|p| p.v6().extensions = vec![Extension::options(60, 1); 8]);
    rig.drops("too many extensions", &error(&endless, 128), DropReason::IcmpQuote);
    let version = flow.with(|p| p.v6().version = 4);
    rig.drops("version", &error(&version, 60), DropReason::IcmpQuote);
    for v6 in [false, true] {
        let flow = rig.world.packet("empty", v6, 5);
        let error = about(&flow, ERRORS[usize::from(v6)][0], 100);
        rig.drops("no backend", &error.build(), DropReason::NoBackend);
        let flow = rig.world.packet("ipip4-tcp", v6, 5);
        let error = about(&flow, ERRORS[usize::from(v6)][0], 100);
        rig.drops("TTL 1", &error.with_ttl(1).build(), DropReason::TtlExceededUnanswered);
        // An error that does not fit the egress is not answered by another one (RFC 1122 section 3.2.2).
        let flow = rig.world.packet("mtu100", v6, 5).with_ip_len(200);
        let error = about(&flow, ERRORS[usize::from(v6)][0], 128);
        rig.drops("too big", &error.build(), DropReason::TooBigUnanswered);
    }
}

/// About somebody else's packets: the kernel's.
#[test]
fn what_quotes_no_service_passes() {
    let mut rig = Rig::new();
    for v6 in [false, true] {
        let message = ERRORS[usize::from(v6)][0];
        let flow = rig.world.packet("dsr4-tcp", v6, 5);
        let vip = flow.addresses().1;
        let port = flow.with(|p| p.tcp_mut().dst = 22);
        rig.passes("the host's own port", &about(&port, message, 100).build());
        let quote = flow.ip();
        let turned = Packet::icmp_error(router(v6), vip, message, &quote);
        rig.passes("a packet to the VIP, not from it", &turned.build());
        let ping = flow.with(|p| p.transport = Transport::Echo(vec![0; 20]));
        rig.passes("the host's own ping", &about(&ping, message, 100).build());
        let stub = Packet::icmp_error(router(v6), vip, message, &quote[..10]);
        rig.passes("no IP header quoted", &stub.build());
        for kind in [4, 5, 9, 13, 100, 137] {
            if v6 && kind == 4 {
                continue;
            }
            rig.passes("another type", &about(&flow, (kind, 0, 0), 100).build());
        }
    }
}

/// A slot that is moving: the error follows the flow's entry, changes nothing and records nothing.
#[test]
fn errors_follow_recorded_flows() {
    let mut rig = Rig::new();
    let id = rig.world.image.service_id("dsr4-tcp").unwrap();
    let mut image = rig.world.image.clone();
    let backends: Vec<u32> =
        image.backends.iter().filter(|(_, b)| b.entry.service == id).map(|(id, _)| *id).collect();
    let (owner, home) = (backends[0], backends[1]);
    let ring = image.rings.get_mut(&id).unwrap();
    ring.update(|words| words.fill(Slot::new(owner, home, SlotState::Moving, 1)));
    rig.balancer.set_image(&image);
    let backend = |moved: &lb_tests::kernel::Counters| {
        use lb_tests::kernel::Counter;
        backends.iter().copied().find(|id| moved.packets(Counter::Backend(*id)) == 1)
    };
    for v6 in [false, true] {
        let message = ERRORS[usize::from(v6)][0];
        let flow = rig.world.packet("dsr4-tcp", v6, 5);
        let new = rig.world.packet("dsr4-tcp", v6, 6).with(|p| p.tcp_mut().flags = SYN);
        let before = rig.balancer.flows();
        let moved = rig.run(&about(&flow, message, 100).build()).1;
        assert_eq!((backend(&moved), rig.balancer.flows()), (Some(home), before), "unknown: {moved:?}");
        assert_eq!(backend(&rig.run(&new.build()).1), Some(owner));
        let before = rig.balancer.entries();
        let moved = rig.run(&about(&new, message, 100).build()).1;
        assert_eq!((backend(&moved), rig.balancer.entries()), (Some(owner), before), "recorded: {moved:?}");
    }
}
