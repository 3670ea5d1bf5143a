//! Rings of a start, made on another CPU while the kernel checks the program: each of the two takes as long as everything else
//! where there are thousands of services.

use crate::{
    config::Config,
    maglev::{self, Ahead},
    model::{Admin, Health, HealthCheck},
    state::{self, EffectiveService, RuntimeChanges},
};
use std::thread;

/// What `first` gives, and the rings of the services if all backends that may take new flows do. Others are made when it is
/// known who does.
pub(super) fn beside<T>(config: &Config, changes: &RuntimeChanges, first: impl FnOnce() -> T) -> (T, Ahead) {
    thread::scope(|scope| {
        let rings = scope.spawn(|| {
            let effective = state::apply(&config.services, changes);
            let hopeful = effective.services.iter().filter(|service| {
                let health = &service.spec.health;
                health.check == HealthCheck::None || health.initial != Health::Down
            });
            Ahead::make(hopeful.map(|service| (service.spec.seed, service.ring_size(), members(service))))
        });
        let first = first();
        (first, rings.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn members(service: &EffectiveService) -> Vec<maglev::Member> {
    let member = |backend: &state::EffectiveBackend| {
        let takes_new = backend.admin == Admin::Enabled && !backend.spec.backup;
        let weight = if takes_new { backend.spec.weight } else { 0 };
        maglev::Member::new(maglev::key_of(&backend.spec), weight)
    };
    service.backends.iter().map(member).collect()
}
