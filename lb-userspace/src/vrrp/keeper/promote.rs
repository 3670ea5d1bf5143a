//! The kernel's way with several addresses of one IPv4 network: by default the others go with the first one, be they of
//! another virtual router or the node's own.

use super::Keeper;
use crate::vrrp::notice::Notice;
use std::fs;

/// The interface's own setting, or that of all of them.
fn path(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/promote_secondaries")
}

impl Keeper {
    /// Has the kernel keep the others. The setting stays: other programs' addresses may be among them by then.
    pub(super) fn promote(&mut self, index: u32) {
        let Some(link) = self.links.iter().find(|link| link.index == index) else { return };
        let off = |name: &str| fs::read_to_string(path(name)).is_ok_and(|text| text.trim() == "0");
        if !(off(&link.name) && off("all")) {
            return;
        }
        let interface = link.name.clone();
        let error = fs::write(path(&interface), "1").err().map(|error| error.to_string());
        if error.is_none() || self.unpromoted.insert(interface.clone()) {
            self.notices.send(Notice::Promoted { interface, error });
        }
    }
}
