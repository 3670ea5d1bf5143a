//! The sync link under the engine's hand, and the master's role that goes over it.
//!
//! What the peer must have goes before the word that makes it master, in the same queue; on the other side that word
//! comes to the engine behind it. The answer goes from the successor's heartbeat to the old master's without either
//! engine. Nobody is without a master meanwhile: the old one serves until it has the answer.

use super::{engine::Engine, error::EngineError, pair::Pair};
use crate::{
    config,
    control::{
        link::{PeerView, SyncView, WaitingView},
        pair::RefusedView,
    },
    link::{Link, LinkEvent, PeerState, Role, Settings},
    model::VrrpName,
    vrrp::{Peer, Vrrp},
};
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};
use tokio::sync::mpsc;

/// Events of the link that wait for the engine at most; frames among them have up to 64 KiB.
const EVENTS: usize = 64;

/// The link, and what the pair knows by it.
pub(super) struct Handover {
    /// None without `[sync]`.
    pub link: Option<Link>,
    events: mpsc::Sender<LinkEvent>,
    /// Taken by the loop.
    pub reader: Option<mpsc::Receiver<LinkEvent>>,
    /// Link and VRRP know each other.
    introduced: bool,
    /// Until when routers that lack the peer's state leave a living master alone.
    gate: Option<Instant>,
    gated: Vec<VrrpName>,
    /// As VRRP was told.
    peer_alive: bool,
}

impl Default for Handover {
    fn default() -> Self {
        let (events, reader) = mpsc::channel(EVENTS);
        Self {
            link: None,
            events,
            reader: Some(reader),
            introduced: false,
            gate: None,
            gated: Vec::new(),
            peer_alive: false,
        }
    }
}

struct ByLink(Link);

impl Peer for ByLink {
    fn reaches(&self, role: Role, instance: &VrrpName) -> bool {
        self.0.reaches(role, instance)
    }

    fn say(&self, role: Role, instance: &VrrpName) {
        // Gone since it was found: the machine's own timer ends the wait.
        let _ = self.0.say(role, instance);
    }
}

impl Engine {
    /// Puts everything that the peer does not know yet of an instance into the link's queue.
    pub(super) fn flush_mirror(&mut self, instance: &VrrpName) {
        self.mirror.flush(instance.as_str());
    }

    /// Whether this node has all of the peer's state of an instance that it needs to be master.
    pub(super) fn mirror_ready(&self, _instance: &VrrpName) -> bool {
        self.mirror.is_ready()
    }

    /// Makes the link that of the configuration; before the virtual routers, so that none starts without it.
    pub(super) fn configure_link(&mut self) -> Result<(), EngineError> {
        let handover = &mut self.pair.handover;
        let Some(spec) = self.config.sync.clone() else {
            if let Some(link) = handover.link.take() {
                link.stop();
                handover.introduced = false;
                // What it waited for will never come.
                handover.gate = handover.gate.map(|_| Instant::now());
                self.mirror.set_link(None);
                self.lead_all();
                self.tend_link();
            }
            return Ok(());
        };
        let keys = config::read_sync_keys(&spec.key_file)
            .map_err(|why| EngineError::Link(std::io::Error::other(format!("sync.key_file {why}"))))?;
        let settings = Settings { spec, keys, node: self.config.node.name.clone() };
        match &handover.link {
            Some(link) => link.configure(settings),
            None => {
                let link = Link::spawn(settings, handover.events.clone()).map_err(EngineError::Link)?;
                self.mirror.set_link(Some(link.clone()));
                handover.link = Some(link);
                self.close_gate();
            }
        }
        Ok(())
    }

    /// Once both are there.
    pub(super) fn introduce_link(&mut self) {
        let Pair { vrrp: Some(vrrp), handover, .. } = &mut self.pair else { return };
        if let (Some(link), false) = (&handover.link, handover.introduced) {
            if let Err(error) = vrrp.connect(Arc::new(ByLink(link.clone()))) {
                tracing::error!(%error, "vrrp does not know of the sync link");
                return;
            }
            link.connect_vrrp(vrrp.words(), vrrp.watch());
            handover.introduced = true;
        }
        self.tend_link();
    }

    /// Whoever waits for next hops or checks to take his addresses back may have them now.
    pub(super) fn look_at_gate(&mut self) {
        if self.pair.handover.gate.is_some() {
            self.tend_link();
        }
    }

    /// This node may have missed something of the peer's state.
    fn close_gate(&mut self) {
        let wait = self.config.sync.as_ref().map(|sync| sync.takeover_wait);
        self.pair.handover.gate = wait.map(|wait| Instant::now() + wait);
    }

    /// What the peers are told, and who has the peer's state by now. Without a link there is no peer, as far as is known.
    pub(super) fn tend_link(&mut self) {
        let link = self.pair.handover.link.clone();
        let peers = link.map(|link| {
            link.tell_services(&self.hashes().services);
            link.view().peers
        });
        let peers = peers.unwrap_or_default();
        let connected = !peers.is_empty();
        self.tell_lease(&peers);
        let theirs = peers.into_iter().map(|peer| peer.status.services).find(|hash| !hash.is_empty());
        if theirs != self.pair.peer_services {
            self.peer_configuration(theirs);
        }
        let faulted = self.faulted();
        if !faulted.is_empty() {
            // The time begins when the fault is over.
            self.close_gate();
        }
        let Some(until) = self.pair.handover.gate else { return };
        let left = until.saturating_duration_since(Instant::now());
        let worse = self.worse_than_peer();
        let lacks = |name: &VrrpName| {
            !connected || !self.mirror_ready(name) || faulted.contains(name) || worse.contains(name)
        };
        let gated: Vec<VrrpName> = match left.is_zero() {
            true => Vec::new(),
            false => {
                self.config.vrrp.iter().map(|spec| spec.name.clone()).filter(|name| lacks(name)).collect()
            }
        };
        if gated.is_empty() {
            self.pair.handover.gate = None;
        }
        if let Some(vrrp) = &self.pair.vrrp
            && (gated != self.pair.handover.gated || !faulted.is_empty())
        {
            if let Err(error) = vrrp.gate(gated.clone(), left) {
                tracing::error!(%error, "vrrp does not know what is missing of the peer's state");
                return;
            }
            self.pair.handover.gated = gated;
        }
    }

    /// Leases end by themselves only where some peer would take over every instance.
    fn tell_lease(&mut self, peers: &[PeerState]) {
        let takes = |peer: &PeerState, name: &VrrpName| {
            let state = peer.status.instances.get(name).map(|instance| instance.state.as_str());
            matches!(state, Some("backup" | "master"))
        };
        let alive = !self.config.vrrp.is_empty()
            && self.config.vrrp.iter().all(|spec| peers.iter().any(|peer| takes(peer, &spec.name)));
        if let Some(vrrp) = &self.pair.vrrp
            && alive != self.pair.handover.peer_alive
            && vrrp.peer_alive(alive).is_ok()
        {
            self.pair.handover.peer_alive = alive;
        }
    }

    pub(super) fn link_event(&mut self, event: LinkEvent) {
        let words = self.pair.vrrp.as_ref().map(Vrrp::words);
        match event {
            LinkEvent::Up { peer, hello: _ } => {
                tracing::debug!(%peer, "the peer is there");
                self.close_gate();
                self.tend_link();
            }
            LinkEvent::Down { peer, cause } => {
                tracing::debug!(%peer, cause, "the peer is gone");
                self.tend_link();
            }
            LinkEvent::Frame(..) | LinkEvent::Room(_) => {}
            LinkEvent::TakeOver { peer, instance } => {
                tracing::info!(%peer, %instance, "the peer hands over");
                if let Some(words) = words {
                    words.take_over(instance);
                }
            }
            LinkEvent::Wanted { peer, instance } => {
                tracing::info!(%peer, %instance, "the peer asks for the master's role");
                self.flush_masters(|name| *name == instance);
                if let Some(words) = words {
                    words.make_way(instance);
                }
            }
        }
    }

    pub(super) fn link_view(&mut self) -> SyncView {
        let Some(link) = self.pair.handover.link.clone() else { return SyncView::default() };
        let own = self.hashes().services;
        let seen = link.view();
        let peers = seen.peers.into_iter().map(|peer| PeerView {
            name: peer.name.to_string(),
            address: peer.address.to_string(),
            since: peer.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            version: peer.software,
            protocol: peer.version,
            key: peer.key,
            same_services: peer.status.services == own,
            services_hash: peer.status.services,
            instances: peer
                .status
                .instances
                .into_iter()
                .map(|(name, i)| (name.to_string(), i.state))
                .collect(),
            sent_bytes: peer.sent,
            received_bytes: peer.received,
            queued_bytes: peer.queued,
            rtt_seconds: peer.rtt.map(|rtt| rtt.as_secs_f64()),
            beating: peer.beating,
        });
        let waiting = seen.waiting.into_iter().map(|(address, reason)| WaitingView { address, reason });
        let rejected = link.rejected().into_iter();
        SyncView {
            peers: peers.collect(),
            waiting: waiting.collect(),
            rejected: rejected
                .map(|(reason, packets)| RefusedView { reason: reason.to_owned(), packets })
                .collect(),
        }
    }

    /// For `lbctl status`.
    pub(super) fn link_warnings(&mut self) -> Vec<String> {
        let view = self.link_view();
        let differ = view.peers.iter().filter(|peer| !peer.same_services && !peer.services_hash.is_empty());
        let differ = differ.map(|peer| {
            format!(
                "the services of the peer {} are configured otherwise (hash {}): make them alike, or flows may change \
                 their backend when it takes over",
                peer.name, peer.services_hash
            )
        });
        let away =
            view.waiting.iter().map(|peer| format!("no sync link to {}: {}", peer.address, peer.reason));
        differ.chain(away).collect()
    }
}
