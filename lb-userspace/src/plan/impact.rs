//! What a change does to the slots, by service and backend. Pure.

use super::{Image, Ring, name_of};
use lb_common::abi::{BackendEntry, ServiceEntry, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// What a change does to one service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceImpact {
    pub name: String,
    /// Its slots before; after, if it is new.
    pub slots_total: u32,
    /// Slots whose new flows go to somebody else from now on.
    pub slots_moved: u32,
    /// Slots whose new flows go to somebody else later, as shares reach their weights.
    pub slots_later: u32,
    /// Slots whose established flows without an entry lose their backend: it is gone, or takes no packets any more.
    pub slots_ended: u32,
    /// Of these, the ones that were plain: flows are not recorded there.
    pub plain_ended: u32,
    /// Moved or ended.
    pub slots_disrupted: u32,
    pub is_new: bool,
    /// It is no longer there, or another in its place (another ring, seed or way of hashing): all its flows end.
    pub is_gone: bool,
    /// Every flow has an entry or a session, whatever its slot.
    pub records_all: bool,
    /// By name: slots owned before, after, and in the end.
    pub backends: BTreeMap<String, [u32; 3]>,
    /// Backends whose flows end.
    pub ending: BTreeSet<u32>,
}

/// What differs between two images, service by service; `last` is the image once every share has reached its weight.
#[must_use]
pub fn impact(old: &Image, new: &Image, last: &Image) -> Vec<ServiceImpact> {
    let same = |id: &u32| {
        let name = |image: &Image| image.services.get(id).map(|s| name_of(&s.identity).to_owned());
        name(old).is_some_and(|before| name(new) == Some(before))
    };
    let mut found = Vec::new();
    for (id, record) in &new.services {
        let mut service = ServiceImpact {
            name: name_of(&record.identity).to_owned(),
            is_new: !same(id),
            records_all: records_all(&record.entry, new, *id),
            ..ServiceImpact::default()
        };
        let before = if same(id) { old.rings.get(id) } else { None };
        let (after, end) = (new.rings.get(id), last.rings.get(id));
        let word = |ring: Option<&Ring>, i: usize| ring.and_then(|r| r.get(i)).copied().unwrap_or_default();
        for i in 0..after.map_or(0, Ring::len) {
            let [before, after, end] = [before, after, end].map(|ring| word(ring, i));
            service.slots_total += 1;
            let moved = before.owner() != 0 && before.owner() != after.owner();
            let ended = before.home() != 0 && before.home() != after.home();
            service.slots_moved += u32::from(moved);
            service.slots_ended += u32::from(ended);
            service.plain_ended += u32::from(ended && before.is_plain());
            service.slots_disrupted += u32::from(moved || ended);
            service.slots_later += u32::from(after.owner() != end.owner());
            for (n, (image, owner)) in
                [(old, before.owner()), (new, after.owner()), (last, end.owner())].into_iter().enumerate()
            {
                if let Some(record) = image.backends.get(&owner) {
                    service.backends.entry(name_of(&record.identity).to_owned()).or_default()[n] += 1;
                }
            }
        }
        service.ending = if same(id) { ending(old, new, *id) } else { BTreeSet::new() };
        let changed = service.is_new
            || service.slots_disrupted + service.slots_later > 0
            || service.backends.values().any(|[a, b, c]| a != b || b != c)
            || !service.ending.is_empty();
        if changed {
            found.push(service);
        }
    }
    for (id, record) in old.services.iter().filter(|(id, _)| !same(id)) {
        let ring = old.rings.get(id).cloned().unwrap_or_default();
        let count = |test: &dyn Fn(&Slot) -> bool| ring.iter().filter(|slot| test(slot)).count() as u32;
        let mut service = ServiceImpact {
            name: name_of(&record.identity).to_owned(),
            slots_total: ring.len() as u32,
            slots_moved: count(&|s| s.owner() != 0),
            slots_ended: count(&|s| s.home() != 0),
            plain_ended: count(&|s| s.home() != 0 && s.is_plain()),
            slots_disrupted: count(&|s| s.owner() != 0 || s.home() != 0),
            is_gone: true,
            records_all: records_all(&record.entry, old, *id),
            ending: of_service(old, *id).map(|(id, _)| id).collect(),
            ..ServiceImpact::default()
        };
        for slot in &ring {
            if let Some(record) = old.backends.get(&slot.owner()) {
                service.backends.entry(name_of(&record.identity).to_owned()).or_default()[0] += 1;
            }
        }
        found.push(service);
    }
    whole(found)
}

/// The parts of a service as one.
fn whole(found: Vec<ServiceImpact>) -> Vec<ServiceImpact> {
    let mut whole: Vec<ServiceImpact> = Vec::with_capacity(found.len());
    let mut places: BTreeMap<(String, bool, bool), usize> = BTreeMap::new();
    for part in found {
        let place = *places.entry((part.name.clone(), part.is_new, part.is_gone)).or_insert(whole.len());
        let Some(known) = whole.get_mut(place) else {
            whole.push(part);
            continue;
        };
        known.slots_total += part.slots_total;
        known.slots_moved += part.slots_moved;
        known.slots_later += part.slots_later;
        known.slots_ended += part.slots_ended;
        known.plain_ended += part.plain_ended;
        known.slots_disrupted += part.slots_disrupted;
        known.records_all |= part.records_all;
        known.ending.extend(part.ending);
        for (name, owned) in part.backends {
            let sum = known.backends.entry(name).or_default();
            for (sum, owned) in sum.iter_mut().zip(owned) {
                *sum += owned;
            }
        }
    }
    whole
}

fn of_service(image: &Image, service: u32) -> impl Iterator<Item = (u32, &BackendEntry)> {
    let backends = image.backends.iter().map(|(id, record)| (*id, &record.entry));
    backends.filter(move |(_, entry)| entry.service == service)
}

/// The backends of a service that took packets and do so no more.
fn ending(old: &Image, new: &Image, service: u32) -> BTreeSet<u32> {
    let lives = |entry: &BackendEntry| entry.flags & BackendEntry::DEAD == 0;
    let goes_on =
        |id: u32| new.backends.get(&id).is_some_and(|r| r.entry.service == service && lives(&r.entry));
    let before = of_service(old, service).filter(|(_, entry)| lives(entry));
    before.map(|(id, _)| id).filter(|id| !goes_on(*id)).collect()
}

fn records_all(entry: &ServiceEntry, image: &Image, service: u32) -> bool {
    let snat = lb_common::abi::ForwardKind::Snat as u8;
    entry.flags & ServiceEntry::SCHEDULED != 0 || of_service(image, service).any(|(_, e)| e.kind == snat)
}
