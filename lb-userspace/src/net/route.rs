//! Routes as the kernel answers a lookup with, and which destinations a change of a route concerns.

use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

/// The kernel's answer to `ip route get`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    Found(Route),
    /// Its error number.
    Refused(i32),
}

/// A route to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    pub kind: RouteType,
    /// Interface it leaves by.
    pub ifindex: Option<u32>,
    /// Gateway; IPv4 destinations may have an IPv6 one (RFC 8950).
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// MTU of the route or of the path, where there is one of its own.
    pub mtu: Option<u32>,
    /// The route itself adds headers (light-weight tunnels, MPLS).
    pub encapsulated: bool,
}

impl Route {
    pub(super) fn from_message(message: &RouteMessage) -> Self {
        let mut route = Self { kind: message.header.kind, ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(ifindex) => route.ifindex = Some(*ifindex),
                RouteAttribute::Gateway(address) => route.gateway = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some((*address).into()),
                RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => route.encapsulated = true,
                _ => {}
            }
        }
        route
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The destinations whose lookup can differ after this route came, changed or went: its prefix, in
/// whichever table it is. `None` for what is no unicast route of IPv4 or IPv6.
pub(super) fn concerned(message: &RouteMessage) -> Option<RangeInclusive<IpAddr>> {
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let length = message.header.destination_prefix_length;
    match (message.header.address_family, destination) {
        (AddressFamily::Inet, Some(IpAddr::V4(address))) => {
            let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let low = u32::from(address) & !host;
            Some(Ipv4Addr::from(low).into()..=Ipv4Addr::from(low | host).into())
        }
        (AddressFamily::Inet6, Some(IpAddr::V6(address))) => {
            let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let low = u128::from(address) & !host;
            Some(Ipv6Addr::from(low).into()..=Ipv6Addr::from(low | host).into())
        }
        (AddressFamily::Inet, None) => Some(Ipv4Addr::UNSPECIFIED.into()..=Ipv4Addr::BROADCAST.into()),
        (AddressFamily::Inet6, None) => Some(Ipv6Addr::UNSPECIFIED.into()..=Ipv6Addr::from(u128::MAX).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(family: AddressFamily, length: u8, destination: Option<IpAddr>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.destination_prefix_length = length;
        message.attributes.extend(destination.map(|a| RouteAttribute::Destination(a.into())));
        message
    }

    #[test]
    fn a_reply_is_read_whole() {
        let mut message = message(AddressFamily::Inet, 32, Some("10.1.0.1".parse().unwrap()));
        message.header.kind = RouteType::Unicast;
        message.attributes.extend([
            RouteAttribute::Table(254),
            RouteAttribute::Oif(7),
            RouteAttribute::Gateway(RouteAddress::Inet("10.0.0.1".parse().unwrap())),
            RouteAttribute::PrefSource(RouteAddress::Inet("10.0.0.9".parse().unwrap())),
            RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(64), RouteMetric::Mtu(1400)]),
        ]);
        let expected = Route {
            kind: RouteType::Unicast,
            ifindex: Some(7),
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: Some("10.0.0.9".parse().unwrap()),
            mtu: Some(1400),
            encapsulated: false,
        };
        assert_eq!(Route::from_message(&message), expected);
        let via = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
        message.attributes.retain(|a| !matches!(a, RouteAttribute::Gateway(_)));
        message.attributes.push(via);
        assert_eq!(Route::from_message(&message).gateway, Some("fe80::1".parse().unwrap()));
    }

    #[test]
    fn a_prefix_concerns_what_it_contains() {
        let all4 = concerned(&message(AddressFamily::Inet, 0, None)).unwrap();
        assert!(all4.contains(&"203.0.113.7".parse::<IpAddr>().unwrap()));
        assert!(!all4.contains(&"2001:db8::1".parse::<IpAddr>().unwrap()));
        let net = concerned(&message(AddressFamily::Inet, 30, Some("10.0.0.4".parse().unwrap()))).unwrap();
        assert_eq!(net, "10.0.0.4".parse().unwrap()..="10.0.0.7".parse().unwrap());
        assert_eq!(concerned(&message(AddressFamily::Mpls, 20, None)), None);
    }

    proptest! {
        #[test]
        fn the_range_is_the_prefix(a: u32, b: u32, c: u128, d: u128, length: u8) {
            let address = IpAddr::V4(a.into());
            let range = concerned(&message(AddressFamily::Inet, length, Some(address))).unwrap();
            let net = ipnet::IpNet::new(address, length.min(32)).unwrap();
            for probe in [a, b, a ^ 1, a ^ (b & 0xff)] {
                let probe = IpAddr::V4(probe.into());
                prop_assert_eq!(range.contains(&probe), net.contains(&probe));
            }
            let address = IpAddr::V6(c.into());
            let range = concerned(&message(AddressFamily::Inet6, length, Some(address))).unwrap();
            let net = ipnet::IpNet::new(address, length.min(128)).unwrap();
            for probe in [c, d, c ^ 1, c ^ (d & 0xffff_ffff)] {
                let probe = IpAddr::V6(probe.into());
                prop_assert_eq!(range.contains(&probe), net.contains(&probe));
            }
        }
    }
}
