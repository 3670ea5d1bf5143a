//! Lists and limits over the control API: requests, answers, commands, and their handlers.

use super::{
    api::ChangeView,
    client::{Client, ClientError},
    command::{Command, Reply},
    extract::{Asked, Body, Caller, OfService},
    gradual::ChangeOptions,
    openapi::about,
    request::{Example, Nothing},
    server::{Answered, State},
};
use crate::model::{LimitPatch, LimitSpec, ServiceName, Verdict};
use aide::axum::{
    ApiRouter,
    routing::{get_with, post_with, put_with},
};
use axum::extract::State as Shared;
use http::Method;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One prefix of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrefixView {
    #[schemars(with = "String")]
    pub prefix: IpNet,
    /// `file` or `runtime`.
    pub origin: String,
}

/// The limits of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitsView {
    pub service: String,
    /// Per second; 0 = no limit.
    #[serde(flatten)]
    pub limits: LimitSpec,
    /// `file`, or `runtime` if any of them was set at run time.
    pub origin: String,
    /// Sources that may use the service; empty = all.
    #[schemars(with = "Vec<String>")]
    pub allow: Vec<IpNet>,
}

/// `POST /v1/deny/add` and its kin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prefixes {
    #[schemars(with = "Vec<String>")]
    pub prefixes: Vec<IpNet>,
}

impl Example for Prefixes {
    const EXAMPLE: &'static str = r#"{"prefixes": ["203.0.113.0/24", "2001:db8:bad::/48"]}"#;
    /// 100,000 prefixes of IPv6 take some 4 MiB.
    const ROOM: usize = 256;
}

impl Example for LimitPatch {
    const EXAMPLE: &'static str = r#"{"source_connections_per_second": 50, "burst_ms": 1000}"#;
}

/// A request about lists and limits.
#[derive(Debug)]
pub enum FirewallCommand {
    List {
        list: Verdict,
        reply: Reply<Vec<PrefixView>>,
    },
    Change {
        list: Verdict,
        add: bool,
        prefixes: Vec<IpNet>,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    Limits(Reply<Vec<LimitsView>>),
    SetLimits {
        service: ServiceName,
        patch: LimitPatch,
        by: String,
        reply: Reply<ChangeView>,
    },
    ClearLimits {
        service: ServiceName,
        by: String,
        reply: Reply<ChangeView>,
    },
}

/// The paths of lists and limits.
pub(super) fn routes() -> ApiRouter<State> {
    let list = |list: Verdict, what: &'static str| {
        get_with(
            async move |Shared(state): Shared<State>| -> Answered<Vec<PrefixView>> {
                state.ask(|reply| Command::Firewall(FirewallCommand::List { list, reply })).await
            },
            about(what),
        )
    };
    let change = |list: Verdict, add: bool, what: &'static str| {
        post_with(
            async move |Shared(state): Shared<State>,
                        Asked(options): Asked<ChangeOptions>,
                        Caller(by): Caller,
                        Body(Prefixes { prefixes }): Body<Prefixes>|
                        -> Answered<ChangeView> {
                let command =
                    |reply| Command::Firewall(FirewallCommand::Change { list, add, prefixes, by, reply });
                state.change(options, command).await
            },
            about(what),
        )
    };
    ApiRouter::new()
        .api_route("/v1/deny", list(Verdict::Deny, "Sources whose packets are dropped"))
        .api_route("/v1/deny/add", change(Verdict::Deny, true, "Denies sources"))
        .api_route("/v1/deny/remove", change(Verdict::Deny, false, "Denies sources no more"))
        .api_route("/v1/allow", list(Verdict::Allow, "Exceptions inside denied prefixes"))
        .api_route("/v1/allow/add", change(Verdict::Allow, true, "Makes exceptions"))
        .api_route("/v1/allow/remove", change(Verdict::Allow, false, "Ends exceptions"))
        .api_route("/v1/limits", get_with(limits, about("Limits of every service")))
        .api_route("/v1/services/{service}/limits", put_with(set_limits, about("Sets limits of a service")))
        .api_route(
            "/v1/services/{service}/limits/clear",
            post_with(clear_limits, about("Back to the limits of the configuration")),
        )
}

async fn limits(Shared(state): Shared<State>) -> Answered<Vec<LimitsView>> {
    state.ask(|reply| Command::Firewall(FirewallCommand::Limits(reply))).await
}

async fn set_limits(
    Shared(state): Shared<State>,
    OfService(service): OfService,
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
    Body(patch): Body<LimitPatch>,
) -> Answered<ChangeView> {
    state
        .change(options, |reply| Command::Firewall(FirewallCommand::SetLimits { service, patch, by, reply }))
        .await
}

async fn clear_limits(
    Shared(state): Shared<State>,
    OfService(service): OfService,
    Asked(options): Asked<ChangeOptions>,
    Caller(by): Caller,
    Body(Nothing {}): Body<Nothing>,
) -> Answered<ChangeView> {
    state
        .change(options, |reply| Command::Firewall(FirewallCommand::ClearLimits { service, by, reply }))
        .await
}

impl Client {
    /// The deny list, or its exceptions.
    pub async fn prefixes(&self, list: Verdict) -> Result<Vec<PrefixView>, ClientError> {
        self.get(&format!("/v1/{list}")).await
    }

    /// Adds prefixes to a list, or removes them.
    pub async fn change_prefixes(
        &self,
        list: Verdict,
        add: bool,
        prefixes: Vec<IpNet>,
    ) -> Result<ChangeView, ClientError> {
        let verb = if add { "add" } else { "remove" };
        self.send(Method::POST, &format!("/v1/{list}/{verb}"), &Prefixes { prefixes }).await
    }

    /// The limits of every service.
    pub async fn limits(&self) -> Result<Vec<LimitsView>, ClientError> {
        self.get("/v1/limits").await
    }

    /// Sets some limits of a service.
    pub async fn set_limits(
        &self,
        service: &ServiceName,
        patch: &LimitPatch,
    ) -> Result<ChangeView, ClientError> {
        self.send(Method::PUT, &format!("/v1/services/{service}/limits"), patch).await
    }

    /// Back to the limits of the configuration.
    pub async fn clear_limits(&self, service: &ServiceName) -> Result<ChangeView, ClientError> {
        self.send(Method::POST, &format!("/v1/services/{service}/limits/clear"), &Nothing {}).await
    }
}
