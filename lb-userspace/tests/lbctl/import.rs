//! `lbctl import` with the compiled programs: what it writes `lbd --check` accepts.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn import(args: &[&str], input: Option<&Path>) -> Output {
    let stdin = input.map_or_else(Stdio::null, |path| fs::File::open(path).unwrap().into());
    Command::new(env!("CARGO_BIN_EXE_lbctl")).arg("import").args(args).stdin(stdin).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The file is one that lbd would start with.
fn accepted(toml: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    let check =
        Command::new(env!("CARGO_BIN_EXE_lbd")).arg("--config").arg(file.path()).arg("--check").output();
    let check = check.unwrap();
    assert!(check.status.success(), "{}\n{toml}", text(&check.stderr));
}

/// Services and backends.
fn count(toml: &str) -> (usize, usize, usize) {
    let of = |header: &str| toml.lines().filter(|line| *line == header).count();
    (of("[[service]]"), of("[[service.backend]]"), of("[[vrrp]]"))
}

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lbctl/import")
}

#[test]
fn samples_become_what_is_written_down() {
    for (kind, name) in
        [("keepalived", "keepalived.conf"), ("haproxy", "haproxy.cfg"), ("ipvsadm", "ipvsadm.rules")]
    {
        let made = import(&[kind, "-", "--interface", "eth0"], Some(&samples().join(name)));
        assert!(made.status.success(), "{}", text(&made.stderr));
        let toml = text(&made.stdout);
        accepted(&toml);
        let golden = samples().join(format!("{kind}.toml"));
        if std::env::var_os("LBD_BLESS").is_some() {
            fs::write(&golden, &toml).unwrap();
        }
        assert_eq!(toml, fs::read_to_string(&golden).unwrap(), "{kind} (LBD_BLESS=1 accepts what was found)");
        // Each remark is told on standard error too.
        let said = text(&made.stderr);
        for remark in toml.lines().filter_map(|line| line.strip_prefix("#   ")) {
            assert!(said.contains(remark), "{remark}");
        }
    }
}

#[test]
fn a_file_that_is_there_is_replaced_on_demand_only() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("lbd.toml");
    let (source, target) = (samples().join("ipvsadm.rules"), out.to_str().unwrap());
    let args = ["ipvsadm", source.to_str().unwrap(), "-O", target];
    assert!(import(&args, None).status.success());
    let first = fs::read_to_string(&out).unwrap();
    accepted(&first);
    fs::write(&out, "mine").unwrap();
    let refused = import(&args, None);
    assert_eq!((refused.status.code(), fs::read_to_string(&out).unwrap().as_str()), (Some(2), "mine"));
    assert!(text(&refused.stderr).contains("exists already: name another file, or replace it with --force"));
    assert!(import(&[&args[..], &["--force"]].concat(), None).status.success());
    assert_eq!(fs::read_to_string(&out).unwrap(), first);
    let missing = import(&["haproxy", "/nowhere/haproxy.cfg"], None);
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        text(&missing.stderr).contains("/nowhere/haproxy.cfg: No such file"),
        "{}",
        text(&missing.stderr)
    );
}

/// What Debian's packages ship, which this repository does not.
fn of_debian(kind: &str, directory: &str, suffix: &str, expected: &[(&str, (usize, usize, usize))]) {
    let names = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{directory}: {error}: run `cargo xtask setup test`"));
    let mut seen = 0;
    for path in names.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !(name.ends_with(suffix) || name.starts_with("keepalived.conf")) {
            continue;
        }
        seen += 1;
        let made =
            import(&[kind, path.to_str().unwrap(), "--interface", "eth0", "--address", "192.0.2.200"], None);
        assert!(made.status.success(), "{name}: {}", text(&made.stderr));
        let (toml, said) = (text(&made.stdout), text(&made.stderr));
        accepted(&toml);
        for vague in ["not understood", "unknown here", "lbd refuses the whole"] {
            assert!(!said.contains(vague), "{name}:\n{said}");
        }
        if let Some((_, counts)) = expected.iter().find(|(sample, _)| *sample == name) {
            assert_eq!(count(&toml), *counts, "{name}\n{said}\n{toml}");
        }
    }
    assert!(seen >= expected.len(), "{directory} has {seen} samples only");
}

#[test]
fn keepalived_samples_of_debian() {
    let expected = [
        ("keepalived.conf.sample", (1, 2, 1)),
        ("keepalived.conf.quorum", (1, 10, 0)),
        ("keepalived.conf.virtual_server_group", (3, 5, 0)),
        ("keepalived.conf.SSL_GET", (2, 2, 1)),
        ("keepalived.conf.fwmark", (0, 0, 0)),
        ("keepalived.conf.vrrp", (0, 0, 4)),
        ("keepalived.conf.PING_CHECK", (1, 1, 0)),
        ("keepalived.conf.UDP_CHECK", (1, 1, 0)),
    ];
    of_debian("keepalived", "/usr/share/doc/keepalived/samples", ".conf", &expected);
}

#[test]
fn haproxy_samples_of_debian() {
    let expected = [
        ("basic-config-edge.cfg", (0, 0, 0)),
        ("quick-test.cfg", (1, 1, 0)),
        ("socks4.cfg", (1, 1, 0)),
        ("transparent_proxy.cfg", (1, 1, 0)),
        ("wurfl-example.cfg", (1, 1, 0)),
        ("content-sw-sample.cfg", (0, 0, 0)),
    ];
    of_debian("haproxy", "/usr/share/doc/haproxy/examples", ".cfg", &expected);
    of_debian("haproxy", "/etc/haproxy", ".cfg", &[("haproxy.cfg", (0, 0, 0))]);
}

#[test]
fn files_that_include_others_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let server = |address: &str| {
        format!(
            "virtual_server 192.0.2.1 80 {{\n  lb_kind DR\n  include real/*.conf ! both\n}}\nsmtp_server {address}\n"
        )
    };
    let main = write(
        "keepalived.conf",
        "global_defs {\n  router_id lb1\n}\ninclude conf.d/*.conf\ninclude none/*.conf\nincluder \"$DIR/x.conf\"\nfoo\n",
    );
    let www = write("conf.d/www.conf", &server("127.0.0.1"));
    let first = write("conf.d/real/a.conf", "real_server 10.0.0.1 80 {\n  TCP_CHECK\n}\n");
    write("conf.d/real/b.conf", "real_server 10.0.0.2 80 {\n  TCP_CHECK\n  bar\n}\ninclude ../*.conf\n");
    let made = import(&["keepalived", &main, "--interface", "eth0"], None);
    let (toml, said) = (text(&made.stdout), text(&made.stderr));
    assert!(made.status.success(), "{said}");
    accepted(&toml);
    assert_eq!(count(&toml), (1, 2, 0), "{toml}");
    assert!(toml.contains(&format!("# {www}, line 1: virtual_server 192.0.2.1 80\n")), "{toml}");
    let second = first.replace("a.conf", "b.conf");
    for expected in [
        format!("{main}: line 5: left out: include none/*.conf: there is no such file: "),
        format!(
            "{main}: line 6: left out: includer \"$DIR/x.conf\": not followed: lbctl puts no definitions"
        ),
        format!("{main}: line 7: left out: foo: unknown here"),
        format!("{www}: line 5: left out: smtp_server 127.0.0.1"),
        format!("{second}: line 3: left out: bar"),
        format!("{second}: line 5: left out: include ../*.conf: not followed: "),
    ] {
        assert!(said.contains(&expected), "{expected}\n{said}");
        let (file, _) = expected.split_at(expected.find("left out").unwrap());
        assert!(toml.contains(file), "{file}\n{toml}");
    }

    // HAProxy reads the files it is given as one, and of a directory those that end in .cfg, by name.
    let base = write("haproxy.cfg", "defaults\n mode tcp\n timeout client 60s\n");
    write("cfg/20-b.cfg", "backend b\n server one one.example.net:80 check\n server two 10.0.0.2:80 check\n");
    write("cfg/10-a.cfg", "frontend f\n bind 192.0.2.9:80\n default_backend b\n foo bar\n");
    write("cfg/30-c.cfg.old", "rubbish\n");
    let conf_d = dir.path().join("cfg");
    let made = import(&["haproxy", &base, conf_d.to_str().unwrap(), "--interface", "eth0"], None);
    let (toml, said) = (text(&made.stdout), text(&made.stderr));
    assert!(made.status.success(), "{said}");
    accepted(&toml);
    assert_eq!(count(&toml), (1, 2, 0), "{toml}");
    assert!(
        toml.contains("address = \"one.example.net\"") && toml.contains("idle_timeout = \"1m\""),
        "{toml}"
    );
    assert!(said.contains("cfg/10-a.cfg: line 4: left out: foo bar"), "{said}");
    assert!(
        toml.starts_with(&format!("# Made by `lbctl import haproxy` from {base} and 2 more.\n")),
        "{toml}"
    );
    let none = import(&["haproxy", dir.path().join("conf.d").to_str().unwrap()], None);
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("a directory without .cfg files"), "{}", text(&none.stderr));
}
