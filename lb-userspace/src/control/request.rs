//! What the control API takes: bodies and queries. Unknown fields are errors, so that a misspelt one is
//! never silently ignored.

use crate::model::{Admin, BackendName, Protocol, ServiceName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A request body, with a sample for error messages.
pub trait Example {
    /// A valid body.
    const EXAMPLE: &'static str;
    /// How many times larger than other bodies it may be.
    const ROOM: usize = 1;
}

/// `POST /v1/services/{service}/backends`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBackend {
    pub name: BackendName,
    pub address: IpAddr,
    /// The service's port where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The service's default weight where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// It takes new flows only while the others are no quorum.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
}

/// `PUT /v1/services/{service}/backends/{backend}/admin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetAdmin {
    pub admin: Admin,
    /// Of a drain: seconds until what is left is ended (the backend is disabled).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_after_seconds: Option<u64>,
}

/// `PUT /v1/services/{service}/backends/{backend}/weight`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    pub weight: u16,
    /// Seconds in which its share gets there; at once where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_seconds: Option<u64>,
}

/// `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// Only say what would change.
    #[serde(default)]
    pub plan: bool,
}

/// `POST /v1/reset`: everything where nothing is named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// Only the changes of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Only those of this backend of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendName>,
}

/// `POST /v1/detach`: nothing to say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// `GET /v1/explain`. Texts, so that the server can say which of them it does not understand and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// `tcp`, `udp` or `quic`.
    #[schemars(with = "Protocol")]
    pub protocol: String,
    /// `192.0.2.1:1024` or `[2001:db8::1]:1024`.
    pub source: String,
    pub destination: String,
    /// TCP flags: `syn`, `ack`, `syn,ack`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Bytes of the IP packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u16>,
}

impl Example for NewBackend {
    const EXAMPLE: &'static str = r#"{"name": "web4", "address": "10.0.0.14", "port": 8443, "weight": 100}"#;
}
impl Example for SetAdmin {
    const EXAMPLE: &'static str = r#"{"admin": "draining"} (or "enabled", "disabled")"#;
}
impl Example for SetWeight {
    const EXAMPLE: &'static str = r#"{"weight": 50}"#;
}
impl Example for Reload {
    const EXAMPLE: &'static str = r#"{"plan": true}, or an empty body"#;
}
impl Example for Reset {
    const EXAMPLE: &'static str =
        r#"{"service": "www", "backend": "web1"}, {"service": "www"}, or an empty body"#;
}
impl Example for Nothing {
    const EXAMPLE: &'static str = "an empty body";
}

/// Why the packet asked about by `explain` is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    #[error(
        "'{0}' is no TCP flag; expected fin, syn, rst, psh, ack, urg or none, or several with commas between"
    )]
    Flags(String),
    #[error("'{0}' is not a protocol; expected tcp, udp or quic")]
    Protocol(String),
    #[error("'{found}' is not an address with a port: {why}; expected 192.0.2.1:1024 or [2001:db8::1]:1024")]
    Endpoint { found: String, why: &'static str },
    #[error(
        "source {from} and destination {to} are of different families; a packet has two IPv4 or two IPv6 addresses"
    )]
    Families { from: IpAddr, to: IpAddr },
}

/// Reads TCP flags, separated by commas.
pub fn parse_flags(text: &str) -> Result<u8, FlowError> {
    text.split([',', '|']).try_fold(0, |flags, name| match name {
        "fin" => Ok(flags | 1),
        "syn" => Ok(flags | 2),
        "rst" => Ok(flags | 4),
        "psh" => Ok(flags | 8),
        "ack" => Ok(flags | 16),
        "urg" => Ok(flags | 32),
        "none" => Ok(flags),
        _ => Err(FlowError::Flags(shorten(name))),
    })
}

/// Reads the protocol of `explain`.
pub fn parse_protocol(text: &str) -> Result<Protocol, FlowError> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "quic" => Ok(Protocol::Quic),
        _ => Err(FlowError::Protocol(shorten(text))),
    }
}

/// Reads an address with a port.
pub fn parse_endpoint(text: &str) -> Result<SocketAddr, FlowError> {
    let error = |why| FlowError::Endpoint { found: shorten(text), why };
    match text.parse::<SocketAddr>() {
        Ok(SocketAddr::V6(v6)) if v6.scope_id() != 0 || v6.flowinfo() != 0 || text.contains('%') => {
            Err(error("a zone ('%...') has no place in a packet"))
        }
        Ok(endpoint) => Ok(endpoint),
        Err(_) if text.parse::<std::net::Ipv6Addr>().is_ok() => {
            Err(error("an IPv6 address with a port is written in brackets"))
        }
        Err(_) if text.parse::<IpAddr>().is_ok() => Err(error("the port is missing")),
        Err(_) => Err(error("it is neither an IPv4 nor a bracketed IPv6 address followed by ':' and a port")),
    }
}

/// Both addresses of a packet are of one family.
pub fn same_family(source: SocketAddr, destination: SocketAddr) -> Result<(), FlowError> {
    if source.is_ipv4() == destination.is_ipv4() {
        Ok(())
    } else {
        Err(FlowError::Families { from: source.ip(), to: destination.ip() })
    }
}

/// What was given, cut to a printable length and without control characters.
pub fn shorten(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_endpoint_parses_back(address: IpAddr, port: u16) {
            let endpoint = SocketAddr::new(address, port);
            prop_assert_eq!(parse_endpoint(&endpoint.to_string()), Ok(endpoint));
        }

        #[test]
        fn no_text_panics(text in "\\PC*|[0-9a-f:.%\\[\\]]{0,40}") {
            let _ = parse_protocol(&text);
            if let Ok(endpoint) = parse_endpoint(&text) {
                prop_assert_eq!(parse_endpoint(&endpoint.to_string()), Ok(endpoint));
            }
        }

        #[test]
        fn families_must_agree(source: SocketAddr, destination: SocketAddr) {
            prop_assert_eq!(
                same_family(source, destination).is_ok(),
                source.is_ipv4() == destination.is_ipv4()
            );
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let why = |text: &str| parse_endpoint(text).unwrap_err().to_string();
        assert!(why("192.0.2.1").contains("the port is missing"));
        assert!(why("2001:db8::1").contains("in brackets"));
        assert!(why("[fe80::1%2]:80").contains("zone"));
        assert!(why("192.0.2.1:70000").contains("'192.0.2.1:70000' is not an address with a port"));
        assert!(why("").contains("expected 192.0.2.1:1024"));
        assert_eq!(
            parse_protocol("sctp").unwrap_err().to_string(),
            "'sctp' is not a protocol; expected tcp, udp or quic"
        );
    }
}
