//! What has to be with the peer before the master's role goes there.

use super::Engine;
use crate::model::VrrpName;

impl Engine {
    /// Puts everything that the peer does not know yet of an instance into the link's queue.
    pub(super) fn flush_mirror(&mut self, instance: &VrrpName) {
        self.mirror.flush(instance.as_str());
    }

    /// Whether this node has all of the peer's state of an instance that it needs to be master.
    pub(super) fn mirror_ready(&self, _instance: &VrrpName) -> bool {
        self.mirror.is_ready()
    }
}
