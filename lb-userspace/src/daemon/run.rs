//! Starting, the loop, stopping.

use super::{
    Engine, StartError, ahead,
    engine::Parts,
    error::EngineError,
    events::{self, Events},
    held::Resequencer,
    sizes, trace,
};
use crate::{
    config::{self, Config},
    control::{
        self,
        api::ChangeView,
        command::{Command, CommandError},
        gradual::ChangeOptions,
        peer::Role,
        server::{self, Door},
        socket::ControlSocket,
        tls::TlsListener,
    },
    dataplane::{Capacities, Kernel, abi_name},
    health::{HealthTask, ProbeObserver, TargetKey, VipWay},
    metrics::{self, Instruments},
    net::{bpffs, caps, names, watch::NextHopTask},
    state::{NewBackend, StateDir},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

/// Commands and health events that wait at most.
const QUEUE: usize = 1024;
/// How long a start waits for next hops before it goes on without the missing ones.
const HOP_PATIENCE: Duration = Duration::from_secs(2);

/// How often tracked flows are looked after, where there are any.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Options {
    pub config: PathBuf,
}

/// `lbd --check`: reads the configuration and touches nothing.
pub fn check(options: &Options) -> Result<Config, StartError> {
    Ok(config::load(&options.config)?)
}

/// `lbd --detach`: removes everything from the kernel; refused while a daemon runs.
pub fn detach(options: &Options) -> Result<(), StartError> {
    let config = config::load(&options.config)?;
    if config.node.pin_dir.exists() {
        let _lock = lock(&config.node.pin_dir)?;
        Kernel::detach(&config.node.pin_dir).map_err(EngineError::from)?;
    }
    Ok(())
}

/// Runs the daemon until it is told to stop. Forwarding goes on when it returns.
pub async fn run(options: Options) -> Result<(), StartError> {
    let (config, fleet) = super::fleet::begin(&options.config)?;
    if let Some(missing) = caps::missing_for_dataplane()? {
        return Err(missing.into());
    }
    raise_open_files();
    let access = &config.control;
    let bind =
        |name: &str, group: Option<&str>| ControlSocket::bind_for(&config.node.run_dir.join(name), group);
    let socket = bind("lbd.sock", access.admin_group.as_deref())?;
    let mut doors = vec![Door::from(socket)];
    if let Some(group) = &access.read_group {
        doors.push(Door::Socket(bind("lbd-ro.sock", Some(group))?, Role::Reader));
    }
    let mut tls_door = None;
    if let Some(tls) = &access.tls {
        let (listener, door) = TlsListener::bind(tls).await?;
        doors.push(Door::Tls(listener));
        tls_door = Some(door);
    }
    let metrics_listener = match config.metrics.listen {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    bpffs::ensure(&config.node.pin_dir)?;
    let _lock = lock(&config.node.pin_dir)?;
    let fresh = !config.node.pin_dir.join("links").exists();

    let instruments = Instruments { requests: control::timing::requests(), ..Instruments::default() };
    let state_dir = StateDir::open(&config.node.state_dir).map_err(EngineError::from)?;
    let loaded = state_dir.load(SystemTime::now()).map_err(EngineError::from)?;
    if let Some(warning) = loaded.outcome.warning() {
        tracing::error!("{warning}");
        // So that its revision counts from now on, even if nothing is changed before the next start.
        state_dir.store(&loaded.changes).map_err(EngineError::from)?;
    }
    let (health_tx, mut health_rx) = mpsc::channel(QUEUE);
    let vip_way = VipWay::default();
    let observer = Arc::new(Observer(instruments.clone()));
    let health_task = HealthTask::spawn_via(health_tx, observer, vip_way.clone());
    let (hop_task, mut hop_rx) = NextHopTask::spawn()?;
    let (name_tx, mut name_rx) = mpsc::channel(QUEUE);
    let name_task = names::spawn(name_tx);
    let mut link_rx = hop_task.link_events();
    let mut ways = hop_task.ways();
    let solicitor = hop_task.solicitor();
    // The kernel is asked for them while the program is loaded.
    hop_task.set_destinations(config.services.iter().flat_map(|s| &s.backends).map(|b| b.address).collect());
    let pin_dir = config.node.pin_dir.clone();
    let made = !pin_dir.join(abi_name()).exists();
    let config::FlowsConfig { max_flows: flows, max_half_open: half_open, max_sessions: sessions } =
        config.flows;
    let capacities = Capacities { flows, half_open, sessions, ..sizes::needed(&config, &loaded.changes) };
    let (kernel, rings) = ahead::beside(&config, &loaded.changes, || Kernel::open(&pin_dir, capacities));
    let kernel = kernel.map_err(|error| {
        // Only what this start made: maps that were there before are somebody's.
        if fresh && made {
            clean_up(&pin_dir);
        }
        EngineError::from(error)
    })?;
    let mut engine = Engine::adopt(Parts {
        config_file: options.config.clone(),
        config,
        state_dir,
        changes: loaded.changes,
        kernel,
        health_task,
        vip_way,
        hop_task,
        name_task,
        instruments: instruments.clone(),
        fleet,
        rings,
    })?;
    engine.tls_door = tls_door;
    engine.settle_hops(HOP_PATIENCE).await;
    while let Some(news) = hop_rx.try_recv() {
        engine.note_hops(news);
    }
    let started = engine
        .converge()
        .map(|_| engine.rings.forget_ahead())
        .and_then(|()| engine.attach())
        .and_then(|()| engine.started());
    if let Err(error) = started {
        if fresh {
            // Nothing was forwarded before, and nothing is half done after.
            drop(engine);
            clean_up(&pin_dir);
        }
        return Err(error.into());
    }

    let (commands, mut command_rx) = mpsc::channel(QUEUE);
    let (stop_tx, stop_rx) = watch::channel(false);
    let control: Vec<_> = doors
        .into_iter()
        .map(|door| tokio::spawn(server::serve(door, commands.clone(), stopped(stop_rx.clone()))))
        .collect();
    let metrics = metrics_listener
        .map(|listener| tokio::spawn(metrics::serve(listener, commands, instruments, stopped(stop_rx))));
    let io = |source| StartError::Io { path: "signals".into(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io)?;
    let program_log = engine.program_log();
    let mut events = engine.kernel.events().and_then(Events::new).map_err(EngineError::from)?;
    engine.check_forwarding();
    let mut resequencer = Resequencer::new(&engine.kernel).map_err(EngineError::from)?;
    // Before the pair: its first events are told too.
    engine.configure_hooks();
    if let Err(error) = engine.configure_pair() {
        // Forwarding goes on; who has the addresses is not this node's to say.
        tracing::error!(%error, "no VRRP on this node");
    }
    let tracked = engine.pair.trackers.changed();
    let mut link_events = engine.start_mirror();
    if let Err(error) = engine.configure_bgp() {
        tracing::error!(%error, "no address is announced");
    }
    if let Err(error) = engine.configure_fleet() {
        tracing::error!(%error, "the fleet's document is not kept up to date");
    }
    let fleet_news = std::sync::Arc::clone(&engine.fleet.told);
    engine.log_ready();
    engine.calm.disturb();
    let mirror_news = engine.mirror.news();
    let mut tend = tokio::time::interval(TEND_INTERVAL);
    tend.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut prune = tokio::time::interval(trace::PRUNE);
    prune.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    loop {
        tokio::select! {
            command = command_rx.recv() => match command {
                Some(Command::Detach { by, reply }) => {
                    engine.end_traces();
                    tracing::warn!(by, "detaching: nothing is forwarded any more");
                    engine.stop_fleet();
                    // First the peer takes over.
                    engine.stop_pair().await;
                    engine.stop_bgp().await;
                    engine.fleet_ended().await;
                    drop(engine);
                    let result = Kernel::detach(&pin_dir).map_err(|e| CommandError::Failed(e.to_string()));
                    let _ = reply.send(result.map(|()| ChangeView {
                        message: "programs, links and maps are removed; lbd ends".to_owned(),
                        ..ChangeView::default()
                    }));
                    break;
                }
                Some(command) => engine.timed(command.name(), |engine| engine.answer(command)),
                None => {
                    engine.end_traces();
                    break;
                }
            },
            event = health_rx.recv() => if let Some(event) = event {
                let mut events = vec![event];
                while let Ok(event) = health_rx.try_recv() {
                    events.push(event);
                }
                engine.timed("health", |engine| engine.health_changed(&events));
            },
            news = hop_rx.recv() => if let Some(news) = news {
                engine.timed("next_hops", |engine| engine.hops_changed(news));
            },
            Some(event) = link_events.recv() => engine.timed("sync", |engine| engine.link_event(event)),
            news = name_rx.recv() => if let Some(news) = news {
                engine.name_news(news);
            },
            events = link_rx.recv() => if events.is_some() {
                engine.timed("links", Engine::links_changed);
            },
            records = events.next() => {
                for (ifindex, address) in events::neighbours(&records) {
                    tracing::debug!(%address, ifindex, "a packet waits for this neighbour");
                    solicitor.solicit(ifindex, address);
                }
                engine.note_claims(&records);
                engine.timed("events", |engine| engine.take_events(&records));
            }
            () = tracked.notified() => engine.track_pair(),
            _ = prune.tick(), if engine.tracers.any() => engine.prune_tracers(),
            Ok(()) = ways.changed() => engine.kernel.maps().nat().routes_changed(),
            () = std::future::ready(()), if engine.is_walking() => engine.timed("services", Engine::walk),
            () = fleet_news.notified() => engine.timed("fleet", Engine::fleet_news),
            () = mirror_news.notified() => engine.timed("mirror", Engine::mirror_news),
            held = resequencer.next() => resequencer.work(held, &mut engine.kernel),
            due = tend.tick() => {
                engine.instruments.pulse.late(due.elapsed());
                resequencer.announce();
                engine.tend_names();
                engine.tend_link();
                engine.timed("flows", |engine| engine.tend_flows(std::time::Instant::now()));
                engine.timed("gradual", Engine::tend_gradual);
                engine.timed("pair", Engine::tend_pair);
                engine.timed("passive", |engine| engine.tend_passive(std::time::Instant::now()));
                engine.announce();
                engine.tend_fleet();
                engine.calm.tick();
            }
            _ = hangup.recv() => {
                // The outcome is logged and counted.
                let _ = engine.timed("reload", |engine| engine.reload(false, "SIGHUP"));
                engine.asked = ChangeOptions::default();
            }
            _ = terminate.recv() => {
                engine.end_traces();
                engine.stop_fleet();
                engine.stop_bgp().await;
                engine.stop_pair().await;
                engine.fleet_ended().await;
                tracing::info!("SIGTERM: the daemon ends, forwarding goes on (lbd --detach removes it)");
                break;
            }
            _ = interrupt.recv() => {
                engine.end_traces();
                engine.stop_fleet();
                engine.stop_bgp().await;
                engine.stop_pair().await;
                engine.fleet_ended().await;
                tracing::info!("SIGINT: the daemon ends, forwarding goes on (lbd --detach removes it)");
                break;
            }
        }
        engine.tell_mirror();
    }
    if let Some(reader) = program_log {
        reader.abort();
    }
    stop_tx.send_replace(true);
    for door in control {
        let _ = door.await;
    }
    if let Some(metrics) = metrics {
        let _ = metrics.await;
    }
    Ok(())
}

/// Every check under way holds a socket, and a service may have thousands of backends: the soft limit is meant for
/// programs that use select(2).
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is; many health checks at once may fail");
    }
}

/// After a start that failed where nothing had been before.
fn clean_up(pin_dir: &Path) {
    if let Err(error) = Kernel::detach(pin_dir) {
        tracing::error!(%error, "could not clean up");
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One daemon a pin directory: two would fight over the maps.
fn lock(pin_dir: &Path) -> Result<Flock<File>, StartError> {
    let file = File::open(pin_dir).map_err(|source| StartError::Io { path: pin_dir.to_owned(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| StartError::PinDirInUse { pin_dir: pin_dir.to_owned() })
}

struct Observer(Instruments);

impl ProbeObserver for Observer {
    fn observed(&self, key: &TargetKey, kind: &'static str, duration: Duration, ok: bool) {
        self.0.health.observe(key.service.as_str(), kind, duration, ok);
    }

    fn prevented(&self, key: &TargetKey, kind: &'static str) {
        self.0.health.prevented(key.service.as_str(), kind);
    }

    fn begun(&self, late: Duration) {
        self.0.pulse.probe_late(late);
    }
}

impl Engine {
    /// Once attached: what older versions left is not read any more.
    fn started(&mut self) -> Result<(), EngineError> {
        Ok(self.kernel.remove_old_layouts()?)
    }

    /// A task that writes the program's messages to the log.
    fn program_log(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        let result = self.kernel.logger().map_err(|error| error.to_string());
        let watch = |logger| {
            // SAFETY: the logger owns its ring buffer's descriptor and neither closes nor changes it while it lives
            // inside the AsyncFd.
            unsafe { AsyncFd::register(logger) }.map_err(|error| error.to_string())
        };
        match result.and_then(watch) {
            Ok(mut logger) => Some(tokio::spawn(async move {
                while let Ok(mut ready) = logger.readable_mut().await {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
            })),
            Err(error) => {
                tracing::warn!(%error, "the program's own messages will not be in the log");
                None
            }
        }
    }

    fn log_ready(&self) {
        for attached in &self.attached {
            tracing::info!(interface = attached.interface, mode = attached.mode.name(), "attached");
        }
        for stale in &self.effective.stale {
            tracing::warn!(%stale, "a runtime change has no effect with this configuration; it is kept");
        }
        tracing::info!(
            node = self.config.node.name,
            services = self.effective.services.len(),
            backends = self.image.backends.len(),
            "ready"
        );
    }

    /// Carries out one command and answers it; whoever asked may have gone.
    pub(super) fn answer(&mut self, command: Command) {
        fn send<T, E: Into<CommandError>>(
            reply: tokio::sync::oneshot::Sender<Result<T, CommandError>>,
            result: Result<T, E>,
        ) {
            let _ = reply.send(result.map_err(Into::into));
        }
        match command {
            Command::Status(reply) => self.begin_status(reply),
            Command::Fleet(command) => self.answer_fleet(command),
            Command::Bgp(reply) => send(reply, Ok::<_, CommandError>(self.bgp_view())),
            Command::Services(reply) => self.begin_walk(reply),
            Command::Drops(reply) => send(reply, self.drops()),
            Command::Config(reply) => send(reply, Ok::<_, CommandError>(self.config_view())),
            Command::BackendAdd { service, name, address, port, weight, backup, by, reply } => {
                let new = NewBackend { name, address, port, weight, backup };
                send(reply, self.add_backend(&service, new, &by));
            }
            Command::BackendRemove { service, name, by, reply } => {
                send(reply, self.remove_backend(&service, &name, &by));
            }
            Command::BackendAdmin { service, name, admin, end_after, by, reply } => {
                send(reply, self.set_admin(&service, &name, admin, end_after, &by));
            }
            Command::BackendWeight { service, name, weight, over, by, reply } => {
                send(reply, self.set_weight(&service, &name, weight, over, &by));
            }
            Command::Reload { plan, by, reply } => {
                send(reply, self.reload(plan, &by));
                self.asked = ChangeOptions::default();
            }
            Command::Reset { service, backend, by, reply } => {
                send(reply, self.reset(service.as_ref(), backend.as_ref(), &by));
            }
            Command::Save { print, by, reply } => send(reply, self.save(print, &by)),
            Command::Explain { protocol, source, destination, packet, reply } => {
                send(reply, Ok::<_, CommandError>(self.explain(protocol, source, destination, packet)));
            }
            Command::Firewall(command) => self.answer_firewall(command),
            Command::Gradual(command) => self.answer_gradual(command),
            Command::Pair(command) => self.answer_pair(command),
            Command::Watch { after, reply } => send(reply, self.watchers.admit(after.as_deref())),
            Command::Changes(reply) => send(reply, Ok::<_, CommandError>(self.runtime_changes())),
            Command::Guarded(guarded) => self.answer_guarded(*guarded),
            Command::Flows { ask, reply } => self.list_flows(ask, reply),
            Command::Trace { ask, reply } => self.start_trace(ask, reply),
            Command::Detach { .. } => unreachable!("the loop takes it"),
        }
    }
}
