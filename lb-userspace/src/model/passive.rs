//! Passive health checks: what of a backend's behaviour towards its clients ejects it.

use std::time::Duration;

/// How a service judges its backends by their clients' packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassiveSpec {
    /// Length of one window.
    pub interval: Duration,
    /// Bad windows in a row that eject a backend, at least 1.
    pub windows: u32,
    /// Connections a window of a backend must have to be judged at all.
    pub min_connections: u32,
    /// Least share of failed connections that is bad, in percent, 1 to 100.
    pub threshold: u8,
    /// Largest share of the service's backends that may be ejected at once, in percent; 0 ejects nobody. At least one may
    /// be, and one always stays.
    pub max_ejected: u8,
    /// How long the first ejection lasts; each further one lasts as much longer.
    pub ejection_time: Duration,
    /// How long an ejection lasts at most.
    pub max_ejection_time: Duration,
}

impl Default for PassiveSpec {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            windows: 2,
            min_connections: 10,
            threshold: 30,
            max_ejected: 10,
            ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
        }
    }
}
