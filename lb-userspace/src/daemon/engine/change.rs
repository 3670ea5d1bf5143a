//! Changes made at run time: durable first, then carried out, then answered.

use super::Engine;
use crate::{
    config::Config,
    control::api::ChangeView,
    daemon::error::EngineError,
    model::{Admin, BackendName, ServiceName},
    plan::Action,
    state::{self, NewBackend, RuntimeChanges, Stamp},
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

    /// Drops every runtime change.
    pub fn reset(&mut self, by: &str) -> Result<ChangeView, EngineError> {
        let count = self.changes.count();
        self.change(format!("{count} runtime changes dropped"), by, |changes, _, _| {
            let changed = !changes.is_empty();
            changes.reset();
            Ok(changed)
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
            return Ok(ChangeView { message, changes: Vec::new(), planned_only: false });
        }
        self.state_dir.store(&changes)?;
        self.changes = changes;
        match self.converge() {
            Ok(actions) => {
                self.tell_news();
                tracing::info!(by, "{message}");
                Ok(ChangeView { message, changes: describe(&actions), planned_only: false })
            }
            Err(error) => {
                self.changes = before;
                self.effective = state::apply(&self.config.services, &self.changes);
                if let Err(second) = self.state_dir.store(&self.changes) {
                    tracing::error!(error = %second, "could not take a refused change out of the state file again");
                }
                Err(error)
            }
        }
    }
}

fn describe(actions: &[Action]) -> Vec<String> {
    actions.iter().map(ToString::to_string).collect()
}
