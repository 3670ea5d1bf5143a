//! As many services as there may be, and more backends and slots than the maps begin with.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::Requests,
    echo::{tcp_sink, upload},
    lab::{Node, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// So many services on 192.0.2.100 and following, 256 ports each, so that most ports spill out of the VIPs' entries.
fn many(topology: &Topology, count: usize) -> Vec<Service> {
    (0..count)
        .map(|i| {
            let vip = Ipv4Addr::new(192, 0, 2, 100 + u8::try_from(i / 256).expect("few addresses"));
            let port = 10_000 + u16::try_from(i % 256).expect("a port");
            Service::www([IpAddr::from(vip)]).name(&format!("s{i}")).port(port).nodes(&topology.backends)
        })
        .collect()
}

#[test]
fn four_thousand_services_grow_the_maps_and_no_request_fails() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 5, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let vips = [topology.vip4(), topology.vip6()];
    let www = Service::www(vips).nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let link = format!("links/native-{}", balancer.node.ns.ifindex("eth0")?);
    assert!(balancer.pins().contains(&link));
    let program = balancer.xdp_program("eth0").expect("a program");
    let load = Requests::to_all(vips.map(|vip| SocketAddr::new(vip, 80)))
        .concurrency(2)
        .timeout(PATIENCE)
        .pause(Duration::from_millis(5))
        .start(&topology.client.ns);
    wait_until("requests", PATIENCE, || load.report().ok() > 50)?;
    let bytes = balancer.status().map_bytes;

    // 4,096 services of 5 backends: 20,480 backends, and 4 million slots.
    let more = many(&topology, 4095);
    balancer.configure(|settings| settings.services.extend(more))?;
    balancer.lbctl(&["reload"]);
    assert!(balancer.process().log().contains("growing the maps"));
    let status = balancer.status();
    assert_eq!((status.services, status.backends), (4096, 4096 * 5));
    assert!(status.map_bytes > bytes, "{} to {}", bytes, status.map_bytes);
    // A change of one among so many is answered: the daemon is not busy with twenty thousand first words of checks.
    // The limit is for a debug build on a busy machine; alone it takes four seconds there.
    let begun = Instant::now();
    balancer.lbctl(&["backend", "weight", "s4000", "web1", "50"]);
    balancer.status();
    assert!(begun.elapsed() < Duration::from_secs(60), "a change took {:?}", begun.elapsed());
    eprintln!("a change of one backend took {:?}", begun.elapsed());
    let grown = balancer.xdp_program("eth0").expect("a program");
    assert_ne!(grown, program, "the maps of the old program cannot have grown");
    let counted = balancer.service("www").packets;
    assert!(counted > 0, "the counters of the service were lost");
    let before = load.report().ok();
    wait_until("more requests", PATIENCE, || load.report().ok() > before + 100)?;
    load.report().assert_all_answered();

    // The last ones work as the first.
    for (vip, port) in [(100, 10_000_u16), (107, 10_128), (115, 10_254)] {
        let vip = Ipv4Addr::new(192, 0, 2, vip);
        let explained = balancer.explain("tcp", "10.1.0.2:4000", &format!("{vip}:{port}"));
        assert_eq!(explained.verdict, "forward", "{vip}:{port}: {explained:?}");
        let expected =
            format!("s{}", (usize::from(vip.octets()[3]) - 100) * 256 + usize::from(port) - 10_000);
        assert_eq!(explained.service, Some(expected));
    }
    let last = SocketAddr::from(([192, 0, 2, 115], 10_254));
    topology.add_vip(last.ip())?;
    let sink = |node: &Node| tcp_sink(&node.ns, &node.name, last.ip(), last.port());
    let _sinks: Vec<_> = topology.backends.iter().map(sink).collect::<Result<_>>()?;
    let line = upload(&topology.client.ns, last, 1_000_000, PATIENCE).expect("an upload");
    assert!(line.ends_with(" 1000000 ok"), "{line}");
    balancer.kill();
    balancer.restart()?;
    assert_eq!(balancer.xdp_program("eth0"), Some(grown), "the grown maps were not adopted");
    assert_eq!(balancer.status().services, 4096);
    assert!(!balancer.process().log().contains("growing the maps"));

    // And all away again.
    balancer.configure(|settings| settings.services.truncate(1))?;
    balancer.lbctl(&["reload"]);
    assert_eq!(balancer.services().len(), 1);
    let before = load.report().ok();
    wait_until("more requests", PATIENCE, || load.report().ok() > before + 100)?;
    let report = load.stop();
    report.assert_all_answered();
    assert_eq!(report.answers.len(), 5, "{report}");
    Ok(())
}

/// The ring that was chosen for a few backends is too small for a thousand more; most of them do not exist.
#[test]
fn a_service_that_outgrows_its_ring_gets_a_larger_one() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let vips = [topology.vip4(), topology.vip6()];
    let www = Service::www(vips).nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let total = balancer.service("www").slots.total;
    // Without a route nobody asks for their MAC addresses: the kernel's neighbour table, one for all namespaces, has
    // room for a thousand.
    balancer.node.ns.ip("route add unreachable 10.66.0.0/16\n")?;
    balancer.configure(|settings| {
        for i in 0..1_200_u16 {
            let [high, low] = i.to_be_bytes();
            let service = settings.services[0].clone();
            settings.services[0] = service.backend(&format!("none{i}"), [10, 66, high, low], 100);
        }
    })?;
    balancer.reload();
    let service = balancer.service("www");
    assert!(service.slots.total > total && service.slots.total as usize >= service.backends.len());
    let answered = Requests::to_all(vips.map(|vip| SocketAddr::new(vip, 80)))
        .timeout(PATIENCE)
        .run(&topology.client.ns, 200);
    answered.assert_all_answered();
    assert_eq!(answered.answers.len(), 3, "{answered}");
    balancer.kill();
    balancer.restart()?;
    assert_eq!(balancer.service("www").slots.total, service.slots.total);
    Requests::to(SocketAddr::new(vips[1], 80))
        .timeout(PATIENCE)
        .run(&topology.client.ns, 100)
        .assert_all_answered();
    Ok(())
}
