//! Compare and set: a request that is carried out only at the revision of the runtime state it was made for.
//!
//! The condition is `If-Match` (RFC 9110 section 13.1.1) and is judged in the daemon's loop, where nothing comes between
//! it and the change. Every answer that the loop gave carries the revision as its `ETag`. This is done for all routes
//! alike, so that none can forget it.

use super::command::{Command, CommandError};
use super::extract::Failure;
use super::peer::Peer;
use super::request::shorten;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{ETAG, HeaderValue, IF_MATCH};
use http::{HeaderMap, StatusCode};
use std::cell::Cell;
use tokio::sync::oneshot;

/// A command under a condition.
#[derive(Debug)]
pub struct Guarded {
    pub command: Command,
    /// Carried out at one of these revisions only; anyhow where absent.
    pub if_revision: Option<Vec<u64>>,
    /// Told the revision after the command, or why it was refused; the command's own reply is dropped then.
    pub verdict: oneshot::Sender<Result<u64, CommandError>>,
}

/// What the loop says of a [`Guarded`] command.
pub(super) struct Verdict(Option<oneshot::Receiver<Result<u64, CommandError>>>);

impl Verdict {
    /// Once the command's reply is gone: whether it was refused.
    pub fn refusal(self) -> Option<CommandError> {
        self.0?.try_recv().ok()?.err()
    }

    /// Waits for the revision and keeps it for the answer's `ETag`.
    pub async fn note(self) {
        if let Some(verdict) = self.0
            && let Ok(Ok(revision)) = verdict.await
        {
            let _ = REQUEST.try_with(|request| request.revision.set(Some(revision)));
        }
    }
}

/// Of the request that the present task serves.
struct Conditions {
    if_revision: Option<Vec<u64>>,
    revision: Cell<Option<u64>>,
}

tokio::task_local! {
    static REQUEST: Conditions;
}

/// Refuses what the client may not do, reads the condition of the request, and gives the revision with its answer.
pub(super) async fn conditional(request: Request, next: Next) -> Response {
    if let Some(peer) = request.extensions().get::<Peer>()
        && let Err(failure) = peer.may(request.method(), request.uri().path())
    {
        return failure.into_response();
    }
    let if_revision = match condition(request.headers()) {
        Ok(condition) => condition,
        Err(failure) => return failure.into_response(),
    };
    let conditions = Conditions { if_revision, revision: Cell::new(None) };
    REQUEST
        .scope(conditions, async {
            let mut response = next.run(request).await;
            let revision = REQUEST.try_with(|request| request.revision.get()).ok().flatten();
            if let Some(tag) = revision.and_then(|r| HeaderValue::try_from(format!("\"{r}\"")).ok()) {
                response.headers_mut().insert(ETAG, tag);
            }
            response
        })
        .await
}

/// The revisions that `If-Match` names: `"12"`, several with commas between, or `*` for any.
fn condition(headers: &HeaderMap) -> Result<Option<Vec<u64>>, Failure> {
    let mut revisions = Vec::new();
    for value in headers.get_all(IF_MATCH) {
        let text = value.to_str().unwrap_or("?");
        for tag in text.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            if tag == "*" {
                return Ok(None);
            }
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
            let Ok(revision) = number.parse() else {
                let error = format!(
                    "If-Match: '{}' is no revision; expected the ETag of an earlier answer, e.g. If-Match: \"12\"",
                    shorten(tag)
                );
                return Err(Failure::request(StatusCode::BAD_REQUEST, error));
            };
            revisions.push(revision);
        }
    }
    if revisions.is_empty() && headers.contains_key(IF_MATCH) {
        // A script whose variable is empty must not lose its condition.
        let error = "If-Match is empty; expected the ETag of an earlier answer, e.g. If-Match: \"12\"";
        return Err(Failure::request(StatusCode::BAD_REQUEST, error));
    }
    Ok((!revisions.is_empty()).then_some(revisions))
}

/// The command under the condition of the present request.
pub(super) fn guarded(command: Command) -> Result<(Command, Verdict), Failure> {
    let if_revision = REQUEST.try_with(|request| request.if_revision.clone()).unwrap_or_default();
    if matches!(command, Command::Detach { .. }) {
        return match if_revision {
            None => Ok((command, Verdict(None))),
            Some(_) => Err(Failure::request(
                StatusCode::BAD_REQUEST,
                "If-Match: a detach removes everything, whatever the revision; leave it out",
            )),
        };
    }
    let (verdict, told) = oneshot::channel();
    let guarded = Guarded { command, if_revision, verdict };
    Ok((Command::Guarded(Box::new(guarded)), Verdict(Some(told))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Option<Vec<u64>>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, HeaderValue::from_str(text).unwrap());
        condition(&headers).map_err(|failure| failure.view.error)
    }

    #[test]
    fn conditions_are_read() {
        assert_eq!(condition(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("\"12\""), Ok(Some(vec![12])));
        assert_eq!(read("12"), Ok(Some(vec![12])));
        assert_eq!(read("\"1\", \"2\""), Ok(Some(vec![1, 2])));
        assert_eq!(read("*"), Ok(None));
        assert!(read(" , ").unwrap_err().contains("is empty"));
        for wrong in ["W/\"12\"", "\"x\"", "-1", "\"12", "99999999999999999999999"] {
            assert!(read(wrong).unwrap_err().contains("is no revision; expected"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(text in "[ -~]{0,40}") {
            let _ = read(&text);
        }
    }
}
