//! What the modes that rewrite addresses need beyond the others.

use super::{Forward, ServiceSpec};
use std::net::IpAddr;

/// Ports that `snat` takes where none are named: all that are not well-known.
pub const DEFAULT_SNAT_PORTS: (u16, u16) = (1024, 65_535);

/// Where the packets of an `snat` service come from, as its backends see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnatSpec {
    /// At least one, no duplicates.
    pub addresses: Vec<IpAddr>,
    /// The lowest and the highest port, the lowest not 0.
    pub ports: (u16, u16),
}

/// Why a service cannot have a backend at some address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error(
        "forward = \"nat\" keeps the IP version, and the service's addresses are {}; use \"snat\", or a service for each version",
        version(&!backend_v6)
    )]
    OtherFamily { backend_v6: bool },
    #[error(
        "the pool has no {} address; add one of this node's to addresses of [service.snat]",
        version(backend_v6)
    )]
    NoPoolAddress { backend_v6: bool },
    #[error("it is an address of [service.snat], which is this node's own")]
    InPool,
}

fn version(&v6: &bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

impl Forward {
    /// The destination's address and port are rewritten.
    #[must_use]
    pub fn rewrites(self) -> bool {
        matches!(self, Self::Nat | Self::Snat)
    }
}

/// Why a backend at `address` cannot serve clients of these virtual addresses, if so.
#[must_use]
pub fn misfit(forward: Forward, vips: &[IpAddr], pool: &[IpAddr], address: IpAddr) -> Option<Misfit> {
    let backend_v6 = address.is_ipv6();
    match forward {
        Forward::Nat if vips.iter().any(|vip| vip.is_ipv6() != backend_v6) => {
            Some(Misfit::OtherFamily { backend_v6 })
        }
        Forward::Snat if pool.contains(&address) => Some(Misfit::InPool),
        Forward::Snat if !pool.iter().any(|own| own.is_ipv6() == backend_v6) => {
            Some(Misfit::NoPoolAddress { backend_v6 })
        }
        Forward::Nat | Forward::Snat | Forward::Dsr | Forward::Ipip | Forward::Gue => None,
    }
}

impl ServiceSpec {
    /// See [`misfit`].
    #[must_use]
    pub fn misfit(&self, address: IpAddr) -> Option<Misfit> {
        let pool = self.snat.as_ref().map_or(&[][..], |snat| &snat.addresses);
        misfit(self.forward, &self.addresses, pool, address)
    }
}
