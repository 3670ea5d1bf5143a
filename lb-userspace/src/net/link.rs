//! Interfaces: what they are, which of them a configuration names, and when they come and go.

use super::{
    NetError,
    wire::{Body, Request, Socket},
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        VlanProtocol,
    },
};
use std::collections::BTreeMap;

/// An interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// Absent where its addresses are not six bytes long.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Switched on by the administrator and able to send (carrier, 802.1X passed).
    pub up: bool,
    /// Ethernet framing, and not the loopback.
    pub ethernet: bool,
    /// Kind of a virtual interface: `vlan`, `veth`, `bond`, ...; absent for hardware.
    pub kind: Option<String>,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// What makes it a VLAN device.
    pub vlan: Option<Vlan>,
}

/// A VLAN device's tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    pub id: u16,
    /// The tag is one of 802.1Q, not one of 802.1ad.
    pub dot1q: bool,
    /// Interface below it, where that is in this network namespace.
    pub parent: Option<u32>,
}

impl Link {
    /// `None` for a message that does not describe the whole interface (about bridge ports, wireless
    /// events).
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let flags = message.header.flags;
        let mut link = Self {
            ifindex: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up | LinkFlags::Running),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether
                && !flags.contains(LinkFlags::Loopback),
            kind: None,
            master: None,
            vlan: None,
        };
        let (mut below, mut elsewhere, mut tag) = (None, false, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(master) => link.master = Some(*master),
                LinkAttribute::Link(ifindex) => below = Some(*ifindex),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                            LinkInfo::Data(InfoData::Vlan(data)) => tag = Some(vlan_tag(data)),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if link.kind.as_deref() == Some(InfoKind::Vlan.to_string().as_str()) {
            let (id, dot1q) = tag.unwrap_or((0, false));
            link.vlan = Some(Vlan { id, dot1q, parent: below.filter(|_| !elsewhere) });
        }
        (!link.name.is_empty() && link.mtu > 0).then_some(link)
    }
}

fn vlan_tag(data: &[InfoVlan]) -> (u16, bool) {
    let (mut id, mut dot1q) = (0, true);
    for info in data {
        match info {
            InfoVlan::Id(tag) => id = *tag,
            InfoVlan::Protocol(protocol) => dot1q = *protocol == VlanProtocol::Ieee8021Q,
            _ => {}
        }
    }
    (id, dot1q)
}

/// All interfaces of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkTable {
    links: BTreeMap<u32, Link>,
}

/// An interface came, went or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// New, or known under another name before.
    Appeared(Link),
    /// Same number and name, but something else of it changed.
    Changed(Link),
    /// Gone, or renamed.
    Disappeared { ifindex: u32, name: String },
}

impl LinkTable {
    pub fn get(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// In the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// True if that changed anything.
    pub(super) fn insert(&mut self, link: Link) -> bool {
        self.links.get(&link.ifindex) != Some(&link) && {
            self.links.insert(link.ifindex, link);
            true
        }
    }

    /// True if it was there.
    pub(super) fn remove(&mut self, ifindex: u32) -> bool {
        self.links.remove(&ifindex).is_some()
    }

    /// The interface of that name; an error names those there are.
    pub fn require(&self, name: &str) -> Result<&Link, NetError> {
        let link = self.by_name(name).ok_or_else(|| NetError::NoInterface {
            name: name.to_owned(),
            present: self.iter().map(|link| link.name.clone()).collect(),
        })?;
        if !link.ethernet {
            return Err(NetError::NotEthernet { name: name.to_owned() });
        }
        Ok(link)
    }

    /// What happened between an earlier table and this one: departures first.
    pub fn changes_since(&self, earlier: &Self) -> Vec<LinkEvent> {
        let same_name = |link: &Link| self.get(link.ifindex).is_some_and(|now| now.name == link.name);
        let gone = earlier.iter().filter(|link| !same_name(link));
        let gone = gone.map(|link| LinkEvent::Disappeared { ifindex: link.ifindex, name: link.name.clone() });
        let now = self.iter().filter_map(|link| match earlier.get(link.ifindex) {
            Some(before) if before == link => None,
            Some(before) if before.name == link.name => Some(LinkEvent::Changed(link.clone())),
            _ => Some(LinkEvent::Appeared(link.clone())),
        });
        gone.chain(now).collect()
    }
}

impl FromIterator<Link> for LinkTable {
    fn from_iter<T: IntoIterator<Item = Link>>(links: T) -> Self {
        Self { links: links.into_iter().map(|link| (link.ifindex, link)).collect() }
    }
}

/// The interfaces as they are now. Blocks for the time of a system call or two.
pub fn list() -> Result<LinkTable, NetError> {
    let failed = |error| NetError::Netlink { doing: "list the interfaces", error };
    const ATTEMPTS: usize = 10;
    let mut last = std::io::Error::from_raw_os_error(libc::EINTR);
    for _ in 0..ATTEMPTS {
        match dump() {
            Ok(table) => return Ok(table),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => last = error,
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(last))
}

/// One pass over the interfaces; `Interrupted` if they changed meanwhile.
fn dump() -> std::io::Result<LinkTable> {
    let socket = Socket::blocking()?;
    const SEQUENCE: u32 = 1;
    socket.send(SEQUENCE, &Request::Links)?;
    let mut table = LinkTable::default();
    let mut interrupted = false;
    loop {
        for packet in socket.receive()? {
            if packet.sequence != SEQUENCE {
                continue;
            }
            interrupted |= packet.interrupted;
            match packet.body {
                Body::Message(RouteNetlinkMessage::NewLink(message)) => {
                    if let Some(link) = Link::from_message(&message) {
                        table.insert(link);
                    }
                }
                Body::Error(errno) if errno != 0 => return Err(std::io::Error::from_raw_os_error(errno)),
                Body::Done if interrupted => return Err(std::io::Error::from_raw_os_error(libc::EINTR)),
                Body::Done => return Ok(table),
                Body::Message(_) | Body::Error(_) | Body::Unknown(_) | Body::Broken => {}
            }
        }
    }
}

/// The number of an Ethernet interface; an error names the interfaces there are.
pub fn ifindex_by_name(name: &str) -> Result<u32, NetError> {
    list()?.require(name).map(|link| link.ifindex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = flags;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        message
    }

    fn link(index: u32, name: &str) -> Link {
        Link::from_message(&message(index, name, LinkFlags::Up | LinkFlags::Running)).unwrap()
    }

    #[test]
    fn up_needs_the_switch_and_the_carrier() {
        let up = |flags| Link::from_message(&message(2, "eth0", flags)).unwrap().up;
        assert!(up(LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp));
        assert!(!up(LinkFlags::Up));
        assert!(!up(LinkFlags::Running));
    }

    #[test]
    fn a_vlan_device_names_its_parent_unless_that_is_elsewhere() {
        let mut vlan = message(3, "eth0.100", LinkFlags::Up);
        vlan.attributes.push(LinkAttribute::Link(2));
        vlan.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![
                InfoVlan::Protocol(VlanProtocol::Ieee8021Q),
                InfoVlan::Id(100),
            ])),
        ]));
        let link = Link::from_message(&vlan).unwrap();
        assert_eq!(link.kind.as_deref(), Some("vlan"));
        assert_eq!(link.vlan, Some(Vlan { id: 100, dot1q: true, parent: Some(2) }));
        vlan.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(Link::from_message(&vlan).unwrap().vlan.unwrap().parent, None);
    }

    #[test]
    fn partial_messages_are_no_links() {
        let mut port = message(2, "eth0", LinkFlags::Up);
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(Link::from_message(&port), None);
        let mut wireless = message(2, "wlan0", LinkFlags::Up);
        wireless.attributes.truncate(1);
        assert_eq!(Link::from_message(&wireless), None);
    }

    #[test]
    fn the_loopback_is_not_ethernet() {
        let lo = Link::from_message(&message(1, "lo", LinkFlags::Up | LinkFlags::Loopback)).unwrap();
        assert!(!lo.ethernet);
    }

    #[test]
    fn changes_are_told_once_departures_first() {
        let before: LinkTable = [link(1, "a"), link(2, "b"), link(3, "c")].into_iter().collect();
        let slow = Link { mtu: 1400, ..link(1, "a") };
        let now: LinkTable = [slow.clone(), link(3, "renamed"), link(4, "b")].into_iter().collect();
        let gone = |ifindex, name: &str| LinkEvent::Disappeared { ifindex, name: name.to_owned() };
        assert_eq!(
            now.changes_since(&before),
            [
                gone(2, "b"),
                gone(3, "c"),
                LinkEvent::Changed(slow),
                LinkEvent::Appeared(link(3, "renamed")),
                LinkEvent::Appeared(link(4, "b")),
            ]
        );
        assert_eq!(now.changes_since(&now), []);
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let table: LinkTable = [link(1, "eth0"), link(2, "eth1")].into_iter().collect();
        assert_eq!(table.require("eth1").unwrap().ifindex, 2);
        let error = table.require("eht0").unwrap_err().to_string();
        assert_eq!(error, "there is no interface 'eht0' on this host; it has eth0, eth1");
    }

    #[test]
    fn this_host_has_a_loopback() {
        let table = list().unwrap();
        assert!(!table.by_name("lo").unwrap().ethernet);
        assert!(matches!(ifindex_by_name("lo"), Err(NetError::NotEthernet { .. })));
        assert!(matches!(ifindex_by_name("no-such-link"), Err(NetError::NoInterface { .. })));
    }
}
