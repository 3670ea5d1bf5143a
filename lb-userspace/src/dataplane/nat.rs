//! The maps of NAT: written as the plan says, sessions read and removed, events taken out.

use super::{
    DataplaneError, batch,
    maps::{Mapped, descriptor, gone_is_fine, mapped, take},
};
use crate::plan::{NatChange, NatImage, Pair};
use aya::{
    Ebpf,
    maps::{HashMap, MapData, PerCpuArray},
};
use lb_common::abi::{
    Control, FlowEntry, FlowKey6, MAX_SERVICES, NAT_MARK_WORDS, NatKey, NatOrigin, NatStats,
    POOL_ADDRESS_CAPACITY, Pool, SessionBack, SessionOut,
};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

/// Handles of the maps of NAT, and of the switches of the whole program.
pub struct NatMaps {
    origins: HashMap<MapData, NatKey, NatOrigin>,
    marks: Mapped,
    pools: Mapped,
    addresses: Mapped,
    control: Arc<Mapped>,
    stats: PerCpuArray<MapData, NatStats>,
    out: HashMap<MapData, FlowKey6, SessionOut>,
    back: HashMap<MapData, FlowKey6, SessionBack>,
    /// Descriptors of SESSIONS_OUT and SESSIONS_BACK, which aya's handles do not give out.
    fds: [OwnedFd; 2],
}

/// All sessions, as they stood while they were read.
#[derive(Debug, Default)]
pub struct Sessions {
    pub out: Vec<(FlowKey6, SessionOut)>,
    pub back: Vec<(FlowKey6, SessionBack)>,
}

/// The word of `CONTROL` that holds its flags, in the lower half, and the generation of routes.
const FLAGS_WORD: usize = 0;

impl NatMaps {
    /// Takes the maps out of a loaded program.
    pub(super) fn take(ebpf: &mut Ebpf, control: Arc<Mapped>) -> Result<Self, DataplaneError> {
        Ok(Self {
            fds: [descriptor(ebpf, "SESSIONS_OUT")?, descriptor(ebpf, "SESSIONS_BACK")?],
            origins: take(ebpf, "NATS")?,
            marks: mapped(ebpf, "NAT_MARKS")?,
            pools: mapped(ebpf, "POOLS")?,
            addresses: mapped(ebpf, "POOL_ADDRESSES")?,
            control,
            stats: take(ebpf, "NAT_STATS")?,
            out: take(ebpf, "SESSIONS_OUT")?,
            back: take(ebpf, "SESSIONS_BACK")?,
        })
    }

    /// What the maps hold.
    pub(super) fn observe(&self) -> Result<NatImage, DataplaneError> {
        let mut image = NatImage::default();
        for entry in self.origins.iter() {
            let (key, origin) = entry.map_err(DataplaneError::map("NATS"))?;
            image.origins.insert(key, origin);
        }
        for index in 0..NAT_MARK_WORDS {
            let word = self.marks.word(index, 0).load(Ordering::Acquire);
            if word != 0 {
                image.marks.insert(index, word);
            }
        }
        for service in 0..MAX_SERVICES {
            let pool: Pool = self.pools.load(service);
            let count = u32::from(pool.v4) + u32::from(pool.v6);
            if pool.hi == 0 || pool.base.saturating_add(count) > POOL_ADDRESS_CAPACITY {
                continue;
            }
            image.pools.insert(service, pool);
            image.addresses.extend((pool.base..pool.base + count).map(|i| (i, self.addresses.load(i))));
        }
        image.on = self.control().flags & Control::NAT != 0;
        image.watched = self.control().flags & Control::WATCHED != 0;
        Ok(image)
    }

    fn control(&self) -> Control {
        self.control.load(0)
    }

    /// Carries out one change.
    pub(super) fn apply(&mut self, change: &NatChange) -> Result<(), DataplaneError> {
        match *change {
            NatChange::Origin { key, new: Some(origin), .. } => {
                self.origins.insert(key, origin, 0).map_err(DataplaneError::map("NATS"))
            }
            NatChange::Origin { key, new: None, .. } => {
                gone_is_fine(self.origins.remove(&key)).map_err(DataplaneError::map("NATS"))
            }
            NatChange::Mark { index, new, .. } => {
                self.marks.word(index, 0).store(new.unwrap_or(0), Ordering::Release);
                Ok(())
            }
            NatChange::Pool { service, new, .. } => {
                // Base and counts share the first word.
                self.pools.store(service, &new.unwrap_or_default(), 0, false);
                Ok(())
            }
            NatChange::PoolAddress { index, new, .. } => {
                self.addresses.store(index, &new.unwrap_or_default(), 0, false);
                Ok(())
            }
            NatChange::Switch { new, .. } => {
                self.switch(Control::NAT, new);
                Ok(())
            }
            NatChange::Watch { new, .. } => {
                self.switch(Control::WATCHED, new);
                Ok(())
            }
        }
    }

    /// Sets or clears a flag of the whole program.
    fn switch(&self, flag: u32, on: bool) {
        let word = self.control.word(0, FLAGS_WORD);
        let flag = u64::from_ne_bytes(halves(flag, 0));
        if on {
            word.fetch_or(flag, Ordering::AcqRel);
        } else {
            word.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    /// Routes or neighbours changed: what the program remembers of ways to clients is old.
    pub fn routes_changed(&self) {
        let word = self.control.word(0, FLAGS_WORD);
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let bytes = word.to_ne_bytes();
            let [a, b, c, d, e, f, g, h] = bytes;
            let (flags, routes) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
            Some(u64::from_ne_bytes(halves(flags, routes.wrapping_add(1))))
        });
    }

    /// Sessions made and refused since the maps were made.
    pub fn stats(&self) -> Result<NatStats, DataplaneError> {
        let values = self.stats.get(&0, 0).map_err(DataplaneError::map("NAT_STATS"))?;
        Ok(values.iter().fold(NatStats::default(), |a, b| NatStats {
            made: a.made + b.made,
            exhausted: a.exhausted + b.exhausted,
            full: a.full + b.full,
            pad: 0,
        }))
    }

    /// The session of a client's flow.
    #[must_use]
    pub fn session(&self, key: &FlowKey6) -> Option<SessionOut> {
        self.out.get(key, 0).ok()
    }

    /// The session of a backend's flow.
    #[must_use]
    pub fn session_back(&self, key: &FlowKey6) -> Option<SessionBack> {
        self.back.get(key, 0).ok()
    }

    /// Every session.
    pub fn sessions(&self) -> Result<Sessions, DataplaneError> {
        let mut sessions = Sessions::default();
        let failed = |map| move |source| DataplaneError::Read { map, source };
        // The halves of a session that is made in between are told apart from orphans by their age.
        batch::for_each::<FlowKey6, SessionOut>(self.fds[0].as_fd(), |k, v| sessions.out.push((*k, *v)))
            .map_err(failed("SESSIONS_OUT"))?;
        batch::for_each::<FlowKey6, SessionBack>(self.fds[1].as_fd(), |k, v| sessions.back.push((*k, *v)))
            .map_err(failed("SESSIONS_BACK"))?;
        Ok(sessions)
    }

    /// Removes a session, unless a packet of it came since it was read. The client's half goes first: without it no packet
    /// of the client's finds the source port, which the other half keeps from others until then.
    pub fn forget(&mut self, pair: &Pair) -> Result<(), DataplaneError> {
        let same = |entry: Option<u64>, seen: FlowEntry| entry.is_none_or(|word| word == seen.0);
        let front =
            pair.out.is_none_or(|(key, seen)| same(self.out.get(&key, 0).ok().map(|s| s.entry), seen));
        let reply =
            pair.back.is_none_or(|(key, seen)| same(self.back.get(&key, 0).ok().map(|s| s.entry), seen));
        if !front || !reply {
            return Ok(());
        }
        if let Some((key, _)) = pair.out {
            gone_is_fine(self.out.remove(&key)).map_err(DataplaneError::map("SESSIONS_OUT"))?;
        }
        if let Some((key, _)) = pair.back {
            gone_is_fine(self.back.remove(&key)).map_err(DataplaneError::map("SESSIONS_BACK"))?;
        }
        Ok(())
    }
}

/// Two words of 32 bits as they lie in memory.
fn halves(low: u32, high: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}
