//! The Redis check (Valkey and others that speak its protocol too): `PING`; with a role asked for, `ROLE`.

use super::{Deadline, Peer, ProbeFailure, Stage, connect, judge_role, secret};
use crate::model::{RedisCheck, Role};
use redis::{
    AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection, cmd,
};
use std::{io, pin::pin};

const WHAT: &str = "Redis";

/// Passes if the server at `address` answers, and has the role.
pub async fn probe(
    peer: impl Into<Peer>,
    check: &RedisCheck,
    deadline: Deadline,
) -> Result<(), ProbeFailure> {
    let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(file) = &check.password_file {
        login = login.set_password(deadline.limit(Stage::Connect, secret::read(file)).await?);
        if let Some(user) = &check.user {
            login = login.set_username(user);
        }
    }
    let stream = deadline.limit(Stage::Connect, connect(peer.into())).await?;
    // The deadline is ours, not the library's.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let opened = async {
        let opened = MultiplexedConnection::new_with_config(&login, stream, config).await;
        opened.map_err(|error| failure(&error))
    };
    let (connection, driver) = deadline.limit(Stage::Answer, opened).await?;
    let mut asked = pin!(deadline.limit(Stage::Answer, ask(connection, check.role)));
    // The connection lives in this future, not in a task of its own: nothing is left when it is dropped.
    tokio::select! {
        biased;
        result = &mut asked => result,
        () = driver => asked.await,
    }
}

async fn ask(mut connection: MultiplexedConnection, role: Role) -> Result<(), ProbeFailure> {
    let not_redis = || ProbeFailure::NotProtocol { what: WHAT };
    let pong: Value = cmd("PING").query_async(&mut connection).await.map_err(|error| failure(&error))?;
    if !matches!(&pong, Value::SimpleString(text) if text == "PONG") {
        return Err(not_redis());
    }
    if role == Role::Any {
        return Ok(());
    }
    let answer: Value = cmd("ROLE").query_async(&mut connection).await.map_err(|error| failure(&error))?;
    let word = match &answer {
        Value::Array(parts) => parts.first(),
        _ => None,
    };
    let found = match word {
        Some(Value::BulkString(word)) if word == b"master" => Role::Primary,
        Some(Value::BulkString(word)) if word == b"slave" || word == b"replica" => Role::Replica,
        _ => return Err(not_redis()),
    };
    judge_role(found, role)
}

/// Names the reason of the library's error.
fn failure(error: &RedisError) -> ProbeFailure {
    if let Some(io) = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>()) {
        return ProbeFailure::from_io(io, Stage::Answer);
    }
    match error.kind() {
        ErrorKind::Parse => ProbeFailure::NotProtocol { what: WHAT },
        // The library does not pass on what the server said.
        ErrorKind::AuthenticationFailed => {
            ProbeFailure::Server { what: WHAT, said: "the login is refused".to_owned() }
        }
        ErrorKind::Io => ProbeFailure::Closed { stage: Stage::Answer },
        _ => {
            let said: String = error.to_string().chars().take(200).collect();
            ProbeFailure::Server { what: WHAT, said }
        }
    }
}
