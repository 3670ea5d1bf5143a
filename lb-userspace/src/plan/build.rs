//! From the services wanted and the image that is, to the image that should be.

use super::{
    BackendRecord, Image, Ring, ServiceRecord,
    image::{identity, name_of},
    lists, nat,
    ports::{Claim, lay_out},
    rings,
    schedule::{self, Words},
};
use crate::{
    maglev,
    model::{Admin, BackendSpec, Forward, Health, OnAllDown, ServiceSpec},
    ramp::Progress,
};
use ipnet::{Ipv4Net, Ipv6Net};
use lb_common::abi::{
    BackendEntry, CidKey, ForwardKind, Identity, MAX_SERVICES, NAT_CAPACITY, POOL_ADDRESS_CAPACITY,
    ServiceEntry, VipEntry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// A service as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedService {
    pub spec: ServiceSpec,
    /// Which of its parts this is; 0 where it has only one. See [`split`](super::split).
    pub part: u32,
    /// Slots of its ring, a prime.
    pub ring_size: u32,
    /// It has lost its quorum.
    pub no_quorum: bool,
    /// The routers send it nothing: there are no flows to keep, and its slots change hands at once.
    pub withdrawn: bool,
    /// Its backends, whatever their state.
    pub backends: Vec<WantedBackend>,
}

/// A backend as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedBackend {
    pub spec: BackendSpec,
    pub admin: Admin,
    pub health: Health,
    /// It takes no new flows for now, though it could: a backup that is not needed, or whose place one has taken.
    pub standby: bool,
    /// Its health is not believed: too few of the others are up.
    pub panic: bool,
    /// How it is reached; `None` until its route and neighbour were found once.
    pub next_hop: Option<NextHopEntry>,
    /// Its share on the way to its weight; `None` once it is there.
    pub ramp: Option<Progress>,
}

impl WantedBackend {
    /// Takes new flows.
    #[must_use]
    pub fn takes_new(&self) -> bool {
        self.admin == Admin::Enabled
            && !self.standby
            && (self.health != Health::Down || self.panic)
            && self.share() > 0
            && self.next_hop.is_some()
    }

    /// Its effective weight, in 65,536ths of a weight of 1.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.ramp.map_or(u32::from(self.spec.weight) << 16, |ramp| ramp.share(self.spec.weight))
    }

    /// Takes no packets at all.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.admin == Admin::Disabled || self.health == Health::Down && !self.panic
    }
}

/// The next hop of a backend as the program needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHopEntry {
    pub ifindex: u32,
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// VLAN id, 0 = untagged.
    pub vlan: u16,
    /// Largest IP packet of the egress.
    pub mtu: u16,
    /// This node's own address on the way there.
    pub source: Option<IpAddr>,
}

/// What of the node's settings the tables depend on: where outer source addresses come from, and more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSettings {
    /// `ipip`: the host bits vary with the flow.
    pub source_ipv4: Ipv4Net,
    pub source_ipv6: Ipv6Net,
    /// `gue`: a fixed source instead of this node's own address.
    pub gue_source_ipv4: Option<std::net::Ipv4Addr>,
    pub gue_source_ipv6: Option<std::net::Ipv6Addr>,
    /// What holds for every VIP: [`VipEntry::ECHO`], [`VipEntry::FRAGMENTS`].
    pub vip_flags: u32,
    /// Virtual addresses whose packets are for services alone.
    pub declined: BTreeSet<IpAddr>,
}

/// Why there is no such image. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The ring array must grow first.
    #[error("the ring array has no {needed} free slots in a row (it holds {capacity})")]
    RingFull { needed: u32, capacity: u32 },
    /// The backend array must grow first.
    #[error("the backend array is full ({capacity})")]
    BackendsFull { capacity: u32 },
    /// Only services with the schedulers `round-robin` and `least-connections` need it.
    #[error(
        "the schedules have no {needed} free words in a row: fewer backends with these schedulers are needed"
    )]
    SchedulesFull { needed: usize },
    #[error("{found} services: at most {MAX_SERVICES} fit")]
    TooManyServices { found: usize },
    #[error(
        "{found} ports of backends in \"nat\" services: at most {NAT_CAPACITY} fit; name fewer ports, or use \"snat\""
    )]
    TooManyNatPorts { found: usize },
    #[error("no {needed} free places in a row for addresses of NAT pools (at most {POOL_ADDRESS_CAPACITY})")]
    PoolsFull { needed: u32 },
}

/// Builds the image. `avoid` names backend ids that were freed a moment ago: packets in flight may still
/// carry them. Ids, ring places and slots of what stays are kept.
pub fn build(
    wanted: &[WantedService],
    observed: &Image,
    tunnel: &TunnelSettings,
    avoid: &BTreeSet<u32>,
    rings: &mut maglev::Cache,
) -> Result<Image, BuildError> {
    build_from(wanted, observed, tunnel, avoid, rings, 1)
}

/// As [`build`], with ids of new backends from `first` on.
pub(super) fn build_from(
    wanted: &[WantedService],
    observed: &Image,
    tunnel: &TunnelSettings,
    avoid: &BTreeSet<u32>,
    cache: &mut maglev::Cache,
    first: u32,
) -> Result<Image, BuildError> {
    let mut image = Image::empty(observed.ring_capacity, observed.backend_capacity);
    let mut places = Places::of(observed);
    let mut words = Words::of(observed);
    let mut service_ids = Ids::new(observed.services.keys().copied(), 0, MAX_SERVICES);
    let mut backend_ids =
        Ids::new(observed.backends.keys().chain(avoid).copied(), first, observed.backend_capacity);
    let mut claims: BTreeMap<IpAddr, Vec<Claim>> = BTreeMap::new();
    let known = KnownIds::of(observed);
    let mut all_ids: Vec<(u32, Vec<u32>)> = Vec::with_capacity(wanted.len());
    let mut jobs = Vec::with_capacity(wanted.len());

    for service in wanted {
        let kept = known.service(observed, service);
        let id = match kept {
            Some(id) => id,
            None => service_ids.take().ok_or(BuildError::TooManyServices { found: wanted.len() })?,
        };
        let base = match kept {
            Some(id) => observed.services[&id].entry.ring_base,
            None => places.take(service.ring_size).ok_or(BuildError::RingFull {
                needed: service.ring_size,
                capacity: observed.ring_capacity,
            })?,
        };
        let entry = ServiceEntry {
            ring_base: base,
            ring_size: service.ring_size,
            seed: service.spec.seed,
            idle_ns: u64::try_from(service.spec.idle_timeout.as_nanos()).unwrap_or(u64::MAX),
            flags: lists::service_flags(&service.spec.guard)
                | schedule::flags(service.spec.scheduler)
                | if service.spec.passive.is_some() { ServiceEntry::PASSIVE } else { 0 }
                | pool_flags(service)
                | service.spec.quic.as_ref().map_or(0, |quic| {
                    ServiceEntry::QUIC | u32::from(quic.config_id) << ServiceEntry::QUIC_CONFIG_SHIFT
                }),
            quic_id_len: service.spec.quic.as_ref().map_or(0, |quic| quic.server_id_length.into()),
        };
        let identity = Identity { port: service.part, ..identity(service.spec.name.as_str(), 0, 0) };
        image.services.insert(id, ServiceRecord { entry, identity });
        lists::add_service(&mut image, id, &service.spec.guard);
        for address in &service.spec.addresses {
            claims.entry(*address).or_default().push(Claim {
                port: service.spec.port,
                proto: service.spec.protocol.number(),
                service: id,
            });
        }
        let mut ids = Vec::with_capacity(service.backends.len());
        for backend in &service.backends {
            let old = known.backend(id, &backend.spec);
            let backend_id = match old {
                Some(backend_id) => backend_id,
                None => backend_ids
                    .take()
                    .ok_or(BuildError::BackendsFull { capacity: observed.backend_capacity })?,
            };
            ids.push(backend_id);
            if let Some(quic) = &service.spec.quic {
                let key = CidKey { service: id, server: quic.server_id(&backend.spec).padded() };
                image.cids.insert(key, backend_id);
            }
            let before = old.and_then(|old| observed.backends.get(&old));
            image.backends.insert(backend_id, backend_record(service, id, backend, before, tunnel));
        }
        let before = kept.and_then(|id| observed.rings.get(&id));
        let was = kept.map_or(0, |id| observed.services[&id].entry.flags);
        // Flows that a scheduler has placed live anywhere: without it, the table goes on being asked.
        let placed = was & ServiceEntry::SCHEDULED != 0 && entry.flags & ServiceEntry::SCHEDULED == 0;
        let followed = kept.and_then(|id| observed.followed.get(&id));
        let ring = match followed.filter(|followed| followed.words.len() == service.ring_size as usize) {
            Some(followed) => {
                image.followed.insert(id, Arc::clone(followed));
                let members = || service.backends.iter().zip(&ids);
                let known = |name: &str, address| {
                    let same = |b: &WantedBackend| b.spec.name.as_str() == name && b.spec.address == address;
                    members().find(|(backend, _)| same(backend)).map(|(_, id)| *id)
                };
                followed.ring(known, |id| image.backends.get(&id).is_some_and(BackendRecord::lives))
            }
            None => {
                jobs.push((all_ids.len(), rings::Job { service, before, placed }));
                Ring::default()
            }
        };
        image.rings.insert(id, ring);
        let schedule = words.place(kept, service, &ids);
        if let Some(schedule) = schedule.map_err(|needed| BuildError::SchedulesFull { needed })? {
            image.schedules.insert(id, schedule);
        }
        all_ids.push((id, ids));
    }
    for (at, ring) in rings::make(&jobs, &all_ids, cache) {
        image.rings.insert(all_ids[at].0, ring);
    }
    for address in nat::pool_addresses(wanted) {
        claims.entry(address).or_default();
    }
    for address in &tunnel.declined {
        claims.entry(*address).or_default();
    }
    for (vip, (address, claims)) in vip_numbers(&claims, observed).into_iter().zip(&claims) {
        let mut tables = lay_out(vip, claims);
        tables.entry.flags |= tunnel.vip_flags;
        if tunnel.declined.contains(address) {
            tables.entry.flags |= VipEntry::DECLINED;
        }
        image.vips.insert(*address, tables.entry);
        image.ports.extend(tables.ports);
        image.port_ranges.extend(tables.ranges);
    }
    nat::build(wanted, &all_ids, observed, &mut image)?;
    // Made at once and in order its nodes are full: of one entry after the other they would be half empty.
    image.backends = std::mem::take(&mut image.backends).into_iter().collect();
    Ok(image)
}

fn pool_flags(service: &WantedService) -> u32 {
    let reject = match service.spec.pool.on_all_down {
        OnAllDown::Drop => 0,
        OnAllDown::Reject => ServiceEntry::REJECT,
    };
    reject | if service.no_quorum { ServiceEntry::NO_QUORUM } else { 0 }
}

/// Who has which id now.
pub(super) struct KnownIds<'a> {
    /// By name and part.
    services: BTreeMap<(&'a str, u32), u32>,
    backends: BTreeMap<(u32, &'a str), (u32, [u8; 16], u8)>,
}

impl<'a> KnownIds<'a> {
    pub(super) fn of(observed: &'a Image) -> Self {
        Self {
            services: observed
                .services
                .iter()
                .map(|(id, record)| ((name_of(&record.identity), record.identity.port), *id))
                .collect(),
            backends: observed
                .backends
                .iter()
                .map(|(id, record)| {
                    let entry = &record.entry;
                    ((entry.service, name_of(&record.identity)), (*id, entry.outer_dst, entry.family))
                })
                .collect(),
        }
    }

    /// A service keeps its id while its ring does: base and size are two words of its entry, and a
    /// packet must not see one of each, so another size or seed is another service. So is one whose flows find their
    /// slots in another way.
    pub(super) fn service(&self, observed: &Image, wanted: &WantedService) -> Option<u32> {
        let id = *self.services.get(&(wanted.spec.name.as_str(), wanted.part))?;
        let entry = &observed.services[&id].entry;
        let source_ip = (entry.flags ^ schedule::flags(wanted.spec.scheduler)) & ServiceEntry::SOURCE_IP;
        (entry.ring_size == wanted.ring_size && entry.seed == wanted.spec.seed && source_ip == 0)
            .then_some(id)
    }

    /// A backend keeps its id while its address stays: another address is another server.
    pub(super) fn backend(&self, service: u32, spec: &BackendSpec) -> Option<u32> {
        let (id, address, family) = *self.backends.get(&(service, spec.name.as_str()))?;
        ((address, family) == address_bytes(spec.address)).then_some(id)
    }
}

fn address_bytes(address: IpAddr) -> ([u8; 16], u8) {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (bytes, 4)
        }
        IpAddr::V6(v6) => (v6.octets(), 6),
    }
}

fn backend_record(
    service: &WantedService,
    id: u32,
    backend: &WantedBackend,
    before: Option<&BackendRecord>,
    tunnel: &TunnelSettings,
) -> BackendRecord {
    let (outer_dst, family) = address_bytes(backend.spec.address);
    let mut flags = 0;
    if backend.health == Health::Down {
        flags |= BackendEntry::DOWN;
    }
    if backend.admin == Admin::Draining {
        flags |= BackendEntry::DRAINING;
    }
    if backend.is_dead() {
        flags |= BackendEntry::DEAD;
    }
    // It died: flow entries that name its former life are dead with it.
    let (was_dead, incarnation) =
        before.map_or((false, 0), |b| (b.entry.flags & BackendEntry::DEAD != 0, b.entry.incarnation));
    let died = backend.is_dead() && !was_dead && before.is_some();
    let mut entry = BackendEntry {
        outer_dst,
        family,
        flags,
        kind: match service.spec.forward {
            Forward::Dsr => ForwardKind::Dsr,
            Forward::Ipip => ForwardKind::Ipip,
            Forward::Gue => ForwardKind::Gue,
            Forward::Nat => ForwardKind::Nat,
            Forward::Snat => ForwardKind::Snat,
        } as u8,
        incarnation: incarnation.wrapping_add(died.into()),
        port: if service.spec.forward.rewrites() {
            backend.spec.port.unwrap_or(0)
        } else {
            service.spec.gue_port
        },
        service: id,
        ..BackendEntry::default()
    };
    if let Some(hop) = &backend.next_hop {
        entry.l2[..6].copy_from_slice(&hop.dst_mac);
        entry.l2[6..].copy_from_slice(&hop.src_mac);
        entry.ifindex = hop.ifindex;
        entry.mtu = hop.mtu;
        entry.vlan = hop.vlan;
        outer_source(&mut entry, service.spec.forward, hop, tunnel);
    }
    let port = backend.spec.port.unwrap_or(0);
    BackendRecord { entry, identity: identity(backend.spec.name.as_str(), port, backend.spec.weight) }
}

/// Outer source address: `ipip` from the configured prefix, its host bits varying with the flow; `gue` this
/// node's own address, since its UDP port varies.
fn outer_source(entry: &mut BackendEntry, forward: Forward, hop: &NextHopEntry, tunnel: &TunnelSettings) {
    match (forward, entry.family) {
        (Forward::Dsr | Forward::Nat | Forward::Snat, _) => {}
        (Forward::Ipip, 4) => {
            entry.outer_src[..4].copy_from_slice(&tunnel.source_ipv4.network().octets());
            entry.entropy_bits = 32 - tunnel.source_ipv4.prefix_len();
        }
        (Forward::Ipip, _) => {
            entry.outer_src = tunnel.source_ipv6.network().octets();
            entry.entropy_bits = (128 - tunnel.source_ipv6.prefix_len()).min(32);
        }
        (Forward::Gue, 4) => {
            let own = match hop.source {
                Some(IpAddr::V4(own)) => own,
                Some(IpAddr::V6(_)) | None => tunnel.source_ipv4.network(),
            };
            entry.outer_src[..4].copy_from_slice(&tunnel.gue_source_ipv4.unwrap_or(own).octets());
        }
        (Forward::Gue, _) => {
            let own = match hop.source {
                Some(IpAddr::V6(own)) => own,
                Some(IpAddr::V4(_)) | None => tunnel.source_ipv6.network(),
            };
            entry.outer_src = tunnel.gue_source_ipv6.unwrap_or(own).octets();
        }
    }
}

/// A number for each VIP, kept while it exists.
fn vip_numbers(claims: &BTreeMap<IpAddr, Vec<Claim>>, observed: &Image) -> Vec<u32> {
    let mut numbers = Ids::new(observed.vips.values().map(|v| v.vip), 1, u32::MAX);
    claims
        .keys()
        .map(|address| match observed.vips.get(address) {
            Some(entry) => entry.vip,
            None => numbers.take().unwrap_or(0),
        })
        .collect()
}

/// Free ids, lowest first.
struct Ids {
    used: BTreeSet<u32>,
    next: u32,
    end: u32,
}

impl Ids {
    fn new(used: impl Iterator<Item = u32>, start: u32, end: u32) -> Self {
        Self { used: used.collect(), next: start, end }
    }

    fn take(&mut self) -> Option<u32> {
        while self.used.contains(&self.next) {
            self.next += 1;
        }
        if self.next >= self.end {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

/// Free places of the ring array. What a service that goes now holds is not free yet: its words are
/// cleared after the new ones are written.
struct Places {
    free: Vec<(u32, u32)>,
}

impl Places {
    fn of(observed: &Image) -> Self {
        let mut used: Vec<_> =
            observed.services.values().map(|s| (s.entry.ring_base, s.entry.ring_size)).collect();
        used.sort_unstable();
        let (mut free, mut at) = (Vec::new(), 0u32);
        for (base, size) in used {
            if base > at {
                free.push((at, base - at));
            }
            at = at.max(base.saturating_add(size));
        }
        if observed.ring_capacity > at {
            free.push((at, observed.ring_capacity - at));
        }
        Self { free }
    }

    fn take(&mut self, size: u32) -> Option<u32> {
        let place = self.free.iter_mut().find(|(_, room)| *room >= size)?;
        let base = place.0;
        *place = (place.0 + size, place.1 - size);
        Some(base)
    }
}
