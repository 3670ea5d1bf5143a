//! Balancers that are loaded once and used by one test after the other: what takes time is the verifier, above all on an
//! emulated machine. Between two tests every map becomes what a new program's is.

use super::Loaded;
use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, Xdp},
    util::nr_cpus,
};
use lb_common::abi::{self, FLOW_CAPACITY, INVENTORY, MMAPABLE, MapKind};
use lb_userspace::plan::Image;
use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Entries of the maps whose size a test chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) ring: u32,
    pub(super) backends: u32,
    /// Of either family.
    pub(super) flows: u32,
}

/// Those that no test has just now.
static IDLE: Mutex<Vec<(Room, Box<Loaded>)>> = Mutex::new(Vec::new());

/// The balancer's program in the kernel with an image in its maps. Dropped, it serves the next test of this process that
/// wants the same room.
pub struct Balancer {
    /// There until it is dropped.
    loaded: Option<Box<Loaded>>,
    /// Absent where its maps are pinned: others may know them.
    room: Option<Room>,
}

impl Balancer {
    /// Loads the balancer and fills its maps. ICMP answers are not limited: see [`Loaded::set_tokens`].
    #[must_use]
    pub fn new(image: &Image) -> Self {
        Self::with_room(image, FLOW_CAPACITY)
    }

    /// The same with room for so many tracked flows, and so many handshakes, of either family.
    #[must_use]
    pub fn with_room(image: &Image, flows: u32) -> Self {
        let room = Room { ring: image.ring_capacity, backends: image.backend_capacity, flows };
        let idle = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().position(|(of, _)| *of == room).map(|place| idle.swap_remove(place).1)
        };
        let loaded = match idle {
            Some(mut loaded) => {
                loaded.clear();
                loaded
            }
            None => Box::new(Loaded::load(room, None)),
        };
        Self::with(loaded, Some(room), image)
    }

    /// The same with its maps pinned in a directory.
    #[must_use]
    pub fn pinned(image: &Image, pins: &Path) -> Self {
        let room = Room { ring: image.ring_capacity, backends: image.backend_capacity, flows: FLOW_CAPACITY };
        Self::with(Box::new(Loaded::load(room, Some(pins))), None, image)
    }

    fn with(mut loaded: Box<Loaded>, room: Option<Room>, image: &Image) -> Self {
        loaded.set_image(image);
        loaded.set_tokens(u64::MAX / 2);
        Self { loaded: Some(loaded), room }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // After a failure nobody knows what state it is in.
        if let (Some(loaded), Some(room), false) = (self.loaded.take(), self.room, std::thread::panicking()) {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push((room, loaded));
        }
    }
}

impl Deref for Balancer {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        self.loaded.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Balancer {
    fn deref_mut(&mut self) -> &mut Loaded {
        self.loaded.as_mut().expect("there until it is dropped")
    }
}

impl Loaded {
    /// Makes every map what it is right after loading.
    fn clear(&mut self) {
        let (ring, backends) = (self.image.ring_capacity, self.image.backend_capacity);
        // By the daemon's own actions first: its handles count what they put into bitmaps.
        self.set_image(&Image::empty(ring, backends));
        self.held();
        for (map, info) in self.maps_in_kernel() {
            let fd = info.fd().expect("a descriptor of a map");
            let (key, value) = (map.key_size as usize, map.value_size as usize);
            let result = match map.kind {
                MapKind::Hash | MapKind::LruHash => empty_at_once(fd.as_fd(), info.max_entries(), key, value),
                MapKind::LpmTrie => empty(fd.as_fd(), key),
                MapKind::Array if map.flags & MMAPABLE != 0 => {
                    Memory::of(fd.as_fd(), info.max_entries(), value).map(|mut memory| memory.zero())
                }
                MapKind::Array => zero(fd.as_fd(), info.max_entries(), value),
                MapKind::PerCpuArray => {
                    zero(fd.as_fd(), info.max_entries(), cpus() * value.next_multiple_of(8))
                }
                // Read to its end above, or by whoever looks at its records.
                MapKind::RingBuf => Ok(()),
            };
            result.unwrap_or_else(|error| panic!("clearing {}: {error}", map.name));
        }
    }

    fn info(&self) -> ProgramInfo {
        let program: &Xdp = self.program.ebpf.program("lb").expect("lb").try_into().expect("an XDP program");
        program.info().expect("program info")
    }

    /// The maps of the inventory.
    fn maps_in_kernel(&self) -> Vec<(&'static abi::MapInfo, MapInfo)> {
        let ids = self.info().map_ids().expect("map ids").expect("map ids");
        let known = |id| {
            let info = MapInfo::from_id(id).expect("map info");
            let name = info.name_as_str().expect("UTF-8");
            Some((INVENTORY.iter().find(|map| map.name == name)?, info))
        };
        ids.into_iter().filter_map(known).collect()
    }

    /// The kernel's number of the program.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.info().id()
    }

    /// The first map that is not what it is right after loading, but for the buckets, which a test fills.
    #[must_use]
    pub fn first_not_zero(&self) -> Option<&'static str> {
        let mut maps = self.maps_in_kernel().into_iter().filter(|(map, _)| map.name != "BUCKETS");
        maps.find_map(|(map, info)| {
            let fd = info.fd().expect("a descriptor of a map");
            let (key, value) = (map.key_size as usize, map.value_size as usize);
            let clean = match map.kind {
                MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie => is_empty(fd.as_fd(), key),
                MapKind::Array if map.flags & MMAPABLE != 0 => {
                    Memory::of(fd.as_fd(), info.max_entries(), value).expect("a map in memory").is_zero()
                }
                MapKind::Array => is_zero(fd.as_fd(), info.max_entries(), value),
                MapKind::PerCpuArray => {
                    is_zero(fd.as_fd(), info.max_entries(), cpus() * value.next_multiple_of(8))
                }
                MapKind::RingBuf => true,
            };
            (!clean).then_some(map.name)
        })
    }
}

/// `union bpf_attr`, the part for one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Of the value, or of the next key.
    value: u64,
    flags: u64,
}

/// `union bpf_attr`, the part for many.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is one of the two structures above, as long as is said; the pointers in it are to live buffers of the
    // sizes of the map's keys and values, times the count.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes every entry of a hash map.
fn empty_at_once(map: BorrowedFd<'_>, entries: u32, key_size: usize, value_size: usize) -> io::Result<()> {
    const LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
    if is_empty(map, key_size) {
        return Ok(());
    }
    let mut keys = vec![0u8; entries as usize * key_size];
    let mut values = vec![0u8; entries as usize * value_size];
    // The kernel's place in the table.
    let mut place = [0u8; 64];
    let mut batch = Batch {
        out_batch: place.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: entries,
        map_fd: map.as_raw_fd() as u32,
        ..Batch::default()
    };
    match bpf(LOOKUP_AND_DELETE_BATCH, &mut batch) {
        // What says that the end was reached, which it was as there is room for all.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Removes every entry of a trie.
fn empty(map: BorrowedFd<'_>, key_size: usize) -> io::Result<()> {
    const DELETE: libc::c_long = 3;
    const NEXT_KEY: libc::c_long = 4;
    let mut key = vec![0u8; key_size];
    loop {
        let next = key.as_mut_ptr() as u64;
        let fd = map.as_raw_fd() as u32;
        match bpf(NEXT_KEY, &mut Element { map_fd: fd, value: next, ..Element::default() }) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        bpf(DELETE, &mut Element { map_fd: fd, key: next, ..Element::default() })?;
    }
}

/// Sets every value of an array, of so many bytes, to zero.
fn zero(map: BorrowedFd<'_>, entries: u32, value_size: usize) -> io::Result<()> {
    const UPDATE_BATCH: libc::c_long = 26;
    let keys: Vec<u32> = (0..entries).collect();
    let values = vec![0u8; entries as usize * value_size];
    bpf(
        UPDATE_BATCH,
        &mut Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: entries,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        },
    )
}

pub(super) fn cpus() -> usize {
    nr_cpus().expect("the number of CPUs")
}

/// All values of a per-CPU array, each of so many words on each CPU.
pub(super) fn read_per_cpu(map: BorrowedFd<'_>, entries: u32, words: usize) -> io::Result<Vec<u64>> {
    const LOOKUP_BATCH: libc::c_long = 24;
    let mut keys = vec![0u32; entries as usize];
    let mut values = vec![0u64; entries as usize * words * cpus()];
    let mut place = 0u64;
    let mut batch = Batch {
        out_batch: (&raw mut place) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: entries,
        map_fd: map.as_raw_fd() as u32,
        ..Batch::default()
    };
    match bpf(LOOKUP_BATCH, &mut batch) {
        // What says that the end was reached, which it was as there is room for all.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    assert_eq!((batch.count, keys.last()), (entries, (entries.checked_sub(1)).as_ref()), "every entry");
    Ok(values)
}

fn is_empty(map: BorrowedFd<'_>, key_size: usize) -> bool {
    const NEXT_KEY: libc::c_long = 4;
    let mut key = vec![0u8; key_size];
    let (map_fd, value) = (map.as_raw_fd() as u32, key.as_mut_ptr() as u64);
    bpf(NEXT_KEY, &mut Element { map_fd, value, ..Element::default() }).is_err()
}

fn is_zero(map: BorrowedFd<'_>, entries: u32, value_size: usize) -> bool {
    const LOOKUP: libc::c_long = 1;
    let mut found = vec![0u8; value_size];
    (0..entries).all(|index| {
        let (map_fd, key, value) =
            (map.as_raw_fd() as u32, (&raw const index) as u64, found.as_mut_ptr() as u64);
        bpf(LOOKUP, &mut Element { map_fd, key, value, ..Element::default() })
            .expect("an element of an array");
        found.iter().all(|byte| *byte == 0)
    })
}

/// An array that can be mapped, as words.
struct Memory {
    start: *mut AtomicU64,
    words: usize,
}

impl Memory {
    fn of(map: BorrowedFd<'_>, entries: u32, value_size: usize) -> io::Result<Self> {
        let words = entries as usize * value_size.next_multiple_of(8) / 8;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_raw_fd());
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), words * 8, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { start: start.cast(), words })
        }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is of so many words, aligned to a page, and lives as long as `self`; who else writes to it is
        // the kernel, and atomics allow that.
        unsafe { std::slice::from_raw_parts(self.start, self.words) }
    }

    fn zero(&mut self) {
        // A page that is only read costs no memory.
        for word in self.words().iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn is_zero(&self) -> bool {
        self.words().iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.words * 8) };
    }
}
