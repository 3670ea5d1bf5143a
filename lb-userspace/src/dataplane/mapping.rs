//! Array maps in our address space.

use super::DataplaneError;
use aya::maps::MapData;
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

/// A shared mapping of a part of a map, or of all of it, for as long as this lives.
pub(super) struct Mapping {
    base: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: it is an address range; what it holds is only touched through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `bytes` from `offset` on, which is a whole number of pages. `name`: the map's, for the error.
    pub(super) fn new(
        name: &'static str,
        map: &MapData,
        bytes: usize,
        offset: usize,
    ) -> Result<Self, DataplaneError> {
        // SAFETY: a new shared mapping of pages of the map; the kernel checks it against the map's length.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                offset as libc::off_t,
            )
        };
        let base = NonNull::new(address).filter(|_| address != libc::MAP_FAILED);
        let base =
            base.ok_or_else(|| DataplaneError::Mmap { map: name, source: io::Error::last_os_error() })?;
        Ok(Self { base, bytes })
    }

    /// `count` words from so many bytes on, a multiple of 8.
    ///
    /// # Panics
    /// If they are not all inside.
    pub(super) fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        assert!(
            offset.is_multiple_of(8) && offset + count * 8 <= self.bytes,
            "{count} words from {offset} on"
        );
        // SAFETY: inside the mapping, which lives as long as `self`; others touch the words through atomics, too.
        unsafe { std::slice::from_raw_parts(self.base.byte_add(offset).cast::<AtomicU64>().as_ptr(), count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr(), self.bytes) };
    }
}
