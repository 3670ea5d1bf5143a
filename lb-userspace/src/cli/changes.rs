//! `changes` and `reset`.

use super::{
    parse,
    table::{Align, printable, table},
};
use crate::{
    control::{changes::ChangesView, request::Reset},
    model::{BackendName, ServiceName},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub(super) const RESET_EXAMPLES: &str = "\
Examples:
  lbctl changes                 what would be dropped?
  lbctl reset www web1          of one backend: its weight, its state, its removal
  lbctl reset www               of a service: its backends and its limits
  lbctl reset                   everything, the firewall's lists included";

/// What `reset` drops.
#[derive(Debug, clap::Args)]
pub struct ResetOptions {
    #[command(flatten)]
    pub careful: super::gradual::Careful,
    /// Only the changes of this service
    #[arg(value_name = "SERVICE", value_parser = parse::service)]
    pub service: Option<ServiceName>,
    /// Only those of this backend of the service
    #[arg(value_name = "BACKEND", value_parser = parse::backend, requires = "service")]
    pub backend: Option<BackendName>,
}

impl ResetOptions {
    pub(super) fn request(&self) -> Reset {
        Reset { service: self.service.clone(), backend: self.backend.clone() }
    }
}

pub(super) fn render(view: &ChangesView) -> String {
    let head = format!("revision {}, kept in {}\n", view.revision, printable(&view.file));
    if view.changes.is_empty() {
        return head + "nothing is changed at run time: the configuration file alone counts\n";
    }
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows = view.changes.iter().map(|change| {
        let effect = change.without_effect.as_ref().map(|why| format!(" (without effect: {why})"));
        [
            dash(&change.service),
            dash(&change.backend),
            change.change.clone() + &effect.unwrap_or_default(),
            change.at.map_or_else(|| "-".to_owned(), date),
            dash(&change.by),
        ]
    });
    let columns = ["SERVICE", "BACKEND", "CHANGE", "WHEN", "BY"].map(|title| (title, Align::Left));
    head + &table(columns, rows)
}

/// ", by uid 0 (root) at 2026-11-21T18:00:00Z", as far as it is known.
pub(super) fn signature(by: Option<&str>, at: Option<u64>) -> String {
    let by = by.map(|by| format!(", by {by}")).unwrap_or_default();
    by + &at.map(|at| format!(" at {}", date(at))).unwrap_or_default()
}

/// UTC, as in RFC 3339.
fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{seconds} s after 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_and_when() {
        assert_eq!(signature(None, None), "");
        assert_eq!(signature(Some("uid 0"), Some(1_700_000_000)), ", by uid 0 at 2023-11-14T22:13:20Z");
        assert_eq!(date(u64::MAX), format!("{} s after 1970", u64::MAX));
    }
}
