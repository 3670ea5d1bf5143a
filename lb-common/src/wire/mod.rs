//! Header layouts: lengths and field offsets, taken from the `network-types` structures, and the
//! protocol numbers the core speaks of.

use network_types::{
    eth::{EthHdr, EtherType},
    icmp::Icmpv4Hdr,
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
    vlan::VlanHdr,
};

/// Ethernet II.
pub mod eth {
    use super::*;
    /// Header length in bytes.
    pub const LEN: usize = EthHdr::LEN;
    /// Offset of the EtherType.
    pub const TYPE: usize = core::mem::offset_of!(EthHdr, ether_type);
    /// EtherTypes in host order.
    pub const IPV4: u16 = u16::from_be(EtherType::Ipv4 as u16);
    pub const IPV6: u16 = u16::from_be(EtherType::Ipv6 as u16);
    pub const ARP: u16 = u16::from_be(EtherType::Arp as u16);
    pub const VLAN: u16 = u16::from_be(EtherType::Ieee8021q as u16);
    pub const SERVICE_VLAN: u16 = u16::from_be(EtherType::Ieee8021ad as u16);
}

/// IEEE 802.1Q tag: the two bytes after the EtherType, then the inner EtherType.
pub mod vlan {
    use super::*;
    /// Tag length in bytes.
    pub const LEN: usize = VlanHdr::LEN;
}

/// RFC 791.
pub mod ipv4 {
    use super::*;
    use core::mem::offset_of;
    /// Length of the header without options, in bytes.
    pub const LEN: usize = Ipv4Hdr::LEN;
    pub const VIHL: usize = offset_of!(Ipv4Hdr, vihl);
    pub const TOS: usize = offset_of!(Ipv4Hdr, tos);
    pub const TOTAL_LEN: usize = offset_of!(Ipv4Hdr, tot_len);
    pub const ID: usize = offset_of!(Ipv4Hdr, id);
    pub const FRAGMENT: usize = offset_of!(Ipv4Hdr, frags);
    pub const TTL: usize = offset_of!(Ipv4Hdr, ttl);
    pub const PROTO: usize = offset_of!(Ipv4Hdr, proto);
    pub const CHECK: usize = offset_of!(Ipv4Hdr, check);
    pub const SRC: usize = offset_of!(Ipv4Hdr, src_addr);
    pub const DST: usize = offset_of!(Ipv4Hdr, dst_addr);
    /// Flags of the fragment word, host order: reserved (must be zero), don't fragment, more fragments.
    pub const RESERVED: u16 = 0x8000;
    pub const DONT_FRAGMENT: u16 = 0x4000;
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;
}

/// RFC 8200.
pub mod ipv6 {
    use super::*;
    use core::mem::offset_of;
    /// Header length in bytes.
    pub const LEN: usize = Ipv6Hdr::LEN;
    /// Version, traffic class, flow label: one word.
    pub const WORD: usize = 0;
    pub const PAYLOAD_LEN: usize = offset_of!(Ipv6Hdr, payload_len);
    pub const NEXT: usize = offset_of!(Ipv6Hdr, next_hdr);
    pub const HOP_LIMIT: usize = offset_of!(Ipv6Hdr, hop_limit);
    pub const SRC: usize = offset_of!(Ipv6Hdr, src_addr);
    pub const DST: usize = offset_of!(Ipv6Hdr, dst_addr);
}

/// Protocol and extension header numbers (IANA).
pub mod proto {
    use super::IpProto;
    pub const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    pub const ICMP: u8 = IpProto::Icmp as u8;
    pub const IPV4: u8 = IpProto::Ipv4 as u8;
    pub const TCP: u8 = IpProto::Tcp as u8;
    pub const UDP: u8 = IpProto::Udp as u8;
    pub const IPV6: u8 = IpProto::Ipv6 as u8;
    pub const ROUTING: u8 = IpProto::Ipv6Route as u8;
    pub const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    pub const AUTHENTICATION: u8 = IpProto::Ah as u8;
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    pub const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
    pub const MOBILITY: u8 = IpProto::MobilityHeader as u8;
    /// RFC 7401, RFC 5533: same layout as the other extension headers.
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// RFC 9293.
pub mod tcp {
    use super::*;
    use core::mem::offset_of;
    /// Length of the header without options, in bytes.
    pub const LEN: usize = TcpHdr::LEN;
    pub const SEQ: usize = offset_of!(TcpHdr, seq);
    pub const ACK_SEQ: usize = offset_of!(TcpHdr, ack_seq);
    /// Data offset (upper four bits), in 32-bit words.
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const CHECK: usize = offset_of!(TcpHdr, check);
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// RFC 768.
pub mod udp {
    use super::*;
    use core::mem::offset_of;
    /// Header length in bytes.
    pub const LEN: usize = UdpHdr::LEN;
    pub const LENGTH: usize = offset_of!(UdpHdr, len);
    pub const CHECK: usize = offset_of!(UdpHdr, check);
}

/// RFC 792 and RFC 4443.
pub mod icmp {
    use super::*;
    /// Header length in bytes, the four bytes of rest included.
    pub const LEN: usize = Icmpv4Hdr::LEN;
    /// Destination unreachable, fragmentation needed (RFC 1191).
    pub const V4_UNREACHABLE: u8 = 3;
    pub const V4_PORT_UNREACHABLE: u8 = 3;
    pub const V4_FRAGMENTATION_NEEDED: u8 = 4;
    pub const V4_TIME_EXCEEDED: u8 = 11;
    pub const V4_PARAMETER_PROBLEM: u8 = 12;
    pub const V4_ECHO_REPLY: u8 = 0;
    pub const V4_ECHO_REQUEST: u8 = 8;
    pub const V6_UNREACHABLE: u8 = 1;
    pub const V6_PORT_UNREACHABLE: u8 = 4;
    /// Packet Too Big (RFC 4443 section 3.2).
    pub const V6_PACKET_TOO_BIG: u8 = 2;
    pub const V6_TIME_EXCEEDED: u8 = 3;
    pub const V6_PARAMETER_PROBLEM: u8 = 4;
    pub const V6_ECHO_REQUEST: u8 = 128;
    pub const V6_ECHO_REPLY: u8 = 129;
}

/// ARP of IPv4 over Ethernet (RFC 826).
pub mod arp {
    pub const LEN: usize = 28;
    /// Hardware and protocol type, their lengths: Ethernet, IPv4, 6 and 4.
    pub const KIND: u64 = 0x0001_0800_0604;
    pub const OPERATION: usize = 6;
    pub const SENDER_MAC: usize = 8;
    pub const SENDER: usize = 14;
    pub const TARGET_MAC: usize = 18;
    pub const TARGET: usize = 24;
    pub const REQUEST: u16 = 1;
    pub const REPLY: u16 = 2;
}

/// Neighbour solicitations and advertisements (RFC 4861 sections 4.3 and 4.4).
pub mod nd {
    /// Length without options, in bytes.
    pub const LEN: usize = 24;
    pub const TARGET: usize = 8;
    pub const SOLICITATION: u8 = 135;
    pub const ADVERTISEMENT: u8 = 136;
    /// The only hop limit that is believed: nobody farther away can send it.
    pub const HOP_LIMIT: u8 = 255;
    /// First byte of an advertisement's flags.
    pub const ROUTER: u8 = 0x80;
    pub const SOLICITED: u8 = 0x40;
    pub const OVERRIDE: u8 = 0x20;
    /// Options: their lengths are counted in units of 8 bytes.
    pub const SOURCE_LINK_LAYER: u8 = 1;
    pub const TARGET_LINK_LAYER: u8 = 2;
}

/// GUE (draft-ietf-intarea-gue).
pub mod gue {
    /// The IANA port.
    pub const PORT: u16 = 6080;
    /// Length of a variant 0 header without optional fields.
    pub const LEN: usize = 4;
}
