//! The heartbeat: the thread that sends and judges advertisements.
//!
//! One loop: wait for packets, for words of the daemon or the keeper, or for the next deadline; read what came; then
//! look at the timers. In that order: a thread that was kept from running finds the packets of a living master in its
//! sockets, and must not call it dead before it has read them. Nothing in here waits for anybody else: it neither
//! logs, nor asks netlink, nor takes a lock that is held for long.

mod judge;

use super::{
    fsm::{Action, Cause, Event, Heard, Machine, Params, Phase},
    keeper::{Charge, Desk, Interface, Interfaces, Order, Wish},
    notice::{Notice, Notices},
    packet::{self, Advert, ChecksumForm, Datagram, Expect, HOP_LIMIT, Refusal},
    socket::{Arrived, Port},
    timing::Moment,
    view::{Counters, Refused, RouterView},
    wake::{Alarm, Waker, clock},
};
use crate::model::{Family, OWNER_PRIORITY, VrrpName, VrrpSpec};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::{Duration, SystemTime},
};
use tokio::sync::{oneshot, watch};

pub use judge::Missing;
use judge::{mismatch, missing};

/// Packets read from one socket before the others and the timers have their turn.
const BATCH: usize = 64;
/// One notice of a kind in this time.
const NOTICE_PERIOD: Duration = Duration::from_secs(10);

/// What the threads are told.
#[derive(Debug)]
pub(super) enum Input {
    /// By the keeper: which charge they are of, and all that it watches.
    Interfaces(u64, Interfaces),
    Order(Request),
}

/// What the daemon wants.
#[derive(Debug)]
pub(super) enum Request {
    Configure(Vec<Arc<VrrpSpec>>),
    /// What else is missing on this node: a cause, and what it takes off the priority; 0 is a fault.
    Track(Vec<Missing>),
    Failover(VrrpName, oneshot::Sender<Result<(), RequestError>>),
    /// Of one instance or of all.
    Hold {
        name: Option<VrrpName>,
        on: bool,
        reply: oneshot::Sender<Result<(), RequestError>>,
    },
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
pub(super) struct Inbox {
    pub queue: mpsc::SyncSender<Input>,
    pub waker: Waker,
}

impl Inbox {
    pub(super) fn send(&self, request: Request) -> Result<(), RequestError> {
        self.queue.try_send(Input::Order(request)).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => RequestError::Busy,
            mpsc::TrySendError::Disconnected(_) => RequestError::Ended,
        })?;
        self.waker.wake();
        Ok(())
    }

    /// For the keeper, which may wait.
    pub(super) fn send_waiting(&self, input: Input) {
        self.waker.wake();
        // Gone: the keeper is about to be stopped.
        let _ = self.queue.send(input);
        self.waker.wake();
    }
}

/// A virtual router at work.
struct Router {
    spec: Arc<VrrpSpec>,
    machine: Machine,
    order: Arc<Order>,
    /// The charge whose interfaces it waits for before it starts.
    starts_with: Option<u64>,
    faults: Vec<String>,
    master: Option<(IpAddr, u8)>,
    since: SystemTime,
    cause: Cause,
    counters: Arc<Counters>,
    /// What was last said of the peer's configuration.
    mismatch: Option<String>,
    send_failed: bool,
    split_told: Option<Moment>,
}

impl Router {
    fn new(spec: Arc<VrrpSpec>, charge: u64) -> Self {
        Self {
            machine: Machine::new(Params::from(&*spec)),
            spec,
            order: Arc::default(),
            starts_with: Some(charge),
            faults: Vec::new(),
            master: None,
            since: SystemTime::now(),
            cause: Cause::Stopped,
            counters: Arc::default(),
            mismatch: None,
            send_failed: false,
            split_told: None,
        }
    }

    /// Whether it can go on with another specification without a stop.
    fn continues(&self, spec: &VrrpSpec) -> bool {
        let key = |s: &VrrpSpec| (s.interface.clone(), s.router_id, s.version, s.unicast_peers.is_empty());
        key(&self.spec) == key(spec)
    }

    fn destinations(&self, family: Family) -> Vec<IpAddr> {
        if self.spec.unicast_peers.is_empty() {
            vec![family.vrrp_group()]
        } else {
            self.spec.peers_of(family).collect()
        }
    }

    fn view(&self) -> RouterView {
        let phase = self.machine.phase();
        RouterView {
            spec: Arc::clone(&self.spec),
            phase,
            priority: self.machine.priority(),
            master: self.master.filter(|_| phase == Phase::Backup),
            since: self.since,
            cause: self.cause,
            faults: self.faults.clone(),
            held: self.machine.held,
            yielded: self.machine.yielded,
            counters: Arc::clone(&self.counters),
        }
    }
}

pub(super) struct Heartbeat {
    pub inbox: mpsc::Receiver<Input>,
    pub alarm: Alarm,
    pub desk: Arc<Desk>,
    pub keeper: Waker,
    pub notices: Notices,
    pub views: watch::Sender<Arc<Vec<RouterView>>>,
    pub refused: Arc<Refused>,
    routers: Vec<Router>,
    interfaces: Interfaces,
    charge: u64,
    missing: Vec<Missing>,
    refusals_told: HashMap<&'static str, (Moment, u64)>,
    changed: bool,
    stopping: bool,
}

impl Heartbeat {
    pub(super) fn new(
        inbox: mpsc::Receiver<Input>,
        alarm: Alarm,
        (desk, keeper): (Arc<Desk>, Waker),
        notices: Notices,
        views: watch::Sender<Arc<Vec<RouterView>>>,
        refused: Arc<Refused>,
    ) -> Self {
        Self {
            inbox,
            alarm,
            desk,
            keeper,
            notices,
            views,
            refused,
            routers: Vec::new(),
            interfaces: Interfaces::new(),
            charge: 0,
            missing: Vec::new(),
            refusals_told: HashMap::new(),
            changed: false,
            stopping: false,
        }
    }

    /// Until it is told to stop; then every router has said good-bye.
    pub(super) fn run(mut self) {
        while !self.stopping {
            self.wait();
            self.alarm.drain();
            self.read_packets();
            self.read_inbox();
            let now = clock();
            for at in 0..self.routers.len() {
                if self.routers[at].machine.deadline().is_some_and(|deadline| deadline <= now) {
                    self.step(at, Event::Timer, now);
                }
            }
            self.publish();
        }
        self.desk.stop();
        self.keeper.wake();
    }

    fn ports(&self) -> impl Iterator<Item = (&String, &Arc<Port>)> {
        self.interfaces.iter().flat_map(|(name, interface)| {
            interface.port4.iter().chain(&interface.port6).map(move |port| (name, port))
        })
    }

    fn wait(&self) {
        let deadline = self.routers.iter().filter_map(|router| router.machine.deadline()).min();
        let timeout = deadline.map(|deadline| TimeSpec::from_duration(deadline.since(clock())));
        let alarm = [PollFd::new(self.alarm.fd(), PollFlags::POLLIN)];
        let ports = self.ports().map(|(_, port)| PollFd::new(port.fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = alarm.into_iter().chain(ports).collect();
        // Interrupted or timed out: the loop looks at everything either way.
        let _ = ppoll(&mut fds, timeout, None);
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            let views: Vec<RouterView> = self.routers.iter().map(Router::view).collect();
            self.views.send_replace(Arc::new(views));
        }
    }

    // ---- packets ------------------------------------------------------------------------------------------

    fn read_packets(&mut self) {
        let ports: Vec<_> = self.ports().map(|(name, port)| (name.clone(), Arc::clone(port))).collect();
        for (interface, port) in ports {
            for _ in 0..BATCH {
                // An error of the socket (the interface is gone) is told by the keeper.
                let Ok(Some(arrived)) = port.receive() else { break };
                self.packet(&interface, &arrived);
            }
        }
    }

    fn packet(&mut self, interface: &str, arrived: &Arrived) {
        let Arrived { source, destination, hop_limit, .. } = *arrived;
        let datagram = Datagram { source, destination, hop_limit, payload: arrived.payload() };
        let judged = packet::parse(&datagram).and_then(|(advert, _)| {
            let at = self.judge(interface, &datagram, &advert)?;
            Ok((at, advert))
        });
        match judged {
            Ok((at, advert)) => self.heard(at, interface, &advert, source),
            Err(refusal) => self.refuse(interface, source, refusal),
        }
    }

    /// Which router an advertisement is for.
    fn judge(&self, interface: &str, datagram: &Datagram<'_>, advert: &Advert) -> Result<usize, Refusal> {
        let family = Family::of(datagram.source);
        let is_for = |router: &Router| {
            let spec = &router.spec;
            spec.interface == interface
                && spec.router_id == advert.router_id
                && spec.families().any(|own| own == family)
        };
        let Some(at) = self.routers.iter().position(is_for) else {
            packet::check_hop_limit(datagram, HOP_LIMIT)?;
            return Err(Refusal::RouterId(advert.router_id));
        };
        let router = &self.routers[at];
        let local = self.interfaces.get(interface).map_or(&[][..], |interface| &interface.nets);
        let expect = Expect {
            version: router.spec.version,
            owner: router.machine.priority() == OWNER_PRIORITY,
            interval: router.spec.advert_interval,
            local,
            peers: &router.spec.unicast_peers,
            min_ttl: router.spec.lowest_ttl(family),
        };
        advert.check(datagram, &expect)?;
        Ok(at)
    }

    fn heard(&mut self, at: usize, interface: &str, advert: &Advert, source: IpAddr) {
        let family = Family::of(source);
        let router = &mut self.routers[at];
        router.counters.received.fetch_add(1, Relaxed);
        let towards = if router.spec.unicast_peers.is_empty() { family.vrrp_group() } else { source };
        let own = self.interfaces.get(interface).and_then(|interface| interface.source(towards));
        // The first family decides ties.
        let order = match own {
            Some(own) if router.spec.families().next() == Some(family) => source.cmp(&own),
            _ => Ordering::Equal,
        };
        if advert.priority == 0 {
            router.counters.received_zero.fetch_add(1, Relaxed);
        } else if router.master != Some((source, advert.priority)) {
            router.master = Some((source, advert.priority));
            self.changed = true;
        }
        let mismatch = mismatch(&router.spec, advert, family);
        if advert.priority > 0 && mismatch != router.mismatch {
            if let Some(text) = &mismatch {
                let (name, text) = (router.spec.name.clone(), text.clone());
                self.notices.send(Notice::Mismatch { name, source, text });
            }
            router.mismatch = mismatch;
        }
        let heard = Heard { priority: advert.priority, interval: advert.interval, source, order };
        self.step(at, Event::Advert(heard), clock());
    }

    fn refuse(&mut self, interface: &str, source: IpAddr, refusal: Refusal) {
        let now = clock();
        self.refused.count(refusal.label());
        let (told, more) = self.refusals_told.entry(refusal.label()).or_insert((Moment(0), 0));
        if *told != Moment(0) && now.since(*told) < NOTICE_PERIOD {
            *more += 1;
            return;
        }
        let more = std::mem::take(more);
        *told = now;
        self.notices.send(Notice::Refused { interface: interface.to_owned(), source, refusal, more });
    }

    // ---- words --------------------------------------------------------------------------------------------

    fn read_inbox(&mut self) {
        while let Ok(input) = self.inbox.try_recv() {
            match input {
                Input::Interfaces(charge, interfaces) => {
                    self.interfaces = interfaces;
                    self.examine(charge);
                }
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
            Request::Failover(name, reply) => {
                let _ = reply.send(self.failover(&name, now));
            }
            Request::Hold { name, on, reply } => {
                let _ = reply.send(self.hold(name, on, now));
            }
            Request::Stop => {
                for at in 0..self.routers.len() {
                    self.step(at, Event::Stop, now);
                }
                self.publish();
                self.stopping = true;
            }
        }
    }

    fn failover(&mut self, name: &VrrpName, now: Moment) -> Result<(), RequestError> {
        let at = self.routers.iter().position(|router| router.spec.name == *name);
        let at = at.ok_or_else(|| RequestError::NoInstance(name.clone()))?;
        match self.routers[at].machine.phase() {
            Phase::Master => {
                self.step(at, Event::HandOver { agreed: false }, now);
                Ok(())
            }
            phase @ (Phase::Init | Phase::Backup | Phase::Fault) => {
                Err(RequestError::NotMaster { name: name.clone(), phase })
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
                self.step(at, if on { Event::Hold } else { Event::Release }, now);
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

    // ---- deeds --------------------------------------------------------------------------------------------

    fn step(&mut self, at: usize, event: Event, now: Moment) {
        let mut actions = Vec::new();
        self.routers[at].machine.step(event, now, &mut actions);
        let heard = if let Event::Advert(heard) = event { Some(heard.source) } else { None };
        self.act(at, actions, now, heard);
    }

    fn act(&mut self, at: usize, actions: Vec<Action>, now: Moment, heard: Option<IpAddr>) {
        let mut before = self.routers[at].view().phase;
        if let Some(Action::Entered(phase, _)) = actions.iter().find(|a| matches!(a, Action::Entered(..))) {
            before = self.routers[at].counters.last_phase(*phase);
        }
        for action in actions {
            match action {
                Action::Send(priority) => self.send(at, priority),
                Action::Acquire => self.say(at, Wish::Keep),
                Action::Release => self.say(at, Wish::Absent),
                Action::Announce => {
                    self.say(at, Wish::Keep);
                    if let Some(source) = heard {
                        self.split_brain(at, source, now);
                    }
                }
                // There is no link to the peer: hand-overs are asked for without agreement.
                Action::AskPeer => {}
                Action::Entered(phase, cause) => {
                    let router = &mut self.routers[at];
                    (router.since, router.cause) = (SystemTime::now(), cause);
                    router.counters.entered(phase);
                    self.notices.send(Notice::Changed {
                        name: router.spec.name.clone(),
                        from: before,
                        to: phase,
                        cause,
                        priority: router.machine.priority(),
                    });
                    self.changed = true;
                }
            }
        }
    }

    fn say(&self, at: usize, wish: Wish) {
        self.routers[at].order.say(wish);
        self.keeper.wake();
    }

    fn split_brain(&mut self, at: usize, source: IpAddr, now: Moment) {
        let router = &mut self.routers[at];
        router.counters.split_brains.fetch_add(1, Relaxed);
        if router.split_told.is_none_or(|told| now.since(told) >= NOTICE_PERIOD) {
            router.split_told = Some(now);
            self.notices.send(Notice::SplitBrain { name: router.spec.name.clone(), source });
        }
    }

    fn send(&mut self, at: usize, priority: u8) {
        let router = &self.routers[at];
        let Some(interface) = self.interfaces.get(&router.spec.interface) else { return };
        let result = send(router, interface, priority);
        let router = &mut self.routers[at];
        let counter = if priority == 0 { &router.counters.sent_zero } else { &router.counters.sent };
        counter.fetch_add(1, Relaxed);
        match result {
            Ok(()) => router.send_failed = false,
            Err(text) if !router.send_failed => {
                router.send_failed = true;
                self.notices.send(Notice::Send { name: router.spec.name.clone(), text });
            }
            Err(_) => {}
        }
    }
}

/// One advertisement of each family to everybody.
fn send(router: &Router, interface: &Interface, priority: u8) -> Result<(), String> {
    let spec = &router.spec;
    let form = if spec.pseudo_header { ChecksumForm::Pseudo } else { ChecksumForm::Plain };
    let mut result = Ok(());
    for family in spec.families() {
        let advert = Advert {
            version: spec.version,
            router_id: spec.router_id,
            priority,
            interval: spec.advert_interval,
            addresses: spec.addresses_of(family).collect(),
        };
        for destination in router.destinations(family) {
            // Without a source there is a fault, told apart.
            let (Some(source), Some(port)) = (interface.source(destination), interface.port(family)) else {
                continue;
            };
            let bytes = advert.encode(form, source, destination);
            if let Err(error) = port.send(source, destination, &bytes) {
                result = Err(format!("to {destination}: {error}"));
            }
        }
    }
    result
}

#[cfg(test)]
mod tests;
