//! What the heartbeat is told by the daemon and the keeper.

use super::{
    super::{
        fsm::{Action, Event, Params, Phase},
        keeper::{Charge, Interfaces},
        notice::Notice,
        peer::Word,
        timing::Moment,
        wake::{Waker, clock},
    },
    Claim, Heartbeat, Missing,
    agree::Handed,
    judge::{effect, missing, together},
    router::Router,
};
use crate::{
    link::wire::Role,
    model::{VrrpName, VrrpSpec},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, mpsc},
};
use tokio::sync::oneshot;

/// What the threads are told.
#[derive(Debug)]
pub(in super::super) enum Input {
    /// By the keeper: which charge they are of, and all that it watches.
    Interfaces(u64, Interfaces),
    /// By the keeper: the addresses of a router are on the interface, and announced.
    Acquired(VrrpName),
    Order(Request),
}

/// What the daemon wants.
#[derive(Debug)]
pub(in super::super) enum Request {
    /// And which of them the operator holds.
    Configure(Vec<Arc<VrrpSpec>>, BTreeSet<VrrpName>),
    /// What else is missing on this node, for each of them.
    Track(BTreeMap<VrrpName, Vec<Missing>>),
    /// A session of a faster detector came up or went down.
    Session {
        name: VrrpName,
        peer: IpAddr,
        up: bool,
    },
    Failover(VrrpName, Handed),
    /// Of one instance or of all.
    Hold {
        name: Option<VrrpName>,
        on: bool,
        reply: oneshot::Sender<Result<(), RequestError>>,
    },
    Word(Word),
    /// Every router is to be handed over that can be.
    LeaveAll(mpsc::SyncSender<()>),
    /// See [`super::super::Vrrp::peer_alive`].
    PeerAlive(bool),
    /// With the peer's address on the link, and its priority.
    PeerMaster(VrrpName, (IpAddr, u8)),
    Claimed(Claim),
    Stop,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("no VRRP instance '{0}'")]
    NoInstance(VrrpName),
    #[error("VRRP instance '{name}' is {}, not master: hand over on the node that is", phase.name())]
    NotMaster { name: VrrpName, phase: Phase },
    #[error("the VRRP thread has ended; its log tells why; restart lbd")]
    Ended,
    #[error("the VRRP thread does not keep up; try again")]
    Busy,
}

/// The way to the heartbeat.
#[derive(Debug, Clone)]
pub(in super::super) struct Inbox {
    pub queue: mpsc::SyncSender<Input>,
    pub waker: Waker,
}

impl Inbox {
    pub(in super::super) fn send(&self, request: Request) -> Result<(), RequestError> {
        self.queue.try_send(Input::Order(request)).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => RequestError::Busy,
            mpsc::TrySendError::Disconnected(_) => RequestError::Ended,
        })?;
        self.waker.wake();
        Ok(())
    }

    /// For the keeper, which may wait.
    pub(in super::super) fn send_waiting(&self, input: Input) {
        self.waker.wake();
        // Gone: the keeper is about to be stopped.
        let _ = self.queue.send(input);
        self.waker.wake();
    }
}

impl Heartbeat {
    pub(super) fn read_inbox(&mut self) {
        while let Ok(input) = self.inbox.try_recv() {
            match input {
                Input::Interfaces(charge, interfaces) => {
                    self.interfaces = interfaces;
                    self.examine(charge);
                    self.changed = true;
                }
                Input::Acquired(name) => self.step_one(&name, Event::Acquired, clock()),
                Input::Order(request) => self.request(request),
            }
        }
    }

    fn request(&mut self, request: Request) {
        let now = clock();
        match request {
            Request::Configure(specs, held) => self.configure(&specs, &held, now),
            Request::Track(missing) => {
                self.missing = missing;
                self.examine(0);
            }
            Request::Session { name, peer, up: false } => self.unreachable(&name, peer, now),
            // A peer that is there is heard by its advertisements.
            Request::Session { up: true, .. } => {}
            Request::Failover(name, reply) => self.failover(&name, reply, now),
            Request::Word(word) => self.word(word, now),
            Request::LeaveAll(done) => self.leave_all(done, now),
            Request::Hold { name, on, reply } => {
                let _ = reply.send(self.hold(name, on, now));
            }
            Request::PeerAlive(alive) => self.peer_alive(alive, now),
            Request::PeerMaster(name, peer) => self.peer_is_master(&name, peer, now),
            Request::Claimed(claim) => self.claimed(claim, now),
            Request::Stop => {
                for at in 0..self.routers.len() {
                    self.step(at, Event::Stop, now);
                }
                self.publish();
                self.stopping = true;
            }
        }
    }

    fn hold(&mut self, name: Option<VrrpName>, on: bool, now: Moment) -> Result<(), RequestError> {
        let chosen = |at: &usize| {
            let mut members = self.members(*at).into_iter();
            name.as_ref().is_none_or(|name| members.any(|at| self.routers[at].spec.name == *name))
        };
        let chosen: Vec<usize> = (0..self.routers.len()).filter(chosen).collect();
        if let (Some(name), []) = (name, chosen.as_slice()) {
            return Err(RequestError::NoInstance(name));
        }
        for at in chosen {
            // A second "hold" is no second farewell, a second "off" no new wait.
            if self.routers[at].machine.held != on {
                if on && self.routers[at].machine.phase() == Phase::Master && self.reaches(Role::TakeOver, at)
                {
                    self.routers[at].machine.held = true;
                    self.step(at, Event::MakeWay, now);
                } else {
                    self.step(at, if on { Event::Hold } else { Event::Release }, now);
                }
                self.changed = true;
            }
        }
        Ok(())
    }

    /// The node of that address is gone, says the session.
    fn unreachable(&mut self, session: &VrrpName, peer: IpAddr, now: Moment) {
        for at in 0..self.routers.len() {
            let router = &self.routers[at];
            if router.spec.track.bfd.contains(session) && router.hears(peer) {
                self.step(at, Event::MasterLost, now);
            }
        }
    }

    fn configure(&mut self, specs: &[Arc<VrrpSpec>], held: &BTreeSet<VrrpName>, now: Moment) {
        self.charge += 1;
        let kept: BTreeSet<&VrrpName> = specs.iter().map(|spec| &spec.name).collect();
        for at in 0..self.routers.len() {
            let spec = specs.iter().find(|spec| spec.name == self.routers[at].spec.name);
            if spec.is_none_or(|spec| !self.routers[at].continues(spec)) {
                self.step(at, Event::Stop, now);
            }
        }
        self.routers.retain(|router| kept.contains(&router.spec.name));
        for spec in specs {
            let at = self.routers.iter().position(|router| router.spec.name == spec.name);
            match at {
                Some(at) if self.routers[at].continues(spec) => {
                    let mut actions = Vec::new();
                    let router = &mut self.routers[at];
                    router.spec = Arc::clone(spec);
                    router.machine.configure(Params::from(&**spec), now, &mut actions);
                    // Added addresses are put on, and announced with the others.
                    if router.machine.phase() == Phase::Master {
                        actions.push(Action::Announce);
                    }
                    self.act(at, actions, now, None);
                }
                Some(at) => {
                    let held = self.routers[at].machine.held;
                    let counters = Arc::clone(&self.routers[at].counters);
                    self.routers[at] = Router { counters, ..Router::new(Arc::clone(spec), self.charge) };
                    self.routers[at].machine.held = held;
                }
                None => {
                    let mut router = Router::new(Arc::clone(spec), self.charge);
                    router.machine.held = held.contains(&spec.name);
                    self.routers.push(router);
                }
            }
        }
        self.set_gates(now);
        let routers = self.routers.iter().map(|r| (Arc::clone(&r.spec), Arc::clone(&r.order))).collect();
        self.desk.charge(Charge { number: self.charge, routers });
        self.keeper.wake();
        self.changed = true;
    }

    /// What is missing, and what that does to each router. `charge`: of the interfaces that have just come.
    fn examine(&mut self, charge: u64) {
        let now = clock();
        let waits = |router: &Router| router.starts_with.is_some_and(|number| number > charge);
        let look = |router: &Router| {
            let others = self.missing.get(&router.spec.name).map_or(&[][..], Vec::as_slice);
            // What it waits for is not known yet, and no fault.
            if waits(router) { Vec::new() } else { missing(&router.spec, &self.interfaces, others) }
        };
        let each: Vec<Vec<Missing>> = self.routers.iter().map(look).collect();
        for at in 0..self.routers.len() {
            let members = self.members(at);
            let router = &mut self.routers[at];
            let starts = router.starts_with.is_some_and(|number| number <= charge);
            if router.starts_with.is_some() && !starts {
                continue;
            }
            let found = together(members.into_iter().map(|at| each[at].as_slice()));
            let (failed, weight) = effect(&found);
            if found != router.missing {
                let name = router.spec.name.clone();
                let faults = found.iter().map(|missing| missing.cause.clone()).collect();
                self.notices.send(Notice::Faults { name, faults });
                router.missing = found;
                self.changed = true;
            }
            let (before, was_failed) = (router.machine.weight, router.machine.failed);
            if weight != before {
                self.step(at, Event::Weight(weight), now);
                self.changed = true;
            }
            if failed != was_failed {
                self.step(at, if failed { Event::Fail } else { Event::Recover }, now);
            }
            if starts {
                self.routers[at].starts_with = None;
                self.step(at, Event::Start, now);
            }
        }
    }
}
