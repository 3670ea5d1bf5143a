//! The virtual addresses of VRRP in the maps: where they are asked for, and the leases that say whether to answer.

use super::{DataplaneError, flow_tables::monotonic_ns, maps::Mapped};
use aya::maps::{HashMap, Map, MapData};
use lb_common::abi::{AddressEntry, AddressKey, Control, LEASE_CAPACITY, Lease};
use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

const ADDRESSES: &str = "ADDRESSES";
const LEASES: &str = "LEASES";
const CONTROL: &str = "CONTROL";
/// The word of `CONTROL` that holds its flags, in the lower half in memory.
const FLAGS_WORD: usize = 0;

/// The maps of virtual addresses.
pub struct Addresses {
    entries: HashMap<MapData, AddressKey, AddressEntry>,
    leases: Arc<Mapped>,
    control: Mapped,
}

impl Addresses {
    /// Opens the maps pinned in `maps_dir`.
    pub fn open(maps_dir: &Path) -> Result<Self, DataplaneError> {
        let pinned =
            |name: &'static str| MapData::from_pin(maps_dir.join(name)).map_err(DataplaneError::map(name));
        let entries = HashMap::try_from(Map::HashMap(pinned(ADDRESSES)?));
        Ok(Self {
            entries: entries.map_err(DataplaneError::map(ADDRESSES))?,
            leases: Arc::new(Mapped::new(LEASES, pinned(LEASES)?)?),
            control: Mapped::new(CONTROL, pinned(CONTROL)?)?,
        })
    }

    /// What the maps hold, perhaps of an earlier daemon.
    pub fn entries(&self) -> Result<BTreeMap<AddressKey, AddressEntry>, DataplaneError> {
        self.entries.iter().collect::<Result<_, _>>().map_err(DataplaneError::map(ADDRESSES))
    }

    /// Makes the entries these and no others.
    pub fn set(&mut self, wanted: &BTreeMap<AddressKey, AddressEntry>) -> Result<(), DataplaneError> {
        let before = self.entries()?;
        for key in before.keys().filter(|key| !wanted.contains_key(key)) {
            self.entries.remove(key).map_err(DataplaneError::map(ADDRESSES))?;
        }
        for (key, entry) in wanted {
            if before.get(key) != Some(entry) {
                self.entries.insert(key, entry, 0).map_err(DataplaneError::map(ADDRESSES))?;
            }
        }
        self.switch(!wanted.is_empty());
        Ok(())
    }

    /// Whether the program looks at frames to groups of hosts at all.
    fn switch(&self, on: bool) {
        let [a, b, c, d] = Control::ADDRESSES.to_ne_bytes();
        let flag = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
        let word = self.control.word(0, FLAGS_WORD);
        if on {
            word.fetch_or(flag, Ordering::AcqRel);
        } else {
            word.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    /// A lease by its index. `None`: there are no more.
    #[must_use]
    pub fn lease(&self, index: u32) -> Option<LeaseWord> {
        (index < LEASE_CAPACITY).then(|| LeaseWord { leases: Arc::clone(&self.leases), index })
    }
}

/// A lease, written without a system call: see [`Lease`].
#[derive(Clone)]
pub struct LeaseWord {
    leases: Arc<Mapped>,
    index: u32,
}

impl LeaseWord {
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    #[must_use]
    pub fn load(&self) -> Lease {
        Lease(self.leases.word(self.index, 0).load(Ordering::Acquire))
    }

    pub fn store(&self, lease: Lease) {
        self.leases.word(self.index, 0).store(lease.0, Ordering::Release);
    }

    /// The kernel no longer has the addresses either: nobody need be kept from answering. A lease that was given again
    /// meanwhile stays.
    pub fn settle(&self) {
        let word = self.leases.word(self.index, 0);
        let _ = word.compare_exchange(Lease::OVER.0, Lease::NONE.0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// For how long this node may go on answering without its daemon; zero if it may not, or for as long as nobody
    /// else claims an address.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        Duration::from_nanos(self.load().ends().saturating_sub(monotonic_ns()))
    }
}

impl fmt::Debug for LeaseWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseWord").field("index", &self.index).field("lease", &self.load()).finish()
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").finish_non_exhaustive()
    }
}
