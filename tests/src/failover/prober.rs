//! Probes at a steady pace, every answer with the kernel's time of its arrival.
//!
//! An outage is the longest time without an answer, less the period at which one asks. How punctual the prober itself
//! was is part of the result: what a busy machine does to the prober is no outage.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
    time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep},
    unistd::Pid,
};

use crate::lab::Netns;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// ICMP echo: whether the address answers.
    Ping(IpAddr),
    /// A datagram to an echo server behind the address: whether the service does.
    Udp(SocketAddr),
}

/// What became of the probes; times are nanoseconds since 1970, by which the kernel stamps arrivals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// When each probe was sent; its number is its index.
    pub sent: Vec<u64>,
    /// Number of the probe and arrival of its answer, in order of arrival.
    pub answers: Vec<(u32, u64)>,
}

/// The longest time without an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outage {
    pub length: Duration,
    /// From the begin of the trace to that of the outage.
    pub at: Duration,
    /// Probes of the whole trace that were never answered.
    pub lost: usize,
    /// The longest time by which the prober was late during the outage or right before.
    pub late: Duration,
}

impl Outage {
    /// Without what the prober itself was late by: an outage for sure.
    pub fn sure(&self) -> Duration {
        self.length.saturating_sub(self.late)
    }
}

impl Trace {
    /// # Panics
    /// Never: an empty trace is one without an outage.
    pub fn outage(&self, period: Duration) -> Outage {
        let nanos = period.as_nanos() as u64;
        let mut answered = vec![false; self.sent.len()];
        for (number, _) in &self.answers {
            if let Some(one) = answered.get_mut(*number as usize) {
                *one = true;
            }
        }
        let lost = answered.iter().filter(|one| !**one).count();
        let Some(begin) = self.sent.first().copied() else { return Outage::default() };
        // The first probe begins the watch, and the last one ends it: without any answer, all of it is an outage.
        let marks: Vec<u64> = std::iter::once(begin)
            .chain(self.answers.iter().map(|(_, at)| *at))
            .chain(self.sent.last().copied())
            .collect();
        let longest = marks.windows(2).max_by_key(|pair| pair[1].saturating_sub(pair[0]));
        let (from, to) = longest.map_or((begin, begin), |pair| (pair[0], pair[1].max(pair[0])));
        let late = self
            .sent
            .windows(2)
            .filter(|pair| pair[1] + nanos >= from && pair[0] <= to)
            .map(|pair| (pair[1] - pair[0]).saturating_sub(nanos))
            .max();
        Outage {
            length: Duration::from_nanos((to - from).saturating_sub(nanos)),
            at: Duration::from_nanos(from - begin),
            lost,
            late: Duration::from_nanos(late.unwrap_or_default()),
        }
    }
}

/// A thread that probes until it is asked to stop.
#[must_use = "nobody probes when this is dropped"]
pub struct Prober {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Trace>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicU64,
    /// Of the last answer, nanoseconds since 1970.
    last: AtomicU64,
}

impl Prober {
    /// Begins to probe from inside a namespace.
    pub fn start(ns: &Netns, way: Way, period: Duration) -> io::Result<Self> {
        static ID: AtomicU16 = AtomicU16::new(1);
        let id = ID.fetch_add(1, Ordering::Relaxed) ^ std::process::id() as u16;
        let socket = ns.run(|| open(way))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        socket.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("prober".to_owned())
            .spawn(move || probe(&socket, Message { way, id }, period, &for_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// How long ago the last answer came.
    pub fn silence(&self) -> Duration {
        Duration::from_nanos(now().saturating_sub(self.shared.last.load(Ordering::Relaxed)))
    }

    /// Ends probing.
    pub fn stop(mut self) -> Trace {
        self.end()
    }

    fn end(&mut self) -> Trace {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end();
    }
}

fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |t| Duration::from(t).as_nanos() as u64)
}

fn open(way: Way) -> io::Result<UdpSocket> {
    match way {
        Way::Udp(target) => {
            let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(target)?;
            Ok(socket)
        }
        Way::Ping(target) => {
            let (family, protocol) = match target {
                IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
                IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
            };
            // SAFETY: socket(2) takes no pointers.
            let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // Not UDP, but std has no other socket type that connects, sends and receives.
            // SAFETY: the kernel just handed over this descriptor, and nobody else knows it.
            let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
            socket.connect(SocketAddr::new(target, 0))?;
            Ok(socket)
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Message {
    way: Way,
    id: u16,
}

impl Message {
    /// ICMP (RFC 792, RFC 4443 section 4.1): type, code, checksum, identifier, sequence; then, as in a datagram, the number.
    fn encode(self, number: u32) -> Vec<u8> {
        let bytes = number.to_be_bytes();
        let Way::Ping(target) = self.way else { return bytes.to_vec() };
        let kind = if target.is_ipv4() { 8 } else { 128 };
        let [a, b] = self.id.to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, a, b, bytes[2], bytes[3]];
        message.extend(bytes);
        let mut sum: u32 = message.chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let [high, low] = (!(sum as u16)).to_be_bytes();
        (message[2], message[3]) = (high, low);
        message
    }

    /// The number of the probe that this answers. A raw IPv4 socket delivers the IP header as well; the echo server puts
    /// its name in front.
    fn decode(self, bytes: &[u8]) -> Option<u32> {
        let last = bytes.last_chunk().copied().map(u32::from_be_bytes)?;
        let Way::Ping(target) = self.way else { return Some(last) };
        let header = if target.is_ipv4() { usize::from(bytes.first()? & 15) * 4 } else { 0 };
        let kind = if target.is_ipv4() { 0 } else { 129 };
        let message = bytes.get(header..)?;
        (message.len() == 12 && message[..2] == [kind, 0] && message[4..6] == self.id.to_be_bytes())
            .then_some(last)
    }
}

/// The CPUs of the daemons, and the one of the probes: all but the last, and the last. `None` where there is only one.
///
/// A node that starts loads its program, and for tenths of a second the kernel hardly lets go of a CPU meanwhile. To the other
/// node, a machine of its own everywhere but here, that is nothing.
fn cpus() -> Option<&'static (CpuSet, CpuSet)> {
    static CPUS: OnceLock<Option<(CpuSet, CpuSet)>> = OnceLock::new();
    let find = || {
        let mut others = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let usable = |cpu: &usize| others.is_set(*cpu).unwrap_or(false);
        let all: Vec<usize> = (0..CpuSet::count()).filter(usable).collect();
        let [_, .., last] = all[..] else { return None };
        let mut probes = CpuSet::new();
        probes.set(last).and_then(|()| others.unset(last)).ok()?;
        Some((others, probes))
    };
    CPUS.get_or_init(find).as_ref()
}

/// Starts a daemon that leaves the CPU of the probes alone.
pub fn aside<T>(start: impl FnOnce() -> T) -> T {
    let before = sched_getaffinity(Pid::from_raw(0)).ok().zip(cpus());
    if let Some((_, (others, _))) = &before {
        let _ = sched_setaffinity(Pid::from_raw(0), others);
    }
    let result = start();
    if let Some((before, _)) = &before {
        let _ = sched_setaffinity(Pid::from_raw(0), before);
    }
    result
}

/// The calling thread runs before all ordinary ones from now on, on the CPU of the probes. Without the right to it a prober is
/// late now and then, and says so.
pub fn punctual() {
    if let Some((_, probes)) = cpus() {
        let _ = sched_setaffinity(Pid::from_raw(0), probes);
    }
    let parameters = libc::sched_param { sched_priority: 40 };
    // SAFETY: 0 is the calling thread; the pointer is to a sched_param that lives during the call.
    let _ = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters)
    };
}

fn probe(socket: &UdpSocket, message: Message, period: Duration, shared: &Shared) -> Trace {
    punctual();
    let clock = ClockId::CLOCK_MONOTONIC;
    let monotonic = || clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    let mut trace = Trace::default();
    let mut next = monotonic();
    while !shared.stop.load(Ordering::Relaxed) {
        let number = trace.sent.len() as u32;
        trace.sent.push(now());
        // An address without a route or neighbour is an outage as any other.
        let _ = socket.send(&message.encode(number));
        next += period;
        // What was missed is not made up for: a burst says nothing about the time before it.
        next = next.max(monotonic());
        while clock_nanosleep(clock, ClockNanosleepFlags::TIMER_ABSTIME, &TimeSpec::from(next))
            == Err(Errno::EINTR)
        {}
        receive(socket, message, &mut trace, shared);
    }
    // What is on its way.
    std::thread::sleep(Duration::from_millis(20));
    receive(socket, message, &mut trace, shared);
    trace
}

fn receive(socket: &UdpSocket, message: Message, trace: &mut Trace, shared: &Shared) {
    let mut buffer = [0_u8; 256];
    let mut control = nix::cmsg_space!(TimeSpec);
    loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received =
            recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT);
        let (length, stamp) = match received {
            Ok(it) => {
                let stamp = it.cmsgs().ok().and_then(|mut all| {
                    all.find_map(|c| match c {
                        ControlMessageOwned::ScmTimestampns(t) => Some(Duration::from(t).as_nanos() as u64),
                        _ => None,
                    })
                });
                (it.bytes, stamp)
            }
            Err(Errno::EINTR) => continue,
            // Nothing more, or the ICMP error of an earlier probe.
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => continue,
            Err(_) => return,
        };
        if let Some(number) = message.decode(&buffer[..length]) {
            let at = stamp.unwrap_or_else(now);
            trace.answers.push((number, at));
            shared.answers.fetch_add(1, Ordering::Relaxed);
            shared.last.store(at, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PERIOD: Duration = Duration::from_millis(1);

    fn trace(answered: impl Fn(u64) -> bool) -> Trace {
        let sent: Vec<u64> = (0..100).map(|n| (1_000 + n) * MS).collect();
        let answers =
            (0..100).filter(|n| answered(*n)).map(|n| (n as u32, sent[n as usize] + MS / 10)).collect();
        Trace { sent, answers }
    }

    #[test]
    fn steady_answers_are_no_outage() {
        let outage = trace(|_| true).outage(PERIOD);
        assert_eq!((outage.length, outage.lost, outage.late), (Duration::ZERO, 0, Duration::ZERO));
        assert_eq!(Trace::default().outage(PERIOD), Outage::default());
    }

    #[test]
    fn probes_that_are_lost_make_one() {
        let outage = trace(|n| !(40..75).contains(&n)).outage(PERIOD);
        assert_eq!((outage.length, outage.lost), (Duration::from_millis(35), 35));
        assert_eq!(outage.at, Duration::from_micros(39_100));
    }

    #[test]
    fn an_outage_without_an_end_counts_to_the_last_probe() {
        let outage = trace(|n| n < 20).outage(PERIOD);
        assert_eq!((outage.length, outage.lost), (Duration::from_micros(78_900), 80));
        assert_eq!(trace(|_| false).outage(PERIOD).length, Duration::from_millis(98));
    }

    #[test]
    fn answers_that_wait_for_a_neighbour_are_an_outage_although_none_is_lost() {
        let mut late = trace(|_| true);
        for (number, at) in &mut late.answers {
            if (40..60).contains(number) {
                *at = 1_060 * MS;
            }
        }
        let outage = late.outage(PERIOD);
        assert_eq!((outage.length.as_millis(), outage.lost), (19, 0));
    }

    #[test]
    fn a_prober_that_was_late_says_so() {
        let mut slow = trace(|_| true);
        for n in 50..100 {
            slow.sent[n] += 7 * MS;
            slow.answers[n].1 += 7 * MS;
        }
        let outage = slow.outage(PERIOD);
        assert_eq!((outage.length, outage.late), (Duration::from_millis(7), Duration::from_millis(7)));
    }

    #[test]
    fn a_probe_is_known_by_its_answer() {
        for target in ["192.0.2.10", "2001:db8::10"] {
            let target: IpAddr = target.parse().unwrap();
            let ping = Message { way: Way::Ping(target), id: 7 };
            let mut answer = ping.encode(70_000);
            answer[0] = if target.is_ipv4() { 0 } else { 129 };
            if target.is_ipv4() {
                answer = [vec![0x45; 20], answer].concat();
            }
            assert_eq!(ping.decode(&answer), Some(70_000));
            assert_eq!(Message { id: 8, ..ping }.decode(&answer), None);
            assert_eq!(ping.decode(&answer[..answer.len() - 1]), None);
        }
        let udp = Message { way: Way::Udp("192.0.2.10:7".parse().unwrap()), id: 0 };
        assert_eq!(udp.decode(&[b"web1:".to_vec(), udp.encode(9)].concat()), Some(9));
        assert_eq!(udp.decode(&[1, 2]), None);
    }
}
