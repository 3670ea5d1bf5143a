//! A real Prometheus beside a real pair: every panel of the dashboard has something to show, every alert fires at its
//! fault and clears after it, and a scrape of many services keeps nobody waiting.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, text, web_servers},
    client::{self, Requests},
    lab::{Process, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
    web::WebServer,
};
use regex::Regex;
use serde_json::Value;

/// Far more than a scrape and an evaluation take, for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const METRICS: &str = "\n[metrics]\nlisten = \"0.0.0.0:9750\"\n";

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards")
}

fn promtool(arguments: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(dashboards().join("prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    // Its lints are warnings on stderr.
    let clean = output.status.success() && (arguments[1] == "rules" || (out + &err).trim().is_empty());
    assert!(clean, "promtool {}: {}\n{}{err}", arguments.join(" "), output.status, text(&output.stdout));
}

/// Prometheus in the client's namespace.
struct Prometheus<'t> {
    topology: &'t Topology,
    process: Process,
}

impl<'t> Prometheus<'t> {
    fn start(topology: &'t Topology, targets: &[SocketAddr], rules: &str) -> Result<Self> {
        let dir = topology.lab.dir().join("prometheus");
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("alerts.yml"), rules).expect("rules are written");
        let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [alerts.yml]\n\
             scrape_configs: [{{job_name: lbd, static_configs: [{{targets: [{}]}}]}}]\n",
            targets.join(", ")
        );
        fs::write(dir.join("prometheus.yml"), config).expect("the configuration is written");
        let mut command = topology.client.ns.command("prometheus");
        command
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:9090");
        let process = topology.lab.spawn("prometheus", command)?;
        process.wait_for_log("ready to receive web requests", PATIENCE)?;
        Ok(Self { topology, process })
    }

    /// The series an expression gives now.
    fn query(&self, expression: &str) -> Vec<Value> {
        let query = format!("query={expression}");
        let url = "http://127.0.0.1:9090/api/v1/query";
        let arguments = ["-sS", "--max-time", "20", "-G", "--data-urlencode", &query, url];
        let answer = self.topology.client.ns.exec("curl", &arguments).expect("Prometheus answers");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{expression}: {answer}\n{}", self.process.log());
        answer["data"]["result"].as_array().expect("a vector").clone()
    }

    /// True if the expression gives a number, and not only NaN as a quantile of nothing does.
    fn shows(&self, expression: &str) -> bool {
        self.query(expression).iter().any(|series| series["value"][1].as_str().is_some_and(|v| v != "NaN"))
    }

    fn firing(&self, alert: &str) -> Vec<Value> {
        self.query(&format!("ALERTS{{alertstate=\"firing\",{alert}}}"))
    }

    #[track_caller]
    fn wait_firing(&self, alert: &str, firing: bool) {
        let what = format!("{alert} {}", if firing { "fires" } else { "clears" });
        wait_until(&what, PATIENCE, || self.firing(alert).is_empty() != firing)
            .unwrap_or_else(|e| panic!("{e}; firing: {:#?}", self.firing("job=\"lbd\"")));
    }
}

/// Every selector of an expression: a name with its labels.
fn selectors(expression: &str) -> Vec<String> {
    let selector = Regex::new(r"\b(?:(?:lbd|process)[a-z0-9_:]+|up)\b(?:\{[^}]*\})?").expect("a regex");
    // `process_max_fds` is one, the words in label lists are not: they never begin so.
    selector.find_iter(expression).map(|found| found.as_str().to_owned()).collect()
}

/// Title and expression of every query of the dashboard, for all jobs, nodes and services.
fn panels() -> Vec<(String, String)> {
    let file = fs::read_to_string(dashboards().join("grafana/lbd.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&file).expect("JSON");
    let list = |value: &Value| value.as_array().expect("an array").clone();
    let variables: Vec<String> = list(&dashboard["templating"]["list"])
        .iter()
        .map(|v| v["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(variables, ["datasource", "job", "instance", "service"]);
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|v| v >= 36) && dashboard["uid"] == "lbd");
    let mut ids = std::collections::BTreeSet::new();
    let mut taken = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for panel in list(&dashboard["panels"]) {
        let title = panel["title"].as_str().filter(|t| !t.is_empty()).expect("a title").to_owned();
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is there twice");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{title}: no {key}"));
        assert!(at("x") + at("w") <= 24, "{title} is too far right");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = list(&panel["targets"]);
        assert!(!targets.is_empty(), "{title} asks nothing");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expression = target["expr"].as_str().expect("an expression");
            // Two scrapes and more.
            let plain = ["$job", "$instance", "$service"]
                .iter()
                .fold(expression.replace("$__rate_interval", "5s"), |text, name| text.replace(name, ".*"));
            assert!(!plain.contains('$'), "{title}: a variable that is not known in {expression}");
            found.push((title.clone(), plain));
        }
    }
    assert!(found.len() > 50, "{}", found.len());
    found
}

/// The rules as they are, but impatient; and the expressions of the alerts.
fn impatient_rules() -> (String, Vec<String>) {
    let rules = fs::read_to_string(dashboards().join("prometheus/alerts.yml")).expect("the rules");
    let patience = Regex::new(r"(?m)^( +for:) \w+$").expect("a regex");
    let ranges = Regex::new(r"\[\d+m\]").expect("a regex");
    let rules = ranges.replace_all(&patience.replace_all(&rules, "$1 0s"), "[8s]").into_owned();
    let expressions = Regex::new(r"(?m)^ +expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)").expect("a regex");
    let expressions = expressions
        .captures_iter(&rules)
        .map(|found| found.get(1).or(found.get(2)).map_or("", |m| m.as_str()).to_owned())
        .collect();
    (rules, expressions)
}

/// The link to the other node, over the network between the two.
fn sync(topology: &Topology, on: usize) -> String {
    let path = topology.lab.dir().join("sync.keys");
    fs::write(&path, "a1".repeat(32)).expect("the file of keys");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    let (own, peer) = (1 + on, 2 - on);
    format!(
        "\n[sync]\nlisten = \"10.9.0.{own}:9760\"\npeers = [\"10.9.0.{peer}:9760\"]\nkey_file = \"{}\"\n",
        path.display()
    )
}

fn settings(topology: &Topology, on: usize) -> Settings {
    let vrrp = format!(
        "\n[[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = {}\n\
         advert_interval = \"100ms\"\naddresses = [\"{}/24\", \"{}/64\"]\ntrack_bfd = [\"peer\"]\n\n\
         [[bfd]]\nname = \"peer\"\nlocal = \"{}\"\npeer = \"{}\"\ninterval = \"200ms\"\nmultiplier = 10\n",
        150 - 50 * on,
        topology.vip4(),
        topology.vip6(),
        topology.lb[on].v4,
        topology.lb[1 - on].v4,
    );
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends).checked();
    let shop = Service::www([topology.vip4()])
        .name("shop")
        .port(8080)
        .backend_port(80)
        .forward("nat")
        .nodes(&topology.backends)
        .health("type = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"200ms\"")
        .extra("[service.passive]\nmax_ejected = 0");
    let node = if on == 1 { "xdp_mode = \"generic\"\n" } else { "" };
    let sync = if topology.shape.sync_link { sync(topology, on) } else { String::new() };
    Settings { on, node: node.to_owned(), rest: vrrp + &sync + METRICS, ..Settings::of([www, shop]) }
}

#[test]
fn the_rules_pass_promtool() {
    require!(Need::Tool("promtool"));
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts_test.yml"], "");
    let read = |file: &str| fs::read_to_string(dashboards().join("prometheus").join(file)).expect("a file");
    let (rules, tests) = (read("alerts.yml"), read("alerts_test.yml"));
    let alert = Regex::new(r"- alert: (\w+)").expect("a regex");
    let (mut alerts, readme) = (0, include_str!("../../README.md"));
    for (_, [name]) in alert.captures_iter(&rules).map(|c| c.extract()) {
        assert!(tests.contains(&format!("name: {name}\n")), "{name} has no unit test");
        assert!(readme.contains(&format!("`{name}`")), "{name} is not in the README");
        alerts += 1;
    }
    assert!(alerts >= 20, "{alerts}");
    assert_eq!(rules.matches("runbook:").count(), alerts);
}

#[test]
fn the_metrics_pass_promtool() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("promtool"));
    let topology = Topology::new(&Shape { backends: 2, vips_on_link: true, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let balancer = Balancer::start(&topology, settings(&topology, 0))?;
    balancer.lbctl(&["backend", "weight", "www", "web1", "50"]);
    wait_until("a check has ended", PATIENCE, || scrape(&balancer).contains("type=\"http\"}"))?;
    let metrics = scrape(&balancer);
    promtool(&["check", "metrics"], &metrics);
    // No label comes from outside: as many series whoever asks for whatever.
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    for path in ["/v1/x", "/v1/services/%00", "/v1/services/nobody"] {
        let request = format!("http://lbd{path}");
        let socket = balancer.socket().display().to_string();
        let status = Command::new("curl")
            .args(["-sS", "-o", "/dev/null", "-X", "BREW", "--unix-socket", &socket, &request])
            .status()
            .expect("curl runs");
        assert!(status.success());
    }
    let after = series(&scrape(&balancer));
    assert!(after <= series(&metrics) + 2 * 17, "{after} series");
    // Every family is in the README.
    let readme = include_str!("../../README.md");
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(readme.contains(&format!("`{name}`")), "{name} is not in the README");
    }
    Ok(())
}

fn scrape(balancer: &Balancer<'_>) -> String {
    let target = SocketAddr::from(([127, 0, 0, 1], 9750));
    let answer = client::get(&balancer.node.ns, target, "/metrics", PATIENCE).expect("metrics");
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body).expect("text")
}

#[test]
fn every_query_has_an_answer_and_every_fault_an_alert() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("prometheus"), Need::Tool("curl"));
    let topology =
        Topology::new(&Shape { backends: 3, vips_on_link: true, sync_link: true, ..Shape::default() })?;
    let mut servers = web_servers(&topology, 0)?;
    let mut one = Balancer::start(&topology, settings(&topology, 0))?;
    let two = Balancer::start(&topology, settings(&topology, 1))?;
    let (rules, expressions) = impatient_rules();
    assert!(expressions.len() > 20, "{expressions:?}");
    let targets = [&topology.lb[0], &topology.lb[1]].map(|node| SocketAddr::new(node.v4.into(), 9750));
    let prometheus = Prometheus::start(&topology, &targets, &rules)?;
    let load = Requests::to_all([topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80)))
        .concurrency(2)
        .timeout(Duration::from_secs(1))
        .pause(Duration::from_millis(5))
        .start(&topology.client.ns);
    wait_until("both are scraped", PATIENCE, || prometheus.shows("sum(up) == 2"))?;
    wait_until("packets", PATIENCE, || prometheus.shows("sum(rate(lbd_service_packets_total[5s])) > 0"))?;

    let mut weight = 50;
    for (title, expression) in panels() {
        let what = format!("the panel '{title}' has something to show for {expression}");
        wait_until(&what, PATIENCE, || {
            // Some panels are of changes and requests.
            weight = if weight == 50 { 100 } else { 50 };
            for balancer in [&one, &two] {
                balancer.lbctl(&["backend", "weight", "www", "web3", &weight.to_string()]);
            }
            prometheus.shows(&expression)
        })?;
    }
    for balancer in [&one, &two] {
        balancer.lbctl(&["reset"]);
    }
    let asked = panels().into_iter().map(|(_, expression)| expression).chain(expressions);
    let names: std::collections::BTreeSet<String> = asked.flat_map(|e| selectors(&e)).collect();
    assert!(names.len() > 50, "{names:?}");
    for selector in names {
        wait_until(&format!("{selector} names something"), PATIENCE, || {
            prometheus.shows(&selector.replace(".*", ".+")) || prometheus.shows(&selector)
        })?;
    }

    // Changes settle when they like.
    let unexpected = "job=\"lbd\",alertname!~\"LbdXdpGeneric|LbdChangeDoesNotSettle\"";
    prometheus.wait_firing(unexpected, false);
    prometheus.wait_firing("alertname=\"LbdXdpGeneric\",instance=~\"10.*|192.*\"", true);

    servers[0].kill();
    prometheus.wait_firing("alertname=\"LbdBackendDown\",backend=\"web1\",service=\"www\"", true);
    servers.iter_mut().for_each(WebServer::kill);
    for alert in ["LbdServiceDown", "LbdServiceDegraded", "LbdDropsForWantOfBackends"] {
        prometheus.wait_firing(&format!("alertname=\"{alert}\""), true);
    }
    servers.iter_mut().try_for_each(|server| server.start(&topology.lab))?;
    prometheus.wait_firing(unexpected, false);

    let good = one.config_text();
    one.write_text("[node]\nname = 7\n")?;
    assert!(!one.lbctl_output(&["reload"]).status.success());
    prometheus.wait_firing("alertname=\"LbdReloadFailed\"", true);
    one.write_text(&good)?;
    one.reload();
    prometheus.wait_firing("alertname=\"LbdReloadFailed\"", false);

    one.lbctl(&["backend", "weight", "www", "web1", "7"]);
    prometheus.wait_firing("alertname=\"LbdServicesDiffer\"", true);
    one.lbctl(&["reset"]);
    prometheus.wait_firing("alertname=\"LbdServicesDiffer\"", false);

    two.lbctl(&["pair", "hold"]);
    one.lbctl(&["pair", "hold"]);
    prometheus.wait_firing("alertname=\"LbdNoMaster\"", true);
    one.lbctl(&["pair", "hold", "off"]);
    two.lbctl(&["pair", "hold", "off"]);
    prometheus.wait_firing("alertname=\"LbdNoMaster\"", false);

    one.stop()?;
    prometheus.wait_firing("alertname=\"LbdNodeDown\"", true);
    one.restart()?;
    prometheus.wait_firing(unexpected, false);
    load.stop();
    Ok(())
}

/// What a scrape of 500 services of 16 backends costs the loop.
#[test]
fn a_scrape_of_many_services_keeps_nobody_waiting() -> Result<()> {
    const SCRAPES: usize = 10;
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 16, ..Shape::default() })?;
    let services = (0..500_u16).map(|i| {
        let service = Service::www([topology.vip4()]).name(&format!("s{i}")).port(10_000 + i);
        // Small rings: a debug build takes seconds to walk through two million slots.
        service.extra("ring_size = 251").nodes(&topology.backends)
    });
    let balancer = Balancer::start(&topology, Settings::of(services))?;
    // What the start has left to do.
    let target = SocketAddr::from(([127, 0, 0, 1], 9750));
    wait_until("the daemon to be at rest", PATIENCE, || {
        let begun = Instant::now();
        let answer = client::get(&balancer.node.ns, target, "/metrics", PATIENCE).expect("an answer");
        answer.status == 200 && begun.elapsed() < Duration::from_secs(3)
    })?;
    let mut slowest = Duration::ZERO;
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let begun = Instant::now();
        bytes = scrape(&balancer).len();
        slowest = slowest.max(begun.elapsed());
    }
    let metrics = scrape(&balancer);
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().and_then(|v| v.parse().ok()).expect("a number")
    };
    assert_eq!(metrics.matches("\nlbd_backend_up{").count(), 8000);
    let of = |suffix: &str, labels: &str| {
        value(&format!("lbd_loop_work_seconds_{suffix}{{{labels}work=\"services\"}}"))
    };
    let (parts, seconds) = (of("count", ""), of("sum", ""));
    eprintln!(
        "a scrape of 500 x 16: {:.1} MB, at most {slowest:?} until it was there; {:.0} parts held the loop for {:.2} ms \
         on average",
        bytes as f64 / 1e6,
        parts / (SCRAPES as f64 + 1.0),
        1e3 * seconds / parts
    );
    // A part is a millisecond and a service; the rest of its time is what others take of this machine.
    assert!(parts > 10.0 * SCRAPES as f64, "read in few goes: {parts} parts");
    assert!(seconds / parts < 0.1, "{seconds} s for {parts} parts");
    Ok(())
}
