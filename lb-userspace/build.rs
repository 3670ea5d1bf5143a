//! Builds the eBPF programs of package `lb-ebpf` and leaves them in `OUT_DIR` under their names, to be
//! embedded, and in `target/bpf/`, to be looked at (`cargo xtask disasm`).

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

#[path = "build/toolchain.rs"]
mod toolchain;

use toolchain::{Compiler, Found, Places};

const PACKAGE: &str = "lb-ebpf";
const PROGRAMS: [&str; 3] = ["lb", "decap", "bench"];
/// `RUSTC_BOOTSTRAP` for a compiler with a prebuilt `core`: the crates that use unstable features.
const UNSTABLE_CRATES: &str = "aya_ebpf,lb_ebpf,lb,decap,bench";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={}", format!("{error:#}").replace('\n', " "));
            // Cargo fails the build for the line above; a failing status makes it repeat everything we said.
            ExitCode::SUCCESS
        }
    }
}

fn build() -> Result<()> {
    let manifest_dir =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let workspace = manifest_dir.parent().context("the package lies in no workspace")?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);

    for var in [toolchain::TOOLCHAIN_VAR, "RUSTUP_HOME", "CARGO_HOME"] {
        println!("cargo::rerun-if-env-changed={var}");
    }
    // Cargo.toml of the workspace holds the profile, Cargo.lock the version of aya-ebpf.
    for input in ["lb-common/src", "lb-common/Cargo.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    for own in ["build.rs", "build/toolchain.rs"] {
        println!("cargo::rerun-if-changed={}", manifest_dir.join(own).display());
    }

    let found = Places::from_env().find().map_err(|missing| {
        anyhow!("the eBPF programs cannot be built, run `cargo xtask setup`: {missing}")
    })?;
    for witness in &found.witnesses {
        println!("cargo::rerun-if-changed={}", witness.display());
    }
    println!("cargo::rerun-if-changed={}", workspace.join(PACKAGE).display());
    let release = compile(&found, workspace, &out_dir)
        .with_context(|| format!("the eBPF programs did not build with {}", found.compiler))?;

    let shown = target_dir(&out_dir).map(|dir| dir.join("bpf"));
    for program in PROGRAMS {
        let built = out_dir.join(program);
        fs::copy(release.join(program), &built)
            .with_context(|| format!("package {PACKAGE} has built no program `{program}`"))?;
        if let Some(shown) = &shown {
            publish(&built, &shown.join(program))
                .with_context(|| format!("cannot copy `{program}` to {}", shown.display()))?;
        }
    }
    Ok(())
}

/// Calls cargo for the BPF target; the directory with the programs.
fn compile(found: &Found, workspace: &Path, out_dir: &Path) -> Result<PathBuf> {
    let var = |name: &str| env::var(name).with_context(|| format!("{name} is not set"));
    let target = match var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    // Of the instruction set's versions, v3 (Linux 5.12 for all of it) has 32-bit jumps, and atomics that
    // give back what was there before.
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", var("CARGO_CFG_TARGET_ARCH")?),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
    ];
    let target_dir = out_dir.join("ebpf");
    let mut cargo = match &found.compiler {
        Compiler::System => Command::new("cargo"),
        Compiler::BuildsCore { .. } | Compiler::HasCore { .. } => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", found.compiler.toolchain(), "cargo"]);
            rustup
        }
    };
    cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--package", PACKAGE, "--bins", "--release", "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // A build directory shared with the outer cargo would wait for the outer cargo's lock for ever.
        .env("CARGO_BUILD_BUILD_DIR", &target_dir)
        // bpf-linker optimises the linked whole; an LTO of rustc before that only costs time.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        // The outer cargo's choice of compiler is not ours.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .stdin(Stdio::null());
    match found.compiler {
        Compiler::HasCore { .. } | Compiler::System => {
            cargo.env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
        }
        Compiler::BuildsCore { .. } => {
            cargo.args(["-Z", "build-std=core"]);
        }
    }
    // The linker may lie in cargo's own directory, which need not be on the path.
    if let Some(dir) = found.linker.parent() {
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs = env::split_paths(&path).chain([dir.to_owned()]);
        if let Ok(path) = env::join_paths(dirs) {
            cargo.env("PATH", path);
        }
    }
    let output = cargo.output().with_context(|| format!("cannot run {cargo:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo::warning={line}");
    }
    if !output.status.success() {
        bail!("{}; the warnings above tell why", output.status);
    }
    Ok(target_dir.join(target).join("release"))
}

/// Cargo marks the root of the target directory by a file, wherever the profile's directory lies under it.
fn target_dir(out_dir: &Path) -> Option<PathBuf> {
    out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).map(Path::to_owned)
}

/// Copies through a temporary name: two builds may do so at once, and nobody must read half a file.
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    let image = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == image) {
        return Ok(());
    }
    let dir = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let new = to.with_extension(format!("new.{}", std::process::id()));
    fs::write(&new, image)?;
    fs::rename(&new, to)
}
