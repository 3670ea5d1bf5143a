//! Entries of flows that all nodes of a fleet forward: which of this node's tables are its own word, and which are what others told.

use super::{Key, Offer, Scope, Value};
use lb_common::abi::FlowEntry;
use std::collections::HashMap;

/// What an entry of this node's tables is to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This node tells of it.
    Own,
    /// Another node does. Who comes is told of it once, for that node may be gone. Dated ahead by so many units.
    Copied(u16),
    /// Nobody has a use for it: replies of a NAT session come to the node that made it.
    Private,
}

/// The entries of this node's tables that are as a peer told them: no packet of theirs has come through this node since. All
/// others this node tells itself. At most as many as the tables hold.
#[derive(Debug, Default)]
pub struct Copies {
    held: HashMap<Key, Copy>,
    round: u32,
}

#[derive(Debug)]
struct Copy {
    entry: FlowEntry,
    isn: u32,
    lead: u16,
    round: u32,
}

impl Copies {
    /// Entries that are copies, as far as is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A look at every entry of the tables begins.
    pub fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// An entry that is there. Of a copy, by how many units it is dated ahead.
    pub(super) fn meets(&mut self, key: &Key, value: &Value) -> Option<u16> {
        let copy = self.held.get_mut(key)?;
        if (copy.entry, copy.isn) == (value.entry, value.isn) {
            copy.round = self.round;
            return Some(copy.lead);
        }
        // A packet has come, and this node knows better.
        self.held.remove(key);
        None
    }

    /// Every entry was shown: what was not is gone.
    pub fn end(&mut self) {
        let round = self.round;
        self.held.retain(|_, copy| copy.round == round);
    }

    /// No entry of the tables matters any more.
    pub fn clear(&mut self) {
        self.held = HashMap::new();
    }

    /// True if what a peer offers is to be written over what is here.
    ///
    /// The same backend: if it makes the entry live longer, since a peer tells of its packets only now and then. Another one, or
    /// another state of the flow: if the peer has met a later packet than this node.
    #[must_use]
    pub fn takes(&self, key: &Key, here: Option<&Value>, value: &Value, offer: Offer, scope: &Scope) -> bool {
        let Some(here) = here else { return true };
        let newer = |a: u16, b: u16| (1..=u16::MAX / 2).contains(&a.wrapping_sub(b));
        let (ours, theirs) = (here.entry, value.entry);
        if (undated(ours), here.isn) == (undated(theirs), value.isn) {
            return newer(theirs.seen(), ours.seen());
        }
        if !scope.is_alive(ours) {
            return true;
        }
        let copy = self.held.get(key).filter(|copy| (copy.entry, copy.isn) == (ours, here.isn));
        let ours_met = ours.seen().wrapping_sub(copy.map_or(0, |copy| copy.lead));
        let theirs_met = theirs.seen().wrapping_sub(offer.lead);
        // A flow that ends is followed by one with the same addresses sooner than the clock of entries can tell.
        let over = ours.is_closing() && !theirs.is_closing();
        newer(theirs_met, ours_met) || over && theirs_met == ours_met
    }

    /// What a peer offered was written.
    pub fn wrote(&mut self, key: Key, value: &Value, offer: Offer) {
        let copy = Copy { entry: value.entry, isn: value.isn, lead: offer.lead, round: self.round };
        self.held.insert(key, copy);
    }
}

/// What an entry says but for its time.
fn undated(entry: FlowEntry) -> u64 {
    super::entry::with_seen(entry, 0).0
}
