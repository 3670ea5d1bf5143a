//! Rings that follow another node: its words, in this node's numbers.

use super::{Action, BackendRecord, Image, Ring, name_of};
use lb_common::abi::{BackendEntry, Slot};
use std::{collections::BTreeMap, net::IpAddr};

/// The words of a ring as another node has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    pub words: Ring,
    /// What the backend ids in the words stand for: name and address.
    pub names: BTreeMap<u32, (String, IpAddr)>,
    /// Epoch of the fleet's authority that said them; none of the words of a VRRP master. Who follows a fleet's authority forwards
    /// by its words all the while, and forgets flows by its own clock; who follows a master does neither.
    pub fleet: Option<u64>,
}

impl Followed {
    /// The ring for this node; backends that it does not have are nobody. `known` finds a backend's id by name and address,
    /// `lives` tells of an id whether it takes packets.
    #[must_use]
    pub fn ring(&self, known: impl Fn(&str, IpAddr) -> Option<u32>, lives: impl Fn(u32) -> bool) -> Ring {
        let ids: BTreeMap<u32, u32> = self
            .names
            .iter()
            .filter_map(|(id, (name, address))| Some((*id, known(name, *address)?)))
            .collect();
        let local = |id: u32| ids.get(&id).copied().unwrap_or(0);
        let word = |slot: &Slot| {
            let (owner, home) = (local(slot.owner()), local(slot.home()));
            // Its configuration or its checks come here a moment later than there. Meanwhile new flows join those at home, and
            // are recorded as such.
            let late = self.fleet.is_some() && owner != home && !lives(owner) && lives(home);
            Slot::new(if late { home } else { owner }, home, slot.state(), slot.epoch())
        };
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
        let lives = |id: u32| self.backends.get(&id).is_some_and(BackendRecord::lives);
        let new = followed.ring(|name, address| ids.get(&(name, address)).copied(), lives);
        let words: Vec<_> = (base..)
            .zip(ring.iter().zip(&new))
            .filter(|(_, (old, new))| old != new)
            .map(|(index, (old, new))| (index, *old, *new))
            .collect();
        self.followed.insert(service, std::sync::Arc::clone(followed));
        Some(Action::Slots { service, words })
    }

    /// Has a service keep the words it has, as if they were those of an epoch of the fleet's authority. True unless it is not there.
    pub fn freeze(&mut self, service: u32, epoch: u64) -> bool {
        let Some(ring) = self.rings.get(&service) else { return false };
        let of_service = |(_, record): &(&u32, &BackendRecord)| record.entry.service == service;
        let names = self.backends.iter().filter(of_service);
        let names = names
            .map(|(id, record)| (*id, (name_of(&record.identity).to_owned(), address_of(record))))
            .collect();
        let followed = Followed { words: ring.clone(), names, fleet: Some(epoch) };
        self.followed.insert(service, std::sync::Arc::new(followed));
        true
    }
}

impl BackendRecord {
    /// It takes packets.
    pub(super) fn lives(&self) -> bool {
        self.entry.flags & BackendEntry::DEAD == 0
    }
}

fn address_of(record: &BackendRecord) -> IpAddr {
    let bytes = record.entry.outer_dst;
    if record.entry.family == 6 {
        IpAddr::from(bytes)
    } else {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}
