//! A real network on one machine, and what tests do with it.
//!
//! - [`lab`]: network namespaces, links, the standard topology, processes, packet capture;
//! - [`web`]: web servers for the backends (nginx where installed, a built-in one otherwise);
//! - [`client`]: an HTTP client that counts who answered and remembers every failure;
//! - [`balancer`]: the daemon in a topology, and `lbctl`;
//! - [`echo`]: servers for datagrams and checked uploads;
//! - [`skip`]: a test that cannot run says so loudly.

pub mod balancer;
pub mod client;
pub mod echo;
pub mod http;
pub mod lab;
pub mod skip;
pub mod web;
