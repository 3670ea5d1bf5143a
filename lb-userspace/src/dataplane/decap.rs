//! The decapsulator of a backend: attached, changed and shown by `lbctl`, kept by its pins.
//!
//! ```text
//! PIN_ROOT/decap/3/links/native-3          the link of the interface with index 3
//! PIN_ROOT/decap/3/maps-1/                 its maps, in the directory of their layout
//! ```

use super::{DataplaneError, attach::Links, attach::attached_program, elf, kernel::check_pin};
use crate::{
    control::api::{DecapView, DropView},
    model::XdpMode,
};
use anyhow::{Context as _, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::{Xdp, loaded_programs},
};
use ipnet::IpNet;
use lb_common::{
    abi::{MapInfo, MapKind, NO_PREALLOC},
    core::decap::{BYTES, COUNTERS, MAX_SOURCES, PACKETS, Reason},
};
use nix::net::if_::{if_indextoname, if_nametoindex};
use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

const PROGRAM: &str = "decap";

const fn map(name: &'static str, kind: MapKind, sizes: (u32, u32), capacity: u32, flags: u32) -> MapInfo {
    MapInfo { name, kind, key_size: sizes.0, value_size: sizes.1, capacity, flags, grows: false }
}

/// Every map of the program.
const INVENTORY: [MapInfo; 4] = [
    map("ALLOW4", MapKind::LpmTrie, (8, 4), MAX_SOURCES, NO_PREALLOC),
    map("ALLOW6", MapKind::LpmTrie, (20, 4), MAX_SOURCES, NO_PREALLOC),
    map("SETTINGS", MapKind::Array, (4, 4), 1, 0),
    map("COUNTERS", MapKind::PerCpuArray, (4, 8), COUNTERS, 0),
];

/// Raise it when an element of a map changes its meaning without changing its size.
const LAYOUT: u32 = 1;

/// The directory of one interface.
struct Place {
    dir: PathBuf,
    ifindex: u32,
}

impl Place {
    fn new(pin_root: &Path, ifindex: u32) -> Self {
        Self { dir: pin_root.join("decap").join(ifindex.to_string()), ifindex }
    }

    fn maps(&self) -> PathBuf {
        self.dir.join(format!("maps-{LAYOUT}"))
    }

    /// Mode and program id of the link; `None` where there is none.
    fn attached(&self) -> Result<Option<(super::Mode, u32)>, DataplaneError> {
        Ok(Links::open(&self.dir)?
            .attached()
            .into_iter()
            .find(|(ifindex, ..)| *ifindex == self.ifindex)
            .map(|(_, mode, program)| (mode, program)))
    }

    fn remove(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)?.flatten() {
            fs::remove_dir_all(entry.path())?;
        }
        fs::remove_dir(&self.dir)
    }

    /// A pin directory is seen from every network namespace, while interface indexes belong to one: the link
    /// under our index may hold another namespace's interface.
    fn ensure_ours(&self, ifname: &str, program: u32) -> anyhow::Result<()> {
        let here = attached_program(ifname);
        ensure!(
            here == "unknown" || here == program.to_string(),
            "{} belongs to an interface of another network namespace (program id {program}, while {ifname} has \
             {here}): name a directory of this namespace's own with --pin-dir",
            self.dir.display()
        );
        Ok(())
    }
}

/// Takes packets of `sources` arriving at `ifname` out of their tunnel, from now on and beyond the end of this
/// process. Attaching again changes sources and port in place: every source that is in both lists is
/// served without a gap, and a program of another version is replaced between two packets.
pub fn attach(ifname: &str, sources: &[IpNet], gue_port: u16, pin_root: &Path) -> anyhow::Result<()> {
    let sources: BTreeSet<IpNet> = sources.iter().map(IpNet::trunc).collect();
    ensure!(
        !sources.is_empty(),
        "no source is given: name the addresses of the load balancers with --from, or 0.0.0.0/0 for everybody"
    );
    for (family, v4) in [("IPv4", true), ("IPv6", false)] {
        let count = sources.iter().filter(|s| matches!(s, IpNet::V4(_)) == v4).count();
        ensure!(
            count <= MAX_SOURCES as usize,
            "{count} {family} sources are given, at most {MAX_SOURCES} fit: join them to larger prefixes"
        );
    }
    let ifindex = ifindex(ifname)?;
    crate::net::bpffs::ensure(pin_root)?;
    let place = Place::new(pin_root, ifindex);
    fs::create_dir_all(&place.dir)
        .with_context(|| format!("cannot make the directory {}", place.dir.display()))?;
    match place.attached()? {
        Some((_, program)) => place.ensure_ours(ifname, program)?,
        // Left by an interface that is gone, or by a call that did not end.
        None => {
            place.remove().with_context(|| format!("cannot empty {}", place.dir.display()))?;
        }
    }
    let result = fill_and_attach(&place, ifname, &sources, gue_port);
    if result.is_err() && place.attached().is_ok_and(|link| link.is_none()) {
        // The error to be told is the first one.
        let _ = place.remove();
    }
    result
}

fn fill_and_attach(
    place: &Place,
    ifname: &str,
    sources: &BTreeSet<IpNet>,
    gue_port: u16,
) -> anyhow::Result<()> {
    let maps_dir = place.maps();
    fs::create_dir_all(&maps_dir)
        .with_context(|| format!("cannot make the directory {}", maps_dir.display()))?;
    for map in &INVENTORY {
        check_pin(&maps_dir.join(map.name), map)?;
    }
    let mut ebpf = load(&maps_dir)?;
    let mut maps = Maps::take(|name| ebpf.take_map(name))?;
    // The maps may be in use already: what is added comes first, what is removed last.
    maps.add(sources)?;
    maps.set_gue_port(gue_port)?;
    let attached = Links::open(&place.dir)?
        .attach(program(&mut ebpf)?, &[ifname.to_owned()], XdpMode::Auto)
        .map_err(|error| explain(ifname, error))?;
    maps.retain(sources)?;
    for warning in attached.into_iter().filter_map(|attached| attached.warning) {
        eprintln!("warning: {ifname}: {warning}");
    }
    remove_other_layouts(place)
}

/// Takes the program off the interface.
pub fn detach(ifname: &str, pin_root: &Path) -> anyhow::Result<()> {
    let place = Place::new(pin_root, ifindex(ifname)?);
    let Some((_, program)) = place.attached()? else {
        bail!(
            "interface {ifname} does not have the decapsulation program (nothing in {}); `lbctl decap show` tells \
             which have",
            place.dir.display()
        );
    };
    place.ensure_ours(ifname, program)?;
    Links::open(&place.dir)?.detach_all()?;
    place.remove().with_context(|| format!("cannot remove {}", place.dir.display()))?;
    // They stay where something else is in them.
    let _ = fs::remove_dir(pin_root.join("decap"));
    let _ = fs::remove_dir(pin_root);
    Ok(())
}

/// Every interface of this network namespace that has the program.
pub fn show(pin_root: &Path) -> anyhow::Result<Vec<DecapView>> {
    let root = pin_root.join("decap");
    let entries = match fs::read_dir(&root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", root.display()))?,
    };
    let mut indexes: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    indexes.sort_unstable();
    let mut views = Vec::new();
    for ifindex in indexes {
        let place = Place::new(pin_root, ifindex);
        let Some((mode, program)) = place.attached()? else { continue };
        let Ok(interface) = if_indextoname(ifindex) else { continue };
        let interface = interface.to_string_lossy().into_owned();
        if place.ensure_ours(&interface, program).is_err() {
            continue;
        }
        views.push(view(&place, interface, mode).with_context(|| {
            format!(
                "the maps in {} cannot be read; if another version of lbctl attached the program, run `lbctl \
                 decap attach` again",
                place.maps().display()
            )
        })?);
    }
    Ok(views)
}

fn view(place: &Place, interface: String, mode: super::Mode) -> anyhow::Result<DecapView> {
    let dir = place.maps();
    for map in &INVENTORY {
        check_pin(&dir.join(map.name), map)?;
    }
    let maps = Maps::take(|name| {
        let data = MapData::from_pin(dir.join(name)).ok()?;
        Some(match INVENTORY.iter().find(|map| map.name == name)?.kind {
            MapKind::LpmTrie => Map::LpmTrie(data),
            MapKind::Array => Map::Array(data),
            MapKind::PerCpuArray => Map::PerCpuArray(data),
            MapKind::Hash => Map::HashMap(data),
            MapKind::LruHash | MapKind::RingBuf => Map::Unsupported(data),
        })
    })?;
    let refused = |reason: Reason| {
        Ok(DropView {
            reason: reason.name().to_owned(),
            packets: maps.counter(reason.counter())?,
            help: reason.help().to_owned(),
        })
    };
    Ok(DecapView {
        interface,
        ifindex: place.ifindex,
        mode: mode.name().to_owned(),
        sources: maps.sources()?.iter().map(ToString::to_string).collect(),
        gue_port: maps.gue_port()?,
        packets: maps.counter(PACKETS)?,
        bytes: maps.counter(BYTES)?,
        refused: Reason::ALL.into_iter().map(refused).collect::<anyhow::Result<_>>()?,
    })
}

fn ifindex(ifname: &str) -> anyhow::Result<u32> {
    Ok(if_nametoindex(ifname).map_err(|_| DataplaneError::NoInterface {
        interface: ifname.to_owned(),
        existing: super::attach::interface_names(),
    })?)
}

fn load(maps_dir: &Path) -> Result<Ebpf, DataplaneError> {
    let mut loader = EbpfLoader::new();
    for map in &INVENTORY {
        loader.map_pin_path(map.name, maps_dir.join(map.name));
    }
    let mut ebpf = loader.load(elf::DECAP).map_err(|source| DataplaneError::Load(Box::new(source)))?;
    program(&mut ebpf)?
        .load()
        .map_err(|source| DataplaneError::Program { program: PROGRAM, source: Box::new(source) })?;
    Ok(ebpf)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    ebpf.program_mut(PROGRAM)
        .unwrap_or_else(|| panic!("the ELF has no program {PROGRAM}"))
        .try_into()
        .map_err(|source| DataplaneError::Program { program: PROGRAM, source: Box::new(source) })
}

/// An interface has one XDP program: says whose it is.
fn explain(ifname: &str, error: DataplaneError) -> anyhow::Error {
    let DataplaneError::Busy { program, .. } = &error else { return error.into() };
    let name = loaded_programs()
        .flatten()
        .find(|other| other.id().to_string() == *program)
        .and_then(|other| other.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    let advice = match name.as_str() {
        "lb" => {
            "it looks like the balancer itself: take the interface out of lbd's configuration, or let another one \
             receive the tunnelled packets"
        }
        PROGRAM => {
            "it is a decapsulation program pinned in another directory: name that one with --pin-dir, or detach it \
             there first"
        }
        _ => "remove it first: an interface takes one",
    };
    anyhow::anyhow!("interface {ifname} already has an XDP program (id {program}, name '{name}'): {advice}")
}

fn remove_other_layouts(place: &Place) -> anyhow::Result<()> {
    let keep = place.maps();
    for entry in fs::read_dir(&place.dir)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("maps-") && entry.path() != keep {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Handles of the maps.
struct Maps {
    allow4: LpmTrie<MapData, [u8; 4], u32>,
    allow6: LpmTrie<MapData, [u8; 16], u32>,
    settings: Array<MapData, u32>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    fn take(mut from: impl FnMut(&'static str) -> Option<Map>) -> anyhow::Result<Self> {
        fn one<T: TryFrom<Map, Error = MapError>>(name: &'static str, map: Option<Map>) -> anyhow::Result<T> {
            let map = map.with_context(|| format!("there is no map {name}"))?;
            T::try_from(map).with_context(|| format!("map {name}"))
        }
        Ok(Self {
            allow4: one("ALLOW4", from("ALLOW4"))?,
            allow6: one("ALLOW6", from("ALLOW6"))?,
            settings: one("SETTINGS", from("SETTINGS"))?,
            counters: one("COUNTERS", from("COUNTERS"))?,
        })
    }

    fn add(&mut self, sources: &BTreeSet<IpNet>) -> anyhow::Result<()> {
        // A full trie takes the new list only once the old one is gone.
        let old = self.sources()?;
        for v4 in [true, false] {
            let family = |net: &&IpNet| matches!(net, IpNet::V4(_)) == v4;
            if old.union(sources).filter(family).count() > MAX_SOURCES as usize {
                self.retain(sources)?;
            }
        }
        for source in sources {
            let done = match source {
                IpNet::V4(net) => self.allow4.insert(&key4(net), 1, 0),
                IpNet::V6(net) => self.allow6.insert(&key6(net), 1, 0),
            };
            done.with_context(|| format!("cannot allow {source}"))?;
        }
        Ok(())
    }

    /// Removes every source that is not in the list.
    fn retain(&mut self, sources: &BTreeSet<IpNet>) -> anyhow::Result<()> {
        for source in self.sources()?.difference(sources) {
            let done = match source {
                IpNet::V4(net) => self.allow4.remove(&key4(net)),
                IpNet::V6(net) => self.allow6.remove(&key6(net)),
            };
            done.with_context(|| format!("cannot take {source} off the list"))?;
        }
        Ok(())
    }

    fn sources(&self) -> anyhow::Result<BTreeSet<IpNet>> {
        fn keys<K: Pod>(trie: &LpmTrie<MapData, K, u32>) -> Result<Vec<Key<K>>, MapError> {
            trie.keys().collect()
        }
        let mut sources = BTreeSet::new();
        for key in keys(&self.allow4).context("cannot read ALLOW4")? {
            sources.insert(net(Ipv4Addr::from(key.data()).into(), key.prefix_len())?);
        }
        for key in keys(&self.allow6).context("cannot read ALLOW6")? {
            sources.insert(net(Ipv6Addr::from(key.data()).into(), key.prefix_len())?);
        }
        Ok(sources)
    }

    fn set_gue_port(&mut self, port: u16) -> anyhow::Result<()> {
        self.settings.set(0, u32::from(port), 0).context("cannot set the port of GUE")
    }

    fn gue_port(&self) -> anyhow::Result<u16> {
        let port = self.settings.get(&0, 0).context("cannot read the port of GUE")?;
        u16::try_from(port).context("the port of GUE in the map is no port")
    }

    fn counter(&self, index: u32) -> anyhow::Result<u64> {
        Ok(self.counters.get(&index, 0).context("cannot read the counters")?.iter().sum())
    }
}

fn key4(net: &ipnet::Ipv4Net) -> Key<[u8; 4]> {
    Key::new(u32::from(net.prefix_len()), net.network().octets())
}

fn key6(net: &ipnet::Ipv6Net) -> Key<[u8; 16]> {
    Key::new(u32::from(net.prefix_len()), net.network().octets())
}

fn net(address: IpAddr, prefix_len: u32) -> anyhow::Result<IpNet> {
    Ok(IpNet::new(address, u8::try_from(prefix_len)?)?)
}
