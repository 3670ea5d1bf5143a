//! The command line.

use ipnet::IpNet;
use lb_userspace::cli::decap::Decap;
use lb_userspace::control::api::DecapView;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The decapsulation program in this host's kernel.
struct Kernel;

// PLUG: the three bodies become calls of lb_userspace::dataplane::decap::{attach, detach, show}.
impl Decap for Kernel {
    fn attach(&self, _: &str, _: &[IpNet], _: u16, _: &Path) -> anyhow::Result<()> {
        anyhow::bail!("this build of lbctl has no decapsulation program")
    }

    fn detach(&self, _: &str, _: &Path) -> anyhow::Result<()> {
        anyhow::bail!("this build of lbctl has no decapsulation program")
    }

    fn show(&self, _: &Path) -> anyhow::Result<Vec<DecapView>> {
        anyhow::bail!("this build of lbctl has no decapsulation program")
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
