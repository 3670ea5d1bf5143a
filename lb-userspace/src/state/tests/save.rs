//! Changes written into the operator's files: the same is in force, comments and layout stay.

use super::*;
use crate::{
    config::{Config, SourceFile, parse_files},
    model::{Admin, LimitPatch, Verdict},
};

const MAIN: &str = "\
# The pair in the cellar.
include = 'conf.d/*.toml'

[node]
interfaces = ['eth0']  # both ports

[firewall]
deny = [
    '203.0.113.0/24',   # the bad ones
    '198.51.100.7',
]

[[service]]
name = 'www'
addresses = ['192.0.2.10']
port = 80

[service.health]
type = 'tcp'

# The old one.
[[service.backend]]
name = 'web1'
address = '10.0.0.1'
weight = 100   # as good as the rest

[[service.backend]]
name = 'web2'
address = '10.0.0.2'

[[service]]
name = 'dns'
addresses = ['192.0.2.11']
port = 53
protocol = 'udp'
";

const OTHER: &str = "\
[[service]]
name = 'db'
addresses = ['192.0.2.12']
port = 5432
forward = 'nat'
limits.packets_per_second = 5
backend = [
    { name = 'db1', address = '10.0.0.1' },  # first
    { name = 'db2', address = '10.0.0.2', port = 5433 },
]
";

fn files() -> Vec<SourceFile> {
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    vec![file("lbd.toml", MAIN), file("conf.d/db.toml", OTHER)]
}

fn config(files: &[SourceFile]) -> Config {
    parse_files(files, "host1").unwrap_or_else(|error| panic!("{error}\n{}", files[0].text))
}

/// The texts after the changes; what is in force is the same with them.
fn saved(changes: &RuntimeChanges) -> (Vec<SourceFile>, Saved) {
    let before = config(&files());
    let saved = save(&files(), &before, changes).unwrap();
    let mut texts = files();
    for file in &mut texts {
        if let Some(new) = saved.files.iter().find(|new| new.name == file.name) {
            *file = new.clone();
        }
    }
    let after = config(&texts);
    let specs = |services: &[ServiceSpec], changes: &RuntimeChanges| {
        let effective = apply(services, changes);
        let admins =
            effective.services.iter().flat_map(|s| s.backends.iter().map(|b| b.admin)).collect::<Vec<_>>();
        (effective.services.into_iter().map(|service| service.spec).collect::<Vec<_>>(), admins)
    };
    assert_eq!(
        specs(&before.services, changes),
        specs(&after.services, &saved.remaining),
        "{}",
        texts[0].text
    );
    assert_eq!(changes.lists().over(&before.firewall), saved.remaining.lists().over(&after.firewall));
    (texts, saved)
}

#[test]
fn what_was_changed_stands_in_the_file_of_its_service() {
    let file = config(&files());
    let mut changes = RuntimeChanges::default();
    assert!(changes.set_ring_size(&s("www"), 211));
    changes.set_weight(&file.services, &s("www"), &b("web1"), 30, stamp()).unwrap();
    changes.remove_backend(&file.services, &s("www"), &b("web2"), stamp()).unwrap();
    changes
        .add_backend(&file.services, &s("www"), NewBackend { weight: Some(7), ..new("web9", ip(9)) }, stamp())
        .unwrap();
    changes.set_weight(&file.services, &s("www"), &b("web9"), 8, stamp()).unwrap();
    changes.set_admin(&file.services, &s("www"), &b("web9"), Admin::Draining, stamp()).unwrap();
    changes.add_backend(&file.services, &s("dns"), new("ns1", ip(53)), stamp()).unwrap();
    changes
        .add_backend(&file.services, &s("db"), NewBackend { port: Some(6000), ..new("db3", ip(3)) }, stamp())
        .unwrap();
    changes.set_weight(&file.services, &s("db"), &b("db2"), 0, stamp()).unwrap();
    let patch = LimitPatch { packets_per_second: Some(900), burst_ms: Some(1500), ..LimitPatch::default() };
    changes.set_limits(&file.services, &s("db"), patch, stamp()).unwrap();
    changes.set_limits(&file.services, &s("www"), patch, stamp()).unwrap();
    let (texts, saved) = saved(&changes);
    assert_eq!((saved.count, saved.remaining.count()), (9, 1));
    assert_eq!(saved.remaining.ring_size(&s("www")), Some(211), "another ring would move flows");
    assert_eq!(saved.kept, ["service 'www', backend 'web9': draining (no setting of a file says that)"]);
    let main = &texts[0].text;
    for kept in [
        "# The pair in the cellar.",
        "# both ports",
        "    '203.0.113.0/24',   # the bad ones",
        "# The old one.",
        "weight = 30   # as good as the rest",
    ] {
        assert!(main.contains(kept), "{kept}\n{main}");
    }
    assert!(
        main.contains("[[service.backend]]\nname = \"web9\"\naddress = \"10.0.0.9\"\nweight = 8\n"),
        "{main}"
    );
    assert!(!main.contains("web2"), "{main}");
    let other = &texts[1].text;
    assert!(
        other.contains("# first") && other.contains("name = \"db3\", address = \"10.0.0.3\", port = 6000"),
        "{other}"
    );
    assert!(other.contains("packets_per_second = 900"), "{other}");
    // A second time there is nothing to do.
    let again = save(&texts, &config(&texts), &saved.remaining).unwrap();
    assert_eq!((again.count, again.files.len(), again.kept.len()), (0, 0, 1));
}

#[test]
fn lists_of_the_firewall() {
    let file = config(&files());
    let mut changes = RuntimeChanges::default();
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let edit = |changes: &mut RuntimeChanges, add: bool, verdict, prefixes: &[&str]| {
        let present = changes.lists().over(&file.firewall);
        if add {
            changes.add_prefixes(&file.firewall, &present, verdict, &nets(prefixes)).unwrap();
        } else {
            changes.remove_prefixes(&file.firewall, &present, verdict, &nets(prefixes)).unwrap();
        }
    };
    edit(&mut changes, true, Verdict::Deny, &["2001:db8:bad::/48"]);
    edit(&mut changes, false, Verdict::Deny, &["198.51.100.7/32"]);
    edit(&mut changes, true, Verdict::Allow, &["203.0.113.9/32"]);
    let (texts, saved) = saved(&changes);
    assert_eq!(saved.remaining.count(), 0);
    let after = config(&texts).firewall;
    assert_eq!(
        after.deny.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["203.0.113.0/24", "2001:db8:bad::/48"]
    );
    assert_eq!(after.allow.len(), 1);
    assert!(texts[0].text.contains("# the bad ones"), "{}", texts[0].text);
}

#[test]
fn what_has_no_place_is_kept() {
    let mut changes = RuntimeChanges::default();
    let old = services(&[("gone", "192.0.2.99", &[("x", 1)]), ("www", "192.0.2.10", &[("web7", 7)])]);
    changes.set_weight(&old, &s("gone"), &b("x"), 5, stamp()).unwrap();
    changes.set_weight(&old, &s("www"), &b("web7"), 5, stamp()).unwrap();
    let (_, saved) = saved(&changes);
    assert_eq!((saved.count, saved.files.len(), saved.remaining.count(), saved.kept.len()), (0, 0, 2, 2));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever was done, the same is in force with the files as saved.
    #[test]
    fn whatever_was_changed_is_in_force_after_it(steps in proptest::collection::vec((0..6u8, 0..3u8, 0..6u8, 0..300u16), 0..25)) {
        let file = config(&files()).services;
        let mut changes = RuntimeChanges::default();
        for (what, service, backend, number) in steps {
            let service = s(["www", "dns", "db"][usize::from(service)]);
            let name = b(["web1", "web2", "db1", "db2", "n1", "n2"][usize::from(backend)]);
            // Refused changes are none.
            let _ = match what {
                0 | 1 => changes.set_weight(&file, &service, &name, number, stamp()).map(drop),
                2 => {
                    let new = NewBackend { backup: number % 2 == 1, port: None, ..new(name.as_str(), ip(20 + backend)) };
                    changes.add_backend(&file, &service, new, stamp())
                }
                3 => changes.remove_backend(&file, &service, &name, stamp()),
                4 => changes.set_admin(&file, &service, &name, Admin::Disabled, stamp()).map(drop),
                _ => {
                    let patch = LimitPatch { source_packets_per_second: Some(number.into()), ..LimitPatch::default() };
                    changes.set_limits(&file, &service, patch, stamp()).map(drop)
                }
            };
        }
        let (texts, first) = saved(&changes);
        let again = save(&texts, &config(&texts), &first.remaining).unwrap();
        proptest::prop_assert_eq!(again.files, Vec::new());
    }
}
