//! The fleet: configuration that all nodes take from etcd, and which of them has the word.
//!
//! Everything here runs on a thread of its own ([`FleetHandle::spawn`]) and waits for nobody but etcd; the engine looks at what has
//! come ([`FleetHandle::take`]) when it is told that something has. Under the prefix of the configuration:
//!
//! | key | value | lives |
//! |---|---|---|
//! | `config` | the document, TOML; its generation is the revision of etcd that wrote it | until it is deleted |
//! | `put` | [`PutRecord`] of whoever wrote it through lbd, written in the same transaction | as long |
//! | `nodes/NAME` | [`NodeRecord`] | as long as the node's lease |
//! | `authority` | name of the node that has the word; its epoch is the revision that made it | as long as its holder's lease |

mod authority;
mod contact;
mod election;
mod handle;
mod record;
mod session;
mod thread;

pub use authority::Authority;
pub use handle::{Document, FleetError, FleetHandle, News, Request, View};
pub use record::{NodeRecord, PutRecord, RefusedRecord};
