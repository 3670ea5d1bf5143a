//! Two masters at once, as the sync link shows them: each node knows the other's state by it, also where no advertisement
//! gets through.

use super::engine::Engine;
use crate::{
    model::{VrrpName, VrrpSpec},
    vrrp::Phase,
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// An agreed hand-over makes both master for milliseconds, a forced one for the time of the agreement.
const LEAST: Duration = Duration::from_secs(2);
/// The peer says something every second; what it said before it died or hung is no news.
const NEWS: u32 = 3;
const NEWS_APART: Duration = Duration::from_millis(500);

/// An instance of which both say that they are master.
#[derive(Debug, Clone)]
struct Found {
    name: VrrpName,
    peer: Arc<str>,
    address: IpAddr,
    priority: u8,
    /// Bytes that came from the peer so far.
    received: u64,
    /// How long a backup waits for a master, at most.
    takeover: Duration,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    received: u64,
    news: u32,
    last_news: Instant,
}

/// Since when both are master of an instance.
#[derive(Debug, Default)]
pub(super) struct Both(BTreeMap<(VrrpName, Arc<str>), Seen>);

impl Both {
    /// Those that have lasted too long for a change of master that goes as it should.
    fn look(&mut self, found: Vec<Found>, now: Instant) -> Vec<Found> {
        self.0.retain(|(name, peer), _| found.iter().any(|f| f.name == *name && f.peer == *peer));
        let lasts = |found: &Found| {
            let new = || Seen { since: now, received: found.received, news: 0, last_news: now };
            let seen = self.0.entry((found.name.clone(), Arc::clone(&found.peer))).or_insert_with(new);
            if found.received != seen.received && now.duration_since(seen.last_news) >= NEWS_APART {
                (seen.received, seen.last_news) = (found.received, now);
                seen.news += 1;
            }
            // And the last news is no older than two of the peer's pings.
            seen.news >= NEWS
                && now.duration_since(seen.last_news) <= LEAST
                && now.duration_since(seen.since) >= LEAST + found.takeover
        };
        found.into_iter().filter(lasts).collect()
    }
}

/// The intervals that may be missed, and the skew, which is one at most.
fn takeover(spec: &VrrpSpec) -> Duration {
    spec.advert_interval * (u32::from(spec.down_adverts) + 1)
}

impl Engine {
    /// Tells the heartbeat of instances that both nodes are master of; once a second.
    pub(super) fn look_for_two_masters(&mut self) {
        let Some(link) = self.pair.handover.link.clone() else { return };
        let views = self.pair.views();
        let masters = || views.iter().filter(|view| view.phase == Phase::Master);
        let mut found = Vec::new();
        if masters().next().is_some() {
            for peer in link.view().peers {
                for view in masters() {
                    let name = &view.spec.name;
                    let theirs = peer.status.instances.get(name).filter(|theirs| theirs.state == "master");
                    found.extend(theirs.map(|theirs| Found {
                        name: name.clone(),
                        peer: Arc::clone(&peer.name),
                        address: peer.address.ip().to_canonical(),
                        priority: theirs.priority,
                        received: peer.received,
                        takeover: takeover(&view.spec),
                    }));
                }
            }
        }
        let lasting = self.pair.both.look(found, Instant::now());
        let Some(vrrp) = self.pair.vrrp() else { return };
        for Found { name, address, priority, .. } in lasting {
            // It comes again, if it lasts.
            let _ = vrrp.peer_is_master(name, address, priority);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn found(received: u64) -> Vec<Found> {
        vec![Found {
            name: "public".parse().unwrap(),
            peer: "lb2".into(),
            address: [10, 9, 0, 2].into(),
            priority: 100,
            received,
            takeover: 2 * SECOND,
        }]
    }

    #[test]
    fn it_must_last() {
        let (mut both, begun) = (Both::default(), Instant::now());
        for second in 0..4 {
            assert!(both.look(found(second), begun + SECOND * second as u32).is_empty(), "{second}");
        }
        assert_eq!(both.look(found(4), begun + 4 * SECOND).len(), 1);
        assert_eq!(both.look(found(5), begun + 5 * SECOND).len(), 1, "every second while it lasts");
        // One of them left: it begins anew.
        assert!(both.look(Vec::new(), begun + 6 * SECOND).is_empty());
        for second in 7..11 {
            assert!(both.look(found(second), begun + SECOND * second as u32).is_empty(), "{second}");
        }
        assert_eq!(both.look(found(11), begun + 11 * SECOND).len(), 1);
    }

    #[test]
    fn a_peer_that_says_nothing_more_is_none() {
        let (mut both, begun) = (Both::default(), Instant::now());
        for second in 0..60 {
            assert!(both.look(found(7), begun + SECOND * second).is_empty(), "{second}");
        }
        // Many words in one moment are one: what waited for this node came at once.
        for word in 0..60 {
            let at = begun + 60 * SECOND + Duration::from_millis(word);
            assert!(both.look(found(8 + word), at).is_empty(), "{word}");
        }
        // It talked, and then it died.
        let mut both = Both::default();
        for second in 0..4 {
            both.look(found(second), begun + SECOND * second as u32);
        }
        for second in 6..60 {
            assert!(both.look(found(3), begun + SECOND * second).is_empty(), "{second}");
        }
    }
}
