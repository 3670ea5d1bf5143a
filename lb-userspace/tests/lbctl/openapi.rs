//! The description of the API says what the server does, no more and no less.

use super::engine::Daemon;
use lb_userspace::control::openapi::description;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn operations() -> Vec<(String, String, Value)> {
    let paths = description()["paths"].as_object().unwrap();
    let of = |(path, item): (&String, &Value)| {
        let item = item.as_object().unwrap().clone();
        let path = path.clone();
        item.into_iter().map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
    };
    paths.iter().flat_map(of).collect()
}

#[test]
fn the_copy_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let found = serde_json::to_string_pretty(description()).unwrap() + "\n";
    if std::env::var_os("LBD_BLESS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let copy = std::fs::read_to_string(&path).unwrap();
    assert!(copy == found, "docs/openapi.json is not what the routes say (LBD_BLESS=1 renews it)");
    let (code, served) = Daemon::start().http("GET", "/v1/openapi.json", "");
    assert_eq!((code, &served), (200, description()));
    assert_eq!(served["openapi"], "3.1.0");
}

/// Routes as the sources write them: none may come in by a way that describes nothing.
#[test]
fn every_route_is_described() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control");
    let described: BTreeSet<String> = operations().into_iter().map(|(_, path, _)| path).collect();
    let (mut written, mut constants) = (BTreeSet::new(), 0);
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for undescribed in [".route(", ".route_service(", ".nest("] {
            assert!(!text.contains(undescribed), "{}: {undescribed}: use api_route", path.display());
        }
        for call in text.split(".api_route(").skip(1) {
            match call.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                Some((path, _)) => drop(written.insert(path.to_owned())),
                // TRACE, PATH of the watch and of this description.
                None => constants += 1,
            }
        }
    }
    written.extend(["/v1/trace", "/v1/watch", "/v1/openapi.json"].map(str::to_owned));
    assert_eq!((described, constants), (written, 3));
}

#[test]
fn everything_described_is_served_and_versioned() {
    let daemon = Daemon::start();
    for (method, path, operation) in operations() {
        assert!(path.starts_with("/v1/"), "{path}");
        for field in ["summary", "operationId", "responses"] {
            assert!(!operation[field].is_null(), "{method} {path} has no {field}");
        }
        let real = path.replace("{service}", "www").replace("{backend}", "web1");
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let in_path = parameters.iter().filter(|parameter| parameter["in"] == "path").count();
        assert_eq!(in_path, path.matches('{').count(), "{method} {path}");
        if path == "/v1/trace" || path == "/v1/watch" || path == "/v1/detach" {
            continue;
        }
        let (code, answer) = daemon.http(&method, &real, "");
        assert!(code != 405 && !answer.to_string().contains("no such path"), "{method} {path}: {answer}");
        // A body is wanted exactly where it says so.
        let wants_body = operation["requestBody"]["required"] == json!(true);
        if method != "GET" {
            assert_eq!(code == 400, wants_body, "{method} {path}: {code} {answer}");
        }
    }
}
