//! The HTTP check: one request on a connection of its own; it passes if the status is one of those
//! expected and the answer is whole, or its first 64 KiB are there in time.
//!
//! A backend that sends a good status and then hangs is not healthy, therefore the body is read; a body
//! that is longer (a stream, a download) is cut off without harm. A wrong status is decided by the head.

use super::{Deadline, ProbeFailure, Stage, StatusSet, connect};
use crate::model::HttpCheck;
use ::http::{HeaderValue, Method, Request, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
};

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
    host: HeaderValue,
    expected: StatusSet,
}

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
        let host = check.host.clone().unwrap_or_else(|| host_of(address));
        let host = HeaderValue::from_str(&host).map_err(|_| bad("host", &host))?;
        Ok(Self { method, target, host, expected: check.status.as_slice().into() })
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::ACCEPT, ANY);
        headers.insert(header::CONNECTION, CLOSE);
        request
    }
}

/// The address as `Host` names it: IPv6 in brackets (RFC 3986 §3.2.2) and without its zone, which means
/// nothing to the server (RFC 6874 §1); the default port left out (RFC 9110 §7.2).
fn host_of(address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    match address.port() {
        80 => host,
        port => format!("{host}:{port}"),
    }
}

/// Passes if the server at `address` answers the request as expected.
pub async fn probe(address: SocketAddr, params: &HttpProbe, deadline: Deadline) -> Result<(), ProbeFailure> {
    let stream = deadline.limit(Stage::Connect, connect(address)).await?;
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
        deadline.limit(Stage::Body, read(answer.into_body())).await
    });
    // The connection lives in this future, not in a task of its own: nothing is left when it is dropped.
    // The connection may end before the exchange has taken its last answer or error from it.
    tokio::select! {
        biased;
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}

/// Reads the body to its end or to [`MAX_BODY`].
async fn read(mut body: Incoming) -> Result<(), ProbeFailure> {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failure(&error, Stage::Body))?;
        read += frame.data_ref().map_or(0, Bytes::len);
        if read >= MAX_BODY {
            break;
        }
    }
    Ok(())
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
            // A chunk size that is none, for example.
            Some(error) if error.kind() == io::ErrorKind::InvalidInput => return ProbeFailure::NotHttp,
            Some(error) if error.kind() == io::ErrorKind::InvalidData => return ProbeFailure::NotHttp,
            Some(error) => return ProbeFailure::from_io(error, stage),
            None => source = cause.source(),
        }
    }
    if error.is_user() { ProbeFailure::Internal } else { ProbeFailure::Closed { stage } }
}
