//! The addresses in the maps of the dataplane, each where it is asked for, with the lease of its virtual router.

use super::{Keeper, Kept, Link, Wish, forwards_ipv6};
use crate::{
    dataplane::Addresses,
    model::{HeldBy, VrrpName, VrrpSpec},
    vrrp::{notice::Notice, wake::clock},
};
use lb_common::abi::{AddressEntry, AddressKey, LEASE_CAPACITY, Lease};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// VLANs within VLANs, and bridges over them, that are followed.
const DEPTH: usize = 4;

/// What the dataplane was told.
pub(super) struct Lent {
    maps: Addresses,
    entries: BTreeMap<AddressKey, AddressEntry>,
    told: Option<String>,
}

impl Lent {
    /// With what an earlier daemon left: its leases go on.
    pub(super) fn adopt(maps: Addresses) -> Self {
        let entries = maps.entries().unwrap_or_default();
        Self { maps, entries, told: None }
    }

    fn lease_of(&self, spec: &VrrpSpec) -> Option<u32> {
        let of = |address: &IpAddr| {
            let address = octets(*address);
            self.entries.iter().find(|(key, _)| key.address == address).map(|(_, entry)| entry.lease)
        };
        spec.addresses.iter().find_map(|net| of(&net.addr()))
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The interfaces and VLANs by which frames for an interface may come in, the program being attached to any of them:
/// itself, what its VLAN is on, the ports of a bridge or bond.
fn places(links: &[Link], index: u32) -> BTreeSet<(u32, u32)> {
    let mut found = BTreeSet::from([(index, 0)]);
    for _ in 0..DEPTH {
        let mut next = found.clone();
        for (index, vlan) in &found {
            let link = links.iter().find(|link| link.index == *index);
            if let Some((parent, id)) = link.and_then(|link| link.vlan)
                && *vlan <= 0xfff
            {
                let inner = *vlan;
                let outer = u32::from(id);
                next.insert((parent, if inner == 0 { outer } else { outer << 16 | inner }));
            }
            let ports = links.iter().filter(|port| port.master == Some(*index));
            next.extend(ports.map(|port| (port.index, *vlan)));
        }
        if next.len() == found.len() {
            break;
        }
        found = next;
    }
    found
}

impl Keeper {
    /// Gives a virtual router its lease: the one that its addresses have, or one that is free.
    pub(super) fn lease(&mut self, kept: &Kept) {
        if kept.order.lease().is_some() {
            return;
        }
        let taken: BTreeSet<u32> =
            self.kept.values().filter_map(|kept| kept.order.lease()).map(|lease| lease.index()).collect();
        let old = self.lent.lease_of(&kept.spec).filter(|index| !taken.contains(index));
        let used = |index: &u32| {
            taken.contains(index) || self.lent.entries.values().any(|entry| entry.lease == *index)
        };
        let index = old.or_else(|| (0..LEASE_CAPACITY).find(|index| !used(index)));
        let Some(lease) = index.and_then(|index| self.lent.maps.lease(index)) else { return };
        if old.is_none() {
            lease.store(Lease::NONE);
        }
        kept.order.lend(lease);
    }

    /// Writes what the dataplane is to know.
    pub(super) fn lend(&mut self) {
        let mut wanted = BTreeMap::new();
        for kept in self.kept.values() {
            let link = self.links.iter().find(|link| link.name == kept.spec.interface);
            let (Some(lease), Some(link)) = (kept.order.lease(), link) else { continue };
            let Some(mac) = link.mac else { continue };
            let answer = match kept.spec.held_by {
                HeldBy::Interface => 0,
                HeldBy::Dataplane => AddressEntry::ANSWER,
            };
            let router = if forwards_ipv6(&link.name) { AddressEntry::ROUTER } else { 0 };
            let entry = AddressEntry { lease: lease.index(), flags: answer | router, mac, pad: [0; 2] };
            for (ifindex, vlan) in places(&self.links, link.index) {
                for net in &kept.spec.addresses {
                    wanted.insert(AddressKey { address: octets(net.addr()), ifindex, vlan }, entry);
                }
            }
        }
        if wanted == self.lent.entries {
            return;
        }
        match self.lent.maps.set(&wanted) {
            Ok(()) => {
                self.lent.entries = wanted;
                self.lent.told = None;
            }
            Err(error) => {
                let text = error.to_string();
                self.look_at = self.look_at.min(clock() + super::RETRY);
                if self.lent.told.as_ref() != Some(&text) {
                    self.notices.send(Notice::Lend(text.clone()));
                    self.lent.told = Some(text);
                }
            }
        }
    }

    /// The addresses of who is not master are gone from the kernel: it need not be kept from answering.
    pub(super) fn settle(&self) {
        let absent = self.kept.values().filter(|kept| kept.wish == Wish::Absent);
        for kept in absent.filter(|kept| !self.complained.contains_key(&kept.spec.name)) {
            if let Some(lease) = kept.order.lease() {
                lease.settle();
            }
        }
    }

    /// This node ends as a router: what it held is for the kernel again.
    pub(super) fn take_back(&mut self) {
        if let Err(error) = self.lent.maps.set(&BTreeMap::new()) {
            self.notices.send(Notice::Lend(error.to_string()));
        }
    }

    /// Those whose addresses are the dataplane's: what is on the interface came there before.
    pub(super) fn clear_interface(&mut self, name: &VrrpName) {
        let Some(kept) = self.kept.get(name) else { return };
        let spec = std::sync::Arc::clone(&kept.spec);
        self.remove_all(&spec, &spec.addresses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, vlan: Option<(u32, u16)>, master: Option<u32>) -> Link {
        Link { index, name: format!("i{index}"), running: true, mac: Some([2; 6]), vlan, master }
    }

    #[test]
    fn where_questions_come_in() {
        let links = [
            link(1, None, None),
            link(2, Some((1, 100)), None),
            link(3, Some((2, 7)), None),
            // A bridge over two ports, and a VLAN on it.
            link(4, None, None),
            link(5, None, Some(4)),
            link(6, None, Some(4)),
            link(7, Some((4, 9)), None),
        ];
        let of = |index| places(&links, index).into_iter().collect::<Vec<_>>();
        assert_eq!(of(1), [(1, 0)]);
        assert_eq!(of(2), [(1, 100), (2, 0)]);
        assert_eq!(of(3), [(1, 100 << 16 | 7), (2, 7), (3, 0)]);
        assert_eq!(of(4), [(4, 0), (5, 0), (6, 0)]);
        assert_eq!(of(7), [(4, 9), (5, 9), (6, 9), (7, 0)]);
        assert_eq!(of(99), [(99, 0)]);
        // A loop, which no kernel makes, ends.
        let _ = places(&[link(1, Some((2, 1)), None), link(2, Some((1, 1)), Some(1))], 1);
    }
}
