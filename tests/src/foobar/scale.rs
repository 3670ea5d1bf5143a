//! Does a tier scale? Throughput with one, two and three web servers, each with a fraction of a core.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    chaos,
    host::Host,
    report,
    site::{BALANCERS, Site},
    stop,
};

/// Of one core, in percent: little, so that what answers is the limit and not this machine, on whose cores clients,
/// balancers and router are too.
const SHARE: u32 = 5;
/// In which a server may use its share, in microseconds. The kernel hands it out by 5 ms for each core, and up to a
/// millisecond of that is lost whenever a server waits: of a tenth of a second's share that would be a fifth.
const PERIOD: u32 = 250_000;
const SECONDS: u32 = 10;
/// One, two, three servers, and again: what else the machine does meanwhile befalls all alike. What was done in all rounds counts.
const ROUNDS: usize = 5;
/// Connections at once. Each goes to a server by chance: with few of them one server has nothing to do now and then,
/// although the others have a queue.
const CONNECTIONS: u32 = 120;
/// How far from proportion is in proportion: three servers do 2.8 times the work of one at least.
const TOLERANCE: f64 = 0.2 / 3.0;
const WEB: [&str; 3] = ["web1", "web2", "web3"];

/// A limit on a host's processor time; dropping it lifts it.
struct Limit(PathBuf);

impl Limit {
    fn on(site: &Site, host: &Host) -> Result<Self> {
        let dir = site.place().cgroup(host.name());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let limit = Self(dir);
        let (period, quota) = (PERIOD, PERIOD / 100 * SHARE);
        if limit.0.join("cpu.cfs_quota_us").exists() {
            fs::write(limit.0.join("cpu.cfs_period_us"), period.to_string())?;
            fs::write(limit.0.join("cpu.cfs_quota_us"), quota.to_string())?;
        } else {
            fs::write(limit.0.join("cpu.max"), format!("{quota} {period}"))
                .context("no CPU controller for cgroups here")?;
        }
        // The numbers that processes have outside of their host.
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
                .map(str::to_owned)
            else {
                continue;
            };
            let same =
                fs::read_link(format!("/proc/{pid}/ns/pid")).ok() == fs::read_link(host.pid_namespace()).ok();
            let nginx =
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "nginx");
            if same && nginx {
                fs::write(limit.0.join("cgroup.procs"), &pid)?;
            }
        }
        Ok(limit)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let parent = self.0.parent().map(|dir| dir.join("cgroup.procs"));
        if let (Ok(pids), Some(parent)) = (fs::read_to_string(self.0.join("cgroup.procs")), parent) {
            for pid in pids.lines() {
                let _ = fs::write(&parent, pid);
            }
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// Measures and draws; whether it grew in proportion.
pub fn scale(site: &Site, file: &Path) -> Result<bool> {
    chaos::without_web3(site)?;
    let limits: Vec<Limit> =
        WEB.iter().map(|name| Limit::on(site, &site.host(name)?)).collect::<Result<_>>()?;
    for balancer in BALANCERS {
        site.host(balancer)?.call(&["lbctl", "backend", "add", "www", "web3", "10.0.1.13"])?;
    }
    let average = report::load_average();
    let mut rounds = vec![Vec::new(); WEB.len()];
    let outcome = (0..ROUNDS * WEB.len()).try_for_each(|turn| {
        stop::check()?;
        let index = turn % WEB.len();
        rounds[index].push(measure(site, index + 1)?);
        anyhow::Ok(())
    });
    site.lbctl_both(&["reset", "www"])?;
    drop(limits);
    outcome?;
    let measured: Vec<f64> = rounds.iter().map(|rates| mean(rates)).collect();
    let times: Vec<f64> = measured.iter().map(|rate| rate / measured[0]).collect();
    println!("| Web servers | Connections a second | of one | rounds |\n|---:|---:|---:|---|");
    for (index, rate) in measured.iter().enumerate() {
        let all: Vec<String> = rounds[index].iter().map(|rate| format!("{rate:.0}")).collect();
        println!("| {} | {rate:.0} | {:.2} | {} |", index + 1, times[index], all.join(", "));
    }
    println!("\n{}", report::made_by("scale", &average));
    let proportional = times.iter().enumerate().all(|(index, times)| {
        let wanted = (index + 1) as f64;
        (times - wanted).abs() <= wanted * TOLERANCE
    });
    if proportional {
        fs::write(file, draw(&measured)).with_context(|| format!("cannot write {}", file.display()))?;
        println!("\n{}", file.display());
    } else {
        println!(
            "NOT in proportion (more than {:.0} % off): {} stays as it is",
            TOLERANCE * 100.0,
            file.display()
        );
    }
    Ok(proportional)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// New TLS connections a second with so many web servers.
fn measure(site: &Site, count: usize) -> Result<f64> {
    for (index, name) in WEB.iter().enumerate() {
        let verb = if index < count { "enable" } else { "disable" };
        site.lbctl_both(&["backend", verb, "www", name])?;
    }
    thread::sleep(Duration::from_secs(2));
    let said = site.host("client")?.call(&[
        // Before whatever else this machine does: the client is not what is measured.
        "nice",
        "-n",
        "-10",
        "wrk",
        "-t1",
        &format!("-c{CONNECTIONS}"),
        &format!("-d{SECONDS}s"),
        "--timeout",
        "15s",
        "-H",
        "Connection: close",
        "https://www.foobar.com/whoami",
    ])?;
    let rate = said
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))
        .and_then(|text| text.trim().parse().ok())
        .with_context(|| format!("wrk says {said}"))?;
    if rate < 1.0 {
        bail!("no throughput at all: {said}");
    }
    Ok(rate)
}

/// Bars, with what exact proportion would be as a line.
fn draw(rates: &[f64]) -> String {
    let (width, height, left, bottom) = (460.0, 300.0, 60.0, 250.0);
    let top = rates.iter().copied().fold(rates[0] * rates.len() as f64, f64::max) * 1.1;
    let y = |rate: f64| bottom - rate / top * 210.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{left}\" y=\"22\">New TLS connections a second, each web server with {SHARE} % of a core</text>\n"
    );
    for (index, rate) in rates.iter().enumerate() {
        let x = left + 20.0 + index as f64 * 125.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{:.1}\" width=\"80\" height=\"{:.1}\" fill=\"#2a6f97\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{rate:.0}</text>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} web server{}</text>",
            y(*rate),
            bottom - y(*rate),
            x + 40.0,
            y(*rate) - 5.0,
            x + 40.0,
            bottom + 18.0,
            index + 1,
            if index == 0 { "" } else { "s" }
        );
    }
    let last = left + 60.0 + (rates.len() - 1) as f64 * 125.0;
    let _ = writeln!(
        out,
        "<path d=\"M{:.1} {:.1} L{last:.1} {:.1}\" stroke=\"#c1121f\" stroke-dasharray=\"5 4\" fill=\"none\"/>\n\
         <text x=\"{left}\" y=\"{:.1}\" fill=\"#666\" font-size=\"11\">dashed: in exact proportion to the first. Made by: cargo xtask scenario foobar scale</text>\n\
         <path d=\"M{left} 40 V{bottom} H{:.1}\" stroke=\"#333\" fill=\"none\"/>\n</svg>",
        left + 60.0,
        y(rates[0]),
        y(rates[0] * rates.len() as f64),
        bottom + 40.0,
        width - 10.0
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rounds_count_alike() {
        assert_eq!(mean(&[3.0, 100.0, 2.0]), 35.0);
        assert_eq!(mean(&[]), 0.0);
    }

    #[test]
    fn the_picture_has_a_bar_for_each() {
        let picture = draw(&[50.0, 98.0, 151.0]);
        assert_eq!(picture.matches("fill=\"#2a6f97\"").count(), 3);
        assert!(picture.contains(">151<") && picture.contains("3 web servers"), "{picture}");
        assert!(!picture.contains("NaN"));
    }
}
