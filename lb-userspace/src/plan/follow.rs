//! Rings that follow another node: its words, in this node's numbers.

use super::{Action, Image, Ring, name_of};
use lb_common::abi::Slot;
use std::{collections::BTreeMap, net::IpAddr};

/// The words of a ring as another node has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    pub words: Ring,
    /// What the backend ids in the words stand for: name and address.
    pub names: BTreeMap<u32, (String, IpAddr)>,
}

impl Followed {
    /// The ring for this node; backends that it does not have are nobody. `known` finds a backend's id by name and address.
    #[must_use]
    pub fn ring(&self, known: impl Fn(&str, IpAddr) -> Option<u32>) -> Ring {
        let ids: BTreeMap<u32, u32> = self
            .names
            .iter()
            .filter_map(|(id, (name, address))| Some((*id, known(name, *address)?)))
            .collect();
        let local = |id: u32| ids.get(&id).copied().unwrap_or(0);
        let word =
            |slot: &Slot| Slot::new(local(slot.owner()), local(slot.home()), slot.state(), slot.epoch());
        self.words.iter().map(word).collect()
    }
}

impl Image {
    /// Has a service follow these words from now on. What is to be done, if the ring has the size of theirs; else nothing
    /// is followed.
    pub fn follow(&mut self, service: u32, followed: &std::sync::Arc<Followed>) -> Option<Action> {
        let ring = self.rings.get(&service).filter(|ring| ring.len() == followed.words.len())?;
        let base = self.services.get(&service)?.entry.ring_base;
        let mut ids = BTreeMap::new();
        for (id, record) in self.backends.iter().filter(|(_, record)| record.entry.service == service) {
            ids.insert((name_of(&record.identity), address_of(record)), *id);
        }
        let new = followed.ring(|name, address| ids.get(&(name, address)).copied());
        let words: Vec<_> = (base..)
            .zip(ring.iter().zip(&new))
            .filter(|(_, (old, new))| old != new)
            .map(|(index, (old, new))| (index, *old, *new))
            .collect();
        self.followed.insert(service, std::sync::Arc::clone(followed));
        Some(Action::Slots { service, words })
    }
}

fn address_of(record: &super::BackendRecord) -> IpAddr {
    let bytes = record.entry.outer_dst;
    if record.entry.family == 6 {
        IpAddr::from(bytes)
    } else {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}
