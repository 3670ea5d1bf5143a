//! From an HTTP request to checked values, and from every failure to an [`ErrorView`].

use super::api::ErrorView;
use super::command::CommandError;
use super::peer::{Peer, Who};
use super::request::{Example, shorten};
use super::server::State;
use crate::model::{BackendName, ServiceName};
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// What the server answers when it has no data to give.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: StatusCode,
    pub view: ErrorView,
}

impl Failure {
    /// The request is wrong: exit status 2.
    pub fn request(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, view: ErrorView { error: error.into(), usage: true } }
    }

    /// It was not carried out: exit status 1.
    pub fn state(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, view: ErrorView { error: error.into(), usage: false } }
    }

    /// The daemon's loop has ended.
    pub fn gone() -> Self {
        Self::state(
            StatusCode::SERVICE_UNAVAILABLE,
            "lbd is shutting down or its control loop has failed; packets are forwarded as before: see lbd's log, and start it again",
        )
    }

    /// The daemon's loop was not free to take the request.
    pub fn busy(waited: Duration) -> Self {
        Self::state(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "lbd was too busy to take the request within {waited:?}; nothing was changed: try again, and see lbd's log"
            ),
        )
    }

    /// The daemon's loop took the request and did not answer.
    pub fn unanswered(waited: Duration) -> Self {
        Self::state(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "lbd did not answer within {waited:?}; a change may still be carried out: look before you repeat it, and see lbd's log"
            ),
        )
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::NotFound(error) => Self::state(StatusCode::NOT_FOUND, error),
            CommandError::Invalid(error) => Self::request(StatusCode::UNPROCESSABLE_ENTITY, error),
            CommandError::Conflict(error) => Self::state(StatusCode::CONFLICT, error),
            CommandError::Busy(error) => Self::state(StatusCode::SERVICE_UNAVAILABLE, error),
            CommandError::Moved(error) => Self::state(StatusCode::PRECONDITION_FAILED, error),
            CommandError::Failed(error) => Self::state(StatusCode::INTERNAL_SERVER_ERROR, error),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.view)).into_response()
    }
}

/// `{service}` of the path.
pub(super) struct OfService(pub ServiceName);

impl FromRequestParts<State> for OfService {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        let path = Path::<ServicePath>::from_request_parts(parts, state).await;
        let ServicePath { service } = path.map_err(|e| bad_path(e.status(), &e.body_text()))?.0;
        Ok(Self(service.parse().map_err(|e| bad_name("service", &e))?))
    }
}

/// `{service}` and `{backend}` of the path.
pub(super) struct OfBackend(pub ServiceName, pub BackendName);

impl FromRequestParts<State> for OfBackend {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        let path = Path::<BackendPath>::from_request_parts(parts, state).await;
        let BackendPath { service, backend } = path.map_err(|e| bad_path(e.status(), &e.body_text()))?.0;
        let service = service.parse().map_err(|e| bad_name("service", &e))?;
        Ok(Self(service, backend.parse().map_err(|e| bad_name("backend", &e))?))
    }
}

/// Texts, so that the server can say which of them is no name and why.
#[derive(Deserialize, JsonSchema)]
pub(super) struct ServicePath {
    #[schemars(with = "ServiceName")]
    service: String,
}

#[derive(Deserialize, JsonSchema)]
pub(super) struct BackendPath {
    #[schemars(with = "ServiceName")]
    service: String,
    #[schemars(with = "BackendName")]
    backend: String,
}

fn bad_path(status: StatusCode, why: &str) -> Failure {
    Failure::request(status, format!("the path of the request cannot be read: {why}"))
}

fn bad_name(what: &str, why: &crate::model::NameError) -> Failure {
    Failure::request(StatusCode::BAD_REQUEST, format!("the {what} in the path of the request: {why}"))
}

/// The query, by field.
pub(super) struct Asked<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<State> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(e) => {
                Err(Failure::request(e.status(), format!("the query of the request: {}", e.body_text())))
            }
        }
    }
}

/// No query: what a change like this would do cannot be planned, and one that asks for a plan must not be carried out.
pub(super) struct NothingAsked;

impl FromRequestParts<State> for NothingAsked {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Failure> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(query) => Err(Failure::request(
                StatusCode::BAD_REQUEST,
                format!(
                    "the query of the request: found '{}'; {} takes none, and nothing was done",
                    shorten(query),
                    shorten(parts.uri.path())
                ),
            )),
        }
    }
}

/// The JSON body. Its content type is not looked at, so that a plain `curl -d` works; nothing at all
/// means `{}`.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned + Example> FromRequest<State> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &State) -> Result<Self, Failure> {
        let limit = state.limits.body_bytes * T::ROOM;
        let too_large = || {
            Failure::request(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request body is larger than {limit} bytes; expected {}", T::EXAMPLE),
            )
        };
        let path = request.uri().path().to_owned();
        let body = request.into_body();
        let reading = tokio::time::timeout(state.limits.request_time, axum::body::to_bytes(body, limit));
        let bytes = match reading.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(e)) if e_is_length(&e) => return Err(too_large()),
            Ok(Err(e)) => {
                return Err(Failure::request(
                    StatusCode::BAD_REQUEST,
                    format!("the request body did not arrive whole: {e}"),
                ));
            }
            Err(_) => {
                return Err(Failure::request(
                    StatusCode::REQUEST_TIMEOUT,
                    format!("the request body did not arrive within {:?}", state.limits.request_time),
                ));
            }
        };
        let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
        // Serde takes an array for an object's fields in their order: [] would be a reset of everything.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            let error =
                format!("the body of the request to {}: an array; expected {}", shorten(&path), T::EXAMPLE);
            return Err(Failure::request(StatusCode::BAD_REQUEST, error));
        }
        match Json::<T>::from_bytes(bytes) {
            Ok(Json(value)) => Ok(Self(value)),
            Err(e) => Err(Failure::request(
                StatusCode::BAD_REQUEST,
                format!(
                    "the body of the request to {}: {}; expected {}",
                    shorten(&path),
                    e.body_text(),
                    T::EXAMPLE
                ),
            )),
        }
    }
}

fn e_is_length(error: &axum::Error) -> bool {
    use std::error::Error as _;
    error.source().is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// Who asks, for the daemon's log and records, e.g. "uid 0 (root)".
pub(super) struct Caller(pub String);

impl FromRequestParts<State> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Failure> {
        let uid = match parts.extensions.get::<Peer>().map(|peer| &peer.who) {
            Some(Who::Certificate(name)) => return Ok(Self(format!("certificate {name}"))),
            Some(Who::User(Some(uid))) => *uid,
            Some(Who::User(None)) | None => return Ok(Self("unknown user".to_owned())),
        };
        // May ask a directory service.
        let name =
            tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(uid.into()).ok().flatten());
        Ok(Self(match name.await.ok().flatten() {
            Some(user) => format!("uid {uid} ({})", user.name),
            None => format!("uid {uid}"),
        }))
    }
}
