//! The client of the control API. One connection per request.

use super::api::*;
use super::gradual::ChangeOptions;
use super::observe::{AskFlows, AskTrace, FlowsView, TraceLine};
use super::request;
use super::way::{Server, Stream, Way};
use crate::model::{Admin, BackendName, Protocol, ServiceName};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A daemon that is alive accepts much sooner.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Longer than the server gives the daemon's loop, so that its own explanation arrives.
const ANSWER_TIME: Duration = Duration::from_secs(75);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no control socket at {path}: is lbd running? Another place is named by --socket or LBCTL_SOCKET (run_dir in lbd's configuration)"
    )]
    Missing { path: PathBuf },
    #[error(
        "permission denied on the control socket {path}: run this as root (sudo) or as a member of the socket's group"
    )]
    Denied { path: PathBuf },
    #[error(
        "nobody answers on the control socket {path}: lbd is not running (it was killed, or is just restarting); start it, or name another socket by --socket or LBCTL_SOCKET"
    )]
    Refused { path: PathBuf },
    #[error(
        "cannot connect to {url}: {source}; is lbd running there, with [control] listen in its configuration?"
    )]
    Unreachable { url: String, source: std::io::Error },
    #[error(
        "no TLS with {url}: {source}; check that --ca has the authority of lbd's certificate, that this has the host name, and that control.client_ca_file has the authority of --cert"
    )]
    Tls { url: String, source: std::io::Error },
    #[error("cannot connect to the control socket {path}: {source}")]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("lbd did not {what} on {path} within {after:?}: see its log")]
    Timeout { what: &'static str, path: PathBuf, after: Duration },
    #[error(
        "what answers on {path} does not speak lbd's control protocol: {detail}; is it lbd, and of the version of this lbctl?"
    )]
    Protocol { path: PathBuf, detail: String },
    #[error(
        "lbd closed the connection on {path} before it answered ({detail}): see its log, and look before you repeat a change"
    )]
    Broken { path: PathBuf, detail: String },
    /// lbd answered that it did not do it.
    #[error("{}", .view.error)]
    Answer { status: StatusCode, view: ErrorView },
}

impl ClientError {
    /// True if the request or the configuration is wrong (exit status 2).
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Answer { view, .. } if view.usage)
    }
}

type Result<T> = std::result::Result<T, ClientError>;

/// The way to one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    way: Way,
    /// For messages.
    path: PathBuf,
    connect_time: Duration,
    answer_time: Duration,
    options: ChangeOptions,
    if_revision: Option<u64>,
}

impl Client {
    /// A client of the daemon that listens on `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::to(Way::Socket(path.into()))
    }

    /// A client of the daemon that listens on TCP.
    pub fn of_server(server: Server) -> Self {
        Self::to(Way::Tls(Arc::new(server)))
    }

    fn to(way: Way) -> Self {
        Self {
            path: way.shown(),
            way,
            connect_time: CONNECT_TIME,
            answer_time: ANSWER_TIME,
            if_revision: None,
            options: ChangeOptions::default(),
        }
    }

    /// With other times for connecting and for one whole answer.
    #[must_use]
    pub fn with_times(self, connect_time: Duration, answer_time: Duration) -> Self {
        Self { connect_time, answer_time, ..self }
    }

    /// One that asks for changes in this way.
    #[must_use]
    pub fn asking(self, options: ChangeOptions) -> Self {
        Self { options, ..self }
    }

    /// Requests of which nothing is carried out unless the runtime state has this revision.
    #[must_use]
    pub fn if_revision(self, revision: Option<u64>) -> Self {
        Self { if_revision: revision, ..self }
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn status(&self) -> Result<StatusView> {
        self.get("/v1/status").await
    }

    pub async fn services(&self) -> Result<Vec<ServiceView>> {
        self.get("/v1/services").await
    }

    pub async fn service(&self, name: &ServiceName) -> Result<ServiceView> {
        self.get(&format!("/v1/services/{name}")).await
    }

    pub async fn drops(&self) -> Result<Vec<DropView>> {
        self.get("/v1/drops").await
    }

    pub async fn config(&self) -> Result<ConfigView> {
        self.get("/v1/config").await
    }

    pub async fn explain(
        &self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        flags: Option<&str>,
        length: Option<u16>,
    ) -> Result<ExplainView> {
        // Brackets are not allowed in a query (RFC 3986 section 3.4).
        let encode = |endpoint: SocketAddr| endpoint.to_string().replace('[', "%5B").replace(']', "%5D");
        let (source, destination) = (encode(source), encode(destination));
        let mut path = format!("/v1/explain?protocol={protocol}&source={source}&destination={destination}");
        for (key, value) in [("flags", flags.map(str::to_owned)), ("length", length.map(|l| l.to_string()))] {
            if let Some(value) = value {
                path += &format!("&{key}={value}");
            }
        }
        self.get(&path).await
    }

    pub async fn flows(&self, ask: &AskFlows) -> Result<FlowsView> {
        self.get(&self.query("/v1/flows", ask)?).await
    }

    /// Gives every line to `take` until that has enough or the daemon ends.
    pub async fn trace(
        &self,
        ask: &AskTrace,
        mut take: impl FnMut(TraceLine) -> ControlFlow<()>,
    ) -> Result<()> {
        let path = self.query("/v1/trace", ask)?;
        self.lines(&path, None, |line| {
            Ok(if line.len() > 1 { take(serde_json::from_slice(line)?) } else { ControlFlow::Continue(()) })
        })
        .await
    }

    /// Gives every line of an answer that goes on to `take` until that has enough or the answer ends.
    pub(super) async fn lines(
        &self,
        path: &str,
        last_event: Option<&str>,
        mut take: impl FnMut(&[u8]) -> serde_json::Result<ControlFlow<()>>,
    ) -> Result<()> {
        let broken = |e: hyper::Error| ClientError::Broken { path: self.path.clone(), detail: e.to_string() };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?))
                .await
                .map_err(broken)?;
        let moving = tokio::spawn(connection);
        let mut request = Request::builder().uri(path).header(http::header::HOST, "lbd");
        if let Some(last) = last_event {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Full::<Bytes>::default()).map_err(|e| self.protocol(&e))?;
        let response = timeout(self.answer_time, sender.send_request(request))
            .await
            .map_err(|_| ClientError::Timeout {
                what: "answer",
                path: self.path.clone(),
                after: self.answer_time,
            })?
            .map_err(broken)?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let body = body.collect().await.map_err(broken)?.to_bytes();
            return Err(match serde_json::from_slice(&body) {
                Ok(view) => ClientError::Answer { status, view },
                Err(_) => self.protocol(&format_args!("HTTP status {status} without an explanation")),
            });
        }
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            text.extend_from_slice(&data);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if take(&line).map_err(|e| self.protocol(&e))?.is_break() {
                    moving.abort();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A path with a query of the fields that are there.
    fn query(&self, path: &str, ask: &impl Serialize) -> Result<String> {
        let fields = serde_json::to_value(ask).map_err(|e| self.protocol(&e))?;
        let mut path = path.to_owned();
        for (n, (key, value)) in fields.as_object().into_iter().flatten().enumerate() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            path += if n == 0 { "?" } else { "&" };
            path += &format!("{key}={}", value.replace('[', "%5B").replace(']', "%5D"));
        }
        Ok(path)
    }

    pub async fn backend_add(
        &self,
        service: &ServiceName,
        backend: &request::NewBackend,
    ) -> Result<ChangeView> {
        self.send(Method::POST, &format!("/v1/services/{service}/backends"), backend).await
    }

    pub async fn backend_remove(&self, service: &ServiceName, name: &BackendName) -> Result<ChangeView> {
        let path = format!("/v1/services/{service}/backends/{name}");
        self.call(Method::DELETE, &path, Bytes::new()).await
    }

    pub async fn backend_admin(
        &self,
        service: &ServiceName,
        name: &BackendName,
        admin: Admin,
    ) -> Result<ChangeView> {
        self.set_admin(service, name, &request::SetAdmin { admin, end_after_seconds: None }).await
    }

    pub async fn backend_weight(
        &self,
        service: &ServiceName,
        name: &BackendName,
        weight: u16,
    ) -> Result<ChangeView> {
        self.set_weight(service, name, &request::SetWeight { weight, over_seconds: None }).await
    }

    /// With `plan`, only what would change.
    pub async fn reload(&self, plan: bool) -> Result<ChangeView> {
        self.send(Method::POST, "/v1/reload", &request::Reload { plan }).await
    }

    /// Drops runtime changes: all, or those of a service or backend.
    pub async fn reset(&self, what: &request::Reset) -> Result<ChangeView> {
        self.send(Method::POST, "/v1/reset", what).await
    }

    pub async fn detach(&self) -> Result<ChangeView> {
        self.send(Method::POST, "/v1/detach", &request::Nothing {}).await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|e| self.protocol(&e))?;
        self.call(method, path, body.into()).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let stream = self.connect().await?;
        let asked = if method == Method::GET { path.to_owned() } else { self.options.on(path) };
        let exchange = timeout(self.answer_time, self.exchange(stream, method, &asked, body));
        let (status, body) = exchange.await.map_err(|_| ClientError::Timeout {
            what: "answer",
            path: self.path.clone(),
            after: self.answer_time,
        })??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| self.protocol(&e));
        }
        match serde_json::from_slice(&body) {
            Ok(view) => Err(ClientError::Answer { status, view }),
            Err(_) => Err(self.protocol(&format_args!("HTTP status {status} without an explanation"))),
        }
    }

    fn protocol(&self, detail: &impl ToString) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), detail: detail.to_string() }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>> {
        timeout(self.connect_time, self.way.connect()).await.unwrap_or_else(|_| {
            let (path, after) = (self.path.clone(), self.connect_time);
            Err(ClientError::Timeout { what: "accept the connection", path, after })
        })
    }

    async fn exchange(
        &self,
        stream: Box<dyn Stream>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let broken = |e: hyper::Error| {
            if e.is_parse() {
                self.protocol(&e)
            } else {
                ClientError::Broken { path: self.path.clone(), detail: e.to_string() }
            }
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "lbd")
            .header(http::header::CONTENT_TYPE, "application/json");
        if let Some(revision) = self.if_revision {
            request = request.header(http::header::IF_MATCH, format!("\"{revision}\""));
        }
        let request = request.body(Full::new(body)).map_err(|e| self.protocol(&e))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(broken)?;
            Ok((status, body.to_bytes()))
        };
        // The connection moves the bytes of the exchange; its own errors reach the exchange too.
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }
}
