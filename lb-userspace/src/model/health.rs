//! How the backends of a service are checked.

use super::Health;
use std::{fmt, path::PathBuf, time::Duration};

/// A service's health check, all defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSpec {
    pub check: HealthCheck,
    pub via: Via,
    /// From the start of one check to the start of the next.
    pub interval: Duration,
    /// A check that takes longer has failed; at most `interval`.
    pub timeout: Duration,
    /// Passed checks in a row that bring a backend up, at least 1.
    pub rise: u32,
    /// Failed checks in a row that take it down, at least 1.
    pub fall: u32,
    /// Port to check where that is not the backend's.
    pub port: Option<u16>,
    /// What a new backend is before its checks have said enough: `Unknown`, which counts as up, or `Down`.
    pub initial: Health,
    /// Replaces `interval`, which is not shorter, while the results contradict the health.
    pub fast_interval: Option<Duration>,
    /// A backend that stays down is checked less and less often, down to this interval, which is not shorter than
    /// `interval`.
    pub backoff: Option<Duration>,
}

/// Where a check goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// To the backend's own address, as the kernel sends it.
    #[default]
    Backend,
    /// To each of the service's addresses on that backend, by the way and in the wrapping of the service's packets.
    Vip,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// Nothing: the backend is up.
    None,
    /// Opens a TCP connection.
    Tcp,
    /// One HTTP/1.1 request, inside TLS where that is set.
    Http(HttpCheck),
    /// One UDP datagram.
    Udp(UdpCheck),
    /// One ICMP echo request.
    Icmp,
    /// One DNS query over UDP.
    Dns(DnsCheck),
    /// One call of `grpc.health.v1.Health/Check`.
    Grpc(GrpcCheck),
    /// One login to a MySQL or MariaDB server.
    Mysql(MysqlCheck),
    /// One `PING` of a Redis server.
    Redis(RedisCheck),
    /// A command of this host.
    Exec(ExecCheck),
}

impl HealthCheck {
    /// Whether it may find out that a backend only stands in for others.
    #[must_use]
    pub fn finds_stand_ins(&self) -> bool {
        match self {
            Self::Mysql(MysqlCheck { role, .. }) | Self::Redis(RedisCheck { role, .. }) => {
                *role == Role::PreferReplica
            }
            _ => false,
        }
    }
}

/// Parameters of a UDP check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpCheck {
    /// The datagram's payload.
    pub send: Vec<u8>,
    /// Bytes that the answer holds; where absent, silence passes too.
    pub expect: Option<Vec<u8>>,
}

/// Parameters of a DNS check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsCheck {
    /// The name asked for.
    pub name: String,
    /// The record type asked for, in capital letters.
    pub record: String,
}

/// Parameters of a gRPC check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcCheck {
    /// Whose health is asked for; empty for the server's as a whole.
    pub service: String,
    /// Inside TLS.
    pub tls: Option<TlsSpec>,
}

/// Parameters of a MySQL check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MysqlCheck {
    /// Who logs in; where absent, being told "access denied" passes.
    pub user: Option<String>,
    /// Holds the password; where absent, there is none.
    pub password_file: Option<PathBuf>,
    pub role: Role,
}

/// Parameters of a Redis check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisCheck {
    /// Who logs in with the password, where that is not the default user.
    pub user: Option<String>,
    /// Holds the password; where absent, nobody logs in.
    pub password_file: Option<PathBuf>,
    pub role: Role,
}

/// What a database server has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Any,
    /// Takes writes.
    Primary,
    /// Does not.
    Replica,
    /// A replica; the primary stands in where there is none, as a backup does.
    PreferReplica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Any => "any",
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::PreferReplica => "prefer-replica",
        })
    }
}

/// Parameters of a command check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCheck {
    /// Absolute path and arguments.
    pub command: Vec<String>,
    /// Who runs it.
    pub user: String,
}

/// Parameters of an HTTP check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// `GET`, `HEAD`, `OPTIONS` or `POST`, without a body.
    pub method: String,
    /// Absolute path, with query.
    pub path: String,
    /// `Host` header; the backend's address where absent.
    pub host: Option<String>,
    /// Further header fields, names and values, in this order.
    pub headers: Vec<(String, String)>,
    /// Status codes that pass.
    pub status: Vec<StatusRange>,
    /// A regular expression that the body holds.
    pub body: Option<String>,
    /// HTTPS.
    pub tls: Option<TlsSpec>,
}

impl Default for HttpCheck {
    /// `GET /` is answered with a 2xx.
    fn default() -> Self {
        Self {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            headers: Vec::new(),
            status: vec![StatusRange { lo: 200, hi: 299 }],
            body: None,
            tls: None,
        }
    }
}

/// How a check speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSpec {
    /// The name asked for and verified; where absent, the check's host or the backend's address.
    pub server_name: Option<String>,
    /// The certificate has to be valid and signed by a known authority.
    pub verify: bool,
    /// Authorities in PEM; the system's where absent.
    pub ca_file: Option<PathBuf>,
}

impl Default for TlsSpec {
    fn default() -> Self {
        Self { server_name: None, verify: true, ca_file: None }
    }
}

/// Inclusive range of HTTP status codes, 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    pub lo: u16,
    pub hi: u16,
}

impl Default for HealthSpec {
    /// TCP connect every second, 500 ms to answer, up after 2, down after 3.
    fn default() -> Self {
        Self {
            check: HealthCheck::Tcp,
            via: Via::Backend,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
            port: None,
            initial: Health::Unknown,
            fast_interval: None,
            backoff: None,
        }
    }
}
