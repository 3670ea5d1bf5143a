//! Changes made at run time: durable first, then carried out, then answered.

use super::Engine;
use crate::{
    config::Config,
    control::{api::ChangeView, gradual::PlanView},
    daemon::{error::EngineError, save::runtime_changes, tell},
    events::unix_ms,
    model::{Admin, BackendName, ServiceName},
    plan::Action,
    state::{self, NewBackend, RuntimeChanges, Stamp, StateError},
};
use std::time::{Duration, SystemTime};

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
        end_after: Option<Duration>,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        let end = end_after.map(|after| unix_ms().saturating_add(after.as_millis() as u64));
        let message = format!("backend {name} of {service} is {admin}");
        let mut view = self.change(message, by, |changes, config, stamp| {
            let changed = changes.set_admin(&config.services, service, name, admin, stamp)?;
            Ok(changes.set_drain_end(service, name, end) || changed)
        })?;
        if admin == Admin::Enabled && !view.planned_only && self.passive.forgive(service, name) {
            view.changes.extend(describe(&self.converge()?));
            tracing::info!(by, %service, backend = %name, "ejection ended by hand");
            view.message += "; its ejection is over";
        }
        Ok(view)
    }

    /// Changes a backend's weight.
    pub fn set_weight(
        &mut self,
        service: &ServiceName,
        name: &BackendName,
        weight: u16,
        over: Option<Duration>,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        let (message, ramp) = self.weight_ramp(service, name, weight, over);
        self.change(message, by, |changes, config, stamp| {
            let changed = changes.set_weight(&config.services, service, name, weight, stamp)?;
            Ok(changes.set_ramp(service, name, ramp) || changed)
        })
    }

    /// Drops every runtime change, or those of one service or backend.
    pub fn reset(
        &mut self,
        service: Option<&ServiceName>,
        backend: Option<&BackendName>,
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        let Some(service) = service else {
            let count = runtime_changes(self.changes.count());
            return self.change(format!("{count} dropped"), by, |changes, _, _| {
                let changed = !changes.is_empty();
                changes.reset();
                Ok(changed)
            });
        };
        let what =
            backend.map_or_else(|| service.to_string(), |backend| format!("backend {backend} of {service}"));
        let dropped = self.changes.clone().reset_some(&self.config.services, service, backend)?;
        let dropped = runtime_changes(dropped);
        self.change(format!("{dropped} of {what} dropped"), by, |changes, config, _| {
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
        let result = self.try_change(message, by, edit);
        self.instruments.pulse.asked(result.is_ok());
        result
    }

    fn try_change(
        &mut self,
        message: String,
        by: &str,
        edit: impl FnOnce(&mut RuntimeChanges, &Config, Stamp) -> Result<bool, EngineError>,
    ) -> Result<ChangeView, EngineError> {
        let before = self.changes.clone();
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut changes = before.clone();
        if !edit(&mut changes, &self.config, Stamp { at, by: by.to_owned() })? {
            let plan = self.asked.plan.then(PlanView::default);
            return Ok(ChangeView {
                planned_only: self.asked.plan,
                plan,
                ..self.changed(message, Vec::new())
            });
        }
        if let Some(plan) = self.foresee(None, &changes)? {
            return Ok(ChangeView {
                planned_only: true,
                plan: Some(plan),
                ..self.changed(message, Vec::new())
            });
        }
        changes.advance();
        if let Err(error) = self.state_dir.store(&changes) {
            // Its new file may be in place already, and the change will be answered as refused.
            if matches!(error, StateError::Sync { .. }) {
                self.unstore(&before);
            }
            return Err(error.into());
        }
        let touched = changes.differing(&before);
        self.changes = changes;
        let converged = match touched {
            Some(services) => self.converge_part(&services),
            None => self.converge(),
        };
        match converged {
            Ok(actions) => {
                self.tell_news();
                tracing::info!(by, revision = self.changes.revision(), "{message}");
                tell::change(&self.events, &before, &self.changes, &self.config.services, &message, by);
                Ok(self.changed(message, describe(&actions)))
            }
            Err(error) => {
                self.effective = state::apply(&self.config.services, &before);
                self.unstore(&before);
                self.changes = before;
                self.hashes.forget();
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
        ChangeView { message, changes, revision: self.changes.revision(), ..ChangeView::default() }
    }
}

fn describe(actions: &[Action]) -> Vec<String> {
    actions.iter().map(ToString::to_string).collect()
}
