//! The live ring, read from its pin: how little a change of members moves.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use aya::maps::{Array, Map, MapData};
use lb_common::{
    abi::{Identity, ServiceEntry, Slot},
    hash,
};
use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::{Connection, Requests},
    lab::{Result, Shape, Topology},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(20);
const SLOTS: u32 = 65_537;

fn pinned(balancer: &Balancer<'_>, name: &str) -> Map {
    let path = balancer.pin_dir().join(lb_userspace::dataplane::abi_name()).join(name);
    Map::Array(MapData::from_pin(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// The service, and the backend each of its slots sends new flows to, by name.
fn live_ring(balancer: &Balancer<'_>) -> (ServiceEntry, Vec<String>) {
    let services: Array<_, ServiceEntry> = pinned(balancer, "SERVICES").try_into().expect("an array");
    let ring: Array<_, u64> = pinned(balancer, "RING").try_into().expect("an array");
    let names: Array<_, Identity> = pinned(balancer, "BACKEND_NAMES").try_into().expect("an array");
    let name = |id: u32| {
        let identity = names.get(&id, 0).expect("a name");
        let bytes = identity.name.split(|b| *b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let mut known: BTreeMap<u32, String> = BTreeMap::new();
    let service = (0..8)
        .map(|id| services.get(&id, 0).expect("a service"))
        .find(|s| s.ring_size > 0)
        .expect("a service");
    let owners = (0..service.ring_size).map(|i| {
        let slot = Slot(ring.get(&(service.ring_base + i), 0).expect("a slot"));
        known.entry(slot.owner()).or_insert_with(|| name(slot.owner())).clone()
    });
    let owners = owners.collect();
    (service, owners)
}

#[test]
fn one_of_ten_backends_less_moves_hardly_any_flow_of_the_others() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 10, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()])
        .extra(&format!("ring_size = {SLOTS}"))
        .nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    let (service, before) = live_ring(&balancer);
    assert_eq!(service.ring_size, SLOTS);
    for node in &topology.backends {
        let share = before.iter().filter(|owner| **owner == node.name).count() as f64 / f64::from(SLOTS);
        assert!((share - 0.1).abs() < 0.001, "{} has {share}", node.name);
    }

    // What a client meets is what the ring says: the flow hash is computed here, apart from the product's explain.
    let target = SocketAddr::new(topology.vip4(), 80);
    for _ in 0..30 {
        let mut connection = Connection::open(&topology.client.ns, target, PATIENCE).expect("connected");
        let answer = connection.get("/").expect("an answer");
        let SocketAddr::V4(source) = connection.local_addr().expect("an address") else { panic!("IPv4") };
        let ports = u32::from(source.port()) << 16 | 80;
        let flow = hash::flow4(service.seed, u32::from(*source.ip()), ports);
        assert_eq!(answer.backend(), before[hash::slot(flow, SLOTS) as usize], "{source}");
    }

    balancer.lbctl(&["backend", "remove", "www", "web4"]);
    let (_, after) = live_ring(&balancer);
    let others = before.iter().filter(|owner| *owner != "web4").count();
    let moved = before.iter().zip(&after).filter(|(a, b)| *a != "web4" && a != b).count();
    assert!(after.iter().all(|owner| owner != "web4" && !owner.is_empty()));
    assert!(moved * 100 <= others, "{moved} of {others} slots of other backends moved");
    eprintln!(
        "{moved} of {others} slots of other backends moved ({:.3} %)",
        100.0 * moved as f64 / others as f64
    );

    // And back: the ring is a function of its members, whatever was in between.
    let web4 = topology.backends[3].v4.to_string();
    balancer.lbctl(&["backend", "add", "www", "web4", &web4]);
    balancer.wait_for_backend("web4", "www", "web4", PATIENCE, |b| b.slots > 0)?;
    assert_eq!(live_ring(&balancer).1, before);
    let report = Requests::to(target).timeout(PATIENCE).run(&topology.client.ns, 500);
    report.assert_all_answered();
    assert_eq!(report.answers.len(), 10, "{report}");
    Ok(())
}

/// Two balancers with the same configuration send every flow to the same backend.
#[test]
fn the_ring_depends_on_the_configuration_alone() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 5, ..Shape::default() })?;
    let service = || Service::www([topology.vip4()]).extra("ring_size = 4099");
    let ring = |service: Service| -> Result<Vec<String>> {
        let balancer = Balancer::start(&topology, Settings::of([service]))?;
        Ok(live_ring(&balancer).1)
    };
    let forwards = ring(service().nodes(&topology.backends))?;
    let backwards = ring(service().nodes(topology.backends.iter().rev()))?;
    assert_eq!(forwards, backwards);
    Ok(())
}
