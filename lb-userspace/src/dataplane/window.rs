//! A large array map of which only what is being read or written is in our address space: pages that are mapped count as
//! the daemon's memory, although they are the map's.

use super::{DataplaneError, mapping::Mapping};
use aya::maps::MapData;
use lb_common::abi::Slot;
use std::sync::atomic::{AtomicU64, Ordering};

/// An array map of single words, the values of which are 8 bytes.
pub(super) struct Windowed {
    name: &'static str,
    pub(super) len: u32,
    map: MapData,
    page: usize,
}

/// Words of the map, mapped for as long as this lives.
pub(super) struct Window {
    mapping: Mapping,
    /// Of the first one in the mapping, in bytes.
    offset: usize,
    count: usize,
}

/// Words copied at once.
const CHUNK: u32 = 1 << 16;

impl Windowed {
    pub(super) fn new(name: &'static str, map: MapData) -> Result<Self, DataplaneError> {
        let info = map.info().map_err(DataplaneError::map(name))?;
        assert_eq!(info.value_size(), 8, "{name} is an array of words");
        // SAFETY: sysconf only reads.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Ok(Self { name, len: info.max_entries(), map, page: usize::try_from(page).unwrap_or(4096) })
    }

    /// `count` words from `base` on.
    pub(super) fn at(&self, base: u32, count: u32) -> Result<Window, DataplaneError> {
        let end = base.checked_add(count).filter(|end| *end <= self.len);
        assert!(end.is_some() && count > 0, "{count} words from {base} on, of {}", self.len);
        let offset = base as usize * 8;
        let aligned = offset / self.page * self.page;
        let bytes = offset - aligned + count as usize * 8;
        let mapping = Mapping::new(self.name, &self.map, bytes, aligned)?;
        Ok(Window { mapping, offset: offset - aligned, count: count as usize })
    }

    /// Copies all that fits from a smaller or larger map.
    pub(super) fn copy_from(&self, old: &Self) -> Result<(), DataplaneError> {
        let len = self.len.min(old.len);
        for base in (0..len).step_by(CHUNK as usize) {
            let count = CHUNK.min(len - base);
            let (from, to) = (old.at(base, count)?, self.at(base, count)?);
            for (from, to) in from.words().iter().zip(to.words()) {
                let word = from.load(Ordering::Acquire);
                // A page of a new map that is not touched costs nothing but its zeros.
                if word != 0 {
                    to.store(word, Ordering::Release);
                }
            }
        }
        Ok(())
    }
}

impl Window {
    pub(super) fn words(&self) -> &[AtomicU64] {
        self.mapping.words(self.offset, self.count)
    }
}

/// A word of the ring array.
pub(super) fn load_slot(word: &AtomicU64) -> Slot {
    Slot(word.load(Ordering::Acquire))
}
