//! The pair: the VRRP threads under the daemon's hand, and what is shown of them.

use super::{engine::Engine, error::EngineError, events::Event};
use crate::{
    bfd::Bfd,
    control::{
        api::{ChangeView, SettingView},
        command::{Answer, CommandError, Reply},
        pair::{MissingView, PairCommand, PairView, RefusedView},
    },
    dataplane::Addresses,
    events::Bus,
    model::{VrrpName, VrrpSpec},
    notify::Notifier,
    state::{Hold, Holds},
    track::Trackers,
    vrrp::{Claim, Missing, Notice, NoticeReader, RequestError, RouterView, Vrrp, fsm::Phase},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

/// How long the last events may take to reach the hooks when the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The threads; none as long as no configuration wants any.
#[derive(Default)]
pub(super) struct Pair {
    pub(super) vrrp: Option<Vrrp>,
    configured: Vec<VrrpSpec>,
    /// Reads what the threads have to say, until they end.
    listener: Option<JoinHandle<()>>,
    pub trackers: Trackers,
    /// What the threads know to be missing.
    pub told: Option<BTreeMap<VrrpName, Vec<Missing>>>,
    /// Hash of the services in force on the peer; none while nothing is known of it.
    pub peer_services: Option<String>,
    holds: Holds,
    pub(super) handover: super::handover::Handover,
    pub(super) both: super::both::Both,
    pub bfd: Option<Bfd>,
}

impl Pair {
    /// With what the operator held before this daemon began.
    pub(super) fn new(holds: Holds) -> Self {
        Self { holds, ..Self::default() }
    }

    /// Of every instance, and of the routes of `[bgp]`.
    pub(super) fn node_hold(&self) -> Option<&Hold> {
        self.holds.node()
    }

    pub(super) fn vrrp(&self) -> Option<&Vrrp> {
        self.vrrp.as_ref()
    }

    /// The virtual routers as they are.
    pub(super) fn views(&self) -> Arc<Vec<RouterView>> {
        self.vrrp.as_ref().map(Vrrp::views).unwrap_or_default()
    }
}

impl Engine {
    /// Makes the virtual routers those of the configuration. They start with the first one that has any.
    pub(super) fn configure_pair(&mut self) -> Result<(), EngineError> {
        self.configure_link()?;
        let wanted = self.config.vrrp.clone();
        if self.pair.vrrp.is_none() {
            if wanted.is_empty() {
                return Ok(());
            }
            let addresses = Addresses::open(&self.kernel.maps_dir())?;
            let (vrrp, notices) = Vrrp::spawn(addresses).map_err(EngineError::Vrrp)?;
            let listener = log(notices, self.events.clone(), self.pools.notifier.clone());
            self.pair.listener = Some(tokio::spawn(listener));
            let (mut views, news) = (vrrp.watch(), self.mirror.news());
            tokio::spawn(async move {
                while views.changed().await.is_ok() {
                    news.notify_one();
                }
            });
            self.pair.vrrp = Some(vrrp);
        }
        self.pair.trackers.set(&self.config.pair.scripts, &self.config.pair.files);
        // First what is missing, so that no router starts without knowing it.
        self.track_pair();
        self.introduce_link();
        if self.pair.configured != wanted
            && let Some(vrrp) = &self.pair.vrrp
        {
            let names = wanted.iter().map(|spec| spec.name.clone());
            let held = names.filter(|name| self.pair.holds.of(name).is_some()).collect();
            let wanted_now = wanted.iter().cloned().map(Arc::new).collect();
            vrrp.configure(wanted_now, held).map_err(EngineError::Pair)?;
            self.pair.configured = wanted;
        }
        self.configure_bfd()
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
    /// The hooks are told, and waited for a while.
    pub(super) async fn stop_pair(&mut self) {
        self.flush_masters(|_| true);
        if let Some(vrrp) = self.pair.vrrp.take() {
            vrrp.stop();
            if let Some(bfd) = self.pair.bfd.take() {
                bfd.stop();
            }
            if let Some(listener) = self.pair.listener.take() {
                // It ends with the threads, which have ended.
                let _ = timeout(LAST_WORDS, listener).await;
            }
            self.pools.notifier.finish(LAST_WORDS).await;
        }
        if let Some(link) = self.pair.handover.link.take() {
            link.stop();
        }
    }

    pub(super) fn answer_pair(&mut self, command: PairCommand) {
        match command {
            PairCommand::List(reply) => {
                let views = self.pair.views();
                let _ = reply.send(Ok(views.iter().map(|router| view(router, &self.pair)).collect()));
            }
            PairCommand::Refused(reply) => {
                let _ = reply.send(Ok(self.pair.vrrp.as_ref().map(refused).unwrap_or_default()));
            }
            PairCommand::Bfd(reply) => {
                let _ = reply.send(Ok(self.pair.bfd_stats()));
            }
            PairCommand::Link(reply) => {
                let view = self.pair.handover.link.is_some().then(|| self.link_view());
                let _ = reply.send(Ok(view));
            }
            PairCommand::Failover { name, by, reply } => {
                let message = match self.successor(&name) {
                    Ok(message) => message,
                    Err(error) => {
                        let _ = reply.send(Err(CommandError::Conflict(error)));
                        return;
                    }
                };
                self.flush_masters(|master| *master == name);
                self.ask_pair(message, by, reply, |vrrp| vrrp.failover(name));
            }
            PairCommand::Hold { reply, .. } if self.pair.vrrp.is_none() && self.config.bgp.is_none() => {
                let error = "there is neither [[vrrp]] nor [bgp] in the configuration".to_owned();
                let _ = reply.send(Err(CommandError::NotFound(error)));
            }
            PairCommand::Hold { name, on, by, reply } => {
                if let Err(error) = self.keep_hold(name.as_ref(), on, &by) {
                    let _ = reply.send(Err(error));
                    return;
                }
                if on {
                    self.flush_masters(|master| name.as_ref().is_none_or(|name| name == master));
                }
                if name.is_none() && self.config.bgp.is_some() {
                    self.announce();
                    if self.pair.vrrp.is_none() {
                        let _ = reply.send(Ok(self.node_held(on, &by)));
                        return;
                    }
                }
                let what = name.as_ref().map_or("every instance".to_owned(), ToString::to_string);
                let how =
                    if on { "is held: this node is not master until it is released" } else { "is released" };
                self.ask_pair(format!("{what} {how}"), by, reply, |vrrp| vrrp.hold(name, on));
            }
        }
    }

    /// A hold outlives the daemon: it is on disk before it is in force.
    fn keep_hold(&mut self, name: Option<&VrrpName>, on: bool, by: &str) -> Result<(), CommandError> {
        let known: BTreeSet<VrrpName> = self.config.vrrp.iter().map(|spec| spec.name.clone()).collect();
        let names = match name {
            None => None,
            Some(name) => {
                let spec = self.config.vrrp.iter().find(|spec| spec.name == *name);
                let spec = spec.ok_or_else(|| RequestError::NoInstance(name.clone()))?;
                // One of a group is the group.
                let with = |other: &&VrrpSpec| {
                    other.name == *name || (spec.group.is_some() && other.group == spec.group)
                };
                Some(self.config.vrrp.iter().filter(with).map(|spec| spec.name.clone()).collect::<Vec<_>>())
            }
        };
        let mut holds = self.pair.holds.clone();
        if on {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let since = since.map_or(0.0, |since| since.as_secs_f64());
            holds.hold(names.as_deref(), &Hold { by: by.to_owned(), since });
        } else {
            holds.release(names.as_deref(), &known);
        }
        if holds != self.pair.holds {
            self.state_dir.store_holds(&holds).map_err(EngineError::from)?;
            self.pair.holds = holds;
        }
        Ok(())
    }

    /// What is held, as settings of `config show`.
    pub(super) fn hold_settings(&self) -> impl Iterator<Item = SettingView> {
        self.config.vrrp.iter().filter_map(|spec| {
            let hold = self.pair.holds.of(&spec.name)?;
            Some(SettingView {
                key: format!("vrrp.{}.held", spec.name),
                value: serde_json::json!(true),
                origin: "runtime".to_owned(),
                by: Some(hold.by.clone()),
                at: Some(hold.since as u64),
            })
        })
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
async fn log(mut notices: NoticeReader, events: Bus, hooks: Notifier) {
    while let Some((notice, lost)) = notices.recv().await {
        if lost > 0 {
            tracing::warn!(lost, "vrrp had more to say than was read");
        }
        notice.log();
        match &notice {
            Notice::Changed { name, from, to, cause, priority: _ } => {
                let event = super::tell::pair(&events, name, from.name(), told(*to), cause.describe());
                hooks.tell(&event);
            }
            Notice::SplitBrain { name, source } => {
                let reason = format!("split brain: {source} was master too");
                hooks.tell(&super::tell::pair(&events, name, "master", "master", reason));
            }
            Notice::BothMasters { name, source } => {
                let reason = format!("split brain: {source} says over the sync link that it is master too");
                hooks.tell(&super::tell::pair(&events, name, "master", "master", reason));
            }
            Notice::Claimed { name, claim } => {
                hooks.tell(&super::tell::pair(&events, name, "master", "master", claim.to_string()));
            }
            Notice::Faults { .. }
            | Notice::Refused { .. }
            | Notice::Mismatch { .. }
            | Notice::Lend(_)
            | Notice::PutBack { .. }
            | Notice::Promoted { .. }
            | Notice::Address { .. }
            | Notice::Send { .. }
            | Notice::Netlink(_)
            | Notice::Ordinary { .. } => {}
        }
    }
}

/// As hooks and watchers are told of a new state.
const fn told(phase: Phase) -> &'static str {
    match phase {
        Phase::Init => "stop",
        Phase::Backup | Phase::Master | Phase::Fault => phase.name(),
    }
}

fn refused(vrrp: &Vrrp) -> Vec<RefusedView> {
    let counts = vrrp.refused().counts();
    counts.map(|(reason, packets)| RefusedView { reason: reason.to_owned(), packets }).collect()
}

fn unsent_warning(why: &str) -> String {
    format!("advertisements cannot be sent {why}; who hears none takes the addresses")
}

fn view(router: &RouterView, pair: &Pair) -> PairView {
    let RouterView {
        spec,
        phase,
        priority,
        master,
        since,
        cause,
        missing,
        held,
        yielded,
        gated,
        counters,
        lease,
        unsent,
        own: _,
    } = router;
    let hold = pair.holds.of(&spec.name).filter(|_| *held);
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
        faults: missing.iter().map(|missing| missing.cause.clone()).collect(),
        missing: missing
            .iter()
            .map(|missing| MissingView { cause: missing.cause.clone(), weight: -missing.weight })
            .collect(),
        group: spec.group.as_ref().map(ToString::to_string),
        bfd: pair.sessions(spec),
        held: *held,
        hold_by: hold.map(|hold| hold.by.clone()),
        hold_since: hold.map(|hold| hold.since),
        handed_over: *yielded,
        waits_for_state: *gated,
        adverts_sent: counters.sent.load(Relaxed) + counters.sent_zero.load(Relaxed),
        adverts_received: counters.received.load(Relaxed),
        split_brains: counters.split_brains.load(Relaxed),
        address_claims: counters.claims.load(Relaxed),
        held_by: spec.held_by.name().to_owned(),
        lease: lease.as_ref().map_or(0.0, |lease| lease.remaining().as_secs_f64()),
        warnings: unsent.iter().map(|why| unsent_warning(why)).collect(),
        transitions: counters.transitions().map(|(phase, count)| (phase.name().to_owned(), count)).collect(),
    }
}
