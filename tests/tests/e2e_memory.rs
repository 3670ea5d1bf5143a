//! What the maps take: the default configuration, ten services of a hundred backends, every table of flows full.

use aya::maps::{HashMap, Map, MapData};
use lb_common::abi::{FlowKey4, FlowKey6, HalfOpen};
use lb_tests::{
    balancer::{Balancer, Service, Settings},
    lab::{Result, Shape, Topology},
    require,
    skip::Need,
};
use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

const MIB: u64 = 1 << 20;
const BAR: u64 = 64 * MIB;

/// The directory of pins that holds the maps.
fn map_dir(pins: &Path) -> PathBuf {
    let holds = |dir: &PathBuf| dir.join("FLOWS4").exists();
    let below = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect()
    };
    let mut dirs = vec![pins.to_owned()];
    while let Some(dir) = dirs.pop() {
        if holds(&dir) {
            return dir;
        }
        dirs.extend(below(&dir).into_iter().filter(|path| path.is_dir()));
    }
    panic!("no maps below {}", pins.display());
}

/// What the kernel says a map takes.
fn memory(map: &MapData) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("the kernel tells");
    line.trim().parse().unwrap()
}

/// Fills a table until the kernel says that it is full.
fn fill<K: aya::Pod, V: aya::Pod>(map: MapData, key: impl Fn(u32) -> K, value: V) -> u32 {
    let mut map: HashMap<MapData, K, V> = HashMap::try_from(Map::HashMap(map)).unwrap();
    (0..10_000_000).take_while(|i| map.insert(key(*i), value, 0).is_ok()).count() as u32
}

#[test]
fn ten_services_of_a_hundred_backends_fit_into_64_mib() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let services = (0..10_u16).map(|s| {
        let service = Service::www([topology.vip4(), topology.vip6()]).name(&format!("s{s}")).port(80 + s);
        (0..100_u8).fold(service, |service, b| {
            service.backend(&format!("b{b}"), [10, 66, s.to_be_bytes()[1], b + 1], 100)
        })
    });
    // Nobody asks for the MAC addresses of a thousand neighbours.
    let balancer = Balancer::prepare(&topology, Settings::of(services))?;
    balancer.node.ns.ip("route add unreachable 10.66.0.0/16\n")?;
    let mut balancer = balancer;
    balancer.restart()?;
    let empty = balancer.status().map_bytes;

    let dir = map_dir(balancer.pin_dir());
    let open = |name: &str| MapData::from_pin(dir.join(name)).expect("a pinned map");
    let key4 = |i: u32| FlowKey4 { src: i.to_be_bytes(), dst: [255; 4], ports: [0; 4], proto: 6 };
    let key6 = |i: u32| {
        let mut src = [0; 16];
        src[..4].copy_from_slice(&i.to_be_bytes());
        FlowKey6 { src, dst: [255; 16], ports: [0; 4], proto: 6 }
    };
    let flows = fill(open("FLOWS4"), key4, 0_u64) + fill(open("FLOWS6"), key6, 0_u64);
    let half_open = fill(open("HALF_OPEN4"), key4, HalfOpen::default())
        + fill(open("HALF_OPEN6"), key6, HalfOpen::default());
    let mut full = 0;
    for entry in fs::read_dir(&dir).expect("the pins") {
        let path = entry.expect("a pin").path();
        let bytes = memory(&MapData::from_pin(&path).expect("a map"));
        eprintln!(
            "{:>16} {:8.2} MiB",
            path.file_name().unwrap().to_string_lossy(),
            bytes as f64 / MIB as f64
        );
        full += bytes;
    }
    eprintln!(
        "maps: {:.1} MiB empty, {:.1} MiB with {flows} flows and {half_open} handshakes",
        empty as f64 / MIB as f64,
        full as f64 / MIB as f64
    );
    assert!(flows >= 200_000, "{flows} flows");
    assert!(full > empty, "the kernel does not count what is in a table");
    assert!(full <= BAR, "{full} bytes");
    Ok(())
}
