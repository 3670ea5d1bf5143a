//! What the daemon talks about: services, backends, their names and states. Parsed once at the edge
//! ("parse, don't validate"): a value of these types is valid.

mod backend;
mod health;
mod name;
mod port;
mod service;

pub use backend::{Admin, BackendSpec, Health, MAX_WEIGHT};
pub use health::{HealthCheck, HealthSpec, HttpCheck, StatusRange};
pub use name::{BackendName, NameError, ServiceName};
pub use port::{PortError, PortSpec};
pub use service::{Forward, Protocol, Scheduler, ServiceSpec};
