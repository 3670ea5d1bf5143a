//! What the state of this node and the word of the peer mean for a virtual router. Pure.

use super::super::{keeper::Interfaces, packet::Advert};
use crate::model::{Family, VrrpName, VrrpSpec};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

/// Something that a master should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub cause: String,
    /// Taken off the priority, or added to it where negative; 0 is a fault.
    pub weight: i16,
}

/// What a master would lack. `others`: what the daemon found.
pub(super) fn missing(spec: &VrrpSpec, interfaces: &Interfaces, others: &[Missing]) -> Vec<Missing> {
    let name = &spec.interface;
    let mut found = Vec::new();
    let mut fault = |cause: String| found.push(Missing { cause, weight: 0 });
    match interfaces.get(name) {
        None => fault(format!("interface {name} does not exist")),
        Some(interface) if !interface.running => fault(format!("interface {name} is down or has no carrier")),
        Some(interface) => {
            if let Some(trouble) = &interface.trouble {
                fault(trouble.clone());
            }
            for family in spec.families() {
                let destination = match spec.unicast_peers.is_empty() {
                    true => Some(family.vrrp_group()),
                    false => spec.peers_of(family).next(),
                };
                if destination.is_some_and(|to| interface.source(to).is_none()) {
                    let kind = match (family, destination) {
                        (Family::V4, _) => "IPv4 address",
                        (Family::V6, Some(to)) if to.is_multicast() => "IPv6 link-local address",
                        (Family::V6, _) => "IPv6 address that reaches the peer",
                    };
                    fault(format!("interface {name} has no {kind} of its own"));
                }
            }
        }
    }
    for tracked in &spec.track_interfaces {
        if !interfaces.get(&tracked.name).is_some_and(|interface| interface.running) {
            let cause = format!("tracked interface {} is down", tracked.name);
            found.push(Missing { cause, weight: tracked.weight.into() });
        }
    }
    found.extend(others.iter().cloned());
    found
}

/// What is missing for the members of a group, each of them by itself: the same for all.
pub(super) fn together<'a>(members: impl IntoIterator<Item = &'a [Missing]>) -> Vec<Missing> {
    let mut all: Vec<Missing> = Vec::new();
    for missing in members.into_iter().flatten() {
        if !all.contains(missing) {
            all.push(missing.clone());
        }
    }
    all
}

/// What is closed for one member of a group is closed for all: which of these routers wait for the peer's state.
pub(super) fn gated<'a>(
    specs: impl Iterator<Item = &'a VrrpSpec> + Clone,
    names: &[VrrpName],
) -> BTreeSet<VrrpName> {
    let named = |spec: &&VrrpSpec| names.contains(&spec.name);
    let groups: BTreeSet<_> = specs.clone().filter(named).filter_map(|spec| spec.group.as_ref()).collect();
    let waits =
        |spec: &&VrrpSpec| named(spec) || spec.group.as_ref().is_some_and(|group| groups.contains(group));
    specs.filter(waits).map(|spec| spec.name.clone()).collect()
}

/// Whether it is a fault, and what it adds to the priority.
pub(super) fn effect(missing: &[Missing]) -> (bool, i16) {
    let weight = missing.iter().fold(0i16, |sum, missing| sum.saturating_sub(missing.weight));
    (missing.iter().any(|missing| missing.weight == 0), weight)
}

/// How the sender's configuration differs from this node's, in words. Neither changes who is master.
pub(super) fn mismatch(spec: &VrrpSpec, advert: &Advert, family: Family) -> Option<String> {
    let theirs: BTreeSet<IpAddr> = advert.addresses.iter().copied().collect();
    let ours: BTreeSet<IpAddr> = spec.addresses_of(family).collect();
    let list =
        |addresses: &BTreeSet<IpAddr>| addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    if theirs != ours {
        return Some(format!("it has the addresses {}; here they are {}", list(&theirs), list(&ours)));
    }
    (advert.interval != spec.advert_interval).then(|| {
        let ms = |interval: Duration| interval.as_millis();
        format!("its interval is {} ms; here it is {} ms", ms(advert.interval), ms(spec.advert_interval))
    })
}
