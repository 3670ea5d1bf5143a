//! What the peers say to each other, once it is decrypted: a kind in one octet, then what belongs to it. Pure.
//!
//! Frames of others' making are carried in parts, since a record of Noise has at most 65,535 bytes. Records of a kind
//! that this version does not know are passed over: the peer may be of the next version.

use crate::model::VrrpName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest frame, in bytes.
pub const MAX_FRAME: usize = 65_536;
/// Longest part of a frame in one record, in bytes.
pub const MAX_PART: usize = 32_768;
/// Longest record in plain text: a kind and a part.
pub const MAX_RECORD: usize = MAX_PART + 1;
/// The versions of the protocol that this program speaks. One that speaks 1 and 2 understands it.
pub const VERSIONS: (u16, u16) = (1, 1);
/// Longest name of a node, in bytes.
const MAX_NODE: usize = 253;
/// Longest text of a farewell, in bytes.
const MAX_CAUSE: usize = 256;

/// Why a record is none of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("an empty record")]
    Empty,
    #[error("a record of kind {0} is {1}")]
    Content(u8, &'static str),
}

/// The first word of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest version of the protocol that the node speaks.
    pub versions: (u16, u16),
    /// The name of the node.
    pub node: String,
    /// Differs between two starts of its daemon.
    pub boot: String,
    /// The version of its program.
    pub software: String,
    pub beat: BeatTerms,
}

/// How the node's heartbeats are to be known, and how the peer's find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeatTerms {
    /// In each heartbeat that is sent to this node.
    pub id: u64,
    /// Key of their authentication, 32 bytes in base64. It travels encrypted only.
    pub key: String,
    /// The UDP port of this node for them; 0: it wants none.
    pub port: u16,
    /// How often this node sends its own, in microseconds; 0: never.
    pub interval_us: u32,
}

/// What a node tells of itself, again whenever it changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Hash over its services, equal on both nodes where they are configured alike.
    pub services: String,
    /// Its virtual routers by name.
    #[serde(default)]
    pub instances: BTreeMap<VrrpName, InstanceStatus>,
}

/// A virtual router of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// `init`, `backup`, `held`, `master` or `fault`.
    pub state: String,
    /// In force.
    pub priority: u8,
    /// It lacks its peer's state, and takes nothing over from a living master.
    #[serde(default)]
    pub gated: bool,
    /// The node's own addresses on the router's interface, where heartbeats find it beside the link.
    #[serde(default)]
    pub own: Vec<std::net::IpAddr>,
}

/// About the master's role of one virtual router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The master to a successor: be master now; what was sent before is all that I have.
    TakeOver,
    /// The successor to the old master: I am; leave.
    Taken,
    /// To the master of lower priority: hand over to me.
    Want,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Hello(Hello),
    /// The caller's last word of the handshake: this connection counts.
    Use,
    /// A part of a frame, with more to come.
    Part(Vec<u8>),
    /// The last part of a frame.
    End(Vec<u8>),
    Ping(u64),
    Pong(u64),
    Status(Status),
    Role(Role, VrrpName),
    /// First and second message of a handshake inside the connection, and the word that the sender's side now uses
    /// what came of it.
    Fresh1(Vec<u8>),
    Fresh2(Vec<u8>),
    Fresh3,
    /// To the caller: make new keys, the ones in use are to end.
    AskFresh,
    /// The connection ends, with the reason.
    Close(String),
    /// Of a later version.
    Unknown(u8),
}

impl Message {
    /// As it is encrypted. At most [`MAX_RECORD`] bytes, if parts have at most [`MAX_PART`].
    pub fn encode(&self) -> Vec<u8> {
        let plain = |kind: u8, body: &[u8]| [&[kind], body].concat();
        let json = |kind: u8, body: Result<Vec<u8>, serde_json::Error>| {
            // Structures of numbers, texts and lists: there is nothing in them that JSON cannot say.
            plain(kind, &body.unwrap_or_default())
        };
        match self {
            Self::Hello(hello) => json(0, serde_json::to_vec(hello)),
            Self::Use => plain(1, &[]),
            Self::Part(bytes) => plain(2, bytes),
            Self::End(bytes) => plain(3, bytes),
            Self::Ping(token) => plain(4, &token.to_be_bytes()),
            Self::Pong(token) => plain(5, &token.to_be_bytes()),
            Self::Status(status) => json(6, serde_json::to_vec(status)),
            Self::Role(role, name) => plain(7, &[&[*role as u8], name.as_str().as_bytes()].concat()),
            Self::Fresh1(bytes) => plain(8, bytes),
            Self::Fresh2(bytes) => plain(9, bytes),
            Self::Fresh3 => plain(10, &[]),
            Self::AskFresh => plain(11, &[]),
            Self::Close(cause) => plain(12, &cause.as_bytes()[..cause.floor_char_boundary(MAX_CAUSE)]),
            Self::Unknown(kind) => plain(*kind, &[]),
        }
    }

    pub fn decode(record: &[u8]) -> Result<Self, Malformed> {
        let (&kind, body) = record.split_first().ok_or(Malformed::Empty)?;
        let bad = |what| Malformed::Content(kind, what);
        let bare = |message: Self| if body.is_empty() { Ok(message) } else { Err(bad("too long")) };
        let token = || body.try_into().map(u64::from_be_bytes).map_err(|_| bad("not of eight octets"));
        match kind {
            0 => {
                let hello: Hello = serde_json::from_slice(body).map_err(|_| bad("not a greeting"))?;
                hello.check().map_err(bad)?;
                Ok(Self::Hello(hello))
            }
            1 => bare(Self::Use),
            2 if body.is_empty() => Err(bad("an empty part with more to come")),
            2 => Ok(Self::Part(body.to_vec())),
            3 => Ok(Self::End(body.to_vec())),
            4 => token().map(Self::Ping),
            5 => token().map(Self::Pong),
            6 => serde_json::from_slice(body).map(Self::Status).map_err(|_| bad("not a status")),
            7 => {
                let (role, name) = body.split_first().ok_or_else(|| bad("too short"))?;
                let role = [Role::TakeOver, Role::Taken, Role::Want].into_iter().find(|r| *r as u8 == *role);
                let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                match (role, name) {
                    (Some(role), Some(name)) => Ok(Self::Role(role, name)),
                    (None, _) => Ok(Self::Unknown(kind)),
                    (_, None) => Err(bad("without the name of an instance")),
                }
            }
            8 => Ok(Self::Fresh1(body.to_vec())),
            9 => Ok(Self::Fresh2(body.to_vec())),
            10 => bare(Self::Fresh3),
            11 => bare(Self::AskFresh),
            12 if body.len() > MAX_CAUSE => Err(bad("too long")),
            12 => {
                // What is no UTF-8 becomes longer.
                let mut cause = String::from_utf8_lossy(body).into_owned();
                cause.truncate(cause.floor_char_boundary(MAX_CAUSE));
                Ok(Self::Close(cause))
            }
            _ => Ok(Self::Unknown(kind)),
        }
    }
}

impl Hello {
    fn check(&self) -> Result<(), &'static str> {
        let printable =
            |text: &str, most| (1..=most).contains(&text.len()) && !text.chars().any(char::is_control);
        if !printable(&self.node, MAX_NODE) {
            return Err("without the name of a node");
        }
        if !printable(&self.boot, 64) || !printable(&self.software, 64) || self.beat.key.len() > 64 {
            return Err("not a greeting");
        }
        Ok(())
    }

    /// The version that both speak, the highest there is.
    pub fn common(&self, other: (u16, u16)) -> Option<u16> {
        let version = self.versions.1.min(other.1);
        (version >= self.versions.0.max(other.0)).then_some(version)
    }
}

/// A frame in its parts.
pub fn parts(frame: Vec<u8>) -> impl Iterator<Item = Message> {
    let length = frame.len();
    let count = length.div_ceil(MAX_PART).max(1);
    (0..count).map(move |at| {
        let part = frame[at * MAX_PART..length.min((at + 1) * MAX_PART)].to_vec();
        if at + 1 == count { Message::End(part) } else { Message::Part(part) }
    })
}

/// Parts that become a frame.
#[derive(Debug, Default)]
pub struct Assembly(Vec<u8>);

impl Assembly {
    /// The frame, with its last part. `None`: it would be longer than [`MAX_FRAME`].
    pub fn end(&mut self, part: &[u8]) -> Option<Vec<u8>> {
        self.add(part)?;
        Some(std::mem::take(&mut self.0))
    }

    pub fn add(&mut self, part: &[u8]) -> Option<()> {
        (self.0.len() + part.len() <= MAX_FRAME).then(|| self.0.extend_from_slice(part))
    }
}

#[cfg(test)]
mod tests;
