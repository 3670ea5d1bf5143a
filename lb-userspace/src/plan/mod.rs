//! Desired state against observed state, to a list of actions in a safe order. Pure.
//!
//! An [`Image`] is what the maps hold. [`build`] makes the image that should be from the services
//! wanted and the image that is (whose ids, ring places and flows it keeps); [`diff`] turns the two into [`Action`]s.

mod action;
mod build;
mod follow;
mod image;
mod impact;
mod lists;
mod marks;
mod memory;
mod nat;
mod part;
mod ports;
mod ring;
mod rings;
mod schedule;
mod sessions;
mod split;
mod tend;

pub use action::{Action, diff};
pub use build::{BuildError, NextHopEntry, TunnelSettings, WantedBackend, WantedService, build};
pub use follow::Followed;
pub use image::{BackendRecord, Image, ServiceRecord, name_of};
pub use impact::{ServiceImpact, impact};
pub use lists::{ListAction, install};
pub(crate) use lists::{added as list_added, removed as list_removed};
pub use marks::{marks4, marks6, regions4};
pub use memory::{Memory, MemoryOfFlow};
pub use nat::{NatChange, NatImage, mapped, unmapped};
pub use part::{Index, Part};
pub use ring::Ring;
pub use schedule::{ScheduleRecord, flags as scheduler_flags};
pub use sessions::{ORPHAN_LIFE, Pair, SessionCounts, Sweep, sweep};
pub use split::{Instances, split};
pub use tend::{CLOSING_LIFE, Flow, GRACE, HALF_OPEN_LIFE, LAG, MARGIN, Naming, Tracking, Walk};

#[cfg(test)]
mod follow_tests;
#[cfg(test)]
mod gradual_tests;
#[cfg(test)]
mod nat_tests;
#[cfg(test)]
mod tests;
