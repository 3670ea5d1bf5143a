//! Whether this node would serve what the peer serves, were it master now.
//!
//! An interface that comes back has no neighbours yet, and checks that went over it failed meanwhile. A better node that took its
//! addresses back at once would have nobody to send packets to until it has learnt both again.

use super::engine::Engine;
use crate::{
    model::{Health, VrrpName},
    state::EffectiveService,
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
        let services: HashMap<&str, &EffectiveService> =
            self.effective.services.iter().map(|service| (service.spec.name.as_str(), service)).collect();
        let mut worse = BTreeSet::new();
        for ((name, instance), id) in self.parts() {
            // What has no instance is nobody's to take over.
            let Ok(instance) = instance.parse::<VrrpName>() else { continue };
            let (Some(service), Some(followed)) = (services.get(name.as_str()), self.image.followed.get(&id))
            else {
                continue;
            };
            let served: HashSet<(&str, IpAddr)> = followed
                .words
                .different()
                .iter()
                .filter_map(|word| followed.names.get(&word.owner()))
                .map(|(name, address)| (name.as_str(), *address))
                .collect();
            let lacks = service.backends.iter().map(|backend| &backend.spec).any(|backend| {
                served.contains(&(backend.name.as_str(), backend.address))
                    && (!matches!(self.hops.get(&backend.address), Some(Ok(_)))
                        || self.health_of(&service.spec, backend) == Health::Down)
            });
            if lacks {
                worse.insert(instance);
            }
        }
        worse
    }
}
