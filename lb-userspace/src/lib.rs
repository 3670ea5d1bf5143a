//! The daemon `lbd` and the command line `lbctl`, as a library.
//!
//! Arrows between the rooms: `model` knows nobody; the pure modules (`config`, `maglev`, `plan`,
//! `health::fsm`) know the model; the shells (`dataplane`, `net`, `health`, `vrrp`, `control`, `metrics`) know
//! those; `daemon` knows all of them; `cli` is the body of `lbctl` and knows only `control` and the model; the
//! two binaries know `daemon` and `cli`.

pub mod affinity;
pub mod bfd;
pub mod bgp;
pub mod cli;
pub mod command;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod events;
pub mod fleet;
pub mod flowsync;
pub mod health;
pub mod import;
pub mod link;
pub mod maglev;
pub mod metrics;
pub mod model;
pub mod net;
pub mod notify;
pub mod outlier;
pub mod plan;
pub mod pool;
pub mod ramp;
pub mod resequence;
pub mod state;
pub mod telemetry;
pub mod track;
pub mod vrrp;
