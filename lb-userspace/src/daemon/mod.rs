//! The tasks of the daemon and how they are wired.
//!
//! ```text
//!   lbctl -> control::server --Command--> +--------+
//!   health task --------HealthEvent-----> |        | --actions--> dataplane::Kernel (the only map writer)
//!   netlink task ----next hops, links---> | engine | --targets--> health task
//!   netlink task ----routes changed-----> |        |
//!   SIGHUP, SIGTERM --------------------> |        | --destinations--> netlink task
//!   metrics listener ---Command---------> +--------+
//!   ring buffer HELD ---> resequencer ----fragments to send again----> dataplane::Held
//!   ring buffer EVENTS -> events reader ----neighbours to find out-----> netlink task
//!                                          engine --backends' entries--> health::via (a thread of its own, if asked for)
//! ```
//!
//! One loop owns all state: it waits for any of these, changes the wish, converges the kernel to it, answers.
//! Every wait is a channel or signal receive, which is cancel-safe; nothing else is awaited inside the loop.

mod ahead;
mod bgp;
mod both;
mod ejections;
mod engine;
mod entries;
mod error;
mod events;
mod explain;
mod explain_nat;
mod firewall;
mod fleet;
mod flows;
mod foresee;
mod gradual;
mod handover;
mod hashes;
mod headers;
mod held;
mod listing;
mod mirror;
mod names;
mod pair;
mod pair_bfd;
mod pair_track;
mod passive;
mod pool;
mod pulse;
mod readiness;
mod revision;
mod run;
mod save;
mod sessions;
mod sizes;
mod succession;
mod tell;
mod trace;
mod via;
mod views;
mod walk;
mod words;

pub use engine::Engine;
pub use error::{EngineError, StartError};
pub use run::{Options, check, detach, run};
pub use sizes::prepare_memory;
