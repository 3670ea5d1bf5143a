//! The description of the control API (OpenAPI 3.1), made from the routes and their types, so that it cannot say
//! anything else than they do. `docs/openapi.json` is a copy.

use super::{
    api::ErrorView,
    extract::{Asked, BackendPath, Body, Caller, Failure, NothingAsked, OfBackend, OfService, ServicePath},
    server::{self, State},
};
use aide::{
    OperationInput, OperationOutput,
    axum::ApiRouter,
    generate::GenContext,
    openapi::{MediaType, OpenApi, Operation, ReferenceOr, RequestBody, Response, SchemaObject, StatusCode},
    operation::{ParamLocation, add_parameters, parameters_from_schema, set_body},
    transform::TransformOperation,
};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde_json::{Map, Value, json};
use std::sync::OnceLock;

pub(super) const PATH: &str = "/v1/openapi.json";

static DESCRIPTION: OnceLock<Value> = OnceLock::new();

const INTRODUCTION: &str = "\
Over the Unix socket `run_dir/lbd.sock` (all of it) or `run_dir/lbd-ro.sock` (only what changes nothing), and over TCP \
with mutual TLS where the configuration says so.\n\n\
Every answer carries the revision of the runtime state as its `ETag`; a request with `If-Match` is carried out only at \
that revision, and refused with 412 otherwise. Every error is an `ErrorView`: 400, 413 and 422 say that the request is \
wrong, 403 that the asker may not, 404 that it names what is not there, 409 that it contradicts the present state, 500 \
that it could not be carried out (nothing was changed), 503 that lbd is busy or ending.";

/// The summary of an operation.
pub(super) fn about(
    summary: &'static str,
) -> impl for<'a> FnOnce(TransformOperation<'a>) -> TransformOperation<'a> {
    move |operation| operation.summary(summary)
}

/// An answer that goes on: one `T` after the other.
pub(super) fn lines<'a, T: JsonSchema>(
    mut operation: TransformOperation<'a>,
    media_type: &str,
) -> TransformOperation<'a> {
    aide::generate::in_context(|ctx| {
        let response = Response {
            description: "One after the other, until the reader hangs up or lbd ends.".to_owned(),
            content: [(media_type.to_owned(), media::<T>(ctx))].into_iter().collect(),
            ..Response::default()
        };
        let responses = operation.inner_mut().responses.get_or_insert_default();
        responses.responses.insert(StatusCode::Code(200), ReferenceOr::Item(response));
    });
    operation
}

fn media<T: JsonSchema>(ctx: &mut GenContext) -> MediaType {
    let json_schema = ctx.schema.subschema_for::<T>();
    let schema = SchemaObject { json_schema, example: None, external_docs: None };
    MediaType { schema: Some(schema), ..MediaType::default() }
}

fn parameters<T: JsonSchema>(ctx: &mut GenContext, operation: &mut Operation, location: ParamLocation) {
    let schema = ctx.schema.subschema_for::<T>();
    let parameters = parameters_from_schema(ctx, schema, location);
    add_parameters(ctx, operation, parameters);
}

impl OperationInput for OfService {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        parameters::<ServicePath>(ctx, operation, ParamLocation::Path);
    }
}

impl OperationInput for OfBackend {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        parameters::<BackendPath>(ctx, operation, ParamLocation::Path);
    }
}

impl<T: JsonSchema> OperationInput for Asked<T> {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        parameters::<T>(ctx, operation, ParamLocation::Query);
    }
}

impl OperationInput for Caller {}

impl OperationInput for NothingAsked {}

impl<T: JsonSchema + serde::de::DeserializeOwned> OperationInput for Body<T> {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        let body = RequestBody {
            content: [("application/json".to_owned(), media::<T>(ctx))].into_iter().collect(),
            // Nothing at all counts as {}.
            required: serde_json::from_str::<T>("{}").is_err(),
            ..RequestBody::default()
        };
        set_body(ctx, operation, body);
    }
}

/// The header of a watch that is resumed.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct LastEventIdHeader {
    /// Id of the last event that was seen.
    #[schemars(rename = "Last-Event-ID")]
    last_event_id: Option<String>,
}

pub(super) struct LastEventId;

impl OperationInput for LastEventId {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        parameters::<LastEventIdHeader>(ctx, operation, ParamLocation::Header);
    }
}

impl OperationOutput for Failure {
    type Inner = ErrorView;

    fn operation_response(ctx: &mut GenContext, _: &mut Operation) -> Option<Response> {
        Some(Response {
            description: "It was not done, and why.".to_owned(),
            content: [("application/json".to_owned(), media::<ErrorView>(ctx))].into_iter().collect(),
            ..Response::default()
        })
    }

    fn inferred_responses(ctx: &mut GenContext, operation: &mut Operation) -> Vec<(Option<u16>, Response)> {
        Self::operation_response(ctx, operation).map(|response| (None, response)).into_iter().collect()
    }
}

pub(super) async fn serve() -> Json<Map<String, Value>> {
    Json(description().as_object().cloned().unwrap_or_default())
}

/// The router of described routes.
pub(super) fn described(routes: ApiRouter<State>) -> Router<State> {
    routes.finish_api(&mut OpenApi::default())
}

/// The description, made once.
pub fn description() -> &'static Value {
    DESCRIPTION.get_or_init(|| {
        let mut api = OpenApi::default();
        let _: Router<State> = server::routes().finish_api(&mut api);
        let mut value = serde_json::to_value(&api).unwrap_or_default();
        complete(&mut value);
        value
    })
}

/// What all operations have in common.
fn complete(api: &mut Value) {
    api["info"] = json!({
        "title": "lbd control API",
        "version": env!("CARGO_PKG_VERSION"),
        "description": INTRODUCTION,
        "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
    });
    let revision = json!({"type": "string", "pattern": "^\"[0-9]+\"$"});
    for (path, item) in api["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let words = path.trim_start_matches("/v1/").replace(['/', '.'], "_").replace(['{', '}'], "");
            operation["operationId"] = json!(format!("{method}_{words}"));
            if path == PATH {
                continue;
            }
            let etag = json!({"description": "Revision of the runtime state.", "schema": revision});
            operation["responses"]["200"]["headers"]["ETag"] = etag;
            if path == "/v1/detach" {
                continue;
            }
            let condition = json!({
                "name": "If-Match",
                "in": "header",
                "description": "Carry it out only at this revision, e.g. \"12\".",
                "schema": {"type": "string", "pattern": "^(\\*|\"?[0-9]{1,19}\"?(, *\"?[0-9]{1,19}\"?)*)$"},
            });
            match operation["parameters"].as_array_mut() {
                Some(parameters) => parameters.push(condition),
                None => operation["parameters"] = json!([condition]),
            }
        }
    }
}
