//! What the operator holds (`lbctl pair hold`), on disk: maintenance outlives a restart of the daemon.

use super::StateDir;
use crate::model::VrrpName;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

pub(super) const HOLD_FILE: &str = "hold.json";
const VERSION: u64 = 1;

/// Who holds, and since when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    pub by: String,
    /// Seconds since 1970.
    pub since: f64,
}

/// All that is held. An instance that is held with all others is held too where the configuration has it only later.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holds {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    all: Option<Hold>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    each: BTreeMap<VrrpName, Hold>,
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u64,
    holds: Holds,
}

impl Holds {
    pub fn is_empty(&self) -> bool {
        self.all.is_none() && self.each.is_empty()
    }

    /// The hold of an instance.
    pub fn of(&self, name: &VrrpName) -> Option<&Hold> {
        self.each.get(name).or(self.all.as_ref())
    }

    /// Holds these, or all. Who did first stays.
    pub fn hold(&mut self, names: Option<&[VrrpName]>, hold: &Hold) {
        match names {
            None => drop(self.all.get_or_insert_with(|| hold.clone())),
            Some(names) => {
                for name in names {
                    if self.of(name).is_none() {
                        self.each.insert(name.clone(), hold.clone());
                    }
                }
            }
        }
    }

    /// Releases these of the `known` ones, or all.
    pub fn release(&mut self, names: Option<&[VrrpName]>, known: &BTreeSet<VrrpName>) {
        let Some(names) = names else {
            *self = Self::default();
            return;
        };
        if let Some(all) = self.all.take() {
            for name in known {
                self.each.entry(name.clone()).or_insert_with(|| all.clone());
            }
        }
        self.each.retain(|name, _| !names.contains(name));
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let read: Versioned = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if read.version == VERSION { Ok(read.holds) } else { Err(format!("of version {}", read.version)) }
    }

    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(&Versioned { version: VERSION, holds: self.clone() })?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl StateDir {
    /// What is held. The text says what is wrong with the file, if it is; then nothing is held.
    pub fn load_holds(&self) -> Result<Holds, String> {
        let path = self.beside(HOLD_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Holds::decode(&bytes).map_err(|why| format!("{}: {why}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Holds::default()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VrrpName {
        text.parse().unwrap()
    }

    fn by(who: &str) -> Hold {
        Hold { by: who.to_owned(), since: 1000.5 }
    }

    #[test]
    fn all_and_each() {
        let (one, two) = (name("one"), name("two"));
        let known = [one.clone(), two.clone()].into();
        let mut holds = Holds::default();
        holds.hold(Some(std::slice::from_ref(&one)), &by("a"));
        holds.hold(None, &by("b"));
        holds.hold(None, &by("c"));
        assert_eq!((holds.of(&one), holds.of(&two)), (Some(&by("a")), Some(&by("b"))));
        assert_eq!(holds.of(&name("later")), Some(&by("b")));
        // One of all: the others stay held.
        holds.release(Some(std::slice::from_ref(&one)), &known);
        assert_eq!((holds.of(&one), holds.of(&two)), (None, Some(&by("b"))));
        holds.release(None, &known);
        assert!(holds.is_empty());
    }

    #[test]
    fn on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        assert_eq!(state.load_holds(), Ok(Holds::default()));
        let mut holds = Holds::default();
        holds.hold(Some(&[name("one")]), &by("uid 0 (root)"));
        state.store_holds(&holds).unwrap();
        assert_eq!(state.load_holds(), Ok(holds));
        state.store_holds(&Holds::default()).unwrap();
        assert_eq!(state.load_holds(), Ok(Holds::default()));
        for text in ["", "{}", "{\"version\": 2, \"holds\": {}}", "{\"version\": 1, \"holds\": {\"x\": 1}}"] {
            std::fs::write(directory.path().join(HOLD_FILE), text).unwrap();
            assert!(state.load_holds().is_err(), "{text}");
        }
    }
}
