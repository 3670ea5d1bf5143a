//! Hashes over the settings in force, equal where these are.
//!
//! Each service has a digest of its own, so that after a change of one service thousands of others need not be looked at again.

use super::settings::{Entry, service_entries};
use crate::model::{ServiceName, ServiceSpec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// SHA-256 over the settings of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceDigest {
    pub(super) all: [u8; 32],
    /// Without who is told of changes, which is each node's own affair.
    pub(super) shared: [u8; 32],
}

impl ServiceDigest {
    #[must_use]
    pub fn of(service: &ServiceSpec) -> Self {
        let entries = service_entries(service);
        let told = |entry: &Entry| entry.0.get(2).is_some_and(|part| part == "notify");
        if !entries.iter().any(told) {
            let all = sum(entries).finalize().into();
            return Self { all, shared: all };
        }
        let shared = entries.iter().filter(|entry| !told(entry)).cloned().collect();
        Self { all: sum(entries).finalize().into(), shared: sum(shared).finalize().into() }
    }
}

/// Over entries as JSON, in the order of their paths. The order of addresses and interfaces in the file does not matter.
fn sum(mut entries: Vec<Entry>) -> Sha256 {
    for (path, value) in &mut entries {
        if let (Some("addresses" | "interfaces"), Value::Array(values)) =
            (path.last().map(String::as_str), value)
        {
            values.sort_by_key(Value::to_string);
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hash = Sha256::new();
    for entry in entries {
        hash.update(json!(entry).to_string());
    }
    hash
}

/// Over entries and the digests of services, the first 16 hexadecimal digits. The order of services does not matter.
pub(super) fn digest<'a>(
    others: Vec<Entry>,
    services: impl Iterator<Item = (&'a ServiceName, &'a [u8; 32])>,
) -> String {
    let mut hash = sum(others);
    let mut ordered: Vec<_> = services.collect();
    ordered.sort();
    for (_, service) in ordered {
        hash.update(service);
    }
    let bytes = hash.finalize();
    bytes.iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A hash over services only, in force or in a file: equal on nodes that forward alike. The first 16
/// hexadecimal digits of a SHA-256.
pub fn services_hash<'a>(services: impl Iterator<Item = (&'a ServiceName, &'a ServiceDigest)>) -> String {
    digest(Vec::new(), services.map(|(name, digest)| (name, &digest.shared)))
}
