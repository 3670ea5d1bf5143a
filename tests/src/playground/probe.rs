//! What the router asks the balancers.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use serde::Deserialize;

use super::failover::Finding;
use crate::{
    client::{self, RequestError},
    lab::Netns,
};

/// The part of `/api/snapshot.json` that matters here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Snapshot {
    status: Status,
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, Deserialize)]
struct Status {
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Deserialize)]
struct Interface {
    mode: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Service {
    pub name: String,
    slots: Slots,
    pub backends: Vec<Backend>,
}

#[derive(Debug, Clone, Deserialize)]
struct Slots {
    moving: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Backend {
    pub name: String,
    pub admin: String,
    pub health: String,
    pub packets: u64,
}

/// What a balancer says about itself.
pub(super) fn snapshot(
    router: &Netns,
    target: SocketAddr,
    patience: Duration,
) -> Result<Snapshot, RequestError> {
    let response = client::get(router, target, "/api/snapshot.json", patience)?;
    let refused = RequestError::Status { backend: target.to_string(), status: response.status };
    serde_json::from_slice(&response.body).map_err(|_| refused)
}

/// Whether a balancer can be sent packets; `links` is where the pins of its attachment are, which tell what is
/// true when its daemon is not there to ask.
pub(super) fn probe(router: &Netns, target: SocketAddr, links: &Path, patience: Duration) -> Finding {
    judge(snapshot(router, target, patience), || links.exists())
}

fn judge(answer: Result<Snapshot, RequestError>, pinned: impl FnOnce() -> bool) -> Finding {
    match answer {
        Ok(Snapshot { status, services }) => {
            let attached = |interface: &Interface| matches!(interface.mode.as_str(), "native" | "generic");
            if status.interfaces.is_empty() || !status.interfaces.iter().all(attached) {
                return Finding::Gone("has lost its XDP program".to_owned());
            }
            let takes = |backend: &&Backend| backend.admin == "enabled" && backend.health != "down";
            let backends = services.iter().flat_map(|service| &service.backends).filter(takes).count();
            let moving = services.iter().map(|service| service.slots.moving).sum();
            Finding::Forwards { backends, moving }
        }
        // The host refuses, so that it is there: only its daemon is not.
        Err(RequestError::Connect(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            if pinned() {
                Finding::NoDaemon
            } else {
                Finding::Gone("has no lbd and no XDP program".to_owned())
            }
        }
        Err(_) => Finding::Gone("does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(mode: &str, health: [&str; 2]) -> Result<Snapshot, RequestError> {
        let backend =
            |health| format!(r#"{{"name":"web1","admin":"enabled","health":"{health}","packets":1}}"#);
        let text = format!(
            r#"{{"status":{{"node":"lb1","interfaces":[{{"name":"eth0","mode":"{mode}"}}]}},
                "services":[{{"name":"www","slots":{{"moving":7}},"backends":[{},{}]}}],"drops":[]}}"#,
            backend(health[0]),
            backend(health[1])
        );
        Ok(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_balancer_is_judged_by_its_program_not_by_its_daemon() {
        let connect = |kind| Err(RequestError::Connect(io::Error::from(kind)));
        let judged = |answer, pinned| judge(answer, || pinned);
        assert_eq!(
            judged(answer("native", ["up", "unknown"]), false),
            Finding::Forwards { backends: 2, moving: 7 }
        );
        assert_eq!(
            judged(answer("generic", ["up", "down"]), false),
            Finding::Forwards { backends: 1, moving: 7 }
        );
        assert!(matches!(judged(answer("detached", ["up", "up"]), true), Finding::Gone(_)));
        assert_eq!(judged(connect(io::ErrorKind::ConnectionRefused), true), Finding::NoDaemon);
        assert!(matches!(judged(connect(io::ErrorKind::ConnectionRefused), false), Finding::Gone(_)));
        assert!(matches!(judged(connect(io::ErrorKind::TimedOut), true), Finding::Gone(_)));
    }
}
