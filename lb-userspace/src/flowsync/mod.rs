//! The flow state of a pair: what the master of a virtual address tells its peer, and what the peer makes of it. Pure.
//!
//! A *part* is a service's share of one VRRP instance: the ring for the addresses that fail over together. The master is
//! the authority for its parts. It sends their slot words and the entries of the flow tables that name their backends; the
//! other node keeps the same, in its own numbers of services and backends. Plain slots have no entries, so that a pair
//! at rest has nothing to say.
//!
//! Parts without an instance are those of a fleet: all its nodes forward their flows at the same time. One node, the fleet's
//! authority, decides over their words; every node tells of the flows whose packets it has seen itself. See [`Judge`] and [`Copies`].
//!
//! - [`codec`]: frames. Numbers are the authority's, explained by definitions that come before their first use; times are ages.
//! - [`Sender`]: compares what is with what was sent.
//! - [`Receiver`]: the copy, and its translation.

mod charge;
pub mod codec;
mod entry;
#[cfg(test)]
mod fleet_tests;
mod receiver;
mod scope;
mod sender;
mod shared;
#[cfg(test)]
mod tests;

pub use charge::{Charge, Claim, Judge, PATIENCE};
pub use codec::{BackendDef, DecodeError, Frame, ServiceDef};
pub use entry::{Key, Session, Table, Value};
pub use receiver::{Dropped, Effect, Offer, Receiver};
pub use scope::{Member, Peer, Scope};
pub use sender::{Round, Sender};
pub use shared::{Copies, Whose};
