//! Who owns what: one record per living lab, so that the leftovers of a killed process can be removed by the
//! next one without touching a lab that lives.
//!
//! A record is a text file in [`DIR`]: the owner, the lab's directory, then a line for every namespace and process
//! *before* or right after it is made. A process is known by pid and start time, because pids are reused.

use std::{
    fs::{self, File},
    io,
    io::Write as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::NamedTempFile;

use super::{Error, Result, netns};

/// Where the records are.
const DIR: &str = "/run/lbd-lab";

/// How every lab's directory is called; the sweeper removes no directory that is not called so.
pub(super) const DIR_PREFIX: &str = "lbd-lab-";

/// One line of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// The process that made the lab; `boot` and `pidns` tell whether its pid means anything here.
    Owner {
        pid: u32,
        start: u64,
        pidns: u64,
        boot: String,
    },
    Dir(PathBuf),
    Netns(String),
    Process {
        pid: u32,
        start: u64,
    },
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Owner { pid, start, pidns, boot } => write!(f, "owner {pid} {start} {pidns} {boot}"),
            Self::Dir(path) => write!(f, "dir {}", path.display()),
            Self::Netns(name) => write!(f, "netns {name}"),
            Self::Process { pid, start } => write!(f, "process {pid} {start}"),
        }
    }
}

/// A line that no lab wrote; the sweeper leaves such a thing alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign;

impl FromStr for Line {
    type Err = Foreign;

    fn from_str(line: &str) -> Result<Self, Foreign> {
        fn number<T: FromStr>(word: Option<&str>) -> Result<T, Foreign> {
            word.and_then(|w| w.parse().ok()).ok_or(Foreign)
        }
        let (kind, rest) = line.split_once(' ').ok_or(Foreign)?;
        let mut words = rest.split(' ');
        let parsed = match kind {
            "owner" => Self::Owner {
                pid: number(words.next())?,
                start: number(words.next())?,
                pidns: number(words.next())?,
                boot: words.next().filter(|w| !w.is_empty()).ok_or(Foreign)?.to_owned(),
            },
            "process" => Self::Process { pid: number(words.next())?, start: number(words.next())? },
            // A directory's name may hold spaces.
            "dir" if rest.starts_with('/') => return Ok(Self::Dir(rest.into())),
            "netns" if netns::is_name(rest) => return Ok(Self::Netns(rest.to_owned())),
            _ => return Err(Foreign),
        };
        if words.next().is_some() { Err(Foreign) } else { Ok(parsed) }
    }
}

/// The record of one lab, written as the lab grows.
pub(super) struct Record {
    path: PathBuf,
}

impl Record {
    /// Removes what dead labs left behind, then makes the record of a lab, whole from its first moment; fails when a
    /// living lab has this prefix. One process at a time: else one could remove, in the name of a dead lab, the
    /// namespaces of the living one that has just taken over its name.
    pub(super) fn create(prefix: &str, dir: &Path) -> Result<Self> {
        let path = Path::new(DIR).join(prefix.trim_end_matches('-'));
        let fail = |what| {
            let path = path.clone();
            move |source| Error::File { path, what, source }
        };
        if !netns::is_name(prefix) {
            return Err(fail("checking the lab's name")(io::ErrorKind::InvalidInput.into()));
        }
        fs::create_dir_all(DIR).map_err(fail("making its directory"))?;
        let lock = File::open(DIR).map_err(fail("opening its directory"))?;
        let _one_at_a_time = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, e)| fail("locking its directory")(e.into()))?;
        sweep();
        let pid = std::process::id();
        let owner = Line::Owner {
            pid,
            start: start_time(pid).unwrap_or_default(),
            pidns: pid_namespace(),
            boot: boot_id(),
        };
        let draft = NamedTempFile::with_prefix_in("draft-", DIR).map_err(fail("writing the lab's record"))?;
        fs::write(&draft, format!("{owner}\n{}\n", Line::Dir(dir.to_owned())))
            .map_err(fail("writing the lab's record"))?;
        match draft.persist_noclobber(&path) {
            Ok(_) => Ok(Self { path }),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::NameTaken { prefix: prefix.to_owned(), record: path })
            }
            Err(e) => Err(fail("publishing the lab's record")(e.error)),
        }
    }

    pub(super) fn note(&self, line: &Line) -> Result<()> {
        fs::OpenOptions::new()
            .append(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| Error::File {
                path: self.path.clone(),
                what: "extending the lab's record",
                source,
            })
    }

    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what labs of dead processes left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir(DIR) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let lines: Vec<Line> = text.lines().filter_map(|line| line.parse().ok()).collect();
        let Some(owner) = lines.iter().find(|line| matches!(line, Line::Owner { .. })) else { continue };
        match fate(owner, &boot_id(), pid_namespace(), start_time) {
            Fate::Lives => {}
            Fate::Dead { rebooted } => {
                remove_leftovers(&lines, rebooted);
                let _ = fs::remove_file(&path);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Lives,
    /// After a reboot no recorded pid means anything.
    Dead {
        rebooted: bool,
    },
}

/// Whether the owner of a record lives, as far as this process can tell; in doubt, it lives.
fn fate(owner: &Line, boot: &str, pidns: u64, start_time: impl Fn(u32) -> Option<u64>) -> Fate {
    match owner {
        Line::Owner { boot: then, .. } if then != boot => Fate::Dead { rebooted: true },
        Line::Owner { pidns: theirs, .. } if *theirs != pidns => Fate::Lives,
        Line::Owner { pid, start, .. } if start_time(*pid) == Some(*start) => Fate::Lives,
        Line::Owner { .. } => Fate::Dead { rebooted: false },
        Line::Dir(_) | Line::Netns(_) | Line::Process { .. } => Fate::Lives,
    }
}

fn remove_leftovers(lines: &[Line], rebooted: bool) {
    for line in lines {
        match line {
            Line::Process { pid, start } if !rebooted && start_time(*pid) == Some(*start) => {
                if let Ok(pid) = i32::try_from(*pid) {
                    // The lab made every process the leader of its own group.
                    let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
                }
            }
            Line::Netns(name) => netns::remove(name),
            Line::Dir(path)
                if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DIR_PREFIX)) =>
            {
                // The processes killed above may write for another moment.
                for _ in 0..10 {
                    if fs::remove_dir_all(path).is_ok() || !path.exists() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            Line::Owner { .. } | Line::Dir(_) | Line::Process { .. } => {}
        }
    }
}

/// When a process started, in clock ticks since boot; `None` when there is no such process, or only its zombie.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): field 2 is the name in parentheses and may itself hold any of them; state is field 3, start field 22.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino())
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = id.trim();
    if id.is_empty() { "unknown".to_owned() } else { id.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line() -> impl Strategy<Value = Line> {
        prop_oneof![
            (any::<u32>(), any::<u64>(), any::<u64>(), "[0-9a-f-]{1,36}")
                .prop_map(|(pid, start, pidns, boot)| Line::Owner { pid, start, pidns, boot }),
            "/[a-z /]{0,20}".prop_map(|path| Line::Dir(path.into())),
            "[a-z0-9][a-z0-9-]{0,20}".prop_map(Line::Netns),
            (any::<u32>(), any::<u64>()).prop_map(|(pid, start)| Line::Process { pid, start }),
        ]
    }

    proptest! {
        #[test]
        fn a_line_is_read_as_it_was_written(line in line()) {
            prop_assert_eq!(line.to_string().parse(), Ok(line));
        }

        #[test]
        fn no_text_panics_and_no_name_leaves_its_directory(text in "(owner|dir|netns|process)? ?.{0,40}") {
            if let Ok(Line::Netns(name)) = text.parse() {
                prop_assert!(!name.contains('/') && !name.starts_with('.'));
            }
            let _ = parse_stat(&text);
        }
    }

    #[test]
    fn the_start_time_is_found_behind_a_hostile_name() {
        let stat = "7 (a) R 1) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_stat(stat), Some(4711));
        assert_eq!(parse_stat(&stat.replace(") S", ") Z")), None);
    }

    #[test]
    fn an_owner_is_dead_only_when_that_is_certain() {
        let owner = Line::Owner { pid: 10, start: 5, pidns: 1, boot: "b".into() };
        let running = |start| move |_| start;
        assert_eq!(fate(&owner, "b", 1, running(Some(5))), Fate::Lives);
        assert_eq!(fate(&owner, "b", 1, running(None)), Fate::Dead { rebooted: false });
        assert_eq!(
            fate(&owner, "b", 1, running(Some(6))),
            Fate::Dead { rebooted: false },
            "the pid was reused"
        );
        assert_eq!(fate(&owner, "b", 2, running(None)), Fate::Lives, "its pid cannot be judged from here");
        assert_eq!(fate(&owner, "c", 2, running(None)), Fate::Dead { rebooted: true });
    }
}
