//! Logging: one line per event on stderr, panics included.

pub mod log;
pub mod panic;
mod throttle;

pub use throttle::Throttle;
