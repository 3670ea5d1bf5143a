//! BFD (RFC 5880, RFC 5881): a faster way to notice that the other node is gone. Asynchronous mode, single hop, without
//! authentication, echo and demand mode.
//!
//! [`packet`] and [`fsm`] are pure. One thread ([`Bfd`]) has all sessions, with a priority as VRRP's heartbeat, and waits for
//! nobody; what it has to say goes out by a bounded queue that drops what does not fit.

pub mod fsm;
pub mod packet;
mod port;
mod thread;
mod view;

pub use view::{Counters, Refused, SessionView};

use crate::{
    model::{BfdSpec, VrrpName},
    vrrp::wake,
};
use packet::{Diagnostic, Refusal, State};
use std::{
    io,
    net::IpAddr,
    sync::{Arc, mpsc as sync_mpsc},
    thread::JoinHandle,
};
use tokio::sync::{mpsc, watch};

/// Above the heartbeat's: its intervals are the shorter ones.
const PRIORITY: i32 = 51;
/// Configurations, and notices, that wait at most.
const QUEUE: usize = 64;

/// What is to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Changed {
        name: VrrpName,
        peer: IpAddr,
        from: State,
        to: State,
        diagnostic: Diagnostic,
    },
    /// A packet was of no effect; `more` like it since the last notice.
    Refused {
        source: IpAddr,
        refusal: Refusal,
        more: u64,
    },
    /// No socket: it is tried again.
    Socket {
        name: VrrpName,
        text: String,
    },
    Ordinary {
        error: String,
    },
}

impl Notice {
    /// Writes it to the log.
    pub fn log(&self) {
        match self {
            Self::Changed { name, peer, from, to, diagnostic } => {
                let (from, to, diagnostic) = (from.name(), to.name(), diagnostic.0);
                tracing::info!(session = %name, %peer, from, to, diagnostic, "bfd session changed");
            }
            Self::Refused { source, refusal, more } => {
                tracing::warn!(%source, reason = %refusal, more, "bfd packet of no effect");
            }
            Self::Socket { name, text } => {
                tracing::error!(session = %name, text, "no socket for this bfd session; it is tried again every second");
            }
            Self::Ordinary { error } => {
                tracing::warn!(
                    error,
                    "bfd runs without real-time priority: a busy node may miss packets (CAP_SYS_NICE)"
                );
            }
        }
    }
}

/// The thread with the sessions.
#[derive(Debug)]
pub struct Bfd {
    queue: sync_mpsc::SyncSender<thread::Input>,
    waker: wake::Waker,
    views: watch::Receiver<Arc<Vec<SessionView>>>,
    refused: Arc<Refused>,
    thread: JoinHandle<()>,
}

impl Bfd {
    /// Starts the thread, in the network namespace of the caller; without sessions it sleeps. `report` is told, by that
    /// thread, of every session that is up, and of every peer that has become silent: not of one that goes politely, nor
    /// of one that says itself that it hears nothing, since it lives.
    pub fn spawn(
        report: impl Fn(VrrpName, IpAddr, bool) + Send + 'static,
    ) -> io::Result<(Self, mpsc::Receiver<Notice>)> {
        let (notices, reader) = mpsc::channel(QUEUE);
        let (queue, inputs) = sync_mpsc::sync_channel(QUEUE);
        let (waker, alarm) = wake::pair()?;
        let (views_tx, views) = watch::channel(Arc::default());
        let refused = Arc::<Refused>::default();
        let for_thread = Arc::clone(&refused);
        let thread = std::thread::Builder::new().name("bfd".to_owned()).spawn(move || {
            if let Err(error) = wake::real_time(PRIORITY) {
                // Full: it says more important things.
                let _ = notices.try_send(Notice::Ordinary { error: error.to_string() });
            }
            thread::Sessions::new(inputs, alarm, notices, (views_tx, for_thread), Box::new(report)).run();
        })?;
        Ok((Self { queue, waker, views, refused, thread }, reader))
    }

    /// The sessions, in place of those before; those that stay as they are go on.
    pub fn configure(&self, specs: Vec<BfdSpec>) {
        // Ended, after a panic that was reported, or stuck: VRRP has its own timers.
        let _ = self.queue.try_send(thread::Input::Configure(specs));
        self.waker.wake();
    }

    pub fn views(&self) -> Arc<Vec<SessionView>> {
        Arc::clone(&self.views.borrow())
    }

    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Tells the peers, and ends.
    pub fn stop(self) {
        if self.queue.send(thread::Input::Stop).is_ok() {
            self.waker.wake();
            let _ = self.thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
