//! The raw sockets: VRRP packets of one family on one interface, and frames of any kind out of one.

use super::packet::{HOP_LIMIT, PROTOCOL, TRAFFIC_CLASS};
use crate::model::Family;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike as _,
        recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Bytes of packets that wait to be read.
const RECEIVE_BUFFER: usize = 256 << 10;
/// Longer than any VRRP packet: 8 + 255 * 16 octets, and the IP header.
const PACKET: usize = 8192;

/// A socket for VRRP packets.
#[derive(Debug)]
pub(super) struct Port {
    socket: Socket,
    family: Family,
    index: u32,
}

/// A packet as it arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: Option<u8>,
    buffer: Vec<u8>,
    start: usize,
}

impl Arrived {
    pub(super) fn payload(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }
}

impl Port {
    /// Packets that come in on the interface, and to the group of VRRP routers.
    pub(super) fn open(family: Family, name: &str, index: u32) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(name.as_bytes()))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        match family.vrrp_group() {
            IpAddr::V4(group) => {
                socket.set_multicast_ttl_v4(HOP_LIMIT.into())?;
                socket.set_ttl_v4(HOP_LIMIT.into())?;
                socket.set_tos_v4(TRAFFIC_CLASS.into())?;
                socket.set_multicast_loop_v4(false)?;
                socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))?;
            }
            IpAddr::V6(group) => {
                socket.set_multicast_if_v6(index)?;
                socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
                socket.set_unicast_hops_v6(HOP_LIMIT.into())?;
                socket.set_tclass_v6(TRAFFIC_CLASS.into())?;
                socket.set_multicast_loop_v6(false)?;
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                socket.join_multicast_v6(&group, index)?;
            }
        }
        // Before the threads run with a priority, so do their packets: 6 is the highest that needs no privilege.
        setsockopt(&socket, sockopt::Priority, &6)?;
        Ok(Self { socket, family, index })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends from an address of the interface.
    pub(super) fn send(&self, source: IpAddr, destination: IpAddr, payload: &[u8]) -> io::Result<()> {
        let (fd, payload) = (self.socket.as_raw_fd(), [IoSlice::new(payload)]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: i32::try_from(self.index).unwrap_or(0),
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
                sendmsg(fd, &payload, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: self.index,
                };
                let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, self.index));
                sendmsg(fd, &payload, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))?;
            }
            // Callers ask for the source by the destination's family.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        Ok(())
    }

    /// The next packet, if there is one.
    pub(super) fn receive(&self) -> io::Result<Option<Arrived>> {
        match self.family {
            Family::V4 => self.receive4(),
            Family::V6 => self.receive6(),
        }
    }

    /// Raw IPv4 sockets give the IP header too.
    fn receive4(&self) -> io::Result<Option<Arrived>> {
        let mut buffer = vec![0; PACKET];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT);
        let Some(length) = waited(got.map(|message| message.bytes))? else { return Ok(None) };
        buffer.truncate(length);
        let Some(header) = buffer.first_chunk::<20>() else { return Ok(None) };
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Ok(Some(Arrived {
            source: address(12).into(),
            destination: address(16).into(),
            hop_limit: Some(header[8]),
            start: usize::from(header[0] & 0x0f) * 4,
            buffer,
        }))
    }

    fn receive6(&self) -> io::Result<Option<Arrived>> {
        let mut buffer = vec![0; PACKET];
        let mut control = cmsg_space!(libc::in6_pktinfo, libc::c_int);
        let (mut hop_limit, mut destination) = (None, Ipv6Addr::UNSPECIFIED);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let fd = self.socket.as_raw_fd();
        let got = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT);
        let Some(message) = waited(got)? else { return Ok(None) };
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = u8::try_from(limit).ok(),
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                }
                _ => {}
            }
        }
        let (length, source) = (message.bytes, message.address.map(|address| address.ip()));
        buffer.truncate(length);
        Ok(source.map(|source| Arrived {
            source: source.into(),
            destination: destination.into(),
            hop_limit,
            buffer,
            start: 0,
        }))
    }
}

fn waited<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A socket that sends whole Ethernet frames.
#[derive(Debug)]
pub(super) struct FramePort(Socket);

impl FramePort {
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0: it receives nothing.
        Ok(Self(Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?))
    }

    pub(super) fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap_or(0),
            sll_protocol: 0,
            sll_ifindex: i32::try_from(index).unwrap_or(0),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
        // SAFETY: the pointer is to a sockaddr_ll of that length, whose family says so, and is read before it ends.
        let to = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
        let to = to.ok_or(io::ErrorKind::InvalidInput)?;
        sendmsg(self.0.as_raw_fd(), &[IoSlice::new(frame)], &[], MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}
