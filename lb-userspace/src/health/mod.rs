//! Health checks: a pure state machine and schedule, the probes, and the task that runs them.
//!
//! [`fsm`] turns check results into up and down, [`schedule`] says when whom to check; both are pure.
//! [`probe`] has one file per type of check, [`via`] is their way to virtual addresses, and [`task`] is the shell that drives all three. The names
//! an outsider needs are re-exported here.

pub mod fsm;
pub mod probe;
pub mod schedule;
pub mod task;
#[cfg(test)]
mod testing;
pub mod via;

pub use probe::ProbeFailure;
pub use task::{
    HealthEvent, HealthHandle, HealthTask, LastResult, NoObserver, ProbeObserver, Target, TargetKey,
    TargetStatus,
};
pub use via::{Beyond, ViaError, VipWay};
