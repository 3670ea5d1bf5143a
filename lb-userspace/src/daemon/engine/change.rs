//! Changes made at run time: durable first, then carried out, then answered.

use super::Engine;
use crate::{
    config::Config,
    control::api::ChangeView,
    daemon::{error::EngineError, tell},
    model::{Admin, BackendName, ServiceName},
    plan::Action,
    state::{self, NewBackend, RuntimeChanges, Stamp, StateError},
};
use std::time::SystemTime;

impl Engine {
    /// Adds a backend.
    pub fn add_backend(
        &mut self,
        service: &ServiceName,
        new: NewBackend,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        let message = format!("backend {} ({}) added to {service}", new.name, new.address);
        let service = service.clone();
        self.change(message, by, move |changes, config, stamp| {
            changes.add_backend(&config.services, &service, new, stamp)?;
            Ok(true)
        })
    }

    /// Removes a backend.
    pub fn remove_backend(
        &mut self,
        service: &ServiceName,
        name: &BackendName,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        self.change(format!("backend {name} removed from {service}"), by, |changes, config, stamp| {
            changes.remove_backend(&config.services, service, name, stamp)?;
            Ok(true)
        })
    }

    /// Drains, disables or enables a backend.
    pub fn set_admin(
        &mut self,
        service: &ServiceName,
        name: &BackendName,
        admin: Admin,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        self.change(format!("backend {name} of {service} is {admin}"), by, |changes, config, stamp| {
            Ok(changes.set_admin(&config.services, service, name, admin, stamp)?)
        })
    }

    /// Changes a backend's weight.
    pub fn set_weight(
        &mut self,
        service: &ServiceName,
        name: &BackendName,
        weight: u16,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        self.change(
            format!("backend {name} of {service} has weight {weight}"),
            by,
            |changes, config, stamp| {
                Ok(changes.set_weight(&config.services, service, name, weight, stamp)?)
            },
        )
    }

    /// Drops every runtime change, or those of one service or backend.
    pub fn reset(
        &mut self,
        service: Option<&ServiceName>,
        backend: Option<&BackendName>,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        let Some(service) = service else {
            let count = self.changes.count();
            return self.change(format!("{count} runtime changes dropped"), by, |changes, _, _| {
                let changed = !changes.is_empty();
                changes.reset();
                Ok(changed)
            });
        };
        let what =
            backend.map_or_else(|| service.to_string(), |backend| format!("backend {backend} of {service}"));
        let dropped = self.changes.clone().reset_some(&self.config.services, service, backend)?;
        self.change(format!("{dropped} runtime changes of {what} dropped"), by, |changes, config, _| {
            Ok(changes.reset_some(&config.services, service, backend)? > 0)
        })
    }

    /// A runtime change: made durable first, then carried out, then answered.
    pub(in crate::daemon) fn change(
        &mut self,
        message: String,
        by: &str,
        edit: impl FnOnce(&mut RuntimeChanges, &Config, Stamp) -> Result<bool, EngineError>,
    ) -> Result<ChangeView, EngineError> {
        let before = self.changes.clone();
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut changes = before.clone();
        if !edit(&mut changes, &self.config, Stamp { at, by: by.to_owned() })? {
            return Ok(self.changed(message, Vec::new()));
        }
        changes.advance();
        if let Err(error) = self.state_dir.store(&changes) {
            // Its new file may be in place already, and the change will be answered as refused.
            if matches!(error, StateError::Sync { .. }) {
                self.unstore(&before);
            }
            return Err(error.into());
        }
        self.changes = changes;
        match self.converge() {
            Ok(actions) => {
                tracing::info!(by, revision = self.changes.revision(), "{message}");
                tell::change(&self.events, &before, &self.changes, &self.config.services, &message, by);
                Ok(self.changed(message, describe(&actions)))
            }
            Err(error) => {
                self.effective = state::apply(&self.config.services, &before);
                self.unstore(&before);
                self.changes = before;
                Err(error)
            }
        }
    }

    fn unstore(&self, before: &RuntimeChanges) {
        if let Err(second) = self.state_dir.store(before) {
            tracing::error!(error = %second, "could not take a refused change out of the state file again");
        }
    }

    /// The answer to a change, with the revision it led to.
    pub(super) fn changed(&self, message: String, changes: Vec<String>) -> ChangeView {
        ChangeView { message, changes, planned_only: false, revision: self.changes.revision() }
    }
}

fn describe(actions: &[Action]) -> Vec<String> {
    actions.iter().map(ToString::to_string).collect()
}
