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
    time::{Instant, SystemTime},
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

/// The answers that an earlier daemon had. None is no error: they are asked again. A file that is none is moved aside.
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
            let file = path.display();
            tracing::warn!(%file, %error, "the last answers of DNS cannot be read; they are asked again");
            match state::set_aside(&path, SystemTime::now()) {
                Ok(to) => tracing::warn!(%file, to = %to.display(), "the file was moved aside"),
                Err(error) => tracing::warn!(%file, %error, "the file could not be moved aside"),
            }
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
        let heard = match result {
            Ok(heard) => heard,
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
        for (why, family) in heard.unheard.iter().zip(["IPv4", "IPv6"]) {
            if let Some(why) = why
                && self.names.failing.insert(query.clone())
            {
                tracing::warn!(%query, why, "DNS does not answer for {family} addresses; the last good answer is kept");
            }
        }
        let silent = heard.unheard.each_ref().map(Option::is_some);
        if silent == [false, false] && self.names.failing.remove(&query) {
            tracing::info!(%query, "DNS answers again");
        }
        let found = self.names.answers.completed(&query, heard.found, silent);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"web").unwrap();
        assert!(remembered(dir.path()).answers.to_remember().is_empty());
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(left.len() == 1 && left[0].starts_with("names.json.corrupt-"), "{left:?}");
        assert_eq!(fs::read_to_string(dir.path().join(&left[0])).unwrap(), "{\"web");
    }
}
