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
    /// There are deny prefixes of this family: ask `REGIONS4` or `MARKS6` about the source first.
    pub const FILTERED: u32 = 2;
    /// Echo requests to it are answered here.
    pub const ECHO: u32 = 4;
    /// It is a source address of NAT sessions: what is for none of its services may belong to one.
    pub const POOL: u32 = 8;
    /// Fragments are forwarded.
    pub const FRAGMENTS: u32 = 16;
    /// With [`VipEntry::POOL`]: of a service with [`ServiceEntry::PASSIVE`].
    pub const WATCHED: u32 = 32;
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
    /// [`ServiceEntry::SOURCE_IP`], ...
    pub flags: u32,
    /// Length of the server id in a connection ID, in bytes, where [`ServiceEntry::QUIC`] is set.
    pub quic_id_len: u32,
}

impl ServiceEntry {
    /// The slot is chosen by the source address alone.
    pub const SOURCE_IP: u32 = 1;
    /// New flows go where `SCHEDULES` says, in turn; every flow is recorded.
    pub const ROUND_ROBIN: u32 = 2;
    /// New flows go to the backend with the fewest for its weight; every flow is recorded.
    pub const LEAST_CONNECTIONS: u32 = 4;
    /// `LIMITS` has limits for it.
    pub const LIMITED: u32 = 8;
    /// Only sources in `ALLOWED4` and `ALLOWED6` may use it.
    pub const ALLOW_LIST: u32 = 16;
    /// Connection IDs name the backend.
    pub const QUIC: u32 = 32;
    /// Every flow has a NAT session: `snat`, and `nat` where the way back is not unique.
    pub const SESSIONS: u32 = 64;
    /// `nat` of a client that is itself a backend of the service needs a session.
    pub const HAIRPIN: u32 = 128;
    /// The signs of health in its clients' packets are counted: TCP alone.
    pub const PASSIVE: u32 = 256;
    /// Packets that nobody serves are answered: a TCP reset, an ICMP "port unreachable".
    pub const REJECT: u32 = 512;
    /// It has lost its quorum, last seen; not read by the program, kept so that the next daemon starts from the truth.
    pub const NO_QUORUM: u32 = 1024;
    /// The three bits from here up: the config id of the service's QUIC connection IDs.
    pub const QUIC_CONFIG_SHIFT: u32 = 29;
    /// The flow table is asked for every packet.
    pub const SCHEDULED: u32 = Self::ROUND_ROBIN | Self::LEAST_CONNECTIONS;
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
    /// Destination address and port rewritten; replies come back through the balancer.
    Nat = 4,
    /// Source and destination rewritten.
    Snat = 5,
}

impl ForwardKind {
    /// The kind behind the number in a [`BackendEntry`].
    #[inline(always)]
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Dsr),
            2 => Some(Self::Ipip),
            3 => Some(Self::Gue),
            4 => Some(Self::Nat),
            5 => Some(Self::Snat),
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
    /// UDP destination port of `gue`; `nat` and `snat`: the port the backend listens on, 0 = the one the client
    /// asked for. Host order.
    pub port: u16,
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
    /// Backends: the configured port, 0 = the service's. Services: which part of it this is, 0 = the only or the first one.
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

/// Value of `HALF_OPEN4` and `HALF_OPEN6`, keys as in the flow tables: a handshake of which only the SYN was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct HalfOpen {
    /// A [`super::FlowEntry`] with its half-open bit.
    pub entry: u64,
    /// Initial sequence number of the SYN, host order; QUIC: a hash of the first destination connection ID.
    pub isn: u32,
    pub pad: u32,
}

/// Value of `SCHEDULES`, indexed by service id: where new flows of a scheduled service go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Schedule {
    /// First of its words in `SCHEDULE`.
    pub base: u32,
    /// Words in `SCHEDULE`; 0 = nobody takes new flows. Round-robin: backend ids in the order of their turns.
    /// Least-connections: each backend once, as `backend:24 | zero:8 | weight:32`, from the low bits up.
    pub size: u32,
    /// Turns taken so far; counted by the program.
    pub turns: u64,
    /// When a datagram flow of the service last went to its slot's home without an entry, nanoseconds of the monotonic
    /// clock; 0 = never. For an idle timeout from then on unknown flows may be such ones.
    pub homed_ns: u64,
}

/// Value of `LIMITS`, indexed by service id. Each limit is a token bucket in the form of the generic cell rate
/// algorithm (ITU-T I.371): nanoseconds a token takes to come back, and nanoseconds worth of tokens that may be taken at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Limits {
    /// Packets of the whole service; an interval of 0 = no limit.
    pub packets: Rate,
    /// New connections of the whole service.
    pub connections: Rate,
    /// Packets of one source (IPv4: an address, IPv6: a /64).
    pub source_packets: Rate,
    /// New connections of one source.
    pub source_connections: Rate,
}

/// One token bucket's parameters, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Rate {
    pub interval_ns: u64,
    pub burst_ns: u64,
}

/// Value of `SERVICE_LIMITS` (by service id) and `SOURCES`: the theoretical arrival times of the buckets, nanoseconds of the
/// monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Arrivals {
    pub packets: u64,
    pub connections: u64,
}

/// Key of `SOURCES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SourceKey {
    /// As in the packet; IPv4 mapped (RFC 4291 section 2.5.5.2), IPv6 with its lower half zeroed.
    pub address: [u8; 16],
    pub service: u32,
    pub pad: u32,
}

/// Key of `DENY4` without its prefix length: the address, as in the packet. Value: [`DENY`] or [`ALLOW`].
pub const DENY: u32 = 1;
/// See [`DENY`].
pub const ALLOW: u32 = 2;

/// Key of `FRAGMENTS`: a datagram whose first fragment went by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// As in the packet; IPv4 mapped.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    /// Identification, host order.
    pub id: u32,
    /// IP protocol.
    pub proto: u32,
}

/// Value of `FRAGMENTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FragmentTrace {
    /// When the first fragment came, nanoseconds of the monotonic clock.
    pub seen_ns: u64,
    /// Where its backend went; 0 = back to a client.
    pub backend: u32,
    /// [`FragmentTrace::KERNEL`]: no service's; the balancer's own kernel has it.
    pub service: u32,
    /// NAT: what source and destination were rewritten to.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    /// NAT: IP version that left; 0 = no NAT.
    pub family: u32,
    /// Lower half of the flow's hash.
    pub entropy: u32,
}

impl FragmentTrace {
    /// See [`FragmentTrace::service`].
    pub const KERNEL: u32 = u32::MAX;
}

/// Key of `NATS`: where a backend of a `nat` service listens, which is where its replies come from. With port and
/// protocol 0: that the address is a backend's, for [`ServiceEntry::HAIRPIN`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NatKey {
    /// As in the packet; IPv4 mapped.
    pub address: [u8; 16],
    /// As in the packet.
    pub port: [u8; 2],
    /// IP protocol, host order.
    pub proto: u16,
}

/// Value of `NATS`: what the replies' source is rewritten to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct NatOrigin {
    /// The virtual address; IPv4 mapped.
    pub vip: [u8; 16],
    pub service: u32,
    pub backend: u32,
    /// The port of the service, as in the packet.
    pub port: [u8; 2],
    /// [`NatOrigin::SESSIONS`], [`NatOrigin::HEIR`].
    pub flags: u16,
    pub pad: u32,
}

impl NatOrigin {
    /// More than one virtual address or port leads here: the session tells which.
    pub const SESSIONS: u16 = 1;
    /// With [`NatOrigin::SESSIONS`]: once this one alone led here. Flows of that time have no session.
    pub const HEIR: u16 = 2;
}

/// Value of `SESSIONS_OUT`, key: the flow as the client sends it (IPv4 mapped).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SessionOut {
    /// A [`super::FlowEntry`].
    pub entry: u64,
    /// Source address towards the backend; IPv4 mapped.
    pub source: [u8; 16],
    /// Source port towards the backend, as in the packet.
    pub port: [u8; 2],
    pub flags: u16,
    pub pad: u32,
}

/// Value of `SESSIONS_BACK`, key: the flow as the backend answers it (source: the backend, IPv4 mapped).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SessionBack {
    /// A [`super::FlowEntry`].
    pub entry: u64,
    pub client: [u8; 16],
    pub vip: [u8; 16],
    /// Ports of the client and of the service, as in the packet.
    pub client_port: [u8; 2],
    pub vip_port: [u8; 2],
    pub service: u32,
}

/// Value of `POOLS`, indexed by service id: source addresses of a service's NAT sessions, by family of the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Pool {
    /// First of its addresses in `POOL_ADDRESSES` (IPv4 mapped): IPv4 ones, then IPv6 ones.
    pub base: u32,
    pub v4: u16,
    pub v6: u16,
    /// Ports that may be taken, both included, host order.
    pub lo: u16,
    pub hi: u16,
    pub pad: u32,
}

/// Value of `NAT_SCRATCH`, per CPU: what is too large for the program's stack while a packet of a session passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct NatScratch {
    pub out: super::FlowKey6,
    pub back: super::FlowKey6,
    pub going: SessionOut,
    pub coming: SessionBack,
    /// A `struct bpf_fib_lookup`.
    pub route: [u64; 8],
    /// The answer to who only asks, and leaves `EXITS` alone.
    pub exit: Exit,
    /// A fragment's datagram, and where its first one went.
    pub fragment: FragmentKey,
    pub trace: FragmentTrace,
    pub across: Across,
}

/// An ICMP error on its way to the other IP version: where it leaves, and the ends that the packet it quotes has there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Across {
    /// IPv4 mapped.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    /// As in the packet.
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
    /// Destination and source MAC address.
    pub l2: [u8; 12],
    pub vlan: u16,
    pub mtu: u16,
    pub ifindex: u32,
    pub backend: u32,
    pub pad: u32,
}

/// Value of `NAT_STATS`, per CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct NatStats {
    /// Sessions made.
    pub made: u64,
    /// Sessions refused: no port was free.
    pub exhausted: u64,
    /// Sessions refused: no room in the tables.
    pub full: u64,
    pub pad: u64,
}

/// Value of `EXITS`, per CPU: the way to a client, as the kernel's routes told it a moment ago. They tell it only where
/// `net.ipv4.conf.*.forwarding` (`net.ipv6`) is on for the interface the reply came in by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Exit {
    /// IPv4 mapped.
    pub destination: [u8; 16],
    /// When it was asked for, nanoseconds of the monotonic clock.
    pub asked_ns: u64,
    pub ifindex: u32,
    /// Destination and source MAC address.
    pub l2: [u8; 12],
    pub mtu: u16,
    pub vlan: u16,
    /// [`Control::routes`] then.
    pub routes: u32,
}

/// Value of `CONTROL`: switches of the whole program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Control {
    /// [`Control::NAT`], ...
    pub flags: u32,
    /// Raised when a route or a neighbour changed.
    pub routes: u32,
    /// One packet in so many is told of in `EVENTS`; 0 = none.
    pub trace: u32,
    pub pad: u32,
    /// Until then, by the monotonic clock, a daemon is there that reads `HELD`; it says so again and again.
    pub hold_until_ns: u64,
}

impl Control {
    /// There are services of kind `nat`: replies of backends come by.
    pub const NAT: u32 = 1;
    /// There are prefixes shorter than /32 in `DENY6`: its marks cannot answer.
    pub const SHORT_PREFIXES6: u32 = 2;
    /// There are services of kind `nat` with [`ServiceEntry::PASSIVE`].
    pub const WATCHED: u32 = 4;
    /// There are virtual addresses in `ADDRESSES`.
    pub const ADDRESSES: u32 = 8;
}

/// Key of `CIDS`: a server id in QUIC connection IDs. Value: the backend id, u32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CidKey {
    pub service: u32,
    /// Zero-padded.
    pub server: [u8; 16],
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
    HalfOpen = 16,
    Schedule = 24,
    Rate = 16,
    Limits = 64,
    Arrivals = 16,
    SourceKey = 24,
    FragmentKey = 40,
    FragmentTrace = 56,
    NatKey = 20,
    NatOrigin = 32,
    SessionOut = 32,
    SessionBack = 48,
    Pool = 16,
    NatScratch = 432,
    Across = 64,
    NatStats = 32,
    Exit = 48,
    Control = 24,
    CidKey = 20,
    super::Signals = 24,
    super::AddressKey = 24,
    super::AddressEntry = 16,
}
