//! The socket's file: made with its final mode, taken over from a dead daemon, never from a living one.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Group, User, chown, geteuid};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Owner and group may connect, nobody else.
const MODE: u32 = 0o660;
/// Connections the kernel queues before the server accepts them; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// Longest path of a Unix socket, its terminating zero left out (unix(7)).
const MAX_PATH: usize = 107;

/// Why the control socket was not made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "another lbd is answering on {path}; stop it first, or give this one its own run_dir (and pin_dir and state_dir)"
    )]
    InUse { path: PathBuf },
    #[error(
        "{path} exists and is not a socket; lbd makes its control socket there: remove the file or choose another run_dir"
    )]
    NotASocket { path: PathBuf },
    #[error(
        "the path of the control socket, {path}, has {length} bytes; at most {MAX_PATH} are possible: choose a shorter run_dir"
    )]
    TooLong { path: PathBuf, length: usize },
    #[error(
        "there is no group '{group}' on this host for the control socket; make it with: groupadd --system {group}"
    )]
    NoGroup { group: String },
    #[error(
        "{path} cannot be given to group '{group}': lbd runs as '{user}', which is no member of it; make it one with: usermod -aG {group} {user}"
    )]
    NotAMember { path: PathBuf, group: String, user: String },
    #[error("cannot make the control socket: {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// A listening control socket. Its file is removed when this is dropped, unless a successor has
/// replaced it meanwhile.
#[derive(Debug)]
pub struct ControlSocket {
    // Dropped before the listener: as long as that is open its inode is not given to another file.
    _file: SocketFile,
    listener: UnixListener,
}

impl ControlSocket {
    /// Listens on `path`, whose directory is made (mode 0755) where it is missing. Needs a tokio runtime.
    ///
    /// Two daemons starting at once exclude each other by a lock file that exists only for that moment.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        Self::bind_for(path, None)
    }

    /// As [`ControlSocket::bind`], for the members of a group, else of the daemon's own.
    pub fn bind_for(path: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let error = |what, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| BindError::Io { what, path, source }
        };
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            return Err(BindError::TooLong { path: path.to_owned(), length });
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(error("creating", directory))?;
        let _lock = StartLock::take(path).map_err(error("locking", path))?;
        make_room(path)?;
        let socket = make_socket(path).map_err(|errno| error("binding", path)(errno.into()))?;
        let meta = fs::symlink_metadata(path).map_err(error("examining", path))?;
        let file = SocketFile { path: path.to_owned(), device: meta.dev(), inode: meta.ino() };
        // The umask may have taken bits away; nobody can connect before `listen`.
        fs::set_permissions(path, Permissions::from_mode(MODE))
            .map_err(error("setting the mode of", path))?;
        if let Some(group) = group {
            let no_group = || BindError::NoGroup { group: group.to_owned() };
            let found = Group::from_name(group).ok().flatten().ok_or_else(no_group)?;
            chown(path, None, Some(found.gid)).map_err(|errno| match errno {
                // chown(2): who may not change owners may give a file only to a group of his own.
                Errno::EPERM => {
                    BindError::NotAMember { path: path.to_owned(), group: group.to_owned(), user: user() }
                }
                errno => error("giving to its group", path)(errno.into()),
            })?;
        }
        let backlog = Backlog::new(BACKLOG).map_err(|errno| error("listening on", path)(errno.into()))?;
        socket::listen(&socket, backlog).map_err(|errno| error("listening on", path)(errno.into()))?;
        let listener = UnixListener::from_std(socket.into()).map_err(error("listening on", path))?;
        Ok(Self { _file: file, listener })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// Whom the daemon runs as: the name, or the number where it has none.
fn user() -> String {
    let uid = geteuid();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Held from the look at the old socket to the first answer of the new one. A file only its owner can open:
/// a directory could be locked by everybody who may read it.
struct StartLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl StartLock {
    fn take(socket: &Path) -> io::Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
            // The last holder has removed the file: what was locked is no longer what others will find.
            let held = file.metadata()?;
            match fs::symlink_metadata(&path) {
                Ok(found) if (found.dev(), found.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Self { path, _file: file });
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for StartLock {
    fn drop(&mut self) {
        // One that stays is taken over by the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the socket of a dead daemon; an error if a living one answers.
fn make_room(path: &Path) -> Result<(), BindError> {
    let error = |what, source| BindError::Io { what, path: path.to_owned(), source };
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(error("examining", e)),
        Ok(meta) => meta,
    };
    if !meta.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    if answers(path).map_err(|e| error("connecting to", e))? {
        return Err(BindError::InUse { path: path.to_owned() });
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error("removing the stale", e)),
        _ => Ok(()),
    }
}

/// True if somebody listens, even one too busy to accept.
fn answers(path: &Path) -> io::Result<bool> {
    let probe = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    match socket::connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        // EAGAIN: the queue of a living listener is full.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A bound socket whose file never had a wider mode than [`MODE`].
///
/// A new file's mode is the socket's own mode less the umask, so the socket gets its mode first. The usual
/// umask of 022 would make it narrower for a moment, which a script waiting for the file could see; the
/// umask belongs to the whole process, therefore it is changed in a thread that has its own.
fn make_socket(path: &Path) -> nix::Result<OwnedFd> {
    let make = || {
        let own = unshare(CloneFlags::CLONE_FS).is_ok();
        if own {
            umask(Mode::from_bits_truncate(0o777 & !MODE));
        }
        let socket = socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        nix::sys::stat::fchmod(&socket, Mode::from_bits_truncate(MODE))?;
        socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(socket)
    };
    std::thread::scope(|scope| scope.spawn(make).join().unwrap_or(Err(Errno::EIO)))
}

/// The file, as made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |meta: fs::Metadata| (meta.dev(), meta.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(ours)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the control socket's file was not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[tokio::test]
    async fn mode_and_removal() {
        let dir = directory();
        let path = dir.path().join("run/lbd.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o660);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn no_other_mode_is_ever_seen() {
        let dir = directory();
        let path = dir.path().join("lbd.sock");
        let stop = std::sync::atomic::AtomicBool::new(false);
        // A sandbox may forbid it; then the mode may be narrower for a moment, never wider.
        let own_umask = std::thread::spawn(|| unshare(CloneFlags::CLONE_FS).is_ok()).join().unwrap();
        let (seen, others) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let (mut seen, mut others) = (0_u32, Vec::new());
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok(meta) = fs::symlink_metadata(&path) {
                        seen += 1;
                        let mode = meta.permissions().mode() & 0o7777;
                        if mode & !0o660 != 0 || (own_umask && mode != 0o660) {
                            others.push(mode);
                        }
                    }
                }
                (seen, others)
            });
            for _ in 0..300 {
                drop(ControlSocket::bind(&path).unwrap());
            }
            let last = ControlSocket::bind(&path).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            drop(last);
            watcher.join().unwrap()
        });
        assert!(seen > 0);
        assert_eq!(others, Vec::<u32>::new());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_living_ones_refused() {
        let dir = directory();
        let path = dir.path().join("lbd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind, as a killed daemon does");
        let living = ControlSocket::bind(&path).unwrap();
        let error = ControlSocket::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(error.to_string().starts_with(&format!("another lbd is answering on {}", path.display())));
        assert!(path.exists());
        drop(living);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_busy_daemon_is_a_living_one() {
        let dir = directory();
        let path = dir.path().join("lbd.sock");
        let fd = make_socket(&path).unwrap();
        socket::listen(&fd, Backlog::new(0).unwrap()).unwrap();
        let _fills_the_queue = UnixStream::connect(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::InUse { .. })));
    }

    #[tokio::test]
    async fn only_one_of_many_wins() {
        let dir = directory();
        let path = dir.path().join("lbd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let runtime = tokio::runtime::Handle::current();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let _in_runtime = runtime.enter();
                        ControlSocket::bind(&path)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_not_ours_stays() {
        let dir = directory();
        let path = dir.path().join("lbd.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        let first = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = ControlSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the successor's file is not the predecessor's to remove");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_group_the_daemon_is_no_member_of_is_said_so() {
        use nix::unistd::{Uid, setfsuid};
        let dir = directory();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let path = dir.path().join("lbd.sock");
        let runtime = tokio::runtime::Handle::current();
        // "nobody", in this thread alone, which takes CAP_CHOWN from it; without root nobody has it anyway.
        let asked = || {
            let _in_runtime = runtime.enter();
            setfsuid(Uid::from_raw(65_534));
            ControlSocket::bind_for(&path, Some("daemon"))
        };
        let error = std::thread::scope(|scope| scope.spawn(asked).join().unwrap()).unwrap_err();
        assert!(matches!(error, BindError::NotAMember { .. }), "{error}");
        assert!(error.to_string().contains("usermod -aG daemon "), "{error}");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_too_long_is_said_so() {
        let path = PathBuf::from(format!("/tmp/{}/lbd.sock", "x".repeat(120)));
        let error = ControlSocket::bind(&path).unwrap_err();
        assert!(error.to_string().contains("choose a shorter run_dir"), "{error}");
    }
}
