//! A packet as a value: every field can be set to what it should be or to a lie.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An Ethernet frame with an IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// EtherType and tag control information of each VLAN tag, the outermost first.
    pub tags: Vec<(u16, u16)>,
    pub net: Net,
    pub transport: Transport,
    /// The frame is filled up to this length, as Ethernet does to 60 bytes.
    pub pad_to: usize,
}

/// The IP header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Net {
    V4(V4),
    V6(V6),
}

/// An IPv4 header; `None` = the right value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V4 {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub tos: u8,
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    pub ttl: u8,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    pub version_ihl: Option<u8>,
    pub total_len: Option<u16>,
    pub protocol: Option<u8>,
}

/// An IPv6 header with its extension headers; `None` = the right value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V6 {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub version: u8,
    pub traffic_class: u8,
    pub flow_label: u32,
    pub hop_limit: u8,
    pub extensions: Vec<Extension>,
    pub payload_len: Option<u16>,
    pub protocol: Option<u8>,
}

/// An extension header: its number, and its bytes, of which the first becomes the next header's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    pub number: u8,
    pub bytes: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop (0), destination options (60), mobility (135), HIP (139), shim6 (140) or a routing header (43)
    /// without segments left: `units` times 8 bytes, filled with a PadN option.
    #[must_use]
    pub fn options(number: u8, units: u8) -> Self {
        let mut bytes = vec![0; usize::from(units) * 8];
        bytes[1] = units - 1;
        // A routing header: type 0xfd (experimental), no segments left; else one PadN option as long as can be.
        (bytes[2], bytes[3]) = if number == 43 { (0xfd, 0) } else { (1, (bytes.len() - 4).min(255) as u8) };
        Self { number, bytes }
    }

    /// A fragment header (44): offset in units of 8 bytes, more fragments, identification.
    #[must_use]
    pub fn fragment(offset: u16, more: bool) -> Self {
        let word = (offset << 3 | u16::from(more)).to_be_bytes();
        Self { number: 44, bytes: vec![0, 0, word[0], word[1], 0xde, 0xad, 0xbe, 0xef] }
    }

    /// An authentication header (51) with an integrity check value of `words` times 4 bytes.
    #[must_use]
    pub fn authentication(words: u8) -> Self {
        let mut bytes = vec![0; 12 + usize::from(words) * 4];
        bytes[1] = words + 1;
        Self { number: 51, bytes }
    }

    /// A routing header (43) with segments left: the packet ends elsewhere.
    #[must_use]
    pub fn routing(segments_left: u8) -> Self {
        let mut header = Self::options(43, 3);
        header.bytes[3] = segments_left;
        header
    }
}

/// What the IP packet carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    Tcp(Tcp),
    Udp(Udp),
    /// An echo request, ICMP or ICMPv6 as the family demands.
    Echo(Vec<u8>),
    /// Protocol number and bytes.
    Other(u8, Vec<u8>),
}

/// A TCP segment; `None` = the right value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    pub src: u16,
    pub dst: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    /// In units of four bytes.
    pub data_offset: Option<u8>,
    pub payload: Vec<u8>,
}

/// A UDP datagram; `None` = the right value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    pub src: u16,
    pub dst: u16,
    pub length: Option<u16>,
    pub no_checksum: bool,
    pub payload: Vec<u8>,
    /// Bytes behind what the UDP length covers (RFC 9868).
    pub surplus: Vec<u8>,
}

impl Packet {
    /// A packet between two addresses of one family.
    #[must_use]
    pub fn between(src: IpAddr, dst: IpAddr, transport: Transport) -> Self {
        let net = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Net::V4(V4 {
                src,
                dst,
                tos: 0,
                id: 0x1234,
                fragment: 0x4000,
                ttl: 64,
                options: Vec::new(),
                version_ihl: None,
                total_len: None,
                protocol: None,
            }),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Net::V6(V6 {
                src,
                dst,
                version: 6,
                traffic_class: 0,
                flow_label: 0xa_bcde,
                hop_limit: 64,
                extensions: Vec::new(),
                payload_len: None,
                protocol: None,
            }),
            _ => panic!("{src} and {dst} are of two families"),
        };
        Self {
            dst_mac: [2, 0, 0, 0, 0, 0x01],
            src_mac: [2, 0, 0, 0, 0, 0x02],
            tags: Vec::new(),
            net,
            transport,
            pad_to: 0,
        }
    }

    /// A TCP segment with flag ACK and four bytes of data.
    #[must_use]
    pub fn tcp(src: SocketAddr, dst: SocketAddr) -> Self {
        let tcp = Tcp {
            src: src.port(),
            dst: dst.port(),
            seq: 0x0102_0304,
            ack: 0x0506_0708,
            flags: super::ACK,
            options: Vec::new(),
            data_offset: None,
            payload: b"data".to_vec(),
        };
        Self::between(src.ip(), dst.ip(), Transport::Tcp(tcp))
    }

    /// A UDP datagram of five bytes: an odd number, so that the padding of checksums is tried.
    #[must_use]
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        let udp = Udp {
            src: src.port(),
            dst: dst.port(),
            length: None,
            no_checksum: false,
            payload: b"query".to_vec(),
            surplus: Vec::new(),
        };
        Self::between(src.ip(), dst.ip(), Transport::Udp(udp))
    }

    /// The same packet, changed.
    #[must_use]
    pub fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    /// The same with this TTL or hop limit.
    #[must_use]
    pub fn with_ttl(&self, ttl: u8) -> Self {
        self.with(|p| match &mut p.net {
            Net::V4(ip) => ip.ttl = ttl,
            Net::V6(ip) => ip.hop_limit = ttl,
        })
    }

    /// The same with this TOS or traffic class.
    #[must_use]
    pub fn with_tos(&self, tos: u8) -> Self {
        self.with(|p| match &mut p.net {
            Net::V4(ip) => ip.tos = tos,
            Net::V6(ip) => ip.traffic_class = tos,
        })
    }

    /// The same with as much payload as makes the IP packet `len` bytes long.
    #[must_use]
    pub fn with_ip_len(&self, len: usize) -> Self {
        let empty = self.with(|p| p.payload().clear());
        let more = len.checked_sub(empty.ip().len()).expect("room for the headers");
        empty.with(|p| p.payload().extend((0..more).map(|i| i as u8)))
    }

    /// The IPv4 header. Panics for IPv6.
    pub fn v4(&mut self) -> &mut V4 {
        match &mut self.net {
            Net::V4(ip) => ip,
            Net::V6(_) => panic!("an IPv6 packet"),
        }
    }

    /// The IPv6 header. Panics for IPv4.
    pub fn v6(&mut self) -> &mut V6 {
        match &mut self.net {
            Net::V6(ip) => ip,
            Net::V4(_) => panic!("an IPv4 packet"),
        }
    }

    /// The TCP segment. Panics for anything else.
    pub fn tcp_mut(&mut self) -> &mut Tcp {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp,
            other => panic!("no TCP: {other:?}"),
        }
    }

    /// The UDP datagram. Panics for anything else.
    pub fn udp_mut(&mut self) -> &mut Udp {
        match &mut self.transport {
            Transport::Udp(udp) => udp,
            other => panic!("no UDP: {other:?}"),
        }
    }

    /// What the transport carries.
    pub fn payload(&mut self) -> &mut Vec<u8> {
        match &mut self.transport {
            Transport::Tcp(tcp) => &mut tcp.payload,
            Transport::Udp(udp) => &mut udp.payload,
            Transport::Echo(bytes) | Transport::Other(_, bytes) => bytes,
        }
    }

    /// True for IPv6.
    #[must_use]
    pub fn is_v6(&self) -> bool {
        matches!(self.net, Net::V6(_))
    }

    /// Source and destination address.
    #[must_use]
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        match &self.net {
            Net::V4(ip) => (ip.src.into(), ip.dst.into()),
            Net::V6(ip) => (ip.src.into(), ip.dst.into()),
        }
    }

    /// Source and destination port, 0 where there are none.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        match &self.transport {
            Transport::Tcp(tcp) => (tcp.src, tcp.dst),
            Transport::Udp(udp) => (udp.src, udp.dst),
            Transport::Echo(_) | Transport::Other(..) => (0, 0),
        }
    }

    /// Offset of the IP header in the frame.
    #[must_use]
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// The frame.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(128);
        frame.extend_from_slice(&self.dst_mac);
        frame.extend_from_slice(&self.src_mac);
        for (ether_type, tci) in &self.tags {
            frame.extend_from_slice(&ether_type.to_be_bytes());
            frame.extend_from_slice(&tci.to_be_bytes());
        }
        frame.extend_from_slice(if self.is_v6() { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        frame.extend_from_slice(&self.ip());
        if frame.len() < self.pad_to {
            frame.resize(self.pad_to, 0);
        }
        frame
    }

    /// The IP packet.
    #[must_use]
    pub fn ip(&self) -> Vec<u8> {
        let (number, segment) = self.segment();
        match &self.net {
            Net::V4(ip) => ip.build(number, &segment),
            Net::V6(ip) => ip.build(number, &segment),
        }
    }

    /// Protocol number and bytes of the transport, its checksum right for these addresses.
    fn segment(&self) -> (u8, Vec<u8>) {
        let (number, mut bytes, field, covered) = match &self.transport {
            Transport::Tcp(tcp) => (6, tcp.build(), Some(16), None),
            Transport::Udp(udp) => {
                let field = (!udp.no_checksum).then_some(6);
                (17, udp.build(), field, Some(8 + udp.payload.len()))
            }
            Transport::Echo(data) => {
                let (number, kind) = if self.is_v6() { (58, 128) } else { (1, 8) };
                let mut bytes = vec![kind, 0, 0, 0, 0x77, 0x77, 0, 1];
                bytes.extend_from_slice(data);
                (number, bytes, Some(2), None)
            }
            Transport::Other(number, bytes) => (*number, bytes.clone(), None, None),
        };
        if let Some(field) = field {
            let covered = covered.unwrap_or(bytes.len());
            // ICMP for IPv4 has no pseudo header (RFC 792).
            let pseudo = if number == 1 { Vec::new() } else { self.pseudo_header(number, covered as u32) };
            let sum = match checksum(&[&pseudo, &bytes[..covered]]) {
                0 if number == 17 => 0xffff,
                sum => sum,
            };
            bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        (number, bytes)
    }

    pub(super) fn pseudo_header(&self, number: u8, len: u32) -> Vec<u8> {
        let mut bytes = match &self.net {
            Net::V4(ip) => [ip.src.octets(), ip.dst.octets()].concat(),
            Net::V6(ip) => [ip.src.octets(), ip.dst.octets()].concat(),
        };
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, number]);
        bytes
    }
}

impl V4 {
    fn build(&self, number: u8, segment: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut bytes = vec![self.version_ihl.unwrap_or(0x40 | (header / 4) as u8), self.tos];
        let total = self.total_len.unwrap_or((header + segment.len()) as u16);
        bytes.extend_from_slice(&total.to_be_bytes());
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&self.fragment.to_be_bytes());
        bytes.extend_from_slice(&[self.ttl, self.protocol.unwrap_or(number), 0, 0]);
        bytes.extend_from_slice(&self.src.octets());
        bytes.extend_from_slice(&self.dst.octets());
        bytes.extend_from_slice(&self.options);
        let sum = checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend_from_slice(segment);
        bytes
    }
}

impl V6 {
    fn build(&self, number: u8, segment: &[u8]) -> Vec<u8> {
        let number = self.protocol.unwrap_or(number);
        let word = u32::from(self.version) << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        let mut bytes = word.to_be_bytes().to_vec();
        let extensions: usize = self.extensions.iter().map(|e| e.bytes.len()).sum();
        let payload = self.payload_len.unwrap_or((extensions + segment.len()) as u16);
        bytes.extend_from_slice(&payload.to_be_bytes());
        bytes.extend_from_slice(&[self.extensions.first().map_or(number, |e| e.number), self.hop_limit]);
        bytes.extend_from_slice(&self.src.octets());
        bytes.extend_from_slice(&self.dst.octets());
        for (i, extension) in self.extensions.iter().enumerate() {
            let at = bytes.len();
            bytes.extend_from_slice(&extension.bytes);
            bytes[at] = self.extensions.get(i + 1).map_or(number, |next| next.number);
        }
        bytes.extend_from_slice(segment);
        bytes
    }
}

impl Tcp {
    fn build(&self) -> Vec<u8> {
        let mut bytes = [self.src.to_be_bytes(), self.dst.to_be_bytes()].concat();
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.ack.to_be_bytes());
        let offset = self.data_offset.unwrap_or((5 + self.options.len() / 4) as u8);
        bytes.extend_from_slice(&[offset << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend_from_slice(&self.options);
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

impl Udp {
    fn build(&self) -> Vec<u8> {
        let mut bytes = [self.src.to_be_bytes(), self.dst.to_be_bytes()].concat();
        let length = self.length.unwrap_or((8 + self.payload.len()) as u16);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&self.payload);
        bytes.extend_from_slice(&self.surplus);
        bytes
    }
}

/// The Internet checksum (RFC 1071) over the parts in a row; only the last may be of odd length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        }
        sum = (sum & 0xffff) + (sum >> 16);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
