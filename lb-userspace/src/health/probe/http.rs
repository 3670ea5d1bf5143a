//! The HTTP check: one request on a connection of its own; it passes if the status is one of those
//! expected and the answer is whole, or its first 64 KiB are there in time.
//!
//! A backend that sends a good status and then hangs is not healthy, therefore the body is read; a body
//! that is longer (a stream, a download) is cut off without harm. A wrong status is decided by the head. An expected
//! body is looked for in what was read. With TLS the same happens inside it.

use super::{
    Deadline, Peer, ProbeFailure, Stage, StatusSet, connect,
    shared::Shared,
    tls::{self, TlsClient},
    udp::shown,
};
use crate::model::HttpCheck;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use regex::bytes::Regex;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes of the body that are read at most.
pub const MAX_BODY: usize = 64 * 1024;
/// Bytes of the head that are read at most.
pub const MAX_HEAD: usize = 64 * 1024;
/// Header lines that are read at most: hyper's default, which needs no memory from the heap.
pub const MAX_HEADERS: usize = 100;

const USER_AGENT: HeaderValue = HeaderValue::from_static("lbd-health");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const ANY: HeaderValue = HeaderValue::from_static("*/*");

/// The request of one backend, ready to be sent.
#[derive(Debug, Clone)]
pub struct HttpProbe {
    method: Method,
    target: Uri,
    headers: HeaderMap,
    expected: StatusSet,
    body: Option<Arc<Regex>>,
    tls: Option<TlsClient>,
}

static BODIES: Shared<String, Regex> = Shared::new();

impl HttpProbe {
    /// Builds the request for the backend at `address`.
    pub fn new(check: &HttpCheck, address: SocketAddr) -> Result<Self, ProbeFailure> {
        let bad = |what, found: &str| ProbeFailure::BadRequest { what, found: found.to_owned() };
        let method = Method::from_bytes(check.method.as_bytes()).map_err(|_| bad("method", &check.method))?;
        let target = check
            .path
            .parse::<Uri>()
            .ok()
            .filter(|uri| uri.scheme().is_none() && uri.authority().is_none() && check.path.starts_with('/'))
            .ok_or_else(|| bad("path", &check.path))?;
        let default_port = if check.tls.is_some() { 443 } else { 80 };
        let host = check.host.clone().unwrap_or_else(|| host_of(address, default_port));
        let host = HeaderValue::from_str(&host).map_err(|_| bad("host", &host))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host);
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::ACCEPT, ANY);
        headers.insert(header::CONNECTION, CLOSE);
        for (name, value) in &check.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("header", name))?;
            let value = HeaderValue::from_str(value).map_err(|_| bad("header", value))?;
            if name == header::USER_AGENT || name == header::ACCEPT {
                headers.insert(name, value);
            } else {
                headers.append(name, value);
            }
        }
        let compile = |pattern: &String| {
            BODIES.get_or(pattern, || Regex::new(pattern).map_err(|_| bad("body", pattern)))
        };
        let body = check.body.as_ref().map(compile).transpose()?;
        let name = server_name(check.host.as_deref(), address);
        let tls = check.tls.as_ref().map(|spec| TlsClient::new(spec, &name, b"http/1.1")).transpose()?;
        Ok(Self { method, target, headers, expected: check.status.as_slice().into(), body, tls })
    }

    /// The type as the configuration and the metrics call it.
    pub fn kind(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Who the server has to be: the host without its port, or the address.
fn server_name(host: Option<&str>, address: SocketAddr) -> String {
    let Some(host) = host else { return address.ip().to_string() };
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest).to_owned();
    }
    // A second colon means an IPv6 address.
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name.to_owned(),
        _ => host.to_owned(),
    }
}

/// The address as `Host` names it: IPv6 in brackets (RFC 3986 §3.2.2) and without its zone, which means
/// nothing to the server (RFC 6874 §1); the default port left out (RFC 9110 §7.2).
fn host_of(address: SocketAddr, default_port: u16) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    match address.port() {
        port if port == default_port => host,
        port => format!("{host}:{port}"),
    }
}

/// Passes if the server at `address` answers the request as expected.
pub async fn probe(
    peer: impl Into<Peer>,
    params: &HttpProbe,
    deadline: Deadline,
) -> Result<(), ProbeFailure> {
    let stream = deadline.limit(Stage::Connect, connect(peer.into())).await?;
    match &params.tls {
        None => exchange(stream, params, deadline).await,
        Some(tls) => exchange(tls.connect(stream, deadline).await?, params, deadline).await,
    }
}

async fn exchange<S>(stream: S, params: &HttpProbe, deadline: Deadline) -> Result<(), ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failure(&error, Stage::Answer))?;
    let mut exchange = pin!(async {
        let head = async {
            sender.send_request(params.request()).await.map_err(|error| failure(&error, Stage::Answer))
        };
        let answer = deadline.limit(Stage::Answer, head).await?;
        let found = answer.status().as_u16();
        if !params.expected.contains(found) {
            return Err(ProbeFailure::Status { found, expected: params.expected.clone() });
        }
        deadline.limit(Stage::Body, read(answer.into_body(), params.body.as_deref())).await
    });
    // The connection lives in this future, not in a task of its own: nothing is left when it is dropped.
    // The connection may end before the exchange has taken its last answer or error from it.
    tokio::select! {
        biased;
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}

/// Reads the body to its end or to [`MAX_BODY`], and looks for what is expected there.
async fn read(mut body: Incoming, expected: Option<&Regex>) -> Result<(), ProbeFailure> {
    let mut read = 0;
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failure(&error, Stage::Body))?;
        let Some(data) = frame.data_ref() else { continue };
        if expected.is_some() {
            kept.extend_from_slice(&data[..data.len().min(MAX_BODY - read)]);
        }
        read += data.len();
        if read >= MAX_BODY {
            break;
        }
    }
    match expected {
        Some(expected) if !expected.is_match(&kept) => Err(ProbeFailure::Body { found: shown(&kept) }),
        _ => Ok(()),
    }
}

/// Names the reason of hyper's error.
fn failure(error: &hyper::Error, stage: Stage) -> ProbeFailure {
    if error.is_parse_too_large() {
        return ProbeFailure::HeadTooLarge;
    }
    if error.is_parse() {
        return ProbeFailure::NotHttp;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        match cause.downcast_ref::<io::Error>() {
            Some(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
                return tls::failure(error, stage);
            }
            // A chunk size that is none, for example.
            Some(error) if error.kind() == io::ErrorKind::InvalidInput => return ProbeFailure::NotHttp,
            Some(error) if error.kind() == io::ErrorKind::InvalidData => return ProbeFailure::NotHttp,
            Some(error) => return ProbeFailure::from_io(error, stage),
            None => source = cause.source(),
        }
    }
    if error.is_user() { ProbeFailure::Internal } else { ProbeFailure::Closed { stage } }
}
