//! `lbctl explain`: what the program would do with a packet, asked of the program itself.

use super::{engine::Engine, explain_nat::rewritten, headers};
use crate::{
    control::{
        api::ExplainView,
        command::ExplainPacket,
        observe::{HeaderView, HeadersView},
    },
    dataplane::{LONGEST_FRAME, Ran},
    model::{Protocol, VrrpSpec},
    plan::{self, Flow, Memory, MemoryOfFlow},
};
use lb_common::{
    abi::{BackendEntry, FlowEntry, FlowKey4, FlowKey6, ForwardKind, Note, ServiceEntry, Slot, SlotState},
    core::{Decision, DropReason, decide, forward},
    packet::Buffer,
    wire::{ipv4, ipv6, tcp},
};
use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

/// What became of the packet, whoever found it out.
#[derive(Default)]
struct Found {
    passed: bool,
    reason: Option<DropReason>,
    service: Option<u32>,
    backend: Option<u32>,
    /// Index in the ring, and the slot.
    slot: Option<(u32, Slot)>,
    /// The entry that decided.
    flow: Option<FlowEntry>,
    frame: Vec<u8>,
}

impl From<Ran> for Found {
    fn from(ran: Ran) -> Self {
        const XDP_PASS: u32 = 2;
        let Ran { verdict, note, frame } = ran;
        Self {
            passed: verdict == XDP_PASS,
            reason: note
                .has(Note::REASON)
                .then(|| DropReason::ALL.get(note.reason as usize).copied())
                .flatten(),
            service: note.has(Note::SERVICE).then_some(note.service),
            backend: note.has(Note::BACKEND).then_some(note.backend),
            slot: note.has(Note::SLOT).then_some((note.slot_index(), Slot(note.slot))),
            flow: note.has(Note::FLOW).then_some(FlowEntry(note.flow)),
            frame,
        }
    }
}

impl Engine {
    /// Decides about a packet from `source` to `destination`: by the program in the kernel on the live maps; where that
    /// cannot be, by the same code over the daemon's copy of them, and says so.
    ///
    /// Where no flags are given it is the next packet of the flow that is recorded in the flow table, else, for TCP,
    /// the SYN of a new connection.
    pub(super) fn explain(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        packet: ExplainPacket,
    ) -> ExplainView {
        let entry = flow_key(protocol, source, destination).and_then(|key| self.kernel.maps().flow(&key));
        let known = entry.is_some() || self.session(protocol, source, destination).is_some();
        let flags = packet.flags.unwrap_or(if known { tcp::ACK } else { tcp::SYN });
        let frame = frame(protocol, source, destination, flags, packet.length, !known);
        let asked = if frame.len() > LONGEST_FRAME {
            Err(format!("a test run takes no frame of more than {LONGEST_FRAME} bytes"))
        } else {
            self.kernel.ask(&frame).map_err(|error| error.to_string())
        };
        let (found, by) = match asked {
            Ok(ran) => (Found::from(ran), "the program in the kernel, on the live maps".to_owned()),
            Err(why) => (
                self.on_the_host(&frame, entry, (protocol, source, destination)),
                format!("the daemon, on its copy of the maps: {why}"),
            ),
        };
        ExplainView { by: Some(by), ..self.describe(protocol, source, destination, &found) }
    }

    fn on_the_host(
        &self,
        frame: &[u8],
        entry: Option<FlowEntry>,
        (protocol, source, destination): (Protocol, SocketAddr, SocketAddr),
    ) -> Found {
        let tables = MemoryOfFlow { image: Memory(&self.image), entry };
        let mut packet = Buffer::new(frame);
        match decide(&packet, &tables) {
            Decision::Pass | Decision::Back(_) | Decision::Neighbour(_) => {
                Found { passed: true, ..Found::default() }
            }
            Decision::Drop(refusal) => Found { reason: Some(refusal.reason), ..Found::default() },
            Decision::Answer(answer) => Found { reason: Some(answer.kind.answered()), ..Found::default() },
            Decision::Forward(mut to) | Decision::Session(mut to, _) | Decision::Steer(mut to) => {
                let needs_session = self.needs_session(to.service, source);
                let session = needs_session.then(|| self.session(protocol, source, destination)).flatten();
                // A session holds its flow, wherever the slot has gone.
                let held = session.map(|session| FlowEntry(session.entry).backend());
                if let Some((id, record)) = held.and_then(|id| self.image.backends.get_key_value(&id)) {
                    (to.backend_id, to.backend) = (*id, &record.entry);
                }
                let reason = match needs_session {
                    true => (to.backend.ifindex == 0).then_some(DropReason::NoNextHop),
                    false => forward::rewrite(&mut packet, &to).err(),
                };
                let slot = self.image.rings.get(&to.service).and_then(|ring| ring.get(to.slot as usize));
                Found {
                    passed: false,
                    reason,
                    service: Some(to.service),
                    backend: Some(to.backend_id),
                    slot: slot.map(|slot| (to.slot, *slot)),
                    flow: entry.filter(|_| slot.is_some_and(|slot| !slot.is_plain())),
                    frame: packet.frame().to_vec(),
                }
            }
        }
    }

    fn describe(
        &self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        found: &Found,
    ) -> ExplainView {
        // A test run comes in by no interface: what the kernel's routes say of the way on is no answer.
        if found.slot.is_none()
            && found.reason.is_none_or(|reason| reason == DropReason::NoNextHop)
            && let Some(reply) = self.reply(protocol, source, destination)
        {
            return reply;
        }
        if found.passed {
            return ExplainView {
                verdict: "pass".to_owned(),
                reason: self.why_pass(protocol, destination),
                ..ExplainView::default()
            };
        }
        let why = found.reason.map(|reason| format!("{}: {}", reason.name(), reason.help()));
        let name = |id: u32| self.image.backends.get(&id).map(|b| plan::name_of(&b.identity).to_owned());
        let moving = found.slot.filter(|(_, slot)| !slot.is_plain());
        let mut view = ExplainView {
            verdict: match found.reason {
                Some(DropReason::Rejected) => "reject",
                Some(_) => "drop",
                None => "forward",
            }
            .to_owned(),
            service: match found.service.and_then(|id| self.image.services.get(&id)) {
                Some(service) => Some(plan::name_of(&service.identity).to_owned()),
                None => self.service_at(protocol, destination),
            },
            backend: found.backend.and_then(name),
            slot: found.slot.map(|(index, _)| index),
            slot_state: found.slot.map(|(_, slot)| {
                match slot.state() {
                    SlotState::Plain => "plain",
                    SlotState::Moving => "moving",
                    SlotState::Tracked => "tracked",
                }
                .to_owned()
            }),
            slot_owner: moving.and_then(|(_, slot)| name(slot.owner())),
            slot_home: moving.and_then(|(_, slot)| name(slot.home())),
            flow: found.flow.map(|flow| flow_state(flow).to_owned()),
            ..ExplainView::default()
        };
        let Some((index, slot)) = found.slot else {
            view.reason = why.unwrap_or_default();
            return view;
        };
        let to = found.backend.map_or_else(|| "nobody".to_owned(), |id| self.backend_name(id));
        let mut reason = format!("the flow hashes to slot {index} and goes to {to}");
        if slot.state() == SlotState::Moving {
            let _ = write!(
                reason,
                "; the slot is moving: new flows go to {}, established ones stay with {}",
                self.backend_name(slot.owner()),
                self.backend_name(slot.home())
            );
        }
        if found.flow.is_some() {
            reason.push_str("; this flow is recorded in the flow table");
        }
        let service = found.service.and_then(|id| self.image.services.get(&id));
        if service.is_some_and(|service| service.entry.flags & ServiceEntry::QUIC != 0) {
            reason.push_str("; packets whose connection ID names a server go there instead");
        }
        let backend = found.backend.and_then(|id| self.image.backends.get(&id));
        let needs_session = found.service.is_some_and(|id| self.needs_session(id, source));
        let session = needs_session.then(|| self.session(protocol, source, destination)).flatten();
        if let Some(backend) = backend
            && let Some(rewritten) = rewritten(&backend.entry, needs_session, session.as_ref(), destination)
        {
            let _ = write!(reason, "; {rewritten}");
        }
        view.reason = match why {
            Some(why) => format!("{why} ({reason})"),
            None => reason,
        };
        if let (Some(backend), None) = (backend, found.reason) {
            if needs_session && session.is_none() {
                // The packet is not rewritten yet.
                view.egress = Some(way_to(&backend.entry));
                return view;
            }
            let kind = ForwardKind::from_u8(backend.entry.kind);
            let tunnel = matches!(kind, Some(ForwardKind::Ipip | ForwardKind::Gue));
            view.headers = headers::read(&found.frame, tunnel);
            view.egress = view.headers.as_ref().map(|h| egress(backend.entry.ifindex, h));
        }
        view
    }

    fn why_pass(&self, protocol: Protocol, destination: SocketAddr) -> String {
        match self.image.vips.contains_key(&destination.ip()) {
            false => format!(
                "{} is no address of a service: the kernel takes the packet{}",
                destination.ip(),
                self.whose(destination.ip())
            ),
            true => format!(
                "{} is an address of a service, but no service has {protocol} port {}: the kernel takes the packet",
                destination.ip(),
                destination.port()
            ),
        }
    }

    /// Of a virtual address: whose, and what this node is for it.
    fn whose(&self, address: IpAddr) -> String {
        let views = self.pair.views();
        let has = |spec: &VrrpSpec| spec.addresses.iter().any(|net| net.addr() == address);
        views.iter().find(|view| has(&view.spec)).map_or_else(String::new, |view| {
            let (name, state, held_by) = (&view.spec.name, view.phase.name(), view.spec.held_by.name());
            format!("; it belongs to the VRRP instance '{name}', of which this node is {state}, held by the {held_by}")
        })
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
fn egress(ifindex: u32, headers: &HeadersView) -> String {
    let HeadersView { destination_mac, source_mac, vlan, outer, .. } = headers;
    let mut text = format!("{}, {source_mac} -> {destination_mac}", interface(ifindex));
    if let Some(vlan) = vlan {
        let _ = write!(text, ", VLAN {vlan}");
    }
    match outer {
        Some(HeaderView { source, destination, destination_port: Some(port), .. }) => {
            let _ = write!(text, ", GUE {source} -> {destination} port {port}");
        }
        Some(HeaderView { source, destination, .. }) => {
            let _ = write!(text, ", IP in IP {source} -> {destination}");
        }
        None => {}
    }
    text
}

/// The way to a backend, in words.
fn way_to(backend: &BackendEntry) -> String {
    let mac = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let mut text =
        format!("{}, {} -> {}", interface(backend.ifindex), mac(&backend.l2[6..]), mac(&backend.l2[..6]));
    if backend.vlan != 0 {
        let _ = write!(text, ", VLAN {}", backend.vlan);
    }
    text
}

/// Name of an interface, or its index where it is gone.
pub(super) fn interface(ifindex: u32) -> String {
    nix::net::if_::if_indextoname(ifindex)
        .map_or_else(|_| format!("interface {ifindex}"), |n| n.to_string_lossy().into_owned())
}

/// State of a tracked flow, in one word.
pub(super) fn flow_state(flow: FlowEntry) -> &'static str {
    match (flow.is_half_open(), flow.is_closing()) {
        (true, _) => "half-open",
        (false, true) => "closing",
        (false, false) => "confirmed",
    }
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

/// A frame with these addresses, ports and (TCP) flags, its IP packet of `length` bytes where that holds the headers;
/// addresses of two families give one that is for nobody. `first`: of a QUIC connection's first flight.
fn frame(
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    length: Option<u16>,
    first: bool,
) -> Vec<u8> {
    let mut transport = match protocol {
        Protocol::Tcp => {
            let mut header = vec![0; 20];
            header[12] = 0x50;
            header[13] = flags;
            header
        }
        Protocol::Udp => vec![0; 8],
        Protocol::Quic => {
            // An Initial or a Handshake packet (RFC 9000 section 17.2) whose ID of eight bytes names no server.
            let mut datagram =
                vec![0, 0, 0, 0, 0, 0, 0, 0, if first { 0xc0 } else { 0xe0 }, 0, 0, 0, 1, 8, 0xff];
            datagram.resize(38, 0);
            datagram
        }
    };
    let ip = if source.is_ipv4() { ipv4::LEN } else { ipv6::LEN };
    let size = usize::from(length.unwrap_or(0)).saturating_sub(ip).max(transport.len());
    transport.resize(size, 0);
    if protocol != Protocol::Tcp {
        transport[4..6].copy_from_slice(&(size as u16).to_be_bytes());
    }
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
