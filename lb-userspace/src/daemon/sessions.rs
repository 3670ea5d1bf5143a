//! NAT in the daemon: sessions that are over are removed, what the modes need of this host is looked at.

use super::engine::Engine;
use crate::{
    dataplane::DataplaneError,
    model::Forward,
    plan::{self, SessionCounts},
};
use lb_common::abi::NatStats;
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

/// What was found when the sessions were last looked at.
#[derive(Debug, Default)]
pub(super) struct NatState {
    /// By service id.
    pub living: BTreeMap<u32, SessionCounts>,
    /// By backend.
    pub on: BTreeMap<u32, u64>,
    /// Sessions that were refused, since the maps were made.
    refused: u64,
    /// Settings of this host that stand in the way, as last logged.
    pub obstacles: Vec<Obstacle>,
}

/// This host does not forward what comes in on an interface, which `nat` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub interface: String,
    /// What to set, as for sysctl(8).
    pub sysctl: String,
}

impl Obstacle {
    pub(super) fn describe(&self) -> String {
        format!(
            "the kernel does not forward what comes in on {}, so that replies of \"nat\" backends are not sent on: sysctl -w {}=1",
            self.interface, self.sysctl
        )
    }
}

impl Engine {
    /// True if any service has sessions, or had some a moment ago.
    pub(super) fn has_sessions(&self) -> bool {
        let rewrites = |s: &crate::state::EffectiveService| s.spec.forward.rewrites();
        self.effective.services.iter().any(rewrites) || !self.nat.living.is_empty()
    }

    /// Removes the sessions that are over, and counts the others.
    pub(super) fn sweep_sessions(&mut self, clock_ns: u64) -> Result<(), DataplaneError> {
        let sessions = self.kernel.maps().nat().sessions()?;
        let sweep = plan::sweep(&self.image, sessions.out, sessions.back, clock_ns);
        self.kernel.forget_sessions(&sweep.over)?;
        self.nat.living = sweep.living;
        self.nat.on = sweep.on;
        let stats = self.kernel.maps().nat().stats()?;
        let refused = stats.exhausted + stats.full;
        if refused > self.nat.refused {
            let NatStats { exhausted, full, .. } = stats;
            tracing::warn!(
                refused = refused - self.nat.refused,
                exhausted,
                full,
                "NAT sessions were refused: more addresses or ports in [service.snat], or fewer idle sessions \
                 (idle_timeout), make room"
            );
        }
        self.nat.refused = refused;
        Ok(())
    }

    /// Looks at what `nat` needs of this host, and says so once where something is missing.
    pub(super) fn check_forwarding(&mut self) {
        let found = self.forwarding_obstacles();
        for obstacle in found.iter().filter(|obstacle| !self.nat.obstacles.contains(obstacle)) {
            tracing::error!(
                interface = obstacle.interface,
                sysctl = obstacle.sysctl,
                "{}",
                obstacle.describe()
            );
        }
        self.nat.obstacles = found;
    }

    /// The interfaces whose packets the kernel does not forward, of the IP versions that `nat` services have.
    fn forwarding_obstacles(&self) -> Vec<Obstacle> {
        let nat = self.effective.services.iter().filter(|s| s.spec.forward == Forward::Nat);
        let vips: Vec<IpAddr> = nat.flat_map(|s| s.spec.addresses.iter().copied()).collect();
        let mut found = Vec::new();
        for (version, wanted) in
            [("ipv4", vips.iter().any(IpAddr::is_ipv4)), ("ipv6", vips.iter().any(IpAddr::is_ipv6))]
        {
            for interface in self.config.node.interfaces.iter().filter(|_| wanted) {
                let file: PathBuf =
                    ["/proc/sys/net", version, "conf", interface, "forwarding"].iter().collect();
                // What cannot be read is an interface that is gone, which is told elsewhere.
                if std::fs::read_to_string(file).is_ok_and(|value| value.trim() == "0") {
                    // sysctl(8) takes a slash for a dot within a name.
                    let name = interface.replace('.', "/");
                    let sysctl = format!("net.{version}.conf.{name}.forwarding");
                    found.push(Obstacle { interface: interface.clone(), sysctl });
                }
            }
        }
        found
    }
}
