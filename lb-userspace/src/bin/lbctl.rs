//! The command line.

use ipnet::IpNet;
use lb_userspace::cli::decap::Decap;
use lb_userspace::control::api::DecapView;
use lb_userspace::dataplane::decap;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The decapsulation program in this host's kernel.
struct Kernel;

impl Decap for Kernel {
    fn attach(&self, ifname: &str, sources: &[IpNet], gue_port: u16, pin_root: &Path) -> anyhow::Result<()> {
        decap::attach(ifname, sources, gue_port, pin_root)
    }

    fn detach(&self, ifname: &str, pin_root: &Path) -> anyhow::Result<()> {
        decap::detach(ifname, pin_root)
    }

    fn show(&self, pin_root: &Path) -> anyhow::Result<Vec<DecapView>> {
        decap::show(pin_root)
    }
}

fn main() -> ExitCode {
    ExitCode::from(lb_userspace::cli::run(
        std::env::args_os(),
        &Kernel,
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    ))
}
