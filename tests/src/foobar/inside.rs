//! Each host's own firewall, asked by those whom the router's does not keep away: neighbours in the same zone, the router
//! itself, and mon, which may ask more than others.
//!
//! A port behind a firewall is silent. One that answers, be it with a refusal because no program listens there, was let
//! through: that is how a firewall that accepts everything is told from one that drops, also where hardly anything runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{
    outside,
    place::{HOSTS, ROUTER, ROUTER_ADDRESSES},
    site::Site,
};

/// What this site uses, and what machines have open now and then.
const PORTS: &str =
    "21,22,25,53,80,111,443,2379,3306,4567,8000,8080,8081,8443,9000,9090,9100,9104,9113,9750,9760,33060";
/// Long enough for a SYN that was lost to be sent again.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Sockets at once.
const AT_ONCE: usize = 400;

#[derive(Args)]
pub struct Options {
    /// Hosts, by their addresses
    #[arg(required = true)]
    addresses: Vec<IpAddr>,
    #[arg(long, value_delimiter = ',', required = true)]
    ports: Vec<u16>,
}

/// Prints a line `ADDRESS PORT ANSWER` for each TCP port that is not silent: `open`, `refused`, or what else befell it.
pub fn run(options: &Options) -> Result<()> {
    let all: Vec<SocketAddr> = options
        .addresses
        .iter()
        .flat_map(|address| options.ports.iter().map(|port| SocketAddr::new(*address, *port)))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for part in all.chunks(AT_ONCE) {
            let mut tasks = JoinSet::new();
            for to in part.iter().copied() {
                tasks.spawn(async move { (to, timeout(PATIENCE, TcpStream::connect(to)).await) });
            }
            while let Some(done) = tasks.join_next().await {
                let (to, answer) = done.context("a question panicked")?;
                let word = match answer {
                    Err(_) => continue,
                    Ok(Ok(_)) => "open".to_owned(),
                    Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => continue,
                    Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => "refused".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                };
                println!("{} {} {word}", to.ip(), to.port());
            }
        }
        anyhow::Ok(())
    })
}

/// From whom to whom, what is open there for that one, and what is admitted although nobody listens there in this
/// picture, as `ADDRESS PORT`.
struct Way {
    from: &'static str,
    to: &'static str,
    open: &'static [&'static str],
    admitted: BTreeSet<String>,
}

const fn way(from: &'static str, to: &'static str, open: &'static [&'static str]) -> Way {
    Way { from, to, open, admitted: BTreeSet::new() }
}

/// Prometheus asks each role's exporter, and whoever administers the servers comes by mon with SSH.
fn from_mon() -> impl Iterator<Item = Way> {
    let open: [(&str, &[&str]); 11] = [
        (ROUTER, &[]),
        ("dns", &["203.0.113.53 53", "2001:db8:53::53 53"]),
        ("lb1", &["10.0.0.2 9750"]),
        ("lb2", &["10.0.0.3 9750"]),
        ("web1", &["10.0.1.11 9113"]),
        ("web2", &["10.0.1.12 9113"]),
        ("web3", &["10.0.1.13 9113"]),
        ("app1", &["10.0.2.11 8080"]),
        ("app2", &["10.0.2.12 8080"]),
        ("db1", &["10.0.3.11 9104"]),
        ("db2", &["10.0.3.12 9104"]),
    ];
    open.into_iter().map(|(to, open)| {
        let mut admitted: BTreeSet<String> =
            addresses(to).iter().map(|address| format!("{address} 22")).collect();
        // By its own rules at each address over IPv4; lbd listens at one.
        admitted.extend(match to {
            "lb1" => Some("192.0.2.2 9750".to_owned()),
            "lb2" => Some("192.0.2.3 9750".to_owned()),
            _ => None,
        });
        Way { admitted, ..way("mon", to, open) }
    })
}

/// What the files `nftables.conf` of the hosts admit from neighbours, as `ADDRESS PORT`.
const NEIGHBOURS: [Way; 9] = [
    way("web1", "web2", &[]),
    way("web2", "web3", &[]),
    way("web3", "web1", &[]),
    way("app1", "app2", &[]),
    way("app2", "app1", &[]),
    way("db1", "db2", &["10.0.3.12 3306"]),
    way("db2", "db1", &["10.0.3.11 3306"]),
    way("lb1", "lb2", &["10.0.0.3 9760"]),
    way("lb2", "lb1", &["10.0.0.2 9760"]),
];

/// Asks all of them; whether what is open is what should be, and nothing else is even refused.
pub fn firewalls(site: &Site) -> Result<String> {
    let from_router = HOSTS.iter().map(|plan| {
        let open: &[&str] = if plan.name == "dns" { &["203.0.113.53 53", "2001:db8:53::53 53"] } else { &[] };
        way(ROUTER, plan.name, open)
    });
    // Its neighbours are all others; one will do, as its rules name none.
    let ways: Vec<Way> =
        from_router.chain(NEIGHBOURS).chain([way("web1", ROUTER, &[])]).chain(from_mon()).collect();
    let mut asked = 0;
    // Those who ask at the same time ask different hosts: what a host drops meanwhile is the answer to one of them.
    let mut left: Vec<&Way> = ways.iter().collect();
    while !left.is_empty() {
        let mut targets = BTreeSet::new();
        let (now, later): (Vec<&Way>, Vec<&Way>) = left.into_iter().partition(|way| targets.insert(way.to));
        left = later;
        asked += thread::scope(|scope| {
            let threads: Vec<_> = now.iter().map(|way| scope.spawn(move || ask(site, way))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a question panicked")))
                .sum::<Result<usize>>()
        })?;
    }
    Ok(format!(
        "{asked} ports asked on {} ways, from neighbours, the router and mon: open are {}; mon's SSH is admitted; all others \
         are silent, and were dropped",
        ways.len(),
        ways.iter()
            .flat_map(|way| way.open)
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join(", ")
    ))
}

fn addresses(host: &str) -> &'static [&'static str] {
    if host == ROUTER {
        return &ROUTER_ADDRESSES;
    }
    HOSTS.iter().find(|plan| plan.name == host).map_or(&[], |plan| plan.addresses)
}

/// How many ports were asked.
fn ask(site: &Site, way: &Way) -> Result<usize> {
    let Way { from, to, .. } = way;
    let addresses = addresses(to);
    let asked = addresses.len() * PORTS.split(',').count();
    // What comes from mon has to pass the router first.
    let drop = || {
        let there = outside::dropped(site, to)?;
        anyhow::Ok(if *from == "mon" && *to != ROUTER {
            there + outside::dropped(site, ROUTER)?
        } else {
            there
        })
    };
    let before = drop()?;
    let output = site.on(from, &[&["knock", "--ports", PORTS], addresses].concat())?.wait_with_output()?;
    ensure!(output.status.success(), "{from} could not ask {to}");
    let dropped = drop()?.saturating_sub(before);
    let said = String::from_utf8(output.stdout)?;
    verdict(&said, way, asked, dropped).with_context(|| format!("from {from} to {to}"))?;
    Ok(asked)
}

fn verdict(said: &str, way: &Way, asked: usize, dropped: u64) -> Result<()> {
    let mut answers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in said.lines() {
        let port = line.match_indices(' ').nth(1).map(|(at, _)| at).context("a line without an answer")?;
        answers.entry(line[port + 1..].trim()).or_default().insert(&line[..port]);
    }
    let found = answers.remove("open").unwrap_or_default();
    let wanted: BTreeSet<&str> = way.open.iter().copied().collect();
    ensure!(found == wanted, "open are {found:?}, and should be {wanted:?}");
    let mut refused = answers.remove("refused").unwrap_or_default();
    let admitted = refused.len();
    for port in &way.admitted {
        ensure!(refused.remove(port.as_str()), "{port} should be admitted, and is not");
    }
    ensure!(refused.is_empty(), "the firewall lets through {refused:?}, which should be dropped");
    ensure!(answers.is_empty(), "these were not reached: {answers:?}");
    // A question that got lost on the way proves nothing.
    let silent = asked - found.len() - admitted;
    ensure!(
        dropped >= u64::try_from(silent)?,
        "{silent} ports are silent, but only {dropped} packets were dropped there"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firewall_is_open_where_it_should_be_and_drops_the_rest() {
        let db2 = || way("db1", "db2", &["10.0.3.12 3306"]);
        let none = || way("web1", "web2", &[]);
        let ssh = Way { admitted: BTreeSet::from(["10.0.3.12 22".to_owned()]), ..none() };
        assert!(verdict("10.0.3.12 3306 open\n", &db2(), 10, 9).is_ok());
        assert!(verdict("", &db2(), 10, 10).is_err(), "closed");
        assert!(verdict("10.0.3.12 22 open\n", &none(), 10, 9).is_err(), "open");
        assert!(
            verdict("10.0.3.12 22 refused\n", &none(), 10, 9).is_err(),
            "accepted, though nobody listens"
        );
        assert!(verdict("10.0.3.12 22 refused\n", &ssh, 10, 9).is_ok());
        assert!(verdict("", &ssh, 10, 10).is_err(), "nobody comes in");
        assert!(verdict("10.0.3.12 22 No route to host (os error 113)\n", &none(), 10, 10).is_err());
        assert!(verdict("", &none(), 10, 9).is_err(), "one got lost");
    }
}
