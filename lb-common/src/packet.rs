//! A frame seen through bounds checks: the one way the core reads and writes packets.

/// Read access to a frame. An answer of `None` means "beyond the end of the frame".
pub trait Packet {
    /// The `N` bytes from `offset` on.
    fn view<const N: usize>(&self, offset: usize) -> Option<View<'_, N>>;

    /// Length of the frame in bytes, or of its first part where it lies in several buffers.
    fn len(&self) -> usize;

    /// Length of the frame in bytes, all buffers together; it may cost more to ask.
    fn full_len(&self) -> usize {
        self.len()
    }

    /// True for a frame of no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Write access to a frame.
pub trait PacketMut: Packet {
    /// The `N` bytes from `offset` on, writable.
    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<ViewMut<'_, N>>;

    /// Moves the start of the frame: a positive `by` makes room in front (its bytes are undefined), a
    /// negative one cuts bytes off. `None`: no room, nothing changed.
    fn grow_head(&mut self, by: i32) -> Option<()>;

    /// Cuts the frame to `len` bytes. `None`: it is shorter or that is not possible; nothing changed.
    fn truncate(&mut self, len: usize) -> Option<()>;
}

/// `N` bytes of a frame, already known to be there. Offsets are checked at compile time.
#[derive(Clone, Copy)]
pub struct View<'a, const N: usize>(pub &'a [u8; N]);

/// `N` writable bytes of a frame, already known to be there.
pub struct ViewMut<'a, const N: usize>(pub &'a mut [u8; N]);

/// Reads a `T` at a place without alignment.
///
/// # Safety
/// `at` is valid for reads of `T`, and `T` is valid for every bit pattern.
#[inline(always)]
unsafe fn load<T: Copy>(at: *const u8) -> T {
    // SAFETY: the caller's promise. On BPF a plain load is used: `read_unaligned` would be taken apart
    // into single bytes, while the kernel's verifier and JIT allow (and check) unaligned packet access.
    unsafe { if cfg!(target_arch = "bpf") { *at.cast::<T>() } else { at.cast::<T>().read_unaligned() } }
}

/// Writes a `T` to a place without alignment.
///
/// # Safety
/// `at` is valid for writes of `T`.
#[inline(always)]
unsafe fn store<T: Copy>(at: *mut u8, value: T) {
    // SAFETY: as in `load`.
    unsafe {
        if cfg!(target_arch = "bpf") {
            *at.cast::<T>() = value;
        } else {
            at.cast::<T>().write_unaligned(value);
        }
    }
}

macro_rules! reads {
    ($($(#[$doc:meta])* $name:ident $raw:ident $type:ty),*) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name<const AT: usize>(self) -> $type {
            <$type>::from_be(self.$raw::<AT>())
        }

        /// The same as it stands in memory, for words that are only copied, compared or summed.
        #[inline(always)]
        pub fn $raw<const AT: usize>(self) -> $type {
            const { assert!(AT + size_of::<$type>() <= N) };
            // SAFETY: the assertion above keeps the read inside the N bytes; integers are valid for all bits.
            unsafe { load(self.0.as_ptr().add(AT)) }
        }
    )* };
}

impl<const N: usize> View<'_, N> {
    /// The byte at `AT`.
    #[inline(always)]
    pub fn u8<const AT: usize>(self) -> u8 {
        const { assert!(AT < N) };
        self.0[AT]
    }

    /// Sum of the bytes as 32-bit words in memory order, for a checksum; N is a multiple of 4.
    #[inline(always)]
    pub fn sum32(self) -> u64 {
        const { assert!(N.is_multiple_of(4)) };
        let mut sum = 0;
        for at in (0..N).step_by(4) {
            // SAFETY: the word at `at` lies inside the N bytes.
            sum += u64::from(unsafe { load::<u32>(self.0.as_ptr().add(at)) });
        }
        // SAFETY: a reference to a live local. Volatile: the compiler would otherwise put the additions off to
        // where the sum is used and keep every word until then, which takes more stack than BPF has.
        unsafe { core::ptr::read_volatile(&sum) }
    }

    reads! {
        /// The big-endian u16 at `AT`.
        u16 raw16 u16,
        /// The big-endian u32 at `AT`.
        u32 raw32 u32,
        /// The big-endian u64 at `AT`.
        u64 raw64 u64
    }
}

macro_rules! writes {
    ($($(#[$doc:meta])* $name:ident $type:ty),*) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name<const AT: usize>(&mut self, value: $type) {
            const { assert!(AT + size_of::<$type>() <= N) };
            // SAFETY: the assertion above keeps the write inside the N bytes.
            unsafe { store(self.0.as_mut_ptr().add(AT), value) }
        }
    )* };
}

impl<const N: usize> ViewMut<'_, N> {
    /// The same bytes, for reading.
    #[inline(always)]
    pub fn as_view(&self) -> View<'_, N> {
        View(&*self.0)
    }

    writes! {
        /// Stores a byte at `AT`.
        set8 u8,
        /// Stores a u16 at `AT` as it is in memory (give `.to_be()` for network order).
        set16 u16,
        /// Stores a u32 at `AT` as it is in memory.
        set32 u32,
        /// Stores a u64 at `AT` as it is in memory.
        set64 u64
    }
}

/// A frame in a buffer with room in front, for tests, replay and `explain` on the host.
#[cfg(any(test, feature = "user"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    bytes: std::vec::Vec<u8>,
    head: usize,
}

#[cfg(any(test, feature = "user"))]
impl Buffer {
    /// Room the kernel leaves in front of a frame (`XDP_PACKET_HEADROOM`), less its own `xdp_frame`.
    pub const HEADROOM: usize = 216;

    /// A frame with the kernel's headroom in front.
    pub fn new(frame: &[u8]) -> Self {
        // What lies there is undefined: not zero, so that a test notices what nobody wrote.
        let mut bytes = std::vec![0xa5; Self::HEADROOM];
        bytes.extend_from_slice(frame);
        Self { bytes, head: Self::HEADROOM }
    }

    /// The frame.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[self.head..]
    }
}

#[cfg(any(test, feature = "user"))]
impl Packet for Buffer {
    fn view<const N: usize>(&self, offset: usize) -> Option<View<'_, N>> {
        self.frame().get(offset..)?.first_chunk().map(View)
    }
    fn len(&self) -> usize {
        self.frame().len()
    }
}

#[cfg(any(test, feature = "user"))]
impl PacketMut for Buffer {
    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<ViewMut<'_, N>> {
        self.bytes[self.head..].get_mut(offset..)?.first_chunk_mut().map(ViewMut)
    }
    fn grow_head(&mut self, by: i32) -> Option<()> {
        let head = isize::try_from(self.head).ok()?.checked_sub(isize::try_from(by).ok()?)?;
        let head = usize::try_from(head).ok()?;
        // As the kernel: a frame keeps at least an Ethernet header.
        if head + 14 > self.bytes.len() {
            return None;
        }
        self.head = head;
        Some(())
    }
    fn truncate(&mut self, len: usize) -> Option<()> {
        if len > self.len() || len < 14 {
            return None;
        }
        self.bytes.truncate(self.head + len);
        Some(())
    }
}
