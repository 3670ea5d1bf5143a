//! What the heartbeat hears.

use super::{
    super::{
        fsm::{Event, Heard},
        notice::Notice,
        packet::{self, Advert, Datagram, Expect, HOP_LIMIT, Refusal},
        socket::Arrived,
        timing::Moment,
        wake::clock,
    },
    Heartbeat, NOTICE_PERIOD,
    judge::mismatch,
    router::Router,
};
use crate::model::Family;
use std::{
    cmp::Ordering,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Packets read from one socket before the others and the timers have their turn.
const BATCH: usize = 64;

impl Heartbeat {
    pub(super) fn read_packets(&mut self) {
        let ports: Vec<_> = self.ports().map(|(name, port)| (name.clone(), Arc::clone(port))).collect();
        for (interface, port) in ports {
            for _ in 0..BATCH {
                // An error of the socket (the interface is gone) is told by the keeper.
                let Ok(Some(arrived)) = port.receive() else { break };
                self.packet(&interface, &arrived);
            }
        }
    }

    fn packet(&mut self, interface: &str, arrived: &Arrived) {
        let Arrived { source, destination, hop_limit, .. } = *arrived;
        let datagram = Datagram { source, destination, hop_limit, payload: arrived.payload() };
        let judged = packet::parse(&datagram).and_then(|(advert, _)| {
            let at = self.judge(interface, &datagram, &advert)?;
            Ok((at, advert))
        });
        match judged {
            Ok((at, advert)) => self.heard(at, interface, &advert, source),
            Err(refusal) => self.refuse(interface, source, refusal),
        }
    }

    /// Which router an advertisement is for.
    fn judge(&self, interface: &str, datagram: &Datagram<'_>, advert: &Advert) -> Result<usize, Refusal> {
        let family = Family::of(datagram.source);
        let is_for = |router: &Router| {
            let spec = &router.spec;
            spec.interface == interface
                && spec.router_id == advert.router_id
                && spec.families().any(|own| own == family)
        };
        let Some(at) = self.routers.iter().position(is_for) else {
            packet::check_hop_limit(datagram, HOP_LIMIT)?;
            return Err(Refusal::RouterId(advert.router_id));
        };
        let router = &self.routers[at];
        let local = self.interfaces.get(interface).map_or(&[][..], |interface| &interface.nets);
        let expect = Expect {
            version: router.spec.version,
            owner: router.machine.owns(),
            interval: router.spec.advert_interval,
            local,
            peers: &router.spec.unicast_peers,
            min_ttl: router.spec.lowest_ttl(family),
        };
        advert.check(datagram, &expect)?;
        Ok(at)
    }

    fn heard(&mut self, at: usize, interface: &str, advert: &Advert, source: IpAddr) {
        let family = Family::of(source);
        let router = &mut self.routers[at];
        router.sources[usize::from(family == Family::V6)] = Some(source);
        router.counters.received.fetch_add(1, Relaxed);
        let towards = if router.spec.unicast_peers.is_empty() { family.vrrp_group() } else { source };
        let own = self.interfaces.get(interface).and_then(|interface| interface.source(towards));
        // The first family decides ties.
        let order = match own {
            Some(own) if router.spec.families().next() == Some(family) => source.cmp(&own),
            _ => Ordering::Equal,
        };
        if advert.priority == 0 {
            router.counters.received_zero.fetch_add(1, Relaxed);
        } else if router.master != Some((source, advert.priority)) {
            router.master = Some((source, advert.priority));
            self.changed = true;
        }
        let mismatch = mismatch(&router.spec, advert, family);
        if advert.priority > 0 && mismatch != router.mismatch {
            if let Some(text) = &mismatch {
                let (name, text) = (router.spec.name.clone(), text.clone());
                self.notices.send(Notice::Mismatch { name, source, text });
            }
            router.mismatch = mismatch;
        }
        let heard = Heard { priority: advert.priority, interval: advert.interval, source, order };
        self.step(at, Event::Advert(heard), clock());
    }

    fn refuse(&mut self, interface: &str, source: IpAddr, refusal: Refusal) {
        let now = clock();
        self.refused.count(refusal.label());
        let (told, more) = self.refusals_told.entry(refusal.label()).or_insert((Moment(0), 0));
        if *told != Moment(0) && now.since(*told) < NOTICE_PERIOD {
            *more += 1;
            return;
        }
        let more = std::mem::take(more);
        *told = now;
        self.notices.send(Notice::Refused { interface: interface.to_owned(), source, refusal, more });
    }
}
