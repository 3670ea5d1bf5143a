//! What the observed program says of its packets: to `explain` in a map of its own, to `trace` as records of `EVENTS`.

use super::{Bucket, EventHeader};

/// How the second program of the ELF behaves: the value of its constant `MODE`, set before it is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum WatchMode {
    /// What the balancer does. Of its own program the constant is this.
    Live = 0,
    /// Decides and rewrites, and changes nothing but the packet: no flow, no counter, no token.
    Explain = 1,
    /// Does what the balancer does, and tells of it.
    Trace = 2,
}

/// What one run met on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Note {
    /// [`Note::RAN`], ...: which of the following were met.
    pub known: u32,
    pub service: u32,
    pub backend: u32,
    /// A drop reason.
    pub reason: u32,
    /// Where the slot is in `RING`, and where the ring of its service begins.
    pub ring_index: u32,
    pub ring_base: u32,
    /// The slot as it was read.
    pub slot: u64,
    /// The entry of the flow as it was found.
    pub flow: u64,
}

impl Note {
    /// The program ran on this CPU.
    pub const RAN: u32 = 1;
    /// The destination is a VIP.
    pub const VIP: u32 = 2;
    pub const SERVICE: u32 = 4;
    pub const SLOT: u32 = 8;
    /// The flow table was asked and knew the flow.
    pub const FLOW: u32 = 16;
    pub const BACKEND: u32 = 32;
    pub const REASON: u32 = 64;
    /// The flow would have been recorded.
    pub const RECORDS: u32 = 128;

    /// Was it met?
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, what: u32) -> bool {
        self.known & what != 0
    }

    /// Index of the slot within its ring.
    #[must_use]
    pub const fn slot_index(&self) -> u32 {
        self.ring_index.wrapping_sub(self.ring_base)
    }
}

/// [`EventHeader::TRACE`]: a packet for a VIP and what became of it. Addresses are those it came with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct TraceEvent {
    pub header: EventHeader,
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// IPv4 mapped.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// As in the packet; 0 where it has none that are easily found (fragments, extension headers).
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// The interface it came in by.
    pub ifindex: u32,
    /// Bytes of the frame as it came.
    pub length: u32,
    /// `enum xdp_action`.
    pub verdict: u32,
    /// [`Note::known`], and what it says is known.
    pub known: u32,
    pub reason: u32,
    pub service: u32,
    pub backend: u32,
    pub slot: u32,
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    pub pad: u16,
}

/// Value of `NOTES`, per CPU: a map of the observed program's own, not pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Watch {
    pub note: Note,
    /// Filled in while the packet is under way.
    pub event: TraceEvent,
    /// Limits the records of this CPU.
    pub bucket: Bucket,
    /// Records that were not written: over the limit, or no room.
    pub lost: u64,
}

const _: () = assert!(size_of::<Note>() == 40 && size_of::<TraceEvent>() == 88 && size_of::<Watch>() == 152);
#[cfg(feature = "user")]
// SAFETY: repr(C) of integers and byte arrays, its size the sum of theirs: no padding, every bit pattern is valid.
unsafe impl aya::Pod for Watch {}
