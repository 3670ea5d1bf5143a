//! What the daemon talks about: services, backends, their names and states. Parsed once at the edge
//! ("parse, don't validate"): a value of these types is valid.

mod address;
mod backend;
mod bgp;
mod gradual;
mod guard;
mod health;
mod name;
mod named;
mod nat;
mod node;
mod passive;
mod pool;
mod port;
mod quic;
mod ring;
mod service;
mod sync;
mod track;
mod vrrp;

pub use address::{not_for_backend, not_unicast};
pub use backend::{Admin, BackendSpec, DEFAULT_WEIGHT, Health, MAX_BACKENDS, MAX_WEIGHT};
pub use bgp::{BgpSpec, DEFAULT_BGP_TABLE, Withdraw};
pub use gradual::GradualSpec;
pub use guard::{
    DEFAULT_BURST_MS, GuardSpec, LimitError, LimitPatch, LimitSpec, MAX_BURST_MS, MAX_RATE, PrefixError,
    Prefixes, Verdict, of_family, parse_prefix,
};
pub use health::{
    DnsCheck, ExecCheck, GrpcCheck, HealthCheck, HealthSpec, HttpCheck, MysqlCheck, RedisCheck, Role,
    StatusRange, TlsSpec, UdpCheck, Via,
};
pub use name::{BackendName, NameError, ServiceName, VrrpName};
pub use named::{Found, MAX_NAMED, NamedSpec, Query};
pub use nat::{DEFAULT_SNAT_PORTS, Misfit, SnatSpec, misfit};
pub use node::XdpMode;
pub use passive::PassiveSpec;
pub use pool::{HookSpec, OnAllDown, PoolSpec, ServiceState};
pub use port::{PortError, PortSpec};
pub use quic::{
    DEFAULT_SERVER_ID_LENGTH, MAX_CONFIG_ID, MAX_SERVER_ID_LENGTH, QuicSpec, ServerId, ServerIdError,
};
pub use ring::{MAX_RING, MIN_RING, is_ring_size};
pub use service::{Forward, Protocol, Scheduler, ServiceSpec};
pub use sync::{
    DEFAULT_SYNC_HEARTBEAT, DEFAULT_TAKEOVER_WAIT, MAX_SYNC_KEYS, MAX_SYNC_PEERS, SyncKey, SyncSpec,
};
pub use track::{BfdSpec, FileSpec, GroupSpec, PairSpec, ScriptSpec, TrackSpec, Tracked, TrackedFile};
pub use vrrp::{
    DEFAULT_PRIORITY, Family, HeldBy, MAX_ADVERT_INTERVAL, MAX_VRRP_ADDRESSES, MIN_ADVERT_INTERVAL,
    OWNER_PRIORITY, VrrpSpec, VrrpVersion,
};
