//! From a Debian package to something qemu boots: the kernel as an ELF file (no decompressor to emulate), and an
//! initramfs of busybox and the modules that mount a 9p root. Made once per kernel, below `target/vm/`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::Kernel;
use super::cpio::Archive;
use crate::process;

const INIT: &str = include_str!("init.sh");
/// Loaded before there is a root; with what they depend on.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// What qemu needs.
pub struct Bootable {
    pub vmlinux: PathBuf,
    pub initramfs: PathBuf,
    pub modules: PathBuf,
}

pub fn prepare(rooms: &Path, kernel: &Kernel) -> Result<Bootable> {
    fs::create_dir_all(rooms).with_context(|| format!("cannot make {}", rooms.display()))?;
    let (name, tree) = match kernel {
        Kernel::Debian { series, .. } => ((*series).to_owned(), rooms.join(series)),
        Kernel::Directory(dir) => {
            let mut hasher = DefaultHasher::new();
            dir.hash(&mut hasher);
            (format!("dir-{:016x}", hasher.finish()), dir.clone())
        }
    };
    // Several may start at once; the first does the work. The lock dies with its holder.
    let lock = File::create(rooms.join(format!("{name}.lock")))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if let Kernel::Debian { metapackage, .. } = kernel
        && !tree.is_dir()
    {
        let package = depends_on_image(metapackage)?;
        eprintln!("xtask: fetching {package}");
        fetch(&package, &tree, &["./boot", "./lib/modules"])?;
    }

    let (image, version) = newest_image(&tree)?;
    let modules = tree.join("lib/modules").join(&version);
    if !modules.is_dir() {
        bail!("{} is missing; remove {} and repeat the command", modules.display(), tree.display());
    }
    let boot = rooms.join(format!("{name}.boot"));
    let bootable = Bootable { vmlinux: boot.join("vmlinux"), initramfs: boot.join("initramfs"), modules };
    let stamp = boot.join("made-from");
    let made_from = format!("{version}\n{INIT}");
    if fs::read_to_string(&stamp).is_ok_and(|old| old == made_from) {
        return Ok(bootable);
    }
    let _ = fs::remove_dir_all(&boot);
    fs::create_dir_all(&boot)?;
    fs::write(&bootable.vmlinux, extract(&image, &boot)?)?;
    let config = fs::read(tree.join("boot").join(format!("config-{version}"))).unwrap_or_default();
    let busybox = busybox(rooms)?;
    fs::write(&bootable.initramfs, initramfs(&tree, &version, &bootable.modules, &config, &busybox)?)?;
    fs::write(&stamp, made_from)?;
    Ok(bootable)
}

/// The image package that Debian's metapackage stands for today.
fn depends_on_image(metapackage: &str) -> Result<String> {
    let ask = || -> Result<Option<String>> {
        let mut command = Command::new("apt-cache");
        let answer =
            process::capture(command.args(["depends", "--important", metapackage]).env("LC_ALL", "C"))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let mut names = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.find(|name| name.starts_with("linux-image-")).map(str::to_owned))
    };
    if let Ok(Some(package)) = ask() {
        return Ok(package);
    }
    crate::setup::packages::update_lists()?;
    ask()?.with_context(|| {
        format!("{metapackage} is not among the packages of this system; pass a directory with boot/ and lib/modules/")
    })
}

/// Downloads a Debian package and unpacks parts of it into a directory, all or nothing.
fn fetch(package: &str, to: &Path, parts: &[&str]) -> Result<()> {
    let new = to.with_extension(format!("new.{}", std::process::id()));
    let _ = fs::remove_dir_all(&new);
    let result = fetch_into(package, &new, parts).and_then(|()| {
        let _ = fs::remove_dir_all(to);
        fs::rename(new.join("tree"), to).with_context(|| format!("cannot make {}", to.display()))
    });
    let _ = fs::remove_dir_all(&new);
    result
}

fn fetch_into(package: &str, dir: &Path, parts: &[&str]) -> Result<()> {
    let tree = dir.join("tree");
    fs::create_dir_all(&tree)?;
    let download = || {
        process::capture(
            Command::new("apt-get")
                .args(["download", "-qq", "-o", "APT::Sandbox::User=root", package])
                .current_dir(dir),
        )
    };
    if download().is_err() {
        // Most often the lists are older than the archive.
        crate::setup::packages::update_lists()?;
        download()?;
    }
    let archive = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .with_context(|| format!("apt-get has downloaded no {package}"))?;
    let mut unpack =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&archive).stdout(Stdio::piped()).spawn()?;
    let tar = unpack.stdout.take().context("a pipe was asked for")?;
    let untar = Command::new("tar").args(["-xf", "-", "-C"]).arg(&tree).args(parts).stdin(tar).status()?;
    if !unpack.wait()?.success() || !untar.success() {
        bail!("{} cannot be unpacked", archive.display());
    }
    Ok(())
}

/// The kernel image of the highest version, and that version.
fn newest_image(tree: &Path) -> Result<(PathBuf, String)> {
    let boot = tree.join("boot");
    let key = |version: &str| -> Vec<u64> {
        version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    fs::read_dir(&boot)
        .with_context(|| format!("cannot read {}", boot.display()))?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
        .max_by_key(|version| key(version))
        .map(|version| (boot.join(format!("vmlinuz-{version}")), version))
        .with_context(|| format!("there is no vmlinuz-* in {}", boot.display()))
}

/// How the kernel proper is packed in its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Xz,
    Zstd,
    Gzip,
}

/// Finds the packed kernel in a bzImage: Documentation/arch/x86/boot.rst, `setup_sects`, `payload_offset` and
/// `payload_length`.
fn payload(image: &[u8]) -> Option<(Packing, &[u8])> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // "If the setup_sects field contains 0, the real value is 4."
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((sectors + 1) * 512).checked_add(word(0x248)?)?;
    let payload = image.get(start..start.checked_add(word(0x24c)?)?)?;
    let packing = if payload.starts_with(b"\xfd7zXZ\0") {
        Packing::Xz
    } else if payload.starts_with(b"\x28\xb5\x2f\xfd") {
        Packing::Zstd
    } else if payload.starts_with(b"\x1f\x8b") {
        return Some((Packing::Gzip, payload));
    } else {
        return None;
    };
    // Behind these two lies the unpacked size, in four bytes that belong to no format.
    Some((packing, &payload[..payload.len() - 4]))
}

fn extract(image: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let (packing, packed) = payload(&bytes)
        .with_context(|| format!("{} is no bzImage with xz, zstd or gzip", image.display()))?;
    let file = scratch.join("payload");
    fs::write(&file, packed)?;
    let program = match packing {
        Packing::Xz => "xz",
        Packing::Zstd => "zstd",
        Packing::Gzip => "gzip",
    };
    let kernel = unpacked(program, &file)?;
    fs::remove_file(&file)?;
    if !kernel.starts_with(ELF_MAGIC) {
        bail!("{} holds no ELF kernel", image.display());
    }
    Ok(kernel)
}

fn unpacked(program: &str, file: &Path) -> Result<Vec<u8>> {
    // From the standard input, since gzip looks at the name.
    let mut command = Command::new(program);
    command.args(["-d", "-c", "-q"]).stdin(File::open(file)?).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} cannot unpack {} ({})", file.display(), output.status);
    }
    Ok(output.stdout)
}

fn initramfs(tree: &Path, version: &str, modules: &Path, config: &[u8], busybox: &Path) -> Result<Vec<u8>> {
    if !modules.join("modules.dep").is_file() {
        let depmod = process::which("depmod").context("there is no depmod")?;
        process::run(Command::new(depmod).arg("-b").arg(tree).arg(version))?;
    }
    let dep = fs::read_to_string(modules.join("modules.dep"))?;
    let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();

    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "host", "writes", "root", "modules"] {
        archive.directory(dir);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("config", 0o644, config);
    archive.file("bin/busybox", 0o755, &fs::read(busybox)?);
    let mut order = String::new();
    for file in load_order(&dep, &builtin, &MODULES)? {
        let path = modules.join(&file);
        let content = match path.extension().and_then(OsStr::to_str) {
            Some("xz") => unpacked("xz", &path)?,
            Some("zst") => unpacked("zstd", &path)?,
            Some("gz") => unpacked("gzip", &path)?,
            _ => fs::read(&path)?,
        };
        let name = format!("{}.ko", module_name(&file));
        archive.file(&format!("modules/{name}"), 0o644, &content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// Files of modules in an order in which they can be loaded, by `modules.dep`.
fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let modules: HashMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let Some((file, needs)) = modules.get(*name) else {
            if builtin.lines().any(|file| module_name(file) == *name) {
                continue;
            }
            bail!("this kernel has no module {name}");
        };
        // All that is needed, also indirectly, is listed; what must be loaded first stands last.
        for file in needs.split_whitespace().rev().chain([*file]) {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/9p/9p.ko.xz` is `9p`. The kernel takes `-` and `_` for the same.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

/// A busybox that needs no libraries: this system's, or one unpacked beside the kernels.
fn busybox(rooms: &Path) -> Result<PathBuf> {
    let own = rooms.join("busybox");
    let candidates = [process::which("busybox"), Some(own.join("bin/busybox"))];
    let is_static = |file: &PathBuf| fs::read(file).is_ok_and(|image| is_static_elf(&image));
    if let Some(file) = candidates.into_iter().flatten().find(is_static) {
        return Ok(file);
    }
    eprintln!("xtask: fetching busybox-static");
    fetch("busybox-static", &own, &["./bin"])?;
    Some(own.join("bin/busybox")).filter(is_static).context("Debian's busybox-static is not static")
}

/// Whether a 64-bit ELF program asks for no interpreter, which is the dynamic linker.
fn is_static_elf(image: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(len)?)?;
        bytes
            .iter()
            .rev()
            .try_fold(0_usize, |value, byte| value.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    let headers = || -> Option<Vec<u32>> {
        let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        (0..count)
            .map(|index| {
                let at = table.checked_add(index.checked_mul(size)?)?;
                u32::try_from(number(at, 4)?).ok()
            })
            .collect()
    };
    image.starts_with(ELF_MAGIC)
        && headers().is_some_and(|types| !types.is_empty() && !types.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let dep = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
                   kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio-ring.ko.xz\n\
                   kernel/net/9p/9pnet.ko.xz:\n";
        let builtin = "kernel/fs/overlayfs/overlay.ko\n";
        let order = load_order(dep, builtin, &["9pnet_virtio", "9p", "overlay"]).unwrap();
        let names: Vec<String> = order.iter().map(|file| module_name(file)).collect();
        assert_eq!(names, ["virtio_ring", "9pnet", "9pnet_virtio", "netfs", "9p"]);
        assert!(load_order(dep, builtin, &["nfs"]).unwrap_err().to_string().contains("no module nfs"));
    }

    #[test]
    fn the_newest_kernel_counts_by_numbers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("boot")).unwrap();
        assert!(newest_image(dir.path()).is_err());
        for version in ["6.1.0-9-amd64", "6.1.0-52-amd64"] {
            fs::write(dir.path().join("boot").join(format!("vmlinuz-{version}")), b"").unwrap();
        }
        assert_eq!(newest_image(dir.path()).unwrap().1, "6.1.0-52-amd64");
    }

    fn image(sectors: u8, offset: u32, payload: &[u8]) -> Vec<u8> {
        let start = (usize::from(sectors) + 1) * 512 + offset as usize;
        let mut image = vec![0; start];
        image[0x1f1] = sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn the_payload_is_found_by_the_header() {
        let xz = image(7, 100, b"\xfd7zXZ\0body1234");
        assert_eq!(payload(&xz), Some((Packing::Xz, &b"\xfd7zXZ\0body"[..])));
        let gzip = image(7, 0, b"\x1f\x8bbody");
        assert_eq!(payload(&gzip), Some((Packing::Gzip, &b"\x1f\x8bbody"[..])));
        assert_eq!(payload(&image(7, 0, b"what is this?")), None);
        assert_eq!(payload(&xz[..xz.len() - 1]), None);
    }

    #[test]
    fn static_programs_are_told_from_dynamic_ones() {
        assert!(!is_static_elf(&fs::read("/bin/sh").unwrap()));
        assert!(!is_static_elf(b"#!/bin/sh\n"));
        let mut image = vec![0_u8; 64 + 2 * 56];
        image[..4].copy_from_slice(ELF_MAGIC);
        (image[0x20], image[0x36], image[0x38]) = (64, 56, 2);
        (image[64], image[64 + 56]) = (6, 1);
        assert!(is_static_elf(&image));
        image[64 + 56] = 3;
        assert!(!is_static_elf(&image));
    }

    proptest! {
        #[test]
        fn never_panics(
            mut bytes in prop::collection::vec(any::<u8>(), 0..2048),
            magic: bool,
        ) {
            if magic && bytes.len() > 0x206 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
            }
            let _ = payload(&bytes);
            if magic && bytes.len() > 4 {
                bytes[..4].copy_from_slice(ELF_MAGIC);
            }
            let _ = is_static_elf(&bytes);
        }
    }
}
