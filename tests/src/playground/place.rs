//! Names and paths of a playground, and removing what a killed one left behind.
//!
//! What the lab makes (namespaces, processes, its directory) the lab's own records take care of. The rest lies in
//! `/run/lbd-NAME` and, as its file `pins` tells, below one directory of the BPF file system. Whoever owns a
//! playground holds a lock on its file `lock`, which the kernel releases whatever way the owner ends: where the
//! lock can be had, everything is a leftover.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, setns},
};

const RUN: &str = "/run";
const BPFFS: &str = "/sys/fs/bpf";
const PREFIX: &str = "lbd-";
const LOCK: &str = "lock";
const PINS: &str = "pins";

/// Where a playground of some name is, running or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    name: String,
}

impl Place {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Everything of it that is a file, except for what the lab keeps in its own directory.
    pub(super) fn run_dir(&self) -> PathBuf {
        Path::new(RUN).join(format!("{PREFIX}{}", self.name))
    }

    /// Told here what to do while it runs.
    pub(super) fn control_socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// The socket of a daemon, by a path that is easy to type.
    pub(super) fn lbctl_socket(&self, node: &str) -> PathBuf {
        self.run_dir().join(format!("{node}.sock"))
    }

    /// Where the network namespace of a node is.
    pub(super) fn namespace(&self, node: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{node}", self.name))
    }

    /// The short names of the nodes that exist now.
    pub(super) fn nodes(&self) -> Vec<String> {
        let prefix = format!("{}-", self.name);
        let mut nodes: Vec<String> = fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(&prefix).map(str::to_owned))
            .collect();
        nodes.sort();
        nodes
    }

    /// Whether a living process owns it.
    pub(super) fn is_up(&self) -> bool {
        self.run_dir().join(LOCK).exists() && !is_leftover(&self.run_dir())
    }
}

/// Runs a closure inside a node of a playground that another process runs.
pub fn inside<T: Send>(playground: &str, node: &str, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(Place::new(playground).namespace(node))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The directories of a playground that is coming up or running; dropping it removes them.
#[derive(Debug)]
pub(super) struct Premises {
    run_dir: PathBuf,
    pin_root: PathBuf,
    _lock: Flock<File>,
}

impl Premises {
    /// Removes what dead playgrounds left behind, of any name, then makes the directories of this one. The caller
    /// has the lab of this name already, so that no living playground can be in them.
    pub(super) fn take(place: &Place) -> Result<Self> {
        // Sweeping and making exclude each other: a directory without its lock yet would look like a leftover.
        let gate = File::open("/run/netns").or_else(|_| File::open(RUN)).context("cannot open /run")?;
        let _one_at_a_time = Flock::lock(gate, FlockArg::LockExclusive)
            .map_err(|(_, e)| io::Error::from(e))
            .context("cannot lock /run/netns")?;
        sweep();
        let run_dir = place.run_dir();
        let at = || format!("cannot make {}", run_dir.display());
        fs::DirBuilder::new().mode(0o755).create(&run_dir).with_context(at)?;
        let made = File::create(run_dir.join(LOCK))
            .and_then(|file| Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e)));
        let pin_root = Path::new(BPFFS).join(format!("{PREFIX}{}-{}", place.name(), std::process::id()));
        let noted = fs::write(run_dir.join(PINS), format!("{}\n", pin_root.display()));
        match made.and_then(|lock| noted.map(|()| lock)) {
            Ok(lock) => Ok(Self { run_dir, pin_root, _lock: lock }),
            Err(error) => {
                let _ = fs::remove_dir_all(&run_dir);
                Err(error).with_context(at)
            }
        }
    }

    pub(super) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The directory on bpffs below which all pins of the playground lie.
    pub(super) fn pin_root(&self) -> &Path {
        &self.pin_root
    }
}

impl Drop for Premises {
    fn drop(&mut self) {
        remove(&self.run_dir);
    }
}

/// Removes what belongs to playgrounds whose owner is gone.
fn sweep() {
    for entry in fs::read_dir(RUN).into_iter().flatten().flatten() {
        let dir = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && dir.join(PINS).is_file()
            && is_leftover(&dir)
        {
            remove(&dir);
        }
    }
}

/// Whether the owner of a playground's directory is gone.
fn is_leftover(dir: &Path) -> bool {
    match File::open(dir.join(LOCK)) {
        Ok(file) => Flock::lock(file, FlockArg::LockSharedNonblock).is_ok(),
        // Killed while it was taking itself away.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Removes a playground's pins, then the directory that tells about them; what is attached by pins alone is
/// detached with them.
fn remove(run_dir: &Path) {
    let noted = fs::read_to_string(run_dir.join(PINS)).ok();
    if let Some(pins) = noted.as_deref().and_then(pin_root) {
        let _ = fs::remove_dir_all(pins);
    }
    let _ = fs::remove_dir_all(run_dir);
}

/// The directory of pins that a file tells about, if it is one that a playground can have made.
fn pin_root(text: &str) -> Option<PathBuf> {
    let path = Path::new(text.trim_end());
    let name = path.file_name()?.to_str()?;
    (path.parent() == Some(Path::new(BPFFS)) && name.starts_with(PREFIX)).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_but_a_playgrounds_pins_is_ever_removed(text in "(/sys/fs/bpf/)?(lbd-)?[a-z./]{0,12}\n?") {
            if let Some(path) = pin_root(&text) {
                prop_assert_eq!(path.parent(), Some(Path::new(BPFFS)));
                prop_assert!(path.file_name().unwrap().to_str().unwrap().starts_with(PREFIX));
                prop_assert!(!text.contains("/.."));
            }
        }
    }

    #[test]
    fn the_directory_of_a_living_owner_is_no_leftover() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_leftover(dir.path()), "no lock at all");
        let file = File::create(dir.path().join(LOCK)).unwrap();
        let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        assert!(!is_leftover(dir.path()));
        drop(lock);
        assert!(is_leftover(dir.path()));
    }

    #[test]
    fn paths_are_short_enough_for_a_socket() {
        let place = Place::new(&"x".repeat(40));
        assert!(place.run_dir().join("lb1/lbd.sock").as_os_str().len() < 108);
    }
}
