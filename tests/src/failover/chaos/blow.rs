//! What chaos does to a node, and how it is undone.

use std::{fs, io::Write as _, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;

use super::world::World;
use crate::{failover::nodes::port_state, lab::Result, packets::Rng};

/// What befalls a node, or the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Blow {
    /// SIGKILL; a service manager starts the daemon again
    Kill,
    /// SIGTERM; the same
    Term,
    /// SIGSTOP for two seconds
    Hang,
    /// The cable of one node is pulled
    Link,
    /// The switch's port of one node passes nothing
    Silent,
    /// The nodes see the others but not each other
    Partition,
    /// The wall clock of one node jumps by hours, and back
    Clock,
    /// The file system of one node's state_dir is full
    Disk,
}

impl Blow {
    pub const ALL: [Self; 8] = [
        Self::Kill,
        Self::Term,
        Self::Hang,
        Self::Link,
        Self::Silent,
        Self::Partition,
        Self::Clock,
        Self::Disk,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Term => "term",
            Self::Hang => "hang",
            Self::Link => "link",
            Self::Silent => "silent",
            Self::Partition => "partition",
            Self::Clock => "clock",
            Self::Disk => "disk",
        }
    }

    /// Whether it keeps the nodes from seeing each other.
    pub fn parts(self) -> bool {
        matches!(self, Self::Link | Self::Silent | Self::Partition)
    }
}

/// Which blow, to which node, for how long; and by how many hours a clock jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stroke {
    pub blow: Blow,
    pub node: usize,
    pub lasts: Duration,
    pub hours: i8,
}

/// The strokes of a seed, without an end: the same on every machine.
pub fn strokes(seed: u64, blows: &[Blow]) -> impl Iterator<Item = Stroke> {
    let mut rng = Rng::new(seed);
    std::iter::repeat_with(move || Stroke {
        blow: rng.pick(blows),
        node: rng.below(2),
        lasts: Duration::from_millis(500 + 100 * rng.below(21) as u64),
        hours: rng.pick(&[-30, -1, 1, 30]),
    })
}

impl Stroke {
    /// Makes it happen. The network lets the nodes see each other until this is called, where it parts them.
    pub fn strike(self, world: &World<'_>) -> Result<()> {
        let lb = world.topology.lb[self.node].name.clone();
        match self.blow {
            Blow::Kill => world.signal(self.node, Signal::SIGKILL),
            Blow::Term => world.signal(self.node, Signal::SIGTERM),
            Blow::Hang => world.signal(self.node, Signal::SIGSTOP),
            Blow::Link => world.topology.switch.ip(&format!("link set {lb} down\n"))?,
            Blow::Silent => port_state(world.topology, &lb, false)?,
            Blow::Partition => part(world, true)?,
            Blow::Clock => world.jump(self.node, self.hours),
            Blow::Disk => {
                fill(&world.filler(self.node));
                // What is to be kept now cannot be: refused or not, forwarding and the pair must not care.
                world.change(self.node);
            }
        }
        Ok(())
    }

    /// Takes its cause away; the daemon that ended is started as a service manager would.
    pub fn mend(self, world: &mut World<'_>) -> Result<()> {
        let lb = world.topology.lb[self.node].name.clone();
        match self.blow {
            Blow::Kill | Blow::Term => world.restart(self.node)?,
            Blow::Hang => world.signal(self.node, Signal::SIGCONT),
            Blow::Link => world.topology.switch.ip(&format!("link set {lb} up\n"))?,
            Blow::Silent => port_state(world.topology, &lb, true)?,
            Blow::Partition => part(world, false)?,
            Blow::Clock => world.jump(self.node, 0),
            Blow::Disk => {
                let _ = fs::remove_file(world.filler(self.node));
                world.change(self.node);
            }
        }
        Ok(())
    }
}

/// Ports that are isolated reach all but each other.
fn part(world: &World<'_>, apart: bool) -> Result<()> {
    let isolated = if apart { "on" } else { "off" };
    let sync = if apart { "down" } else { "up" };
    for node in &world.topology.lb {
        world.topology.switch.exec("bridge", &["link", "set", "dev", &node.name, "isolated", isolated])?;
    }
    world.topology.lb[0].ns.ip(&format!("link set sync0 {sync}\n"))
}

/// Writes until there is no room.
fn fill(path: &PathBuf) {
    let Ok(mut file) = fs::File::create(path) else { return };
    for size in [4096, 1] {
        let bytes = vec![0; size];
        while file.write_all(&bytes).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_story() {
        let story = |seed| strokes(seed, &Blow::ALL).take(200).collect::<Vec<_>>();
        assert_eq!(story(7), story(7));
        assert_ne!(story(7), story(8));
        let first = story(1);
        assert!(Blow::ALL.iter().all(|blow| first.iter().any(|stroke| stroke.blow == *blow)));
        assert!(first.iter().any(|s| s.node == 0) && first.iter().any(|s| s.node == 1));
        assert!(first.iter().all(|s| (500..=2500).contains(&s.lasts.as_millis())));
        assert!(strokes(1, &[Blow::Hang]).take(9).all(|s| s.blow == Blow::Hang));
    }
}
