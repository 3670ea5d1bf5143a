//! The right of this node's dataplane to answer for the addresses: given with every advertisement, taken back with the
//! master's role. And what is done about others who answer for them.

use super::{
    super::{fsm::Phase, keeper::Wish, notice::Notice, timing::Moment},
    Heartbeat, NOTICE_PERIOD,
};
use crate::model::VrrpName;
use lb_common::abi::Lease;
use std::{fmt, net::IpAddr, sync::atomic::Ordering::Relaxed};

/// Another node says that an address is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub address: IpAddr,
    pub mac: [u8; 6],
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.mac;
        write!(f, "{} is claimed by {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}", self.address)
    }
}

impl Heartbeat {
    /// The backups wait so many intervals and their skew from the advertisement that has just gone: when the first of
    /// them takes over, the lease has run out.
    pub(super) fn renew(&self, at: usize, now: Moment) {
        let router = &self.routers[at];
        let Some(lease) = router.order.lease() else { return };
        let ends = now + router.spec.advert_interval * u32::from(router.spec.down_adverts);
        lease.store(Lease::until(ends.0, self.peer_alive));
    }

    pub(super) fn end_lease(&mut self, at: usize) {
        let router = &mut self.routers[at];
        router.master_since = None;
        if let Some(lease) = router.order.lease() {
            lease.store(Lease::OVER);
        }
    }

    fn masters(&self) -> impl Iterator<Item = usize> {
        (0..self.routers.len()).filter(|at| self.routers[*at].machine.phase() == Phase::Master)
    }

    pub(super) fn peer_alive(&mut self, alive: bool, now: Moment) {
        if self.peer_alive != alive {
            self.peer_alive = alive;
            self.masters().for_each(|at| self.renew(at, now));
        }
    }

    /// Seen over the link: the advertisements of one or both do not get through, and VRRP cannot settle it.
    pub(super) fn peer_is_master(&mut self, name: &VrrpName, (source, priority): (IpAddr, u8), now: Moment) {
        let Some(at) = self.masters().find(|at| self.routers[*at].spec.name == *name) else { return };
        let router = &mut self.routers[at];
        router.counters.split_brains.fetch_add(1, Relaxed);
        if router.split_told.is_none_or(|told| now.since(told) >= NOTICE_PERIOD) {
            router.split_told = Some(now);
            self.notices.send(Notice::BothMasters { name: router.spec.name.clone(), source });
        }
        // Of two that answer, hosts had better believe the same one.
        if router.machine.priority() > priority {
            self.say(at, Wish::Keep);
        }
    }

    /// The better master has no other way to learn that there were two, and that hosts may believe this one: it
    /// announces the addresses again when it hears a lesser master.
    pub(super) fn last_word(&mut self, at: usize) {
        let priority = self.routers[at].machine.priority();
        self.send(at, priority);
    }

    /// Announced again, no more often than once a second; VRRP settles who is master.
    pub(super) fn claimed(&mut self, claim: Claim, now: Moment) {
        let has = |at: &usize| {
            let router = &self.routers[*at];
            // What the last master said before it knew better is no claim.
            router.spec.addresses.iter().any(|net| net.addr() == claim.address)
                && router.master_since.is_some_and(|since| since.0 < claim.time_ns)
        };
        let Some(at) = self.masters().find(has) else { return };
        let router = &mut self.routers[at];
        router.counters.claims.fetch_add(1, Relaxed);
        let told = router.claim_told.is_some_and(|told| now.since(told) < NOTICE_PERIOD);
        if !told {
            router.claim_told = Some(now);
            self.notices.send(Notice::Claimed { name: router.spec.name.clone(), claim });
        }
        self.say(at, Wish::Keep);
    }
}
