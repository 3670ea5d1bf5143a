//! How fast and how far a service may change.

use std::time::Duration;

/// What `[defaults]` or a `[[service]]` says about changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GradualSpec {
    /// A backend that recovers, is added or enabled again gets its share over this time; zero = at once.
    pub slow_start: Duration,
    /// Percent of the slots that one change of an operator's may move at once; `None` = any.
    pub max_disruption: Option<u8>,
}
