//! The UDP sockets (RFC 5881 section 4): one to receive for each local address, one to send for each session.

use super::packet::{HOP_LIMIT, LENGTH, PORT};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Source ports of senders (RFC 5881 section 4).
const SOURCES: std::ops::RangeInclusive<u16> = 49152..=65535;
/// Ports that are tried: nearly all are free.
const TRIES: u16 = 64;
/// CS6: as VRRP's.
const TRAFFIC_CLASS: u32 = 0xc0;
const PRIORITY: i32 = 6;

fn socket(address: IpAddr) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Where packets come in.
#[derive(Debug)]
pub(super) struct Receiver(Socket);

/// A packet as it arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub source: IpAddr,
    pub hop_limit: Option<u8>,
    /// More than [`LENGTH`] octets are authentication, which is refused by its flag.
    pub bytes: Vec<u8>,
}

impl Receiver {
    pub(super) fn open(local: IpAddr) -> io::Result<Self> {
        let socket = socket(local)?;
        match local {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?,
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?,
        }
        socket.bind(&SocketAddr::new(local, PORT).into())?;
        Ok(Self(socket))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next packet, if there is one.
    pub(super) fn receive(&self) -> io::Result<Option<Arrived>> {
        let mut buffer = [0; LENGTH * 4];
        let mut control = cmsg_space!(libc::c_int);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let fd = self.0.as_raw_fd();
        let got = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT);
        let message = match got {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut hop_limit = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) = control {
                hop_limit = u8::try_from(ttl).ok();
            }
        }
        let address = message.address.as_ref();
        let four = address.and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::V4(a.ip()));
        let six = address.and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::V6(a.ip()));
        let length = message.bytes;
        let Some(source) = four.or(six) else { return Ok(None) };
        Ok(Some(Arrived { source, hop_limit, bytes: buffer[..length].to_vec() }))
    }
}

/// Where a session's packets go out.
#[derive(Debug)]
pub(super) struct Sender(Socket);

impl Sender {
    /// From a port of the range, beginning at one that is told by chance.
    pub(super) fn open(local: IpAddr, chance: u16) -> io::Result<Self> {
        let socket = socket(local)?;
        match local {
            IpAddr::V4(_) => {
                socket.set_ttl_v4(HOP_LIMIT.into())?;
                socket.set_tos_v4(TRAFFIC_CLASS)?;
            }
            IpAddr::V6(_) => {
                socket.set_unicast_hops_v6(HOP_LIMIT.into())?;
                socket.set_tclass_v6(TRAFFIC_CLASS)?;
            }
        }
        // 6 is the highest that needs no privilege.
        setsockopt(&socket, sockopt::Priority, &PRIORITY)?;
        let mut bound = Err(io::ErrorKind::AddrInUse.into());
        for try_number in 0..TRIES {
            let offset =
                chance.wrapping_add(try_number.wrapping_mul(251)) % (SOURCES.end() - SOURCES.start() + 1);
            bound = socket.bind(&SocketAddr::new(local, SOURCES.start() + offset).into());
            if !matches!(&bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
                break;
            }
        }
        // Not connected: an ICMP error of a peer that is not there yet would come back as an error of the next packet.
        bound.map(|()| Self(socket))
    }

    pub(super) fn send(&self, peer: IpAddr, bytes: &[u8]) -> io::Result<()> {
        self.0.send_to(bytes, &SocketAddr::new(peer, PORT).into()).map(|_| ())
    }
}
