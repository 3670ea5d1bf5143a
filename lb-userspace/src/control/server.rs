//! The server of the control API.
//!
//! Tasks: one accepts, one per connection serves it; all end with [`serve`]. A handler's future is dropped
//! when its client hangs up: before the command is sent nothing has happened, afterwards the daemon carries
//! it out and its answer goes nowhere, so both are safe.

use super::api::*;
use super::command::{Command, Commands, ExplainPacket, Reply};
use super::extract::{Asked, Body, Caller, Failure, NothingAsked, OfBackend, OfService};
use super::gradual::ChangeOptions;
use super::guard;
use super::long::Long;
use super::observe::{AskFlows, AskTrace, FlowsView};
use super::openapi::{self, about};
use super::peer::{Peer, Role, Who};
use super::request::{self, parse_endpoint, parse_flags, parse_protocol, same_family, shorten};
use super::socket::ControlSocket;
use super::stream::Lines;
use super::tls::{self, TlsListener};
use crate::model::Admin;
use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with, put_with};
use axum::body::Body as AnyBody;
use axum::extract::State as Shared;
use axum::response::Response;
use axum::{Json, Router};
use http::{Method, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
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

/// Where clients come in.
#[derive(Debug)]
pub enum Door {
    Socket(ControlSocket, Role),
    Tls(TlsListener),
}

impl From<ControlSocket> for Door {
    /// A socket for admins.
    fn from(socket: ControlSocket) -> Self {
        Self::Socket(socket, Role::Admin)
    }
}

/// A client at the door.
enum Arrived {
    Socket(UnixStream, Role),
    Tls(tls::Arrival),
}

impl Door {
    async fn accept(&self) -> std::io::Result<Arrived> {
        match self {
            Self::Socket(socket, role) => Ok(Arrived::Socket(socket.listener().accept().await?.0, *role)),
            Self::Tls(listener) => Ok(Arrived::Tls(listener.accept().await?)),
        }
    }
}

/// Serves until `shutdown` completes; then lets the requests under way finish and removes the socket's file.
pub async fn serve(door: impl Into<Door>, commands: Commands, shutdown: impl Future<Output = ()>) {
    serve_with(door, commands, shutdown, Limits::default()).await;
}

/// [`serve`] with other limits.
pub async fn serve_with(
    door: impl Into<Door>,
    commands: Commands,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
) {
    let door = door.into();
    let app = router(State { commands, limits });
    let (stop, stopped) = watch::channel(());
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await;
            (door.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok(arrived) => {
                let (app, stopped) = (app.clone(), stopped.clone());
                connections.spawn(async move {
                    arrival(arrived, app, limits, stopped).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control API cannot accept a connection");
                // Out of descriptors or memory: one may be free soon.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // No new connections from here on.
    drop(door);
    drop(stop);
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.shutdown_time, finish).await.is_err() {
        connections.shutdown().await;
    }
}

async fn arrival(arrived: Arrived, app: Router, limits: Limits, mut stopped: watch::Receiver<()>) {
    // The sender is dropped, never used.
    let stop = async move { drop(stopped.changed().await) };
    match arrived {
        Arrived::Socket(stream, role) => {
            let who = Who::User(stream.peer_cred().ok().map(|peer| peer.uid()));
            connection(stream, Peer { who, role }, app, limits, stop).await;
        }
        Arrived::Tls(arrival) => {
            let mut stop = std::pin::pin!(stop);
            let admitted = tokio::select! {
                () = &mut stop => return,
                admitted = timeout(limits.request_time, arrival.admit()) => admitted,
            };
            let Ok(Ok(tls::Admitted { stream, name, role, mut access })) = admitted else {
                tracing::debug!("a client of the control API did not shake hands");
                return;
            };
            let stop = async move {
                tokio::select! {
                    () = stop => {}
                    // Others are let in than before.
                    _ = access.changed() => {}
                }
            };
            let who = Who::Certificate(name.into());
            connection(stream, Peer { who, role }, app, limits, stop).await;
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    app: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let app = TowerToHyperService::new(app);
    let streams = Arc::new(AtomicBool::new(false));
    let streaming = streams.clone();
    let hang_up = super::watch::HangUp::default();
    let line = hang_up.clone();
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        if STREAMS.contains(&request.uri().path()) {
            streaming.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(line.clone());
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
        // A trace or a watch lasts as long as its reader likes.
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
        // Its reader has been told, as far as it reads at all.
        () = hang_up.0.notified() => return,
        () = stop => {}
        () = long => {}
    }
    connection.as_mut().graceful_shutdown();
    let last = if streams.load(Ordering::Relaxed) {
        // It ends by itself with the daemon; where its reader may not look any more, it would not.
        STREAM_END
    } else {
        limits.answer_time * 2 + limits.request_time
    };
    let _ = timeout(last, connection).await;
}

const TRACE: &str = "/v1/trace";
/// What an answer that goes on has for its last lines.
const STREAM_END: Duration = Duration::from_secs(1);
/// Answers that go on.
const STREAMS: [&str; 2] = [TRACE, super::watch::PATH];

/// Every path that is served, with its description.
pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new()
        .api_route("/v1/status", get_with(status, about("The daemon, its interfaces and its configuration")))
        .api_route("/v1/services", get_with(services, about("Every service and its backends")))
        .api_route("/v1/services/{service}", get_with(service, about("One service and its backends")))
        .api_route(
            "/v1/services/{service}/backends",
            post_with(backend_add, about("Adds a backend to a service")),
        )
        .api_route(
            "/v1/services/{service}/backends/{backend}",
            delete_with(backend_remove, about("Removes a backend; connections on it end")),
        )
        .api_route(
            "/v1/services/{service}/backends/{backend}/admin",
            put_with(backend_admin, about("Drains, disables or enables a backend")),
        )
        .api_route(
            "/v1/services/{service}/backends/{backend}/weight",
            put_with(backend_weight, about("Sets a backend's share of new connections")),
        )
        .api_route("/v1/drops", get_with(drops, about("Packets dropped, by reason")))
        .api_route("/v1/config", get_with(config, about("Every setting, its value and where it comes from")))
        .api_route("/v1/explain", get_with(explain, about("What would be done with a packet, and why")))
        .api_route("/v1/flows", get_with(flows, about("Flows that are tracked")))
        .api_route(
            TRACE,
            get_with(trace, |op| {
                openapi::lines::<super::observe::TraceLine>(
                    about("Packets and what becomes of them, a line of JSON each; for admins only")(op),
                    "application/x-ndjson",
                )
            }),
        )
        .api_route("/v1/reload", post_with(reload, about("Reads the configuration file again")))
        .api_route(
            "/v1/reset",
            post_with(reset, about("Drops runtime changes: all, or those of a service or of a backend")),
        )
        .api_route(
            "/v1/detach",
            post_with(detach, about("Removes the load balancer from the kernel and ends the daemon")),
        )
        .api_route(openapi::PATH, get_with(openapi::serve, about("This description")))
        .merge(super::firewall::routes())
        .merge(super::gradual::routes())
        .merge(super::pair::routes())
        .merge(super::link::routes())
        .merge(super::bgp::routes())
        .merge(super::fleet::routes())
        .merge(super::changes::routes())
        .merge(super::save::routes())
        .merge(super::watch::routes())
}

fn router(state: State) -> Router {
    openapi::described(routes())
        .route_layer(axum::middleware::from_fn(super::timing::observe))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::middleware::from_fn(guard::conditional))
        .with_state(state)
}

pub(super) type Answered<T> = Result<Json<T>, Failure>;

impl State {
    /// One command to the daemon's loop and its answer, under the condition of the request's `If-Match`.
    pub(super) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Answered<T> {
        let wait = self.limits.answer_time;
        let deadline = Instant::now() + wait;
        let (reply, answer) = oneshot::channel();
        let (command, verdict) = guard::guarded(command(reply))?;
        let Ok(room) = timeout_at(deadline, self.commands.reserve()).await else {
            return Err(Failure::busy(wait));
        };
        room.map_err(|_| Failure::gone())?.send(command);
        match timeout_at(deadline, answer).await {
            Err(_) => Err(Failure::unanswered(wait)),
            Ok(Err(_)) => Err(verdict.refusal().map_or_else(Failure::gone, Failure::from)),
            Ok(Ok(answer)) => {
                let _ = timeout_at(deadline, verdict.note()).await;
                Ok(Json(answer?))
            }
        }
    }
}

async fn status(Shared(state): Shared<State>) -> Answered<StatusView> {
    state.ask(Command::Status).await
}

async fn services(Shared(state): Shared<State>) -> Result<Long<Vec<ServiceView>>, Failure> {
    let Json(services) = state.ask(Command::Services).await?;
    Long::of(services).await
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
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
    Body(new): Body<request::NewBackend>,
) -> Answered<ChangeView> {
    let request::NewBackend { name, address, port, weight, backup } = new;
    if port == Some(0) {
        return Err(Failure::request(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!(
                "port 0 of backend '{name}': expected 1 to 65535; leave the port out to use the service's"
            ),
        ));
    }
    state
        .change(options, |reply| Command::BackendAdd {
            service,
            name,
            address,
            port,
            weight,
            backup,
            by,
            reply,
        })
        .await
}

async fn backend_remove(
    Shared(state): Shared<State>,
    OfBackend(service, name): OfBackend,
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
) -> Answered<ChangeView> {
    state.change(options, |reply| Command::BackendRemove { service, name, by, reply }).await
}

async fn backend_admin(
    Shared(state): Shared<State>,
    OfBackend(service, name): OfBackend,
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
    Body(request::SetAdmin { admin, end_after_seconds }): Body<request::SetAdmin>,
) -> Answered<ChangeView> {
    if end_after_seconds.is_some() && admin != Admin::Draining {
        let error = format!("end_after_seconds belongs to a drain, and the state asked for is {admin}");
        return Err(Failure::request(StatusCode::UNPROCESSABLE_ENTITY, error));
    }
    let end_after = end_after_seconds.map(Duration::from_secs);
    state.change(options, |reply| Command::BackendAdmin { service, name, admin, end_after, by, reply }).await
}

async fn backend_weight(
    Shared(state): Shared<State>,
    OfBackend(service, name): OfBackend,
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
    Body(request::SetWeight { weight, over_seconds }): Body<request::SetWeight>,
) -> Answered<ChangeView> {
    let over = over_seconds.map(Duration::from_secs);
    state.change(options, |reply| Command::BackendWeight { service, name, weight, over, by, reply }).await
}

async fn reload(
    Shared(state): Shared<State>,
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
    Body(request::Reload { plan }): Body<request::Reload>,
) -> Answered<ChangeView> {
    state.change(options, |reply| Command::Reload { plan, by, reply }).await
}

async fn reset(
    Shared(state): Shared<State>,
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
    Body(request::Reset { service, backend }): Body<request::Reset>,
) -> Answered<ChangeView> {
    if backend.is_some() && service.is_none() {
        let error = "a backend is named and its service is not; expected {\"service\": \"www\", \"backend\": \"web1\"}";
        return Err(Failure::request(StatusCode::UNPROCESSABLE_ENTITY, error));
    }
    state.change(options, |reply| Command::Reset { service, backend, by, reply }).await
}

async fn detach(
    Shared(state): Shared<State>,
    NothingAsked: NothingAsked,
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
