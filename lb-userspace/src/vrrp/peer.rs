//! The peer, as far as VRRP talks with it over the sync link: two one-way streets, on neither of which anybody waits.

use super::{
    heartbeat::{Inbox, Request},
    timing::Moment,
};
use crate::{link::wire::Role, model::VrrpName};
use std::{fmt, sync::Arc, time::Duration};

/// From the heartbeat to the link.
pub trait Peer: Send + Sync {
    /// Whether a word would find the peer that it is for.
    fn reaches(&self, role: Role, instance: &VrrpName) -> bool;
    fn say(&self, role: Role, instance: &VrrpName);
}

/// Somebody to talk to.
#[derive(Clone)]
pub(super) struct Post(pub Arc<dyn Peer>);

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Post")
    }
}

/// What the link, and the daemon for it, tell the heartbeat.
#[derive(Debug, Clone)]
pub(super) enum Word {
    /// The peer takes part from now on.
    Connect(Post),
    TakeOver(VrrpName),
    Granted(VrrpName),
    MakeWay(VrrpName),
    Silent(Vec<VrrpName>, Duration),
    /// Routers that have not the peer's state yet, and until when that counts.
    Gate(Vec<VrrpName>, Moment),
}

/// From the link to the heartbeat.
#[derive(Debug, Clone)]
pub struct Words(pub(super) Inbox);

impl Words {
    fn send(&self, word: Word) {
        // Ended: nobody is master here. Full: what is planned ends by its own timer.
        let _ = self.0.send(Request::Word(word));
    }

    /// The master asks this node to take over.
    pub fn take_over(&self, instance: VrrpName) {
        self.send(Word::TakeOver(instance));
    }

    /// The successor has taken over.
    pub fn granted(&self, instance: VrrpName) {
        self.send(Word::Granted(instance));
    }

    /// A better node asks for the master's role.
    pub fn make_way(&self, instance: VrrpName) {
        self.send(Word::MakeWay(instance));
    }

    /// The master of these routers has sent its last heartbeat; they came at this interval.
    pub fn peer_silent(&self, instances: Vec<VrrpName>, interval: Duration) {
        self.send(Word::Silent(instances, interval));
    }
}
