//! One virtual router: what `[[vrrp]]` says.

use super::{TrackSpec, Tracked, VrrpName};
use ipnet::IpNet;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VrrpVersion {
    /// RFC 3768: IPv4, whole seconds.
    V2,
    /// RFC 9568 (and RFC 5798): IPv4 and IPv6, centiseconds.
    V3,
}

impl VrrpVersion {
    /// In the packet's first octet.
    pub const fn number(self) -> u8 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// The owner of the addresses (RFC 9568 section 5.2.4).
pub const OWNER_PRIORITY: u8 = 255;
/// Priority where none is given (RFC 9568 section 6.1).
pub const DEFAULT_PRIORITY: u8 = 100;
/// Most addresses of one family that an advertisement has room for in an Ethernet frame with IPv6.
pub const MAX_VRRP_ADDRESSES: usize = 80;
/// Shortest interval of version 3: one unit of the field.
pub const MIN_ADVERT_INTERVAL: Duration = Duration::from_millis(10);
/// Longest interval of version 3: the field has 12 bits of centiseconds.
pub const MAX_ADVERT_INTERVAL: Duration = Duration::from_millis(40_950);

/// A virtual router on one interface. Its addresses of both families have one state: one node has all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VrrpSpec {
    pub name: VrrpName,
    pub interface: String,
    pub router_id: u8,
    pub version: VrrpVersion,
    /// 1 to 255; 255 is the owner.
    pub priority: u8,
    pub advert_interval: Duration,
    /// With the prefix length they get on the interface; at least one.
    pub addresses: Vec<IpNet>,
    /// Take the addresses from a master of lower priority.
    pub preempt: bool,
    /// How long a master of lower priority is left alone first.
    pub preempt_delay: Duration,
    /// Added to the first wait after a start.
    pub startup_delay: Duration,
    /// Adverts that may be missed before the master counts as gone.
    pub down_adverts: u8,
    /// Empty: multicast.
    pub unicast_peers: Vec<IpAddr>,
    /// Lowest TTL that is taken from unicast peers, see [`VrrpSpec::lowest_ttl`].
    pub min_ttl: Option<u8>,
    /// The checksum of version 3 over IPv4 covers a pseudo-header, as RFC 5798 was read by most.
    pub pseudo_header: bool,
    /// How often the addresses are announced after a takeover, and once more after five seconds.
    pub announce_repeat: u8,
    /// How often a master announces them in quiet times; zero for never.
    pub announce_refresh: Duration,
    /// Other interfaces whose loss counts.
    pub track_interfaces: Vec<Tracked>,
    /// What else of this node counts.
    pub track: TrackSpec,
    /// Those of one group are master together or not at all.
    pub group: Option<VrrpName>,
}

impl VrrpSpec {
    /// The families it has addresses of, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        [Family::V4, Family::V6].into_iter().filter(|family| self.addresses_of(*family).next().is_some())
    }

    /// Its addresses of one family.
    pub fn addresses_of(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(IpNet::addr).filter(move |address| Family::of(*address) == family)
    }

    /// The lowest TTL that is taken from unicast peers. Where nothing is said, 255 of IPv4, so that nobody farther
    /// away can play the peer; any of IPv6, since keepalived sends such packets with the system's hop limit.
    pub fn lowest_ttl(&self, family: Family) -> u8 {
        self.min_ttl.unwrap_or(match family {
            Family::V4 => 255,
            Family::V6 => 1,
        })
    }

    /// Its peers of one family.
    pub fn peers_of(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.unicast_peers.iter().copied().filter(move |address| Family::of(*address) == family)
    }
}

/// Version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The group of all VRRP routers (RFC 9568 sections 5.1.1.2 and 5.1.2.2).
    pub const fn vrrp_group(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12)),
        }
    }
}
