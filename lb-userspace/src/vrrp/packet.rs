//! The VRRP packet: version 2 (RFC 3768) and version 3 (RFC 9568, RFC 5798). Pure.
//!
//! What arrives is judged in two steps, both of RFC 9568 section 7.1: [`parse`] looks at what a packet must be for
//! anybody, [`Advert::check`] at what the virtual router it names expects of it.

use crate::model::{Family, VrrpVersion};
use lb_common::csum;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// The IP protocol number.
pub const PROTOCOL: u8 = 112;
/// TTL or hop limit of every packet (RFC 9568 section 5.1.1.3).
pub const HOP_LIMIT: u8 = 255;
/// Type of service or traffic class: DSCP CS6, Internetwork Control.
pub const TRAFFIC_CLASS: u8 = 0xc0;

/// Octets before the addresses.
const HEADER: usize = 8;
/// Type ADVERTISEMENT, the only one.
const ADVERTISEMENT: u8 = 1;
/// Octets of authentication data that version 2 ends with, used or not.
const AUTH_DATA: usize = 8;
const CHECKSUM_AT: usize = 6;
/// An Ethernet payload shorter than this is padded, and some hand the padding up with the packet.
const ETHERNET_MINIMUM: usize = 46;
const IPV4_HEADER: usize = 20;
/// Twelve bits of centiseconds.
const MAX_INTERVAL: u16 = 0x0fff;

/// What the checksum of version 3 covers over IPv4. RFC 5798 was read in two ways, and implementations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumForm {
    /// The packet alone: version 2, and RFC 9568 section 5.2.8.
    Plain,
    /// A pseudo-header too: IPv6, and what most send over IPv4.
    Pseudo,
    /// As before, with the multicast group as the destination of a unicast packet: keepalived up to 1.3.6.
    PseudoGroup,
}

/// An advertisement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    pub version: VrrpVersion,
    pub router_id: u8,
    /// 0: the sender leaves.
    pub priority: u8,
    pub interval: Duration,
    /// Of one family.
    pub addresses: Vec<IpAddr>,
}

/// A packet as the network gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// TTL or hop limit; none where the kernel did not say.
    pub hop_limit: Option<u8>,
    /// Behind the IP header.
    pub payload: &'a [u8],
}

/// Why a packet is of no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("TTL {found}, which a packet from this link cannot have; expected at least {least}")]
    Ttl { found: u8, least: u8 },
    #[error("its TTL is not known")]
    NoTtl,
    #[error("VRRP version {0}; expected 2 or 3")]
    Version(u8),
    #[error("version {found}; this instance speaks version {expected}")]
    OtherVersion { found: u8, expected: u8 },
    #[error("type {0}; expected 1, an advertisement")]
    Type(u8),
    #[error("{found} octets; expected {expected}")]
    Length { found: usize, expected: usize },
    #[error("it names no address")]
    NoAddress,
    #[error("checksum {found:#06x} fits neither with nor without a pseudo-header")]
    Checksum { found: u16 },
    #[error("authentication of type {0}; only version 2 without authentication is spoken")]
    Authentication(u8),
    #[error("an interval of zero")]
    ZeroInterval,
    #[error("no instance has router id {0} on this interface")]
    RouterId(u8),
    #[error("it comes from an address of this node")]
    OwnAddress,
    #[error("this node is the owner of the addresses (priority 255)")]
    Owner,
    #[error("source {0} is not in a network of the interface")]
    Subnet(IpAddr),
    #[error("source {0} is none of the unicast peers")]
    Peer(IpAddr),
    #[error("unicast, where multicast is configured")]
    Unicast,
    #[error("multicast, where unicast peers are configured")]
    Multicast,
    #[error(
        "an interval of {} s; version 2 wants that of this node, {} s, on both",
        found.as_secs(),
        expected.as_secs()
    )]
    Interval { found: Duration, expected: Duration },
}

impl Refusal {
    /// Every label.
    pub const LABELS: [&str; 16] = [
        "ttl",
        "version",
        "type",
        "length",
        "no_address",
        "checksum",
        "authentication",
        "zero_interval",
        "router_id",
        "own_address",
        "owner",
        "subnet",
        "peer",
        "unicast",
        "multicast",
        "interval",
    ];

    /// The reason as a label of metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Ttl { .. } | Self::NoTtl => "ttl",
            Self::Version(_) | Self::OtherVersion { .. } => "version",
            Self::Type(_) => "type",
            Self::Length { .. } => "length",
            Self::NoAddress => "no_address",
            Self::Checksum { .. } => "checksum",
            Self::Authentication(_) => "authentication",
            Self::ZeroInterval => "zero_interval",
            Self::RouterId(_) => "router_id",
            Self::OwnAddress => "own_address",
            Self::Owner => "owner",
            Self::Subnet(_) => "subnet",
            Self::Peer(_) => "peer",
            Self::Unicast => "unicast",
            Self::Multicast => "multicast",
            Self::Interval { .. } => "interval",
        }
    }
}

/// Reads a packet of either version.
pub fn parse(datagram: &Datagram<'_>) -> Result<(Advert, ChecksumForm), Refusal> {
    let bytes = datagram.payload;
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Err(Refusal::Length { found: bytes.len(), expected: HEADER });
    };
    let [version_type, router_id, priority, count, fifth, sixth, check @ ..] = *header;
    let family = Family::of(datagram.source);
    let version = match version_type >> 4 {
        // RFC 3768 knows IPv4 only.
        2 if family == Family::V4 => VrrpVersion::V2,
        3 => VrrpVersion::V3,
        other => return Err(Refusal::Version(other)),
    };
    // RFC 9568 section 5.2.2: "A packet with unknown type MUST be discarded."
    if version_type & 0x0f != ADVERTISEMENT {
        return Err(Refusal::Type(version_type & 0x0f));
    }
    let size = match family {
        Family::V4 => 4,
        Family::V6 => 16,
    };
    let trailer = match version {
        VrrpVersion::V2 => AUTH_DATA,
        VrrpVersion::V3 => 0,
    };
    let expected = HEADER + usize::from(count) * size + trailer;
    let padded = family == Family::V4 && bytes.len() + IPV4_HEADER <= ETHERNET_MINIMUM;
    let exact = bytes.len() == expected || (padded && bytes.len() > expected);
    let Some(covered) = bytes.get(..expected).filter(|_| exact) else {
        return Err(Refusal::Length { found: bytes.len(), expected });
    };
    let Some(form) = checksum_form(version, datagram, covered) else {
        return Err(Refusal::Checksum { found: u16::from_be_bytes(check) });
    };
    if count == 0 {
        return Err(Refusal::NoAddress);
    }
    let interval = match version {
        VrrpVersion::V2 => {
            // RFC 3768 section 5.3.6: types 1 and 2 were removed.
            if fifth != 0 {
                return Err(Refusal::Authentication(fifth));
            }
            Duration::from_secs(sixth.into())
        }
        VrrpVersion::V3 => centiseconds(u16::from_be_bytes([fifth, sixth]) & MAX_INTERVAL),
    };
    if interval.is_zero() {
        return Err(Refusal::ZeroInterval);
    }
    let list = &covered[HEADER..expected - trailer];
    let addresses = match family {
        Family::V4 => list.as_chunks::<4>().0.iter().map(|a| Ipv4Addr::from(*a).into()).collect(),
        Family::V6 => list.as_chunks::<16>().0.iter().map(|a| Ipv6Addr::from(*a).into()).collect(),
    };
    Ok((Advert { version, router_id, priority, interval, addresses }, form))
}

fn centiseconds(count: u16) -> Duration {
    Duration::from_millis(u64::from(count) * 10)
}

/// What the checksum covers, if it is right at all.
fn checksum_form(version: VrrpVersion, datagram: &Datagram<'_>, covered: &[u8]) -> Option<ChecksumForm> {
    let forms: &[ChecksumForm] = match (version, datagram.source) {
        (VrrpVersion::V2, _) => &[ChecksumForm::Plain],
        (VrrpVersion::V3, IpAddr::V4(_)) => {
            &[ChecksumForm::Pseudo, ChecksumForm::Plain, ChecksumForm::PseudoGroup]
        }
        (VrrpVersion::V3, IpAddr::V6(_)) => &[ChecksumForm::Pseudo],
    };
    let right = |form: &&ChecksumForm| {
        let sum =
            csum::sum_bytes(covered) + cover(**form, datagram.source, datagram.destination, covered.len());
        csum::finish(sum) == 0
    };
    forms.iter().find(right).copied()
}

/// The part of the sum that lies outside the packet.
fn cover(form: ChecksumForm, source: IpAddr, destination: IpAddr, length: usize) -> u64 {
    let destination = match form {
        ChecksumForm::Plain => return 0,
        ChecksumForm::Pseudo => destination,
        ChecksumForm::PseudoGroup => Family::of(source).vrrp_group(),
    };
    let address = |address| match address {
        IpAddr::V4(a) => csum::sum_bytes(&a.octets()),
        IpAddr::V6(a) => csum::sum_bytes(&a.octets()),
    };
    // A packet has at most 255 addresses of 16 octets.
    let length = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    address(source) + address(destination) + csum::sum_bytes(&[0, PROTOCOL]) + csum::sum_bytes(&length)
}

/// What a virtual router expects of an advertisement with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect<'a> {
    pub version: VrrpVersion,
    /// The priority in force is 255.
    pub owner: bool,
    pub interval: Duration,
    /// The interface's own addresses, with their networks.
    pub local: &'a [ipnet::IpNet],
    /// Of the packet's family and the other; empty: multicast.
    pub peers: &'a [IpAddr],
    /// Lowest TTL of a unicast packet.
    pub min_ttl: u8,
}

/// Whether the hop limit shows that a packet was sent on this link (RFC 9568 section 7.1: "MUST verify that the
/// IPv4 TTL / IPv6 Hop Limit is 255"), or not farther away than allowed.
pub fn check_hop_limit(datagram: &Datagram<'_>, least: u8) -> Result<(), Refusal> {
    match datagram.hop_limit {
        Some(found) if found < least => Err(Refusal::Ttl { found, least }),
        Some(_) => Ok(()),
        None => Err(Refusal::NoTtl),
    }
}

impl Advert {
    /// RFC 9568 section 7.1 (RFC 3768 section 7.1), the part that depends on the virtual router.
    pub fn check(&self, datagram: &Datagram<'_>, expect: &Expect<'_>) -> Result<(), Refusal> {
        let source = datagram.source;
        let multicast = datagram.destination.is_multicast();
        if expect.local.iter().any(|net| net.addr() == source) {
            return Err(Refusal::OwnAddress);
        }
        if expect.peers.is_empty() {
            if !multicast {
                return Err(Refusal::Unicast);
            }
            check_hop_limit(datagram, HOP_LIMIT)?;
            if !on_link(source, expect.local) {
                return Err(Refusal::Subnet(source));
            }
        } else {
            if multicast {
                return Err(Refusal::Multicast);
            }
            check_hop_limit(datagram, expect.min_ttl)?;
            if !expect.peers.contains(&source) {
                return Err(Refusal::Peer(source));
            }
        }
        if self.version != expect.version {
            let (found, expected) = (self.version.number(), expect.version.number());
            return Err(Refusal::OtherVersion { found, expected });
        }
        // RFC 3768 section 7.1: "If the check fails, the receiver MUST discard the packet".
        if self.version == VrrpVersion::V2 && self.interval != expect.interval {
            return Err(Refusal::Interval { found: self.interval, expected: expect.interval });
        }
        if expect.owner && self.priority < crate::model::OWNER_PRIORITY {
            return Err(Refusal::Owner);
        }
        Ok(())
    }

    /// The packet, its checksum filled in for these addresses.
    pub fn encode(&self, form: ChecksumForm, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let count = u8::try_from(self.addresses.len()).unwrap_or(u8::MAX);
        let [fifth, sixth] = match self.version {
            VrrpVersion::V2 => [0, u8::try_from(self.interval.as_secs()).unwrap_or(u8::MAX)],
            VrrpVersion::V3 => {
                let units = u16::try_from(self.interval.as_millis() / 10).unwrap_or(MAX_INTERVAL);
                units.min(MAX_INTERVAL).to_be_bytes()
            }
        };
        let version_type = self.version.number() << 4 | ADVERTISEMENT;
        let mut bytes = vec![version_type, self.router_id, self.priority, count, fifth, sixth, 0, 0];
        for address in self.addresses.iter().take(count.into()) {
            match address {
                IpAddr::V4(a) => bytes.extend(a.octets()),
                IpAddr::V6(a) => bytes.extend(a.octets()),
            }
        }
        let form = match self.version {
            VrrpVersion::V2 => {
                bytes.extend([0; AUTH_DATA]);
                ChecksumForm::Plain
            }
            VrrpVersion::V3 if source.is_ipv6() => ChecksumForm::Pseudo,
            VrrpVersion::V3 => form,
        };
        let sum = csum::sum_bytes(&bytes) + cover(form, source, destination, bytes.len());
        bytes[CHECKSUM_AT..HEADER].copy_from_slice(&csum::finish(sum).to_ne_bytes());
        bytes
    }
}

/// IPv6 advertisements come from link-local addresses (RFC 9568 section 5.1.2.1); over IPv4, from one of the
/// interface's networks.
fn on_link(source: IpAddr, local: &[ipnet::IpNet]) -> bool {
    match source {
        IpAddr::V4(_) => local.iter().any(|net| net.contains(&source)),
        IpAddr::V6(source) => source.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
