//! Whether this node would serve what the peer serves, were it master now.
//!
//! An interface that comes back has no neighbours yet, and checks that went over it failed meanwhile. A better node that took its
//! addresses back at once would have nobody to send packets to until it has learnt both again.

use super::engine::Engine;
use crate::{
    model::{Health, VrrpName},
    plan::Instances,
    vrrp::fsm::Phase,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

impl Engine {
    /// Instances that cannot be master for now.
    pub(super) fn faulted(&self) -> BTreeSet<VrrpName> {
        let views = self.pair.views();
        let faulted = views.iter().filter(|view| view.phase == Phase::Fault);
        faulted.map(|view| view.spec.name.clone()).collect()
    }

    /// Instances of which the peer sends packets to backends that this node could not send any to: it does not know the way
    /// to them, or holds them for dead.
    pub(super) fn worse_than_peer(&self) -> BTreeSet<VrrpName> {
        let instances = Instances::of(&self.config.vrrp);
        let ids: HashMap<(&str, u32), u32> = self
            .image
            .services
            .iter()
            .map(|(id, record)| ((crate::plan::name_of(&record.identity), record.identity.port), *id))
            .collect();
        let mut worse = BTreeSet::new();
        for service in &self.effective.services {
            for (number, instance) in instances.parts(&service.spec) {
                let followed =
                    ids.get(&(service.spec.name.as_str(), number)).and_then(|id| self.image.followed.get(id));
                let (Some(instance), Some(followed)) = (instance, followed) else { continue };
                let owners: HashSet<u32> =
                    followed.words.different().iter().map(|word| word.owner()).collect();
                let served: HashSet<(&str, IpAddr)> = owners
                    .iter()
                    .filter_map(|id| followed.names.get(id))
                    .map(|(name, address)| (name.as_str(), *address))
                    .collect();
                let lacks = service.backends.iter().map(|backend| &backend.spec).any(|backend| {
                    served.contains(&(backend.name.as_str(), backend.address))
                        && (!matches!(self.hops.get(&backend.address), Some(Ok(_)))
                            || self.health_of(&service.spec, backend) == Health::Down)
                });
                if lacks {
                    worse.extend(instance.parse::<VrrpName>());
                }
            }
        }
        worse
    }
}
