//! `[service.passive]` and `[defaults.passive]`.

use super::{
    duration::format_duration,
    health::duration,
    reader::{Refusal, Section, Setting},
    schema::Schema,
    service::ServiceDraft,
};
use crate::model::{PassiveSpec, Protocol};
use std::time::Duration;

/// What one of the two sections says, or both.
#[derive(Debug, Clone)]
pub(super) struct PassiveSettings {
    enabled: Setting<bool>,
    interval: Setting<Duration>,
    windows: Setting<u32>,
    min_connections: Setting<u32>,
    threshold: Setting<u8>,
    max_ejected: Setting<u8>,
    ejection_time: Setting<Duration>,
    max_ejection_time: Setting<Duration>,
    /// Where the service's own section is.
    own: Option<usize>,
    /// There is a section, here or among the defaults.
    there: bool,
}

impl PassiveSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self {
        enabled: Setting::Absent,
        interval: Setting::Absent,
        windows: Setting::Absent,
        min_connections: Setting::Absent,
        threshold: Setting::Absent,
        max_ejected: Setting::Absent,
        ejection_time: Setting::Absent,
        max_ejection_time: Setting::Absent,
        own: None,
        there: false,
    };

    /// Reads the subsection `passive` of `parent`.
    pub(super) fn read(parent: &Section<'_>, schema: &'static Schema) -> Self {
        let Some((table, at)) = parent.table("passive") else { return Self::ABSENT };
        let place = match parent.path.first().map(String::as_str) {
            Some("service") => format!("{}, passive", parent.place),
            _ => schema.header.to_owned(),
        };
        let path = [parent.path.as_slice(), &["passive".to_owned()]].concat();
        let section = Section::open(parent.notes, table, at, place, path, schema);
        let (second, hour, day) =
            (Duration::from_secs(1), Duration::from_secs(3_600), Duration::from_secs(86_400));
        Self {
            enabled: section.switch("enabled"),
            interval: duration(&section, "interval", second, hour),
            windows: section.integer("windows", 1, 100),
            min_connections: section.integer("min_connections", 1, 1_000_000),
            threshold: section.integer("threshold", 1, 100),
            max_ejected: section.integer("max_ejected", 0, 100),
            ejection_time: duration(&section, "ejection_time", second, day),
            max_ejection_time: duration(&section, "max_ejection_time", second, day),
            own: Some(at),
            there: true,
        }
    }

    /// These, with `defaults` for what they leave out.
    pub(super) fn or(&self, defaults: &Self) -> Self {
        Self {
            enabled: self.enabled.or(&defaults.enabled).clone(),
            interval: self.interval.or(&defaults.interval).clone(),
            windows: self.windows.or(&defaults.windows).clone(),
            min_connections: self.min_connections.or(&defaults.min_connections).clone(),
            threshold: self.threshold.or(&defaults.threshold).clone(),
            max_ejected: self.max_ejected.or(&defaults.max_ejected).clone(),
            ejection_time: self.ejection_time.or(&defaults.ejection_time).clone(),
            max_ejection_time: self.max_ejection_time.or(&defaults.max_ejection_time).clone(),
            own: self.own,
            there: self.there || defaults.there,
        }
    }

    fn is_on(&self) -> bool {
        self.there && self.enabled.value().copied().unwrap_or(true)
    }

    /// The settings, if the service has passive checks; the places they come from are noted.
    pub(super) fn build(&self, service: &Section<'_>, protocol: Protocol) -> Option<PassiveSpec> {
        if !self.is_on() || protocol != Protocol::Tcp {
            return None;
        }
        let default = PassiveSpec::default();
        let ejection_time = pick(service, "ejection_time", &self.ejection_time, default.ejection_time);
        Some(PassiveSpec {
            interval: pick(service, "interval", &self.interval, default.interval),
            windows: pick(service, "windows", &self.windows, default.windows),
            min_connections: pick(service, "min_connections", &self.min_connections, default.min_connections),
            threshold: pick(service, "threshold", &self.threshold, default.threshold),
            max_ejected: pick(service, "max_ejected", &self.max_ejected, default.max_ejected),
            ejection_time,
            max_ejection_time: pick(
                service,
                "max_ejection_time",
                &self.max_ejection_time,
                default.max_ejection_time.max(ejection_time),
            ),
        })
    }
}

/// The value, its place in the file noted; or the default.
fn pick<T: Clone>(service: &Section<'_>, key: &str, setting: &Setting<T>, default: T) -> T {
    let Some((value, at)) = setting.get() else { return default };
    let path = service.path.iter().map(String::as_str).chain(["passive", key]);
    service.notes.origin(path, at);
    value.clone()
}

/// Notes sections that are of no use, and times that contradict each other.
pub(super) fn check(service: &ServiceDraft<'_>) {
    let passive = &service.passive;
    if !passive.is_on() {
        return;
    }
    if let (Some(at), Setting::Is(protocol @ (Protocol::Udp | Protocol::Quic), _)) =
        (passive.own, &service.protocol)
    {
        let why = Refusal::expected("protocol = \"tcp\" in its service")
            .but("only TCP has SYNs and resets to judge by; remove the section");
        let found = format!("a section [service.passive] with protocol = \"{protocol}\"");
        service.section.refuse(at, "passive", found, why);
    }
    let first = match &passive.ejection_time {
        Setting::Is(first, _) => *first,
        Setting::Absent => PassiveSpec::default().ejection_time,
        Setting::Refused => return,
    };
    if let Some((longest, at)) = passive.max_ejection_time.get()
        && *longest < first
    {
        let found = format!("max_ejection_time = \"{}\"", format_duration(*longest));
        let why = Refusal::expected(format!("at least ejection_time, \"{}\"", format_duration(first)));
        service.section.refuse(at, "passive.max_ejection_time", found, why);
    }
}
