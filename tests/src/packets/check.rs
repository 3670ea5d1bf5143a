//! Frames read by etherparse, a parser that is not ours, and their checksums summed anew.

use etherparse::{
    EtherType, Ethernet2Slice, Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, SingleVlanSlice,
    TcpSlice, UdpSlice,
};
use std::net::IpAddr;

/// A frame down to its (outermost) IP header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'a> {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// VLAN ids, the outermost first.
    pub vlans: Vec<u16>,
    pub src: IpAddr,
    pub dst: IpAddr,
    /// TOS or traffic class.
    pub tos: u8,
    pub ttl: u8,
    /// Protocol or next header.
    pub protocol: u8,
    /// Identification, don't-fragment; IPv6: 0 and true.
    pub id: u16,
    pub dont_fragment: bool,
    /// IPv4: 0.
    pub flow_label: u32,
    /// The IPv4 header's checksum is right; IPv6 has none.
    pub checksum_ok: bool,
    /// The IP packet, as long as its header says.
    pub ip: &'a [u8],
    /// What the IP header carries, IPv6 extension headers included.
    pub payload: &'a [u8],
    /// Bytes of the frame behind the IP packet.
    pub padding: &'a [u8],
}

/// Reads a frame; an error is what etherparse has against it.
pub fn parse(frame: &[u8]) -> Result<Parsed<'_>, String> {
    let link = Ethernet2Slice::from_slice_without_fcs(frame).map_err(|e| e.to_string())?;
    let (mut ether_type, mut rest) = (link.ether_type(), link.payload_slice());
    let mut vlans = Vec::new();
    while matches!(ether_type, EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING) {
        let tag = SingleVlanSlice::from_slice(rest).map_err(|e| e.to_string())?;
        vlans.push(tag.vlan_identifier().value());
        (ether_type, rest) = (tag.ether_type(), tag.payload_slice());
    }
    let mut parsed = match ether_type {
        EtherType::IPV4 | EtherType::IPV6 => parse_ip(rest)?,
        other => return Err(format!("EtherType {other:?}")),
    };
    let version = if ether_type == EtherType::IPV4 { 4 } else { 6 };
    if parsed.ip[0] >> 4 != version {
        return Err(format!("EtherType of IPv{version}, but version {}", parsed.ip[0] >> 4));
    }
    (parsed.dst_mac, parsed.src_mac, parsed.vlans) = (link.destination(), link.source(), vlans);
    Ok(parsed)
}

/// Reads an IP packet with whatever follows it.
pub fn parse_ip(bytes: &[u8]) -> Result<Parsed<'_>, String> {
    let none = Parsed {
        dst_mac: [0; 6],
        src_mac: [0; 6],
        vlans: Vec::new(),
        src: IpAddr::from([0; 4]),
        dst: IpAddr::from([0; 4]),
        tos: 0,
        ttl: 0,
        protocol: 0,
        id: 0,
        dont_fragment: true,
        flow_label: 0,
        checksum_ok: true,
        ip: &[],
        payload: &[],
        padding: &[],
    };
    let cut = |header: usize, total: usize| {
        if total < header || total > bytes.len() {
            return Err(format!("a header of {header}, a packet of {total}, {} bytes there", bytes.len()));
        }
        Ok((&bytes[..total], &bytes[header..total], &bytes[total..]))
    };
    match bytes.first().map(|first| first >> 4) {
        Some(4) => {
            let ip = Ipv4HeaderSlice::from_slice(bytes).map_err(|e| e.to_string())?;
            let (whole, payload, padding) = cut(ip.slice().len(), ip.total_len().into())?;
            Ok(Parsed {
                src: ip.source_addr().into(),
                dst: ip.destination_addr().into(),
                tos: ip.dcp().value() << 2 | ip.ecn().value(),
                ttl: ip.ttl(),
                protocol: ip.protocol().0,
                id: ip.identification(),
                dont_fragment: ip.dont_fragment(),
                checksum_ok: ip.to_header().calc_header_checksum() == ip.header_checksum(),
                ip: whole,
                payload,
                padding,
                ..none
            })
        }
        Some(6) => {
            let ip = Ipv6HeaderSlice::from_slice(bytes).map_err(|e| e.to_string())?;
            let (whole, payload, padding) = cut(40, 40 + usize::from(ip.payload_length()))?;
            Ok(Parsed {
                src: ip.source_addr().into(),
                dst: ip.destination_addr().into(),
                tos: ip.traffic_class(),
                ttl: ip.hop_limit(),
                protocol: ip.next_header().0,
                flow_label: ip.flow_label().value(),
                ip: whole,
                payload,
                padding,
                ..none
            })
        }
        other => Err(format!("IP version {other:?}")),
    }
}

/// A UDP datagram whose length is the IP payload's and whose checksum is right or absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedUdp<'a> {
    pub src: u16,
    pub dst: u16,
    pub has_checksum: bool,
    pub payload: &'a [u8],
}

/// Reads the UDP datagram an IP header carries.
pub fn udp<'a>(ip: &Parsed<'a>) -> Result<ParsedUdp<'a>, String> {
    let udp = UdpSlice::from_slice(ip.payload).map_err(|e| e.to_string())?;
    if usize::from(udp.length()) != ip.payload.len() {
        return Err(format!("UDP length {} in an IP payload of {}", udp.length(), ip.payload.len()));
    }
    let has_checksum = udp.checksum() != 0;
    let expected = match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            udp.to_header().calc_checksum_ipv4_raw(src.octets(), dst.octets(), udp.payload())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            udp.to_header().calc_checksum_ipv6_raw(src.octets(), dst.octets(), udp.payload())
        }
        _ => return Err("addresses of two families".to_owned()),
    }
    .map_err(|e| e.to_string())?;
    if has_checksum && expected != udp.checksum() {
        return Err(format!("UDP checksum {:#06x}, expected {expected:#06x}", udp.checksum()));
    }
    Ok(ParsedUdp {
        src: udp.source_port(),
        dst: udp.destination_port(),
        has_checksum,
        payload: &ip.payload[8..],
    })
}

/// The TCP segment an IP header carries has a right checksum.
pub fn tcp(ip: &Parsed<'_>) -> Result<(), String> {
    let tcp = TcpSlice::from_slice(ip.payload).map_err(|e| e.to_string())?;
    let expected = match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => tcp.calc_checksum_ipv4(src.octets(), dst.octets()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => tcp.calc_checksum_ipv6(src.octets(), dst.octets()),
        _ => return Err("addresses of two families".to_owned()),
    }
    .map_err(|e| e.to_string())?;
    if expected == tcp.checksum() {
        Ok(())
    } else {
        Err(format!("TCP checksum {:#06x}, expected {expected:#06x}", tcp.checksum()))
    }
}

/// An ICMP or ICMPv6 message with a right checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedIcmp<'a> {
    pub kind: u8,
    pub code: u8,
    /// Bytes 4 to 7: of a "too big", the MTU.
    pub rest: u32,
    /// The packet it quotes.
    pub quote: &'a [u8],
}

/// Reads the ICMP message an IP header carries.
pub fn icmp<'a>(ip: &Parsed<'a>) -> Result<ParsedIcmp<'a>, String> {
    let (kind, code, rest, ok) = match (ip.src, ip.dst, ip.protocol) {
        (IpAddr::V4(_), IpAddr::V4(_), 1) => {
            let icmp = Icmpv4Slice::from_slice(ip.payload).map_err(|e| e.to_string())?;
            let expected = icmp.icmp_type().calc_checksum(icmp.payload());
            (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8(), icmp.checksum() == expected)
        }
        (IpAddr::V6(src), IpAddr::V6(dst), 58) => {
            let icmp = Icmpv6Slice::from_slice(ip.payload).map_err(|e| e.to_string())?;
            let ok = icmp.is_checksum_valid(src.octets(), dst.octets());
            (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8(), ok)
        }
        (_, _, protocol) => return Err(format!("protocol {protocol} is no ICMP of this family")),
    };
    if !ok {
        return Err("the ICMP checksum is wrong".to_owned());
    }
    Ok(ParsedIcmp { kind, code, rest: u32::from_be_bytes(rest), quote: &ip.payload[8..] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::Packet;

    /// The builder and etherparse agree, and a wrong byte is noticed.
    #[test]
    fn built_packets_are_well_formed() {
        for (src, dst) in [("203.0.113.7", "192.0.2.10"), ("[2001:db8:c::7]", "[2001:db8::10]")] {
            let src = format!("{src}:40000").parse().unwrap();
            let dst = format!("{dst}:80").parse().unwrap();
            for packet in [Packet::tcp(src, dst), Packet::udp(src, dst)] {
                let is_udp = matches!(packet.transport, crate::packets::Transport::Udp(_));
                for flipped in [false, true] {
                    let mut frame = packet.with(|p| p.tags = vec![(0x88a8, 5), (0x8100, 6)]).build();
                    if flipped {
                        *frame.last_mut().unwrap() ^= 1;
                    }
                    let parsed = parse(&frame).unwrap();
                    assert!(parsed.checksum_ok);
                    assert_eq!(parsed.vlans, [5, 6]);
                    assert_eq!((parsed.src, parsed.dst), (src.ip(), dst.ip()));
                    let ok = if is_udp { udp(&parsed).is_ok() } else { tcp(&parsed).is_ok() };
                    assert_eq!(ok, !flipped);
                }
            }
        }
    }
}
