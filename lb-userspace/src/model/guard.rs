//! Who may send, and how much.

use ipnet::IpNet;
use lb_common::abi::{Limits, Rate};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// What a prefix of the firewall says of its sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Their packets to virtual addresses are dropped.
    Deny,
    /// An exception inside a denied prefix.
    Allow,
}

impl Verdict {
    /// The value in `DENY4` and `DENY6`.
    pub fn number(self) -> u32 {
        match self {
            Self::Deny => lb_common::abi::DENY,
            Self::Allow => lb_common::abi::ALLOW,
        }
    }

    /// The verdict behind a value of those maps.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Deny, Self::Allow].into_iter().find(|verdict| verdict.number() == number)
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Deny => Self::Allow,
            Self::Allow => Self::Deny,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        })
    }
}

/// The firewall's prefixes. The longest one that a source lies in decides; outside of all, it may send.
pub type Prefixes = BTreeMap<IpNet, Verdict>;

/// The prefixes of one family. (In the order of [`IpNet`], IPv4 comes first.)
pub fn of_family(prefixes: &Prefixes, v6: bool) -> impl Iterator<Item = (&IpNet, Verdict)> {
    prefixes.iter().filter(move |(prefix, _)| prefix.addr().is_ipv6() == v6).map(|(p, v)| (p, *v))
}

/// Why a text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("not an address or a prefix like 203.0.113.7, 203.0.113.0/24 or 2001:db8:bad::/48")]
    Syntax,
    #[error("bits are set after the prefix; write {0}")]
    HostBits(IpNet),
}

/// Reads an address or a prefix.
pub fn parse_prefix(text: &str) -> Result<IpNet, PrefixError> {
    let net = match IpNet::from_str(text) {
        Ok(net) => net,
        Err(_) => IpNet::from(text.parse::<std::net::IpAddr>().map_err(|_| PrefixError::Syntax)?),
    };
    if net.addr() == net.network() { Ok(net) } else { Err(PrefixError::HostBits(net.trunc())) }
}

/// Who may use a service, and how much.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardSpec {
    /// Only these sources may, unless it is empty.
    pub allow: BTreeSet<IpNet>,
    pub limits: LimitSpec,
}

/// Highest rate of a limit, per second: nanoseconds count its intervals.
pub const MAX_RATE: u32 = 100_000_000;
/// Longest burst.
pub const MAX_BURST_MS: u32 = 60_000;
/// Burst where none is set.
pub const DEFAULT_BURST_MS: u32 = 1_000;

/// The limits of a service, per second; 0 = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LimitSpec {
    pub packets_per_second: u32,
    pub connections_per_second: u32,
    pub source_packets_per_second: u32,
    pub source_connections_per_second: u32,
    /// How many milliseconds' worth may come at once.
    pub burst_ms: u32,
}

impl Default for LimitSpec {
    fn default() -> Self {
        Self {
            packets_per_second: 0,
            connections_per_second: 0,
            source_packets_per_second: 0,
            source_connections_per_second: 0,
            burst_ms: DEFAULT_BURST_MS,
        }
    }
}

impl LimitSpec {
    /// Does it limit anything?
    pub fn is_off(&self) -> bool {
        self.rates().iter().all(|(_, rate)| *rate == 0)
    }

    /// Names of the rates, as in the configuration, with their values.
    pub fn rates(&self) -> [(&'static str, u32); 4] {
        [
            ("packets_per_second", self.packets_per_second),
            ("connections_per_second", self.connections_per_second),
            ("source_packets_per_second", self.source_packets_per_second),
            ("source_connections_per_second", self.source_connections_per_second),
        ]
    }

    /// As the program wants them.
    pub fn to_abi(&self) -> Limits {
        let rate = |per_second: u32| {
            if per_second == 0 {
                return Rate::default();
            }
            let interval_ns = (1_000_000_000 + u64::from(per_second) / 2) / u64::from(per_second);
            let tokens = (u64::from(per_second) * u64::from(self.burst_ms) / 1_000).max(1);
            Rate { interval_ns, burst_ns: tokens * interval_ns }
        };
        Limits {
            packets: rate(self.packets_per_second),
            connections: rate(self.connections_per_second),
            source_packets: rate(self.source_packets_per_second),
            source_connections: rate(self.source_connections_per_second),
        }
    }
}

/// Some of a service's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_RATE))]
    pub packets_per_second: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_RATE))]
    pub connections_per_second: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_RATE))]
    pub source_packets_per_second: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_RATE))]
    pub source_connections_per_second: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_BURST_MS))]
    pub burst_ms: Option<u32>,
}

/// Why limits are impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("{key} = {found}: expected 0 (no limit) to {MAX_RATE}")]
    Rate { key: &'static str, found: u32 },
    #[error("a burst of {0} ms: expected 1 to {MAX_BURST_MS}")]
    Burst(u32),
    #[error("nothing to set: name at least one limit")]
    Nothing,
}

impl LimitPatch {
    /// Names of the rates, as in the configuration, with what is set.
    pub fn rates(&self) -> [(&'static str, Option<u32>); 4] {
        [
            ("packets_per_second", self.packets_per_second),
            ("connections_per_second", self.connections_per_second),
            ("source_packets_per_second", self.source_packets_per_second),
            ("source_connections_per_second", self.source_connections_per_second),
        ]
    }

    /// Sets one by its name; false if there is none of that name.
    pub fn set(&mut self, key: &str, value: u32) -> bool {
        let field = match key {
            "packets_per_second" => &mut self.packets_per_second,
            "connections_per_second" => &mut self.connections_per_second,
            "source_packets_per_second" => &mut self.source_packets_per_second,
            "source_connections_per_second" => &mut self.source_connections_per_second,
            "burst" | "burst_ms" => &mut self.burst_ms,
            _ => return false,
        };
        *field = Some(value);
        true
    }

    /// Is it one that a service can have?
    pub fn check(&self) -> Result<(), LimitError> {
        for (key, rate) in self.rates() {
            if let Some(found) = rate.filter(|rate| *rate > MAX_RATE) {
                return Err(LimitError::Rate { key, found });
            }
        }
        match self.burst_ms {
            Some(ms) if !(1..=MAX_BURST_MS).contains(&ms) => Err(LimitError::Burst(ms)),
            None if self.rates().iter().all(|(_, rate)| rate.is_none()) => Err(LimitError::Nothing),
            _ => Ok(()),
        }
    }

    /// These limits, and of the rest those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            packets_per_second: self.packets_per_second.or(other.packets_per_second),
            connections_per_second: self.connections_per_second.or(other.connections_per_second),
            source_packets_per_second: self.source_packets_per_second.or(other.source_packets_per_second),
            source_connections_per_second: self
                .source_connections_per_second
                .or(other.source_connections_per_second),
            burst_ms: self.burst_ms.or(other.burst_ms),
        }
    }

    /// Lays them over those of a service.
    #[must_use]
    pub fn over(&self, limits: LimitSpec) -> LimitSpec {
        LimitSpec {
            packets_per_second: self.packets_per_second.unwrap_or(limits.packets_per_second),
            connections_per_second: self.connections_per_second.unwrap_or(limits.connections_per_second),
            source_packets_per_second: self
                .source_packets_per_second
                .unwrap_or(limits.source_packets_per_second),
            source_connections_per_second: self
                .source_connections_per_second
                .unwrap_or(limits.source_connections_per_second),
            burst_ms: self.burst_ms.unwrap_or(limits.burst_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_what_is_none() {
        assert_eq!(parse_prefix("203.0.113.7").unwrap().to_string(), "203.0.113.7/32");
        assert_eq!(parse_prefix("0.0.0.0/0").unwrap().prefix_len(), 0);
        assert_eq!(parse_prefix("2001:db8::/32").unwrap().prefix_len(), 32);
        assert_eq!(parse_prefix("example.org"), Err(PrefixError::Syntax));
        assert_eq!(parse_prefix("10.0.0.1/33"), Err(PrefixError::Syntax));
        let error = parse_prefix("10.0.0.1/8").unwrap_err();
        assert_eq!(error.to_string(), "bits are set after the prefix; write 10.0.0.0/8");
    }

    #[test]
    fn rates_become_intervals() {
        let limits = LimitSpec {
            packets_per_second: 3,
            connections_per_second: 1_000,
            burst_ms: 100,
            ..LimitSpec::default()
        };
        let abi = limits.to_abi();
        assert_eq!(abi.packets, Rate { interval_ns: 333_333_333, burst_ns: 333_333_333 }, "one at least");
        assert_eq!(abi.connections, Rate { interval_ns: 1_000_000, burst_ns: 100_000_000 });
        assert_eq!(abi.source_packets, Rate::default());
        let fastest =
            LimitSpec { packets_per_second: MAX_RATE, burst_ms: MAX_BURST_MS, ..LimitSpec::default() };
        assert_eq!(fastest.to_abi().packets, Rate { interval_ns: 10, burst_ns: 60_000_000_000 });
    }
}
