//! The list of all maps. A test compares it with the compiled program; the daemon compares it with
//! every pinned map before adopting it.

use super::{AddressEntry, AddressKey, FlowKey4, FlowKey6, Signals, types::*};

/// Type of a map, with the number the kernel gives it (`enum bpf_map_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    LpmTrie = 11,
    RingBuf = 27,
}

/// Flags of `BPF_MAP_CREATE`.
pub const NO_PREALLOC: u32 = 1;
/// See [`NO_PREALLOC`].
pub const MMAPABLE: u32 = 1 << 10;

/// One map of the balancer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapInfo {
    pub name: &'static str,
    pub kind: MapKind,
    pub key_size: u32,
    pub value_size: u32,
    /// Entries a new map gets unless the daemon asks for more.
    pub capacity: u32,
    pub flags: u32,
    /// The daemon replaces it by a larger copy when it is full.
    pub grows: bool,
}

const fn map<K, V>(name: &'static str, kind: MapKind, capacity: u32, flags: u32) -> MapInfo {
    MapInfo {
        name,
        kind,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        capacity,
        flags,
        grows: false,
    }
}

const fn growing<V>(name: &'static str, kind: MapKind, capacity: u32, flags: u32) -> MapInfo {
    MapInfo { grows: true, ..map::<u32, V>(name, kind, capacity, flags) }
}

/// Slots of a new `RING`: 8 MiB.
pub const RING_CAPACITY: u32 = 1 << 20;
/// Backends of a new `BACKENDS`: 1 MiB, and 256 KiB a CPU for their counters.
pub const BACKEND_CAPACITY: u32 = 1 << 14;
/// VIPs of either family.
pub const VIP_CAPACITY: u32 = 16_384;
/// Tracked flows of either family: only those of slots that changed hands lately, at about 100 bytes each.
pub const FLOW_CAPACITY: u32 = 1 << 17;
/// Token buckets: packets too big ([`ICMP_BUCKET`]), log messages ([`LOG_BUCKET`]), echo replies ([`ECHO_BUCKET`]),
/// TTLs that ended ([`EXPIRED_BUCKET`]), fragments that are held ([`HOLD_BUCKET`]), of services that nobody serves TCP
/// resets ([`RESET_BUCKET`]) and unreachable ports ([`UNREACHABLE_BUCKET`]), answers to who asks for a virtual address
/// ([`NEIGHBOUR_BUCKET`]) and claims of others ([`CLAIM_BUCKET`]). Apart, so that a flood of one leaves the others alone.
pub const BUCKETS: u32 = 9;
/// See [`BUCKETS`].
pub const ICMP_BUCKET: u32 = 0;
/// See [`BUCKETS`].
pub const LOG_BUCKET: u32 = 1;
/// See [`BUCKETS`].
pub const ECHO_BUCKET: u32 = 2;
/// See [`BUCKETS`].
pub const EXPIRED_BUCKET: u32 = 3;
/// See [`BUCKETS`].
pub const HOLD_BUCKET: u32 = 4;
/// See [`BUCKETS`].
pub const RESET_BUCKET: u32 = 5;
/// See [`BUCKETS`].
pub const UNREACHABLE_BUCKET: u32 = 6;
/// See [`BUCKETS`].
pub const NEIGHBOUR_BUCKET: u32 = 7;
/// See [`BUCKETS`].
pub const CLAIM_BUCKET: u32 = 8;
/// Drop counters: room for reasons to come, so that a new reason is no new layout.
pub const DROP_CAPACITY: u32 = 64;

/// Handshakes under way of either family.
pub const HALF_OPEN_CAPACITY: u32 = 1 << 15;
/// Words of all schedules.
pub const SCHEDULE_CAPACITY: u32 = 1 << 16;
/// Deny and allow prefixes of either family.
pub const PREFIX_CAPACITY: u32 = 1 << 18;
/// Words of `REGIONS4`: a bit for each /20. See `core::guard`.
pub const REGIONS4_CAPACITY: u32 = 1 << 14;
/// Words of `MARKS4`: two bits for each /24. See `core::guard`.
pub const MARKS4_CAPACITY: u32 = 1 << 19;
/// Words of `MARKS6`: a hashed bitmap. See `core::guard`.
pub const MARKS6_CAPACITY: u32 = 1 << 16;
/// Sources that are counted at once.
pub const SOURCE_CAPACITY: u32 = 1 << 15;
/// Datagrams in fragments at once.
pub const FRAGMENT_CAPACITY: u32 = 1 << 13;
/// Listening places of `nat` backends.
pub const NAT_CAPACITY: u32 = 1 << 16;
/// Words of `NAT_MARKS`, of 64 bits each.
pub const NAT_MARK_WORDS: u32 = 1 << 10;
/// NAT sessions at once.
pub const SESSION_CAPACITY: u32 = 1 << 16;
/// Source addresses of all NAT pools.
pub const POOL_ADDRESS_CAPACITY: u32 = 1 << 12;
/// Ways to clients that each CPU remembers.
pub const EXIT_CAPACITY: u32 = 1 << 10;
/// Server ids of QUIC services.
pub const CID_CAPACITY: u32 = 1 << 16;
/// SYNs that are watched at once; a power of two.
pub const SYN_CELLS: u32 = 1 << 15;
/// Virtual addresses of VRRP, each as often as there are ways it may be asked for.
pub const ADDRESS_CAPACITY: u32 = 1 << 14;
/// Virtual routers: all router ids of both families on two interfaces.
pub const LEASE_CAPACITY: u32 = 1 << 10;
/// Bytes of the ring buffer of events.
pub const EVENT_BYTES: u32 = 1 << 18;
/// Bytes of the ring buffer of frames that are held: 252 of them on their way to the daemon.
pub const HELD_BYTES: u32 = 1 << 19;

const fn ring_buffer(name: &'static str, capacity: u32) -> MapInfo {
    MapInfo { name, kind: MapKind::RingBuf, key_size: 0, value_size: 0, capacity, flags: 0, grows: false }
}

/// Every map of the balancer's program.
pub const INVENTORY: &[MapInfo] = &[
    map::<[u8; 4], VipEntry>("VIPS4", MapKind::Hash, VIP_CAPACITY, NO_PREALLOC),
    map::<[u8; 16], VipEntry>("VIPS6", MapKind::Hash, VIP_CAPACITY, NO_PREALLOC),
    map::<PortKey, u32>("PORTS", MapKind::Hash, 65_536, NO_PREALLOC),
    map::<PortRangeKey, u32>("PORT_RANGES", MapKind::LpmTrie, 65_536, NO_PREALLOC),
    map::<u32, ServiceEntry>("SERVICES", MapKind::Array, MAX_SERVICES, MMAPABLE),
    growing::<u64>("RING", MapKind::Array, RING_CAPACITY, MMAPABLE),
    growing::<BackendEntry>("BACKENDS", MapKind::Array, BACKEND_CAPACITY, MMAPABLE),
    map::<u32, Stats>("SERVICE_STATS", MapKind::PerCpuArray, MAX_SERVICES, 0),
    growing::<Stats>("BACKEND_STATS", MapKind::PerCpuArray, BACKEND_CAPACITY, 0),
    map::<u32, u64>("DROPS", MapKind::PerCpuArray, DROP_CAPACITY, 0),
    map::<FlowKey4, u64>("FLOWS4", MapKind::Hash, FLOW_CAPACITY, NO_PREALLOC),
    map::<FlowKey6, u64>("FLOWS6", MapKind::Hash, FLOW_CAPACITY, NO_PREALLOC),
    map::<u32, FlowStats>("FLOW_STATS", MapKind::PerCpuArray, 1, 0),
    map::<u32, Bucket>("BUCKETS", MapKind::PerCpuArray, BUCKETS, 0),
    map::<u32, Control>("CONTROL", MapKind::Array, 1, MMAPABLE),
    map::<FlowKey4, HalfOpen>("HALF_OPEN4", MapKind::Hash, HALF_OPEN_CAPACITY, NO_PREALLOC),
    map::<FlowKey6, HalfOpen>("HALF_OPEN6", MapKind::Hash, HALF_OPEN_CAPACITY, NO_PREALLOC),
    map::<u32, Schedule>("SCHEDULES", MapKind::Array, MAX_SERVICES, MMAPABLE),
    map::<u32, u64>("SCHEDULE", MapKind::Array, SCHEDULE_CAPACITY, MMAPABLE),
    growing::<u64>("ACTIVE", MapKind::Array, BACKEND_CAPACITY, MMAPABLE),
    map::<[u8; 8], u32>("DENY4", MapKind::LpmTrie, PREFIX_CAPACITY, NO_PREALLOC),
    map::<[u8; 20], u32>("DENY6", MapKind::LpmTrie, PREFIX_CAPACITY, NO_PREALLOC),
    map::<u32, u64>("REGIONS4", MapKind::Array, REGIONS4_CAPACITY, MMAPABLE),
    map::<u32, u64>("MARKS4", MapKind::Array, MARKS4_CAPACITY, MMAPABLE),
    map::<u32, u64>("MARKS6", MapKind::Array, MARKS6_CAPACITY, MMAPABLE),
    map::<[u8; 12], u32>("ALLOWED4", MapKind::LpmTrie, PREFIX_CAPACITY, NO_PREALLOC),
    map::<[u8; 24], u32>("ALLOWED6", MapKind::LpmTrie, PREFIX_CAPACITY, NO_PREALLOC),
    map::<u32, Limits>("LIMITS", MapKind::Array, MAX_SERVICES, MMAPABLE),
    map::<u32, Arrivals>("SERVICE_LIMITS", MapKind::Array, MAX_SERVICES, 0),
    map::<SourceKey, Arrivals>("SOURCES", MapKind::LruHash, SOURCE_CAPACITY, 0),
    map::<FragmentKey, FragmentTrace>("FRAGMENTS", MapKind::LruHash, FRAGMENT_CAPACITY, 0),
    map::<NatKey, NatOrigin>("NATS", MapKind::Hash, NAT_CAPACITY, NO_PREALLOC),
    map::<u32, u64>("NAT_MARKS", MapKind::Array, NAT_MARK_WORDS, MMAPABLE),
    map::<FlowKey6, SessionOut>("SESSIONS_OUT", MapKind::Hash, SESSION_CAPACITY, NO_PREALLOC),
    map::<FlowKey6, SessionBack>("SESSIONS_BACK", MapKind::Hash, SESSION_CAPACITY, NO_PREALLOC),
    map::<u32, Pool>("POOLS", MapKind::Array, MAX_SERVICES, MMAPABLE),
    map::<u32, [u8; 16]>("POOL_ADDRESSES", MapKind::Array, POOL_ADDRESS_CAPACITY, MMAPABLE),
    map::<u32, NatScratch>("NAT_SCRATCH", MapKind::PerCpuArray, 1, 0),
    map::<u32, NatStats>("NAT_STATS", MapKind::PerCpuArray, 1, 0),
    map::<u32, Exit>("EXITS", MapKind::PerCpuArray, EXIT_CAPACITY, 0),
    map::<CidKey, u32>("CIDS", MapKind::Hash, CID_CAPACITY, NO_PREALLOC),
    map::<u32, u64>("SYNS", MapKind::Array, SYN_CELLS, 0),
    growing::<Signals>("BACKEND_SIGNALS", MapKind::PerCpuArray, BACKEND_CAPACITY, 0),
    map::<AddressKey, AddressEntry>("ADDRESSES", MapKind::Hash, ADDRESS_CAPACITY, NO_PREALLOC),
    map::<u32, u64>("LEASES", MapKind::Array, LEASE_CAPACITY, MMAPABLE),
    ring_buffer("EVENTS", EVENT_BYTES),
    ring_buffer("HELD", HELD_BYTES),
    map::<u32, Identity>("SERVICE_NAMES", MapKind::Array, MAX_SERVICES, 0),
    growing::<Identity>("BACKEND_NAMES", MapKind::Array, BACKEND_CAPACITY, 0),
];

/// A number that changes with any map's name, kind or sizes, and when `LAYOUT` is raised because the
/// meaning of a field changed. Capacities may differ between nodes and are left out.
pub const fn hash() -> u64 {
    // FNV-1a.
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ LAYOUT;
    let mut i = 0;
    while i < INVENTORY.len() {
        let map = INVENTORY[i];
        let name = map.name.as_bytes();
        let mut j = 0;
        while j < name.len() {
            hash = (hash ^ name[j] as u64).wrapping_mul(0x100_0000_01b3);
            j += 1;
        }
        let numbers = [map.kind as u32, map.key_size, map.value_size, map.flags];
        let mut j = 0;
        while j < numbers.len() {
            hash = (hash ^ numbers[j] as u64).wrapping_mul(0x100_0000_01b3);
            j += 1;
        }
        i += 1;
    }
    hash
}

/// Raise it when a field changes its meaning without changing its size.
const LAYOUT: u64 = 2;
