//! Virtual addresses announced to a routing daemon while this node serves them.

use super::{engine::Engine, error::EngineError};
use crate::{
    bgp::{self, Judged},
    control::{
        api::ChangeView,
        bgp::{AnnouncedView, BgpView},
    },
    model::{ServiceName, ServiceSpec},
    net::announce::Announcer,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

/// The routes of this node; none as long as no configuration wants any.
#[derive(Default)]
pub(super) struct Bgp {
    announcer: Option<(u32, Announcer)>,
    judged: BTreeMap<IpAddr, Judged>,
    /// Since when each service is in a state that serves.
    serves: BTreeMap<ServiceName, Instant>,
    /// This daemon goes on with the tables and routes of an earlier one: what serves now is announced already.
    adopted: bool,
}

impl Bgp {
    pub(super) fn new(adopted: bool) -> Self {
        Self { adopted, ..Self::default() }
    }

    /// The routers were told not to send packets for any address of a service.
    pub(super) fn withholds(&self, service: &ServiceSpec) -> bool {
        let withheld = |address| self.judged.get(address).is_some_and(|it| !it.announced);
        self.announcer.is_some() && service.addresses.iter().all(withheld)
    }
}

impl Engine {
    /// Makes the routes those of the configuration. A section that is gone takes its routes along.
    pub(super) fn configure_bgp(&mut self) -> Result<(), EngineError> {
        let table = self.config.bgp.as_ref().map(|spec| spec.table);
        if self.bgp.announcer.as_ref().map(|(table, _)| *table) != table {
            if let Some((_, announcer)) = self.bgp.announcer.take() {
                announcer.set(BTreeSet::new());
                tokio::spawn(announcer.stop());
            }
            // Another table knows nothing yet.
            self.bgp.judged.clear();
            if let Some(table) = table {
                let announcer = Announcer::spawn(table).map_err(EngineError::Announce)?;
                self.bgp.announcer = Some((table, announcer));
            }
        }
        self.announce();
        Ok(())
    }

    /// Announces what is served now.
    pub(super) fn announce(&mut self) {
        let (Some(spec), Some((_, announcer))) = (&self.config.bgp, &self.bgp.announcer) else { return };
        let obstacle = self.obstacle();
        let now = Instant::now();
        let states = self.effective.services.iter().filter_map(|service| {
            let state = self.service_state(&service.spec.name)?;
            Some((&service.spec, state))
        });
        let states: Vec<_> = states.collect();
        let serves = states.iter().filter(|(_, state)| bgp::serves(spec.withdraw, *state));
        let goes_on = self.bgp.adopted && self.bgp.judged.is_empty();
        let since = if goes_on { now.checked_sub(spec.delay).unwrap_or(now) } else { now };
        let before = &self.bgp.serves;
        let serves: BTreeMap<ServiceName, Instant> = serves
            .map(|(service, _)| (service.name.clone(), before.get(&service.name).copied().unwrap_or(since)))
            .collect();
        let settled =
            |service: &ServiceSpec| serves.get(&service.name).is_some_and(|since| now - *since >= spec.delay);
        let services = states.into_iter().map(|(service, state)| (service, state, settled(service)));
        let judged = bgp::judge(spec, obstacle.as_deref(), services);
        self.bgp.serves = serves;
        if judged.values().any(|it| it.announced) {
            self.mirror.words.serve();
        }
        if judged != self.bgp.judged {
            announcer
                .set(judged.iter().filter(|(_, it)| it.announced).map(|(address, _)| *address).collect());
            self.bgp.judged = judged;
        }
    }

    /// Why this node should have no packets at all.
    fn obstacle(&self) -> Option<String> {
        if let Some(hold) = self.pair.node_hold() {
            return Some(format!("the node is held by {} (lbctl pair hold --off ends it)", hold.by));
        }
        self.unattached().next().or_else(|| self.words_missing())
    }

    /// The answer to a hold where there are no virtual routers.
    pub(super) fn node_held(&self, on: bool, by: &str) -> ChangeView {
        let how = if on { "held: it announces no address until it is released" } else { "released" };
        let message = format!("the node is {how}");
        tracing::info!(by, "{message}");
        ChangeView { message, revision: self.changes.revision(), ..ChangeView::default() }
    }

    /// As the daemon ends: the routers are to take the other nodes, unless the configuration says that the routes stay.
    pub(super) async fn stop_bgp(&mut self) {
        let Some((_, announcer)) = self.bgp.announcer.take() else { return };
        if !self.config.bgp.as_ref().is_some_and(|spec| spec.keep_on_stop) {
            announcer.set(BTreeSet::new());
        }
        announcer.stop().await;
    }

    pub(super) fn bgp_view(&self) -> BgpView {
        let Some((table, announcer)) = &self.bgp.announcer else { return BgpView::default() };
        let there = announcer.announced();
        let view = |(address, it): (&IpAddr, &Judged)| AnnouncedView {
            address: *address,
            announced: there.routes.contains(address),
            reason: it.reason.clone(),
        };
        BgpView {
            table: Some(*table),
            addresses: self.bgp.judged.iter().map(view).collect(),
            error: there.error,
        }
    }
}
