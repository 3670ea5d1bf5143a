//! Fragments that came before the first one of their datagram: records of the ring buffer `HELD`.

/// Longest frame that is held: what an Ethernet link carries, tags and more.
pub const HELD_FRAME: usize = 2048;

/// What stands in front of a frame that the daemon sends through the program again, as XDP metadata: it is not to be held
/// a second time. No driver writes it, and no packet can.
pub const RESENT: [u8; 8] = *b"lbd-held";

/// A frame that waits for the first fragment of its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct HeldFrame {
    /// When it came, nanoseconds of the monotonic clock.
    pub seen_ns: u64,
    /// The interface it came in by.
    pub ifindex: u32,
    /// Its length; what lies behind in `bytes` is undefined.
    pub len: u32,
    /// Offset of the IP header.
    pub l3: u32,
    /// 1 for IPv6.
    pub v6: u32,
    pub bytes: [u8; HELD_FRAME],
}

const _: () = assert!(size_of::<HeldFrame>() == 24 + HELD_FRAME);

impl HeldFrame {
    /// The record as it lies in the ring buffer; `None` if it is none, or contradicts itself.
    #[must_use]
    pub fn read(record: &[u8]) -> Option<Self> {
        let bytes = record.get(..size_of::<Self>())?;
        // SAFETY: as many bytes as the type has, which is integers and a byte array without padding.
        let held = unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() };
        (held.len as usize <= HELD_FRAME && held.l3 < held.len).then_some(held)
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}
