//! The BPF file system, which keeps programs, links and maps beyond the daemon's life.

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Where a BPF file system is mounted by convention.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Why there is no directory to pin into.
#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    #[error(
        "node.pin_dir is '{}', which is not an absolute path without '..'; expected one like /sys/fs/bpf/lbd",
        .0.display()
    )]
    NotAbsolute(PathBuf),
    #[error(
        "'{}' (node.pin_dir) is not on a BPF file system; use a directory below {MOUNT_POINT}, or mount \
         one there first: mount -t bpf bpf {}",
        .pin_dir.display(), .pin_dir.display()
    )]
    NotBpffs { pin_dir: PathBuf },
    #[error(
        "there is no BPF file system at {mount_point}, and mounting one failed: {error}; as root, type: \
         mount -t bpf bpf {mount_point}"
    )]
    Mount { mount_point: String, error: Errno },
    #[error("there is no directory {0}; is sysfs mounted, and was the kernel built with CONFIG_BPF_SYSCALL?")]
    NoMountPoint(String),
    #[error("cannot create the directory '{}' (node.pin_dir): {error}", .path.display())]
    Create { path: PathBuf, error: io::Error },
    #[error("cannot examine '{}': {error}", .path.display())]
    Examine { path: PathBuf, error: io::Error },
}

/// What [`ensure`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// The BPF file system was there.
    Present,
    /// It had to be mounted.
    Mounted,
}

/// Makes sure that `pin_dir` exists on a BPF file system; mounts one at [`MOUNT_POINT`] where `pin_dir`
/// lies below it and there is none. Only that takes CAP_SYS_ADMIN.
pub fn ensure(pin_dir: &Path) -> Result<Ensured, BpffsError> {
    ensure_below(pin_dir, Path::new(MOUNT_POINT))
}

/// True if a path, or what exists of it, lies on a BPF file system.
pub fn is_bpffs(path: &Path) -> Result<bool, BpffsError> {
    for existing in path.ancestors() {
        match statfs(existing) {
            Ok(stat) => return Ok(stat.filesystem_type() == BPF_FS_MAGIC),
            Err(Errno::ENOENT) => {}
            Err(error) => {
                return Err(BpffsError::Examine { path: existing.to_owned(), error: error.into() });
            }
        }
    }
    Ok(false)
}

fn ensure_below(pin_dir: &Path, mount_point: &Path) -> Result<Ensured, BpffsError> {
    use std::path::Component;
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if !pin_dir.is_absolute() || !pin_dir.components().all(plain) {
        return Err(BpffsError::NotAbsolute(pin_dir.to_owned()));
    }
    let mut ensured = Ensured::Present;
    if !is_bpffs(pin_dir)? {
        if !pin_dir.starts_with(mount_point) {
            return Err(BpffsError::NotBpffs { pin_dir: pin_dir.to_owned() });
        }
        let name = mount_point.display().to_string();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), mount_point, Some("bpf"), flags, Some("mode=0700")).map_err(
            |error| match error {
                Errno::ENOENT => BpffsError::NoMountPoint(name.clone()),
                error => BpffsError::Mount { mount_point: name.clone(), error },
            },
        )?;
        tracing::info!(at = %name, "mounted a BPF file system");
        ensured = Ensured::Mounted;
        // The directory may have existed below the mount, and something else be mounted in it.
        if !is_bpffs(pin_dir)? {
            return Err(BpffsError::NotBpffs { pin_dir: pin_dir.to_owned() });
        }
    }
    let failed = |error| BpffsError::Create { path: pin_dir.to_owned(), error };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(pin_dir).map_err(failed)?;
    Ok(ensured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let pin_dir = dir.path().join("a/b");
        assert!(!is_bpffs(&pin_dir).unwrap());
        let error = ensure(&pin_dir).unwrap_err();
        assert!(matches!(error, BpffsError::NotBpffs { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("mount -t bpf bpf") && text.contains("pin_dir"), "{text}");
        assert!(!pin_dir.exists());
    }

    #[test]
    fn a_path_that_wanders_is_refused() {
        for path in ["lbd", "/sys/fs/bpf/../../etc", ""] {
            assert!(matches!(ensure(Path::new(path)), Err(BpffsError::NotAbsolute(_))), "{path}");
        }
    }

    #[test]
    fn a_missing_mount_point_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mount_point = dir.path().join("none");
        let error = ensure_below(&mount_point.join("lbd"), &mount_point).unwrap_err();
        // Without the right to mount, that is the first thing the kernel complains of.
        match error {
            BpffsError::NoMountPoint(name) => assert_eq!(Path::new(&name), mount_point),
            BpffsError::Mount { error: Errno::EPERM, .. } => {}
            error => panic!("{error}"),
        }
    }
}
