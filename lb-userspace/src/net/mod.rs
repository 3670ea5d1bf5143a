//! What the kernel knows of the network, and what this process may do with it.
//!
//! - [`link`]: the interfaces, as the configuration names them.
//! - [`nexthop`]: where a packet to an address leaves this host (pure).
//! - [`watch`]: keeps the next hops of a set of addresses fresh; the only task here.
//! - [`announce`]: routes that a routing daemon on this host reads.
//! - [`caps`], [`bpffs`]: what the dataplane needs of the process and of the file system.
//!
//! Inside, `engine` is the state machine of the watch (pure: netlink messages and the time in, requests
//! and results out), `neighbour` and `route` are its tables, `wire` is the netlink socket and its
//! messages.

pub mod announce;
pub mod bpffs;
pub mod caps;
mod engine;
pub mod link;
pub mod names;
mod neighbour;
pub mod nexthop;
mod own;
pub mod route;
pub mod watch;
mod wire;

pub use own::own_addresses;

/// Why the kernel could not be asked about the network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot {doing} over netlink: {error}")]
    Netlink { doing: &'static str, error: std::io::Error },
    #[error("there is no interface '{name}' on this host; {}", having(.present))]
    NoInterface { name: String, present: Vec<String> },
    #[error(
        "interface '{name}' is no Ethernet interface; the load balancer needs Ethernet, a bond or a VLAN's parent"
    )]
    NotEthernet { name: String },
}

fn having(present: &[String]) -> String {
    if present.is_empty() { "it has none".to_owned() } else { format!("it has {}", present.join(", ")) }
}
