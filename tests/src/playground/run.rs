//! Bringing a playground up, running it, taking it away: one loop that owns everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::ExitCode,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    args::Args,
    control::{self, Order, Request},
    failover::Watch,
    messages::{self, Relays},
    place::Place,
    progress::{Live, Progress},
    relay::{Port, Relay, Treatment},
    signals::{self, Stop},
    world::{DASHBOARD, Programs, World},
};

/// Between two lines of `--live`.
const LIVE_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// Requests of the self-check to each virtual address.
const CHECK_REQUESTS: u64 = 100;

/// What the loop hears.
#[derive(Debug)]
pub(super) enum Event {
    /// A signal asks this process to end.
    Stop(&'static str),
    Request(Request),
}

/// Why nothing came up, though nothing failed.
#[derive(Debug, thiserror::Error)]
#[error("{0} while coming up; everything is removed")]
struct Interrupted(&'static str);

/// What happens when no command is given.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let programs = Programs::find()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("root is needed for network namespaces and XDP: `cargo xtask run` asks sudo for it");
    }
    let (sender, events) = channel();
    let stop = signals::watch(sender.clone(), Event::Stop).context("cannot listen for signals")?;
    let (place, progress, begun) = (args.place(), Progress::new(args.bring_up.quiet), Instant::now());

    let plan = World::network(&place, &args.bring_up, programs)?;
    control::listen(&place, sender)?;
    let mut waiting = Vec::new();
    let brought_up = progress
        .step("the network", || World::build(plan))
        .and_then(|world| bring_up(world, args, progress, (&events, &stop), &mut waiting))
        .map_err(|error| {
            // A signal from the terminal reaches the helpers too, whose failure is then no news.
            if stop.is_asked_for() && !error.is::<Interrupted>() {
                Interrupted("stopped").into()
            } else {
                error
            }
        });
    brought_up.and_then(|mut world| {
        progress.line(&format!("up after {:.1} s", begun.elapsed().as_secs_f32()));
        let result = if args.bring_up.once {
            self_check(&world, args.bring_up.quiet)
        } else {
            stay(&mut world, args, &place, progress, &events, waiting)
        };
        progress.step("taking everything away", || {
            drop(world);
            Ok::<(), anyhow::Error>(())
        })?;
        result
    })
}

/// The steps, each ended before a signal is heard.
fn bring_up(
    mut world: World,
    args: &Args,
    progress: Progress,
    (events, stop): (&Receiver<Event>, &Stop),
    waiting: &mut Vec<Request>,
) -> Result<World> {
    checkpoint(events, waiting)?;
    progress.step("web servers", || world.start_web_servers())?;
    checkpoint(events, waiting)?;
    if args.bring_up.forward.is_tunnel() {
        progress.step("decapsulation on the web servers' hosts", || world.attach_decapsulators())?;
        checkpoint(events, waiting)?;
    }
    progress.step("lbd on lb1 and lb2", || world.start_balancers(stop))?;
    checkpoint(events, waiting)?;
    progress.step("the first answers through both", || world.await_answers(stop))?;
    checkpoint(events, waiting)?;
    Ok(world)
}

/// Ends the bringing up when that was asked for; other requests wait until all is up.
fn checkpoint(events: &Receiver<Event>, waiting: &mut Vec<Request>) -> Result<()> {
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Stop(signal) => return Err(Interrupted(signal).into()),
            Event::Request(Request { order: Order::Down, reply }) => {
                let _ = reply.send(Ok("stopped while coming up".to_owned()));
                return Err(Interrupted("told to end").into());
            }
            Event::Request(request) => waiting.push(request),
        }
    }
    Ok(())
}

/// 100 requests to each virtual address: all answered, by every web server.
fn self_check(world: &World, quiet: bool) -> Result<ExitCode> {
    let reports = world.requests(CHECK_REQUESTS);
    if !quiet {
        print(&messages::distribution(&reports));
    }
    let names: BTreeSet<&str> = world.topology().backends.iter().map(|node| node.name.as_str()).collect();
    for (vip, report) in &reports {
        if report.failed_count() > 0 {
            bail!("{vip}: {} of {CHECK_REQUESTS} requests failed:\n{report}", report.failed_count());
        }
        let silent: Vec<&str> = names.iter().filter(|name| report.count(name) == 0).copied().collect();
        // Of a hundred flows each of a few servers gets some for certain; of many, one may be left out by chance.
        if !silent.is_empty() && names.len() <= 8 {
            bail!("{vip}: nothing was answered by {}:\n{report}", silent.join(", "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves until told to stop.
fn stay(
    world: &mut World,
    args: &Args,
    place: &Place,
    progress: Progress,
    events: &Receiver<Event>,
    waiting: Vec<Request>,
) -> Result<ExitCode> {
    let relays = relays(world, args)?;
    if !args.bring_up.quiet {
        print(&messages::welcome(place, world, &relays));
    }
    let live = progress.live();
    let mut watch = Watch::default();
    for request in waiting {
        obey(world, &watch, request, &live);
    }
    let (mut next_probe, mut next_live) = (Instant::now(), Instant::now());
    let mut counts = BTreeMap::new();
    loop {
        match events.recv_timeout(next_probe.saturating_duration_since(Instant::now())) {
            Ok(Event::Stop(signal)) => {
                drop(live);
                progress.line(&format!("\n{signal}"));
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Event::Request(Request { order: Order::Down, reply })) => {
                let _ = reply.send(Ok("the playground is gone".to_owned()));
                drop(live);
                progress.line("told to end");
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Event::Request(request)) => obey(world, &watch, request, &live),
            Err(RecvTimeoutError::Timeout) => {
                next_probe = Instant::now() + PROBE_INTERVAL;
                if let Some(moved) = watch.observe(&world.probe()) {
                    world.route_vips_to(moved.to)?;
                    live.line(&format!(
                        "the router sends the virtual addresses to lb{}: {}",
                        moved.to + 1,
                        moved.why
                    ));
                }
                if args.bring_up.live && next_live <= Instant::now() {
                    next_live = Instant::now() + LIVE_INTERVAL;
                    live.show(world.live_line(watch.active(), &mut counts));
                }
            }
            Err(RecvTimeoutError::Disconnected) => bail!("nobody listens for signals any more"),
        }
    }
}

fn obey(world: &mut World, watch: &Watch, Request { order, reply }: Request, live: &Live) {
    let result = match &order {
        Order::Status => Ok(world.describe(watch.active())),
        Order::Fail { node, daemon } => world.fail(node, *daemon),
        Order::Heal { node } => world.heal(node),
        Order::Down => Ok(String::new()),
    };
    if let (Ok(text), true) = (&result, order != Order::Status) {
        live.line(text);
    }
    // Whoever asked may have gone.
    let _ = reply.send(result.map_err(|error| format!("{error:#}")));
}

fn relays(world: &World, args: &Args) -> Result<Relays> {
    let topology = world.topology();
    let site = (topology.vip4(), 80).into();
    let dashboard = |index: usize, wanted| {
        let usual = DASHBOARD + if index == 0 { 0 } else { 1 };
        let lb = &topology.lb[index];
        Relay::start(Port { wanted, usual }, &lb.ns, (lb.v4, DASHBOARD).into(), Treatment::Untouched)
    };
    Ok(Relays {
        site: Relay::start(
            Port { wanted: args.bring_up.http_port, usual: 8080 },
            &topology.client.ns,
            site,
            Treatment::OneRequest,
        )?,
        dashboards: [dashboard(0, args.bring_up.dashboard_port)?, dashboard(1, None)?],
    })
}

fn print(text: &str) {
    // Where nobody reads, nothing is lost.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
