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
    judge::missing,
    router::Router,
};
use crate::{
    link::wire::Role,
    model::{VrrpName, VrrpSpec},
};
use std::{
    collections::BTreeSet,
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
    Configure(Vec<Arc<VrrpSpec>>),
    /// What else is missing on this node: a cause, and what it takes off the priority; 0 is a fault.
    Track(Vec<Missing>),
    Failover(VrrpName, Handed),
    /// Of one instance or of all.
    Hold {
        name: Option<VrrpName>,
        on: bool,
        reply: oneshot::Sender<Result<(), RequestError>>,
    },
    /// See [`super::super::Vrrp::peer_alive`].
    PeerAlive(bool),
    PeerMaster(VrrpName, IpAddr),
    Claimed(Claim),
    Word(Word),
    /// Every router is to be handed over that can be.
    LeaveAll(mpsc::SyncSender<()>),
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
            Request::Configure(specs) => self.configure(&specs, now),
            Request::Track(missing) => {
                self.missing = missing;
                self.examine(0);
            }
            Request::Failover(name, reply) => self.failover(&name, reply, now),
            Request::Word(word) => self.word(word, now),
            Request::LeaveAll(done) => self.leave_all(done, now),
            Request::Hold { name, on, reply } => {
                let _ = reply.send(self.hold(name, on, now));
            }
            Request::PeerAlive(alive) => self.peer_alive(alive, now),
            Request::PeerMaster(name, source) => self.peer_is_master(&name, source, now),
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
        let chosen = |router: &Router| name.as_ref().is_none_or(|name| router.spec.name == *name);
        let chosen: Vec<usize> = (0..self.routers.len()).filter(|at| chosen(&self.routers[*at])).collect();
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

    fn configure(&mut self, specs: &[Arc<VrrpSpec>], now: Moment) {
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
                None => self.routers.push(Router::new(Arc::clone(spec), self.charge)),
            }
        }
        let routers = self.routers.iter().map(|r| (Arc::clone(&r.spec), Arc::clone(&r.order))).collect();
        self.desk.charge(Charge { number: self.charge, routers });
        self.keeper.wake();
        self.changed = true;
    }

    /// What is missing, and what that does to each router. `charge`: of the interfaces that have just come.
    fn examine(&mut self, charge: u64) {
        let now = clock();
        for at in 0..self.routers.len() {
            let router = &mut self.routers[at];
            let starts = router.starts_with.is_some_and(|number| number <= charge);
            if router.starts_with.is_some() && !starts {
                continue;
            }
            let (faults, weight) = missing(&router.spec, &self.interfaces, &self.missing);
            let failed = faults.iter().any(|missing| missing.weight == 0);
            let texts: Vec<String> = faults.into_iter().map(|missing| missing.cause).collect();
            if texts != router.faults {
                let name = router.spec.name.clone();
                self.notices.send(Notice::Faults { name, faults: texts.clone() });
                router.faults = texts;
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
