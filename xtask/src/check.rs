//! `cargo xtask check`: format, lints, layers, lengths, licences.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;
use crate::{layers, process, setup};

const MAX_LINES: usize = 600;
/// A longer file says why in its header, by a line that begins so.
const LONG_BECAUSE: &str = "//! Long because";
/// The packages whose sources are looked at.
const PACKAGES: [&str; 5] = ["xtask", "lb-common", "lb-ebpf", "lb-userspace", "tests"];

pub fn run(workspace: &Workspace) -> Result<()> {
    setup::run(&[setup::Group::Build])?;
    let sources = sources(&workspace.root)?;
    let mut complaints = layers::check(&sources);
    complaints.extend(too_long(&sources));
    for complaint in &complaints {
        eprintln!("check: {complaint}");
    }
    if !complaints.is_empty() {
        bail!(
            "{} violations of the house's rules, see above (the table is in xtask/src/layers)",
            complaints.len()
        );
    }
    ensure_component(workspace, "fmt", "rustfmt")?;
    process::run(workspace.cargo().args(["fmt", "--all", "--check"]))
        .context("`cargo fmt --all` puts it right")?;
    ensure_component(workspace, "clippy", "clippy")?;
    process::run(workspace.cargo().args([
        "clippy",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    deny(workspace)
}

/// A source file: its path below the workspace, and its text.
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut all = Vec::new();
    let mut dirs: Vec<PathBuf> = PACKAGES.iter().map(|package| root.join(package)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                // A separate workspace (fuzzing) keeps a target directory of its own.
                if path.file_name().is_some_and(|name| name != "target") {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let path = path.strip_prefix(root)?.to_owned();
                all.push(Source { path, text });
            }
        }
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

fn too_long(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        let header = source.text.lines().take_while(|line| line.starts_with("//!") || line.is_empty());
        if lines > MAX_LINES && !header.into_iter().any(|line| line.starts_with(LONG_BECAUSE)) {
            complaints.push(format!(
                "{}: {lines} lines; split it, or say `{LONG_BECAUSE} ...` in its header (limit {MAX_LINES})",
                source.path.display()
            ));
        }
    }
    complaints
}

/// rustfmt and clippy are parts of a toolchain that a minimal one lacks.
fn ensure_component(workspace: &Workspace, verb: &str, component: &str) -> Result<()> {
    if process::succeeds(workspace.cargo().args([verb, "--version"])) {
        return Ok(());
    }
    eprintln!("check: {component} is not installed, asking rustup for it");
    process::run(std::process::Command::new("rustup").args(["component", "add", component]))
        .with_context(|| format!("`cargo {verb}` is needed and cannot be had"))
}

/// Licences and origins of the dependencies always, where cargo-deny is; advisories where their database can be
/// had. What was not checked is said.
fn deny(workspace: &Workspace) -> Result<()> {
    if !process::succeeds(workspace.cargo().args(["deny", "--version"])) {
        eprintln!(
            "check: NOT CHECKED: licences and advisories (cargo-deny is not installed: cargo install cargo-deny)"
        );
        return Ok(());
    }
    process::run(workspace.cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    if process::succeeds(workspace.cargo().args(["deny", "fetch", "db"])) {
        process::run(workspace.cargo().args(["deny", "check", "--disable-fetch", "advisories"]))
    } else {
        eprintln!("check: NOT CHECKED: advisories (their database cannot be fetched from here)");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(lines: usize, header: &str) -> Source {
        let text = format!("{header}\n{}", "fn f() {}\n".repeat(lines - 1));
        Source { path: PathBuf::from("lb-common/src/x.rs"), text }
    }

    #[test]
    fn a_long_file_must_say_why() {
        assert_eq!(too_long(&[source(600, "//! Short.")]), Vec::<String>::new());
        assert_eq!(too_long(&[source(601, "//! Long because it is one table.")]), Vec::<String>::new());
        let complaints = too_long(&[source(601, "//! Long.")]);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].contains("lb-common/src/x.rs: 601 lines"), "{complaints:?}");
    }
}
