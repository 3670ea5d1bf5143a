//! How long requests took.

use super::{command::Command, gradual::GradualCommand};
use crate::metrics::Durations;
use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Instant,
};

/// The numbers of this process, which has one control API.
static REQUESTS: LazyLock<Arc<Durations>> = LazyLock::new(Arc::default);

/// Time from the head of a request to that of its answer, by method and route.
#[must_use]
pub fn requests() -> Arc<Durations> {
    Arc::clone(&REQUESTS)
}

/// The middleware that measures. Routes are those of the router, so that no client can make a label.
pub(super) async fn observe(path: MatchedPath, request: Request, next: Next) -> Response {
    let label = label(request.method().as_str(), path.as_str());
    let begun = Instant::now();
    let response = next.run(request).await;
    REQUESTS.observe(label, begun.elapsed());
    response
}

/// One string for each method and route there is; a method that HTTP does not know counts as none.
fn label(method: &str, path: &str) -> &'static str {
    static LABELS: Mutex<BTreeMap<String, &'static str>> = Mutex::new(BTreeMap::new());
    let method = match method {
        "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" => method,
        _ => "other",
    };
    let text = format!("{method} {path}");
    let mut labels = LABELS.lock().unwrap_or_else(PoisonError::into_inner);
    // Kept for good: as many as there are routes, times seven.
    labels.entry(text).or_insert_with_key(|text| String::leak(text.clone()))
}

impl Command {
    /// The kind of work it is, for the metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Services(_) => "services",
            Self::Drops(_) => "drops",
            Self::Config(_) => "config",
            Self::BackendAdd { .. }
            | Self::BackendRemove { .. }
            | Self::BackendAdmin { .. }
            | Self::BackendWeight { .. } => "backend",
            Self::Reload { .. } => "reload",
            Self::Reset { .. } => "reset",
            Self::Save { .. } => "save",
            Self::Explain { .. } => "explain",
            Self::Firewall(_) => "firewall",
            Self::Pair(_) => "pair",
            Self::Bgp(_) => "bgp",
            Self::Fleet(_) => "fleet",
            Self::Flows { .. } => "flows_list",
            Self::Trace { .. } => "trace",
            Self::Guarded(guarded) => guarded.command.name(),
            Self::Gradual(GradualCommand::With { command, .. }) => command.name(),
            Self::Gradual(GradualCommand::Drain { .. }) => "drain",
            _ => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_label_for_each_method_and_route() {
        let get = label("GET", "/v1/status");
        assert_eq!(get, "GET /v1/status");
        assert!(std::ptr::eq(get, label("GET", "/v1/status")));
        assert_eq!(label("BREW", "/v1/status"), "other /v1/status");
        assert_eq!(label("\"}", "/v1/status"), "other /v1/status");
    }
}
