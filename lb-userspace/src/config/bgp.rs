//! `[bgp]`.

use super::{
    duration::format_duration,
    health::duration,
    reader::{Notes, Refusal, Section, Setting, text},
    schema,
    service::ServiceDraft,
};
use crate::model::{BgpSpec, DEFAULT_BGP_TABLE, ServiceName, Withdraw};
use serde_json::{Value, json};
use std::time::Duration;
use toml::de::DeTable;

const SERVICES: &str = "an array of names of services such as [\"www\"]";
const WITHDRAW: &[(&str, Withdraw)] = &[("no-quorum", Withdraw::NoQuorum), ("down", Withdraw::Down)];
const ON_STOP: &[(&str, bool)] = &[("withdraw", false), ("keep", true)];
/// `default`, `main` and `local`, in which the kernel looks packets up (ip-rule(8)).
const LOOKED_UP: [(u32, &str); 3] = [(253, "default"), (254, "main"), (255, "local")];

/// Time enough for every check to have had its say.
const DELAY: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(3_600);

/// What could be read of the section.
pub(super) struct BgpDraft<'a> {
    section: Section<'a>,
    table: Setting<u32>,
    services: Setting<Vec<(ServiceName, usize)>>,
    withdraw: Setting<Withdraw>,
    delay: Setting<Duration>,
    on_stop: Setting<bool>,
}

pub(super) fn read<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> BgpDraft<'a> {
    let section = Section::open(notes, table, at, "[bgp]", vec!["bgp".to_owned()], &schema::BGP);
    let name = |value: &str| {
        value.parse().map_err(|error: crate::model::NameError| Refusal::expected(SERVICES).but(error.why))
    };
    let services = if section.is_empty_array("services") {
        Setting::Absent
    } else {
        section.list("services", SERVICES, |value| name(text(value, SERVICES)?))
    };
    let draft = BgpDraft {
        table: section.integer("table", 1, u32::MAX.into()),
        services,
        withdraw: section.word("withdraw", WITHDRAW, &[]),
        delay: duration(&section, "delay", Duration::ZERO, LONGEST),
        on_stop: section.word("on_stop", ON_STOP, &[]),
        section,
    };
    if let Setting::Is(table, at) = &draft.table
        && let Some((_, name)) = LOOKED_UP.iter().find(|(number, _)| number == table)
    {
        let why = Refusal::expected(format!("a table of its own such as {DEFAULT_BGP_TABLE}"))
            .but(format!("this is the kernel's table `{name}`, where the routes would take packets away"));
        draft.section.refuse(*at, "table", format!("table = {table}"), why);
    }
    draft
}

impl BgpDraft<'_> {
    /// Notes names of services that there are none of.
    pub(super) fn check(&self, services: &[ServiceDraft<'_>]) {
        for (name, at) in self.services.value().into_iter().flatten() {
            let is_it = |service: &ServiceDraft<'_>| service.name.value() == Some(name);
            if !services.iter().any(is_it) {
                let why = Refusal::expected("the name of a [[service]]").but("there is none of this name");
                self.section.refuse(*at, "services", format!("\"{name}\""), why);
            }
        }
    }

    pub(super) fn build(self) -> BgpSpec {
        let services = self.services.clone().map(|names| names.into_iter().map(|(name, _)| name).collect());
        BgpSpec {
            table: self.section.pick("table", &self.table, DEFAULT_BGP_TABLE),
            services: self.section.pick("services", &services, Vec::new()),
            withdraw: self.section.pick("withdraw", &self.withdraw, Withdraw::default()),
            delay: self.section.pick("delay", &self.delay, DELAY),
            keep_on_stop: self.section.pick("on_stop", &self.on_stop, false),
        }
    }
}

/// Every setting: key and value, as in the file.
pub(super) fn entries(spec: &BgpSpec) -> Vec<(&'static str, Value)> {
    let withdraw =
        WITHDRAW.iter().find(|(_, withdraw)| *withdraw == spec.withdraw).map_or("", |(word, _)| word);
    let on_stop = ON_STOP.iter().find(|(_, keep)| *keep == spec.keep_on_stop).map_or("", |(word, _)| word);
    vec![
        ("table", json!(spec.table)),
        ("services", json!(spec.services)),
        ("withdraw", json!(withdraw)),
        ("delay", json!(format_duration(spec.delay))),
        ("on_stop", json!(on_stop)),
    ]
}
