//! The control API: its data types, the server on the Unix socket, and the client that `lbctl` uses.
//!
//! HTTP/1.1 with JSON under `/v1/`; every error is an [`api::ErrorView`]. The server knows nothing of
//! services: it parses a request, sends one [`command::Command`] to the daemon's loop and writes the answer.

pub mod api;
pub mod bgp;
pub mod changes;
pub mod client;
pub mod command;
mod extract;
pub mod firewall;
pub mod fleet;
pub mod gradual;
pub mod guard;
pub mod link;
mod long;
pub mod observe;
pub mod openapi;
pub mod pair;
pub mod passive;
pub mod peer;
pub mod request;
pub mod save;
pub mod server;
pub mod socket;
mod stream;
pub mod timing;
pub mod tls;
pub mod watch;
pub mod way;

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lbd/lbd.sock";
