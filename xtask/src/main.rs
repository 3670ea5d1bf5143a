//! `cargo xtask VERB`: everything one does with this project, by one command.
#![expect(clippy::print_stdout, reason = "a command line speaks on its standard output")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

mod check;
mod ci;
mod disasm;
mod fuzz;
mod layers;
mod process;
mod setup;
mod tasks;
#[path = "../../lb-userspace/build/toolchain.rs"]
mod toolchain;
mod vm;
mod workspace;

use setup::Group;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Build, run, test and check lbd")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install what is needed; silent when everything is there
    ///
    /// The other verbs call this themselves. The eBPF compiler is either a nightly of rustup with rust-src,
    /// or Debian's rustc-web; LBD_EBPF_TOOLCHAIN names another toolchain of rustup.
    Setup {
        /// What to prepare for
        #[arg(value_enum, default_values_t = [Group::Build])]
        groups: Vec<Group>,
    },
    /// Build target/release/lbd and target/release/lbctl
    Build {
        /// Without optimisation, into target/debug
        #[arg(long)]
        debug: bool,
    },
    /// Bring up the playground, or with `-- --config FILE` the daemon on this host
    ///
    /// Arguments before `--` go to the playground, `--help` among them; those after it go to lbd.
    #[command(
        disable_help_flag = true,
        override_usage = "cargo xtask run [PLAYGROUND-ARGS...]\n       cargo xtask run -- LBD-ARGS..."
    )]
    Run(RunArgs),
    /// A whole site on this machine: `scenario foobar up`, `status`, `test`, `chaos`, `scale`, `down`
    #[command(disable_help_flag = true)]
    Scenario {
        /// Which, and what to do; `--help` tells more
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run all tests, as root (by sudo, if you are not)
    Test {
        /// Only tests whose name contains one of these
        filter: Vec<String>,
    },
    /// Measure the fast path against its floor; `bench failover`: what a takeover costs
    #[command(disable_help_flag = true)]
    Bench {
        /// For the benchmark, for example `--json FILE`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run the fuzz targets for a while; what they find is kept in target/fuzz/found
    Fuzz(fuzz::Options),
    /// `chaos pair`: a random fault every few seconds to two balancers under load
    #[command(disable_help_flag = true)]
    Chaos {
        /// For the test, for example `pair --minutes 30 --seed 7`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Format, lints, layers, and licences where cargo-deny is installed
    Check,
    /// Exactly what CI runs: set-up, check, build, test, other kernels, benchmark
    Ci,
    /// Run a command of this file system as root under another kernel, in a virtual machine
    #[command(after_help = vm::HELP)]
    Vm(vm::Options),
    /// Print the machine code of the eBPF programs
    Disasm {
        /// lb, decap or bench; all of them without a name
        program: Option<String>,
    },
}

#[derive(Args)]
struct RunArgs {
    /// For the playground
    #[arg(value_name = "PLAYGROUND-ARGS", allow_hyphen_values = true)]
    playground: Vec<String>,
    /// For lbd
    #[arg(value_name = "LBD-ARGS", last = true)]
    lbd: Vec<String>,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    let workspace = workspace::Workspace::find()?;
    match verb {
        Verb::Setup { groups } => setup::run(&groups)?,
        Verb::Build { debug } => {
            let bin_dir: PathBuf = tasks::build(&workspace, debug)?;
            println!("{0}/lbd\n{0}/lbctl", bin_dir.display());
        }
        Verb::Run(args) => tasks::run(&workspace, &args.playground, &args.lbd)?,
        Verb::Scenario { args } => tasks::scenario(&workspace, &args)?,
        Verb::Test { filter } => tasks::test(&workspace, &filter, false)?,
        Verb::Bench { args } => tasks::bench(&workspace, &args)?,
        Verb::Fuzz(options) => fuzz::run(&workspace, &options)?,
        Verb::Chaos { args } => tasks::chaos(&workspace, &args)?,
        Verb::Check => check::run(&workspace)?,
        Verb::Ci => ci::run(&workspace)?,
        Verb::Vm(options) => return vm::run(&workspace, &options),
        Verb::Disasm { program } => disasm::run(&workspace, program.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run_args(line: &str) -> (String, String) {
        let words = "cargo-xtask".split(' ').chain(line.split(' '));
        match Cli::try_parse_from(words).unwrap().verb {
            Verb::Run(args) => (args.playground.join(" "), args.lbd.join(" ")),
            _ => panic!("{line} is no run"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_tells_the_playground_from_the_daemon() {
        assert_eq!(run_args("run"), (String::new(), String::new()));
        assert_eq!(run_args("run --help"), ("--help".to_owned(), String::new()));
        assert_eq!(run_args("run --mode ipip x"), ("--mode ipip x".to_owned(), String::new()));
        assert_eq!(run_args("run -- --config f.toml"), (String::new(), "--config f.toml".to_owned()));
        assert_eq!(run_args("run -- --help"), (String::new(), "--help".to_owned()));
        // Refused later, by the `--` among the playground's.
        assert_eq!(run_args("run -v -- --check"), ("-v -- --check".to_owned(), String::new()));
    }

    #[test]
    fn the_benchmark_and_the_guest_get_their_arguments() {
        let bench = Cli::try_parse_from(["x", "bench", "--json", "f", "--help"]).unwrap().verb;
        assert!(matches!(bench, Verb::Bench { args } if args == ["--json", "f", "--help"]));
        let scenario = Cli::try_parse_from(["x", "scenario", "foobar", "exec", "lb1", "lbctl", "-o", "json"]);
        assert!(matches!(scenario.unwrap().verb, Verb::Scenario { args } if args.len() == 6));
        assert!(Cli::try_parse_from(["x", "vm", "6.1"]).is_err());
        assert!(Cli::try_parse_from(["x", "vm", "6.1", "--", "uname", "-a"]).is_ok());
    }
}
