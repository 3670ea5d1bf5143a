//! The pair over the control API: requests, answers, commands, and their handlers.

use super::{
    api::ChangeView,
    client::{Client, ClientError},
    command::{Command, Reply},
    extract::{Body, Caller, NothingAsked},
    link::SyncView,
    openapi::about,
    request::Example,
    server::{Answered, State},
};
use crate::model::VrrpName;
use aide::axum::{
    ApiRouter,
    routing::{get_with, post_with},
};
use axum::extract::State as Shared;
use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// One virtual router, as in `pair`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PairView {
    pub name: String,
    pub interface: String,
    pub router_id: u8,
    /// 2 or 3.
    pub version: u8,
    /// `init`, `backup`, `master` or `fault`.
    pub state: String,
    /// Of the configuration.
    pub priority: u8,
    /// What is advertised, with what tracking takes off.
    pub effective_priority: u8,
    /// With their prefix lengths.
    pub addresses: Vec<String>,
    /// Empty: multicast.
    pub peers: Vec<IpAddr>,
    /// The master that a backup hears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_priority: Option<u8>,
    /// When it came into this state, in seconds since 1970.
    pub since: f64,
    /// Why it did.
    pub reason: String,
    /// What is missing on this node, in words.
    pub faults: Vec<String>,
    /// The same with what each does.
    #[serde(default)]
    pub missing: Vec<MissingView>,
    /// The group whose members change together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The BFD sessions that tell when its master is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bfd: Vec<BfdView>,
    /// By `pair hold`.
    pub held: bool,
    /// Who holds it, e.g. "uid 0 (root)", and since when, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_since: Option<f64>,
    /// It handed over by `pair failover`, and leaves the new master alone.
    pub handed_over: bool,
    /// It has not the peer's state yet, and so leaves a living master alone.
    #[serde(default)]
    pub waits_for_state: bool,
    pub adverts_sent: u64,
    pub adverts_received: u64,
    /// Advertisements of other masters, of lower priority, while this node was master; and the seconds in which both
    /// nodes were, by the sync link.
    pub split_brains: u64,
    /// Claims of other nodes to addresses of this one, while it was master.
    #[serde(default)]
    pub address_claims: u64,
    /// Who has the addresses: `interface` or `dataplane`.
    #[serde(default)]
    pub held_by: String,
    /// For how long the dataplane answers for the addresses, in seconds, should the daemon be silent; 0 where this node
    /// is not master.
    #[serde(default)]
    pub lease: f64,
    /// What a master cannot do for the instance though it is no fault: e.g. send to one of several peers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How often each state was entered since the daemon started.
    pub transitions: BTreeMap<String, u64>,
}

/// Something that a master should have, and this node has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissingView {
    pub cause: String,
    /// Added to the priority, so mostly negative; 0 is a fault: this node is not master while it lasts.
    pub weight: i16,
}

/// A BFD session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BfdView {
    pub name: String,
    pub peer: IpAddr,
    /// `admin-down`, `down`, `init` or `up`.
    pub state: String,
    /// When it came into this state, in seconds since 1970.
    pub since: f64,
    /// Why there is no socket for it, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Since the start of the daemon, as all that is counted.
    #[serde(default)]
    pub packets_sent: u64,
    /// Those that passed all checks.
    #[serde(default)]
    pub packets_received: u64,
    /// How often each state was entered.
    #[serde(default)]
    pub transitions: BTreeMap<String, u64>,
}

/// All BFD sessions.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BfdStats {
    pub sessions: Vec<BfdView>,
    /// Packets of no effect, by reason; empty as long as there was no session.
    pub refused: Vec<RefusedView>,
}

/// Packets of no effect, by reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedView {
    pub reason: String,
    pub packets: u64,
}

/// `POST /v1/pair/failover`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    pub name: VrrpName,
}

/// `POST /v1/pair/hold`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    pub on: bool,
    /// Every instance where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VrrpName>,
}

impl Example for Failover {
    const EXAMPLE: &'static str = r#"{"name": "public"}"#;
}

impl Example for Hold {
    const EXAMPLE: &'static str = r#"{"on": true}, or {"on": true, "name": "public"}"#;
}

/// A request about the pair.
#[derive(Debug)]
pub enum PairCommand {
    List(Reply<Vec<PairView>>),
    Refused(Reply<Vec<RefusedView>>),
    Bfd(Reply<BfdStats>),
    /// None without `[sync]`.
    Link(Reply<Option<SyncView>>),
    Failover {
        name: VrrpName,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    Hold {
        name: Option<VrrpName>,
        on: bool,
        by: String,
        reply: Reply<ChangeView>,
    },
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new()
        .api_route("/v1/pair", get_with(list, about("Every virtual router of the pair")))
        .api_route("/v1/pair/refused", get_with(refused, about("VRRP packets of no effect, by reason")))
        .api_route(
            "/v1/pair/failover",
            post_with(failover, about("Gives the addresses of a virtual router to the peer")),
        )
        .api_route("/v1/pair/hold", post_with(hold, about("Keeps this node from being master, or lets it")))
}

async fn list(Shared(state): Shared<State>) -> Answered<Vec<PairView>> {
    state.ask(|reply| Command::Pair(PairCommand::List(reply))).await
}

async fn refused(Shared(state): Shared<State>) -> Answered<Vec<RefusedView>> {
    state.ask(|reply| Command::Pair(PairCommand::Refused(reply))).await
}

async fn failover(
    Shared(state): Shared<State>,
    NothingAsked: NothingAsked,
    Caller(by): Caller,
    Body(Failover { name }): Body<Failover>,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::Pair(PairCommand::Failover { name, by, reply })).await
}

async fn hold(
    Shared(state): Shared<State>,
    NothingAsked: NothingAsked,
    Caller(by): Caller,
    Body(Hold { on, name }): Body<Hold>,
) -> Answered<ChangeView> {
    state.ask(|reply| Command::Pair(PairCommand::Hold { name, on, by, reply })).await
}

impl Client {
    /// Every virtual router.
    pub async fn pair(&self) -> Result<Vec<PairView>, ClientError> {
        self.get("/v1/pair").await
    }

    /// Gives the addresses of a virtual router to the peer.
    pub async fn pair_failover(&self, name: &VrrpName) -> Result<ChangeView, ClientError> {
        self.send(Method::POST, "/v1/pair/failover", &Failover { name: name.clone() }).await
    }

    /// Keeps this node from being master, or lets it.
    pub async fn pair_hold(&self, on: bool, name: Option<&VrrpName>) -> Result<ChangeView, ClientError> {
        self.send(Method::POST, "/v1/pair/hold", &Hold { on, name: name.cloned() }).await
    }
}
