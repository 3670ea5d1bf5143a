//! Lists and limits: what is in force, what is shown of it, and how it is changed.

use super::{engine::Engine, error::EngineError};
use crate::{
    config::{FirewallConfig, prefixes_digest},
    control::{
        api::{ChangeView, FirewallView, SettingView},
        command::CommandError,
        firewall::{FirewallCommand, LimitsView, PrefixView},
    },
    model::{Prefixes, Verdict},
    state::ListChanges,
};
use ipnet::IpNet;
use std::sync::Arc;

/// The prefixes in force, made anew only when the configuration's or the changes are others.
#[derive(Default)]
pub(super) struct InForce {
    of: Option<(Arc<FirewallConfig>, Arc<ListChanges>)>,
    prefixes: Arc<Prefixes>,
    digest: String,
}

impl InForce {
    pub(super) fn refresh(&mut self, file: &Arc<FirewallConfig>, changes: &Arc<ListChanges>) {
        let same = self.of.as_ref().is_some_and(|(of_file, of_changes)| {
            Arc::ptr_eq(of_file, file) && Arc::ptr_eq(of_changes, changes)
        });
        if !same {
            let prefixes = changes.over(file);
            self.digest = prefixes_digest(&prefixes);
            self.prefixes = Arc::new(prefixes);
            self.of = Some((Arc::clone(file), Arc::clone(changes)));
        }
    }

    pub(super) fn prefixes(&self) -> &Arc<Prefixes> {
        &self.prefixes
    }

    pub(super) fn view(&self) -> FirewallView {
        let denied = self.prefixes.values().filter(|verdict| **verdict == Verdict::Deny).count();
        FirewallView { denied, allowed: self.prefixes.len() - denied }
    }

    /// The configuration as it is hashed: changes at run time count by the digest of what is in force.
    pub(super) fn hashed(&self, file: &Arc<FirewallConfig>, changes: &ListChanges) -> Arc<FirewallConfig> {
        if changes.count() == 0 {
            return Arc::clone(file);
        }
        Arc::new(FirewallConfig {
            deny: file.deny.clone(),
            allow: file.allow.clone(),
            deny_files: file.deny_files.clone(),
            digest: self.digest.clone(),
            ..FirewallConfig::default()
        })
    }
}

impl Engine {
    /// Carries out one command about lists and limits and answers it.
    pub(super) fn answer_firewall(&mut self, command: FirewallCommand) {
        // Whoever asked may have gone.
        let done = |result: Result<ChangeView, EngineError>| result.map_err(CommandError::from);
        match command {
            FirewallCommand::List { list, reply } => drop(reply.send(Ok(self.prefix_views(list)))),
            FirewallCommand::Change { list, add, prefixes, by, reply } => {
                drop(reply.send(done(self.change_prefixes(list, add, &prefixes, &by))));
            }
            FirewallCommand::Limits(reply) => drop(reply.send(Ok(self.limit_views()))),
            FirewallCommand::SetLimits { service, patch, by, reply } => {
                let message = format!("limits of {service} set");
                let result = self.change(message, &by, |changes, config, stamp| {
                    Ok(changes.set_limits(&config.services, &service, patch, stamp)?)
                });
                drop(reply.send(done(result)));
            }
            FirewallCommand::ClearLimits { service, by, reply } => {
                let message = format!("limits of {service} as in the configuration");
                let result = self.change(message, &by, |changes, config, _| {
                    Ok(changes.clear_limits(&config.services, &service)?)
                });
                drop(reply.send(done(result)));
            }
        }
    }

    fn change_prefixes(
        &mut self,
        list: Verdict,
        add: bool,
        prefixes: &[IpNet],
        by: &str,
    ) -> Result<ChangeView, EngineError> {
        if let Some(net) = prefixes.iter().find(|net| net.addr() != net.network()) {
            let error = crate::model::PrefixError::HostBits(net.trunc());
            return Err(EngineError::Prefix { prefix: *net, error });
        }
        let present = Arc::clone(self.firewall.prefixes());
        let message = match (prefixes, if add { "added to" } else { "removed from" }) {
            ([one], done) => format!("{one} {done} the {list} list"),
            (many, done) => format!("{} prefixes {done} the {list} list", many.len()),
        };
        self.change(message, by, |changes, config, stamp| {
            let changed = if add {
                changes.add_prefixes(&config.firewall, &present, list, prefixes)?
            } else {
                changes.remove_prefixes(&config.firewall, &present, list, prefixes)?
            };
            if changed > 0 {
                changes.stamp_lists(stamp);
            }
            Ok(changed > 0)
        })
    }

    fn prefix_views(&self, list: Verdict) -> Vec<PrefixView> {
        let (changes, prefixes) = (self.changes.lists(), self.firewall.prefixes());
        let runtime = match list {
            Verdict::Deny => &changes.denied,
            Verdict::Allow => &changes.allowed,
        };
        let of_list = prefixes.iter().filter(|(_, verdict)| **verdict == list);
        of_list
            .map(|(prefix, _)| PrefixView {
                prefix: *prefix,
                origin: if runtime.contains(prefix) { "runtime" } else { "file" }.to_owned(),
            })
            .collect()
    }

    fn limit_views(&self) -> Vec<LimitsView> {
        let services = self.effective.services.iter().map(|service| &service.spec);
        services
            .map(|spec| LimitsView {
                service: spec.name.to_string(),
                limits: spec.guard.limits,
                origin: if self.changes.limits(&spec.name).is_some() { "runtime" } else { "file" }.to_owned(),
                allow: spec.guard.allow.iter().copied().collect(),
            })
            .collect()
    }

    /// Marks limits that were set at run time, and adds the lists' changes.
    pub(super) fn mark_firewall_changes(&self, settings: &mut Vec<SettingView>) {
        for service in &self.effective.services {
            let Some(patch) = self.changes.limits(&service.spec.name) else { continue };
            let prefix = format!("service.{}.limits.", service.spec.name);
            let set = patch.rates().into_iter().filter(|(_, rate)| rate.is_some()).map(|(key, _)| key);
            let keys: Vec<_> = set.chain(patch.burst_ms.map(|_| "burst")).collect();
            for setting in settings.iter_mut() {
                if setting.key.strip_prefix(&prefix).is_some_and(|key| keys.contains(&key)) {
                    "runtime".clone_into(&mut setting.origin);
                }
            }
        }
        let changes = self.changes.lists();
        let lists =
            [("denied", &changes.denied), ("allowed", &changes.allowed), ("removed", &changes.removed)];
        for (key, prefixes) in lists.into_iter().filter(|(_, prefixes)| !prefixes.is_empty()) {
            settings.push(SettingView {
                key: format!("firewall.{key}"),
                value: serde_json::json!(prefixes),
                origin: "runtime".to_owned(),
                by: None,
                at: None,
            });
        }
    }
}
