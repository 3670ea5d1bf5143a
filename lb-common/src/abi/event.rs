//! Records of the ring buffer `EVENTS`: a header, then what belongs to its kind.

/// The head of every record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct EventHeader {
    /// [`EventHeader::RESOLVE`], ... A reader skips kinds it does not know.
    pub kind: u32,
    /// Bytes of the record, this header among them.
    pub size: u32,
}

impl EventHeader {
    /// [`ResolveEvent`].
    pub const RESOLVE: u32 = 1;
    /// A verdict of the sampled trace.
    pub const TRACE: u32 = 2;
    /// [`super::ClaimEvent`].
    pub const CLAIM: u32 = 3;
}

/// A packet could not leave because its next hop has no neighbour entry: somebody has to ask for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ResolveEvent {
    pub header: EventHeader,
    /// The next hop (a gateway, or the destination itself); IPv4 mapped.
    pub address: [u8; 16],
    /// 4 or 6.
    pub family: u32,
    /// The egress.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<EventHeader>() == 8 && size_of::<ResolveEvent>() == 32);
