//! The BFD sessions that virtual routers track.

use super::{engine::Engine, error::EngineError, pair::Pair};
use crate::{
    bfd::{Bfd, Notice, SessionView},
    control::pair::{BfdStats, BfdView, RefusedView},
    model::VrrpSpec,
};
use std::{sync::atomic::Ordering::Relaxed, time::SystemTime};
use tokio::sync::mpsc;

impl Engine {
    /// Makes the sessions those of the configuration. Their thread starts with the first one.
    pub(super) fn configure_bfd(&mut self) -> Result<(), EngineError> {
        let wanted = &self.config.pair.bfd;
        let Some(vrrp) = self.pair.vrrp() else { return Ok(()) };
        if self.pair.bfd.is_none() {
            if wanted.is_empty() {
                return Ok(());
            }
            let (bfd, notices) = Bfd::spawn(vrrp.session_reporter()).map_err(EngineError::Vrrp)?;
            tokio::spawn(log(notices));
            self.pair.bfd = Some(bfd);
        }
        if let Some(bfd) = &self.pair.bfd {
            bfd.configure(wanted.clone());
        }
        Ok(())
    }
}

impl Pair {
    /// The sessions that a virtual router tracks.
    pub(super) fn sessions(&self, spec: &VrrpSpec) -> Vec<BfdView> {
        let Some(bfd) = &self.bfd else { return Vec::new() };
        let views = bfd.views();
        let tracked = views.iter().filter(|view| spec.track.bfd.contains(&view.spec.name));
        tracked.map(view_of).collect()
    }

    /// Every session, tracked or not.
    pub(super) fn bfd_stats(&self) -> BfdStats {
        let Some(bfd) = &self.bfd else { return BfdStats::default() };
        let refused = bfd.refused().counts();
        BfdStats {
            sessions: bfd.views().iter().map(view_of).collect(),
            refused: refused
                .map(|(reason, packets)| RefusedView { reason: reason.to_owned(), packets })
                .collect(),
        }
    }
}

fn view_of(view: &SessionView) -> BfdView {
    let SessionView { spec, state, diagnostic: _, since, trouble, counters } = view;
    BfdView {
        name: spec.name.to_string(),
        peer: spec.peer,
        state: state.name().to_owned(),
        since: since.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        trouble: trouble.clone(),
        packets_sent: counters.sent.load(Relaxed),
        packets_received: counters.received.load(Relaxed),
        transitions: counters.transitions().map(|(state, count)| (state.name().to_owned(), count)).collect(),
    }
}

async fn log(mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        notice.log();
    }
}
