//! Who asks, and what they may do.

use super::extract::Failure;
use http::{Method, StatusCode};
use std::sync::Arc;

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Look, and change nothing.
    Reader,
    /// Nothing.
    Nobody,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub who: Who,
    pub role: Role,
}

/// How the other end is known.
#[derive(Debug, Clone)]
pub(super) enum Who {
    /// The user at the time of `connect`, as the kernel says (SO_PEERCRED).
    User(Option<u32>),
    /// The first name in the client's certificate, and its address.
    Certificate(Arc<str>),
}

/// Paths that only look at something, but at a price: another program is attached, which costs more per packet.
const COSTLY: [&str; 1] = ["/v1/trace"];

impl Peer {
    /// Whether the request is one that this client may make.
    pub fn may(&self, method: &Method, path: &str) -> Result<(), Failure> {
        let looks =
            matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) && !COSTLY.contains(&path);
        let error = match (self.role, &self.who) {
            (Role::Admin, _) => return Ok(()),
            (Role::Reader, _) if looks => return Ok(()),
            (Role::Reader, Who::User(_)) => {
                "this is the read-only control socket: it changes nothing and traces nothing; use lbd.sock beside it, \
                 as root or as a member of control.admin_group"
                    .to_owned()
            }
            (Role::Reader, Who::Certificate(name)) => format!(
                "certificate '{name}' may only look (control.readers): it changes nothing and traces nothing; use a \
                 certificate that control.admins names"
            ),
            (Role::Nobody, Who::Certificate(name)) => {
                format!("certificate '{name}' is neither in control.admins nor in control.readers")
            }
            (Role::Nobody, Who::User(_)) => "nobody may use this socket".to_owned(),
        };
        Err(Failure::state(StatusCode::FORBIDDEN, error))
    }
}
