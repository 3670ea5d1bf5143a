//! Real HTTP through the real daemon, in every forwarding mode and combination of address families.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, assert_shares, web_servers},
    client::Requests,
    lab::{Arms, Result, Shape, Topology},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(20);
const EQUAL: [(&str, u32); 3] = [("web1", 100), ("web2", 100), ("web3", 100)];
const WEIGHTED: [(&str, u32); 3] = [("web1", 100), ("web2", 200), ("web3", 300)];

/// The family of the backends' addresses.
#[derive(Clone, Copy, PartialEq)]
enum Outer {
    V4,
    V6,
}

fn service(
    topology: &Topology,
    vip: IpAddr,
    forward: &'static str,
    outer: Outer,
    weights: &[(&str, u32)],
) -> Service {
    let service = Service::www([vip]).name(&format!("www{}", vip.is_ipv6())).forward(forward);
    topology.backends.iter().zip(weights).fold(service, |service, (node, (name, weight))| {
        let address: IpAddr = match outer {
            Outer::V4 => node.v4.into(),
            Outer::V6 => node.v6.into(),
        };
        service.backend(name, address, u16::try_from(*weight).expect("a weight"))
    })
}

/// New connections to a virtual address: none fails, each backend gets its share, and the counters tell the same.
fn requests(balancer: &Balancer<'_>, topology: &Topology, vip: IpAddr, count: u64, weights: &[(&str, u32)]) {
    let report = Requests::to(SocketAddr::new(vip, 80)).timeout(PATIENCE).run(&topology.client.ns, count);
    report.assert_all_answered();
    assert_eq!(report.ok(), count);
    assert_shares(&report, weights);
    let service = balancer.service(&format!("www{}", vip.is_ipv6()));
    // SYN, ACK, request, ACK of the answer, FIN: a request is three packets at least.
    for backend in &service.backends {
        let answered = report.count(&backend.name);
        assert!(backend.packets >= 3 * answered, "{answered} requests: {backend:?}");
    }
    assert_eq!(service.packets, service.backends.iter().map(|b| b.packets).sum::<u64>());
    assert_eq!(service.bytes, service.backends.iter().map(|b| b.bytes).sum::<u64>());
}

/// Both virtual addresses with one mode, `counts` requests to each.
fn mode(
    forward: &'static str,
    outer: [Outer; 2],
    counts: [u64; 2],
    weights: &[(&str, u32)],
    arms: Arms,
) -> Result<()> {
    let topology = Topology::new(&Shape { arms, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let vips = [topology.vip4(), topology.vip6()];
    let services =
        vips.iter().zip(outer).map(|(vip, outer)| service(&topology, *vip, forward, outer, weights));
    let mut balancer = Balancer::prepare(&topology, Settings::of(services))?;
    if forward != "dsr" {
        balancer.decapsulate()?;
    }
    balancer.restart()?;
    for (vip, count) in vips.into_iter().zip(counts) {
        requests(&balancer, &topology, vip, count, weights);
    }
    Ok(())
}

#[test]
fn dsr_ten_thousand_requests_in_each_family() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    mode("dsr", [Outer::V4, Outer::V6], [10_000, 10_000], &WEIGHTED, Arms::One)
}

#[test]
fn dsr_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    mode("dsr", [Outer::V4, Outer::V6], [1_000, 1_000], &EQUAL, Arms::Two)
}

/// The neighbour of a backend can be asked for by either family; the packet's own family does not matter.
#[test]
fn dsr_with_backends_named_by_the_other_family() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    mode("dsr", [Outer::V6, Outer::V4], [500, 500], &EQUAL, Arms::One)
}

#[test]
fn ipip_in_the_same_family() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    mode("ipip", [Outer::V4, Outer::V6], [10_000, 10_000], &EQUAL, Arms::One)
}

#[test]
fn ipip_across_families_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    mode("ipip", [Outer::V6, Outer::V4], [2_000, 2_000], &WEIGHTED, Arms::Two)
}

#[test]
fn gue_in_the_same_family() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    mode("gue", [Outer::V4, Outer::V6], [10_000, 10_000], &WEIGHTED, Arms::One)
}

#[test]
fn gue_across_families_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    mode("gue", [Outer::V6, Outer::V4], [2_000, 2_000], &EQUAL, Arms::Two)
}
