//! What this node lacks to be master, as far as the daemon knows: the program on its interfaces, scripts and files, services
//! without a quorum, and the peer's configuration.

use super::engine::Engine;
use crate::{
    model::{TrackedFile, VrrpName, VrrpSpec},
    track::Found,
    vrrp::Missing,
};
use std::collections::BTreeMap;

/// From here on down a file's number is a fault, as in keepalived.
const FILE_FAULT: i64 = -254;

impl Engine {
    /// Tells the routers what this node lacks to be master: without the program on every interface, packets would
    /// come to a node that does not balance them.
    pub(super) fn track_pair(&mut self) {
        if self.pair.vrrp.is_none() {
            return;
        }
        let differs = self.pair.peer_services.clone().and_then(|theirs| {
            let ours = self.hashes().services;
            (ours != theirs)
                .then(|| format!("the peer has other services in force (hash {theirs}, here {ours})"))
        });
        let found = self.pair.trackers.found();
        let each = |spec: &VrrpSpec| (spec.name.clone(), self.missing_of(spec, &found, differs.as_deref()));
        let missing: BTreeMap<VrrpName, Vec<Missing>> = self.config.vrrp.iter().map(each).collect();
        let Some(vrrp) = self.pair.vrrp() else { return };
        if self.pair.told.as_ref() == Some(&missing) {
            return;
        }
        match vrrp.track(missing.clone()) {
            Ok(()) => self.pair.told = Some(missing),
            // It is told again within a second.
            Err(error) => tracing::error!(%error, "vrrp does not know what is missing on this node"),
        }
    }

    /// Interfaces without the program, each said as what is missing.
    pub(super) fn unattached(&self) -> impl Iterator<Item = String> {
        let attached = |name: &String| self.attached.iter().any(|attached| attached.interface == *name);
        let missing = self.config.node.interfaces.iter().filter(move |name| !attached(name));
        missing.map(|name| format!("the program is not attached to {name}"))
    }

    /// `differs`: how the peer's configuration does.
    fn missing_of(&self, spec: &VrrpSpec, found: &Found, differs: Option<&str>) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut add = |cause: String, weight: i16| missing.push(Missing { cause, weight });
        if let Some(weight) = spec.track.xdp {
            self.unattached().for_each(|cause| add(cause, weight.into()));
        }
        for tracked in &spec.track.scripts {
            if let Some(verdict) = found.scripts.get(&tracked.name).filter(|verdict| !verdict.up) {
                add(format!("script {}: {}", tracked.name, verdict.why), tracked.weight.into());
            }
        }
        for tracked in &spec.track.files {
            let number = found.files.get(&tracked.name).copied().unwrap_or(0);
            missing.extend(of_file(tracked, number));
        }
        let mut add = |cause: String, weight: i16| missing.push(Missing { cause, weight });
        for tracked in &spec.track.services {
            let state = self.service_state(&tracked.name).filter(|state| !state.is_up());
            if let Some(state) = state {
                add(format!("service {} is {state}", tracked.name), tracked.weight.into());
            }
        }
        if let (Some(weight), Some(differs)) = (spec.track.peer_config, differs) {
            add(differs.to_owned(), weight.into());
        }
        missing
    }

    /// What is known of the peer's configuration: the hash of its services ([`crate::config::Config::shared_hash`] of
    /// what is in force there), `None` while the peer is not connected. It counts where `track_peer_config` says so.
    pub fn peer_configuration(&mut self, theirs: Option<String>) {
        self.pair.peer_services = theirs;
        self.track_pair();
    }

    /// Once a second: what nobody tells of by himself.
    pub(super) fn tend_pair(&mut self) {
        match self.kernel.forget_detached() {
            Ok(false) => {}
            Ok(true) => {
                tracing::error!("somebody took the program off an interface; it is put on again");
                self.attached.clear();
                // First that it is missing, in case it cannot be put on.
                self.track_pair();
                self.links_changed();
            }
            Err(error) => tracing::error!(%error, "cannot see whether the program is still attached"),
        }
        self.track_pair();
        self.look_for_two_masters();
    }
}

/// What a file's number does.
fn of_file(tracked: &TrackedFile, number: i64) -> Option<Missing> {
    let cause = format!("file {} says {number}", tracked.name);
    let effect = number.saturating_mul(tracked.weight.into()).clamp(FILE_FAULT, -FILE_FAULT);
    match (number, effect) {
        (0, _) => None,
        (_, 0 | FILE_FAULT) => Some(Missing { cause, weight: 0 }),
        (_, effect) => Some(Missing { cause, weight: -(effect as i16) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_as_in_keepalived() {
        let effect = |weight, number| {
            let tracked = TrackedFile { name: "load".parse().unwrap(), weight };
            of_file(&tracked, number).map(|missing| missing.weight)
        };
        assert_eq!(effect(1, 0), None);
        assert_eq!(effect(0, 0), None);
        assert_eq!(effect(0, 7), Some(0), "without a weight any number is a fault");
        assert_eq!(effect(2, -20), Some(40));
        assert_eq!(effect(-2, 20), Some(40));
        assert_eq!(effect(2, 20), Some(-40), "more priority");
        assert_eq!(effect(1, -253), Some(253));
        assert_eq!(effect(1, -254), Some(0), "as low as that is a fault");
        assert_eq!(effect(254, i64::MIN), Some(0));
        assert_eq!(effect(254, i64::MAX), Some(-254));
    }
}
