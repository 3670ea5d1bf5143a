//! Which compiler and which linker make the eBPF programs. Used by `build.rs`, and by `cargo xtask setup`
//! through `#[path]`, so that what the one installs is what the other finds.
//!
//! Two kinds of compiler will do: a nightly of rustup with `rust-src`, which builds `core` itself, and one
//! that brings a `core` built for the BPF target, as Debian's `rustc-web` does. Looking at files is all it
//! takes, so the search costs no process and no network. The standard library only: build scripts use it.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Names the rustup toolchain to use, before all others.
pub const TOOLCHAIN_VAR: &str = "LBD_EBPF_TOOLCHAIN";
/// The name under which a compiler outside rustup is made known to rustup.
pub const LINKED: &str = "ebpf";
pub const NIGHTLY: &str = "nightly";
pub const LINKER: &str = "bpf-linker";
/// `RUSTC_BOOTSTRAP` for a compiler with a prebuilt `core`: the crates that use unstable features. Names
/// instead of `1`, since by `1` aya-build would ask for `-Z build-std`.
pub const UNSTABLE_CRATES: &str = "aya_ebpf,lb_ebpf,lb,decap,bench";

/// A compiler that can produce code for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// `rustup run NAME cargo`, building `core` from its sources.
    BuildsCore { toolchain: String },
    /// `rustup run NAME cargo`, with `core` for BPF at hand.
    HasCore { toolchain: String },
    /// `cargo` and `rustc` from the path, there being no rustup; `core` for BPF at hand.
    System,
}

impl Compiler {
    /// The name for `rustup run`; unused where there is no rustup.
    pub fn toolchain(&self) -> &str {
        match self {
            Self::BuildsCore { toolchain } | Self::HasCore { toolchain } => toolchain,
            Self::System => LINKED,
        }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuildsCore { toolchain } => write!(f, "rustup toolchain `{toolchain}` with rust-src"),
            Self::HasCore { toolchain } => write!(f, "rustup toolchain `{toolchain}` with a prebuilt core"),
            Self::System => write!(f, "cargo and rustc of this system, with a prebuilt core"),
        }
    }
}

/// Compiler, linker, and the files whose change means that everything is to be built again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub compiler: Compiler,
    pub linker: PathBuf,
    pub witnesses: Vec<PathBuf>,
}

/// What is lacking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// `LBD_EBPF_TOOLCHAIN` names something that cannot build for BPF.
    Explicit {
        toolchain: String,
        looked_in: PathBuf,
    },
    Compiler,
    Linker {
        compiler: Compiler,
    },
    /// The linker cannot read what the compiler writes: its LLVM is older.
    LinkerTooOld {
        compiler: Compiler,
        linker: PathBuf,
        linker_llvm: u32,
        compiler_llvm: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Explicit { toolchain, looked_in } => write!(
                f,
                "{TOOLCHAIN_VAR}={toolchain}: no toolchain in {} that has rust-src or a core for \
                 bpfel-unknown-none; name another one or unset the variable",
                looked_in.display()
            ),
            Self::Compiler => write!(f, "no Rust compiler for the BPF target was found"),
            Self::Linker { compiler } => {
                write!(
                    f,
                    "{LINKER} was not found, neither on the path nor in cargo's bin directory ({compiler})"
                )
            }
            Self::LinkerTooOld { compiler, linker, linker_llvm, compiler_llvm } => write!(
                f,
                "{} reads LLVM {linker_llvm} and older, {compiler} writes LLVM {compiler_llvm}",
                linker.display()
            ),
        }
    }
}

impl std::error::Error for Missing {}

/// The places the search looks at; a value of its own so that tests can make some.
#[derive(Clone, Debug)]
pub struct Places {
    /// `LBD_EBPF_TOOLCHAIN`, if set.
    pub explicit: Option<String>,
    pub path: Vec<PathBuf>,
    pub rustup_home: PathBuf,
    pub cargo_home: PathBuf,
    /// For example `x86_64-unknown-linux-gnu`.
    pub hosts: Vec<String>,
}

impl Places {
    pub fn from_env() -> Self {
        let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        let or_home = |var: &str, sub: &str| match env::var_os(var) {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => home.join(sub),
        };
        let arch = env::consts::ARCH;
        Self {
            explicit: env::var(TOOLCHAIN_VAR).ok().filter(|name| !name.is_empty()),
            path: env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default(),
            rustup_home: or_home("RUSTUP_HOME", ".rustup"),
            cargo_home: or_home("CARGO_HOME", ".cargo"),
            hosts: ["gnu", "musl"].iter().map(|libc| format!("{arch}-unknown-linux-{libc}")).collect(),
        }
    }

    /// The first executable of this name on the path.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        self.path.iter().map(|dir| dir.join(name)).find(|file| is_executable(file))
    }

    pub fn has_rustup(&self) -> bool {
        self.program("rustup").is_some()
    }

    /// The root directory of a toolchain of rustup, by the name `rustup run` takes.
    pub fn toolchain_root(&self, name: &str) -> Option<PathBuf> {
        let all = self.rustup_home.join("toolchains");
        std::iter::once(all.join(name))
            .chain(self.hosts.iter().map(|host| all.join(format!("{name}-{host}"))))
            .find(|dir| is_executable(&dir.join("bin/rustc")) && is_executable(&dir.join("bin/cargo")))
    }

    /// The linker: on the path, or where `cargo install` puts it.
    pub fn linker(&self) -> Option<PathBuf> {
        self.program(LINKER)
            .or_else(|| Some(self.cargo_home.join("bin").join(LINKER)).filter(|file| is_executable(file)))
    }

    /// The compiler to use and the root of its files.
    pub fn compiler(&self) -> Result<(Compiler, PathBuf), Missing> {
        if !self.has_rustup() {
            let rustc = self.program("rustc").and_then(|file| fs::canonicalize(file).ok());
            let root = rustc.as_deref().and_then(Path::parent).and_then(Path::parent);
            return match root {
                Some(root) if prebuilt_core(root).is_some() => Ok((Compiler::System, root.to_owned())),
                _ => Err(Missing::Compiler),
            };
        }
        if let Some(name) = &self.explicit {
            return self.usable(name).ok_or_else(|| Missing::Explicit {
                toolchain: name.clone(),
                looked_in: self.rustup_home.join("toolchains"),
            });
        }
        [NIGHTLY, LINKED].iter().find_map(|name| self.usable(name)).ok_or(Missing::Compiler)
    }

    fn usable(&self, name: &str) -> Option<(Compiler, PathBuf)> {
        let root = self.toolchain_root(name)?;
        let toolchain = name.to_owned();
        // aya-build asks for build-std by the channel, so a prebuilt core counts outside nightly only.
        if name.starts_with(NIGHTLY) {
            let source = root.join("lib/rustlib/src/rust/library/core/src/lib.rs");
            source.is_file().then_some((Compiler::BuildsCore { toolchain }, root))
        } else {
            prebuilt_core(&root)?;
            Some((Compiler::HasCore { toolchain }, root))
        }
    }

    pub fn find(&self) -> Result<Found, Missing> {
        let (compiler, root) = self.compiler()?;
        let Some(linker) = self.linker() else { return Err(Missing::Linker { compiler }) };
        if let (Some(linker_llvm), Some(compiler_llvm)) = (linked_llvm(&linker), bundled_llvm(&root))
            && linker_llvm < compiler_llvm
        {
            return Err(Missing::LinkerTooOld { compiler, linker, linker_llvm, compiler_llvm });
        }
        let mut witnesses = vec![root.join("bin/rustc"), linker.clone()];
        witnesses.extend(prebuilt_core(&root));
        Ok(Found { compiler, linker, witnesses })
    }
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The `core` for little-endian BPF that a compiler brought along.
fn prebuilt_core(root: &Path) -> Option<PathBuf> {
    let lib = root.join("lib/rustlib/bpfel-unknown-none/lib");
    let core = |file: &Path| {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    };
    fs::read_dir(lib).ok()?.filter_map(Result::ok).map(|entry| entry.path()).find(|file| core(file))
}

/// Major version of the LLVM a toolchain of rustup brings: it lies there as `lib/libLLVM.so.22.1-rust-...`.
pub fn bundled_llvm(root: &Path) -> Option<u32> {
    fs::read_dir(root.join("lib"))
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| llvm_major(entry.file_name().to_str()?.as_bytes()))
        .max()
}

/// Major version of the shared LLVM a linker was linked with; none if LLVM is inside it.
fn linked_llvm(linker: &Path) -> Option<u32> {
    let image = fs::read(linker).ok()?;
    // The dynamic string table holds the name between two NULs.
    image
        .split(|byte| *byte == 0)
        .filter(|text| text.len() < 64 && text.starts_with(b"libLLVM"))
        .filter_map(llvm_major)
        .max()
}

/// `libLLVM.so.22.1`, `libLLVM-22.so` and the like.
fn llvm_major(file: &[u8]) -> Option<u32> {
    let rest = file.strip_prefix(b"libLLVM.so.").or_else(|| file.strip_prefix(b"libLLVM-"))?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}
