//! The configuration file read again.

use super::Engine;
use crate::{
    config::{self, Config},
    control::{api::ChangeView, tls::Access},
    daemon::{error::EngineError, fleet::Texts, tell},
    model::{ServiceName, ServiceSpec},
    state,
};
use std::collections::{BTreeMap, BTreeSet};

impl Engine {
    /// Reads the configuration file again. A bad one is refused and the running one stays.
    pub fn reload(&mut self, plan_only: bool, by: &str) -> Result<ChangeView, EngineError> {
        let plan_only = plan_only || self.asked.plan;
        self.asked.plan = plan_only;
        let mut result = self.try_reload(plan_only, Texts::Files);
        if let Ok(view) = &mut result
            && !plan_only
            && let Some(outcome) = self.retry_document(self.asked.force)
        {
            view.message += &format!("; {outcome}");
        }
        if !plan_only {
            self.instruments.reloads.record(result.is_ok());
            match &result {
                Ok(view) => tracing::info!(by, "{}", view.message),
                Err(error) => tracing::error!(by, %error, "reload refused; the running configuration stays"),
            }
        }
        result
    }

    /// Takes the configuration that these texts make, or leaves everything as it was.
    pub(in crate::daemon) fn try_reload(
        &mut self,
        plan_only: bool,
        from: Texts<'_>,
    ) -> Result<ChangeView, EngineError> {
        let (files, document) = self.sources(from)?;
        let mut new = config::load_with(&files, document.as_ref())?;
        self.names.answers.fill(&mut new);
        restart_needed(&self.config, &new)?;
        let access = new.control.tls.as_ref().map(Access::load).transpose().map_err(EngineError::Tls)?;
        let changes = setting_changes(&self.config, &new);
        let file = match from {
            Texts::Files => self.config_file.display().to_string(),
            Texts::Document(document) => {
                format!("generation {} of the fleet's document", document.generation)
            }
        };
        let kept = self.changes.clone();
        let plan = self.foresee(Some(&new), &kept)?;
        if plan_only {
            let message = match changes.len() {
                0 => format!("{file}: nothing would change"),
                n => format!("{file}: {n} settings would change"),
            };
            return Ok(ChangeView { planned_only: true, plan, ..self.changed(message, changes) });
        }
        let interfaces = (&new.node.interfaces, new.node.xdp_mode)
            != (&self.config.node.interfaces, self.config.node.xdp_mode);
        let old = std::mem::replace(&mut self.config, new);
        let before = self.changes.clone();
        let services = state::apply(&old.services, &before).services;
        // What fails most is done before anything of the services is touched.
        let attached = if interfaces { self.attach() } else { Ok(()) };
        if let Err(error) = attached.and_then(|()| self.converge().map(|_| ())) {
            self.config = old;
            if self.changes != before {
                // Sizes chosen for the new configuration's rings: the old one keeps its own.
                self.changes = before;
                if let Err(second) = self.state_dir.store(&self.changes) {
                    tracing::error!(error = %second, "could not take a refused change out of the state file again");
                }
            }
            self.converge_or_log("the way back to the old configuration");
            if interfaces && let Err(second) = self.attach() {
                tracing::error!(error = %second, "could not attach as before");
            }
            return Err(error);
        }
        self.note_files(files);
        self.apply_names();
        if let (Some(access), Some(door)) = (access, &self.tls_door) {
            door.replace(access);
        }
        tell::reload(&self.events, &services, &self.effective.services, changes.len());
        self.check_forwarding();
        self.configure_hooks();
        for stale in &self.effective.stale {
            tracing::warn!(%stale, "a runtime change has no effect with this configuration; it is kept");
        }
        if let Err(error) = self.configure_pair() {
            tracing::error!(%error, "VRRP goes on as before the reload");
        }
        if let Err(error) = self.configure_bgp() {
            tracing::error!(%error, "no address is announced");
        }
        if let Err(error) = self.configure_fleet() {
            tracing::error!(%error, "the fleet's document is not kept up to date");
        }
        self.calm.disturb();
        let read = if matches!(from, Texts::Files) { "read again" } else { "taken" };
        let message = match changes.len() {
            0 => format!("{file} {read}: nothing changed"),
            n => format!("{file} {read}: {n} settings changed"),
        };
        Ok(self.changed(message, changes))
    }
}

/// Settings that only a start reads.
fn restart_needed(running: &Config, new: &Config) -> Result<(), EngineError> {
    let listen = |c: &Config| c.metrics.listen.map_or("off".to_owned(), |a| a.to_string());
    let tcp = |c: &Config| c.control.tls.as_ref().map_or("off".to_owned(), |tls| tls.listen.to_string());
    let group = |group: &Option<String>| group.clone().unwrap_or_else(|| "not set".to_owned());
    let rows = [
        ("node.pin_dir", new.node.pin_dir.display().to_string(), running.node.pin_dir.display().to_string()),
        (
            "node.state_dir",
            new.node.state_dir.display().to_string(),
            running.node.state_dir.display().to_string(),
        ),
        ("node.run_dir", new.node.run_dir.display().to_string(), running.node.run_dir.display().to_string()),
        ("metrics.listen", listen(new), listen(running)),
        ("control.listen", tcp(new), tcp(running)),
        ("control.admin_group", group(&new.control.admin_group), group(&running.control.admin_group)),
        ("control.read_group", group(&new.control.read_group), group(&running.control.read_group)),
    ];
    match rows.into_iter().find(|(_, found, running)| found != running) {
        Some((key, found, running)) => Err(EngineError::NeedsRestart { key, found, running }),
        None => Ok(()),
    }
}

/// What differs between two configurations, a line each.
fn setting_changes(old: &Config, new: &Config) -> Vec<String> {
    // Most services are what they were, and all of them have hundreds of thousands of settings.
    let by_name = |config: &Config| -> BTreeMap<ServiceName, ServiceSpec> {
        config.services.iter().map(|service| (service.name.clone(), service.clone())).collect()
    };
    let (old_services, new_services) = (by_name(old), by_name(new));
    let map = |config: &Config, others: &BTreeMap<ServiceName, ServiceSpec>| -> BTreeMap<String, String> {
        let differs = |service: &&ServiceSpec| others.get(&service.name) != Some(*service);
        let services = config.services.iter().filter(differs).cloned().collect();
        let config = Config { services, ..config.without_services() };
        config.settings().into_iter().map(|s| (s.key, s.value.to_string())).collect()
    };
    let (old, new) = (map(old, &new_services), map(new, &old_services));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter_map(|key| match (old.get(key), new.get(key)) {
            (Some(a), Some(b)) if a == b => None,
            (Some(a), Some(b)) => Some(format!("{key}: {a} -> {b}")),
            (Some(a), None) => Some(format!("{key}: {a} -> (gone)")),
            (None, Some(b)) => Some(format!("{key}: (new) -> {b}")),
            (None, None) => None,
        })
        .collect()
}
