//! Connection IDs that name a server.

use super::{BackendName, BackendSpec};
use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

/// Length of server ids where none is given: an IPv4 address.
pub const DEFAULT_SERVER_ID_LENGTH: u8 = 4;
/// Longest server id, in bytes.
pub const MAX_SERVER_ID_LENGTH: u8 = lb_common::core::quic::MAX_ID_LEN as u8;
/// Largest config id; 7 means "unroutable".
pub const MAX_CONFIG_ID: u8 = 6;

/// How the servers of a service form their connection IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicSpec {
    /// Bytes of a server id.
    pub server_id_length: u8,
    /// The three upper bits of a connection ID's first octet.
    pub config_id: u8,
    /// Of the backends that the configuration has; [`QuicSpec::server_id`] knows those of the others.
    pub server_ids: BTreeMap<BackendName, ServerId>,
}

impl QuicSpec {
    /// The server id of a backend: the configuration's, else one made from its address.
    pub fn server_id(&self, backend: &BackendSpec) -> ServerId {
        let configured = self.server_ids.get(&backend.name).cloned();
        configured.unwrap_or_else(|| ServerId::of_address(backend.address, self.server_id_length))
    }
}

/// What stands for a server in its connection IDs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(Vec<u8>);

impl ServerId {
    /// The last bytes of the address; an IPv4 address has zeros in front of it. The rule is part of the contract
    /// with servers, which apply it to their own address.
    pub fn of_address(address: IpAddr, length: u8) -> Self {
        let bytes = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let bytes = bytes.to_be_bytes();
        Self(bytes[bytes.len() - usize::from(length.clamp(1, MAX_SERVER_ID_LENGTH))..].to_vec())
    }

    /// Its bytes, 1 to 15.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As the program looks it up.
    pub fn padded(&self) -> [u8; 16] {
        let mut padded = [0; 16];
        padded[..self.0.len()].copy_from_slice(&self.0);
        padded
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Two hexadecimal digits for each of 1 to 15 bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a server id has 2 hexadecimal digits for each of its bytes, of which there are 1 to 15")]
pub struct ServerIdError;

impl FromStr for ServerId {
    type Err = ServerIdError;

    fn from_str(text: &str) -> Result<Self, ServerIdError> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let digits: Option<Vec<u8>> = text.bytes().map(digit).collect();
        match digits {
            Some(digits)
                if digits.len().is_multiple_of(2)
                    && (1..=usize::from(MAX_SERVER_ID_LENGTH)).contains(&(digits.len() / 2)) =>
            {
                Ok(Self(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
            }
            _ => Err(ServerIdError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_id_is_read_and_written() {
        for text in ["00", "0a01", "000102030405060708090a0b0c0d0e"] {
            assert_eq!(text.parse::<ServerId>().unwrap().to_string(), text);
        }
        assert_eq!("0A0B".parse::<ServerId>().unwrap().bytes(), [10, 11]);
        for text in ["", "0", "0x0a", "0g", "+1", "000102030405060708090a0b0c0d0e0f", "ä1"] {
            assert_eq!(text.parse::<ServerId>(), Err(ServerIdError), "{text}");
        }
    }

    #[test]
    fn an_address_makes_a_server_id() {
        let of = |address: &str, length| ServerId::of_address(address.parse().unwrap(), length).to_string();
        assert_eq!(of("10.1.2.3", 4), "0a010203");
        assert_eq!(of("10.1.2.3", 2), "0203");
        assert_eq!(of("10.1.2.3", 6), "00000a010203");
        assert_eq!(of("2001:db8::a:b", 4), "000a000b");
        assert_eq!(of("2001:db8::a:b", 15), "010db80000000000000000000a000b");
    }
}
