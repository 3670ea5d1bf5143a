//! The daemon, less its clocks and sockets: what it wants, its own plan and its own care of the flow tables, and the
//! kernel's maps. Time passes by making entries older.

use lb_common::abi::FlowEntry;
use lb_tests::kernel::{Balancer, Counter, Verdict, tunnel, vip};
use lb_userspace::{
    maglev,
    model::{Admin, BackendSpec, Forward, Health, HealthSpec, PortSpec, Protocol, Scheduler, ServiceSpec},
    plan::{self, Action, Image, NextHopEntry, Tracking, Walk, WantedBackend, WantedService},
};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Idle timeout of every service.
pub const IDLE: Duration = Duration::from_secs(120);
/// The unit of an entry's clock.
pub const UNIT: Duration = Duration::from_nanos(1 << FlowEntry::SEEN_SHIFT);
/// Services of the world, by number: see [`protocol`].
pub const SERVICES: u8 = 6;
/// Backends a service may have at most; those of service `s` have the numbers `10 * s + 1` and following.
pub const BACKENDS: u8 = 6;

/// How large the world is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Slots of a ring.
    pub ring: u32,
    /// Flows of either family that find room in a table.
    pub room: u32,
    /// The tables will be full.
    pub is_small: bool,
    /// Backends a service begins with.
    pub backends: u8,
}

impl Size {
    /// The services that record every flow, where tables are to be full.
    pub fn unpromised(self) -> Option<u8> {
        self.is_small.then_some(3)
    }
}

/// Mistakes a daemon could make: the property must find each.
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
}

/// Which protocol a service has.
pub const fn protocol(service: u8) -> Protocol {
    if service == 1 || service == 5 { Protocol::Udp } else { Protocol::Tcp }
}

/// How a service chooses.
pub const fn scheduler(service: u8) -> Scheduler {
    match service {
        2 => Scheduler::SourceIp,
        3 => Scheduler::RoundRobin,
        4 | 5 => Scheduler::LeastConnections,
        _ => Scheduler::Maglev,
    }
}

/// A backend that is wanted, its number in its MAC address.
fn backend(n: u8) -> WantedBackend {
    WantedBackend {
        spec: BackendSpec {
            name: format!("web{n}").parse().expect("a name"),
            address: IpAddr::from([10, 0, 0, n]),
            port: None,
            weight: 10,
        },
        admin: Admin::Enabled,
        health: Health::Up,
        next_hop: hop(n),
    }
}

fn hop(n: u8) -> Option<NextHopEntry> {
    Some(NextHopEntry {
        ifindex: 7,
        dst_mac: [2, 0, 0, 0, 1, n],
        src_mac: [2, 0, 0, 0, 2, n],
        vlan: 0,
        mtu: 1500,
        source: None,
    })
}

fn service(number: u8, size: Size) -> WantedService {
    WantedService {
        spec: ServiceSpec {
            name: format!("s{number}").parse().expect("a name"),
            addresses: vec![vip(1, false), vip(1, true)],
            port: PortSpec::Exact(80 + u16::from(number)),
            protocol: protocol(number),
            forward: Forward::Dsr,
            scheduler: scheduler(number),
            ring_size: Some(size.ring),
            seed: u64::from(number),
            idle_timeout: IDLE,
            gue_port: 6080,
            quic: None,
            snat: None,
            guard: Default::default(),
            health: HealthSpec::default(),
            backends: Vec::new(),
        },
        ring_size: size.ring,
        backends: (1..=size.backends).map(|n| backend(10 * number + n)).collect(),
    }
}

/// What happens to one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Remove,
    Drain,
    Enable,
    Disable,
    Weigh(u16),
    Down,
    Up,
    LoseHop,
    FindHop,
}

/// What a change meant for the flows of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// It takes no packets any more: its flows are lost.
    Died,
}

pub struct World {
    pub kernel: Balancer,
    pub image: Image,
    pub fault: Fault,
    wanted: Vec<WantedService>,
    size: Size,
    tracking: Tracking,
    rings: maglev::Cache,
    /// How far its clock is ahead of the real one.
    skew: Duration,
    refused: u64,
}

impl World {
    pub fn new(size: Size) -> Self {
        let empty = Image::empty(SERVICES as u32 * size.ring + 64, 256);
        let kernel = Balancer::with_room(&empty, size.room);
        let mut world = Self {
            kernel,
            image: empty,
            fault: Fault::None,
            wanted: Vec::new(),
            size,
            tracking: Tracking::new(Instant::now()),
            rings: maglev::Cache::default(),
            skew: Duration::ZERO,
            refused: 0,
        };
        world.begin();
        world
    }

    /// Another history on the same kernel.
    pub fn begin(&mut self) {
        let empty = Image::empty(self.image.ring_capacity, self.image.backend_capacity);
        self.kernel.set_image(&empty);
        let (half_open, flows) = (self.kernel.half_open(), self.kernel.entries());
        self.kernel.forget_half_open(&half_open);
        self.kernel.forget(&flows);
        assert_eq!(self.tracked(), 0);
        self.image = empty;
        self.wanted = (0..SERVICES).map(|number| service(number, self.size)).collect();
        self.tracking = Tracking::new(self.now());
        self.refused = self.refused();
        self.converge(&mut |_| {});
    }

    /// Its clock: the real one, and what was skipped.
    pub fn now(&self) -> Instant {
        Instant::now() + self.skew
    }

    /// Flows that found no room so far.
    pub fn refused(&self) -> u64 {
        self.kernel.counters(0).packets(Counter::FlowsRefused)
    }

    /// Brings the maps to what is wanted; `between` is called between any two changes of the maps.
    fn converge(&mut self, between: &mut dyn FnMut(&mut Balancer)) {
        let reserved = self.tracking.reserved();
        self.image.resting = self.tracking.resting(self.now());
        let goal = plan::build(&self.wanted, &self.image, &tunnel(), &reserved, &mut self.rings);
        let goal = goal.expect("a plan");
        let actions = plan::diff(&self.image, &goal);
        self.change(&actions, between);
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

    /// A daemon that knows nothing but what the maps say.
    pub fn restart(&mut self) {
        self.image = self.kernel.observe();
        self.tracking = Tracking::new(self.now());
        self.refused = self.refused();
        let walk = self.walk(&mut |_| {});
        self.forget(&walk);
    }

    /// Flows and handshakes that the tables hold.
    pub fn tracked(&self) -> usize {
        self.kernel.entries().len() + self.kernel.half_open().len()
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
            _ => {}
        }
        self.forget(&walk);
        between(&mut self.kernel);
        let cleared = self.tracking.clear(&self.image, &walk, now);
        self.change(&cleared, between);
        self.tracking.walked(&walk, now);
    }

    /// Time passes, in units of the entries' clock.
    pub fn pass(&mut self, units: u16) {
        self.kernel.age(units);
        self.skew += UNIT * u32::from(units);
    }

    /// The number of the backend that gets the packet.
    pub fn send(kernel: &mut Balancer, frame: &[u8]) -> Option<u8> {
        let outcome = kernel.run(frame);
        match outcome.verdict {
            Verdict::Redirect => Some(outcome.frame[5]),
            Verdict::Drop => None,
            other => panic!("{other:?}"),
        }
    }

    /// Is the way to this backend known?
    pub fn is_reachable(&self, n: u8) -> bool {
        self.find(n).is_some_and(|b| b.next_hop.is_some())
    }

    /// Does it take packets?
    pub fn lives(&self, n: u8) -> bool {
        self.find(n).is_some_and(|b| !b.is_dead())
    }

    fn find(&self, n: u8) -> Option<&WantedBackend> {
        let backends = &self.wanted[usize::from(n / 10)].backends;
        backends.iter().find(|b| b.spec.address == IpAddr::from([10, 0, 0, n]))
    }

    /// A change of a backend, which is added first if it is not there.
    pub fn change_backend(
        &mut self,
        n: u8,
        what: What,
        between: &mut dyn FnMut(&mut Balancer),
    ) -> (&'static str, Effect) {
        let lived = self.lives(n);
        let backends = &mut self.wanted[usize::from(n / 10)].backends;
        let Some(at) = backends.iter().position(|b| b.spec.address == IpAddr::from([10, 0, 0, n])) else {
            backends.push(backend(n));
            self.converge(between);
            return ("added", Effect::Nothing);
        };
        let wanted = &mut backends[at];
        let name = match what {
            What::Remove => {
                backends.remove(at);
                "removed"
            }
            What::Drain => {
                wanted.admin = Admin::Draining;
                "drained"
            }
            What::Enable => {
                wanted.admin = Admin::Enabled;
                "enabled"
            }
            What::Disable => {
                wanted.admin = Admin::Disabled;
                "disabled"
            }
            What::Weigh(weight) => {
                wanted.spec.weight = weight;
                "weighed"
            }
            What::Down => {
                wanted.health = Health::Down;
                "down"
            }
            What::Up => {
                wanted.health = Health::Up;
                "up"
            }
            What::LoseHop => {
                wanted.next_hop = None;
                "without a next hop"
            }
            What::FindHop => {
                wanted.next_hop = hop(n);
                "with a next hop"
            }
        };
        let died = lived && !self.lives(n);
        self.converge(between);
        (name, if died { Effect::Died } else { Effect::Nothing })
    }

    /// Slots by state: plain, moving, tracked.
    pub fn slots(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for slot in self.image.rings.values().flatten() {
            counts[slot.state() as usize] += 1;
        }
        counts
    }
}

fn monotonic_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}
