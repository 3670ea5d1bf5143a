//! The control API of a running daemon: the README's examples, who may do what, and what its description promises.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use lb_tests::{
    authority::Authority,
    balancer::{Balancer, Service, Settings, program, text, web_servers},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::{changes::ChangesView, openapi, watch::WatchView};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

fn settings(topology: &Topology) -> Settings {
    let service = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends);
    Settings::of([service.extra("ring_size = 1009")])
}

fn failed(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), text(&output.stderr))
}

/// The commands of a section of the README, continued lines joined.
fn examples(section: &str) -> Vec<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).expect("the README");
    let start = readme.find(&format!("\n## {section}\n")).expect("the section");
    let section = readme[start + 4..].split("\n## ").next().expect("its text").replace("\\\n", " ");
    let lines = section.lines().filter_map(|line| line.strip_prefix("    curl --unix-socket "));
    lines.map(|line| format!("curl --unix-socket {line}")).collect()
}

#[test]
fn the_examples_of_the_readme_work() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("curl"));
    let topology = Topology::new(&Shape::default())?;
    let balancer = Balancer::start(&topology, settings(&topology))?;
    let examples = examples("Control API");
    assert!(examples.len() >= 8, "{examples:?}");
    for example in examples {
        let command = example.replace("/run/lbd/lbd.sock", &balancer.socket().to_string_lossy());
        let command = command.replacen("curl ", "curl --silent --show-error --fail-with-body ", 1);
        let output = Command::new("sh").args(["-c", &command]).output().expect("a shell");
        let out = text(&output.stdout);
        if example.contains("/v1/watch") {
            // curl's own status for "the time is over".
            assert_eq!(output.status.code(), Some(28), "{example}: {out}");
            assert!(out.starts_with("retry: 1000\nid: ") && out.contains("\nevent: hello\n"), "{out}");
        } else {
            assert!(output.status.success(), "{example}: {out}{}", text(&output.stderr));
            serde_json::from_str::<Value>(&out).expect("JSON");
        }
    }
    let www = balancer.service("www");
    let of = |name: &str| www.backends.iter().find(|b| b.name == name).expect("the backend");
    assert_eq!((of("web1").weight, of("web2").admin.to_string().as_str()), (50, "enabled"));
    assert_eq!(balancer.status().revision, 3);
    Ok(())
}

#[test]
fn who_changed_what_and_when_is_shown_and_can_be_dropped() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let mut balancer = Balancer::start(&topology, settings(&topology))?;
    balancer.lbctl(&["backend", "weight", "www", "web1", "50"]);
    balancer.lbctl(&["backend", "drain", "www", "web2"]);
    balancer.lbctl(&["backend", "remove", "www", "web3"]);
    balancer.lbctl(&["limit", "set", "www", "packets_per_second=1000"]);
    balancer.lbctl(&["deny", "add", "203.0.113.0/24"]);
    let (code, error) =
        failed(&balancer.lbctl_output(&["--if-revision", "4", "backend", "weight", "www", "web1", "51"]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("has revision 5, the request was made for 4") && error.contains("by uid 0"),
        "{error}"
    );
    balancer.kill();
    balancer.restart()?;

    let view: ChangesView = balancer.json(&["changes"]);
    assert_eq!(view.revision, 5);
    let lines: Vec<_> = view.changes.iter().map(|c| (c.backend.as_deref(), c.change.as_str())).collect();
    assert_eq!(
        lines,
        [
            (Some("web1"), "weight 50"),
            (Some("web2"), "draining"),
            (Some("web3"), "removed"),
            (None, "limits: packets_per_second 1000"),
            (None, "firewall: 203.0.113.0/24 denied")
        ]
    );
    let signed = |by: Option<&str>, at: Option<u64>| {
        by.is_some_and(|by| by.starts_with("uid 0")) && at.is_some_and(|at| at > 1_600_000_000)
    };
    assert!(view.changes.iter().all(|c| signed(c.by.as_deref(), c.at)), "{view:?}");
    let settings = balancer.config().settings;
    let runtime: Vec<_> = settings.iter().filter(|s| s.origin == "runtime").collect();
    assert!(runtime.iter().all(|s| signed(s.by.as_deref(), s.at)), "{runtime:?}");
    let keys: Vec<_> = runtime.iter().map(|s| s.key.as_str()).collect();
    for key in ["backend.web1.weight", "backend.web2.admin", "backend.web3", "limits.packets_per_second"] {
        assert!(keys.contains(&&*format!("service.www.{key}")), "{key}: {keys:?}");
    }
    assert!(settings.iter().filter(|s| s.origin != "runtime").all(|s| s.by.is_none() && s.at.is_none()));

    balancer.lbctl(&["reset", "www", "web2"]);
    let web2 = |balancer: &Balancer<'_>| {
        balancer.service("www").backends.iter().find(|b| b.name == "web2").map(|b| b.admin.to_string())
    };
    assert_eq!(web2(&balancer).as_deref(), Some("enabled"));
    assert_eq!(balancer.json::<ChangesView>(&["changes"]).changes.len(), 4);
    balancer.lbctl(&["reset", "www"]);
    let left = balancer.json::<ChangesView>(&["changes"]);
    assert_eq!((left.revision, left.changes.len()), (7, 1), "the firewall's is no service's");
    assert_eq!(balancer.service("www").backends.len(), 3);
    for (wrong, what) in
        [(&["reset", "wwww"][..], "no service 'wwww'"), (&["reset", "www", "web9"], "no backend 'web9'")]
    {
        let (code, error) = failed(&balancer.lbctl_output(wrong));
        assert!(code == Some(1) && error.contains(what), "{error}");
    }
    balancer.lbctl(&["--if-revision", "7", "reset"]);
    assert_eq!(balancer.json::<ChangesView>(&["changes"]).changes, []);
    assert_eq!(balancer.status().revision, 8, "what is dropped counts too");
    Ok(())
}

/// `lbctl` as nobody, with these groups besides.
fn as_nobody(groups: &str, socket: &Path, lbctl: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--groups", groups]).arg(lbctl);
    command.arg("--socket").arg(socket).args(arguments).output().expect("setpriv")
}

#[test]
fn groups_have_their_sockets() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("setpriv"));
    let topology = Topology::new(&Shape::default())?;
    let mut with_groups = settings(&topology);
    with_groups.rest = "[control]\nadmin_group = \"adm\"\nread_group = \"users\"\n".to_owned();
    let balancer = Balancer::start(&topology, with_groups)?;
    fs::set_permissions(topology.lab.dir(), fs::Permissions::from_mode(0o755)).expect("the lab's directory");
    let lbctl = balancer.dir().join("lbctl");
    fs::copy(program("lbctl"), &lbctl).expect("a copy of the program");
    let socket = balancer.socket();
    let group = |name: &str| {
        let group = nix::unistd::Group::from_name(name).expect("groups").expect("Debian has it");
        group.gid.as_raw()
    };
    let read_only = socket.with_file_name("lbd-ro.sock");
    for (path, name) in [(&socket, "adm"), (&read_only, "users")] {
        let meta = fs::metadata(path).expect("the socket");
        assert_eq!((meta.gid(), meta.permissions().mode() & 0o7777), (group(name), 0o660), "{name}");
    }
    let change = ["backend", "weight", "www", "web1", "50"];
    let (adm, users) = (group("adm").to_string(), group("users").to_string());
    assert!(as_nobody(&adm, &socket, &lbctl, &change).status.success());
    // A reader is led to the other socket.
    for socket in [&socket, &read_only] {
        for look in
            [&["status"][..], &["service", "list"], &["changes"], &["watch", "--count", "1", "--since", "x"]]
        {
            let output = as_nobody(&users, socket, &lbctl, look);
            assert!(output.status.success(), "{look:?}: {}", text(&output.stderr));
        }
        for refused in
            [&change[..], &["reset"], &["reload"], &["detach", "--yes"], &["trace", "--count", "1"]]
        {
            let (code, error) = failed(&as_nobody(&users, socket, &lbctl, refused));
            assert_eq!(code, Some(1), "{refused:?}");
            assert!(error.contains("read-only control socket") && error.contains("admin_group"), "{error}");
        }
    }
    let (code, error) = failed(&as_nobody("65534", &socket, &lbctl, &["status"]));
    assert!(code == Some(1) && error.contains("permission denied on the control socket"), "{error}");
    assert_eq!(balancer.status().revision, 1);
    let (code, error) = {
        balancer.write_text(&balancer.config_text().replace("\"users\"", "\"no-such-group\""))?;
        failed(&balancer.run_lbd(&["--check"]))
    };
    assert!(code == Some(2) && error.contains("is no group of this host"), "{error}");
    Ok(())
}

#[test]
fn over_tcp_certificates_say_who_may() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("openssl"));
    let topology = Topology::new(&Shape::default())?;
    let mut balancer = Balancer::prepare(&topology, settings(&topology))?;
    let dir = balancer.dir().to_owned();
    let (ours, theirs) = (Authority::new(&dir, "ca"), Authority::new(&dir, "strange"));
    ours.sign("lbd", "lbd", &["127.0.0.1"]);
    ours.sign("ops", "Olga", &["ops.example.com"]);
    ours.sign("monitor", "monitor", &[]);
    ours.sign("other", "somebody", &["other.example.com"]);
    theirs.sign("forged", "Olga", &["ops.example.com"]);
    let section = |admins: &str| {
        format!(
            "[control]\nlisten = \"127.0.0.1:9751\"\ncert_file = \"{0}/lbd.crt\"\nkey_file = \"{0}/lbd.key\"\n\
             client_ca_file = \"{0}/ca.crt\"\nadmins = [\"{admins}\"]\nreaders = [\"monitor\"]\n",
            dir.display()
        )
    };
    balancer.configure(|settings| settings.rest = section("ops.example.com"))?;
    balancer.restart()?;
    let node = balancer.node;
    let lbctl = |who: &str, arguments: &[&str]| {
        let mut command = node.ns.command(program("lbctl"));
        command.args(["--server", "https://127.0.0.1:9751", "--ca"]).arg(dir.join("ca.crt"));
        command
            .arg("--cert")
            .arg(dir.join(format!("{who}.crt")))
            .arg("--key")
            .arg(dir.join(format!("{who}.key")));
        command.args(arguments).output().expect("lbctl")
    };
    let change = ["backend", "weight", "www", "web1", "50"];
    let done = lbctl("ops", &change);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let by = balancer.json::<ChangesView>(&["changes"]).changes.remove(0).by.expect("signed");
    assert_eq!(by, "certificate Olga, 127.0.0.1");
    assert!(lbctl("monitor", &["service", "list"]).status.success());
    for (who, what, why) in [
        ("monitor", &change[..], "certificate 'monitor, 127.0.0.1' may only look"),
        ("monitor", &["trace", "--count", "1"], "may only look"),
        ("other", &["status"], "neither in control.admins nor in control.readers"),
        ("forged", &["status"], "https://127.0.0.1:9751"),
    ] {
        let (code, error) = failed(&lbctl(who, what));
        assert!(code == Some(1) && error.contains(why), "{who}: {error}");
    }
    // Without a certificate, and with an older protocol.
    let s_client = |arguments: &[&str]| {
        let mut command = node.ns.command("sh");
        let line = format!(
            "printf 'GET /v1/status HTTP/1.1\\r\\nHost: lbd\\r\\nConnection: close\\r\\n\\r\\n' | \
             timeout 20 openssl s_client -quiet -ign_eof -connect 127.0.0.1:9751 {}",
            arguments.join(" ")
        );
        text(&command.args(["-c", &line]).output().expect("openssl").stdout)
    };
    let (crt, key) = (dir.join("ops.crt"), dir.join("ops.key"));
    let own = format!("-cert {} -key {}", crt.display(), key.display());
    assert!(s_client(&[&own]).contains("200 OK"), "the way to ask is right");
    assert!(!s_client(&[]).contains("HTTP/1.1"));
    assert!(!s_client(&[&own, "-tls1_2"]).contains("HTTP/1.1"));

    // A reload takes a name away, and ends the connections of those who were let in.
    let mut watch = node.ns.command(program("lbctl"));
    watch.args(["--server", "https://127.0.0.1:9751", "--ca"]).arg(dir.join("ca.crt"));
    watch.arg("--cert").arg(&crt).arg("--key").arg(&key).arg("watch");
    let watch = topology.lab.spawn("watch", watch)?;
    watch.wait_for_log("hello", PATIENCE)?;
    balancer.configure(|settings| settings.rest = section("nobody.example.com"))?;
    balancer.reload();
    let (code, error) = failed(&lbctl("ops", &["status"]));
    assert!(code == Some(1) && error.contains("neither in control.admins"), "{error}");
    balancer.configure(|settings| settings.rest = section("Olga").replace("lbd.key", "ops.key"))?;
    let (code, error) = failed(&balancer.lbctl_output(&["reload"]));
    assert!(code == Some(2) && error.contains("cannot be used"), "{error}");
    ours.sign("lbd", "lbd", &["127.0.0.1"]);
    balancer.configure(|settings| settings.rest = section("Olga"))?;
    balancer.reload();
    assert!(
        lbctl("ops", &["backend", "weight", "www", "web1", "51"]).status.success(),
        "with the new certificate"
    );
    watch.wait(PATIENCE)?;
    Ok(())
}

fn events(log: &str) -> Vec<WatchView> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn what_happens_can_be_watched() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let mut servers = web_servers(&topology, 0)?;
    let service =
        Service::www([topology.vip4()]).nodes(&topology.backends).checked().extra("ring_size = 1009");
    let mut balancer = Balancer::start(&topology, Settings::of([service]))?;
    balancer.wait_for_backend("web3 to be up", "www", "web3", PATIENCE, |b| b.health.to_string() == "up")?;
    let mut command = Command::new(program("lbctl"));
    command.arg("--socket").arg(balancer.socket()).args(["-o", "json", "watch"]);
    let watch = topology.lab.spawn("watch", command)?;
    watch.wait_for_log("hello", PATIENCE)?;
    let seen = |event: &str, backend: Option<&str>, to: &str| {
        let all = events(&watch.log());
        all.into_iter()
            .find(|e| e.event == event && e.backend.as_deref() == backend && e.to.as_deref() == Some(to))
    };
    balancer.lbctl(&["backend", "weight", "www", "web1", "50"]);
    balancer.lbctl(&["backend", "drain", "www", "web2"]);
    wait_until("the change", PATIENCE, || seen("change", None, "2").is_some())?;
    let weight = seen("weight", Some("web1"), "50").expect("the weight");
    assert_eq!((weight.from.as_deref(), weight.service.as_deref()), (Some("100"), Some("www")));
    assert!(weight.reason.starts_with("by uid 0"), "{weight:?}");
    assert!(seen("admin", Some("web2"), "draining").is_some());
    drop(servers.pop());
    wait_until("web3 is down", PATIENCE, || seen("backend", Some("web3"), "down").is_some())?;
    balancer.configure(|settings| settings.services[0].backends[0].2 = 70)?;
    balancer.reload();
    wait_until("the reload", PATIENCE, || seen("reload", None, "running").is_some())?;
    assert!(seen("weight", Some("web1"), "70").is_none(), "the runtime change is in force still");

    // Numbers without a gap; whoever comes back gets the same.
    let all: Vec<_> = events(&watch.log()).into_iter().skip(1).collect();
    let number = |e: &WatchView| e.id.split_once('-').expect("an id").1.parse::<u64>().expect("a number");
    assert!(all.windows(2).all(|two| number(&two[1]) == number(&two[0]) + 1), "{all:?}");
    let count = (all.len() - 1).to_string();
    let again = balancer.lbctl(&["-o", "json", "watch", "--since", &all[0].id, "--count", &count]);
    assert_eq!(events(&again)[1..], all[1..]);

    balancer.kill();
    balancer.restart()?;
    let after = balancer.lbctl(&["-o", "json", "watch", "--since", &all[0].id, "--count", "1"]);
    assert_eq!(events(&after)[0].event, "reset", "another daemon's numbers mean nothing to this one");

    // More than 64 are turned away, and nobody keeps the daemon from ending.
    let spawn = || {
        let mut command = Command::new(program("lbctl"));
        command.arg("--socket").arg(balancer.socket()).arg("watch");
        topology.lab.spawn("watcher", command)
    };
    let many: Vec<_> = (0..64).map(|_| spawn()).collect::<Result<_>>()?;
    for watcher in &many {
        watcher.wait_for_log("hello", PATIENCE)?;
    }
    let (code, error) = failed(&balancer.lbctl_output(&["watch"]));
    assert!(code == Some(1) && error.contains("64 watches are under way"), "{error}");
    let begun = Instant::now();
    balancer.stop()?;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    Ok(())
}

/// One exchange by curl: status, and body as JSON.
fn curl(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--globoff",
        "--max-time",
        "60",
        "-X",
        method,
        "-w",
        "\n%{http_code}",
        "--unix-socket",
    ]);
    command.arg(socket);
    if let Some(body) = body {
        command.args(["-d", &body.to_string()]);
    }
    let output = command.arg(format!("http://lbd{path}")).output().expect("curl");
    let out = text(&output.stdout);
    let (body, code) = out.rsplit_once('\n').expect("a status");
    (code.parse().expect("a number"), serde_json::from_str(body).expect("JSON"))
}

#[test]
fn answers_are_as_described() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("curl"));
    let topology = Topology::new(&Shape::default())?;
    let balancer = Balancer::start(&topology, settings(&topology))?;
    let description = openapi::description();
    let validate = |path: &str, method: &str, code: u16, answer: &Value| {
        let responses = &description["paths"][path][method]["responses"];
        let of_code = &responses[code.to_string()];
        let response = if of_code.is_null() { &responses["default"] } else { of_code };
        let mut schema = response["content"]["application/json"]["schema"].clone();
        assert!(schema.is_object(), "{method} {path}: {code} is not described");
        schema["components"] = description["components"].clone();
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let errors: Vec<String> =
            validator.iter_errors(answer).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{method} {path}: {errors:?}\n{answer}");
    };
    let vip = SocketAddr::new(topology.vip4(), 80);
    let explain = format!("?protocol=tcp&source=198.51.100.7:4000&destination={vip}");
    let prefixes = json!({"prefixes": ["203.0.113.0/24"]});
    let backend = "/v1/services/{service}/backends/{backend}";
    let rows: Vec<(&str, &str, &str, Option<Value>, u16)> = vec![
        ("get", "/v1/status", "", None, 200),
        (
            "post",
            "/v1/services/{service}/backends",
            "",
            Some(json!({"name": "web9", "address": "10.66.0.9"})),
            200,
        ),
        (
            "post",
            "/v1/services/{service}/backends",
            "",
            Some(json!({"name": "web9", "address": "10.66.0.9"})),
            409,
        ),
        ("put", "/v1/services/{service}/backends/{backend}/weight", "", Some(json!({"weight": 7})), 200),
        ("put", "/v1/services/{service}/backends/{backend}/weight", "", Some(json!({"weight": 70_000})), 400),
        (
            "put",
            "/v1/services/{service}/backends/{backend}/admin",
            "",
            Some(json!({"admin": "disabled"})),
            200,
        ),
        ("get", "/v1/services/{service}/backends/{backend}/drain", "", None, 200),
        (
            "put",
            "/v1/services/{service}/backends/{backend}/weight",
            "?plan=true",
            Some(json!({"weight": 9})),
            200,
        ),
        ("post", "/v1/save", "", Some(json!({"print": true})), 200),
        ("put", "/v1/services/{service}/limits", "", Some(json!({"packets_per_second": 10_000})), 200),
        ("post", "/v1/deny/add", "", Some(prefixes.clone()), 200),
        ("post", "/v1/allow/add", "", Some(prefixes.clone()), 409),
        ("get", "/v1/services", "", None, 200),
        ("get", "/v1/services/{service}", "", None, 200),
        ("get", "/v1/drops", "", None, 200),
        ("get", "/v1/config", "", None, 200),
        ("get", "/v1/changes", "", None, 200),
        ("get", "/v1/explain", &explain, None, 200),
        ("get", "/v1/explain", "?protocol=sctp", None, 400),
        ("get", "/v1/flows", "?limit=3", None, 200),
        ("get", "/v1/deny", "", None, 200),
        ("get", "/v1/allow", "", None, 200),
        ("get", "/v1/limits", "", None, 200),
        ("get", "/v1/pair", "", None, 200),
        ("get", "/v1/pair/refused", "", None, 200),
        ("get", "/v1/pair/link", "", None, 200),
        ("get", "/v1/bgp", "", None, 200),
        ("get", "/v1/fleet", "", None, 200),
        ("get", "/v1/fleet/document", "", None, 409),
        ("put", "/v1/fleet/document", "", Some(json!({"text": ""})), 409),
        ("post", "/v1/pair/failover", "", Some(json!({"name": "public"})), 404),
        ("post", "/v1/pair/hold", "", Some(json!({"on": true})), 404),
        ("post", "/v1/deny/remove", "", Some(prefixes.clone()), 200),
        ("post", "/v1/allow/remove", "", Some(prefixes), 404),
        ("post", "/v1/services/{service}/limits/clear", "", None, 200),
        ("delete", backend, "", None, 200),
        ("delete", backend, "", None, 200),
        ("post", "/v1/reload", "", Some(json!({"plan": true})), 200),
        ("post", "/v1/reload", "", None, 200),
        ("post", "/v1/reset", "", Some(json!({"backend": "web1"})), 422),
        ("post", "/v1/reset", "", None, 200),
        ("get", "/v1/openapi.json", "", None, 200),
        ("post", "/v1/detach", "", None, 200),
    ];
    let mut tried = std::collections::BTreeSet::new();
    let mut removals = ["web9", "web1"].into_iter();
    for (method, path, query, body, expected) in rows {
        let name = if method == "delete" { removals.next().expect("two") } else { "web1" };
        let real = path.replace("{service}", "www").replace("{backend}", name) + query;
        let (code, answer) = curl(&balancer.socket(), &method.to_uppercase(), &real, body.as_ref());
        assert_eq!(code, expected, "{method} {real}: {answer}");
        validate(path, method, code, &answer);
        tried.insert((path.to_owned(), method.to_owned()));
    }
    let streams = ["/v1/trace", "/v1/watch"];
    let described = description["paths"].as_object().expect("paths").iter().flat_map(|(path, item)| {
        item.as_object().expect("an item").keys().map(move |method| (path.clone(), method.clone()))
    });
    let untried: Vec<_> =
        described.filter(|row| !tried.contains(row) && !streams.contains(&row.0.as_str())).collect();
    assert_eq!(untried, [], "every operation is tried here");
    Ok(())
}
