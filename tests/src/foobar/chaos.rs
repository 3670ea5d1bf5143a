//! Everything breaks once, under load, and comes back; a table tells who noticed.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    load::{self, Record},
    points::Load,
    probe,
    report::{self, Row, during, errors},
    site::{BALANCERS, Site},
    up, wait_for,
};

/// Until a fault is seen by balancers or Prometheus, on what may be two busy cores.
const PATIENCE: Duration = Duration::from_secs(180);
/// The quiet after each event, whose requests count as the event's.
const AFTER: Duration = Duration::from_secs(3);

/// What is promised for an event.
enum Promise {
    /// No request fails.
    Nothing,
    /// A server crashes: what was in flight there may fail, and what begins before the balancers know.
    Crash { server: &'static str, known: u64 },
    /// A balancer dies at that moment while slots change hands: connections may fail that began so shortly before that nobody
    /// else had been told of them.
    Untold { died: u64 },
}

/// Balancers tell each other of connections ten times a second; twice that, for machines that are late.
const TOLD_WITHIN_MS: u64 = 200;

/// An event that is going on.
struct Run<'a> {
    site: &'a Site,
    load: &'a Load,
    rows: &'a mut Vec<Row>,
}

impl Run<'_> {
    /// Does something and enters a row; an error of the action is the row's verdict.
    fn event(&mut self, name: &str, action: impl FnOnce(&Site) -> Result<(Promise, String)>) {
        eprintln!("  {name}");
        let from = load::now_ms();
        let outcome = action(self.site);
        thread::sleep(AFTER);
        let to = load::now_ms();
        let records = self.load.records();
        let touched = during(&records, from, to);
        let mut row = report::row(name, &touched);
        row.verdict = match outcome {
            Err(error) => Err(format!("{error:#}")),
            Ok((promise, note)) => {
                row.note = note;
                judge(&promise, &touched)
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
}

fn judge(promise: &Promise, records: &[&Record]) -> Result<(), String> {
    let broken: Vec<&Record> = records
        .iter()
        .copied()
        .filter(|r| !r.error.is_empty())
        .filter(|r| match promise {
            Promise::Nothing => true,
            Promise::Crash { known, .. } => r.began > *known,
            Promise::Untold { died } => !(died.saturating_sub(TOLD_WITHIN_MS)..=*died).contains(&r.connected),
        })
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    let when = match promise {
        Promise::Nothing => String::new(),
        Promise::Crash { server, .. } => format!(" that began after {server} was known to be dead"),
        Promise::Untold { .. } => format!(" on connections older than {TOLD_WITHIN_MS} ms or begun since"),
    };
    Err(format!("{} failed{when}: {}", broken.len(), errors(&broken)))
}

/// Runs all events and prints the table; whether all went as promised.
pub fn chaos(site: &Site, keep: Option<&Path>, docs: &Path) -> Result<bool> {
    let average = report::load_average();
    let load = Load::start(site, &["--browsers", "4", "--think-ms", "100", "--seconds", "3600"])?;
    wait_for("the load", Duration::from_secs(60), || {
        let good = load.records().iter().filter(|r| r.error.is_empty()).count();
        if good >= 50 { Ok(()) } else { Err(format!("{good} answers so far")) }
    })?;
    let begun = Instant::now();
    let mut rows = Vec::new();
    let mut run = Run { site, load: &load, rows: &mut rows };

    run.event("nothing at all", |_| {
        thread::sleep(Duration::from_secs(5));
        Ok((Promise::Nothing, String::new()))
    });
    run.event("lb2 gives its addresses to lb1", |site| {
        hand_over(site, "lb2", "lb1")?;
        Ok((Promise::Nothing, String::new()))
    });
    run.event("and gets them back", |site| {
        hand_over(site, "lb1", "lb2")?;
        Ok((Promise::Nothing, String::new()))
    });
    run.event("lb1 is gone (power failure)", |site| {
        site.place().kill_host("lb1")?;
        let after = fires(site, "LbdNodeDown", true)?;
        Ok((Promise::Nothing, format!("LbdNodeDown after {after} s")))
    });
    run.event("lb1 is back", |site| {
        probe::return_host(site, "lb1")?;
        site.host("lb1")?.start_services()?;
        own_addresses(site)?;
        let after = fires(site, "LbdNodeDown", false)?;
        Ok((Promise::Nothing, format!("cleared after {after} s")))
    });
    run.event("the daemon of lb2 is killed", |site| {
        site.host("lb2")?.kill_service("lbd")?;
        let after = fires(site, "LbdNodeDown", true)?;
        Ok((Promise::Nothing, format!("LbdNodeDown after {after} s")))
    });
    run.event("and started again", |site| {
        site.host("lb2")?.start_service("lbd")?;
        own_addresses(site)?;
        let after = fires(site, "LbdNodeDown", false)?;
        Ok((Promise::Nothing, format!("cleared after {after} s")))
    });

    crash(&mut run, "web1", "nginx", &["www"], "WebServerDown");
    crash(&mut run, "app1", "app", &["app"], "ApplicationServerDown");
    let replica = if probe::primary(site)? == "db1" { "db2" } else { "db1" };
    crash(&mut run, replica, "mariadb", &["db-read"], "DatabaseServerDown");

    run.event("web2 is drained", |site| {
        site.lbctl_both(&["backend", "drain", "www", "web2"])?;
        thread::sleep(Duration::from_secs(6));
        Ok((Promise::Nothing, String::new()))
    });
    run.event("web2 is enabled again", |site| {
        site.lbctl_both(&["backend", "enable", "www", "web2"])?;
        thread::sleep(Duration::from_secs(4));
        Ok((Promise::Nothing, String::new()))
    });
    let added = load::now_ms();
    run.event("web3 is added by a command on each balancer", |site| {
        site.lbctl_both(&["backend", "add", "www", "web3", "10.0.1.13"])?;
        thread::sleep(Duration::from_secs(6));
        Ok((Promise::Nothing, String::new()))
    });
    let by_web3 = load.records().iter().filter(|r| r.server == "web3" && r.began >= added).count();
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
        thread::sleep(Duration::from_secs(5));
        Ok((Promise::Untold { died }, String::new()))
    });
    run.event("and back again", |site| {
        probe::return_host(site, "lb1")?;
        site.host("lb1")?.start_services()?;
        own_addresses(site)?;
        thread::sleep(Duration::from_secs(3));
        Ok((Promise::Nothing, String::new()))
    });
    run.event("a reload gives web1 half its weight", |site| {
        weigh(site, "weight = 50\n")?;
        thread::sleep(Duration::from_secs(4));
        Ok((Promise::Nothing, String::new()))
    });
    run.event("a reload gives it back", |site| {
        weigh(site, "")?;
        thread::sleep(Duration::from_secs(4));
        Ok((Promise::Nothing, String::new()))
    });

    let records = load.end()?;
    let all: Vec<&Record> = records.iter().collect();
    let mut whole = report::row("the whole run", &all);
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

/// SIGKILL to a service, until the right alert fires; then it starts again, until the alert is gone.
fn crash(run: &mut Run<'_>, server: &'static str, service: &str, services: &[&str], alert: &str) {
    run.event(&format!("{server} crashes"), |site| {
        let host = site.host(server)?;
        let killed = load::now_ms();
        host.kill_service(service)?;
        health(site, server, services, "down")?;
        let known = load::now_ms();
        let after = fires(site, alert, true)?;
        let note = format!(
            "known after {:.1} s, {alert} after {after} s",
            known.saturating_sub(killed) as f64 / 1000.0
        );
        Ok((Promise::Crash { server, known }, note))
    });
    run.event(&format!("{server} is back"), |site| {
        site.host(server)?.start_service(service)?;
        if service == "mariadb" {
            up::await_database(&site.host(server)?)?;
        }
        health(site, server, services, "up")?;
        let after = fires(site, alert, false)?;
        Ok((Promise::Nothing, format!("cleared after {after} s")))
    });
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

/// Until an alert fires, or does not any more; the seconds that took.
fn fires(site: &Site, alert: &str, wanted: bool) -> Result<u64> {
    let what = if wanted { format!("the alert {alert}") } else { format!("the end of the alert {alert}") };
    let took = wait_for(&what, PATIENCE, || {
        let firing = probe::alerts(site).map_err(|e| format!("{e:#}"))?;
        let names: Vec<&str> = firing.iter().map(|(name, _)| name.as_str()).collect();
        if names.contains(&alert) == wanted { Ok(()) } else { Err(format!("firing: {names:?}")) }
    })?;
    Ok(took.as_secs())
}

/// The weight of web1 in the file of both balancers, and a reload.
fn weigh(site: &Site, line: &str) -> Result<()> {
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
        site.host(from)?.call(&["lbctl", "pair", "failover", instance])?;
    }
    wait_for(&format!("the addresses on {to}"), PATIENCE, || {
        let masters = site.masters(to).map_err(|e| format!("{e:#}"))?;
        let there = ["public-b", "db"].iter().all(|name| masters.iter().any(|m| m == name));
        if there { Ok(()) } else { Err(format!("{masters:?}")) }
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
    fn a_crash_excuses_only_what_began_before_it_was_known() {
        let record = |began, error: &str| Record {
            began,
            millis: 10,
            browser: 0,
            what: "look".to_owned(),
            address: String::new(),
            connected: 0,
            server: String::new(),
            application: String::new(),
            error: error.to_owned(),
            written: None,
        };
        let (early, late, good) = (record(5, "lost"), record(50, "lost"), record(60, ""));
        let crash = Promise::Crash { server: "web1", known: 20 };
        assert!(judge(&crash, &[&early, &good]).is_ok());
        assert!(judge(&crash, &[&early, &late]).unwrap_err().contains("1 failed"));
        // A connection of its own age, of which the other balancer may not have been told.
        let on = |connected| Record { connected, ..record(1_050, "lost") };
        let untold = Promise::Untold { died: 1_000 };
        assert!(judge(&untold, &[&on(900), &on(1_000), &good]).is_ok());
        assert!(judge(&untold, &[&on(700)]).is_err(), "it was told long ago");
        assert!(judge(&untold, &[&on(1_001)]).is_err(), "it began at the other balancer");
        assert!(judge(&untold, &[&on(0)]).is_err(), "there was no connection at all");
        assert!(judge(&Promise::Nothing, &[&early]).is_err());
        assert!(judge(&Promise::Nothing, &[&good]).is_ok());
    }
}
