//! Interface ioctls: what `ethtool -K` and `ip link show` would be asked for, without starting a program.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

/// linux/ethtool.h: commands that take a `struct ethtool_value`.
const GET_LINK: u32 = 0x0a;
const SET_RX_CHECKSUM: u32 = 0x15;
const SET_TX_CHECKSUM: u32 = 0x17;
const SET_TSO: u32 = 0x1f;
const SET_GSO: u32 = 0x24;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const SET_GRO: u32 = 0x2c;
const FLAGS_VLAN: u32 = 1 << 7 | 1 << 8;

/// Makes an interface hand over frames as they would be on a wire: checksums complete and verified, no
/// segments larger than the MTU, VLAN tags in the frame. An XDP program sees and forwards frames as they are, so what
/// the kernel meant to finish later would be forwarded unfinished.
pub(super) fn offloads_off(ifname: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for feature in [SET_TX_CHECKSUM, SET_RX_CHECKSUM, SET_TSO, SET_GSO, SET_GRO] {
        ethtool(&socket, ifname, feature, 0)?;
    }
    let flags = ethtool(&socket, ifname, GET_FLAGS, 0)?;
    if flags & FLAGS_VLAN != 0 {
        ethtool(&socket, ifname, SET_FLAGS, flags & !FLAGS_VLAN)?;
    }
    Ok(())
}

fn ethtool(socket: &UdpSocket, ifname: &str, command: u32, data: u32) -> io::Result<u32> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command, data };
    let mut request = request(ifname)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    ioctl(socket, libc::SIOCETHTOOL, &mut request)?;
    Ok(value.data)
}

/// An interface request of the calling thread's namespace.
pub(super) fn request(ifname: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero bytes are a valid ifreq: a name of NULs and a union of integers and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if ifname.is_empty() || ifname.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface's name has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

pub(super) fn ioctl(socket: &UdpSocket, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request code used here takes a struct ifreq, which outlives the call; where it points to more
    // (ifru_data), the caller keeps that alive on its stack.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets flags of an interface in the calling thread's namespace; returns all it had before.
pub(super) fn set_flags(ifname: &str, flags: libc::c_int) -> io::Result<libc::c_int> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut request = request(ifname)?;
    ioctl(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS just filled the union's ifru_flags.
    let old = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = old | libc::c_short::try_from(flags).map_err(io::Error::other)?;
    ioctl(&socket, libc::SIOCSIFFLAGS, &mut request)?;
    Ok(old.into())
}

/// Whether an interface can send. Its carrier comes up with the peer's, but the kernel gives it a queue only a
/// moment later, and until then drops what it sends.
pub(super) fn is_ready(ifname: &str) -> io::Result<bool> {
    // Since Linux 6.8 asking for the link makes the kernel catch up with it; before, that takes it up to a second.
    ethtool(&UdpSocket::bind("0.0.0.0:0")?, ifname, GET_LINK, 0)?;
    // The flag is set shortly before the queue, but both under the lock that setting flags waits for.
    Ok(set_flags(ifname, libc::IFF_UP)? & libc::IFF_RUNNING != 0)
}

/// The index of an interface in the calling thread's namespace.
pub(super) fn index(ifname: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(ifname).map_err(io::Error::from)
}

/// The MAC address of an interface in the calling thread's namespace.
pub(super) fn mac(ifname: &str) -> io::Result<[u8; 6]> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut request = request(ifname)?;
    ioctl(&socket, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: SIOCGIFHWADDR just filled the union's ifru_hwaddr.
    let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(bytes) {
        *to = from.cast_unsigned();
    }
    Ok(mac)
}
