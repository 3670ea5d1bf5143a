//! The gRPC check: `grpc.health.v1.Health/Check`; it passes if the service is `SERVING`.
//! https://github.com/grpc/grpc/blob/master/doc/health-checking.md
//!
//! One request on an HTTP/2 connection of its own, in plain text or inside TLS.

use super::{Deadline, Peer, ProbeFailure, Stage, connect, tls::TlsClient};
use crate::model::GrpcCheck;
use ::http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message as _;
use std::{net::SocketAddr, pin::pin};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes of an answer that are read at most; a proper one has two.
const MAX_ANSWER: usize = 4096;
/// A message's length comes behind a byte that says whether it is compressed.
const PREFIX: usize = 5;
const WHAT: &str = "gRPC";

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// The request of one backend, ready to be sent.
#[derive(Debug, Clone)]
pub struct GrpcProbe {
    target: Uri,
    message: Bytes,
    tls: Option<TlsClient>,
}

impl GrpcProbe {
    /// Prepares the request for the backend at `address`.
    pub fn new(check: &GrpcCheck, address: SocketAddr) -> Result<Self, ProbeFailure> {
        let name = check.tls.as_ref().and_then(|tls| tls.server_name.clone());
        let host = match (&name, address) {
            (Some(name), _) => format!("{name}:{}", address.port()),
            // Without its zone, which means nothing to the server (RFC 6874 section 1).
            (None, SocketAddr::V6(v6)) => format!("[{}]:{}", v6.ip(), v6.port()),
            (None, SocketAddr::V4(v4)) => v4.to_string(),
        };
        let scheme = if check.tls.is_some() { "https" } else { "http" };
        let target = Uri::builder()
            .scheme(scheme)
            .authority(host.as_str())
            .path_and_query("/grpc.health.v1.Health/Check")
            .build()
            .map_err(|_| ProbeFailure::BadRequest { what: "server_name", found: host })?;
        let request = HealthCheckRequest { service: check.service.clone() };
        let length = request.encoded_len();
        let mut message = BytesMut::with_capacity(PREFIX + length);
        message.put_u8(0);
        message.put_u32(u32::try_from(length).map_err(|_| ProbeFailure::Internal)?);
        request.encode(&mut message).map_err(|_| ProbeFailure::Internal)?;
        let address = address.ip().to_string();
        let tls = check.tls.as_ref().map(|spec| TlsClient::new(spec, &address, b"h2")).transpose()?;
        Ok(Self { target, message: message.freeze(), tls })
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("lbd-health"));
        request
    }
}

/// Passes if the server at `address` says that the service is served.
pub async fn probe(
    peer: impl Into<Peer>,
    params: &GrpcProbe,
    deadline: Deadline,
) -> Result<(), ProbeFailure> {
    let stream = deadline.limit(Stage::Connect, connect(peer.into())).await?;
    match &params.tls {
        None => exchange(stream, params, deadline).await,
        Some(tls) => exchange(tls.connect(stream, deadline).await?, params, deadline).await,
    }
}

async fn exchange<S>(stream: S, params: &GrpcProbe, deadline: Deadline) -> Result<(), ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = async {
        let builder = h2::client::Builder::new().enable_push(false).max_header_list_size(16 * 1024).clone();
        builder.handshake::<_, Bytes>(stream).await.map_err(|error| failure(&error))
    };
    let (sender, connection) = deadline.limit(Stage::Answer, handshake).await?;
    let mut asked = pin!(deadline.limit(Stage::Answer, ask(sender, params)));
    // The connection lives in this future, not in a task of its own: nothing is left when it is dropped.
    tokio::select! {
        biased;
        result = &mut asked => result,
        _ = connection => asked.await,
    }
}

async fn ask(sender: SendRequest<Bytes>, params: &GrpcProbe) -> Result<(), ProbeFailure> {
    let mut sender = sender.ready().await.map_err(|error| failure(&error))?;
    let (answer, mut body) = sender.send_request(params.request(), false).map_err(|error| failure(&error))?;
    body.send_data(params.message.clone(), true).map_err(|error| failure(&error))?;
    let answer = answer.await.map_err(|error| failure(&error))?;
    let status = answer.status().as_u16();
    if status != 200 {
        let expected = [crate::model::StatusRange { lo: 200, hi: 200 }].as_slice().into();
        return Err(ProbeFailure::Status { found: status, expected });
    }
    let kind = answer.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !kind.starts_with(b"application/grpc") {
        return Err(ProbeFailure::NotProtocol { what: WHAT });
    }
    // A refusal without a message has its status in the head.
    judge_status(answer.headers())?;
    let mut body = answer.into_body();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| failure(&error))?;
        let _ = body.flow_control().release_capacity(data.len());
        message.extend_from_slice(&data);
        if message.len() > MAX_ANSWER {
            return Err(ProbeFailure::NotProtocol { what: WHAT });
        }
    }
    let trailers = body.trailers().await.map_err(|error| failure(&error))?;
    judge_status(&trailers.unwrap_or_default())?;
    judge_message(&message)
}

/// `grpc-status` where there is one: 0 or a refusal.
fn judge_status(headers: &HeaderMap) -> Result<(), ProbeFailure> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => {
            let name = code.parse().ok().and_then(|code: usize| CODES.get(code)).copied().unwrap_or("?");
            let message: String = text("grpc-message").unwrap_or_default().chars().take(100).collect();
            let colon = if message.is_empty() { "" } else { ": " };
            let code: String = code.chars().take(4).collect();
            Err(ProbeFailure::Server { what: WHAT, said: format!("{code} {name}{colon}{message}") })
        }
    }
}

/// The names of the codes, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn judge_message(answer: &[u8]) -> Result<(), ProbeFailure> {
    let not = || ProbeFailure::NotProtocol { what: WHAT };
    let (prefix, message) = answer.split_at_checked(PREFIX).ok_or_else(not)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    // Nobody asked for compression.
    if prefix[0] != 0 || length as usize != message.len() {
        return Err(not());
    }
    let answer = HealthCheckResponse::decode(message).map_err(|_| not())?;
    let state = match answer.status() {
        ServingStatus::Serving => return Ok(()),
        ServingStatus::Unknown => "UNKNOWN",
        ServingStatus::NotServing => "NOT_SERVING",
        ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
    };
    Err(ProbeFailure::NotServing { state })
}

/// Names the reason of an error of the HTTP/2 layer.
fn failure(error: &h2::Error) -> ProbeFailure {
    let Some(io) = error.get_io() else {
        // The server's own reason, or what makes its answer none.
        return match error.reason() {
            Some(reason) if error.is_remote() => {
                ProbeFailure::Server { what: "HTTP/2", said: reason.description().to_owned() }
            }
            _ => ProbeFailure::NotProtocol { what: WHAT },
        };
    };
    if io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
        return super::tls::failure(io, Stage::Answer);
    }
    ProbeFailure::from_io(io, Stage::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_judged() {
        let judged = |bytes: &[u8]| judge_message(bytes).map_err(|failure| failure.to_string());
        let state = |state: &str| Err(format!("gRPC service is {state}"));
        assert_eq!(judged(&[0, 0, 0, 0, 2, 0x08, 1]), Ok(()));
        assert_eq!(judged(&[0, 0, 0, 0, 2, 0x08, 2]), state("NOT_SERVING"));
        // The default value is not sent; one from the future is none that is known.
        assert_eq!(judged(&[0, 0, 0, 0, 0]), state("UNKNOWN"));
        assert_eq!(judged(&[0, 0, 0, 0, 2, 0x08, 9]), state("UNKNOWN"));
        for broken in
            [&[][..], &[0, 0, 0], &[1, 0, 0, 0, 2, 0x08, 1], &[0, 0, 0, 0, 3, 0x08, 1], &[0, 0, 0, 0, 1, 8]]
        {
            assert_eq!(judged(broken), Err("not a gRPC answer".to_owned()), "{broken:?}");
        }
    }
}
