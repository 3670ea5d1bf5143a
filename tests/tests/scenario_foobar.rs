//! www.foobar.com with all its servers comes up, keeps its promises, and goes away without a trace.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use lb_tests::{require, skip::Need};

fn scenario(name: &str, words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_scenario");
    Command::new(program).args(["foobar", "--name", name]).args(words).output().expect("the program starts")
}

/// Names of what a scenario leaves on the machine.
fn traces(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/var/tmp", "/sys/fs/cgroup", "/sys/fs/cgroup/cpu"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let own = entry.file_name().to_str() == Some(&std::process::id().to_string());
        if !own && command.contains(name) {
            found.push(command);
        }
    }
    found
}

#[test]
fn the_site_keeps_its_promises_and_leaves_no_trace() {
    require!(
        Need::Root,
        Need::Tool("ip"),
        Need::Tool("ethtool"),
        Need::Tool("nft"),
        Need::Tool("nginx"),
        Need::Tool("mariadbd"),
        Need::Tool("knotd"),
        Need::Tool("prometheus"),
        Need::Tool("prometheus-nginx-exporter"),
        Need::Tool("prometheus-mysqld-exporter"),
        Need::Tool("chromium-headless-shell"),
        Need::Tool("certutil"),
        Need::Path("/usr/lib/python3/dist-packages/pymysql")
    );
    // Another run of the same test may go on beside it.
    let name = format!("foobar-ci-{}", std::process::id());
    let output = scenario(&name, &["test", "--short"]);
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Whatever came of it.
    let down = scenario(&name, &["down"]);
    assert!(output.status.success(), "{said}\n{told}");
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    assert!(said.contains("| kept |") && !said.contains("BROKEN"), "{said}");
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_site_that_is_not_up_is_said_so() {
    let name = format!("foobar-no-{}", std::process::id());
    let status = scenario(&name, &["status"]);
    assert!(!status.status.success());
    assert!(String::from_utf8_lossy(&status.stderr).contains("is not up"), "{status:?}");
    let bad = scenario("../x", &["status"]);
    assert_eq!(bad.status.code(), Some(2), "{bad:?}");
}

/// What an operator would copy is complete: every host's files, and balancers that agree.
#[test]
fn the_balancers_files_are_valid_and_the_same_but_for_themselves() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/foobar");
    let read = |host: &str| fs::read_to_string(examples.join(host).join("etc/lbd/lbd.toml")).expect("a file");
    let (one, two) = (read("lb1"), read("lb2"));
    assert_eq!(one.lines().count(), two.lines().count());
    for (a, b) in one.lines().zip(two.lines()).skip(1) {
        assert!(a == b || a.contains("# (*)") && b.contains("# (*)"), "unmarked difference:\n{a}\n{b}");
    }
    for host in
        ["lb2/etc/lbd/services.toml", "lb2/etc/nftables.conf", "web2/etc/nginx/nginx.conf", "app2/opt"]
    {
        let link = examples.join(host);
        assert!(link.is_symlink() && link.exists(), "{host} is no link to the other host's file");
    }
}
