//! The revision, records, partial resets, and differences.

use super::*;
use proptest::prelude::*;

fn changed() -> RuntimeChanges {
    let (file, mut changes) = (file(), RuntimeChanges::default());
    changes.add_backend(&file, &s("www"), new("web3", ip(3)), stamp()).unwrap();
    changes.set_weight(&file, &s("www"), &b("web3"), 3, stamp()).unwrap();
    changes.set_admin(&file, &s("www"), &b("web2"), Admin::Draining, stamp()).unwrap();
    changes
}

#[test]
fn a_lost_file_leaves_a_revision_that_never_was() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let mut changes = changed();
    changes.advance();
    changes.advance();
    state.store(&changes).unwrap();
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    assert_eq!(state.load(now).unwrap().changes.revision(), 2);
    std::fs::write(state.file(), b"{").unwrap();
    assert_eq!(state.load(now).unwrap().changes.revision(), 1_700_000_000);
}

#[test]
fn records_are_signed_and_counted() {
    let changes = changed();
    let records = changes.records();
    assert_eq!(records.len(), changes.count());
    let parts: Vec<_> = records.iter().map(|r| (r.backend.as_ref().unwrap().as_str(), r.part)).collect();
    assert_eq!(parts, [("web2", Part::Admin), ("web3", Part::Added), ("web3", Part::Weight)]);
    assert!(records.iter().all(|r| r.stamp == Some(stamp())));
}

#[test]
fn a_part_can_be_dropped() {
    let mut changes = changed();
    let unknown = changes.reset_some(&file(), &s("none"), None).unwrap_err();
    assert_eq!(unknown.kind(), ChangeErrorKind::NotFound);
    let unknown = changes.reset_some(&file(), &s("www"), Some(&b("none"))).unwrap_err();
    assert_eq!(unknown.kind(), ChangeErrorKind::NotFound);
    assert_eq!(changes, changed(), "a refused change leaves no trace");
    assert_eq!(changes.reset_some(&file(), &s("www"), Some(&b("web1"))), Ok(0));
    assert_eq!(changes.reset_some(&file(), &s("www"), Some(&b("web3"))), Ok(2));
    assert_eq!(changes.reset_some(&file(), &s("www"), None), Ok(1));
    assert!(changes.is_empty());
    // One of a service that the configuration no longer has can be dropped too.
    let mut changes = changed();
    assert_eq!(changes.reset_some(&[], &s("www"), None), Ok(3));
}

#[test]
fn what_differs_is_told() {
    let before = changed();
    let mut after = before.clone();
    after.set_weight(&file(), &s("www"), &b("web1"), 7, stamp()).unwrap();
    after.set_admin(&file(), &s("www"), &b("web2"), Admin::Disabled, stamp()).unwrap();
    after.remove_backend(&file(), &s("www"), &b("web3"), stamp()).unwrap();
    let kinds = |found: Vec<Difference>| {
        found.into_iter().map(|d| (d.backend.to_string(), d.kind)).collect::<Vec<_>>()
    };
    let of = |name: &str, kind| (name.to_owned(), kind);
    let weight = file()[0].backends[0].weight;
    assert_eq!(
        kinds(differences_of(&file(), &before, &after)),
        [
            of("web1", DifferenceKind::Weight(weight, 7)),
            of("web2", DifferenceKind::Admin(Admin::Draining, Admin::Disabled)),
            of("web3", DifferenceKind::Removed)
        ]
    );
    let back = kinds(differences_of(&file(), &after, &before));
    assert_eq!(back.last(), Some(&of("web3", DifferenceKind::Added)));
    let all = apply(&file(), &before).services;
    assert_eq!(differences(&all, &[]).len(), all.iter().map(|s| s.backends.len()).sum::<usize>());
    assert_eq!(differences(&all, &all), []);
}

proptest! {
    /// Looking at the touched services alone finds what looking at all finds.
    #[test]
    fn the_short_way_finds_the_same(weights in proptest::collection::vec((0..2u8, 0..300u16, any::<bool>()), 0..8)) {
        let before = RuntimeChanges::default();
        let mut after = before.clone();
        for (backend, weight, drain) in weights {
            let backend = b(["web1", "web2"][usize::from(backend)]);
            after.set_weight(&file(), &s("www"), &backend, weight, stamp()).unwrap();
            let admin = if drain { Admin::Draining } else { Admin::Enabled };
            after.set_admin(&file(), &s("www"), &backend, admin, stamp()).unwrap();
        }
        let (old, new) = (apply(&file(), &before).services, apply(&file(), &after).services);
        prop_assert_eq!(differences_of(&file(), &before, &after), differences(&old, &new));
    }
}
