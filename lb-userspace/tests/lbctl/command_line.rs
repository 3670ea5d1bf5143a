//! The compiled `lbctl`.

use super::engine::{Daemon, Manner};
use lb_userspace::control::api::*;
use lb_userspace::control::server::Limits;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

fn lbctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command.env_remove("LBCTL_SOCKET").stdin(Stdio::null());
    command
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    Ran { status: output.status.code().unwrap(), stdout, stderr }
}

fn run(socket: &Path, line: &str) -> Ran {
    ran(lbctl().arg("--socket").arg(socket).args(line.split_whitespace()))
}

/// Stdout of a command that must work.
pub fn ok(socket: &Path, line: &str) -> String {
    let Ran { status, stdout, stderr } = run(socket, line);
    assert_eq!((status, stderr.as_str()), (0, ""), "{line}: {stdout}");
    stdout
}

/// Stderr of a command that must fail.
pub fn fails(socket: &Path, line: &str, status: i32) -> String {
    let ran = run(socket, line);
    assert_eq!((ran.status, ran.stdout.as_str()), (status, ""), "{line}: {}", ran.stderr);
    assert!(!ran.stderr.is_empty() && !ran.stderr.contains("panicked"), "{line}: {}", ran.stderr);
    ran.stderr
}

/// Compares with a file; `LBD_BLESS=1` writes it.
fn golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/lbctl/golden").join(name);
    if std::env::var_os("LBD_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, expected, "{name} (LBD_BLESS=1 accepts what was found)");
}

#[test]
fn tables() {
    let daemon = Daemon::start();
    for (name, line) in [
        ("status", "status"),
        ("service_list", "service list"),
        ("service_show", "service show www"),
        ("service_show_empty", "service show dns"),
        ("drops", "drops"),
        ("drops_all", "drops --all"),
        ("config_show", "config show"),
        ("explain_forward", "explain tcp 198.51.100.7:4000 192.0.2.10:443"),
        ("explain_drop", "explain udp 198.51.100.7:4000 192.0.2.10:443"),
        ("explain_pass", "explain tcp [2001:db8:1::7]:4000 [2001:db8::10]:443"),
        ("reload_plan", "reload --plan"),
        ("flows", "flows"),
        ("flows_limited", "flows --service www --limit 1"),
        ("trace", "trace"),
        ("trace_drops", "trace --verdict drop --source 198.51.100.0/24 --dest 192.0.2.10:443 --sample 3"),
        ("trace_one", "trace --count 1"),
    ] {
        let found = ok(&daemon.socket, line);
        assert!(!found.contains('\u{1b}'), "{line}: an escape sequence came through");
        golden(&format!("{name}.txt"), &found);
    }
}

#[test]
fn json_is_the_answer_of_the_api() {
    fn same<T: serde::de::DeserializeOwned>(daemon: &Daemon, line: &str, path: &str) {
        let found = ok(&daemon.socket, &format!("-o json {line}"));
        serde_json::from_str::<T>(&found).unwrap();
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found, daemon.http("GET", path, "").1);
    }
    let daemon = Daemon::start();
    same::<StatusView>(&daemon, "status", "/v1/status");
    same::<Vec<ServiceView>>(&daemon, "service list", "/v1/services");
    same::<ServiceView>(&daemon, "service show www", "/v1/services/www");
    same::<Vec<DropView>>(&daemon, "drops", "/v1/drops");
    same::<ConfigView>(&daemon, "config show", "/v1/config");
    same::<ExplainView>(
        &daemon,
        "explain tcp 198.51.100.7:4000 192.0.2.10:443",
        "/v1/explain?protocol=tcp&source=198.51.100.7:4000&destination=192.0.2.10:443",
    );
    golden("trace.json", &ok(&daemon.socket, "trace -o json"));
    golden("flows.json", &ok(&daemon.socket, "flows -o json"));
    golden("service_list.json", &ok(&daemon.socket, "service list --output=json"));
    golden("reload_plan.json", &ok(&daemon.socket, "reload --plan -o json"));
}

#[test]
fn changes() {
    let daemon = Daemon::start();
    let socket = &daemon.socket;
    let web4 = || {
        let www: ServiceView = serde_json::from_str(&ok(socket, "-o json service show www")).unwrap();
        www.backends.into_iter().find(|backend| backend.name == "web4")
    };
    assert_eq!(ok(socket, "backend add www web4 10.0.0.14:8443 --weight 50"), "backend web4 added to www\n");
    let added = web4().unwrap();
    assert_eq!((added.address.to_string().as_str(), added.port, added.weight), ("10.0.0.14", Some(8443), 50));
    ok(socket, "backend weight www web4 0");
    assert_eq!(web4().unwrap().weight, 0);
    for (verb, admin) in [("drain", "draining"), ("disable", "disabled"), ("enable", "enabled")] {
        assert_eq!(
            ok(socket, &format!("backend {verb} www web4")),
            format!("backend web4 of www is {admin}\n")
        );
        assert_eq!(web4().unwrap().admin.to_string(), admin);
    }
    ok(socket, "backend remove www web4");
    assert_eq!(web4(), None);
    ok(socket, "backend add www web4 [2001:db8::14]:99");
    assert_eq!(web4().unwrap().port, Some(99));
    ok(socket, "backend remove www web4");
    ok(socket, "backend add www web4 2001:db8::14");
    assert_eq!((web4().unwrap().address.to_string().as_str(), web4().unwrap().weight), ("2001:db8::14", 100));
    assert!(fails(socket, "detach", 2).contains("lbctl detach --yes"));
    assert_eq!(ok(socket, "detach --yes"), "removed from eth0 and eth1\n");
    assert!(ok(socket, "service list").contains("no services"));
}

#[test]
fn errors_of_the_daemon() {
    let daemon = Daemon::start();
    let socket = &daemon.socket;
    assert_eq!(fails(socket, "service show wwww", 1), "lbctl: no service 'wwww'; there are: www, dns\n");
    assert!(fails(socket, "backend remove www web9", 1).contains("www has no backend 'web9'"));
    assert!(fails(socket, "backend add www web1 10.0.0.1", 1).contains("already"));
    assert!(fails(socket, "backend add www web4 224.0.0.1", 2).contains("multicast"));
    assert!(fails(socket, "reload", 2).contains("lbd.toml:7: key 'service.www.port'"));
    assert!(fails(socket, "reset -o json", 1).contains("disk full"));
    let gone = Daemon::with(Manner::Gone, Limits::default());
    assert!(fails(&gone.socket, "status", 1).contains("control loop has failed"));
}

#[test]
fn errors_found_here() {
    // Nothing listens there: what is wrong on the command line is said without asking.
    let socket = Path::new("/nonexistent/lbd.sock");
    for (line, part) in [
        ("", "Usage"),
        ("frobnicate", "unrecognized subcommand"),
        ("service", "Usage"),
        ("service show", "<NAME>"),
        ("service show -x", "unexpected argument"),
        ("service show a/b", "is not a name"),
        ("service list --colour", "unexpected argument"),
        ("status -o yaml", "[possible values: table, json]"),
        ("backend add www web4", "ADDRESS[:PORT]"),
        ("backend add www web4 web4.example.org", "names are not resolved"),
        ("backend add www web4 10.0.0.14:0", "from 1 to 65535"),
        ("backend add www web4 10.0.0.14 --weight 65536", "a weight from 0 to 65535"),
        ("backend add www web.. 10.0.0.300", "it is not an address"),
        ("backend weight www web4 -1", "a weight from 0 to 65535"),
        ("backend weight www web4 many", "a weight from 0 to 65535"),
        ("explain sctp 192.0.2.1:1 192.0.2.2:2", "expected tcp, udp or quic"),
        ("explain tcp 192.0.2.1 192.0.2.2:2", "the port is missing"),
        ("explain tcp 2001:db8::1:80 192.0.2.2:2", "in brackets"),
        ("explain tcp [2001:db8::1]:80 192.0.2.2:2", "different families"),
        ("decap attach eth0", "--from"),
        ("decap attach eth0 --from 10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("decap attach eth0 --from 10.0.0.0/8 --gue-port 0", "a port from 1 to 65535"),
        ("decap attach averyverylongname --from 10.0.0.1", "15 bytes"),
        ("completions cobol", "possible values"),
        ("detach", "lbctl detach --yes"),
    ] {
        let found = fails(socket, line, 2);
        assert!(found.contains(part), "{line}: {found}");
    }
}

#[test]
fn which_socket() {
    let daemon = Daemon::start();
    let missing = fails(Path::new("/nonexistent/lbd.sock"), "status", 1);
    assert!(
        missing.starts_with("lbctl: no control socket at /nonexistent/lbd.sock: is lbd running?"),
        "{missing}"
    );
    assert!(missing.contains("--socket or LBCTL_SOCKET"));

    let by_environment = ran(lbctl().env("LBCTL_SOCKET", &daemon.socket).args(["service", "list"]));
    assert_eq!(by_environment.status, 0, "{}", by_environment.stderr);
    let argument_wins = ran(lbctl()
        .env("LBCTL_SOCKET", "/nonexistent/lbd.sock")
        .arg("status")
        .arg("--socket")
        .arg(&daemon.socket));
    assert_eq!(argument_wins.status, 0, "{}", argument_wins.stderr);

    let empty_is_none =
        ran(lbctl().env("LBCTL_SOCKET", "").arg("status").arg("--socket").arg(&daemon.socket));
    assert_eq!(empty_is_none.status, 0, "{}", empty_is_none.stderr);
    let empty_argument = ran(lbctl().args(["status", "--socket="]));
    assert_eq!(empty_argument.status, 2, "{}", empty_argument.stderr);

    drop(std::os::unix::net::UnixListener::bind(daemon.directory().join("dead.sock")).unwrap());
    assert!(fails(&daemon.directory().join("dead.sock"), "status", 1).contains("lbd is not running"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let daemon = Daemon::start();
    for arguments in [&["service", "list"][..], &["completions", "bash"], &["backend", "add", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = lbctl();
        command.arg("--socket").arg(&daemon.socket).args(arguments).stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = lbctl().arg("--socket").arg(&daemon.socket).arg("drops").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the answer"));
}

#[test]
fn help_and_completions() {
    let nowhere = Path::new("/nonexistent/lbd.sock");
    let help = ok(nowhere, "--help");
    for word in
        ["status", "service", "backend", "explain", "drops", "reload", "config", "reset", "detach", "decap"]
    {
        assert!(help.contains(word), "{word}");
    }
    assert!(
        help.contains("LBCTL_SOCKET") && help.contains("/run/lbd/lbd.sock") && help.contains("Examples:")
    );
    for verb in ["add", "remove", "drain", "enable", "disable", "weight"] {
        let help = ok(nowhere, &format!("backend {verb} --help"));
        assert!(help.contains("Examples:") && help.contains("lbctl backend drain www web4"), "{help}");
    }
    assert!(ok(nowhere, "--version").starts_with("lbctl "));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ok(nowhere, &format!("completions {shell}"));
        assert!(script.contains("lbctl") && script.contains("drain"), "{shell}");
    }
}

#[test]
fn lists_and_limits() {
    let daemon = Daemon::start();
    let socket = &daemon.socket;
    assert_eq!(ok(socket, "deny list"), "203.0.113.0/24  file\n");
    assert_eq!(ok(socket, "allow list"), "no prefix is on the allow list\n");
    assert_eq!(ok(socket, "deny add 203.0.113.7 2001:db8:bad::/48"), "2 prefixes added to the deny list\n");
    assert_eq!(ok(socket, "allow remove 203.0.113.7"), "1 prefixes removed from the allow list\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    // More than other requests may have.
    let many: String =
        (0..20_000u32).map(|n| format!("{} # {n}\n", std::net::Ipv4Addr::from(n << 8))).collect();
    std::fs::write(file.path(), &many).unwrap();
    let added = ok(socket, &format!("deny add 10.0.0.1 --file {}", file.path().display()));
    assert_eq!(added, "20001 prefixes added to the deny list\n");
    std::fs::write(file.path(), "10.0.0.1\nexample.org\n").unwrap();
    let error = fails(socket, &format!("deny add --file {}", file.path().display()), 2);
    assert!(error.contains(&format!("{}:2: 'example.org'", file.path().display())), "{error}");
    assert!(fails(socket, "deny add 10.0.0.1/8", 2).contains("write 10.0.0.0/8"));
    fails(socket, "deny add", 2);

    let limits = ok(socket, "limit show www");
    assert!(
        limits.lines().nth(1).is_some_and(|row| row.contains("1000") && row.contains("10.0.0.0/8")),
        "{limits}"
    );
    assert!(fails(socket, "limit show wwww", 1).contains("no service 'wwww'"));
    let set = ok(socket, "limit set www packets_per_second=100 burst=2s");
    assert_eq!(set, "www: {\"burst_ms\":2000,\"packets_per_second\":100}\n");
    assert!(fails(socket, "limit set www packets=1", 2).contains("there is no limit 'packets'"));
    fails(socket, "limit set www packets_per_second=-1", 2);
    fails(socket, "limit set www", 2);
    assert_eq!(ok(socket, "limit clear www"), "www: as in the file\n");
}

#[test]
fn the_pair() {
    let daemon = Daemon::start();
    let socket = &daemon.socket;
    let shown = ok(socket, "pair");
    assert!(shown.contains("public  51  master       150  192.0.2.10/24, 2001:db8::10/64"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&ok(socket, "pair -o json")).unwrap();
    for (key, value) in [
        ("name", serde_json::json!("public")),
        ("router_id", 51.into()),
        ("state", "master".into()),
        ("priority", 150.into()),
        ("effective_priority", 150.into()),
        ("addresses", serde_json::json!(["192.0.2.10/24", "2001:db8::10/64"])),
        ("since", 0.0.into()),
    ] {
        assert_eq!(json[0][key], value, "{key}");
    }
    assert_eq!(ok(socket, "pair failover public"), "public is handed over to the peer\n");
    assert!(fails(socket, "pair failover nobody", 1).contains("no VRRP instance 'nobody'"));
    assert_eq!(ok(socket, "pair hold"), "every instance is held\n");
    assert_eq!(ok(socket, "pair hold off --instance public"), "public is released\n");
    assert_eq!(ok(socket, "pair hold --off"), "every instance is released\n");
    fails(socket, "pair hold on --off", 2);
    fails(socket, "pair hold maybe", 2);
    fails(socket, "pair failover", 2);
    assert_eq!(daemon.asked_by().len(), 5);
}
