//! The compiler and the linker of the eBPF programs.
//!
//! On a Debian that has `rustc-web` for BPF its packages come first: their compiler, their LLVM and the
//! linker fit each other. A nightly's LLVM may be newer than any the linker can be built with there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{packages, say};
use crate::process;
use crate::toolchain::{self, Compiler, Found, LINKED, LINKER, Missing, NIGHTLY, Places};

/// The series of bpf-linker that is known to work with aya 0.14 and rustc 1.95.
const LINKER_VERSION: &str = "^0.13";
/// LLVM versions that series can be built with, newest first.
const LINKER_LLVMS: [u32; 3] = [23, 22, 21];
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_LLVM: u32 = 22;
const DEBIAN_LLVM_PACKAGES: [&str; 3] = ["llvm-22-dev", "libpolly-22-dev", "g++"];

/// Quiet and quick when everything is there.
pub fn ensure() -> Result<()> {
    let places = Places::from_env();
    match usable(&places) {
        Ok(_) => return Ok(()),
        // What was asked for by name is not replaced by something else.
        Err(Lack::Missing(missing @ Missing::Explicit { .. })) => bail!("{missing}"),
        Err(lack) => say(&format!("{lack}")),
    }
    for way in ways(&places) {
        say(way.said());
        match way.take(&places).and_then(|()| usable(&places).map_err(|lack| anyhow::anyhow!("{lack}"))) {
            Ok(found) => {
                prove(&found)?;
                say(&format!(
                    "eBPF programs are built by {}, linked by {}",
                    found.compiler,
                    found.linker.display()
                ));
                return Ok(());
            }
            Err(error) => say(&format!("that did not work: {error:#}")),
        }
    }
    bail!(
        "no compiler for eBPF programs on {}: type `rustup toolchain install nightly --component rust-src`, put a \
         bpf-linker (version {LINKER_VERSION}) with an LLVM at least as new as nightly's on the path, and repeat the command",
        packages::system()
    )
}

enum Lack {
    Missing(Missing),
    /// For example because the LLVM it was linked with has been removed.
    DeadLinker(PathBuf),
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::DeadLinker(linker) => write!(f, "{} does not start", linker.display()),
        }
    }
}

fn usable(places: &Places) -> Result<Found, Lack> {
    let found = places.find().map_err(Lack::Missing)?;
    if process::succeeds(Command::new(&found.linker).arg("--version")) {
        Ok(found)
    } else {
        Err(Lack::DeadLinker(found.linker))
    }
}

#[derive(Clone, Copy)]
enum Way {
    /// The compiler is there.
    LinkerOnly,
    Debian,
    Nightly,
}

fn ways(places: &Places) -> Vec<Way> {
    let mut ways = Vec::new();
    if places.compilers().is_ok() {
        ways.push(Way::LinkerOnly);
    }
    if packages::has_apt() {
        ways.push(Way::Debian);
    }
    if places.has_rustup() {
        ways.push(Way::Nightly);
    }
    ways
}

impl Way {
    fn said(self) -> &'static str {
        match self {
            Self::LinkerOnly => "a compiler is there, bpf-linker is to be installed",
            Self::Debian => "taking the compiler from Debian's packages",
            Self::Nightly => "taking rustup's nightly with rust-src",
        }
    }

    fn take(self, places: &Places) -> Result<()> {
        match self {
            Self::LinkerOnly => {}
            Self::Debian => debian_compiler(places)?,
            Self::Nightly => nightly_compiler(places)?,
        }
        if usable(places).is_ok() {
            return Ok(());
        }
        let mut result = Ok(());
        for (compiler, root) in places.compilers()? {
            result = install_linker(places, &compiler, &root);
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

fn debian_compiler(places: &Places) -> Result<()> {
    let all: Vec<&str> = DEBIAN_COMPILER.iter().chain(&DEBIAN_LLVM_PACKAGES).copied().collect();
    if packages::lists_are_missing() || !packages::available(&all) {
        packages::update_lists()?;
    }
    if !packages::available(&all) {
        bail!("{} has no packages {}", packages::system(), DEBIAN_COMPILER.join(", "));
    }
    say(&format!("installing {}", all.join(" ")));
    packages::install(&all)?;
    if !places.has_rustup() {
        return Ok(());
    }
    let link = places.rustup_home.join("toolchains").join(LINKED);
    match fs::read_link(&link) {
        Ok(to) if to == Path::new("/usr") => return Ok(()),
        // Somebody's own toolchain of that name is not ours to replace; a dangling link is nobody's.
        Ok(to) if to.exists() => bail!(
            "rustup's toolchain `{LINKED}` is {}, which has no core for BPF; `rustup toolchain uninstall {LINKED}` \
             or set {} to another one",
            to.display(),
            toolchain::TOOLCHAIN_VAR
        ),
        Ok(_) => fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?,
        Err(_) => {}
    }
    say(&format!("making /usr known to rustup as `{LINKED}`"));
    process::run(Command::new("rustup").args(["toolchain", "link", LINKED, "/usr"]))
}

fn nightly_compiler(places: &Places) -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup.stdin(Stdio::null());
    if places.toolchain_root(NIGHTLY).is_none() {
        rustup.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"]);
    } else {
        let offered =
            process::capture(Command::new("rustup").args(["component", "list", "--toolchain", NIGHTLY]))?;
        if !String::from_utf8_lossy(&offered).lines().any(|line| line.starts_with("rust-src")) {
            bail!("the installed nightly is not offered a rust-src");
        }
        // If rustup believes that it is there while its files are not, adding it would do nothing.
        process::succeeds(Command::new("rustup").args([
            "component",
            "remove",
            "rust-src",
            "--toolchain",
            NIGHTLY,
        ]));
        rustup.args(["component", "add", "rust-src", "--toolchain", NIGHTLY]);
    }
    process::run(&mut rustup).context("rustup could not fetch it")
}

/// Builds the linker against an LLVM that reads what the compiler writes.
fn install_linker(places: &Places, compiler: &Compiler, root: &Path) -> Result<()> {
    // A compiler outside rustup is Debian's and shares its LLVM.
    let needed = toolchain::bundled_llvm(root).unwrap_or(DEBIAN_LLVM);
    let mut llvm = installed_llvm(needed);
    if llvm.is_none() && needed <= DEBIAN_LLVM && packages::has_apt() {
        say(&format!("installing {}", DEBIAN_LLVM_PACKAGES.join(" ")));
        packages::install(&DEBIAN_LLVM_PACKAGES)?;
        llvm = installed_llvm(needed);
    }
    if let Some((version, prefix)) = llvm {
        say(&format!("building bpf-linker with LLVM {version} (about a minute)"));
        let mut cargo = host_cargo(places);
        cargo
            .args(["install", LINKER, "--version", LINKER_VERSION, "--force", "--no-default-features"])
            .args(["--features", &format!("llvm-{version}")])
            .env("LLVM_PREFIX", prefix);
        process::run(&mut cargo)?;
    } else if places.program("cargo-binstall").is_some() {
        let mut cargo = host_cargo(places);
        cargo.args(["binstall", "--no-confirm", "--force", &format!("{LINKER}@{LINKER_VERSION}")]);
        process::run(&mut cargo)?;
    } else {
        bail!(
            "{compiler} needs a bpf-linker with LLVM {needed} or newer, and its headers are not installed here"
        );
    }
    if places.linker().is_none() {
        bail!("cargo has installed no {LINKER} in {}", places.cargo_home.join("bin").display());
    }
    Ok(())
}

/// Cargo for programs of the host; without the settings that the cargo above us made for this workspace.
fn host_cargo(places: &Places) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.env("CARGO_HOME", &places.cargo_home).stdin(Stdio::null());
    for var in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(var);
    }
    cargo
}

/// An LLVM with headers, not older than the one given, that the linker can be built with.
fn installed_llvm(at_least: u32) -> Option<(u32, PathBuf)> {
    LINKER_LLVMS.iter().filter(|version| **version >= at_least).find_map(|&version| {
        let prefix = PathBuf::from(format!("/usr/lib/llvm-{version}"));
        let there =
            prefix.join("include/llvm-c/Core.h").is_file() && prefix.join("bin/llvm-config").is_file();
        there.then_some((version, prefix))
    })
}

/// Compiles and links a small program: the parts are there, this tells whether they fit.
fn prove(found: &Found) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("lbd-setup-{}", std::process::id()));
    let result = prove_in(found, &dir);
    let _ = fs::remove_dir_all(&dir);
    result.with_context(|| format!("{} and {} do not fit each other", found.compiler, found.linker.display()))
}

fn prove_in(found: &Found, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("src"))?;
    fs::write(
        dir.join("Cargo.toml"),
        "[package]\nname = \"probe\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    fs::write(
        dir.join("src/main.rs"),
        "#![no_std]\n#![no_main]\n\
         #[panic_handler]\nfn panic(_: &core::panic::PanicInfo) -> ! { loop {} }\n\
         #[no_mangle]\n#[link_section = \"xdp\"]\npub extern \"C\" fn probe() -> u32 { 2 }\n",
    )?;
    let mut cargo = match &found.compiler {
        Compiler::System => Command::new("cargo"),
        Compiler::BuildsCore { .. } | Compiler::HasCore { .. } => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", found.compiler.toolchain(), "cargo"]);
            rustup
        }
    };
    cargo.args(["build", "--quiet", "--release", "--target", "bpfel-unknown-none"]);
    if let Compiler::BuildsCore { .. } = found.compiler {
        cargo.args(["-Z", "build-std=core"]);
    }
    for var in ["CARGO_TARGET_DIR", "RUSTC", "RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO"] {
        cargo.env_remove(var);
    }
    cargo
        .current_dir(dir)
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Clinker={}", found.linker.display()))
        .stdin(Stdio::null());
    process::run(&mut cargo)?;
    let program = dir.join("target/bpfel-unknown-none/release/probe");
    let image = fs::read(&program).with_context(|| format!("no {} was built", program.display()))?;
    // e_machine of a 64-bit little-endian ELF file: EM_BPF is 247.
    if image.get(18..20) != Some(&[247, 0]) {
        bail!("{} is no eBPF program", program.display());
    }
    Ok(())
}
