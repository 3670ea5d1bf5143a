//! build, run, test, bench: thin wraps around cargo.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::setup::{self, Group};
use crate::workspace::Workspace;

/// Says to tests and programs where the `lbd` and `lbctl` of this build lie.
const BIN_DIR_VAR: &str = "LBD_BIN_DIR";
/// Makes a test that cannot run here a failure.
pub const NO_SKIP_VAR: &str = "LBD_NO_SKIP";

/// Builds the programs and returns the directory they are in.
pub fn build(workspace: &Workspace, debug: bool) -> Result<PathBuf> {
    setup::run(&[Group::Build])?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "-p", "lb-userspace", "-p", "lb-tests"]);
    if !debug {
        cargo.arg("--release");
    }
    process::run(&mut cargo)?;
    Ok(workspace.target.join(if debug { "debug" } else { "release" }))
}

/// The daemon where it was given arguments, else the playground (for which `playground` is meant).
pub fn run(workspace: &Workspace, playground: &[String], lbd: &[String]) -> Result<()> {
    if playground.iter().any(|word| word == "--") {
        bail!("arguments before `--` are for the playground, those after it for lbd: give one of the two");
    }
    // Before minutes of building, not after.
    process::root_prefix(process::NETWORK)?;
    let bin_dir = build(workspace, false)?;
    if lbd.is_empty() {
        process::exec_as_root(&bin_dir.join("playground"), playground)
    } else {
        process::exec_as_root(&bin_dir.join("lbd"), lbd)
    }
}

pub fn bench(workspace: &Workspace, args: &[String]) -> Result<()> {
    process::root_prefix(process::NETWORK)?;
    let bin_dir = build(workspace, false)?;
    // One that takes minutes and needs a network has a program of its own.
    if args.first().is_some_and(|first| first == "failover") {
        setup::run(&[Group::Test])?;
        return process::exec_as_root(&bin_dir.join("pair"), args);
    }
    process::exec_as_root(&bin_dir.join("bench"), args)
}

/// A random fault every few seconds, to two real daemons.
pub fn chaos(workspace: &Workspace, args: &[String]) -> Result<()> {
    process::root_prefix(process::NETWORK)?;
    let bin_dir = build(workspace, false)?;
    setup::run(&[Group::Test])?;
    process::exec_as_root(&bin_dir.join("pair"), &[&["chaos".to_owned()], args].concat())
}

/// A whole site on this machine.
pub fn scenario(workspace: &Workspace, args: &[String]) -> Result<()> {
    process::root_prefix(process::NETWORK)?;
    let brings_up = args.iter().any(|word| matches!(word.as_str(), "up" | "test" | "chaos" | "scale"));
    if brings_up {
        setup::run(&[Group::Test])?;
    }
    let bin_dir = build(workspace, false)?;
    process::exec_as_root(&bin_dir.join("scenario"), args)
}

/// All tests. `everything` also runs those marked `#[ignore]`, and lets none skip itself.
pub fn test(workspace: &Workspace, filter: &[String], everything: bool) -> Result<()> {
    let prefix = process::root_prefix(process::NETWORK)?;
    setup::run(&[Group::Build, Group::Test])?;
    // Cargo itself builds a program for the tests of its own package only.
    let mut cargo = workspace.cargo();
    process::run(cargo.args(["build", "-p", "lb-userspace", "-p", "lb-tests"]))?;

    for kind in [&["--lib", "--bins", "--tests"][..], &["--doc"][..]] {
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--workspace", "--exclude", "lb-ebpf", "--no-fail-fast"]).args(kind);
        if !prefix.is_empty() {
            // Only the tests run as root; what cargo builds stays the user's.
            let words = serde_json::to_string(&prefix).context("the path is no text")?;
            cargo.arg("--config").arg(format!("target.\"cfg(unix)\".runner={words}"));
        }
        cargo.arg("--").args(filter);
        if everything {
            cargo.env(NO_SKIP_VAR, "1");
            if kind[0] != "--doc" {
                cargo.arg("--include-ignored");
            }
        }
        cargo.env(BIN_DIR_VAR, workspace.target.join("debug")).stdin(Stdio::null());
        process::run(&mut cargo).context("tests failed")?;
    }
    Ok(())
}

/// The executables of integration tests, built now: (name, file).
pub fn test_programs(workspace: &Workspace, package: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo: Command = workspace.cargo();
    cargo.args(["test", "--no-run", "--quiet", "-p", package, "--tests", "--message-format=json"]);
    let mut programs = Vec::new();
    for line in process::capture(&mut cargo)?.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let is_test =
            message["target"]["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == "test"));
        if let (true, Some(name), Some(file)) =
            (is_test, message["target"]["name"].as_str(), message["executable"].as_str())
        {
            programs.push((name.to_owned(), PathBuf::from(file)));
        }
    }
    Ok(programs)
}
