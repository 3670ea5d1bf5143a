//! Which virtual addresses a routing daemon on this host may announce. Pure.
//!
//! An address is announced while this node can serve all of it: every service on it, as far as it is among those
//! named, has its quorum. Where another node has it too, the routers send packets there instead; what the nodes do with
//! them is the same, since equal services give equal rings.

use crate::model::{BgpSpec, ServiceSpec, ServiceState, Withdraw};
use std::{collections::BTreeMap, net::IpAddr};

/// What becomes of a virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub announced: bool,
    /// Why, e.g. "every service on it is up".
    pub reason: String,
}

/// Whether a service in that state is worth an address.
#[must_use]
pub fn serves(withdraw: Withdraw, state: ServiceState) -> bool {
    match withdraw {
        Withdraw::NoQuorum => state.is_up(),
        Withdraw::Down => state != ServiceState::Down,
    }
}

/// Judges every address. `obstacle`: why this node should have no packets at all, if there is a reason. Each service comes
/// with its state, and whether it has been in a state that serves for as long as [`BgpSpec::delay`].
#[must_use]
pub fn judge<'a>(
    spec: &BgpSpec,
    obstacle: Option<&str>,
    services: impl IntoIterator<Item = (&'a ServiceSpec, ServiceState, bool)>,
) -> BTreeMap<IpAddr, Judged> {
    let mut addresses: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for (service, state, settled) in services {
        if !spec.services.is_empty() && !spec.services.contains(&service.name) {
            continue;
        }
        for address in &service.addresses {
            let against = addresses.entry(*address).or_default();
            if !serves(spec.withdraw, state) {
                against.push(format!("{} is {state}", service.name));
            } else if !settled {
                against.push(format!("{} has just come up", service.name));
            }
        }
    }
    let judged = |against: Vec<String>| match obstacle {
        Some(obstacle) => Judged { announced: false, reason: obstacle.to_owned() },
        None if against.is_empty() => {
            Judged { announced: true, reason: "every service on it is up".to_owned() }
        }
        None => Judged { announced: false, reason: against.join(", ") },
    };
    addresses.into_iter().map(|(address, against)| (address, judged(against))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::time::Duration;

    fn services() -> Vec<ServiceSpec> {
        let service = |name: &str, address: &str, port: u16| {
            format!(
                "[[service]]\nname = \"{name}\"\naddresses = [{address}]\nport = {port}\nprotocol = \"tcp\"\n"
            )
        };
        let text = [
            "[node]\ninterfaces = [\"eth0\"]\n".to_owned(),
            service("www", "\"192.0.2.10\", \"2001:db8::10\"", 80),
            service("tls", "\"192.0.2.10\"", 443),
            service("dns", "\"192.0.2.53\"", 53),
        ];
        config::parse("test", &text.concat()).expect("a configuration").services
    }

    fn announced(spec: &BgpSpec, obstacle: Option<&str>, states: [ServiceState; 3]) -> String {
        let services = services();
        let judged =
            judge(spec, obstacle, services.iter().zip(states).map(|(spec, state)| (spec, state, true)));
        let shown = judged.iter().map(|(address, it)| format!("{address} {} {}\n", it.announced, it.reason));
        shown.collect()
    }

    fn spec() -> BgpSpec {
        BgpSpec {
            table: 1,
            services: Vec::new(),
            withdraw: Withdraw::NoQuorum,
            delay: Duration::ZERO,
            keep_on_stop: false,
        }
    }

    const UP: ServiceState = ServiceState::Up;

    #[test]
    fn an_address_needs_every_service_on_it() {
        assert_eq!(
            announced(&spec(), None, [UP, ServiceState::DownBackup, UP]),
            "192.0.2.10 false tls is down-backup\n192.0.2.53 true every service on it is up\n\
             2001:db8::10 true every service on it is up\n"
        );
        assert!(announced(&spec(), None, [ServiceState::UpPanic, UP, UP]).contains("192.0.2.10 true"));
    }

    #[test]
    fn a_service_that_has_just_come_up_waits() {
        let services = services();
        let just = services.iter().map(|service| (service, UP, service.name.as_str() != "tls"));
        let judged = judge(&spec(), None, just);
        let shown: Vec<_> = judged.values().map(|it| (it.announced, it.reason.as_str())).collect();
        assert_eq!(shown[0], (false, "tls has just come up"));
        assert!(shown[1..].iter().all(|(announced, _)| *announced), "{shown:?}");
    }

    #[test]
    fn backups_may_be_enough() {
        let spec = BgpSpec { withdraw: Withdraw::Down, ..spec() };
        assert!(announced(&spec, None, [UP, ServiceState::DownBackup, UP]).contains("192.0.2.10 true"));
        assert!(
            announced(&spec, None, [UP, ServiceState::Down, UP]).contains("192.0.2.10 false tls is down\n")
        );
    }

    #[test]
    fn services_that_are_not_named_have_no_say() {
        let spec = BgpSpec { services: vec!["www".parse().expect("a name")], ..spec() };
        let shown = announced(&spec, None, [UP, ServiceState::Down, ServiceState::Down]);
        assert!(shown.contains("192.0.2.10 true") && !shown.contains("192.0.2.53"), "{shown}");
    }

    #[test]
    fn a_node_that_should_have_no_packets_announces_nothing() {
        let shown = announced(&spec(), Some("the node is held"), [UP; 3]);
        assert_eq!(shown.matches("false the node is held").count(), 3, "{shown}");
    }
}
