//! Drains to watch, plans of changes, and how a change is asked for: answers, commands and their handlers. As in
//! [`super::api`]: fields are added, never renamed.

use super::{
    api::ChangeView,
    client::{Client, ClientError},
    command::{Command, Reply},
    extract::OfBackend,
    openapi::about,
    request::{SetAdmin, SetWeight},
    server::{Answered, State},
};
use crate::model::{Admin, BackendName, Health, ServiceName};
use aide::axum::{ApiRouter, routing::get_with};
use axum::extract::State as Shared;
use http::Method;
use serde::{Deserialize, Serialize};

/// The query of every change: `?plan=true`, `?force=true`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeOptions {
    /// Only say what would change.
    #[serde(default)]
    pub plan: bool,
    /// Also if it moves more of a service than its `max_disruption`.
    #[serde(default)]
    pub force: bool,
}

impl ChangeOptions {
    /// A path with them in its query.
    pub(super) fn on(self, path: &str) -> String {
        let query: Vec<_> = [(self.plan, "plan=true"), (self.force, "force=true")]
            .into_iter()
            .filter_map(|(asked, text)| asked.then_some(text))
            .collect();
        if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
    }
}

/// What a change would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PlanView {
    /// Those that it touches.
    pub services: Vec<ServicePlan>,
    /// Writes to the maps.
    pub map_changes: usize,
}

/// What a change would do to a service. An established flow stays where it is as long as its backend takes packets: what ends
/// are the flows of backends that do so no more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServicePlan {
    pub service: String,
    /// `added`, `changed`, or `removed` (also: made anew with another ring).
    pub what: String,
    pub slots_total: u32,
    /// Slots whose new flows go to another backend at once.
    pub slots_moved: u32,
    /// Slots that follow as shares reach their weights.
    pub slots_moved_later: u32,
    /// Slots whose established flows end.
    pub slots_ended: u32,
    /// Flows with an entry that end; exact.
    pub tracked_flows_ended: u64,
    /// NAT sessions that end; exact.
    pub sessions_ended: u64,
    /// Flows without an entry that end, by those recorded in other slots of the service; absent where none are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_flows_ended_estimate: Option<u64>,
    /// Percent of the service's flows without an entry that end, as their slots are of all; rounded up.
    pub other_flows_ended_percent: u8,
    /// Percent of the slots that move or whose flows end at once, rounded up.
    pub disruption_percent: u8,
    /// What the configuration allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_disruption: Option<u8>,
    pub over_budget: bool,
    pub backends: Vec<BackendPlan>,
}

/// Slots of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BackendPlan {
    pub name: String,
    pub slots_before: u32,
    /// At once.
    pub slots_after: u32,
    /// Once every share has reached its weight.
    pub slots_later: u32,
}

/// Of a backend: what of it changes by itself, and who is still there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GradualView {
    /// Its share of new flows at present; 0 while it takes none.
    #[serde(default)]
    pub effective_weight: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<RampView>,
    /// Slots whose new flows go elsewhere and whose established flows are still with it.
    #[serde(default)]
    pub moving_slots: u32,
    /// Flows and handshakes with an entry, and NAT sessions, as of at most some seconds ago.
    #[serde(default)]
    pub tracked_flows: u64,
    #[serde(default)]
    pub sessions: u64,
    /// Until its drain ends what is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_ends_in_seconds: Option<u64>,
}

/// A share on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RampView {
    /// `slow-start` or `weight`.
    pub cause: String,
    /// Of the way.
    pub percent: u8,
    pub seconds_left: u64,
}

/// `GET /v1/services/{service}/backends/{backend}/drain`: who is still there, counted when asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DrainView {
    pub service: String,
    pub backend: String,
    pub admin: Admin,
    pub health: Health,
    /// Slots whose new flows it takes.
    pub owned_slots: u32,
    /// Slots whose new flows go elsewhere and whose flows without an entry are still with it.
    pub moving_slots: u32,
    /// Until the last of them settles, if nothing else changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_in_seconds: Option<u64>,
    /// Entries of the flow tables that name it: flows that go on, those whose end was seen, and handshakes.
    pub tracked_flows: u64,
    pub closing_flows: u64,
    pub half_open_flows: u64,
    /// NAT sessions.
    pub sessions: u64,
    /// Until the drain ends what is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_in_seconds: Option<u64>,
    /// What keeps it from ending, e.g. that no other backend takes new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// It takes no new flows, no slot is left to settle, and no entry names it.
    pub done: bool,
}

impl DrainView {
    /// Entries of any kind.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.tracked_flows + self.closing_flows + self.half_open_flows + self.sessions
    }
}

/// A request about gradual changes.
#[derive(Debug)]
pub enum GradualCommand {
    /// A change, and how it is asked for.
    With {
        options: ChangeOptions,
        command: Box<Command>,
    },
    Drain {
        service: ServiceName,
        backend: BackendName,
        reply: Reply<DrainView>,
    },
}

pub(super) fn routes() -> ApiRouter<State> {
    ApiRouter::new().api_route(
        "/v1/services/{service}/backends/{backend}/drain",
        get_with(drain, about("Who is still with a backend, counted when asked")),
    )
}

async fn drain(Shared(state): Shared<State>, OfBackend(service, backend): OfBackend) -> Answered<DrainView> {
    state.ask(|reply| Command::Gradual(GradualCommand::Drain { service, backend, reply })).await
}

impl State {
    /// One change and its answer.
    pub(super) async fn change<T>(
        &self,
        options: ChangeOptions,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Answered<T> {
        self.ask(|reply| match options {
            ChangeOptions { plan: false, force: false } => command(reply),
            options => Command::Gradual(GradualCommand::With { options, command: Box::new(command(reply)) }),
        })
        .await
    }
}

impl Client {
    /// Who is still with a backend.
    pub async fn drain(
        &self,
        service: &ServiceName,
        backend: &BackendName,
    ) -> Result<DrainView, ClientError> {
        self.get(&format!("/v1/services/{service}/backends/{backend}/drain")).await
    }

    /// Sets the administrative state of a backend, of a drain with its end.
    pub async fn set_admin(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        body: &SetAdmin,
    ) -> Result<ChangeView, ClientError> {
        self.send(Method::PUT, &format!("/v1/services/{service}/backends/{backend}/admin"), body).await
    }

    /// Sets the weight of a backend, at once or over a time.
    pub async fn set_weight(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        body: &SetWeight,
    ) -> Result<ChangeView, ClientError> {
        self.send(Method::PUT, &format!("/v1/services/{service}/backends/{backend}/weight"), body).await
    }
}
