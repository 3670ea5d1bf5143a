//! `cargo xtask scenario foobar`: www.foobar.com, a whole site on this machine, each server a namespace of its own.
//!
//! What the servers are is in `examples/foobar`, plain files that go to real servers as they are. What is here brings
//! them up ([`up`]), breaks them and looks ([`points`], [`chaos`]), and takes everything away. A server is a container of
//! the kernel's namespaces (network, mounts, processes, name) with an init ([`init`]): when that ends, all of it is gone.
#![expect(clippy::print_stdout, reason = "a command line speaks on its standard output")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

mod attack;
mod browser;
mod chaos;
mod host;
mod init;
mod inside;
mod load;
mod outside;
mod place;
mod points;
mod probe;
mod report;
mod scale;
mod site;
mod stop;
mod up;
mod verdict;
mod wire;

/// Holds the tables of the last good runs, between comments that say whose they are.
const DOCS: &str = "docs/tutorial.md";

#[derive(Parser)]
#[command(
    name = "scenario",
    bin_name = "cargo xtask scenario",
    about = "Whole sites built on the load balancer"
)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// www.foobar.com: two balancers, web, application and database servers, DNS, firewalls, monitoring
    Foobar {
        /// Names of the namespaces begin with it
        #[arg(long, global = true, default_value = "foobar", value_parser = place::name)]
        name: String,
        #[command(subcommand)]
        verb: Verb,
    },
}

#[derive(Subcommand)]
enum Verb {
    /// Bring everything up
    Up,
    /// Who runs, who serves, who is master
    Status,
    /// Run a command on a host, for example `exec lb1 lbctl status`
    Exec {
        host: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Prove what the site promises; a table tells what was found. Brings it up where it is not, and then down again
    Test {
        /// Under six minutes: fewer requests, fewer ports
        #[arg(long)]
        short: bool,
        /// Only promises with this text in their names, for example "floods"
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// SYNs a second of the floods
        #[arg(long, default_value_t = 20_000, value_name = "RATE")]
        flood_rate: u32,
        /// Directory for the screenshot and the records
        #[arg(long)]
        keep: Option<PathBuf>,
        /// The document whose table a whole run with all promises kept replaces
        #[arg(long, default_value = DOCS)]
        docs: PathBuf,
    },
    /// Break everything once, under load, and count who noticed
    Chaos {
        /// Directory for the table and the records
        #[arg(long)]
        keep: Option<PathBuf>,
        /// The document whose table a run that went as promised replaces
        #[arg(long, default_value = DOCS)]
        docs: PathBuf,
    },
    /// Throughput with one, two, three web servers, drawn as SVG
    Scale {
        /// The picture
        #[arg(default_value = "docs/foobar-scale.svg")]
        file: PathBuf,
    },
    /// Take everything away, whatever is left of it
    Down,
    /// The first process of a host
    #[command(hide = true)]
    Init(init::Options),
    /// A program on a port of the router's that passes everything
    #[command(hide = true)]
    Pass { port: String },
    /// Browser-like sessions, from the client
    #[command(hide = true)]
    Load(load::Options),
    /// A real browser, from the client
    #[command(hide = true)]
    Browse(browser::Options),
    /// A scan of ports, from the client
    #[command(hide = true)]
    Scan(attack::ScanOptions),
    /// Which ports of others are not silent, from any host
    #[command(hide = true)]
    Knock(inside::Options),
    /// A flood of SYNs, from the client
    #[command(hide = true)]
    Flood(attack::FloodOptions),
}

/// The program.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scenario: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let Scenario::Foobar { name, verb } = cli.scenario;
    let place = place::Place::new(&name);
    match verb {
        Verb::Init(options) => init::run(&options)?,
        Verb::Pass { port } => up::pass(&port)?,
        Verb::Load(options) => load::run(&options)?,
        Verb::Browse(options) => browser::run(&options)?,
        Verb::Scan(options) => attack::scan(&options)?,
        Verb::Flood(options) => attack::flood(&options)?,
        Verb::Knock(options) => inside::run(&options)?,
        Verb::Down => {
            place.root_only()?;
            place.destroy()?;
        }
        Verb::Status => print!("{}", site::Site::find(&place)?.status()),
        Verb::Exec { host, command } => {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            let status =
                site::Site::find(&place)?.host(&host)?.command(words[0]).args(&words[1..]).status()?;
            return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)));
        }
        Verb::Up => {
            place.root_only()?;
            stop::watch()?;
            let site = up::up(&place)?;
            print!("{}", site.welcome());
        }
        Verb::Test { short, only, flood_rate: rate, keep, docs } => {
            let (only, keep) = (only.as_deref(), keep.as_deref());
            let wanted = points::Wanted { short, only, rate, keep, docs: &docs };
            return with_site(&place, false, |site| points::test(site, &wanted));
        }
        Verb::Chaos { keep, docs } => {
            return with_site(&place, true, |site| chaos::chaos(site, keep.as_deref(), &docs));
        }
        Verb::Scale { file } => return with_site(&place, true, |site| scale::scale(site, &file)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Does something with the site that is up, or with one for it alone. `runtime`: that changes settings at run time.
fn with_site(
    place: &place::Place,
    runtime: bool,
    work: impl FnOnce(&site::Site) -> Result<bool>,
) -> Result<ExitCode> {
    place.root_only()?;
    stop::watch()?;
    let own = !place.is_up();
    let outcome = (|| {
        let site = if own { up::up(place)? } else { site::Site::find(place)? };
        work(&site)
    })();
    let interrupted = stop::taken();
    if own {
        place.destroy()?;
    } else if interrupted {
        eprintln!(
            "interrupted: what was changed is put back (once more Ctrl-C leaves it; then `down` and `up`)"
        );
        stop::put_back(&site::Site::find(place)?, runtime)
            .context("not all is as it was: `down` and `up` make it so")?;
    }
    if interrupted {
        // As the shell says it of a program that SIGINT has ended.
        return Ok(ExitCode::from(130));
    }
    Ok(if outcome? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks until it is so, or until somebody wants the end.
fn wait_for(
    what: &str,
    patience: Duration,
    mut is_so: impl FnMut() -> Result<(), String>,
) -> Result<Duration> {
    let took = wait_regardless(what, patience, || if stop::asked() { Ok(()) } else { is_so() })?;
    stop::check().map(|()| took)
}

/// Asks until it is so, also at the end.
fn wait_regardless(
    what: &str,
    patience: Duration,
    mut is_so: impl FnMut() -> Result<(), String>,
) -> Result<Duration> {
    let begun = std::time::Instant::now();
    loop {
        match is_so() {
            Ok(()) => return Ok(begun.elapsed()),
            Err(why) if begun.elapsed() > patience => {
                anyhow::bail!("{what}: not within {} s: {why}", patience.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
