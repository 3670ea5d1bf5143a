//! What the heartbeat does.

use super::{
    super::{
        fsm::{Action, Cause, Event, Machine, Phase},
        group,
        keeper::Wish,
        notice::Notice,
        timing::Moment,
        wake::clock,
    },
    Heartbeat, NOTICE_PERIOD,
    router::{Sent, send},
};
use crate::link::wire::Role;
use std::{
    net::IpAddr,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

/// One notice of advertisements that cannot be sent in this time.
const UNSENT_PERIOD: Duration = Duration::from_secs(60);

impl Heartbeat {
    pub(super) fn step(&mut self, at: usize, event: Event, now: Moment) {
        let mut actions = Vec::new();
        self.routers[at].machine.step(event, now, &mut actions);
        let heard = if let Event::Advert(heard) = event { Some(heard.source) } else { None };
        self.act(at, actions.clone(), now, heard);
        if self.routers[at].spec.group.is_some() {
            let members = self.members(at);
            let machines: Vec<&Machine> = members.iter().map(|at| &self.routers[*at].machine).collect();
            let who = members.iter().position(|member| *member == at).unwrap_or(0);
            for (member, event) in group::follow(&machines, who, &actions) {
                self.step(members[member], event, now);
            }
        }
    }

    /// Itself, and those that go with it.
    pub(super) fn members(&self, at: usize) -> Vec<usize> {
        let group = &self.routers[at].spec.group;
        let member =
            |other: &usize| *other == at || (group.is_some() && self.routers[*other].spec.group == *group);
        (0..self.routers.len()).filter(member).collect()
    }

    pub(super) fn act(&mut self, at: usize, actions: Vec<Action>, now: Moment, heard: Option<IpAddr>) {
        let mut before = self.routers[at].machine.phase();
        if let Some(Action::Entered(phase, _)) = actions.iter().find(|a| matches!(a, Action::Entered(..))) {
            before = self.routers[at].counters.last_phase(*phase);
        }
        for action in actions {
            match action {
                Action::Send(priority) => self.send(at, priority),
                Action::Acquire => {
                    self.routers[at].master_since = Some(now);
                    self.renew(at, now);
                    self.say(at, Wish::Keep);
                }
                Action::Release => {
                    self.end_lease(at);
                    self.say(at, Wish::Absent);
                }
                Action::Announce => {
                    self.say(at, Wish::Keep);
                    if let Some(source) = heard {
                        self.split_brain(at, source, now);
                    }
                }
                Action::AskPeer => self.tell_peer(Role::TakeOver, at),
                Action::AskMaster => self.tell_peer(Role::Want, at),
                Action::Grant => self.tell_peer(Role::Taken, at),
                Action::Entered(phase, cause) => {
                    if before == Phase::Master && matches!(cause, Cause::Superior(_)) {
                        self.last_word(at);
                    }
                    let router = &mut self.routers[at];
                    (router.since, router.cause) = (SystemTime::now(), cause);
                    router.counters.entered(phase);
                    if phase != Phase::Master {
                        for reply in router.handed.drain(..) {
                            let _ = reply.send(Ok(()));
                        }
                    }
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

    pub(super) fn say(&self, at: usize, wish: Wish) {
        self.routers[at].order.say(wish);
        self.keeper.wake();
    }

    pub(super) fn split_brain(&mut self, at: usize, source: IpAddr, now: Moment) {
        let router = &mut self.routers[at];
        // The last words of the master that it took over from.
        if router.master_since.is_some_and(|since| now.since(since) < router.spec.advert_interval) {
            return;
        }
        router.counters.split_brains.fetch_add(1, Relaxed);
        if router.split_told.is_none_or(|told| now.since(told) >= NOTICE_PERIOD) {
            router.split_told = Some(now);
            self.notices.send(Notice::SplitBrain { name: router.spec.name.clone(), source });
        }
    }

    pub(super) fn send(&mut self, at: usize, priority: u8) {
        let router = &self.routers[at];
        let Some(interface) = self.interfaces.get(&router.spec.interface) else { return };
        let Sent { reached, failed } = send(router, interface, priority);
        let router = &mut self.routers[at];
        let counter = if priority == 0 { &router.counters.sent_zero } else { &router.counters.sent };
        counter.fetch_add(1, Relaxed);
        // Who hears it, in either family, stays backup: a destination that cannot be sent to takes nobody's right to answer.
        if reached && priority > 0 && router.machine.phase() == Phase::Master {
            self.renew(at, clock());
        }
        self.note_unsent(at, failed);
    }

    fn note_unsent(&mut self, at: usize, failed: Option<String>) {
        let router = &mut self.routers[at];
        self.changed |= router.unsent != failed;
        router.unsent = failed;
        let Some(text) = &router.unsent else { return };
        let now = clock();
        if router.unsent_told.is_none_or(|told| now.since(told) >= UNSENT_PERIOD) {
            router.unsent_told = Some(now);
            self.notices.send(Notice::Send { name: router.spec.name.clone(), text: text.clone() });
        }
    }
}
