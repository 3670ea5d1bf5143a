//! What a start finds on interfaces and under the pin directory: programs of another version, of somebody else, maps
//! that are none of ours; and interfaces that go and come back.

use std::{net::SocketAddr, path::Path, time::Duration};

use aya::programs::links::{FdLink, PinnedLink};
use lb_tests::{
    balancer::{Balancer, Service, Settings, text, web_servers},
    client::Requests,
    lab::{Arms, End, Result, Shape, Topology, XdpProgram, wait_until},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn www(topology: &Topology) -> Settings {
    Settings::of([Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends)])
}

fn answers(topology: &Topology, count: u64, timeout: Duration) -> bool {
    let vips = [topology.vip4(), topology.vip6()];
    let requests = Requests::to_all(vips.map(|vip| SocketAddr::new(vip, 80))).timeout(timeout);
    requests.run(&topology.client.ns, count).failed_count() == 0
}

/// The id of a pinned link and of the program it holds.
fn link_ids(pin: &Path) -> (u32, u32) {
    let link = PinnedLink::from_pin(pin).expect("a pinned link");
    let info = FdLink::from(link).info().expect("what the kernel knows of it");
    (info.id(), info.program_id())
}

/// Stands in for an older build: some program that a pinned link of ours holds.
#[test]
fn a_program_of_another_version_is_replaced_in_its_link() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let _servers = web_servers(&topology, 0)?;
    let mut balancer = Balancer::prepare(&topology, www(&topology))?;
    let links = balancer.pin_dir().join("links");
    std::fs::create_dir_all(&links).expect("a directory on bpffs");
    let pin = links.join(format!("native-{}", balancer.node.ns.ifindex("eth0")?));
    XdpProgram::pass()?.attach(&balancer.node.ns, "eth0")?.pin(&pin).expect("pinned");
    let (link, old) = link_ids(&pin);
    assert_eq!(balancer.xdp_program("eth0"), Some(old.into()));
    balancer.restart()?;
    let (same, new) = link_ids(&pin);
    assert_eq!(same, link, "the link was detached and made anew");
    assert_ne!(new, old);
    assert_eq!(balancer.xdp_program("eth0"), Some(new.into()));
    assert!(balancer.process().log().contains("replaced the program"));
    assert!(answers(&topology, 50, PATIENCE));
    Ok(())
}

#[test]
fn an_interface_with_somebody_elses_program_is_left_alone() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { arms: Arms::Two, backends: 1, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let mut balancer = Balancer::prepare(&topology, www(&topology))?;
    let foreign = XdpProgram::pass()?.attach(&balancer.node.ns, "eth1")?;
    let program = balancer.xdp_program("eth1").expect("the foreign program");
    let output = balancer.run_lbd(&[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    let expected = format!("interface eth1 already has an XDP program (id {program})");
    assert!(err.contains(&expected), "{err}");
    assert_eq!([balancer.xdp_program("eth0"), balancer.xdp_program("eth1")], [None, Some(program)]);
    assert_eq!(balancer.pins(), Vec::<String>::new());
    assert!(!balancer.pin_dir().exists() && !balancer.socket().exists());
    drop(foreign);
    balancer.restart()?;
    assert!(answers(&topology, 20, PATIENCE));
    Ok(())
}

#[test]
fn a_map_that_is_not_ours_is_refused_and_forwarding_goes_on() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let mut balancer = Balancer::start(&topology, www(&topology))?;
    balancer.stop()?;
    let abi = balancer.pin_dir().join(lb_userspace::dataplane::abi_name());
    // Another map under the name of the ring.
    std::fs::rename(abi.join("RING"), abi.join("kept")).expect("renamed");
    std::fs::hard_link(abi.join("DROPS"), abi.join("RING")).expect("linked");
    let before = (balancer.pins(), balancer.xdp_program("eth0"));
    let output = balancer.run_lbd(&[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("RING") && err.contains("expected") && err.contains("--detach"), "{err}");
    assert_eq!((balancer.pins(), balancer.xdp_program("eth0")), before);
    assert!(answers(&topology, 20, PATIENCE));
    // With the right map back, as if nothing had been.
    std::fs::rename(abi.join("kept"), abi.join("RING")).expect("renamed");
    balancer.restart()?;
    assert!(answers(&topology, 20, PATIENCE));
    Ok(())
}

#[test]
fn a_missing_interface_is_named_with_those_there_are() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let settings = Settings { interfaces: vec!["eth0".into(), "eth7".into()], ..www(&topology) };
    let balancer = Balancer::prepare(&topology, settings)?;
    let output = balancer.run_lbd(&[]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("eth7") && err.contains("eth0"), "{err}");
    assert_eq!((balancer.pins(), balancer.xdp_program("eth0")), (Vec::new(), None));
    Ok(())
}

/// A network card that is unplugged and comes back, under another index.
#[test]
fn an_interface_that_comes_back_is_attached_again() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let mut balancer = Balancer::start(&topology, www(&topology))?;
    let (lb, lab) = (&topology.lb[0], &topology.lab);
    assert!(answers(&topology, 20, PATIENCE));
    for with_daemon in [true, false] {
        if !with_daemon {
            balancer.stop()?;
        }
        let before = lb.ns.ifindex("eth0")?;
        lb.ns.ip("link del eth0\n")?;
        if with_daemon {
            wait_until("the loss to be seen", PATIENCE, || {
                balancer.status().interfaces[0].mode == "detached"
            })?;
            assert!(balancer.status().interfaces[0].warning.is_some());
        }
        // Made elsewhere: the daemon takes an interface the moment it appears, and offloads cannot be changed then.
        let (new, port) = (End::new(&topology.switch, "new0").mac(lb.mac), End::new(&topology.switch, "lb1"));
        lab.plan().veth(&new, &port).port(&topology.switch, "lb1", "br0").apply()?;
        topology.switch.ip(&format!("link set new0 netns {} name eth0\n", lb.ns.name()))?;
        lb.ns.ip("link set eth0 up\n")?;
        lab.plan()
            .addr(&lb.ns, "eth0", &format!("{}/16", lb.v4))
            .addr(&lb.ns, "eth0", &format!("{}/64", lb.v6))
            .gateway(&lb.ns, topology.router.v4.into())
            .gateway(&lb.ns, topology.router.v6.into())
            .apply()?;
        lab.attach_pass(&topology.switch, "lb1")?;
        let after = lb.ns.ifindex("eth0")?;
        assert_ne!(before, after);
        if !with_daemon {
            balancer.restart()?;
        }
        wait_until("the program to be back", PATIENCE, || balancer.xdp_program("eth0").is_some())?;
        wait_until("the status to tell", PATIENCE, || {
            let status = balancer.status();
            status.interfaces[0].ifindex == after && status.interfaces[0].mode == "native"
        })?;
        wait_until("forwarding", PATIENCE, || answers(&topology, 2, Duration::from_millis(500)))?;
        assert!(answers(&topology, 50, PATIENCE));
        let links: Vec<String> = balancer.pins().into_iter().filter(|pin| pin.starts_with("links")).collect();
        assert_eq!(links, [format!("links/native-{after}")]);
    }
    Ok(())
}
