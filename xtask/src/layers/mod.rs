//! Who may import whom. The table comes first; how sources are read is in `scan`.

use std::path::{Component, Path};

use crate::check::Source;

mod scan;

/// A room of the house: modules with the same rights.
struct Room {
    name: &'static str,
    /// Module paths, with everything below them. The longest one that fits decides.
    modules: &'static [&'static str],
    /// The rooms it may import besides itself.
    may: &'static [&'static str],
}

/// For programs and tests.
const ALL_OF_THE_DAEMON: &[&str] = &[
    "lb-userspace",
    "cli",
    "daemon",
    "shells",
    "events",
    "pure",
    "model",
    "lb-common",
    "abi",
    "wire",
    "core",
    "aya",
    "tokio",
];

/// The arrows. A crate that is not in the table may be imported by all.
const ROOMS: &[Room] = &[
    // The packet library: a leaf each, or knowing each other.
    Room {
        name: "wire",
        modules: &["lb_common::wire", "lb_common::csum", "lb_common::hash", "lb_common::packet"],
        may: &[],
    },
    Room { name: "abi", modules: &["lb_common::abi"], may: &["aya"] },
    Room { name: "core", modules: &["lb_common::core"], may: &["abi", "wire"] },
    Room { name: "lb-common", modules: &["lb_common"], may: &["abi", "wire", "core"] },
    Room { name: "lb-ebpf", modules: &["lb_ebpf"], may: &["lb-common", "abi", "wire", "core", "aya-ebpf"] },
    // The daemon, from the inside out.
    Room { name: "model", modules: &["lb_userspace::model"], may: &["lb-common", "abi", "wire", "core"] },
    Room {
        name: "pure",
        modules: &[
            "lb_userspace::bgp",
            "lb_userspace::config",
            "lb_userspace::import",
            "lb_userspace::maglev",
            "lb_userspace::outlier",
            "lb_userspace::affinity",
            "lb_userspace::plan",
            "lb_userspace::pool",
            "lb_userspace::resequence",
            "lb_userspace::ramp",
            "lb_userspace::state",
            "lb_userspace::health::fsm",
            "lb_userspace::health::schedule",
            "lb_userspace::bfd::packet",
            "lb_userspace::bfd::fsm",
            "lb_userspace::vrrp::group",
            "lb_userspace::vrrp::packet",
            "lb_userspace::vrrp::fsm",
            "lb_userspace::vrrp::timing",
            "lb_userspace::flowsync",
            "lb_userspace::link::wire",
        ],
        may: &["model", "lb-common", "abi", "wire", "core"],
    },
    // What happened, told to whoever listens: every shell may publish and subscribe.
    Room { name: "events", modules: &["lb_userspace::events"], may: &["tokio"] },
    Room {
        name: "shells",
        modules: &[
            "lb_userspace::dataplane",
            "lb_userspace::net",
            "lb_userspace::notify",
            "lb_userspace::command",
            "lb_userspace::fleet",
            "lb_userspace::control",
            "lb_userspace::metrics",
            "lb_userspace::telemetry",
            "lb_userspace::track",
            "lb_userspace::health",
            "lb_userspace::bfd",
            "lb_userspace::link",
            "lb_userspace::vrrp",
        ],
        may: &["events", "pure", "model", "lb-common", "abi", "wire", "core", "aya", "tokio"],
    },
    Room {
        name: "daemon",
        modules: &["lb_userspace::daemon"],
        may: &["shells", "events", "pure", "model", "lb-common", "abi", "wire", "core", "aya", "tokio"],
    },
    Room {
        name: "cli",
        modules: &["lb_userspace::cli"],
        may: &["shells", "events", "pure", "model", "lb-common", "abi", "wire", "core", "tokio"],
    },
    // The crate's root names its modules; nobody below may come back through it. A module that is in no
    // room yet counts as the root, and so can be imported by nobody: give it a room.
    Room {
        name: "lb-userspace",
        modules: &["lb_userspace"],
        may: &["cli", "daemon", "shells", "events", "pure", "model"],
    },
    Room { name: "bins", modules: &["lb_userspace_bin"], may: ALL_OF_THE_DAEMON },
    Room { name: "tests", modules: &["lb_tests"], may: ALL_OF_THE_DAEMON },
    Room { name: "xtask", modules: &["xtask"], may: &[] },
    // Other people's crates that not everybody may use.
    Room { name: "aya", modules: &["aya", "aya_log", "aya_obj"], may: &[] },
    Room { name: "aya-ebpf", modules: &["aya_ebpf", "aya_log_ebpf"], may: &[] },
    Room {
        name: "tokio",
        modules: &["tokio", "axum", "hyper", "hyper_util", "rtnetlink", "netlink_packet_route"],
        may: &[],
    },
];

/// Violations, one line each.
pub fn check(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let Some(module) = module_of(&source.path) else { continue };
        for reference in scan::references(&source.text, &module) {
            let here = reference.from.join("::");
            let there = reference.to.join("::");
            let (Some(from), Some(to)) = (room_of(&here), room_of(&there)) else { continue };
            if from.name != to.name && !from.may.contains(&to.name) {
                complaints.push(format!(
                    "{}:{}: `{there}` ({}) must not be imported by {} ({}), which may import {}",
                    source.path.display(),
                    reference.line,
                    to.name,
                    here,
                    from.name,
                    if from.may.is_empty() { "nothing of it".to_owned() } else { from.may.join(", ") },
                ));
            }
        }
    }
    complaints
}

fn room_of(path: &str) -> Option<&'static Room> {
    let fits = |module: &str| {
        path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    ROOMS
        .iter()
        .flat_map(|room| room.modules.iter().map(move |module| (*module, room)))
        .filter(|(module, _)| fits(module))
        .max_by_key(|(module, _)| module.len())
        .map(|(_, room)| room)
}

/// The module a file holds; none for files that may import what they like (unit tests in a file of their own).
fn module_of(path: &Path) -> Option<Vec<String>> {
    let parts: Vec<&str> = path
        .components()
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let (package, rest) = parts.split_first()?;
    let (krate, modules): (&str, &[&str]) = match (*package, rest) {
        ("lb-common", ["src", rest @ ..]) => ("lb_common", rest),
        ("lb-ebpf", ["src", rest @ ..]) => ("lb_ebpf", rest),
        ("lb-userspace", ["src", "bin", rest @ ..]) => ("lb_userspace_bin", rest),
        ("lb-userspace", ["src", rest @ ..]) => ("lb_userspace", rest),
        ("tests", ["src" | "tests" | "benches" | "examples", rest @ ..]) => ("lb_tests", rest),
        ("xtask", ["src", rest @ ..]) => ("xtask", rest),
        _ => return None,
    };
    let (file, dirs) = modules.split_last()?;
    let file = file.strip_suffix(".rs")?;
    if *package != "tests" && (file == "tests" || dirs.contains(&"tests")) {
        return None;
    }
    let mut module: Vec<String> =
        std::iter::once(krate).chain(dirs.iter().copied()).map(str::to_owned).collect();
    if !matches!(file, "mod" | "lib" | "main") {
        module.push(file.to_owned());
    }
    Some(module)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        check(&[Source { path: PathBuf::from(path), text: text.to_owned() }])
    }

    /// (file, text, line of the complaint or none)
    #[rustfmt::skip]
    const ROWS: &[(&str, &str, Option<u32>)] = &[
        // lb-common
        ("lb-common/src/core/mod.rs", "use crate::{abi::Slot, wire::ipv4};", None),
        ("lb-common/src/abi/slot.rs", "use super::types::*;", None),
        ("lb-common/src/abi/slot.rs", "\nuse crate::core::decide;", Some(2)),
        ("lb-common/src/abi/slot.rs", "use super::super::core::decide;", Some(1)),
        ("lb-common/src/wire/mod.rs", "fn f() -> u16 { crate::csum::fold(0) }", None),
        ("lb-common/src/packet.rs", "fn f(slot: crate::abi::Slot) {}", Some(1)),
        ("lb-common/src/core/mod.rs", "use tokio::time;", Some(1)),
        // Neither of the two big ones knows the other.
        ("lb-ebpf/src/bin/lb.rs", "use lb_common::core::decide;\nuse aya_ebpf::macros::xdp;", None),
        ("lb-ebpf/src/lib.rs", "use lb_userspace::model::Name;", Some(1)),
        ("lb-userspace/src/dataplane/loader.rs", "use lb_ebpf::maps;", Some(1)),
        ("lb-userspace/src/bin/lbd.rs", "use aya_ebpf::maps;", Some(1)),
        // lb-userspace
        ("lb-userspace/src/model/name.rs", "use super::port::Port;", None),
        ("lb-userspace/src/model/name.rs", "use crate::config::Schema;", Some(1)),
        ("lb-userspace/src/plan/diff.rs", "use crate::{model::Service, state::Overlay};", None),
        ("lb-userspace/src/plan/diff.rs", "use crate::{\n    model::Service,\n    dataplane::{Loader},\n};", Some(3)),
        ("lb-userspace/src/plan/diff.rs", "fn f() { tokio::spawn(async {}); }", Some(1)),
        ("lb-userspace/src/maglev.rs", "use ::aya::maps::Array;", Some(1)),
        ("lb-userspace/src/config/mod.rs", "use tokio as t;", Some(1)),
        ("lb-userspace/src/health/fsm.rs", "use super::schedule::Due;", None),
        ("lb-userspace/src/health/fsm.rs", "use super::task::Task;", Some(1)),
        ("lb-userspace/src/health/fsm.rs", "pub(in crate::health) fn f() {}", None),
        ("lb-userspace/src/health/task.rs", "use super::fsm::Event;\nuse tokio::time;", None),
        ("lb-userspace/src/metrics/mod.rs", "use crate::model::Service;", None),
        ("lb-userspace/src/control/server.rs", "use crate::daemon::Handle;", Some(1)),
        ("lb-userspace/src/control/server.rs", "use crate::Everything;", Some(1)),
        ("lb-userspace/src/cli/mod.rs", "use crate::control::client;\nuse tokio::runtime;", None),
        ("lb-userspace/src/cli/mod.rs", "use crate::daemon::Handle;", Some(1)),
        ("lb-userspace/src/daemon/mod.rs", "use crate::{control, dataplane, plan};", None),
        ("lb-userspace/src/bin/lbctl.rs", "use lb_userspace::control::client;", None),
        // Inline modules count their own `super`.
        ("lb-userspace/src/plan/mod.rs", "mod inner { use super::super::net::Link; }", Some(1)),
        ("lb-userspace/src/plan/mod.rs", "mod inner { use super::actions::Action; }", None),
        // Words in comments and strings import nothing; tests may import what they like.
        ("lb-userspace/src/plan/mod.rs", "//! See [`crate::daemon`].\n/* tokio::spawn */ const S: &str = \"aya::Ebpf\";", None),
        ("lb-userspace/src/plan/mod.rs", "#[cfg(test)]\nmod tests { use crate::dataplane::Fake; }", None),
        ("lb-userspace/src/plan/mod.rs", "#[cfg(test)]\nmod tests {}\nuse crate::dataplane::Fake;", Some(3)),
        ("lb-userspace/src/plan/mod.rs", "#[cfg(not(test))]\nuse crate::dataplane::Fake;", Some(2)),
        ("lb-userspace/src/plan/tests.rs", "use crate::dataplane::Fake;", None),
        // The others.
        ("tests/tests/prog_run.rs", "use lb_userspace::dataplane::Loader;\nuse aya::Ebpf;", None),
        ("tests/src/lab/mod.rs", "use lb_ebpf::maps;", Some(1)),
        ("xtask/src/main.rs", "use lb_userspace::model;", Some(1)),
    ];

    #[test]
    fn rows() {
        for (path, text, line) in ROWS {
            let found = complaints(path, text);
            match line {
                None => assert_eq!(found, Vec::<String>::new(), "{path}: {text}"),
                Some(line) => {
                    assert_eq!(found.len(), 1, "{path}: {text}: {found:?}");
                    assert!(found[0].starts_with(&format!("{path}:{line}: ")), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn the_table_names_existing_rooms_once() {
        let mut modules: Vec<&str> = Vec::new();
        for room in ROOMS {
            assert_eq!(ROOMS.iter().filter(|other| other.name == room.name).count(), 1, "{}", room.name);
            for may in room.may {
                assert!(
                    ROOMS.iter().any(|other| other.name == *may),
                    "{} may import no room {may}",
                    room.name
                );
            }
            modules.extend(room.modules);
        }
        let count = modules.len();
        modules.sort_unstable();
        modules.dedup();
        assert_eq!(modules.len(), count);
    }
}
