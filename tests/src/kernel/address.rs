//! The daemon's part in virtual addresses: entries, leases, and the claims that it is told of.

use super::{Loaded, Program};
use aya::maps::{Array, HashMap, Map, MapData, RingBuf};
use lb_common::abi::{AddressEntry, AddressKey, ClaimEvent, Control, EventHeader, Lease};
use std::collections::BTreeMap;

/// The maps that addresses take.
pub(super) struct Neighbourhood {
    entries: HashMap<MapData, AddressKey, AddressEntry>,
    leases: Array<MapData, u64>,
    control: Array<MapData, Control>,
    events: RingBuf<MapData>,
}

impl Neighbourhood {
    pub(super) fn of(program: &Program) -> Self {
        Self {
            entries: program.hash("ADDRESSES"),
            leases: program.array("LEASES"),
            control: program.array("CONTROL"),
            events: events(program),
        }
    }
}

impl Loaded {
    /// The virtual addresses that it may answer for, in place of those before, and their leases.
    pub fn set_addresses(
        &mut self,
        addresses: &BTreeMap<AddressKey, AddressEntry>,
        leases: &BTreeMap<u32, Lease>,
    ) {
        let Neighbourhood { entries, leases: words, control, .. } = &mut self.neighbourhood;
        let before: Vec<AddressKey> = entries.keys().collect::<Result<_, _>>().expect("ADDRESSES");
        for key in before {
            entries.remove(&key).expect("an address that is there");
        }
        for (key, entry) in addresses {
            entries.insert(key, entry, 0).expect("ADDRESSES");
        }
        for (index, lease) in leases {
            words.set(*index, lease.0, 0).expect("LEASES");
        }
        let mut switches = control.get(&0, 0).expect("CONTROL");
        switches.flags = match addresses.is_empty() {
            true => switches.flags & !Control::ADDRESSES,
            false => switches.flags | Control::ADDRESSES,
        };
        control.set(0, switches, 0).expect("CONTROL");
    }

    /// A lease as it is by now.
    #[must_use]
    pub fn lease(&self, index: u32) -> Lease {
        Lease(self.neighbourhood.leases.get(&index, 0).expect("LEASES"))
    }

    /// What others claimed since the last call.
    pub fn claims(&mut self) -> Vec<ClaimEvent> {
        let mut claims = Vec::new();
        while let Some(record) = self.neighbourhood.events.next() {
            if record.len() == size_of::<ClaimEvent>() && record[..4] == EventHeader::CLAIM.to_ne_bytes() {
                // SAFETY: as many bytes as the type has, which is integers and byte arrays.
                claims.push(unsafe { record.as_ptr().cast::<ClaimEvent>().read_unaligned() });
            }
        }
        claims
    }
}

fn events(program: &Program) -> RingBuf<MapData> {
    let Some(Map::RingBuf(data)) = program.ebpf.map("EVENTS") else { panic!("no ring buffer EVENTS") };
    let again = MapData::from_id(data.info().expect("map info").id()).expect("a map of this id");
    RingBuf::try_from(Map::RingBuf(again)).expect("a ring buffer")
}
