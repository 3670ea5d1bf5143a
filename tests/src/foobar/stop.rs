//! Ctrl-C, and putting back what a command was in the middle of.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{
    chaos,
    place::HOSTS,
    probe,
    site::{BALANCERS, Site},
};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

/// From now on the first SIGINT or SIGTERM is noted, the second one ends the program.
pub fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is allowed at any time.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot watch for {signal}"))?;
    }
    Ok(())
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Whether somebody has asked for the end; what is done from now on to put things right goes on.
pub fn taken() -> bool {
    ASKED.swap(false, Ordering::SeqCst)
}

/// An error once somebody has asked for the end.
pub fn check() -> Result<()> {
    if asked() {
        bail!("interrupted");
    }
    Ok(())
}

/// What the command has changed of a site that others go on with.
pub fn put_back(site: &Site, runtime: bool) -> Result<()> {
    // First of all, as a database comes back as the replica of the one that takes writes.
    let alive = ["db1", "db2"].into_iter().find(|name| site.host(name).is_ok_and(|h| h.runs("mariadb")));
    let primary = match (probe::primary(site), alive) {
        (Ok(primary), _) => primary,
        (Err(_), Some(alive)) => {
            site.host(alive)?.exec("/opt/foobar/promote.sh")?;
            alive
        }
        (Err(error), None) => return Err(error),
    };
    for name in HOSTS.iter().map(|plan| plan.name) {
        let Ok(host) = site.host(name) else {
            eprintln!("  {name} comes back");
            if name.starts_with("db") {
                probe::return_database(site, name, primary)?;
            } else {
                probe::return_host(site, name)?;
                site.host(name)?.start_services()?;
            }
            continue;
        };
        for (service, _) in host.services() {
            if !host.runs(&service) {
                eprintln!("  {service} of {name} starts again");
                host.start_service(&service)?;
            }
        }
    }
    if runtime {
        chaos::weigh(site, "")?;
        for balancer in BALANCERS {
            site.host(balancer)?.call(&["lbctl", "reset"])?;
        }
    }
    Ok(())
}
