//! `cargo xtask fuzz`: the fuzz targets, by libFuzzer, without cargo-fuzz and with the stable compiler.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::process;
use crate::setup::{self, Group};
use crate::workspace::Workspace;

/// Each with the longest input that makes sense, in bytes.
const TARGETS: [(&str, u32); 7] = [
    ("bfd", 64),
    ("config", 4096),
    ("flowsync", 4096),
    ("import", 4096),
    ("link", 4096),
    ("packet", 300),
    ("vrrp", 1100),
];
/// What makes the compiler note which ways a run took: the coverage that libFuzzer reads. All of it is stable, unlike the
/// sanitizers, which would find little in a program without unsafe code.
const COVERAGE: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

#[derive(Args)]
pub struct Options {
    /// bfd, config, flowsync, import, link, packet or vrrp; all of them, one after the other, without a name
    target: Option<String>,
    /// How long each runs
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// For libFuzzer, for example a file to run once again, or -help=1
    #[arg(last = true, value_name = "LIBFUZZER-ARGS")]
    more: Vec<String>,
}

pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let chosen: Vec<(&str, u32)> = match &options.target {
        Some(name) => TARGETS.into_iter().filter(|(target, _)| target == name).collect(),
        None => TARGETS.to_vec(),
    };
    if chosen.is_empty() {
        let names = TARGETS.map(|(name, _)| name).join(", ");
        bail!(
            "there is no fuzz target `{}`; there are {names}",
            options.target.as_deref().unwrap_or_default()
        );
    }
    setup::run(&[Group::Build])?;
    let source = workspace.root.join("tests/fuzz");
    let target_dir = workspace.target.join("fuzz");
    let host = host()?;
    let mut cargo = workspace.cargo();
    cargo
        .current_dir(&source)
        // With a target named, build scripts and macros are built without the coverage.
        .args(["build", "--quiet", "--target", &host, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    for (name, _) in &chosen {
        cargo.args(["--bin", name]);
    }
    process::run(&mut cargo)?;
    for (name, longest) in chosen {
        let corpus = target_dir.join("corpus").join(name);
        let found = target_dir.join("found").join(name);
        for directory in [&corpus, &found] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        }
        let program: PathBuf =
            [target_dir.as_path(), host.as_ref(), "debug".as_ref(), name.as_ref()].iter().collect();
        let mut fuzzer = std::process::Command::new(program);
        // The shown path ends in a slash: libFuzzer puts names of files right behind it.
        fuzzer.arg(format!("-artifact_prefix={}/", found.display()));
        fuzzer.args([format!("-max_total_time={}", options.seconds), format!("-max_len={longest}")]);
        fuzzer.args(["-timeout=10", "-print_final_stats=1"]).args(&options.more);
        if options.more.iter().all(|more| more.starts_with('-')) {
            fuzzer.arg(&corpus);
        }
        process::run(&mut fuzzer).with_context(|| {
            format!("fuzz target `{name}` found something; run that input again with `cargo xtask fuzz {name} -- FILE`")
        })?;
    }
    Ok(())
}

/// The compiler's own target.
fn host() -> Result<String> {
    let output =
        std::process::Command::new("rustc").arg("-vV").output().context("cannot start `rustc -vV`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}
