//! Services whose addresses belong to different VRRP instances.
//!
//! An address moves between nodes with its instance, and with it the authority for its flows. Such a service becomes
//! several in the maps, its parts: one for each instance, and one for addresses of none. Each has its own ring and its own
//! backends; everything that is asked for holds for all of them.

use super::WantedService;
use crate::model::{ServiceSpec, VrrpSpec};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Which VRRP instance has an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instances(BTreeMap<IpAddr, String>);

impl Instances {
    #[must_use]
    pub fn of(routers: &[VrrpSpec]) -> Self {
        let addresses = routers.iter().flat_map(|router| {
            router.addresses.iter().map(|address| (address.addr(), router.name.to_string()))
        });
        Self(addresses.collect())
    }

    /// The instance of an address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<&str> {
        self.0.get(&address).map(String::as_str)
    }

    /// The instances of a service's addresses, each with its part's number. The part of the first address has number 0, so
    /// that a service with one part is what it was before there were any.
    #[must_use]
    pub fn parts<'a>(&'a self, service: &ServiceSpec) -> Vec<(u32, Option<&'a str>)> {
        let mut parts: Vec<(u32, Option<&str>)> = Vec::new();
        for address in &service.addresses {
            let instance = self.get(*address);
            if parts.iter().any(|(_, known)| *known == instance) {
                continue;
            }
            let mut number = if parts.is_empty() { 0 } else { number_of(instance.unwrap_or("")) };
            while parts.iter().any(|(taken, _)| *taken == number) {
                number = number.wrapping_add(1);
            }
            parts.push((number, instance));
        }
        parts
    }
}

/// FNV-1a: the number stays while other instances come and go.
fn number_of(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The services with their parts instead of those that have more than one.
#[must_use]
pub fn split(wanted: Vec<WantedService>, instances: &Instances) -> Vec<WantedService> {
    if instances.0.is_empty() {
        return wanted;
    }
    let mut parts = Vec::with_capacity(wanted.len());
    for service in wanted {
        let found = instances.parts(&service.spec);
        if found.len() < 2 {
            parts.push(service);
            continue;
        }
        for (number, instance) in found {
            let mut part = WantedService { part: number, ..service.clone() };
            part.spec.addresses.retain(|address| instances.get(*address) == instance);
            if let Some(snat) = &mut part.spec.snat {
                // Replies come to who has the address.
                let of_part = |address: &IpAddr| {
                    let of = instances.get(*address);
                    of.is_none() || of == instance
                };
                let left: Vec<IpAddr> = snat.addresses.iter().copied().filter(of_part).collect();
                let families =
                    |addresses: &[IpAddr]| addresses.iter().map(IpAddr::is_ipv6).collect::<BTreeSet<bool>>();
                if families(&left) == families(&snat.addresses) {
                    snat.addresses = left;
                }
            }
            parts.push(part);
        }
    }
    parts
}
