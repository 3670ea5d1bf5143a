//! `cargo xtask disasm`: the machine code of the eBPF programs, with the source lines above it.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::setup::{self, Group};
use crate::workspace::Workspace;

const PROGRAMS: [&str; 3] = ["lb", "decap", "bench"];

pub fn run(workspace: &Workspace, program: Option<&str>) -> Result<()> {
    let wanted: Vec<&str> = match program {
        Some(name) if PROGRAMS.contains(&name) => vec![name],
        Some(name) => bail!("there is no eBPF program `{name}`; there are {}", PROGRAMS.join(", ")),
        None => PROGRAMS.to_vec(),
    };
    let Some(objdump) = objdump() else {
        bail!(
            "no llvm-objdump was found, neither on the path nor under /usr/lib/llvm-*/bin; on Debian: \
             apt-get install llvm-22"
        );
    };
    setup::run(&[Group::Build])?;
    process::run(workspace.cargo().args(["build", "--quiet", "-p", "lb-userspace", "--lib"]))?;
    let files: Vec<PathBuf> = wanted.iter().map(|name| workspace.target.join("bpf").join(name)).collect();
    if let Some(file) = files.iter().find(|file| !file.is_file()) {
        bail!("{} is missing; `cargo clean -p lb-userspace` and repeat the command", file.display());
    }
    let mut command = Command::new(objdump);
    command
        .args(["--disassemble", "--line-numbers", "--source", "--reloc"])
        .args(files)
        // The programs name their sources relative to the workspace.
        .current_dir(&workspace.root)
        // It complains of every file of `core`, whose sources are not here.
        .stderr(Stdio::null());
    Err(command.exec()).with_context(|| format!("cannot start `{}`", process::shown(&command)))
}

/// The newest one that there is: only LLVM 17 and later know all instructions of the current BPF.
fn objdump() -> Option<PathBuf> {
    let mut versions: Vec<u32> = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("llvm-")?.parse().ok())
        .collect();
    versions.sort_unstable();
    versions
        .iter()
        .rev()
        .map(|version| PathBuf::from(format!("/usr/lib/llvm-{version}/bin/llvm-objdump")))
        .find(|file| file.is_file())
        .or_else(|| process::which("llvm-objdump"))
}
