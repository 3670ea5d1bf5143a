//! Heartbeats: a datagram every few milliseconds to each peer, on every way there is to it, and a verdict when none
//! come any more.
//!
//! A silent way proves nothing: the network of the sync link may be cut while the master serves. So the heartbeats take
//! the ways over the virtual routers' own interfaces as well, and a peer counts as silent when nothing comes on any of
//! them. The verdict is told to VRRP only for routers on whose own interface the heartbeats came until then, as their
//! destination tells: where the networks fail one after the other, or the way over the interface never worked, the
//! advertisements decide alone.
//!
//! ```text
//!   0  "lbdB", version 1, way (0: the link's, from 1: over interfaces), two octets of 0
//!   8  id of the receiver's terms          16  counter, from 1, of all ways together
//!  24  the sender's interval in microseconds, 0: it stops      28  HMAC-SHA256 of the above, 16 octets of it
//! ```

use super::{
    handle::{PeerId, Shared, lock},
    view::Reason,
    wire::{BeatTerms, InstanceStatus, Status},
};
use crate::{
    model::VrrpName,
    vrrp::{Moment, clock, real_time},
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Mutex,
    time::Duration,
};

const LENGTH: usize = 44;
const MAGIC: &[u8; 5] = b"lbdB\x01";
/// Ways to one peer at most.
const WAYS: usize = 16;
/// Below the two threads of VRRP.
const PRIORITY: i32 = 48;
/// Missing in a row, they are silence.
const MISSED: u32 = 3;
/// Without heartbeats to send: how often the settings are looked at.
const IDLE: Duration = Duration::from_millis(50);
/// Datagrams read before the clock has its turn.
const BATCH: usize = 256;
/// This node's addresses that are remembered at most: those that a peer knew before a change count no more.
const ARRIVALS: usize = 64;

/// A heartbeat's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beat {
    way: u8,
    id: u64,
    counter: u64,
    interval_us: u32,
}

impl Beat {
    fn encode(self, key: &hmac::Key) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..5].copy_from_slice(MAGIC);
        bytes[5] = self.way;
        bytes[8..16].copy_from_slice(&self.id.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.counter.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.interval_us.to_be_bytes());
        let tag = hmac::sign(key, &bytes[..28]);
        bytes[28..].copy_from_slice(&tag.as_ref()[..16]);
        bytes
    }

    /// Unless it has another form; nothing is proven yet.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let eight = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
        let interval_us = u32::from_be_bytes(std::array::from_fn(|n| bytes[24 + n]));
        let plain = bytes.starts_with(MAGIC) && usize::from(bytes[5]) < WAYS;
        plain.then(|| Self { way: bytes[5], id: eight(8), counter: eight(16), interval_us })
    }

    fn is_by(key: &hmac::Key, bytes: &[u8]) -> bool {
        // The tag is a part of the whole one: compared without a hint of how much of it fits.
        let tag = hmac::sign(key, &bytes[..28]);
        tag.as_ref()[..16].iter().zip(&bytes[28..]).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// The heartbeats of one peer.
struct Met {
    /// Of its heartbeats.
    rx: (u64, hmac::Key),
    /// Of the terms before: what is on its way by them is no forgery.
    before: Option<u64>,
    /// Of this node's.
    tx: (u64, hmac::Key),
    counter: u64,
    link: SocketAddr,
    status: Status,
    last: [u64; WAYS],
    heard: [Moment; WAYS],
    /// When they last came to each address of this node.
    arrived: BTreeMap<IpAddr, Moment>,
    interval: Duration,
    beating: bool,
    /// It has said farewell: its silence is no news.
    left: bool,
}

impl Met {
    /// Where its heartbeats go, in the order of the ways.
    fn ways(&self) -> Vec<SocketAddr> {
        let port = self.link.port();
        let mut ways = vec![self.link];
        for address in self.status.instances.values().flat_map(|instance| &instance.own) {
            let way = SocketAddr::new(*address, port);
            if !ways.contains(&way) && ways.len() < WAYS {
                ways.push(way);
            }
        }
        ways
    }

    fn take(&mut self, beat: Beat, to: IpAddr, now: Moment) -> Result<(), Reason> {
        let way = usize::from(beat.way);
        if beat.counter <= self.last[way] {
            return Err(Reason::BeatReplayed);
        }
        (self.last[way], self.heard[way]) = (beat.counter, now);
        if self.arrived.len() >= ARRIVALS && !self.arrived.contains_key(&to) {
            self.arrived.clear();
        }
        self.arrived.insert(to, now);
        self.interval = Duration::from_micros(beat.interval_us.into());
        self.beating = !self.interval.is_zero();
        Ok(())
    }

    /// If it has just fallen silent: the routers that it was master of, and where that can be believed. `own`: this
    /// node's routers.
    fn judge(&mut self, now: Moment, own: &BTreeMap<VrrpName, InstanceStatus>) -> Option<Vec<VrrpName>> {
        let last = self.heard.into_iter().max().unwrap_or_default();
        let silence = self.interval * MISSED;
        if !self.beating || now.since(last) <= silence {
            return None;
        }
        self.beating = false;
        if self.left {
            return Some(Vec::new());
        }
        let until_then = |heard: Moment| heard != Moment(0) && last.since(heard) <= silence;
        // Where there is no way but the link's, its network may be what failed.
        let both = self.heard[1..].iter().copied().any(until_then);
        let came = |name: &VrrpName| {
            let mut addresses = own.get(name).into_iter().flat_map(|instance| &instance.own);
            addresses.any(|address| self.arrived.get(address).copied().is_some_and(until_then))
        };
        let masters = self.status.instances.iter().filter(|(_, instance)| instance.state == "master");
        Some(masters.map(|(name, _)| name).filter(|name| both && came(name)).cloned().collect())
    }
}

/// Everybody's.
#[derive(Default)]
pub(super) struct Beats(Mutex<Table>);

#[derive(Default)]
struct Table {
    met: BTreeMap<PeerId, Met>,
    stopped: bool,
}

fn key(text: &str) -> Option<hmac::Key> {
    Some(hmac::Key::new(hmac::HMAC_SHA256, &STANDARD_NO_PAD.decode(text).ok()?))
}

impl Beats {
    /// A connection is there: its heartbeats have new terms.
    pub(super) fn meet(&self, peer: &PeerId, to: SocketAddr, own: &BeatTerms, theirs: &BeatTerms) {
        let (Some(rx), Some(tx)) = (key(&own.key), key(&theirs.key)) else { return };
        let mut table = lock(&self.0);
        let before = table.met.remove(peer);
        let status = before.as_ref().map(|met| met.status.clone()).unwrap_or_default();
        let met = Met {
            rx: (own.id, rx),
            before: before.map(|met| met.rx.0),
            tx: (theirs.id, tx),
            counter: 0,
            link: to,
            status,
            last: [0; WAYS],
            heard: [Moment(0); WAYS],
            arrived: BTreeMap::new(),
            interval: Duration::ZERO,
            beating: false,
            left: false,
        };
        table.met.insert(peer.clone(), met);
    }

    pub(super) fn status(&self, peer: &str, status: &Status) {
        if let Some(met) = lock(&self.0).met.get_mut(peer) {
            met.status.clone_from(status);
        }
    }

    pub(super) fn farewell(&self, peer: &str) {
        if let Some(met) = lock(&self.0).met.get_mut(peer) {
            met.left = true;
        }
    }

    pub(super) fn beating(&self, peer: &str) -> Option<bool> {
        let table = lock(&self.0);
        let met = table.met.get(peer)?;
        (!met.interval.is_zero()).then_some(met.beating)
    }

    pub(super) fn stop(&self) {
        lock(&self.0).stopped = true;
    }

    /// What is to be sent now.
    fn due(&self, interval: Duration) -> Vec<(SocketAddr, [u8; LENGTH])> {
        let interval_us = u32::try_from(interval.as_micros()).unwrap_or(u32::MAX);
        let mut out = Vec::new();
        for met in lock(&self.0).met.values_mut().filter(|met| met.link.port() != 0) {
            for (way, to) in (0..).zip(met.ways()) {
                met.counter += 1;
                let beat = Beat { way, id: met.tx.0, counter: met.counter, interval_us };
                out.push((to, beat.encode(&met.tx.1)));
            }
        }
        out
    }

    /// `to`: the address of this node that it came to.
    fn take(&self, bytes: &[u8], to: IpAddr, now: Moment) -> Result<(), Reason> {
        let beat = Beat::decode(bytes).ok_or(Reason::Beat)?;
        let mut table = lock(&self.0);
        if let Some(met) = table.met.values_mut().find(|met| met.rx.0 == beat.id) {
            return if Beat::is_by(&met.rx.1, bytes) { met.take(beat, to, now) } else { Err(Reason::Beat) };
        }
        let late = table.met.values().any(|met| met.before == Some(beat.id));
        if late { Ok(()) } else { Err(Reason::Beat) }
    }

    fn judge(
        &self,
        now: Moment,
        own: &BTreeMap<VrrpName, InstanceStatus>,
    ) -> Vec<(PeerId, Duration, Vec<VrrpName>)> {
        let mut table = lock(&self.0);
        let silent = table.met.iter_mut().filter_map(|(name, met)| {
            let routers = met.judge(now, own)?;
            Some((name.clone(), met.interval, routers))
        });
        silent.collect()
    }

    fn is_stopped(&self) -> bool {
        lock(&self.0).stopped
    }
}

/// A socket for every address of the node: the peer finds this one on several.
fn open(port: u16) -> io::Result<UdpSocket> {
    let bind = |domain, address: IpAddr| {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
            // For IPv4 too: then with an address mapped into IPv6.
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        // Without privileges the highest that is left.
        setsockopt(&socket, sockopt::Priority, &6)?;
        socket.bind(&SocketAddr::new(address, port).into())?;
        Ok::<UdpSocket, io::Error>(socket.into())
    };
    // Where IPv6 is switched off there is IPv4 at least.
    bind(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into())
        .or_else(|_| bind(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()))
}

/// The thread, until the link is stopped.
pub(super) fn run(shared: &Shared) {
    // VRRP has said so if it may not.
    let _ = real_time(PRIORITY);
    let mut socket: Option<(u16, UdpSocket)> = None;
    let mut complained = false;
    let (mut next, mut sent) = (clock(), Duration::ZERO);
    while !shared.beats.is_stopped() && !*shared.stop.borrow() {
        let (port, interval) = {
            let settings = shared.settings.borrow();
            (settings.spec.listen.port(), settings.spec.heartbeat)
        };
        if socket.as_ref().is_none_or(|(bound, _)| *bound != port) {
            socket = match open(port) {
                Ok(socket) => Some((port, socket)),
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        tracing::error!(port, %error, "sync: no heartbeats; trying again");
                    }
                    std::thread::sleep(IDLE);
                    continue;
                }
            };
        }
        let Some((_, socket)) = &socket else { continue };
        read(shared, socket);
        let now = clock();
        let silent = shared.beats.judge(now, &shared.status.borrow().instances);
        for (peer, interval, routers) in silent {
            tell(shared, &peer, interval, &routers);
        }
        if now >= next {
            // Zero is said once.
            if !interval.is_zero() || !sent.is_zero() {
                for (to, bytes) in shared.beats.due(interval) {
                    // A way that does not exist is the other side's finding.
                    let _ = socket.send_to(&bytes, mapped(socket, to));
                }
            }
            sent = interval;
            let pause = if interval.is_zero() { IDLE } else { interval };
            // Counted from when it was due; but what was missed stays missed.
            next = if next + pause > now { next + pause } else { now + pause };
        }
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        // Silence is looked for at least as often as heartbeats are sent.
        let wait = next.since(clock()).min(IDLE);
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None);
    }
}

/// Everything that has come, before anybody is judged: this thread may have been kept from running.
fn read(shared: &Shared, socket: &UdpSocket) {
    let mut buffer = [0; LENGTH + 1];
    for _ in 0..BATCH {
        let Ok((length, from, to)) = receive(socket, &mut buffer) else { return };
        if let Err(reason) = shared.beats.take(&buffer[..length], to, clock()) {
            shared.reject(reason, &from, &"a heartbeat of no effect");
        }
    }
}

/// Octets of the next datagram, where it came from, and to which address of this node.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
    let mut control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags)?;
    let mut to = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into();
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                to = IpAddr::from(info.ipi6_addr.s6_addr).to_canonical();
            }
            _ => {}
        }
    }
    let from = message.address.as_ref();
    let four =
        from.and_then(|from| from.as_sockaddr_in()).map(|from| SocketAddr::from((from.ip(), from.port())));
    let six = from.and_then(|from| from.as_sockaddr_in6());
    let six = six.map(|from| SocketAddr::from((from.ip().to_canonical(), from.port())));
    let from = four.or(six).ok_or(io::ErrorKind::InvalidData)?;
    Ok((message.bytes, from, to))
}

fn tell(shared: &Shared, peer: &PeerId, interval: Duration, routers: &[VrrpName]) {
    if let Some(words) = lock(&shared.words).clone().filter(|_| !routers.is_empty()) {
        words.peer_silent(routers.to_vec(), interval);
    }
    tracing::warn!(%peer, routers = routers.len(), "sync: the peer's heartbeats have ended");
}

fn mapped(socket: &UdpSocket, to: SocketAddr) -> SocketAddr {
    match (socket.local_addr(), to.ip()) {
        (Ok(SocketAddr::V6(_)), IpAddr::V4(address)) => (address.to_ipv6_mapped(), to.port()).into(),
        _ => to,
    }
}

#[cfg(test)]
mod tests;
