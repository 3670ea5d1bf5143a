//! Runtime changes written back into the configuration's files.

use super::{engine::Engine, error::EngineError, fleet::Texts, tell};
use crate::{
    config::{self, Config, SourceFile},
    control::save::{SaveView, SavedFile},
    state::{self, Effective, SaveError},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
};

/// Why nothing was saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveFailure {
    #[error("{0}")]
    Edit(#[from] SaveError),
    #[error(
        "{file} is not what lbd read: someone has changed it since. See `lbctl reload --plan`, reload, and save again"
    )]
    Changed { file: String },
    #[error(
        "{file} would not say the same with the changes in it; write them by hand (`lbctl save --print` shows them)"
    )]
    Differs { file: String },
    #[error(
        "{document} is the fleet's document: put the change there (`lbctl save --print` shows what it would be, `lbctl fleet put` takes it)"
    )]
    Fleet { document: String },
    #[error(
        "{path}: cannot be written: {source}. `lbctl save --print` shows what it would be; lbd may lack the right, or its service unit keep the directory from it"
    )]
    Write { path: String, source: io::Error },
}

impl Engine {
    /// Writes the runtime changes into the files, or only shows what they would be.
    pub(super) fn save(&mut self, print: bool, by: &str) -> Result<SaveView, EngineError> {
        let main = self.config_file.display().to_string();
        let (mut files, document) = self.sources(Texts::Files)?;
        let own = files.len();
        let mut read = config::load_with(&files, document.as_ref())?;
        files.extend(document.filter(|_| read.fleet_file.is_some()));
        self.names.answers.fill(&mut read);
        if (read.hash(), &read.files) != (self.config.hash(), &self.config.files) {
            return Err(SaveFailure::Changed { file: main }.into());
        }
        // With the places of what is on the disk now: comments may have moved lines.
        let saved = state::save(&files, &read, &self.changes).map_err(SaveFailure::from)?;
        let new = self.verified(&files, own, &saved)?;
        let view = |message: String, text: bool| SaveView {
            message,
            files: saved
                .files
                .iter()
                .map(|file| SavedFile { path: file.name.clone(), text: text.then(|| file.text.clone()) })
                .collect(),
            kept: saved.kept.clone(),
        };
        if print || saved.count == 0 {
            let message = match saved.count {
                0 => "no runtime change to save".to_owned(),
                n => format!("{n} runtime changes would be saved"),
            };
            return Ok(view(message, print));
        }
        let of_fleet = |name: &str| files[own..].iter().any(|file| file.name == name);
        if let Some(file) = saved.files.iter().find(|file| of_fleet(&file.name)) {
            return Err(SaveFailure::Fleet { document: file.name.clone() }.into());
        }
        let mut temporaries = Vec::new();
        for file in &saved.files {
            let failed = |source| SaveFailure::Write { path: file.name.clone(), source };
            temporaries.push(Replacement::prepare(Path::new(&file.name), &file.text).map_err(failed)?);
        }
        for (file, replacement) in saved.files.iter().zip(temporaries) {
            let failed = |source| SaveFailure::Write { path: file.name.clone(), source };
            replacement.commit().map_err(failed)?;
        }
        let mut remaining = saved.remaining.clone();
        remaining.advance();
        self.state_dir.store(&remaining)?;
        self.config = new;
        for (file, new) in files.iter_mut().filter_map(|file| {
            let new = saved.files.iter().find(|new| new.name == file.name)?;
            Some((file, new))
        }) {
            file.text.clone_from(&new.text);
        }
        files.truncate(own);
        self.note_files(files);
        let before = std::mem::replace(&mut self.changes, remaining);
        self.converge()?;
        let message = format!("{} runtime changes saved", saved.count);
        tell::saved(&self.events, &before, &self.changes, &message, by);
        tracing::info!(by, "{message}");
        Ok(view(message, false))
    }

    /// The configuration as it will be; refused unless the same is in force with it.
    fn verified(
        &self,
        files: &[SourceFile],
        own: usize,
        saved: &state::Saved,
    ) -> Result<Config, EngineError> {
        let mut texts = files.to_vec();
        for file in &mut texts {
            if let Some(new) = saved.files.iter().find(|new| new.name == file.name) {
                file.text.clone_from(&new.text);
            }
        }
        let mut new = config::load_with(&texts[..own], texts.get(own))?;
        self.names.answers.fill(&mut new);
        let in_force = |effective: &Effective| {
            let services = effective.services.iter();
            let backends = |service: &state::EffectiveService| {
                service
                    .backends
                    .iter()
                    .map(|backend| (backend.spec.clone(), backend.admin))
                    .collect::<Vec<_>>()
            };
            services.map(|service| (service.spec.clone(), backends(service))).collect::<Vec<_>>()
        };
        let before = state::apply(&self.config.services, &self.changes);
        let after = state::apply(&new.services, &saved.remaining);
        let lists =
            saved.remaining.lists().over(&new.firewall) == self.changes.lists().over(&self.config.firewall);
        if in_force(&before) == in_force(&after) && lists {
            return Ok(new);
        }
        let file = saved.files.first().map_or_else(|| self.config.file.clone(), |file| file.name.clone());
        Err(SaveFailure::Differs { file }.into())
    }
}

/// A file that waits beside the one it shall replace.
struct Replacement {
    path: PathBuf,
    temporary: PathBuf,
}

impl Replacement {
    /// Writes the new text down to the disk, with the rights of the old file.
    fn prepare(path: &Path, text: &str) -> io::Result<Self> {
        // A link stays one.
        let path = path.canonicalize()?;
        let old = fs::metadata(&path)?;
        let temporary = beside(&path, ".lbd-save");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let this = Self { path, temporary };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&this.temporary)?;
        file.write_all(text.as_bytes())?;
        chown(&this.temporary, Some(old.uid()), Some(old.gid()))?;
        file.set_permissions(old.permissions())?;
        file.sync_all()?;
        Ok(this)
    }

    /// Takes the old file's place; that one stays as `.bak`.
    fn commit(self) -> io::Result<()> {
        let backup = beside(&self.path, ".bak");
        match fs::remove_file(&backup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::hard_link(&self.path, &backup)?;
        fs::rename(&self.temporary, &self.path)?;
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Gone already if it took the place; else it would only be in the way.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
