//! The forwarding core: no frame and no backend make it panic, what it sends fits the egress, and what it puts
//! an outer header on, the decapsulator takes off again.
//!
//! The first eight bytes describe the backend and the slot, the rest is the frame.
#![no_main]

use lb_common::{
    abi::{
        BackendEntry, CidKey, FlowEntry, FlowKey4, FlowKey6, ForwardKind, FragmentKey, FragmentTrace,
        INLINE_RULES, PortKey, PortRangeKey, PortRule, ServiceEntry, Slot, SlotState, VipEntry,
    },
    core::{
        Decision, DropReason, FlowCell, Tables,
        decap::{self, Allow, Outcome},
        decide, forward,
        icmp::{self, Message},
    },
    packet::{Buffer, Packet},
};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;

const GUE_PORT: u16 = 6080;

/// Every address is a VIP with every TCP and UDP port.
struct Everything {
    vip: VipEntry,
    service: ServiceEntry,
    backend: BackendEntry,
    slot: Slot,
    flow: Cell<Option<u64>>,
    trace: Cell<(FragmentKey, FragmentTrace)>,
}

impl Everything {
    fn new(shape: [u8; 8]) -> Self {
        let rule = |proto| PortRule { lo: 0, hi: u16::MAX, service: 1, proto, pad: 0 };
        let mut rules = [PortRule::NONE; INLINE_RULES];
        (rules[0], rules[1]) = (rule(6), rule(17));
        let family = if shape[0] & 1 == 0 { 4 } else { 6 };
        let mut backend = BackendEntry {
            l2: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1],
            ifindex: u32::from(shape[0] >> 1 & 1),
            kind: shape[1] % 5,
            family,
            // More would vary the net that the decapsulator listens to.
            entropy_bits: shape[2] % if family == 4 { 17 } else { 33 },
            mtu: u16::from_be_bytes([shape[3] & 7, shape[4]]),
            vlan: u16::from(shape[5]),
            port: GUE_PORT,
            service: 1,
            ..BackendEntry::default()
        };
        backend.outer_src[..2].copy_from_slice(&[198, 18]);
        backend.outer_dst[..2].copy_from_slice(&[10, 1]);
        let state = [SlotState::Plain, SlotState::Moving, SlotState::Tracked][usize::from(shape[6] % 3)];
        Self {
            vip: VipEntry { vip: 1, flags: u32::from(shape[7] & 1), rules },
            service: ServiceEntry {
                ring_size: 13,
                seed: 7,
                flags: if shape[7] & 4 == 0 { 0 } else { ServiceEntry::QUIC },
                quic_id_len: u32::from(shape[7] >> 4),
                ..ServiceEntry::default()
            },
            backend,
            slot: Slot::new(1, 1, state, 0),
            flow: Cell::new((shape[7] & 2 != 0).then(|| u64::from_be_bytes(shape))),
            trace: Cell::default(),
        }
    }
}

struct Entry<'a>(&'a Cell<Option<u64>>);

impl FlowCell for Entry<'_> {
    fn load(&self) -> FlowEntry {
        FlowEntry(self.0.get().unwrap_or_default())
    }
    fn store(&self, entry: FlowEntry) {
        self.0.set(Some(entry.0));
    }
}

impl Tables for Everything {
    fn vip4(&self, _: [u8; 4]) -> Option<&VipEntry> {
        Some(&self.vip)
    }
    fn vip6(&self, _: &[u8; 16]) -> Option<&VipEntry> {
        Some(&self.vip)
    }
    fn port(&self, _: &PortKey) -> Option<u32> {
        None
    }
    fn port_range(&self, _: &PortRangeKey) -> Option<u32> {
        None
    }
    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        (id == 1).then_some(&self.service)
    }
    fn slot(&self, index: u32) -> Option<Slot> {
        (index < 13).then_some(self.slot)
    }
    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        (id == 1).then_some(&self.backend)
    }
    fn flow4(&self, _: &FlowKey4) -> Option<impl FlowCell> {
        self.flow.get().map(|_| Entry(&self.flow))
    }
    fn flow6(&self, _: &FlowKey6) -> Option<impl FlowCell> {
        self.flow.get().map(|_| Entry(&self.flow))
    }
    fn add_flow4(&self, _: &FlowKey4, entry: FlowEntry) -> bool {
        self.flow.set(Some(entry.0));
        true
    }
    fn add_flow6(&self, _: &FlowKey6, entry: FlowEntry) -> bool {
        self.flow.set(Some(entry.0));
        true
    }
    fn cid(&self, key: &CidKey) -> Option<u32> {
        // Half of all server ids name the backend, the others one that is not there.
        Some(1 + u32::from(key.server[0] & 1))
    }
    fn now_ns(&self) -> u64 {
        1 << 40
    }
    fn fragment_trace(&self, key: &FragmentKey) -> Option<FragmentTrace> {
        (self.trace.get().0 == *key).then(|| self.trace.get().1)
    }
    fn add_fragment_trace(&self, key: &FragmentKey, trace: &FragmentTrace) {
        self.trace.set((*key, *trace));
    }
}

struct Balancers;

impl Allow for Balancers {
    fn source4(&self, address: [u8; 4]) -> bool {
        address[..2] == [198, 18] || address[0] >> 4 == 0
    }
    fn source6(&self, address: &[u8; 16]) -> bool {
        address[..2] == [198, 18] || address[0] >> 4 == 0
    }
    fn gue_port(&self) -> u16 {
        GUE_PORT
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((shape, frame)) = data.split_first_chunk() else { return };
    let _ = decap::decapsulate(&mut Buffer::new(frame), &Balancers);

    let tables = Everything::new(*shape);
    let mut buffer = Buffer::new(frame);
    let Decision::Forward(to) = decide(&buffer, &tables) else {
        assert_eq!(buffer.frame(), frame);
        return;
    };
    let (l3, len) = (to.ip.l3, usize::from(to.ip.total_len));
    match forward::rewrite(&mut buffer, &to) {
        Ok(()) => {}
        Err(DropReason::TooBig) => {
            assert_eq!(buffer.frame(), frame);
            let message = Message::too_big(to.ip.v6, forward::path_mtu(to.backend));
            let _ = icmp::tell(&mut buffer, l3, to.ip.v6, message);
            return;
        }
        Err(_) => return,
    }
    let link = if to.backend.vlan == 0 { 14 } else { 18 };
    let overhead = forward::overhead(to.backend);
    assert!(len + overhead <= usize::from(to.backend.mtu));
    assert_eq!(buffer.len() - link, frame.len() - l3 + overhead);
    if overhead > 0 {
        assert_eq!(decap::decapsulate(&mut buffer, &Balancers).outcome, Outcome::Decapsulated);
    }
    if to.backend.kind == ForwardKind::Nat as u8 {
        // Its addresses, ports and checksums are others; the tests of rewriting look at them.
        return;
    }
    let (ttl, check) = if to.ip.v6 { (7, 8..8) } else { (8, 10..12) };
    let mut expected = frame[l3..].to_vec();
    expected[ttl] -= 1;
    expected[check.clone()].copy_from_slice(&buffer.frame()[link..][check]);
    assert_eq!(&buffer.frame()[link..], &expected[..]);
});
