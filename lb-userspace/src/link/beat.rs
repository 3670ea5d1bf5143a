//! Heartbeats: a datagram every few milliseconds to each peer, on every way there is to it, and a verdict when none
//! come any more.
//!
//! A silent way proves nothing: the network of the sync link may be cut while the master serves. So the heartbeats take
//! the ways over the virtual routers' own interfaces as well, and a peer counts as silent when nothing comes on any of
//! them. The verdict is told to VRRP only for routers on whose interface the heartbeats came until then: where the
//! networks fail one after the other, or the way over the interface never worked, the advertisements decide alone.
//!
//! ```text
//!   0  "lbdB", version 1, way (0: the link's, from 1: over interfaces), two octets of 0
//!   8  id of the receiver's terms          16  counter, from 1, of all ways together
//!  24  the sender's interval in microseconds, 0: it stops      28  HMAC-SHA256 of the above, 16 octets of it
//! ```

use super::{
    handle::{PeerId, Shared, lock},
    view::Reason,
    wire::{BeatTerms, Status},
};
use crate::{
    model::VrrpName,
    vrrp::{Moment, clock, real_time},
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeSpec,
    },
};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
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

    fn take(&mut self, beat: Beat, now: Moment) -> Result<(), Reason> {
        let way = usize::from(beat.way);
        if beat.counter <= self.last[way] {
            return Err(Reason::BeatReplayed);
        }
        (self.last[way], self.heard[way]) = (beat.counter, now);
        self.interval = Duration::from_micros(beat.interval_us.into());
        self.beating = !self.interval.is_zero();
        Ok(())
    }

    /// If it has just fallen silent: the routers that it was master of, and where that can be believed.
    fn judge(&mut self, now: Moment) -> Option<Vec<VrrpName>> {
        let last = self.heard.into_iter().max().unwrap_or_default();
        let silence = self.interval * MISSED;
        if !self.beating || now.since(last) <= silence {
            return None;
        }
        self.beating = false;
        if self.left {
            return Some(Vec::new());
        }
        let over = self.heard[1..].iter().copied().max().unwrap_or_default();
        let both = over != Moment(0) && last.since(over) <= silence;
        let masters = self.status.instances.iter().filter(|(_, instance)| instance.state == "master");
        Some(masters.filter(|_| both).map(|(name, _)| name.clone()).collect())
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

    fn take(&self, bytes: &[u8], now: Moment) -> Result<(), Reason> {
        let beat = Beat::decode(bytes).ok_or(Reason::Beat)?;
        let mut table = lock(&self.0);
        if let Some(met) = table.met.values_mut().find(|met| met.rx.0 == beat.id) {
            return if Beat::is_by(&met.rx.1, bytes) { met.take(beat, now) } else { Err(Reason::Beat) };
        }
        let late = table.met.values().any(|met| met.before == Some(beat.id));
        if late { Ok(()) } else { Err(Reason::Beat) }
    }

    fn judge(&self, now: Moment) -> Vec<(PeerId, Duration, Vec<VrrpName>)> {
        let mut table = lock(&self.0);
        let silent = table.met.iter_mut().filter_map(|(name, met)| {
            let routers = met.judge(now)?;
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
        for (peer, interval, routers) in shared.beats.judge(now) {
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
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { return };
        if let Err(reason) = shared.beats.take(&buffer[..length], clock()) {
            shared.reject(reason, &from, &"a heartbeat of no effect");
        }
    }
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
mod tests {
    use super::*;
    use crate::link::wire::InstanceStatus;

    fn terms(id: u64) -> BeatTerms {
        BeatTerms { id, key: STANDARD_NO_PAD.encode([id as u8; 32]), port: 9760, interval_us: 10_000 }
    }

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    const TEN: Duration = Duration::from_millis(10);

    /// Two that have met; the first one is master and is heard over its interface.
    fn pair() -> (Beats, Beats) {
        let (one, two) = (Beats::default(), Beats::default());
        let address = |n| SocketAddr::from(([10, 9, 0, n], 9760));
        one.meet(&"two".into(), address(2), &terms(1), &terms(2));
        two.meet(&"one".into(), address(1), &terms(2), &terms(1));
        let status = |state: &str, n| InstanceStatus {
            state: state.to_owned(),
            priority: 100,
            own: vec![[10, 0, 0, n].into()],
        };
        let told = |state, n| Status {
            services: String::new(),
            instances: [("public".parse().unwrap(), status(state, n))].into(),
        };
        one.status("two", &told("backup", 2));
        two.status("one", &told("master", 1));
        (one, two)
    }

    #[test]
    fn silence_on_every_way_is_told_once() {
        let (one, two) = pair();
        for ms in (0..100).step_by(10) {
            let beats = one.due(TEN);
            assert_eq!(beats.len(), 2, "the link's way and that over the interface");
            assert_eq!(beats[1].0, SocketAddr::from(([10, 0, 0, 2], 9760)));
            for (_, beat) in beats {
                two.take(&beat, at(1000 + ms)).unwrap();
            }
            assert!(two.judge(at(1000 + ms)).is_empty());
        }
        assert_eq!(two.beating("one"), Some(true));
        assert!(two.judge(at(1120)).is_empty(), "30 ms of silence are over only later");
        let told = two.judge(at(1121));
        assert_eq!(told, [("one".into(), TEN, vec!["public".parse().unwrap()])]);
        assert!(two.judge(at(1200)).is_empty());
        assert_eq!(two.beating("one"), Some(false));
    }

    /// Heartbeats come on both ways, and then, for a while, on one of them.
    fn both_and_then(one: &Beats, two: &Beats, only: usize) {
        let send = |ms, ways: &[usize]| {
            let beats = one.due(TEN);
            ways.iter().for_each(|way| two.take(&beats[*way].1, at(ms)).unwrap());
        };
        send(1000, &[0, 1]);
        for ms in (1010..1200).step_by(10) {
            send(ms, &[only]);
            assert!(two.judge(at(ms)).is_empty());
        }
    }

    #[test]
    fn a_cut_network_is_no_dead_master() {
        // The link's own network is cut: the other way goes on.
        let (one, two) = pair();
        both_and_then(&one, &two, 1);
        // The way over the interface is cut first, then the link's: the advertisements decide.
        let (one, two) = pair();
        both_and_then(&one, &two, 0);
        assert_eq!(two.judge(at(1300)), [("one".into(), TEN, vec![])]);
        // Only the link's way ever worked.
        let (one, two) = pair();
        two.take(&one.due(TEN)[0].1, at(1000)).unwrap();
        assert_eq!(two.judge(at(1100)), [("one".into(), TEN, vec![])]);
        // It has said farewell, or that it sends no more.
        let (one, two) = pair();
        one.due(TEN).iter().for_each(|(_, beat)| two.take(beat, at(1000)).unwrap());
        two.farewell("one");
        assert_eq!(two.judge(at(1100)), [("one".into(), TEN, vec![])]);
        let (one, two) = pair();
        one.due(Duration::ZERO).iter().for_each(|(_, beat)| two.take(beat, at(1000)).unwrap());
        assert!(two.judge(at(9000)).is_empty());
        assert_eq!(two.beating("one"), None);
    }

    #[test]
    fn forged_and_repeated_ones_have_no_effect() {
        let (one, two) = pair();
        let (_, beat) = one.due(TEN)[0];
        for at_byte in 0..LENGTH {
            let mut forged = beat;
            forged[at_byte] ^= 1;
            // Two octets are nobody's, but authenticated as well.
            assert_eq!(two.take(&forged, at(1)), Err(Reason::Beat), "octet {at_byte}");
        }
        assert_eq!(two.take(&beat[..LENGTH - 1], at(1)), Err(Reason::Beat));
        assert_eq!(two.take(&[], at(1)), Err(Reason::Beat));
        assert_eq!(two.beating("one"), None, "nothing had an effect");
        two.take(&beat, at(1)).unwrap();
        assert_eq!(two.take(&beat, at(2)), Err(Reason::BeatReplayed));
        // Of another connection: not even as a forgery while it may still be on its way.
        two.meet(&"one".into(), ([10, 9, 0, 1], 9760).into(), &terms(5), &terms(6));
        two.take(&beat, at(3)).unwrap();
        assert_eq!(two.beating("one"), None);
        two.meet(&"one".into(), ([10, 9, 0, 1], 9760).into(), &terms(7), &terms(8));
        assert_eq!(two.take(&beat, at(4)), Err(Reason::Beat));
    }
}
