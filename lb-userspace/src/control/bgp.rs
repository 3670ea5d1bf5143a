//! What is announced to a routing daemon, over the control API.

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
use std::net::IpAddr;

/// `[bgp]` at work.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BgpView {
    /// The kernel's routing table that the routing daemon reads; absent without a section `[bgp]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    pub addresses: Vec<AnnouncedView>,
    /// Why the table is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedView {
    pub address: IpAddr,
    /// Its route is in the table.
    pub announced: bool,
    /// Why it should be there, or not.
    pub reason: String,
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new()
        .api_route("/v1/bgp", get_with(list, about("The addresses announced to a routing daemon, and why")))
}

async fn list(Shared(state): Shared<State>) -> Answered<BgpView> {
    state.ask(Command::Bgp).await
}

impl Client {
    /// What is announced.
    pub async fn bgp(&self) -> Result<BgpView, ClientError> {
        self.get("/v1/bgp").await
    }
}
