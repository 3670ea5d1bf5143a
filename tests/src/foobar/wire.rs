//! Packets made by hand, straight to the router: past this host's own addresses, firewall and table of connections.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const CARD: &std::ffi::CStr = c"eth0";
const ROUTER: &str = "198.51.100.1";
/// Packets that leave in one go at most: more would be a flood of another kind than the one that was asked for.
const BURST: u64 = 16;
/// Between two goes.
const PAUSE: Duration = Duration::from_micros(200);
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// The way out.
pub struct Wire {
    socket: OwnedFd,
    to: libc::sockaddr_ll,
}

impl Wire {
    pub fn open() -> Result<Self> {
        let mut to = card(0)?;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&router()?);
        Ok(Self { socket: open()?, to })
    }

    /// Sends an IP packet. Without room in a queue it is lost, as on any wire.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let mut to = self.to;
        let protocol = if packet[0] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        to.sll_protocol = u16::try_from(protocol)?.to_be();
        // SAFETY: the pointers are to a slice and an address that outlive the call, with their lengths.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 {
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN)) {
                return Err(error).context("sending");
            }
        }
        Ok(())
    }
}

/// What comes in of one version of IP, before any firewall.
pub struct Tap(OwnedFd);

impl Tap {
    pub fn open(v6: bool) -> Result<Self> {
        let socket = open()?;
        let size = RECEIVE_BUFFER;
        let address = card(if v6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP })?;
        // SAFETY: the pointers are to an integer and an address that outlive the calls, with their lengths.
        let failed = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                size_of_val(&size) as libc::socklen_t,
            ) < 0
                || libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of_val(&address) as libc::socklen_t,
                ) < 0
        };
        if failed {
            return Err(io::Error::last_os_error()).context("listening on the card");
        }
        Ok(Self(socket))
    }

    /// The next IP packet, if one comes in that time.
    pub fn next<'a>(&self, buffer: &'a mut [u8], patience: Duration) -> Result<Option<&'a [u8]>> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)).context("poll")? == 0 {
            return Ok(None);
        }
        let length = nix::unistd::read(&self.0, buffer).context("reading from the card")?;
        Ok(Some(&buffer[..length]))
    }
}

fn open() -> Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers; the descriptor it returns is new and owned by nobody else.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("a packet socket");
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn card(protocol: libc::c_int) -> Result<libc::sockaddr_ll> {
    // SAFETY: the name ends with a zero byte.
    let index = unsafe { libc::if_nametoindex(CARD.as_ptr()) };
    if index == 0 {
        bail!("there is no card {CARD:?}");
    }
    // SAFETY: all-zero bytes are a valid sockaddr_ll, a struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = u16::try_from(protocol)?.to_be();
    address.sll_ifindex = i32::try_from(index)?;
    Ok(address)
}

/// The router's address on the card, as the kernel has learnt it.
fn router() -> Result<[u8; 6]> {
    for _ in 0..50 {
        if let Some(found) = neighbour(&fs::read_to_string("/proc/net/arp")?, ROUTER) {
            return Ok(found);
        }
        // Whatever is sent there makes the kernel ask.
        let _ = UdpSocket::bind("0.0.0.0:0")?.send_to(&[0], (ROUTER, 9));
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the router {ROUTER} does not answer ARP")
}

fn neighbour(table: &str, address: &str) -> Option<[u8; 6]> {
    let words = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let text =
        words.filter(|words| words.first() == Some(&address)).find_map(|words| words.get(3).copied())?;
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut mac {
        *octet = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    (mac != [0; 6]).then_some(mac)
}

/// The address that this host sends from to another one.
pub fn own_address(to: IpAddr) -> Result<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = UdpSocket::bind(any)?;
    socket.connect((to, 9)).with_context(|| format!("no route to {to}"))?;
    Ok(socket.local_addr()?.ip())
}

/// This process steps back where others want the processor: whoever attacks has a machine of his own.
pub fn step_back() {
    // SAFETY: setpriority takes plain numbers.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

/// Calls `send` so often, at a steady rate a second, in as small portions as the clock allows; the time that took.
pub fn paced(rate: u32, count: u64, mut send: impl FnMut(u64) -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    let mut sent = 0;
    // What is late by more than this is not made up for: it would come as a burst.
    let mut base = begun;
    let mut done = 0_u64;
    while sent < count {
        let due = (base.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let now = due.saturating_sub(done).min(BURST).min(count - sent);
        for _ in 0..now {
            send(sent)?;
            sent += 1;
        }
        done += now;
        if due > done + u64::from(rate) / 20 {
            (base, done) = (Instant::now(), 0);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(begun.elapsed())
}

/// A TCP segment that asks for a connection.
pub fn syn(from: SocketAddr, to: SocketAddr, sequence: u32) -> Result<Vec<u8>> {
    let mut tcp = TcpHeader::new(from.port(), to.port(), sequence, 64240);
    tcp.syn = true;
    let mut packet = Vec::with_capacity(60);
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let ip = ipv4(IpNumber::TCP, 20, from, to)?;
            tcp.checksum = tcp.calc_checksum_ipv4(&ip, &[])?;
            ip.write(&mut packet)?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = ipv6(IpNumber::TCP, 20, from.octets(), to.octets());
            tcp.checksum = tcp.calc_checksum_ipv6(&ip, &[])?;
            ip.write(&mut packet)?;
        }
        _ => bail!("source and target are of two IP versions"),
    }
    tcp.write(&mut packet)?;
    Ok(packet)
}

/// A SYN that is changed and sent again and again: without a checksum over all of it each time.
pub struct Syn {
    bytes: Vec<u8>,
    /// Where the TCP header begins.
    tcp: usize,
}

impl Syn {
    pub fn new(from: SocketAddr, to: SocketAddr) -> Result<Self> {
        Ok(Self { bytes: syn(from, to, 0)?, tcp: if to.is_ipv4() { 20 } else { 40 } })
    }

    /// Sets where it comes from; an address of the other IP version is none.
    pub fn set_source(&mut self, source: SocketAddr) {
        match source.ip() {
            IpAddr::V4(source) if self.tcp == 20 => {
                self.replace(12, &source.octets(), Some(10));
            }
            IpAddr::V6(source) if self.tcp == 40 => self.replace(8, &source.octets(), None),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        self.replace(self.tcp, &source.port().to_be_bytes(), None);
    }

    pub fn set_port(&mut self, port: u16) {
        self.replace(self.tcp + 2, &port.to_be_bytes(), None);
    }

    pub fn set_sequence(&mut self, number: u32) {
        self.replace(self.tcp + 4, &number.to_be_bytes(), None);
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Replaces 16-bit words in TCP's checksum and in another one (RFC 1624).
    fn replace(&mut self, at: usize, words: &[u8], also: Option<usize>) {
        for at_sum in [Some(self.tcp + 16), also].into_iter().flatten() {
            let mut sum = u32::from(!u16::from_be_bytes([self.bytes[at_sum], self.bytes[at_sum + 1]]));
            for (word, old) in words.chunks_exact(2).zip(self.bytes[at..].chunks_exact(2)) {
                sum += u32::from(!u16::from_be_bytes([old[0], old[1]]));
                sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
            }
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            self.bytes[at_sum..at_sum + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        self.bytes[at..at + words.len()].copy_from_slice(words);
    }
}

/// A datagram.
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(8 + payload.len())?;
    let mut packet = Vec::with_capacity(48 + payload.len());
    let udp = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let ip = ipv4(IpNumber::UDP, length, source, target)?;
            ip.write(&mut packet)?;
            UdpHeader::with_ipv4_checksum(from.port(), to.port(), &ip, payload)?
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let ip = ipv6(IpNumber::UDP, length, source.octets(), target.octets());
            ip.write(&mut packet)?;
            UdpHeader::with_ipv6_checksum(from.port(), to.port(), &ip, payload)?
        }
        _ => bail!("source and target are of two IP versions"),
    };
    udp.write(&mut packet)?;
    packet.extend_from_slice(payload);
    Ok(packet)
}

fn ipv4(protocol: IpNumber, length: u16, from: Ipv4Addr, to: Ipv4Addr) -> Result<Ipv4Header> {
    let mut ip = Ipv4Header::new(length, 64, protocol, from.octets(), to.octets())?;
    ip.header_checksum = ip.calc_header_checksum();
    Ok(ip)
}

fn ipv6(next_header: IpNumber, payload_length: u16, source: [u8; 16], destination: [u8; 16]) -> Ipv6Header {
    let flow_label = Ipv6FlowLabel::ZERO;
    Ipv6Header {
        traffic_class: 0,
        flow_label,
        payload_length,
        next_header,
        hop_limit: 64,
        source,
        destination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_is_found_in_the_kernels_table() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     198.51.100.10    0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                     198.51.100.1     0x1         0x2         3a:00:0b:0c:0d:ff     *        eth0\n";
        assert_eq!(neighbour(table, "198.51.100.1"), Some([0x3a, 0, 0x0b, 0x0c, 0x0d, 0xff]));
        assert_eq!(neighbour(table, "198.51.100.10"), None, "nobody answered");
        assert_eq!(neighbour(table, "198.51.100.2"), None);
    }

    #[test]
    fn packets_are_whole() {
        for (from, to) in
            [("198.51.100.10:61000", "192.0.2.10:443"), ("[2001:db8:c::10]:61000", "[2001:db8:d::10]:443")]
        {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            for packet in [syn(from, to, 7).unwrap(), datagram(from, to, b"who?").unwrap()] {
                let seen = etherparse::PacketHeaders::from_ip_slice(&packet).unwrap();
                let transport = seen.transport.unwrap();
                let sum = match (&seen.net, &transport) {
                    (Some(etherparse::NetHeaders::Ipv4(ip, _)), etherparse::TransportHeader::Tcp(tcp)) => {
                        (tcp.checksum, tcp.calc_checksum_ipv4(ip, &[]).unwrap())
                    }
                    (Some(etherparse::NetHeaders::Ipv6(ip, _)), etherparse::TransportHeader::Tcp(tcp)) => {
                        (tcp.checksum, tcp.calc_checksum_ipv6(ip, &[]).unwrap())
                    }
                    (Some(etherparse::NetHeaders::Ipv4(ip, _)), etherparse::TransportHeader::Udp(udp)) => {
                        (udp.checksum, udp.calc_checksum_ipv4(ip, b"who?").unwrap())
                    }
                    (Some(etherparse::NetHeaders::Ipv6(ip, _)), etherparse::TransportHeader::Udp(udp)) => {
                        (udp.checksum, udp.calc_checksum_ipv6(ip, b"who?").unwrap())
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(sum.0, sum.1);
            }
        }
    }

    #[test]
    fn a_changed_packet_is_as_one_made_anew() {
        for (a, b, to) in [
            ("198.51.100.10:1", "20.1.2.3:65535", "192.0.2.10:443"),
            ("[2001:db8:c::10]:1", "[2a00:1:ffff:3::4]:4711", "[2001:db8:d::10]:443"),
        ] {
            let (a, b, mut to): (SocketAddr, SocketAddr, SocketAddr) =
                (a.parse().unwrap(), b.parse().unwrap(), to.parse().unwrap());
            let mut changed = Syn::new(a, to).unwrap();
            changed.set_source(b);
            changed.set_sequence(0xdead_beef);
            changed.set_port(80);
            to.set_port(80);
            assert_eq!(changed.bytes(), syn(b, to, 0xdead_beef).unwrap());
        }
    }

    #[test]
    fn a_pace_is_kept() {
        let mut last = 0;
        let took = paced(10_000, 1_000, |number| {
            last = number;
            Ok(())
        })
        .unwrap();
        assert_eq!(last, 999);
        assert!(took >= Duration::from_millis(95), "{took:?}");
    }
}
