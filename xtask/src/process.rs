//! Running other programs, and saying what went wrong with them.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;

use crate::toolchain::Places;

/// Why programs and tests run as root.
pub const NETWORK: &str = "network namespaces and XDP";

/// Directories of system tools that a user's path may lack.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Looks on the path and where system tools lie.
pub fn which(program: &str) -> Option<PathBuf> {
    let mut places = Places::from_env();
    places.path.extend(SBIN.iter().map(PathBuf::from));
    places.program(program)
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        if arg.is_empty() || arg.contains(|c: char| c.is_whitespace() || "'\"$&|;<>()*?\\".contains(c)) {
            let _ = write!(line, " '{}'", arg.replace('\'', r"'\''"));
        } else {
            let _ = write!(line, " {arg}");
        }
    }
    line
}

/// Runs a command that must succeed; its output goes where ours goes.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command that must succeed and returns its standard output. What it says on the other channel
/// becomes part of the error.
pub fn capture(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", shown(command), output.status, said.trim());
    }
    Ok(output.stdout)
}

/// Whether a command runs and succeeds, quietly.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The words to put before a program so that it runs as root with our path: none for root itself. `why` ends a
/// sentence: root is needed for ...
pub fn root_prefix(why: &str) -> Result<Vec<String>> {
    if is_root() {
        return Ok(Vec::new());
    }
    if which("sudo").is_none() {
        let words: Vec<String> = std::env::args().skip(1).collect();
        bail!(
            "root is needed for {why}, and there is no sudo here; become root and type `cargo xtask {}`",
            words.join(" ")
        );
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut words = vec!["sudo".to_owned(), "--preserve-env".to_owned()];
    if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        words.push("--non-interactive".to_owned());
    }
    // sudo replaces the path even when it preserves the rest.
    words.extend(["env".to_owned(), format!("PATH={path}")]);
    Ok(words)
}

/// A command that runs as root.
pub fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    let prefix = root_prefix(why)?;
    Ok(match prefix.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    })
}

/// Becomes the program, as root: signals and the exit status are then its own.
pub fn exec_as_root(program: &Path, args: &[String]) -> Result<()> {
    if !program.is_file() {
        bail!("{} is missing, although the build succeeded", program.display());
    }
    let mut command = as_root(program, NETWORK)?;
    command.args(args);
    if !is_root() {
        eprintln!("xtask: as root: {}", shown(&command));
    }
    Err(command.exec()).with_context(|| format!("cannot start `{}`", shown(&command)))
}
