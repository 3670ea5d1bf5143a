//! The keys of every section, once: what is not here is an error.

/// The keys of a section.
#[derive(Debug)]
pub(super) struct Schema {
    /// Its header, as written.
    pub(super) header: &'static str,
    pub(super) keys: &'static [&'static str],
    /// Keys that are refused with a reason of their own.
    pub(super) refused: &'static [(&'static str, &'static str)],
}

impl Schema {
    /// The section that a key belongs in, if it is another one.
    pub(super) fn home_of(&self, key: &str) -> Option<&'static Schema> {
        if self.keys.contains(&key) {
            return None;
        }
        // A key written too high or too low in the file belongs in a neighbour first.
        let near: &[&'static Schema] = match self.header {
            "[[service]]" => &[&SERVICE_HEALTH, &SERVICE_LIMITS, &SERVICE_QUIC, &BACKEND, &NODE],
            "[service.health]" => &[&SERVICE, &BACKEND],
            "[service.quic]" => &[&SERVICE, &BACKEND],
            "[[service.backend]]" => &[&SERVICE, &SERVICE_HEALTH, &SERVICE_QUIC],
            "[defaults]" => &[&DEFAULTS_HEALTH, &NODE],
            "[defaults.health]" | "[defaults.snat]" => &[&DEFAULTS],
            "[service.limits]" | "[service.snat]" | "[[service.notify]]" => &[&SERVICE],
            "[[vrrp]]" => &[&NODE],
            "the file" | "an included file" => {
                &[&NODE, &METRICS, &TUNNEL, &FLOWS, &SERVICE, &SERVICE_HEALTH, &BACKEND]
            }
            _ => &[&NODE, &METRICS, &TUNNEL, &FLOWS],
        };
        near.iter().find(|schema| schema.keys.contains(&key)).copied()
    }
}

const NO_DEFAULT: &str = "it has no default: set it in each [[service]]";

/// Sections, behind the one key that only the main file has.
const SECTIONS: &[&str] = &[
    "include",
    "node",
    "metrics",
    "tunnel",
    "flows",
    "firewall",
    "control",
    "resolver",
    "defaults",
    "service",
    "vrrp",
    "vrrp_group",
    "vrrp_script",
    "vrrp_file",
    "bfd",
    "bgp",
    "sync",
    "fleet",
    "notify",
];

pub(super) static ROOT: Schema = Schema { header: "the file", keys: SECTIONS, refused: &[] };

pub(super) static INCLUDED: Schema = Schema {
    header: "an included file",
    keys: SECTIONS.split_at(1).1,
    refused: &[("include", "only the main file includes others: name this one's there")],
};

const OWN: &str = "each node has its own: write it in the node's lbd.toml";

/// What all nodes share.
pub(super) static DOCUMENT: Schema = Schema {
    header: "the fleet's document",
    keys: &["firewall", "resolver", "defaults", "service"],
    refused: &[
        ("include", "the document is one text: put everything into it"),
        ("node", OWN),
        ("metrics", OWN),
        ("tunnel", OWN),
        ("flows", OWN),
        ("control", OWN),
        ("vrrp", OWN),
        ("vrrp_group", OWN),
        ("vrrp_script", OWN),
        ("vrrp_file", OWN),
        ("bfd", OWN),
        ("bgp", OWN),
        ("sync", OWN),
        ("fleet", OWN),
        ("notify", OWN),
    ],
};

pub(super) static FLEET: Schema = Schema {
    header: "[fleet]",
    keys: &[
        "endpoints",
        "prefix",
        "ca_file",
        "cert_file",
        "key_file",
        "user",
        "password_file",
        "lease",
        "commands",
    ],
    refused: &[],
};

pub(super) static NODE: Schema = Schema {
    header: "[node]",
    keys: &["name", "interfaces", "xdp_mode", "state_dir", "pin_dir", "run_dir", "answer_ping", "fragments"],
    refused: &[],
};

pub(super) static BGP: Schema =
    Schema { header: "[bgp]", keys: &["table", "services", "withdraw", "delay", "on_stop"], refused: &[] };

pub(super) static METRICS: Schema = Schema { header: "[metrics]", keys: &["listen"], refused: &[] };

pub(super) static CONTROL: Schema = Schema {
    header: "[control]",
    keys: &[
        "admin_group",
        "read_group",
        "listen",
        "cert_file",
        "key_file",
        "client_ca_file",
        "admins",
        "readers",
    ],
    refused: &[],
};

pub(super) static TUNNEL: Schema = Schema {
    header: "[tunnel]",
    keys: &["source_ipv4", "source_ipv6", "gue_source_ipv4", "gue_source_ipv6"],
    refused: &[],
};

pub(super) static FIREWALL: Schema =
    Schema { header: "[firewall]", keys: &["deny", "allow", "deny_files"], refused: &[] };

pub(super) static RESOLVER: Schema =
    Schema { header: "[resolver]", keys: &["servers", "min_ttl", "max_ttl", "drain"], refused: &[] };

const LIMIT_KEYS: &[&str] = &[
    "packets_per_second",
    "connections_per_second",
    "source_packets_per_second",
    "source_connections_per_second",
    "burst",
];

pub(super) static SERVICE_LIMITS: Schema =
    Schema { header: "[service.limits]", keys: LIMIT_KEYS, refused: &[] };

pub(super) static DEFAULTS_LIMITS: Schema =
    Schema { header: "[defaults.limits]", keys: LIMIT_KEYS, refused: &[] };
pub(super) static FLOWS: Schema =
    Schema { header: "[flows]", keys: &["max_flows", "max_half_open", "max_sessions"], refused: &[] };

pub(super) static DEFAULTS: Schema = Schema {
    header: "[defaults]",
    keys: &[
        "port",
        "protocol",
        "forward",
        "scheduler",
        "ring_size",
        "seed",
        "idle_timeout",
        "idle_timeout_tcp",
        "idle_timeout_udp",
        "gue_port",
        "slow_start",
        "max_disruption",
        "allow",
        "limits",
        "health",
        "passive",
        "snat",
        "quorum_up",
        "quorum_down",
        "panic_threshold",
        "on_all_down",
    ],
    refused: &[("name", NO_DEFAULT), ("addresses", NO_DEFAULT), ("backend", NO_DEFAULT)],
};

pub(super) static SERVICE: Schema = Schema {
    header: "[[service]]",
    keys: &[
        "name",
        "addresses",
        "port",
        "protocol",
        "forward",
        "scheduler",
        "ring_size",
        "seed",
        "idle_timeout",
        "gue_port",
        "slow_start",
        "max_disruption",
        "allow",
        "limits",
        "health",
        "passive",
        "quic",
        "snat",
        "quorum_up",
        "quorum_down",
        "panic_threshold",
        "on_all_down",
        "notify",
        "backend",
    ],
    refused: &[],
};

const HEALTH_KEYS: &[&str] = &[
    "type",
    "via",
    "path",
    "host",
    "method",
    "headers",
    "status",
    "body",
    "server_name",
    "verify",
    "ca_file",
    "tls",
    "service",
    "send",
    "expect",
    "name",
    "record",
    "command",
    "user",
    "password_file",
    "role",
    "interval",
    "timeout",
    "rise",
    "fall",
    "port",
    "initial",
    "fast_interval",
    "backoff",
];

pub(super) static SERVICE_HEALTH: Schema =
    Schema { header: "[service.health]", keys: HEALTH_KEYS, refused: &[] };

pub(super) static SERVICE_QUIC: Schema =
    Schema { header: "[service.quic]", keys: &["server_id_length", "config_id"], refused: &[] };

pub(super) static DEFAULTS_HEALTH: Schema =
    Schema { header: "[defaults.health]", keys: HEALTH_KEYS, refused: &[] };

const PASSIVE_KEYS: &[&str] = &[
    "enabled",
    "interval",
    "windows",
    "min_connections",
    "threshold",
    "max_ejected",
    "ejection_time",
    "max_ejection_time",
];

pub(super) static SERVICE_PASSIVE: Schema =
    Schema { header: "[service.passive]", keys: PASSIVE_KEYS, refused: &[] };

pub(super) static DEFAULTS_PASSIVE: Schema =
    Schema { header: "[defaults.passive]", keys: PASSIVE_KEYS, refused: &[] };

const SNAT_KEYS: &[&str] = &["addresses", "ports"];

pub(super) static SERVICE_SNAT: Schema = Schema { header: "[service.snat]", keys: SNAT_KEYS, refused: &[] };

pub(super) static DEFAULTS_SNAT: Schema = Schema { header: "[defaults.snat]", keys: SNAT_KEYS, refused: &[] };

pub(super) static BACKEND: Schema = Schema {
    header: "[[service.backend]]",
    keys: &["name", "address", "srv", "family", "port", "weight", "backup", "server_id"],
    refused: &[],
};

const NOTIFY_KEYS: &[&str] = &["command", "timeout", "user"];

pub(super) static NOTIFY: Schema = Schema { header: "[[notify]]", keys: NOTIFY_KEYS, refused: &[] };

pub(super) static SERVICE_NOTIFY: Schema =
    Schema { header: "[[service.notify]]", keys: NOTIFY_KEYS, refused: &[] };

pub(super) static VRRP: Schema = Schema {
    header: "[[vrrp]]",
    keys: &[
        "name",
        "interface",
        "router_id",
        "version",
        "priority",
        "advert_interval",
        "addresses",
        "preempt",
        "preempt_delay",
        "startup_delay",
        "down_adverts",
        "unicast_peers",
        "min_ttl",
        "checksum",
        "announce_repeat",
        "announce_refresh",
        "held_by",
        "accept",
        "track_interfaces",
        "track_weight",
        "track_scripts",
        "track_files",
        "track_services",
        "track_xdp",
        "track_peer_config",
        "track_bfd",
    ],
    refused: &[("state", "a node starts as backup; priority and preempt decide who becomes master")],
};

pub(super) static VRRP_GROUP: Schema =
    Schema { header: "[[vrrp_group]]", keys: &["name", "members"], refused: &[] };

pub(super) static VRRP_SCRIPT: Schema = Schema {
    header: "[[vrrp_script]]",
    keys: &["name", "command", "interval", "timeout", "rise", "fall", "user", "initial", "weight"],
    refused: &[("script", "write it as command = [\"/path/of/the/program\", \"argument\"]")],
};

pub(super) static VRRP_FILE: Schema =
    Schema { header: "[[vrrp_file]]", keys: &["name", "file", "weight"], refused: &[] };

pub(super) static BFD: Schema =
    Schema { header: "[[bfd]]", keys: &["name", "peer", "local", "interval", "multiplier"], refused: &[] };

pub(super) static SYNC: Schema = Schema {
    header: "[sync]",
    keys: &["listen", "peers", "key_file", "heartbeat", "max_bandwidth", "takeover_wait"],
    refused: &[],
};
