//! What the daemon talks about: services, backends, their names and states. Parsed once at the edge
//! ("parse, don't validate"): a value of these types is valid.

mod address;
mod backend;
mod health;
mod name;
mod port;
mod quic;
mod ring;
mod service;

pub use address::{not_for_backend, not_unicast};
pub use backend::{Admin, BackendSpec, DEFAULT_WEIGHT, Health, MAX_BACKENDS, MAX_WEIGHT};
pub use health::{HealthCheck, HealthSpec, HttpCheck, StatusRange};
pub use name::{BackendName, NameError, ServiceName};
pub use port::{PortError, PortSpec};
pub use quic::{
    DEFAULT_SERVER_ID_LENGTH, MAX_CONFIG_ID, MAX_SERVER_ID_LENGTH, QuicSpec, ServerId, ServerIdError,
};
pub use ring::{MAX_RING, MIN_RING, is_ring_size};
pub use service::{Forward, Protocol, Scheduler, ServiceSpec};
