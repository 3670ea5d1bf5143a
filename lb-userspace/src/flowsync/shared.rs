//! Entries of flows that all nodes of a fleet forward: which of this node's tables are its own word, and which are what others told.

use super::{Key, Offer, Scope, Value};
use lb_common::abi::FlowEntry;
use std::collections::HashMap;

/// What an entry of this node's tables is to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This node tells of it. Dated ahead by so many units, because another node may meet packets of it, too.
    Own(u16),
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
    taken: Taken,
    round: u32,
}

/// What becomes of an offer that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// By so many units the entry is dated ahead of the latest packet that is known of.
    lead: u16,
    /// This node has met that packet: it still tells of it.
    is_own: bool,
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

    /// An entry that is there.
    pub(super) fn meets(&mut self, key: &Key, value: &Value) -> Whose {
        let Some(copy) = self.held.get_mut(key) else { return Whose::Own(0) };
        if (copy.entry, copy.isn) == (value.entry, value.isn) {
            copy.round = self.round;
            let Taken { lead, is_own } = copy.taken;
            return if is_own { Whose::Own(lead) } else { Whose::Copied(lead) };
        }
        // A packet has come, and this node knows better.
        self.held.remove(key);
        Whose::Own(0)
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

    /// Whether what a peer offers is to be written over what is here.
    ///
    /// The same backend: if it makes the entry live longer, since a peer tells of its packets only now and then. Another one, or
    /// another state of the flow: if the peer has met a later packet than this node.
    #[must_use]
    pub fn takes(
        &self,
        key: &Key,
        here: Option<&Value>,
        value: &Value,
        offer: Offer,
        scope: &Scope,
    ) -> Option<Taken> {
        let copied = Taken { lead: offer.lead, is_own: false };
        let Some(here) = here else { return Some(copied) };
        let newer = |a: u16, b: u16| (1..=u16::MAX / 2).contains(&a.wrapping_sub(b));
        let (ours, theirs) = (here.entry, value.entry);
        let copy = self.held.get(key).filter(|copy| (copy.entry, copy.isn) == (ours, here.isn));
        let ours_met = ours.seen().wrapping_sub(copy.map_or(0, |copy| copy.taken.lead));
        let theirs_met = theirs.seen().wrapping_sub(offer.lead);
        if (undated(ours), here.isn) == (undated(theirs), value.isn) {
            let taken = if newer(theirs_met, ours_met) {
                copied
            } else {
                let is_own = copy.is_none_or(|copy| copy.taken.is_own);
                Taken { lead: theirs.seen().wrapping_sub(ours_met), is_own }
            };
            return newer(theirs.seen(), ours.seen()).then_some(taken);
        }
        if !scope.is_alive(ours) {
            return Some(copied);
        }
        // A flow that ends is followed by one with the same addresses sooner than the clock of entries can tell.
        let over = ours.is_closing() && !theirs.is_closing();
        (newer(theirs_met, ours_met) || over && theirs_met == ours_met).then_some(copied)
    }

    /// True if a peer whose offer was not taken thinks otherwise of the flow: then it, and whoever else believed it, is to be told.
    #[must_use]
    pub fn contests(here: Option<&Value>, value: &Value) -> bool {
        here.is_some_and(|here| (undated(here.entry), here.isn) != (undated(value.entry), value.isn))
    }

    /// What a peer offered was written.
    pub fn wrote(&mut self, key: Key, value: &Value, taken: Taken) {
        let copy = Copy { entry: value.entry, isn: value.isn, taken, round: self.round };
        self.held.insert(key, copy);
    }
}

/// What an entry says but for its time.
fn undated(entry: FlowEntry) -> u64 {
    super::entry::with_seen(entry, 0).0
}
