//! `cargo xtask ci`: what `.ci/run` runs, nothing more and nothing else.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Group};
use crate::vm::{self, Guest, Kernel};
use crate::workspace::Workspace;
use crate::{check, process, tasks};

/// Tests of package `lb-tests` that must also pass on the oldest and the middle kernel we support: those that
/// load the programs. The verifier is what differs.
const ON_OTHER_KERNELS: [&str; 4] = ["prog_run", "abi_inventory", "decap", "nexthop"];
/// The one test of `decap` that watches a running list for a gap: minutes on an emulated machine, and nothing
/// that a verifier decides.
const LONG_TEST: &str = "the_list_changes_in_place_without_a_gap";
/// The rows of `prog_run` with hundreds of thousands of packets: the same.
const GARBAGE: &str = "garbage";
/// The one test of `nexthop` that needs VLAN devices.
const VLAN_TEST: &str = "a_vlan_device_is_its_parent_and_a_tag";
const OTHER_KERNELS: [&str; 2] = ["6.1", "6.12"];
const VM_TIMEOUT: Duration = Duration::from_secs(2400);

pub fn run(workspace: &Workspace) -> Result<()> {
    let mut clock = Clock::default();
    clock.step("setup", || setup::run(&[Group::All]))?;
    clock.step("check", || check::run(workspace))?;
    clock.step("test", || tasks::test(workspace, &[], true))?;
    for kernel in OTHER_KERNELS {
        clock.step(&format!("kernel {kernel}"), || on_kernel(workspace, kernel))?;
    }
    clock.step("build", || tasks::build(workspace, false).map(drop))?;
    clock.step("bench", || {
        let report = workspace.target.join("bench-smoke.json");
        let mut bench = process::as_root(workspace.target.join("release/bench"), process::NETWORK)?;
        // Few rounds: here it has to work. Its bars are asserted by `cargo xtask bench --assert`.
        process::run(bench.arg("--quick").arg("--json").arg(report))
    })?;
    clock.report();
    Ok(())
}

fn on_kernel(workspace: &Workspace, kernel: &str) -> Result<()> {
    let mut programs: Vec<(String, PathBuf)> = tasks::test_programs(workspace, "lb-tests")?;
    programs.retain(|(name, _)| ON_OTHER_KERNELS.contains(&name.as_str()));
    if programs.is_empty() {
        bail!("package lb-tests has none of the tests {}", ON_OTHER_KERNELS.join(", "));
    }
    let kernel: Kernel = kernel.parse()?;
    for (name, file) in programs {
        let file = file.to_str().context("the path of the workspace is not UTF-8")?.to_owned();
        // Debian's kernels have VLANs, as a module; the reference machine's has none, and its run of that one test
        // is made up for here.
        let tests = match name.as_str() {
            "nexthop" => VLAN_TEST.to_owned(),
            "decap" => format!("--skip {LONG_TEST}"),
            "prog_run" => format!("--skip {GARBAGE}"),
            _ => String::new(),
        };
        let script =
            format!("modprobe 8021q && {}=1 exec '{file}' --include-ignored {tests}", tasks::NO_SKIP_VAR);
        let command = ["sh".to_owned(), "-c".to_owned(), script];
        let status =
            vm::boot(workspace, &kernel, &Guest { timeout: VM_TIMEOUT, ..Guest::default() }, &command)?;
        if status != 0 {
            bail!("test {name} failed there (status {status})");
        }
    }
    Ok(())
}

/// Tells each step and how long it took.
#[derive(Default)]
struct Clock {
    steps: Vec<(String, Duration)>,
}

impl Clock {
    fn step(&mut self, name: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
        eprintln!("ci: {name}");
        let start = Instant::now();
        let result = act().with_context(|| format!("step `{name}`"));
        self.steps.push((name.to_owned(), start.elapsed()));
        if result.is_err() {
            self.report();
        }
        result
    }

    fn report(&self) {
        let total: Duration = self.steps.iter().map(|(_, time)| *time).sum();
        for (name, time) in
            self.steps.iter().map(|(name, time)| (name.as_str(), *time)).chain([("total", total)])
        {
            eprintln!("ci: {name:<12} {:>7.1} s", time.as_secs_f64());
        }
    }
}
