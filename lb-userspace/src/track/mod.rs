//! What virtual routers watch that takes a program or a file to find out: `[[vrrp_script]]` and `[[vrrp_file]]`.
//!
//! Each has a task of its own, which runs whether anybody tracks it or not; nobody waits for one. The runs of a script
//! follow one after the other and never overlap. What was found stands in [`Found`]; who wants to know of changes waits for
//! [`Trackers::changed`].

mod streak;

use crate::{
    command,
    model::{FileSpec, ScriptSpec, VrrpName},
};
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use streak::Streak;
use tokio::{
    io::AsyncReadExt as _,
    sync::Notify,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

/// So often files are read.
const LOOK: Duration = Duration::from_millis(200);
/// Longest file that is read, in bytes: a number is shorter.
const MAX_FILE: u64 = 64;

/// What was found so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub scripts: BTreeMap<VrrpName, Verdict>,
    /// The numbers in files; 0 for one that is not there.
    pub files: BTreeMap<VrrpName, i64>,
}

/// What a script says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub up: bool,
    /// What came of the run that brought it down.
    pub why: String,
}

#[derive(Debug, Default)]
struct Shared {
    found: Mutex<Found>,
    changed: Arc<Notify>,
}

impl Shared {
    /// Changes what was found, and tells if it is something else then.
    fn change(&self, change: impl FnOnce(&mut Found)) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let before = found.clone();
        change(&mut found);
        if *found != before {
            self.changed.notify_one();
        }
    }
}

/// Ends with its owner.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The tasks.
#[derive(Debug, Default)]
pub struct Trackers {
    scripts: BTreeMap<ScriptSpec, Task>,
    files: BTreeMap<FileSpec, Task>,
    shared: Arc<Shared>,
}

impl Trackers {
    /// What is watched from now on. What stays as it was goes on; a script that was changed keeps its verdict until it says
    /// otherwise. To be called inside a tokio runtime.
    pub fn set(&mut self, scripts: &[ScriptSpec], files: &[FileSpec]) {
        self.scripts.retain(|spec, _| scripts.contains(spec));
        self.files.retain(|spec, _| files.contains(spec));
        self.shared.change(|found| {
            found.scripts.retain(|name, _| scripts.iter().any(|spec| spec.name == *name));
            found.files.retain(|name, _| files.iter().any(|spec| spec.name == *name));
            for spec in scripts {
                let initial =
                    || Verdict { up: spec.initial_up, why: "it has not said anything yet".to_owned() };
                found.scripts.entry(spec.name.clone()).or_insert_with(initial);
            }
        });
        for spec in scripts {
            let shared = &self.shared;
            self.scripts.entry(spec.clone()).or_insert_with_key(|spec| {
                Task(tokio::spawn(watch_script(spec.clone(), Arc::clone(shared))))
            });
        }
        for spec in files {
            let shared = &self.shared;
            self.files
                .entry(spec.clone())
                .or_insert_with_key(|spec| Task(tokio::spawn(watch_file(spec.clone(), Arc::clone(shared)))));
        }
    }

    #[must_use]
    pub fn found(&self) -> Found {
        self.shared.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Is told of every change of what was found.
    #[must_use]
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.changed)
    }
}

async fn watch_script(spec: ScriptSpec, shared: Arc<Shared>) {
    let up = {
        let found = shared.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.scripts.get(&spec.name).map_or(spec.initial_up, |verdict| verdict.up)
    };
    let mut streak = Streak::new(spec.rise, spec.fall, up);
    let mut tick = interval(spec.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let variables = [("LBD_SCRIPT", spec.name.as_str())];
        let run = command::run(&spec.command, &[], &variables, &spec.user);
        let why = match timeout(spec.timeout, run).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("it took longer than {:?}", spec.timeout)),
        };
        let Some(up) = streak.step(why.is_none()) else { continue };
        let (script, why) = (&spec.name, why.unwrap_or_default());
        if up {
            tracing::info!(%script, "tracked script is up");
        } else {
            tracing::warn!(%script, why, "tracked script is down");
        }
        shared.change(|found| {
            found.scripts.insert(script.clone(), Verdict { up, why });
        });
    }
}

async fn watch_file(spec: FileSpec, shared: Arc<Shared>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = None;
    loop {
        tick.tick().await;
        let number = match read_number(&spec.path).await {
            Ok(number) => {
                complaint = None;
                number
            }
            Err(why) => {
                // It is written just now, or broken: what it said before stays.
                if complaint.as_ref() != Some(&why) {
                    tracing::warn!(file = %spec.path.display(), why, "tracked file: its last number stays in force");
                    complaint = Some(why);
                }
                continue;
            }
        };
        shared.change(|found| {
            found.files.insert(spec.name.clone(), number);
        });
    }
}

/// The number in a file; 0 where there is none.
async fn read_number(path: &Path) -> Result<i64, String> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).await.map_err(|error| error.to_string())?;
    let text = text.trim();
    text.parse().map_err(|_| format!("'{}' is no whole number", text.escape_debug()))
}

#[cfg(test)]
mod tests;
