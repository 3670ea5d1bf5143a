//! Slots of the services whose flows all nodes of a fleet forward: whose words hold on this node, and what happens when that changes.

use super::{engine::Engine, mirror::PartName};
use crate::{
    fleet::Authority,
    flowsync::{Charge, Claim, Judge, PATIENCE},
    model::ServiceName,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// What this node knows of it. Nothing without `[fleet]` and `[sync]`.
#[derive(Debug, Default)]
pub(super) struct Words {
    judge: Option<Judge>,
    authority: Authority,
    /// Parts that keep words of an authority that has not repeated them in its present epoch, and since when.
    stale: BTreeMap<u32, Instant>,
    /// This node had all words and flows of the others once, or did not get them in time.
    ready: bool,
    /// Packets may have come to some node by words that this one has had.
    served: bool,
}

impl Words {
    pub(super) fn is_on(&self) -> bool {
        self.judge.is_some()
    }

    /// Whose words this node has.
    pub(super) fn claim(&self) -> Claim {
        self.judge.as_ref().map(Judge::claim).unwrap_or_default()
    }

    /// Nodes are sent packets by the words of this one.
    pub(super) fn rules(&self) -> bool {
        self.served && self.claim().leads
    }

    /// Takes note that this node is sent packets.
    pub(super) fn serve(&mut self) {
        self.served = true;
    }

    /// Whether words are to be followed that a peer has said as the fleet's authority in this epoch; those of VRRP masters are.
    pub(super) fn takes(&self, fleet: Option<u64>) -> bool {
        let charge = self.judge.as_ref().map(Judge::charge);
        fleet.is_none_or(|said| matches!(charge, Some(Charge::Follows(_, epoch)) if *epoch == said))
    }

    /// The words of a part have come.
    pub(super) fn came(&mut self, part: u32) {
        self.stale.remove(&part);
    }
}

impl Engine {
    /// What the daemon before this one left is kept until somebody decides: it may have been an authority's.
    pub(super) fn adopt_words(&mut self) {
        let adopted = !self.image.services.is_empty();
        if !self.shares_words() {
            return;
        }
        let now = Instant::now();
        let words = &mut self.mirror.words;
        words.judge = Some(Judge::new(adopted, now));
        (words.ready, words.served) = (adopted, adopted);
        if adopted {
            self.freeze_words();
        }
    }

    /// The election has a result, or it is lost.
    pub(super) fn follow_authority(&mut self, authority: Authority) {
        if self.mirror.words.authority == authority {
            return;
        }
        if authority.mine {
            // What came before is the last word of the one before.
            self.mirror.settle();
            self.follow_words();
        }
        let words = &mut self.mirror.words;
        if authority.epoch < words.authority.epoch
            && let Some(judge) = &mut words.judge
        {
            tracing::warn!(
                epoch = authority.epoch,
                "etcd was set up anew: epochs count from its present one"
            );
            judge.begin_anew();
        }
        words.authority = authority;
        self.mirror_news();
    }

    fn shares_words(&self) -> bool {
        self.config.fleet.is_some() && self.config.sync.is_some()
    }

    /// How many peers should be linked: all that live, as far as etcd tells.
    fn peers_expected(&self) -> usize {
        let others = self.fleet_nodes().map_or(usize::MAX, |nodes| nodes.saturating_sub(1));
        others.min(self.config.sync.as_ref().map_or(0, |sync| sync.peers.len()))
    }

    /// How long the last words of an authority hold that is gone.
    fn hold(&self) -> Duration {
        PATIENCE + self.config.fleet.as_ref().map_or(Duration::ZERO, |fleet| fleet.lease)
    }

    /// The parts whose flows all nodes forward, by their ids.
    fn shared_parts(&self) -> BTreeMap<u32, PartName> {
        let shared =
            |((name, instance), id): (PartName, u32)| instance.is_empty().then_some((id, (name, instance)));
        self.parts().into_iter().filter_map(shared).collect()
    }

    /// Judges who decides, and acts on it.
    pub(super) fn tend_words(&mut self, now: Instant) {
        let on = self.shares_words();
        if on != self.mirror.words.is_on() {
            self.mirror.changed();
            if on {
                let words = &mut self.mirror.words;
                words.judge = Some(Judge::new(false, now));
                // Turned on in the middle: packets come already.
                (words.ready, words.served) = (true, true);
            } else {
                self.release_words(|_| true, now);
                self.mirror.shared.metrics.decides.store(0, Ordering::Relaxed);
                self.mirror.words.judge = None;
                self.mirror.words.stale.clear();
                self.tracking.note_shared([], now);
            }
        }
        let hold = self.hold();
        let claims = self.shared_inbox().claims.clone();
        let peers = claims.len();
        let (ready, expected) = (self.mirror.words.ready, self.peers_expected());
        let Words { judge: Some(judge), authority, .. } = &mut self.mirror.words else { return };
        let before = judge.charge().clone();
        // The words of this node would be another's than those that the others have.
        let known = claims.values().map(|claim| claim.epoch).max().unwrap_or(0);
        let stands = judge.claim().epoch > 0 || ready || known == 0 && peers >= expected;
        let mine = authority.mine && stands;
        if judge.judge(authority.epoch, mine, claims, hold, now) {
            self.mirror.changed();
            self.charge_changed(&before, now);
        }
        self.stand(stands);
        let silent: BTreeSet<u32> = match self.mirror.words.judge.as_ref().map(Judge::charge) {
            Some(Charge::Follows(..)) => {
                let stale = self.mirror.words.stale.iter();
                stale.filter(|(_, since)| now - **since >= hold).map(|(id, _)| *id).collect()
            }
            _ => BTreeSet::new(),
        };
        if !silent.is_empty() {
            tracing::warn!(
                parts = silent.len(),
                "the fleet's authority does not have these services: this node decides for itself"
            );
            self.release_words(|id| silent.contains(&id), now);
        }
        let decides = match self.mirror.words.judge.as_ref().map(Judge::charge) {
            None => 0,
            Some(Charge::Leads(_)) => 1,
            Some(Charge::Follows(..)) => 2,
            Some(Charge::Holds(_)) => 3,
            Some(Charge::Alone) => 4,
        };
        self.mirror.shared.metrics.decides.store(decides, Ordering::Relaxed);
        self.open_words_gate(peers);
        let unsure = self.mirror.shared.unsure().unwrap_or(self.started);
        let shared: Vec<u32> = self.shared_parts().into_keys().collect();
        self.tracking.note_shared(shared, unsure);
    }

    fn charge_changed(&mut self, before: &Charge, now: Instant) {
        let Some(charge) = self.mirror.words.judge.as_ref().map(|judge| judge.charge().clone()) else {
            return;
        };
        if matches!(before, Charge::Leads(_)) && !matches!(charge, Charge::Leads(_) | Charge::Alone) {
            self.freeze_words();
        }
        let shared = self.shared_parts();
        let followed = shared.keys().filter(|id| self.image.followed.contains_key(id));
        self.mirror.words.stale = followed.map(|id| (*id, now)).collect();
        match &charge {
            Charge::Leads(epoch) => {
                tracing::info!(epoch, "this node decides over the slots of the fleet");
                self.release_words(|_| true, now);
            }
            Charge::Follows(peer, epoch) => {
                self.mirror.words.served = true;
                tracing::info!(%peer, epoch, "another node decides over the slots of the fleet");
            }
            Charge::Holds(_) => tracing::warn!(
                keeps = ?self.hold(),
                "nobody decides over the slots of the fleet: they stay as they are for a while"
            ),
            Charge::Alone => {
                tracing::warn!("no authority of the fleet for too long: this node decides for itself");
                self.release_words(|_| true, now);
            }
        }
    }

    /// The words of the parts stay as they are.
    fn freeze_words(&mut self) {
        let epoch = self.mirror.words.judge.as_ref().map_or(0, |judge| judge.claim().epoch);
        for id in self.shared_parts().into_keys() {
            if !self.image.followed.contains_key(&id) {
                self.image.freeze(id, epoch);
            }
        }
    }

    /// This node decides over parts that followed: from the words they have, and what moves begins to move anew.
    fn release_words(&mut self, which: impl Fn(u32) -> bool, now: Instant) {
        let mut released = self.shared_parts();
        released.retain(|id, _| which(*id) && self.image.followed.remove(id).is_some());
        for id in released.keys() {
            self.mirror.words.stale.remove(id);
        }
        if released.is_empty() {
            return;
        }
        self.tracking.restart(released.keys().copied(), &self.image, now);
        let names: BTreeSet<ServiceName> =
            released.values().filter_map(|(name, _)| name.parse().ok()).collect();
        if let Err(error) = self.converge_part(&names) {
            tracing::error!(%error, "could not decide over slots that another node decided over; forwarding goes on as before");
        }
    }

    fn open_words_gate(&mut self, peers: usize) {
        let Some(sync) = &self.config.sync else { return };
        let words = &self.mirror.words;
        let charge = words.judge.as_ref().map(Judge::charge);
        let has_all = match charge {
            Some(Charge::Leads(_)) => true,
            Some(Charge::Follows(..)) => peers >= self.peers_expected() && self.mirror.is_ready(),
            _ => false,
        };
        if !words.ready && (has_all || self.started.elapsed() >= sync.takeover_wait) {
            if !has_all {
                tracing::warn!(
                    "not every node of the fleet has told its slots and flows in time: this one goes on without"
                );
            }
            self.mirror.words.ready = true;
        }
    }

    /// Why this node should not be sent packets yet, as far as the fleet's slots and flows go.
    pub(super) fn words_missing(&self) -> Option<String> {
        let words = &self.mirror.words;
        let missing = words.is_on() && !words.ready;
        missing.then(|| "slots and flows of the fleet's other nodes are not here yet".to_owned())
    }

    /// For `lbctl status`.
    pub(super) fn words_warning(&self) -> Option<String> {
        match self.mirror.words.judge.as_ref()?.charge() {
            Charge::Leads(_) | Charge::Follows(..) => None,
            Charge::Holds(since) => Some(format!(
                "no authority of the fleet for {} s: its slots are kept as they are for {} s, then this node decides for itself",
                since.elapsed().as_secs(),
                self.hold().as_secs()
            )),
            Charge::Alone => Some(
                "no authority of the fleet: this node decides over its slots by itself (see etcd, and the sync links)"
                    .to_owned(),
            ),
        }
    }
}
