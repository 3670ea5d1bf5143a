//! What is known of the authority, from keys, leases and the time. Pure: the caller passes the time.

use super::Authority;
use std::time::{Duration, Instant};

/// This node's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub id: i64,
    pub ttl: Duration,
    /// Until then etcd keeps it for certain.
    pub until: Instant,
}

impl Lease {
    /// One that was asked for, or renewed, at `sent`: etcd counts from when it got that, which was not before.
    pub fn renewed(id: i64, ttl: Duration, sent: Instant) -> Self {
        Self { id, ttl, until: sent + ttl }
    }
}

/// Who holds the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub node: String,
    /// The lease it ends with.
    pub lease: i64,
    pub epoch: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Election {
    lease: Option<Lease>,
    holder: Option<Holder>,
    /// The revision of etcd that `holder` is as of.
    revision: u64,
    epoch: u64,
}

impl Election {
    pub fn lease(&self) -> Option<Lease> {
        self.lease
    }

    pub fn set_lease(&mut self, lease: Option<Lease>) {
        self.lease = lease;
    }

    /// The key as of a revision; what is older than what is known already tells nothing.
    pub fn learn(&mut self, holder: Option<Holder>, revision: u64) {
        if revision < self.revision {
            return;
        }
        self.revision = revision;
        if let Some(holder) = &holder {
            self.epoch = holder.epoch;
        }
        self.holder = holder;
    }

    /// A state of etcd read anew, which counts whatever was known: etcd may have been set up anew with lower revisions.
    pub fn learn_anew(&mut self, holder: Option<Holder>, revision: u64) {
        self.revision = revision;
        self.learn(holder, revision);
    }

    /// Nobody holds the key, and this node could.
    pub fn is_open(&self, now: Instant) -> bool {
        self.holder.is_none() && self.lease.is_some_and(|lease| now < lease.until)
    }

    pub fn authority(&self, now: Instant) -> Authority {
        let unknown = Authority { mine: false, holder: None, epoch: self.epoch };
        let Some(lease) = self.lease.filter(|lease| now < lease.until) else { return unknown };
        self.holder.as_ref().map_or(unknown, |holder| Authority {
            mine: holder.lease == lease.id,
            holder: Some(holder.node.clone()),
            epoch: holder.epoch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn holder(node: &str, lease: i64, epoch: u64) -> Option<Holder> {
        Some(Holder { node: node.to_owned(), lease, epoch })
    }

    fn shown(election: &Election, now: Instant) -> (bool, Option<String>, u64) {
        let Authority { mine, holder, epoch } = election.authority(now);
        (mine, holder, epoch)
    }

    #[test]
    fn it_is_this_nodes_as_long_as_its_lease_and_no_longer() {
        let begun = Instant::now();
        let mut election = Election::default();
        assert!(!election.is_open(begun), "without a lease nobody stands");
        election.set_lease(Some(Lease::renewed(7, TTL, begun)));
        assert!(election.is_open(begun));
        election.learn(holder("lb1", 7, 20), 20);
        assert!(!election.is_open(begun));
        let last = begun + TTL - Duration::from_nanos(1);
        assert_eq!(shown(&election, last), (true, Some("lb1".to_owned()), 20));
        assert_eq!(shown(&election, begun + TTL), (false, None, 20), "though nobody said so");
        election.set_lease(Some(Lease::renewed(7, TTL, begun + TTL)));
        assert_eq!(
            shown(&election, begun + TTL),
            (true, Some("lb1".to_owned()), 20),
            "etcd kept it after all"
        );
        election.set_lease(Some(Lease::renewed(8, TTL, begun + TTL)));
        assert!(!election.authority(begun + TTL).mine, "a new lease holds nothing");
    }

    #[test]
    fn a_key_of_the_same_name_and_another_lease_is_not_this_nodes() {
        let now = Instant::now();
        let mut election = Election::default();
        election.set_lease(Some(Lease::renewed(7, TTL, now)));
        election.learn(holder("lb1", 6, 20), 20);
        assert_eq!(shown(&election, now), (false, Some("lb1".to_owned()), 20));
    }

    #[test]
    fn old_news_change_nothing() {
        let now = Instant::now();
        let mut election = Election::default();
        election.set_lease(Some(Lease::renewed(7, TTL, now)));
        // The answer to the election overtakes the news that the one before is gone.
        election.learn(holder("lb1", 7, 21), 21);
        election.learn(None, 20);
        assert!(election.authority(now).mine);
        election.learn(None, 22);
        assert_eq!(shown(&election, now), (false, None, 21), "the epoch is kept");
        assert!(election.is_open(now));
        election.learn_anew(holder("lb2", 9, 3), 4);
        assert_eq!(shown(&election, now), (false, Some("lb2".to_owned()), 3), "etcd was set up anew");
    }
}
