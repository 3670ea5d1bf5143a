//! Prometheus metrics, each name, help and label once, and the HTTP listener that serves them.
//!
//! `families` declares every metric; [`encode`] turns a [`Snapshot`] of the daemon plus the
//! [`Instruments`] into text (pure); [`serve`] is the listener with `/metrics`, `/healthz` and the
//! dashboard; [`bind`] opens its socket with errors an operator can act on. Nothing served here
//! changes any state.

mod bgp;
mod dashboard;
mod encode;
mod families;
mod fleet;
mod http;
mod instruments;
mod link;
mod listen;
mod pair;
mod passive;
mod process;
mod pulse;
mod pulse_encode;
mod source;
mod sync;

pub use encode::{Format, encode};
pub use http::{Limits, serve, serve_with_limits};
pub use instruments::{HealthMetrics, Instruments, NotifyMetrics, NotifyResult, ReloadMetrics};
pub use listen::{BindError, Holder, bind};
pub use process::ProcessView;
pub use pulse::{Durations, LoopMetrics, TableEntries};
pub use source::{Snapshot, SnapshotError, Source};
pub use sync::SyncMetrics;

#[cfg(test)]
mod exposition;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod sample;
