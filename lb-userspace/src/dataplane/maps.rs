//! The maps: reading them back, and the only place where they are written.

use super::{
    DataplaneError, batch,
    flow_tables::FlowTables,
    fresh::Arrays,
    lists::Lists,
    mapping::Mapping,
    nat::NatMaps,
    signals::SignalMap,
    window::{Windowed, load_slot},
};
use crate::plan::{Action, BackendRecord, Flow, Image, Ring, ServiceRecord};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
};
use lb_common::abi::{
    BackendEntry, CidKey, FlowEntry, FlowKey4, FlowKey6, FlowStats, Identity, MAX_SERVICES, PortKey,
    PortRangeKey, ServiceEntry, Slot, Stats, VipEntry,
};
use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// An array map in our address space: words are read and written atomically, without a system call.
pub(super) struct Mapped {
    mapping: Mapping,
    /// Words of 8 bytes a value takes.
    stride: usize,
    pub(super) len: u32,
    _map: MapData,
}

impl Mapped {
    pub(super) fn new(name: &'static str, map: MapData) -> Result<Self, DataplaneError> {
        let info = map.info().map_err(DataplaneError::map(name))?;
        let stride = info.value_size().div_ceil(8) as usize;
        let len = info.max_entries();
        let mapping = Mapping::new(name, &map, stride * 8 * len as usize, 0)?;
        Ok(Self { mapping, stride, len, _map: map })
    }

    pub(super) fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!(index < self.len && word < self.stride, "index {index} of {}", self.len);
        let number = index as usize * self.stride + word;
        &self.mapping.words(number * 8, 1)[0]
    }

    pub(super) fn load<T: Pod>(&self, index: u32) -> T {
        assert_eq!(size_of::<T>(), self.stride * 8);
        let words: Vec<u64> = (0..self.stride).map(|w| self.word(index, w).load(Ordering::Acquire)).collect();
        // SAFETY: as many bytes as T has, and T is plain data.
        unsafe { words.as_ptr().cast::<T>().read_unaligned() }
    }

    /// Stores the words that differ; `last` is stored after all others, and set to 0 before them where
    /// `hide` says so.
    pub(super) fn store<T: Pod>(&self, index: u32, value: &T, last: usize, hide: bool) {
        assert_eq!(size_of::<T>(), self.stride * 8);
        // SAFETY: T is plain data without padding, of stride words.
        let words =
            unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), self.stride * 8) };
        let words: Vec<u64> =
            words.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().expect("eight bytes"))).collect();
        let others_differ =
            (0..self.stride).any(|w| w != last && self.word(index, w).load(Ordering::Relaxed) != words[w]);
        if others_differ && hide {
            self.word(index, last).store(0, Ordering::Release);
        }
        for w in (0..self.stride).filter(|w| *w != last) {
            self.word(index, w).store(words[w], Ordering::Release);
        }
        self.word(index, last).store(words[last], Ordering::Release);
    }
}

/// Handles of all maps.
pub struct Maps {
    vips4: HashMap<MapData, [u8; 4], VipEntry>,
    vips6: HashMap<MapData, [u8; 16], VipEntry>,
    ports: HashMap<MapData, PortKey, u32>,
    port_ranges: LpmTrie<MapData, [u8; 8], u32>,
    pub(super) services: Mapped,
    ring: Windowed,
    pub(super) backends: Mapped,
    service_stats: PerCpuArray<MapData, Stats>,
    backend_stats: PerCpuArray<MapData, Stats>,
    drops: PerCpuArray<MapData, u64>,
    pub(super) flows4: HashMap<MapData, FlowKey4, u64>,
    pub(super) flows6: HashMap<MapData, FlowKey6, u64>,
    flow_stats: PerCpuArray<MapData, FlowStats>,
    /// Descriptors of FLOWS4 and FLOWS6, which aya's handles do not give out.
    pub(super) flow_fds: [OwnedFd; 2],
    pub(super) tables: FlowTables,
    service_names: Array<MapData, Identity>,
    backend_names: Array<MapData, Identity>,
    lists: Lists,
    cids: HashMap<MapData, CidKey, u32>,
    pub(super) arrays: Arrays,
    nat: NatMaps,
    signals: SignalMap,
}

pub(super) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf
        .take_map(name)
        .unwrap_or_else(|| panic!("the program has no map {name}: abi and program differ"));
    T::try_from(map).map_err(DataplaneError::map(name))
}

/// A second descriptor of a hash map.
pub(super) fn descriptor(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, DataplaneError> {
    match ebpf.map(name) {
        Some(Map::HashMap(data)) => data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| DataplaneError::Read { map: name, source }),
        _ => panic!("the program has no hash map {name}: abi and program differ"),
    }
}

pub(super) fn mapped(ebpf: &mut Ebpf, name: &'static str) -> Result<Mapped, DataplaneError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => Mapped::new(name, data),
        _ => panic!("the program has no array {name}: abi and program differ"),
    }
}

pub(super) fn windowed(ebpf: &mut Ebpf, name: &'static str) -> Result<Windowed, DataplaneError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => Windowed::new(name, data),
        _ => panic!("the program has no array {name}: abi and program differ"),
    }
}

impl Maps {
    /// Takes the maps out of a loaded program.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        // Its word of flags is written bit by bit, by both.
        let control = Arc::new(mapped(ebpf, "CONTROL")?);
        Ok(Self {
            arrays: Arrays::take(ebpf)?,
            vips4: take(ebpf, "VIPS4")?,
            vips6: take(ebpf, "VIPS6")?,
            ports: take(ebpf, "PORTS")?,
            port_ranges: take(ebpf, "PORT_RANGES")?,
            services: mapped(ebpf, "SERVICES")?,
            ring: windowed(ebpf, "RING")?,
            backends: mapped(ebpf, "BACKENDS")?,
            service_stats: take(ebpf, "SERVICE_STATS")?,
            backend_stats: take(ebpf, "BACKEND_STATS")?,
            drops: take(ebpf, "DROPS")?,
            flow_fds: [descriptor(ebpf, "FLOWS4")?, descriptor(ebpf, "FLOWS6")?],
            tables: FlowTables::take(ebpf)?,
            flows4: take(ebpf, "FLOWS4")?,
            flows6: take(ebpf, "FLOWS6")?,
            flow_stats: take(ebpf, "FLOW_STATS")?,
            service_names: take(ebpf, "SERVICE_NAMES")?,
            backend_names: take(ebpf, "BACKEND_NAMES")?,
            lists: Lists::take(ebpf, Arc::clone(&control))?,
            nat: NatMaps::take(ebpf, control)?,
            signals: SignalMap::take(ebpf)?,
            cids: take(ebpf, "CIDS")?,
        })
    }

    /// Slots the ring array holds, and backends the backend array holds.
    #[must_use]
    pub fn capacities(&self) -> (u32, u32) {
        (self.ring.len, self.backends.len)
    }

    /// What the maps hold.
    pub fn observe(&self) -> Result<Image, DataplaneError> {
        let mut image = Image::empty(self.ring.len, self.backends.len);
        for entry in self.vips4.iter() {
            let (address, vip) = entry.map_err(DataplaneError::map("VIPS4"))?;
            image.vips.insert(IpAddr::from(address), vip);
        }
        for entry in self.vips6.iter() {
            let (address, vip) = entry.map_err(DataplaneError::map("VIPS6"))?;
            image.vips.insert(IpAddr::from(address), vip);
        }
        for entry in self.ports.iter() {
            let (key, service) = entry.map_err(DataplaneError::map("PORTS"))?;
            image.ports.insert(key, service);
        }
        for entry in self.port_ranges.iter() {
            let (key, service) = entry.map_err(DataplaneError::map("PORT_RANGES"))?;
            image.port_ranges.insert(range_key(&key), service);
        }
        for entry in self.cids.iter() {
            let (key, backend) = entry.map_err(DataplaneError::map("CIDS"))?;
            image.cids.insert(key, backend);
        }
        for id in 0..MAX_SERVICES {
            let entry: ServiceEntry = self.services.load(id);
            let end = entry.ring_base.checked_add(entry.ring_size);
            if entry.ring_size == 0 || end.is_none_or(|end| end > self.ring.len) {
                continue;
            }
            let identity = self.service_names.get(&id, 0).map_err(DataplaneError::map("SERVICE_NAMES"))?;
            image.services.insert(id, ServiceRecord { entry, identity });
            let ring = self.ring.at(entry.ring_base, entry.ring_size)?;
            image.rings.insert(id, ring.words().iter().map(load_slot).collect());
        }
        for id in 1..self.backends.len {
            let entry: BackendEntry = self.backends.load(id);
            if entry.kind == 0 {
                continue;
            }
            let identity = self.backend_names.get(&id, 0).map_err(DataplaneError::map("BACKEND_NAMES"))?;
            image.backends.insert(id, BackendRecord { entry, identity });
        }
        self.lists.observe(&mut image)?;
        self.tables.observe(&mut image);
        image.nat = self.nat.observe()?;
        Ok(image)
    }

    pub(super) fn settle_marks(&self, image: &Image) -> Result<(), DataplaneError> {
        self.lists.write_marks(&image.denied)
    }

    /// The maps of NAT.
    #[must_use]
    pub fn nat(&self) -> &NatMaps {
        &self.nat
    }

    /// The signs of backends' health.
    #[must_use]
    pub fn signals(&self) -> &SignalMap {
        &self.signals
    }

    pub(super) fn nat_mut(&mut self) -> &mut NatMaps {
        &mut self.nat
    }

    /// Words of the ring array, from an index on.
    pub fn slots(&self, base: u32, count: u32) -> Result<Vec<Slot>, DataplaneError> {
        Ok(self.ring.at(base, count)?.words().iter().map(load_slot).collect())
    }

    /// Writes words at their places in the ring array, which are in order.
    fn write_slots(
        &self,
        words: impl ExactSizeIterator<Item = (u32, Slot)> + Clone,
    ) -> Result<(), DataplaneError> {
        let (Some((first, _)), Some((last, _))) = (words.clone().next(), words.clone().last()) else {
            return Ok(());
        };
        let ring = self.ring.at(first, last + 1 - first)?;
        for (index, word) in words {
            ring.words()[(index - first) as usize].store(word.0, Ordering::Release);
        }
        Ok(())
    }

    /// Carries out one action.
    pub fn apply(&mut self, action: &Action) -> Result<(), DataplaneError> {
        match action {
            Action::Backend { id, old, new } => self.set_backend(*id, old.as_ref(), new.as_ref()),
            Action::Slots { words, .. } => {
                self.write_slots(words.iter().map(|(index, _, new)| (*index, *new)))
            }
            Action::Ring { base, new: Some(ring), .. } => {
                self.write_slots(ring.iter().enumerate().map(|(i, word)| (base + i as u32, *word)))
            }
            Action::Ring { base, old, new: None, .. } => {
                let count = old.as_ref().map_or(0, Ring::len);
                self.write_slots((0..count).map(|i| (base + i as u32, Slot::default())))
            }
            Action::Schedule { id, new, .. } => {
                self.tables.set_schedule(*id, new.as_ref());
                Ok(())
            }
            Action::Service { id, old, new } => self.set_service(*id, old.as_ref(), new.as_ref()),
            Action::Cid { key, new, .. } => {
                let done = match new {
                    Some(backend) => self.cids.insert(key, backend, 0),
                    None => gone_is_fine(self.cids.remove(key)),
                };
                done.map_err(DataplaneError::map("CIDS"))
            }
            Action::Port { key, new, .. } => {
                let done = match new {
                    Some(service) => self.ports.insert(key, service, 0),
                    None => gone_is_fine(self.ports.remove(key)),
                };
                done.map_err(DataplaneError::map("PORTS"))
            }
            Action::PortRange { key, new, .. } => {
                let key = trie_key(key);
                let done = match new {
                    Some(service) => self.port_ranges.insert(&key, service, 0),
                    None => gone_is_fine(self.port_ranges.remove(&key)),
                };
                done.map_err(DataplaneError::map("PORT_RANGES"))
            }
            Action::Vip { address: IpAddr::V4(address), new, .. } => {
                let done = match new {
                    Some(entry) => self.vips4.insert(address.octets(), entry, 0),
                    None => gone_is_fine(self.vips4.remove(&address.octets())),
                };
                done.map_err(DataplaneError::map("VIPS4"))
            }
            Action::Vip { address: IpAddr::V6(address), new, .. } => {
                let done = match new {
                    Some(entry) => self.vips6.insert(address.octets(), entry, 0),
                    None => gone_is_fine(self.vips6.remove(&address.octets())),
                };
                done.map_err(DataplaneError::map("VIPS6"))
            }
            Action::List(action) => self.lists.apply(action),
            Action::Nat(change) => self.nat.apply(change),
        }
    }

    fn set_backend(
        &mut self,
        id: u32,
        old: Option<&BackendRecord>,
        new: Option<&BackendRecord>,
    ) -> Result<(), DataplaneError> {
        if old.is_none() {
            clear_stats(&mut self.backend_stats, "BACKEND_STATS", id)?;
            self.tables.clear_active(id);
        }
        if let Some(record) = new {
            if old.is_none_or(|old| old.identity != record.identity) {
                self.backend_names
                    .set(id, record.identity, 0)
                    .map_err(DataplaneError::map("BACKEND_NAMES"))?;
            }
            // A packet must never meet the MAC of one interface with the index of another.
            let hide = old.is_some_and(|old| {
                old.entry.ifindex != record.entry.ifindex || old.entry.vlan != record.entry.vlan
            });
            self.backends.store(id, &record.entry, IFINDEX_WORD, hide);
        } else {
            self.backends.store(id, &BackendEntry::default(), IFINDEX_WORD, true);
            self.backend_names
                .set(id, Identity::default(), 0)
                .map_err(DataplaneError::map("BACKEND_NAMES"))?;
        }
        Ok(())
    }

    fn set_service(
        &mut self,
        id: u32,
        old: Option<&ServiceRecord>,
        new: Option<&ServiceRecord>,
    ) -> Result<(), DataplaneError> {
        if old.is_none() {
            clear_stats(&mut self.service_stats, "SERVICE_STATS", id)?;
        }
        let identity = new.map(|r| r.identity).unwrap_or_default();
        if old.map(|r| r.identity) != Some(identity) {
            self.service_names.set(id, identity, 0).map_err(DataplaneError::map("SERVICE_NAMES"))?;
        }
        if let Some(new) = new {
            self.tables.meet_scheduler(id, old, new);
        }
        // Base and size share the first word.
        // A packet that met the service a moment ago may have read its size and not yet its base: a service
        // that goes keeps the base, and its size alone says that it is gone.
        let gone =
            ServiceEntry { ring_base: old.map_or(0, |r| r.entry.ring_base), ..ServiceEntry::default() };
        self.services.store(id, &new.map_or(gone, |r| r.entry), 0, false);
        Ok(())
    }

    /// How to reach a backend.
    pub(super) fn backend(&self, id: u32) -> BackendEntry {
        if id < self.backends.len { self.backends.load(id) } else { BackendEntry::default() }
    }

    /// Counters of a service, summed over the CPUs.
    pub fn service_stats(&self, id: u32) -> Result<Stats, DataplaneError> {
        self.service_stats.get(&id, 0).map(|v| sum(&v)).map_err(DataplaneError::map("SERVICE_STATS"))
    }

    /// Counters of a backend, summed over the CPUs.
    pub fn backend_stats(&self, id: u32) -> Result<Stats, DataplaneError> {
        self.backend_stats.get(&id, 0).map(|v| sum(&v)).map_err(DataplaneError::map("BACKEND_STATS"))
    }

    /// A drop counter, summed over the CPUs.
    pub fn drops(&self, reason: lb_common::core::DropReason) -> Result<u64, DataplaneError> {
        let values = self.drops.get(&(reason as u32), 0).map_err(DataplaneError::map("DROPS"))?;
        Ok(values.iter().sum())
    }

    /// Every tracked flow with its entry.
    pub fn flows(&self) -> Result<Vec<(Flow, FlowEntry)>, DataplaneError> {
        let mut flows = Vec::new();
        let failed = |map| move |source| DataplaneError::Read { map, source };
        batch::for_each::<FlowKey4, u64>(self.flow_fds[0].as_fd(), |key, word| {
            flows.push((Flow::V4(*key), FlowEntry(*word)));
        })
        .map_err(failed("FLOWS4"))?;
        batch::for_each::<FlowKey6, u64>(self.flow_fds[1].as_fd(), |key, word| {
            flows.push((Flow::V6(*key), FlowEntry(*word)));
        })
        .map_err(failed("FLOWS6"))?;
        Ok(flows)
    }

    /// The entry of a flow.
    pub fn flow(&self, flow: &Flow) -> Option<FlowEntry> {
        let word = match flow {
            Flow::V4(key) => self.flows4.get(key, 0),
            Flow::V6(key) => self.flows6.get(key, 0),
        };
        word.ok().map(FlowEntry)
    }

    /// How many flows were recorded and how many found no room, since the maps were made.
    pub fn flow_stats(&self) -> Result<FlowStats, DataplaneError> {
        let values = self.flow_stats.get(&0, 0).map_err(DataplaneError::map("FLOW_STATS"))?;
        Ok(values.iter().fold(FlowStats::default(), |a, b| FlowStats {
            inserted: a.inserted + b.inserted,
            refused: a.refused + b.refused,
        }))
    }

    /// Copies what the program counted and what the slots and backends are from smaller maps.
    pub(super) fn copy_from(&mut self, old: &Self) -> Result<(), DataplaneError> {
        self.ring.copy_from(&old.ring)?;
        self.tables.copy_active(&old.tables);
        for id in 0..old.backends.len.min(self.backends.len) {
            let entry: BackendEntry = old.backends.load(id);
            if entry.kind == 0 {
                continue;
            }
            self.backends.store(id, &entry, IFINDEX_WORD, false);
            let name = old.backend_names.get(&id, 0).map_err(DataplaneError::map("BACKEND_NAMES"))?;
            self.backend_names.set(id, name, 0).map_err(DataplaneError::map("BACKEND_NAMES"))?;
            let stats = old.backend_stats.get(&id, 0).map_err(DataplaneError::map("BACKEND_STATS"))?;
            self.backend_stats.set(id, stats, 0).map_err(DataplaneError::map("BACKEND_STATS"))?;
        }
        Ok(())
    }
}

/// The word of a backend's entry that holds the end of the source MAC address and the interface: 0
/// there means "no next hop".
pub(super) const IFINDEX_WORD: usize = 1;

/// A new owner of an id counts from zero.
fn clear_stats(
    stats: &mut PerCpuArray<MapData, Stats>,
    map: &'static str,
    id: u32,
) -> Result<(), DataplaneError> {
    let zero = aya::maps::PerCpuValues::try_from(vec![Stats::default(); cpus()])
        .map_err(|source| DataplaneError::Mmap { map, source })?;
    stats.set(id, zero, 0).map_err(DataplaneError::map(map))
}

pub(super) fn cpus() -> usize {
    aya::util::nr_cpus().unwrap_or(1)
}

fn sum(values: &[Stats]) -> Stats {
    values.iter().fold(Stats::default(), |a, b| Stats {
        packets: a.packets.wrapping_add(b.packets),
        bytes: a.bytes.wrapping_add(b.bytes),
    })
}

pub(super) fn gone_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(())
        }
        other => other,
    }
}

fn trie_key(key: &PortRangeKey) -> Key<[u8; 8]> {
    let mut data = [0; 8];
    data[..4].copy_from_slice(&key.vip);
    data[4..6].copy_from_slice(&key.proto);
    data[6..].copy_from_slice(&key.port);
    Key::new(key.prefix_len, data)
}

fn range_key(key: &Key<[u8; 8]>) -> PortRangeKey {
    let data = key.data();
    PortRangeKey {
        prefix_len: key.prefix_len(),
        vip: [data[0], data[1], data[2], data[3]],
        proto: [data[4], data[5]],
        port: [data[6], data[7]],
    }
}
