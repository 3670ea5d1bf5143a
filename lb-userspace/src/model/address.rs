//! Which addresses a service or a backend can have.

use std::net::IpAddr;

/// Why an address is none that one host can have and others can reach, if so.
pub fn not_unicast(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        // RFC 1122 section 3.2.1.3: "this host on this network", a source address only.
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an unspecified address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address in IPv6 notation"),
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ => None,
    }
}

/// Why a backend cannot have an address, if so: the route to it is looked up without an interface.
pub fn not_for_backend(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("a link-local address, not known without its interface")
        }
        _ => not_unicast(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused() {
        let backend = |text: &str| not_for_backend(text.parse().unwrap());
        for good in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1", "240.0.0.1"] {
            assert_eq!(backend(good), None, "{good}");
        }
        for bad in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert!(backend(bad).is_some(), "{bad}");
        }
        for bad in ["::", "::1", "ff02::1", "::ffff:10.0.0.1", "fe80::1"] {
            assert!(backend(bad).is_some(), "{bad}");
        }
        assert_eq!(not_unicast("fe80::1".parse().unwrap()), None);
    }
}
