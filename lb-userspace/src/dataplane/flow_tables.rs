//! The maps of handshakes and schedules, and forgetting: how tracked flows end.

use super::{
    DataplaneError, batch,
    maps::{Mapped, Maps, descriptor, mapped, take},
};
use crate::plan::{Flow, Image, ScheduleRecord, ServiceRecord};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use lb_common::abi::{
    BackendEntry, FlowEntry, FlowKey4, FlowKey6, HalfOpen, MAX_SERVICES, Schedule, ServiceEntry,
};
use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::Ordering,
};

/// Handles of the maps of handshakes and schedules.
pub(super) struct FlowTables {
    half_open4: HashMap<MapData, FlowKey4, HalfOpen>,
    half_open6: HashMap<MapData, FlowKey6, HalfOpen>,
    /// Descriptors of HALF_OPEN4 and HALF_OPEN6.
    half_open_fds: [OwnedFd; 2],
    schedules: Mapped,
    schedule: Mapped,
    active: Mapped,
}

impl FlowTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            half_open_fds: [descriptor(ebpf, "HALF_OPEN4")?, descriptor(ebpf, "HALF_OPEN6")?],
            half_open4: take(ebpf, "HALF_OPEN4")?,
            half_open6: take(ebpf, "HALF_OPEN6")?,
            schedules: mapped(ebpf, "SCHEDULES")?,
            schedule: mapped(ebpf, "SCHEDULE")?,
            active: mapped(ebpf, "ACTIVE")?,
        })
    }

    /// Base and size of a schedule share a word, read and written at once.
    fn range(&self, id: u32) -> (u32, u32) {
        let word = self.schedules.word(id, 0).load(Ordering::Acquire);
        (word as u32, (word >> 32) as u32)
    }

    /// A program that has read the old base and size finds the old words there: the new ones lie elsewhere.
    pub(super) fn set_schedule(&self, id: u32, new: Option<&ScheduleRecord>) {
        let (base, size) = match new {
            Some(record) => {
                for (at, word) in (record.base..).zip(&record.words) {
                    self.schedule.word(at, 0).store(*word, Ordering::Release);
                }
                (record.base, record.words.len() as u32)
            }
            None => (self.range(id).0, 0),
        };
        self.schedules.word(id, 0).store(u64::from(base) | u64::from(size) << 32, Ordering::Release);
    }

    /// Before a service has the flags of `new`: one that had no scheduler until now has flows without entries at home, like
    /// one whose tables were full.
    pub(super) fn meet_scheduler(&self, id: u32, old: Option<&ServiceRecord>, new: &ServiceRecord) {
        const HOMED: usize = offset_of!(Schedule, homed_ns) / 8;
        let scheduled = |record: &ServiceRecord| record.entry.flags & ServiceEntry::SCHEDULED != 0;
        let word = self.schedules.word(id, HOMED);
        match old {
            None => word.store(0, Ordering::Relaxed),
            Some(old) if !scheduled(old) && scheduled(new) => {
                word.store(monotonic_ns(), Ordering::Release);
            }
            Some(_) => {}
        }
    }

    pub(super) fn observe(&self, image: &mut Image) {
        image.schedule_capacity = self.schedule.len;
        for id in 0..MAX_SERVICES {
            let (base, size) = self.range(id);
            if size == 0 || base.checked_add(size).is_none_or(|end| end > self.schedule.len) {
                continue;
            }
            let words = (base..base + size).map(|at| self.schedule.word(at, 0).load(Ordering::Acquire));
            image.schedules.insert(id, ScheduleRecord { base, words: words.collect() });
        }
    }

    /// A new owner of a backend's id has no flows.
    pub(super) fn clear_active(&self, backend: u32) {
        self.active.word(backend, 0).store(0, Ordering::Relaxed);
    }

    pub(super) fn copy_active(&self, old: &Self) {
        for id in 0..old.active.len.min(self.active.len) {
            let count = old.active.word(id, 0).load(Ordering::Relaxed);
            self.active.word(id, 0).store(count, Ordering::Relaxed);
        }
    }
}

impl Maps {
    /// Every handshake with its entry. Where confirmed flows are read as well, they are read after these: a flow goes from
    /// here to there.
    pub fn half_open(&self) -> Result<Vec<(Flow, HalfOpen)>, DataplaneError> {
        let mut flows = Vec::new();
        let failed = |map| move |source| DataplaneError::Read { map, source };
        let [v4, v6] = &self.tables.half_open_fds;
        batch::for_each::<FlowKey4, HalfOpen>(v4.as_fd(), |key, entry| {
            flows.push((Flow::V4(*key), *entry));
        })
        .map_err(failed("HALF_OPEN4"))?;
        batch::for_each::<FlowKey6, HalfOpen>(v6.as_fd(), |key, entry| {
            flows.push((Flow::V6(*key), *entry));
        })
        .map_err(failed("HALF_OPEN6"))?;
        Ok(flows)
    }

    /// The handshake of a flow.
    #[must_use]
    pub fn half_open_of(&self, flow: &Flow) -> Option<HalfOpen> {
        match flow {
            Flow::V4(key) => self.tables.half_open4.get(key, 0),
            Flow::V6(key) => self.tables.half_open6.get(key, 0),
        }
        .ok()
    }

    /// Forgets a flow, unless a packet of it came since `seen` was read. One that comes at this very moment brings it back.
    pub fn forget(&mut self, flow: &Flow, seen: FlowEntry) -> Result<(), DataplaneError> {
        if self.flow(flow) != Some(seen) {
            return Ok(());
        }
        let [v4, v6] = &self.flow_fds;
        let (name, taken) = match flow {
            Flow::V4(key) => ("FLOWS4", batch::take::<_, u64>(v4.as_fd(), key)),
            Flow::V6(key) => ("FLOWS6", batch::take::<_, u64>(v6.as_fd(), key)),
        };
        let Some(word) = taken.map_err(|source| DataplaneError::Read { map: name, source })? else {
            return Ok(());
        };
        if FlowEntry(word) != seen {
            let back = match flow {
                Flow::V4(key) => self.flows4.insert(key, word, NOEXIST),
                Flow::V6(key) => self.flows6.insert(key, word, NOEXIST),
            };
            return taken_is_fine(back).map_err(DataplaneError::map(name));
        }
        self.uncount(seen);
        Ok(())
    }

    /// The same for a handshake.
    pub fn forget_half_open(&mut self, flow: &Flow, seen: HalfOpen) -> Result<(), DataplaneError> {
        if self.half_open_of(flow) != Some(seen) {
            return Ok(());
        }
        let [v4, v6] = &self.tables.half_open_fds;
        let (name, taken) = match flow {
            Flow::V4(key) => ("HALF_OPEN4", batch::take::<_, HalfOpen>(v4.as_fd(), key)),
            Flow::V6(key) => ("HALF_OPEN6", batch::take::<_, HalfOpen>(v6.as_fd(), key)),
        };
        let Some(entry) = taken.map_err(|source| DataplaneError::Read { map: name, source })? else {
            return Ok(());
        };
        if entry != seen {
            let back = match flow {
                Flow::V4(key) => self.tables.half_open4.insert(key, entry, NOEXIST),
                Flow::V6(key) => self.tables.half_open6.insert(key, entry, NOEXIST),
            };
            return taken_is_fine(back).map_err(DataplaneError::map(name));
        }
        if !FlowEntry(seen.entry).is_half_open() {
            self.uncount(FlowEntry(seen.entry));
        }
        Ok(())
    }

    /// An open flow of a least-connections service is one less.
    fn uncount(&self, entry: FlowEntry) {
        if entry.is_closing() || entry.backend() >= self.backends.len {
            return;
        }
        let backend: BackendEntry = self.backends.load(entry.backend());
        if backend.kind == 0 || backend.service >= MAX_SERVICES {
            return;
        }
        let service: ServiceEntry = self.services.load(backend.service);
        if service.flags & ServiceEntry::LEAST_CONNECTIONS != 0 {
            self.adjust_active(entry.backend(), -1);
        }
    }

    /// Flows under way of a backend of a least-connections service, as the program counts them.
    #[must_use]
    pub fn active(&self, backend: u32) -> i64 {
        self.tables.active.word(backend, 0).load(Ordering::Relaxed).cast_signed()
    }

    /// Puts that count right.
    pub fn adjust_active(&self, backend: u32, by: i64) {
        self.tables.active.word(backend, 0).fetch_add(by.cast_unsigned(), Ordering::Relaxed);
    }
}

const NOEXIST: u64 = 1;

/// There again already: a packet of the flow has recorded it.
fn taken_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(())
        }
        other => other,
    }
}

/// The clock of flow entries: `bpf_ktime_get_ns`.
pub(crate) fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
