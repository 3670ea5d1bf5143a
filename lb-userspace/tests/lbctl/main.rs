//! The control API from outside: the server on its socket with an engine made for the test, the client,
//! and the compiled `lbctl`.

mod client;
mod command_line;
mod engine;
mod fleet;
mod gradual;
mod guarded;
mod hostile;
mod import;
mod openapi;
mod pair;
mod save;
mod server;
