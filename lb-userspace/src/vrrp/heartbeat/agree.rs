//! What is agreed with the peer over the sync link.

use super::{
    super::{
        fsm::{Event, Phase},
        peer::Word,
        timing::Moment,
    },
    Heartbeat,
    judge::gated,
    words::RequestError,
};
use crate::{link::wire::Role, model::VrrpName};
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Who waits until a router is no longer master.
pub(super) type Handed = oneshot::Sender<Result<(), RequestError>>;

impl Heartbeat {
    fn at(&self, name: &VrrpName) -> Option<usize> {
        self.routers.iter().position(|router| router.spec.name == *name)
    }

    /// Whether the peer would get a word.
    pub(super) fn reaches(&self, role: Role, at: usize) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.0.reaches(role, &self.routers[at].spec.name))
    }

    pub(super) fn tell_peer(&self, role: Role, at: usize) {
        if let Some(peer) = &self.peer {
            peer.0.say(role, &self.routers[at].spec.name);
        }
    }

    pub(super) fn word(&mut self, word: Word, now: Moment) {
        match word {
            Word::Connect(peer) => self.peer = Some(peer),
            Word::TakeOver(name) => self.step_one(&name, Event::HandoverRequested, now),
            Word::Granted(name) => self.step_one(&name, Event::HandoverGranted, now),
            Word::MakeWay(name) => self.step_one(&name, Event::MakeWay, now),
            Word::Silent(names, interval) => {
                for name in names {
                    self.step_one(&name, Event::PeerSilent(interval), now);
                }
            }
            Word::Gate(names, until) => {
                self.gate = (names, until);
                self.set_gates(now);
            }
        }
    }

    /// Routers that were just made are meant as well.
    pub(super) fn set_gates(&mut self, now: Moment) {
        let (names, until) = &self.gate;
        let names = gated(self.routers.iter().map(|router| &*router.spec), names);
        for router in &mut self.routers {
            let gated = now < *until && names.contains(&router.spec.name);
            self.changed |= gated != router.machine.gated;
            router.machine.gated = gated;
        }
    }

    pub(super) fn step_one(&mut self, name: &VrrpName, event: Event, now: Moment) {
        if let Some(at) = self.at(name) {
            self.step(at, event, now);
        }
    }

    /// Nobody need say that the time is over.
    pub(super) fn open_gate(&mut self, now: Moment) {
        if now >= self.gate.1 && !self.gate.0.is_empty() {
            self.gate.0.clear();
            self.set_gates(now);
        }
    }

    /// The answer comes when the peer is master, or when this node has left without it.
    pub(super) fn failover(&mut self, name: &VrrpName, reply: Handed, now: Moment) {
        let Some(at) = self.at(name) else {
            let _ = reply.send(Err(RequestError::NoInstance(name.clone())));
            return;
        };
        match self.routers[at].machine.phase() {
            Phase::Master => {
                self.routers[at].handed.push(reply);
                for member in self.members(at) {
                    let agreed = self.reaches(Role::TakeOver, member);
                    self.step(member, Event::HandOver { agreed }, now);
                }
            }
            phase @ (Phase::Init | Phase::Backup | Phase::Fault) => {
                let _ = reply.send(Err(RequestError::NotMaster { name: name.clone(), phase }));
            }
        }
    }

    /// Before a stop.
    pub(super) fn leave_all(&mut self, done: mpsc::SyncSender<()>, now: Moment) {
        for at in 0..self.routers.len() {
            if self.routers[at].machine.phase() == Phase::Master && self.reaches(Role::TakeOver, at) {
                self.step(at, Event::HandOver { agreed: true }, now);
            }
        }
        self.leaving = Some(done);
        self.say_left();
    }

    /// Who waits for all is told when no router waits for the peer any more.
    pub(super) fn say_left(&mut self) {
        let waits = |handing_over: bool, phase| handing_over && phase == Phase::Master;
        if !self.routers.iter().any(|r| waits(r.machine.is_handing_over(), r.machine.phase()))
            && let Some(done) = self.leaving.take()
        {
            let _ = done.try_send(());
        }
    }
}
