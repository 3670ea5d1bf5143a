//! What a machine is told, what it says is to be done, and why.

use super::Phase;
use std::{cmp::Ordering, net::IpAddr, time::Duration};

/// An advertisement for this virtual router that passed all checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    pub priority: u8,
    pub interval: Duration,
    pub source: IpAddr,
    /// The sender's address compared with this node's own; `Equal` if the packet's family decides no tie.
    pub order: Ordering,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Start,
    /// A graceful stop.
    Stop,
    Advert(Heard),
    /// The moment of [`Machine::deadline`] has come; earlier, nothing happens.
    Timer,
    /// A master's needs are no longer met.
    Fail,
    /// They are met again.
    Recover,
    /// What tracking adds to the priority.
    Weight(i16),
    Hold,
    Release,
    /// The operator wants this node to give the addresses away. `agreed`: the peer can be asked.
    HandOver {
        agreed: bool,
    },
    /// The master asks this node to take over.
    HandoverRequested,
    /// The peer has taken over.
    HandoverGranted,
    /// A better node asks for the master's role, or the operator held this one: the peer can be asked.
    MakeWay,
    /// The addresses are on the interface, and announced.
    Acquired,
    /// The master's heartbeats over the link, which come at this interval, have ended.
    PeerSilent(Duration),
    /// The group is master from now on.
    GroupMaster,
    /// The group, better than the master, asks it to hand over each of its members.
    GroupAsk,
    /// The group is not master any more. `handed_over`: the peer is. `yields`: by the operator's will.
    GroupBackup {
        handed_over: bool,
        yields: bool,
    },
    /// A faster detector says that the master is gone.
    MasterLost,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// An advertisement with this priority.
    Send(u8),
    /// Put the addresses on the interface and announce them.
    Acquire,
    /// Take them off.
    Release,
    /// Announce the addresses once more: somebody else did.
    Announce,
    /// Ask the peer to take over.
    AskPeer,
    /// Ask the master of lower priority to hand over.
    AskMaster,
    /// Tell the old master that this node has taken over.
    Grant,
    Entered(Phase, Cause),
}

/// Why the state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Started,
    Stopped,
    /// This node is the owner of the addresses.
    Owner,
    MasterSilent,
    MasterLeft,
    /// Its heartbeats over the link have ended.
    MasterSilentOnLink,
    /// The master had a lower priority.
    Preempted,
    Superior(IpAddr),
    Failed,
    Recovered,
    Held,
    HandedOver,
    TakenOver,
    /// What became of another member of its group.
    Group,
    /// The BFD session with the master went down.
    MasterUnreachable,
}

impl Cause {
    /// For the log and `lbctl pair`.
    pub fn describe(self) -> String {
        match self {
            Self::Started => "started".to_owned(),
            Self::Stopped => "stopped".to_owned(),
            Self::Owner => "started as owner of the addresses".to_owned(),
            Self::MasterSilent => "no master was heard".to_owned(),
            Self::MasterSilentOnLink => "the master's heartbeats have ended".to_owned(),
            Self::MasterLeft => "the master left".to_owned(),
            Self::Preempted => "the master has a lower priority".to_owned(),
            Self::Superior(source) => format!("{source} is a better master"),
            Self::Failed => "a fault".to_owned(),
            Self::Recovered => "the fault is gone".to_owned(),
            Self::Held => "held by the operator".to_owned(),
            Self::HandedOver => "handed over to the peer".to_owned(),
            Self::TakenOver => "the master handed over".to_owned(),
            Self::Group => "with its group".to_owned(),
            Self::MasterUnreachable => "the BFD session with the master went down".to_owned(),
        }
    }
}
