//! `lbctl explain`: what the program would do with a packet, by the program's own code over the
//! daemon's copy of the maps.

use super::engine::Engine;
use crate::{
    control::api::ExplainView,
    model::Protocol,
    plan::{self, Flow, Memory, MemoryOfFlow},
};
use lb_common::{
    abi::{BackendEntry, FlowKey4, FlowKey6, ForwardKind, ServiceEntry, SlotState},
    core::{Decision, Forward, decide, forward},
    packet::Buffer,
    wire::tcp,
};
use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

impl Engine {
    /// Decides about the next packet from `source` to `destination`: one of the flow that is recorded in the flow
    /// table, else, for TCP, the SYN of a new connection.
    pub(super) fn explain(
        &self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> ExplainView {
        let entry = flow_key(protocol, source, destination).and_then(|key| self.kernel.maps().flow(&key));
        let tables = MemoryOfFlow { image: Memory(&self.image), entry };
        let mut packet = Buffer::new(&frame(protocol, source, destination, entry.is_none()));
        match decide(&packet, &tables) {
            Decision::Pass => ExplainView {
                verdict: "pass".to_owned(),
                service: None,
                backend: None,
                reason: self.why_pass(protocol, destination),
                slot: None,
                slot_state: None,
                egress: None,
            },
            Decision::Drop(refusal) => ExplainView {
                verdict: "drop".to_owned(),
                service: self.service_at(protocol, destination),
                backend: None,
                reason: format!("{}: {}", refusal.reason.name(), refusal.reason.help()),
                slot: None,
                slot_state: None,
                egress: None,
            },
            Decision::Forward(to) => {
                let blocked = forward::rewrite(&mut packet, &to).err();
                let service = self.image.services.get(&to.service);
                let slot =
                    service.and_then(|_| self.image.rings.get(&to.service)?.get(to.slot as usize).copied());
                let state = slot.map(|slot| match slot.state() {
                    SlotState::Plain => "plain",
                    SlotState::Moving => "moving",
                    SlotState::Tracked => "tracked",
                });
                let backend = self.backend_name(to.backend_id);
                let mut reason = format!("the flow hashes to slot {} and goes to {backend}", to.slot);
                if let Some(SlotState::Moving) = slot.map(|s| s.state()) {
                    let _ = write!(
                        reason,
                        "; the slot is moving: new flows go to {}, established ones stay with {}",
                        self.backend_name(slot.unwrap_or_default().owner()),
                        self.backend_name(slot.unwrap_or_default().home())
                    );
                }
                if entry.is_some() && slot.is_some_and(|slot| !slot.is_plain()) {
                    reason.push_str("; this flow is recorded in the flow table");
                }
                if service.is_some_and(|service| service.entry.flags & ServiceEntry::QUIC != 0) {
                    reason.push_str("; packets whose connection ID names a server go there instead");
                }
                if let Some(blocked) = blocked {
                    reason = format!("{}: {} ({reason})", blocked.name(), blocked.help());
                }
                ExplainView {
                    verdict: if blocked.is_some() { "drop" } else { "forward" }.to_owned(),
                    service: service.map(|s| plan::name_of(&s.identity).to_owned()),
                    backend: self
                        .image
                        .backends
                        .get(&to.backend_id)
                        .map(|b| plan::name_of(&b.identity).to_owned()),
                    reason,
                    slot: Some(to.slot),
                    slot_state: state.map(str::to_owned),
                    egress: blocked.is_none().then(|| egress(&to)),
                }
            }
        }
    }

    fn why_pass(&self, protocol: Protocol, destination: SocketAddr) -> String {
        match self.image.vips.contains_key(&destination.ip()) {
            false => format!("{} is no address of a service: the kernel takes the packet", destination.ip()),
            true => format!(
                "{} is an address of a service, but no service has {protocol} port {}: the kernel takes the packet",
                destination.ip(),
                destination.port()
            ),
        }
    }

    fn service_at(&self, protocol: Protocol, destination: SocketAddr) -> Option<String> {
        self.effective
            .services
            .iter()
            .map(|s| &s.spec)
            .filter(|s| s.protocol.number() == protocol.number() && s.addresses.contains(&destination.ip()))
            .filter(|s| {
                let (lo, hi) = s.port.bounds();
                (lo..=hi).contains(&destination.port())
            })
            .min_by_key(|s| {
                let (lo, hi) = s.port.bounds();
                hi - lo
            })
            .map(|s| s.name.to_string())
    }
}

/// How the packet leaves, in words.
fn egress(to: &Forward<'_>) -> String {
    let backend = to.backend;
    let name = nix::net::if_::if_indextoname(backend.ifindex)
        .map_or_else(|_| format!("interface {}", backend.ifindex), |n| n.to_string_lossy().into_owned());
    let mac = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let mut text = format!("{name}, {} -> {}", mac(&backend.l2[6..]), mac(&backend.l2[..6]));
    if backend.vlan != 0 {
        let _ = write!(text, ", VLAN {}", backend.vlan);
    }
    let outer = |address: &[u8; 16]| match backend.family {
        6 => IpAddr::from(*address),
        _ => IpAddr::from([address[0], address[1], address[2], address[3]]),
    };
    match ForwardKind::from_u8(backend.kind) {
        Some(ForwardKind::Ipip) => {
            let _ = write!(text, ", IP in IP {} -> {}", outer(&varied(to)), outer(&backend.outer_dst));
        }
        Some(ForwardKind::Gue) => {
            let _ = write!(
                text,
                ", GUE {} -> {} port {}",
                outer(&backend.outer_src),
                outer(&backend.outer_dst),
                backend.port
            );
        }
        Some(ForwardKind::Dsr | ForwardKind::Nat | ForwardKind::Snat) | None => {}
    }
    text
}

/// The outer source with this flow's bits in it.
fn varied(to: &Forward<'_>) -> [u8; 16] {
    let backend: &BackendEntry = to.backend;
    let mut source = backend.outer_src;
    let mask = 1u64.checked_shl(backend.entropy_bits.into()).map_or(u32::MAX, |bit| (bit - 1) as u32);
    let bits = (lb_common::hash::entropy(to.hash) & mask).to_be_bytes();
    let at = if backend.family == 6 { 12 } else { 0 };
    for (byte, bit) in source[at..at + 4].iter_mut().zip(bits) {
        *byte |= bit;
    }
    source
}

/// The key of the flow table; `None` for addresses of two families.
fn flow_key(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Option<Flow> {
    let mut ports = [0; 4];
    ports[..2].copy_from_slice(&source.port().to_be_bytes());
    ports[2..].copy_from_slice(&destination.port().to_be_bytes());
    let proto = protocol.number().into();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            Some(Flow::V4(FlowKey4 { src: src.octets(), dst: dst.octets(), ports, proto }))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Some(Flow::V6(FlowKey6 { src: src.octets(), dst: dst.octets(), ports, proto }))
        }
        _ => None,
    }
}

/// A frame with these addresses and ports, `first` of its TCP connection or one in the middle; addresses of two
/// families give one that is for nobody.
fn frame(protocol: Protocol, source: SocketAddr, destination: SocketAddr, first: bool) -> Vec<u8> {
    let transport = match protocol {
        Protocol::Tcp => {
            let mut header = vec![0; 20];
            header[12] = 0x50;
            header[13] = if first { tcp::SYN } else { tcp::ACK };
            header
        }
        Protocol::Udp => vec![0, 0, 0, 0, 0, 8, 0, 0],
        Protocol::Quic => {
            // An Initial or a Handshake packet (RFC 9000 section 17.2) whose ID of eight bytes names no server.
            let mut datagram =
                vec![0, 0, 0, 0, 0, 38, 0, 0, if first { 0xc0 } else { 0xe0 }, 0, 0, 0, 1, 8, 0xff];
            datagram.resize(38, 0);
            datagram
        }
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (20 + transport.len()) as u16;
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend(total.to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol.number(), 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (from, to) => {
            let six = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([protocol.number(), 64]);
            frame.extend(six(from).octets());
            frame.extend(six(to).octets());
        }
    }
    let at = frame.len();
    frame.extend(transport);
    frame[at..at + 2].copy_from_slice(&source.port().to_be_bytes());
    frame[at + 2..at + 4].copy_from_slice(&destination.port().to_be_bytes());
    frame
}
