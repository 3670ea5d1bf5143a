//! Answers of megabytes.

use super::extract::Failure;
use aide::{
    OperationOutput,
    generate::GenContext,
    openapi::{Operation, Response as ResponseDoc},
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use std::marker::PhantomData;

/// As [`Json`], but written on a thread of its own: requests that are quickly answered share a few threads, and would wait.
pub(super) struct Long<T> {
    json: Vec<u8>,
    what: PhantomData<T>,
}

impl<T: Serialize + Send + 'static> Long<T> {
    pub(super) async fn of(value: T) -> Result<Self, Failure> {
        let json = tokio::task::spawn_blocking(move || serde_json::to_vec(&value)).await;
        let json =
            json.map_err(|error| error.to_string()).and_then(|json| json.map_err(|error| error.to_string()));
        match json {
            Ok(json) => Ok(Self { json, what: PhantomData }),
            Err(error) => Err(Failure::state(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the answer could not be encoded: {error}; please report it"),
            )),
        }
    }
}

impl<T> IntoResponse for Long<T> {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.json).into_response()
    }
}

impl<T: JsonSchema> OperationOutput for Long<T> {
    type Inner = T;

    fn operation_response(ctx: &mut GenContext, operation: &mut Operation) -> Option<ResponseDoc> {
        Json::<T>::operation_response(ctx, operation)
    }

    fn inferred_responses(
        ctx: &mut GenContext,
        operation: &mut Operation,
    ) -> Vec<(Option<u16>, ResponseDoc)> {
        Json::<T>::inferred_responses(ctx, operation)
    }
}
