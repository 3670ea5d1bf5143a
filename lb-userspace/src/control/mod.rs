//! The control API: its data types, the server on the Unix socket, and the client that `lbctl` uses.

pub mod api;
pub mod command;
