//! `lbctl decap`: talks to the kernel of a backend, not to a daemon.

use super::args::{DecapCommand, Output};
use super::{Failure, print, render};
use crate::control::api::{ChangeView, DecapView};
use ipnet::IpNet;
use std::path::Path;

/// The decapsulation program in the kernel of this host. `pin_root` is the directory on bpffs under
/// which the program's directory lies.
pub trait Decap {
    /// Attaches the program to an interface; where it is attached, replaces its settings.
    fn attach(&self, ifname: &str, sources: &[IpNet], gue_port: u16, pin_root: &Path) -> anyhow::Result<()>;
    /// Removes it from an interface.
    fn detach(&self, ifname: &str, pin_root: &Path) -> anyhow::Result<()>;
    /// Every interface that has it.
    fn show(&self, pin_root: &Path) -> anyhow::Result<Vec<DecapView>>;
}

pub(super) fn execute(command: &DecapCommand, output: Output, decap: &dyn Decap) -> Result<String, Failure> {
    match command {
        DecapCommand::Attach { interface, from, gue_port, pins } => {
            decap.attach(interface, from, *gue_port, &pins.pin_dir).map_err(Failure::Decap)?;
            let sources: Vec<_> = from.iter().map(ToString::to_string).collect();
            let message = format!(
                "{interface} takes IPIP and GUE (UDP port {gue_port}) packets from {}",
                sources.join(", ")
            );
            done(output, message)
        }
        DecapCommand::Detach { interface, pins } => {
            decap.detach(interface, &pins.pin_dir).map_err(Failure::Decap)?;
            done(output, format!("the decapsulation program was removed from {interface}"))
        }
        DecapCommand::Show { pins } => {
            let views = decap.show(&pins.pin_dir).map_err(Failure::Decap)?;
            print(output, &views, |views| render::decap(views))
        }
    }
}

fn done(output: Output, message: String) -> Result<String, Failure> {
    print(output, &ChangeView { message, changes: Vec::new(), planned_only: false }, render::change)
}
