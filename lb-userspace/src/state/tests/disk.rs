//! What stays on disk, whatever happens.

use super::*;
use proptest::prelude::*;
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn some_changes() -> RuntimeChanges {
    let (file, mut changes) = (file(), RuntimeChanges::default());
    changes.add_backend(&file, &s("www"), new("web3", ip(3)), stamp()).unwrap();
    changes.set_weight(&file, &s("www"), &b("web3"), 3, stamp()).unwrap();
    changes.set_admin(&file, &s("www"), &b("web2"), Admin::Draining, stamp()).unwrap();
    changes.remove_backend(&file, &s("www"), &b("web1"), stamp()).unwrap();
    assert!(changes.set_ring_size(&s("www"), 10_007));
    changes
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn changes_last() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path().join("a/b")).unwrap();
    let empty = Loaded { changes: RuntimeChanges::default(), outcome: Outcome::NoFile };
    assert_eq!(state.load(now()).unwrap(), empty);
    state.store(&some_changes()).unwrap();
    let read = Loaded { changes: some_changes(), outcome: Outcome::Read };
    assert_eq!(state.load(now()).unwrap(), read);
    assert_eq!(StateDir::open(dir.path().join("a/b")).unwrap().load(now()).unwrap(), read);
    assert_eq!(names(&dir.path().join("a/b")), ["runtime.json"]);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(state.file()), 0o640);
    // 0750 less what the umask takes.
    assert_eq!(mode(dir.path().join("a/b")) & !0o750, 0);
}

/// Files of this version, and of those before, are read by all that follow.
#[test]
fn the_form_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let text = r#"{
  "version": 2,
  "revision": 0,
  "services": {
    "www": {
      "web1": {
        "membership": {
          "value": "removed",
          "at": 1700000000,
          "by": "uid 0"
        }
      },
      "web2": {
        "admin": {
          "value": "draining",
          "at": 1700000000,
          "by": "uid 0"
        }
      },
      "web3": {
        "membership": {
          "value": {
            "added": {
              "address": "10.0.0.3",
              "weight": 100
            }
          },
          "at": 1700000000,
          "by": "uid 0"
        },
        "weight": {
          "value": 3,
          "at": 1700000000,
          "by": "uid 0"
        }
      }
    }
  },
  "rings": {
    "www": 10007
  }
}
"#;
    state.store(&some_changes()).unwrap();
    assert_eq!(fs::read_to_string(state.file()).unwrap(), text);
    // Version 1 had no revision.
    let old = text.replace("\"version\": 2,\n  \"revision\": 0,", "\"version\": 1,");
    assert!(old.contains("\"version\": 1,") && !old.contains("revision"));
    fs::write(state.file(), old).unwrap();
    assert_eq!(state.load(now()).unwrap(), Loaded { changes: some_changes(), outcome: Outcome::Read });
}

#[test]
fn a_torn_write_is_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    state.store(&some_changes()).unwrap();
    // What a crash between write and rename leaves.
    let text = fs::read(state.file()).unwrap();
    fs::write(dir.path().join(".runtime.json.new"), &text[..text.len() / 2]).unwrap();
    assert_eq!(state.load(now()).unwrap().changes, some_changes());
    state.store(&RuntimeChanges::default()).unwrap();
    assert_eq!(state.load(now()).unwrap().changes, RuntimeChanges::default());
    assert_eq!(names(dir.path()), ["runtime.json"]);
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    state.store(&some_changes()).unwrap();
    let error = state.store_with(|file| {
        file.write_all(b"{\"version\":1,")?;
        Err(io::ErrorKind::StorageFull.into())
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("the old file is unchanged"), "{error}");
    assert_eq!(names(dir.path()), ["runtime.json"]);
    assert_eq!(state.load(now()).unwrap().changes, some_changes());

    // Where nothing can be written at all.
    fs::create_dir(dir.path().join(".runtime.json.new")).unwrap();
    assert!(matches!(state.store(&RuntimeChanges::default()), Err(StateError::Write { .. })));
    assert_eq!(state.load(now()).unwrap().changes, some_changes());
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(matches!(StateDir::open(dir.path().join("file/x")), Err(StateError::Create { .. })));
}

#[test]
fn what_cannot_be_understood_is_moved_aside() {
    let rows: [(&[u8], &str); 9] = [
        (b"", "not a valid state file (EOF while parsing a value at line 1 column 0)"),
        (b"{\"version\":1", "not a valid state file (EOF while parsing an object at line 1 column 12)"),
        (b"{}", "not a valid state file (missing field `version` at line 1 column 2)"),
        (b"\xff", "not a valid state file (expected value at line 1 column 1)"),
        (b"{\"version\":3,\"x\":[]}", "a state file of version 3, this program reads versions 1 to 2"),
        (b"{\"version\":1,\"x\":1}", "not a valid state file (unknown field `x`, expected one of `revision`, `services`, `rings`, `lists`, `limits`, `gradual`)"),
        (
            b"{\"version\":1,\"rings\":{\"www\":4}}",
            "not a valid state file (the ring of service 'www' has 4 slots, not a prime)",
        ),
        (
            b"{\"version\":1,\"rings\":{\"-\":3}}",
            "not a valid state file ('-' is not a name: its first character is neither a letter nor a digit; use 1 \
             to 63 letters, digits, '-', '_' or '.', the first a letter or digit)",
        ),
        (
            b"{\"version\":1,\"services\":{\"www\":{\"a\":{\"weight\":{\"value\":70000,\"at\":1,\"by\":\"\"}}}}}",
            "not a valid state file (invalid value: integer `70000`, expected u16)",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    for (i, (bytes, expected)) in rows.into_iter().enumerate() {
        fs::write(state.file(), bytes).unwrap();
        let loaded = state.load(now()).unwrap();
        assert!(loaded.changes.is_empty());
        let warning = loaded.outcome.warning().unwrap();
        let Outcome::SetAside { moved_to, why, .. } = loaded.outcome else { panic!("{:?}", loaded.outcome) };
        assert_eq!(why, expected);
        assert!(warning.contains(expected) && warning.contains(&*moved_to.to_string_lossy()), "{warning}");
        let suffix = if i == 0 { String::new() } else { format!("-{i}") };
        assert_eq!(moved_to, dir.path().join(format!("runtime.json.corrupt-1700000000{suffix}")));
        assert_eq!(fs::read(&moved_to).unwrap(), bytes);
        assert_eq!(state.load(now()).unwrap().outcome, Outcome::NoFile);
    }
}

#[test]
fn what_cannot_be_read_stays() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    fs::create_dir(state.file()).unwrap();
    assert!(matches!(state.load(now()), Err(StateError::Read { .. })));
    assert_eq!(names(dir.path()), ["runtime.json"]);
}

proptest! {
    #[test]
    fn no_file_panics(bytes in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        "\\{\"version\":[0-9]{1,20}[\\{\\}\":,a-z0-9]{0,40}".prop_map(String::into_bytes),
    ]) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        fs::write(state.file(), &bytes).unwrap();
        let loaded = state.load(now()).unwrap();
        match loaded.outcome {
            Outcome::SetAside { moved_to, .. } => prop_assert_eq!(fs::read(moved_to).unwrap(), bytes),
            Outcome::Read => prop_assert!(state.file().exists()),
            Outcome::NoFile => prop_assert!(false, "there is a file"),
        }
    }
}
