//! The sync link: one authenticated, encrypted connection to each peer, and heartbeats beside it.
//!
//! Pure: [`wire`] (the records). The connections live on a thread of their own with a runtime of its own, so that
//! neither a busy engine nor busy tasks of the daemon delay them; the heartbeats on a second one with real-time
//! priority. [`Link`] is the handle: it never waits. What comes in is told as [`LinkEvent`]s by a bounded channel: as
//! long as nobody reads it, nothing is read from the peers either, and their queues fill instead of this node's memory.

mod beat;
mod conn;
mod handle;
mod noise;
mod outbox;
mod task;
#[cfg(test)]
mod tests;
mod view;
pub mod wire;

pub use handle::{Full, Link, LinkEvent, PeerId, Settings};
pub use view::{LinkView, PeerState, Successor, Unfit};
pub use wire::{Hello, MAX_FRAME, Role};
