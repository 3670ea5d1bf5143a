//! From a snapshot to text, in both formats a Prometheus server may ask for. Pure.

use super::{
    families::{self, Family},
    instruments::Instruments,
    source::{Snapshot, attached},
};
use crate::{
    control::api::{BackendView, ServiceView},
    model::{Admin, Health, ServiceState},
};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder, NoLabelSet,
        text::encode as encode_text,
    },
    registry::Registry,
};
use std::{collections::BTreeSet, fmt, sync::Arc};

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4, which every scraper and every browser reads.
    Text,
}

impl Format {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What to answer to the given `Accept` header (RFC 9110, section 12.5.1): OpenMetrics where it is
    /// asked for by name and not liked less than plain text, else text, also where nothing is said.
    pub fn negotiate(accept: Option<&str>) -> Self {
        // Quality in thousandths; a malformed weight counts as none given.
        let mut openmetrics = 0;
        let mut text = 0;
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts
                .find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")))
                .and_then(|q| q.parse::<f32>().ok())
                .filter(|q| (0.0..=1.0).contains(q))
                .map_or(1000, |q| (q * 1000.0) as u32);
            match media.as_str() {
                "application/openmetrics-text" => openmetrics = openmetrics.max(quality),
                "text/plain" => text = text.max(quality),
                _ => {}
            }
        }
        if openmetrics > 0 && openmetrics >= text { Self::OpenMetrics } else { Self::Text }
    }
}

/// The whole exposition.
pub fn encode(
    snapshot: Arc<Snapshot>,
    instruments: Instruments,
    format: Format,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { snapshot, instruments }));
    let mut openmetrics = String::new();
    encode_text(&mut openmetrics, &registry)?;
    Ok(match format {
        Format::OpenMetrics => openmetrics,
        Format::Text => to_text(&openmetrics),
    })
}

#[derive(Debug)]
struct Scrape {
    snapshot: Arc<Snapshot>,
    instruments: Instruments,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.node(&mut encoder)?;
        self.services(&mut encoder)?;
        self.backends(&mut encoder)?;
        self.health(&mut encoder)?;
        let drops = self.snapshot.drops.iter().map(|row| ([row.reason.as_str()], row.packets));
        counters(&mut encoder, &families::DROPS, drops)?;
        super::pair::encode(&self.snapshot, &mut encoder)?;
        super::bfd::encode(&self.snapshot, &mut encoder)?;
        self.instruments.sync.encode(&mut encoder)?;
        super::link::encode(&self.snapshot, &mut encoder)?;
        super::bgp::encode(&self.snapshot, &mut encoder)?;
        super::fleet::encode(&self.snapshot, &mut encoder)?;
        super::pulse_encode::encode(&self.snapshot, &self.instruments, &mut encoder)
    }
}

impl Scrape {
    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.snapshot.status;
        info(encoder, &families::BUILD, [&status.version, &status.abi, &status.program])?;
        info(encoder, &families::NODE, [&status.node, &status.kernel])?;
        gauge(encoder, &families::UPTIME, &status.uptime_seconds)?;
        info(encoder, &families::CONFIG, [&status.config_file, &status.config_hash])?;
        gauge(encoder, &families::CONFIG_RUNTIME_CHANGES, &status.runtime_changes)?;
        let reloads = &self.instruments.reloads;
        let results = [(["applied"], reloads.applied()), (["refused"], reloads.refused())];
        counters(encoder, &families::CONFIG_RELOADS, results)?;
        gauge(encoder, &families::CONFIG_LAST_RELOAD, &u32::from(reloads.last_successful()))?;
        let interfaces = status
            .interfaces
            .iter()
            .map(|row| ([row.name.as_str(), row.mode.as_str()], u32::from(attached(row))));
        gauges(encoder, &families::INTERFACE_ATTACHED, interfaces)?;
        gauge(encoder, &families::MAP_MEMORY, &status.map_bytes)?;
        gauge(encoder, &families::FLOWS, &status.tracked_flows)?;
        gauge(encoder, &families::HALF_OPEN_FLOWS, &status.half_open_flows)?;
        counter(encoder, &families::REFUSED_FLOWS, status.refused_flows)?;
        let lists = [("deny", status.firewall.denied), ("allow", status.firewall.allowed)];
        gauges(encoder, &families::FIREWALL_PREFIXES, lists.map(|(list, count)| ([list], count as u64)))
    }

    fn services(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows = |value: fn(&ServiceView) -> u64| {
            self.snapshot.services.iter().map(move |row| ([row.name.as_str()], value(row)))
        };
        counters(encoder, &families::SERVICE_PACKETS, rows(|row| row.packets))?;
        counters(encoder, &families::SERVICE_BYTES, rows(|row| row.bytes))?;
        let slots = self.snapshot.services.iter().flat_map(|row| {
            let name = row.name.as_str();
            [
                ([name, "plain"], row.slots.plain),
                ([name, "moving"], row.slots.moving),
                ([name, "tracked"], row.slots.tracked),
            ]
        });
        gauges(encoder, &families::RING_SLOTS, slots)?;
        self.pools(encoder)?;
        self.nat(encoder)
    }

    fn pools(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let services = || self.snapshot.services.iter().map(|row| (row.name.as_str(), &row.pool));
        let up = services().map(|(name, pool)| ([name], u32::from(pool.up)));
        gauges(encoder, &families::SERVICE_UP, up)?;
        let words = ServiceState::ALL.map(|state| (state, state.to_string()));
        let states = services().flat_map(|(name, pool)| {
            words.iter().map(move |(state, word)| ([name, word.as_str()], u32::from(pool.state == *state)))
        });
        gauges(encoder, &families::SERVICE_STATE, states)?;
        let healthy = services().map(|(name, pool)| ([name], pool.healthy as u64));
        gauges(encoder, &families::SERVICE_HEALTHY, healthy)?;
        let runs = self.instruments.notify.rows().map(|(result, count)| ([result], count));
        counters(encoder, &families::NOTIFY_RUNS, runs)
    }

    fn nat(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let views =
            self.snapshot.services.iter().filter_map(|row| Some((row.name.as_str(), row.nat.as_ref()?)));
        let sessions = views.flat_map(|(name, nat)| {
            let answered = nat.sessions.saturating_sub(nat.unanswered);
            [([name, "answered"], answered), ([name, "unanswered"], nat.unanswered)]
        });
        gauges(encoder, &families::NAT_SESSIONS, sessions)?;
        let totals = &self.snapshot.status.nat;
        counter(encoder, &families::NAT_MADE, totals.made)?;
        counter(encoder, &families::NAT_EXHAUSTED, totals.exhausted)?;
        counter(encoder, &families::NAT_FULL, totals.full)
    }

    fn backends(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pairs = || {
            self.snapshot
                .services
                .iter()
                .flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
        };
        let rows = |value: fn(&BackendView) -> u64| {
            pairs().map(move |(service, row)| ([service.name.as_str(), row.name.as_str()], value(row)))
        };
        counters(encoder, &families::BACKEND_PACKETS, rows(|row| row.packets))?;
        counters(encoder, &families::BACKEND_BYTES, rows(|row| row.bytes))?;
        let up = |row: &BackendView| match row.health {
            Health::Up | Health::Unknown => 1,
            Health::Down => 0,
        };
        gauges(encoder, &families::BACKEND_UP, rows(up))?;
        gauges(encoder, &families::BACKEND_REACHABLE, rows(|row| row.reachable.into()))?;
        let states = pairs().flat_map(|(service, row)| {
            [("enabled", Admin::Enabled), ("draining", Admin::Draining), ("disabled", Admin::Disabled)].map(
                |(label, state)| {
                    ([service.name.as_str(), row.name.as_str(), label], u32::from(row.admin == state))
                },
            )
        });
        gauges(encoder, &families::BACKEND_ADMIN, states)?;
        gauges(encoder, &families::BACKEND_WEIGHT, rows(|row| row.weight.into()))?;
        gauges(encoder, &families::BACKEND_SLOTS, rows(|row| row.slots.into()))?;
        super::passive::encode(&self.snapshot, encoder)
    }

    fn health(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let services: BTreeSet<&str> = self.snapshot.services.iter().map(|row| row.name.as_str()).collect();
        // A check that was under way when its service was removed may still have reported.
        let mut rows = self.instruments.health.rows();
        rows.retain(|(service, ..)| services.contains(service.as_str()));
        let durations =
            rows.iter().map(|(service, kind, series)| ([service.as_str(), *kind], &series.duration));
        family(encoder, &families::HEALTH_DURATION, durations, |histogram, to| histogram.encode(to))?;
        let failures =
            rows.iter().map(|(service, kind, series)| ([service.as_str(), *kind], series.failures));
        counters(encoder, &families::HEALTH_FAILURES, failures)?;
        let prevented =
            rows.iter().map(|(service, kind, series)| ([service.as_str(), *kind], series.prevented));
        counters(encoder, &families::HEALTH_NOT_RUN, prevented)
    }
}

/// Writes one family: its metadata, then a row per set of label values.
pub(super) fn family<'a, const N: usize, T>(
    encoder: &mut DescriptorEncoder<'_>,
    family: &Family<N>,
    rows: impl IntoIterator<Item = ([&'a str; N], T)>,
    write: impl Fn(T, MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(family.family_name(), family.help, None, family.kind)?;
    for (values, value) in rows {
        write(value, metric.encode_family(&labels(family, values))?)?;
    }
    Ok(())
}

pub(super) fn counters<'a, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    what: &Family<N>,
    rows: impl IntoIterator<Item = ([&'a str; N], u64)>,
) -> fmt::Result {
    family(encoder, what, rows, |value, mut to| to.encode_counter::<NoLabelSet, _, u64>(&value, None))
}

pub(super) fn gauges<'a, const N: usize, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    what: &Family<N>,
    rows: impl IntoIterator<Item = ([&'a str; N], V)>,
) -> fmt::Result {
    family(encoder, what, rows, |value, mut to| to.encode_gauge(&value))
}

pub(super) fn gauge<V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    what: &Family<0>,
    value: &V,
) -> fmt::Result {
    encoder.encode_descriptor(what.family_name(), what.help, None, what.kind)?.encode_gauge(value)
}

pub(super) fn counter<V: EncodeCounterValue + Copy>(
    encoder: &mut DescriptorEncoder<'_>,
    what: &Family<0>,
    value: V,
) -> fmt::Result {
    let mut to = encoder.encode_descriptor(what.family_name(), what.help, None, what.kind)?;
    to.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

pub(super) fn info<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    what: &Family<N>,
    values: [&String; N],
) -> fmt::Result {
    // Not as the labels of a family: the encoder would put a stray comma before them.
    encoder
        .encode_descriptor(what.family_name(), what.help, None, what.kind)?
        .encode_info(&labels(what, values.map(String::as_str)))
}

fn labels<'a, const N: usize>(what: &Family<N>, values: [&'a str; N]) -> [(&'static str, &'a str); N] {
    std::array::from_fn(|at| (what.labels[at], values[at]))
}

/// OpenMetrics as Prometheus text 0.0.4: there, metadata carries the name of the samples (`_total`,
/// `_info`), an info is a gauge, an unknown untyped, and there is neither `# UNIT` nor `# EOF`. Sample
/// lines are the same in both as long as they carry neither exemplars nor timestamps, which ours don't.
fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, help)) = help.take_if(|(described, _)| *described == name) {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}
