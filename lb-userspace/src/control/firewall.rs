//! Lists and limits over the control API: requests, answers, commands, and their handlers.

use super::{
    api::ChangeView,
    client::{Client, ClientError},
    command::{Command, Reply},
    extract::{Asked, Body, Caller, OfService},
    gradual::ChangeOptions,
    request::{Example, Nothing},
    server::{Answered, State},
};
use crate::model::{LimitPatch, LimitSpec, ServiceName, Verdict};
use axum::{
    Router,
    extract::State as Shared,
    routing::{get, post, put},
};
use http::Method;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One prefix of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixView {
    pub prefix: IpNet,
    /// `file` or `runtime`.
    pub origin: String,
}

/// The limits of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsView {
    pub service: String,
    /// Per second; 0 = no limit.
    #[serde(flatten)]
    pub limits: LimitSpec,
    /// `file`, or `runtime` if any of them was set at run time.
    pub origin: String,
    /// Sources that may use the service; empty = all.
    pub allow: Vec<IpNet>,
}

/// `POST /v1/deny/add` and its kin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefixes {
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
pub(super) fn routes() -> Router<State> {
    let list = |list: Verdict| {
        get(async move |Shared(state): Shared<State>| -> Answered<Vec<PrefixView>> {
            state.ask(|reply| Command::Firewall(FirewallCommand::List { list, reply })).await
        })
    };
    let change = |list: Verdict, add: bool| {
        post(
            async move |Shared(state): Shared<State>,
                        Asked(options): Asked<ChangeOptions>,
                        Caller(by): Caller,
                        Body(Prefixes { prefixes }): Body<Prefixes>|
                        -> Answered<ChangeView> {
                let command =
                    |reply| Command::Firewall(FirewallCommand::Change { list, add, prefixes, by, reply });
                state.change(options, command).await
            },
        )
    };
    Router::new()
        .route("/v1/deny", list(Verdict::Deny))
        .route("/v1/deny/add", change(Verdict::Deny, true))
        .route("/v1/deny/remove", change(Verdict::Deny, false))
        .route("/v1/allow", list(Verdict::Allow))
        .route("/v1/allow/add", change(Verdict::Allow, true))
        .route("/v1/allow/remove", change(Verdict::Allow, false))
        .route("/v1/limits", get(limits))
        .route("/v1/services/{service}/limits", put(set_limits))
        .route("/v1/services/{service}/limits/clear", post(clear_limits))
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
