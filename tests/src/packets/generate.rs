//! Packets by the million, from a seed: packet number `i` of a seed is the same for ever.

use super::{Extension, Net, Packet, Transport};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// SplitMix64 (Steele, Lea and Flood 2014): small, and the same on every version of every library.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// So many random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.bits().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Makes packets for a set of VIPs.
#[derive(Debug, Clone)]
pub struct Generator {
    seed: u64,
    vips4: Vec<Ipv4Addr>,
    vips6: Vec<Ipv6Addr>,
    ports: Vec<u16>,
    max_len: usize,
    /// Clients there are; 0 = no end of them.
    clients: usize,
}

impl Generator {
    /// Packets of `seed` to these VIPs and ports (and, now and then, to others), of at most `max_len` bytes of payload.
    #[must_use]
    pub fn new(seed: u64, vips: &[IpAddr], ports: &[u16], max_len: usize) -> Self {
        let mut generator =
            Self { seed, vips4: Vec::new(), vips6: Vec::new(), ports: ports.to_vec(), max_len, clients: 0 };
        for vip in vips {
            match vip {
                IpAddr::V4(vip) => generator.vips4.push(*vip),
                IpAddr::V6(vip) => generator.vips6.push(*vip),
            }
        }
        generator
    }

    /// The same from so many clients of one port each, whose flows therefore come back.
    #[must_use]
    pub fn with_clients(self, clients: usize) -> Self {
        Self { clients, ..self }
    }

    /// Frame number `index`: two of three are valid packets, the rest are mutated.
    #[must_use]
    pub fn frame(&self, index: u64) -> Vec<u8> {
        let mut rng = Rng::new(self.seed ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.bits();
        let packet = self.packet(&mut rng);
        let mut frame = packet.build();
        if rng.percent(35) {
            let l3 = packet.l3();
            self.mutate(&mut rng, &mut frame, l3);
        }
        frame
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// A valid packet, but for what a client may choose freely.
    pub(super) fn packet(&self, rng: &mut Rng) -> Packet {
        let v6 = rng.percent(50);
        let (src, dst) = self.addresses(rng, v6);
        let (mut sport, dport) = (rng.bits() as u16, self.port(rng));
        if self.clients > 0 {
            sport = 40_000;
        }
        let mut packet = if rng.percent(65) {
            let mut packet = Packet::tcp((src, sport).into(), (dst, dport).into());
            let tcp = packet.tcp_mut();
            let usual = [0x02, 0x10, 0x12, 0x18, 0x11, 0x04, 0x14, 0xc2];
            tcp.flags = if rng.percent(80) { rng.pick(&usual) } else { rng.bits() as u8 };
            tcp.options = vec![1; 4 * rng.below(11)];
            packet
        } else {
            let mut packet = Packet::udp((src, sport).into(), (dst, dport).into());
            packet.udp_mut().no_checksum = rng.percent(20);
            if rng.percent(5) {
                packet.udp_mut().surplus = rng.bytes(1 + (sport & 7) as usize);
            }
            packet
        };
        if rng.percent(4) {
            let bytes = rng.bytes(20);
            packet.transport = if rng.percent(60) {
                Transport::Echo(bytes)
            } else {
                Transport::Other(rng.bits() as u8, bytes)
            };
        }
        let len = if rng.percent(90) { rng.below(120) } else { rng.below(self.max_len) };
        *packet.payload() = rng.bytes(len);
        packet.tags = match rng.below(10) {
            0 => vec![(0x8100, rng.bits() as u16)],
            1 => vec![(0x88a8, rng.bits() as u16), (0x8100, rng.bits() as u16)],
            2 if rng.percent(50) => vec![(0x8100, 1), (0x8100, 2)],
            3 if rng.percent(20) => vec![(0x8100, 1), (0x8100, 2), (0x8100, 3)],
            4 if rng.percent(20) => vec![(0x88a8, 1), (0x88a8, 2)],
            5 if rng.percent(20) => vec![(0x88a8, 1)],
            _ => Vec::new(),
        };
        packet.pad_to = if rng.percent(50) { 60 } else { 0 };
        if rng.percent(3) {
            packet.dst_mac[0] |= 1;
        }
        let ttl = if rng.percent(90) { 64 } else { rng.below(4) as u8 };
        let tos = if rng.percent(50) { 0 } else { rng.bits() as u8 };
        packet = packet.with_ttl(ttl).with_tos(tos);
        match &mut packet.net {
            Net::V4(ip) => {
                ip.id = rng.bits() as u16;
                if rng.percent(15) {
                    let words = rng.below(11);
                    ip.options = rng.bytes(4 * words);
                }
                if rng.percent(8) {
                    let random = rng.bits() as u16;
                    ip.fragment = rng.pick(&[0x2000, 0x2000, 0x6000, 0x2003, 5, 1, random]);
                    // Few datagrams, so that pieces find their first.
                    (ip.id, ip.src) = (rng.below(2) as u16, Ipv4Addr::new(203, 0, 114, rng.below(2) as u8));
                }
            }
            Net::V6(ip) => {
                ip.flow_label = rng.bits() as u32 & 0xf_ffff;
                if rng.percent(8) {
                    ip.src = Ipv6Addr::new(0x2001, 0xdb8, 0xd, 0, 0, 0, 0, rng.below(2) as u16);
                    let (offset, more) = rng.pick(&[(0, true), (0, true), (3, true), (5, false), (1, false)]);
                    ip.extensions = vec![Extension::fragment(offset, more)];
                } else if rng.percent(30) {
                    ip.extensions = (0..rng.below(8)).map(|_| extension(rng)).collect();
                }
            }
        }
        if rng.percent(4) {
            return error_about(rng, &packet);
        }
        packet
    }

    fn addresses(&self, rng: &mut Rng, v6: bool) -> (IpAddr, IpAddr) {
        let known = rng.percent(95);
        if v6 {
            let mut src = Ipv6Addr::from_bits(u128::from(rng.bits()) << 64 | u128::from(rng.bits()));
            if self.clients > 0 {
                src = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, rng.below(self.clients) as u16);
            }
            let mut dst = rng.pick(&self.vips6);
            if !known {
                dst = Ipv6Addr::from_bits(dst.to_bits() ^ 1 << rng.below(128));
            }
            (src.into(), dst.into())
        } else {
            let mut src = Ipv4Addr::from_bits(rng.bits() as u32);
            if self.clients > 0 {
                src = Ipv4Addr::from_bits(0xcb00_7100 + rng.below(self.clients) as u32);
            }
            let mut dst = rng.pick(&self.vips4);
            if !known {
                dst = Ipv4Addr::from_bits(dst.to_bits() ^ 1 << rng.below(32));
            }
            (src.into(), dst.into())
        }
    }

    fn port(&self, rng: &mut Rng) -> u16 {
        match rng.below(20) {
            0 => rng.bits() as u16,
            1 => rng.pick(&self.ports).wrapping_add(1),
            2 => rng.pick(&self.ports).wrapping_sub(1),
            _ => rng.pick(&self.ports),
        }
    }

    /// Makes a valid frame wrong in one way.
    pub(super) fn mutate(&self, rng: &mut Rng, frame: &mut Vec<u8>, l3: usize) {
        let v6 = frame.get(l3).is_some_and(|first| first >> 4 == 6);
        match rng.below(8) {
            // The frame ends early; from its front on, so that every header is cut somewhere.
            0 => frame.truncate(14 + rng.below(190)),
            1 => {
                for _ in 0..=rng.below(8) {
                    let bit = rng.below(frame.len().min(120) * 8);
                    frame[bit / 8] ^= 1 << (bit % 8);
                }
            }
            // The IP length lies, by little or by much.
            2 => {
                let at = if v6 { l3 + 4 } else { l3 + 2 };
                let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
                let new = match rng.below(3) {
                    0 => rng.bits() as u16,
                    1 => rng.below(70) as u16,
                    _ => old.wrapping_add(rng.below(17) as u16).wrapping_sub(8),
                };
                frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
            }
            3 => {
                let at = if v6 { l3 + 6 } else { l3 + 9 };
                frame[at] = rng.pick(&[0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135, 139, 140, 253]);
            }
            4 => frame[l3] = rng.bits() as u8,
            // The transport's lengths: the data offset's or the UDP length's byte.
            5 => {
                let transport = l3 + if v6 { 40 } else { usize::from(frame[l3] & 0xf) * 4 };
                let at = transport + rng.pick(&[4, 5, 12, 13]);
                if let Some(byte) = frame.get_mut(at) {
                    *byte = rng.bits() as u8;
                }
            }
            6 => {
                let more = 1 + rng.below(40);
                frame.extend_from_slice(&rng.bytes(more));
            }
            // Garbage with the address of a VIP where it would be.
            _ => {
                let ends = l3 + if v6 { 40 } else { 20 };
                let keep = l3 + if v6 { 24 } else { 16 };
                let len = ends + rng.below(100);
                let garbage = rng.bytes(len);
                frame.resize(len, 0);
                for at in (l3..keep).chain(ends..len) {
                    frame[at] = garbage[at];
                }
                if rng.percent(60) {
                    frame[l3] = if v6 { 0x60 } else { 0x45 };
                    let (at, value) = if v6 { (l3 + 4, len - l3 - 40) } else { (l3 + 2, len - l3) };
                    frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
                }
            }
        }
    }
}

/// The ICMP error about a packet that answers this one, as much quoted as may be.
fn error_about(rng: &mut Rng, packet: &Packet) -> Packet {
    let v6 = packet.is_v6();
    let kinds: &[u8] = if v6 { &[1, 2, 3, 4, 5] } else { &[3, 11, 12, 5, 4] };
    let message = (rng.pick(kinds), rng.below(5) as u8, rng.bits() as u32);
    let answer = if rng.percent(90) { packet.reversed() } else { packet.clone() };
    let mut quote = answer.ip();
    let header = if v6 { 40 } else { 20 };
    let any = rng.below(100);
    let len = rng.pick(&[header + 8, header + 8, 128, 548, any]);
    quote.truncate(len);
    let (router, vip) = packet.addresses();
    let mut error = Packet::icmp_error(router, vip, message, &quote);
    (error.tags, error.pad_to) = (packet.tags.clone(), packet.pad_to);
    error
}

/// An extension header; few of them fragments or of segments left.
fn extension(rng: &mut Rng) -> Extension {
    match rng.below(20) {
        0 => Extension::fragment(rng.below(3) as u16, rng.percent(50)),
        1 | 2 => Extension::fragment(0, false),
        3 => Extension::routing(rng.below(3) as u8),
        4..=6 => Extension::authentication(rng.below(6) as u8),
        7 => Extension::options(0, 1 + rng.below(80) as u8),
        _ => {
            let number = rng.pick(&[0, 43, 60, 135, 139, 140]);
            Extension::options(number, 1 + rng.below(4) as u8)
        }
    }
}
