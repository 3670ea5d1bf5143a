//! A virtual router at work.

use super::{
    super::{
        fsm::{Cause, Machine, Params, Phase},
        keeper::{Interface, Interfaces, Order},
        packet::{Advert, ChecksumForm},
        timing::Moment,
        view::{Counters, RouterView},
    },
    Missing,
    agree::Handed,
};
use crate::model::{Family, VrrpSpec};
use std::{net::IpAddr, sync::Arc, time::SystemTime};

/// Where the peer finds this node on an interface.
fn own(interface: Option<&Interface>) -> Vec<IpAddr> {
    let reachable = |address: &IpAddr| match address {
        IpAddr::V4(_) => true,
        // Those of a link are good only with the name that it has on the other node.
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    interface.iter().flat_map(|interface| &interface.nets).map(|net| net.addr()).filter(reachable).collect()
}

/// A virtual router at work.
pub(super) struct Router {
    pub(super) spec: Arc<VrrpSpec>,
    pub(super) machine: Machine,
    pub(super) order: Arc<Order>,
    /// The charge whose interfaces it waits for before it starts.
    pub(super) starts_with: Option<u64>,
    pub(super) missing: Vec<Missing>,
    pub(super) master: Option<(IpAddr, u8)>,
    /// Where the last advertisement of each family came from.
    pub(super) sources: [Option<IpAddr>; 2],
    pub(super) since: SystemTime,
    pub(super) cause: Cause,
    pub(super) counters: Arc<Counters>,
    /// What was last said of the peer's configuration.
    pub(super) mismatch: Option<String>,
    /// Whom the last advertisement could not be sent to, and why.
    pub(super) unsent: Option<String>,
    pub(super) unsent_told: Option<Moment>,
    pub(super) split_told: Option<Moment>,
    /// They are told when it is no longer master.
    pub(super) handed: Vec<Handed>,
    pub(super) claim_told: Option<Moment>,
    pub(super) master_since: Option<Moment>,
}

impl Router {
    pub(super) fn new(spec: Arc<VrrpSpec>, charge: u64) -> Self {
        Self {
            machine: Machine::new(Params::from(&*spec)),
            spec,
            order: Arc::default(),
            starts_with: Some(charge),
            missing: Vec::new(),
            master: None,
            sources: [None; 2],
            since: SystemTime::now(),
            cause: Cause::Stopped,
            counters: Arc::default(),
            mismatch: None,
            unsent: None,
            unsent_told: None,
            split_told: None,
            handed: Vec::new(),
            claim_told: None,
            master_since: None,
        }
    }

    /// Whether it can go on with another specification without a stop.
    pub(super) fn continues(&self, spec: &VrrpSpec) -> bool {
        let key = |s: &VrrpSpec| (s.interface.clone(), s.router_id, s.version, s.unicast_peers.is_empty());
        key(&self.spec) == key(spec)
    }

    /// Whether the master that it hears may be the node of that address: it is, or nothing was heard from a node's
    /// address of that family (over IPv6 advertisements come from link-local ones).
    pub(super) fn hears(&self, peer: IpAddr) -> bool {
        let family = Family::of(peer);
        self.sources.iter().flatten().all(|source| Family::of(*source) != family || *source == peer)
            && self.sources.iter().any(Option::is_some)
    }

    pub(super) fn destinations(&self, family: Family) -> Vec<IpAddr> {
        if self.spec.unicast_peers.is_empty() {
            vec![family.vrrp_group()]
        } else {
            self.spec.peers_of(family).collect()
        }
    }

    pub(super) fn view(&self, interfaces: &Interfaces) -> RouterView {
        let phase = self.machine.phase();
        RouterView {
            spec: Arc::clone(&self.spec),
            phase,
            priority: self.machine.priority(),
            master: self.master.filter(|_| phase == Phase::Backup),
            since: self.since,
            cause: self.cause,
            missing: self.missing.clone(),
            held: self.machine.held,
            yielded: self.machine.yielded,
            gated: self.machine.gated,
            own: own(interfaces.get(&self.spec.interface)),
            counters: Arc::clone(&self.counters),
            lease: self.order.lease().cloned(),
            unsent: self.unsent.clone().filter(|_| phase == Phase::Master),
        }
    }
}

/// What became of an advertisement.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// It went out to somebody, in some family.
    pub reached: bool,
    /// To whom it did not, and why.
    pub failed: Option<String>,
}

/// One advertisement of each family to everybody.
pub(super) fn send(router: &Router, interface: &Interface, priority: u8) -> Sent {
    let spec = &router.spec;
    let form = if spec.pseudo_header { ChecksumForm::Pseudo } else { ChecksumForm::Plain };
    let (mut reached, mut failed) = (false, Vec::new());
    for family in spec.families() {
        let advert = Advert {
            version: spec.version,
            router_id: spec.router_id,
            priority,
            interval: spec.advert_interval,
            addresses: spec.addresses_of(family).collect(),
        };
        for destination in router.destinations(family) {
            // Without a source there is a fault, told apart.
            let (Some(source), Some(port)) = (interface.source(destination), interface.port(family)) else {
                continue;
            };
            let bytes = advert.encode(form, source, destination);
            match port.send(source, destination, &bytes) {
                Ok(()) => reached = true,
                Err(error) => failed.push(format!("to {destination}: {error}")),
            }
        }
    }
    Sent { reached, failed: (!failed.is_empty()).then(|| failed.join("; ")) }
}
