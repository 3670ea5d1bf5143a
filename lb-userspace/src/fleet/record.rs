//! What nodes write into etcd, as JSON. Fields are added, never renamed: nodes of two versions read each other.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Another one for each start of a daemon: two nodes of one name are told apart by it.
    pub boot: String,
    pub version: String,
    /// Generation of the document in force; 0: none.
    pub generation: u64,
    /// Over the services in force, runtime changes included.
    pub services_hash: String,
    /// Over the seed and the size of every ring.
    pub rings_hash: String,
    /// Seed and size of the ring of each service, as long as there are not too many.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rings: BTreeMap<String, (u64, u32)>,
    /// The generation that is not in force, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedRecord>,
}

/// A document that a node did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    pub generation: u64,
    pub reason: String,
}

/// Who wrote a document, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutRecord {
    pub by: String,
    /// The node it was written through.
    pub node: String,
    /// Seconds since 1970.
    pub at: u64,
    /// Also where it is more than `max_disruption`.
    #[serde(default)]
    pub force: bool,
}
