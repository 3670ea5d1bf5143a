//! What VRRP has to say for the log. The threads never write to the log themselves: whoever reads it may be slow.

use super::{
    Claim,
    fsm::{Cause, Phase},
    packet::Refusal,
};
use crate::model::VrrpName;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::mpsc;

/// Notices that wait at most.
const QUEUE: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A virtual router changed its state.
    Changed { name: VrrpName, from: Phase, to: Phase, cause: Cause, priority: u8 },
    /// What is missing has changed; empty: nothing is any more.
    Faults { name: VrrpName, faults: Vec<String> },
    /// A packet was of no effect; `more` like it since the last notice.
    Refused { interface: String, source: IpAddr, refusal: Refusal, more: u64 },
    /// The peer's configuration differs from this one's, in words.
    Mismatch { name: VrrpName, source: IpAddr, text: String },
    /// Another master of lower priority was heard.
    SplitBrain { name: VrrpName, source: IpAddr },
    /// The peer says over the link that it is master, as this node is: neither leaves.
    BothMasters { name: VrrpName, source: IpAddr },
    /// Another node says that an address is its own which this node holds.
    Claimed { name: VrrpName, claim: Claim },
    /// The dataplane could not be told of the addresses.
    Lend(String),
    /// Somebody had removed an address.
    PutBack { name: VrrpName, address: IpAddr },
    /// The kernel would take the other virtual addresses of a network off with the first one: whether it was told not to.
    Promoted { interface: String, error: Option<String> },
    /// An address could not be changed.
    Address { name: VrrpName, text: String },
    /// An advertisement could not be sent.
    Send { name: VrrpName, text: String },
    /// Interfaces could not be read.
    Netlink(String),
    /// The threads run without a privilege.
    Ordinary { what: &'static str, error: String },
}

/// Where notices go. Never waits; what does not fit is counted.
#[derive(Debug, Clone)]
pub(super) struct Notices {
    queue: mpsc::Sender<Notice>,
    lost: Arc<AtomicU64>,
}

/// Where notices come from.
#[derive(Debug)]
pub struct NoticeReader {
    queue: mpsc::Receiver<Notice>,
    lost: Arc<AtomicU64>,
}

pub(super) fn channel() -> (Notices, NoticeReader) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let lost = Arc::<AtomicU64>::default();
    (Notices { queue: sender, lost: Arc::clone(&lost) }, NoticeReader { queue: receiver, lost })
}

impl Notices {
    pub(super) fn send(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl NoticeReader {
    /// The next notice, and how many were lost before it; `None` once the threads have ended.
    pub async fn recv(&mut self) -> Option<(Notice, u64)> {
        let notice = self.queue.recv().await?;
        Some((notice, self.lost.swap(0, Ordering::Relaxed)))
    }
}

impl Notice {
    /// Writes it to the log.
    pub fn log(&self) {
        match self {
            Self::Changed { name, from, to, cause, priority } => {
                let (from, to, cause) = (from.name(), to.name(), cause.describe());
                tracing::info!(instance = %name, from, to, cause, priority, "vrrp state changed");
            }
            Self::Faults { name, faults } if faults.is_empty() => {
                tracing::info!(instance = %name, "vrrp: nothing is missing any more");
            }
            Self::Faults { name, faults } => {
                tracing::warn!(instance = %name, causes = faults.join("; "), "vrrp: something is missing");
            }
            Self::Refused { interface, source, refusal, more } => {
                tracing::warn!(interface, %source, reason = %refusal, more, "vrrp packet of no effect");
            }
            Self::Mismatch { name, source, text } => {
                tracing::warn!(instance = %name, %source, text, "vrrp: the configurations of the nodes differ");
            }
            Self::SplitBrain { name, source } => {
                tracing::warn!(instance = %name, %source, "vrrp: another node was master too; it is told to leave");
            }
            Self::BothMasters { name, source } => tracing::error!(
                instance = %name,
                peer = %source,
                "vrrp: both nodes are master: the sync link is up, but their advertisements (IP protocol 112) do not get \
                 through; look for a packet filter between them"
            ),
            Self::Claimed { name, claim } => {
                tracing::warn!(instance = %name, %claim, "another node answers for a virtual address of this one");
            }
            Self::Lend(error) => tracing::error!(
                error,
                "vrrp: the program cannot be told of the virtual addresses; tried again in a moment"
            ),
            Self::PutBack { name, address } => {
                tracing::warn!(instance = %name, %address, "somebody removed a virtual address; it is put back");
            }
            Self::Promoted { interface, error: None } => tracing::info!(
                interface,
                "vrrp: net.ipv4.conf.{interface}.promote_secondaries is 1 now: addresses of a network no longer go with its \
                 first one"
            ),
            Self::Promoted { interface, error: Some(error) } => tracing::warn!(
                interface,
                error,
                "vrrp: net.ipv4.conf.{interface}.promote_secondaries cannot be set to 1: with the first virtual address of \
                 a network the kernel takes the others off; they are put on again at once"
            ),
            Self::Address { name, text } => {
                tracing::error!(instance = %name, text, "cannot change a virtual address");
            }
            Self::Send { name, text } => {
                tracing::warn!(instance = %name, text, "vrrp: an advertisement could not be sent");
            }
            Self::Netlink(error) => tracing::error!(error, "vrrp: cannot read the interfaces"),
            Self::Ordinary { what, error } => {
                tracing::warn!(
                    what,
                    error,
                    "vrrp runs without it: a very busy node may miss advertisements (it wants CAP_SYS_NICE and CAP_IPC_LOCK)"
                );
            }
        }
    }
}
