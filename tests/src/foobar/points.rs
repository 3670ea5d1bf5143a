//! What the site promises, each promise looked at from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Child,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    inside,
    load::{self, Record},
    outside,
    place::{HOSTS, PUBLIC},
    probe,
    report::{self, Findings, errors},
    site::{BALANCERS, Site},
    stop, wait_for,
};

/// What is looked at, and how much of it.
pub struct Wanted<'a> {
    /// Fewer requests and ports.
    pub short: bool,
    /// Only promises with this in their names.
    pub only: Option<&'a str>,
    /// SYNs a second of the floods.
    pub rate: u32,
    /// Where the table, the screenshot and so on go.
    pub keep: Option<&'a Path>,
    /// The document that gets the table of a whole, good run.
    pub docs: &'a Path,
}

/// Runs all of them and prints the table; whether all are kept.
pub fn test(site: &Site, wanted: &Wanted<'_>) -> Result<bool> {
    let Wanted { short, only, keep, .. } = *wanted;
    let mut findings = Findings::only(only);
    let load = report::load_average();
    findings.check("https://www.foobar.com by name, with a certificate of the site's authority", || {
        by_name(site)
    });
    findings
        .check("TLS ends at the web servers: the certificate is theirs, the balancers have no key", || {
            keys(site)
        });
    findings.check("a browser logs in, writes, and reads what it wrote", || browse(site, keep));
    findings.check("the name leads to both balancers alike, within 10 %", || by_dns(site));
    findings.check("web and application servers get alike, within 10 %", || {
        spread(site, if short { 300 } else { 1000 })
    });
    findings.check("round-robin: counts equal within one, per balancer", || in_turn(site));
    findings.check("monitoring reaches everything", || targets(site));
    findings.check("the dashboards of both balancers open from the monitoring host", || dashboards(site));
    findings.check(
        "reads go to the replica, without one to the primary, and follow a promotion; nothing is lost",
        || primary_dies(site),
    );
    findings.check("only HTTP, HTTPS and DNS are open to the outside", || outside::closed(site, short));
    findings.check("every host's own firewall admits what its role needs, and drops the rest", || {
        inside::firewalls(site)
    });
    findings.check("floods of 200,000 SYNs: the 99th percentile stays within 2x", || {
        outside::floods(site, short, wanted.rate)
    });
    stop::check()?;
    ensure!(!findings.is_empty(), "no promise has \"{}\" in its name", only.unwrap_or_default());
    let table = findings.table();
    println!("{table}");
    if let Some(dir) = keep {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("test.md"), &table)?;
    }
    if findings.all_kept() && !short && only.is_none() {
        report::document(wanted.docs, "test", &format!("{}\n{table}", report::made_by("test", &load)))?;
    }
    Ok(findings.all_kept())
}

fn by_name(site: &Site) -> Result<String> {
    let mut seen = BTreeSet::new();
    for family in ["-4", "-6"] {
        for _ in 0..4 {
            let words = [
                family,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{ssl_verify_result} %{remote_ip}",
                "https://www.foobar.com/",
            ];
            let said = site.curl(&words)?;
            let Some(address) = said.strip_prefix("200 0 ") else { bail!("curl says {said}") };
            seen.insert(address.to_owned());
        }
    }
    Ok(format!("answered by {}", seen.into_iter().collect::<Vec<_>>().join(", ")))
}

fn keys(site: &Site) -> Result<String> {
    let print = "openssl x509 -noout -fingerprint -sha256";
    let there = site.host("web1")?.exec(&format!("{print} -in /etc/nginx/tls/www.foobar.com.pem"))?;
    for address in PUBLIC {
        let bracketed = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let command = format!(
            "openssl s_client -connect {bracketed}:443 -servername www.foobar.com </dev/null 2>/dev/null | {print}"
        );
        let seen = site.host("client")?.exec(&command)?;
        ensure!(seen == there, "{address} shows {seen}, the web servers have {there}");
    }
    let key = fs::read_to_string(site.place().dir().join("pki/www.foobar.com.key"))?;
    let body = key.lines().nth(1).context("an empty key")?;
    for host in HOSTS {
        // Without the first line, which every key has.
        let found = site.host(host.name)?.call(&[
            "sh",
            "-c",
            &format!("grep -rlF '{body}' /etc /opt /srv /var/lib/lbd 2>/dev/null; true"),
        ])?;
        ensure!(
            found.trim().is_empty() != (host.zone == "web"),
            "{}: the key is {}",
            host.name,
            if found.trim().is_empty() { "missing" } else { found.trim() }
        );
    }
    Ok(there.trim().to_owned())
}

fn browse(site: &Site, keep: Option<&Path>) -> Result<String> {
    let output = site.on_client(&["browse", "--screenshot", "/tmp/screenshot.png"])?.wait_with_output()?;
    ensure!(output.status.success(), "the browser did not succeed (its messages are above)");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(said["secure"] == true, "the browser does not think that it is secure: {said}");
    let note = super::site::text(&said["note"]);
    let rows =
        site.sql(probe::primary(site)?, &format!("SELECT COUNT(*) FROM foobar.notes WHERE body = '{note}'"))?;
    ensure!(rows == "1", "the database has {rows} notes \"{note}\"");
    let picture = site.host("client")?.dir().join("tmp/screenshot.png");
    ensure!(fs::metadata(&picture)?.len() > 2000, "the screenshot is empty");
    if let Some(dir) = keep {
        fs::create_dir_all(dir)?;
        fs::copy(&picture, dir.join("www.foobar.com.png"))?;
    }
    Ok(super::site::text(&said["who"]))
}

fn by_dns(site: &Site) -> Result<String> {
    const ASK: &str = "
import collections, socket
for family in (socket.AF_INET, socket.AF_INET6):
    first = collections.Counter(socket.getaddrinfo('www.foobar.com', 443, family, socket.SOCK_STREAM)[0][4][0]
                                for _ in range(2000))
    for address, count in first.items():
        print(address, count)
";
    let said = site.host("client")?.call(&["/usr/bin/python3", "-c", ASK])?;
    let counts: BTreeMap<String, u32> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(address, count)| Some((address.to_owned(), count.parse().ok()?)))
        .collect();
    ensure!(counts.len() == PUBLIC.len(), "of the four addresses only these are ever the first: {counts:?}");
    even(&counts)
}

/// Within 10 % of even, as text.
fn even(counts: &BTreeMap<String, u32>) -> Result<String> {
    let mean = f64::from(counts.values().sum::<u32>()) / counts.len() as f64;
    let text = counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
    for (name, count) in counts {
        ensure!((f64::from(*count) - mean).abs() <= mean / 10.0, "{name} is off by more than 10 %: {text}");
    }
    Ok(text)
}

/// Requests to one address of the site, each on a connection of its own; what each said.
fn ask(site: &Site, address: &str, url: &str, count: u32, write: &str) -> Result<Vec<String>> {
    let bracketed = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let port = if url.starts_with("https") { 443 } else { 80 };
    let resolve = format!("www.foobar.com:{port}:{bracketed}");
    let url = format!("{url}?[1-{count}]");
    let words =
        ["--http1.1", "-H", "Connection: close", "--resolve", &resolve, "-o", "/dev/null", "-w", write, &url];
    // The patience of one transfer is that of curl's for each.
    let said = site.curl(&words)?;
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    ensure!(lines.len() == count as usize, "{address}: {} of {count} answers", lines.len());
    Ok(lines)
}

/// The balancer that is master of an instance of VRRP, as both say.
fn master(site: &Site, instance: &str) -> Result<&'static str> {
    let has = |balancer: &&str| Ok(site.masters(balancer)?.iter().any(|name| name == instance));
    let found: Vec<&str> = BALANCERS
        .into_iter()
        .filter_map(|balancer| has(&balancer).map(|has| has.then_some(balancer)).transpose())
        .collect::<Result<_>>()?;
    match found[..] {
        [one] => Ok(one),
        _ => bail!("these are master of {instance}: {found:?}"),
    }
}

/// The servers that take new connections of a service, the same ones on both balancers: two, or more where the reader of
/// the tutorial has added web3.
fn servers(site: &Site, service: &str) -> Result<Vec<String>> {
    let [one, two] = BALANCERS.map(|balancer| site.takers(balancer, service));
    let (one, two) = (one?, two?);
    ensure!(one == two && one.len() >= 2, "{service} is served by {one:?} on lb1 and by {two:?} on lb2");
    Ok(one)
}

/// What each balancer forwarded to each server since counts that were taken before, in packets.
fn forwarded(
    site: &Site,
    service: &str,
    before: &[BTreeMap<String, u64>],
) -> Result<Vec<BTreeMap<String, u64>>> {
    BALANCERS
        .iter()
        .zip(before)
        .map(|(balancer, before)| {
            let now = site.packets(balancer, service)?;
            Ok(now.into_iter().map(|(name, n)| (name.clone(), n - before.get(&name).unwrap_or(&0))).collect())
        })
        .collect()
}

fn packets(site: &Site, service: &str) -> Result<Vec<BTreeMap<String, u64>>> {
    BALANCERS.iter().map(|balancer| site.packets(balancer, service)).collect()
}

fn spread(site: &Site, count: u32) -> Result<String> {
    let (mut web, mut application) = (BTreeMap::new(), BTreeMap::new());
    let expected = servers(site, "www")?;
    let before = packets(site, "www")?;
    for address in PUBLIC {
        let write = "%{http_code} %header{x-server} %header{x-application}\\n";
        for line in ask(site, address, "https://www.foobar.com/app/whoami", count, write)? {
            let words: Vec<&str> = line.split(' ').collect();
            let ["200", server, application_server] = words[..] else { bail!("{address} answers {line}") };
            *web.entry(server.to_owned()).or_insert(0) += 1;
            *application.entry(application_server.to_owned()).or_insert(0) += 1;
        }
    }
    ensure!(
        web.keys().eq(&expected) && application.len() == 2,
        "{web:?} and {application:?} answer, and {expected:?} should"
    );
    // Who forwarded them, by the balancers' own counts: an address tells only who should.
    let by: BTreeMap<String, u32> = BALANCERS
        .iter()
        .zip(forwarded(site, "www", &before)?)
        .map(|(balancer, counts)| Ok(((*balancer).to_owned(), u32::try_from(counts.values().sum::<u64>())?)))
        .collect::<Result<_>>()?;
    Ok(format!("{}; {}; packets by {}", even(&web)?, even(&application)?, even(&by)?))
}

fn in_turn(site: &Site) -> Result<String> {
    let mut told = Vec::new();
    let expected = servers(site, "www-http")?;
    for (instance, address) in ["public-a", "public-b"].into_iter().zip(PUBLIC) {
        let balancer = master(site, instance)?;
        let before = packets(site, "www-http")?;
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for line in ask(site, address, "http://www.foobar.com/", 101, "%{http_code} %header{x-server}\\n")? {
            let Some(server) = line.strip_prefix("301 ") else { bail!("{address} answers {line}") };
            *counts.entry(server.to_owned()).or_default() += 1;
        }
        let (low, high) =
            (counts.values().min().copied().unwrap_or(0), counts.values().max().copied().unwrap_or(0));
        ensure!(counts.keys().eq(&expected) && high - low <= 1, "{balancer}: {counts:?}");
        // Nobody but the one that should has had a hand in it.
        for (name, packets) in BALANCERS.iter().zip(forwarded(site, "www-http", &before)?) {
            let all: u64 = packets.values().sum();
            ensure!(
                if *name == balancer { all >= 101 } else { all == 0 },
                "{address} is {balancer}'s, but {name} forwarded {packets:?} packets"
            );
        }
        told.push(format!("{balancer}: {counts:?}"));
    }
    ensure!(
        told.iter().any(|t| t.starts_with("lb1")) && told.iter().any(|t| t.starts_with("lb2")),
        "only {told:?}"
    );
    Ok(told.join(", "))
}

/// The page, what it is drawn by and from, and that this is the node's own.
fn dashboards(site: &Site) -> Result<String> {
    let mut told = Vec::new();
    for balancer in BALANCERS {
        let plan = HOSTS.iter().find(|plan| plan.name == balancer).context("no such host")?;
        let address = plan.addresses.iter().find(|a| a.starts_with("10.")).context("no inner address")?;
        let get = |path: &str| {
            let url = format!("http://{address}:9750{path}");
            let said =
                site.host("mon")?.call(&["curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}", &url])?;
            let (body, status) = said.rsplit_once('\n').context("no status")?;
            ensure!(status == "200", "{balancer}: {url} answers {status}");
            anyhow::Ok(body.to_owned())
        };
        let page = get("/")?;
        for part in ["<title>lbd</title>", "/dashboard.js", "/dashboard.css"] {
            ensure!(page.contains(part), "the page of {balancer} has no {part}: {page}");
        }
        for part in ["/dashboard.js", "/dashboard.css"] {
            ensure!(!get(part)?.is_empty(), "{part} of {balancer} is empty");
        }
        let data: serde_json::Value = serde_json::from_str(&get("/api/snapshot.json")?)?;
        ensure!(data["status"]["node"] == balancer, "{balancer} says that it is {}", data["status"]["node"]);
        let services = data["services"].as_array().context("no services")?;
        let names: Vec<_> = services.iter().map(|service| super::site::text(&service["name"])).collect();
        ensure!(names.iter().any(|name| name == "www"), "the dashboard of {balancer} has only {names:?}");
        told.push(format!("{balancer} with {}", names.join(", ")));
    }
    Ok(told.join("; "))
}

fn targets(site: &Site) -> Result<String> {
    let mut told = String::new();
    wait_for("all targets of Prometheus", Duration::from_secs(60), || {
        let targets = probe::targets(site).map_err(|e| format!("{e:#}"))?;
        told = targets.keys().cloned().collect::<Vec<_>>().join(", ");
        let down: Vec<_> = targets.iter().filter(|(_, up)| !**up).map(|(name, _)| name.clone()).collect();
        if targets.len() >= 8 && down.is_empty() { Ok(()) } else { Err(format!("of {told} down: {down:?}")) }
    })?;
    Ok(told)
}

/// Load in the background; dropping it ends it.
pub struct Load {
    child: Child,
    file: std::path::PathBuf,
    stop: std::path::PathBuf,
}

impl Load {
    pub fn start(site: &Site, words: &[&str]) -> Result<Self> {
        let number = load::now_ms();
        let (out, stop) = (format!("/tmp/load-{number}"), format!("/tmp/stop-{number}"));
        let child = site.on_client(&[&["load", "--out", &out, "--stop", &stop], words].concat())?;
        let dir = site.host("client")?.dir();
        Ok(Self { child, file: dir.join(&out[1..]), stop: dir.join(&stop[1..]) })
    }

    pub fn records(&self) -> Vec<Record> {
        load::records(&self.file)
    }

    pub fn end(mut self) -> Result<Vec<Record>> {
        fs::write(&self.stop, "")?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the load did not run");
        Ok(self.records())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Its program is inside the client and heeds the file; the host's end ends it at the latest.
        let _ = fs::write(&self.stop, "");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// While nobody takes writes: two browsers that only read, twenty times a second each on a machine that is idle, and a
/// tenth of that on one that is not, for the six seconds at least that a write tries.
const LEAST_READS: usize = 25;

fn primary_dies(site: &Site) -> Result<String> {
    let (old, new) = match probe::primary(site)? {
        "db1" => ("db1", "db2"),
        _ => ("db2", "db1"),
    };
    read_by(site, new)?;
    let load = Load::start(site, &["--browsers", "3", "--readers", "2", "--seconds", "300"])?;
    wait_for("writes", Duration::from_secs(60), || enough(&load.records(), "write", 10, 0))?;
    let died = load::now_ms();
    site.place().kill_host(old)?;
    // Long enough for lbd to find out and for users to notice.
    wait_for("writes that fail", Duration::from_secs(60), || {
        let refused = load.records().iter().filter(|r| r.error.contains("takes no writes")).count();
        if refused >= 3 { Ok(()) } else { Err(format!("{refused} were refused")) }
    })?;
    let promoting = load::now_ms();
    site.host(new)?.exec("/opt/foobar/promote.sh")?;
    wait_for("writes to the new primary", Duration::from_secs(60), || {
        enough(&load.records(), "write", 10, promoting)
    })?;
    // The new primary is the only server: it serves reads too, as the one that stands in.
    read_by(site, new)?;
    let records = load.end()?;
    let first_write = records
        .iter()
        .filter(|r| r.written.is_some() && r.began > promoting)
        .map(|r| r.began + r.millis)
        .min();

    // Reads: all since the death. They wait for nobody who writes, so there are many while nobody takes writes.
    let reads: Vec<&Record> = records.iter().filter(|r| r.what == "read" && r.began > died).collect();
    let broken: Vec<&Record> = reads.iter().copied().filter(|r| !r.error.is_empty()).collect();
    ensure!(broken.is_empty(), "{} of {} reads failed: {}", broken.len(), reads.len(), errors(&broken));
    let meanwhile = reads.iter().filter(|r| r.began + r.millis < promoting).count();
    ensure!(
        meanwhile >= LEAST_READS,
        "only {meanwhile} reads in the {:.1} s without a primary: this proves nothing",
        promoting.saturating_sub(died) as f64 / 1000.0
    );
    let silent = records.iter().filter(|r| {
        !r.error.is_empty()
            && r.began > died
            && !r.error.contains("takes no writes")
            && !r.error.contains("lost while writing")
    });
    let silent: Vec<&Record> = silent.collect();
    ensure!(silent.is_empty(), "requests failed without a clear word: {}", errors(&silent));

    let kept: BTreeSet<String> =
        site.sql(new, "SELECT body FROM foobar.notes")?.lines().map(str::to_owned).collect();
    let acknowledged: Vec<&String> = records.iter().filter_map(|r| r.written.as_ref()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|note| !kept.contains(**note)).collect();
    ensure!(
        lost.is_empty(),
        "{} of {} acknowledged notes are lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    let refused = records.iter().filter(|r| r.error.contains("takes no writes")).count();

    probe::return_database(site, old, new)?;
    read_by(site, old)?;
    Ok(format!(
        "{} reads without one failure, {meanwhile} of them while nobody took writes, {refused} writes refused with a reason, writing again {:.1} s after the promotion, \
         all of {} acknowledged notes are there, {old} is back and serves the reads",
        reads.len(),
        (first_write.unwrap_or(0).saturating_sub(promoting)) as f64 / 1000.0,
        acknowledged.len()
    ))
}

/// Until one database server alone gets reads, by the balancer that has their address.
fn read_by(site: &Site, server: &str) -> Result<()> {
    wait_for(&format!("reads by {server}"), Duration::from_secs(30), || {
        let balancer = master(site, "db").map_err(|e| format!("{e:#}"))?;
        let takers = site.takers(balancer, "db-read").map_err(|e| format!("{e:#}"))?;
        if takers == [server] { Ok(()) } else { Err(format!("{balancer}: {takers:?}")) }
    })
    .map(|_| ())
}

/// Whether so many requests of a kind have succeeded since then.
fn enough(records: &[Record], what: &str, count: usize, since: u64) -> Result<(), String> {
    let done = records.iter().filter(|r| r.what == what && r.error.is_empty() && r.began >= since).count();
    if done >= count {
        return Ok(());
    }
    let all: Vec<&Record> = records.iter().filter(|r| r.began >= since).collect();
    Err(format!("{done} of {count} so far; {}", errors(&all)))
}
