//! Argument values of `lbctl`.

use crate::control::request::{self, shorten};
use crate::model::{BackendName, MAX_WEIGHT, NameError, Protocol, ServiceName, VrrpName};
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// `ADDRESS[:PORT]` of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.address, port)),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Why an argument was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgError {
    #[error("{why}; expected an address like 10.0.0.14, 10.0.0.14:8443, 2001:db8::14 or [2001:db8::14]:8443")]
    Target { why: &'static str },
    #[error("expected a port from 1 to 65535")]
    Port,
    #[error("expected a weight from 0 to {MAX_WEIGHT}")]
    Weight,
    #[error("expected a whole number")]
    Number,
    #[error("{why}; expected an address or a prefix like 10.0.0.2, 10.0.0.0/29 or 2001:db8:0:1::/64")]
    Prefix { why: String },
    #[error("{why}; expected the name of a network interface like eth0 (see `ip link`)")]
    Interface { why: &'static str },
}

pub fn whole_number<T: FromStr>(text: &str) -> Result<T, ArgError> {
    text.parse().map_err(|_| ArgError::Number)
}

pub fn service(text: &str) -> Result<ServiceName, NameError> {
    text.parse()
}

pub fn backend(text: &str) -> Result<BackendName, NameError> {
    text.parse()
}

pub fn vrrp(text: &str) -> Result<VrrpName, NameError> {
    text.parse()
}

pub fn protocol(text: &str) -> Result<Protocol, request::FlowError> {
    request::parse_protocol(text)
}

pub fn endpoint(text: &str) -> Result<SocketAddr, request::FlowError> {
    request::parse_endpoint(text)
}

/// TCP flags, kept as they were given.
pub fn flags(text: &str) -> Result<String, request::FlowError> {
    request::parse_flags(text).map(|_| text.to_owned())
}

/// An address, in brackets if it is IPv6 with a port. `2001:db8::1:80` is an address without a port.
pub fn target(text: &str) -> Result<Target, ArgError> {
    let error = |why| ArgError::Target { why };
    if text.contains('%') {
        return Err(error("a zone ('%...') is not possible"));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(error("the closing bracket is missing"))?;
        let address: Ipv6Addr =
            address.parse().map_err(|_| error("what is in brackets is not an IPv6 address"))?;
        let port = match rest.strip_prefix(':') {
            Some(digits) => Some(number(digits).ok_or(error("the port is not one from 1 to 65535"))?),
            None if rest.is_empty() => None,
            None => return Err(error("only ':' and a port may follow the bracket")),
        };
        return Ok(Target { address: address.into(), port });
    }
    if let Ok(address) = text.parse() {
        return Ok(Target { address, port: None });
    }
    match text.split_once(':') {
        Some((address, digits)) if !digits.contains(':') => {
            let address: std::net::Ipv4Addr =
                address.parse().map_err(|_| error("it is not an address (names are not resolved)"))?;
            let port = number(digits).ok_or(error("the port is not one from 1 to 65535"))?;
            Ok(Target { address: address.into(), port: Some(port) })
        }
        _ => Err(error("it is not an address (names are not resolved)")),
    }
}

/// A number from 1 to 65535 of digits only.
fn number(digits: &str) -> Option<u16> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|port| plain && *port != 0)
}

pub fn port(text: &str) -> Result<u16, ArgError> {
    number(text).ok_or(ArgError::Port)
}

pub fn weight(text: &str) -> Result<u16, ArgError> {
    text.parse().map_err(|_| ArgError::Weight)
}

/// A prefix; an address is the prefix of just itself.
pub fn prefix(text: &str) -> Result<IpNet, ArgError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let why = format!("'{}' is neither", shorten(text));
    let prefix: IpNet = text.parse().map_err(|_| ArgError::Prefix { why })?;
    let exact = prefix.trunc();
    if prefix == exact {
        Ok(prefix)
    } else {
        let why = format!("{prefix} has bits set beyond its length (did you mean {exact}?)");
        Err(ArgError::Prefix { why })
    }
}

pub fn interface(text: &str) -> Result<String, ArgError> {
    // As the kernel's dev_valid_name().
    let why = if text.is_empty() {
        "it is empty"
    } else if text.len() >= nix::libc::IFNAMSIZ {
        "it is longer than 15 bytes"
    } else if text == "."
        || text == ".."
        || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
    {
        "no interface can have this name"
    } else {
        return Ok(text.to_owned());
    };
    Err(ArgError::Interface { why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_target_parses_back(address: IpAddr, port in proptest::option::of(1..=u16::MAX)) {
            let wanted = Target { address, port };
            prop_assert_eq!(target(&wanted.to_string()), Ok(wanted));
        }

        #[test]
        fn no_text_panics(text in "\\PC*|[0-9a-f:.%/\\[\\]-]{0,40}") {
            if let Ok(shown) = target(&text) {
                prop_assert_eq!(target(&shown.to_string()), Ok(shown));
            }
            if let Ok(shown) = prefix(&text) {
                prop_assert_eq!(prefix(&shown.to_string()), Ok(shown));
            }
            let _ = (port(&text), weight(&text), interface(&text), service(&text), backend(&text));
        }

        #[test]
        fn a_prefix_parses_back(address: IpAddr, length in 0_u8..=128) {
            if let Ok(net) = IpNet::new(address, length) {
                prop_assert_eq!(prefix(&net.trunc().to_string()), Ok(net.trunc()));
                prop_assert_eq!(prefix(&net.to_string()).is_ok(), net == net.trunc());
            }
        }
    }

    #[test]
    fn targets() {
        let ok = |text: &str, address: &str, port| {
            assert_eq!(target(text), Ok(Target { address: address.parse().unwrap(), port }), "{text}");
        };
        ok("10.0.0.14", "10.0.0.14", None);
        ok("10.0.0.14:8443", "10.0.0.14", Some(8443));
        ok("2001:db8::14", "2001:db8::14", None);
        ok("2001:db8::14:8443", "2001:db8::14:8443", None);
        ok("[2001:db8::14]", "2001:db8::14", None);
        ok("[2001:db8::14]:1", "2001:db8::14", Some(1));
        for wrong in [
            "",
            ":",
            "web4",
            "web4:80",
            "10.0.0.14:",
            "10.0.0.14:0",
            "10.0.0.14:+80",
            "10.0.0.14:65536",
            "10.0.0.256",
            "10.0.0.14:80:80",
            "[10.0.0.14]:80",
            "[2001:db8::14",
            "[2001:db8::14]80",
            "[2001:db8::14]:",
            "[::1]:0",
            "fe80::1%eth0",
            "[fe80::1%2]:80",
            " 10.0.0.14",
            "10.0.0.0/24",
        ] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn errors_say_what_was_expected() {
        assert_eq!(weight("70000").unwrap_err().to_string(), "expected a weight from 0 to 65535");
        assert!(prefix("10.0.0.1/24").unwrap_err().to_string().contains("did you mean 10.0.0.0/24?"));
        assert!(interface("eth0/1").unwrap_err().to_string().contains("no interface"));
        assert!(interface("averyveryverylongname").unwrap_err().to_string().contains("15 bytes"));
    }
}
