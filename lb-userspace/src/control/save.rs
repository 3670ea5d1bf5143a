//! Saving over the control API.

use super::{
    client::{Client, ClientError},
    command::Command,
    extract::{Body, Caller, NothingAsked},
    openapi::about,
    request::Example,
    server::{Answered, State},
};
use aide::axum::{ApiRouter, routing::post_with};
use axum::extract::State as Shared;
use http::Method;
use serde::{Deserialize, Serialize};

/// `POST /v1/save`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Save {
    /// Only shows the texts.
    #[serde(default)]
    pub print: bool,
}

impl Example for Save {
    const EXAMPLE: &'static str = r#"{}, or {"print": true}"#;
}

/// What was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SaveView {
    pub message: String,
    /// The files that changed, or would.
    pub files: Vec<SavedFile>,
    /// Changes that no setting of a file can say, and that stay runtime changes, a line each.
    pub kept: Vec<String>,
}

/// A file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SavedFile {
    pub path: String,
    /// Its new text, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new().api_route(
        "/v1/save",
        post_with(save, about("Writes the runtime changes into the configuration's files")),
    )
}

async fn save(
    Shared(state): Shared<State>,
    NothingAsked: NothingAsked,
    Caller(by): Caller,
    Body(Save { print }): Body<Save>,
) -> Answered<SaveView> {
    state.ask(|reply| Command::Save { print, by, reply }).await
}

impl Client {
    /// Writes the runtime changes into the configuration's files, or only shows what they would be.
    pub async fn save(&self, print: bool) -> Result<SaveView, ClientError> {
        self.send(Method::POST, "/v1/save", &Save { print }).await
    }
}
