//! The heartbeat: the thread that sends and judges advertisements.
//!
//! One loop: wait for packets, for words of the daemon or the keeper, or for the next deadline; read what came; then
//! look at the timers. In that order: a thread that was kept from running finds the packets of a living master in its
//! sockets, and must not call it dead before it has read them. Nothing in here waits for anybody else: it neither
//! logs, nor asks netlink, nor takes a lock that is held for long.
//!
//! [`words`]: what it is told. `agree`: what is agreed with the peer. `packets`: what it hears. `deeds`: what it does.
//! `router`: a virtual router at work. `lease`: how long the dataplane may answer. `judge`: what the state of this node
//! means for one (pure).

mod agree;
mod deeds;
mod judge;
mod lease;
mod packets;
mod router;
mod words;

use super::{
    fsm::Event,
    keeper::{Desk, Interfaces},
    notice::Notices,
    peer::Post,
    socket::Port,
    timing::Moment,
    view::{Refused, RouterView},
    wake::{Alarm, Waker, clock},
};
use crate::{link::wire::Role, model::VrrpName};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use router::Router;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::sync::watch;

pub use judge::Missing;
pub use lease::Claim;
pub use words::RequestError;
pub(super) use words::{Inbox, Input, Request};

/// One notice of a kind in this time.
const NOTICE_PERIOD: Duration = Duration::from_secs(10);

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
    missing: BTreeMap<VrrpName, Vec<Missing>>,
    peer: Option<Post>,
    /// Routers that lack the peer's state, and until when that counts.
    gate: (Vec<VrrpName>, Moment),
    leaving: Option<mpsc::SyncSender<()>>,
    refusals_told: HashMap<&'static str, (Moment, u64)>,
    /// Somebody is there to take the addresses, as far as is known.
    peer_alive: bool,
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
            missing: BTreeMap::new(),
            peer: None,
            gate: (Vec::new(), Moment(0)),
            leaving: None,
            refusals_told: HashMap::new(),
            peer_alive: false,
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
            self.open_gate(now);
            for at in 0..self.routers.len() {
                if self.routers[at].machine.deadline().is_some_and(|deadline| deadline <= now) {
                    // Where it is the last one that its group waits for, it is as if all timers had run out.
                    for member in self.members(at) {
                        self.routers[member].machine.linked = self.reaches(Role::Want, member);
                    }
                    self.step(at, Event::Timer, now);
                }
            }
            self.say_left();
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
            let views: Vec<RouterView> = self.routers.iter().map(|r| r.view(&self.interfaces)).collect();
            self.views.send_replace(Arc::new(views));
        }
    }
}

#[cfg(test)]
mod tests;
