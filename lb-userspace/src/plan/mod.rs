//! Desired state against observed state, to a list of actions in a safe order. Pure.
//!
//! An [`Image`] is what the maps hold. [`build`] makes the image that should be from the services
//! wanted and the image that is (whose ids, ring places and flows it keeps); [`diff`] turns the two into [`Action`]s.

mod action;
mod build;
mod image;
mod memory;
mod ports;
mod schedule;
mod tend;

pub use action::{Action, diff};
pub use build::{BuildError, NextHopEntry, TunnelSettings, WantedBackend, WantedService, build};
pub use image::{BackendRecord, Image, ServiceRecord, name_of};
pub use memory::{Memory, MemoryOfFlow};
pub use schedule::{ScheduleRecord, flags as scheduler_flags};
pub use tend::{CLOSING_LIFE, Flow, GRACE, HALF_OPEN_LIFE, MARGIN, Tracking, Walk};

#[cfg(test)]
mod tests;
