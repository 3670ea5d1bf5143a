//! The netlink socket: requests to bytes, datagrams to packets.
//!
//! One socket carries both the answers and the multicast events, so that the order of what it delivers
//! is the order in which the kernel did it. A library that sorts the two into queues of their own loses
//! that order, and with it the right to believe the last message about a thing.

use super::neighbour::NeighbourKey;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteMessage},
};
use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBuf, RcvBufForce},
};
use rtnetlink::{
    MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
        NetlinkMessage, NetlinkPayload,
    },
    sys::{
        AsyncSocket, AsyncSocketExt, Socket as RawSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
    },
};
use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

/// The groups whose events can change a next hop. Objects of `ip nexthop` too: a route that uses one
/// changes without an event of its own.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`, which the message library does not know.
pub(super) const NEXTHOP_MESSAGES: [u16; 2] = [104, 105];

/// Room for one datagram; the kernel sends at most 32 KiB of a dump at once.
const DATAGRAM: usize = 128 * 1024;

/// Room for events that arrive faster than they are read.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What is asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// All interfaces.
    Links,
    /// All neighbours of IPv4 and IPv6.
    Neighbours,
    /// The route to an address.
    Route(IpAddr),
    /// That the kernel find out a neighbour's MAC address, as if it had a packet for it. `create` where
    /// there is no entry; refused then if there is one, so that an entry the operator has just made is
    /// never touched.
    Solicit { neighbour: NeighbourKey, create: bool },
}

impl Request {
    /// True if the answer is a list that ends with [`Body::Done`].
    pub(super) fn is_dump(&self) -> bool {
        matches!(self, Self::Links | Self::Neighbours)
    }

    pub(super) fn encode(&self, sequence: u32) -> Vec<u8> {
        let (message, flags) = match self {
            Self::Links => {
                let mut message = LinkMessage::default();
                message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
                (RouteNetlinkMessage::GetLink(message), NLM_F_DUMP)
            }
            Self::Neighbours => (RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), NLM_F_DUMP),
            Self::Route(destination) => {
                let mut message = RouteMessage::default();
                (message.header.address_family, message.header.destination_prefix_length) =
                    (family(destination), if destination.is_ipv4() { 32 } else { 128 });
                message.attributes.push(RouteAttribute::Destination((*destination).into()));
                (RouteNetlinkMessage::GetRoute(message), 0)
            }
            Self::Solicit { neighbour, create } => {
                let mut message = NeighbourMessage::default();
                message.header.family = family(&neighbour.address);
                message.header.ifindex = neighbour.ifindex;
                message.header.state = NeighbourState::None;
                message.header.flags = NeighbourFlags::Use;
                message.attributes.push(NeighbourAttribute::Destination(neighbour.address.into()));
                let flags = if *create { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
                (RouteNetlinkMessage::NewNeighbour(message), NLM_F_ACK | flags)
            }
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}

fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// One message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    /// Whose request caused it: the socket's own number in answers.
    pub port: u32,
    /// Number of the request it answers, if it answers one.
    pub sequence: u32,
    /// The dump it belongs to is inconsistent.
    pub interrupted: bool,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    Message(RouteNetlinkMessage),
    /// The end of a dump.
    Done,
    /// A positive error number, or 0 for an acknowledgement.
    Error(i32),
    /// A message of a type, or with a content, that cannot be decoded.
    Unknown(u16),
    /// Not a message: the rest of the datagram is lost.
    Broken,
}

/// Length of a netlink message header, and the alignment of messages.
const HEADER: usize = 16;
const ALIGNMENT: usize = 4;

/// Puts a request behind others, all of one datagram.
pub(super) fn append(datagram: &mut Vec<u8>, sequence: u32, request: &Request) {
    datagram.resize(datagram.len().next_multiple_of(ALIGNMENT), 0);
    datagram.extend(request.encode(sequence));
}

/// The messages of a datagram.
pub(super) fn split(datagram: &[u8]) -> Vec<Packet> {
    let mut packets = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = rest.first_chunk::<4>().map_or(0, |b| u32::from_ne_bytes(*b) as usize);
        let Some(message) = rest.get(..length).filter(|_| length >= HEADER) else {
            packets.push(Packet { port: 0, sequence: 0, interrupted: false, body: Body::Broken });
            break;
        };
        packets.push(decode(message));
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    packets
}

/// `message` has at least a header.
fn decode(message: &[u8]) -> Packet {
    let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
    let word =
        |at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    let (kind, flags) = (half(4), half(6));
    let body = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
        Ok(NetlinkPayload::InnerMessage(inner)) => Body::Message(inner),
        Ok(NetlinkPayload::Done(done)) if done.code < 0 => Body::Error(done.code.saturating_neg()),
        Ok(NetlinkPayload::Done(_)) => Body::Done,
        Ok(NetlinkPayload::Error(error)) => {
            Body::Error(error.code.map_or(0, |code| code.get().saturating_neg()))
        }
        Ok(_) => Body::Unknown(kind),
        Err(error) => {
            if !NEXTHOP_MESSAGES.contains(&kind) {
                tracing::debug!(kind, %error, "cannot read a netlink message");
            }
            Body::Unknown(kind)
        }
    };
    Packet { port: word(12), sequence: word(8), interrupted: flags & NLM_F_DUMP_INTR != 0, body }
}

/// A socket that waits.
pub(super) struct Socket(RawSocket);

impl Socket {
    pub(super) fn blocking() -> io::Result<Self> {
        let mut socket = RawSocket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    pub(super) fn send(&self, sequence: u32, request: &Request) -> io::Result<()> {
        self.0.send_to(&request.encode(sequence), &SocketAddr::new(0, 0), 0).map(drop)
    }

    pub(super) fn receive(&self) -> io::Result<Vec<Packet>> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        let (_, from) = self.0.recv_from(&mut buffer, 0)?;
        Ok(if from.port_number() == 0 { split(&buffer) } else { Vec::new() })
    }
}

/// A socket that is subscribed to every event of [`GROUPS`].
pub(super) struct EventSocket {
    socket: TokioSocket,
    /// Its number, by which it knows its own answers.
    pub port: u32,
    buffer: Vec<u8>,
}

impl EventSocket {
    /// In the calling thread's network namespace, for good.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let raw = socket.socket_mut();
        let port = raw.bind_auto()?.port_number();
        for group in GROUPS {
            match raw.add_membership(group as u32) {
                // Kernels before 5.3 have no nexthop objects.
                Err(error) if group == MulticastGroup::Nexthop => {
                    tracing::debug!(%error, "this kernel has no nexthop objects");
                }
                result => result?,
            }
        }
        // SAFETY: `raw` owns the descriptor and outlives this borrow of it.
        let fd = unsafe { BorrowedFd::borrow_raw(raw.as_raw_fd()) };
        // Beyond the system's limit, which takes CAP_NET_ADMIN; else up to it.
        if setsockopt(&fd, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&fd, RcvBuf, &RECEIVE_BUFFER)?;
        }
        Ok(Self { socket, port, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends requests as one datagram.
    pub(super) async fn send(&self, requests: &[u8]) -> io::Result<()> {
        self.socket.send_to(requests, &SocketAddr::new(0, 0)).await.map(drop)
    }

    /// As [`EventSocket::receive`], but does not wait: `WouldBlock` where nothing has come.
    pub(super) fn receive_now(&mut self) -> io::Result<Vec<Packet>> {
        self.buffer.clear();
        let (_, from) = self.socket.socket_ref().recv_from(&mut self.buffer, libc::MSG_DONTWAIT)?;
        Ok(if from.port_number() == 0 { split(&self.buffer) } else { Vec::new() })
    }

    /// The messages of the next datagram; `ENOBUFS` if the kernel had to drop some. Nothing is lost if
    /// this is dropped before it is done.
    pub(super) async fn receive(&mut self) -> io::Result<Vec<Packet>> {
        self.buffer.clear();
        let from = self.socket.recv_from(&mut self.buffer).await?;
        Ok(if from.port_number() == 0 { split(&self.buffer) } else { Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = Request> {
        let address =
            prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        prop_oneof![
            Just(Request::Links),
            Just(Request::Neighbours),
            address.clone().prop_map(Request::Route),
            (address, any::<u32>(), any::<bool>()).prop_map(|(address, ifindex, create)| {
                Request::Solicit { neighbour: NeighbourKey { ifindex, address }, create }
            }),
        ]
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = split(&bytes);
        }

        #[test]
        fn no_damage_panics(
            request in request(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            kind in 16u16..110,
        ) {
            let mut bytes = request.encode(7);
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _ = split(&bytes);
        }

        #[test]
        fn what_is_sent_can_be_read(request in request(), other in request(), sequence: u32) {
            let mut bytes = request.encode(sequence);
            append(&mut bytes, sequence.wrapping_add(1), &other);
            let packets = split(&bytes);
            prop_assert_eq!(packets.len(), 2);
            prop_assert_eq!(packets[0].sequence, sequence);
            for (packet, request) in packets.iter().zip([&request, &other]) {
                match (&packet.body, request) {
                    (Body::Message(RouteNetlinkMessage::GetLink(_)), Request::Links) => {}
                    (Body::Message(RouteNetlinkMessage::GetNeighbour(_)), Request::Neighbours) => {}
                    (Body::Message(RouteNetlinkMessage::GetRoute(message)), Request::Route(address)) => {
                        let expected = RouteAttribute::Destination((*address).into());
                        prop_assert_eq!(&message.attributes, &vec![expected]);
                    }
                    (
                        Body::Message(RouteNetlinkMessage::NewNeighbour(message)),
                        Request::Solicit { neighbour, .. },
                    ) => {
                        prop_assert_eq!(message.header.ifindex, neighbour.ifindex);
                        prop_assert_eq!(message.header.flags, NeighbourFlags::Use);
                        let expected = NeighbourAttribute::Destination(neighbour.address.into());
                        prop_assert_eq!(&message.attributes, &vec![expected]);
                    }
                    (body, request) => prop_assert!(false, "{:?} for {:?}", body, request),
                }
            }
        }
    }

    #[test]
    fn a_truncated_datagram_is_told() {
        let bytes = Request::Links.encode(1);
        let packets = split(&bytes[..bytes.len() - 1]);
        assert_eq!(packets.last().map(|p| &p.body), Some(&Body::Broken));
    }

    #[test]
    fn an_entry_is_never_created_over_another() {
        let neighbour = NeighbourKey { ifindex: 2, address: "10.0.0.1".parse().unwrap() };
        let flags = |create| {
            let bytes = Request::Solicit { neighbour, create }.encode(1);
            u16::from_ne_bytes([bytes[6], bytes[7]])
        };
        assert_eq!(flags(true), NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        assert_eq!(flags(false), NLM_F_REQUEST | NLM_F_ACK);
    }
}
