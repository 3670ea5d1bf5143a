//! A frame's headers, readable.

use crate::control::observe::{HeaderView, HeadersView};
use lb_common::{
    packet::{Buffer, Packet},
    wire::{eth, ipv4, ipv6, proto, udp, vlan},
};
use std::net::IpAddr;

/// A protocol by name where it has one here, else by number.
pub(super) fn protocol(number: u8) -> String {
    match number {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        proto::IPV4 | proto::IPV6 => "ipip".to_owned(),
        other => other.to_string(),
    }
}

/// The headers of a frame that leaves; `tunnel` tells that the first IP header is the balancer's own. `None`: the frame
/// is too short for them.
pub(super) fn read(frame: &[u8], tunnel: bool) -> Option<HeadersView> {
    let packet = Buffer::new(frame);
    let link = packet.view::<{ eth::LEN }>(0)?;
    let mac = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let (mut kind, mut at, mut tag) = (link.u16::<{ eth::TYPE }>(), eth::LEN, None);
    while kind == eth::VLAN || kind == eth::SERVICE_VLAN {
        let header = packet.view::<{ vlan::LEN }>(at)?;
        tag.get_or_insert(header.u16::<0>() & 0xfff);
        (kind, at) = (header.u16::<2>(), at + vlan::LEN);
    }
    let (first, next, inside) = network(&packet, at)?;
    let (outer, inner) = if tunnel {
        let skip = if next == proto::UDP { udp::LEN } else { 0 };
        (Some(first), network(&packet, inside + skip)?.0)
    } else {
        (None, first)
    };
    Some(HeadersView {
        destination_mac: mac(&link.0[..6]),
        source_mac: mac(&link.0[6..12]),
        vlan: tag,
        outer,
        packet: inner,
        length: frame.len(),
    })
}

/// An IP header, its protocol's number and where what it carries begins.
fn network(packet: &Buffer, at: usize) -> Option<(HeaderView, u8, usize)> {
    let (source, destination, number, ttl, inside);
    match packet.view::<1>(at)?.u8::<0>() >> 4 {
        4 => {
            let header = packet.view::<{ ipv4::LEN }>(at)?;
            source = IpAddr::from(header.raw32::<{ ipv4::SRC }>().to_ne_bytes());
            destination = IpAddr::from(header.raw32::<{ ipv4::DST }>().to_ne_bytes());
            (number, ttl) = (header.u8::<{ ipv4::PROTO }>(), header.u8::<{ ipv4::TTL }>());
            inside = at + usize::from(header.u8::<{ ipv4::VIHL }>() & 0xf) * 4;
        }
        6 => {
            let header = packet.view::<{ ipv6::LEN }>(at)?;
            source = IpAddr::from(*packet.view::<16>(at + ipv6::SRC)?.0);
            destination = IpAddr::from(*packet.view::<16>(at + ipv6::DST)?.0);
            (number, ttl) = (header.u8::<{ ipv6::NEXT }>(), header.u8::<{ ipv6::HOP_LIMIT }>());
            inside = at + ipv6::LEN;
        }
        _ => return None,
    }
    let ports = packet.view::<4>(inside).filter(|_| number == proto::TCP || number == proto::UDP);
    let view = HeaderView {
        source,
        destination,
        protocol: protocol(number),
        source_port: ports.map(|p| p.u16::<0>()),
        destination_port: ports.map(|p| p.u16::<2>()),
        ttl,
    };
    Some((view, number, inside))
}
