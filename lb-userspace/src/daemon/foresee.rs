//! What a change would do: the very plan that carrying it out would make, without carrying it out. And whether that is more than
//! the configuration allows at once.

use super::{engine::Engine, error::EngineError, firewall::InForce};
use crate::{
    config::Config,
    control::gradual::{BackendPlan, PlanView, ServicePlan},
    dataplane::DataplaneError,
    plan::{self, BuildError, Image, NextHopEntry, ServiceImpact, WantedService},
    state::{self, RuntimeChanges},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
};

/// The maps after a change, and once every share has reached its weight.
struct Prospect {
    next: Image,
    last: Image,
}

/// By backend: flows with an entry, and NAT sessions.
#[derive(Default)]
struct Counts {
    flows: BTreeMap<u32, u64>,
    sessions: BTreeMap<u32, u64>,
}

impl Engine {
    /// The plan, if that is all that was asked for. Refuses what is more than `max_disruption`, unless that is what was asked for.
    pub(super) fn foresee(
        &mut self,
        config: Option<&Config>,
        changes: &RuntimeChanges,
    ) -> Result<Option<PlanView>, EngineError> {
        let limited = self.config.services.iter().any(|s| s.gradual.max_disruption.is_some());
        if !self.asked.plan && (self.asked.force || !limited) {
            return Ok(None);
        }
        let prospect = self.prospect(config, changes)?;
        let impacts = plan::impact(&self.image, &prospect.next, &prospect.last);
        let counts =
            if impacts.iter().any(|i| !i.ending.is_empty()) { self.counts()? } else { Counts::default() };
        let services: Vec<_> = impacts.iter().map(|impact| self.service_plan(impact, &counts)).collect();
        if self.asked.plan {
            let map_changes = plan::diff(&self.image, &prospect.next).len();
            return Ok(Some(PlanView { services, map_changes }));
        }
        match services.iter().find(|service| service.over_budget) {
            Some(service) => Err(EngineError::Disruption {
                service: service.service.clone(),
                plan: summary(service),
                allowed: service.max_disruption.unwrap_or(100),
            }),
            None => Ok(None),
        }
    }

    /// As [`Engine::converge`] with this configuration and these changes, on paper.
    fn prospect(
        &mut self,
        config: Option<&Config>,
        changes: &RuntimeChanges,
    ) -> Result<Prospect, EngineError> {
        let config = config.map(|config| mem::replace(&mut self.config, config.clone()));
        let changes = mem::replace(&mut self.changes, changes.clone());
        let (effective, watch) = (self.effective.clone(), self.watch.clone());
        self.pick_ring_sizes();
        self.effective = state::apply(&self.config.services, &self.changes);
        let assumed = self.assume_hops();
        self.advance_ramps();
        let mut wanted = self.wanted();
        self.judge(&mut wanted);
        let mut wanted = plan::split(wanted, &plan::Instances::of(&self.config.vrrp));
        let mut firewall = InForce::default();
        firewall.refresh(&self.config.firewall, self.changes.lists());
        let result = self.draft(&wanted).and_then(|mut next| {
            plan::install(&mut next, firewall.prefixes());
            wanted.iter_mut().flat_map(|s| &mut s.backends).for_each(|b| b.ramp = None);
            Ok(Prospect { last: self.draft(&wanted)?, next })
        });
        self.changes = changes;
        (self.effective, self.watch) = (effective, watch);
        self.hops.retain(|address, _| !assumed.contains(address));
        if let Some(config) = config {
            self.config = config;
        }
        result
    }

    /// Backends that are new are assumed to be reachable: a moment later it is known, and they take flows.
    fn assume_hops(&mut self) -> BTreeSet<IpAddr> {
        const SOMEWHERE: NextHopEntry =
            NextHopEntry { ifindex: 1, dst_mac: [0; 6], src_mac: [0; 6], vlan: 0, mtu: 1500, source: None };
        let backends = self.effective.services.iter().flat_map(|s| &s.backends);
        let unknown: BTreeSet<IpAddr> =
            backends.map(|b| b.spec.address).filter(|address| !self.hops.contains_key(address)).collect();
        self.hops.extend(unknown.iter().map(|address| (*address, Ok(SOMEWHERE))));
        unknown
    }

    /// The image of what is wanted; maps that would have to grow have grown in it.
    fn draft(&mut self, wanted: &[WantedService]) -> Result<Image, EngineError> {
        let (avoid, tunnel) = (self.tracking.reserved(), self.tunnel());
        self.image.resting = self.tracking.resting(std::time::Instant::now());
        let mut observed = Cow::Borrowed(&self.image);
        loop {
            match plan::build(wanted, &observed, &tunnel, &avoid, &mut self.rings) {
                Err(BuildError::RingFull { needed, capacity }) => {
                    observed.to_mut().ring_capacity = (capacity + needed).next_power_of_two();
                }
                Err(BuildError::BackendsFull { capacity }) => {
                    observed.to_mut().backend_capacity = (capacity + 1).next_power_of_two();
                }
                result => return Ok(result?),
            }
        }
    }

    fn counts(&self) -> Result<Counts, DataplaneError> {
        let flows = self.read_flows()?.on;
        let sessions = self.kernel.maps().nat().sessions()?;
        let sessions = plan::sweep(&self.image, sessions.out, sessions.back, super::flows::monotonic_ns()).on;
        Ok(Counts { flows, sessions })
    }

    fn service_plan(&self, impact: &ServiceImpact, counts: &Counts) -> ServicePlan {
        let of = |counts: &BTreeMap<u32, u64>| impact.ending.iter().filter_map(|id| counts.get(id)).sum();
        let percent =
            |slots: u32| (u64::from(slots) * 100).div_ceil(u64::from(impact.slots_total.max(1))) as u8;
        // What the running configuration says, so that nobody loosens it with the very change that it is there for.
        let running = self.config.services.iter().find(|s| s.name.as_str() == impact.name);
        let max_disruption = running.and_then(|s| s.gradual.max_disruption);
        let over_budget = max_disruption.is_some_and(|most| {
            !impact.is_new
                && u64::from(impact.slots_disrupted) * 100 > u64::from(most) * u64::from(impact.slots_total)
        });
        let what = match (impact.is_new, impact.is_gone) {
            (true, _) => "added",
            (_, true) => "removed",
            _ => "changed",
        };
        ServicePlan {
            service: impact.name.clone(),
            what: what.to_owned(),
            slots_total: impact.slots_total,
            slots_moved: impact.slots_moved,
            slots_moved_later: impact.slots_later,
            slots_ended: impact.slots_ended,
            tracked_flows_ended: of(&counts.flows),
            sessions_ended: of(&counts.sessions),
            other_flows_ended_estimate: self.estimate(impact, counts),
            other_flows_ended_percent: if impact.records_all { 0 } else { percent(impact.slots_ended) },
            disruption_percent: percent(impact.slots_disrupted),
            max_disruption,
            over_budget,
            backends: impact
                .backends
                .iter()
                .map(|(name, [before, after, later])| BackendPlan {
                    name: name.clone(),
                    slots_before: *before,
                    slots_after: *after,
                    slots_later: *later,
                })
                .collect(),
        }
    }

    /// Flows on plain slots have no entry and are counted nowhere. Where other slots of the service are changing hands, their flows are
    /// recorded: as many a slot are assumed on the plain ones.
    fn estimate(&self, impact: &ServiceImpact, counts: &Counts) -> Option<u64> {
        if impact.records_all || impact.plain_ended == 0 {
            return Some(0);
        }
        let ids = self.image.service_ids(&impact.name);
        let slots = ids.iter().filter_map(|id| self.image.rings.get(id)).flatten();
        let recording = slots.filter(|slot| !slot.is_plain()).count() as u64;
        let of_service = self.image.backends.iter().filter(|(_, r)| ids.contains(&r.entry.service));
        let recorded: u64 = of_service.filter_map(|(backend, _)| counts.flows.get(backend)).sum();
        (recording > 0 && recorded > 0)
            .then(|| (recorded * u64::from(impact.plain_ended)).div_ceil(recording))
    }
}

/// A service's part of a plan in a line.
fn summary(plan: &ServicePlan) -> String {
    let mut text = format!(
        "service '{}': {} of {} slots would move or lose their flows at once ({} %)",
        plan.service,
        plan.slots_moved.max(plan.slots_ended),
        plan.slots_total,
        plan.disruption_percent
    );
    let ended = plan.tracked_flows_ended + plan.sessions_ended;
    if ended > 0 {
        text += &format!(", {ended} recorded flows would end");
    }
    text
}
