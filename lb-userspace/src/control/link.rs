//! The sync link over the control API.

use super::{
    client::{Client, ClientError},
    command::Command,
    openapi::about,
    pair::{PairCommand, RefusedView},
    server::{Answered, State},
};
use aide::axum::{ApiRouter, routing::get_with};
use axum::extract::State as Shared;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};

/// The sync link, as in `pair`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SyncView {
    /// Those that are connected.
    pub peers: Vec<PeerView>,
    /// Addresses of the configuration that lead to none of them.
    pub waiting: Vec<WaitingView>,
    /// What came and had no effect, by reason.
    pub rejected: Vec<RefusedView>,
}

/// A peer that is connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerView {
    /// The name of its node.
    pub name: String,
    pub address: String,
    /// When the connection came about, in seconds since 1970.
    pub since: f64,
    /// Version of its daemon.
    pub version: String,
    /// Version of the protocol in use.
    pub protocol: u16,
    /// Name of the key in use.
    pub key: String,
    /// Hash over its services; empty before it has told.
    pub services_hash: String,
    /// Whether that is this node's own.
    pub same_services: bool,
    /// The states of its virtual routers, by name.
    pub instances: BTreeMap<String, String>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// What waits to be sent.
    pub queued_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_seconds: Option<f64>,
    /// Whether its heartbeats come; absent: none were agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beating: Option<bool>,
}

/// A peer that is not connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingView {
    #[schemars(with = "String")]
    pub address: SocketAddr,
    /// What the last attempt led to.
    pub reason: String,
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new().api_route("/v1/pair/link", get_with(link, about("The peers of the sync link")))
}

async fn link(Shared(state): Shared<State>) -> Answered<Option<SyncView>> {
    state.ask(|reply| Command::Pair(PairCommand::Link(reply))).await
}

impl Client {
    /// The sync link; none without `[sync]`.
    pub async fn link(&self) -> Result<Option<SyncView>, ClientError> {
        self.get("/v1/pair/link").await
    }
}
