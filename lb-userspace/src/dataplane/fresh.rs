//! New backends, many at once: their names and counters are arrays that are written by system calls, and at the start of a large
//! configuration one for each backend would take longer than all the rest.

use super::{
    DataplaneError, Maps, batch,
    maps::{IFINDEX_WORD, cpus},
};
use crate::plan::{Action, BackendRecord};
use aya::{Ebpf, maps::Map};
use lb_common::abi::{Identity, Stats};
use std::os::fd::{AsFd, OwnedFd};

/// Fewer are written one by one.
const LEAST: usize = 16;
/// Backends written at once at most.
const MOST: usize = 4096;

/// Further descriptors of the arrays, which aya's handles do not give out.
pub(super) struct Arrays {
    names: OwnedFd,
    stats: OwnedFd,
}

impl Arrays {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, DataplaneError> {
        let descriptor = |map: &'static str| match ebpf.map(map) {
            Some(Map::Array(data) | Map::PerCpuArray(data)) => {
                data.fd().as_fd().try_clone_to_owned().map_err(|source| DataplaneError::Read { map, source })
            }
            _ => panic!("the program has no array {map}: abi and program differ"),
        };
        Ok(Self { names: descriptor("BACKEND_NAMES")?, stats: descriptor("BACKEND_STATS")? })
    }
}

/// How many of these actions, from the first on, are carried out together; at least one.
pub(super) fn together(actions: &[Action]) -> usize {
    let new = actions.iter().take(MOST).map_while(new_backend).count();
    if new < LEAST { 1 } else { new }
}

fn new_backend(action: &Action) -> Option<(u32, &BackendRecord)> {
    match action {
        Action::Backend { id, old: None, new: Some(record) } => Some((*id, record)),
        _ => None,
    }
}

impl Maps {
    /// Carries out as many actions as [`together`] says.
    pub(super) fn apply_together(&mut self, actions: &[Action]) -> Result<(), DataplaneError> {
        if let [action] = actions {
            return self.apply(action);
        }
        let new: Vec<_> = actions.iter().filter_map(new_backend).collect();
        assert_eq!(new.len(), actions.len(), "only new backends are written together");
        let ids: Vec<u32> = new.iter().map(|(id, _)| *id).collect();
        let names: Vec<Identity> = new.iter().map(|(_, record)| record.identity).collect();
        let failed = |map| move |source| DataplaneError::Write { map, source };
        batch::insert(self.arrays.names.as_fd(), &ids, &names).map_err(failed("BACKEND_NAMES"))?;
        // A new owner of an id counts from zero, on every CPU.
        let zeros = vec![0; ids.len() * size_of::<Stats>() * cpus()];
        batch::insert_bytes(self.arrays.stats.as_fd(), &ids, &zeros).map_err(failed("BACKEND_STATS"))?;
        for (id, record) in new {
            self.tables.clear_active(id);
            self.backends.store(id, &record.entry, IFINDEX_WORD, false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::BackendEntry;

    #[test]
    fn only_new_backends_go_together() {
        let record = BackendRecord { entry: BackendEntry::default(), identity: Identity::default() };
        let new = |id| Action::Backend { id, old: None, new: Some(record) };
        let mut actions: Vec<_> = (1..=5000).map(new).collect();
        assert_eq!(together(&actions), MOST);
        assert_eq!(together(&actions[MOST..]), 5000 - MOST);
        assert_eq!(together(&actions[..LEAST - 1]), 1);
        actions[20] = Action::Backend { id: 21, old: Some(record), new: Some(record) };
        assert_eq!(together(&actions), 20);
        assert_eq!(together(&actions[20..]), 1);
    }
}
