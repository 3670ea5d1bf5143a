//! Every metric: its name, its help and its labels, here and nowhere else. The help is the manual.
//!
//! Names are those of the samples (`_total`, `_info` included). A help text is one line without
//! backslash or quote, so that it needs no escape in either format.

use prometheus_client::metrics::MetricType;

/// A metric with `N` labels.
#[derive(Debug)]
pub(super) struct Family<const N: usize> {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricType,
    pub labels: [&'static str; N],
}

impl<const N: usize> Family<N> {
    pub(super) const fn new(
        kind: MetricType,
        name: &'static str,
        labels: [&'static str; N],
        help: &'static str,
    ) -> Self {
        Self { name, help, kind, labels }
    }

    /// The name in OpenMetrics metadata: without the suffix that the type implies.
    pub fn family_name(&self) -> &'static str {
        let suffix = match self.kind {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            MetricType::Gauge | MetricType::Histogram | MetricType::Unknown => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

use MetricType::{Counter, Gauge, Histogram, Info};

pub(super) static BUILD: Family<3> = Family::new(
    Info,
    "lbd_build_info",
    ["version", "abi", "program"],
    "Version of the daemon, hash of the map layout and tag of the attached program.",
);
pub(super) static NODE: Family<2> =
    Family::new(Info, "lbd_node_info", ["node", "kernel"], "Name of this node and release of its kernel.");
pub(super) static UPTIME: Family<0> =
    Family::new(Gauge, "lbd_uptime_seconds", [], "Time since the daemon started.");
pub(super) static CONFIG: Family<2> = Family::new(
    Info,
    "lbd_config_info",
    ["file", "hash"],
    "Configuration in force: its file and its hash, runtime changes included.",
);
pub(super) static CONFIG_RUNTIME_CHANGES: Family<0> = Family::new(
    Gauge,
    "lbd_config_runtime_changes",
    [],
    "Changes made at run time that are in force on top of the file.",
);
pub(super) static CONFIG_RELOADS: Family<1> = Family::new(
    Counter,
    "lbd_config_reloads_total",
    ["result"],
    "Reloads of the configuration since the start, by result: applied or refused.",
);
pub(super) static CONFIG_LAST_RELOAD: Family<0> = Family::new(
    Gauge,
    "lbd_config_last_reload_successful",
    [],
    "1 if the configuration file as last read is in force, 0 if it was refused and the one before stays.",
);
pub(super) static INTERFACE_ATTACHED: Family<2> = Family::new(
    Gauge,
    "lbd_interface_attached",
    ["interface", "mode"],
    "1 if the program is attached to the interface, 0 if its packets pass by.",
);
pub(super) static MAP_MEMORY: Family<0> =
    Family::new(Gauge, "lbd_map_memory_bytes", [], "Kernel memory of the maps, as the kernel accounts it.");
pub(super) static FLOWS: Family<0> = Family::new(
    Gauge,
    "lbd_flows",
    [],
    "Flows in the flow table: those of scheduled services, and of ring slots that changed hands lately.",
);
pub(super) static HALF_OPEN_FLOWS: Family<0> = Family::new(
    Gauge,
    "lbd_half_open_flows",
    [],
    "Handshakes of such flows under way, in a table of their own.",
);
pub(super) static REFUSED_FLOWS: Family<0> = Family::new(
    Counter,
    "lbd_refused_flows_total",
    [],
    "Flows and handshakes that found no room in their table; they stay with the backend of the ring.",
);
pub(super) static FIREWALL_PREFIXES: Family<1> = Family::new(
    Gauge,
    "lbd_firewall_prefixes",
    ["list"],
    "Prefixes of the firewall in force, by list: deny, or allow for the exceptions.",
);
pub(super) static NAT_SESSIONS: Family<2> = Family::new(
    Gauge,
    "lbd_nat_sessions",
    ["service", "state"],
    "NAT sessions of the service as of some seconds ago, by state: answered, or unanswered while no backend has replied.",
);
pub(super) static NAT_MADE: Family<0> =
    Family::new(Counter, "lbd_nat_sessions_made_total", [], "NAT sessions made since the maps were made.");
pub(super) static NAT_EXHAUSTED: Family<0> = Family::new(
    Counter,
    "lbd_nat_exhausted_total",
    [],
    "NAT sessions refused because no source port of the pool was free towards the backend.",
);
pub(super) static NAT_FULL: Family<0> = Family::new(
    Counter,
    "lbd_nat_full_total",
    [],
    "NAT sessions refused because the table of sessions was full.",
);
pub(super) static SERVICE_PACKETS: Family<1> = Family::new(
    Counter,
    "lbd_service_packets_total",
    ["service"],
    "Packets from clients that were forwarded for the service.",
);
pub(super) static SERVICE_BYTES: Family<1> = Family::new(
    Counter,
    "lbd_service_bytes_total",
    ["service"],
    "Bytes from clients that were forwarded for the service, as IP packets received: without link and outer headers.",
);
pub(super) static SERVICE_UP: Family<1> = Family::new(
    Gauge,
    "lbd_service_up",
    ["service"],
    "1 if enough primary backends are healthy for the quorum of the service, else 0.",
);
pub(super) static SERVICE_STATE: Family<2> = Family::new(
    Gauge,
    "lbd_service_state",
    ["service", "state"],
    "1 for the state of the service, 0 for the others: up, up-panic, down, down-backup, down-panic, down-degraded.",
);
pub(super) static SERVICE_HEALTHY: Family<1> = Family::new(
    Gauge,
    "lbd_service_healthy_backends",
    ["service"],
    "Primary backends of the service that can take new flows.",
);
pub(super) static NOTIFY_RUNS: Family<1> = Family::new(
    Counter,
    "lbd_notify_runs_total",
    ["result"],
    "Notify commands, by result: ok, failed, timeout, or dropped where too many events waited.",
);
pub(super) static RING_SLOTS: Family<2> = Family::new(
    Gauge,
    "lbd_ring_slots",
    ["service", "state"],
    "Slots of the ring of the service, by state: plain, moving or tracked.",
);
pub(super) static BACKEND_PACKETS: Family<2> = Family::new(
    Counter,
    "lbd_backend_packets_total",
    ["service", "backend"],
    "Packets forwarded to the backend for the service.",
);
pub(super) static BACKEND_BYTES: Family<2> = Family::new(
    Counter,
    "lbd_backend_bytes_total",
    ["service", "backend"],
    "Bytes forwarded to the backend for the service, as IP packets received: without link and outer headers.",
);
pub(super) static BACKEND_UP: Family<2> = Family::new(
    Gauge,
    "lbd_backend_up",
    ["service", "backend"],
    "0 if health checks have declared the backend down, else 1.",
);
pub(super) static BACKEND_REACHABLE: Family<2> = Family::new(
    Gauge,
    "lbd_backend_reachable",
    ["service", "backend"],
    "1 if the next hop to the backend is known, 0 if its packets are dropped for want of one.",
);
pub(super) static BACKEND_ADMIN: Family<3> = Family::new(
    Gauge,
    "lbd_backend_admin",
    ["service", "backend", "state"],
    "1 for the administrative state of the backend, 0 for the others: enabled, draining, disabled.",
);
pub(super) static BACKEND_WEIGHT: Family<2> = Family::new(
    Gauge,
    "lbd_backend_weight",
    ["service", "backend"],
    "Share of new flows, relative to the weights of the other backends.",
);
pub(super) static BACKEND_SLOTS: Family<2> = Family::new(
    Gauge,
    "lbd_backend_slots",
    ["service", "backend"],
    "Slots of the ring whose new flows the backend takes.",
);
pub(super) static BACKEND_EJECTED: Family<2> = Family::new(
    Gauge,
    "lbd_backend_ejected",
    ["service", "backend"],
    "1 if passive health checks keep new connections from the backend, else 0.",
);
pub(super) static BACKEND_SYNS: Family<2> = Family::new(
    Counter,
    "lbd_backend_syns_total",
    ["service", "backend"],
    "TCP SYNs forwarded to the backend, of services with passive health checks.",
);
pub(super) static BACKEND_WATCHED_SYNS: Family<2> = Family::new(
    Counter,
    "lbd_backend_watched_syns_total",
    ["service", "backend"],
    "SYNs to the backend that are known again when the client repeats them: a sample of all.",
);
pub(super) static BACKEND_SYN_REPEATS: Family<2> = Family::new(
    Counter,
    "lbd_backend_syn_repeats_total",
    ["service", "backend"],
    "Watched SYNs that came again because nobody had answered; each connection counts once.",
);
pub(super) static BACKEND_RESETS: Family<3> = Family::new(
    Counter,
    "lbd_backend_resets_total",
    ["service", "backend", "phase"],
    "TCP resets of the backend, by phase: handshake (it refused a SYN) or established; modes nat and snat.",
);
pub(super) static HEALTH_DURATION: Family<2> = Family::new(
    Histogram,
    "lbd_health_check_duration_seconds",
    ["service", "type"],
    "Time that health checks took, failed ones included.",
);
pub(super) static HEALTH_FAILURES: Family<2> = Family::new(
    Counter,
    "lbd_health_check_failures_total",
    ["service", "type"],
    "Health checks that failed.",
);
pub(super) static HEALTH_NOT_RUN: Family<2> = Family::new(
    Counter,
    "lbd_health_checks_not_run_total",
    ["service", "type"],
    "Health checks that this node could not run; the backends' health stays as it was.",
);
pub(super) static DROPS: Family<1> = Family::new(
    Counter,
    "lbd_drops_total",
    ["reason"],
    "Packets to a service that were dropped, by reason; lbctl drops explains the reasons.",
);

pub(super) static VRRP_STATE: Family<2> = Family::new(
    Gauge,
    "lbd_vrrp_state",
    ["instance", "state"],
    "1 for the state of the VRRP instance, 0 for the others: init, backup, master, fault.",
);
pub(super) static VRRP_TRANSITIONS: Family<2> = Family::new(
    Counter,
    "lbd_vrrp_transitions_total",
    ["instance", "state"],
    "Times that the VRRP instance came into the state.",
);
pub(super) static VRRP_PRIORITY: Family<1> = Family::new(
    Gauge,
    "lbd_vrrp_priority",
    ["instance"],
    "Priority in force of the VRRP instance: the configured one without what tracking takes off.",
);
pub(super) static VRRP_FAULTS: Family<1> = Family::new(
    Gauge,
    "lbd_vrrp_faults",
    ["instance"],
    "Things that this node lacks to be a good master; lbctl pair names them.",
);
pub(super) static BGP_ANNOUNCED: Family<1> = Family::new(
    Gauge,
    "lbd_bgp_announced",
    ["address"],
    "1 while a route to the address is there for a routing daemon, 0 while it is withheld; lbctl bgp tells why.",
);
pub(super) static RING: Family<2> = Family::new(
    Gauge,
    "lbd_service_ring_slots",
    ["service", "seed"],
    "Slots of the service's ring; they and its seed have to be equal on all nodes that share its addresses.",
);
pub(super) static FLEET_CONNECTED: Family<0> =
    Family::new(Gauge, "lbd_fleet_connected", [], "1 while a member of etcd answers.");
pub(super) static FLEET_GENERATION: Family<0> = Family::new(
    Gauge,
    "lbd_fleet_generation",
    [],
    "Generation of the fleet's document in force: the revision of etcd that wrote it; 0 = none.",
);
pub(super) static FLEET_STORED: Family<0> = Family::new(
    Gauge,
    "lbd_fleet_stored_generation",
    [],
    "Generation of the fleet's document in etcd, as last seen; 0 = none.",
);
pub(super) static FLEET_DOCUMENTS: Family<1> = Family::new(
    Counter,
    "lbd_fleet_documents_total",
    ["result"],
    "Documents of the fleet that came: applied, refused.",
);
pub(super) static FLEET_REFUSING: Family<0> = Family::new(
    Gauge,
    "lbd_fleet_refused",
    [],
    "1 while the latest document of the fleet is not in force on this node; lbctl fleet tells why.",
);
pub(super) static FLEET_AUTHORITY: Family<0> = Family::new(
    Gauge,
    "lbd_fleet_authority",
    [],
    "1 on the node that has the word in changes that concern the whole fleet.",
);
pub(super) static FLEET_EPOCH: Family<0> = Family::new(
    Gauge,
    "lbd_fleet_authority_epoch",
    [],
    "Number of the last election of the authority that this node knows of: the revision of etcd that it made.",
);
pub(super) static FLEET_NODES: Family<0> =
    Family::new(Gauge, "lbd_fleet_nodes", [], "Nodes of the fleet that hold a lease of etcd, as last seen.");
pub(super) static VRRP_SENT: Family<1> = Family::new(
    Counter,
    "lbd_vrrp_adverts_sent_total",
    ["instance"],
    "Advertisements that the VRRP instance sent.",
);
pub(super) static VRRP_RECEIVED: Family<1> = Family::new(
    Counter,
    "lbd_vrrp_adverts_received_total",
    ["instance"],
    "Advertisements for the VRRP instance that passed all checks.",
);
pub(super) static VRRP_SPLIT_BRAINS: Family<1> = Family::new(
    Counter,
    "lbd_vrrp_split_brains_total",
    ["instance"],
    "Advertisements of a lesser master that came while this node was master, and seconds in which both were, by the sync link.",
);
pub(super) static VRRP_CLAIMS: Family<1> = Family::new(
    Counter,
    "lbd_vrrp_address_claims_total",
    ["instance"],
    "ARP packets and neighbour advertisements of others for an address of this node, while it was master.",
);
pub(super) static VRRP_LEASE: Family<1> = Family::new(
    Gauge,
    "lbd_vrrp_lease_seconds",
    ["instance"],
    "For how long the dataplane answers for the addresses of the VRRP instance, should the daemon be silent.",
);
pub(super) static VRRP_REFUSED: Family<1> = Family::new(
    Counter,
    "lbd_vrrp_refused_packets_total",
    ["reason"],
    "VRRP packets of no effect, by reason.",
);

pub(super) static BFD_STATE: Family<2> = Family::new(
    Gauge,
    "lbd_bfd_state",
    ["session", "state"],
    "1 for the state of the BFD session, 0 for the others: admin-down, down, init, up.",
);
pub(super) static BFD_TRANSITIONS: Family<2> = Family::new(
    Counter,
    "lbd_bfd_transitions_total",
    ["session", "state"],
    "Times that the BFD session came into the state.",
);
pub(super) static BFD_SENT: Family<1> =
    Family::new(Counter, "lbd_bfd_packets_sent_total", ["session"], "Packets that the BFD session sent.");
pub(super) static BFD_RECEIVED: Family<1> = Family::new(
    Counter,
    "lbd_bfd_packets_received_total",
    ["session"],
    "Packets for the BFD session that passed all checks.",
);
pub(super) static BFD_REFUSED: Family<1> =
    Family::new(Counter, "lbd_bfd_refused_packets_total", ["reason"], "BFD packets of no effect, by reason.");

pub(super) static SYNC_CONNECTED: Family<1> =
    Family::new(Gauge, "lbd_sync_connected", ["peer"], "1 for each peer that the sync link connects to.");
pub(super) static SYNC_WAITING: Family<0> = Family::new(
    Gauge,
    "lbd_sync_peers_missing",
    [],
    "Addresses of sync.peers that lead to no connected peer; lbctl pair tells why.",
);
pub(super) static SYNC_BYTES: Family<2> = Family::new(
    Counter,
    "lbd_sync_bytes_total",
    ["peer", "direction"],
    "Bytes that went over the sync link: sent, received.",
);
pub(super) static SYNC_QUEUED: Family<1> =
    Family::new(Gauge, "lbd_sync_queued_bytes", ["peer"], "Bytes that wait to be sent to the peer.");
pub(super) static SYNC_RTT: Family<1> = Family::new(
    Gauge,
    "lbd_sync_rtt_seconds",
    ["peer"],
    "Time from a ping to its answer over the sync link, behind what waited to be sent.",
);
pub(super) static SYNC_DIFFERS: Family<1> = Family::new(
    Gauge,
    "lbd_sync_services_differ",
    ["peer"],
    "1 if the services of the peer are configured otherwise than this node's.",
);
pub(super) static SYNC_BEATING: Family<1> = Family::new(
    Gauge,
    "lbd_sync_heartbeats",
    ["peer"],
    "1 if the peer's heartbeats come, 0 if they have ended.",
);
pub(super) static SYNC_REJECTED: Family<1> = Family::new(
    Counter,
    "lbd_sync_rejected_total",
    ["reason"],
    "Connections, records and heartbeats of the sync link that had no effect, by reason.",
);
