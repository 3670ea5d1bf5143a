//! The runtime state as a whole: its revision, and what is in it.

use super::engine::Engine;
use crate::{
    control::{
        api::SettingView,
        changes::{ChangesView, RuntimeChangeView},
        command::CommandError,
        guard::Guarded,
    },
    state::{Part, Record, Stamp},
};

impl Engine {
    /// Carries out a command, if the runtime state is the one it was made for.
    pub(super) fn answer_guarded(&mut self, guarded: Guarded) {
        let Guarded { command, if_revision, verdict } = guarded;
        let now = self.changes.revision();
        // Whoever asked may have gone.
        if let Some(wanted) = if_revision.filter(|wanted| !wanted.contains(&now)) {
            let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            let last =
                self.changes.records().into_iter().max_by_key(|r| r.stamp.as_ref().map_or(0, |s| s.at));
            let last = last.and_then(|record| {
                let by = record.stamp.as_ref()?.by.clone();
                Some(format!(" (the last change in force: {}, by {by})", sentence(&record)))
            });
            let _ = verdict.send(Err(CommandError::Moved(format!(
                "the runtime state has revision {now}, the request was made for {}: somebody changed it meanwhile{}; \
                 nothing was changed: look again (lbctl changes), then repeat the request with the present revision",
                wanted.join(" or "),
                last.unwrap_or_default(),
            ))));
            return;
        }
        self.answer(command);
        let _ = verdict.send(Ok(self.changes.revision()));
    }

    /// `changes`.
    pub(super) fn runtime_changes(&self) -> ChangesView {
        let stale = |record: &Record| {
            let of = |s: &&crate::state::StaleChange| {
                record.service.as_ref() == Some(&s.change.service)
                    && record.backend.as_ref() == Some(&s.change.backend)
                    && record.what == s.change.kind.to_string()
            };
            self.effective.stale.iter().find(of).map(|stale| stale.reason.to_string())
        };
        let view = |record: Record| RuntimeChangeView {
            without_effect: stale(&record),
            service: record.service.map(|name| name.to_string()),
            backend: record.backend.map(|name| name.to_string()),
            change: record.what,
            at: record.stamp.as_ref().map(|stamp| stamp.at),
            by: record.stamp.map(|stamp| stamp.by),
        };
        ChangesView {
            revision: self.changes.revision(),
            file: self.state_dir.file().display().to_string(),
            changes: self.changes.records().into_iter().map(view).collect(),
        }
    }

    /// Says of every setting from a runtime change who made it and when.
    pub(super) fn sign(&self, settings: &mut [SettingView]) {
        let records = self.changes.records();
        for setting in settings.iter_mut().filter(|setting| setting.origin == "runtime") {
            // The last one counts: of a backend that was added and then weighed, the weight's own.
            let stamp =
                records.iter().rev().find(|r| concerns(r, &setting.key)).and_then(|r| r.stamp.as_ref());
            if let Some(Stamp { at, by }) = stamp {
                (setting.at, setting.by) = (Some(*at), Some(by.clone()));
            }
        }
    }
}

fn sentence(record: &Record) -> String {
    match (&record.service, &record.backend) {
        (Some(service), Some(backend)) => format!("backend {backend} of {service}: {}", record.what),
        (Some(service), None) => format!("{service}: {}", record.what),
        (None, _) => record.what.clone(),
    }
}

/// Whether a setting of that key may come from the change.
fn concerns(record: &Record, key: &str) -> bool {
    let Some(service) = &record.service else { return key.starts_with("firewall.") };
    let Some(rest) = key.strip_prefix(&format!("service.{service}.")) else { return false };
    let Some(backend) = &record.backend else {
        return record.part == Part::Limits && rest.starts_with("limits.");
    };
    let Some(rest) = rest.strip_prefix(&format!("backend.{backend}")) else { return false };
    match rest {
        "" => record.part == Part::Removed,
        ".weight" => matches!(record.part, Part::Weight | Part::Added),
        ".admin" => record.part == Part::Admin,
        _ => rest.starts_with('.') && record.part == Part::Added,
    }
}
