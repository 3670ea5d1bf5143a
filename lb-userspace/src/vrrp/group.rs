//! Groups of virtual routers (`[[vrrp_group]]`, keepalived's `vrrp_sync_group`): all members are master together or none
//! is. Pure.
//!
//! - A member whose timer runs out is *ready*; once all are, all become master. A single silent network is thus no
//!   reason to throw out a master that is heard on another one. Where all of them would throw out a lesser master that
//!   can be asked, each asks first.
//! - A member that becomes master at once (a hand-over, an owner) takes the others along; so does one that leaves.
//! - What is missing for one is missing for all: a fault of one is a fault of all, a weight counts for every
//!   priority, so that the members never disagree about who is better, and a gate is closed for all.

use super::fsm::{Action, Cause, Event, Machine, Phase};

/// What the other members, or all of them, have to do after one of them did these actions: member and event, in order.
///
/// `members`: all of the group; `who`: which of them did it.
pub(super) fn follow(members: &[&Machine], who: usize, actions: &[Action]) -> Vec<(usize, Event)> {
    let entered = actions.iter().find_map(|action| match action {
        Action::Entered(phase, cause) => Some((*phase, *cause)),
        Action::Send(_)
        | Action::Acquire
        | Action::Release
        | Action::Announce
        | Action::AskPeer
        | Action::AskMaster
        | Action::Grant => None,
    });
    let others = |phase: Phase, event: Event| {
        let others = members.iter().enumerate();
        let others = others.filter(move |(at, member)| *at != who && member.phase() == phase);
        others.map(|(at, _)| (at, event)).collect()
    };
    match entered {
        // The old masters of the others wait for the same word.
        Some((Phase::Master, Cause::TakenOver)) => others(Phase::Backup, Event::HandoverRequested),
        Some((Phase::Master, _)) => others(Phase::Backup, Event::GroupMaster),
        Some((Phase::Backup, Cause::Started | Cause::Recovered)) => Vec::new(),
        Some((Phase::Backup, cause)) => {
            let handed_over = cause == Cause::HandedOver;
            // A hold is the operator's will too, but ends when he says so.
            others(Phase::Master, Event::GroupBackup { handed_over, yields: members[who].yielded })
        }
        // Faults are examined for all members at once, and each stops for itself.
        Some((Phase::Init | Phase::Fault, _)) => Vec::new(),
        None if members[who].phase() == Phase::Backup && members.iter().all(|member| member.ready()) => {
            let backups = || members.iter().enumerate().filter(|(_, member)| member.phase() == Phase::Backup);
            let asks = backups().all(|(_, member)| member.may_ask());
            let event = if asks { Event::GroupAsk } else { Event::GroupMaster };
            backups().map(|(at, _)| (at, event)).collect()
        }
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
