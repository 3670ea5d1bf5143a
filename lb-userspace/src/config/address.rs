//! Addresses, networks and interface names as they may stand in a configuration.

use super::reader::Refusal;
use crate::model::{not_for_backend, not_unicast};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

pub(super) const ADDRESS: &str = "an IPv4 or IPv6 address such as \"192.0.2.10\"";

/// An address that one host can have and others can reach.
pub(super) fn unicast(text: &str) -> Result<IpAddr, Refusal> {
    let address = text.parse::<IpAddr>().map_err(|_| {
        let why = Refusal::expected(ADDRESS);
        if text.parse::<IpNet>().is_ok() {
            why.but("remove the prefix length")
        } else if text.parse::<SocketAddr>().is_ok() {
            why.but("the port is a key of its own")
        } else if text.contains('%') {
            why.but("an interface cannot be named here")
        } else if looks_like_a_host_name(text) {
            why.but("host names are not looked up")
        } else {
            why
        }
    })?;
    refuse(address, "a unicast address", not_unicast(address))
}

fn refuse(address: IpAddr, expected: &str, kind: Option<&str>) -> Result<IpAddr, Refusal> {
    match kind {
        None => Ok(address),
        Some(kind) => Err(Refusal::expected(expected).but(format!("this is {kind}"))),
    }
}

/// An address of a backend.
pub(super) fn backend(text: &str) -> Result<IpAddr, Refusal> {
    let address = unicast(text)?;
    refuse(address, "a unicast address that has a route", not_for_backend(address))
}

fn looks_like_a_host_name(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
}

pub(super) const LISTEN: &str = "an address and port such as \"127.0.0.1:9750\", or \"off\"";

/// Where to listen, or nowhere.
pub(super) fn listen(text: &str) -> Result<Option<SocketAddr>, Refusal> {
    if matches!(text, "" | "off") {
        return Ok(None);
    }
    let why = || Refusal::expected(LISTEN);
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err(why().but("choose a port from 1 to 65535")),
        Ok(address) if address.ip().is_multicast() => Err(why().but("this is a multicast address")),
        Ok(address) => Ok(Some(address)),
        Err(_) if text.parse::<IpAddr>().is_ok() => Err(why().but("the port is missing")),
        Err(_) if text.rsplit_once(':').is_some_and(|(host, _)| looks_like_a_host_name(host)) => {
            Err(why().but("host names are not looked up"))
        }
        Err(_) => Err(why()),
    }
}

/// Splits a network into address and prefix length.
fn network(text: &str, example: &str, lo: u8, hi: u8) -> Result<IpNet, Refusal> {
    let expected = format!("a network with a prefix length from {lo} to {hi}, such as \"{example}\"");
    let why = || Refusal::expected(expected.clone());
    let net = text.parse::<IpNet>().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => {
            let full = if address.is_ipv4() { 32 } else { 128 };
            why().but(format!("write \"{address}/{full}\" for a single address"))
        }
        Err(_) => why(),
    })?;
    if net.network() != net.addr() {
        return Err(Refusal::expected("zero bits after the prefix").but(format!("write \"{}\"", net.trunc())));
    }
    let of_family = if hi == 32 { net.addr().is_ipv4() } else { net.addr().is_ipv6() };
    if !of_family || !(lo..=hi).contains(&net.prefix_len()) {
        return Err(why());
    }
    let first = net.addr();
    let nowhere = match first {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.to_ipv4_mapped().is_some(),
    };
    if nowhere || first.is_loopback() || first.is_multicast() {
        return Err(why().but("packets from there would be dropped on the way"));
    }
    Ok(net)
}

pub(super) fn network4(text: &str) -> Result<Ipv4Net, Refusal> {
    match network(text, "198.18.0.0/16", 8, 32)? {
        IpNet::V4(net) => Ok(net),
        IpNet::V6(_) => Err(Refusal::expected("an IPv4 network")),
    }
}

pub(super) fn network6(text: &str) -> Result<Ipv6Net, Refusal> {
    match network(text, "100::/64", 32, 128)? {
        IpNet::V6(net) => Ok(net),
        IpNet::V4(_) => Err(Refusal::expected("an IPv6 network")),
    }
}

pub(super) fn unicast4(text: &str) -> Result<Ipv4Addr, Refusal> {
    match unicast(text)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(Refusal::expected("an IPv4 address")),
    }
}

pub(super) fn unicast6(text: &str) -> Result<Ipv6Addr, Refusal> {
    match unicast(text)? {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => Err(Refusal::expected("an IPv6 address")),
    }
}

pub(super) const INTERFACES: &str = "an array of interface names such as [\"eth0\"]";

/// The kernel's rule (`dev_valid_name`): 1 to 15 bytes, no slash, colon or space, neither `.` nor `..`.
pub(super) fn interface(text: &str) -> Result<String, Refusal> {
    let valid = (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control());
    if valid {
        Ok(text.to_owned())
    } else {
        Err(Refusal::expected("an interface name: 1 to 15 characters without '/', ':' and spaces"))
    }
}

pub(super) const DIRECTORY: &str = "an absolute path such as \"/var/lib/lbd\"";

/// A directory, not the root.
pub(super) fn directory(text: &str) -> Result<PathBuf, Refusal> {
    let path = Path::new(text);
    let fits = path.is_absolute() && path.file_name().is_some() && !text.contains(char::is_control);
    if !fits {
        return Err(Refusal::expected(DIRECTORY));
    }
    if path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        return Err(Refusal::expected("a path without '..'"));
    }
    // Without doubled slashes and such, so that equal directories compare equal.
    Ok(path.components().collect())
}

/// A directory on the BPF file system, which refuses names with a dot.
pub(super) fn pin_directory(text: &str) -> Result<PathBuf, Refusal> {
    let path = directory(text)?;
    if path.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'.')) {
        return Err(Refusal::expected("a last name without '.'").but("the BPF file system allows none"));
    }
    Ok(path)
}

/// A directory that a socket lies in, whose address must fit into `sockaddr_un` (108 bytes with the
/// terminating zero).
pub(super) fn socket_directory(text: &str) -> Result<PathBuf, Refusal> {
    let path = directory(text)?;
    if path.join("lbd.sock").as_os_str().len() > 107 {
        return Err(Refusal::expected("a path of at most 98 bytes").but("the control socket lies in it"));
    }
    Ok(path)
}
