//! The daemon, less its clocks and sockets: what it wants, its own plan and its own care of the flow tables, and the
//! kernel's maps. Time passes by making entries older.

use crate::kernel::{Balancer, Counter, Verdict, tunnel, vip};
use lb_common::abi::{FlowEntry, Slot};
use lb_userspace::{
    maglev,
    model::{
        Admin, BackendSpec, Forward, GradualSpec, GuardSpec, Health, HealthSpec, PoolSpec, PortSpec,
        Protocol, QuicSpec, Scheduler, ServiceSpec,
    },
    plan::{self, Action, Image, NextHopEntry, Tracking, Walk, WantedBackend, WantedService},
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Idle timeout of every service.
pub const IDLE: Duration = Duration::from_secs(120);
/// The unit of an entry's clock.
pub const UNIT: Duration = Duration::from_nanos(FlowEntry::UNIT_NS);
/// Of the connection IDs of QUIC servers, which have the last two bytes of their address for an id.
pub const CONFIG_ID: u8 = 2;

/// Mistakes a daemon could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Moving slots get a new home at once.
    SettlesAtOnce,
    /// Tracked slots become plain though flows live elsewhere.
    ClearsBlindly,
    /// The table is emptied at every walk.
    ForgetsLiving,
    /// Flows that found no room are not noticed.
    IgnoresRefused,
    /// The schedulers take every unknown datagram for a new flow's.
    PlacesAnew,
}

/// A backend that is wanted, its number in its address and in its MAC address.
#[must_use]
pub fn backend(n: u8) -> WantedBackend {
    WantedBackend {
        standby: false,
        panic: false,
        spec: BackendSpec {
            name: format!("web{n}").parse().expect("a name"),
            address: IpAddr::from([10, 0, 0, n]),
            port: None,
            weight: 10,
            backup: false,
        },
        admin: Admin::Enabled,
        health: Health::Up,
        next_hop: hop(n),
        ramp: None,
    }
}

/// The way to a backend.
#[must_use]
pub fn hop(n: u8) -> Option<NextHopEntry> {
    Some(NextHopEntry {
        ifindex: 7,
        dst_mac: [2, 0, 0, 0, 1, n],
        src_mac: [2, 0, 0, 0, 2, n],
        vlan: 0,
        mtu: 1500,
        source: None,
    })
}

/// A service at port 80 and its number, of the first VIP of either family.
#[must_use]
pub fn service(
    number: u8,
    protocol: Protocol,
    scheduler: Scheduler,
    ring_size: u32,
    backends: Vec<WantedBackend>,
) -> WantedService {
    WantedService {
        part: 0,
        spec: ServiceSpec {
            name: format!("s{number}").parse().expect("a name"),
            addresses: vec![vip(1, false), vip(1, true)],
            port: PortSpec::Exact(80 + u16::from(number)),
            protocol,
            forward: Forward::Dsr,
            scheduler,
            ring_size: Some(ring_size),
            seed: u64::from(number),
            idle_timeout: IDLE,
            gue_port: 6080,
            snat: None,
            health: HealthSpec::default(),
            passive: None,
            guard: GuardSpec::default(),
            gradual: GradualSpec::default(),
            pool: PoolSpec::default(),
            quic: (protocol == Protocol::Quic).then(|| QuicSpec {
                server_id_length: 2,
                config_id: CONFIG_ID,
                server_ids: BTreeMap::new(),
            }),
            backends: Vec::new(),
        },
        ring_size,
        no_quorum: false,
        withdrawn: false,
        backends,
    }
}

/// See the module.
pub struct Daemon {
    pub kernel: Balancer,
    pub image: Image,
    pub wanted: Vec<WantedService>,
    pub tracking: Tracking,
    pub fault: Fault,
    rings: maglev::Cache,
    /// How far its clock is ahead of the real one.
    skew: Duration,
    refused: u64,
}

impl Daemon {
    /// With maps as large as those of `empty`, and room for so many flows of either family.
    #[must_use]
    pub fn new(empty: &Image, room: u32, wanted: Vec<WantedService>) -> Self {
        let mut daemon = Self {
            kernel: Balancer::with_room(empty, room),
            image: empty.clone(),
            wanted: Vec::new(),
            tracking: Tracking::new(Instant::now()),
            fault: Fault::None,
            rings: maglev::Cache::default(),
            skew: Duration::ZERO,
            refused: 0,
        };
        daemon.begin(wanted);
        daemon
    }

    /// Another history on the same kernel.
    pub fn begin(&mut self, wanted: Vec<WantedService>) {
        let empty = Image::empty(self.image.ring_capacity, self.image.backend_capacity);
        self.kernel.set_image(&empty);
        let (half_open, flows) = (self.kernel.half_open(), self.kernel.entries());
        self.kernel.forget_half_open(&half_open);
        self.kernel.forget(&flows);
        assert_eq!(self.tracked(), 0);
        self.image = empty;
        self.wanted = wanted;
        self.tracking = Tracking::new(self.now());
        self.refused = self.refused();
        self.converge(&mut |_| {});
    }

    /// Its clock: the real one, and what was skipped.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now() + self.skew
    }

    /// Time passes, in units of the entries' clock.
    pub fn pass(&mut self, units: u16) {
        self.kernel.age(units);
        self.skew += UNIT * u32::from(units);
    }

    /// Flows that found no room so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.kernel.counters(0).packets(Counter::FlowsRefused)
    }

    /// Flows and handshakes that the tables hold.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.kernel.entries().len() + self.kernel.half_open().len()
    }

    /// Every slot of every ring.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.image.rings.values().flatten().copied()
    }

    /// Brings the maps to what is wanted; `between` is called between any two changes of the maps. Like a daemon that cannot
    /// grow its maps, it leaves everything as it is where they are too small.
    pub fn converge(&mut self, between: &mut dyn FnMut(&mut Balancer)) {
        let reserved = self.tracking.reserved();
        self.image.resting = self.tracking.resting(self.now());
        let goal = plan::build(&self.wanted, &self.image, &tunnel(), &reserved, &mut self.rings);
        let Ok(goal) = goal else { return };
        self.change(&plan::diff(&self.image, &goal), between);
    }

    fn change(&mut self, actions: &[Action], between: &mut dyn FnMut(&mut Balancer)) {
        let before = self.image.clone();
        for action in actions {
            self.kernel.execute(std::slice::from_ref(action));
            self.image.apply(action);
            between(&mut self.kernel);
        }
        self.tracking.note_changes(&before, &self.image, self.now());
    }

    /// One that knows nothing but what the maps say takes its place.
    pub fn restart(&mut self) {
        self.image = self.kernel.observe();
        self.tracking = Tracking::new(self.now());
        self.refused = self.refused();
        let walk = self.walk(&mut |_| {});
        self.forget(&walk);
    }

    fn walk(&mut self, between: &mut dyn FnMut(&mut Balancer)) -> Walk {
        // In the daemon's order.
        let half_open = self.kernel.half_open();
        between(&mut self.kernel);
        let flows = self.kernel.entries();
        self.tracking.walk(&self.image, half_open, flows, monotonic_ns())
    }

    fn forget(&mut self, walk: &Walk) {
        self.kernel.forget_half_open(&walk.half_over);
        self.kernel.forget(&walk.over);
    }

    /// One round of care; `between` is called wherever packets of a real balancer could come in between.
    pub fn tend(&mut self, between: &mut dyn FnMut(&mut Balancer)) {
        let now = self.now();
        let refused = self.refused();
        if refused != self.refused {
            self.refused = refused;
            if self.fault != Fault::IgnoresRefused {
                self.tracking.note_refused(now);
            }
        }
        let then = if self.fault == Fault::SettlesAtOnce { now + IDLE * 2 } else { now };
        let settled = self.tracking.settle(&self.image, then);
        self.change(&settled, between);
        if !self.tracking.is_busy(&self.image) {
            return;
        }
        let mut walk = self.walk(between);
        between(&mut self.kernel);
        match self.fault {
            Fault::ForgetsLiving => {
                (walk.over, walk.half_over) = (self.kernel.entries(), self.kernel.half_open());
            }
            Fault::ClearsBlindly => walk = Walk::default(),
            Fault::PlacesAnew => self.kernel.forget_homed(),
            Fault::None | Fault::SettlesAtOnce | Fault::IgnoresRefused => {}
        }
        self.forget(&walk);
        between(&mut self.kernel);
        let cleared = self.tracking.clear(&self.image, &walk, now);
        self.change(&cleared, between);
        self.tracking.walked(&walk, now);
    }

    /// The number of the backend that gets the packet.
    pub fn send(&mut self, frame: &[u8]) -> Option<u8> {
        send(&mut self.kernel, frame)
    }
}

/// The number of the backend that gets the packet; `None`: it is dropped.
pub fn send(kernel: &mut Balancer, frame: &[u8]) -> Option<u8> {
    let outcome = kernel.run(frame);
    match outcome.verdict {
        Verdict::Redirect => Some(outcome.frame[5]),
        Verdict::Drop => None,
        other => panic!("{other:?}"),
    }
}

fn monotonic_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}
