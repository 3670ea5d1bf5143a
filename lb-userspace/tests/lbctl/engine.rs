//! A daemon without a kernel: the real server, and an engine that keeps two services in memory.

use super::pair;
use lb_userspace::control::api::*;
use lb_userspace::control::command::{Answer, Command, CommandError, Reply};
use lb_userspace::control::firewall::{FirewallCommand, LimitsView, PrefixView};
use lb_userspace::control::observe::*;
use lb_userspace::control::server::{Limits, serve_with};
use lb_userspace::control::socket::ControlSocket;
use lb_userspace::model::{Admin, Forward, Health, LimitSpec, Protocol, Scheduler, Verdict};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How the engine behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Answers,
    /// Takes commands and never answers.
    Silent,
    /// Never takes a command.
    Stuck,
    /// Ends at the first command, without an answer.
    DiesAsked,
    /// Has ended.
    Gone,
    /// Answers after a while.
    Slow(Duration),
}

/// Of the runtime state.
pub const REVISION: u64 = 7;

pub struct Daemon {
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<tokio::task::JoinHandle<()>>,
    directory: tempfile::TempDir,
    pub socket: PathBuf,
    asked_by: Arc<Mutex<Vec<String>>>,
    taken: Arc<AtomicUsize>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::with(Manner::Answers, Limits::default())
    }

    pub fn with(manner: Manner, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("lbd.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (commands, inbox) = mpsc::channel(4);
        let asked_by = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let listening = {
            let _in_runtime = runtime.enter();
            ControlSocket::bind(&socket).unwrap()
        };
        runtime.spawn(engine(inbox, manner, asked_by.clone(), taken.clone()));
        let serving = runtime.spawn(serve_with(
            listening,
            commands,
            async {
                let _ = stopped.await;
            },
            limits,
        ));
        let (runtime, stop, serving) = (Some(runtime), Some(stop), Some(serving));
        Self { runtime, stop, serving, directory, socket, asked_by, taken }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Who asked for changes so far.
    pub fn asked_by(&self) -> Vec<String> {
        self.asked_by.lock().unwrap().clone()
    }

    /// Waits until the engine has taken so many commands.
    pub fn wait_taken(&self, commands: usize) {
        let start = Instant::now();
        while self.taken.load(Ordering::SeqCst) < commands {
            assert!(start.elapsed() < Duration::from_secs(30), "the engine was not asked");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Orderly shutdown; returns when it is complete.
    pub fn shut_down(&mut self) {
        drop(self.stop.take());
        if let (Some(runtime), Some(serving)) = (&self.runtime, self.serving.take()) {
            runtime.block_on(serving).unwrap();
        }
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        // No test waits for ever.
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// One request on a connection of its own: status code and JSON body.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: lbd\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // The server may answer, and close, before it has read a body it refuses.
        let _ = stream.write_all(body.as_bytes());
        read_answer(&mut stream)
    }

    /// A request that must be refused: status code and error.
    pub fn refused(&self, method: &str, path: &str, body: &str) -> (u16, ErrorView) {
        let (status, answer) = self.http(method, path, body);
        assert!(status >= 400, "{method} {path} was accepted: {answer}");
        (status, serde_json::from_value(answer).unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// Status code and JSON body (null where there is none) of an answer that ends with the connection.
pub fn read_answer(stream: &mut UnixStream) -> (u16, Value) {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        // What was not read of the request turns the close into a reset, after the answer.
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() })
}

async fn engine(
    mut inbox: mpsc::Receiver<Command>,
    manner: Manner,
    asked_by: Arc<Mutex<Vec<String>>>,
    taken: Arc<AtomicUsize>,
) {
    let mut services = vec![www(), dns()];
    let mut held = Vec::new();
    match manner {
        Manner::Gone => return,
        Manner::Stuck => std::future::pending().await,
        Manner::Answers | Manner::Silent | Manner::DiesAsked | Manner::Slow(_) => {}
    }
    while let Some(command) = inbox.recv().await {
        taken.fetch_add(1, Ordering::SeqCst);
        match manner {
            Manner::Silent => held.push(command),
            Manner::DiesAsked => return,
            Manner::Slow(time) => {
                tokio::time::sleep(time).await;
                obey(command, &mut services, &asked_by);
            }
            Manner::Answers | Manner::Stuck | Manner::Gone => obey(command, &mut services, &asked_by),
        }
    }
}

pub fn obey(command: Command, services: &mut Vec<ServiceView>, asked_by: &Mutex<Vec<String>>) {
    fn answer<T>(reply: Reply<T>, answer: Answer<T>) {
        let _ = reply.send(answer);
    }
    let note = |by: String| asked_by.lock().unwrap().push(by);
    match command {
        Command::Status(reply) => answer(reply, Ok(status(services))),
        Command::Services(reply) => answer(reply, Ok(services.clone())),
        Command::Drops(reply) => answer(reply, Ok(drops())),
        Command::Bgp(reply) => answer(reply, Ok(Default::default())),
        Command::Fleet(command) => super::fleet::obey(command),
        Command::Config(reply) => answer(reply, Ok(super::guarded::config())),
        Command::BackendAdd { service, name, address, port, weight, backup, by, reply } => {
            note(by);
            let result = find(services, service.as_str()).and_then(|found| {
                if found.backends.iter().any(|b| b.name == name.as_str()) {
                    return Err(CommandError::Conflict(format!("{service} has a backend '{name}' already")));
                }
                if address.is_multicast() {
                    return Err(CommandError::Invalid(format!("{address} is a multicast address")));
                }
                found.backends.push(BackendView {
                    name: name.to_string(),
                    address,
                    port: Some(port.unwrap_or(443)),
                    weight: weight.unwrap_or(100),
                    backup,
                    health: Health::Unknown,
                    health_reason: None,
                    slots: 0,
                    origin: "runtime".to_owned(),
                    packets: 0,
                    bytes: 0,
                    ..www().backends.swap_remove(0)
                });
                Ok(changed(format!("backend {name} added to {service}")))
            });
            answer(reply, result);
        }
        Command::BackendRemove { service, name, by, reply } => {
            note(by);
            let result = find(services, service.as_str()).and_then(|found| {
                backend(found, name.as_str())?;
                found.backends.retain(|b| b.name != name.as_str());
                Ok(changed(format!("backend {name} removed from {service}")))
            });
            answer(reply, result);
        }
        Command::BackendAdmin { service, name, admin, by, reply, .. } => {
            note(by);
            let result = find(services, service.as_str()).and_then(|found| {
                backend(found, name.as_str())?.admin = admin;
                Ok(changed(format!("backend {name} of {service} is {admin}")))
            });
            answer(reply, result);
        }
        Command::BackendWeight { service, name, weight, by, reply, .. } => {
            note(by);
            let result = find(services, service.as_str()).and_then(|found| {
                backend(found, name.as_str())?.weight = weight;
                Ok(changed(format!("backend {name} of {service} has weight {weight}")))
            });
            answer(reply, result);
        }
        Command::Reload { plan: true, by, reply } => {
            note(by);
            let changes = vec!["add backend web4 to www".to_owned(), "www: 12 slots move".to_owned()];
            let message = "2 changes".to_owned();
            answer(reply, Ok(ChangeView { message, changes, planned_only: true, ..ChangeView::default() }));
        }
        Command::Reload { plan: false, by, reply } => {
            note(by);
            let error = "/etc/lbd/lbd.toml:7: key 'service.www.port': found 70000, expected a port";
            answer(reply, Err(CommandError::Invalid(error.to_owned())));
        }
        Command::Reset { by, reply, .. } => {
            note(by);
            answer(reply, Err(CommandError::Failed("cannot write /var/lib/lbd: disk full".to_owned())));
        }
        Command::Detach { by, reply } => {
            note(by);
            services.clear();
            answer(reply, Ok(changed("removed from eth0 and eth1".to_owned())));
        }
        Command::Changes(reply) => answer(reply, Ok(super::guarded::changes())),
        Command::Watch { after, reply } => answer(reply, super::guarded::watch(after.as_deref())),
        Command::Guarded(guarded) => {
            super::guarded::obey(*guarded, |command| obey(command, services, asked_by));
        }
        Command::Save { print, by, reply } => super::save::obey(print, by, note, reply),
        Command::Firewall(command) => obey_firewall(command, note),
        Command::Gradual(command) => crate::gradual::obey(command, services, asked_by),
        Command::Pair(command) => pair::obey(command, note),
        Command::Explain { protocol, source, destination, packet: _, reply } => {
            answer(reply, Ok(explain(protocol, source, destination)));
        }
        Command::Flows { ask, reply } => answer(reply, Ok(flows(ask.limit))),
        Command::Trace { ask, reply } => {
            // A trace that ends by itself: three packets, some lost, and the daemon is gone.
            let (lines, receiver) = mpsc::channel(8);
            for line in trace(ask.verdict.as_deref()) {
                lines.try_send(line).unwrap();
            }
            answer(reply, Ok(receiver));
        }
    }
}

pub fn find<'a>(services: &'a mut [ServiceView], name: &str) -> Result<&'a mut ServiceView, CommandError> {
    services
        .iter_mut()
        .find(|service| service.name == name)
        .ok_or_else(|| CommandError::NotFound(format!("no service '{name}'; there are: www, dns")))
}

pub fn backend<'a>(service: &'a mut ServiceView, name: &str) -> Result<&'a mut BackendView, CommandError> {
    let error = CommandError::NotFound(format!("{} has no backend '{name}'", service.name));
    service.backends.iter_mut().find(|backend| backend.name == name).ok_or(error)
}

fn obey_firewall(command: FirewallCommand, note: impl Fn(String)) {
    match command {
        FirewallCommand::List { list: Verdict::Deny, reply } => {
            let prefix = "203.0.113.0/24".parse().unwrap();
            let _ = reply.send(Ok(vec![PrefixView { prefix, origin: "file".to_owned() }]));
        }
        FirewallCommand::List { list: Verdict::Allow, reply } => drop(reply.send(Ok(Vec::new()))),
        FirewallCommand::Change { list, add, prefixes, by, reply } => {
            note(by);
            let verb = if add { "added to" } else { "removed from" };
            let _ = reply.send(Ok(changed(format!("{} prefixes {verb} the {list} list", prefixes.len()))));
        }
        FirewallCommand::Limits(reply) => {
            let limits = LimitSpec { source_packets_per_second: 1_000, ..LimitSpec::default() };
            let (service, origin) = ("www".to_owned(), "file".to_owned());
            let allow = vec!["10.0.0.0/8".parse().unwrap()];
            let _ = reply.send(Ok(vec![LimitsView { service, limits, origin, allow }]));
        }
        FirewallCommand::SetLimits { service, patch, by, reply } => {
            note(by);
            let _ = reply.send(Ok(changed(format!("{service}: {}", json!(patch)))));
        }
        FirewallCommand::ClearLimits { service, by, reply } => {
            note(by);
            let _ = reply.send(Ok(changed(format!("{service}: as in the file"))));
        }
    }
}

pub fn changed(message: String) -> ChangeView {
    ChangeView { message, ..ChangeView::default() }
}

fn status(services: &[ServiceView]) -> StatusView {
    let interface = |name: &str, ifindex, mode: &str, warning: Option<&str>| InterfaceView {
        name: name.to_owned(),
        ifindex,
        mode: mode.to_owned(),
        warning: warning.map(str::to_owned),
    };
    StatusView {
        node: "lb1".to_owned(),
        version: "0.1.0".to_owned(),
        abi: "00112233".to_owned(),
        program: "0123456789abcdef".to_owned(),
        kernel: "6.12.0".to_owned(),
        uptime_seconds: 3725.5,
        pid: 4242,
        config_file: "/etc/lbd/lbd.toml".to_owned(),
        config_hash: "fedcba9876543210".to_owned(),
        services_hash: "0123456789abcdef".to_owned(),
        runtime_changes: 1,
        revision: REVISION,
        interfaces: vec![
            interface("eth0", 2, "native", None),
            interface("eth1", 13, "generic", Some("the driver has no XDP")),
        ],
        services: services.len(),
        backends: services.iter().map(|service| service.backends.len()).sum(),
        map_bytes: 18 << 20,
        tracked_flows: 0,
        firewall: FirewallView::default(),
        half_open_flows: 0,
        refused_flows: 0,
        warnings: vec![
            "the kernel does not forward what comes in on eth1: sysctl -w net.ipv4.conf.eth1.forwarding=1"
                .to_owned(),
        ],
        nat: NatTotals::default(),
        tables: vec![TableView { name: "flows_ipv4".to_owned(), entries: 17, capacity: 131_072 }],
    }
}

fn www() -> ServiceView {
    let web = |n: u8, health, reason: Option<&str>| BackendView {
        name: format!("web{n}"),
        address: [10, 0, 0, 10 + n].into(),
        port: Some(443),
        weight: 100,
        backup: false,
        server_id: None,
        admin: Admin::Enabled,
        health,
        health_reason: reason.map(str::to_owned),
        slots: 333,
        reachable: true,
        origin: "file".to_owned(),
        packets: u64::from(n) * 1_000,
        bytes: u64::from(n) * 64_000,
        gradual: Default::default(),
        passive: None,
    };
    let web3 = BackendView {
        admin: Admin::Draining,
        reachable: false,
        origin: "runtime".to_owned(),
        slots: 0,
        ..web(3, Health::Unknown, None)
    };
    ServiceView {
        name: "www".to_owned(),
        addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        port: "443".to_owned(),
        protocol: Protocol::Tcp,
        forward: Forward::Dsr,
        scheduler: Scheduler::Maglev,
        packets: 6_000,
        bytes: 384_000,
        quic: None,
        slots: SlotsView { total: 1009, plain: 1009, moving: 0, tracked: 0 },
        nat: None,
        pool: PoolView { enabled: 2, healthy: 1, ..PoolView::default() },
        backends: vec![
            web(1, Health::Up, Some("200 OK")),
            // What a hostile backend may answer.
            web(2, Health::Down, Some("connection refused\u{1b}[31m")),
            web3,
        ],
    }
}

fn dns() -> ServiceView {
    ServiceView {
        name: "dns".to_owned(),
        addresses: vec!["192.0.2.53".parse().unwrap()],
        port: "8000-8099".to_owned(),
        protocol: Protocol::Udp,
        forward: Forward::Snat,
        nat: Some(NatView {
            always: true,
            sessions: 17,
            unanswered: 5,
            addresses: vec!["10.0.0.250".parse().unwrap(), "fd00::250".parse().unwrap()],
            ports: Some("1024-65535".to_owned()),
        }),
        packets: 0,
        bytes: 0,
        slots: SlotsView { total: 1009, plain: 1000, moving: 5, tracked: 4 },
        backends: Vec::new(),
        ..www()
    }
}

fn drops() -> Vec<DropView> {
    let row = |reason: &str, packets, help: &str| DropView {
        reason: reason.to_owned(),
        packets,
        help: help.to_owned(),
    };
    vec![
        row("truncated", 12, "shorter than its headers say"),
        row("ttl", 0, "its TTL or hop limit ended here"),
        row("no_backend", 3_000, "no backend takes new flows"),
    ]
}

fn explain(
    protocol: Protocol,
    source: std::net::SocketAddr,
    destination: std::net::SocketAddr,
) -> ExplainView {
    let virtual_address = destination.ip() == std::net::IpAddr::from([192, 0, 2, 10]);
    match (virtual_address, protocol, source.port()) {
        (false, _, _) => ExplainView {
            verdict: "pass".to_owned(),
            service: None,
            backend: None,
            reason: format!("{} is no virtual address", destination.ip()),
            ..ExplainView::default()
        },
        (true, _, 0) | (true, Protocol::Udp | Protocol::Quic, _) => ExplainView {
            verdict: "drop".to_owned(),
            service: None,
            backend: None,
            reason: format!("no service takes {protocol} port {}", destination.port()),
            ..ExplainView::default()
        },
        (true, Protocol::Tcp, _) => ExplainView {
            verdict: "forward".to_owned(),
            service: Some("www".to_owned()),
            backend: Some("web1".to_owned()),
            reason: "slot 17 of the ring belongs to web1".to_owned(),
            slot: Some(17),
            slot_state: Some("plain".to_owned()),
            egress: Some("redirect to eth1, to 02:00:00:00:00:11".to_owned()),
            headers: Some(HeadersView {
                destination_mac: "02:00:00:00:00:11".to_owned(),
                source_mac: "02:00:00:00:00:01".to_owned(),
                vlan: Some(7),
                outer: Some(header([10, 0, 0, 2], [10, 0, 0, 11], "ipip", None, 64)),
                packet: header([198, 51, 100, 7], [192, 0, 2, 10], "tcp", Some((4000, 443)), 63),
                length: 78,
            }),
            by: Some("the program in the kernel, on the live maps".to_owned()),
            ..ExplainView::default()
        },
    }
}

fn header(from: [u8; 4], to: [u8; 4], protocol: &str, ports: Option<(u16, u16)>, ttl: u8) -> HeaderView {
    HeaderView {
        source: from.into(),
        destination: to.into(),
        protocol: protocol.to_owned(),
        source_port: ports.map(|p| p.0),
        destination_port: ports.map(|p| p.1),
        ttl,
    }
}

fn flows(limit: Option<usize>) -> FlowsView {
    let flow = |n: u8, state: &str, backend: Option<&str>| FlowView {
        protocol: "tcp".to_owned(),
        client: ([198, 51, 100, n], 4000).into(),
        vip: ([192, 0, 2, 10], 443).into(),
        service: backend.map(|_| "www".to_owned()),
        backend: backend.map(str::to_owned),
        state: state.to_owned(),
        idle_seconds: n.into(),
        translated: (n == 9).then(|| ([10, 0, 0, 2], 20_000).into()),
    };
    let mut flows = vec![
        flow(7, "half-open", Some("web1")),
        flow(8, "confirmed", None),
        flow(9, "closing", Some("web1")),
    ];
    flows.truncate(limit.unwrap_or(AskFlows::LIMIT));
    FlowsView { total: 3, half_open: 1, confirmed: 1, closing: 1, flows }
}

fn trace(verdict: Option<&str>) -> Vec<TraceLine> {
    let packet = |n: u8, verdict: &str, reason: Option<&str>| TraceView {
        time: 1_700_000_000.5 + f64::from(n),
        verdict: verdict.to_owned(),
        reason: reason.map(str::to_owned),
        service: Some("www".to_owned()),
        backend: reason.is_none().then(|| "web1".to_owned()),
        slot: Some(17),
        protocol: "tcp".to_owned(),
        source: ([198, 51, 100, n], 4000).into(),
        destination: ([192, 0, 2, 10], 443).into(),
        length: 74,
        interface: "eth0".to_owned(),
    };
    let all =
        [packet(7, "forward", None), packet(8, "drop", Some("no_next_hop")), packet(9, "forward", None)];
    let fits = all.into_iter().filter(|p| verdict.is_none_or(|v| v == p.verdict)).map(TraceLine::Packet);
    fits.chain([TraceLine::Lost { lost: 5 }]).collect()
}
