//! `slow_start` and `max_disruption`, of a service and of `[defaults]`.

use super::{
    duration::format_duration,
    health::duration,
    reader::{Refusal, Section, Setting},
};
use crate::model::GradualSpec;
use serde_json::{Value, json};
use std::time::Duration;

const PERCENT: &str = "a share like \"10%\", from \"0%\" to \"100%\" (no limit)";

/// What `[defaults]` or one `[[service]]` says.
pub(super) struct GradualSettings {
    slow_start: Setting<Duration>,
    max_disruption: Setting<u8>,
}

impl GradualSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self { slow_start: Setting::Absent, max_disruption: Setting::Absent };

    pub(super) fn read(section: &Section<'_>) -> Self {
        let day = Duration::from_secs(86_400);
        Self {
            slow_start: duration(section, "slow_start", Duration::ZERO, day),
            max_disruption: section.text("max_disruption", PERCENT, percent),
        }
    }

    pub(super) fn build(&self, section: &Section<'_>, defaults: &Self) -> GradualSpec {
        let most = self.max_disruption.or(&defaults.max_disruption);
        let most = section.pick("max_disruption", most, 100);
        GradualSpec {
            slow_start: section.pick("slow_start", self.slow_start.or(&defaults.slow_start), Duration::ZERO),
            max_disruption: (most < 100).then_some(most),
        }
    }
}

fn percent(text: &str) -> Result<u8, Refusal> {
    let digits = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|d| d.parse().ok()).filter(|n| *n <= 100).ok_or_else(|| Refusal::expected(PERCENT))
}

/// What is not the default, as settings.
pub(super) fn entries(spec: &GradualSpec) -> Vec<(&'static str, Value)> {
    let slow = (!spec.slow_start.is_zero()).then(|| ("slow_start", json!(format_duration(spec.slow_start))));
    let most = spec.max_disruption.map(|most| ("max_disruption", json!(format!("{most}%"))));
    slow.into_iter().chain(most).collect()
}
