//! The firewall's part of the image: deny list, allow lists, limits.

use super::{Action, Image};
use crate::model::{GuardSpec, Prefixes, Verdict, of_family};
use ipnet::IpNet;
use lb_common::abi::{Limits, ServiceEntry, VipEntry};
use std::{collections::BTreeSet, fmt, sync::Arc};

/// One change of the firewall's maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListAction {
    /// The deny list becomes another one. Whoever carries it out adds exceptions, then denied prefixes, then writes the
    /// marks, and then removes denied prefixes, and exceptions last: so no source that is allowed before and after is
    /// denied in between.
    Deny { old: Arc<Prefixes>, new: Arc<Prefixes> },
    /// Entries of the services' allow lists: service id and prefix.
    Allow { add: Vec<(u32, IpNet)>, remove: Vec<(u32, IpNet)> },
    /// Limits of a service.
    Limits { service: u32, old: Option<Limits>, new: Option<Limits> },
}

impl ListAction {
    /// The action that takes this one back.
    pub(super) fn inverse(self) -> Self {
        match self {
            Self::Deny { old, new } => Self::Deny { old: new, new: old },
            Self::Allow { add, remove } => Self::Allow { add: remove, remove: add },
            Self::Limits { service, old, new } => Self::Limits { service, old: new, new: old },
        }
    }

    /// Carries it out in memory.
    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Self::Deny { new, .. } => image.denied = Arc::clone(new),
            Self::Allow { add, remove } => {
                image.allowed.extend(add.iter().copied());
                remove.iter().for_each(|entry| {
                    image.allowed.remove(entry);
                });
            }
            Self::Limits { service, new: Some(limits), .. } => {
                image.limits.insert(*service, *limits);
            }
            Self::Limits { service, new: None, .. } => {
                image.limits.remove(service);
            }
        }
    }
}

/// What is in `new` and not (so) in `old`, by verdict: exceptions, denied prefixes.
pub(crate) fn added(old: &Prefixes, new: &Prefixes) -> [Vec<(IpNet, Verdict)>; 2] {
    let mut added = [Vec::new(), Vec::new()];
    for (prefix, verdict) in new {
        if old.get(prefix) != Some(verdict) {
            added[usize::from(*verdict == Verdict::Deny)].push((*prefix, *verdict));
        }
    }
    added
}

/// What of `old` has no place in `new`, by verdict.
pub(crate) fn removed(old: &Prefixes, new: &Prefixes) -> [Vec<(IpNet, Verdict)>; 2] {
    let mut removed = [Vec::new(), Vec::new()];
    for (prefix, verdict) in old {
        if !new.contains_key(prefix) {
            removed[usize::from(*verdict == Verdict::Deny)].push((*prefix, *verdict));
        }
    }
    removed
}

impl fmt::Display for ListAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deny { old, new } => {
                let count = |of: [Vec<_>; 2]| of.iter().map(Vec::len).sum::<usize>();
                let (added, removed) = (count(added(old, new)), count(removed(old, new)));
                write!(f, "deny list: add {added}, remove {removed} prefixes; {} in all", new.len())
            }
            Self::Allow { add, remove } => {
                write!(f, "allow lists of services: add {}, remove {} prefixes", add.len(), remove.len())
            }
            Self::Limits { service, new: Some(_), .. } => write!(f, "set limits of service {service}"),
            Self::Limits { service, new: None, .. } => write!(f, "remove limits of service {service}"),
        }
    }
}

/// What must be done before services and VIPs change, and what after.
pub(super) fn diff(old: &Image, new: &Image) -> (Vec<Action>, Vec<Action>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    if !Arc::ptr_eq(&old.denied, &new.denied) && old.denied != new.denied {
        let (old, new) = (Arc::clone(&old.denied), Arc::clone(&new.denied));
        before.push(ListAction::Deny { old, new });
    }
    let add: Vec<_> = new.allowed.difference(&old.allowed).copied().collect();
    if !add.is_empty() {
        before.push(ListAction::Allow { add, remove: Vec::new() });
    }
    let remove: Vec<_> = old.allowed.difference(&new.allowed).copied().collect();
    if !remove.is_empty() {
        after.push(ListAction::Allow { add: Vec::new(), remove });
    }
    let services: BTreeSet<u32> = old.limits.keys().chain(new.limits.keys()).copied().collect();
    for service in services {
        let (old, new) = (old.limits.get(&service).copied(), new.limits.get(&service).copied());
        if old != new {
            let to = if new.is_some() { &mut before } else { &mut after };
            to.push(ListAction::Limits { service, old, new });
        }
    }
    let actions = |of: Vec<_>| of.into_iter().map(Action::List).collect();
    (actions(before), actions(after))
}

/// The flags that make the program ask.
pub(super) fn service_flags(guard: &GuardSpec) -> u32 {
    let flag = |on: bool, flag| if on { flag } else { 0 };
    flag(!guard.allow.is_empty(), ServiceEntry::ALLOW_LIST)
        | flag(!guard.limits.is_off(), ServiceEntry::LIMITED)
}

/// Adds a service's allow list and limits.
pub(super) fn add_service(image: &mut Image, id: u32, guard: &GuardSpec) {
    image.allowed.extend(guard.allow.iter().map(|prefix| (id, *prefix)));
    if !guard.limits.is_off() {
        image.limits.insert(id, guard.limits.to_abi());
    }
}

/// Puts the deny list into an image, and has the VIPs of a family ask for it where it denies anything.
pub fn install(image: &mut Image, denied: &Arc<Prefixes>) {
    let denies = |v6| of_family(denied, v6).any(|(_, verdict)| verdict == Verdict::Deny);
    let denies = [denies(false), denies(true)];
    for (address, entry) in &mut image.vips {
        entry.flags &= !VipEntry::FILTERED;
        if denies[usize::from(address.is_ipv6())] {
            entry.flags |= VipEntry::FILTERED;
        }
    }
    image.denied = Arc::clone(denied);
}
