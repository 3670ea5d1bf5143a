//! The DNS check: one query; it passes if the answer says NOERROR and has a record of the type asked for.
//! RFC 1035; an answer that was cut off (TC) passes: the server is there and knows.

use super::{
    Deadline, Peer, ProbeFailure,
    udp::{ask, connect},
};
use crate::model::DnsCheck;
use hickory_proto::{
    op::{Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use std::str::FromStr as _;

/// A query, ready to be sent.
#[derive(Debug, Clone)]
pub struct DnsProbe {
    name: Name,
    record: RecordType,
}

impl DnsProbe {
    /// Prepares the query.
    pub fn new(check: &DnsCheck) -> Result<Self, ProbeFailure> {
        let bad = |what, found: &str| ProbeFailure::BadRequest { what, found: found.to_owned() };
        let mut name = Name::from_str(&check.name).map_err(|_| bad("name", &check.name))?;
        name.set_fqdn(true);
        let record = RecordType::from_str(&check.record).map_err(|_| bad("record", &check.record))?;
        Ok(Self { name, record })
    }
}

/// Passes if the server at `address` answers the query.
pub async fn probe(peer: impl Into<Peer>, params: &DnsProbe, deadline: Deadline) -> Result<(), ProbeFailure> {
    let socket = connect(peer.into()).await?;
    let id = identifier();
    let mut metadata = Metadata::new(id, MessageType::Query, OpCode::Query);
    metadata.recursion_desired = true;
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata = metadata;
    query.add_query(Query::query(params.name.clone(), params.record));
    let query = query.to_vec().map_err(|_| ProbeFailure::Internal)?;
    ask(&socket, &query, deadline, |answer| {
        let Ok(answer) = Message::from_vec(answer) else { return Some(Err(ProbeFailure::NotDns)) };
        if answer.metadata.id != id || answer.metadata.message_type != MessageType::Response {
            return None;
        }
        Some(match answer.metadata.response_code {
            ResponseCode::NoError if answer.metadata.truncation => Ok(()),
            ResponseCode::NoError if answer.answers.iter().any(|r| r.record_type() == params.record) => {
                Ok(())
            }
            ResponseCode::NoError => Err(ProbeFailure::NoRecord),
            code => Err(ProbeFailure::DnsError { code: code.to_str() }),
        })
    })
    .await
}

/// Not guessable by counting, so that a late answer to an earlier query is not taken for this one's.
fn identifier() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0_u8) as u16
}
