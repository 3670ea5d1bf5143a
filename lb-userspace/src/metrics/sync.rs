//! The families of the mirror of flows.

use super::{
    encode::{counter, counters, gauges},
    families::Family,
};
use prometheus_client::{
    encoding::DescriptorEncoder,
    metrics::MetricType::{Counter, Gauge},
};
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

static STATE: Family<1> = Family::new(
    Gauge,
    "lbd_sync_state",
    ["state"],
    "Peers by how far their flow state has come: all of it (complete), or not yet (partial).",
);
static SLOTS: Family<1> = Family::new(
    Gauge,
    "lbd_sync_slots",
    ["state"],
    "1 for who decides over the slots that the nodes of a fleet share: this node for all (leads), the authority (follows), nobody for a while (holds), each node for itself (alone). All 0: nothing is shared.",
);
static LAG: Family<1> = Family::new(
    Gauge,
    "lbd_sync_lag_seconds",
    ["direction"],
    "send: age of the state that the peer was last told completely. receive: time since the peer was last heard.",
);
static SENT: Family<1> = Family::new(
    Counter,
    "lbd_sync_entries_sent_total",
    ["change"],
    "Entries of the flow tables told to the peer (put: new, changed or refreshed; gone).",
);
static RECEIVED: Family<1> =
    Family::new(Counter, "lbd_sync_entries_received_total", ["change"], "The same, received from the peer.");
static DROPPED: Family<1> = Family::new(
    Counter,
    "lbd_sync_entries_dropped_total",
    ["reason"],
    "Entries from the peer that this node has no use for: no such service, ring size or seed (service), no such backend (backend), too many (full), master itself (authority).",
);
static ENTRIES: Family<1> = Family::new(
    Gauge,
    "lbd_sync_entries",
    ["side"],
    "Entries that the peer has of this node (told), and this node of the peer (held).",
);
static REFUSED: Family<0> = Family::new(
    Counter,
    "lbd_sync_frames_refused_total",
    [],
    "Frames of flow state that made no sense or were of a version too far away.",
);
static FAILED: Family<0> = Family::new(
    Counter,
    "lbd_sync_write_failures_total",
    [],
    "Times that entries of the peer could not be written to the flow tables.",
);
static ROUNDS: Family<0> = Family::new(
    Counter,
    "lbd_sync_rounds_total",
    [],
    "Looks at the flow tables for what the peer does not know.",
);

const DECIDES: [&str; 4] = ["leads", "follows", "holds", "alone"];
const REASONS: [&str; 4] = ["service", "backend", "full", "authority"];

/// Counted by the mirror.
#[derive(Debug, Default)]
pub struct SyncMetrics {
    pub peers: AtomicU64,
    pub complete: AtomicU64,
    /// Who decides over shared slots: 0 nothing is shared, 1 leads, 2 follows, 3 holds, 4 alone.
    pub decides: AtomicU64,
    pub send_lag_ms: AtomicU64,
    pub receive_lag_ms: AtomicU64,
    pub sent: AtomicU64,
    pub sent_gone: AtomicU64,
    pub received: AtomicU64,
    pub received_gone: AtomicU64,
    /// By reason: service, backend, full, authority.
    pub dropped: [AtomicU64; REASONS.len()],
    pub told: AtomicU64,
    pub held: AtomicU64,
    pub refused: AtomicU64,
    pub failed: AtomicU64,
    pub rounds: AtomicU64,
}

impl SyncMetrics {
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let (peers, complete) = (of(&self.peers), of(&self.complete));
        let states = [(["complete"], complete), (["partial"], peers.saturating_sub(complete))];
        gauges(encoder, &STATE, states)?;
        let decides = of(&self.decides);
        let slots = DECIDES.into_iter().zip(1..).map(|(name, n)| ([name], u64::from(decides == n)));
        gauges(encoder, &SLOTS, slots)?;
        let seconds = |value: &AtomicU64| of(value) as f64 / 1000.0;
        let lags = [(["send"], seconds(&self.send_lag_ms)), (["receive"], seconds(&self.receive_lag_ms))];
        gauges(encoder, &LAG, lags)?;
        counters(encoder, &SENT, [(["put"], of(&self.sent)), (["gone"], of(&self.sent_gone))])?;
        counters(encoder, &RECEIVED, [(["put"], of(&self.received)), (["gone"], of(&self.received_gone))])?;
        let dropped = REASONS.into_iter().zip(&self.dropped);
        counters(encoder, &DROPPED, dropped.map(|(reason, count)| ([reason], of(count))))?;
        gauges(encoder, &ENTRIES, [(["told"], of(&self.told)), (["held"], of(&self.held))])?;
        counter(encoder, &REFUSED, of(&self.refused))?;
        counter(encoder, &FAILED, of(&self.failed))?;
        counter(encoder, &ROUNDS, of(&self.rounds))
    }
}
