//! What `lbctl explain` says of `nat` and `snat`.

use super::engine::Engine;
use crate::{
    control::api::ExplainView,
    model::Protocol,
    plan::{mapped, name_of, unmapped},
};
use lb_common::abi::{
    BackendEntry, FlowEntry, FlowKey6, ForwardKind, NatKey, NatOrigin, ServiceEntry, SessionOut,
};
use std::net::SocketAddr;

/// The key of the tables of sessions.
fn session_key(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> FlowKey6 {
    let ([a, b], [c, d]) = (source.port().to_be_bytes(), destination.port().to_be_bytes());
    FlowKey6 {
        src: mapped(source.ip()),
        dst: mapped(destination.ip()),
        ports: [a, b, c, d],
        proto: protocol.number().into(),
    }
}

impl Engine {
    /// True if a flow of this client to the service has a session.
    pub(super) fn needs_session(&self, service: u32, source: SocketAddr) -> bool {
        let flags = self.image.services.get(&service).map_or(0, |record| record.entry.flags);
        let own = NatKey { address: mapped(source.ip()), port: [0; 2], proto: 0 };
        flags & ServiceEntry::SESSIONS != 0
            || flags & ServiceEntry::HAIRPIN != 0 && self.image.nat.origins.contains_key(&own)
    }

    /// The session of a client's flow.
    pub(super) fn session(
        &self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Option<SessionOut> {
        self.kernel.maps().nat().session(&session_key(protocol, source, destination))
    }

    /// What a packet that is for no service is, if it is a reply of a backend.
    pub(super) fn reply(
        &self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Option<ExplainView> {
        let key = session_key(protocol, source, destination);
        let origin =
            NatKey { address: key.src, port: source.port().to_be_bytes(), proto: protocol.number().into() };
        let vip = self.image.vips.contains_key(&destination.ip());
        let origin = self.image.nat.origins.get(&origin).filter(|_| !vip && self.image.nat.on);
        let stateless = origin.filter(|origin| origin.flags & NatOrigin::SESSIONS == 0);
        let (service, backend, from, to) = if let Some(origin) = stateless {
            let from = SocketAddr::new(unmapped(origin.vip), u16::from_be_bytes(origin.port));
            (origin.service, origin.backend, from, destination)
        } else if vip || origin.is_some() {
            let session = self.kernel.maps().nat().session_back(&key)?;
            let from = SocketAddr::new(unmapped(session.vip), u16::from_be_bytes(session.vip_port));
            let to = SocketAddr::new(unmapped(session.client), u16::from_be_bytes(session.client_port));
            (session.service, FlowEntry(session.entry).backend(), from, to)
        } else {
            return None;
        };
        let state = if stateless.is_some() { "no session is needed" } else { "by its session" };
        Some(ExplainView {
            verdict: "forward".to_owned(),
            service: self.image.services.get(&service).map(|s| name_of(&s.identity).to_owned()),
            backend: self.image.backends.get(&backend).map(|b| name_of(&b.identity).to_owned()),
            reason: format!(
                "a reply of {}: it goes on from {from} to {to}, {state}",
                self.backend_name(backend)
            ),
            egress: Some("by the kernel's route to the client".to_owned()),
            ..ExplainView::default()
        })
    }
}

/// What becomes of addresses and ports.
pub(super) fn rewritten(
    backend: &BackendEntry,
    needs_session: bool,
    session: Option<&SessionOut>,
    destination: SocketAddr,
) -> Option<String> {
    let kind = ForwardKind::from_u8(backend.kind)?;
    if !matches!(kind, ForwardKind::Nat | ForwardKind::Snat) {
        return None;
    }
    let port = if backend.port == 0 { destination.port() } else { backend.port };
    let to = SocketAddr::new(super::entries::address_of(backend), port);
    Some(match session {
        Some(session) => {
            let from = SocketAddr::new(unmapped(session.source), u16::from_be_bytes(session.port));
            format!("destination becomes {to}, source {from} (its session)")
        }
        None if needs_session && kind == ForwardKind::Snat => {
            format!("destination becomes {to}, source one of the pool (it has no session yet)")
        }
        None if needs_session => format!("destination becomes {to} (it has no session yet)"),
        None => format!("destination becomes {to}, the source stays"),
    })
}
