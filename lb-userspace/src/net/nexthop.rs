//! Where a packet to an address leaves this host: pure functions from what the kernel said of links,
//! routes and neighbours.
//!
//! A VLAN device is resolved to its parent and a tag, since XDP sees and sends frames below it. Bridges,
//! bonds and macvlan devices are taken as the route names them: the kernel can redirect a frame to a
//! bond or a bridge only where the driver of that master supports it, and a frame that arrived on a port
//! of a bond can always be sent back out of that port. Who attaches to the ports of a bond must map its
//! index to one of them.

use super::{
    link::{Link, LinkTable},
    neighbour::NeighbourKey,
    route::Lookup,
};
use netlink_packet_route::route::RouteType;
use std::{fmt, net::IpAddr};

/// Everything a frame needs to leave for a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// Interface that sends the frame; the parent where the route names a VLAN device.
    pub ifindex: u32,
    /// Its name.
    pub ifname: String,
    /// The sender's address: the VLAN device's own where it differs from its parent's.
    pub src_mac: [u8; 6],
    /// The neighbour's address.
    pub dst_mac: [u8; 6],
    /// 802.1Q tag to send with.
    pub vlan: Option<u16>,
    /// Largest IP packet in bytes: the least of the route's and the interfaces', at most 65,535.
    pub mtu: u16,
    /// Source address that this host would use.
    pub source: Option<IpAddr>,
}

/// Why there is no next hop. The text completes "DESTINATION: ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("there is no route to it; see `ip route get`")]
    NoRoute,
    #[error("interface {0}, which leads to it, is down or has no carrier")]
    LinkDown(String),
    /// The neighbour has been asked and has not had its time to answer. Where there was a next hop
    /// before, it is reasonable to keep it until the answer or [`Unresolved::NoNeighbour`] arrives.
    #[error("waiting for {gateway} to tell its MAC address on {ifname}")]
    Resolving { gateway: IpAddr, ifname: String },
    /// `gateway` is the route's gateway, or the destination itself where it is on the link.
    #[error("{gateway} does not answer {} on {ifname}; is the host up and in this network?", asking(.gateway))]
    NoNeighbour { gateway: IpAddr, ifname: String },
    #[error("its route says unreachable")]
    Unreachable,
    #[error("its route says blackhole")]
    Blackhole,
    #[error("its route says prohibit")]
    Prohibit,
    #[error("its route leaves by {0}, which is no Ethernet interface")]
    NotEthernet(String),
    #[error("it is an address of this host")]
    Local,
    #[error("it is a broadcast, multicast or anycast address")]
    NotUnicast,
    #[error(
        "its route leaves by {0}, a VLAN device with a tag inside another VLAN or an 802.1ad tag; only one 802.1Q tag is supported"
    )]
    NestedVlan(String),
    #[error("its route leaves by the VLAN device {0}, whose parent is not in this network namespace")]
    NoVlanParent(String),
    #[error("its route by {0} wraps packets in a tunnel (encap), which is not supported")]
    Encapsulated(String),
    #[error("its route names interface number {0}, which does not exist")]
    NoInterface(u32),
    #[error("the kernel refused to look up its route: {}", std::io::Error::from_raw_os_error(*.0))]
    LookupFailed(i32),
}

impl Unresolved {
    /// True if this is not the last word: an answer is due within seconds.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Resolving { .. })
    }
}

fn asking(gateway: &IpAddr) -> &'static str {
    if gateway.is_ipv4() { "ARP" } else { "neighbour discovery" }
}

/// Shows a MAC address as six pairs of digits.
pub struct MacDisplay(pub [u8; 6]);

impl fmt::Display for MacDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", MacDisplay(self.dst_mac), self.ifname)?;
        if let Some(vlan) = self.vlan {
            write!(f, " vlan {vlan}")?;
        }
        write!(f, " from {} mtu {}", MacDisplay(self.src_mac), self.mtu)
    }
}

/// A next hop but for the neighbour's MAC address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Egress {
    ifindex: u32,
    ifname: String,
    src_mac: [u8; 6],
    vlan: Option<u16>,
    mtu: u16,
    source: Option<IpAddr>,
    /// Whose MAC address is needed, on the interface that the route names.
    pub neighbour: NeighbourKey,
    /// Name of that interface.
    pub neighbour_ifname: String,
}

impl Egress {
    pub(super) fn to(&self, dst_mac: [u8; 6]) -> NextHop {
        NextHop {
            ifindex: self.ifindex,
            ifname: self.ifname.clone(),
            src_mac: self.src_mac,
            dst_mac,
            vlan: self.vlan,
            mtu: self.mtu,
            source: self.source,
        }
    }
}

/// Follows a route to the interface that sends and the neighbour that receives. `before` is the
/// interface of the last usable route: where that is down, its routes are gone, and the interface is the
/// cause worth telling.
pub(super) fn egress(
    destination: IpAddr,
    lookup: &Lookup,
    links: &LinkTable,
    before: Option<u32>,
) -> Result<Egress, Unresolved> {
    let route = match lookup {
        Lookup::Found(route) => route,
        Lookup::Refused(errno) => {
            return Err(match (*errno, before.and_then(|ifindex| links.get(ifindex))) {
                (libc::ENETUNREACH, Some(link)) if !link.up => Unresolved::LinkDown(link.name.clone()),
                (libc::ENETUNREACH | libc::ESRCH | libc::EAGAIN, _) => Unresolved::NoRoute,
                (libc::EHOSTUNREACH, _) => Unresolved::Unreachable,
                (libc::EINVAL, _) => Unresolved::Blackhole,
                (libc::EACCES, _) => Unresolved::Prohibit,
                (errno, _) => Unresolved::LookupFailed(errno),
            });
        }
    };
    match route.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unresolved::Local),
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return Err(Unresolved::NotUnicast);
        }
        RouteType::BlackHole => return Err(Unresolved::Blackhole),
        RouteType::Unreachable => return Err(Unresolved::Unreachable),
        RouteType::Prohibit => return Err(Unresolved::Prohibit),
        _ => return Err(Unresolved::NoRoute),
    }
    let ifindex = route.ifindex.ok_or(Unresolved::NoRoute)?;
    let out = links.get(ifindex).ok_or(Unresolved::NoInterface(ifindex))?;
    if route.encapsulated {
        return Err(Unresolved::Encapsulated(out.name.clone()));
    }
    let not_ethernet = || Unresolved::NotEthernet(out.name.clone());
    let src_mac = out.mac.filter(|_| out.ethernet).ok_or_else(not_ethernet)?;
    let (sender, vlan) = sender(out, links)?;
    if let Some(down) = [out, sender].into_iter().find(|link| !link.up) {
        return Err(Unresolved::LinkDown(down.name.clone()));
    }
    let mtu = route.mtu.unwrap_or(u32::MAX).min(out.mtu).min(sender.mtu);
    Ok(Egress {
        ifindex: sender.ifindex,
        ifname: sender.name.clone(),
        src_mac,
        vlan,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        source: route.source,
        neighbour: NeighbourKey { ifindex, address: route.gateway.unwrap_or(destination) },
        neighbour_ifname: out.name.clone(),
    })
}

/// The interface below a VLAN device and the tag, or the interface itself.
fn sender<'a>(out: &'a Link, links: &'a LinkTable) -> Result<(&'a Link, Option<u16>), Unresolved> {
    let Some(vlan) = &out.vlan else {
        return Ok((out, None));
    };
    let parent = vlan.parent.and_then(|ifindex| links.get(ifindex));
    let parent = parent.ok_or_else(|| Unresolved::NoVlanParent(out.name.clone()))?;
    if !vlan.dot1q || parent.vlan.is_some() {
        return Err(Unresolved::NestedVlan(out.name.clone()));
    }
    Ok((parent, Some(vlan.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{link::Vlan, route::Route};

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
            mtu: 1500,
            up: true,
            ethernet: true,
            kind: None,
            master: None,
            vlan: None,
        }
    }

    fn vlan(ifindex: u32, name: &str, parent: u32, id: u16) -> Link {
        let vlan = Some(Vlan { id, dot1q: true, parent: Some(parent) });
        Link { vlan, kind: Some("vlan".to_owned()), ..link(ifindex, name) }
    }

    fn by(ifindex: u32) -> Route {
        Route { kind: RouteType::Unicast, ifindex: Some(ifindex), ..Route::default() }
    }

    fn resolve(route: Route, links: &[Link]) -> Result<Egress, Unresolved> {
        let links = links.iter().cloned().collect();
        egress("10.0.0.1".parse().unwrap(), &Lookup::Found(route), &links, None)
    }

    #[test]
    fn a_vlan_device_is_its_parent_and_a_tag() {
        let parent = Link { mtu: 1400, ..link(2, "eth0") };
        let found = resolve(by(3), &[parent, vlan(3, "eth0.100", 2, 100)]).unwrap();
        assert_eq!(found.neighbour, NeighbourKey { ifindex: 3, address: "10.0.0.1".parse().unwrap() });
        let hop = found.to([2, 0, 0, 0, 0, 9]);
        assert_eq!((hop.ifindex, hop.ifname.as_str(), hop.vlan, hop.mtu), (2, "eth0", Some(100), 1400));
        assert_eq!(hop.src_mac, [2, 0, 0, 0, 0, 3]);
        assert_eq!(hop.to_string(), "02:00:00:00:00:09 dev eth0 vlan 100 from 02:00:00:00:00:03 mtu 1400");
    }

    #[test]
    fn a_vlan_that_cannot_be_sent_is_refused() {
        let eth0 = link(2, "eth0");
        let nested = [eth0.clone(), vlan(3, "a", 2, 100), vlan(4, "b", 3, 7)];
        assert_eq!(resolve(by(4), &nested), Err(Unresolved::NestedVlan("b".to_owned())));
        let mut dot1ad = vlan(3, "a", 2, 100);
        dot1ad.vlan.as_mut().unwrap().dot1q = false;
        assert_eq!(resolve(by(3), &[eth0.clone(), dot1ad]), Err(Unresolved::NestedVlan("a".to_owned())));
        let orphan = vlan(3, "a", 9, 100);
        assert_eq!(resolve(by(3), &[eth0, orphan]), Err(Unresolved::NoVlanParent("a".to_owned())));
        let down = Link { up: false, ..link(2, "eth0") };
        let found = resolve(by(3), &[down, vlan(3, "a", 2, 100)]);
        assert_eq!(found, Err(Unresolved::LinkDown("eth0".to_owned())));
    }

    #[test]
    fn the_mtu_is_the_least_and_fits() {
        let mtu = |route: Option<u32>, link_mtu: u32| {
            let links = [Link { mtu: link_mtu, ..link(2, "eth0") }];
            resolve(Route { mtu: route, ..by(2) }, &links).unwrap().mtu
        };
        assert_eq!(mtu(None, 1500), 1500);
        assert_eq!(mtu(Some(1280), 1500), 1280);
        assert_eq!(mtu(Some(9000), 1500), 1500);
        assert_eq!(mtu(None, 65_536), 65_535);
    }

    #[test]
    fn a_route_that_leads_nowhere_says_why() {
        let eth0 = [link(2, "eth0")];
        let kind = |kind| resolve(Route { kind, ..by(2) }, &eth0).unwrap_err();
        assert_eq!(kind(RouteType::Local), Unresolved::Local);
        assert_eq!(kind(RouteType::Multicast), Unresolved::NotUnicast);
        assert_eq!(kind(RouteType::BlackHole), Unresolved::Blackhole);
        assert_eq!(kind(RouteType::Unreachable), Unresolved::Unreachable);
        assert_eq!(kind(RouteType::Prohibit), Unresolved::Prohibit);
        let tunnel = resolve(Route { encapsulated: true, ..by(2) }, &eth0);
        assert_eq!(tunnel, Err(Unresolved::Encapsulated("eth0".to_owned())));
        assert_eq!(resolve(by(7), &eth0), Err(Unresolved::NoInterface(7)));
        let tun = Link { ethernet: false, mac: None, ..link(2, "tun0") };
        assert_eq!(resolve(by(2), &[tun]), Err(Unresolved::NotEthernet("tun0".to_owned())));
    }

    #[test]
    fn a_refused_lookup_is_told_by_its_cause() {
        let refused = |errno, before, links: &[Link]| {
            let links = links.iter().cloned().collect();
            egress("10.0.0.1".parse().unwrap(), &Lookup::Refused(errno), &links, before).unwrap_err()
        };
        let down = [Link { up: false, ..link(2, "eth0") }];
        assert_eq!(refused(libc::ENETUNREACH, None, &down), Unresolved::NoRoute);
        assert_eq!(refused(libc::ENETUNREACH, Some(2), &down), Unresolved::LinkDown("eth0".to_owned()));
        assert_eq!(refused(libc::ENETUNREACH, Some(3), &down), Unresolved::NoRoute);
        assert_eq!(refused(libc::ENETUNREACH, Some(2), &[link(2, "eth0")]), Unresolved::NoRoute);
        assert_eq!(refused(libc::EHOSTUNREACH, None, &[]), Unresolved::Unreachable);
        assert_eq!(refused(libc::EINVAL, None, &[]), Unresolved::Blackhole);
        assert_eq!(refused(libc::EACCES, None, &[]), Unresolved::Prohibit);
        assert_eq!(refused(libc::ENOMEM, None, &[]), Unresolved::LookupFailed(libc::ENOMEM));
    }
}
