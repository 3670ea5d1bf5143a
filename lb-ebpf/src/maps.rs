//! Every map of the balancer. Names, keys, values and capacities come from `lb_common::abi`, whose
//! inventory a test compares with the compiled program.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray},
};
use lb_common::abi::{
    self, BACKEND_CAPACITY, BackendEntry, Bucket, DROP_CAPACITY, FLOW_CAPACITY, FlowKey4, FlowKey6,
    FlowStats, Identity, MAX_SERVICES, MMAPABLE, NO_PREALLOC, PortKey, RING_CAPACITY, ServiceEntry, Stats,
    VIP_CAPACITY, VipEntry,
};

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

/// Who the ids are: for the next daemon, not for the program.
#[map]
pub static SERVICE_NAMES: Array<Identity> = Array::with_max_entries(MAX_SERVICES, 0);
#[map]
pub static BACKEND_NAMES: Array<Identity> = Array::with_max_entries(BACKEND_CAPACITY, 0);
