//! Large histories: a hundred thousand flows, under a flood, on two CPUs.

use crate::{
    model::{Kind, Model, Who},
    world::{BACKENDS, SERVICES, Size, What, World},
};
use lb_tests::{
    daemon::{IDLE, UNIT, send},
    kernel::{Flood, Runner, Verdict},
    packets::{Rng, SYN},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    sync::{
        RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The calling thread runs on this CPU from now on, or on the only one there is.
fn pin(cpu: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(cpu % cpus.max(1)).expect("a CPU");
    // Where this process may not use it, everything happens on others.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

pub struct Big {
    world: World,
    model: Model,
    rng: Rng,
    sent: u64,
    changes: u32,
    states: [usize; 3],
}

impl Big {
    pub fn new(size: Size, flows: usize, seed: u64) -> Self {
        Self {
            world: World::new(size),
            model: Model::new(flows),
            rng: Rng::new(seed),
            sent: 0,
            changes: 0,
            states: [0; 3],
        }
    }

    fn say(&mut self, at: usize, kind: Kind) {
        self.sent += 1;
        // Every flow meets both CPUs.
        if self.sent.is_multiple_of(64) {
            pin(self.rng.below(2));
        }
        if let Err(broken) = self.model.packet(&mut self.world, at, kind) {
            let [plain, moving, tracked] = self.world.states();
            panic!(
                "after {} packets and {} changes: {broken} ({plain} slots plain, {moving} moving, {tracked} tracked)",
                self.sent, self.changes
            );
        }
    }

    /// What a flow says next, as flows do.
    fn go_on(&mut self, at: usize) {
        if self.model.is_opening(at) {
            // Most SYNs are sent once.
            let kind = if self.rng.percent(5) { Kind::Syn } else { Kind::Ack };
            return self.say(at, kind);
        }
        if !self.model.is_promised(at) || self.model.is_closing(at) && self.rng.percent(50) {
            self.say(at, Kind::Syn);
            if self.rng.percent(80) {
                self.say(at, Kind::Ack);
                self.say(at, Kind::Data);
            }
            return;
        }
        let kind = match self.rng.below(100) {
            0..75 => Kind::Data,
            75..94 => Kind::Ack,
            94..98 => Kind::Fin,
            _ => Kind::Rst,
        };
        self.say(at, kind);
    }

    fn change_a_backend(&mut self) {
        let n = (self.rng.below(SERVICES.into()) * 10 + 1 + self.rng.below(BACKENDS.into())) as u8;
        let what = match self.rng.below(20) {
            0..5 => What::Drain,
            5..10 => What::Enable,
            10..14 => What::Weigh(self.rng.pick(&[1, 10, 40])),
            14..16 => What::Down,
            16..18 => What::Up,
            18 => What::Disable,
            _ => What::Remove,
        };
        self.changes += 1;
        self.model.change(&mut self.world, n, what, &mut |_, _, _| {});
    }

    /// Time passes; most flows that would be silent for too long speak up before, the others are let go.
    fn pass(&mut self, units: u16, loyal: usize) {
        let then = self.world.now() + UNIT * u32::from(units) + Duration::from_secs(2);
        for at in 0..self.model.len() {
            if self.model.would_be_late(at, then) && self.rng.percent(loyal) {
                self.say(at, Kind::Ack);
            }
        }
        self.world.pass(units);
    }

    /// A round in the life of all flows.
    pub fn round(&mut self, share: usize) {
        for at in 0..self.model.len() {
            if self.rng.percent(share) {
                self.go_on(at);
            }
        }
        for _ in 0..2 + self.rng.below(3) {
            self.change_a_backend();
        }
        for _ in 0..self.model.len() / 1000 {
            let at = self.rng.below(self.model.len());
            self.model.forge(&mut self.world.kernel, at);
        }
        let units = 1 + self.rng.below(20) as u16;
        self.pass(units, 95);
        self.world.tend(&mut |_| {});
        if self.rng.percent(10) {
            self.world.restart();
        }
        for (most, now) in self.states.iter_mut().zip(self.world.states()) {
            *most = (*most).max(now);
        }
    }

    /// Nothing changes any more and nobody speaks: every slot becomes plain and nothing is left in the tables.
    pub fn come_to_rest(&mut self) {
        for service in 0..SERVICES {
            self.model.change(&mut self.world, service * 10 + 1, What::Up, &mut |_, _, _| {});
            self.model.change(&mut self.world, service * 10 + 1, What::Enable, &mut |_, _, _| {});
        }
        for _ in 0..12 {
            self.world.tend(&mut |_| {});
            self.world.pass((IDLE.as_nanos() / UNIT.as_nanos() / 3) as u16);
        }
        self.world.tend(&mut |_| {});
        assert_eq!(self.world.states()[1..], [0, 0], "slots settle and clear at last");
        assert_eq!(self.world.tracked(), 0, "and nothing is left in the tables");
    }

    pub fn report(&self, what: &str, begun: Instant) {
        let [plain, moving, tracked] = self.states;
        eprintln!(
            "{what}: {} flows, {} changes of backends, {:?}; slots at most: {plain} plain, {moving} moving, {tracked} \
             tracked; {} flows found no room; {:.1?}",
            self.model.len(),
            self.changes,
            self.model.score,
            self.world.refused(),
            begun.elapsed()
        );
    }
}

/// `flows` flows through `rounds` rounds of changes.
pub fn many_flows(size: Size, flows: usize, rounds: usize, seed: u64) {
    let begun = Instant::now();
    let mut big = Big::new(size, flows, seed);
    for round in 0..rounds {
        big.round(if round == 0 { 100 } else { 30 });
    }
    big.report("many flows", begun);
    let score = big.model.score;
    assert!(score.kept as usize > flows && score.handshakes as usize > flows / 4, "{score:?}");
    big.come_to_rest();
}

/// The same with so many SYNs of as many sources in between.
pub fn under_a_flood(size: Size, flows: usize, rounds: usize, syns: u32, seed: u64) {
    let begun = Instant::now();
    let mut big = Big::new(size, flows, seed);
    big.round(100);
    let mut flood: Flood = big.world.kernel.flood();
    let mut poured = 0;
    for round in 0..rounds {
        let share = syns / rounds as u32;
        // Before the flows speak and after; datagrams take room among the confirmed flows as well.
        let targets = [(0, false), (2, true), (3, false), (4, true), (5, false), (7, true)];
        for (service, v6) in targets {
            let frame = big.model.frames.of(Who { service, v6, client: 0 }, SYN, 7, false);
            let verdict = flood.pour(&frame, share / targets.len() as u32);
            assert!(matches!(verdict, Verdict::Redirect | Verdict::Drop), "{verdict:?}");
            poured += share / targets.len() as u32;
            if service % 3 == 0 {
                for _ in 0..flows / 10 {
                    let at = big.rng.below(flows);
                    big.go_on(at);
                }
            }
        }
        big.round(if round % 2 == 0 { 20 } else { 5 });
    }
    let refused = big.world.refused();
    big.report(&format!("under {poured} SYNs"), begun);
    assert!(poured >= syns / 100 * 99 && refused > 10_000, "{refused} refused of {poured}");
    let score = big.model.score;
    assert!(score.kept as usize > flows && score.handshakes as usize > flows / 4, "{score:?}");
    big.come_to_rest();
}

/// Two CPUs handle packets of the same flows at the same time while backends change. A flow that is established never leaves
/// its backend, even so; the packets of one that begins go to the slot's owner, its home or the recorded backend.
pub fn on_two_cpus(flows: usize, seconds: u64) {
    let size = Size { ring: 31, room: 1 << 16, backends: 4 };
    let mut world = World::new(size);
    let mut model = Model::new(flows);
    let mut homes = Vec::new();
    for at in 0..flows {
        model.packet(&mut world, at, Kind::Syn).expect("a SYN");
        let frame = model.frames.of(Who::number(at), lb_tests::packets::ACK, 0, true);
        homes.push(send(&mut world.kernel, &frame).expect("a backend"));
    }
    let frames: Vec<Vec<u8>> =
        (0..flows).map(|at| model.frames.of(Who::number(at), lb_tests::packets::ACK, 0, true)).collect();
    let (stop, gate) = (AtomicBool::new(false), RwLock::new(()));
    let (sent, strays) = (AtomicU64::new(0), AtomicU64::new(0));
    let hammer = |cpu: usize, mut runner: Runner| {
        pin(cpu);
        let mut rng = Rng::new(cpu as u64 + 1);
        while !stop.load(Ordering::Relaxed) {
            // Time passes only between packets: the test makes entries older by writing them.
            let _open = gate.read().expect("a lock");
            // Both CPUs go through the flows in step, now and then elsewhere.
            let start = rng.below(flows);
            for at in start..(start + 256).min(flows) {
                let outcome = runner.run(&frames[at]);
                sent.fetch_add(1, Ordering::Relaxed);
                if outcome.verdict != Verdict::Redirect || outcome.frame[5] != homes[at] {
                    strays.fetch_add(1, Ordering::Relaxed);
                    eprintln!(
                        "{} of backend {}: {:?}, {}",
                        Who::number(at),
                        homes[at],
                        outcome.verdict,
                        outcome.frame[5]
                    );
                    return;
                }
            }
        }
    };
    let mut changes = 0;
    let mut met = [0; 3];
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let runner = world.kernel.runner();
            scope.spawn(move || hammer(cpu, runner));
        }
        let mut rng = Rng::new(99);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(seconds) && strays.load(Ordering::Relaxed) == 0 {
            for _ in 0..3 {
                let n = (rng.below(SERVICES.into()) * 10 + 1 + rng.below(BACKENDS.into())) as u8;
                let what = [What::Drain, What::Enable, What::Weigh(1), What::Weigh(40)][rng.below(4)];
                world.change_backend(n, what, &mut |_| {});
                changes += 1;
            }
            world.tend(&mut |_| {});
            // Each flow speaks before the next step of time: a third of the idle timeout.
            for (at, frame) in frames.iter().enumerate() {
                let found = send(&mut world.kernel, frame);
                assert_eq!(found, Some(homes[at]), "{}", Who::number(at));
            }
            {
                let _shut = gate.write().expect("a lock");
                world.pass(18);
            }
            world.tend(&mut |_| {});
            for (most, now) in met.iter_mut().zip(world.states()) {
                *most = now.max(*most);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let sent = sent.into_inner();
    eprintln!("two CPUs: {flows} flows, {sent} packets, {changes} changes, slots at most {met:?}");
    assert_eq!(strays.into_inner(), 0, "packets of established flows reached strangers");
    assert!(sent > flows as u64 * 10 && changes > 30 && met.iter().all(|n| *n > 0));
}
