//! Hashes over what is in force, runtime changes included: made when somebody asks, of what has changed since.

use super::engine::Engine;
use crate::config::{ServiceDigest, services_hash};

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    /// In the order of the services in force.
    services: Vec<Option<ServiceDigest>>,
    made: Option<Made>,
}

/// Hashes over what is in force.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// Of everything.
    pub config: String,
    /// Of the services alone: equal on both nodes of a pair.
    pub services: String,
}

impl Hashes {
    /// Anything may be another.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// These services may be others, and what is of no service.
    pub(super) fn forget_services(&mut self, places: &[usize]) {
        self.made = None;
        for place in places {
            if let Some(digest) = self.services.get_mut(*place) {
                *digest = None;
            }
        }
    }
}

impl Engine {
    /// Goes on with them while `more` says so; true once they are made.
    pub(super) fn make_hashes(&mut self, mut more: impl FnMut() -> bool) -> bool {
        if self.hashes.made.is_some() {
            return true;
        }
        let services = &self.effective.services;
        self.hashes.services.resize(services.len(), None);
        for (digest, service) in self.hashes.services.iter_mut().zip(services) {
            if digest.is_none() {
                *digest = Some(ServiceDigest::of(&service.spec));
                if !more() {
                    return false;
                }
            }
        }
        let digests =
            || services.iter().map(|service| &service.spec.name).zip(self.hashes.services.iter().flatten());
        let mut config = self.config.without_services();
        config.firewall = self.firewall.hashed(&config.firewall, self.changes.lists());
        self.hashes.made =
            Some(Made { config: config.hash_with(digests()), services: services_hash(digests()) });
        true
    }

    /// All of them, now.
    pub(super) fn hashes(&mut self) -> Made {
        loop {
            match &self.hashes.made {
                Some(made) => return made.clone(),
                None => _ = self.make_hashes(|| true),
            }
        }
    }
}
