//! What VRRP asks of rtnetlink: links and addresses, read and changed. The messages are put together by hand: three
//! fixed headers and a handful of attributes, and a message that cannot be read is skipped.

use crate::model::Family;
use ipnet::IpNet;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket,
            sockopt::{RcvBuf, ReceiveTimeout},
        },
        time::TimeVal,
    },
};
use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

const HEADER: usize = 16;
/// Of the attributes of a VLAN (`linux/if_link.h`).
const IFLA_VLAN_ID: u16 = 1;
/// `struct ifaddrmsg` and `struct ifinfomsg`.
const ADDRESS_HEADER: usize = 8;
const LINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// The kernel sends at most 32 KiB of a dump at once.
const DATAGRAM: usize = 64 << 10;
/// Room for events that arrive faster than they are read.
const RECEIVE_BUFFER: usize = 1 << 20;
/// An answer of the kernel is a matter of microseconds, unless somebody else holds its lock.
const PATIENCE: i64 = 2;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// Up, with a carrier.
    pub running: bool,
    pub mac: Option<[u8; 6]>,
    /// Of a VLAN: what it is on, and its id.
    pub vlan: Option<(u32, u16)>,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub index: u32,
    pub net: IpNet,
    /// Duplicate address detection has not ended well (yet).
    pub tentative: bool,
    /// Not the first of its network.
    pub secondary: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Link(Link),
    Address(Address),
    /// The end of a list.
    Done,
    /// A positive error number; 0 acknowledges.
    Error(i32),
    /// Something else.
    Other,
}

/// A request with the header that the kernel wants, its length filled in.
fn request(kind: u16, flags: i32, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or(0);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The body of `RTM_NEWADDR` and `RTM_DELADDR`. An IPv6 address skips duplicate address detection: it would be
/// silent for a second, and the old master may still answer for it.
fn address_body(index: u32, net: IpNet) -> Vec<u8> {
    let (family, flags) = match Family::of(net.addr()) {
        Family::V4 => (libc::AF_INET, 0),
        Family::V6 => (libc::AF_INET6, libc::IFA_F_NODAD),
    };
    let byte = |value: i32| u8::try_from(value).unwrap_or(0);
    let mut body =
        vec![byte(family), net.prefix_len(), u8::try_from(flags).unwrap_or(0), libc::RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, &octets(net.addr()));
    attribute(&mut body, libc::IFA_ADDRESS, &octets(net.addr()));
    body
}

/// The messages of a datagram.
pub(super) fn split(mut rest: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let Some(body) = rest.get(HEADER..length) else { break };
        messages.push(message(u16::from_ne_bytes([header[4], header[5]]), body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn message(kind: u16, body: &[u8]) -> Message {
    let parsed = match kind {
        libc::RTM_NEWLINK => link(body).map(Message::Link),
        libc::RTM_NEWADDR => address(body).map(Message::Address),
        kind if i32::from(kind) == libc::NLMSG_DONE => Some(Message::Done),
        kind if i32::from(kind) == libc::NLMSG_ERROR => {
            body.first_chunk::<4>().map(|code| Message::Error(i32::from_ne_bytes(*code).saturating_neg()))
        }
        _ => None,
    };
    parsed.unwrap_or(Message::Other)
}

/// Kind and value of each attribute.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<ATTRIBUTE_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]), value))
    })
}

fn link(body: &[u8]) -> Option<Link> {
    let header = body.first_chunk::<LINK_HEADER>()?;
    let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    let flags = i32::from_ne_bytes(word(8));
    let mut link = Link {
        index: u32::from_ne_bytes(word(4)),
        name: String::new(),
        running: flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0,
        mac: None,
        vlan: None,
        master: None,
    };
    let (mut below, mut id) = (None, None);
    let index = |value: &[u8]| value.try_into().ok().map(u32::from_ne_bytes);
    for (kind, value) in attributes(&body[LINK_HEADER..]) {
        match kind {
            libc::IFLA_IFNAME => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            libc::IFLA_LINK => below = index(value),
            libc::IFLA_MASTER => link.master = index(value),
            libc::IFLA_LINKINFO => id = vlan_id(value),
            _ => {}
        }
    }
    link.vlan = below.zip(id);
    Some(link)
}

/// Of the attributes of `IFLA_LINKINFO`: the id, if it is a VLAN.
fn vlan_id(info: &[u8]) -> Option<u16> {
    let (mut is_vlan, mut id) = (false, None);
    for (kind, value) in attributes(info) {
        match kind {
            libc::IFLA_INFO_KIND => is_vlan = value.split(|byte| *byte == 0).next() == Some(b"vlan"),
            libc::IFLA_INFO_DATA => {
                let found = attributes(value).find(|(kind, _)| *kind == IFLA_VLAN_ID);
                id = found.and_then(|(_, value)| value.try_into().ok()).map(u16::from_ne_bytes);
            }
            _ => {}
        }
    }
    id.filter(|_| is_vlan)
}

fn address(body: &[u8]) -> Option<Address> {
    let header = body.first_chunk::<ADDRESS_HEADER>()?;
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let mut flags = u32::from(header[2]);
    let (mut local, mut remote) = (None, None);
    let ip = |value: &[u8]| match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
    };
    for (kind, value) in attributes(&body[ADDRESS_HEADER..]) {
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_ADDRESS => remote = ip(value),
            libc::IFA_FLAGS => flags = u32::from_ne_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    // Of a point-to-point link IFA_ADDRESS is the other end.
    let net = IpNet::new(local.or(remote)?, header[1]).ok()?;
    let bad = libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED;
    // IPv6 has the same bit for temporary addresses, which are no better as a source.
    let secondary = flags & libc::IFA_F_SECONDARY != 0;
    Some(Address { index, net, tentative: flags & bad != 0, secondary })
}

/// Events of links and addresses; what they say is asked for again.
pub(super) struct Events(OwnedFd);

impl Events {
    pub(super) fn open() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let fd = open(SockFlag::SOCK_NONBLOCK, u32::try_from(groups).unwrap_or(0))?;
        setsockopt(&fd, RcvBuf, &RECEIVE_BUFFER)?;
        Ok(Self(fd))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// True if there was any, or some were lost.
    pub(super) fn drain(&self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let mut any = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => any = true,
                Err(Errno::EAGAIN) => return Ok(any),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn open(flags: SockFlag, groups: u32) -> io::Result<OwnedFd> {
    let kind = SockType::Raw;
    let fd =
        socket(AddressFamily::Netlink, kind, flags | SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Requests, each answered before the next.
pub(super) struct Requests {
    fd: OwnedFd,
    sequence: u32,
}

impl Requests {
    pub(super) fn open() -> io::Result<Self> {
        let fd = open(SockFlag::empty(), 0)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let found = self.dump(libc::RTM_GETLINK, LINK_HEADER)?;
        Ok(found
            .into_iter()
            .filter_map(|m| if let Message::Link(link) = m { Some(link) } else { None })
            .collect())
    }

    pub(super) fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let found = self.dump(libc::RTM_GETADDR, ADDRESS_HEADER)?;
        Ok(found
            .into_iter()
            .filter_map(|m| if let Message::Address(a) = m { Some(a) } else { None })
            .collect())
    }

    /// Puts an address on an interface; false if it is there.
    pub(super) fn add(&mut self, index: u32, net: IpNet) -> io::Result<bool> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.change(libc::RTM_NEWADDR, flags, index, net, Errno::EEXIST)
    }

    /// Takes an address off an interface; false if it is not there.
    pub(super) fn remove(&mut self, index: u32, net: IpNet) -> io::Result<bool> {
        self.change(libc::RTM_DELADDR, libc::NLM_F_ACK, index, net, Errno::EADDRNOTAVAIL)
    }

    fn change(
        &mut self,
        kind: u16,
        flags: i32,
        index: u32,
        net: IpNet,
        no_change: Errno,
    ) -> io::Result<bool> {
        self.send(kind, flags, &address_body(index, net))?;
        loop {
            for message in self.receive()? {
                match message {
                    Message::Error(0) => return Ok(true),
                    Message::Error(code) if code == no_change as i32 => return Ok(false),
                    Message::Error(code) => return Err(io::Error::from_raw_os_error(code)),
                    Message::Link(_) | Message::Address(_) | Message::Done | Message::Other => {}
                }
            }
        }
    }

    fn dump(&mut self, kind: u16, body: usize) -> io::Result<Vec<Message>> {
        self.send(kind, libc::NLM_F_DUMP, &vec![0; body])?;
        let mut found = Vec::new();
        loop {
            for message in self.receive()? {
                match message {
                    Message::Done => return Ok(found),
                    Message::Error(code) => return Err(io::Error::from_raw_os_error(code)),
                    message => found.push(message),
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.fd.as_raw_fd(), &request(kind, flags, self.sequence, body), MsgFlags::empty())?;
        Ok(())
    }

    /// The messages of the next datagram that answers the last request.
    fn receive(&self) -> io::Result<Vec<Message>> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let datagram = &buffer[..length];
                    // A late answer to a request that was given up.
                    let sequence =
                        datagram.get(8..12).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
                    if sequence == Some(self.sequence) {
                        return Ok(split(datagram));
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_reads_back() {
        for net in ["192.0.2.10/24", "2001:db8::10/64", "203.0.113.5/32"] {
            let net: IpNet = net.parse().unwrap();
            let bytes = request(libc::RTM_NEWADDR, 0, 7, &address_body(5, net));
            let expected = Address { index: 5, net, tentative: false, secondary: false };
            assert_eq!(split(&bytes), [Message::Address(expected)]);
        }
    }

    #[test]
    fn the_loopback_is_found() {
        let mut requests = Requests::open().unwrap();
        let links = requests.links().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!(lo.index, 1);
        assert_eq!(lo.mac, Some([0; 6]));
        // Whatever addresses there are, they are of links that there are.
        let addresses = requests.addresses().unwrap();
        assert!(addresses.iter().all(|a| links.iter().any(|l| l.index == a.index)), "{addresses:?}");
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes: Vec<u8>) {
            let _ = split(&bytes);
        }

        #[test]
        fn no_damage_panics(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut bytes = request(libc::RTM_NEWADDR, 0, 7, &address_body(5, "2001:db8::1/64".parse().unwrap()));
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _ = split(&bytes);
        }
    }
}
