//! The daemon's hold on the link.

use super::{
    outbox::Outbox,
    wire::{Hello, MAX_FRAME},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The name of a peer's node.
pub type PeerId = Arc<str>;

/// What comes from the link, in the order it came from each peer.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection is there. Nothing of an earlier one counts any more: what was not answered may be lost.
    Up { peer: PeerId, hello: Hello },
    /// At most [`MAX_FRAME`] bytes.
    Frame(PeerId, Vec<u8>),
    /// A frame was refused before; now there is room for some.
    Room(PeerId),
    /// The connection has ended.
    Down { peer: PeerId, cause: String },
}

/// A frame that is not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// [`LinkEvent::Room`] will tell when it is worth another attempt.
    #[error("the queue to the peer is full")]
    Queue,
    #[error("there is no connection to the peer")]
    Down,
    #[error("a frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
}

/// What the handle shares with the tasks.
#[derive(Debug, Default)]
pub(super) struct Shared {
    peers: Mutex<BTreeMap<PeerId, Arc<Outbox>>>,
}

impl Shared {
    pub(super) fn peers(&self) -> MutexGuard<'_, BTreeMap<PeerId, Arc<Outbox>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle. Cheap to clone; no call waits.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// Sends a frame to a peer behind those before.
    pub fn try_send(&self, peer: &str, frame: Vec<u8>) -> Result<(), Full> {
        if frame.len() > MAX_FRAME {
            return Err(Full::TooLong(frame.len()));
        }
        let outbox = self.shared.peers().get(peer).cloned().ok_or(Full::Down)?;
        if outbox.push_frame(frame) { Ok(()) } else { Err(Full::Queue) }
    }

    /// The peers that are connected.
    pub fn connected(&self) -> Vec<PeerId> {
        self.shared.peers().keys().cloned().collect()
    }
}
