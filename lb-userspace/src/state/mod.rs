//! What operators changed at run time, kept under `state_dir`.
//!
//! [`RuntimeChanges`] holds the changes, [`apply`] lays them over the configuration, both pure;
//! [`StateDir`] keeps them on disk. A change that the configuration no longer has a place for is kept
//! and reported, never dropped.

mod apply;
mod changes;
mod difference;
mod edit;
mod firewall;
mod fleet;
mod gradual;
mod hold;
mod names;
mod record;
mod save;
mod store;
#[cfg(test)]
mod tests;

pub use apply::{
    Effective, EffectiveBackend, EffectiveService, Origin, StaleChange, StaleReason, apply, apply_one,
};
pub use changes::{Change, ChangeKind, RuntimeChanges, Stamp};
pub use difference::{Difference, DifferenceKind, differences, differences_of};
pub use edit::{ChangeError, ChangeErrorKind, NewBackend};
pub use firewall::ListChanges;
pub use fleet::{LastGood, LoadedCopy};
pub use hold::{Hold, Holds};
pub use names::{Answers, queries};
pub use record::{Part, Record};
pub use save::{SaveError, Saved, save};
pub use store::{Loaded, Outcome, StateDir, StateError, set_aside};
