//! Changes of the maps and their safe order.

use super::{
    BackendRecord, Image, NatChange, NatImage, Ring, ScheduleRecord, ServiceRecord,
    lists::{self, ListAction},
};
use lb_common::abi::{CidKey, PortKey, PortRangeKey, Slot, VipEntry};
use std::{cmp::Ordering, collections::BTreeMap, fmt, net::IpAddr};

/// One change of the maps, with what was there before, so that it can be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Backend {
        id: u32,
        old: Option<BackendRecord>,
        new: Option<BackendRecord>,
    },
    /// A service's schedule, at a new place if its words differ.
    Schedule {
        id: u32,
        old: Option<ScheduleRecord>,
        new: Option<ScheduleRecord>,
    },
    /// Words of the ring array: index, old word, new word.
    Slots {
        service: u32,
        words: Vec<(u32, Slot, Slot)>,
    },
    /// The whole ring of a service that is new or gone, or of which much changes, at its place in the ring array.
    Ring {
        service: u32,
        base: u32,
        old: Option<Ring>,
        new: Option<Ring>,
    },
    Service {
        id: u32,
        old: Option<ServiceRecord>,
        new: Option<ServiceRecord>,
    },
    /// Backend of a server id of a QUIC service.
    Cid {
        key: CidKey,
        old: Option<u32>,
        new: Option<u32>,
    },
    Port {
        key: PortKey,
        old: Option<u32>,
        new: Option<u32>,
    },
    PortRange {
        key: PortRangeKey,
        old: Option<u32>,
        new: Option<u32>,
    },
    Vip {
        address: IpAddr,
        old: Option<VipEntry>,
        new: Option<VipEntry>,
    },
    /// Of the firewall's lists and limits.
    List(ListAction),
    Nat(NatChange),
}

impl Action {
    /// The action that takes this one back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        match self.clone() {
            Self::Backend { id, old, new } => Self::Backend { id, old: new, new: old },
            Self::Schedule { id, old, new } => Self::Schedule { id, old: new, new: old },
            Self::Slots { service, words } => {
                Self::Slots { service, words: words.into_iter().map(|(i, old, new)| (i, new, old)).collect() }
            }
            Self::Ring { service, base, old, new } => Self::Ring { service, base, old: new, new: old },
            Self::Service { id, old, new } => Self::Service { id, old: new, new: old },
            Self::Cid { key, old, new } => Self::Cid { key, old: new, new: old },
            Self::Port { key, old, new } => Self::Port { key, old: new, new: old },
            Self::PortRange { key, old, new } => Self::PortRange { key, old: new, new: old },
            Self::Vip { address, old, new } => Self::Vip { address, old: new, new: old },
            Self::List(action) => Self::List(action.inverse()),
            Self::Nat(change) => Self::Nat(change.inverse()),
        }
    }
}

/// What a change does, by whether there was something before it and is after it.
pub(super) const fn verb(old: bool, new: bool) -> &'static str {
    match (old, new) {
        (false, _) => "add",
        (true, true) => "change",
        (true, false) => "remove",
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend { id, old, new } => {
                write!(f, "{} backend {id}", verb(old.is_some(), new.is_some()))
            }
            Self::Schedule { id, old, new } => {
                write!(f, "{} schedule of service {id}", verb(old.is_some(), new.is_some()))
            }
            Self::Slots { service, words } => write!(f, "write {} slots of service {service}", words.len()),
            Self::Ring { service, old, new, .. } => {
                let words = new.as_ref().or(old.as_ref()).map_or(0, Ring::len);
                write!(f, "write {words} slots of service {service}")
            }
            Self::Service { id, old, new } => {
                write!(f, "{} service {id}", verb(old.is_some(), new.is_some()))
            }
            Self::Cid { key, old, new } => {
                write!(f, "{} a server id of service {}", verb(old.is_some(), new.is_some()), key.service)
            }
            Self::Port { key, old, new } => {
                write!(f, "{} port {} of VIP {}", verb(old.is_some(), new.is_some()), key.port, key.vip)
            }
            Self::PortRange { key, old, new } => write!(
                f,
                "{} port range {}/{} of VIP {}",
                verb(old.is_some(), new.is_some()),
                u16::from_be_bytes(key.port),
                key.prefix_len - PortRangeKey::FIXED_BITS,
                u32::from_be_bytes(key.vip)
            ),
            Self::Vip { address, old, new } => {
                write!(f, "{} VIP {address}", verb(old.is_some(), new.is_some()))
            }
            Self::List(action) => action.fmt(f),
            Self::Nat(change) => change.fmt(f),
        }
    }
}

/// The actions that turn `old` into `new`, in an order in which no packet meets half a change:
/// backends before server ids, schedules and slots, those and NAT before services, services before ports, ports before VIPs; removals the
/// other way round, after everything that replaces them.
#[must_use]
pub fn diff(old: &Image, new: &Image) -> Vec<Action> {
    let mut actions = Vec::new();
    let (backends_set, backends_gone) = split(&old.backends, &new.backends);
    let (services_set, services_gone) = split(&old.services, &new.services);
    let (cids_set, cids_gone) = split(&old.cids, &new.cids);
    let (ports_set, ports_gone) = split(&old.ports, &new.ports);
    let (ranges_set, ranges_gone) = split(&old.port_ranges, &new.port_ranges);
    let (vips_set, vips_gone) = split(&old.vips, &new.vips);

    actions.extend(backends_set.into_iter().map(|(id, old, new)| Action::Backend { id, old, new }));
    actions.extend(cids_set.into_iter().map(|(key, old, new)| Action::Cid { key, old, new }));
    let schedules = |id: &u32| (old.schedules.get(id).cloned(), new.schedules.get(id).cloned());
    for id in new.schedules.keys() {
        let (old, new) = schedules(id);
        if old != new {
            actions.push(Action::Schedule { id: *id, old, new });
        }
    }
    for (id, record) in &new.services {
        let base = record.entry.ring_base;
        let Some(after) = new.rings.get(id) else { continue };
        let Some(before) = old.rings.get(id) else {
            // A place that no service held may hold anything: all of it is written.
            actions.push(Action::Ring { service: *id, base, old: None, new: Some(after.clone()) });
            continue;
        };
        if before.is_same(after) {
            continue;
        }
        let differing = before.iter().zip(after).filter(|(old, new)| old != new).count();
        if differing > MANY && before.len() == after.len() {
            // A list of thousands of words takes six times the memory of both rings, and thousands of services may change at once.
            let (old, new) = (Some(before.clone()), Some(after.clone()));
            actions.push(Action::Ring { service: *id, base, old, new });
            continue;
        }
        let words: Vec<_> = (base..)
            .zip(after)
            .enumerate()
            .map(|(i, (index, word))| (index, before.get(i).copied().unwrap_or_default(), *word))
            .filter(|(_, old, new)| old != new)
            .collect();
        if !words.is_empty() {
            actions.push(Action::Slots { service: *id, words });
        }
    }
    // Before the flags that make the program ask for them; what nobody asks for any more goes last.
    let (lists_set, lists_gone) = lists::diff(old, new);
    actions.extend(lists_set);
    let (nat_set, nat_gone) = NatImage::diff(&old.nat, &new.nat);
    actions.extend(nat_set.into_iter().map(Action::Nat));
    actions.extend(services_set.into_iter().map(|(id, old, new)| Action::Service { id, old, new }));
    actions.extend(ports_set.into_iter().map(|(key, old, new)| Action::Port { key, old, new }));
    actions.extend(ranges_set.into_iter().map(|(key, old, new)| Action::PortRange { key, old, new }));
    actions.extend(vips_set.into_iter().map(|(address, old, new)| Action::Vip { address, old, new }));

    actions.extend(vips_gone.into_iter().map(|(address, old, new)| Action::Vip { address, old, new }));
    actions.extend(ranges_gone.into_iter().map(|(key, old, new)| Action::PortRange { key, old, new }));
    actions.extend(ports_gone.into_iter().map(|(key, old, new)| Action::Port { key, old, new }));
    for (id, old_record, new_record) in services_gone {
        actions.push(Action::Service { id, old: old_record, new: new_record });
        if let (Some(record), Some(ring)) = (old_record, old.rings.get(&id)) {
            let base = record.entry.ring_base;
            actions.push(Action::Ring { service: id, base, old: Some(ring.clone()), new: None });
        }
    }
    // A service that is no longer scheduled says so in its entry first.
    for id in old.schedules.keys().filter(|id| !new.schedules.contains_key(id)) {
        let (old, new) = schedules(id);
        actions.push(Action::Schedule { id: *id, old, new });
    }
    actions.extend(cids_gone.into_iter().map(|(key, old, new)| Action::Cid { key, old, new }));
    actions.extend(nat_gone.into_iter().map(Action::Nat));
    actions.extend(backends_gone.into_iter().map(|(id, old, new)| Action::Backend { id, old, new }));
    actions.extend(lists_gone);
    actions
}

/// Words of one ring that are written one by one at most.
const MANY: usize = 256;

pub(super) type Changes<K, V> = Vec<(K, Option<V>, Option<V>)>;

/// What is new or different, and what is gone.
pub(super) fn split<K: Ord + Copy, V: PartialEq + Copy>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> (Changes<K, V>, Changes<K, V>) {
    let (mut set, mut gone) = (Vec::new(), Vec::new());
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        // Both are in order: whichever key is less is in one of them only.
        let order = match (olds.peek(), news.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return (set, gone),
        };
        let before = if order.is_le() { olds.next() } else { None };
        let after = if order.is_ge() { news.next() } else { None };
        match (before, after) {
            (Some((key, old)), None) => gone.push((*key, Some(*old), None)),
            (old, Some((key, new))) if old.is_none_or(|(_, old)| old != new) => {
                set.push((*key, old.map(|(_, old)| *old), Some(*new)));
            }
            _ => {}
        }
    }
}
