//! A real network on one machine, and what tests do with it.
//!
//! - [`lab`]: network namespaces, links, the standard topology, processes, packet capture;
//! - [`web`]: web servers for the backends (nginx where installed, a built-in one otherwise);
//! - [`client`]: an HTTP client that counts who answered and remembers every failure;
//! - [`kernel`]: the program in the kernel on single frames, without a network, and its twin on the host;
//! - [`daemon`]: the daemon's plan and care over that program, without its clocks and sockets;
//! - [`packets`]: packets by description and by the million, and a check by a parser that is not ours;
//! - [`playground`]: the program that brings all of it up for people to try;
//! - [`authority`]: an authority for certificates, and what it signs;
//! - [`balancer`]: the daemon in a topology, and `lbctl`;
//! - [`crowd`]: thousands of connections that live long, every byte of them checked;
//! - [`echo`]: servers for datagrams and checked uploads;
//! - [`failover`]: both balancers under faults: outages, connections, and who answers;
//! - [`fleet`]: nodes that have etcd in common;
//! - [`foobar`]: the program that brings up a whole site, breaks it and counts who noticed;
//! - [`skip`]: a test that cannot run says so loudly.

pub mod authority;
pub mod balancer;
pub mod client;
pub mod crowd;
pub mod daemon;
pub mod echo;
pub mod ecmp;
pub mod failover;
pub mod fleet;
pub mod foobar;
pub mod http;
pub mod kernel;
pub mod lab;
pub mod packets;
pub mod playground;
pub mod skip;
pub mod web;
