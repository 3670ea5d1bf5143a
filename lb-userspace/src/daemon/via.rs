//! Checks with `via = "vip"`: each backend's entry as the program has it, and the address of this node that answers come to.

use super::{Engine, error::EngineError};
use crate::{
    health::{Beyond, TargetKey},
    model::Via,
    net::own_addresses,
    plan,
};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

impl Engine {
    /// Before anything is changed: without the way a configuration that asks for it is refused.
    pub(super) fn open_vip_way(&self) -> Result<(), EngineError> {
        let asked = self.effective.services.iter().any(|service| service.spec.health.via == Via::Vip);
        if asked { Ok(self.vip_way.open()?) } else { Ok(()) }
    }

    /// Tells the way of what the maps hold now.
    pub(super) fn aim_checks(&self) {
        let services: Vec<_> =
            self.effective.services.iter().filter(|service| service.spec.health.via == Via::Vip).collect();
        if services.is_empty() {
            self.vip_way.set(HashMap::new(), BTreeSet::new());
            return;
        }
        let own = own_addresses().unwrap_or_else(|error| {
            tracing::error!(%error, "this host's addresses are not known: checks with via = \"vip\" come from none");
            Vec::new()
        });
        let shared = self.shared_addresses();
        let ids: HashMap<&str, u32> =
            self.image.services.iter().map(|(id, record)| (plan::name_of(&record.identity), *id)).collect();
        let entries: HashMap<(u32, &str), _> = self
            .image
            .backends
            .values()
            .map(|record| ((record.entry.service, plan::name_of(&record.identity)), &record.entry))
            .collect();
        let mut backends = HashMap::new();
        for service in &services {
            let Some(id) = ids.get(service.spec.name.as_str()) else { continue };
            for backend in &service.backends {
                let Some(entry) = entries.get(&(*id, backend.spec.name.as_str())) else { continue };
                let hop = self.hops.get(&backend.spec.address).and_then(|hop| hop.as_ref().ok()?.source);
                let source = |v6| source(v6, hop, entry.ifindex, &own, &shared);
                let key =
                    TargetKey { service: service.spec.name.clone(), backend: backend.spec.name.clone() };
                let beyond = Beyond {
                    entry: **entry,
                    seed: service.spec.seed,
                    source_v4: source(false),
                    source_v6: source(true),
                };
                backends.insert(key, beyond);
            }
        }
        let vips = services.iter().flat_map(|service| &service.spec.addresses).copied().collect();
        self.vip_way.set(backends, vips);
    }

    /// Addresses that may be another node's tomorrow, or whose packets the program takes.
    fn shared_addresses(&self) -> BTreeSet<IpAddr> {
        let routers = self.config.vrrp.iter().flat_map(|router| &router.addresses).map(ipnet::IpNet::addr);
        self.image.vips.keys().copied().chain(routers).collect()
    }
}

/// The address of a family that checks come from: the kernel's choice for the way to the backend, else one of the egress,
/// else any that has a route.
fn source(
    v6: bool,
    hop: Option<IpAddr>,
    egress: u32,
    own: &[(u32, IpAddr)],
    shared: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let good = |address: &IpAddr| {
        let routed = match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        address.is_ipv6() == v6 && routed && !shared.contains(address)
    };
    let chosen = hop.filter(|hop| own.iter().any(|(_, address)| address == hop) && good(hop));
    let of = |egress: Option<u32>| {
        own.iter()
            .find(|(index, address)| egress.is_none_or(|egress| egress == *index) && good(address))
            .map(|(_, address)| *address)
    };
    chosen.or_else(|| of(Some(egress))).or_else(|| of(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_come_from_an_address_that_is_this_nodes_alone() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let own = [
            (1, ip("127.0.0.1")),
            (2, ip("192.0.2.10")),
            (2, ip("10.2.0.2")),
            (3, ip("10.0.0.2")),
            (3, ip("fe80::1")),
            (2, ip("fd00:2::2")),
        ];
        let shared = BTreeSet::from([ip("192.0.2.10")]);
        let source = |v6, hop: Option<&str>, egress| source(v6, hop.map(ip), egress, &own, &shared);
        assert_eq!(source(false, Some("10.2.0.2"), 3), Some(ip("10.2.0.2")));
        assert_eq!(source(false, Some("192.0.2.10"), 2), Some(ip("10.2.0.2")));
        assert_eq!(source(false, Some("198.51.100.1"), 3), Some(ip("10.0.0.2")), "no address of this host");
        assert_eq!(source(false, None, 3), Some(ip("10.0.0.2")));
        assert_eq!(source(true, Some("10.2.0.2"), 3), Some(ip("fd00:2::2")), "of another interface");
        assert_eq!(source(false, None, 9), Some(ip("10.2.0.2")));
        assert_eq!(super::source(true, None, 3, &own[..5], &shared), None);
    }
}
