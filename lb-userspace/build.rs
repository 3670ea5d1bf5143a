//! Builds the eBPF programs of package `lb-ebpf` and leaves them in `OUT_DIR` under their names, to be
//! embedded, and in `target/bpf/`, to be looked at (`cargo xtask disasm`).

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use aya_build::{Package, Toolchain};

#[path = "build/toolchain.rs"]
mod toolchain;

use toolchain::{Compiler, Found, Places};

const PACKAGE: &str = "lb-ebpf";
const PROGRAMS: [&str; 3] = ["lb", "decap", "bench"];
/// `RUSTC_BOOTSTRAP` for a compiler with a prebuilt `core`: the crates that use unstable features. Names
/// instead of `1`, since by `1` aya-build would ask for `-Z build-std`.
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
    set_environment(&found, &out_dir);

    let root_dir = workspace.join(PACKAGE);
    let root_dir = root_dir.to_str().context("the path of the workspace is not UTF-8")?;
    aya_build::build_ebpf(
        [Package { name: PACKAGE, root_dir, ..Package::default() }],
        Toolchain::Custom(found.compiler.toolchain()),
    )
    .map_err(|error| {
        anyhow!("the eBPF programs did not build with {}, see the warnings above: {error:#}", found.compiler)
    })?;

    let shown = target_dir(&out_dir).map(|dir| dir.join("bpf"));
    for program in PROGRAMS {
        let built = out_dir.join(program);
        if !built.is_file() {
            return Err(anyhow!("package {PACKAGE} has built no program `{program}`"));
        }
        if let Some(shown) = &shown {
            publish(&built, &shown.join(program))
                .with_context(|| format!("cannot copy `{program}` to {}", shown.display()))?;
        }
    }
    Ok(())
}

/// Prepares this process's environment for the cargo that aya-build calls.
fn set_environment(found: &Found, out_dir: &Path) {
    let mut vars = vec![
        // aya-build makes a warning of every line its cargo says; errors are said all the same.
        ("CARGO_TERM_QUIET", "true".into()),
        // A build directory shared with the outer cargo would wait for the outer cargo's lock for ever.
        ("CARGO_BUILD_BUILD_DIR", out_dir.join("aya-build/target").join(PACKAGE).into_os_string()),
        // bpf-linker optimises the linked whole; an LTO of rustc before that only costs time.
        ("CARGO_PROFILE_RELEASE_LTO", "off".into()),
    ];
    match found.compiler {
        Compiler::HasCore { .. } | Compiler::System => {
            vars.push(("RUSTC_BOOTSTRAP", UNSTABLE_CRATES.into()));
        }
        Compiler::BuildsCore { .. } => {}
    }
    // The linker may lie in cargo's own directory, which need not be on the path.
    if let Some(dir) = found.linker.parent() {
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs = env::split_paths(&path).chain([dir.to_owned()]);
        if let Ok(path) = env::join_paths(dirs) {
            vars.push(("PATH", path));
        }
    }
    for (name, value) in vars {
        // SAFETY: called from `main` before aya-build starts its first thread; this process has one thread.
        unsafe { env::set_var(name, value) };
    }
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
