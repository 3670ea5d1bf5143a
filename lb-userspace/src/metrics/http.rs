//! The listener: `/metrics`, `/healthz`, the dashboard at `/` and its data at `/api/snapshot.json`.
//!
//! One task accepts and owns a task per connection; all end when `serve` returns or its future is dropped
//! (no state is shared across an await, so every task is cancel-safe). Only GET and HEAD are answered,
//! and no request body is read. A client can hold a connection for `header_timeout` without a request
//! and for `connection_age + linger` at most; where all connections are taken, the oldest makes room,
//! so that clients that dawdle never keep a scraper out.

use super::{
    dashboard,
    encode::{Format, encode},
    instruments::Instruments,
    source::{Snapshot, SnapshotError, Source, unhealthy},
};
use crate::telemetry::Throttle;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    collections::VecDeque,
    fmt::Display,
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

/// What clients may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, at least 1.
    pub connections: usize,
    /// For the head of a request, also the next one on a connection kept alive.
    pub header_timeout: Duration,
    /// After this a connection is asked to end ...
    pub connection_age: Duration,
    /// ... and after this much more it is cut.
    pub linger: Duration,
    /// For the daemon to answer `/healthz`.
    pub health_deadline: Duration,
    /// For the daemon to answer anything else.
    pub scrape_deadline: Duration,
    /// Scrapes gathered and encoded at once; others wait for their turn.
    pub scrapes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            header_timeout: Duration::from_secs(5),
            connection_age: Duration::from_secs(15),
            linger: Duration::from_secs(5),
            health_deadline: Duration::from_secs(1),
            scrape_deadline: Duration::from_secs(5),
            scrapes: 2,
        }
    }
}

/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// At most one message about failing accepts in this time.
const ACCEPT_LOG_PERIOD: Duration = Duration::from_secs(60);

/// Serves until `shutdown` is ready.
pub async fn serve<S: Source>(
    listener: TcpListener,
    source: S,
    instruments: Instruments,
    shutdown: impl Future<Output = ()> + Send,
) {
    serve_with_limits(listener, source, instruments, Limits::default(), shutdown).await;
}

/// [`serve`], with other limits than the default ones.
pub async fn serve_with_limits<S: Source>(
    listener: TcpListener,
    source: S,
    instruments: Instruments,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send,
) {
    let router = router(source, instruments, &limits);
    let mut shutdown = pin!(shutdown);
    let mut connections = JoinSet::new();
    let mut oldest = VecDeque::new();
    let mut throttle = Throttle::new(ACCEPT_LOG_PERIOD);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                oldest.retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
                while oldest.len() >= limits.connections.max(1) {
                    oldest.pop_front().inspect(tokio::task::AbortHandle::abort);
                }
                oldest.push_back(connections.spawn(connection(stream, router.clone(), limits.clone())));
            }
            Err(error) => {
                if let Some(suppressed) = throttle.admit("accept", Instant::now()) {
                    tracing::warn!(%error, suppressed, "the metrics listener cannot accept connections");
                }
                // EMFILE and ENFILE last: don't spin until a descriptor is free again.
                tokio::select! {
                    () = &mut shutdown => return,
                    () = sleep(Duration::from_millis(100)) => {}
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, limits: Limits) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(limits.connection_age) => {
            connection.as_mut().graceful_shutdown();
            timeout(limits.linger, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection to the metrics listener ended");
    }
}

struct App<S> {
    source: S,
    instruments: Instruments,
    limits: Limits,
    scrapes: Semaphore,
}

fn router<S: Source>(source: S, instruments: Instruments, limits: &Limits) -> Router {
    let app =
        App { source, instruments, limits: limits.clone(), scrapes: Semaphore::new(limits.scrapes.max(1)) };
    let file = |router: Router<_>, (path, kind, text): (&'static str, &'static str, &'static str)| {
        router.route(path, get(async move || ([(header::CONTENT_TYPE, kind)], text)))
    };
    dashboard::FILES
        .into_iter()
        .fold(Router::new(), file)
        .route("/metrics", get(metrics::<S>))
        .route("/healthz", get(healthz::<S>))
        .route("/api/snapshot.json", get(snapshot_json::<S>))
        .fallback(async || {
            (StatusCode::NOT_FOUND, "not found; there are: /, /metrics, /healthz, /api/snapshot.json\n")
        })
        .layer(map_response(with_headers))
        .with_state(Arc::new(app))
}

/// What every answer carries, errors included.
async fn with_headers(mut response: Response) -> Response {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, dashboard::CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the answer could not be encoded: {0}; please report it")]
    Encode(String),
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Snapshot(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Encode(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{self}\n")).into_response()
    }
}

impl<S: Source> App<S> {
    async fn snapshot(&self, deadline: Duration) -> Result<Snapshot, SnapshotError> {
        timeout(deadline, self.source.snapshot()).await.unwrap_or(Err(SnapshotError::Timeout(deadline)))
    }

    /// A snapshot, encoded. A large configuration is tens of megabytes of text: a few at once at most, and
    /// not on a thread that others wait for.
    async fn encoded<T: Send + 'static, E: Display + Send + 'static>(
        &self,
        encode: impl FnOnce(Snapshot) -> Result<T, E> + Send + 'static,
    ) -> Result<T, RequestError> {
        // The semaphore is never closed; without a permit only the bound on memory would be missing.
        let _turn = self.scrapes.acquire().await.ok();
        let snapshot = self.snapshot(self.limits.scrape_deadline).await?;
        tokio::task::spawn_blocking(move || encode(snapshot))
            .await
            .map_err(|error| RequestError::Encode(error.to_string()))?
            .map_err(|error| RequestError::Encode(error.to_string()))
    }
}

async fn healthz<S: Source>(State(app): State<Arc<App<S>>>) -> Response {
    let deadline = app.limits.health_deadline;
    let status =
        timeout(deadline, app.source.status()).await.unwrap_or(Err(SnapshotError::Timeout(deadline)));
    match status.map(|status| unhealthy(&status)) {
        Ok(None) => "ok\n".into_response(),
        Ok(Some(reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
        Err(error) => RequestError::from(error).into_response(),
    }
}

async fn snapshot_json<S: Source>(State(app): State<Arc<App<S>>>) -> Result<impl IntoResponse, RequestError> {
    let json = app.encoded(|snapshot| serde_json::to_vec(&snapshot)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json))
}

async fn metrics<S: Source>(
    State(app): State<Arc<App<S>>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, RequestError> {
    // RFC 9110, section 5.3: several fields of one name are one list.
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let format = Format::negotiate(Some(&accept.join(",")));
    let instruments = app.instruments.clone();
    let text = app.encoded(move |snapshot| encode(Arc::new(snapshot), instruments, format)).await?;
    Ok(([(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")], text))
}
