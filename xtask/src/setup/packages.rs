//! Programs from Debian's packages.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::process;

const WHY: &str = "installing packages";

/// A program, or a file by its absolute path, and the Debian package that brings it.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
}

impl Tool {
    fn is_there(self) -> bool {
        let file = Path::new(self.program);
        if file.is_absolute() { file.exists() } else { process::which(self.program).is_some() }
    }
}

/// Installs the packages of those programs that are not on the path.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let lacking: Vec<Tool> = tools.iter().copied().filter(|tool| !tool.is_there()).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = lacking.iter().map(|tool| tool.package).collect();
    if !has_apt() {
        let programs: Vec<&str> = lacking.iter().map(|tool| tool.program).collect();
        bail!(
            "{} is not a system of which I know the packages: install {} yourself (on Debian: {}), then \
             repeat the command",
            system(),
            programs.join(", "),
            packages.join(", ")
        );
    }
    say(&format!("installing {}", packages.join(" ")));
    install(&packages)?;
    let lost = |tool: &&Tool| !tool.is_there();
    // Installed, says the package database, but somebody took the file away.
    let again: Vec<&str> = lacking.iter().filter(lost).map(|tool| tool.package).collect();
    if !again.is_empty() {
        install(&[&["--reinstall"], &again[..]].concat())?;
    }
    if let Some(tool) = lacking.iter().find(lost) {
        bail!("{} is installed, but there is no program {}", tool.package, tool.program);
    }
    Ok(())
}

pub fn has_apt() -> bool {
    process::which("apt-get").is_some() && process::which("dpkg").is_some()
}

/// The name of this system as it calls itself.
pub fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "this".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Whether apt could install all of these: known, with a version to install.
pub fn available(packages: &[&str]) -> bool {
    let policy = |package: &&str| {
        let answer = process::capture(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
        answer.is_ok_and(|text| {
            let text = String::from_utf8_lossy(&text);
            text.lines().any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|v| v != "(none)"))
        })
    };
    packages.iter().all(policy)
}

/// Fetches the lists of packages. A repository that does not answer is no reason to stop: what counts is
/// whether the packages can be had, and the installation tells.
pub fn update_lists() -> Result<()> {
    say("fetching the lists of packages");
    let mut command = apt_get()?;
    if let Err(error) = process::capture(command.arg("update")) {
        say(&format!("{error:#}; going on"));
    }
    Ok(())
}

pub fn lists_are_missing() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else { return true };
    !entries.filter_map(Result::ok).any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Installs packages of Debian, and makes good an installation that was broken off before.
pub fn install(packages: &[&str]) -> Result<()> {
    if lists_are_missing() {
        update_lists()?;
    }
    let no_services = NoServices::begin(packages)?;
    process::run(
        process::as_root("dpkg", WHY)?.args(["--configure", "-a"]).stdin(Stdio::null()).stdout(Stdio::null()),
    )
    .context("an earlier installation was interrupted and cannot be completed")?;
    let attempt = |removal: &[&str]| {
        let mut command = apt_get()?;
        command.args(["install", "-y", "--no-install-recommends"]).args(removal).args(packages);
        process::capture(&mut command)
    };
    // Nothing that is installed goes away: a conflict is the operator's to resolve.
    if let Err(first) = attempt(&["--no-remove"]) {
        // Most often the lists are older than the archive.
        say(&format!("{first:#}; trying again with new lists"));
        update_lists()?;
        if let Err(second) = attempt(&["--no-remove"]) {
            // A machine of a CI belongs to nobody: what is in the way may go.
            if std::env::var_os("CI").is_none() {
                return Err(second.context(
                    "if a package stands in the way, as qemu-utils of another release does in that of \
                     qemu-system-x86, remove it or set CI=true to have that done",
                ));
            }
            say(&format!("{second:#}; removing what is in the way"));
            attempt(&[])?;
        }
    }
    no_services.end()
}

fn apt_get() -> Result<Command> {
    let mut command = process::as_root("env", WHY)?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"])
        .args(["-o", "Dpkg::Use-Pty=0"])
        .stdin(Stdio::null());
    Ok(command)
}

/// While this lives, no package that is being installed may start its service: the tests start an nginx of
/// their own in namespaces, and one on the host would only take port 80.
struct NoServices {
    written: bool,
    disable: Vec<&'static str>,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
/// By this line a policy left behind by an interrupted run is known as ours.
const POLICY_TEXT: &str =
    "#!/bin/sh\n# lbd xtask: no services while test tools are being installed\nexit 101\n";

impl NoServices {
    fn begin(packages: &[&str]) -> Result<Self> {
        let services = [
            ("nginx-light", "nginx"),
            ("mariadb-server", "mariadb"),
            ("redis-server", "redis-server"),
            ("prometheus", "prometheus"),
            ("haproxy", "haproxy"),
            ("ipvsadm", "ipvsadm"),
            ("knot", "knot"),
            ("etcd-server", "etcd"),
            ("prometheus-nginx-exporter", "prometheus-nginx-exporter"),
            ("prometheus-mysqld-exporter", "prometheus-mysqld-exporter"),
        ];
        let disable: Vec<&str> = services
            .into_iter()
            .filter(|(package, _)| packages.contains(package))
            .map(|(_, service)| service)
            .collect();
        let written = match fs::read_to_string(POLICY) {
            // The administrator's own policy stays.
            Ok(text) if text != POLICY_TEXT => false,
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                write_as_root(Path::new(POLICY), POLICY_TEXT)?;
                true
            }
            Err(_) => false,
        };
        Ok(Self { written, disable })
    }

    fn end(self) -> Result<()> {
        for service in &self.disable {
            // Not at the next boot either.
            if process::which("update-rc.d").is_some() {
                process::run(
                    process::as_root("update-rc.d", WHY)?.args([service, "disable"]).stdout(Stdio::null()),
                )?;
            }
        }
        Ok(())
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.written
            && let Ok(mut command) = process::as_root("rm", WHY)
            && let Err(error) = process::run(command.args(["-f", POLICY]))
        {
            say(&format!("{POLICY} must be removed by hand: {error:#}"));
        }
    }
}

fn write_as_root(file: &Path, text: &str) -> Result<()> {
    if process::is_root() {
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
        return Ok(());
    }
    let script = format!("printf %s \"$1\" > '{0}' && chmod 755 '{0}'", file.display());
    process::run(process::as_root("sh", WHY)?.args(["-c", &script, "sh", text]))
}
