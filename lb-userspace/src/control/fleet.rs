//! The fleet over the control API: what is known of it, and its document. As in [`super::api`]: fields are added, never renamed.

use super::{
    client::{Client, ClientError},
    command::{Command, Reply},
    extract::{Body, Caller, NothingAsked},
    openapi::about,
    request::Example,
    server::{Answered, State},
};
use aide::axum::{ApiRouter, routing::get_with};
use axum::extract::State as Shared;
use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /v1/fleet`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FleetView {
    /// There is a section `[fleet]`; without one only the rings and the hash below have a meaning.
    pub configured: bool,
    /// The key of the document in etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The member of etcd that answers; absent while none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Why none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of the document in force; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The document in force is the last good copy on disk; etcd has not spoken yet.
    #[serde(default)]
    pub from_copy: bool,
    /// Of the document in etcd, as last seen; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_generation: Option<u64>,
    /// Who wrote that one, if it was written through lbd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_by: Option<FleetPut>,
    /// The generation in etcd that is not in force, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<FleetRefusal>,
    /// Documents taken since the start.
    #[serde(default)]
    pub applied: u64,
    /// Documents refused since the start.
    #[serde(default)]
    pub refusals: u64,
    /// Over the services in force: equal on nodes that forward alike.
    pub services_hash: String,
    pub authority: FleetAuthority,
    /// Another daemon has registered itself under this node's name.
    #[serde(default)]
    pub namesake: bool,
    /// Those with a lease, this one too.
    #[serde(default)]
    pub nodes: Vec<FleetNode>,
    /// Of every service in force, the node's own ones too.
    #[serde(default)]
    pub rings: Vec<RingView>,
}

/// Who wrote a document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FleetPut {
    pub by: String,
    /// The node it was written through.
    pub node: String,
    /// Seconds since 1970.
    pub at: u64,
    /// Also where it is more than `max_disruption`.
    #[serde(default)]
    pub force: bool,
}

/// A document that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FleetRefusal {
    pub generation: u64,
    pub reason: String,
}

/// The node that has the word in changes that concern all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FleetAuthority {
    /// It is this one.
    pub mine: bool,
    /// Absent while nobody is known to be it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Grows with each election; 0 before the first.
    pub epoch: u64,
}

/// A node of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FleetNode {
    pub name: String,
    pub version: String,
    /// Of the document it has in force; 0: none.
    pub generation: u64,
    pub services_hash: String,
    /// As this node's.
    pub same_services: bool,
    /// Seeds and sizes of its rings are this node's.
    pub same_rings: bool,
    /// Services of both whose rings differ, as far as that is known.
    #[serde(default)]
    pub different_rings: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<FleetRefusal>,
}

/// What makes a ring, besides the backends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RingView {
    pub service: String,
    pub seed: u64,
    /// Slots.
    pub size: u32,
}

/// `GET /v1/fleet/document`: as etcd has it now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FleetDocument {
    pub key: String,
    /// 0: there is none.
    pub generation: u64,
    /// TOML.
    pub text: String,
}

/// `PUT /v1/fleet/document`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PutDocument {
    /// TOML.
    pub text: String,
    /// Only if the document in etcd has this generation (0: if there is none); where absent, the one that this node has seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// Every node takes it, also where it is more than `max_disruption`.
    #[serde(default)]
    pub force: bool,
    /// What messages call the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Example for PutDocument {
    const EXAMPLE: &'static str = r#"{"text": "[[service]]\n...", "if_generation": 17}"#;
    const ROOM: usize = 64;
}

/// The document is in etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PutAnswer {
    pub message: String,
    pub generation: u64,
    /// What may not be meant.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A request about the fleet.
#[derive(Debug)]
pub enum FleetCommand {
    Status(Reply<FleetView>),
    Get(Reply<FleetDocument>),
    Put { put: PutDocument, by: String, reply: Reply<PutAnswer> },
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new()
        .api_route(
            "/v1/fleet",
            get_with(status, about("etcd, the fleet's document, its nodes, and which of them has the word")),
        )
        .api_route(
            "/v1/fleet/document",
            get_with(document, about("The fleet's document, as etcd has it now"))
                .put_with(put, about("Checks a document and writes it into etcd, for all nodes")),
        )
}

async fn status(Shared(state): Shared<State>) -> Answered<FleetView> {
    state.ask(|reply| Command::Fleet(FleetCommand::Status(reply))).await
}

async fn document(Shared(state): Shared<State>) -> Answered<FleetDocument> {
    state.ask(|reply| Command::Fleet(FleetCommand::Get(reply))).await
}

async fn put(
    Shared(state): Shared<State>,
    NothingAsked: NothingAsked,
    Caller(by): Caller,
    Body(put): Body<PutDocument>,
) -> Answered<PutAnswer> {
    state.ask(|reply| Command::Fleet(FleetCommand::Put { put, by, reply })).await
}

impl Client {
    /// What is known of the fleet.
    pub async fn fleet(&self) -> Result<FleetView, ClientError> {
        self.get("/v1/fleet").await
    }

    /// The document, as etcd has it now.
    pub async fn fleet_document(&self) -> Result<FleetDocument, ClientError> {
        self.get("/v1/fleet/document").await
    }

    /// Writes the document.
    pub async fn fleet_put(&self, put: &PutDocument) -> Result<PutAnswer, ClientError> {
        self.send(Method::PUT, "/v1/fleet/document", put).await
    }
}
