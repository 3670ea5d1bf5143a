//! Without root: what is missing is named, and four capabilities are enough.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    process::Command,
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, program, text, web_servers},
    client::Requests,
    lab::{Process, Result, Shape, Topology},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Debian's nobody; any number will do.
const USER: u32 = 65_534;
const NEEDED: [&str; 4] = ["bpf", "perfmon", "net_admin", "net_raw"];

/// A mount namespace with a BPF file system of its own, which is what an administrator would have mounted for the user.
fn mounts(topology: &Topology, balancer: &Balancer<'_>) -> Result<Process> {
    let pins = balancer.pin_dir().display().to_string();
    let script = format!(
        "mount -t bpf -o mode=0755 bpf /sys/fs/bpf && mkdir {pins} && chown {USER}:{USER} {pins} && echo mounted && \
         exec sleep 1000"
    );
    let mut command = topology.lb[0].ns.command("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let holder = topology.lab.spawn("mounts", command)?;
    holder.wait_for_log("mounted", PATIENCE)?;
    Ok(holder)
}

/// `lbd` as the user with these capabilities, inside those mounts.
fn as_user(balancer: &Balancer<'_>, holder: &Process, capabilities: &[&str]) -> Command {
    let plus: Vec<String> = capabilities.iter().map(|c| format!("+{c}")).collect();
    // What is not listed is not there, even though root has it.
    let set = format!("-all,{}", plus.join(","));
    let set = set.trim_end_matches(',');
    let mut command = balancer.node.ns.command("nsenter");
    command.arg(format!("--mount=/proc/{}/ns/mnt", holder.pid())).arg("setpriv");
    command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"]);
    command.args([&format!("--inh-caps={set}"), &format!("--ambient-caps={set}")]);
    command.arg(balancer.dir().join("lbd")).arg("--config").arg(balancer.config_file());
    command.args(["--log", "debug"]);
    command
}

/// A user can read the configuration and execute the program, and owns the directories.
fn hand_over(topology: &Topology, balancer: &Balancer<'_>) {
    let mode = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    mode(topology.lab.dir(), 0o755).expect("the lab's directory");
    fs::copy(program("lbd"), balancer.dir().join("lbd")).expect("a copy of the program");
    for name in ["state", "run"] {
        let path = balancer.dir().join(name);
        fs::create_dir_all(&path).and_then(|()| chown(&path, Some(USER), Some(USER))).expect("a directory");
    }
}

#[test]
fn missing_capabilities_are_named() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("setpriv"), Need::Tool("unshare"));
    let topology = Topology::new(&Shape { backends: 0, ..Shape::default() })?;
    let www = Service::www([topology.vip4()]).backend("web1", [10, 0, 0, 11], 100);
    let balancer = Balancer::prepare(&topology, Settings::of([www]))?;
    hand_over(&topology, &balancer);
    let holder = mounts(&topology, &balancer)?;
    // Each of them missing by itself, then all of them.
    for missing in NEEDED.iter().map(Some).chain([None]) {
        let (has, lacks): (Vec<&str>, Vec<&str>) = match missing {
            None => (Vec::new(), NEEDED.to_vec()),
            Some(missing) => NEEDED.iter().partition(|c| *c != missing),
        };
        let output = as_user(&balancer, &holder, &has).output().expect("started");
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        for name in NEEDED {
            let full = format!("CAP_{}", name.to_uppercase());
            assert_eq!(err.contains(&format!("{full} (")), lacks.contains(&name), "{full}: {err}");
        }
        assert_eq!(balancer.xdp_program("eth0"), None);
    }
    // The configuration comes first: one that cannot be read is told whoever runs the daemon.
    fs::set_permissions(balancer.config_file(), fs::Permissions::from_mode(0o600)).expect("a mode");
    let output = as_user(&balancer, &holder, &NEEDED).output().expect("started");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("lbd.toml: cannot be read (Permission denied"), "{err}");
    Ok(())
}

#[test]
fn a_user_with_four_capabilities_runs_everything() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("setpriv"), Need::Tool("unshare"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).checked().nodes(&topology.backends);
    let mut balancer = Balancer::prepare(&topology, Settings::of([www]))?;
    hand_over(&topology, &balancer);
    let holder = mounts(&topology, &balancer)?;
    let vips = [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80));
    balancer.restart_with(as_user(&balancer, &holder, &NEEDED))?;
    let status =
        fs::read_to_string(format!("/proc/{}/status", balancer.process().pid())).expect("its status");
    assert!(status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");
    // What the daemon runs for checks and hooks inherits none of its capabilities.
    assert!(status.contains("CapAmb:\t0000000000000000"), "{status}");
    assert!(!status.contains("CapEff:\t0000000000000000"), "{status}");
    let socket = fs::metadata(balancer.socket()).expect("the socket");
    assert_eq!((socket.permissions().mode() & 0o7777, socket.uid()), (0o660, USER));
    Requests::to_all(vips).timeout(PATIENCE).run(&topology.client.ns, 200).assert_all_answered();

    let explained = balancer.explain("tcp", "10.1.0.2:4000", &vips[0].to_string());
    assert!(
        explained.by.as_deref().is_some_and(|by| by.starts_with("the program in the kernel")),
        "{explained:?}"
    );

    let load = Requests::to_all(vips).concurrency(2).timeout(PATIENCE).start(&topology.client.ns);
    balancer.lbctl(&["backend", "weight", "www", "web1", "50"]);
    balancer.kill();
    balancer.restart_with(as_user(&balancer, &holder, &NEEDED))?;
    assert_eq!(balancer.service("www").backends[0].weight, 50);
    assert_eq!(balancer.status().interfaces[0].mode, "native");
    balancer
        .configure(|settings| settings.services.push(settings.services[0].clone().name("more").port(81)))?;
    balancer.reload();
    assert_eq!(balancer.services().len(), 2);
    load.stop().assert_all_answered();
    balancer.lbctl(&["detach", "--yes"]);
    assert!(balancer.process().wait(PATIENCE)?.success());
    assert_eq!(balancer.xdp_program("eth0"), None);
    Ok(())
}
