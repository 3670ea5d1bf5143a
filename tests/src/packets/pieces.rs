//! Packets about packets: fragments of one, and the ICMP error that quotes one.

use super::{Extension, Net, Packet, Transport, build::checksum};
use std::net::{IpAddr, SocketAddr};

impl Packet {
    /// The packet in fragments of `size` bytes of payload (a multiple of 8), under this identification. It has no
    /// IPv6 extension headers.
    #[must_use]
    pub fn fragments(&self, id: u32, size: usize) -> Vec<Self> {
        assert!(size > 0 && size.is_multiple_of(8));
        let ip = self.ip();
        let (number, header) = match &self.net {
            Net::V4(v4) => (ip[9], 20 + v4.options.len()),
            Net::V6(v6) => {
                assert!(v6.extensions.is_empty());
                (ip[6], 40)
            }
        };
        let payload = &ip[header..];
        let count = payload.len().div_ceil(size);
        let piece = |(i, bytes): (usize, &[u8])| {
            let (offset, more) = ((i * size / 8) as u16, i + 1 < count);
            let mut piece = self.clone();
            piece.transport = Transport::Other(number, bytes.to_vec());
            match &mut piece.net {
                Net::V4(v4) => {
                    v4.id = id as u16;
                    v4.fragment = offset | if more { 0x2000 } else { 0 };
                }
                Net::V6(v6) => {
                    let mut extension = Extension::fragment(offset, more);
                    extension.bytes[4..].copy_from_slice(&id.to_be_bytes());
                    v6.extensions = vec![extension];
                }
            }
            piece
        };
        payload.chunks(size).enumerate().map(piece).collect()
    }

    /// What the other side answers: addresses and ports swapped.
    #[must_use]
    pub fn reversed(&self) -> Self {
        self.with(|p| {
            match &mut p.net {
                Net::V4(ip) => std::mem::swap(&mut ip.src, &mut ip.dst),
                Net::V6(ip) => std::mem::swap(&mut ip.src, &mut ip.dst),
            }
            match &mut p.transport {
                Transport::Tcp(tcp) => std::mem::swap(&mut tcp.src, &mut tcp.dst),
                Transport::Udp(udp) => std::mem::swap(&mut udp.src, &mut udp.dst),
                Transport::Echo(_) | Transport::Other(..) => {}
            }
        })
    }

    /// The ICMP error (type, code and the four bytes of rest) of a router about a packet whose first bytes it quotes.
    #[must_use]
    pub fn icmp_error(router: IpAddr, to: IpAddr, (kind, code, rest): (u8, u8, u32), quote: &[u8]) -> Self {
        let mut packet = Self::udp(SocketAddr::new(router, 0), SocketAddr::new(to, 0));
        let mut bytes = vec![kind, code, 0, 0];
        bytes.extend_from_slice(&rest.to_be_bytes());
        bytes.extend_from_slice(quote);
        // ICMP for IPv4 has no pseudo header (RFC 792).
        let (number, pseudo) = match packet.net {
            Net::V4(_) => (1, Vec::new()),
            Net::V6(_) => (58, packet.pseudo_header(58, bytes.len() as u32)),
        };
        let sum = checksum(&[&pseudo, &bytes]);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        packet.transport = Transport::Other(number, bytes);
        packet
    }
}
