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
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Names the rustup toolchain to use, before all others.
pub const TOOLCHAIN_VAR: &str = "LBD_EBPF_TOOLCHAIN";
/// The name under which a compiler outside rustup is made known to rustup.
pub const LINKED: &str = "ebpf";
pub const NIGHTLY: &str = "nightly";
pub const LINKER: &str = "bpf-linker";

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

    /// The compilers that would do, best first, each with the root of its files. Never empty.
    pub fn compilers(&self) -> Result<Vec<(Compiler, PathBuf)>, Missing> {
        if !self.has_rustup() {
            let rustc = self.program("rustc").and_then(|file| fs::canonicalize(file).ok());
            let root = rustc.as_deref().and_then(Path::parent).and_then(Path::parent);
            return match root {
                Some(root) if prebuilt_core(root).is_some() => Ok(vec![(Compiler::System, root.to_owned())]),
                _ => Err(Missing::Compiler),
            };
        }
        if let Some(name) = &self.explicit {
            return self.usable(name).map(|only| vec![only]).ok_or_else(|| Missing::Explicit {
                toolchain: name.clone(),
                looked_in: self.rustup_home.join("toolchains"),
            });
        }
        let all: Vec<_> = [NIGHTLY, LINKED].iter().filter_map(|name| self.usable(name)).collect();
        if all.is_empty() { Err(Missing::Compiler) } else { Ok(all) }
    }

    fn usable(&self, name: &str) -> Option<(Compiler, PathBuf)> {
        let root = self.toolchain_root(name)?;
        let toolchain = name.to_owned();
        // A nightly builds core itself; a prebuilt core counts outside nightly only.
        if name.starts_with(NIGHTLY) {
            let source = root.join("lib/rustlib/src/rust/library/core/src/lib.rs");
            source.is_file().then_some((Compiler::BuildsCore { toolchain }, root))
        } else {
            prebuilt_core(&root)?;
            Some((Compiler::HasCore { toolchain }, root))
        }
    }

    /// The best compiler that the linker can follow.
    pub fn find(&self) -> Result<Found, Missing> {
        let compilers = self.compilers()?;
        let Some(linker) = self.linker() else {
            return Err(Missing::Linker { compiler: compilers[0].0.clone() });
        };
        let linker_llvm = linked_llvm(&linker);
        let mut too_old = None;
        for (compiler, root) in compilers {
            if let (Some(linker_llvm), Some(compiler_llvm)) = (linker_llvm, bundled_llvm(&root))
                && linker_llvm < compiler_llvm
            {
                let linker = linker.clone();
                too_old.get_or_insert(Missing::LinkerTooOld { compiler, linker, linker_llvm, compiler_llvm });
                continue;
            }
            let mut witnesses = vec![root.join("bin/rustc"), linker.clone()];
            witnesses.extend(prebuilt_core(&root));
            return Ok(Found { compiler, linker, witnesses });
        }
        Err(too_old.unwrap_or(Missing::Compiler))
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
    let names = dynamic_strings(&fs::File::open(linker).ok()?)?;
    names.split(|byte| *byte == 0).filter_map(llvm_major).max()
}

/// The string table of a 64-bit little-endian ELF file that names, among others, the libraries it needs.
fn dynamic_strings(file: &fs::File) -> Option<Vec<u8>> {
    const SHT_STRTAB: u64 = 3;
    const SHF_ALLOC: u64 = 2;
    /// Far above any real one; a broken file must not make us read for ever.
    const LIMIT: u64 = 1 << 24;

    let read = |at: u64, len: u64| -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len.min(LIMIT)).ok()?];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    };
    let number = |bytes: &[u8], at: usize, len: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(len)?)?;
        Some(field.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    };
    let header = read(0, 64).filter(|header| header.starts_with(b"\x7fELF\x02\x01"))?;
    let (table, size, count) =
        (number(&header, 0x28, 8)?, number(&header, 0x3a, 2)?, number(&header, 0x3c, 2)?);
    let sections = read(table, size.checked_mul(count)?)?;
    sections.chunks_exact(usize::try_from(size).ok().filter(|size| *size > 0)?).find_map(|section| {
        // Of the string tables only that of the dynamic linker is part of the process.
        let is_dynstr = number(section, 4, 4)? == SHT_STRTAB && number(section, 8, 8)? & SHF_ALLOC != 0;
        if is_dynstr { read(number(section, 0x18, 8)?, number(section, 0x20, 8)?) } else { None }
    })
}

/// `libLLVM.so.22.1`, `libLLVM-22.so` and the like.
fn llvm_major(file: &[u8]) -> Option<u32> {
    let rest = file.strip_prefix(b"libLLVM.so.").or_else(|| file.strip_prefix(b"libLLVM-"))?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home directory with nothing in it but what a test puts there.
    struct Home {
        dir: tempfile::TempDir,
        places: Places,
    }

    impl Home {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            let places = Places {
                explicit: None,
                path: vec![root.join("bin")],
                rustup_home: root.join("rustup"),
                cargo_home: root.join("cargo"),
                hosts: vec!["x86_64-unknown-linux-gnu".to_owned()],
            };
            Self { dir, places }
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let file = self.dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            file
        }

        fn toolchain(&self, name: &str, files: &[&str]) {
            for file in ["bin/rustc", "bin/cargo"].iter().chain(files) {
                self.file(&format!("rustup/toolchains/{name}/{file}"), b"");
            }
        }
    }

    const SOURCE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";
    const CORE: &str = "lib/rustlib/bpfel-unknown-none/lib/libcore-0123.rlib";
    const NIGHTLY_DIR: &str = "nightly-x86_64-unknown-linux-gnu";

    /// An ELF file with nothing but a string table for the dynamic linker.
    fn elf(strings: &[u8]) -> Vec<u8> {
        let mut image = b"\x7fELF\x02\x01".to_vec();
        image.resize(128, 0);
        (image[0x28], image[0x3a], image[0x3c]) = (64, 64, 1);
        (image[64 + 4], image[64 + 8], image[64 + 0x18]) = (3, 2, 128);
        image[64 + 0x20] = u8::try_from(strings.len()).unwrap();
        image.extend(strings);
        image
    }

    fn named(toolchain: &str, builds_core: bool) -> Compiler {
        let toolchain = toolchain.to_owned();
        if builds_core { Compiler::BuildsCore { toolchain } } else { Compiler::HasCore { toolchain } }
    }

    #[test]
    fn nothing_is_found_where_nothing_is() {
        let home = Home::new();
        assert_eq!(home.places.find(), Err(Missing::Compiler));
        home.file("bin/rustup", b"");
        assert_eq!(home.places.find(), Err(Missing::Compiler));
        // A nightly without sources and a link without a core are of no use.
        home.toolchain(NIGHTLY_DIR, &[]);
        home.toolchain(LINKED, &[SOURCE]);
        assert_eq!(home.places.find(), Err(Missing::Compiler));
    }

    #[test]
    fn nightly_with_sources_comes_before_a_linked_compiler() {
        let home = Home::new();
        home.file("bin/rustup", b"");
        home.toolchain(LINKED, &[CORE]);
        assert_eq!(home.places.find(), Err(Missing::Linker { compiler: named(LINKED, false) }));
        let linker = home.file("cargo/bin/bpf-linker", b"");
        let found = home.places.find().unwrap();
        assert_eq!((found.compiler, found.linker), (named(LINKED, false), linker));
        home.toolchain(NIGHTLY_DIR, &[SOURCE]);
        assert_eq!(home.places.find().unwrap().compiler, named(NIGHTLY, true));
    }

    #[test]
    fn a_compiler_whose_llvm_is_too_new_for_the_linker_is_passed_over() {
        let home = Home::new();
        home.file("bin/rustup", b"");
        let linker = home.file("bin/bpf-linker", &elf(b"\0libc.so.6\0libLLVM.so.22.1\0"));
        home.toolchain(NIGHTLY_DIR, &[SOURCE, "lib/libLLVM.so.23.1-rust-1.99.0-nightly"]);
        assert_eq!(
            home.places.find(),
            Err(Missing::LinkerTooOld {
                compiler: named(NIGHTLY, true),
                linker,
                linker_llvm: 22,
                compiler_llvm: 23
            })
        );
        home.toolchain(LINKED, &[CORE]);
        assert_eq!(home.places.find().unwrap().compiler, named(LINKED, false));
    }

    #[test]
    fn the_toolchain_asked_for_is_taken_or_refused() {
        let mut home = Home::new();
        home.file("bin/rustup", b"");
        home.file("bin/bpf-linker", b"");
        home.toolchain(LINKED, &[CORE]);
        home.toolchain("mine", &[CORE]);
        home.places.explicit = Some("mine".to_owned());
        assert_eq!(home.places.find().unwrap().compiler, named("mine", false));
        home.places.explicit = Some("other".to_owned());
        assert!(
            matches!(home.places.find(), Err(Missing::Explicit { toolchain, .. }) if toolchain == "other")
        );
    }

    #[test]
    fn without_rustup_the_compiler_on_the_path_counts() {
        let home = Home::new();
        home.file("bin/bpf-linker", b"");
        home.file("bin/rustc", b"");
        assert_eq!(home.places.find(), Err(Missing::Compiler));
        home.file(CORE, b"");
        assert_eq!(home.places.find().unwrap().compiler, Compiler::System);
    }

    #[test]
    fn a_linker_that_is_broken_in_any_way_has_no_known_llvm() {
        let home = Home::new();
        let whole = elf(b"\0libLLVM.so.22.1\0");
        assert_eq!(linked_llvm(&home.file("linker", &whole)), Some(22));
        for length in 0..whole.len() {
            assert_eq!(linked_llvm(&home.file("linker", &whole[..length])), None, "{length}");
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] = 0xff;
            let _ = linked_llvm(&home.file("linker", &broken));
        }
    }

    #[test]
    fn versions_of_llvm_are_read_from_names() {
        assert_eq!(llvm_major(b"libLLVM.so.22.1"), Some(22));
        assert_eq!(llvm_major(b"libLLVM-22-rust-1.97.0-nightly.so"), Some(22));
        assert_eq!(llvm_major(b"libLLVMSupport.a"), None);
        assert_eq!(llvm_major(b"libLLVM-C.so"), None);
    }
}
