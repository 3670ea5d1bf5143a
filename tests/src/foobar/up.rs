//! Bringing the site up, in the order in which one would build it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    host::{Host, examples, run},
    place::{HOSTS, PUBLIC, Place, ROUTER, ZONES},
    site::{BALANCERS, Site},
    wait_for,
};
use crate::{lab::bpf::XdpProgram, playground::Progress};

/// Everything starts on what may be two busy cores.
const PATIENCE: Duration = Duration::from_secs(120);

/// Brings everything up; what a failure leaves is taken away.
pub fn up(place: &Place) -> Result<Site> {
    if place.is_up() {
        bail!("{} is up already: `cargo xtask scenario foobar down` takes it away", place.name());
    }
    // What a killed one left.
    place.destroy()?;
    let begun = Instant::now();
    let progress = Progress::new(false);
    let made = steps(place, progress);
    if made.is_err() && std::env::var_os("LBD_SCENARIO_KEEP").is_none() {
        progress.step("taking everything away", || place.destroy())?;
    }
    if made.is_ok() {
        progress.line(&format!("up after {:.1} s", begun.elapsed().as_secs_f32()));
    }
    made
}

fn steps(place: &Place, progress: Progress) -> Result<Site> {
    progress.step("certificates and keys", || certificates(place))?;
    progress.step("hosts, cables and switches", || hosts(place))?;
    let site = Site::of(place);
    progress.step("addresses, routes and firewalls", || each(&site, network))?;
    progress.step("databases", || databases(&site))?;
    progress.step("services", || {
        each(&site, |host| if host.name().starts_with("db") { Ok(()) } else { host.start_services() })
    })?;
    fs::write(place.dir().join("up"), "")?;
    progress.step("the first answers", || first_answers(&site))?;
    Ok(site)
}

/// Something on each host, all at once.
fn each(site: &Site, work: impl Fn(&Host) -> Result<()> + Sync) -> Result<()> {
    let names: Vec<&str> = HOSTS.iter().map(|plan| plan.name).chain([ROUTER]).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| work(&site.host(name)?).with_context(|| (*name).to_owned())))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a step of a host panicked")))
    })
}

fn certificates(place: &Place) -> Result<()> {
    fs::create_dir_all(place.dir())?;
    run(Command::new(examples().join("make-certificates.sh")).arg(place.dir().join("pki")))?;
    // The key of the link between the balancers.
    let key = run(Command::new("openssl").args(["rand", "-base64", "32"]))?;
    let file = place.dir().join("pki/sync.keys");
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(file)?;
    file.write_all(key.as_bytes()).context("cannot write the key of the sync link")
}

/// Where lbd and lbctl of this build are: beside this program.
fn bin_dir() -> Result<PathBuf> {
    let dir = match std::env::var_os("LBD_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => std::env::current_exe()?.parent().context("this program is nowhere")?.to_owned(),
    };
    for program in ["lbd", "lbctl", "scenario"] {
        if !dir.join(program).exists() {
            bail!("there is no {program} in {}: `cargo xtask build`", dir.display());
        }
    }
    Ok(dir)
}

fn hosts(place: &Place) -> Result<()> {
    Host::lay_out(place, ROUTER, &bin_dir()?)?;
    Host::start(place, ROUTER)?;
    let router = place.namespace(ROUTER);
    for (number, zone) in ZONES.iter().enumerate() {
        // A router's card keeps its address whatever becomes of the hosts behind the switch; a bridge without one of its own
        // takes the lowest of its ports', and all who know the router by it lose it for a second when that port goes.
        let mac = format!("02:00:5e:00:53:{number:02x}");
        let words = ["-n", &router, "link", "add", zone, "address", &mac];
        let bridge = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"];
        run(Command::new("ip").args(words).args(bridge))?;
    }
    thread::scope(|scope| {
        let threads: Vec<_> =
            HOSTS.iter().map(|plan| scope.spawn(|| host(place, plan.name, plan.zone))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a host's start panicked")))
    })
}

/// A host with its files, its first process and its cable to the zone's switch.
pub fn host(place: &Place, name: &str, zone: &str) -> Result<()> {
    if !place.host_dir(name).join("etc").exists() {
        Host::lay_out(place, name, &bin_dir()?)?;
        let etc = place.host_dir(name).join("etc");
        let pki = place.dir().join("pki");
        // Who gets what: the key of the certificate goes to the web servers alone.
        let copies: &[(&str, &str)] = match zone {
            "web" => &[("www.foobar.com.pem", "nginx/tls"), ("www.foobar.com.key", "nginx/tls")],
            "lb" => &[("ca.pem", "lbd"), ("sync.keys", "lbd")],
            "public" => &[("ca.pem", "foobar")],
            _ => &[],
        };
        for (file, dir) in copies {
            fs::create_dir_all(etc.join(dir))?;
            fs::copy(pki.join(file), etc.join(dir).join(file))?;
        }
    }
    Host::start(place, name)?;
    cable(place, name, zone)
}

fn cable(place: &Place, name: &str, zone: &str) -> Result<()> {
    let (router, namespace) = (place.namespace(ROUTER), place.namespace(name));
    let port = format!("to-{name}");
    let words = [
        "-n", &router, "link", "add", &port, "mtu", "1600", "type", "veth", "peer", "name", "eth0", "netns",
        &namespace,
    ];
    run(Command::new("ip").args(words))?;
    run(Command::new("ip").args(["-n", &router, "link", "set", &port, "master", zone, "up"]))?;
    // A wire carries whole frames with their checksums: nothing is left to a card that is not there.
    for (namespace, port) in [(&router, port.as_str()), (&namespace, "eth0")] {
        let path = format!("--net=/run/netns/{namespace}");
        run(Command::new("nsenter").args([
            &path, "ethtool", "-K", port, "tx", "off", "tso", "off", "gso", "off", "rxvlan", "off", "txvlan",
            "off",
        ]))?;
    }
    // What XDP sends out of a veth arrives only where the other end has a program, too.
    let router = Host::find(place, ROUTER).context("no router")?;
    router.call(&["scenario", "foobar", "pass", &port]).map(|_| ())
}

/// On the router: attaches a program that passes everything, for as long as the router is there.
pub fn pass(port: &str) -> Result<()> {
    let pin = PathBuf::from(format!("/sys/fs/bpf/pass-{port}"));
    // A cable that was there before took its interface along.
    let _ = fs::remove_file(&pin);
    let link = XdpProgram::pass()?.attach_here(port).with_context(|| format!("no program on {port}"))?;
    link.pin(&pin).context("cannot pin it")
}

/// What a boot does before the services.
pub fn network(host: &Host) -> Result<()> {
    host.call(&["nft", "-f", "/etc/nftables.conf"])?;
    host.exec(
        "for f in all default; do
            sysctl -q -w net.ipv6.conf.$f.accept_dad=0 net.ipv6.conf.$f.accept_ra=0 net.ipv4.conf.$f.rp_filter=0
        done",
    )?;
    host.call(&["sh", "-e", "/etc/foobar/network.sh"]).map(|_| ())
}

fn databases(site: &Site) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = ["db1", "db2"]
            .map(|name| {
                scope.spawn(move || {
                    let host = site.host(name)?;
                    host.exec(
                        "/opt/foobar/install.sh >/var/log/foobar/install.log 2>&1 \
                         || { cat /var/log/foobar/install.log >&2; exit 1; }",
                    )?;
                    host.start_services()?;
                    await_database(&host)
                })
            })
            .into_iter()
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a database's start panicked")))
    })?;
    site.host("db1")?.exec("/opt/foobar/promote.sh; mariadb < /opt/foobar/site.sql")?;
    site.host("db2")?.exec("/opt/foobar/follow.sh 10.0.3.11")?;
    wait_for("replication", PATIENCE, || {
        site.sql("db2", "SELECT COUNT(*) FROM foobar.users")
            .map_err(|error| {
                let state = site.sql("db2", "SHOW SLAVE STATUS").unwrap_or_default();
                format!("{error:#}\n{state}")
            })
            .and_then(|rows| if rows == "1" { Ok(()) } else { Err(rows) })
    })?;
    Ok(())
}

/// Until a database server takes connections.
pub fn await_database(host: &Host) -> Result<()> {
    wait_for(&format!("MariaDB of {}", host.name()), PATIENCE, || {
        host.call(&["mariadb", "-e", "SELECT 1"]).map(|_| ()).map_err(|e| {
            let log = host.log("mariadb");
            let end: Vec<&str> = log.lines().rev().take(15).collect();
            format!("{e:#}\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"))
        })
    })
    .map(|_| ())
}

/// Until both balancers see what they should see, each has its address, and the site answers.
pub fn first_answers(site: &Site) -> Result<()> {
    for balancer in BALANCERS {
        wait_for(&format!("the backends of {balancer}"), PATIENCE, || settled(site, balancer))?;
    }
    for balancer in BALANCERS {
        wait_for(&format!("the link of {balancer}"), PATIENCE, || linked(site, balancer))?;
    }
    wait_for("each balancer with its own addresses", PATIENCE, || {
        let got: Vec<Vec<String>> = BALANCERS.iter().map(|b| site.masters(b).unwrap_or_default()).collect();
        if got == [vec!["public-a", "app"], vec!["public-b", "db"]] {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        }
    })?;
    for address in PUBLIC {
        let bracketed = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        wait_for(&format!("the site by {address}"), PATIENCE, || {
            let resolve = format!("www.foobar.com:443:{bracketed}");
            let got = site.curl(&["--resolve", &resolve, "https://www.foobar.com/app/whoami"]);
            got.map_err(|e| format!("{e:#}")).and_then(|t| if t.contains("app") { Ok(()) } else { Err(t) })
        })?;
    }
    wait_for("the site by name", PATIENCE, || {
        site.curl(&["https://www.foobar.com/whoami"]).map(|_| ()).map_err(|e| format!("{e:#}"))
    })?;
    Ok(())
}

/// Whether a balancer has its link to the other one, with heartbeats, and both are configured alike.
pub fn linked(site: &Site, balancer: &str) -> Result<(), String> {
    let host = site.host(balancer).map_err(|e| format!("{e:#}"))?;
    let said = host.call(&["lbctl", "pair"]).map_err(|e| format!("{e:#}"))?;
    let other = BALANCERS.iter().find(|name| **name != balancer).copied().unwrap_or_default();
    let well = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some(other) && words.any(|word| word == "yes") && line.contains("the same")
    };
    if said.lines().any(well) { Ok(()) } else { Err(said) }
}

/// Whether a balancer sees every server up that should be, the primary alone as the one for writes.
fn settled(site: &Site, balancer: &str) -> Result<(), String> {
    for (service, up) in [
        ("www", &["web1", "web2"][..]),
        ("www-http", &["web1", "web2"]),
        ("app", &["app1", "app2"]),
        ("db-write", &["db1"]),
        ("db-read", &["db1", "db2"]),
    ] {
        let health = site.health(balancer, service).map_err(|e| format!("{e:#}"))?;
        let seen: Vec<&str> = health.iter().filter(|(_, h)| *h == "up").map(|(n, _)| n.as_str()).collect();
        if seen != up {
            return Err(format!("{service}: {health:?}"));
        }
    }
    Ok(())
}
