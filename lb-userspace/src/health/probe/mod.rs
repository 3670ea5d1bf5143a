//! What a check does on the wire, one file per type. A new type is a file with its `probe` function, a
//! variant of [`Probe`], and a line in each `match` below.
//!
//! A probe gives its answer by its [`Deadline`], whatever the server does, and holds nothing but its
//! own future: dropping that closes the socket. It tells apart what the backend did wrong from what
//! could not be tried for want of something on this host ([`ProbeFailure::is_local`]), which must not
//! take backends down.

pub mod dns;
pub mod exec;
pub mod grpc;
pub mod http;
pub mod icmp;
pub mod mysql;
pub mod redis;
mod secret;
mod shared;
pub mod tcp;
pub mod tls;
pub mod udp;

use crate::model::{ExecCheck, HealthCheck, MysqlCheck, RedisCheck, Role, StatusRange, UdpCheck};
use nix::errno::Errno;
use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::{TcpSocket, TcpStream};

/// Whom a check asks, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    /// The address and port (of ICMP: the identifier) that the check comes from; the kernel's choice where absent.
    pub from: Option<SocketAddr>,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self { address, from: None }
    }
}

/// A check made ready for one backend, so that each run has little left to do.
#[derive(Debug, Clone)]
pub enum Probe {
    Tcp,
    Http(Box<http::HttpProbe>),
    Udp(Box<UdpCheck>),
    Icmp,
    Dns(Box<dns::DnsProbe>),
    Grpc(Box<grpc::GrpcProbe>),
    Mysql(Box<MysqlCheck>),
    Redis(Box<RedisCheck>),
    Exec(Box<ExecCheck>),
}

impl Probe {
    /// Prepares the check of the backend at `address` (with the port that is checked); `None` where
    /// there is nothing to check.
    pub fn prepare(check: &HealthCheck, address: SocketAddr) -> Result<Option<Self>, ProbeFailure> {
        Ok(match check {
            HealthCheck::None => None,
            HealthCheck::Tcp => Some(Self::Tcp),
            HealthCheck::Http(check) => Some(Self::Http(Box::new(http::HttpProbe::new(check, address)?))),
            HealthCheck::Udp(check) => Some(Self::Udp(Box::new(check.clone()))),
            HealthCheck::Icmp => Some(Self::Icmp),
            HealthCheck::Dns(check) => Some(Self::Dns(Box::new(dns::DnsProbe::new(check)?))),
            HealthCheck::Grpc(check) => Some(Self::Grpc(Box::new(grpc::GrpcProbe::new(check, address)?))),
            HealthCheck::Mysql(check) => Some(Self::Mysql(Box::new(check.clone()))),
            HealthCheck::Redis(check) => Some(Self::Redis(Box::new(check.clone()))),
            HealthCheck::Exec(check) => Some(Self::Exec(Box::new(check.clone()))),
        })
    }

    /// The type as the configuration and the metrics call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(params) => params.kind(),
            Self::Udp(_) => "udp",
            Self::Icmp => "icmp",
            Self::Dns(_) => "dns",
            Self::Grpc(_) => "grpc",
            Self::Mysql(_) => "mysql",
            Self::Redis(_) => "redis",
            Self::Exec(_) => "exec",
        }
    }

    /// Runs the check once.
    pub async fn run(&self, peer: impl Into<Peer>, deadline: Deadline) -> Result<(), ProbeFailure> {
        let peer = peer.into();
        // What the others keep while they wait would be copied about for the lightest, too.
        match self {
            Self::Tcp => tcp::probe(peer, deadline).await,
            Self::Http(params) => Box::pin(http::probe(peer, params, deadline)).await,
            Self::Udp(check) => Box::pin(udp::probe(peer, check, deadline)).await,
            Self::Icmp => Box::pin(icmp::probe(peer, deadline)).await,
            Self::Dns(params) => Box::pin(dns::probe(peer, params, deadline)).await,
            Self::Grpc(params) => Box::pin(grpc::probe(peer, params, deadline)).await,
            Self::Mysql(check) => Box::pin(mysql::probe(peer, check, deadline)).await,
            Self::Redis(check) => Box::pin(redis::probe(peer, check, deadline)).await,
            Self::Exec(check) => Box::pin(exec::probe(peer.address, check, deadline)).await,
        }
    }
}

/// What it means that a database server is what it is.
fn judge_role(found: Role, expected: Role) -> Result<(), ProbeFailure> {
    match (expected, found) {
        (Role::PreferReplica, Role::Primary) => Err(ProbeFailure::StandsIn { found }),
        (Role::PreferReplica, Role::Replica) => Ok(()),
        _ if found == expected => Ok(()),
        _ => Err(ProbeFailure::Role { found, expected }),
    }
}

/// When a check has failed for want of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: tokio::time::Instant,
    timeout: Duration,
}

impl Deadline {
    /// `timeout` from now.
    pub fn after(timeout: Duration) -> Self {
        // A timeout beyond the clock's end is a day: no check waits that long.
        let now = Instant::now();
        let at = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(24 * 3600));
        Self { at: at.into(), timeout }
    }

    /// Runs `step`; it fails with the reason of `stage` when the deadline comes first.
    pub async fn limit<T>(
        self,
        stage: Stage,
        step: impl Future<Output = Result<T, ProbeFailure>>,
    ) -> Result<T, ProbeFailure> {
        match tokio::time::timeout_at(self.at, step).await {
            Ok(result) => result,
            Err(_) => Err(ProbeFailure::Timeout { stage, timeout: self.timeout }),
        }
    }
}

/// How far a check had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The connection was being opened.
    Connect,
    /// The connection was open, the TLS handshake was not complete.
    Tls,
    /// The request was on its way, the answer had not come.
    Answer,
    /// The answer had begun.
    Body,
}

/// Why a check failed, in the operator's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFailure {
    /// The backend's host is there, nothing listens on the port.
    #[error("connection refused")]
    Refused,
    /// No way to the backend, or something on the way says no.
    #[error("backend cannot be reached: {}", .0.desc())]
    Unreachable(Errno),
    /// The deadline came first.
    #[error("{} within {timeout:?}", match stage {
        Stage::Connect => "no connection",
        Stage::Tls => "connected, but no TLS handshake",
        Stage::Answer => "connected, but no answer",
        Stage::Body => "answer not complete",
    })]
    Timeout { stage: Stage, timeout: Duration },
    /// The backend hung up.
    #[error("{}", match stage {
        Stage::Connect => "connection reset while it was opened",
        Stage::Tls => "connection closed during the TLS handshake",
        Stage::Answer => "connection closed without an answer",
        Stage::Body => "connection closed before the answer was complete",
    })]
    Closed { stage: Stage },
    /// The connection broke in another way.
    #[error("connection failed: {}", .0.desc())]
    Broken(Errno),
    /// An HTTP answer with the wrong status.
    #[error("status {found}, expected {expected}")]
    Status { found: u16, expected: StatusSet },
    /// Something answered, but does not speak HTTP/1.
    #[error("not an HTTP answer")]
    NotHttp,
    /// More header than any sane answer has.
    #[error("HTTP answer with more than {} KiB or {} lines of header", http::MAX_HEAD / 1024, http::MAX_HEADERS)]
    HeadTooLarge,
    /// The body of an HTTP answer is not the expected one.
    #[error("body does not match: {found}")]
    Body { found: String },
    /// Something answered, but does not speak TLS.
    #[error("not a TLS answer")]
    NotTls,
    /// The certificate is not good for the server.
    #[error("the server's certificate {what}")]
    Certificate { what: String },
    /// The server ended the handshake.
    #[error("the server refuses TLS: alert {alert} ({code})")]
    TlsRefused { alert: String, code: u8 },
    /// The TLS connection failed in another way.
    #[error("TLS failed: {what}")]
    Tls { what: String },
    /// Something answered, but in another language.
    #[error("not a {what} answer")]
    NotProtocol { what: &'static str },
    /// The server answers with an error.
    #[error("{what} error: {said}")]
    Server { what: &'static str, said: String },
    /// The server is there, the service is not.
    #[error("gRPC service is {state}")]
    NotServing { state: &'static str },
    /// The server is well, but not the one that is looked for.
    #[error("server is a {found}, expected a {expected}")]
    Role { found: Role, expected: Role },
    /// No failure: the check passed, and the backend is one that stands in for others.
    #[error("server is a {found}: it stands in where there is no replica")]
    StandsIn { found: Role },
    /// An answer to a datagram that is not the expected one.
    #[error("answer {found} does not hold what is expected")]
    Unexpected { found: String },
    /// Something answered, but does not speak DNS.
    #[error("not a DNS answer")]
    NotDns,
    /// The server knows the name, but no record of the type.
    #[error("DNS answer without a record of the type asked for")]
    NoRecord,
    /// The server cannot answer.
    #[error("DNS answer: {code}")]
    DnsError { code: &'static str },
    /// The command says no.
    #[error("command ended with status {code}")]
    Exit { code: i32 },
    /// The command was killed.
    #[error("command was ended by signal {signal}")]
    Killed { signal: i32 },
    /// The command took too long, and was ended.
    #[error("command did not end within {timeout:?}")]
    CommandTimeout { timeout: Duration },
    /// The command could not be started: the backend is not to blame.
    #[error("check could not run: {what}")]
    CannotRun { what: String },
    /// This host lacks something (descriptors, memory, ports): the backend is not to blame.
    #[error("check could not run on this host: {}", .0.desc())]
    Local(Errno),
    /// One of several addresses that were checked on the backend.
    #[error("{address} on the backend: {failure}")]
    OnBackend { address: SocketAddr, failure: Box<Self> },
    /// The configuration asks for a request that cannot be sent.
    #[error(
        "check could not run: {what} '{found}' cannot be sent in an HTTP request; correct the service's health settings"
    )]
    BadRequest { what: &'static str, found: String },
    /// The probe itself failed.
    #[error("check could not run: internal error (see the log)")]
    Internal,
}

impl ProbeFailure {
    /// True if the check says nothing about the backend, since it could not be run.
    pub fn is_local(&self) -> bool {
        match self {
            Self::OnBackend { failure, .. } => failure.is_local(),
            Self::Local(_) | Self::BadRequest { .. } | Self::CannotRun { .. } | Self::Internal => true,
            Self::Refused
            | Self::Unreachable(_)
            | Self::Timeout { .. }
            | Self::Closed { .. }
            | Self::Broken(_)
            | Self::Status { .. }
            | Self::NotHttp
            | Self::Body { .. }
            | Self::NotTls
            | Self::Certificate { .. }
            | Self::TlsRefused { .. }
            | Self::Tls { .. }
            | Self::NotProtocol { .. }
            | Self::Server { .. }
            | Self::NotServing { .. }
            | Self::Role { .. }
            | Self::StandsIn { .. }
            | Self::Unexpected { .. }
            | Self::NotDns
            | Self::NoRecord
            | Self::DnsError { .. }
            | Self::Exit { .. }
            | Self::Killed { .. }
            | Self::CommandTimeout { .. }
            | Self::HeadTooLarge => false,
        }
    }

    /// True if the check passed with a backend that stands in for others.
    pub fn stands_in(&self) -> bool {
        match self {
            Self::OnBackend { failure, .. } => failure.stands_in(),
            other => matches!(other, Self::StandsIn { .. }),
        }
    }

    /// Names the reason of an IO error met at `stage`.
    pub fn from_io(error: &io::Error, stage: Stage) -> Self {
        let Some(errno) = error.raw_os_error().map(Errno::from_raw) else {
            return Self::Closed { stage };
        };
        match errno {
            Errno::ECONNREFUSED => Self::Refused,
            Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED | Errno::ENOTCONN => {
                Self::Closed { stage }
            }
            // EPERM and EACCES are a packet filter's answer, on this host or on the way (RFC 1812
            // §5.2.7.1); EINVAL and EADDRNOTAVAIL below are not about the way.
            Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::ENETDOWN
            | Errno::EHOSTDOWN
            | Errno::EPERM
            | Errno::EACCES
            | Errno::ETIMEDOUT => Self::Unreachable(errno),
            Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOBUFS
            | Errno::ENOMEM
            | Errno::EAGAIN
            | Errno::EADDRNOTAVAIL
            | Errno::EADDRINUSE
            | Errno::EAFNOSUPPORT => Self::Local(errno),
            other => Self::Broken(other),
        }
    }
}

/// The status codes a check accepts; shown as `200-299, 304`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSet(Arc<[StatusRange]>);

impl StatusSet {
    /// True if `status` is in one of the ranges.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| (range.lo..=range.hi).contains(&status))
    }
}

impl From<&[StatusRange]> for StatusSet {
    fn from(ranges: &[StatusRange]) -> Self {
        Self(ranges.into())
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, StatusRange { lo, hi }) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            if lo == hi {
                write!(f, "{comma}{lo}")?;
            } else {
                write!(f, "{comma}{lo}-{hi}")?;
            }
        }
        Ok(())
    }
}

/// Opens a connection that will be closed with a RST. Closing it in the ordinary way would leave a
/// socket in TIME_WAIT for a minute on this host or on the backend for every check: 600,000 of them with
/// 10,000 targets a second. By the time it is closed the answer was read, or does not matter.
async fn connect(peer: Peer) -> Result<TcpStream, ProbeFailure> {
    let stream = open(peer).await?;
    stream.set_nodelay(true).map_err(|error| ProbeFailure::from_io(&error, Stage::Connect))?;
    Ok(stream)
}

/// As [`connect`], for a connection that nothing is sent on.
async fn open(peer: Peer) -> Result<TcpStream, ProbeFailure> {
    let failure = |error: io::Error| ProbeFailure::from_io(&error, Stage::Connect);
    let Peer { address, from } = peer;
    let socket =
        if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failure)?;
    socket.set_zero_linger().map_err(failure)?;
    if let Some(from) = from {
        socket.bind(from).map_err(failure)?;
    }
    let stream = socket.connect(address).await.map_err(failure)?;
    // A backend on this very host with a port in the ephemeral range: where nothing listens, the kernel
    // may choose the port itself as source, and TCP's simultaneous open connects the socket to itself
    // (RFC 9293 §3.5).
    if stream.local_addr().map_err(failure)? == address {
        return Err(ProbeFailure::Refused);
    }
    Ok(stream)
}

#[cfg(test)]
mod more_tests;
#[cfg(test)]
mod tests;
