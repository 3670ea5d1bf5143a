//! Network address translation in the image: where replies of `nat` backends come from, which source addresses
//! sessions take, and which services need sessions at all.

use super::{BuildError, Image, WantedService, action::verb};
use crate::model::{DEFAULT_SNAT_PORTS, Forward, ServiceSpec};
use lb_common::{
    abi::{NAT_CAPACITY, NatKey, NatOrigin, POOL_ADDRESS_CAPACITY, Pool, ServiceEntry, VipEntry},
    core::nat::{Address, mark},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

/// What the maps of NAT hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatImage {
    /// `NATS`.
    pub origins: BTreeMap<NatKey, NatOrigin>,
    /// `NAT_MARKS`: words that are not zero.
    pub marks: BTreeMap<u32, u64>,
    /// `POOLS`, by service id.
    pub pools: BTreeMap<u32, Pool>,
    /// `POOL_ADDRESSES`, IPv4 mapped; those of no pool are zero.
    pub addresses: BTreeMap<u32, [u8; 16]>,
    /// `Control::NAT`: replies of backends come by.
    pub on: bool,
    /// `Control::WATCHED`: RSTs among them are counted.
    pub watched: bool,
}

/// One change of the maps of NAT, with what was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatChange {
    Origin { key: NatKey, old: Option<NatOrigin>, new: Option<NatOrigin> },
    Mark { index: u32, old: Option<u64>, new: Option<u64> },
    Pool { service: u32, old: Option<Pool>, new: Option<Pool> },
    PoolAddress { index: u32, old: Option<[u8; 16]>, new: Option<[u8; 16]> },
    Switch { old: bool, new: bool },
    Watch { old: bool, new: bool },
}

/// An address as the tables of NAT keep it: IPv4 mapped (RFC 4291 section 2.5.5.2).
#[must_use]
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that [`mapped`] made these bytes of.
#[must_use]
pub fn unmapped(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

/// Adds to `image`, whose services, backends and VIPs stand, what NAT needs. `ids` are the ids of each service and of its
/// backends, in the order of `wanted`.
pub(super) fn build(
    wanted: &[WantedService],
    ids: &[(u32, Vec<u32>)],
    observed: &Image,
    image: &mut Image,
) -> Result<(), BuildError> {
    origins(wanted, ids, &observed.nat, image)?;
    let mut places = Places::of(&observed.nat);
    for (service, (id, _)) in wanted.iter().zip(ids) {
        let snat = service.spec.forward == Forward::Snat;
        // A backend that asks a virtual address of its own service comes from there.
        let sources = match service.spec.forward {
            Forward::Snat => pool_of(&service.spec),
            Forward::Nat => service.spec.addresses.clone(),
            Forward::Dsr | Forward::Ipip | Forward::Gue => continue,
        };
        if let Some(record) = image.services.get_mut(id) {
            record.entry.flags |= if snat { ServiceEntry::SESSIONS } else { ServiceEntry::HAIRPIN };
        }
        for address in &sources {
            if let Some(vip) = image.vips.get_mut(address) {
                vip.flags |= VipEntry::POOL;
                if service.spec.passive.is_some() {
                    vip.flags |= VipEntry::WATCHED;
                }
            }
        }
        if !snat {
            continue;
        }
        let base = places.place(observed, *id, &sources)?;
        let count = |v6: bool| sources.iter().filter(|a| a.is_ipv6() == v6).count() as u16;
        let (lo, hi) = service.spec.snat.as_ref().map_or(DEFAULT_SNAT_PORTS, |snat| snat.ports);
        image.nat.pools.insert(*id, Pool { base, v4: count(false), v6: count(true), lo, hi, pad: 0 });
        for (index, address) in (base..).zip(&sources) {
            image.nat.addresses.insert(index, mapped(*address));
        }
    }
    image.nat.watched =
        wanted.iter().any(|service| service.spec.forward == Forward::Nat && service.spec.passive.is_some());
    image.nat.on = wanted.iter().any(|service| service.spec.forward == Forward::Nat);
    Ok(())
}

/// Pool addresses that are no VIPs need an entry among them, without rules.
pub(super) fn pool_addresses(wanted: &[WantedService]) -> impl Iterator<Item = IpAddr> {
    wanted
        .iter()
        .filter(|service| service.spec.forward == Forward::Snat)
        .flat_map(|service| service.spec.snat.iter().flat_map(|snat| snat.addresses.iter().copied()))
}

/// Who leads to a backend's port: virtual address and port, service and backend.
type Leads = BTreeSet<([u8; 16], u16, u32, u32)>;

fn origins(
    wanted: &[WantedService],
    ids: &[(u32, Vec<u32>)],
    observed: &NatImage,
    image: &mut Image,
) -> Result<(), BuildError> {
    let mut leads: BTreeMap<NatKey, Leads> = BTreeMap::new();
    for (service, (id, backends)) in wanted.iter().zip(ids) {
        if service.spec.forward != Forward::Nat {
            continue;
        }
        let proto = service.spec.protocol.number().into();
        let (lo, hi) = service.spec.port.bounds();
        for (backend, backend_id) in service.backends.iter().zip(backends) {
            let address = mapped(backend.spec.address);
            let vips =
                service.spec.addresses.iter().filter(|vip| vip.is_ipv6() == backend.spec.address.is_ipv6());
            let vips: Vec<[u8; 16]> = vips.map(|vip| mapped(*vip)).collect();
            for port in lo..=hi {
                let listens = backend.spec.port.unwrap_or(port);
                let to = leads.entry(NatKey { address, port: listens.to_be_bytes(), proto }).or_default();
                to.extend(vips.iter().map(|vip| (*vip, port, *id, *backend_id)));
            }
            // Asked with a client's address, to tell whether it is a backend.
            let any = NatKey { address, port: [0; 2], proto: 0 };
            leads.entry(any).or_default().extend(vips.first().map(|vip| (*vip, 0, *id, *backend_id)));
        }
    }
    if leads.len() > NAT_CAPACITY as usize {
        return Err(BuildError::TooManyNatPorts { found: leads.len() });
    }
    for (key, to) in leads {
        if key.proto == 0 {
            let bit = mark(Address::read(&key.address));
            *image.nat.marks.entry(bit / 64).or_default() |= 1 << (bit % 64);
        }
        let unique = to.iter().map(|(vip, port, ..)| (vip, port)).collect::<BTreeSet<_>>().len() == 1;
        if key.proto != 0 && !unique {
            for (.., service, _) in &to {
                if let Some(record) = image.services.get_mut(service) {
                    record.entry.flags |= ServiceEntry::SESSIONS;
                }
            }
        }
        let heir = if unique || key.proto == 0 { None } else { heir(observed.origins.get(&key), &to) };
        if let Some((vip, port, service, backend)) = heir.or(to.first()) {
            let flags = match heir {
                _ if unique || key.proto == 0 => 0,
                None => NatOrigin::SESSIONS,
                Some(_) => NatOrigin::SESSIONS | NatOrigin::HEIR,
            };
            let (vip, service, backend, port) = (*vip, *service, *backend, port.to_be_bytes());
            image.nat.origins.insert(key, NatOrigin { vip, service, backend, port, flags, pad: 0 });
        }
    }
    Ok(())
}

/// Who led to a backend's port alone before others came, and still does: flows of that time have no session.
fn heir<'l>(observed: Option<&NatOrigin>, to: &'l Leads) -> Option<&'l ([u8; 16], u16, u32, u32)> {
    let alone =
        |origin: &&NatOrigin| origin.flags & NatOrigin::SESSIONS == 0 || origin.flags & NatOrigin::HEIR != 0;
    let origin = observed.filter(alone)?;
    to.iter().find(|(vip, port, ..)| *vip == origin.vip && port.to_be_bytes() == origin.port)
}

/// The source addresses of a service's sessions, IPv4 first.
fn pool_of(service: &ServiceSpec) -> Vec<IpAddr> {
    let mut addresses = service.snat.as_ref().map_or_else(Vec::new, |snat| snat.addresses.clone());
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

/// Free places of `POOL_ADDRESSES`. What is observed is not free, even if its pool goes: a packet may be reading it.
struct Places {
    free: Vec<(u32, u32)>,
}

impl Places {
    fn of(observed: &NatImage) -> Self {
        let mut free = Vec::new();
        let mut at = 0;
        for index in observed.addresses.keys().copied().chain([POOL_ADDRESS_CAPACITY]) {
            if index > at {
                free.push((at, index - at));
            }
            at = index + 1;
        }
        Self { free }
    }

    /// Where a service's addresses lie: where they are if they are the same.
    fn place(&mut self, observed: &Image, service: u32, addresses: &[IpAddr]) -> Result<u32, BuildError> {
        if let Some(pool) = observed.nat.pools.get(&service)
            && usize::from(pool.v4) + usize::from(pool.v6) == addresses.len()
            && (pool.base..).zip(addresses).all(|(i, a)| observed.nat.addresses.get(&i) == Some(&mapped(*a)))
        {
            return Ok(pool.base);
        }
        let needed = addresses.len() as u32;
        let place = self.free.iter_mut().find(|(_, room)| *room >= needed);
        let place = place.ok_or(BuildError::PoolsFull { needed })?;
        let base = place.0;
        *place = (base + needed, place.1 - needed);
        Ok(base)
    }
}

impl NatImage {
    /// What is new or different, in an order in which a packet that finds one thing finds what it points to; and what
    /// is gone.
    pub(super) fn diff(old: &Self, new: &Self) -> (Vec<NatChange>, Vec<NatChange>) {
        let (addresses, addresses_gone) = super::action::split(&old.addresses, &new.addresses);
        let (pools, pools_gone) = super::action::split(&old.pools, &new.pools);
        let (origins, origins_gone) = super::action::split(&old.origins, &new.origins);
        let (marks, marks_gone) = super::action::split(&old.marks, &new.marks);
        let mark = |(index, old, new)| NatChange::Mark { index, old, new };
        let address = |(index, old, new)| NatChange::PoolAddress { index, old, new };
        let pool = |(service, old, new)| NatChange::Pool { service, old, new };
        let origin = |(key, old, new)| NatChange::Origin { key, old, new };
        let switch = (old.on != new.on).then_some(NatChange::Switch { old: old.on, new: new.on });
        let watch = NatChange::Watch { old: old.watched, new: new.watched };
        let watch = (old.watched != new.watched).then_some(watch);
        let set = addresses.into_iter().map(address);
        let set = set.chain(pools.into_iter().map(pool)).chain(origins.into_iter().map(origin));
        let set = set.chain(marks.into_iter().map(mark));
        let gone = switch.filter(|_| !new.on).into_iter().chain(origins_gone.into_iter().map(origin));
        let gone = gone.chain(marks_gone.into_iter().map(mark));
        let gone = gone.chain(pools_gone.into_iter().map(pool));
        (
            set.chain(switch.filter(|_| new.on)).chain(watch).collect(),
            gone.chain(addresses_gone.into_iter().map(address)).collect(),
        )
    }

    /// Carries out a change in memory.
    pub(super) fn apply(&mut self, change: &NatChange) {
        fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match change {
            NatChange::Origin { key, new, .. } => set(&mut self.origins, *key, *new),
            NatChange::Mark { index, new, .. } => set(&mut self.marks, *index, *new),
            NatChange::Pool { service, new, .. } => set(&mut self.pools, *service, *new),
            NatChange::PoolAddress { index, new, .. } => set(&mut self.addresses, *index, *new),
            NatChange::Switch { new, .. } => self.on = *new,
            NatChange::Watch { new, .. } => self.watched = *new,
        }
    }
}

impl NatChange {
    pub(super) fn inverse(self) -> Self {
        match self {
            Self::Origin { key, old, new } => Self::Origin { key, old: new, new: old },
            Self::Mark { index, old, new } => Self::Mark { index, old: new, new: old },
            Self::Pool { service, old, new } => Self::Pool { service, old: new, new: old },
            Self::PoolAddress { index, old, new } => Self::PoolAddress { index, old: new, new: old },
            Self::Switch { old, new } => Self::Switch { old: new, new: old },
            Self::Watch { old, new } => Self::Watch { old: new, new: old },
        }
    }
}

impl fmt::Display for NatChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Origin { key, old, new } => {
                let (address, port) = (unmapped(key.address), u16::from_be_bytes(key.port));
                write!(f, "{} reply address {address} port {port}", verb(old.is_some(), new.is_some()))
            }
            Self::Mark { index, old, new } => {
                write!(f, "{} marks {index} of backends' addresses", verb(old.is_some(), new.is_some()))
            }
            Self::Pool { service, old, new } => {
                write!(f, "{} address pool of service {service}", verb(old.is_some(), new.is_some()))
            }
            Self::PoolAddress { index, old, new } => {
                let address = unmapped(new.or(*old).unwrap_or_default());
                write!(f, "{} pool address {address} at {index}", verb(old.is_some(), new.is_some()))
            }
            Self::Switch { new, .. } => {
                write!(f, "switch replies of backends {}", if *new { "on" } else { "off" })
            }
            Self::Watch { new, .. } => {
                write!(f, "switch the counting of resets {}", if *new { "on" } else { "off" })
            }
        }
    }
}
