//! Who sends a packet to whom. Pure.

use lb_common::{
    core::{Ip, Part},
    hash,
    wire::{eth, ipv4, ipv6, proto},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `struct virtio_net_hdr` in front of each packet: what of its checksum and its segments is still to be done.
pub(super) const VNET: usize = 10;

/// The two ends of a packet; of an ICMP echo the identifier stands for the port of who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) proto: u8,
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
}

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Of a conversation.
    Of(Ends),
    /// An ICMP error about a packet that had these ends.
    About(Ends),
}

/// Reads the packet that begins with this IP header. `None` for what no probe sends or is answered with: other protocols,
/// fragments behind the first, IPv6 extension headers.
pub(super) fn read(packet: &[u8]) -> Option<Seen> {
    let (src, dst, proto, payload) = addresses(packet)?;
    let word = |at: usize| payload.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let ends = |from: u16, to: u16| {
        Seen::Of(Ends { proto, src: SocketAddr::new(src, from), dst: SocketAddr::new(dst, to) })
    };
    if proto == proto::TCP || proto == proto::UDP {
        return Some(ends(word(0)?, word(2)?));
    }
    // RFC 792, RFC 4443.
    match (proto == proto::ICMP, *payload.first()?) {
        (true, 8) | (false, 128) => Some(ends(word(4)?, 0)),
        (true, 0) | (false, 129) => Some(ends(0, word(4)?)),
        (true, 3 | 11 | 12) | (false, 1..=4) => match read(payload.get(8..)?)? {
            Seen::Of(ends) => Some(Seen::About(ends)),
            // Nobody is told of an error about an error.
            Seen::About(_) => None,
        },
        _ => None,
    }
}

/// Source, destination, protocol, and what follows the IP header.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    let (src, dst, proto, payload): (IpAddr, IpAddr, u8, _) = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<{ ipv4::LEN }>()?;
            let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
            let [a, b] = [12, 16].map(|at| Ipv4Addr::from([0, 1, 2, 3].map(|i| header[at + i])));
            let payload = packet.get(usize::from(header[0] & 0xf) * 4..).filter(|_| offset == 0)?;
            (a.into(), b.into(), header[9], payload)
        }
        6 => {
            let header = packet.first_chunk::<{ ipv6::LEN }>()?;
            let address = |at: usize| header[at..at + 16].first_chunk::<16>().map(|a| Ipv6Addr::from(*a));
            (address(8)?.into(), address(24)?.into(), header[6], &packet[ipv6::LEN..])
        }
        _ => return None,
    };
    let icmp = if src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
    (proto == icmp || proto == proto::TCP || proto == proto::UDP).then_some((src, dst, proto, payload))
}

/// What the core needs of the IP header of a packet that [`read`] has read, behind an Ethernet header; and the flow hash.
pub(super) fn parsed(packet: &[u8], ends: &Ends, seed: u64) -> Option<(Ip, u64)> {
    let v6 = ends.src.is_ipv6();
    let (header_len, total_len, tos) = if v6 {
        let header = packet.first_chunk::<{ ipv6::LEN }>()?;
        let total = u16::from_be_bytes([header[4], header[5]]).checked_add(ipv6::LEN as u16)?;
        (ipv6::LEN, total, header[0] << 4 | header[1] >> 4)
    } else {
        let header = packet.first_chunk::<{ ipv4::LEN }>()?;
        (usize::from(header[0] & 0xf) * 4, u16::from_be_bytes([header[2], header[3]]), header[1])
    };
    if usize::from(total_len) > packet.len() || usize::from(total_len) < header_len {
        return None;
    }
    let ports = u32::from(ends.src.port()) << 16 | u32::from(ends.dst.port());
    let hash = match ends.src.ip() {
        IpAddr::V4(src) => hash::flow4(seed, src.into(), ports),
        IpAddr::V6(src) => {
            let src = u128::from(src);
            hash::flow6(seed, (src >> 64) as u64, src as u64, ports)
        }
    };
    let ip = Ip { l3: eth::LEN, header_len, v6, total_len, tos, proto: ends.proto, part: Part::Whole };
    Some((ip, hash))
}

/// The header of a packet whose first `cut` bytes are cut off: offsets in it are from the packet's beginning.
pub(super) fn cut_vnet(mut header: [u8; VNET], cut: u16) -> [u8; VNET] {
    const NEEDS_CSUM: u8 = 1;
    let mut less = |at: usize| {
        let offset = u16::from_ne_bytes([header[at], header[at + 1]]).saturating_sub(cut);
        header[at..at + 2].copy_from_slice(&offset.to_ne_bytes());
    };
    // hdr_len, which is a hint and 0 where there is nothing to cut apart.
    less(2);
    if header[0] & NEEDS_CSUM != 0 {
        let at = 6;
        let offset = u16::from_ne_bytes([header[at], header[at + 1]]).saturating_sub(cut);
        header[at..at + 2].copy_from_slice(&offset.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(proto: u8, src: [u8; 4], dst: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let total = (20 + payload.len()) as u16;
        let mut packet = vec![0x45, 0xb8];
        packet.extend(total.to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
        packet.extend(src.iter().chain(&dst).chain(payload));
        packet
    }

    const NODE: [u8; 4] = [10, 0, 0, 2];
    const VIP: [u8; 4] = [192, 0, 2, 10];

    #[test]
    fn ends_of_packets_and_of_what_errors_are_about() {
        let out = Ends { proto: 6, src: (NODE, 40_000).into(), dst: (VIP, 80).into() };
        let syn = v4(6, NODE, VIP, &[&40_000u16.to_be_bytes()[..], &80u16.to_be_bytes(), &[0; 16]].concat());
        assert_eq!(read(&syn), Some(Seen::Of(out)));
        let (ip, _) = parsed(&syn, &out, 7).unwrap();
        assert_eq!((ip.header_len, ip.total_len, ip.tos, ip.v6), (20, 40, 0xb8, false));
        let error = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &syn[..28]].concat();
        let error = v4(1, [10, 0, 0, 11], NODE, &error);
        assert_eq!(read(&error), Some(Seen::About(out)));
        let nested = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &error].concat();
        assert_eq!(read(&v4(1, [10, 0, 0, 11], NODE, &nested)), None);
        let id = 0x1234u16.to_be_bytes();
        let reply = v4(1, VIP, NODE, &[0, 0, 0, 0, id[0], id[1], 0, 1]);
        let Some(Seen::Of(ends)) = read(&reply) else { panic!("a reply") };
        assert_eq!((ends.src, ends.dst), ((VIP, 0).into(), (NODE, 0x1234).into()));
        let mut later = syn.clone();
        later[7] = 1;
        assert_eq!(read(&later), None);
    }

    #[test]
    fn the_checksum_is_found_where_the_packet_begins() {
        let word = |n: u16| n.to_ne_bytes();
        let header = |hdr_len: u16, start: u16| {
            let parts = [word(hdr_len), word(1448), word(start), word(16)].concat();
            <[u8; VNET]>::try_from([&[1, 1][..], &parts].concat()).unwrap()
        };
        assert_eq!(cut_vnet(header(66, 34), 14), header(52, 20));
        assert_eq!(cut_vnet([0; VNET], 14), [0; VNET]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 0..2u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if version == 0 { 0x40 | *first & 0xf } else { 0x60 };
            }
            if let Some(Seen::Of(ends)) = read(&bytes) {
                let _ = parsed(&bytes, &ends, 0);
            }
        }
    }
}
