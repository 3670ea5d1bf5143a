//! `via = "vip"`: the virtual address is checked on each backend, by the way and in the wrapping of the traffic, so that a
//! backend whose tunnel, loopback address or listener is missing is down although its own address answers.
//!
//! The probes are the ordinary ones, with ordinary sockets of the kernel, on a thread in a network namespace of its own, where
//! no virtual address is anybody's:
//!
//! 1. A probe's socket has an address of this node and a port as its own and connects to the virtual address. The
//!    namespace's only way out is a TUN device (`netns`).
//! 2. `relay` reads the packet from the device, knows by its source for which backend it is (`flights`), lets
//!    [`forward::rewrite`](lb_common::core::forward::rewrite), which the program runs too, make the frame, and sends it by a
//!    packet socket out of the backend's egress.
//! 3. The backend answers to this node's address. A packet socket hands a copy to `relay` before the host's IP sees the
//!    packet (where it may be a martian: the virtual address may be the host's own), and `relay` writes it to the device.
//! 4. The host must not answer what comes for a connection that it does not know: a socket of the host holds the port
//!    and drops all that arrives.
//!
//! All of it is descriptors of this process: nothing is left when it is killed.

mod filter;
mod flights;
mod netns;
mod packet;
mod relay;

use super::{
    probe::{Deadline, Peer, Probe, ProbeFailure},
    task::TargetKey,
};
use flights::{Flights, Leg};
use lb_common::{abi::BackendEntry, wire::proto};
use nix::errno::Errno;
use relay::Wanted;
use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{runtime::Handle, sync::watch, task::JoinSet};

/// Checks cannot be sent by the way of the traffic.
#[derive(Debug, thiserror::Error)]
#[error("health checks with via = \"vip\": cannot {doing}: {source}; {advice}")]
pub struct ViaError {
    doing: &'static str,
    source: io::Error,
    advice: &'static str,
}

/// How a backend is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beyond {
    /// As the program has it.
    pub entry: BackendEntry,
    /// Of its service.
    pub seed: u64,
    /// This node's addresses that checks come from, by the virtual address's family.
    pub source_v4: Option<IpAddr>,
    pub source_v6: Option<IpAddr>,
}

impl Beyond {
    fn source(&self, vip: IpAddr) -> Option<IpAddr> {
        if vip.is_ipv4() { self.source_v4 } else { self.source_v6 }
    }
}

/// One address to be checked.
#[derive(Debug)]
pub(super) struct Aim {
    pub(super) address: SocketAddr,
    pub(super) probe: Probe,
}

/// The way of the traffic, for checks. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct VipWay(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    backends: HashMap<TargetKey, Beyond>,
    /// Virtual addresses that cannot be checked on some backend, so that each is told once.
    unchecked: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone)]
struct Open {
    /// Of the namespace's thread, which ends when the last sender of `wanted` is gone.
    runtime: Handle,
    flights: Arc<Flights>,
    wanted: watch::Sender<Wanted>,
    /// The last [`Wanted::generation`] that is in force.
    settled: watch::Receiver<u64>,
}

impl State {
    /// Says which virtual addresses are not checked, for want of an address that they could answer to.
    fn warn(&mut self, vips: &BTreeSet<IpAddr>) {
        let lacks = |vip: &IpAddr| self.backends.values().any(|backend| backend.source(*vip).is_none());
        let unchecked: BTreeSet<IpAddr> = vips.iter().filter(|vip| lacks(vip)).copied().collect();
        for vip in unchecked.difference(&self.unchecked) {
            let version = version(*vip);
            tracing::warn!(
                %vip,
                "this node has no {version} address of its own that every backend could answer to: there {vip} is not checked"
            );
        }
        self.unchecked = unchecked;
    }
}

impl VipWay {
    /// Opens the way if it is not open.
    pub fn open(&self) -> Result<(), ViaError> {
        let mut state = self.lock();
        // Closed where its thread has ended, which takes a panic.
        if state.open.as_ref().is_none_or(|open| open.wanted.is_closed()) {
            state.open = Some(relay::start()?);
        }
        Ok(())
    }

    /// Gives the whole set of backends that are checked by this way, and the virtual addresses. Without backends the way is
    /// closed.
    pub fn set(&self, backends: HashMap<TargetKey, Beyond>, vips: BTreeSet<IpAddr>) {
        let mut state = self.lock();
        if backends.is_empty() {
            state.open = None;
        }
        let sources = backends.values().flat_map(|b| [b.source_v4, b.source_v6]).flatten().collect();
        state.backends = backends;
        state.warn(&vips);
        if let Some(open) = &state.open {
            open.flights.retain(&sources);
            open.wanted.send_if_modified(|wanted| {
                let differs = wanted.sources != sources || wanted.vips != vips;
                if differs {
                    *wanted = Wanted { generation: wanted.generation + 1, sources, vips };
                }
                differs
            });
        }
    }

    /// Checks all addresses on a backend at once; the first failure is the answer.
    pub(super) async fn run(
        &self,
        key: &TargetKey,
        aims: Arc<[Aim]>,
        deadline: Deadline,
    ) -> Result<(), ProbeFailure> {
        let (open, beyond) = {
            let state = self.lock();
            (state.open.clone(), state.backends.get(key).copied())
        };
        let cannot = |what: &str| ProbeFailure::CannotRun { what: what.to_owned() };
        let open = open.ok_or_else(|| cannot("the way to virtual addresses is not open"))?;
        let beyond = beyond.ok_or_else(|| cannot("the way to the backend is not known yet"))?;
        if beyond.entry.ifindex == 0 {
            return Err(ProbeFailure::Unreachable(Errno::EHOSTUNREACH));
        }
        open.settle().await;
        let mut checks = JoinSet::new();
        let mut sourceless = None;
        for at in 0..aims.len() {
            let address = aims[at].address;
            // One family that this node has no address of must not hide what the other would tell.
            let Some(source) = beyond.source(address.ip()) else {
                sourceless = Some(address);
                continue;
            };
            let leg = Leg { vip: address.ip(), entry: beyond.entry, seed: beyond.seed };
            let flight = open.flights.take(protocol(&aims[at].probe, address), source, leg);
            let flight = flight.map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
                ProbeFailure::Local(errno)
            })?;
            let aims = Arc::clone(&aims);
            checks.spawn_on(
                async move {
                    let peer = Peer { address, from: Some(flight.from()) };
                    (address, aims[at].probe.run(peer, deadline).await)
                },
                &open.runtime,
            );
        }
        if let (true, Some(address)) = (checks.is_empty(), sourceless) {
            let version = version(address.ip());
            return Err(cannot(&format!(
                "this node has no {version} address of its own that {address} could answer to"
            )));
        }
        let mut verdict = Ok(());
        while let Some(ended) = checks.join_next().await {
            let (address, result) = ended.map_err(|_| ProbeFailure::Internal)?;
            let result =
                result.map_err(|failure| ProbeFailure::OnBackend { address, failure: Box::new(failure) });
            match result {
                Err(failure) if failure.stands_in() => verdict = Err(failure),
                other => other?,
            }
        }
        verdict
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every write is a whole assignment: what a panicking writer leaves is sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Waits until addresses and filters are those last asked for, which takes a millisecond.
    async fn settle(&self) {
        let generation = self.wanted.borrow().generation;
        // An error means that the way is closed, of which the probe will hear.
        let _ = self.settled.clone().wait_for(|settled| *settled >= generation).await;
    }
}

fn version(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn protocol(probe: &Probe, address: SocketAddr) -> u8 {
    match probe {
        Probe::Udp(_) | Probe::Dns(_) => proto::UDP,
        Probe::Icmp if address.is_ipv4() => proto::ICMP,
        Probe::Icmp => proto::ICMPV6,
        Probe::Tcp | Probe::Http(_) | Probe::Grpc(_) | Probe::Mysql(_) | Probe::Redis(_) | Probe::Exec(_) => {
            proto::TCP
        }
    }
}
