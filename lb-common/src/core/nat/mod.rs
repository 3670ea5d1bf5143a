//! Network address translation: `nat` rewrites the destination on the way in and the source on the way
//! back, `snat` both on either way.
//!
//! Where one virtual address and port lead to a backend's port, a reply's source tells what to rewrite it
//! to: the table `NATS`, written by the daemon, no state of a flow. Elsewhere a session is made by the first
//! packet of a flow, in two tables, one for either direction ([`session`]).

pub mod across;
pub mod answer;
pub mod back;
pub mod errors;
mod mark;
pub mod pieces;
pub mod rewrite;
pub mod session;
mod tables;
#[cfg(test)]
mod tests;
pub mod translate;

pub use answer::{Answer, Verdict};
pub use mark::{from_backend, mark};
pub use rewrite::{Address, Ends};
pub use tables::{Added, NatTables, Outcome, Way};
