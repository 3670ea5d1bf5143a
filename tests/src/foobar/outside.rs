//! What the site promises to those who mean no good.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    load::Record,
    place::{HOSTS, INTERNAL, PUBLIC, ROUTER, ROUTER_ADDRESSES},
    points::Load,
    report::{errors, p99, retries},
    site::Site,
};

const WELL_KNOWN: &str = "2049,2379,3000,3128,3306,3389,4567,5000,5432,6080,6379,8000,8080,8081,8443,9000,9090,9093,9100,9104,\
     9113,9222,9750,9760,10050,11211,27017,33060";
const UDP: &str = "53,67,69,80,111,123,137,161,162,389,443,500,514,520,623,1194,1434,1645,1812,1900,2049,3478,3784,4500,4789,\
     5060,5353,6080,6081,8125,9750,9760,11211,51820";

/// Every port of every host.
pub fn closed(site: &Site, short: bool) -> Result<String> {
    let hosts = HOSTS.iter().filter(|host| host.name != "client");
    let mut addresses: Vec<&str> = hosts.flat_map(|host| host.addresses.iter().copied()).collect();
    addresses.extend(ROUTER_ADDRESSES);
    addresses.extend(PUBLIC);
    addresses.extend(INTERNAL);
    let ports = if short { "1-1024" } else { "1-65535" };
    let words = [&["scan", "--ports", ports, "--also", WELL_KNOWN, "--udp", UDP], &addresses[..]].concat();
    let before = dropped(site, ROUTER)?;
    let output = site.on_client(&words)?.wait_with_output()?;
    ensure!(output.status.success(), "the scan did not run");
    let said = String::from_utf8(output.stdout)?;
    let open: BTreeSet<String> =
        said.lines().filter_map(|l| l.strip_prefix("open ")).map(str::to_owned).collect();
    let mut expected: BTreeSet<String> = PUBLIC
        .iter()
        .flat_map(|address| [format!("{address} 80 tcp"), format!("{address} 443 tcp")])
        .collect();
    for plan in HOSTS.iter().filter(|plan| plan.name == "dns") {
        let both = |address| [format!("{address} 53 tcp"), format!("{address} 53 udp")];
        expected.extend(plan.addresses.iter().flat_map(both));
    }
    let too_many: Vec<_> = open.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&open).collect();
    ensure!(
        too_many.is_empty() && missing.is_empty(),
        "open though they should not be: {too_many:?}; closed though they should not be: {missing:?}"
    );
    let (sent, seconds) = said
        .lines()
        .find_map(|line| line.strip_prefix("sent "))
        .and_then(|line| line.split_once(' '))
        .context("no numbers of the scan")?;
    let sent: u64 = sent.parse()?;
    // A scan whose packets got lost on the way proves nothing: the router counts what it refuses.
    let refused = dropped(site, ROUTER)?.saturating_sub(before);
    ensure!(
        refused >= sent * 98 / 100,
        "of {sent} packets of the scan only {refused} came as far as the router"
    );
    Ok(format!(
        "TCP ports {ports}{} and {} UDP ports of {} addresses, {sent} packets in {seconds} s: only the {} expected answer, \
         the router refused {refused}",
        if short { " (all of them without --short) and well-known ones" } else { "" },
        UDP.split(',').count(),
        addresses.len(),
        open.len()
    ))
}

/// What the firewall of a host has dropped so far, in packets.
pub fn dropped(site: &Site, host: &str) -> Result<u64> {
    let rules = site.host(host)?.call(&["nft", "list", "table", "inet", "firewall"])?;
    let counts: Vec<u64> =
        rules.lines().filter(|line| line.contains("comment \"dropped\"")).filter_map(count).collect();
    // The router counts what does not come through it, too.
    let wanted = if host == ROUTER { 2 } else { 1 };
    ensure!(
        counts.len() == wanted,
        "{host} has {} counters of what it drops, not {wanted}:\n{rules}",
        counts.len()
    );
    Ok(counts.iter().sum())
}

fn count(rule: &str) -> Option<u64> {
    rule.split_whitespace().skip_while(|word| *word != "packets").nth(1)?.parse().ok()
}

/// Below this the measure is the scheduler of a machine with few cores, not the site.
const FLOOR_MS: u64 = 10;
/// How often a flood that something else fell into is repeated.
const ATTEMPTS: usize = 3;

/// SYNs at that rate, so often that the site's own numbers can be told.
pub fn floods(site: &Site, short: bool, rate: u32) -> Result<String> {
    let all = [
        ("one source", "192.0.2.10:443", Some("198.51.100.99")),
        ("spoofed sources", "192.0.2.20:443", None),
        ("spoofed sources over IPv6", "[2001:db8:d::10]:443", None),
    ];
    let mut told = Vec::new();
    for (what, target, source) in &all[..if short { 2 } else { 3 }] {
        let mut seen = Vec::new();
        loop {
            let Looked { calm, under, sent } = flooded(site, what, target, *source, rate)?;
            seen.push(format!("{what} {under} ms ({sent}), without it {calm} ms"));
            if under <= 2 * calm.max(FLOOR_MS) {
                break;
            }
            // Something else that this machine did, perhaps: then it is not so every time.
            ensure!(
                seen.len() < ATTEMPTS,
                "99th percentile: {}; load average {}",
                seen.join("; "),
                super::report::load_average()
            );
        }
        told.extend(seen.pop());
    }
    Ok(format!(
        "99th percentile: {} (at most twice that without, or {} ms where that is more)",
        told.join("; "),
        2 * FLOOR_MS
    ))
}

/// The 99th percentile, in ms, without a flood (the worse of before and after) and under it, and how many SYNs that was
/// in which time.
struct Looked {
    calm: u64,
    under: u64,
    sent: String,
}

fn flooded(site: &Site, what: &str, target: &str, source: Option<&str>, rate: u32) -> Result<Looked> {
    let quiet = || {
        std::thread::sleep(Duration::from_secs(6));
        Ok(())
    };
    let calm = || look(site, "without a flood", quiet);
    let before = calm()?;
    let asked = rate.to_string();
    let mut words = vec!["flood", target, "--rate", &asked];
    if let Some(source) = source {
        words.extend(["--source", source]);
    }
    let mut sent = String::new();
    let under = look(site, what, || {
        let output = site.on_client(&words)?.wait_with_output()?;
        ensure!(output.status.success(), "the flood did not run");
        sent = String::from_utf8(output.stdout)?;
        Ok(())
    })?;
    let (count, seconds) = sent.trim().split_once(' ').context("no numbers of the flood")?;
    let got = count.parse::<f64>()? / seconds.parse::<f64>()?.max(0.1);
    let sent = format!("{count} SYNs in {seconds} s");
    // The flood steps back where the site wants the processor: on a busy machine it is slower than it was asked to be.
    let sent =
        if got < f64::from(rate) * 0.9 { format!("{sent}, {got:.0} a second: busy machine") } else { sent };
    // What else this machine did meanwhile counts for both.
    Ok(Looked {
        calm: if under > 2 * before.max(FLOOR_MS) { before.max(calm()?) } else { before },
        under,
        sent,
    })
}

/// The 99th percentile of requests on new connections, in ms, as long as something lasts. None may fail.
fn look(site: &Site, what: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<u64> {
    let load = Load::start(site, &["--simple", "--browsers", "3", "--think-ms", "30", "--seconds", "300"])?;
    meanwhile()?;
    let records = load.end()?;
    let all: Vec<&Record> = records.iter().collect();
    let failed = records.iter().filter(|r| !r.error.is_empty()).count();
    ensure!(failed == 0, "{what}: {failed} of {} requests failed: {}", records.len(), errors(&all));
    let lost: Vec<&Record> = records.iter().filter(|r| r.retried > 0).collect();
    ensure!(lost.is_empty(), "{what}: {} requests needed another connection: {}", lost.len(), retries(&lost));
    ensure!(records.len() > 100, "{what}: only {} requests", records.len());
    Ok(p99(records.iter().map(|r| r.millis).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read() {
        assert_eq!(count("\t\tcounter packets 1234 bytes 99 comment \"dropped\""), Some(1234));
        assert_eq!(count("\t\tcounter comment \"dropped\""), None);
    }
}
