//! Broken configurations: one clear line with file and line number, exit status 2, nothing touched, whether they are
//! only checked or a daemon is started with them.

use std::{path::Path, process::Output};

use lb_tests::{
    balancer::{Balancer, Service, Settings, text},
    lab::{Result, Shape, Topology},
    require,
    skip::Need,
};

/// What is replaced in a good configuration, by what, and what must be said.
const BROKEN: &[(&str, &str, &str, &str)] = &[
    ("wrong type of weight", "weight = 100", "weight = \"much\"", "weight"),
    ("weight out of range", "weight = 100", "weight = 65536", "65535"),
    ("negative weight", "weight = 100", "weight = -1", "weight"),
    ("unknown key", "forward = \"dsr\"", "forwrad = \"dsr\"", "forwrad"),
    ("unknown section", "[service.health]", "[service.healthy]", "healthy"),
    ("unknown mode", "forward = \"dsr\"", "forward = \"teleport\"", "teleport"),
    ("unknown protocol", "protocol = \"tcp\"", "protocol = \"sctp\"", "sctp"),
    ("duplicate service", "name = \"second\"", "name = \"www\"", "www"),
    ("duplicate backend", "name = \"web2\"", "name = \"web1\"", "web1"),
    ("duplicate address of a backend", "10.0.0.12", "10.0.0.11", "10.0.0.11"),
    ("overlap of services", "port = 8080", "port = 80", "80"),
    ("overlap with a range", "port = 8080", "port = \"70-90\"", "80"),
    ("port out of range", "port = 8080", "port = 65536", "65536"),
    ("a range the wrong way round", "port = 8080", "port = \"90-70\"", "90-70"),
    ("bad address", "10.0.0.12", "10.0.0.312", "10.0.0.312"),
    ("loopback as a backend", "10.0.0.12", "127.0.0.1", "127.0.0.1"),
    ("unspecified virtual address", "192.0.2.10", "0.0.0.0", "0.0.0.0"),
    ("multicast virtual address", "192.0.2.10", "224.0.0.1", "224.0.0.1"),
    ("a prefix instead of an address", "10.0.0.12", "10.0.0.0/24", "10.0.0.0/24"),
    (
        "bad prefix of the tunnel",
        "[service.health]",
        "[tunnel]\nsource_ipv4 = \"198.18.0.0/33\"\n[service.health]",
        "198.18.0.0/33",
    ),
    ("no interfaces", "interfaces = [\"eth0\"]", "interfaces = []", "interfaces"),
    ("interface twice", "interfaces = [\"eth0\"]", "interfaces = [\"eth0\", \"eth0\"]", "eth0"),
    ("interfaces missing", "interfaces = [\"eth0\"]", "", "interfaces"),
    (
        "unknown attach mode",
        "interfaces = [\"eth0\"]",
        "interfaces = [\"eth0\"]\nxdp_mode = \"fast\"",
        "fast",
    ),
    ("bad duration", "interval = \"200ms\"", "interval = \"soon\"", "soon"),
    ("timeout longer than the interval", "timeout = \"200ms\"", "timeout = \"2s\"", "timeout"),
    ("relative path of a check", "path = \"/healthz\"", "path = \"healthz\"", "healthz"),
    ("ring size that is no prime", "protocol = \"tcp\"", "protocol = \"tcp\"\nring_size = 1000", "1000"),
    ("relative pin_dir", "pin_dir = \"/sys", "pin_dir = \"sys", "pin_dir"),
    ("not TOML", "[[service]]", "[[service]", ""),
    ("duplicate key", "protocol = \"tcp\"", "protocol = \"tcp\"\nprotocol = \"udp\"", "protocol"),
    (
        "a link without a peer",
        "[[service]]",
        "[sync]\nlisten = \"10.0.0.2:9760\"\nkey_file = \"/k\"\n[[service]]",
        "peers",
    ),
    (
        "a virtual router without an id",
        "[[service]]",
        "[[vrrp]]\nname = \"x\"\ninterface = \"eth0\"\naddresses = [\"10.0.0.100/24\"]\n[[service]]",
        "router_id",
    ),
    ("a port that the mode cannot change", "weight = 100", "weight = 100\nport = 81", "81"),
];

fn good(topology: &Topology) -> Settings {
    let www = |name: &str| {
        Service::www([topology.vip4()]).name(name).backend("web1", [10, 0, 0, 11], 100).backend(
            "web2",
            [10, 0, 0, 12],
            50,
        )
    };
    Settings::of([www("www").checked(), www("second").port(8080)])
}

#[track_caller]
fn refused(title: &str, file: &Path, output: &Output, said: &str, with_line: bool) {
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{title}: {err}");
    assert!(output.stdout.is_empty(), "{title}: {}", text(&output.stdout));
    assert_eq!(err.lines().count(), 1, "{title}: one line was expected:\n{err}");
    let rest = err.strip_prefix(&format!("lbd: {}:", file.display()));
    let rest = rest.unwrap_or_else(|| panic!("{title}: the file is not named: {err}"));
    if with_line {
        let line = rest.split(':').next().and_then(|n| n.parse::<usize>().ok());
        assert!(line.is_some_and(|n| n > 0), "{title}: no line number: {err}");
    }
    assert!(err.contains(said), "{title}: `{said}` is not named: {err}");
}

fn nothing_touched(balancer: &Balancer<'_>, title: &str) {
    assert!(!balancer.pin_dir().exists(), "{title}");
    let left: Vec<_> = std::fs::read_dir(balancer.dir())
        .expect("the directory")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lbd.toml")
        .collect();
    assert_eq!(left, Vec::<String>::new(), "{title}");
    assert_eq!(balancer.xdp_program("eth0"), None, "{title}");
}

#[test]
fn every_broken_configuration_is_refused_and_touches_nothing() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 0, ..Shape::default() })?;
    let balancer = Balancer::prepare(&topology, good(&topology))?;
    let (good, file) = (balancer.config_text(), balancer.config_file());
    let output = balancer.run_lbd(&["--check"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    nothing_touched(&balancer, "the good one, checked");
    assert!(BROKEN.len() >= 20);
    for (title, what, by, said) in BROKEN {
        assert!(good.contains(what), "{title}: there is no {what} in\n{good}");
        balancer.write_text(&good.replacen(what, by, 1))?;
        for arguments in [&["--check"][..], &[]] {
            let output = balancer.run_lbd(arguments);
            refused(&format!("{title} {arguments:?}"), &file, &output, said, true);
            nothing_touched(&balancer, title);
        }
    }
    Ok(())
}

#[test]
fn files_that_cannot_be_read_are_told_apart() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 0, ..Shape::default() })?;
    let balancer = Balancer::prepare(&topology, good(&topology))?;
    let file = balancer.config_file();
    let both = |title: &str, said: &str, with_line: bool| {
        for arguments in [&["--check"][..], &[], &["--detach"]] {
            let output = balancer.run_lbd(arguments);
            refused(&format!("{title} {arguments:?}"), &file, &output, said, with_line);
        }
    };
    balancer.write_text("")?;
    both("an empty file", "[node]", false);
    std::fs::write(&file, b"[node]\nname = \"caf\xe9\"\n").expect("written");
    both("another encoding", "UTF-8", true);
    std::fs::remove_file(&file).expect("removed");
    both("a missing file", "No such file", false);
    std::fs::create_dir(&file).expect("a directory");
    both("a directory", "directory", false);
    std::fs::remove_dir(&file).expect("removed");
    nothing_touched(&balancer, "unreadable files");
    Ok(())
}
