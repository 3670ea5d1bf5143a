//! Every map of the balancer. Names, keys, values and capacities come from `lb_common::abi`, whose
//! inventory a test compares with the compiled program.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use lb_common::abi::{self, *};

/// One lookup by address tells whether a packet is for us at all. IPv4 apart: a short key is a cheap key.
#[map]
pub static VIPS4: HashMap<[u8; 4], VipEntry> = HashMap::with_max_entries(VIP_CAPACITY, NO_PREALLOC);
#[map]
pub static VIPS6: HashMap<[u8; 16], VipEntry> = HashMap::with_max_entries(VIP_CAPACITY, NO_PREALLOC);

/// Ports of VIPs with more rules than their entry holds.
#[map]
pub static PORTS: HashMap<PortKey, u32> = HashMap::with_max_entries(65_536, NO_PREALLOC);
#[map]
pub static PORT_RANGES: LpmTrie<[u8; 8], u32> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);

#[map]
pub static SERVICES: Array<ServiceEntry> = Array::with_max_entries(MAX_SERVICES, MMAPABLE);

/// The slots of all rings, one flat array: the daemon writes them through a memory map, a word at a time.
#[map]
pub static RING: Array<u64> = Array::with_max_entries(RING_CAPACITY, MMAPABLE);

/// Where the backends are; written word by word through a memory map.
#[map]
pub static BACKENDS: Array<BackendEntry> = Array::with_max_entries(BACKEND_CAPACITY, MMAPABLE);

/// Per CPU, so that counting is an add without a lock.
#[map]
pub static SERVICE_STATS: PerCpuArray<Stats> = PerCpuArray::with_max_entries(MAX_SERVICES, 0);
#[map]
pub static BACKEND_STATS: PerCpuArray<Stats> = PerCpuArray::with_max_entries(BACKEND_CAPACITY, 0);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_CAPACITY, 0);

#[map]
pub static BUCKETS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(abi::BUCKETS, 0);

/// Flows of slots that changed hands lately; no other flow is ever looked up or recorded here.
#[map]
pub static FLOWS4: HashMap<FlowKey4, u64> = HashMap::with_max_entries(FLOW_CAPACITY, NO_PREALLOC);
#[map]
pub static FLOWS6: HashMap<FlowKey6, u64> = HashMap::with_max_entries(FLOW_CAPACITY, NO_PREALLOC);
#[map]
pub static FLOW_STATS: PerCpuArray<FlowStats> = PerCpuArray::with_max_entries(1, 0);

/// Switches of the whole program.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);

/// Handshakes of which only the SYN was seen: apart, so that a flood of them displaces no flow.
#[map]
pub static HALF_OPEN4: HashMap<FlowKey4, HalfOpen> =
    HashMap::with_max_entries(HALF_OPEN_CAPACITY, NO_PREALLOC);
#[map]
pub static HALF_OPEN6: HashMap<FlowKey6, HalfOpen> =
    HashMap::with_max_entries(HALF_OPEN_CAPACITY, NO_PREALLOC);

/// Where new flows of round-robin and least-connections services go.
#[map]
pub static SCHEDULES: Array<Schedule> = Array::with_max_entries(MAX_SERVICES, MMAPABLE);
#[map]
pub static SCHEDULE: Array<u64> = Array::with_max_entries(SCHEDULE_CAPACITY, MMAPABLE);
/// Flows under way of each backend of a least-connections service.
#[map]
pub static ACTIVE: Array<u64> = Array::with_max_entries(BACKEND_CAPACITY, MMAPABLE);

/// Denied and allowed prefixes of sources, and the marks that spare most packets the trie.
#[map]
pub static DENY4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(PREFIX_CAPACITY, NO_PREALLOC);
#[map]
pub static DENY6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(PREFIX_CAPACITY, NO_PREALLOC);
#[map]
pub static REGIONS4: Array<u64> = Array::with_max_entries(REGIONS4_CAPACITY, MMAPABLE);
#[map]
pub static MARKS4: Array<u64> = Array::with_max_entries(MARKS4_CAPACITY, MMAPABLE);
#[map]
pub static MARKS6: Array<u64> = Array::with_max_entries(MARKS6_CAPACITY, MMAPABLE);
/// Sources that may use a service: its id, big endian, then the address.
#[map]
pub static ALLOWED4: LpmTrie<[u8; 8], u32> = LpmTrie::with_max_entries(PREFIX_CAPACITY, NO_PREALLOC);
#[map]
pub static ALLOWED6: LpmTrie<[u8; 20], u32> = LpmTrie::with_max_entries(PREFIX_CAPACITY, NO_PREALLOC);

/// Limits of services and of their sources.
#[map]
pub static LIMITS: Array<Limits> = Array::with_max_entries(MAX_SERVICES, MMAPABLE);
#[map]
pub static SERVICE_LIMITS: Array<Arrivals> = Array::with_max_entries(MAX_SERVICES, 0);
#[map]
pub static SOURCES: LruHashMap<SourceKey, Arrivals> = LruHashMap::with_max_entries(SOURCE_CAPACITY, 0);

/// Where the first fragment of a datagram went.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentTrace> =
    LruHashMap::with_max_entries(FRAGMENT_CAPACITY, 0);

/// Where replies of `nat` backends come from, and what they pretend to come from.
#[map]
pub static NATS: HashMap<NatKey, NatOrigin> = HashMap::with_max_entries(NAT_CAPACITY, NO_PREALLOC);
/// A bit for each hash of an address that `nat` backends have: most clients are none and ask for nothing more.
#[map]
pub static NAT_MARKS: Array<u64> = Array::with_max_entries(NAT_MARK_WORDS, MMAPABLE);
/// NAT sessions, by the flow as the client sends it and as the backend answers it.
#[map]
pub static SESSIONS_OUT: HashMap<FlowKey6, SessionOut> =
    HashMap::with_max_entries(SESSION_CAPACITY, NO_PREALLOC);
#[map]
pub static SESSIONS_BACK: HashMap<FlowKey6, SessionBack> =
    HashMap::with_max_entries(SESSION_CAPACITY, NO_PREALLOC);
/// Source addresses of NAT sessions.
#[map]
pub static POOLS: Array<Pool> = Array::with_max_entries(MAX_SERVICES, MMAPABLE);
#[map]
pub static POOL_ADDRESSES: Array<[u8; 16]> = Array::with_max_entries(POOL_ADDRESS_CAPACITY, MMAPABLE);
#[map]
pub static NAT_SCRATCH: PerCpuArray<NatScratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static NAT_STATS: PerCpuArray<NatStats> = PerCpuArray::with_max_entries(1, 0);
/// Ways to clients, found out a moment ago.
#[map]
pub static EXITS: PerCpuArray<Exit> = PerCpuArray::with_max_entries(EXIT_CAPACITY, 0);

/// Backends by the server id in QUIC connection IDs.
#[map]
pub static CIDS: HashMap<CidKey, u32> = HashMap::with_max_entries(CID_CAPACITY, NO_PREALLOC);

/// SYNs that may come again, of services with passive health checks: a fixed sample of all SYNs.
#[map]
pub static SYNS: Array<u64> = Array::with_max_entries(SYN_CELLS, 0);
/// What SYNs and RSTs say of the backends.
#[map]
pub static BACKEND_SIGNALS: PerCpuArray<Signals> = PerCpuArray::with_max_entries(BACKEND_CAPACITY, 0);

/// Virtual addresses of VRRP, and until when this node may answer for them: written by the heartbeat's thread through a
/// memory map.
#[map]
pub static ADDRESSES: HashMap<AddressKey, AddressEntry> =
    HashMap::with_max_entries(ADDRESS_CAPACITY, NO_PREALLOC);
#[map]
pub static LEASES: Array<u64> = Array::with_max_entries(LEASE_CAPACITY, MMAPABLE);

/// What the daemon is told of.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);

/// Fragments that came before the first one of their datagram: the daemon sends them through the program again.
#[map]
pub static HELD: RingBuf = RingBuf::with_byte_size(HELD_BYTES, 0);

/// What the observed program met: its own, made anew with every load.
#[map]
pub static NOTES: PerCpuArray<Watch> = PerCpuArray::with_max_entries(1, 0);

/// Who the ids are: for the next daemon, not for the program.
#[map]
pub static SERVICE_NAMES: Array<Identity> = Array::with_max_entries(MAX_SERVICES, 0);
#[map]
pub static BACKEND_NAMES: Array<Identity> = Array::with_max_entries(BACKEND_CAPACITY, 0);
