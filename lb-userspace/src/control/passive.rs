//! What the control API says of passive health checks.

use serde::{Deserialize, Serialize};

/// What a backend's clients met, of services with passive health checks. Counted since the daemon watches the backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PassiveView {
    /// It takes no new connections until its time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected: Option<EjectionView>,
    /// Why it is not ejected though its clients fare badly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspect: Option<String>,
    /// SYNs forwarded to it.
    pub connections: u64,
    /// Of these, those that are known again when they come again: all but in a flood.
    pub watched: u64,
    /// Of the watched, those that came again since nobody answered; each connection counts once.
    pub syn_repeats: u64,
    /// SYNs it answered by an RST; `nat` and `snat`.
    pub refused: u64,
    /// RSTs it sent in established connections; `nat` and `snat`.
    pub resets: u64,
}

/// An ejection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EjectionView {
    /// E.g. "19 of 20 SYNs came again without an answer, where the median is 0 %".
    pub reason: String,
    /// When it ends, in seconds since 1970.
    pub until: u64,
    pub seconds_left: u64,
}
