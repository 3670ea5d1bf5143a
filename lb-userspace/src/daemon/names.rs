//! Backends by name: answers come in, backends go out; the last good answers outlive the daemon.

use super::{engine::Engine, error::EngineError};
use crate::{
    model::{Found, Query},
    net::names::NameNews,
    state::{self, Answers},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    time::Instant,
};

const FILE: &str = "names.json";
/// Largest file of answers, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// What is known of names.
#[derive(Default)]
pub(super) struct Names {
    pub(super) answers: Answers,
    /// Queries that failed last time, so that each failure is told once.
    failing: BTreeSet<Query>,
}

/// The answers that an earlier daemon had. None is no error: they are asked again.
pub(super) fn remembered(state_dir: &Path) -> Names {
    let path = state_dir.join(FILE);
    let read = || -> io::Result<BTreeMap<String, (Query, BTreeSet<Found>)>> {
        if fs::metadata(&path)?.len() > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(serde_json::from_slice(&fs::read(&path)?)?)
    };
    match read() {
        Ok(kept) => Names { answers: Answers::remembered(kept), ..Names::default() },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Names::default(),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the last answers of DNS cannot be read; they are asked again");
            Names::default()
        }
    }
}

impl Engine {
    /// Makes the backends of the names, and has the names asked that are there now.
    pub(super) fn apply_names(&mut self) {
        for refused in self.names.answers.fill(&mut self.config) {
            tracing::warn!("no backend: {refused}");
        }
        self.name_task.set_queries(state::queries(&self.config), &self.config.resolver);
    }

    /// An answer came, or did not.
    pub(super) fn name_news(&mut self, news: NameNews) {
        let NameNews { query, result } = news;
        let found = match result {
            Ok(found) => found,
            Err(why) => {
                if self.names.failing.insert(query.clone()) {
                    if self.names.answers.knows(&query) {
                        tracing::warn!(%query, why, "DNS does not answer; the last good answer is kept");
                    } else {
                        tracing::error!(%query, why, "DNS does not answer, and never has: no backends by this name");
                    }
                }
                return;
            }
        };
        if self.names.failing.remove(&query) {
            tracing::info!(%query, "DNS answers again");
        }
        let addresses: Vec<String> = found.iter().map(|found| found.address.to_string()).collect();
        if !self.names.answers.learn(query.clone(), found, Instant::now()) {
            return;
        }
        tracing::info!(%query, addresses = addresses.join(", "), "a name has new addresses");
        if let Err(error) = self.remember_names() {
            tracing::error!(%error, "the answers of DNS could not be kept for the next start");
        }
        self.names_changed();
    }

    /// Those that left long enough ago go.
    pub(super) fn tend_names(&mut self) {
        if self.names.answers.expire(self.config.resolver.drain, Instant::now()) {
            self.names_changed();
        }
    }

    fn names_changed(&mut self) {
        self.apply_names();
        if let Err(error) = self.converge() {
            let error: EngineError = error;
            tracing::error!(%error, "could not carry out a change of names; forwarding goes on as before");
        }
    }

    /// Atomically, and only a help at the next start: not worth waiting for the disk.
    fn remember_names(&mut self) -> io::Result<()> {
        let asked = state::queries(&self.config);
        self.names.answers.retain(&asked);
        let directory = &self.config.node.state_dir;
        let temporary = directory.join(format!("{FILE}.new"));
        fs::write(&temporary, serde_json::to_vec(&self.names.answers.to_remember())?)?;
        fs::rename(temporary, directory.join(FILE))
    }
}
