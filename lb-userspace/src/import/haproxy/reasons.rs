//! Why something of haproxy has no equal.

/// A section.
pub(super) fn section(name: &str) -> &'static str {
    match name {
        "peers" => "lbd keeps no tables of sources to share",
        "cache" => "lbd does not look into requests: a cache is for a proxy",
        "resolvers" => "lbd asks the servers of /etc/resolv.conf",
        "userlist" => "lbd does not ask for passwords",
        "mailers" => "lbd sends no mail: have an alert made from its metrics",
        _ => "lbd has no such section",
    }
}

/// A line of `global`.
pub(super) fn global(name: &str) -> &'static str {
    match name {
        "log" | "log-send-hostname" | "log-tag" => "lbd logs to standard error, for the service manager",
        "stats" => "lbctl asks lbd over its own socket; /metrics has the counters",
        "user" | "group" | "uid" | "gid" | "chroot" | "daemon" | "pidfile" | "master-worker" => {
            "the service manager's matter: see the unit file"
        }
        "maxconn" | "ulimit-n" | "maxpipes" => {
            "lbd opens no connections of its own; [flows] has room for tracked flows"
        }
        "nbthread" | "nbproc" | "cpu-map" | "thread-groups" => "the kernel runs lbd's program on every core",
        _ if name.starts_with("ssl-") || name.ends_with("-base") => "lbd does not end TLS: backends do",
        _ => "a setting of haproxy itself",
    }
}

/// Lines that decide what may be done: without them something else would be forwarded than haproxy forwards. With the
/// reason.
pub(super) fn blocking(words: &[String]) -> Option<&'static str> {
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    let deny = ["deny", "reject", "silent-drop", "tarpit", "auth", "wait-for-handshake"];
    Some(match word(0) {
        "use_backend" => {
            "lbd does not look into requests, and has one set of backends for an address and port"
        }
        "use-server" => "lbd does not look into requests: its scheduler chooses the backend",
        "redirect" => "lbd answers no requests",
        "stats" => "lbd serves its own dashboard at the [metrics] address",
        "http-request" if word(1) == "redirect" || word(1) == "return" || word(1) == "use-service" => {
            "lbd answers no requests"
        }
        "http-request" | "http-response" | "tcp-response" if deny.contains(&word(1)) => {
            "lbd does not look into requests and could not refuse any"
        }
        "http-request" if word(1).starts_with("set-dst") => "lbd does not look into requests",
        "tcp-request" if words.iter().any(|word| deny.contains(&word.as_str())) => {
            "refused sources go to [firewall] deny, allow of the service, or [service.limits]: write those first"
        }
        "block" | "reqdeny" | "reqideny" => "lbd does not look into requests and could not refuse any",
        "option" if word(1) == "http_proxy" => "lbd does not look into requests",
        _ => return None,
    })
}

/// Any other line of a proxy.
pub(super) fn line(words: &[String]) -> &'static str {
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    match word(0) {
        "acl" => "lbd does not look into requests; sources go to [firewall] and allow",
        "http-request"
        | "http-response"
        | "http-after-response"
        | "http-reuse"
        | "reqadd"
        | "rspadd"
        | "reqrep"
        | "errorfile"
        | "errorfiles"
        | "errorloc"
        | "errorloc302"
        | "errorloc303"
        | "http-error"
        | "monitor-uri"
        | "monitor"
        | "monitor-net"
        | "compression"
        | "rate-limit"
        | "filter"
        | "unique-id-format"
        | "unique-id-header"
        | "declare"
        | "capture" => "lbd does not look into requests",
        "cookie" | "appsession" | "dynamic-cookie-key" => {
            "lbd knows no cookies: scheduler = \"source-ip\" keeps a client at its backend"
        }
        "stick" | "stick-table" => {
            "lbd keeps no tables of sources: scheduler = \"source-ip\" keeps a client at its backend"
        }
        "tcp-request" | "tcp-response" => {
            "lbd does not look into what a connection says; see [firewall] and [service.limits]"
        }
        "log" | "log-format" | "log-format-sd" | "log-tag" | "error-log-format" => {
            "lbd logs no connections: `lbctl trace` shows packets, /metrics has counters"
        }
        "timeout" => {
            "lbd ends no connections: a flow that is silent for longer than idle_timeout may change its backend"
        }
        "maxconn" | "fullconn" | "backlog" | "minconn" => "lbd opens no connections and has no queue",
        "retries" | "retry-on" | "redisp" | "redispatch" => {
            "a connection that fails is the client's to open again; health checks take a dead backend out"
        }
        "source" => "lbd takes its source addresses from [service.snat]",
        "default-server" => "lbd has no equal",
        "email-alert" => "lbd sends no mail: have an alert made from its metrics",
        "hash-type" => "lbd's hashing is consistent (Maglev)",
        "option" => option(word(1)),
        "http-check" | "tcp-check" => "lbd's checks ask one question",
        "external-check" => "see type = \"exec\" of [service.health]",
        "dispatch" | "transparent" => "lbd forwards to its backends only",
        "disabled" => "see lbctl backend disable",
        "description" | "id" | "guid" | "enabled" => "says nothing to lbd",
        "bind-process" | "bind-thread" => "the kernel runs lbd's program on every core",
        "no" => "lbd does not have what is switched off",
        "persist" | "force-persist" | "ignore-persist" => "lbd knows no cookies",
        "balance" => "lbd has no equal",
        _ => "lbd has no equal",
    }
}

fn option(name: &str) -> &'static str {
    match name {
        "forwardfor" | "forwarded" | "originalto" => {
            "lbd adds no headers: with forward = \"nat\" backends see the client's address itself"
        }
        "tcplog"
        | "httplog"
        | "httpslog"
        | "dontlognull"
        | "dontlog-normal"
        | "log-health-checks"
        | "logasap"
        | "log-separate-errors"
        | "socket-stats"
        | "clitcpka-cnt" => "lbd logs no connections: `lbctl trace` shows packets, /metrics has counters",
        "redispatch" => "health checks take a dead backend out, and its flows go to others",
        "external-check" | "smtpchk" | "ldap-check" | "pgsql-check" | "ssl-hello-chk" | "spop-check" => {
            "lbd does not speak this: a TCP connection is tried in its place (type = \"exec\" can do more)"
        }
        "allbackups" => "lbd has no backups",
        "tcpka" | "clitcpka" | "srvtcpka" | "tcp-smart-accept" | "tcp-smart-connect" | "splice-auto"
        | "splice-request" | "splice-response" | "nolinger" | "contstats" | "transparent" => {
            "a matter of a proxy's own connections, which lbd has none of"
        }
        _ => "lbd does not look into requests",
    }
}
