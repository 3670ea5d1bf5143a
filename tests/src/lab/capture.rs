//! Frames on an interface, read and sent as they are (AF_PACKET).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Error, Netns, Result, ethtool};

const ETH_P_ALL: u16 = 3;
const BACKLOG: Duration = Duration::from_secs(1);
const RECEIVE_BUFFER: libc::c_int = 16 << 20;

/// A frame seen on an interface, from the destination MAC on, VLAN tags in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// Sent by this interface, not received.
    pub outgoing: bool,
}

/// An open interface: everything that arrives or leaves from the moment of opening is kept for reading. Frames
/// consumed by an XDP program do not show up; look on the peer.
#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    ns: String,
    ifname: String,
}

impl Sniffer {
    pub fn open(ns: &Netns, ifname: &str) -> Result<Self> {
        ns.run(|| open_socket(ifname))
            .map(|socket| Self { socket, ns: ns.name().to_owned(), ifname: ifname.to_owned() })
            .map_err(|source| Error::Interface {
                ns: ns.name().to_owned(),
                ifname: ifname.to_owned(),
                what: "opening it for capture",
                source,
            })
    }

    /// The next frame that the filter accepts, or `None` when the time is over.
    pub fn recv(&self, timeout: Duration, mut wanted: impl FnMut(&Frame) -> bool) -> Result<Option<Frame>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left) {
                Ok(Some(frame)) if wanted(&frame) => return Ok(Some(frame)),
                // What is queued when the time is over is still looked at, but an endless stream is not.
                Ok(Some(_)) if Instant::now() < deadline + BACKLOG => {}
                Ok(None) if Instant::now() < deadline => {}
                Ok(Some(_) | None) => return Ok(None),
                Err(source) => return Err(self.error("reading a frame", source)),
            }
        }
    }

    /// Throws away what has arrived so far.
    pub fn drain(&self) -> Result<()> {
        self.recv(Duration::ZERO, |_| false).map(|_| ())
    }

    /// Sends a frame out of the interface, exactly these bytes.
    pub fn send_frame(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and length are those of a slice that outlives the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(self.error("sending a frame", io::Error::last_os_error())) } else { Ok(()) }
    }

    fn next(&self, timeout: Duration) -> io::Result<Option<Frame>> {
        // Rounded up, so that the last fraction of a millisecond is not spent spinning.
        let wait = PollTimeout::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, wait) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        match receive(&self.socket) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    fn error(&self, what: &'static str, source: io::Error) -> Error {
        Error::Interface { ns: self.ns.clone(), ifname: self.ifname.clone(), what, source }
    }
}

fn open_socket(ifname: &str) -> io::Result<OwnedFd> {
    // Protocol 0 first: a socket of all interfaces must not catch anything before it is bound to one.
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just handed over this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
    set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    // SAFETY: all-zero bytes are a valid sockaddr_ll, a struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ETH_P_ALL.to_be();
    address.sll_ifindex = ethtool::index(ifname)?.cast_signed();
    // SAFETY: the pointer and size are those of the address above.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and size are those of an integer on the stack.
    let result = unsafe {
        let size = size_of_val(&value) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: &OwnedFd) -> io::Result<Frame> {
    let mut bytes = vec![0_u8; 65_536];
    // u64 for the alignment of a control message header.
    let mut control = [0_u64; 16];
    // SAFETY: all-zero bytes are valid for both, structs of integers and null pointers.
    let (mut from, mut header): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
    let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    header.msg_name = (&raw mut from).cast();
    header.msg_namelen = size_of_val(&from) as libc::socklen_t;
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of the header names a live buffer of the size given with it.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    bytes.truncate(length);
    if let Some((tpid, tci)) = vlan_tag(&header)
        && bytes.len() >= 12
    {
        let [p0, p1] = tpid.to_be_bytes();
        let [t0, t1] = tci.to_be_bytes();
        bytes.splice(12..12, [p0, p1, t0, t1]);
    }
    Ok(Frame { bytes, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING })
}

/// The kernel takes the outer VLAN tag out of a received frame and hands it over beside it (packet(7)).
fn vlan_tag(header: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the header was filled by a successful recvmsg, so that the macros walk messages inside its buffer; the
    // data of a PACKET_AUXDATA message is a tpacket_auxdata, copied without assuming alignment.
    let aux = unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        loop {
            let current = message.as_ref()?;
            if current.cmsg_level == libc::SOL_PACKET && current.cmsg_type == libc::PACKET_AUXDATA {
                break libc::CMSG_DATA(message).cast::<libc::tpacket_auxdata>().read_unaligned();
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    };
    let valid = aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
    let tpid = if aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { aux.tp_vlan_tpid } else { 0x8100 };
    valid.then_some((tpid, aux.tp_vlan_tci))
}
