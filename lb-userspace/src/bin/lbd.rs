//! The daemon.

use clap::Parser;
use lb_userspace::{
    daemon::{self, Options, StartError},
    net::caps,
    telemetry,
};
use std::{path::PathBuf, process::ExitCode};

/// lbd, the layer-4 load balancer: forwards packets to backends by XDP, checks their health, and keeps
/// forwarding when it is stopped, killed or upgraded.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
EXAMPLES:
  lbd --config /etc/lbd/lbd.toml --check   validate a configuration; touches nothing
  lbd --config /etc/lbd/lbd.toml           run; ends on SIGTERM, forwarding goes on
  lbd --config /etc/lbd/lbd.toml --detach  remove programs, links and maps of a stopped daemon

SIGHUP reads the configuration again, as `lbctl reload` does."
)]
struct Args {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    config: PathBuf,
    /// Validate the configuration and exit: status 0, or 2 with the errors
    #[arg(long, conflicts_with = "detach")]
    check: bool,
    /// Remove everything lbd left in the kernel and exit; forwarding ends
    #[arg(long)]
    detach: bool,
    /// Log level (error, warn, info, debug, trace) or filter; RUST_LOG otherwise
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbd: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn start(args: &Args) -> Result<(), StartError> {
    telemetry::log::init(args.log.as_deref())?;
    telemetry::panic::install();
    let options = Options { config: args.config.clone() };
    if args.check {
        let config = daemon::check(&options)?;
        let services = config.services.len();
        let word = if services == 1 { "service" } else { "services" };
        eprintln!("{}: valid, {services} {word}", args.config.display());
        return Ok(());
    }
    if args.detach {
        return daemon::detach(&options);
    }
    daemon::prepare_memory();
    if let Err(error) = caps::keep_to_itself() {
        tracing::warn!(%error, "commands that are run for checks and hooks may have the capabilities of lbd");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| StartError::Io { path: "runtime".into(), source })?;
    runtime.block_on(daemon::run(options))
}
