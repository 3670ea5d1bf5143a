//! `cargo xtask vm KERNEL -- COMMAND`: the command runs as root under another kernel, on the file system of
//! this machine. What it writes is lost, except below the shared directory; there is no network but `lo`.
//!
//! The guest is a qemu that boots Debian's kernel directly. Its root is ours, read-only through 9p with an
//! overlay in memory. Emulated, unless this machine really has KVM: right for correctness, worthless for time.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};

use crate::process;
use crate::setup::{self, Group};
use crate::workspace::Workspace;

mod cpio;
mod kernel;

use kernel::Bootable;

pub const HELP: &str = "\
The exit status is the command's; 124: it did not end in time; 125: the guest gave none.
Variables of the environment that begin with LBD_ or RUST_ are passed on.

Examples:
  cargo xtask vm 6.1 -- uname -a
  cargo xtask vm 6.12 --timeout 600 -- target/debug/lbd --config examples/lbd.toml";

const TIMED_OUT: u8 = 124;
const NO_STATUS: u8 = 125;

#[derive(clap::Args)]
pub struct Options {
    /// 6.1, 6.12, or a directory that holds boot/vmlinuz-* and lib/modules/*
    kernel: Kernel,
    /// Directory the guest may write to; by default the current one
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory of the guest, as qemu takes it
    #[arg(long, default_value = "2G")]
    memory: String,
    /// Seconds
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// One processor whose clock counts instructions, one per nanosecond: repeatable on a busy host
    #[arg(long)]
    icount: bool,
    /// Further arguments of the kernel
    #[arg(long, default_value = "")]
    append: String,
    /// Print the kernel's log at the end
    #[arg(long)]
    debug: bool,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Which kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's kernel of this series, by the metapackage that depends on it.
    Debian {
        series: &'static str,
        metapackage: &'static str,
    },
    Directory(PathBuf),
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "6.1" => Ok(Self::Debian { series: "6.1", metapackage: "linux-image-amd64" }),
            "6.12" => Ok(Self::Debian { series: "6.12", metapackage: "linux-image-6.12-amd64" }),
            dir if Path::new(dir).join("boot").is_dir() => Ok(Self::Directory(fs::canonicalize(dir)?)),
            other => bail!("`{other}` is neither 6.1 nor 6.12 nor a directory with boot/ and lib/modules/"),
        }
    }
}

/// What the guest looks like.
pub struct Guest {
    pub share: Option<PathBuf>,
    pub cpus: u32,
    pub memory: String,
    pub timeout: Duration,
    pub icount: bool,
    pub append: String,
    pub debug: bool,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            share: None,
            cpus: 2,
            memory: "2G".to_owned(),
            timeout: Duration::from_secs(300),
            icount: false,
            append: String::new(),
            debug: false,
        }
    }
}

pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let guest = Guest {
        share: options.share.clone(),
        cpus: options.cpus,
        memory: options.memory.clone(),
        timeout: Duration::from_secs(options.timeout),
        icount: options.icount,
        append: options.append.clone(),
        debug: options.debug,
    };
    let status = boot(workspace, &options.kernel, &guest, &options.command);
    Ok(ExitCode::from(status.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        NO_STATUS
    })))
}

/// Boots, runs the command and returns its exit status (or `TIMED_OUT`).
pub fn boot(workspace: &Workspace, kernel: &Kernel, guest: &Guest, command: &[String]) -> Result<u8> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("virtual machines with this machine's file system exist for x86_64 only");
    }
    setup::run(&[Group::Vm])?;
    let here = std::env::current_dir().context("the current directory is gone")?;
    let share = guest.share.as_deref().unwrap_or(&here);
    let share = fs::canonicalize(share).with_context(|| format!("cannot share {}", share.display()))?;
    let rooms = workspace.target.join("vm");
    let bootable = kernel::prepare(&rooms, kernel)?;
    let control = Control::new(&rooms, &share, &here, command)?;

    let mut qemu = qemu(&bootable, guest, &control, &share);
    let child = qemu.spawn().with_context(|| format!("cannot start `{}`", process::shown(&qemu)))?;
    let ended = wait(child, guest.timeout)?;
    let status = control.status();
    let log = control.kernel_log();
    if guest.debug || (status.is_none() && ended.is_some()) {
        eprintln!("{}", String::from_utf8_lossy(&log));
    }
    match (ended, status) {
        (_, Some(status)) => Ok(status),
        (None, None) => {
            eprintln!("xtask: the guest did not end within {} s", guest.timeout.as_secs());
            Ok(TIMED_OUT)
        }
        (Some(ended), None) => {
            bail!("the guest ended without a status (qemu: {ended}); its kernel's log is above")
        }
    }
}

/// A directory that host and guest share: in go the command and its surroundings, out comes the status.
struct Control {
    dir: PathBuf,
}

impl Control {
    fn new(rooms: &Path, share: &Path, here: &Path, command: &[String]) -> Result<Self> {
        remove_abandoned(rooms);
        let dir = rooms.join(format!("run.{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let control = Self { dir };
        fs::write(control.dir.join("share"), share.as_os_str().as_bytes())?;
        fs::write(control.dir.join("command"), script(here, command))?;
        Ok(control)
    }

    fn status(&self) -> Option<u8> {
        fs::read_to_string(self.dir.join("status")).ok()?.trim().parse().ok()
    }

    fn kernel_log(&self) -> Vec<u8> {
        fs::read(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("console")
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Takes away what runs left behind that were killed.
fn remove_abandoned(rooms: &Path) {
    for entry in fs::read_dir(rooms).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix("run.")).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The shell script that the guest runs.
fn script(here: &Path, command: &[String]) -> Vec<u8> {
    let mut text = String::from("export HOME=/root TERM=dumb\n");
    let path = std::env::var("PATH").unwrap_or_default();
    let _ = writeln!(text, "export PATH={}", quoted(&format!("{path}:/usr/sbin:/sbin")));
    for (name, value) in std::env::vars() {
        if name.starts_with("LBD_") || name.starts_with("RUST_") {
            let _ = writeln!(text, "export {name}={}", quoted(&value));
        }
    }
    let mut script = text.into_bytes();
    script.extend(b"cd ");
    script.extend(quoted_bytes(here.as_os_str().as_bytes()));
    script.extend(b" || exit 125\nexec");
    for word in command {
        script.push(b' ');
        script.extend(quoted_bytes(word.as_bytes()));
    }
    script.push(b'\n');
    script
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn quoted_bytes(word: &[u8]) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in word {
        if byte == b'\'' { out.extend(br"'\''") } else { out.push(byte) }
    }
    out.push(b'\'');
    out
}

fn qemu(bootable: &Bootable, guest: &Guest, control: &Control, share: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "q35", "-m", &guest.memory, "-nodefaults", "-display", "none", "-no-reboot"]);
    // On a busy host the emulated timer ticks too late for the kernel's test of it, which would panic.
    let mut append = "console=ttyS0 panic=-1 loglevel=5 no_timer_check".to_owned();
    if guest.icount {
        // Every turn of a `rep stos` would count, and so would the zeroing of fresh pages.
        qemu.args(["-accel", "tcg,thread=single", "-cpu", "max,-erms,-fsrm", "-smp", "1"]);
        qemu.args(["-icount", "shift=0,sleep=off"]);
        append.push_str(" init_on_alloc=0");
    } else {
        let (accel, cpu) = if has_kvm() { ("kvm", "host") } else { ("tcg,thread=multi", "max") };
        qemu.args(["-accel", accel, "-cpu", cpu, "-smp", &guest.cpus.to_string()]);
    }
    for (tag, dir, read_only) in [
        ("host", Path::new("/"), true),
        ("modules", &bootable.modules, true),
        ("ctl", &control.dir, false),
        ("share", share, false),
    ] {
        let mut option = OsString::from("local,security_model=none,multidevs=remap,mount_tag=");
        option.push(tag);
        option.push(if read_only { ",readonly=on,path=" } else { ",path=" });
        option.push(escaped(dir));
        qemu.arg("-virtfs").arg(option);
    }
    let mut log = OsString::from("file:");
    log.push(escaped(&control.log_file()));
    qemu.arg("-serial").arg(log);
    qemu.args(["-chardev", "stdio,id=out,signal=off", "-device", "virtio-serial-pci"]);
    qemu.args(["-device", "virtconsole,chardev=out"]);
    qemu.arg("-kernel").arg(&bootable.vmlinux).arg("-initrd").arg(&bootable.initramfs);
    qemu.arg("-append").arg(format!("{append} {}", guest.append).trim_end());
    qemu.stdin(Stdio::null());
    // SAFETY: between fork and exec only prctl is called, which is safe in a signal handler and touches no memory.
    unsafe {
        qemu.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
    qemu
}

/// In an option of qemu a comma ends the value, a doubled one stands for itself.
fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        out.push(byte);
        if byte == b',' {
            out.push(byte);
        }
    }
    OsStr::from_bytes(&out).to_owned()
}

/// `/dev/kvm` alone does not tell: some hosts offer one that cannot run a stock kernel.
fn has_kvm() -> bool {
    let module = |name: &str| Path::new("/sys/module").join(name).is_dir();
    access("/dev/kvm", AccessFlags::W_OK).is_ok() && (module("kvm_intel") || module("kvm_amd"))
}

/// None if it had to be killed.
fn wait(mut child: Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    const POLL: Duration = Duration::from_millis(20);
    const GRACE: Duration = Duration::from_secs(5);
    let start = Instant::now();
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!asked).then_some(status));
        }
        let elapsed = start.elapsed();
        if elapsed > timeout.saturating_add(GRACE) {
            child.kill()?;
        } else if elapsed > timeout && !asked {
            asked = true;
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_or_lie_in_a_directory() {
        assert!(matches!("6.1".parse(), Ok(Kernel::Debian { series: "6.1", .. })));
        assert!(matches!("6.12".parse(), Ok(Kernel::Debian { series: "6.12", .. })));
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().to_str().unwrap();
        assert!(name.parse::<Kernel>().unwrap_err().to_string().contains("neither 6.1 nor 6.12"));
        fs::create_dir(dir.path().join("boot")).unwrap();
        assert!(matches!(name.parse(), Ok(Kernel::Directory(_))));
    }

    #[test]
    fn words_reach_the_command_as_they_are() {
        let words = ["printf", "[%s]", "a b", "it's", "$HOME", "*", "", "\\n"].map(str::to_owned);
        let output =
            Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script(Path::new("/"), &words))).output();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), "[a b][it's][$HOME][*][][\\n]");
    }

    #[test]
    fn a_child_that_does_not_end_is_ended() {
        let sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(wait(sleeper, Duration::from_millis(50)).unwrap().is_none());
        let quick = Command::new("true").spawn().unwrap();
        assert!(wait(quick, Duration::from_secs(60)).unwrap().unwrap().success());
    }
}
