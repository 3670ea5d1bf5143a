//! The flow state of a pair: what the master of a virtual address tells its peer, and what the peer makes of it. Pure.
//!
//! A *part* is a service's share of one VRRP instance: the ring for the addresses that fail over together. The master is
//! the authority for its parts. It sends their slot words and the entries of the flow tables that name their backends; the
//! other node keeps the same, in its own numbers of services and backends. Plain slots have no entries, so that a pair
//! at rest has nothing to say.
//!
//! - [`codec`]: frames. Numbers are the authority's, explained by definitions that come before their first use; times are ages.
//! - [`Sender`]: compares what is with what was sent.
//! - [`Receiver`]: the copy, and its translation.

pub mod codec;
mod entry;
mod receiver;
mod scope;
mod sender;
#[cfg(test)]
mod tests;

pub use codec::{BackendDef, DecodeError, Frame, ServiceDef};
pub use entry::{Key, Session, Table, Value};
pub use receiver::{Dropped, Effect, Receiver};
pub use scope::{Member, Peer, Scope};
pub use sender::{Round, Sender};
