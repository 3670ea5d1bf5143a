//! Named network namespaces, and running code inside them.
//!
//! A namespace is entered by `setns` on a thread or between fork and exec. Mounts stay as they are: `ip netns exec`
//! would hide /sys/fs/bpf behind a fresh /sys. Where a program must see the namespace's own interfaces under
//! /sys/class/net, [`Netns::command_with_sysfs`] swaps in just those two directories and leaves bpffs visible.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    os::unix::process::CommandExt as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::{Error, Result};

/// Where `ip netns` and `nsenter --net=` look.
const DIR: &str = "/run/netns";

/// What every namespace of the lab is set to before its first interface appears. In order of importance: frames
/// must not be dropped for coming back another way, and addresses must work at once.
const SYSCTLS: [(&str, &str); 14] = [
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
];

/// A network namespace of a lab. Clones are handles on the same one; the lab removes it.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    short: String,
    name: String,
    file: File,
}

impl std::fmt::Debug for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Netns {}

impl Netns {
    pub(super) fn create(short: &str, name: &str) -> Result<Self> {
        let fail = |step| move |source: io::Error| Error::Namespace { name: name.to_owned(), step, source };
        if !is_name(name) {
            return Err(fail("checking the name")(io::ErrorKind::InvalidInput.into()));
        }
        prepare_dir().map_err(fail("preparing /run/netns"))?;
        let path = Path::new(DIR).join(name);
        File::create_new(&path).map_err(fail("creating its file under /run/netns"))?;
        // A fresh thread, because unshare changes the thread that calls it.
        let made = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| fail("unshare")(e.into()))?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|e| fail("mounting it under /run/netns")(e.into()))?;
            super::ethtool::set_flags("lo", libc::IFF_UP).map_err(fail("bringing its loopback up"))?;
            for (key, value) in SYSCTLS {
                write_sysctl(key, value).map_err(fail("setting its sysctls"))?;
            }
            File::open(own).map_err(fail("opening it"))
        });
        match made {
            Ok(file) => Ok(Self(Arc::new(Inner { short: short.to_owned(), name: name.to_owned(), file }))),
            Err(error) => {
                remove(name);
                Err(error)
            }
        }
    }

    /// The full name, as `nsenter --net=/run/netns/NAME` and `ip -n NAME` take it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name without the lab's prefix, for example `lb1`.
    pub fn short_name(&self) -> &str {
        &self.0.short
    }

    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.0.name)
    }

    /// Runs a closure on a fresh thread inside the namespace and waits for it. Threads it starts are inside as well;
    /// sockets it opens belong to the namespace for good, wherever they are used. /proc/sys/net is the namespace's,
    /// all mounts (bpffs too) are this process's.
    ///
    /// # Panics
    /// With the closure's own panic, or when the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            if let Err(e) = setns(self.0.file.as_fd(), CloneFlags::CLONE_NEWNET) {
                panic!("cannot enter the network namespace {}: {e}", self.0.name);
            }
            f()
        })
    }

    /// A command that runs inside the namespace, in the caller's mounts. `Command::uid` would take away the right to
    /// enter before the namespace is entered: use `setpriv` inside instead.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(resolve(program.as_ref()));
        let inner = Arc::clone(&self.0);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: setns is one plain system call, and
        // the descriptor is kept open by the Arc the closure owns.
        unsafe {
            command.pre_exec(move || {
                setns(inner.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
            });
        }
        command
    }

    /// As [`Netns::command`], in a mount namespace of its own where /sys/class/net and /sys/devices/virtual/net show
    /// this namespace's interfaces; everything else, /sys/fs/bpf included, stays as it was.
    pub fn command_with_sysfs(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command(program);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: own_sysfs makes plain system calls
        // on constant paths and allocates nothing (nix copies short paths to the stack).
        unsafe {
            command.pre_exec(|| own_sysfs().map_err(io::Error::from));
        }
        command
    }

    /// Runs a program to its end and returns what it wrote to stdout; a failure carries both streams.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(args)
            .output()
            .map_err(|source| Error::Spawn { program: program.to_owned(), source })?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(stdout);
        }
        Err(Error::Failed {
            ns: self.0.name.clone(),
            command: format!("{program} {}", args.join(" ")),
            status: output.status,
            output: format!("{stdout}{}", String::from_utf8_lossy(&output.stderr)),
        })
    }

    /// Sets a sysctl of the namespace, for example `sysctl("net.ipv4.ip_forward", "1")`. An interface's name that
    /// holds a dot can be given with the path form, `net/ipv4/conf/eth0.7/rp_filter`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(&sysctl_path(key), value)).map_err(|source| Error::Sysctl {
            ns: self.0.name.clone(),
            key: key.to_owned(),
            value: value.to_owned(),
            source,
        })
    }

    pub(super) fn remove(&self) {
        remove(&self.0.name);
    }
}

/// Runs a closure on a thread of its own and hands on its result or panic.
fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(f).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

fn sysctl_path(key: &str) -> String {
    if key.contains('/') { key.to_owned() } else { key.replace('.', "/") }
}

fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value)
}

/// A program named without a slash is looked up here, also in sbin, because a user's `PATH` may lack it.
fn resolve(program: &OsStr) -> PathBuf {
    let named = program.to_str().filter(|p| !p.contains('/'));
    named.and_then(crate::skip::find_tool).unwrap_or_else(|| program.into())
}

/// Whether the text can be a namespace's file name; this keeps the sweeper inside its directory.
pub(super) fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    name.len() <= 200
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(inner)
}

/// Takes the name away; the kernel ends the namespace when its last process and socket are gone.
pub(super) fn remove(name: &str) {
    let path = Path::new(DIR).join(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&path);
}

/// Makes /run/netns a shared mount as `ip netns add` does: otherwise the first `ip netns add` of somebody else would
/// bind it over itself, and removing a namespace would leave a hidden second mount that keeps it alive.
fn prepare_dir() -> io::Result<()> {
    fs::create_dir_all(DIR)?;
    let _one_at_a_time =
        Flock::lock(File::open(DIR)?, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
    let share = || mount(None::<&str>, DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    if share().is_err() {
        mount(Some(DIR), DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        share()?;
    }
    Ok(())
}

/// Called in a child between fork and exec.
fn own_sysfs() -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Unmounting elsewhere must reach this copy, or it would hold other labs' namespaces; nothing goes the other way.
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
    // The new sysfs needs a place for a moment: /run/netns is one, hidden only from this child and only until the
    // detach below.
    mount(Some("sysfs"), DIR, Some("sysfs"), MsFlags::empty(), none)?;
    mount(Some("/run/netns/devices/virtual/net"), "/sys/devices/virtual/net", none, MsFlags::MS_BIND, none)?;
    mount(Some("/run/netns/class/net"), "/sys/class/net", none, MsFlags::MS_BIND, none)?;
    umount2(DIR, MntFlags::MNT_DETACH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        assert!(is_name("lbd-1-0-web1") && is_name("a.b_c"));
        for bad in ["", ".", "..", "../x", "a/b", "-x", "a b"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn sysctl_keys_may_be_dotted_or_paths() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.7/rp_filter"), "net/ipv4/conf/eth0.7/rp_filter");
    }
}
