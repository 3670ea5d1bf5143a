//! `cargo xtask bench failover`: outages of lbd and keepalived under the same faults, by turns.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;

use super::{
    nodes::{self, Fault, Keepalived, Lbd, PATIENCE, PORT, Pair, VIP},
    prober::{Outage, Prober, Way, aside, punctual},
    report::{Bars, Row, table},
    watch::Watcher,
};
use crate::{
    echo,
    lab::{Netns, Topology, wait_until},
    skip::find_tool,
};

const PERIOD: Duration = Duration::from_millis(1);
/// A run in which the prober itself was later than this around the outage says too little, and is repeated.
const PUNCTUAL: Duration = Duration::from_millis(2);
/// So often at most; then what the prober was late by is taken off.
const ATTEMPTS: usize = 3;
/// How long an ARP answer may take.
const ARP_WAIT: Duration = Duration::from_millis(50);
/// Addresses are announced again no more often than once a second: so long a router may believe the wrong node.
const ANNOUNCED: Duration = Duration::from_millis(1500);

/// Outages of a pair under faults, lbd beside keepalived
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Interval of the advertisements; may be given several times
    #[arg(long = "interval", value_parser = interval, default_values = ["10ms", "100ms"])]
    pub intervals: Vec<Duration>,
    /// Runs of each fault that count
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Also write the rows to FILE, as a JSON array
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// One of the two products
    #[arg(long, value_parser = ["lbd", "keepalived"])]
    pub only: Option<String>,
    /// Only this fault; may be given several times
    #[arg(long = "fault", value_name = "NAME")]
    pub faults: Vec<Fault>,
    /// Without the sync link between both lbd
    #[arg(long)]
    pub no_sync: bool,
    /// Exit with status 1 where a bar is missed
    #[arg(long)]
    pub assert: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 1000),
        (None, None) => return Err(format!("found '{text}'; expected a duration such as 10ms or 1s")),
    };
    let ms = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .filter(|ms| (10..=40_950).contains(ms) && ms % 10 == 0);
    ms.map(Duration::from_millis).ok_or_else(|| {
        format!("found '{text}'; expected 10ms to 40.95s in hundredths of a second, as VRRP has them")
    })
}

/// Measures, prints the table, and says whether all bars hold.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    let rows = measure(options, &mut |line| eprintln!("{line}"))?;
    print(&table(&rows));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let missed = Bars { linked: !options.no_sync, ..Bars::default() }.missed(&rows);
    missed.iter().for_each(|line| print(&format!("MISSED: {line}\n")));
    Ok(if options.assert && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn print(text: &str) {
    print!("{text}");
}

/// All rows, in the order of faults; progress goes to `tell`.
pub fn measure(options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let faults =
        if options.faults.is_empty() { Fault::value_variants().to_vec() } else { options.faults.clone() };
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    ensure!(
        !wanted("keepalived") || find_tool("keepalived").is_some(),
        "keepalived is not installed: `cargo xtask setup test`, or `--only lbd`"
    );
    let mut rows = Vec::new();
    for &interval in &options.intervals {
        let begun = Instant::now();
        // Each product has a network of its own, so that neither hears the other.
        let networks = [nodes::network()?, nodes::network()?];
        let [one, two] = &networks;
        let _servers = [servers(one)?, servers(two)?];
        let mut pairs: Vec<(Box<dyn Pair + '_>, Watcher)> = Vec::new();
        if wanted("lbd") {
            pairs.push((Box::new(Lbd::start(one, interval, !options.no_sync)?), Watcher::join(one, "br0")?));
        }
        if wanted("keepalived") {
            pairs.push((Box::new(Keepalived::start(two, interval)?), Watcher::join(two, "br0")?));
        }
        for &fault in &faults {
            let mut of_fault: Vec<Vec<Row>> = pairs
                .iter()
                .filter(|(pair, _)| fault != Fault::Failover || pair.name() == "lbd")
                .map(|(pair, _)| empty(fault, interval, pair.name()))
                .collect();
            for run in 1..=options.runs {
                for ((pair, watcher), rows) in pairs.iter_mut().zip(&mut of_fault) {
                    one_run(pair.as_mut(), watcher, fault, interval, rows).with_context(|| {
                        format!("{} at {interval:?}, {}, run {run}", fault.name(), pair.name())
                    })?;
                }
            }
            let new: Vec<Row> = of_fault.into_iter().flatten().collect();
            let figures: Vec<String> =
                new.iter().map(|r| format!("{} {} {:.1}", r.product, r.probe, r.median_ms)).collect();
            tell(&format!(
                "{:>6.1?} {interval:?} {}: {} ms",
                begun.elapsed(),
                fault.name(),
                figures.join(", ")
            ));
            rows.extend(new);
        }
    }
    Ok(rows)
}

fn servers(topology: &Topology) -> Result<Vec<echo::Server>> {
    // A busy machine would keep an ordinary thread waiting, and that is no outage.
    let server =
        |node: &crate::lab::Node| echo::udp_echo_after(&node.ns, &node.name, VIP.into(), PORT, punctual);
    Ok(topology.backends.iter().map(server).collect::<crate::lab::Result<_>>()?)
}

fn empty(fault: Fault, interval: Duration, product: &'static str) -> Vec<Row> {
    let probes: &[&'static str] = if product == "lbd" { &["address", "service"] } else { &["address"] };
    probes
        .iter()
        .map(|probe| Row {
            fault,
            interval_ms: interval.as_millis() as u64,
            product,
            probe,
            median_ms: 0.0,
            max_ms: 0.0,
            outages_ms: Vec::new(),
            lost: 0,
            two_answer: 0,
            stuck: 0,
            disturbed: 0,
        })
        .collect()
}

fn one_run(
    pair: &mut dyn Pair,
    watcher: &Watcher,
    fault: Fault,
    interval: Duration,
    rows: &mut [Row],
) -> Result<()> {
    for attempt in 1..=ATTEMPTS {
        let Some(blow) = strike(pair, watcher, fault, interval)? else {
            ensure!(attempt < ATTEMPTS, "the first node did not stay master long enough to be struck");
            rows.iter_mut().for_each(|row| row.disturbed += 1);
            continue;
        };
        rows.iter_mut().for_each(|row| row.stuck += usize::from(blow.stuck));
        let late = blow.outages.iter().map(|outage| outage.late).max().unwrap_or_default();
        if late > PUNCTUAL && attempt < ATTEMPTS {
            rows.iter_mut().for_each(|row| row.disturbed += 1);
            continue;
        }
        for (row, outage) in rows.iter_mut().zip(blow.outages) {
            // A node that starts on this very machine stops all of its CPUs for tens of milliseconds at times, the prober's among
            // them; on a host of its own it does not.
            row.outage(if late > PUNCTUAL { outage.sure() } else { outage.length });
            row.lost += outage.lost;
            row.two_answer += usize::from(blow.two);
        }
        return Ok(());
    }
    Ok(())
}

/// What one fault and its repair did.
struct Blow {
    /// In the order of the rows.
    outages: Vec<Outage>,
    /// Both nodes answered afterwards.
    two: bool,
    /// The router went on sending to the backup after the repair before.
    stuck: bool,
}

/// One fault and its repair; `None` where the fault could not happen, since the pair had changed hands by itself.
fn strike(pair: &mut dyn Pair, watcher: &Watcher, fault: Fault, interval: Duration) -> Result<Option<Blow>> {
    nodes::settle(pair, watcher)?;
    let stuck = unstick(pair.topology())?;
    if fault == Fault::Preempt {
        pair.signal(0, nix::sys::signal::Signal::SIGTERM);
        pair.reap(0)?;
        let other = &pair.topology().lb[1];
        wait_until("lb2 alone has the address", PATIENCE, || {
            watcher.is_sole(other, VIP, ARP_WAIT).unwrap_or(false)
        })?;
    }
    let client: Netns = pair.topology().client.ns.clone();
    let mut ways = vec![Way::Ping(VIP.into())];
    if pair.name() == "lbd" {
        ways.push(Way::Udp(SocketAddr::new(VIP.into(), PORT)));
    }
    let probers =
        ways.iter().map(|way| Prober::start(&client, *way, PERIOD)).collect::<std::io::Result<Vec<_>>>()?;
    wait_until("answers before the fault", PATIENCE, || probers.iter().all(|p| p.answers() >= 100))?;
    if !aside(|| nodes::strike(pair, fault))? {
        return Ok(None);
    }
    // Three intervals and the skew, and once more as much; where the good node returns it is its own start that takes time.
    std::thread::sleep(interval * 5 + Duration::from_millis(300));
    wait_until("answers after the fault", PATIENCE, || {
        probers.iter().all(|p| p.silence() < Duration::from_millis(10))
    })?;
    if fault == Fault::Preempt {
        nodes::settle(pair, watcher)?;
    }
    let two = watcher.ask(&[VIP], ARP_WAIT)?[0].len() > 1;
    let outages = probers.into_iter().map(|prober| prober.stop().outage(PERIOD)).collect();
    nodes::mend(pair, fault)?;
    Ok(Some(Blow { outages, two, stuck }))
}

/// Whether the router goes on sending to the second node, although the first one alone has the address; then it is made to
/// ask again, since else the next fault would hit nobody.
fn unstick(topology: &Topology) -> Result<bool> {
    let router = &topology.router;
    let port = &router.interfaces[0].name;
    let [.., last] = topology.lb[1].interfaces[0].mac;
    let learnt = || {
        let asked = router.ns.exec("ip", &["neigh", "show", &VIP.to_string(), "dev", port]);
        asked.is_ok_and(|shown| !shown.contains(&format!(":{last:02x} ")))
    };
    let stuck = wait_until("the router's knowledge", ANNOUNCED, learnt).is_err();
    if stuck {
        router.ns.ip(&format!("neigh del {VIP} dev {port}\n"))?;
    }
    Ok(stuck)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_vrrp() {
        assert_eq!(interval("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(interval("1s"), Ok(Duration::from_secs(1)));
        for bad in ["", "5ms", "15ms", "41s", "10", "ms", "-1s", "1m"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
