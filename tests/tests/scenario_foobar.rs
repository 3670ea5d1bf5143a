//! www.foobar.com with all its servers comes up, keeps its promises, and goes away without a trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lb_tests::{require, skip::Need};

fn scenario(name: &str, words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_scenario");
    Command::new(program).args(["foobar", "--name", name]).args(words).output().expect("the program starts")
}

/// A process: its number, and when it started, in ticks since boot.
type Process = (i32, String);

/// When a process started; `None`: it has ended.
fn started(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    rest.next().filter(|state| *state != "Z" && *state != "X")?;
    rest.nth(18).map(str::to_owned)
}

/// All processes in the network namespaces of a scenario's hosts, with their names. By the namespace, as nginx or a database
/// have nothing of the scenario in their command lines.
fn inhabitants(name: &str) -> BTreeMap<Process, String> {
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let home = network(std::process::id().cast_signed());
    let hosts = fs::read_dir(format!("/var/tmp/lbd-scenario-{name}")).into_iter().flatten().flatten();
    let namespaces: BTreeSet<PathBuf> = hosts
        .filter_map(|host| fs::read_to_string(host.path().join("init")).ok())
        .filter_map(|text| {
            let (pid, start) = text.trim().split_once(' ')?;
            let pid = pid.parse().ok()?;
            (started(pid)? == start).then(|| network(pid)).flatten()
        })
        .filter(|namespace| Some(namespace) != home.as_ref())
        .collect();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| network(*pid).is_some_and(|namespace| namespaces.contains(&namespace)))
        .filter_map(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Some(((pid, started(pid)?), command.trim().to_owned()))
        })
        .collect()
}

/// Everybody who lived in a scenario's hosts while something went on.
fn watched<T>(name: &str, work: impl FnOnce() -> T) -> (T, BTreeMap<Process, String>) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = BTreeMap::new();
            while !over.load(Ordering::Relaxed) {
                seen.extend(inhabitants(name));
                thread::sleep(Duration::from_millis(700));
            }
            seen
        });
        let got = work();
        over.store(true, Ordering::Relaxed);
        (got, watcher.join().expect("the watcher ends"))
    })
}

/// What a scenario leaves on the machine: files and namespaces by their names, processes by their names or as those who
/// were seen in its hosts.
fn traces(name: &str, seen: &BTreeMap<Process, String>) -> Vec<String> {
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
    for ((pid, start), command) in seen {
        if started(*pid).as_ref() == Some(start) {
            found.push(format!("process {pid}: {command}"));
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
    let (output, seen) = watched(&name, || scenario(&name, &["test", "--short"]));
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Whatever came of it.
    let down = scenario(&name, &["down"]);
    assert!(output.status.success(), "{said}\n{told}");
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    assert!(said.contains("| kept |") && !said.contains("BROKEN"), "{said}");
    // Services of all kinds were there: else it would mean nothing that none is left.
    for service in ["lbd", "nginx", "mariadbd", "knotd", "prometheus"] {
        assert!(seen.values().any(|command| command.starts_with(service)), "no {service} in {seen:?}");
    }
    assert_eq!(traces(&name, &seen), Vec::<String>::new());
}

/// A process is found by where it is, although nothing in its command line tells whose it is.
#[test]
fn who_is_left_in_a_host_is_found() {
    require!(Need::Root, Need::Tool("ip"));
    let name = format!("foobar-left-{}", std::process::id());
    let (namespace, dir) = (format!("{name}-web1"), PathBuf::from(format!("/var/tmp/lbd-scenario-{name}")));
    let ip = |words: &[&str]| Command::new("ip").args(words).status().is_ok_and(|status| status.success());
    assert!(ip(&["netns", "add", &namespace]));
    let mut left = Command::new("nsenter")
        .args([&format!("--net=/run/netns/{namespace}"), "sleep", "60"])
        .spawn()
        .expect("nsenter starts");
    let pid = left.id().cast_signed();
    fs::create_dir_all(dir.join("web1")).expect("a directory");
    fs::write(dir.join("web1/init"), format!("{pid} {}\n", started(pid).expect("it runs"))).expect("a file");
    // Until it is inside.
    let mut seen = BTreeMap::new();
    for _ in 0..100 {
        seen = inhabitants(&name);
        if seen.values().any(|command| command == "sleep") {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let gone = fs::remove_dir_all(&dir).is_ok() && ip(&["netns", "del", &namespace]);
    let found = traces(&name, &seen);
    left.kill().and_then(|()| left.wait()).expect("it ends");
    assert!(gone);
    assert_eq!(found, [format!("process {pid}: sleep")]);
    assert_eq!(traces(&name, &seen), Vec::<String>::new());
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
