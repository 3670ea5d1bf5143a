//! What is attached and what is pinned, when something goes wrong half way. Needs root.

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::{
    dataplane::{Capacities, Kernel, abi_name},
    net::bpffs,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn settings(topology: &Topology, interfaces: &[&str], mode: &str) -> Settings {
    Settings {
        interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
        node: format!("xdp_mode = \"{mode}\"\n"),
        ..Settings::of([Service::www([topology.vip4()]).nodes(&topology.backends)])
    }
}

/// Interface and mode, as the daemon tells them.
fn modes(balancer: &Balancer<'_>) -> Vec<(String, String)> {
    balancer.status().interfaces.into_iter().map(|i| (i.name, i.mode)).collect()
}

#[test]
fn a_reload_that_cannot_attach_leaves_everything_as_it_was() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let lb = &topology.lb[0];
    // A bridge takes programs in generic mode only.
    lb.ns.ip("link add br0 up type bridge\n")?;
    let mut balancer = Balancer::start(&topology, settings(&topology, &["eth0", "br0"], "auto"))?;
    let before = modes(&balancer);
    assert_eq!(before[1], ("br0".into(), "generic".into()));
    balancer.configure(|settings| {
        settings.node = "xdp_mode = \"native\"\n".into();
        settings
            .services
            .push(Service::www([topology.vip4()]).name("more").port(81).nodes(&topology.backends));
    })?;
    let output = balancer.lbctl_output(&["reload"]);
    assert!(!output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("br0"), "{output:?}");
    assert_eq!(modes(&balancer), before);
    for interface in ["eth0", "br0"] {
        assert!(balancer.xdp_program(interface).is_some(), "{interface} has the program");
    }
    assert_eq!(balancer.services().len(), 1, "nothing of the refused file is in force");
    Ok(())
}

#[test]
fn a_program_kept_in_generic_mode_says_how_it_gets_another() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let mut balancer = Balancer::start(&topology, settings(&topology, &["eth0"], "generic"))?;
    for (wanted, mode) in [("auto", "generic"), ("native", "native")] {
        balancer.configure(|settings| settings.node = format!("xdp_mode = \"{wanted}\"\n"))?;
        let output = balancer.lbctl_output(&["reload"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(modes(&balancer), [("eth0".into(), mode.into())]);
        let warning = balancer.status().interfaces.remove(0).warning.unwrap_or_default();
        assert_eq!(warning.contains("xdp_mode = \"native\""), wanted == "auto", "{warning}");
        assert!(!warning.contains("has no native"), "{warning}");
    }
    Ok(())
}

#[test]
fn an_interface_that_is_gone_keeps_the_program_from_no_other() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 1, ..Shape::default() })?;
    let lb = &topology.lb[0];
    lb.ns.ip("link add br0 up type bridge\nlink add br1 index 77 up type bridge\n")?;
    let balancer = Balancer::start(&topology, settings(&topology, &["eth0", "br0", "br1"], "auto"))?;
    lb.ns.ip("link del br0\nlink del br1\n")?;
    wait_until("the loss to be seen", PATIENCE, || modes(&balancer)[2].1 == "detached")?;
    // Under the same index as before, which the daemon knows a link of.
    lb.ns.ip("link add br1 index 77 up type bridge\n")?;
    wait_until("the program to be back", PATIENCE, || balancer.xdp_program("br1").is_some())?;
    assert_eq!(modes(&balancer)[1..], [("br0".into(), "detached".into()), ("br1".into(), "generic".into())]);
    Ok(())
}

/// A pin directory of this test alone.
struct Pins(PathBuf);

impl Pins {
    fn new(name: &str) -> Self {
        let dir = Path::new("/sys/fs/bpf").join(format!("lbd-test-{}-{name}", std::process::id()));
        bpffs::ensure(&dir).expect("a BPF file system");
        Self(dir)
    }

    fn open(&self) -> Kernel {
        Kernel::open(&self.0, Capacities { ring: 100, backends: 10, ..Capacities::default() })
            .expect("the program loads")
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.0.join(abi_name()).join(name)
    }

    /// Pins a map of these once more, as the larger map that is to take a place in `other`.
    fn next_of(&self, name: &str, other: &Self) {
        let map = aya::maps::MapData::from_pin(self.pin(name)).expect("a pinned map");
        map.pin(other.pin(&format!("{name}_next"))).expect("a second pin");
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = Kernel::detach(&self.0);
    }
}

/// A daemon may die at any point while it replaces maps by larger ones.
#[test]
fn growth_that_was_interrupted_is_finished_or_undone() -> Result<()> {
    require!(Need::Root);
    let (pins, large) = (Pins::new("growth"), Pins::new("large"));
    drop(pins.open());
    let mut kernel = large.open();
    kernel.grow(Capacities { ring: 200, backends: 20, ..Capacities::default() }).expect("maps grow");
    assert_eq!(kernel.maps().capacities(), (200, 20));
    let left = fs::read_dir(large.pin("")).expect("the pins").flatten().map(|e| e.file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("next")));
    let grown = ["RING", "BACKENDS", "BACKEND_STATS", "BACKEND_NAMES"];

    // Before every program read them: some were made, perhaps without contents.
    large.next_of("BACKEND_STATS", &pins);
    large.next_of("RING", &pins);
    assert_eq!(pins.open().maps().capacities(), (100, 10));
    assert!(grown.iter().all(|name| !pins.pin(&format!("{name}_next")).exists()));

    // After: wherever it stopped, the larger ones count.
    for done in 0..=grown.len() {
        let pins = Pins::new(&format!("growth{done}"));
        drop(pins.open());
        for (at, name) in grown.iter().enumerate() {
            large.next_of(name, &pins);
            if at < done {
                fs::rename(pins.pin(&format!("{name}_next")), pins.pin(name)).expect("renamed");
            }
        }
        fs::create_dir(pins.pin("grown")).expect("the marker");
        assert_eq!(pins.open().maps().capacities(), (200, 20), "{done} were renamed");
        assert!(!pins.pin("grown").exists() && !pins.pin("RING_next").exists());
        assert_eq!(pins.open().maps().capacities(), (200, 20));
    }
    Ok(())
}
