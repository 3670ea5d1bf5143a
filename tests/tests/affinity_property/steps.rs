//! Histories as values: sequences of steps that proptest makes, runs and shrinks.

use crate::{
    model::{Kind, Model},
    world::{BACKENDS, SERVICES, Size, What, World},
};
use lb_tests::{
    daemon::{Fault, IDLE, UNIT, send},
    kernel::Balancer,
};
use lb_userspace::model::Scheduler;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use std::cell::RefCell;

/// Flows of a small history: few enough that they meet each other's traces.
const FLOWS: usize = 24;

/// A packet of a flow.
#[derive(Debug, Clone, Copy)]
pub struct Say {
    flow: usize,
    kind: Kind,
}

/// One step of a history.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Packet(Say),
    /// A handshake without its last packet, and that one with data: what begins most connections.
    Open(usize),
    Forge(usize),
    /// A change of a backend; a packet comes after so many changes of the maps.
    Change {
        n: u8,
        what: What,
        midst: Option<(usize, Say)>,
    },
    /// Time passes; if told, all flows that would be silent for too long speak up before.
    Pass {
        units: u16,
        keep: bool,
    },
    Tend {
        midst: Option<(usize, Say)>,
    },
    Restart,
    /// So many first packets from elsewhere, to any service.
    Flood(u8),
}

fn say() -> impl Strategy<Value = Say> {
    let kind = prop_oneof![
        2 => Just(Kind::Syn),
        3 => Just(Kind::Ack),
        5 => Just(Kind::Data),
        1 => Just(Kind::Fin),
        1 => Just(Kind::Rst),
    ];
    (0..FLOWS, kind).prop_map(|(flow, kind)| Say { flow, kind })
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        2 => Just(What::Remove),
        4 => Just(What::Drain),
        4 => Just(What::Enable),
        1 => Just(What::Disable),
        3 => prop_oneof![Just(0_u16), Just(1), Just(10), Just(60)].prop_map(What::Weigh),
        2 => Just(What::Down),
        3 => Just(What::Up),
        1 => Just(What::LoseHop),
        2 => Just(What::FindHop),
        2 => prop_oneof![
            Just(Scheduler::Maglev), Just(Scheduler::RoundRobin), Just(Scheduler::LeastConnections)
        ].prop_map(What::Schedule),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let longest = (IDLE.as_nanos() / UNIT.as_nanos()) as u16;
    let midst = |most: usize| proptest::option::weighted(0.3, (0..most, say()));
    let backend = (0..SERVICES, 1..=BACKENDS).prop_map(|(service, n)| service * 10 + n);
    prop_oneof![
        30 => say().prop_map(Step::Packet),
        12 => (0..FLOWS).prop_map(Step::Open),
        3 => (0..FLOWS).prop_map(Step::Forge),
        22 => (backend, what(), midst(4)).prop_map(|(n, what, midst)| Step::Change { n, what, midst }),
        12 => (prop_oneof![1..4_u16, 1..longest + 10], any::<bool>()).prop_map(|(units, keep)| Step::Pass { units, keep }),
        16 => midst(5).prop_map(|midst| Step::Tend { midst }),
        2 => Just(Step::Restart),
        3 => (1..20_u8).prop_map(Step::Flood),
    ]
}

/// A world, what was promised in it, and what happened.
pub struct History {
    pub world: World,
    pub model: Model,
    log: Vec<String>,
    /// Names the strangers of floods.
    strangers: u32,
    /// States of slots that were met.
    states: [bool; 3],
}

impl History {
    pub fn new(size: Size, fault: Fault) -> Self {
        let mut world = World::new(size);
        world.fault = fault;
        Self { world, model: Model::new(FLOWS), log: Vec::new(), strangers: 0, states: [false; 3] }
    }

    /// Runs a history from the beginning; `Err` is its story and the promise it breaks.
    fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        self.world.begin();
        self.model.begin(FLOWS);
        self.log.clear();
        for step in steps {
            if let Err(broken) = self.step(*step) {
                let entries = self.world.kernel.entries();
                let half_open = self.world.kernel.half_open();
                let log = self.log.join("\n");
                return Err(format!(
                    "{log}\nBROKEN: {broken}\nflows: {entries:?}\nhandshakes: {half_open:?}"
                ));
            }
            for (met, count) in self.states.iter_mut().zip(self.world.states()) {
                *met |= count > 0;
            }
        }
        Ok(())
    }

    fn say(&mut self, say: Say) -> Result<(), String> {
        let line = self.model.packet(&mut self.world, say.flow, say.kind)?;
        self.log.push(line);
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Packet(say) => self.say(say)?,
            Step::Open(flow) => {
                self.say(Say { flow, kind: Kind::Syn })?;
                self.say(Say { flow, kind: Kind::Ack })?;
                self.say(Say { flow, kind: Kind::Data })?;
            }
            Step::Forge(flow) => {
                let line = self.model.forge(&mut self.world.kernel, flow);
                self.log.push(line);
            }
            Step::Change { n, what, midst } => {
                let (mut count, mut broken, mut lines) = (0, None, Vec::new());
                let now = self.world.now();
                let name = self.model.change(&mut self.world, n, what, &mut |model, kernel, dies| {
                    if let Some((at, say)) = midst
                        && at == count
                    {
                        let dying = dies.then_some(n);
                        match model.packet_between(kernel, now, say.flow, say.kind, dying) {
                            Ok(line) => lines.push(line),
                            Err(line) => broken = Some(line),
                        }
                    }
                    count += 1;
                });
                self.log.push(format!("backend {n}: {name} {what:?}"));
                self.log.append(&mut lines);
                broken.map_or(Ok(()), Err)?;
            }
            Step::Pass { units, keep } => {
                let then = self.world.now() + UNIT * u32::from(units);
                for flow in (0..FLOWS).filter(|_| keep) {
                    // A handshake goes on by an acknowledgement.
                    if self.model.would_be_late(flow, then) {
                        self.say(Say { flow, kind: Kind::Ack })?;
                    }
                }
                self.world.pass(units);
                self.log.push(format!("{:?} pass", UNIT * u32::from(units)));
            }
            Step::Tend { midst } => {
                let (mut count, mut broken, mut lines) = (0, None, Vec::new());
                let (model, now) = (&mut self.model, self.world.now());
                self.world.tend(&mut |kernel: &mut Balancer| {
                    if let Some((at, say)) = midst
                        && at == count
                    {
                        match model.packet_between(kernel, now, say.flow, say.kind, None) {
                            Ok(line) => lines.push(line),
                            Err(line) => broken = Some(line),
                        }
                    }
                    count += 1;
                });
                self.log.append(&mut lines);
                let [plain, moving, tracked] = self.world.states();
                self.log.push(format!("the daemon tends: {plain} plain, {moving} moving, {tracked} tracked"));
                broken.map_or(Ok(()), Err)?;
            }
            Step::Restart => {
                self.world.restart();
                self.log.push("the daemon starts again".into());
            }
            Step::Flood(count) => {
                for _ in 0..count {
                    self.strangers += 1;
                    let (service, v6) =
                        ((self.strangers % u32::from(SERVICES)) as u8, self.strangers.is_multiple_of(3));
                    let who = crate::model::Who { service, v6, client: 0x4_0000 + self.strangers };
                    let frame = self.model.frames.of(who, lb_tests::packets::SYN, self.strangers, false);
                    send(&mut self.world.kernel, &frame);
                }
                self.log.push(format!("{count} strangers send SYNs and datagrams"));
            }
        }
        Ok(())
    }
}

/// What many histories showed.
pub struct Verdict {
    pub history: History,
    /// The shortest history found that breaks the promise, and its story.
    pub broken: Option<(usize, String)>,
}

/// Leaves out what can be left out. Proptest tries each step once, from the first: one that is needed by another that goes
/// later stays, and where tables are full all steps have to do with each other.
fn shorten(history: &RefCell<History>, mut steps: Vec<Step>, mut story: String) -> (usize, String) {
    let mut count = steps.len();
    while count > 0 {
        let (before, mut at) = (steps.len(), 0);
        while at + count <= steps.len() {
            let rest = [&steps[..at], &steps[at + count..]].concat();
            match history.borrow_mut().run(&rest) {
                Err(shorter) => (steps, story) = (rest, shorter),
                Ok(()) => at += 1,
            }
        }
        // Once more with single steps, as long as that helps.
        if count > 1 || steps.len() == before {
            count /= 2;
        }
    }
    (steps.len(), story)
}

/// Tries so many histories. `LBD_SEED` begins elsewhere.
pub fn try_histories(size: Size, fault: Fault, count: u32) -> Verdict {
    let history = RefCell::new(History::new(size, fault));
    let config =
        Config { cases: count, failure_persistence: None, max_shrink_iters: 1_500, ..Config::default() };
    let seed = std::env::var("LBD_SEED").map_or(0x6c62_6432_u64, |text| text.parse().expect("a number"));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = proptest::test_runner::TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&proptest::collection::vec(step(), 1..100), |steps| {
        history.borrow_mut().run(&steps).map_err(TestCaseError::fail)
    });
    let broken = match result {
        Ok(()) => None,
        Err(TestError::Fail(story, steps)) => Some(shorten(&history, steps, story.message().to_owned())),
        Err(TestError::Abort(why)) => panic!("{why}"),
    };
    Verdict { history: history.into_inner(), broken }
}

/// Fails with a story, one line a step, if a history breaks the promise.
pub fn hold(size: Size, count: u32) {
    let verdict = try_histories(size, Fault::None, count);
    if let Some((steps, story)) = verdict.broken {
        panic!("a history of {steps} steps breaks the promise:\n{story}");
    }
    let score = verdict.history.model.score;
    eprintln!("{count} histories: {score:?}, {} refused", verdict.history.world.refused());
    assert_eq!(verdict.history.states, [true; 3], "plain, moving and tracked slots were met");
    assert!(score.kept > u64::from(count) * 8 && score.handshakes > u64::from(count) / 2, "{score:?}");
}
