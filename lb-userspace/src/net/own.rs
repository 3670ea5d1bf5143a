//! The addresses of this host.

use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};
use std::{io, net::IpAddr};

/// Every address of every interface, with the interface's index.
pub fn own_addresses() -> io::Result<Vec<(u32, IpAddr)>> {
    let of = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (None, Some(v6)) => IpAddr::V6(v6.ip()),
            (None, None) => return None,
        };
        // An interface that has gone meanwhile has no addresses.
        Some((if_nametoindex(entry.interface_name.as_str()).ok()?, ip))
    };
    Ok(getifaddrs()?.filter_map(of).collect())
}
