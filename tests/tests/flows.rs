//! The promise of connection affinity, through the real program: once a packet other than a SYN has been forwarded, and
//! while the flow sends within every idle timeout and its backend is never declared down, none of its packets
//! reaches another backend. Services change at random; the daemon's own plan and its own care of the flow table
//! are applied to the kernel's maps. Needs root.

use lb_common::abi::{FlowEntry, Slot, SlotState};
use lb_tests::{
    kernel::{Balancer, Outcome, Verdict, client_address, tunnel, vip},
    packets::{ACK, FIN, Packet, RST, Rng, SYN},
};
use lb_userspace::{
    maglev,
    model::{
        Admin, BackendSpec, Forward, GuardSpec, Health, HealthSpec, PortSpec, Protocol, Scheduler,
        ServiceSpec,
    },
    plan::{
        self, CLOSING_LIFE, GRACE, HALF_OPEN_LIFE, Image, NextHopEntry, Tracking, Walk, WantedBackend,
        WantedService,
    },
};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Change it to try other histories: `LBD_SEED=7 cargo test -p lb-tests --test flows`.
const SEED: u64 = 0x6c62_6432;
const RING_SIZE: u32 = 13;
const ISN: u32 = 0x0102_0304;
const IDLE: Duration = Duration::from_secs(120);
const EMPTY: fn() -> Image = || Image::empty(128, 12);
/// The unit of an entry's clock.
const UNIT: Duration = Duration::from_nanos(1 << FlowEntry::SEEN_SHIFT);

fn seed() -> u64 {
    std::env::var("LBD_SEED").map_or(SEED, |text| text.parse().expect("LBD_SEED is a number"))
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
        next_hop: Some(NextHopEntry {
            ifindex: 7,
            dst_mac: [2, 0, 0, 0, 1, n],
            src_mac: [2, 0, 0, 0, 2, n],
            vlan: 0,
            mtu: 1500,
            source: None,
        }),
    }
}

fn service(number: u8, protocol: Protocol, backends: Vec<WantedBackend>) -> WantedService {
    WantedService {
        spec: ServiceSpec {
            name: format!("s{number}").parse().expect("a name"),
            addresses: vec![vip(1, false), vip(1, true)],
            port: PortSpec::Exact(80 + u16::from(number)),
            protocol,
            forward: Forward::Dsr,
            scheduler: Scheduler::Maglev,
            ring_size: Some(RING_SIZE),
            seed: u64::from(number),
            idle_timeout: IDLE,
            gue_port: 6080,
            snat: None,
            health: HealthSpec::default(),
            guard: GuardSpec::default(),
            quic: None,
            backends: Vec::new(),
        },
        ring_size: RING_SIZE,
        backends,
    }
}

/// The daemon, less its clocks and sockets: what it wants, what it knows, and the kernel.
struct Daemon {
    kernel: Balancer,
    image: Image,
    wanted: Vec<WantedService>,
    tracking: Tracking,
    rings: maglev::Cache,
    /// Its clock; the entries' clock is the kernel's, which [`Daemon::pass`] sets back instead.
    now: Instant,
    refused: u64,
}

impl Daemon {
    fn new(wanted: Vec<WantedService>, room: u32) -> Self {
        let now = Instant::now();
        let mut daemon = Self {
            kernel: Balancer::with_room(&EMPTY(), room),
            image: EMPTY(),
            wanted,
            tracking: Tracking::new(now),
            rings: maglev::Cache::default(),
            now,
            refused: 0,
        };
        daemon.converge();
        daemon
    }

    /// Another history on the same kernel.
    fn begin(&mut self, wanted: Vec<WantedService>) {
        self.kernel.set_image(&EMPTY());
        let (half_open, flows) = (self.kernel.half_open(), self.kernel.entries());
        self.kernel.forget_half_open(&half_open);
        self.kernel.forget(&flows);
        assert_eq!(self.kernel.entries().len() + self.kernel.half_open().len(), 0);
        self.image = EMPTY();
        self.wanted = wanted;
        self.restart();
        self.converge();
    }

    fn converge(&mut self) {
        let reserved = self.tracking.reserved();
        self.image.resting = self.tracking.resting(self.now);
        let goal = plan::build(&self.wanted, &self.image, &tunnel(), &reserved, &mut self.rings);
        // As a daemon that cannot grow its maps: everything stays as it is.
        let Ok(goal) = goal else { return };
        self.kernel.execute(&plan::diff(&self.image, &goal));
        self.tracking.note_changes(&self.image, &goal, self.now);
        self.image = goal;
    }

    /// A daemon that knows nothing but what the maps say.
    fn restart(&mut self) {
        self.image = self.kernel.observe();
        self.tracking = Tracking::new(self.now);
        self.refused = self.refused();
        self.walk();
    }

    fn walk(&mut self) -> Walk {
        let half_open = self.kernel.half_open();
        let walk = self.tracking.walk(&self.image, half_open, self.kernel.entries(), monotonic_ns());
        self.kernel.forget_half_open(&walk.half_over);
        self.kernel.forget(&walk.over);
        walk
    }

    fn refused(&self) -> u64 {
        self.kernel.counters(0).packets(lb_tests::kernel::Counter::FlowsRefused)
    }

    /// One round of care.
    fn tend(&mut self) {
        let refused = self.refused();
        if refused != self.refused {
            self.refused = refused;
            self.tracking.note_refused(self.now);
        }
        let settled = self.tracking.settle(&self.image, self.now);
        self.change(&settled);
        if self.tracking.is_busy(&self.image) {
            let walk = self.walk();
            let cleared = self.tracking.clear(&self.image, &walk, self.now);
            self.change(&cleared);
            self.tracking.walked(&walk, self.now);
        }
    }

    fn change(&mut self, actions: &[plan::Action]) {
        self.kernel.execute(actions);
        let before = self.image.clone();
        for action in actions {
            self.image.apply(action);
        }
        self.tracking.note_changes(&before, &self.image, self.now);
    }

    /// Time passes, in units of the entries' clock.
    fn pass(&mut self, units: u16) {
        self.kernel.age(units);
        self.now += UNIT * u32::from(units);
    }

    /// The number of the backend that gets the packet.
    fn send(&mut self, packet: &Packet) -> Option<u8> {
        let Outcome { verdict, frame } = self.kernel.run(&packet.build());
        match verdict {
            Verdict::Redirect => Some(frame[5]),
            Verdict::Drop => None,
            other => panic!("{other:?}"),
        }
    }

    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.image.rings.values().flatten().copied()
    }
}

fn monotonic_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}

fn tcp(v6: bool, client: u16, flags: u8, data: &[u8]) -> Packet {
    let packet = Packet::tcp((client_address(v6, client), 40_000).into(), (vip(1, v6), 80).into());
    packet.with(|p| {
        (p.tcp_mut().flags, p.tcp_mut().payload) = (flags, data.to_vec());
        // What follows a SYN is in the first window behind it.
        p.tcp_mut().seq = ISN + u32::from(flags & SYN == 0);
    })
}

fn udp(v6: bool, client: u16) -> Packet {
    Packet::udp((client_address(v6, client), 40_000).into(), (vip(1, v6), 81).into())
}

fn two_services() -> Vec<WantedService> {
    vec![
        service(0, Protocol::Tcp, (1..=3).map(backend).collect()),
        service(1, Protocol::Udp, (11..=13).map(backend).collect()),
    ]
}

/// One live flow of a history.
struct Flow {
    udp: bool,
    v6: bool,
    client: u16,
    backend: u8,
    /// A packet other than a SYN was forwarded: the promise holds.
    confirmed: bool,
    closing: bool,
    sent: Instant,
}

struct History {
    daemon: Daemon,
    rng: Rng,
    flows: Vec<Flow>,
    clients: u16,
    log: Vec<String>,
    promises_kept: u64,
}

impl History {
    fn begin(&mut self) {
        self.daemon.begin(two_services());
        self.flows.clear();
        self.log.clear();
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            match self.rng.below(100) {
                0..22 => self.open(),
                22..58 => self.packet(),
                58..76 => self.change_a_backend(),
                76..86 => self.pass(),
                86..97 => {
                    self.log.push("tend".into());
                    self.daemon.tend();
                }
                _ => {
                    self.log.push("restart".into());
                    self.daemon.restart();
                }
            }
        }
    }

    fn open(&mut self) {
        self.clients += 1;
        let (udp_flow, v6, client) = (self.rng.percent(30), self.rng.percent(30), self.clients);
        let first = if udp_flow { udp(v6, client) } else { tcp(v6, client, SYN, b"") };
        if let Some(backend) = self.daemon.send(&first) {
            self.log.push(format!("open {client} (udp {udp_flow}, v6 {v6}) at {backend}"));
            let sent = self.daemon.now;
            let confirmed = udp_flow;
            self.flows.push(Flow { udp: udp_flow, v6, client, backend, confirmed, closing: false, sent });
        }
    }

    fn packet(&mut self) {
        if self.flows.is_empty() {
            return;
        }
        let at = self.rng.below(self.flows.len());
        self.packet_of(at);
    }

    fn packet_of(&mut self, at: usize) {
        let (closes, data) = (self.rng.percent(8), self.rng.percent(60));
        let flow = &mut self.flows[at];
        let packet = match (flow.udp, closes, data) {
            (true, ..) => udp(flow.v6, flow.client),
            (false, true, _) if flow.confirmed => {
                flow.closing = true;
                tcp(flow.v6, flow.client, [FIN | ACK, RST][usize::from(data)], b"")
            }
            (false, _, false) => tcp(flow.v6, flow.client, ACK, b""),
            (false, _, true) => {
                flow.closing = false;
                tcp(flow.v6, flow.client, ACK, b"data")
            }
        };
        // A FIN or RST alone is no sign of life: it is not recorded on a tracked slot.
        if flow.udp || !flow.closing {
            flow.sent = self.daemon.now;
        }
        let found = self.daemon.send(&packet);
        self.log.push(format!("packet of {} to {found:?} (closing {})", flow.client, flow.closing));
        match found {
            Some(found) if found == flow.backend => self.promises_kept += u64::from(flow.confirmed),
            // No next hop at the moment: nobody else gets it.
            None => return,
            Some(found) => panic!(
                "flow {} of backend {} reached {found}\nslots: {:?}\nentries: {:?}\n{}",
                flow.client,
                flow.backend,
                self.daemon.slots().collect::<Vec<_>>(),
                self.daemon.kernel.entries(),
                self.log.join("\n")
            ),
        }
        flow.confirmed = true;
    }

    /// Time passes. Flows that may not be silent for so long send a packet before.
    fn pass(&mut self) {
        let longest = (IDLE.as_nanos() / UNIT.as_nanos()) as usize;
        let units =
            if self.rng.percent(50) { 1 + self.rng.below(4) } else { 1 + self.rng.below(longest - 1) };
        let then = self.daemon.now + UNIT * units as u32;
        let mut at = 0;
        while at < self.flows.len() {
            let flow = &self.flows[at];
            let life = match (flow.confirmed, flow.closing) {
                (false, _) => HALF_OPEN_LIFE,
                (true, true) => CLOSING_LIFE,
                (true, false) => IDLE,
            };
            // The clock of entries may be a unit ahead.
            let life = life - UNIT;
            if then - flow.sent < life {
                at += 1;
            } else if then - self.daemon.now < life && self.rng.percent(80) {
                let closing = flow.closing;
                self.packet_of(at);
                // It may have become one that must not be silent for so long.
                if closing || !self.flows[at].closing {
                    at += 1;
                } else {
                    self.flows.swap_remove(at);
                }
            } else {
                self.flows.swap_remove(at);
            }
        }
        self.log.push(format!("{units} units pass"));
        self.daemon.pass(units as u16);
    }

    fn change_a_backend(&mut self) {
        let number = self.rng.below(2);
        let service = &mut self.daemon.wanted[number];
        let n = (1 + self.rng.below(5) + 10 * number) as u8;
        let Some(at) = service.backends.iter().position(|b| b.spec.name.as_str() == format!("web{n}")) else {
            self.log.push(format!("add {n}"));
            service.backends.push(backend(n));
            self.daemon.converge();
            return;
        };
        let what = self.rng.below(7);
        let wanted = &mut service.backends[at];
        match what {
            0 => wanted.admin = Admin::Draining,
            1 | 2 => (wanted.admin, wanted.health) = (Admin::Enabled, Health::Up),
            3 => wanted.spec.weight = [0, 1, 10, 40][self.rng.below(4)],
            4 => wanted.health = Health::Down,
            5 => {
                wanted.next_hop = match wanted.next_hop {
                    Some(_) => None,
                    None => backend(n).next_hop,
                }
            }
            _ => _ = service.backends.remove(at),
        }
        self.log.push(format!("change {what} of {n}"));
        self.daemon.converge();
        if matches!(what, 4 | 6) {
            self.flows.retain(|flow| flow.backend != n);
        }
    }
}

/// What each history tries, and how often the promise was put to the test.
fn histories(room: u32, count: u64) {
    let mut history = History {
        daemon: Daemon::new(two_services(), room),
        rng: Rng::new(seed()),
        flows: Vec::new(),
        clients: 0,
        log: Vec::new(),
        promises_kept: 0,
    };
    let mut states = BTreeSet::new();
    for _ in 0..count {
        history.begin();
        for _ in 0..8 {
            history.steps(20);
            states.extend(history.daemon.slots().map(|slot| slot.state() as u8));
        }
    }
    assert_eq!(states.len(), 3, "plain, moving and tracked slots were met");
    assert!(history.promises_kept > count * 20, "{} packets tried the promise", history.promises_kept);
}

#[test]
fn no_packet_of_a_living_flow_reaches_another_backend() {
    histories(1024, 150);
}

#[test]
fn a_full_table_delays_changes_and_breaks_nothing() {
    histories(3, 150);
}

/// A daemon over one TCP service whose slots all move from backend 1 to backend 2.
fn moving(room: u32) -> Daemon {
    let mut daemon = Daemon::new(vec![service(0, Protocol::Tcp, vec![backend(1)])], room);
    daemon.wanted[0].backends.push(backend(2));
    daemon.wanted[0].backends[0].admin = Admin::Draining;
    daemon.converge();
    assert!(daemon.slots().all(|slot| slot.state() == SlotState::Moving));
    daemon
}

/// The last packet of a connection that the client closes is an acknowledgement: it must not give the entry of a
/// connection that is over another idle timeout to live.
#[test]
fn closed_connections_are_soon_forgotten() {
    let mut daemon = moving(64);
    for v6 in [false, true] {
        for (flags, data) in [(SYN, &b""[..]), (ACK, b""), (ACK, b"request"), (FIN | ACK, b""), (ACK, b"")] {
            assert_eq!(daemon.send(&tcp(v6, 1, flags, data)), Some(2));
        }
    }
    let closing = |daemon: &Daemon| daemon.kernel.entries().iter().filter(|(_, e)| e.is_closing()).count();
    assert_eq!(closing(&daemon), 2);
    assert_eq!(daemon.send(&tcp(false, 1, ACK, b"more")), Some(2));
    assert_eq!(closing(&daemon), 1, "data brings a connection back");
    daemon.pass((CLOSING_LIFE.as_secs() / 2 + 1) as u16);
    daemon.tend();
    let left = daemon.kernel.entries();
    assert!(left.len() == 1 && !left[0].1.is_closing(), "{left:?}");
}

#[test]
fn with_nobody_to_succeed_a_closing_flow_keeps_its_entry() {
    let mut daemon = moving(64);
    assert_eq!(daemon.send(&tcp(false, 1, ACK, b"data")), Some(1));
    assert_eq!(daemon.send(&tcp(false, 1, FIN | ACK, b"")), Some(1));
    daemon.wanted[0].backends[1].admin = Admin::Draining;
    daemon.converge();
    let before = daemon.kernel.flows();
    assert_eq!(daemon.send(&tcp(false, 1, SYN, b"")), None, "all are draining");
    assert_eq!(daemon.kernel.flows(), before);
    assert_eq!(daemon.send(&tcp(false, 1, ACK, b"data")), Some(1));
}

#[test]
fn a_full_table_sends_a_syn_home_and_settles_later() {
    let mut daemon = moving(1);
    assert_eq!(daemon.send(&tcp(false, 1, SYN, b"")), Some(2));
    assert_eq!(daemon.refused(), 0);
    assert_eq!(daemon.send(&tcp(false, 2, SYN, b"")), Some(1), "no room: home");
    assert_eq!(daemon.refused(), 1);
    daemon.tend();
    daemon.pass((IDLE.as_secs() / 2) as u16);
    assert_eq!(daemon.send(&tcp(false, 1, ACK, b"data")), Some(2));
    assert_eq!(daemon.send(&tcp(false, 2, ACK, b"data")), Some(1));
    // A minute more than the idle timeout since the change, but not since the last flow found no room.
    daemon.pass(30);
    daemon.tend();
    assert!(daemon.slots().all(|slot| slot.state() == SlotState::Moving));
    assert_eq!(daemon.send(&tcp(false, 2, ACK, b"data")), Some(1));
}

/// What was freed is not given out while entries name it, not even by a daemon that did not free it.
#[test]
fn the_id_of_a_removed_backend_brings_no_flow_to_a_stranger() {
    for restarted in [false, true] {
        let mut daemon = moving(64);
        assert_eq!(daemon.send(&tcp(false, 1, SYN, b"")), Some(2));
        assert_eq!(daemon.send(&tcp(false, 1, ACK, b"data")), Some(2));
        let id = daemon.kernel.entries()[0].1.backend();
        daemon.wanted[0].backends.truncate(1);
        daemon.wanted[0].backends[0].admin = Admin::Enabled;
        daemon.converge();
        if restarted {
            daemon.restart();
            assert_eq!(daemon.kernel.entries().len(), 0);
        } else {
            assert!(daemon.tracking.reserved().contains(&id));
        }
        daemon.wanted[0].backends.push(backend(3));
        daemon.converge();
        assert_eq!(daemon.image.backends.contains_key(&id), restarted, "the id is free again");
        assert_eq!(daemon.send(&tcp(false, 1, ACK, b"data")), Some(1), "it goes home");
        daemon.pass((GRACE.as_secs() + 1) as u16);
        daemon.tend();
        assert!(daemon.tracking.reserved().is_empty());
    }
}
