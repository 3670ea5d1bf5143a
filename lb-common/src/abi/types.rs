//! Keys and values of the maps.

/// Longest name of a service or backend kept in the identity maps, in bytes.
pub const NAME_LEN: usize = 64;
/// Services the tables hold (ids 0 to 4095).
pub const MAX_SERVICES: u32 = 4096;
/// Largest ring of one service, in slots; a prime (Maglev, section 3.4).
pub const MAX_RING: u32 = 65_537;
/// Port rules kept inside a VIP's entry; more spill into [`PortKey`] and [`PortRangeKey`].
pub const INLINE_RULES: usize = 4;

/// IP protocol numbers the balancer forwards.
pub const PROTO_TCP: u8 = 6;
/// See [`PROTO_TCP`].
pub const PROTO_UDP: u8 = 17;

/// Ports of one VIP that belong to one service: `lo <= port <= hi`. An unused rule has `lo > hi`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortRule {
    pub lo: u16,
    pub hi: u16,
    pub service: u16,
    pub proto: u8,
    pub pad: u8,
}

impl PortRule {
    /// Matches nothing.
    pub const NONE: Self = Self { lo: 1, hi: 0, service: 0, proto: 0, pad: 0 };
}

/// Value of `VIPS4` (key: the address's four bytes as in the packet) and `VIPS6` (sixteen bytes).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VipEntry {
    /// Names the VIP in [`PortKey`] and [`PortRangeKey`].
    pub vip: u32,
    /// [`VipEntry::SPILLED`].
    pub flags: u32,
    /// Looked through in order: exact ports first, then ranges, then "every port".
    pub rules: [PortRule; INLINE_RULES],
}

impl VipEntry {
    /// The VIP has more rules than fit: ask `PORTS`, then `PORT_RANGES`.
    pub const SPILLED: u32 = 1;
}

/// Key of `PORTS`: an exact port of a VIP whose rules spilled. Value: the service id, u32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(C)]
pub struct PortKey {
    pub vip: u32,
    pub port: u16,
    pub proto: u16,
}

/// Key of `PORT_RANGES`, a longest-prefix-match trie. A port range is cut into aligned powers of two;
/// "every port" is the prefix of `vip` and `proto` alone. Value: the service id, u32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(C)]
pub struct PortRangeKey {
    /// Significant bits of what follows, at most 64.
    pub prefix_len: u32,
    /// Big endian, like all that a trie compares.
    pub vip: [u8; 4],
    pub proto: [u8; 2],
    /// Big endian.
    pub port: [u8; 2],
}

impl PortRangeKey {
    /// Bits of `vip` and `proto`, which always count.
    pub const FIXED_BITS: u32 = 48;
}

/// Value of `SERVICES`, indexed by service id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ServiceEntry {
    /// First slot of its ring in `RING`.
    pub ring_base: u32,
    /// Slots in its ring; 0 = no such service.
    pub ring_size: u32,
    /// Seed of the flow hash, the same on every node.
    pub seed: u64,
    /// Idle time after which a flow may be forgotten, in nanoseconds.
    pub idle_ns: u64,
    /// None yet; zero.
    pub flags: u32,
    pub pad: u32,
}

/// How a packet reaches its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ForwardKind {
    /// MAC rewrite.
    Dsr = 1,
    /// IP in IP: RFC 2003, 2473, 4213.
    Ipip = 2,
    /// Generic UDP Encapsulation, variant 1 (the IP packet follows the UDP header).
    Gue = 3,
}

impl ForwardKind {
    /// The kind behind the number in a [`BackendEntry`].
    #[inline(always)]
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Dsr),
            2 => Some(Self::Ipip),
            3 => Some(Self::Gue),
            _ => None,
        }
    }
}

/// Value of `BACKENDS`, indexed by backend id (0 is never used): a backend of one service and how to
/// reach it. One cache line. The daemon writes it word by word through a memory map, `ifindex` last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(8))]
pub struct BackendEntry {
    /// Destination and source MAC address, as they stand at the head of the frame.
    pub l2: [u8; 12],
    /// Egress interface; 0 = the next hop is not known.
    pub ifindex: u32,
    /// Source of the outer header (IPv4: the first four bytes).
    pub outer_src: [u8; 16],
    /// Destination of the outer header: the backend's address.
    pub outer_dst: [u8; 16],
    /// Largest IP packet the egress interface takes.
    pub mtu: u16,
    /// VLAN id of the egress; 0 = untagged.
    pub vlan: u16,
    /// [`ForwardKind`]; 0 = no such backend.
    pub kind: u8,
    /// 4 or 6: IP version of `outer_dst`.
    pub family: u8,
    /// [`BackendEntry::DOWN`], ...
    pub flags: u8,
    /// Low bits of `outer_src` that vary with the flow (`ipip`), at most 32.
    pub entropy_bits: u8,
    /// Raised when the backend goes down: entries that carry another one are dead.
    pub incarnation: u16,
    /// UDP destination port of `gue`, host order.
    pub gue_port: u16,
    /// The service it belongs to.
    pub service: u32,
}

impl BackendEntry {
    /// Its health check failed, last seen; kept here so that the next daemon starts from the truth.
    pub const DOWN: u8 = 1;
    /// It is draining: no new flows.
    pub const DRAINING: u8 = 2;
    /// It takes no packets: down or disabled.
    pub const DEAD: u8 = 4;
}

/// Value of `SERVICE_STATS` and `BACKEND_STATS`, per CPU. Bytes are those of the IP packets received.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Stats {
    pub packets: u64,
    pub bytes: u64,
}

/// Value of `SERVICE_NAMES` and `BACKEND_NAMES`: who an id is, for the next daemon. Not read by the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Identity {
    /// UTF-8, zero-padded.
    pub name: [u8; NAME_LEN],
    /// Backends: the configured port, 0 = the service's. Services: the primary address's index, 0.
    pub port: u32,
    /// Weight of a backend as last applied; 0 for services.
    pub weight: u32,
}

impl Default for Identity {
    fn default() -> Self {
        Self { name: [0; NAME_LEN], port: 0, weight: 0 }
    }
}

/// Value of `BUCKETS`, per CPU: limits what the balancer says of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Bucket {
    /// Time of the last refill, nanoseconds of the monotonic clock; 0 = never.
    pub refilled_ns: u64,
    /// Tokens left.
    pub tokens: u64,
}

/// Value of `FLOW_STATS`, per CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FlowStats {
    /// Flows recorded.
    pub inserted: u64,
    /// Flows that found no room; they stay with their slot's home.
    pub refused: u64,
}

macro_rules! plain_old_data {
    ($($type:ty = $size:literal),* $(,)?) => { $(
        const _: () = assert!(size_of::<$type>() == $size);
        #[cfg(feature = "user")]
        // SAFETY: repr(C) of integers and byte arrays; the size asserted above is the sum of the
        // fields' sizes, so that there is no padding and every bit pattern is valid.
        unsafe impl aya::Pod for $type {}
    )* };
}

plain_old_data! {
    PortRule = 8,
    VipEntry = 40,
    PortKey = 8,
    PortRangeKey = 12,
    ServiceEntry = 32,
    BackendEntry = 64,
    Stats = 16,
    Identity = 72,
    Bucket = 16,
    super::FlowKey4 = 16,
    super::FlowKey6 = 40,
    FlowStats = 16,
}
