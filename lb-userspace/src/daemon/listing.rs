//! `lbctl flows`: read beside the daemon's loop, which goes on meanwhile.

use super::{engine::Engine, explain::flow_state, flows::monotonic_ns, headers};
use crate::{
    control::{
        command::{CommandError, Reply},
        observe::{AskFlows, FlowView, FlowsView},
    },
    dataplane::tracked_flows,
    plan::{self, Flow},
};
use lb_common::abi::FlowEntry;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// Names by backend id: of the service and of the backend.
type Names = HashMap<u32, (String, String)>;

impl Engine {
    /// Answers when the tables have been read.
    pub(super) fn list_flows(&self, ask: AskFlows, reply: Reply<FlowsView>) {
        if let Some(name) = &ask.service
            && !self.effective.services.iter().any(|s| s.spec.name.as_str() == name)
        {
            let names: Vec<_> = self.effective.services.iter().map(|s| s.spec.name.to_string()).collect();
            let error = format!("no service '{name}'; there are: {}", names.join(", "));
            let _ = reply.send(Err(CommandError::NotFound(error)));
            return;
        }
        let (names, maps_dir) = (self.names(), self.kernel.maps_dir());
        tokio::task::spawn_blocking(move || {
            let mut list = Listing { ask, names, now: monotonic_ns(), view: FlowsView::default() };
            let result = tracked_flows(&maps_dir, |flow, entry, source| list.add(flow, entry, source));
            let _ = reply.send(match result {
                Ok(()) => Ok(list.view),
                Err(error) => Err(CommandError::Failed(error.to_string())),
            });
        });
    }

    /// The names behind the backends' ids.
    pub(super) fn names(&self) -> Names {
        let backends = self.image.backends.iter();
        backends
            .filter_map(|(id, backend)| {
                let service = self.image.services.get(&backend.entry.service)?;
                let name = |identity| plan::name_of(identity).to_owned();
                Some((*id, (name(&service.identity), name(&backend.identity))))
            })
            .collect()
    }
}

struct Listing {
    ask: AskFlows,
    names: Names,
    now: u64,
    view: FlowsView,
}

impl Listing {
    fn add(&mut self, flow: Flow, entry: FlowEntry, translated: Option<SocketAddr>) {
        let names = self.names.get(&entry.backend());
        let other =
            |wanted: &Option<String>, found: Option<&String>| wanted.is_some() && wanted.as_ref() != found;
        if other(&self.ask.service, names.map(|n| &n.0)) || other(&self.ask.backend, names.map(|n| &n.1)) {
            return;
        }
        self.view.total += 1;
        let state = flow_state(entry);
        match state {
            "half-open" => self.view.half_open += 1,
            "closing" => self.view.closing += 1,
            _ => self.view.confirmed += 1,
        }
        if self.view.flows.len() >= self.ask.limit.unwrap_or(AskFlows::LIMIT) {
            return;
        }
        let (client, vip, number) = ends(&flow);
        self.view.flows.push(FlowView {
            protocol: headers::protocol(number as u8),
            client,
            vip,
            service: names.map(|n| n.0.clone()),
            backend: names.map(|n| n.1.clone()),
            state: state.to_owned(),
            idle_seconds: entry.idle_ns(self.now) / 1_000_000_000,
            translated,
        });
    }
}

fn ends(flow: &Flow) -> (SocketAddr, SocketAddr, u32) {
    let (src, dst, ports, proto) = match flow {
        Flow::V4(key) => (IpAddr::from(key.src), IpAddr::from(key.dst), key.ports, key.proto),
        Flow::V6(key) => {
            let ip = |bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
            (ip(key.src), ip(key.dst), key.ports, key.proto)
        }
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    (SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2)), proto)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::{FlowKey4, FlowKey6};

    fn flow(client: u8) -> Flow {
        Flow::V4(FlowKey4 {
            src: [10, 1, 0, client],
            dst: [192, 0, 2, 10],
            ports: [0x9c, 0x40, 0, 80],
            proto: 6,
        })
    }

    fn listing(ask: AskFlows) -> Listing {
        let name = |s: &str, b: &str| (s.to_owned(), b.to_owned());
        let names =
            Names::from([(1, name("www", "web1")), (2, name("www", "web2")), (3, name("dns", "ns1"))]);
        let mut list = Listing { ask, names, now: 100 << 31, view: FlowsView::default() };
        let entry = |backend, half| FlowEntry::new(backend, 0, 7, 90 << 31, half);
        list.add(flow(1), entry(1, true), None);
        list.add(flow(2), entry(2, false), None);
        list.add(flow(3), entry(2, false).touched(90 << 31, true), None);
        let mapped = FlowKey6 {
            dst: std::net::Ipv4Addr::new(192, 0, 2, 53).to_ipv6_mapped().octets(),
            proto: 17,
            ..FlowKey6::default()
        };
        list.add(Flow::V6(mapped), entry(3, false), Some(([10, 0, 0, 1], 2000).into()));
        list.add(flow(4), entry(9, false), None);
        list
    }

    #[test]
    fn all_are_counted_and_so_many_listed() {
        let view = listing(AskFlows { limit: Some(2), ..AskFlows::default() }).view;
        assert_eq!((view.total, view.half_open, view.confirmed, view.closing), (5, 1, 3, 1));
        let [first, second] = &view.flows[..] else { panic!("{:?}", view.flows) };
        assert_eq!(
            (first.state.as_str(), first.client, first.idle_seconds),
            ("half-open", ([10, 1, 0, 1], 40_000).into(), 21)
        );
        assert_eq!((first.vip, first.protocol.as_str()), (([192, 0, 2, 10], 80).into(), "tcp"));
        assert_eq!((second.service.as_deref(), second.backend.as_deref()), (Some("www"), Some("web2")));
    }

    #[test]
    fn a_filter_keeps_what_fits() {
        let of = |service: Option<&str>, backend: Option<&str>| {
            let own = |name: &str| name.to_owned();
            listing(AskFlows { service: service.map(own), backend: backend.map(own), limit: None }).view
        };
        assert_eq!(of(Some("www"), None).total, 3);
        assert_eq!(of(None, Some("web2")).total, 2);
        assert_eq!(of(Some("dns"), Some("web2")).total, 0);
        let dns = of(Some("dns"), None).flows;
        assert_eq!(dns[0].vip, ([192, 0, 2, 53], 0).into());
        assert_eq!(dns[0].translated, Some(([10, 0, 0, 1], 2000).into()));
        // A backend that is gone has no name, and is still shown.
        assert_eq!(of(None, None).flows[4].backend, None);
    }
}
