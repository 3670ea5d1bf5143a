//! `lbctl fleet` against a daemon that knows one document.

use super::engine::Daemon;
use lb_userspace::control::{
    command::CommandError,
    fleet::{FleetCommand, FleetDocument, FleetView, PutAnswer},
};

const GENERATION: u64 = 17;

pub fn obey(command: FleetCommand) {
    match command {
        FleetCommand::Status(reply) => {
            let _ = reply.send(Ok(FleetView {
                configured: true,
                generation: Some(GENERATION),
                ..FleetView::default()
            }));
        }
        FleetCommand::Get(reply) => {
            let text = "[[service]]\n".to_owned();
            let _ = reply.send(Ok(FleetDocument {
                key: "/lbd/x/config".to_owned(),
                generation: GENERATION,
                text,
            }));
        }
        FleetCommand::Put { put, by, reply } => {
            let answer = match put.if_generation {
                Some(GENERATION) => Ok(PutAnswer {
                    message: format!("taken from {by}: {:?}, force {}", put.text, put.force),
                    generation: GENERATION + 1,
                    warnings: vec!["no ring_size".to_owned()],
                }),
                other => Err(CommandError::Conflict(format!("not {other:?}"))),
            };
            let _ = reply.send(answer);
        }
    }
}

#[test]
fn a_document_is_read_and_written_by_its_generation() {
    let daemon = Daemon::start();
    let (code, found) = daemon.http("GET", "/v1/fleet/document", "");
    assert_eq!((code, found["generation"].as_u64()), (200, Some(GENERATION)));
    let (code, said) =
        daemon.http("PUT", "/v1/fleet/document", r#"{"text": "a = 1", "if_generation": 17, "force": true}"#);
    assert_eq!(code, 200, "{said}");
    assert!(said["message"].as_str().is_some_and(|m| m.contains("\"a = 1\", force true")), "{said}");
    let (code, said) = daemon.http("PUT", "/v1/fleet/document", r#"{"text": "a = 1", "if_generation": 16}"#);
    assert_eq!((code, said["error"].as_str()), (409, Some("not Some(16)")));
    let (code, _) = daemon.http("PUT", "/v1/fleet/document", r#"{"text": "a = 1", "generation": 16}"#);
    assert_eq!(code, 400, "a misspelt condition is not ignored");
    let large = format!(r#"{{"text": "{}", "if_generation": 17}}"#, "x".repeat(1_500_000));
    assert_eq!(daemon.http("PUT", "/v1/fleet/document", &large).0, 200, "documents may be large");
}
