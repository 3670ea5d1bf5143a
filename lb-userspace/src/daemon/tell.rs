//! What is told on the bus, and in which words.

use crate::{
    events::{Bus, Event, Kind, News},
    model::{ServiceSpec, VrrpName},
    state::{Difference, DifferenceKind, EffectiveService, RuntimeChanges, differences, differences_of},
};
use std::sync::Arc;

/// A virtual router has another state.
pub(super) fn pair(bus: &Bus, name: &VrrpName, from: &str, to: &str, reason: String) -> Arc<Event> {
    bus.publish(News {
        kind: Kind::Pair,
        service: name.to_string(),
        backend: None,
        from: from.to_owned(),
        to: to.to_owned(),
        reason,
    })
}

/// A runtime change was carried out: what it made otherwise, and then the change itself.
pub(super) fn change(
    bus: &Bus,
    before: &RuntimeChanges,
    after: &RuntimeChanges,
    file: &[ServiceSpec],
    message: &str,
    by: &str,
) {
    tell_all(bus, differences_of(file, before, after), &format!("by {by}"));
    saved(bus, before, after, message, by);
}

/// The runtime state has another revision, and the same is in force.
pub(super) fn saved(bus: &Bus, before: &RuntimeChanges, after: &RuntimeChanges, message: &str, by: &str) {
    bus.publish(News {
        kind: Kind::Change,
        service: String::new(),
        backend: None,
        from: before.revision().to_string(),
        to: after.revision().to_string(),
        reason: format!("{message}, by {by}"),
    });
}

/// The configuration was read again.
pub(super) fn reload(bus: &Bus, before: &[EffectiveService], after: &[EffectiveService], settings: usize) {
    tell_all(bus, differences(before, after), "reload");
    bus.publish(News {
        kind: Kind::Reload,
        service: String::new(),
        backend: None,
        from: "running".to_owned(),
        to: "running".to_owned(),
        reason: format!("{settings} settings changed"),
    });
}

fn tell_all(bus: &Bus, differences: Vec<Difference>, reason: &str) {
    for Difference { service, backend, kind } in differences {
        let (kind, from, to) = match kind {
            DifferenceKind::Added => (Kind::Backend, "absent".to_owned(), "added".to_owned()),
            DifferenceKind::Removed => (Kind::Backend, "present".to_owned(), "removed".to_owned()),
            DifferenceKind::Weight(from, to) => (Kind::Weight, from.to_string(), to.to_string()),
            DifferenceKind::Admin(from, to) => (Kind::Admin, from.to_string(), to.to_string()),
        };
        let (service, backend) = (service.to_string(), Some(backend.to_string()));
        bus.publish(News { kind, service, backend, from, to, reason: reason.to_owned() });
    }
}
