//! The pair: the VRRP threads under the daemon's hand, and what is shown of them.

use super::{engine::Engine, error::EngineError, events::Event};
use crate::{
    control::{
        api::ChangeView,
        command::{Answer, CommandError, Reply},
        pair::{PairCommand, PairView, RefusedView},
    },
    dataplane::Addresses,
    events::Bus,
    model::VrrpSpec,
    vrrp::{Claim, Missing, Notice, NoticeReader, RequestError, RouterView, Vrrp},
};
use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};
use tokio::sync::oneshot;

/// The threads; none as long as no configuration wants any.
#[derive(Default)]
pub(super) struct Pair {
    pub(super) vrrp: Option<Vrrp>,
    configured: Vec<VrrpSpec>,
    pub(super) handover: super::handover::Handover,
}

impl Pair {
    /// The virtual routers as they are.
    pub(super) fn views(&self) -> Arc<Vec<RouterView>> {
        self.vrrp.as_ref().map(Vrrp::views).unwrap_or_default()
    }
}

impl Engine {
    /// Makes the virtual routers those of the configuration. They start with the first one that has any.
    pub(super) fn configure_pair(&mut self) -> Result<(), EngineError> {
        self.configure_link()?;
        let wanted = &self.config.vrrp;
        if self.pair.vrrp.is_none() {
            if wanted.is_empty() {
                return Ok(());
            }
            let addresses = Addresses::open(&self.kernel.maps_dir())?;
            let (vrrp, notices) = Vrrp::spawn(addresses).map_err(EngineError::Vrrp)?;
            tokio::spawn(log(notices, self.events.clone()));
            let (mut views, news) = (vrrp.watch(), self.mirror.news());
            tokio::spawn(async move {
                while views.changed().await.is_ok() {
                    news.notify_one();
                }
            });
            self.pair.vrrp = Some(vrrp);
        }
        // First what is missing, so that no router starts without knowing it.
        self.track_pair();
        self.introduce_link();
        let wanted = &self.config.vrrp;
        if self.pair.configured != *wanted
            && let Some(vrrp) = &self.pair.vrrp
        {
            vrrp.configure(wanted.iter().cloned().map(Arc::new).collect()).map_err(EngineError::Pair)?;
            self.pair.configured.clone_from(wanted);
        }
        Ok(())
    }

    /// Tells the routers what this node lacks to be master: without the program on every interface, packets would
    /// come to a node that does not balance them.
    pub(super) fn track_pair(&self) {
        let Some(vrrp) = &self.pair.vrrp else { return };
        let attached = |name: &String| self.attached.iter().any(|attached| attached.interface == *name);
        let missing = self.config.node.interfaces.iter().filter(|name| !attached(name));
        let missing = missing
            .map(|name| Missing { cause: format!("the program is not attached to {name}"), weight: 0 });
        if let Err(error) = vrrp.track(missing.collect()) {
            tracing::error!(%error, "vrrp does not know whether the program is attached");
        }
    }

    /// What others say of this node's addresses.
    pub(super) fn note_claims(&self, records: &[Event]) {
        let Some(vrrp) = &self.pair.vrrp else { return };
        for record in records {
            let Event::Claim(event) = record else { continue };
            let address = IpAddr::from(event.address).to_canonical();
            // It comes again, if it matters.
            let _ = vrrp.claimed(Claim { address, mac: event.mac, time_ns: event.time_ns });
        }
    }

    /// Says good-bye to the peer and takes the addresses off, if this node has any.
    pub(super) fn stop_pair(&mut self) {
        self.flush_masters(|_| true);
        if let Some(vrrp) = self.pair.vrrp.take() {
            vrrp.stop();
        }
        if let Some(link) = self.pair.handover.link.take() {
            link.stop();
        }
    }

    pub(super) fn answer_pair(&mut self, command: PairCommand) {
        match command {
            PairCommand::List(reply) => {
                let views = self.pair.vrrp.as_ref().map(Vrrp::views).unwrap_or_default();
                let _ = reply.send(Ok(views.iter().map(view).collect()));
            }
            PairCommand::Refused(reply) => {
                let _ = reply.send(Ok(self.pair.vrrp.as_ref().map(refused).unwrap_or_default()));
            }
            PairCommand::Link(reply) => {
                let view = self.pair.handover.link.is_some().then(|| self.link_view());
                let _ = reply.send(Ok(view));
            }
            PairCommand::Failover { name, by, reply } => {
                self.flush_masters(|master| *master == name);
                let message = format!("{name} is handed over to the peer");
                self.ask_pair(message, by, reply, |vrrp| vrrp.failover(name));
            }
            PairCommand::Hold { name, on, by, reply } => {
                if on {
                    self.flush_masters(|master| name.as_ref().is_none_or(|name| name == master));
                }
                let what = name.as_ref().map_or("every instance".to_owned(), ToString::to_string);
                let how =
                    if on { "is held: this node is not master until it is released" } else { "is released" };
                self.ask_pair(format!("{what} {how}"), by, reply, |vrrp| vrrp.hold(name, on));
            }
        }
    }

    /// Asks the thread, and answers when it has; the loop does not wait for it.
    fn ask_pair(
        &self,
        message: String,
        by: String,
        reply: Reply<ChangeView>,
        ask: impl FnOnce(&Vrrp) -> Result<oneshot::Receiver<Result<(), RequestError>>, RequestError>,
    ) {
        let Some(vrrp) = &self.pair.vrrp else {
            let error = "there is no [[vrrp]] in the configuration".to_owned();
            let _ = reply.send(Err(CommandError::NotFound(error)));
            return;
        };
        let asked = ask(vrrp);
        let revision = self.changes.revision();
        tokio::spawn(async move {
            let answer: Answer<ChangeView> = match asked {
                Ok(answer) => answer.await.unwrap_or(Err(RequestError::Ended)),
                Err(error) => Err(error),
            }
            .map(|()| {
                tracing::info!(by, "{message}");
                ChangeView { message, revision, ..ChangeView::default() }
            })
            .map_err(CommandError::from);
            let _ = reply.send(answer);
        });
    }
}

impl From<RequestError> for CommandError {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        match error {
            RequestError::NoInstance(_) => Self::NotFound(text),
            RequestError::NotMaster { .. } => Self::Conflict(text),
            RequestError::Ended | RequestError::Busy => Self::Failed(text),
        }
    }
}

/// Writes what the threads have to say to the log, until they end.
async fn log(mut notices: NoticeReader, events: Bus) {
    while let Some((notice, lost)) = notices.recv().await {
        if lost > 0 {
            tracing::warn!(lost, "vrrp had more to say than was read");
        }
        notice.log();
        match &notice {
            Notice::Changed { name, from, to, cause, priority: _ } => {
                super::tell::pair(&events, name, from.name(), to.name(), cause.describe());
            }
            Notice::SplitBrain { name, source } => {
                let reason = format!("split brain: {source} was master too");
                super::tell::pair(&events, name, "master", "master", reason);
            }
            Notice::Claimed { name, claim } => {
                super::tell::pair(&events, name, "master", "master", claim.to_string());
            }
            Notice::Faults { .. }
            | Notice::Refused { .. }
            | Notice::Mismatch { .. }
            | Notice::Lend(_)
            | Notice::PutBack { .. }
            | Notice::Address { .. }
            | Notice::Send { .. }
            | Notice::Netlink(_)
            | Notice::Ordinary { .. } => {}
        }
    }
}

fn refused(vrrp: &Vrrp) -> Vec<RefusedView> {
    let counts = vrrp.refused().counts();
    counts.map(|(reason, packets)| RefusedView { reason: reason.to_owned(), packets }).collect()
}

fn view(router: &RouterView) -> PairView {
    let RouterView {
        spec,
        phase,
        priority,
        master,
        since,
        cause,
        faults,
        held,
        yielded,
        gated,
        counters,
        own: _,
        lease,
    } = router;
    PairView {
        name: spec.name.to_string(),
        interface: spec.interface.clone(),
        router_id: spec.router_id,
        version: spec.version.number(),
        state: phase.name().to_owned(),
        priority: spec.priority,
        effective_priority: *priority,
        addresses: spec.addresses.iter().map(ToString::to_string).collect(),
        peers: spec.unicast_peers.clone(),
        master: master.map(|(address, _)| address),
        master_priority: master.map(|(_, priority)| priority),
        since: since.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        reason: cause.describe(),
        faults: faults.clone(),
        held: *held,
        handed_over: *yielded,
        waits_for_state: *gated,
        adverts_sent: counters.sent.load(Relaxed) + counters.sent_zero.load(Relaxed),
        adverts_received: counters.received.load(Relaxed),
        split_brains: counters.split_brains.load(Relaxed),
        address_claims: counters.claims.load(Relaxed),
        held_by: spec.held_by.name().to_owned(),
        lease: lease.as_ref().map_or(0.0, |lease| lease.remaining().as_secs_f64()),
        transitions: counters.transitions().map(|(phase, count)| (phase.name().to_owned(), count)).collect(),
    }
}
