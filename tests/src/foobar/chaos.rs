//! Everything breaks once, under load, and comes back; a table tells who noticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    load::{self, Record},
    place::HOSTS,
    points::Load,
    probe,
    report::{self, Row, during},
    site::{BALANCERS, Site, text},
    stop, up,
    verdict::{Calm, Crash, PLANNED_MS, Promise, TAKEOVER_MS, between, judge},
    wait_for,
};

/// Until a fault is seen by balancers or Prometheus, on what may be two busy cores.
const PATIENCE: Duration = Duration::from_secs(180);
/// The quiet after each event, whose requests count as the event's.
const AFTER: Duration = Duration::from_secs(3);

/// The load: so many browsers.
const BROWSERS: usize = 4;
/// Until the other balancer has the addresses of one that is gone: by VRRP less than a second, on a busy machine more.
const TAKEN_OVER: Duration = Duration::from_secs(3);
/// All instances of VRRP.
const INSTANCES: [&str; 4] = ["public-a", "public-b", "app", "db"];

/// An event that is going on.
struct Run<'a> {
    site: &'a Site,
    load: &'a Load,
    rows: &'a mut Vec<Row>,
    calm: Calm,
    /// From when to when each was, in ms since 1970.
    events: Vec<(u64, u64)>,
}

impl Run<'_> {
    /// Does something and enters a row; an error of the action is the row's verdict.
    fn event(&mut self, name: &str, action: impl FnOnce(&Site) -> Result<(Promise, String)>) {
        if stop::asked() {
            return;
        }
        eprintln!("  {name}");
        let from = load::now_ms();
        let outcome = action(self.site);
        thread::sleep(AFTER);
        let to = load::now_ms();
        self.events.push((from, to));
        let records = self.load.records();
        let touched = during(&records, from, to);
        let mut row = report::row(name, &touched);
        row.verdict = match outcome {
            Err(error) => Err(format!("{error:#}")),
            Ok((promise, note)) => {
                row.note = note;
                judge(&promise, &touched, self.calm, BROWSERS)
            }
        };
        if touched.len() < 10 && row.verdict.is_ok() {
            row.verdict = Err("fewer than ten requests: this proves nothing".to_owned());
        }
        if let Err(why) = &row.verdict {
            eprintln!("  \u{2717} {why}");
        }
        self.rows.push(row);
    }

    /// Does nothing, and takes down what requests meet then.
    fn calm(&mut self) {
        let from = load::now_ms();
        self.event("nothing at all", |_| {
            thread::sleep(Duration::from_secs(5));
            Ok((Promise::Nothing { gap: TAKEOVER_MS }, String::new()))
        });
        let records = self.load.records();
        let touched = during(&records, from, load::now_ms());
        self.calm = Calm {
            longest: touched.iter().map(|r| r.millis).max().unwrap_or(0),
            reopened: touched.iter().map(|r| r.reopened).sum(),
        };
    }
}

/// Runs all events and prints the table; whether all went as promised.
pub fn chaos(site: &Site, keep: Option<&Path>, docs: &Path) -> Result<bool> {
    without_web3(site)?;
    let average = report::load_average();
    let load =
        Load::start(site, &["--browsers", &BROWSERS.to_string(), "--think-ms", "100", "--seconds", "3600"])?;
    wait_for("the load", Duration::from_secs(60), || {
        let good = load.records().iter().filter(|r| r.error.is_empty()).count();
        if good >= 50 { Ok(()) } else { Err(format!("{good} answers so far")) }
    })?;
    let begun = Instant::now();
    let mut rows = Vec::new();
    let mut run = Run { site, load: &load, rows: &mut rows, calm: Calm::default(), events: Vec::new() };

    run.calm();
    run.event("lb2 gives its addresses to lb1", |site| {
        hand_over(site, "lb2", "lb1")?;
        Ok((TAKEOVER, String::new()))
    });
    run.event("and gets them back", |site| {
        hand_over(site, "lb1", "lb2")?;
        Ok((TAKEOVER, String::new()))
    });
    run.event("lb1 is gone (power failure)", |site| {
        site.place().kill_host("lb1")?;
        let note = taken_over(site, "lb2")?;
        let after = fires(site, "LbdNodeDown", "lb1", true)?;
        Ok((TAKEOVER, format!("{note}, LbdNodeDown after {after} s")))
    });
    run.event("lb1 is back", |site| {
        probe::return_host(site, "lb1")?;
        site.host("lb1")?.start_services()?;
        own_addresses(site)?;
        let after = fires(site, "LbdNodeDown", "lb1", false)?;
        Ok((TAKEOVER, format!("cleared after {after} s")))
    });
    run.event("the daemon of lb2 is killed", |site| {
        site.host("lb2")?.kill_service("lbd")?;
        let note = taken_over(site, "lb1")?;
        let after = fires(site, "LbdNodeDown", "lb2", true)?;
        Ok((TAKEOVER, format!("{note}, LbdNodeDown after {after} s")))
    });
    run.event("and started again", |site| {
        site.host("lb2")?.start_service("lbd")?;
        own_addresses(site)?;
        let after = fires(site, "LbdNodeDown", "lb2", false)?;
        Ok((TAKEOVER, format!("cleared after {after} s")))
    });

    crash(&mut run, "web1", "nginx", &["www"], "WebServerDown");
    crash(&mut run, "app1", "app", &["app"], "ApplicationServerDown");
    let replica = if probe::primary(site)? == "db1" { "db2" } else { "db1" };
    crash(&mut run, replica, "mariadb", &["db-read"], "DatabaseServerDown");

    run.event("web2 is drained", |site| {
        site.lbctl_both(&["backend", "drain", "www", "web2"])?;
        for balancer in BALANCERS {
            wait_for(&format!("{balancer} without web2"), Duration::from_secs(2), || {
                let takers = site.takers(balancer, "www").map_err(|e| format!("{e:#}"))?;
                if takers.iter().any(|name| name == "web2") { Err(format!("{takers:?}")) } else { Ok(()) }
            })?;
        }
        let since = load::now_ms();
        thread::sleep(Duration::from_secs(6));
        let new = new_connections(&load.records(), since);
        ensure!(new.values().sum::<usize>() >= 5, "too few new connections to tell: {new:?}");
        ensure!(!new.contains_key("web2"), "web2 still gets new connections: {new:?}");
        Ok((PLANNED, format!("new connections: {new:?}")))
    });
    run.event("web2 is enabled again", |site| {
        site.lbctl_both(&["backend", "enable", "www", "web2"])?;
        let since = load::now_ms();
        thread::sleep(Duration::from_secs(4));
        let mut new = BTreeMap::new();
        wait_for("new connections of web2", Duration::from_secs(15), || {
            new = new_connections(&load.records(), since);
            if new.get("web2").is_some_and(|count| *count >= 3) { Ok(()) } else { Err(format!("{new:?}")) }
        })?;
        Ok((PLANNED, format!("new connections: {new:?}")))
    });
    let added = load::now_ms();
    run.event("web3 is added by a command on each balancer", |site| {
        site.lbctl_both(&["backend", "add", "www", "web3", "10.0.1.13"])?;
        thread::sleep(Duration::from_secs(6));
        Ok((PLANNED, String::new()))
    });
    let by_web3 = load
        .records()
        .iter()
        .filter(|r| r.server == "web3" && r.error.is_empty() && r.began >= added)
        .count();
    if let Some(row) = run.rows.last_mut() {
        row.note = format!("{by_web3} answers by web3");
        if by_web3 == 0 && row.verdict.is_ok() {
            row.verdict = Err("web3 got nothing".to_owned());
        }
    }
    // Connections whose slots are just changing hands: the balancers tell each other where they are, ten times a second. Those
    // that began since may be lost, and with them what they carry at that moment.
    run.event("lb1 is gone while connections change hands", |site| {
        site.place().kill_host("lb1")?;
        let died = load::now_ms();
        let note = taken_over(site, "lb2")?;
        thread::sleep(Duration::from_secs(5));
        Ok((Promise::Untold { died }, note))
    });
    run.event("and back again", |site| {
        probe::return_host(site, "lb1")?;
        site.host("lb1")?.start_services()?;
        own_addresses(site)?;
        thread::sleep(Duration::from_secs(3));
        Ok((TAKEOVER, String::new()))
    });
    run.event("a reload gives web1 half its weight", |site| {
        weigh(site, "weight = 50\n")?;
        let note = weighs(site, 50)?;
        thread::sleep(Duration::from_secs(4));
        Ok((PLANNED, note))
    });
    run.event("a reload gives it back", |site| {
        weigh(site, "")?;
        let note = weighs(site, 100)?;
        thread::sleep(Duration::from_secs(4));
        Ok((PLANNED, note))
    });

    let events = std::mem::take(&mut run.events);
    stop::check()?;
    let records = load.end()?;
    let all: Vec<&Record> = records.iter().collect();
    let mut whole = report::row("the whole run", &all);
    // The first answers, and what is under way when the load ends, belong to no event but are no less promised.
    whole.verdict = between(&records, &events);
    whole.note = format!("{:.0} s", begun.elapsed().as_secs_f32());
    rows.push(whole);
    for balancer in BALANCERS {
        site.host(balancer)?.call(&["lbctl", "reset"])?;
    }
    let table = report::table(&rows);
    println!("{table}");
    if let Some(dir) = keep {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("chaos.md"), &table)?;
        let lines: Vec<String> = records.iter().filter_map(|r| serde_json::to_string(r).ok()).collect();
        fs::write(dir.join("requests.jsonl"), lines.join("\n") + "\n")?;
    }
    let kept = rows.iter().all(|row| row.verdict.is_ok());
    if kept {
        report::document(docs, "chaos", &format!("{}\n{table}", report::made_by("chaos", &average)))?;
    }
    Ok(kept)
}

const PLANNED: Promise = Promise::Nothing { gap: PLANNED_MS };
const TAKEOVER: Promise = Promise::Nothing { gap: TAKEOVER_MS };

/// SIGKILL to a service, until the right alert fires; then it starts again, until the alert is gone.
fn crash(run: &mut Run<'_>, server: &'static str, service: &str, services: &[&str], alert: &str) {
    run.event(&format!("{server} crashes"), |site| {
        let host = site.host(server)?;
        let detection = detection(site, services[0])?;
        let killed = load::now_ms();
        host.kill_service(service)?;
        health(site, server, services, "down")?;
        let known = load::now_ms();
        let after = fires(site, alert, server, true)?;
        let note = format!(
            "known after {:.1} s (by its checks within {:.1} s), {alert} after {after} s",
            known.saturating_sub(killed) as f64 / 1000.0,
            detection as f64 / 1000.0
        );
        let web = service == "nginx";
        Ok((Promise::Crash(Crash { server, web, killed, known, detection }), note))
    });
    run.event(&format!("{server} is back"), |site| {
        site.host(server)?.start_service(service)?;
        let database = service == "mariadb";
        if database {
            up::await_database(&site.host(server)?)?;
        }
        health(site, server, services, "up")?;
        let after = fires(site, alert, server, false)?;
        Ok((if database { TAKEOVER } else { PLANNED }, format!("cleared after {after} s")))
    });
}

/// Within which time (ms) the checks of a service tell a dead server: so many of them begin, and the last one may have
/// to wait for an answer.
fn detection(site: &Site, service: &str) -> Result<u64> {
    let shown = site.lbctl(BALANCERS[0], &["config", "show"])?;
    let settings = shown["settings"].as_array().context("no settings")?;
    let setting = |name: &str| {
        let key = format!("service.{service}.health.{name}");
        let found = settings.iter().find(|setting| setting["key"] == key.as_str());
        found.map(|setting| text(&setting["value"])).with_context(|| format!("no setting {key}"))
    };
    let fall: u64 = setting("fall")?.parse().context("fall")?;
    Ok(fall * milliseconds(&setting("interval")?)? + milliseconds(&setting("timeout")?)?)
}

/// Of a duration as the configuration has it.
fn milliseconds(duration: &str) -> Result<u64> {
    let units = [("ms", 1), ("s", 1000)];
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((duration.strip_suffix(unit)?, factor)))
        .with_context(|| format!("{duration} is no duration in ms or s"))?;
    let number: u64 = number.parse().with_context(|| format!("{duration} is no duration"))?;
    Ok(number * factor)
}

/// Connections begun since then (ms since 1970) by the server that answered.
fn new_connections(records: &[Record], since: u64) -> BTreeMap<String, usize> {
    let new: BTreeSet<(u32, u64, &str)> = records
        .iter()
        .filter(|r| r.connected >= since && r.error.is_empty())
        .map(|r| (r.browser, r.connected, r.server.as_str()))
        .collect();
    let mut counts = BTreeMap::new();
    for (_, _, server) in new {
        *counts.entry(server.to_owned()).or_insert(0) += 1;
    }
    counts
}

/// Until a balancer is master of everything, as the other one is gone.
fn taken_over(site: &Site, balancer: &str) -> Result<String> {
    let took = wait_for(&format!("all addresses on {balancer}"), TAKEN_OVER, || {
        let masters = site.masters(balancer).map_err(|e| format!("{e:#}"))?;
        if INSTANCES.iter().all(|name| masters.iter().any(|m| m == name)) {
            Ok(())
        } else {
            Err(format!("{masters:?}"))
        }
    })?;
    Ok(format!("{balancer} has all addresses after {:.1} s", took.as_secs_f64()))
}

/// Whether both balancers give web1 that weight, and slots to match beside web2, whose weight is 100.
fn weighs(site: &Site, weight: u64) -> Result<String> {
    let mut told = Vec::new();
    for balancer in BALANCERS {
        let shown = site.lbctl(balancer, &["service", "show", "www"])?;
        let backends = shown["backends"].as_array().context("no backends")?;
        let of = |name: &str| {
            let backend = backends.iter().find(|b| b["name"] == name);
            let backend = backend.with_context(|| format!("{balancer} has no {name}"))?;
            let number = |key: &str| backend[key].as_u64().with_context(|| format!("{name} has no {key}"));
            anyhow::Ok((number("weight")?, number("slots")?))
        };
        let ((got, slots), (other, of_other)) = (of("web1")?, of("web2")?);
        ensure!((got, other) == (weight, 100), "{balancer}: web1 has the weight {got}, web2 {other}");
        let share = slots as f64 / of_other.max(1) as f64;
        ensure!(
            (share - weight as f64 / 100.0).abs() < 0.05,
            "{balancer}: web1 has {slots} slots, web2 {of_other}"
        );
        told.push(format!("{balancer}: {slots} slots beside {of_other}"));
    }
    Ok(told.join(", "))
}

/// An error where web3 takes part already, as after the tutorial's step about it.
pub fn without_web3(site: &Site) -> Result<()> {
    for balancer in BALANCERS {
        ensure!(
            !site.health(balancer, "www")?.contains_key("web3"),
            "web3 serves www on {balancer} already, and this adds it: first `lbctl backend remove www web3` on both balancers \
             (`cargo xtask scenario foobar exec lb1 lbctl backend remove www web3`, the same for lb2)"
        );
    }
    Ok(())
}

/// Until both balancers say so of a server.
fn health(site: &Site, server: &str, services: &[&str], wanted: &str) -> Result<()> {
    for balancer in BALANCERS {
        for service in services {
            wait_for(&format!("{server} {wanted} on {balancer}"), PATIENCE, || {
                let seen = site.health(balancer, service).map_err(|e| format!("{e:#}"))?;
                if seen.get(server).is_some_and(|h| h == wanted) { Ok(()) } else { Err(format!("{seen:?}")) }
            })?;
        }
    }
    Ok(())
}

/// Until an alert fires for that host and no other one, or for none any more; the seconds that took.
fn fires(site: &Site, alert: &str, host: &str, wanted: bool) -> Result<u64> {
    let what =
        if wanted { format!("the alert {alert} of {host} alone") } else { format!("the end of {alert}") };
    let took = wait_for(&what, PATIENCE, || {
        let firing = probe::alerts(site).map_err(|e| format!("{e:#}"))?;
        let of: BTreeSet<String> =
            firing.iter().filter(|(name, _)| name == alert).map(|(_, labels)| concerned(labels)).collect();
        if of.iter().eq(wanted.then_some(host)) {
            Ok(())
        } else {
            let names: Vec<&str> = firing.iter().map(|(name, _)| name.as_str()).collect();
            Err(format!("{alert} fires for {of:?}; firing: {names:?}"))
        }
    })?;
    Ok(took.as_secs())
}

/// The host whose address is in an alert's label `instance`, or that label.
fn concerned(labels: &serde_json::Value) -> String {
    let instance = text(&labels["instance"]);
    let address = instance.rsplit_once(':').map_or(instance.as_str(), |(address, _)| address);
    HOSTS
        .iter()
        .find(|plan| plan.addresses.contains(&address))
        .map_or_else(|| instance.clone(), |plan| plan.name.to_owned())
}

/// The weight of web1 in the file of both balancers, and a reload.
pub fn weigh(site: &Site, line: &str) -> Result<()> {
    for balancer in BALANCERS {
        let file = site.host(balancer)?.dir().join("etc/lbd/services.toml");
        let text = fs::read_to_string(&file)?.replace("weight = 50\n", "");
        let (head, tail) = text.split_once("address = \"10.0.1.11\"\n").context("web1 is not in the file")?;
        fs::write(&file, format!("{head}address = \"10.0.1.11\"\n{line}{tail}"))?;
        site.host(balancer)?.call(&["lbctl", "reload"])?;
    }
    Ok(())
}

fn hand_over(site: &Site, from: &str, to: &str) -> Result<()> {
    for instance in ["public-b", "db"] {
        // A balancer that has just come back takes nothing over until it has the other one's state.
        wait_for(&format!("{instance} to be handed over"), PATIENCE, || {
            site.host(from)
                .and_then(|host| host.call(&["lbctl", "pair", "failover", instance]))
                .map(drop)
                .map_err(|error| format!("{error:#}"))
        })?;
    }
    wait_for(&format!("the addresses on {to}"), PATIENCE, || {
        let masters = site.masters(to).map_err(|e| format!("{e:#}"))?;
        let left = site.masters(from).map_err(|e| format!("{e:#}"))?;
        let of = |masters: &[String], name| masters.iter().any(|m| m == name);
        let there = ["public-b", "db"].iter().all(|name| of(&masters, name) && !of(&left, name));
        if there { Ok(()) } else { Err(format!("{to}: {masters:?}, {from}: {left:?}")) }
    })
    .map(|_| ())
}

/// Until each balancer has its own addresses again.
fn own_addresses(site: &Site) -> Result<()> {
    wait_for("each balancer with its own addresses", PATIENCE, || {
        let got: Vec<Vec<String>> = BALANCERS.iter().map(|b| site.masters(b).unwrap_or_default()).collect();
        if got == [vec!["public-a", "app"], vec!["public-b", "db"]] {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        }
    })?;
    for balancer in BALANCERS {
        ensure!(site.host(balancer)?.runs("lbd"), "lbd of {balancer} does not run");
        wait_for(&format!("the link of {balancer}"), PATIENCE, || up::linked(site, balancer))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_counts_once_for_its_server() {
        let on =
            |connected, server: &str| Record { connected, server: server.to_owned(), ..Record::default() };
        let records = [on(10, "web2"), on(50, "web1"), on(50, "web1"), on(60, "web1"), on(70, "web3")];
        let counts: Vec<(String, usize)> = new_connections(&records, 50).into_iter().collect();
        assert_eq!(counts, [("web1".to_owned(), 2), ("web3".to_owned(), 1)]);
    }

    #[test]
    fn an_alert_concerns_the_host_of_its_label() {
        assert_eq!(concerned(&serde_json::json!({"instance": "10.0.1.11:9113"})), "web1");
        assert_eq!(concerned(&serde_json::json!({"instance": "10.0.0.3:9750"})), "lb2");
        assert_eq!(concerned(&serde_json::json!({"instance": "10.9.9.9:1"})), "10.9.9.9:1");
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(milliseconds("400ms").unwrap(), 400);
        assert_eq!(milliseconds("2s").unwrap(), 2000);
        assert!(milliseconds("soon").is_err());
    }
}
