//! The loaded program with its maps: adopted from an earlier daemon where there are pins, made where not.

use super::{Attached, DataplaneError, Maps, Observed, Ran, attach, elf, fresh, large, observe};
use crate::{
    model::XdpMode,
    plan::{Action, Image, Pair, Walk},
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
    programs::{ProgramInfo, Xdp},
};
use aya_log::EbpfLogger;
use lb_common::abi::{self, MapInfo, WatchMode};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const PROGRAM: &str = "lb";
/// The ring buffer of aya-log, which brings it into the program by itself.
const LOGS: &str = "AYA_LOGS";
/// Suffix of a map that is about to take another's place.
const NEXT: &str = "_next";
/// A directory beside the maps that says: the maps of this suffix are complete and every program reads them, they only
/// have to take the others' places.
const GROWN: &str = "grown";

/// Least capacities of the maps that grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Slots of all rings together.
    pub ring: u32,
    /// Backends of all services together, id 0 included.
    pub backends: u32,
    /// Tracked flows, and handshakes under way, of either family. These maps keep the size they were made with.
    pub flows: u32,
    pub half_open: u32,
    /// NAT sessions. These maps keep their size, too.
    pub sessions: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            ring: abi::RING_CAPACITY,
            backends: abi::BACKEND_CAPACITY,
            flows: abi::FLOW_CAPACITY,
            half_open: abi::HALF_OPEN_CAPACITY,
            sessions: abi::SESSION_CAPACITY,
        }
    }
}

impl Capacities {
    fn of(self, map: &MapInfo) -> u32 {
        match (map.grows, map.name) {
            (true, "RING") => self.ring,
            (true, _) => self.backends,
            (false, "FLOWS4" | "FLOWS6") => self.flows,
            (false, "HALF_OPEN4" | "HALF_OPEN6") => self.half_open,
            (false, "SESSIONS_OUT" | "SESSIONS_BACK") => self.sessions,
            (false, _) => map.capacity,
        }
    }
}

/// The program and its maps in the kernel.
pub struct Kernel {
    ebpf: Ebpf,
    maps: Maps,
    pin_dir: PathBuf,
    links: attach::Links,
    /// The program that is asked, once somebody has.
    asked: Option<Observed>,
    /// The program that is attached in the place of the balancer's while somebody traces.
    tracing: Option<Observed>,
}

/// Name of the directory that holds the maps of this layout.
#[must_use]
pub fn abi_name() -> String {
    format!("abi-{:016x}", abi::hash())
}

impl Kernel {
    /// Adopts what is pinned under `pin_dir` or makes it. Nothing is attached yet, and what is attached
    /// goes on as it is.
    pub fn open(pin_dir: &Path, capacities: Capacities) -> Result<Self, DataplaneError> {
        let maps_dir = pin_dir.join(abi_name());
        fs::create_dir_all(&maps_dir).map_err(DataplaneError::pin(&maps_dir))?;
        let links = attach::Links::open(pin_dir)?;
        finish_growth(&maps_dir)?;
        for map in abi::INVENTORY {
            let pin = maps_dir.join(map.name);
            check_pin(&pin, map)?;
            let wanted = capacities.of(map);
            if let Some(entries) = pinned_capacity(&pin, map)?.filter(|n| *n != wanted && !map.grows) {
                tracing::warn!(
                    map = map.name,
                    entries,
                    wanted,
                    "the map keeps the size it was made with: flows in it go on; `lbd --detach` and a start make it anew"
                );
            }
        }
        let (ebpf, maps) = load(&maps_dir, capacities, |_| false)?;
        // Of a daemon that died while somebody traced.
        observe::sample(&maps_dir, 0)?;
        Ok(Self { ebpf, maps, pin_dir: pin_dir.to_owned(), links, asked: None, tracing: None })
    }

    /// The maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Carries out the actions, all or none: what was done is taken back when one fails.
    pub fn execute(&mut self, actions: &[Action]) -> Result<(), DataplaneError> {
        let mut done = 0;
        while done < actions.len() {
            let some = fresh::together(&actions[done..]);
            done += some;
            if let Err(error) = self.maps.apply_together(&actions[done - some..done]) {
                // With the one that failed: it may have been done in part.
                for action in actions[..done].iter().rev() {
                    if let Err(second) = self.maps.apply(&action.inverse()) {
                        tracing::error!(%second, %action, "could not take back a change of the maps");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Forgets what is over, except flows of which a packet came meanwhile.
    pub fn forget(&mut self, walk: &Walk) -> Result<(), DataplaneError> {
        walk.half_over.iter().try_for_each(|(flow, entry)| self.maps.forget_half_open(flow, *entry))?;
        walk.over.iter().try_for_each(|(flow, entry)| self.maps.forget(flow, *entry))
    }

    /// Removes NAT sessions, except those of which a packet came meanwhile.
    pub fn forget_sessions(&mut self, sessions: &[Pair]) -> Result<(), DataplaneError> {
        sessions.iter().try_for_each(|pair| self.maps.nat_mut().forget(pair))
    }

    /// What the maps hold.
    pub fn observe(&self) -> Result<Image, DataplaneError> {
        self.maps.observe()
    }

    /// Marks are made from the prefixes in the maps: a daemon that died between the two left them apart.
    pub fn settle_marks(&self, image: &Image) -> Result<(), DataplaneError> {
        self.maps.settle_marks(image)
    }

    /// Replaces the maps that are too small by larger copies, and the program by one that reads them,
    /// interface by interface; packets meet the old program or the new one, both with the same tables.
    /// Packets counted between the copy and the switch are missing from the backends' counters.
    pub fn grow(&mut self, wanted: Capacities) -> Result<(), DataplaneError> {
        let maps_dir = self.pin_dir.join(abi_name());
        let (ring, backends) = self.maps.capacities();
        let capacities =
            Capacities { ring: wanted.ring.max(ring), backends: wanted.backends.max(backends), ..wanted };
        let grown = |map: &MapInfo| {
            map.grows && capacities.of(map) > if map.name == "RING" { ring } else { backends }
        };
        let names: Vec<_> = abi::INVENTORY.iter().filter(|map| grown(map)).map(|map| map.name).collect();
        let next: Vec<_> = names.iter().map(|name| maps_dir.join(format!("{name}{NEXT}"))).collect();
        next.iter().try_for_each(|path| remove_if_there(path))?;
        let traced = self.tracing.is_some();
        match self.switch_to(&maps_dir, capacities, grown) {
            Ok(new) => *self = new,
            Err(error) => {
                for path in next {
                    if let Err(second) = remove_if_there(&path) {
                        tracing::error!(%second, "could not remove a larger map that is not needed");
                    }
                }
                return Err(error);
            }
        }
        let marker = maps_dir.join(GROWN);
        fs::create_dir(&marker).map_err(DataplaneError::pin(&marker))?;
        finish_growth(&maps_dir)?;
        if traced { self.attach_tracing() } else { Ok(()) }
    }

    /// A program over larger maps with the same contents, on every interface in the place of this one. Should that
    /// fail half way, this one is put back: nobody would write the maps of the other any more.
    fn switch_to(
        &mut self,
        maps_dir: &Path,
        capacities: Capacities,
        grown: impl Fn(&MapInfo) -> bool,
    ) -> Result<Self, DataplaneError> {
        let (ebpf, mut maps) = load(maps_dir, capacities, grown)?;
        maps.copy_from(&self.maps)?;
        let links = attach::Links::open(&self.pin_dir)?;
        let pin_dir = self.pin_dir.clone();
        let mut new = Self { ebpf, maps, pin_dir, links, asked: None, tracing: None };
        if let Err(error) = new.replace_attached() {
            if let Err(second) = self.replace_attached() {
                tracing::error!(%second, "could not put the program back; restart lbd");
            }
            return Err(error);
        }
        Ok(new)
    }

    /// The program that belongs on the interfaces now.
    pub(super) fn attached_program(&mut self) -> Result<&mut Xdp, DataplaneError> {
        current(&mut self.ebpf, &mut self.tracing)
    }

    fn program(&mut self) -> Result<&mut Xdp, DataplaneError> {
        program(&mut self.ebpf)
    }

    /// Puts this program in the place of the one that is attached, wherever one is.
    fn replace_attached(&mut self) -> Result<(), DataplaneError> {
        let mut links = std::mem::take(&mut self.links);
        links.shared = pinned_ids(&self.pin_dir.join(abi_name()));
        let program = current(&mut self.ebpf, &mut self.tracing)?;
        let result = links.replace_all(program);
        self.links = attach::Links::open(&self.pin_dir)?;
        result
    }

    /// Attaches the program to the interfaces, and detaches it from all others. An interface that has
    /// an older version of it gets this one in its place, without a gap; one that has this one is left alone.
    pub fn attach(&mut self, interfaces: &[String], mode: XdpMode) -> Result<Vec<Attached>, DataplaneError> {
        let mut links = std::mem::take(&mut self.links);
        links.shared = pinned_ids(&self.pin_dir.join(abi_name()));
        let program = current(&mut self.ebpf, &mut self.tracing)?;
        let attached = links.attach(program, interfaces, mode);
        self.links = links;
        attached
    }

    /// Whether somebody took the program off an interface. Then what is left of its link is forgotten, so that
    /// [`Kernel::attach`] can put it on again.
    pub fn forget_detached(&mut self) -> Result<bool, DataplaneError> {
        let lost = self.links.lost();
        if lost {
            self.links = attach::Links::open(&self.pin_dir)?;
        }
        Ok(lost)
    }

    /// What would be done with a frame, by the program itself on the live maps; nothing is changed.
    pub fn ask(&mut self, frame: &[u8]) -> Result<Ran, DataplaneError> {
        let asked = match self.asked.take() {
            Some(asked) => asked,
            None => Observed::load(&self.maps_dir(), WatchMode::Explain)?,
        };
        self.asked.insert(asked).run(frame)
    }

    /// The records the programs write. To be called once.
    pub fn events(&self) -> Result<RingBuf<MapData>, DataplaneError> {
        observe::events(&self.maps_dir())
    }

    /// Traces one packet in so many, 0 = none. While it traces another program is attached, which says what it does;
    /// the balancer's own never asks whether it should.
    pub fn trace(&mut self, one_in: u32) -> Result<(), DataplaneError> {
        observe::sample(&self.maps_dir(), one_in)?;
        match (one_in, self.tracing.is_some()) {
            (0, true) => {
                // Detached below, when it has been replaced everywhere.
                let traced = self.tracing.take();
                let result = self.replace_attached();
                if result.is_err() {
                    self.tracing = traced;
                }
                result
            }
            (1.., false) => self.attach_tracing(),
            _ => Ok(()),
        }
    }

    fn attach_tracing(&mut self) -> Result<(), DataplaneError> {
        self.tracing = Some(Observed::load(&self.maps_dir(), WatchMode::Trace)?);
        let attached = self.replace_attached();
        if attached.is_err() {
            self.tracing = None;
            if let Err(second) = self.replace_attached() {
                tracing::error!(%second, "could not put the program back; restart lbd");
            }
        }
        attached
    }

    /// Records of the trace that were not written.
    pub fn trace_lost(&self) -> Result<u64, DataplaneError> {
        self.tracing.as_ref().map_or(Ok(0), Observed::lost)
    }

    /// Where the maps are pinned.
    #[must_use]
    pub fn maps_dir(&self) -> PathBuf {
        self.pin_dir.join(abi_name())
    }

    /// What the program says of rare faults of its own: to be called once, before anything is grown.
    pub fn logger(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>, DataplaneError> {
        EbpfLogger::init(&mut self.ebpf).map_err(|source| DataplaneError::Logger(Box::new(source)))
    }

    /// Tag of the program, as `bpftool prog` shows it.
    pub fn tag(&mut self) -> Result<String, DataplaneError> {
        let info = info(self.program()?)?;
        Ok(format!("{:016x}", info.tag().swap_bytes()))
    }

    /// Bytes of kernel memory the maps take.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        let dir = self.pin_dir.join(abi_name());
        abi::INVENTORY.iter().filter_map(|map| memlock(&dir.join(map.name)).ok()).sum()
    }

    /// Removes maps of other layouts: after this layout's program is attached everywhere nobody reads them.
    pub fn remove_old_layouts(&self) -> Result<(), DataplaneError> {
        let keep = abi_name();
        for entry in fs::read_dir(&self.pin_dir).map_err(DataplaneError::pin(&self.pin_dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("abi-") && name != keep {
                fs::remove_dir_all(entry.path()).map_err(DataplaneError::pin(entry.path()))?;
                tracing::info!(directory = %entry.path().display(), "removed the maps of another version");
            }
        }
        Ok(())
    }

    /// Removes links and maps: the interfaces are as if lbd had never been there.
    pub fn detach(pin_dir: &Path) -> Result<(), DataplaneError> {
        attach::Links::open(pin_dir)?.detach_all()?;
        let Ok(entries) = fs::read_dir(pin_dir) else { return Ok(()) };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("abi-") {
                fs::remove_dir_all(entry.path()).map_err(DataplaneError::pin(entry.path()))?;
            }
        }
        // The directory stays where a decapsulator or somebody else's pins are in it.
        let _ = fs::remove_dir(pin_dir);
        Ok(())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    program_named(ebpf, PROGRAM)
}

/// The program that belongs on the interfaces now.
fn current<'a>(ebpf: &'a mut Ebpf, tracing: &'a mut Option<Observed>) -> Result<&'a mut Xdp, DataplaneError> {
    match tracing {
        Some(tracing) => tracing.program(),
        None => program(ebpf),
    }
}

pub(super) fn program_named<'a>(
    ebpf: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut Xdp, DataplaneError> {
    ebpf.program_mut(program)
        .unwrap_or_else(|| panic!("the ELF has no program {program}"))
        .try_into()
        .map_err(|source| DataplaneError::Program { program, source: Box::new(source) })
}

fn info(program: &Xdp) -> Result<ProgramInfo, DataplaneError> {
    program.info().map_err(|source| DataplaneError::Program { program: PROGRAM, source: Box::new(source) })
}

/// Loads the program over the pinned maps; `next` tells which maps are made anew beside their pin.
fn load(
    maps_dir: &Path,
    capacities: Capacities,
    next: impl Fn(&MapInfo) -> bool,
) -> Result<(Ebpf, Maps), DataplaneError> {
    large::make(|map| pin_of(maps_dir, map, &next), |map| capacities.of(map))?;
    let mut ebpf = loader(maps_dir, capacities, next)?
        .load(elf::LB)
        .map_err(|source| DataplaneError::Load(Box::new(source)))?;
    program(&mut ebpf)?
        .load()
        .map_err(|source| DataplaneError::Program { program: PROGRAM, source: Box::new(source) })?;
    let maps = Maps::take(&mut ebpf)?;
    Ok((ebpf, maps))
}

fn pin_of(maps_dir: &Path, map: &MapInfo, next: impl Fn(&MapInfo) -> bool) -> PathBuf {
    let suffix = if next(map) { NEXT } else { "" };
    maps_dir.join(format!("{}{suffix}", map.name))
}

/// A loader that takes every map from its pin, and makes those that are not there.
pub(super) fn loader(
    maps_dir: &Path,
    capacities: Capacities,
    next: impl Fn(&MapInfo) -> bool,
) -> Result<EbpfLoader<'static>, DataplaneError> {
    let mut loader = EbpfLoader::new();
    for map in abi::INVENTORY {
        let pin = pin_of(maps_dir, map, &next);
        // aya checks indexes against what it was told, not against the map that it adopts, which may have grown.
        let capacity = pinned_capacity(&pin, map)?.unwrap_or_else(|| capacities.of(map));
        loader.map_max_entries(map.name, capacity).map_pin_path(map.name, pin);
    }
    loader.map_pin_path(LOGS, maps_dir.join(LOGS));
    Ok(loader)
}

/// Entries of a map that is pinned already.
fn pinned_capacity(path: &Path, map: &MapInfo) -> Result<Option<u32>, DataplaneError> {
    if !path.exists() {
        return Ok(None);
    }
    let info = MapData::from_pin(path).and_then(|data| data.info());
    Ok(Some(info.map_err(DataplaneError::map(map.name))?.max_entries()))
}

/// A pinned map is adopted only if it is what the inventory says.
pub(super) fn check_pin(path: &Path, wanted: &MapInfo) -> Result<(), DataplaneError> {
    if !path.exists() {
        return Ok(());
    }
    let info =
        MapData::from_pin(path).and_then(|map| map.info()).map_err(DataplaneError::map(wanted.name))?;
    let kind = info.map_type().map_err(DataplaneError::map(wanted.name))? as u32;
    let found = (kind, info.key_size(), info.value_size(), info.map_flags());
    let expected = (wanted.kind as u32, wanted.key_size, wanted.value_size, wanted.flags);
    if found == expected {
        return Ok(());
    }
    let show = |(kind, key, value, flags): (u32, u32, u32, u32)| {
        format!("type {kind}, key {key} bytes, value {value} bytes, flags {flags:#x}")
    };
    Err(DataplaneError::ForeignMap { path: path.to_owned(), found: show(found), expected: show(expected) })
}

/// A daemon that died while it replaced maps by larger ones left both. Until all programs read the larger ones, they are
/// copies that nobody has written since: those that are there stay, and whatever program is attached is replaced
/// by one that reads them.
fn finish_growth(maps_dir: &Path) -> Result<(), DataplaneError> {
    let marker = maps_dir.join(GROWN);
    let complete = marker.exists();
    for map in abi::INVENTORY.iter().filter(|map| map.grows) {
        let (old, next) = (maps_dir.join(map.name), maps_dir.join(format!("{}{NEXT}", map.name)));
        if !complete {
            remove_if_there(&next)?;
        } else if next.exists() {
            fs::rename(&next, &old).map_err(DataplaneError::pin(&old))?;
        }
    }
    if complete {
        fs::remove_dir(&marker).map_err(DataplaneError::pin(&marker))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DataplaneError::pin(path)(error)),
        _ => Ok(()),
    }
}

/// Ids of the maps pinned in a directory.
fn pinned_ids(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(MapData::from_pin(entry.path()).ok()?.info().ok()?.id())).collect()
}

/// Memory of a map, as `/proc/self/fdinfo` tells it.
fn memlock(pin: &Path) -> io::Result<u64> {
    use std::os::fd::{AsFd, AsRawFd};
    let map = MapData::from_pin(pin).map_err(io::Error::other)?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no memlock in fdinfo"))
}
