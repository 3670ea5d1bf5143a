//! Who decides over the slots of the parts whose flows all nodes of a fleet forward.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Words of an authority that is gone are kept for so much longer than its lease; then every node decides for itself. Longer
/// than an election takes, so that a new authority comes first where there can be one.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Whose words a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim {
    /// Of the authority that said them; 0: of none.
    pub epoch: u64,
    /// The node is that authority.
    pub leads: bool,
}

/// Who decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// This node, for itself alone: no authority was ever known, or none for too long.
    Alone,
    /// This node, for all: it is the authority, in this epoch.
    Leads(u64),
    /// The peer of this name, in this epoch.
    Follows(Arc<str>, u64),
    /// Nobody: the authority is gone since then, and its last words hold.
    Holds(Instant),
}

/// Judges who decides. Nothing of an epoch before one that counted once ever counts again.
#[derive(Debug)]
pub struct Judge {
    charge: Charge,
    epoch: u64,
}

impl Judge {
    /// `adopted`: this daemon goes on with the words of an earlier one, which may have been an authority's.
    #[must_use]
    pub fn new(adopted: bool, now: Instant) -> Self {
        Self { charge: if adopted { Charge::Holds(now) } else { Charge::Alone }, epoch: 0 }
    }

    #[must_use]
    pub fn charge(&self) -> &Charge {
        &self.charge
    }

    /// The epochs begin anew: etcd was set up anew.
    pub fn begin_anew(&mut self) {
        self.epoch = 0;
    }

    /// Whose words this node has.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim { epoch: self.epoch, leads: matches!(self.charge, Charge::Leads(_)) }
    }

    /// `known` is the epoch of the last election that this node knows of, `mine` whether it has won it, `claims` are those
    /// of the peers that are linked. Without an authority its last words hold for `hold`. True if somebody else decides than before.
    pub fn judge(
        &mut self,
        known: u64,
        mine: bool,
        claims: impl IntoIterator<Item = (Arc<str>, Claim)>,
        hold: Duration,
        now: Instant,
    ) -> bool {
        let floor = self.epoch.max(known);
        let best = claims.into_iter().filter(|(_, claim)| claim.leads && claim.epoch >= floor);
        let best = best.map(|(peer, claim)| (peer, claim.epoch));
        // This node is told by etcd, the claim of the same epoch is another's mistake.
        let best = best.filter(|(_, epoch)| !(mine && *epoch <= known)).max_by_key(|(_, epoch)| *epoch);
        let next = match best {
            Some((peer, epoch)) => Charge::Follows(peer, epoch),
            None if mine && known > 0 && known >= self.epoch => Charge::Leads(known),
            None => match self.charge {
                Charge::Alone => Charge::Alone,
                Charge::Holds(since) if now.saturating_duration_since(since) >= hold => Charge::Alone,
                Charge::Holds(since) => Charge::Holds(since),
                Charge::Leads(_) | Charge::Follows(..) => Charge::Holds(now),
            },
        };
        if let Charge::Leads(epoch) | Charge::Follows(_, epoch) = next {
            self.epoch = epoch;
        }
        let changed = next != self.charge;
        self.charge = next;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Charge::{Alone, Follows, Holds, Leads};

    /// Steps of a second each: the epoch known and whether it is this node's, the claims of the peers a and b, who decides then.
    #[test]
    fn who_decides() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let follows = |peer: &Arc<str>, epoch| Follows(Arc::clone(peer), epoch);
        type Row = (&'static str, u64, (u64, bool), [u64; 2], Charge);
        let rows: Vec<Row> = vec![
            ("nobody is known", 0, (0, false), [0, 0], Alone),
            ("another is elected, its words are not here", 1, (5, false), [0, 0], Alone),
            ("they are", 2, (5, false), [5, 0], follows(&a, 5)),
            ("etcd is lost: who claims goes on", 3, (5, false), [5, 0], follows(&a, 5)),
            ("the link is lost", 4, (5, false), [0, 0], Holds(at(4))),
            ("and comes back", 5, (5, false), [5, 0], follows(&a, 5)),
            ("a newer one claims, before etcd tells", 6, (5, false), [5, 7], follows(&b, 7)),
            ("the older one does not count any more", 7, (5, false), [5, 0], Holds(at(7))),
            ("nor when the newer one is known", 8, (7, false), [5, 0], Holds(at(7))),
            ("this node is elected", 9, (9, true), [0, 7], Leads(9)),
            ("a peer claims the same epoch by mistake", 10, (9, true), [9, 0], Leads(9)),
            ("another was elected, and this node does not know", 11, (9, true), [0, 11], follows(&b, 11)),
            ("the other is gone; what this node won is over", 12, (9, true), [0, 0], Holds(at(12))),
            ("still", 31, (9, true), [0, 0], Holds(at(12))),
            ("not for ever", 32, (9, false), [0, 0], Alone),
            ("an old one comes back", 33, (9, false), [5, 0], Alone),
            ("elected again", 34, (12, true), [0, 0], Leads(12)),
            ("the lease is lost", 35, (12, false), [0, 0], Holds(at(35))),
        ];
        let mut judge = Judge::new(false, start);
        for (what, second, (known, mine), claims, expected) in rows {
            let before = judge.charge().clone();
            let claims = claims.map(|epoch| Claim { epoch, leads: epoch > 0 });
            let claims = [&a, &b].map(Arc::clone).into_iter().zip(claims);
            let changed = judge.judge(known, mine, claims, Duration::from_secs(20), at(second));
            assert_eq!(*judge.charge(), expected, "{what}");
            assert_eq!(changed, before != expected, "{what}");
        }
        let adopted = Judge::new(true, start);
        assert_eq!(*adopted.charge(), Holds(start));
    }
}
