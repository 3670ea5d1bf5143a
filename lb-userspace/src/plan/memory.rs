//! The core's tables over an image: what the kernel's maps would answer if they held it. For `explain` and for
//! tests that compare the host with the kernel.

use super::Image;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::{
    abi::{
        Arrivals, BackendEntry, CidKey, FlowEntry, FlowKey4, FlowKey6, FragmentKey, FragmentTrace, HalfOpen,
        Limits, MAX_SERVICES, PortKey, PortRangeKey, ServiceEntry, Slot, SourceKey, VipEntry,
    },
    core::{
        FlowCell, Tables,
        affinity::{Place, Step},
        guard::{self, Admission, Arrival, Guard},
    },
    packet::Packet,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::AtomicU64;

/// An image, looked things up in as in the maps: an array element that was never written is zero, one beyond
/// the array's end is absent. It holds no flows and no traces of fragments, and records none.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a>(pub &'a Image);

static NO_SERVICE: ServiceEntry =
    ServiceEntry { ring_base: 0, ring_size: 0, seed: 0, idle_ns: 0, flags: 0, quic_id_len: 0 };
static NO_BACKEND: BackendEntry = BackendEntry {
    l2: [0; 12],
    ifindex: 0,
    outer_src: [0; 16],
    outer_dst: [0; 16],
    mtu: 0,
    vlan: 0,
    kind: 0,
    family: 0,
    flags: 0,
    entropy_bits: 0,
    incarnation: 0,
    port: 0,
    service: 0,
};

impl Tables for Memory<'_> {
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        self.0.vips.get(&IpAddr::from(address))
    }

    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        self.0.vips.get(&IpAddr::from(*address))
    }

    fn port(&self, key: &PortKey) -> Option<u32> {
        self.0.ports.get(key).copied()
    }

    fn port_range(&self, key: &PortRangeKey) -> Option<u32> {
        let port = u16::from_be_bytes(key.port);
        (0..=16u32).rev().find_map(|bits| {
            let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
            let prefix_len = PortRangeKey::FIXED_BITS + bits;
            let prefix = PortRangeKey { prefix_len, port: (port & mask).to_be_bytes(), ..*key };
            self.0.port_ranges.get(&prefix).copied()
        })
    }

    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        match self.0.services.get(&id) {
            Some(record) => Some(&record.entry),
            None => (id < MAX_SERVICES).then_some(&NO_SERVICE),
        }
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        if index >= self.0.ring_capacity {
            return None;
        }
        let word = self.0.rings.iter().find_map(|(id, words)| {
            let at = index.checked_sub(self.0.services.get(id)?.entry.ring_base)?;
            words.get(at as usize).copied()
        });
        Some(word.unwrap_or_default())
    }

    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        match self.0.backends.get(&id) {
            Some(record) => Some(&record.entry),
            None => (id < self.0.backend_capacity).then_some(&NO_BACKEND),
        }
    }

    fn add_flow4(&self, _: &FlowKey4, _: FlowEntry) -> bool {
        true
    }

    fn add_flow6(&self, _: &FlowKey6, _: FlowEntry) -> bool {
        true
    }

    fn cid(&self, key: &CidKey) -> Option<u32> {
        self.0.cids.get(key).copied()
    }

    fn add_half_open4(&self, _: &FlowKey4, _: HalfOpen) -> bool {
        true
    }

    fn add_half_open6(&self, _: &FlowKey6, _: HalfOpen) -> bool {
        true
    }

    fn schedule(&self, id: u32) -> Option<(u32, u32)> {
        let record = self.0.schedules.get(&id);
        (id < MAX_SERVICES).then(|| record.map_or((0, 0), |r| (r.base, r.words.len() as u32)))
    }

    fn schedule_word(&self, index: u32) -> Option<u64> {
        let word = self
            .0
            .schedules
            .values()
            .find_map(|record| record.words.get(index.checked_sub(record.base)? as usize).copied());
        (index < self.0.schedule_capacity).then(|| word.unwrap_or(0))
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn denied4(&self, source: u32) -> bool {
        guard::denied4(self, source)
    }

    fn denied6(&self, hi: u64, lo: u64) -> bool {
        guard::denied6(self, hi, lo)
    }

    fn admit<P: Packet>(&self, packet: &P, place: Place, service: u32, flags: u32, step: Step) -> Admission {
        guard::admit(packet, self, place, service, flags, step)
    }
}

impl Memory<'_> {
    /// Every prefix that holds an address, the longest first.
    fn holding(address: IpAddr) -> impl Iterator<Item = IpNet> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().filter_map(move |len| match address {
            IpAddr::V4(v4) => Ipv4Net::new(v4, len).ok().map(|net| net.trunc().into()),
            IpAddr::V6(v6) => Ipv6Net::new(v6, len).ok().map(|net| net.trunc().into()),
        })
    }

    fn verdict(&self, address: IpAddr) -> u32 {
        Self::holding(address).find_map(|net| self.0.denied.get(&net)).map_or(0, |verdict| verdict.number())
    }

    fn allowed(&self, service: u32, address: IpAddr) -> bool {
        Self::holding(address).any(|net| self.0.allowed.contains(&(service, net)))
    }
}

fn address6(hi: u64, lo: u64) -> IpAddr {
    Ipv6Addr::from(u128::from(hi) << 64 | u128::from(lo)).into()
}

/// The marks are left out: every source is looked up. Limits are a matter of time, like the tokens of ICMP answers.
impl Guard for Memory<'_> {
    fn regions4(&self, _: u32) -> u64 {
        u64::MAX
    }

    fn marks4(&self, _: u32) -> u64 {
        guard::MARK_ASK * 0x5555_5555_5555_5555
    }

    fn marks6(&self, _: u32) -> u64 {
        u64::MAX
    }

    fn short_prefixes6(&self) -> bool {
        true
    }

    fn verdict4(&self, address: u32) -> u32 {
        self.verdict(Ipv4Addr::from(address).into())
    }

    fn verdict6(&self, hi: u64, lo: u64) -> u32 {
        self.verdict(address6(hi, lo))
    }

    fn allowed4(&self, service: u32, address: u32) -> bool {
        self.allowed(service, Ipv4Addr::from(address).into())
    }

    fn allowed6(&self, service: u32, hi: u64, lo: u64) -> bool {
        self.allowed(service, address6(hi, lo))
    }

    fn limits(&self, _: u32) -> Option<&Limits> {
        None
    }

    fn service_arrivals(&self, _: u32) -> Option<[impl Arrival; 2]> {
        None::<[&AtomicU64; 2]>
    }

    fn source_arrivals(&self, _: &SourceKey, _: Arrivals) -> Option<[impl Arrival; 2]> {
        None::<[&AtomicU64; 2]>
    }

    fn time_ns(&self) -> u64 {
        0
    }
}

/// An image, and the entry of the one flow that is asked about. Entries that would be written are not kept.
#[derive(Debug, Clone, Copy)]
pub struct MemoryOfFlow<'a> {
    pub image: Memory<'a>,
    pub entry: Option<FlowEntry>,
}

struct Read(FlowEntry);

impl FlowCell for Read {
    fn load(&self) -> FlowEntry {
        self.0
    }

    fn store(&self, _: FlowEntry) {}
}

impl Tables for MemoryOfFlow<'_> {
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        self.image.vip4(address)
    }

    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        self.image.vip6(address)
    }

    fn port(&self, key: &PortKey) -> Option<u32> {
        self.image.port(key)
    }

    fn port_range(&self, key: &PortRangeKey) -> Option<u32> {
        self.image.port_range(key)
    }

    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        self.image.service(id)
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.image.slot(index)
    }

    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        self.image.backend(id)
    }

    fn flow4(&self, _: &FlowKey4) -> Option<impl FlowCell> {
        self.entry.map(Read)
    }

    fn flow6(&self, _: &FlowKey6) -> Option<impl FlowCell> {
        self.entry.map(Read)
    }

    fn add_flow4(&self, key: &FlowKey4, entry: FlowEntry) -> bool {
        self.image.add_flow4(key, entry)
    }

    fn add_flow6(&self, key: &FlowKey6, entry: FlowEntry) -> bool {
        self.image.add_flow6(key, entry)
    }

    fn cid(&self, key: &CidKey) -> Option<u32> {
        self.image.cid(key)
    }

    fn add_half_open4(&self, key: &FlowKey4, entry: HalfOpen) -> bool {
        self.image.add_half_open4(key, entry)
    }

    fn add_half_open6(&self, key: &FlowKey6, entry: HalfOpen) -> bool {
        self.image.add_half_open6(key, entry)
    }

    fn schedule(&self, id: u32) -> Option<(u32, u32)> {
        self.image.schedule(id)
    }

    fn schedule_word(&self, index: u32) -> Option<u64> {
        self.image.schedule_word(index)
    }

    fn now_ns(&self) -> u64 {
        self.image.now_ns()
    }

    fn fragment_trace(&self, key: &FragmentKey) -> Option<FragmentTrace> {
        self.image.fragment_trace(key)
    }

    fn add_fragment_trace(&self, key: &FragmentKey, trace: &FragmentTrace) {
        self.image.add_fragment_trace(key, trace);
    }

    fn denied4(&self, source: u32) -> bool {
        self.image.denied4(source)
    }

    fn denied6(&self, hi: u64, lo: u64) -> bool {
        self.image.denied6(hi, lo)
    }

    fn admit<P: Packet>(&self, packet: &P, place: Place, service: u32, flags: u32, step: Step) -> Admission {
        self.image.admit(packet, place, service, flags, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::PortSpec,
        plan::ports::{Claim, lay_out},
    };
    use proptest::prelude::*;

    proptest! {
        /// Inline or spilled, a port belongs to the most specific claim: exact, then range, then "every port".
        #[test]
        fn ports_belong_to_the_most_specific_claim(
            exact in proptest::collection::btree_set(1..200u16, 0..8), lo in 300..400u16, len in 1..300u16,
            any: bool, probe in prop_oneof![0..1000u16, any::<u16>()],
        ) {
            let (hi, proto, vip) = (lo + len, 6, 9);
            let claim = |port, service| Claim { port, proto, service };
            let mut claims: Vec<_> =
                exact.iter().map(|port| claim(PortSpec::Exact(*port), u32::from(*port))).collect();
            claims.push(claim(PortSpec::Range(lo, hi), 1000));
            claims.extend(any.then(|| claim(PortSpec::Any, 1001)));
            let tables = lay_out(vip, &claims);
            let spilled = tables.entry.flags & VipEntry::SPILLED != 0;
            prop_assert_eq!(spilled, claims.len() > lb_common::abi::INLINE_RULES);

            let mut image = Image::empty(0, 0);
            image.ports.extend(tables.ports);
            image.port_ranges.extend(tables.ranges);
            let memory = Memory(&image);
            let key = PortKey { vip, port: probe, proto: proto.into() };
            let range = PortRangeKey {
                prefix_len: 64, vip: vip.to_be_bytes(), proto: [0, proto], port: probe.to_be_bytes(),
            };
            let inline = tables.entry.rules.iter()
                .find(|rule| rule.proto == proto && (rule.lo..=rule.hi).contains(&probe))
                .map(|rule| u32::from(rule.service));
            let found = inline.or_else(|| memory.port(&key)).or_else(|| memory.port_range(&range));
            let expected = if exact.contains(&probe) {
                Some(u32::from(probe))
            } else if (lo..=hi).contains(&probe) {
                Some(1000)
            } else {
                any.then_some(1001)
            };
            prop_assert_eq!(found, expected);
            let elsewhere = memory.port_range(&PortRangeKey { proto: [0, 17], ..range });
            prop_assert_eq!(elsewhere, None);
        }
    }

    #[test]
    fn arrays_answer_as_the_kernels_do() {
        let image = Image::empty(10, 20);
        let memory = Memory(&image);
        assert_eq!(memory.slot(9), Some(Slot::default()));
        assert_eq!(memory.slot(10), None);
        assert_eq!(memory.backend(19).map(|b| b.kind), Some(0));
        assert!(memory.backend(20).is_none());
        assert_eq!(memory.service(MAX_SERVICES - 1).map(|s| s.ring_size), Some(0));
        assert!(memory.service(MAX_SERVICES).is_none());
    }
}
