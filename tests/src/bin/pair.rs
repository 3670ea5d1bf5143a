//! The pair under faults: `pair failover` measures outages, beside keepalived's, `pair chaos`
//! whether its rules hold under random ones; `--help` tells what can be done.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lb_tests::failover::{bench, chaos};

/// The pair of balancers under faults
#[derive(Debug, Parser)]
#[command(name = "pair")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Outages under faults, lbd beside keepalived, as a table
    Failover(bench::Options),
    /// A random fault every few seconds, and whether the rules hold
    Chaos(chaos::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Failover(options) => bench::run(&options),
        Verb::Chaos(options) => chaos::run(&options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("pair: {error:#}");
        ExitCode::from(2)
    })
}
