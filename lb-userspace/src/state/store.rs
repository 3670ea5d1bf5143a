//! The changes on disk: one JSON file, replaced as a whole.

use super::{
    changes::RuntimeChanges,
    hold::{HOLD_FILE, Holds},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

const FILE: &str = "runtime.json";
const TEMPORARY: &str = ".runtime.json.new";
/// The version this program writes; it reads all from 1, which had no revision.
const VERSION: u64 = 2;
/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Where changes are kept.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// What was found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub changes: RuntimeChanges,
    pub outcome: Outcome,
}

/// How loading went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is no file: nothing was changed yet.
    NoFile,
    Read,
    /// The file is none that this program can read. It was moved aside, and no changes are in force:
    /// the operator must be told.
    SetAside {
        file: PathBuf,
        moved_to: PathBuf,
        why: String,
    },
}

impl Outcome {
    /// What the operator must be told, if anything.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::NoFile | Self::Read => None,
            Self::SetAside { file, moved_to, why } => Some(format!(
                "{}: {why}: the changes made at run time are not in force; the file is kept as {}: repair it and \
                 move it back while the daemon is stopped, or make the changes again",
                file.display(),
                moved_to.display()
            )),
        }
    }
}

/// Why changes could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: cannot be made a directory for the changes at run time ({source}); check state_dir", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("{}: cannot be read ({source}); check its permissions", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {why}, and it cannot be moved aside ({source}); move it away", path.display())]
    SetAside { path: PathBuf, why: String, source: io::Error },
    #[error("{}: cannot be written ({source}); the old file is unchanged: check the space and permissions there", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: written, but a power failure may still bring the old one back ({source}); check the disk", path.display())]
    Sync { path: PathBuf, source: io::Error },
}

/// The file as it is written.
#[derive(Serialize)]
struct Versioned<'a> {
    version: u64,
    #[serde(flatten)]
    changes: &'a RuntimeChanges,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct Version {
    version: u64,
}

/// Reads the text of the file; what is wrong with it otherwise.
fn decode(bytes: &[u8]) -> Result<RuntimeChanges, String> {
    let broken = |error: serde_json::Error| format!("not a valid state file ({error})");
    let Version { version } = serde_json::from_slice(bytes).map_err(broken)?;
    if !(1..=VERSION).contains(&version) {
        return Err(format!("a state file of version {version}, this program reads versions 1 to {VERSION}"));
    }
    let mut value: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(bytes).map_err(broken)?;
    value.remove("version");
    let changes: RuntimeChanges = serde_json::from_value(value.into()).map_err(broken)?;
    changes.invalid().map_or(Ok(changes), |why| Err(format!("not a valid state file ({why})")))
}

fn encode(changes: &RuntimeChanges) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(&Versioned { version: VERSION, changes })?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl StateDir {
    /// Names the directory and makes it (mode 0750) if it does not exist.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        match DirBuilder::new().recursive(true).mode(0o750).create(&path) {
            Ok(()) => Ok(Self { path }),
            Err(source) => Err(StateError::Create { path, source }),
        }
    }

    /// The file the changes are in.
    pub fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }

    /// Reads the changes. A file that cannot be understood is moved aside; one that cannot be read
    /// is an error and stays.
    pub fn load(&self, now: SystemTime) -> Result<Loaded, StateError> {
        let path = self.file();
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Loaded { changes: RuntimeChanges::default(), outcome: Outcome::NoFile });
            }
            Err(source) => return Err(StateError::Read { path, source }),
        }
        let decoded = if bytes.len() as u64 > MAX_FILE {
            Err("too large for a state file".to_owned())
        } else {
            decode(&bytes)
        };
        match decoded {
            Ok(changes) => Ok(Loaded { changes, outcome: Outcome::Read }),
            Err(why) => match set_aside(&path, now) {
                Ok(moved_to) => {
                    let outcome = Outcome::SetAside { file: path, moved_to, why };
                    // No revision that somebody remembers may come again; there is no change a second for decades.
                    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                    Ok(Loaded { changes: RuntimeChanges::after_loss(seconds), outcome })
                }
                Err(source) => Err(StateError::SetAside { path, why, source }),
            },
        }
    }

    /// Replaces the file: after a crash at any moment it holds either the old changes or the new.
    pub fn store(&self, changes: &RuntimeChanges) -> Result<(), StateError> {
        self.store_with(|file| file.write_all(&encode(changes)?))
    }

    pub(super) fn store_with(
        &self,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), StateError> {
        self.replace(self.file(), write)
    }

    /// Keeps what is held.
    pub fn store_holds(&self, holds: &Holds) -> Result<(), StateError> {
        self.replace(self.beside(HOLD_FILE), |file| file.write_all(&holds.encode()?))
    }

    /// Another file of the directory.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn replace(
        &self,
        path: PathBuf,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), StateError> {
        let temporary = self.path.join(TEMPORARY);
        let written = write_new(&temporary, write).and_then(|()| fs::rename(&temporary, &path));
        if let Err(source) = written {
            // What is left of it would only take space; the next write removes it if this cannot.
            let _ = fs::remove_file(&temporary);
            return Err(StateError::Write { path, source });
        }
        sync_directory(&self.path).map_err(|source| StateError::Sync { path, source })
    }
}

/// Writes a file that did not exist before (mode 0640) down to the disk.
fn write_new(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
    // The mode above is subject to the umask.
    file.set_permissions(Permissions::from_mode(0o640))?;
    write(&mut file)?;
    file.sync_all()
}

/// Moves a file of the directory to a name that nothing has yet, and says which.
pub fn set_aside(file: &Path, now: SystemTime) -> io::Result<PathBuf> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = |i: u32| {
        let mut name = file.as_os_str().to_owned();
        name.push(match i {
            0 => format!(".corrupt-{seconds}"),
            i => format!(".corrupt-{seconds}-{i}"),
        });
        PathBuf::from(name)
    };
    // One daemon owns the directory, so that nobody takes the name in between.
    let free = (0..).map(name).find(|to| fs::symlink_metadata(to).is_err());
    let to = free.ok_or(io::ErrorKind::AlreadyExists)?;
    fs::rename(file, &to)?;
    sync_directory(file.parent().unwrap_or(Path::new("/")))?;
    Ok(to)
}

/// Makes a rename last.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
