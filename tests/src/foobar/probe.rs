//! Looking at single parts, and bringing them back.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    place::HOSTS,
    site::{Site, text},
    up, wait_for,
};

/// Which database server takes writes.
pub fn primary(site: &Site) -> Result<&'static str> {
    let mut found = Vec::new();
    for name in ["db1", "db2"] {
        if site.sql(name, "SELECT @@read_only").is_ok_and(|said| said == "0") {
            found.push(name);
        }
    }
    match found[..] {
        [one] => Ok(one),
        _ => bail!("these take writes: {found:?}"),
    }
}

/// The targets of Prometheus and whether they are up.
pub fn targets(site: &Site) -> Result<BTreeMap<String, bool>> {
    let data = site.prometheus("/api/v1/targets")?;
    let targets = data["activeTargets"].as_array().context("no targets")?;
    Ok(targets
        .iter()
        .map(|t| {
            (format!("{} {}", text(&t["labels"]["job"]), text(&t["labels"]["instance"])), t["health"] == "up")
        })
        .collect())
}

/// The alerts that are firing, with their labels as text.
pub fn alerts(site: &Site) -> Result<Vec<(String, Value)>> {
    let mut data = site.prometheus("/api/v1/alerts")?;
    let Value::Array(alerts) = data["alerts"].take() else { bail!("no alerts") };
    Ok(alerts
        .into_iter()
        .filter(|alert| alert["state"] == "firing")
        .map(|mut alert| (text(&alert["labels"]["alertname"]), alert["labels"].take()))
        .collect())
}

/// Brings a host back that was gone: as after a boot, without its services.
pub fn return_host(site: &Site, name: &str) -> Result<()> {
    let plan = HOSTS.iter().find(|plan| plan.name == name).context("no such host")?;
    // The kernel takes the old cable away when it gets round to it.
    wait_for(&format!("the old cable of {name} to go"), Duration::from_secs(30), || {
        let port = format!("/sys/class/net/to-{name}");
        let there = site.host("router").and_then(|router| router.exec(&format!("test ! -e {port}")));
        there.map(|_| ()).map_err(|_| "it is still there".to_owned())
    })?;
    up::host(site.place(), plan.name, plan.zone)?;
    up::network(&site.host(name)?)
}

/// Brings a database server back that was gone, as a replica of the one that was promoted meanwhile.
pub fn return_database(site: &Site, name: &str, primary: &str) -> Result<()> {
    return_host(site, name)?;
    let host = site.host(name)?;
    host.start_services()?;
    up::await_database(&host)?;
    follow(site, name, primary)
}

/// Makes a server the other one's replica; with an empty directory, where it has what nobody else has.
pub fn follow(site: &Site, name: &str, primary: &str) -> Result<()> {
    let plan = HOSTS.iter().find(|plan| plan.name == primary).context("no such host")?;
    let host = site.host(name)?;
    host.call(&["/opt/foobar/follow.sh", plan.addresses[0]])?;
    let replicates = || {
        let state = site.host(name)?.call(&["mariadb", "-E", "-e", "SHOW SLAVE STATUS"])?;
        let yes = |key: &str| state.contains(&format!("{key}: Yes"));
        let error = state
            .lines()
            .filter(|l| l.contains("Error:") && !l.trim_end().ends_with("Error:"))
            .collect::<Vec<_>>();
        Ok::<_, anyhow::Error>((yes("Slave_IO_Running") && yes("Slave_SQL_Running"), error.join("; ")))
    };
    let wait = || {
        wait_for(&format!("replication of {name}"), Duration::from_secs(30), || match replicates() {
            Ok((true, _)) => Ok(()),
            Ok((false, why)) => Err(why),
            Err(error) => Err(format!("{error:#}")),
        })
    };
    if wait().is_err() {
        host.kill_service("mariadb")?;
        host.exec("rm -rf /var/lib/mysql/* && /opt/foobar/install.sh >/var/log/foobar/install.log 2>&1")?;
        host.start_service("mariadb")?;
        up::await_database(&host)?;
        host.call(&["/opt/foobar/follow.sh", plan.addresses[0]])?;
        wait()?;
    }
    Ok(())
}
