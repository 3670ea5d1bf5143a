//! Drains that are waited for, plans and `--force`.

use super::command_line::{fails, ok};
use super::engine::{Daemon, backend, find, obey as obey_all};
use lb_userspace::control::api::{ChangeView, ServiceView};
use lb_userspace::control::command::Command;
use lb_userspace::control::gradual::{ChangeOptions, DrainView, GradualCommand, PlanView, ServicePlan};
use lb_userspace::model::Admin;
use std::sync::Mutex;

/// A drained backend loses a flow with every look; one that is planned stays as it is.
pub fn obey(command: GradualCommand, services: &mut Vec<ServiceView>, asked_by: &Mutex<Vec<String>>) {
    match command {
        GradualCommand::With { options: ChangeOptions { plan: true, .. }, command } => {
            let Command::BackendAdmin { service, name, admin, by, reply, .. } = *command else {
                panic!("another change was planned")
            };
            asked_by.lock().unwrap().push(by);
            let plan = ServicePlan {
                service: service.to_string(),
                what: "changed".to_owned(),
                slots_total: 1009,
                slots_moved: 333,
                disruption_percent: 34,
                max_disruption: Some(10),
                over_budget: true,
                ..ServicePlan::default()
            };
            let _ = reply.send(Ok(ChangeView {
                message: format!("backend {name} of {service} is {admin}"),
                planned_only: true,
                plan: Some(PlanView { services: vec![plan], map_changes: 2 }),
                ..ChangeView::default()
            }));
        }
        GradualCommand::With { options: ChangeOptions { force, .. }, command } => {
            assert!(force);
            obey_all(*command, services, asked_by);
        }
        GradualCommand::Drain { service, backend: name, reply } => {
            let result = find(services, service.as_str()).and_then(|s| backend(s, name.as_str()));
            let _ = reply.send(result.map(|found| {
                let left = found.slots.min(2);
                found.slots = left.saturating_sub(1);
                DrainView {
                    service: service.to_string(),
                    backend: name.to_string(),
                    admin: found.admin,
                    health: found.health,
                    owned_slots: 0,
                    moving_slots: 0,
                    settled_in_seconds: None,
                    tracked_flows: left.into(),
                    closing_flows: 0,
                    half_open_flows: 0,
                    sessions: 0,
                    ends_in_seconds: None,
                    note: None,
                    done: left == 0 && found.admin != Admin::Enabled,
                }
            }));
        }
    }
}

#[test]
fn a_drain_is_waited_for() {
    let daemon = Daemon::start();
    let text = ok(&daemon.socket, "backend drain www web1 --wait --then remove");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "backend web1 of www is draining",
            "web1 of www, draining: 2 flows",
            "web1 of www, draining: 1 flow",
            "web1 of www, draining: nothing left",
            "backend web1 removed from www",
        ]
    );
    let text = ok(&daemon.socket, "-o json backend drain www web2 --wait");
    let views: Vec<DrainView> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        views.iter().map(|v| (v.left(), v.done)).collect::<Vec<_>>(),
        [(2, false), (1, false), (0, true)]
    );
}

#[test]
fn a_drain_that_is_waited_for_begins_at_the_revision_asked_for() {
    let daemon = Daemon::start();
    fails(&daemon.socket, "--if-revision 6 backend drain www web1 --wait", 1);
    let text = ok(&daemon.socket, "--if-revision 7 backend drain www web1 --wait");
    assert!(text.ends_with("web1 of www, draining: nothing left\n"), "{text}");
    // Over TLS, to a server that is not there: not to the daemon at the socket.
    fails(&daemon.socket, "--server https://127.0.0.1:1 backend drain www web1 --wait", 2);
}

#[test]
fn a_plan_of_what_cannot_be_planned_is_refused() {
    let daemon = Daemon::start();
    for (method, path, body) in [
        ("POST", "/v1/detach", "{}"),
        ("POST", "/v1/save", "{}"),
        ("POST", "/v1/pair/hold", r#"{"on": true}"#),
        ("POST", "/v1/pair/failover", r#"{"name": "public"}"#),
        ("PUT", "/v1/fleet/document", r#"{"text": ""}"#),
    ] {
        let (status, view) = daemon.refused(method, &format!("{path}?plan=true"), body);
        assert!(status == 400 && view.error.contains("'plan=true'"), "{path}: {status} {view:?}");
    }
}

#[test]
fn a_drain_that_takes_too_long_says_what_is_left() {
    let daemon = Daemon::start();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command.arg("--socket").arg(&daemon.socket);
    let output =
        command.args(["backend", "drain", "www", "web1", "--wait", "--timeout", "1s"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not over after 1s; it goes on: web1 of www, draining: "), "{said}");
    fails(&daemon.socket, "backend drain www web1 --timeout 1s", 2);
    fails(&daemon.socket, "backend drain www web1 --wait --deadline 5", 2);
}

#[test]
fn plans_and_force_are_asked_for() {
    let daemon = Daemon::start();
    let text = ok(&daemon.socket, "backend disable www web1 --plan");
    assert!(text.contains("over 10 %: needs --force") && text.contains("nothing was touched"), "{text}");
    let text = ok(&daemon.socket, "backend disable www web1 --force");
    assert_eq!(text, "backend web1 of www is disabled\n");
    fails(&daemon.socket, "backend disable www web1 --plan --force", 2);
    let (status, view) = daemon.refused("PUT", "/v1/services/www/backends/web1/admin?plan=maybe", "{}");
    assert!(status == 400 && view.error.contains("query"), "{status} {view:?}");
    let body = r#"{"admin": "enabled", "end_after_seconds": 5}"#;
    let (status, view) = daemon.refused("PUT", "/v1/services/www/backends/web1/admin", body);
    assert!(status == 422 && view.error.contains("belongs to a drain"), "{status} {view:?}");
}
