//! What aya does not offer: reading and writing maps in batches (BPF_MAP_LOOKUP_BATCH and its kin, Linux 5.6), a hundred
//! times fewer system calls than key by key, and taking an element out (BPF_MAP_LOOKUP_AND_DELETE_ELEM, Linux 5.14).

use std::{io, os::fd::AsRawFd, os::fd::BorrowedFd};

/// `union bpf_attr`, the part for batches.
#[repr(C)]
#[derive(Default)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// Entries asked for at once; more than any bucket of our maps will ever hold.
const BATCH: usize = 4096;

/// The system call.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is one of the two structures of this file, as long as is said; the pointers in it are to live buffers of the
    // sizes of the map's keys and values, times the count, of which the kernel writes no more.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Calls `visit` with every key and value. Entries that come or go meanwhile may be seen or missed; one that
/// stays is seen.
///
/// The map is a hash map or a trie; `K` and `V` must have its key and value size.
pub(super) fn for_each<K: aya::Pod + Default, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut keys = vec![K::default(); BATCH];
    let mut values = vec![V::default(); BATCH];
    // The kernel's cursor: the number of a bucket of a hash map, the last key of a trie.
    const { assert!(size_of::<K>() >= size_of::<u32>()) };
    let (mut cursor, mut next) = (K::default(), K::default());
    let mut first = true;
    loop {
        let mut attr = Attr {
            in_batch: if first { 0 } else { &raw const cursor as u64 },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Attr::default()
        };
        let last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(()) => false,
            // These were the last.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = (attr.count as usize).min(BATCH);
        for (key, value) in keys[..count].iter().zip(&values[..count]) {
            visit(key, value);
        }
        if last {
            return Ok(());
        }
        first = false;
        cursor = next;
    }
}

/// Inserts or replaces entries. An error leaves those before it in the map.
///
/// `K` and `V` must have the map's key and value size.
pub(super) fn insert<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len());
    for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
        let mut attr = Attr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Attr::default()
        };
        bpf(BPF_MAP_UPDATE_BATCH, &mut attr)?;
    }
    Ok(())
}

/// Replaces entries of an array, whose values are so many bytes of each CPU's as `values` has for each key.
///
/// The key size of the map is 4 bytes.
pub(super) fn insert_bytes(map: BorrowedFd<'_>, keys: &[u32], values: &[u8]) -> io::Result<()> {
    let size = values.len() / keys.len().max(1);
    assert_eq!(size * keys.len(), values.len());
    let mut attr = Attr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Attr::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr)
}

/// Removes entries; those that are not there are fine.
///
/// `K` must have the map's key size.
pub(super) fn remove<K: aya::Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut left = keys;
    while !left.is_empty() {
        let asked = left.len().min(BATCH);
        let mut attr = Attr {
            keys: left.as_ptr() as u64,
            count: asked as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Attr::default()
        };
        let result = bpf(BPF_MAP_DELETE_BATCH, &mut attr);
        let done = (attr.count as usize).min(asked);
        left = match result {
            Ok(()) => &left[asked..],
            // The one after those that were removed was not there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && done < asked => &left[done + 1..],
            Err(error) => return Err(error),
        };
    }
    Ok(())
}

/// `union bpf_attr`, the part for single elements.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;

/// Takes an element out at once: what comes back is what was there last. `None` if there was none.
///
/// `K` and `V` must have the map's key and value size.
pub(super) fn take<K: aya::Pod, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// The element of a key, if there is one.
///
/// `K` and `V` must have the map's key and value size.
pub(super) fn get<K: aya::Pod, V: aya::Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    element(BPF_MAP_LOOKUP_ELEM, map, key)
}

fn element<K: aya::Pod, V: aya::Pod + Default>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: &raw mut value as u64,
        flags: 0,
    };
    match bpf(command, &mut attr) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Inserts entries that are not there; those that are stay as they are. An error leaves those before it in the map. One by one: batches
/// know no such condition.
///
/// `K` and `V` must have the map's key and value size.
pub(super) fn insert_new<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    const BPF_NOEXIST: u64 = 1;
    assert_eq!(keys.len(), values.len());
    for (key, value) in keys.iter().zip(values) {
        let mut attr = ElementAttr {
            map_fd: map.as_raw_fd() as u32,
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: BPF_NOEXIST,
        };
        match bpf(BPF_MAP_UPDATE_ELEM, &mut attr) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
