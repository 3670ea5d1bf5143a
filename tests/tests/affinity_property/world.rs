//! The services of a history, and what happens to their backends.

use lb_tests::{
    daemon::{self, Daemon, backend, hop},
    kernel::Balancer,
};
use lb_userspace::{
    model::{Admin, Health, Protocol, Scheduler},
    plan::{Image, WantedBackend, WantedService},
};
use std::{
    net::IpAddr,
    ops::{Deref, DerefMut},
};

/// Services of the world, by number: see [`protocol`].
pub const SERVICES: u8 = 8;
/// Backends a service may have at most; those of service `s` have the numbers `10 * s + 1` and following.
pub const BACKENDS: u8 = 6;

/// How large the world is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Slots of a ring.
    pub ring: u32,
    /// Flows of either family that find room in a table.
    pub room: u32,
    /// Backends a service begins with.
    pub backends: u8,
}

/// Which protocol a service has.
pub const fn protocol(service: u8) -> Protocol {
    match service {
        1 | 5 => Protocol::Udp,
        6 | 7 => Protocol::Quic,
        _ => Protocol::Tcp,
    }
}

/// How a service chooses.
pub const fn scheduler(service: u8) -> Scheduler {
    match service {
        2 => Scheduler::SourceIp,
        3 | 7 => Scheduler::RoundRobin,
        4 | 5 => Scheduler::LeastConnections,
        _ => Scheduler::Maglev,
    }
}

fn services(size: Size) -> Vec<WantedService> {
    let service = |number| {
        let backends = (1..=size.backends).map(|n| backend(10 * number + n)).collect();
        daemon::service(number, protocol(number), scheduler(number), size.ring, backends)
    };
    (0..SERVICES).map(service).collect()
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
    /// The service of the backend gets this scheduler, if it does not hash addresses alone.
    Schedule(Scheduler),
}

/// What a change meant for the flows of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// It takes no packets any more: its flows are lost.
    Died,
}

/// A daemon with these services.
pub struct World {
    daemon: Daemon,
    size: Size,
}

impl Deref for World {
    type Target = Daemon;
    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl World {
    pub fn new(size: Size) -> Self {
        let empty = Image::empty(u32::from(SERVICES) * size.ring + 64, 256);
        Self { daemon: Daemon::new(&empty, size.room, services(size)), size }
    }

    /// Another history on the same kernel.
    pub fn begin(&mut self) {
        self.daemon.begin(services(self.size));
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
        if let What::Schedule(scheduler) = what {
            let spec = &mut self.wanted[usize::from(n / 10)].spec;
            if spec.scheduler != Scheduler::SourceIp {
                spec.scheduler = scheduler;
            }
            self.converge(between);
            return ("and those beside it are scheduled anew", Effect::Nothing);
        }
        let backends = &mut self.daemon.wanted[usize::from(n / 10)].backends;
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
            What::Schedule(_) => unreachable!("of the service"),
        };
        let died = lived && !self.lives(n);
        self.converge(between);
        (name, if died { Effect::Died } else { Effect::Nothing })
    }

    /// Slots by state: plain, moving, tracked.
    pub fn states(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for slot in self.slots() {
            counts[slot.state() as usize] += 1;
        }
        counts
    }
}
