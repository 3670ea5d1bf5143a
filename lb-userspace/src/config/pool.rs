//! What a service does when backends are missing: quorum, panic, rejection; and the commands that are told.

use super::{
    checks::{SYSTEM_USER, is_system_user},
    duration::format_duration,
    health::{command, duration},
    reader::{Notes, Refusal, Section, Setting},
    schema,
};
use crate::model::{HookSpec, MAX_BACKENDS, OnAllDown, PoolSpec};
use serde_json::{Value, json};
use std::time::Duration;

/// What `[defaults]` or one `[[service]]` says.
pub(super) struct PoolSettings {
    quorum_up: Setting<u32>,
    quorum_down: Setting<u32>,
    panic_threshold: Setting<u8>,
    on_all_down: Setting<OnAllDown>,
}

const PERCENT: &str = "a share from \"0%\" (never) to \"100%\"";

fn percent(text: &str) -> Result<u8, Refusal> {
    let number = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let percent = number.and_then(|digits| digits.parse().ok()).filter(|percent| *percent <= 100);
    percent.ok_or_else(|| Refusal::expected(PERCENT).but("write it like \"30%\""))
}

impl PoolSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self {
        quorum_up: Setting::Absent,
        quorum_down: Setting::Absent,
        panic_threshold: Setting::Absent,
        on_all_down: Setting::Absent,
    };

    pub(super) fn read(section: &Section<'_>) -> Self {
        let settings = Self {
            quorum_up: section.integer("quorum_up", 1, MAX_BACKENDS as i64),
            quorum_down: section.integer("quorum_down", 1, MAX_BACKENDS as i64),
            panic_threshold: section.text("panic_threshold", PERCENT, percent),
            on_all_down: section.word(
                "on_all_down",
                &[("drop", OnAllDown::Drop), ("reject", OnAllDown::Reject)],
                &[],
            ),
        };
        if let (Some((up, line)), Some((down, at))) = (settings.quorum_up.get(), settings.quorum_down.get())
            && down > up
        {
            let line = section.notes.line(line);
            let why = Refusal::expected(format!("at most quorum_up, {up} (line {line})"))
                .but("a service must not be down with more healthy backends than bring it up");
            section.refuse(at, "quorum_down", format!("quorum_down = {down}"), why);
        }
        settings
    }

    /// The settings of a service; one quorum without the other is both.
    pub(super) fn build(&self, section: &Section<'_>, defaults: &Self, notify: Vec<HookSpec>) -> PoolSpec {
        let built_in = PoolSpec::default();
        // A service's own number goes before a default of the other.
        let (up, down) = match (&self.quorum_up, &self.quorum_down) {
            (Setting::Absent, Setting::Absent) => (&defaults.quorum_up, &defaults.quorum_down),
            own => own,
        };
        let other = |of: &Setting<u32>| of.value().copied();
        let quorum_up = section.pick("quorum_up", up, other(down).unwrap_or(built_in.quorum_up));
        let quorum_down = section.pick("quorum_down", down, quorum_up);
        let own = &self.panic_threshold;
        PoolSpec {
            quorum_up,
            quorum_down,
            panic_threshold: section.pick("panic_threshold", own.or(&defaults.panic_threshold), 0),
            on_all_down: section.pick(
                "on_all_down",
                self.on_all_down.or(&defaults.on_all_down),
                built_in.on_all_down,
            ),
            notify,
        }
    }
}

/// Time a notify command has where none is set.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the commands of the file (`of` is none) or of a service.
pub(super) fn read_notify<'a>(
    notes: &'a Notes<'a>,
    tables: impl IntoIterator<Item = (&'a toml::de::DeTable<'a>, usize)>,
    of: Option<&Section<'a>>,
) -> Vec<HookSpec> {
    let schema = if of.is_none() { &schema::NOTIFY } else { &schema::SERVICE_NOTIFY };
    let tables = tables.into_iter().zip(1..);
    tables
        .filter_map(|((table, at), number)| {
            let part = ["notify".to_owned(), number.to_string()];
            let (place, path) = match of {
                None => (format!("notify #{number}"), part.to_vec()),
                Some(of) => (format!("{}, notify #{number}", of.place), [of.path.as_slice(), &part].concat()),
            };
            read_hook(&Section::open(notes, table, at, place, path, schema))
        })
        .collect()
}

fn read_hook(section: &Section<'_>) -> Option<HookSpec> {
    let command = command(section);
    if section.position("command").is_none() {
        section.missing("command", super::health::COMMAND);
    }
    let timeout = duration(section, "timeout", Duration::from_millis(10), Duration::from_secs(3600));
    let user = section.text("user", SYSTEM_USER, |text| match is_system_user(text) {
        true => Ok(text.to_owned()),
        false => Err(Refusal::expected(SYSTEM_USER)),
    });
    let timeout = section.pick("timeout", &timeout, TIMEOUT);
    let user = section.pick("user", &user, "nobody".to_owned());
    let words = command.value()?.clone();
    Some(HookSpec { command: section.pick("command", &command, words), timeout, user })
}

/// Keys and values of a service's settings.
pub(super) fn entries(spec: &PoolSpec) -> [(&'static str, Value); 4] {
    [
        ("quorum_up", json!(spec.quorum_up)),
        ("quorum_down", json!(spec.quorum_down)),
        ("panic_threshold", json!(format!("{}%", spec.panic_threshold))),
        ("on_all_down", json!(spec.on_all_down)),
    ]
}

/// Number, key and value of what commands say.
pub(super) fn notify_entries(hooks: &[HookSpec]) -> impl Iterator<Item = (String, &'static str, Value)> {
    hooks.iter().zip(1..).flat_map(|(hook, number): (_, u32)| {
        let entries = [
            ("command", json!(hook.command)),
            ("timeout", json!(format_duration(hook.timeout))),
            ("user", json!(hook.user)),
        ];
        entries.map(|(key, value)| (number.to_string(), key, value))
    })
}
