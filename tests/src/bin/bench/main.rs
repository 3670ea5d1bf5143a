//! What a packet costs: the balancer's path against a floor that parses Ethernet, IP and ports, swaps the MAC
//! addresses and sends back, both through `BPF_PROG_TEST_RUN`. Needs root.
//!
//! Time is the kernel's own figure, in whole nanoseconds a packet, rounded down. A clock around the system call
//! would be finer, but a run of more than one packet makes the kernel rewrite its XDP dispatcher and wait for a grace
//! period, some 10 to 20 ms that vary by more than what is measured; and the kernel stops its clock when it gives
//! the CPU away in between, so that its figure holds on a busy machine. The fraction comes back over the rounds:
//! a figure is their median, interpolated as one does with values in classes of a width of one.
//!
//! Path and floor of a scenario follow each other in every round, in either order by turns, so that whatever slows
//! the machine down slows both. The path pays for undoing its outer header, of which the floor has none: ratios of the
//! tunnel modes err against the balancer.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod fixture;
mod frames;

use anyhow::{Context as _, ensure};
use clap::Parser;
use fixture::Fixture;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};

/// Measures what a packet costs in the balancer's XDP program
#[derive(Debug, Parser)]
struct Args {
    /// Also write the rows to FILE, as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds that count, after one that does not
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Packets per scenario and round
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    packets: u32,
    /// Only scenarios with this in their name
    #[arg(long, value_name = "SUBSTRING")]
    only: Option<String>,
    /// A fifth of the rounds, for a first look
    #[arg(long)]
    quick: bool,
    /// Exit with status 1 where a bar is missed
    #[arg(long)]
    assert: bool,
}

/// How the packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Dsr,
    Ipip,
    Gue,
    /// The destination rewritten.
    Nat,
    /// A reply of a `nat` backend: the source rewritten back.
    NatBack,
    /// To the kernel: the address is no VIP.
    Pass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Syn,
    Udp,
}

/// Flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flows {
    One,
    Many(u32),
    /// Every packet its own.
    New,
    /// Every packet from anywhere in the address space.
    Random,
}

/// What a figure must not exceed.
#[derive(Clone, Copy, Debug)]
enum Bar {
    /// Times the floor.
    Floor(f64),
    /// Times the figure of the same scenario with one flow.
    OneFlow(f64),
    /// Times the floor, more than the same packets without the firewall.
    Added(f64),
}

#[derive(Clone, Debug)]
struct Scenario {
    name: String,
    v6: bool,
    transport: Transport,
    mode: Mode,
    flows: Flows,
    /// With a deny list of 100,000 prefixes.
    firewall: bool,
    bar: Option<Bar>,
}

/// A row of the output.
#[derive(Debug, Serialize)]
struct Row {
    scenario: String,
    ns_per_packet: f64,
    floor_ns: f64,
    ratio: f64,
}

const MANY: f64 = 1.8;
/// Suffix of a scenario with a deny list.
const FIREWALL: &str = "-firewall-100000-prefixes";

fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut add = |v6: bool, transport: Transport, mode: Mode, flows: Flows, bar: Option<Bar>| {
        let family = if v6 { "ipv6" } else { "ipv4" };
        let transport_name = match transport {
            Transport::Tcp => "tcp",
            Transport::Syn => "tcp-syn",
            Transport::Udp => "udp",
        };
        let mode_name = match mode {
            Mode::Dsr => "dsr",
            Mode::Ipip => "ipip",
            Mode::Gue => "gue",
            Mode::Nat => "nat",
            Mode::NatBack => "nat-back",
            Mode::Pass => "no-vip",
        };
        let flows_name = match flows {
            Flows::One => "1-flow".to_owned(),
            Flows::Many(n) => format!("{n}-flows"),
            Flows::New => "new-flows".to_owned(),
            Flows::Random => "random-sources".to_owned(),
        };
        let name = format!("{family}-{transport_name}-{mode_name}-{flows_name}");
        all.push(Scenario { name, v6, transport, mode, flows, firewall: false, bar });
    };
    let (one, many, new) = (Some(Bar::Floor(3.8)), Some(Bar::Floor(4.5)), Some(Bar::Floor(4.8)));
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue] {
        add(false, Transport::Tcp, mode, Flows::One, one);
        add(false, Transport::Tcp, mode, Flows::Many(100_000), many);
        add(false, Transport::Tcp, mode, Flows::Many(1_000_000), many);
    }
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue] {
        add(true, Transport::Tcp, mode, Flows::One, many);
        add(true, Transport::Tcp, mode, Flows::Many(1_000_000), Some(Bar::OneFlow(MANY)));
    }
    for mode in [Mode::Dsr, Mode::Ipip] {
        add(false, Transport::Udp, mode, Flows::One, one);
        add(false, Transport::Udp, mode, Flows::Many(1_000_000), many);
        add(false, Transport::Syn, mode, Flows::New, new);
    }
    let nat = Some(Bar::Floor(5.0));
    add(false, Transport::Tcp, Mode::Nat, Flows::One, nat);
    add(false, Transport::Tcp, Mode::Nat, Flows::Many(1_000_000), nat);
    add(false, Transport::Tcp, Mode::NatBack, Flows::One, nat);
    add(false, Transport::Tcp, Mode::Pass, Flows::One, Some(Bar::Floor(2.1)));
    add(true, Transport::Tcp, Mode::Pass, Flows::One, Some(Bar::Floor(2.1)));
    add(false, Transport::Tcp, Mode::Dsr, Flows::Random, None);
    let unguarded = all.last().cloned();
    all.extend(unguarded.map(|scenario| Scenario {
        name: format!("{}{FIREWALL}", scenario.name),
        firewall: true,
        bar: Some(Bar::Added(2.0)),
        ..scenario
    }));
    all
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Fewer packets would not do: filling the caches would weigh more in each run.
    let rounds = if args.quick { args.rounds.div_ceil(5) } else { args.rounds };
    let packets = args.packets;
    let scenarios: Vec<Scenario> = scenarios()
        .into_iter()
        .filter(|s| args.only.as_deref().is_none_or(|part| s.name.contains(part)))
        .collect();
    ensure!(!scenarios.is_empty(), "no scenario's name contains '{}'", args.only.as_deref().unwrap_or(""));
    let cpu = pin_to_one_cpu()?;
    let mut fixture = Fixture::new()?;
    println!("{}", fixture.describe());
    for scenario in &scenarios {
        fixture.verify(scenario).with_context(|| {
            format!("no figures: scenario {} does not do what its name says", scenario.name)
        })?;
    }
    println!(
        "verified {} scenarios; measuring {rounds} rounds of {packets} packets on CPU {cpu}\n",
        scenarios.len()
    );
    let mut samples = vec![(Vec::new(), Vec::new()); scenarios.len()];
    for round in 0..=rounds {
        for (scenario, (path, floor)) in scenarios.iter().zip(&mut samples) {
            let sample = fixture.measure(scenario, packets, round % 2 == 0)?;
            // The first round warms up.
            if round > 0 {
                path.push(sample.ns);
                floor.push(sample.floor_ns);
            }
        }
    }
    let rows: Vec<Row> = scenarios
        .iter()
        .zip(samples)
        .map(|(scenario, (path, floor))| {
            let (ns, floor) = (median(path), median(floor));
            Row {
                scenario: scenario.name.clone(),
                ns_per_packet: round(ns, 2),
                floor_ns: round(floor, 2),
                ratio: round(ns / floor, 3),
            }
        })
        .collect();
    let missed = print(&scenarios, &rows);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if args.assert && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the table, and gives the number of bars missed.
fn print(scenarios: &[Scenario], rows: &[Row]) -> usize {
    let mut missed = 0;
    println!("{:30} {:>12} {:>9} {:>7}  bar", "scenario", "ns/packet", "floor ns", "ratio");
    for (scenario, row) in scenarios.iter().zip(rows) {
        let judged = scenario.bar.and_then(|bar| match bar {
            Bar::Floor(limit) => Some((row.ratio, limit, "the floor")),
            Bar::OneFlow(limit) => {
                let name = one_flow(&scenario.name)?;
                let one = rows.iter().find(|r| r.scenario == name)?;
                Some((row.ns_per_packet / one.ns_per_packet, limit, "one flow"))
            }
            Bar::Added(limit) => {
                let name = scenario.name.strip_suffix(FIREWALL)?;
                let without = rows.iter().find(|r| r.scenario == name)?;
                Some(((row.ns_per_packet - without.ns_per_packet) / row.floor_ns, limit, "the floor added"))
            }
        });
        let verdict = judged.map_or_else(String::new, |(ratio, limit, of)| {
            let pass = ratio <= limit;
            missed += usize::from(!pass);
            format!("{ratio:.2}x {of}, at most {limit}x: {}", if pass { "pass" } else { "MISSED" })
        });
        let line = format!(
            "{:30} {:>12.1} {:>9.1} {:>6.2}x  {verdict}",
            row.scenario, row.ns_per_packet, row.floor_ns, row.ratio
        );
        println!("{}", line.trim_end());
    }
    missed
}

/// The scenario of the same packets with one flow.
fn one_flow(name: &str) -> Option<String> {
    let (stem, _) = name.strip_suffix("-flows")?.rsplit_once('-')?;
    Some(format!("{stem}-1-flow"))
}

/// The last CPU this process may use: the first ones are given the most interrupts.
fn pin_to_one_cpu() -> anyhow::Result<usize> {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me).context("cannot read the CPU affinity")?;
    let cpu = (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .context("no CPU is allowed")?;
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(me, &one).with_context(|| format!("cannot stay on CPU {cpu}"))?;
    Ok(cpu)
}

/// The median of values that were rounded down: within its class of a width of one, where it falls by the
/// share of values below.
fn median(mut values: Vec<u32>) -> f64 {
    values.sort_unstable();
    let class = values[values.len() / 2];
    let below = values.partition_point(|v| *v < class) as f64;
    let within = values.partition_point(|v| *v <= class) as f64 - below;
    f64::from(class) + (values.len() as f64 / 2.0 - below) / within
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_of_classes_has_a_fraction() {
        assert!((median(vec![7; 5]) - 7.5).abs() < 1e-9);
        // Three of four lie in 8 to 9: the half of the sample is a third into it.
        assert!((median(vec![8, 7, 8, 8]) - (8.0 + 1.0 / 3.0)).abs() < 1e-9);
        assert!((median(vec![1, 2, 3, 4]) - 3.0).abs() < 1e-9);
        assert!((median(vec![900, 7, 8]) - 8.5).abs() < 1e-9);
    }

    #[test]
    fn names_are_distinct_and_every_bar_finds_its_scenario() {
        let all = scenarios();
        for (i, scenario) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other.name != scenario.name));
            if let Some(Bar::OneFlow(_)) = scenario.bar {
                let one = one_flow(&scenario.name).unwrap();
                assert!(all.iter().any(|other| other.name == one), "{one}");
            }
            if let Some(Bar::Added(_)) = scenario.bar {
                let without = scenario.name.strip_suffix(FIREWALL).unwrap();
                assert!(all.iter().any(|other| other.name == without), "{without}");
            }
        }
    }
}
