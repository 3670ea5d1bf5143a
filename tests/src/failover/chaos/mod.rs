//! `cargo xtask chaos pair`: a random fault every few seconds, to two nodes that are both at work.
//!
//! Each node is master of one address and backup of the other's. A watcher asks all the time, by ARP, who has them. Two
//! rules: two nodes never answer for one address for longer than three intervals while the network lets them see each
//! other; and whatever befalls them, both are soon again what they should be, without a hand. Connections run
//! through all of it, every byte checked.
//!
//! A wall clock jumps by libfaketime, for that one daemon; a monotonic clock does not jump, by nature, and time namespaces
//! only shift it before a program begins.

mod blow;
mod judge;
mod world;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

pub use blow::{Blow, Stroke, strokes};
pub use judge::{Findings, Look, judge};
pub use world::{VIPS, World};

use super::{load::Report, watch::Watcher};
use crate::lab::Topology;

/// Between two looks at who answers.
const LOOK: Duration = Duration::from_millis(20);
/// A fault that is not over by then needs a hand.
const RECOVERY: Duration = Duration::from_secs(60);
/// Looks in a row at which all was as it should be.
const QUIET: usize = 3;

/// A random fault every few seconds to both nodes of a pair under load
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// What is under test
    #[arg(value_parser = ["pair"], default_value = "pair")]
    pub what: String,
    /// How long
    #[arg(long, default_value_t = 30.0, value_parser = minutes)]
    pub minutes: f64,
    /// Which faults come in which order; the same seed gives the same ones
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Interval of the advertisements, in milliseconds
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=40_000))]
    pub interval_ms: u64,
    /// Seconds between two faults
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
    /// TCP connections with data all the time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub connections: u32,
    /// Only this fault; may be given several times
    #[arg(long = "fault", value_name = "NAME")]
    pub blows: Vec<Blow>,
    /// Without the sync link between both lbd
    #[arg(long)]
    pub no_sync: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|m: &f64| m.is_finite() && (0.1..=1440.0).contains(m));
    minutes.ok_or_else(|| format!("found '{text}'; expected minutes from 0.1 to 1440"))
}

/// What one fault did.
#[derive(Debug, Clone)]
pub struct Chapter {
    pub stroke: Stroke,
    pub at: Duration,
    /// From the end of its cause to the end of its effects.
    pub recovery: Duration,
    /// By address.
    pub findings: [Findings; 2],
}

/// What happened in all that time.
#[derive(Debug, Clone, Default)]
pub struct Story {
    pub chapters: Vec<Chapter>,
    pub connections: Report,
    /// Rules that did not hold.
    pub broken_rules: Vec<String>,
}

/// Runs it, prints story and table, and says whether the rules held.
pub fn run(options: &Options) -> Result<ExitCode> {
    let story = play(options, &mut |line| eprintln!("{line}"))?;
    print(&story.table());
    story.broken_rules.iter().for_each(|rule| print(&format!("BROKEN: {rule}\n")));
    print(&format!(
        "seed {}: {} faults, {} connections broken, {} bytes checked\n",
        options.seed,
        story.chapters.len(),
        story.connections.broken.len(),
        story.connections.bytes
    ));
    Ok(if story.broken_rules.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[expect(clippy::print_stdout, reason = "what it has to say is asked for")]
fn print(text: &str) {
    print!("{text}");
}

/// What a watcher has seen since it was last asked, by address.
#[derive(Default)]
struct Sight {
    looks: [Vec<Look>; 2],
    /// At the last look each node alone answered for its own address.
    own: bool,
    error: Option<String>,
}

/// Plays the faults of a seed; `tell` gets a line for each.
pub fn play(options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Story> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    let mut blows = if options.blows.is_empty() { Blow::ALL.to_vec() } else { options.blows.clone() };
    if !World::has_clocks() {
        tell("no jumps of the clock: libfaketime is not installed (`cargo xtask setup test`)");
        blows.retain(|blow| *blow != Blow::Clock);
        ensure!(!blows.is_empty(), "no fault is left");
    }
    let interval = Duration::from_millis(options.interval_ms);
    let topology = world::network()?;
    let mut world = World::start(&topology, interval, !options.no_sync)?;
    let (joined, stop) = (AtomicBool::new(true), AtomicBool::new(false));
    let sight = Mutex::new(Sight::default());
    let watcher = Watcher::join(&topology, "br0")?;
    let eyes = Eyes { topology: &topology, watcher, joined, stop, sight, begun: Instant::now() };
    let mut story = Story::default();
    let mut load = None;
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| eyes.watch());
        let outcome = (|| -> Result<()> {
            settle(&world, &eyes)?;
            load = Some(world.load(options.connections as usize)?);
            let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
            for stroke in strokes(options.seed, &blows) {
                let next = Instant::now() + Duration::from_secs(options.every);
                if next > end {
                    break;
                }
                let chapter = one(&mut world, stroke, &eyes)?;
                tell(&chapter.line());
                story.broken_rules.extend(chapter.broken_rules(interval));
                story.chapters.push(chapter);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        })();
        eyes.stop.store(true, Ordering::SeqCst);
        outcome
    })
    .with_context(|| {
        format!("seed {}, after {} faults\n{}", options.seed, story.chapters.len(), world.story())
    })?;
    let load = load.context("no connections were opened")?;
    let silent = load.silent_since(load.now(), RECOVERY);
    story
        .broken_rules
        .extend(silent.iter().take(5).map(|line| format!("a connection does not go on: {line}")));
    story.connections = load.close();
    let broken = &story.connections.broken;
    story.broken_rules.extend(broken.iter().take(5).map(|line| format!("a connection broke: {line}")));
    if !story.broken_rules.is_empty() {
        tell(&world.story());
    }
    Ok(story)
}

/// One fault from its begin until nothing of it is left.
fn one(world: &mut World<'_>, stroke: Stroke, eyes: &Eyes<'_>) -> Result<Chapter> {
    eyes.take()?;
    let at = eyes.begun.elapsed();
    if stroke.blow.parts() {
        eyes.joined.store(false, Ordering::SeqCst);
    }
    let what = || format!("{} of lb{} at {at:.1?}", stroke.blow.name(), stroke.node + 1);
    stroke.strike(world).with_context(what)?;
    std::thread::sleep(stroke.lasts);
    stroke.mend(world).with_context(what)?;
    let mended = Instant::now();
    if stroke.blow == Blow::Link {
        // A carrier takes the kernel a moment.
        std::thread::sleep(LOOK);
    }
    eyes.joined.store(true, Ordering::SeqCst);
    settle(world, eyes).with_context(what)?;
    let recovery = mended.elapsed();
    // A late relapse is this fault's.
    std::thread::sleep(LOOK * 5);
    let looks = eyes.take()?;
    Ok(Chapter { stroke, at, recovery, findings: looks.map(|looks| judge(&looks)) })
}

/// Waits until all is as it should be.
fn settle(world: &World<'_>, eyes: &Eyes<'_>) -> Result<()> {
    let deadline = Instant::now() + RECOVERY;
    let mut quiet = 0;
    while quiet < QUIET {
        quiet = if eyes.last_are_own() && world.is_settled() { quiet + 1 } else { 0 };
        ensure!(Instant::now() < deadline, "no recovery without a hand within {RECOVERY:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Who looks all the time.
struct Eyes<'w> {
    topology: &'w Topology,
    watcher: Watcher,
    joined: AtomicBool,
    stop: AtomicBool,
    sight: Mutex<Sight>,
    begun: Instant,
}

impl Eyes<'_> {
    fn watch(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            let (at, joined) = (self.begun.elapsed(), self.joined.load(Ordering::SeqCst));
            let seen = self.watcher.ask(&VIPS, LOOK);
            let mut sight = self.sight.lock().unwrap_or_else(PoisonError::into_inner);
            match seen {
                Ok(seen) => {
                    let mut own = seen
                        .iter()
                        .zip(&self.topology.lb)
                        .map(|(macs, lb)| macs.iter().eq([&lb.interfaces[0].mac]));
                    sight.own = own.all(|own| own);
                    for (looks, macs) in sight.looks.iter_mut().zip(seen) {
                        looks.push(Look { at, answers: macs.len(), joined });
                    }
                }
                Err(error) => sight.error = Some(error.to_string()),
            }
        }
    }

    /// What was seen since this was last asked.
    fn take(&self) -> Result<[Vec<Look>; 2]> {
        let sight = std::mem::take(&mut *self.sight.lock().unwrap_or_else(PoisonError::into_inner));
        match sight.error {
            Some(error) => Err(anyhow::anyhow!("the watcher cannot see: {error}")),
            None => Ok(sight.looks),
        }
    }

    /// Whether at the last look each node alone answered for its own address.
    fn last_are_own(&self) -> bool {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner).own
    }
}

impl Chapter {
    fn line(&self) -> String {
        let Stroke { blow, node, lasts, .. } = self.stroke;
        let whom = if blow == Blow::Partition { "both".to_owned() } else { format!("lb{}", node + 1) };
        let [one, two] = self.findings.map(|f| {
            format!(
                "two {} ms, apart {} ms, nobody {} ms",
                f.two.as_millis(),
                f.apart.as_millis(),
                f.none.as_millis()
            )
        });
        format!(
            "{:>7.1} s {:<9} {whom} for {:.1} s: {}: {one}; {}: {two}; recovered in {:.2} s",
            self.at.as_secs_f64(),
            blow.name(),
            lasts.as_secs_f64(),
            VIPS[0],
            VIPS[1],
            self.recovery.as_secs_f64()
        )
    }

    fn broken_rules(&self, interval: Duration) -> Vec<String> {
        // What the watcher cannot tell: the time of an answer on its way, and one look.
        let limit = interval * 3 + LOOK * 2;
        let broken = self.findings.iter().zip(VIPS).filter(|(found, _)| found.two > limit);
        broken
            .map(|(found, vip)| {
                format!(
                    "{vip}: two nodes answered for {} ms from {:.1} s on, at most {} ms ({})",
                    found.two.as_millis(),
                    found.two_at.as_secs_f64(),
                    limit.as_millis(),
                    self.stroke.blow.name()
                )
            })
            .collect()
    }
}

impl Story {
    /// A line for each kind of fault.
    pub fn table(&self) -> String {
        let mut kinds: BTreeMap<Blow, Vec<&Chapter>> = BTreeMap::new();
        for chapter in &self.chapters {
            kinds.entry(chapter.stroke.blow).or_default().push(chapter);
        }
        let mut text = format!(
            "{:<10} {:>6} {:>14} {:>16} {:>14} {:>15}\n",
            "fault", "times", "two answer ms", "two, apart, ms", "nobody ms", "recovery max s"
        );
        for (blow, chapters) in kinds {
            let most = |of: fn(&Findings) -> Duration| {
                chapters.iter().flat_map(|c| &c.findings).map(of).max().unwrap_or_default().as_millis()
            };
            let recovery = chapters.iter().map(|c| c.recovery).max().unwrap_or_default();
            let _ = writeln!(
                text,
                "{:<10} {:>6} {:>14} {:>16} {:>14} {:>15.2}",
                blow.name(),
                chapters.len(),
                most(|f| f.two),
                most(|f| f.apart),
                most(|f| f.none),
                recovery.as_secs_f64()
            );
        }
        text
    }
}
