//! The first process of a host: gives it its files, then reaps whoever ends there.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::wait::waitpid,
};

#[derive(Args)]
pub struct Options {
    /// The host's name
    #[arg(long)]
    host: String,
    /// What is its own of the file system
    #[arg(long)]
    dir: PathBuf,
}

/// Directories that a host has for itself.
pub const OWN: [&str; 8] = ["etc", "opt", "srv", "run", "tmp", "var/log", "var/lib", "usr/local/bin"];

/// In namespaces of its own (mounts, processes, name) already, inside the host's network.
pub fn run(options: &Options) -> Result<()> {
    // The old /proc still tells the number that everybody else knows this process by.
    let pid = fs::read_link("/proc/self").context("no /proc")?.to_string_lossy().into_owned();
    let started = super::place::start_time(pid.parse()?).context("this process has no start")?;
    fs::write(options.dir.join("init"), format!("{pid} {started}\n"))?;
    nix::unistd::sethostname(&options.host)?;
    let none = None::<&str>;
    for name in OWN {
        let target = format!("/{name}");
        mount(Some(&options.dir.join(name)), target.as_str(), none, MsFlags::MS_BIND, none)
            .with_context(|| format!("cannot mount {target}"))?;
    }
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("cannot mount /proc")?;
    // This network's interfaces, and a BPF file system that goes away with the host.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("cannot mount /sys")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("cannot mount /sys/fs/bpf")?;
    fs::write("/run/ready", "")?;
    loop {
        // Orphans become children of this process; without any there is nothing to wait for.
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(200)),
        }
    }
}
