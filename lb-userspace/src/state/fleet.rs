//! The last good copy of the fleet's document, which a node starts with.

use super::{StateDir, StateError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fmt::Write as _,
    fs, io,
    io::Write as _,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

const FILE: &str = "fleet.toml";
/// Before the first line of the document: what it is, as JSON.
const MARK: &str = "# lbd fleet: ";
/// Largest copy that is read, in bytes; etcd takes no value of a tenth of it.
const MAX_FILE: u64 = 64 << 20;

/// The fleet's document as it was in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastGood {
    /// The key in etcd that it was read from.
    pub key: String,
    /// The revision of etcd that wrote it there.
    pub generation: u64,
    /// TOML.
    pub text: String,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    generation: u64,
    sha256: String,
}

/// What was found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadedCopy {
    None,
    Read(LastGood),
    /// The file is not what was written. It was moved aside.
    SetAside {
        file: PathBuf,
        moved_to: PathBuf,
        why: String,
    },
}

fn sum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn decode(bytes: Vec<u8>) -> Result<LastGood, String> {
    let all = String::from_utf8(bytes).map_err(|_| "no text".to_owned())?;
    let (first, text) = all.split_once('\n').ok_or("its first line is missing")?;
    let header = first.strip_prefix(MARK).ok_or("its first line does not say what it is")?;
    let Header { key, generation, sha256 } =
        serde_json::from_str(header).map_err(|error| format!("its first line is damaged ({error})"))?;
    if sum(text) != sha256 {
        return Err("its text is not the one that was written".to_owned());
    }
    Ok(LastGood { key, generation, text: text.to_owned() })
}

impl StateDir {
    /// Keeps the document: after a crash at any moment there is either the old copy or the new.
    pub fn store_fleet(&self, copy: &LastGood) -> Result<(), StateError> {
        let LastGood { key, generation, text } = copy;
        let header = Header { key: key.clone(), generation: *generation, sha256: sum(text) };
        self.replace(self.beside(FILE), |file| {
            writeln!(file, "{MARK}{}", serde_json::to_string(&header)?)?;
            file.write_all(text.as_bytes())
        })
    }

    /// The last good copy. One that is damaged is moved aside; one that cannot be read is an error and stays.
    pub fn load_fleet(&self, now: SystemTime) -> Result<LoadedCopy, StateError> {
        let file = self.beside(FILE);
        let read = fs::metadata(&file).and_then(|found| match found.len() {
            0..=MAX_FILE => fs::read(&file),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LoadedCopy::None),
            Err(source) => return Err(StateError::Read { path: file, source }),
        };
        match decode(bytes) {
            Ok(copy) => Ok(LoadedCopy::Read(copy)),
            Err(why) => {
                let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let moved_to = self.beside(&format!("{FILE}.corrupt-{seconds}"));
                match fs::rename(&file, &moved_to) {
                    Ok(()) => Ok(LoadedCopy::SetAside { file, moved_to, why }),
                    Err(source) => Err(StateError::SetAside { path: file, why, source }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn copy(text: &str) -> LastGood {
        LastGood { key: "/lbd/prod/config".to_owned(), generation: 17, text: text.to_owned() }
    }

    #[test]
    fn what_was_kept_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let now = SystemTime::now();
        assert_eq!(state.load_fleet(now).unwrap(), LoadedCopy::None);
        for text in ["", "# lbd fleet: none\n", "[[service]]\nname = \"ü\"\n"] {
            state.store_fleet(&copy(text)).unwrap();
            assert_eq!(state.load_fleet(now).unwrap(), LoadedCopy::Read(copy(text)));
        }
    }

    #[test]
    fn a_damaged_copy_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(7);
        let file = dir.path().join(FILE);
        state.store_fleet(&copy("a = 1\n")).unwrap();
        let whole = fs::read(&file).unwrap();
        let cases: [(&[u8], &str); 5] = [
            (b"", "its first line is missing"),
            (b"a = 1\n", "its first line does not say what it is"),
            (b"# lbd fleet: {}\n", "its first line is damaged"),
            (b"\xff\n", "no text"),
            (&whole[..whole.len() - 2], "its text is not the one that was written"),
        ];
        for (bytes, expected) in cases {
            fs::write(&file, bytes).unwrap();
            let LoadedCopy::SetAside { moved_to, why, .. } = state.load_fleet(now).unwrap() else {
                panic!("{bytes:?} is no copy")
            };
            assert!(why.starts_with(expected), "{why}");
            assert_eq!(moved_to, dir.path().join("fleet.toml.corrupt-7"));
            assert_eq!(fs::read(&moved_to).unwrap(), bytes);
            assert_eq!(state.load_fleet(now).unwrap(), LoadedCopy::None);
        }
        fs::create_dir(&file).unwrap();
        assert!(matches!(state.load_fleet(now), Err(StateError::Read { .. })), "that is another fault");
    }
}
