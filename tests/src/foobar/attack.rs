//! What comes from outside and means no good: a scan of all ports, a flood of SYNs. From the client.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::wire::{self, Syn, Tap, Wire};

#[derive(Args)]
pub struct ScanOptions {
    /// Hosts, by their addresses
    #[arg(required = true)]
    addresses: Vec<IpAddr>,
    /// TCP ports, as first-last
    #[arg(long, default_value = "1-65535")]
    ports: String,
    /// Further TCP ports
    #[arg(long, value_delimiter = ',')]
    also: Vec<u16>,
    /// UDP ports
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
    /// Packets a second
    #[arg(long, default_value_t = 30_000)]
    rate: u32,
}

/// How long the last ports have to answer; a closed one is silent.
const SILENCE: Duration = Duration::from_secs(2);
/// All probes come from here.
const PORT: u16 = 61_000;
/// A query for www.foobar.com: what a name server answers, and others may.
const QUERY: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x06foobar\x03com\x00\x00\x01\x00\x01";

/// What answers: address, port, protocol.
type Open = BTreeSet<(IpAddr, u16, &'static str)>;

/// Prints a line `open ADDRESS PORT PROTOCOL` for each port that answers (TCP: lets one in), and at the end
/// `sent PACKETS SECONDS`. Each port is asked once: what must be open is looked for by whoever calls.
pub fn scan(options: &ScanOptions) -> Result<()> {
    let (first, last) = options.ports.split_once('-').context("ports as first-last")?;
    let (first, last): (u16, u16) = (first.parse()?, last.parse()?);
    let ports: BTreeSet<u16> = (first..=last).chain(options.also.iter().copied()).collect();
    let sources = options.addresses.iter().map(|to| wire::own_address(*to)).collect::<Result<Vec<_>>>()?;
    let wire = Wire::open()?;
    let taps = [Tap::open(false)?, Tap::open(true)?];
    wire::step_back();
    let (open, over) = (Mutex::new(Open::new()), AtomicBool::new(false));
    let (sent, took) = thread::scope(|scope| {
        let listeners: Vec<_> = taps.iter().map(|tap| scope.spawn(|| listen(tap, &open, &over))).collect();
        let asked = ask(options, &ports, &sources, &wire);
        if asked.is_ok() {
            thread::sleep(SILENCE);
        }
        over.store(true, Ordering::Relaxed);
        for listener in listeners {
            listener.join().map_err(|_| anyhow::anyhow!("a listener panicked"))??;
        }
        asked
    })?;
    for (address, port, protocol) in open.into_inner().unwrap_or_default() {
        println!("open {address} {port} {protocol}");
    }
    println!("sent {sent} {:.0}", took.as_secs_f64());
    Ok(())
}

/// All hosts are asked for one port, then all for the next one: no host gets them all at once.
fn ask(
    options: &ScanOptions,
    ports: &BTreeSet<u16>,
    sources: &[IpAddr],
    wire: &Wire,
) -> Result<(u64, Duration)> {
    let tcp = ports.iter().map(|port| (*port, true));
    let all = tcp.chain(options.udp.iter().map(|port| (*port, false)));
    let pairs: Vec<_> = options.addresses.iter().zip(sources).collect();
    let mut syns = pairs
        .iter()
        .map(|(to, from)| Syn::new(SocketAddr::new(**from, PORT), SocketAddr::new(**to, 0)))
        .collect::<Result<Vec<_>>>()?;
    let mut probes = all.flat_map(|probe| (0..pairs.len()).map(move |host| (probe, host)));
    let count = u64::try_from((ports.len() + options.udp.len()) * options.addresses.len())?;
    let took = wire::paced(options.rate, count, |number| {
        let Some(((port, is_tcp), host)) = probes.next() else { bail!("fewer probes than counted") };
        if is_tcp {
            syns[host].set_port(port);
            syns[host].set_sequence(u32::try_from(number & 0xffff_ffff)?);
            return wire.send(syns[host].bytes());
        }
        let (to, from) = pairs[host];
        wire.send(&wire::datagram(SocketAddr::new(*from, PORT), SocketAddr::new(*to, port), QUERY)?)
    })?;
    Ok((count, took))
}

fn listen(tap: &Tap, open: &Mutex<Open>, over: &AtomicBool) -> Result<()> {
    let mut buffer = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        if let Some(packet) = tap.next(&mut buffer, Duration::from_millis(100))?
            && let Some(answer) = answer(packet)
            && let Ok(mut open) = open.lock()
        {
            open.insert(answer);
        }
    }
    Ok(())
}

/// Who says with this packet that a port is open.
fn answer(packet: &[u8]) -> Option<(IpAddr, u16, &'static str)> {
    let seen = SlicedPacket::from_ip(packet).ok()?;
    let from: IpAddr = match seen.net? {
        NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
        NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
        NetSlice::Arp(_) => return None,
    };
    match seen.transport? {
        TransportSlice::Tcp(tcp) if tcp.destination_port() == PORT && tcp.syn() && tcp.ack() => {
            Some((from, tcp.source_port(), "tcp"))
        }
        TransportSlice::Udp(udp) if udp.destination_port() == PORT => Some((from, udp.source_port(), "udp")),
        _ => None,
    }
}

#[derive(Args)]
pub struct FloodOptions {
    /// Whom it is for, with the port
    target: SocketAddr,
    #[arg(long, default_value_t = 200_000)]
    count: u64,
    /// Packets a second
    #[arg(long, default_value_t = 20_000)]
    rate: u32,
    /// The only source; without it each packet has another one
    #[arg(long)]
    source: Option<IpAddr>,
}

/// Sends SYNs at a steady rate, then prints how many went out and in how many seconds.
pub fn flood(options: &FloodOptions) -> Result<()> {
    let wire = Wire::open()?;
    wire::step_back();
    let any: SocketAddr = if options.target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let mut syn = Syn::new(any, options.target)?;
    if options.source.is_some_and(|source| source.is_ipv4() != options.target.is_ipv4()) {
        bail!("source and target are of two IP versions");
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let took = wire::paced(options.rate, options.count, |_| {
        // xorshift: other packets each time, the same ones each run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let low = u32::try_from(random & 0xffff_ffff)?;
        let source = options.source.unwrap_or(match options.target {
            // 20.0.0.0/7: nobody's in this picture.
            SocketAddr::V4(_) => Ipv4Addr::from(0x1400_0000 | low & 0x01ff_ffff).into(),
            SocketAddr::V6(_) => Ipv6Addr::from(0x2a00_u128 << 112 | u128::from(random) << 48 | 1).into(),
        });
        let port = u16::try_from(random >> 48)?.max(1024);
        syn.set_source(SocketAddr::new(source, port));
        syn.set_sequence(low);
        wire.send(syn.bytes())
    })?;
    println!("{} {:.1}", options.count, took.as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_open_port_answers_so() {
        let (client, server) = ("198.51.100.10:61000".parse().unwrap(), "192.0.2.10:443".parse().unwrap());
        let mut packet = wire::syn(server, client, 1).unwrap();
        assert_eq!(answer(&packet), None, "a SYN of its own");
        // The flags of the TCP header: SYN and ACK, RST and ACK.
        packet[33] = 0x12;
        assert_eq!(answer(&packet), Some(("192.0.2.10".parse().unwrap(), 443, "tcp")));
        packet[33] = 0x14;
        assert_eq!(answer(&packet), None);
        let other = wire::datagram(server, "198.51.100.10:61001".parse().unwrap(), b"x").unwrap();
        assert_eq!(answer(&other), None, "an answer to somebody else");
        let dns = wire::datagram(
            "[2001:db8:53::53]:53".parse().unwrap(),
            "[2001:db8:c::10]:61000".parse().unwrap(),
            b"x",
        );
        assert_eq!(answer(&dns.unwrap()), Some(("2001:db8:53::53".parse().unwrap(), 53, "udp")));
    }
}
