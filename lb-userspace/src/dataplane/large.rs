//! Maps that may be large, made beside each other: the kernel clears their memory, or gets it entry by entry, which for tens of
//! thousands of backends takes as long as the rest of the loading.

use super::DataplaneError;
use aya::maps::{MapData, MapError};
use lb_common::abi::{self, MapInfo};
use std::{
    path::{Path, PathBuf},
    thread,
};

/// Makes and pins those maps that grow and have no pin yet, so that the loader finds them.
pub(super) fn make(
    pin: impl Fn(&MapInfo) -> PathBuf,
    capacity: impl Fn(&MapInfo) -> u32,
) -> Result<(), DataplaneError> {
    let missing = abi::INVENTORY.iter().filter(|map| map.grows).map(|map| (map, pin(map)));
    let missing: Vec<_> = missing.filter(|(_, pin)| !pin.exists()).collect();
    thread::scope(|scope| {
        let made: Vec<_> = missing
            .iter()
            .map(|(map, pin)| {
                let capacity = capacity(map);
                scope.spawn(move || one(map, capacity, pin))
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All of them end before the first error is told.
        let made: Vec<Result<(), DataplaneError>> = made.into_iter().map(join).collect();
        made.into_iter().collect()
    })
}

fn one(map: &MapInfo, capacity: u32, pin: &Path) -> Result<(), DataplaneError> {
    let definition =
        aya_obj::Map::new_from_params(map.kind as u32, map.key_size, map.value_size, capacity, map.flags);
    let made = MapData::create(definition, map.name, None).map_err(DataplaneError::map(map.name))?;
    let unpinned = |error| MapError::PinError { name: Some(map.name.to_owned()), error };
    made.pin(pin).map_err(|error| DataplaneError::map(map.name)(unpinned(error)))
}
