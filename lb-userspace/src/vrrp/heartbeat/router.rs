//! A virtual router at work.

use super::super::{
    fsm::{Cause, Machine, Params, Phase},
    keeper::{Interface, Interfaces, Order},
    packet::{Advert, ChecksumForm},
    timing::Moment,
    view::{Counters, RouterView},
};
use super::agree::Handed;
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
    pub(super) faults: Vec<String>,
    pub(super) master: Option<(IpAddr, u8)>,
    pub(super) since: SystemTime,
    pub(super) cause: Cause,
    pub(super) counters: Arc<Counters>,
    /// What was last said of the peer's configuration.
    pub(super) mismatch: Option<String>,
    pub(super) send_failed: bool,
    pub(super) split_told: Option<Moment>,
    pub(super) claim_told: Option<Moment>,
    pub(super) master_since: Option<Moment>,
    /// They are told when it is no longer master.
    pub(super) handed: Vec<Handed>,
}

impl Router {
    pub(super) fn new(spec: Arc<VrrpSpec>, charge: u64) -> Self {
        Self {
            machine: Machine::new(Params::from(&*spec)),
            spec,
            order: Arc::default(),
            starts_with: Some(charge),
            faults: Vec::new(),
            master: None,
            since: SystemTime::now(),
            cause: Cause::Stopped,
            counters: Arc::default(),
            mismatch: None,
            send_failed: false,
            split_told: None,
            claim_told: None,
            master_since: None,
            handed: Vec::new(),
        }
    }

    /// Whether it can go on with another specification without a stop.
    pub(super) fn continues(&self, spec: &VrrpSpec) -> bool {
        let key = |s: &VrrpSpec| (s.interface.clone(), s.router_id, s.version, s.unicast_peers.is_empty());
        key(&self.spec) == key(spec)
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
            faults: self.faults.clone(),
            held: self.machine.held,
            yielded: self.machine.yielded,
            gated: self.machine.gated,
            own: own(interfaces.get(&self.spec.interface)),
            counters: Arc::clone(&self.counters),
            lease: self.order.lease().cloned(),
        }
    }
}

/// One advertisement of each family to everybody.
pub(super) fn send(router: &Router, interface: &Interface, priority: u8) -> Result<(), String> {
    let spec = &router.spec;
    let form = if spec.pseudo_header { ChecksumForm::Pseudo } else { ChecksumForm::Plain };
    let mut result = Ok(());
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
            if let Err(error) = port.send(source, destination, &bytes) {
                result = Err(format!("to {destination}: {error}"));
            }
        }
    }
    result
}
