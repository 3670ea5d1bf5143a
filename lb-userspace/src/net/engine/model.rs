//! A model of the kernel: its tables, the events it sends, the answers it gives, and the hosts on its
//! links.

use crate::net::{
    neighbour::NeighbourKey,
    wire::{Body, Packet, Request},
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

pub(super) type Mac = [u8; 6];

pub(super) const PORT: u32 = 77;
pub(super) const FIRST: u32 = 2;
pub(super) const SECOND: u32 = 3;
/// A VLAN device on the first.
pub(super) const VLAN: u32 = 4;
pub(super) const TAG: u16 = 100;

pub(super) fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

pub(super) fn ip(third: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, third, last)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Iface {
    pub up: bool,
    pub mac: Mac,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    Direct(u32),
    Gateway(u32, Ipv4Addr),
    Refused(i32),
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry {
    pub state: NeighbourState,
    pub mac: Option<Mac>,
    /// When the kernel's timer for it fires.
    pub timer: Option<Instant>,
}

/// The kernel, as far as the engine sees it, and the hosts around it.
#[derive(Clone, Default)]
pub(super) struct Kernel {
    pub links: BTreeMap<u32, Iface>,
    /// By prefix length (0 or 24) and third byte.
    pub routes: BTreeMap<(u8, u8), Target>,
    pub neighbours: BTreeMap<(u32, Ipv4Addr), Entry>,
    pub hosts: BTreeMap<(u32, Ipv4Addr), Mac>,
    pub outgoing: VecDeque<Packet>,
    /// Probes of entries that must not be probed.
    pub trespasses: usize,
}

impl Kernel {
    pub(super) fn say(&mut self, port: u32, sequence: u32, body: Body) {
        self.outgoing.push_back(Packet { port, sequence, interrupted: false, body });
    }

    pub(super) fn event(&mut self, message: RouteNetlinkMessage) {
        self.say(0, 0, Body::Message(message));
    }

    pub(super) fn link_message(&self, ifindex: u32) -> LinkMessage {
        let iface = self.links.get(&ifindex).copied().unwrap_or(Iface { up: false, mac: mac(0) });
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.link_layer_type = LinkLayerType::Ether;
        if iface.up {
            message.header.flags = LinkFlags::Up | LinkFlags::Running;
        }
        message.attributes = vec![
            LinkAttribute::IfName(format!("eth{ifindex}")),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(iface.mac.to_vec()),
        ];
        if ifindex == VLAN {
            message.attributes.push(LinkAttribute::Link(FIRST));
            let data = LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(TAG)]));
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), data]));
        }
        message
    }

    pub(super) fn neighbour_message(&self, key: (u32, Ipv4Addr)) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = key.0;
        message.attributes.push(NeighbourAttribute::Destination(key.1.into()));
        if let Some(entry) = self.neighbours.get(&key) {
            message.header.state = entry.state;
            message.attributes.extend(entry.mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.to_vec())));
        }
        message
    }

    pub(super) fn route_message((length, third): (u8, u8)) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = length;
        if length > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(ip(third, 0))));
        }
        message
    }

    pub(super) fn set_neighbour(&mut self, key: (u32, Ipv4Addr), state: NeighbourState, mac: Option<Mac>) {
        self.neighbours.insert(key, Entry { state, mac, timer: None });
        let message = self.neighbour_message(key);
        self.event(RouteNetlinkMessage::NewNeighbour(message));
    }

    pub(super) fn forget_neighbour(&mut self, key: (u32, Ipv4Addr)) {
        if self.neighbours.remove(&key).is_some() {
            let message = self.neighbour_message(key);
            self.event(RouteNetlinkMessage::DelNeighbour(message));
        }
    }

    pub(super) fn set_link(&mut self, ifindex: u32, iface: Option<Iface>) {
        let before = self.links.get(&ifindex).copied();
        let lost = before.is_some_and(|b| b.up) && !iface.is_some_and(|i| i.up);
        if lost {
            for key in self.neighbours.keys().copied().filter(|k| k.0 == ifindex).collect::<Vec<_>>() {
                self.forget_neighbour(key);
            }
        }
        if iface.is_none() {
            // Routes of an interface that goes vanish without a word.
            self.routes
                .retain(|_, t| !matches!(t, Target::Direct(i) | Target::Gateway(i, _) if *i == ifindex));
        }
        match iface {
            Some(iface) => {
                self.links.insert(ifindex, iface);
                let message = self.link_message(ifindex);
                self.event(RouteNetlinkMessage::NewLink(message));
            }
            None if self.links.remove(&ifindex).is_some() => {
                let message = self.link_message(ifindex);
                self.event(RouteNetlinkMessage::DelLink(message));
            }
            None => {}
        }
    }

    pub(super) fn set_route(&mut self, prefix: (u8, u8), target: Option<Target>) {
        match target {
            Some(Target::Direct(i) | Target::Gateway(i, _)) if !self.links.contains_key(&i) => {}
            Some(target) => {
                self.routes.insert(prefix, target);
                self.event(RouteNetlinkMessage::NewRoute(Self::route_message(prefix)));
            }
            None => {
                if self.routes.remove(&prefix).is_some() {
                    self.event(RouteNetlinkMessage::DelRoute(Self::route_message(prefix)));
                }
            }
        }
    }

    pub(super) fn lookup(&self, address: Ipv4Addr) -> Target {
        let [_, _, third, _] = address.octets();
        let found = self.routes.get(&(24, third)).or_else(|| self.routes.get(&(0, 0)));
        found.copied().unwrap_or(Target::Refused(libc::ENETUNREACH))
    }

    pub(super) fn request(&mut self, sequence: u32, request: Request, now: Instant) {
        let answer = |kernel: &mut Self, body| kernel.say(PORT, sequence, body);
        match request {
            Request::Links => {
                for ifindex in self.links.keys().copied().collect::<Vec<_>>() {
                    let message = self.link_message(ifindex);
                    answer(self, Body::Message(RouteNetlinkMessage::NewLink(message)));
                }
                answer(self, Body::Done);
            }
            Request::Neighbours => {
                for key in self.neighbours.keys().copied().collect::<Vec<_>>() {
                    let message = self.neighbour_message(key);
                    answer(self, Body::Message(RouteNetlinkMessage::NewNeighbour(message)));
                }
                answer(self, Body::Done);
            }
            Request::Route(IpAddr::V4(address)) => {
                let mut message = Self::route_message((32, 0));
                message.header.kind = RouteType::Unicast;
                match self.lookup(address) {
                    Target::Refused(errno) => return answer(self, Body::Error(errno)),
                    Target::Local => message.header.kind = RouteType::Local,
                    Target::Direct(ifindex) => message.attributes.push(RouteAttribute::Oif(ifindex)),
                    Target::Gateway(ifindex, gateway) => {
                        message.attributes.push(RouteAttribute::Oif(ifindex));
                        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
                    }
                }
                answer(self, Body::Message(RouteNetlinkMessage::NewRoute(message)));
            }
            Request::Solicit {
                neighbour: NeighbourKey { ifindex, address: IpAddr::V4(address) },
                create,
            } => {
                let errno = self.solicit((ifindex, address), create, now);
                answer(self, Body::Error(errno));
            }
            Request::Route(_) | Request::Solicit { .. } => answer(self, Body::Error(libc::EINVAL)),
        }
    }

    pub(super) fn solicit(&mut self, key: (u32, Ipv4Addr), create: bool, now: Instant) -> i32 {
        let answers = self.hosts.contains_key(&key);
        match (self.neighbours.get_mut(&key), create) {
            _ if !self.links.get(&key.0).is_some_and(|link| link.up) => libc::ENETDOWN,
            (Some(_), true) => libc::EEXIST,
            (None, false) => libc::ENOENT,
            (None, true) => {
                self.set_neighbour(key, NeighbourState::Incomplete, None);
                self.start_timer(key, now + Duration::from_millis(if answers { 2 } else { 3000 }));
                0
            }
            (Some(entry), false) => {
                match entry.state {
                    NeighbourState::Failed => entry.state = NeighbourState::Incomplete,
                    // Without an event, as in the kernel.
                    NeighbourState::Stale => entry.state = NeighbourState::Delay,
                    NeighbourState::Permanent => self.trespasses += 1,
                    _ => {}
                }
                if matches!(entry.state, NeighbourState::Incomplete | NeighbourState::Delay)
                    && entry.timer.is_none()
                {
                    let wait = if answers { 2 } else { 3000 };
                    self.start_timer(key, now + Duration::from_millis(wait));
                }
                0
            }
        }
    }

    pub(super) fn start_timer(&mut self, key: (u32, Ipv4Addr), at: Instant) {
        if let Some(entry) = self.neighbours.get_mut(&key) {
            entry.timer = Some(at);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.neighbours.values().filter_map(|entry| entry.timer).min()
    }

    pub(super) fn tick(&mut self, now: Instant) {
        let due: Vec<_> = self
            .neighbours
            .iter()
            .filter(|(_, e)| e.timer.is_some_and(|at| at <= now))
            .map(|(k, _)| *k)
            .collect();
        for key in due {
            match self.hosts.get(&key).copied() {
                Some(mac) => self.set_neighbour(key, NeighbourState::Reachable, Some(mac)),
                None => self.set_neighbour(key, NeighbourState::Failed, None),
            }
        }
    }
}
