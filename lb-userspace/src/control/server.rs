//! The server of the control API.
//!
//! Tasks: one accepts, one per connection serves it; all end with [`serve`]. A handler's future is dropped
//! when its client hangs up: before the command is sent nothing has happened, afterwards the daemon carries
//! it out and its answer goes nowhere, so both are safe.

use super::api::*;
use super::command::{Command, Commands, ExplainPacket, Reply};
use super::extract::{Asked, Body, Caller, Failure, OfBackend, OfService, Peer};
use super::observe::{AskFlows, AskTrace, FlowsView};
use super::request::{self, parse_endpoint, parse_flags, parse_protocol, same_family, shorten};
use super::socket::ControlSocket;
use super::stream::Lines;
use axum::body::Body as AnyBody;
use axum::extract::State as Shared;
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use http::{Method, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// What one client may take from the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The daemon's loop must have answered by then.
    pub answer_time: Duration,
    /// The head, and then the body, of a request must have arrived by then.
    pub request_time: Duration,
    /// Then a connection is closed after the request it is serving.
    pub connection_time: Duration,
    /// Requests still being served get this long at shutdown.
    pub shutdown_time: Duration,
    /// Largest request body.
    pub body_bytes: usize,
    /// Largest head of a request.
    pub head_bytes: usize,
    /// Connections served at once; more wait in the kernel's queue.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer_time: Duration::from_secs(30),
            request_time: Duration::from_secs(10),
            connection_time: Duration::from_secs(120),
            shutdown_time: Duration::from_secs(5),
            body_bytes: 64 << 10,
            head_bytes: 16 << 10,
            connections: 256,
        }
    }
}

/// What the handlers share.
#[derive(Debug, Clone)]
pub(super) struct State {
    commands: Commands,
    pub limits: Limits,
}

/// Serves until `shutdown` completes; then lets the requests under way finish and removes the socket's file.
pub async fn serve(socket: ControlSocket, commands: Commands, shutdown: impl Future<Output = ()>) {
    serve_with(socket, commands, shutdown, Limits::default()).await;
}

/// [`serve`] with other limits.
pub async fn serve_with(
    socket: ControlSocket,
    commands: Commands,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
) {
    let app = router(State { commands, limits });
    let (stop, stopped) = watch::channel(());
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await;
            (socket.listener().accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (app, stopped) = (app.clone(), stopped.clone());
                connections.spawn(async move {
                    connection(stream, app, limits, stopped).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept a connection");
                // Out of descriptors or memory: one may be free soon.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // No new connections from here on.
    drop(socket);
    drop(stop);
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.shutdown_time, finish).await.is_err() {
        connections.shutdown().await;
    }
}

async fn connection(stream: UnixStream, app: Router, limits: Limits, mut stopped: watch::Receiver<()>) {
    let peer = Peer(stream.peer_cred().ok().map(|peer| peer.uid()));
    let app = TowerToHyperService::new(app);
    let streams = Arc::new(AtomicBool::new(false));
    let streaming = streams.clone();
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        if request.uri().path() == TRACE {
            streaming.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(peer);
        app.call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request_time)
        .max_buf_size(limits.head_bytes)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let long = async {
        sleep(limits.connection_time).await;
        // A trace lasts as long as its reader likes.
        if streams.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "a client of the control socket broke off or sent no HTTP");
            }
            return;
        }
        // The sender is dropped, never used.
        _ = stopped.changed() => {}
        () = long => {}
    }
    connection.as_mut().graceful_shutdown();
    let last = limits.answer_time * 2 + limits.request_time;
    let _ = timeout(last, connection).await;
}

const TRACE: &str = "/v1/trace";

fn router(state: State) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/services/{service}", get(service))
        .route("/v1/services/{service}/backends", post(backend_add))
        .route("/v1/services/{service}/backends/{backend}", delete(backend_remove))
        .route("/v1/services/{service}/backends/{backend}/admin", put(backend_admin))
        .route("/v1/services/{service}/backends/{backend}/weight", put(backend_weight))
        .route("/v1/drops", get(drops))
        .route("/v1/config", get(config))
        .route("/v1/explain", get(explain))
        .route("/v1/flows", get(flows))
        .route(TRACE, get(trace))
        .route("/v1/reload", post(reload))
        .route("/v1/reset", post(reset))
        .route("/v1/detach", post(detach))
        .merge(super::firewall::routes())
        .merge(super::pair::routes())
        .merge(super::save::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(state)
}

pub(super) type Answered<T> = Result<Json<T>, Failure>;

impl State {
    /// One command to the daemon's loop and its answer.
    pub(super) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Answered<T> {
        let wait = self.limits.answer_time;
        let deadline = Instant::now() + wait;
        let (reply, answer) = oneshot::channel();
        let Ok(room) = timeout_at(deadline, self.commands.reserve()).await else {
            return Err(Failure::busy(wait));
        };
        room.map_err(|_| Failure::gone())?.send(command(reply));
        match timeout_at(deadline, answer).await {
            Err(_) => Err(Failure::unanswered(wait)),
            Ok(Err(_)) => Err(Failure::gone()),
            Ok(Ok(answer)) => Ok(Json(answer?)),
        }
    }
}

async fn status(Shared(state): Shared<State>) -> Answered<StatusView> {
    state.ask(Command::Status).await
}

async fn services(Shared(state): Shared<State>) -> Answered<Vec<ServiceView>> {
    state.ask(Command::Services).await
}

async fn service(Shared(state): Shared<State>, OfService(name): OfService) -> Answered<ServiceView> {
    let Json(services) = state.ask(Command::Services).await?;
    let names: Vec<_> = services.iter().map(|service| service.name.clone()).collect();
    match services.into_iter().find(|service| service.name == name.as_str()) {
        Some(service) => Ok(Json(service)),
        None if names.is_empty() => Err(Failure::state(
            StatusCode::NOT_FOUND,
            format!("no service '{name}'; there are none: add one to the configuration file and reload"),
        )),
        None => Err(Failure::state(
            StatusCode::NOT_FOUND,
            format!("no service '{name}'; there are: {}", names.join(", ")),
        )),
    }
}

async fn drops(Shared(state): Shared<State>) -> Answered<Vec<DropView>> {
    state.ask(Command::Drops).await
}

async fn config(Shared(state): Shared<State>) -> Answered<ConfigView> {
    state.ask(Command::Config).await
}

async fn explain(
    Shared(state): Shared<State>,
    Asked(flow): Asked<request::Explain>,
) -> Answered<ExplainView> {
    let invalid = |e: request::FlowError| Failure::request(StatusCode::BAD_REQUEST, e.to_string());
    let protocol = parse_protocol(&flow.protocol).map_err(invalid)?;
    let source = parse_endpoint(&flow.source).map_err(invalid)?;
    let destination = parse_endpoint(&flow.destination).map_err(invalid)?;
    same_family(source, destination).map_err(invalid)?;
    let flags = flow.flags.as_deref().map(parse_flags).transpose().map_err(invalid)?;
    let packet = ExplainPacket { flags, length: flow.length };
    state.ask(|reply| Command::Explain { protocol, source, destination, packet, reply }).await
}

async fn flows(Shared(state): Shared<State>, Asked(ask): Asked<AskFlows>) -> Answered<FlowsView> {
    state.ask(|reply| Command::Flows { ask, reply }).await
}

async fn trace(Shared(state): Shared<State>, Asked(ask): Asked<AskTrace>) -> Result<Response, Failure> {
    if let Some(verdict) = &ask.verdict
        && !["drop", "forward", "pass"].contains(&verdict.as_str())
    {
        let error = format!("'{}' is no verdict; expected drop, forward or pass", shorten(verdict));
        return Err(Failure::request(StatusCode::BAD_REQUEST, error));
    }
    let Json(lines) = state.ask(|reply| Command::Trace { ask, reply }).await?;
    Ok(Response::new(AnyBody::new(Lines::new(lines))))
}

async fn backend_add(
    Shared(state): Shared<State>,
    OfService(service): OfService,
    Caller(by): Caller,
    Body(new): Body<request::NewBackend>,
) -> Answered<ChangeView> {
    let request::NewBackend { name, address, port, weight } = new;
    if port == Some(0) {
        return Err(Failure::request(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!(
                "port 0 of backend '{name}': expected 1 to 65535; leave the port out to use the service's"
            ),
        ));
    }
    state.ask(|reply| Command::BackendAdd { service, name, address, port, weight, by, reply }).await
}

async fn backend_remove(
    Shared(state): Shared<State>,
    OfBackend(service, name): OfBackend,
    Caller(by): Caller,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::BackendRemove { service, name, by, reply }).await
}

async fn backend_admin(
    Shared(state): Shared<State>,
    OfBackend(service, name): OfBackend,
    Caller(by): Caller,
    Body(request::SetAdmin { admin }): Body<request::SetAdmin>,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::BackendAdmin { service, name, admin, by, reply }).await
}

async fn backend_weight(
    Shared(state): Shared<State>,
    OfBackend(service, name): OfBackend,
    Caller(by): Caller,
    Body(request::SetWeight { weight }): Body<request::SetWeight>,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::BackendWeight { service, name, weight, by, reply }).await
}

async fn reload(
    Shared(state): Shared<State>,
    Caller(by): Caller,
    Body(request::Reload { plan }): Body<request::Reload>,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::Reload { plan, by, reply }).await
}

async fn reset(
    Shared(state): Shared<State>,
    Caller(by): Caller,
    Body(request::Nothing {}): Body<request::Nothing>,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::Reset { by, reply }).await
}

async fn detach(
    Shared(state): Shared<State>,
    Caller(by): Caller,
    Body(request::Nothing {}): Body<request::Nothing>,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::Detach { by, reply }).await
}

async fn no_such_path(uri: Uri) -> Failure {
    let path = shorten(uri.path());
    let versions = if uri.path().starts_with("/v1/") {
        "this lbd does not know it: is lbctl newer than lbd?"
    } else {
        "every path begins with /v1/"
    };
    Failure::request(StatusCode::NOT_FOUND, format!("no such path: {path}; {versions}"))
}

async fn no_such_method(method: Method, uri: Uri) -> Failure {
    Failure::request(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} is not possible on {}", shorten(method.as_str()), shorten(uri.path())),
    )
}
