//! The state machine of a virtual router (RFC 9568 section 6.4, RFC 3768 section 6.4). Pure: (machine, event, now) to
//! (machine, actions); the caller has the clock, the sockets and the interface.
//!
//! Beyond the RFCs:
//! - *fault*: the machine can be told that this node must not be master; it leaves like a stopping one.
//! - *hold* (maintenance): as backup, however long the master is silent, until released.
//! - *hand over*: the operator takes the master's role from this node. It is then *yielded*: it leaves the next master
//!   alone, whatever its priority, until that one fails or leaves. With the peer's agreement nothing is silent in
//!   between: the successor is master (`HandoverRequested`), puts the addresses on and announces them (`Acquired`)
//!   before it advertises and before the old one stops (`HandoverGranted`, or the successor's first advertisement);
//!   without an answer the old one leaves as at a stop.
//! - *preemption* over the link: the better node asks the master to hand over (`AskMaster`, `MakeWay`), and takes the
//!   role by itself only if that leads to nothing.
//! - *gated*: it lacks the peer's state and leaves a living master alone until it has it. It takes over from a dead
//!   one all the same: what it lacks is lost then. An owner listens like others whether there is one.
//! - A backup that has just started is *unsure*: it may still have the addresses on its interface, from the time
//!   before it was killed. They stay until a master is heard, so that a node that is alone loses nothing by a restart.
//! - An advertisement of equal priority in another family than the first one decides no tie: else two nodes whose
//!   addresses are ordered differently in the two families would throw each other out for ever.
//! - *Together*: a member of a group (`[[vrrp_group]]`) does not become master by itself when its timer runs out: it is
//!   *ready*, until it hears a master again. The group (`super::group`) says when all are. One that was asked to hand
//!   over waits for its own answer where the others have theirs already, and leaves if none comes.
//! - *Master lost*: a faster detector (BFD) says that the master is gone; no timer is waited for.

mod words;

pub use words::{Action, Cause, Event, Heard};

use super::timing::{Moment, master_down, skew};
use crate::model::{OWNER_PRIORITY, VrrpSpec, VrrpVersion};
use std::{cmp::Ordering, time::Duration};

/// How long the peer may take to agree to a hand-over before this node leaves without it.
pub const AGREEMENT: Duration = Duration::from_millis(500);
/// How long putting the addresses on may take before a successor advertises without it. For so long it does not hear
/// the old master, which advertises until it has the answer.
pub const ACQUISITION: Duration = Duration::from_millis(100);

/// What the machine is told by the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    pub version: VrrpVersion,
    /// 1 to 255.
    pub priority: u8,
    pub interval: Duration,
    pub preempt: bool,
    pub preempt_delay: Duration,
    pub startup_delay: Duration,
    pub down_adverts: u8,
    /// A member of a group, which decides for all of them.
    pub grouped: bool,
}

impl From<&VrrpSpec> for Params {
    fn from(spec: &VrrpSpec) -> Self {
        Self {
            version: spec.version,
            priority: spec.priority,
            interval: spec.advert_interval,
            preempt: spec.preempt,
            preempt_delay: spec.preempt_delay,
            startup_delay: spec.startup_delay,
            down_adverts: spec.down_adverts,
            grouped: spec.group.is_some(),
        }
    }
}

/// Where the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not started, or stopped.
    Init,
    Backup(Backup),
    Master(Master),
    /// Something that a master needs is missing.
    Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backup {
    /// When the master counts as gone (Active_Down_Timer).
    pub expires: Moment,
    /// The master's interval (Active_Adver_Interval).
    pub interval: Duration,
    /// When a master of lower priority is no longer left alone; none before one was heard.
    pub preempt_at: Option<Moment>,
    /// Since when it has run without having heard a master, see the module.
    pub unsure: Option<Moment>,
    /// The timer ran out, and the rest of the group is waited for.
    pub ready: bool,
    /// The master, of lower priority, was asked to hand over.
    pub asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Master {
    /// When the next advertisement is due (Adver_Timer).
    pub next: Moment,
    /// The peer was asked to take over; when to leave without its agreement.
    pub handing_over: Option<Moment>,
    /// That was the operator's will: the successor is left alone, whatever its priority.
    pub yields: bool,
    /// Until when it does not hear the master that it took over from by agreement.
    pub deaf: Option<Moment>,
    /// That one waits for the word that the addresses are announced.
    pub owes: bool,
    /// The rest of its group was handed over: it leaves, whether the peer agrees or not.
    pub follows: bool,
}

impl Master {
    const fn new(next: Moment) -> Self {
        Self { next, handing_over: None, yields: false, deaf: None, owes: false, follows: false }
    }
}

/// The state without its timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    Init,
    Backup,
    Master,
    Fault,
}

impl Phase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Backup => "backup",
            Self::Master => "master",
            Self::Fault => "fault",
        }
    }
}

/// A virtual router's state and what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub params: Params,
    pub state: State,
    /// What tracking adds to the priority.
    pub weight: i16,
    /// A master's needs are not met.
    pub failed: bool,
    pub held: bool,
    /// It handed over, and leaves the successor alone.
    pub yielded: bool,
    /// The peer's state is not here yet.
    pub gated: bool,
    /// The master can be asked to hand over.
    pub linked: bool,
    /// Why the timer runs that it runs: what being master will be put down to.
    pending: Cause,
}

impl Machine {
    pub const fn new(params: Params) -> Self {
        Self {
            params,
            state: State::Init,
            weight: 0,
            failed: false,
            held: false,
            yielded: false,
            gated: false,
            linked: false,
            pending: Cause::MasterSilent,
        }
    }

    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Init => Phase::Init,
            State::Backup(_) => Phase::Backup,
            State::Master(_) => Phase::Master,
            State::Fault => Phase::Fault,
        }
    }

    /// Whether it waits for a peer to take over.
    pub const fn is_handing_over(&self) -> bool {
        matches!(self.state, State::Master(Master { handing_over: Some(_), .. }))
    }

    /// Whether advertisements of lower priority are none for it (RFC 9568 section 7.1): it is the addresses' owner and has
    /// them. One that has not, or gives them away, hears its successor like others.
    pub fn owns(&self) -> bool {
        self.priority() == OWNER_PRIORITY && self.phase() == Phase::Master && !self.is_handing_over()
    }

    /// The priority in force. That of an owner is not touched, nor is another one made an owner's or a leaver's.
    pub fn priority(&self) -> u8 {
        if self.params.priority == OWNER_PRIORITY {
            return OWNER_PRIORITY;
        }
        let sum = i16::from(self.params.priority).saturating_add(self.weight);
        u8::try_from(sum.clamp(1, 254)).unwrap_or(1)
    }

    /// As far as this one goes, its group may be master.
    pub fn ready(&self) -> bool {
        match self.state {
            State::Backup(backup) => backup.ready && !self.stays(),
            State::Master(_) => true,
            State::Init | State::Fault => false,
        }
    }

    /// Whether the master, of lower priority, can be asked to hand over, and was not yet.
    pub fn may_ask(&self) -> bool {
        let asked = matches!(self.state, State::Backup(Backup { asked: true, .. }));
        self.pending == Cause::Preempted && self.linked && !asked
    }

    /// It does not become master when its timer runs out: it is held, or the gate was closed after it heard a living
    /// master of lower priority.
    fn stays(&self) -> bool {
        self.held || (self.gated && self.pending == Cause::Preempted)
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Init | State::Fault => None,
            State::Backup(backup) => Some(backup.expires),
            State::Master(master) => Some(master.handing_over.map_or(master.next, |at| at.min(master.next))),
        }
    }

    /// Takes over changed parameters without a change of state.
    pub fn configure(&mut self, params: Params, now: Moment, out: &mut Vec<Action>) {
        let (before, own) = (self.priority(), self.params.interval);
        self.params = params;
        match &mut self.state {
            State::Init | State::Fault => {}
            State::Backup(backup) => {
                // A master that was heard goes on in its own interval.
                if backup.unsure.is_some() {
                    backup.interval = self.params.interval;
                }
                self.restart_timer(now);
            }
            State::Master(_) => {
                if self.priority() != before || self.params.interval != own {
                    self.advertise(now, out);
                }
            }
        }
    }

    /// The one step. Every pair of state and event has its arm.
    pub fn step(&mut self, event: Event, now: Moment, out: &mut Vec<Action>) {
        match (self.state, event) {
            (State::Init, Event::Start) => self.start(now, out),
            (State::Init, Event::Fail) => self.failed = true,
            (State::Init, Event::Recover) => self.failed = false,

            (State::Backup(backup), Event::Advert(heard)) => self.backup_hears(backup, heard, now, out),
            (State::Backup(backup), Event::Timer) if now >= backup.expires => self.expired(backup, now, out),
            (State::Backup(_), Event::Release) => {
                self.held = false;
                // The master may have been silent for long: it gets its full time.
                self.restart_timer(now);
                self.set_backup(|backup| backup.ready = false);
            }
            (State::Backup(_), Event::HandoverRequested) if !self.held && !self.gated => {
                self.take_over(now, out);
            }
            (State::Backup(backup), Event::PeerSilent(interval)) if backup.unsure.is_none() && !self.held => {
                // The order of several backups is that of the RFC, in the heartbeats' time.
                let wait = skew(VrrpVersion::V3, self.priority(), interval);
                self.pending = Cause::MasterSilentOnLink;
                self.set_backup(|backup| backup.expires = backup.expires.min(now + wait));
            }
            // A living master that a gated node leaves alone keeps its group from being ready.
            (State::Backup(backup), Event::GroupMaster) if !self.held => {
                let cause = if backup.ready { self.pending } else { Cause::Group };
                self.become_master(cause, now, out);
            }
            (State::Backup(_), Event::GroupAsk) if !self.stays() => self.ask(now, out),
            (State::Backup(backup), Event::MasterLost) => {
                self.pending = Cause::MasterUnreachable;
                self.yielded = false;
                self.expired(backup, now, out);
            }

            (State::Master(master), Event::Advert(heard)) => self.master_hears(master, heard, now, out),
            (State::Master(master), Event::Timer) => self.master_timer(master, now, out),
            (State::Master(_), Event::Weight(weight)) => {
                let before = self.priority();
                self.weight = weight;
                // The backups shall not have to wait an interval for it.
                if self.priority() != before {
                    self.advertise(now, out);
                }
            }
            (State::Master(_), Event::Hold) => {
                self.held = true;
                self.leave(now, Cause::Held, out);
            }
            (State::Master(_), Event::HandOver { agreed: false }) => {
                self.yielded = true;
                self.leave(now, Cause::HandedOver, out);
            }
            (State::Master(master), Event::HandOver { agreed: true }) => {
                self.state =
                    State::Master(Master { handing_over: Some(now + AGREEMENT), yields: true, ..master });
                out.push(Action::AskPeer);
            }
            (State::Master(master), Event::MakeWay) if master.handing_over.is_none() => {
                self.state = State::Master(Master { handing_over: Some(now + AGREEMENT), ..master });
                out.push(Action::AskPeer);
            }
            (State::Master(master), Event::Acquired) if master.owes => {
                self.state = State::Master(Master { owes: false, ..master });
                self.advertise(now, out);
                out.push(Action::Grant);
            }
            // Asked although it is master already: the peer shall hear so.
            (State::Master(master), Event::HandoverRequested) if !master.owes => {
                self.advertise(now, out);
                out.push(Action::Grant);
            }
            (State::Master(master), Event::HandoverGranted) => {
                self.yielded = master.yields;
                self.become_backup(self.params.interval, now, Cause::HandedOver, out);
            }
            (State::Master(master), Event::GroupBackup { handed_over: true, yields })
                if master.handing_over.is_some() =>
            {
                let yields = master.yields || yields;
                self.state = State::Master(Master { follows: true, yields, ..master });
            }
            (State::Master(_), Event::GroupBackup { handed_over, yields }) => {
                self.yielded |= yields;
                self.leave(now, if handed_over { Cause::HandedOver } else { Cause::Group }, out);
            }

            (State::Fault, Event::Recover) => {
                self.failed = false;
                let wait = self.down(self.params.interval);
                self.enter_backup(self.params.interval, now + wait, None, Cause::Recovered, out);
            }

            // In every state where it is not handled above.
            (State::Backup(_) | State::Master(_), Event::Fail) => self.fail(out),
            (State::Backup(_) | State::Master(_) | State::Fault, Event::Stop) => self.stop(out),
            (State::Init | State::Backup(_) | State::Fault, Event::Weight(weight)) => self.weight = weight,
            (State::Init | State::Backup(_) | State::Fault, Event::Hold) => self.held = true,
            (State::Init | State::Master(_) | State::Fault, Event::Release) => self.held = false,

            // A timer that was overtaken; the refusal of a held or gated node; what is of no interest to it.
            (State::Backup(_), Event::Timer | Event::HandoverRequested | Event::PeerSilent(_) | Event::GroupMaster
                | Event::GroupAsk)
            // What is under way already, or over.
            | (State::Master(_), Event::MakeWay | Event::Acquired | Event::HandoverRequested | Event::PeerSilent(_))
            // Nothing new.
            | (State::Backup(_) | State::Master(_) | State::Fault, Event::Start)
            | (State::Backup(_) | State::Master(_), Event::Recover)
            | (State::Fault, Event::Fail)
            | (State::Init, Event::Stop)
            // Only a master can hand over.
            | (State::Init | State::Backup(_) | State::Fault, Event::HandOver { .. } | Event::HandoverGranted
                | Event::MakeWay | Event::Acquired)
            // The group is where it is already; a master listens to itself.
            | (State::Init | State::Backup(_) | State::Fault, Event::GroupBackup { .. })
            | (State::Master(_), Event::GroupMaster | Event::GroupAsk | Event::MasterLost)
            // Deaf.
            | (State::Init | State::Fault, Event::GroupMaster | Event::GroupAsk | Event::MasterLost)
            | (State::Init | State::Fault, Event::Advert(_) | Event::Timer | Event::HandoverRequested
                | Event::PeerSilent(_)) => {}
        }
    }

    /// RFC 9568 section 6.4.1.
    fn start(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.failed {
            self.state = State::Fault;
            // There may be addresses of the time before.
            out.extend([Action::Release, Action::Entered(Phase::Fault, Cause::Failed)]);
        } else if self.priority() == OWNER_PRIORITY && !self.held && !self.gated {
            self.become_master(Cause::Owner, now, out);
        } else {
            let wait = self.params.startup_delay + self.down(self.params.interval);
            self.enter_backup(self.params.interval, now + wait, Some(now), Cause::Started, out);
        }
    }

    /// RFC 9568 section 6.4.2, "If an ADVERTISEMENT is received".
    fn backup_hears(&mut self, backup: Backup, heard: Heard, now: Moment, out: &mut Vec<Action>) {
        if backup.unsure.is_some() {
            out.push(Action::Release);
        }
        let mut next = Backup { unsure: None, ..backup };
        if heard.priority == 0 {
            // "Set the Active_Down_Timer to Skew_Time": it is this node's turn, or that of a better one.
            next.expires = now + skew(self.params.version, self.priority(), backup.interval);
            next.preempt_at = None;
            next.ready = false;
            next.asked = false;
            self.pending = Cause::MasterLeft;
            self.yielded = false;
        } else if heard.priority >= self.priority() || self.leaves_alone(&mut next, now) {
            if heard.priority >= self.priority() {
                next.preempt_at = None;
            }
            // "Set Active_Adver_Interval to Max Advertise Interval contained in the ADVERTISEMENT". The intervals of
            // version 2 are equal, else the packet would not have come here.
            next.interval = heard.interval;
            next.ready = false;
            next.asked = false;
            next.expires = now + self.down(heard.interval);
            self.pending = Cause::MasterSilent;
        } else {
            // "Discard the ADVERTISEMENT": the timer runs out, and this node takes over.
            self.pending = Cause::Preempted;
        }
        self.state = State::Backup(next);
    }

    /// Whether a master of lower priority stays.
    fn leaves_alone(&self, backup: &mut Backup, now: Moment) -> bool {
        // RFC 9568 section 6.1: the owner "always preempts independent of the setting of this flag".
        let preempts = self.params.preempt || self.priority() == OWNER_PRIORITY;
        if !preempts || self.yielded || self.held || self.gated {
            return true;
        }
        let at = *backup.preempt_at.get_or_insert(now + self.params.preempt_delay);
        now < at
    }

    fn expired(&mut self, backup: Backup, now: Moment, out: &mut Vec<Action>) {
        let wait = self.down(backup.interval);
        if self.stays() {
            self.set_backup(|backup| backup.expires = now + wait);
            if self.pending == Cause::Preempted {
                // If it lives it is heard until then.
                self.pending = Cause::MasterSilent;
            }
        } else if self.params.grouped {
            self.set_backup(|backup| (backup.expires, backup.ready) = (now + wait, true));
        } else if self.may_ask() {
            self.ask(now, out);
        } else {
            self.become_master(self.pending, now, out);
        }
    }

    fn ask(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.set_backup(|backup| {
            *backup = Backup { asked: true, ready: false, expires: now + AGREEMENT, ..*backup };
        });
        out.push(Action::AskMaster);
    }

    /// RFC 9568 section 6.4.3, "If an ADVERTISEMENT is received".
    fn master_hears(&mut self, master: Master, heard: Heard, now: Moment, out: &mut Vec<Action>) {
        let own = self.priority();
        if master.deaf.is_some_and(|until| now < until) {
            // The old master, which does not know yet, or a third one, which will be heard later.
        } else if heard.priority == 0 {
            // "Send an ADVERTISEMENT", so that no backup of a leaving master takes over.
            self.advertise(now, out);
        } else if master.handing_over.is_some() {
            self.yielded = master.yields;
            self.become_backup(heard.interval, now, Cause::HandedOver, out);
        } else if heard.priority > own || (heard.priority == own && heard.order == Ordering::Greater) {
            self.become_backup(heard.interval, now, Cause::Superior(heard.source), out);
        } else if heard.priority == own && heard.order == Ordering::Equal {
            // The first family decides.
        } else {
            // "Send an ADVERTISEMENT immediately to assert the Active state"; and hosts may have believed the other.
            self.advertise(now, out);
            out.push(Action::Announce);
        }
    }

    fn master_timer(&mut self, master: Master, now: Moment, out: &mut Vec<Action>) {
        let unanswered = master.handing_over.is_some_and(|at| now >= at);
        if unanswered && (master.yields || master.follows || self.held) {
            self.yielded = master.yields;
            self.leave(now, Cause::HandedOver, out);
            return;
        }
        // Without the operator's will the better node will do by itself.
        let master = Master { handing_over: master.handing_over.filter(|_| !unanswered), ..master };
        self.state = State::Master(master);
        if now >= master.next {
            out.push(Action::Send(self.priority()));
            // Counted from when it was due, so that delays do not add up; but what was missed stays missed.
            let due = master.next + self.params.interval;
            let next = if due > now { due } else { now + self.params.interval };
            self.state = State::Master(Master { next, ..master });
        }
    }

    fn fail(&mut self, out: &mut Vec<Action>) {
        self.failed = true;
        self.drop_addresses(out);
        self.state = State::Fault;
        out.push(Action::Entered(Phase::Fault, Cause::Failed));
    }

    /// RFC 9568, "If a Shutdown event is received".
    fn stop(&mut self, out: &mut Vec<Action>) {
        self.drop_addresses(out);
        self.state = State::Init;
        self.yielded = false;
        out.push(Action::Entered(Phase::Init, Cause::Stopped));
    }

    /// The first thing is that the others know.
    fn drop_addresses(&self, out: &mut Vec<Action>) {
        match self.state {
            State::Master(_) => out.extend([Action::Send(0), Action::Release]),
            // Addresses of the time before.
            State::Backup(Backup { unsure: Some(_), .. }) => out.push(Action::Release),
            State::Init | State::Backup(_) | State::Fault => {}
        }
    }

    /// Says good-bye and waits for the successor.
    fn leave(&mut self, now: Moment, cause: Cause, out: &mut Vec<Action>) {
        out.push(Action::Send(0));
        self.become_backup(self.params.interval, now, cause, out);
    }

    fn become_backup(&mut self, interval: Duration, now: Moment, cause: Cause, out: &mut Vec<Action>) {
        out.push(Action::Release);
        let wait = self.down(interval);
        self.enter_backup(interval, now + wait, None, cause, out);
    }

    fn enter_backup(
        &mut self,
        interval: Duration,
        expires: Moment,
        unsure: Option<Moment>,
        cause: Cause,
        out: &mut Vec<Action>,
    ) {
        self.state =
            State::Backup(Backup { expires, interval, preempt_at: None, unsure, ready: false, asked: false });
        self.pending = Cause::MasterSilent;
        out.push(Action::Entered(Phase::Backup, cause));
    }

    /// The advertisement goes first: it makes an old master let go.
    fn become_master(&mut self, cause: Cause, now: Moment, out: &mut Vec<Action>) {
        self.yielded = false;
        self.state = State::Master(Master::new(now));
        self.advertise(now, out);
        out.extend([Action::Acquire, Action::Entered(Phase::Master, cause)]);
    }

    /// Master by agreement: the old one serves until this one does, and so the advertisement comes last.
    fn take_over(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.yielded = false;
        let until = now + ACQUISITION;
        self.state = State::Master(Master { deaf: Some(until), owes: true, ..Master::new(until) });
        out.extend([Action::Acquire, Action::Entered(Phase::Master, Cause::TakenOver)]);
    }

    /// Sends at once and starts the timer again.
    fn advertise(&mut self, now: Moment, out: &mut Vec<Action>) {
        out.push(Action::Send(self.priority()));
        let next = now + self.params.interval;
        if let State::Master(master) = &mut self.state {
            master.next = next;
        }
    }

    fn restart_timer(&mut self, now: Moment) {
        if let State::Backup(backup) = self.state {
            // The delay of the start is not over by it.
            let from = backup.unsure.map_or(now, |started| now.max(started + self.params.startup_delay));
            let wait = self.down(backup.interval);
            self.set_backup(|backup| backup.expires = from + wait);
        }
    }

    fn set_backup(&mut self, change: impl FnOnce(&mut Backup)) {
        if let State::Backup(backup) = &mut self.state {
            change(backup);
        }
    }

    fn down(&self, interval: Duration) -> Duration {
        master_down(self.params.version, self.priority(), interval, self.params.down_adverts)
    }
}

#[cfg(test)]
mod tests;
