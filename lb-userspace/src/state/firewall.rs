//! Changes of the firewall's lists and limits at run time. Pure.

use super::{
    changes::{RuntimeChanges, Stamp, Stamped},
    edit::ChangeError,
};
use crate::{
    config::FirewallConfig,
    model::{LimitPatch, Prefixes, Protocol, ServiceName, ServiceSpec, Verdict},
};
use ipnet::IpNet;
use lb_common::abi::PREFIX_CAPACITY;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc};

/// Prefixes that were added and removed. Sets with one stamp for all: there may be 100,000 of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListChanges {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub denied: BTreeSet<IpNet>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allowed: BTreeSet<IpNet>,
    /// What the configuration says of these does not count.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<IpNet>,
    /// Of the last change; absent in files of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
}

impl ListChanges {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.denied.len() + self.allowed.len() + self.removed.len()
    }

    fn own(&mut self, verdict: Verdict) -> &mut BTreeSet<IpNet> {
        match verdict {
            Verdict::Deny => &mut self.denied,
            Verdict::Allow => &mut self.allowed,
        }
    }

    /// The prefixes in force.
    #[must_use]
    pub fn over(&self, file: &FirewallConfig) -> Prefixes {
        let mut prefixes = file.prefixes();
        for prefix in &self.removed {
            prefixes.remove(prefix);
        }
        prefixes.extend(self.denied.iter().map(|prefix| (*prefix, Verdict::Deny)));
        prefixes.extend(self.allowed.iter().map(|prefix| (*prefix, Verdict::Allow)));
        prefixes
    }
}

/// Shared, since they may be many and are copied with every other change.
pub(super) mod shared {
    use super::{Arc, Deserialize, ListChanges, Serialize};

    pub fn serialize<S: serde::Serializer>(lists: &Arc<ListChanges>, to: S) -> Result<S::Ok, S::Error> {
        lists.as_ref().serialize(to)
    }

    pub fn deserialize<'d, D: serde::Deserializer<'d>>(from: D) -> Result<Arc<ListChanges>, D::Error> {
        ListChanges::deserialize(from).map(Arc::new)
    }

    pub fn is_empty(lists: &Arc<ListChanges>) -> bool {
        lists.count() == 0
    }
}

impl RuntimeChanges {
    /// Changes of the deny list and its exceptions.
    pub fn lists(&self) -> &Arc<ListChanges> {
        &self.lists
    }

    /// Says who changed the lists last.
    pub fn stamp_lists(&mut self, stamp: Stamp) {
        Arc::make_mut(&mut self.lists).stamp = Some(stamp);
    }

    /// Limits that were set, by service.
    pub fn limits(&self, service: &ServiceName) -> Option<&LimitPatch> {
        self.limits.get(service).map(|stamped| &stamped.value)
    }

    /// Adds prefixes to the deny list or to its exceptions. `present` are those in force. How many were not there.
    pub fn add_prefixes(
        &mut self,
        file: &FirewallConfig,
        present: &Prefixes,
        verdict: Verdict,
        prefixes: &[IpNet],
    ) -> Result<usize, ChangeError> {
        if let Some(prefix) = prefixes.iter().find(|prefix| present.get(prefix) == Some(&verdict.other())) {
            return Err(ChangeError::OnOtherList { prefix: *prefix, list: verdict.other() });
        }
        let new: BTreeSet<IpNet> =
            prefixes.iter().filter(|prefix| !present.contains_key(prefix)).copied().collect();
        let v6 = |nets: &mut dyn Iterator<Item = &IpNet>| nets.filter(|net| net.addr().is_ipv6()).count();
        let (new6, present6) = (v6(&mut new.iter()), v6(&mut present.keys()));
        let most = (new6 + present6).max(new.len() - new6 + present.len() - present6);
        if most > PREFIX_CAPACITY as usize {
            return Err(ChangeError::ListFull { found: most });
        }
        let lists = Arc::make_mut(&mut self.lists);
        for prefix in &new {
            lists.removed.remove(prefix);
            match file.verdict(prefix) {
                Some(own) if own == verdict => {}
                _ => {
                    lists.own(verdict).insert(*prefix);
                }
            }
        }
        Ok(new.len())
    }

    /// Removes prefixes from the deny list or from its exceptions; all of them must be there.
    pub fn remove_prefixes(
        &mut self,
        file: &FirewallConfig,
        present: &Prefixes,
        verdict: Verdict,
        prefixes: &[IpNet],
    ) -> Result<usize, ChangeError> {
        if let Some(prefix) = prefixes.iter().find(|prefix| present.get(prefix) != Some(&verdict)) {
            return Err(ChangeError::NotListed { prefix: *prefix, list: verdict });
        }
        let lists = Arc::make_mut(&mut self.lists);
        for prefix in prefixes {
            lists.own(verdict).remove(prefix);
            if file.verdict(prefix).is_some() {
                lists.removed.insert(*prefix);
            }
        }
        Ok(prefixes.len())
    }

    /// Sets limits of a service; those that the patch does not name stay.
    pub fn set_limits(
        &mut self,
        file: &[ServiceSpec],
        service: &ServiceName,
        patch: LimitPatch,
        stamp: Stamp,
    ) -> Result<bool, ChangeError> {
        let spec = file.iter().find(|spec| spec.name == *service);
        let spec = spec.ok_or_else(|| ChangeError::unknown_service(file, service))?;
        patch.check()?;
        let connections = patch.connections_per_second.or(patch.source_connections_per_second);
        if spec.protocol == Protocol::Udp && connections.is_some_and(|rate| rate > 0) {
            return Err(ChangeError::NoConnections { service: service.clone() });
        }
        let before = self.limits(service).copied().unwrap_or_default();
        let value = patch.or(before);
        if value == before {
            return Ok(false);
        }
        self.limits.insert(service.clone(), Stamped { value, stamp });
        Ok(true)
    }

    /// Forgets the limits that were set at run time.
    pub fn clear_limits(&mut self, file: &[ServiceSpec], service: &ServiceName) -> Result<bool, ChangeError> {
        if self.limits.remove(service).is_some() {
            return Ok(true);
        }
        if file.iter().any(|spec| spec.name == *service) {
            return Ok(false);
        }
        Err(ChangeError::unknown_service(file, service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets() -> impl Strategy<Value = Vec<IpNet>> {
        proptest::collection::vec((0..6u8).prop_map(|n| format!("10.{n}.0.0/16").parse().unwrap()), 0..4)
    }

    proptest! {
        /// Whatever is added and removed, the list in force is what was asked for, and is again after a reset.
        #[test]
        fn lists_become_what_is_asked_for(
            deny in nets(), allow in nets(), files in nets(),
            steps in proptest::collection::vec((any::<bool>(), any::<bool>(), nets()), 0..20),
        ) {
            let mut file = FirewallConfig::default();
            file.allow.extend(allow);
            file.deny.extend(deny.into_iter().filter(|net| !file.allow.contains(net)));
            file.from_files.extend(files);
            let (mut changes, mut model) = (RuntimeChanges::default(), file.prefixes());
            for (add, deny, nets) in steps {
                let verdict = if deny { Verdict::Deny } else { Verdict::Allow };
                let before = changes.clone();
                let present = changes.lists().over(&file);
                prop_assert_eq!(&present, &model);
                let result = if add {
                    changes.add_prefixes(&file, &present, verdict, &nets)
                } else {
                    changes.remove_prefixes(&file, &present, verdict, &nets)
                };
                match result {
                    Ok(_) if add => model.extend(nets.iter().map(|net| (*net, verdict))),
                    Ok(_) => nets.iter().for_each(|net| { model.remove(net); }),
                    Err(_) => {
                        prop_assert_eq!(&changes, &before, "a refused change leaves no trace");
                        let wanted = if add { verdict.other() } else { verdict };
                        prop_assert!(nets.iter().any(|net| (model.get(net) == Some(&wanted)) == add));
                    }
                }
            }
            prop_assert_eq!(changes.lists().over(&file), model);
            changes.reset();
            prop_assert_eq!(changes.lists().over(&file), file.prefixes());
        }
    }
}
