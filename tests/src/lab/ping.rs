//! ICMP echo, since not every machine has a ping program.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use super::{Error, Netns, Result, capture::set_option};

/// A request is repeated after so long.
const RETRY: Duration = Duration::from_millis(500);
const HEADER: usize = 8;

/// Sends echo requests with so many bytes of payload, never fragmented, until one is answered; returns how long
/// that took. The IP packet is 28 bytes larger than the payload, 48 with IPv6.
pub fn ping(ns: &Netns, target: IpAddr, payload: usize, timeout: Duration) -> Result<Duration> {
    ns.run(|| {
        let start = Instant::now();
        let deadline = start + timeout;
        let fail = |source| Error::Ping { ns: ns.name().to_owned(), target, source };
        let socket = open(target).map_err(fail)?;
        while Instant::now() < deadline {
            if exchange(&socket, target, payload, RETRY.min(timeout)).map_err(fail)? {
                return Ok(start.elapsed());
            }
        }
        Err(Error::Timeout { what: format!("{target} to answer a ping from {}", ns.name()), waited: timeout })
    })
}

fn open(target: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol, level, option) = match target {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just handed over this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // The same value for both families: always set "don't fragment".
    set_option(socket.as_fd(), level, option, libc::IP_PMTUDISC_DO)?;
    // Not UDP, but std has no other socket type that connects, sends and receives with a timeout.
    let socket = UdpSocket::from(socket);
    socket.connect(SocketAddr::new(target, 0))?;
    Ok(socket)
}

/// One request; whether its own reply came in time.
fn exchange(socket: &UdpSocket, target: IpAddr, payload: usize, patience: Duration) -> io::Result<bool> {
    static SEQUENCE: AtomicU16 = AtomicU16::new(1);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let [request, reply] = match target {
        IpAddr::V4(_) => [8, 0],
        IpAddr::V6(_) => [128, 129],
    };
    let message = echo(request, sequence, payload);
    socket.send(&message)?;
    let deadline = Instant::now() + patience;
    let mut buffer = vec![0; 65_536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(length) if is_reply(&buffer[..length], target.is_ipv4(), reply, &message) => return Ok(true),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
    }
}

/// RFC 792 and RFC 4443 §4.1: type, code 0, checksum, identifier, sequence number, payload. For ICMPv6 the kernel
/// fills in the checksum.
fn echo(kind: u8, sequence: u16, payload: usize) -> Vec<u8> {
    let [id, seq] = [std::process::id() as u16, sequence].map(u16::to_be_bytes);
    let mut message = vec![kind, 0, 0, 0, id[0], id[1], seq[0], seq[1]];
    message.extend((0..payload).map(|i| i as u8));
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A raw IPv4 socket delivers the IP header as well.
fn is_reply(bytes: &[u8], v4: bool, kind: u8, request: &[u8]) -> bool {
    let header = match bytes.first() {
        Some(first) if v4 => usize::from(first & 0x0f) * 4,
        Some(_) | None => 0,
    };
    let Some(message) = bytes.get(header..).filter(|m| m.len() >= HEADER) else { return false };
    message[..2] == [kind, 0] && message[4..] == request[4..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_its_own_reply_counts(bytes in prop::collection::vec(any::<u8>(), 0..80), payload in 0_usize..50, sequence: u16) {
            let request = echo(8, sequence, payload);
            prop_assert!(!is_reply(&bytes, true, 0, &request));
            let mut packet = vec![0x45; 20];
            packet.extend(echo(0, sequence, payload));
            prop_assert!(is_reply(&packet, true, 0, &request));
            prop_assert!(!is_reply(&packet, true, 0, &echo(8, sequence.wrapping_add(1), payload)));
            prop_assert!(is_reply(&packet[20..], false, 0, &request));
        }
    }

    #[test]
    fn the_checksum_of_a_message_with_its_checksum_is_zero() {
        assert_eq!(checksum(&echo(8, 7, 33)), 0);
    }
}
