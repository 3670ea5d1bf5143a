//! The runtime changes over the control API.

use super::{
    client::{Client, ClientError},
    command::Command,
    openapi::about,
    server::{Answered, State},
};
use aide::axum::{ApiRouter, routing::get_with};
use axum::extract::State as Shared;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `changes`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChangesView {
    /// Revision of the runtime state: one more with each change, dropped ones included.
    pub revision: u64,
    /// The file they are kept in.
    pub file: String,
    pub changes: Vec<RuntimeChangeView>,
}

/// One runtime change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RuntimeChangeView {
    /// Absent for the firewall's lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Absent for the limits of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// In words, e.g. "weight 50".
    pub change: String,
    /// Who made it, e.g. "uid 0 (root)".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When, in seconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// Why it has no effect at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_effect: Option<String>,
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new().api_route(
        "/v1/changes",
        get_with(changes, about("What was changed at run time, by whom and when, and the revision")),
    )
}

async fn changes(Shared(state): Shared<State>) -> Answered<ChangesView> {
    state.ask(Command::Changes).await
}

impl Client {
    /// What was changed at run time, by whom and when.
    pub async fn changes(&self) -> Result<ChangesView, ClientError> {
        self.get("/v1/changes").await
    }
}
