//! The links that hold the program on its interfaces, pinned so that they outlive the daemon.

use super::DataplaneError;
use crate::model::XdpMode;
use aya::programs::{
    Xdp, XdpMode as AyaMode,
    links::{FdLink, PinnedLink},
    loaded_programs,
    xdp::XdpLink,
};
use nix::net::if_::{if_indextoname, if_nameindex, if_nametoindex};
use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// How it is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Native,
    Generic,
}

impl Mode {
    /// As shown and as in the name of the pin.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// One interface with the program on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub interface: String,
    pub ifindex: u32,
    pub mode: Mode,
    /// Why the mode is not the one hoped for.
    pub warning: Option<String>,
}

/// The pinned links: interface index and mode, which are also their file's name (a bpffs name takes no dot, as
/// an interface's may have).
#[derive(Default)]
pub(super) struct Links {
    dir: PathBuf,
    pinned: BTreeMap<u32, (Mode, PinnedLink)>,
    /// Ids of the pinned maps: a program that reads others of them is another program.
    pub(super) shared: Vec<u32>,
}

impl Links {
    /// Opens the links that are pinned; those whose interface is gone are removed.
    pub(super) fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        let dir = pin_dir.join("links");
        let mut links = Self { dir: dir.clone(), ..Self::default() };
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(links) };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((mode, ifindex)) = parse(&name) else { continue };
            // The interface may have been deleted, and its index given to another one.
            if attached_to(&entry.path()) != Some(ifindex) {
                fs::remove_file(entry.path()).map_err(DataplaneError::pin(entry.path()))?;
                continue;
            }
            let link = PinnedLink::from_pin(entry.path())
                .map_err(|error| DataplaneError::pin(entry.path())(std::io::Error::other(error)))?;
            links.pinned.insert(ifindex, (mode, link));
        }
        Ok(links)
    }

    /// Interface, mode and program id of every link.
    pub(super) fn attached(&self) -> Vec<(u32, Mode, u32)> {
        self.pins()
            .filter_map(|(ifindex, mode, path)| {
                let link = FdLink::from(PinnedLink::from_pin(path).ok()?);
                Some((ifindex, mode, link.info().ok()?.program_id()))
            })
            .collect()
    }

    /// Whether some link holds nothing any more: its interface is there, but somebody detached it.
    pub(super) fn lost(&self) -> bool {
        self.pins().any(|(ifindex, _, path)| attached_to(&path) != Some(ifindex))
    }

    fn pins(&self) -> impl Iterator<Item = (u32, Mode, PathBuf)> + '_ {
        self.pinned.iter().map(|(ifindex, (mode, _))| (*ifindex, *mode, self.path(*ifindex, *mode)))
    }

    fn path(&self, ifindex: u32, mode: Mode) -> PathBuf {
        self.dir.join(format!("{}-{ifindex}", mode.name()))
    }

    /// Puts `program` on exactly these interfaces.
    pub(super) fn attach(
        &mut self,
        program: &mut Xdp,
        interfaces: &[String],
        wanted: XdpMode,
    ) -> Result<Vec<Attached>, DataplaneError> {
        let mut indexes = BTreeMap::new();
        for name in interfaces {
            let index = if_nametoindex(name.as_str()).map_err(|_| DataplaneError::NoInterface {
                interface: name.clone(),
                existing: interface_names(),
            })?;
            indexes.insert(name.clone(), index);
        }
        let mut attached = Vec::new();
        for name in interfaces {
            let ifindex = indexes[name];
            let fits = |mode: Mode| match wanted {
                XdpMode::Auto => true,
                XdpMode::Native => mode == Mode::Native,
                XdpMode::Generic => mode == Mode::Generic,
            };
            let (mode, warning) = match self.take(ifindex)? {
                Some((mode, link)) if fits(mode) => {
                    self.replace(program, ifindex, mode, link)?;
                    let warning =
                        (mode == Mode::Generic && wanted == XdpMode::Auto).then(|| KEPT_GENERIC.to_owned());
                    (mode, warning)
                }
                Some((mode, link)) => {
                    tracing::warn!(
                        interface = name,
                        from = mode.name(),
                        "detaching to attach in another mode: a gap of some milliseconds"
                    );
                    drop(link.unpin().map_err(DataplaneError::pin(self.path(ifindex, mode)))?);
                    self.attach_new(program, name, ifindex, wanted)?
                }
                None => self.attach_new(program, name, ifindex, wanted)?,
            };
            attached.push(Attached { interface: name.clone(), ifindex, mode, warning });
        }
        let others: Vec<u32> =
            self.pinned.keys().filter(|i| !indexes.values().any(|j| j == *i)).copied().collect();
        for ifindex in others {
            self.detach(ifindex)?;
        }
        Ok(attached)
    }

    /// The link that is on this interface. One that was on another, whose index this interface has now, is removed.
    fn take(&mut self, ifindex: u32) -> Result<Option<(Mode, PinnedLink)>, DataplaneError> {
        let Some((mode, link)) = self.pinned.remove(&ifindex) else { return Ok(None) };
        let path = self.path(ifindex, mode);
        if attached_to(&path) == Some(ifindex) {
            return Ok(Some((mode, link)));
        }
        drop(link.unpin().map_err(DataplaneError::pin(path))?);
        Ok(None)
    }

    /// Link update: the kernel swaps the programs between two packets. Nothing is done where this
    /// very program runs already.
    fn replace(
        &mut self,
        program: &mut Xdp,
        ifindex: u32,
        mode: Mode,
        link: PinnedLink,
    ) -> Result<(), DataplaneError> {
        let path = self.path(ifindex, mode);
        let fd: FdLink = link.into();
        let failed = |source| {
            let interface = if_indextoname(ifindex)
                .map_or_else(|_| ifindex.to_string(), |name| name.to_string_lossy().into_owned());
            DataplaneError::Attach { interface, source: Box::new(source) }
        };
        if !same_program(&fd, program, &self.shared).unwrap_or(false) {
            let link =
                XdpLink::try_from(fd).map_err(|e| DataplaneError::pin(&path)(std::io::Error::other(e)))?;
            let id = program.attach_to_link(link).map_err(failed)?;
            // Only the handle is dropped: the pin keeps the link.
            drop(program.take_link(id).map_err(failed)?);
            tracing::info!(ifindex, "replaced the program of an earlier version");
        }
        let link =
            PinnedLink::from_pin(&path).map_err(|e| DataplaneError::pin(&path)(std::io::Error::other(e)))?;
        self.pinned.insert(ifindex, (mode, link));
        Ok(())
    }

    /// Puts `program` in the place of whatever the links hold.
    pub(super) fn replace_all(mut self, program: &mut Xdp) -> Result<(), DataplaneError> {
        for (ifindex, (mode, link)) in std::mem::take(&mut self.pinned) {
            self.replace(program, ifindex, mode, link)?;
        }
        Ok(())
    }

    fn attach_new(
        &mut self,
        program: &mut Xdp,
        name: &str,
        ifindex: u32,
        wanted: XdpMode,
    ) -> Result<(Mode, Option<String>), DataplaneError> {
        let refused =
            |source| DataplaneError::Attach { interface: name.to_owned(), source: Box::new(source) };
        let busy = || DataplaneError::Busy { interface: name.to_owned(), program: attached_program(name) };
        let (mode, warning, id) = match wanted {
            XdpMode::Generic => (Mode::Generic, None, program.attach_to_if_index(ifindex, AyaMode::Skb)),
            XdpMode::Native => (Mode::Native, None, program.attach_to_if_index(ifindex, AyaMode::Driver)),
            XdpMode::Auto => match program.attach_to_if_index(ifindex, AyaMode::Driver) {
                Err(error) if !is(&error, libc::EBUSY) && !is(&error, libc::EEXIST) => {
                    let warning = format!("{GENERIC} (native mode: {})", root_cause(&error));
                    tracing::warn!(interface = name, warning);
                    (Mode::Generic, Some(warning), program.attach_to_if_index(ifindex, AyaMode::Skb))
                }
                result => (Mode::Native, None, result),
            },
        };
        let id = id.map_err(|error| match (is(&error, libc::EBUSY) || is(&error, libc::EEXIST), mode) {
            (true, _) => busy(),
            (false, Mode::Native) => {
                DataplaneError::NoNative { interface: name.to_owned(), source: Box::new(error) }
            }
            (false, Mode::Generic) => refused(error),
        })?;
        let link = program.take_link(id).map_err(refused)?;
        // aya falls back to netlink where the kernel refuses a link; that could not be pinned.
        let fd = FdLink::try_from(link).map_err(|_| DataplaneError::NoLink { interface: name.to_owned() })?;
        fs::create_dir_all(&self.dir).map_err(DataplaneError::pin(&self.dir))?;
        let path = self.path(ifindex, mode);
        let pinned = fd.pin(&path).map_err(|e| DataplaneError::pin(&path)(std::io::Error::other(e)))?;
        self.pinned.insert(ifindex, (mode, pinned));
        Ok((mode, warning))
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), DataplaneError> {
        if let Some((mode, link)) = self.pinned.remove(&ifindex) {
            drop(link.unpin().map_err(DataplaneError::pin(self.path(ifindex, mode)))?);
        }
        Ok(())
    }

    /// Takes the program off every interface.
    pub(super) fn detach_all(mut self) -> Result<(), DataplaneError> {
        let all: Vec<u32> = self.pinned.keys().copied().collect();
        for ifindex in all {
            self.detach(ifindex)?;
        }
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DataplaneError::pin(&self.dir)(error))
            }
            _ => Ok(()),
        }
    }
}

const GENERIC: &str =
    "generic mode: every packet costs several times more; the driver has no native XDP, or not with this MTU";

/// The driver was not asked again: that would be a gap, on an interface where it most often refuses.
const KEPT_GENERIC: &str = "generic mode, kept as it was attached: every packet costs several times more; xdp_mode = \"native\" and a reload ask the driver again";

fn parse(name: &str) -> Option<(Mode, u32)> {
    let (mode, ifindex) = name.split_once('-')?;
    let mode = [Mode::Native, Mode::Generic].into_iter().find(|m| m.name() == mode)?;
    Some((mode, ifindex.parse().ok()?))
}

/// The interface a pinned link holds its program on; `None` if the interface is gone.
fn attached_to(pin: &Path) -> Option<u32> {
    let fd = open_pin(pin).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let ifindex = info.lines().find_map(|line| line.strip_prefix("ifindex:")?.trim().parse().ok())?;
    (ifindex != 0).then_some(ifindex)
}

/// BPF_OBJ_GET: aya keeps its links' descriptors to itself.
fn open_pin(pin: &Path) -> std::io::Result<OwnedFd> {
    /// The head of `union bpf_attr` for this command.
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let attr = Attr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `attr` and the path it points to live through the call; the size given is its own.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<Attr>()) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor the kernel just gave us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Is it this program, reading these maps, that the link holds?
fn same_program(link: &FdLink, program: &Xdp, shared: &[u32]) -> Option<bool> {
    let attached = link.info().ok()?.program_id();
    let mine = program.info().ok()?;
    let other = loaded_programs().flatten().find(|other| other.id() == attached)?;
    // The constants of a program are a map of its own, so only the maps that both could share are compared.
    let ids = |program: &aya::programs::ProgramInfo| program.map_ids().ok().flatten().unwrap_or_default();
    let (theirs, ours) = (ids(&other), ids(&mine));
    let shared = shared.iter().filter(|id| ours.contains(id)).all(|id| theirs.contains(id));
    Some(other.tag() == mine.tag() && shared)
}

fn is(error: &aya::programs::ProgramError, errno: i32) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.raw_os_error() == Some(errno);
        }
        source = error.source();
    }
    false
}

fn root_cause(error: &aya::programs::ProgramError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Id of the program that `ip` sees on the interface, `none`, or `unknown` where `ip` does not tell.
pub(super) fn attached_program(interface: &str) -> String {
    let text = std::process::Command::new("ip").args(["-j", "link", "show", "dev", interface]).output();
    text.ok()
        .and_then(|out| serde_json::from_slice::<serde_json::Value>(&out.stdout).ok())
        .filter(|json| json[0]["ifindex"].is_u64())
        .map_or_else(
            || "unknown".to_owned(),
            |json| {
                json[0]["xdp"]["prog"]["id"].as_u64().map_or_else(|| "none".to_owned(), |id| id.to_string())
            },
        )
}

/// The names of all interfaces, for error messages.
pub(super) fn interface_names() -> String {
    if_nameindex()
        .map(|list| {
            list.iter().map(|i| i.name().to_string_lossy().into_owned()).collect::<Vec<_>>().join(", ")
        })
        .unwrap_or_default()
}
