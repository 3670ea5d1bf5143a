//! The families of the loop, of the control API, of the tables' use and of the process.

use super::{
    encode::{counter, counters, family, gauge, gauges, info},
    families::Family,
    instruments::Instruments,
    source::Snapshot,
};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::MetricType::{Counter, Gauge, Histogram, Info},
};
use std::{collections::BTreeSet, fmt};

static REQUEST: Family<1> = Family::new(
    Histogram,
    "lbd_control_request_duration_seconds",
    ["request"],
    "Time from a request on the control socket to its answer, by method and route; a change is in the maps by then.",
);
static WORK: Family<1> = Family::new(
    Histogram,
    "lbd_loop_work_seconds",
    ["work"],
    "Time that a piece of work held the loop of the daemon, by kind of work.",
);
static LATE: Family<0> = Family::new(
    Histogram,
    "lbd_loop_lateness_seconds",
    [],
    "How late the timer of the loop fired, each second: what anything else has to wait.",
);
static PROBES_LATE: Family<0> = Family::new(
    Histogram,
    "lbd_health_check_lateness_seconds",
    [],
    "How late health checks began, against their schedule.",
);
static CONVERGE: Family<0> = Family::new(
    Histogram,
    "lbd_converge_duration_seconds",
    [],
    "Time from a change of wishes, health or next hops to the maps written, planning included.",
);
static CONVERGE_FAILURES: Family<0> = Family::new(
    Counter,
    "lbd_converge_failures_total",
    [],
    "Changes that could not be carried out in the maps; forwarding goes on as before.",
);
static ACTIONS: Family<0> = Family::new(
    Histogram,
    "lbd_converge_actions",
    [],
    "Actions on the maps of one change; the slots of one service are one action.",
);
static SLOTS: Family<0> = Family::new(
    Histogram,
    "lbd_converge_slots",
    [],
    "Slots of rings that one change gave to another backend.",
);
static HEALTH: Family<2> = Family::new(
    Counter,
    "lbd_health_transitions_total",
    ["service", "state"],
    "Changes of the health of backends of the service, by the state entered: up or down.",
);
static HOPS: Family<1> = Family::new(
    Counter,
    "lbd_next_hop_changes_total",
    ["state"],
    "Next hops of backends that were found, changed included, or lost.",
);
static LINKS: Family<0> =
    Family::new(Counter, "lbd_link_changes_total", [], "Times that interfaces came, went or changed.");
static CHANGES: Family<1> = Family::new(
    Counter,
    "lbd_runtime_changes_total",
    ["result"],
    "Changes asked for at run time since the start, by result: applied or refused.",
);
static TABLE_ENTRIES: Family<1> = Family::new(
    Gauge,
    "lbd_table_entries",
    ["table"],
    "Entries of the tables of flows and sessions, as of some seconds ago.",
);
static TABLE_CAPACITY: Family<1> =
    Family::new(Gauge, "lbd_table_capacity", ["table"], "Entries that the table has room for.");
static SERVICES: Family<1> = Family::new(
    Info,
    "lbd_services_info",
    ["hash"],
    "Hash of the services in force, runtime changes included; both nodes of a pair should show the same.",
);

static CPU: Family<0> =
    Family::new(Counter, "process_cpu_seconds_total", [], "User and system CPU time of the daemon.");
static RESIDENT: Family<0> =
    Family::new(Gauge, "process_resident_memory_bytes", [], "Memory of the daemon that is resident.");
static VIRTUAL: Family<0> =
    Family::new(Gauge, "process_virtual_memory_bytes", [], "Size of the address space of the daemon.");
static OPEN_FDS: Family<0> =
    Family::new(Gauge, "process_open_fds", [], "File descriptors that the daemon has open.");
static MAX_FDS: Family<0> =
    Family::new(Gauge, "process_max_fds", [], "File descriptors that the daemon may have open.");
static START: Family<0> =
    Family::new(Gauge, "process_start_time_seconds", [], "Start of the daemon, in seconds since 1970 began.");

pub(super) fn encode(
    snapshot: &Snapshot,
    instruments: &Instruments,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    info(encoder, &SERVICES, [&snapshot.status.services_hash])?;
    let tables = || snapshot.status.tables.iter();
    gauges(encoder, &TABLE_ENTRIES, tables().map(|table| ([table.name.as_str()], table.entries)))?;
    gauges(encoder, &TABLE_CAPACITY, tables().map(|table| ([table.name.as_str()], table.capacity)))?;
    let pulse = &instruments.pulse;
    for (what, rows) in [(&REQUEST, instruments.requests.rows()), (&WORK, pulse.work.rows())] {
        let rows = rows.iter().map(|(label, histogram)| ([*label], histogram));
        family(encoder, what, rows, |histogram, to| histogram.encode(to))?;
    }
    let times = [&LATE, &PROBES_LATE, &CONVERGE].into_iter().zip(pulse.times());
    let plans = [&ACTIONS, &SLOTS].into_iter().zip(pulse.plans());
    for (what, histogram) in times.chain(plans) {
        // Not as a family, which would write an empty list of labels.
        histogram.encode(encoder.encode_descriptor(what.family_name(), what.help, None, what.kind)?)?;
    }
    let [failures, links] = pulse.counts();
    counter(encoder, &CONVERGE_FAILURES, failures)?;
    counter(encoder, &LINKS, links)?;
    // One that was removed may still have changed meanwhile.
    let services: BTreeSet<&str> = snapshot.services.iter().map(|row| row.name.as_str()).collect();
    let rows = pulse.health_rows();
    let health = rows
        .iter()
        .filter(|((service, _), _)| services.contains(service.as_str()))
        .map(|((service, state), count)| ([service.as_str(), *state], *count));
    counters(encoder, &HEALTH, health)?;
    let [hops, changes] = pulse.pairs();
    counters(encoder, &HOPS, [(["lost"], hops[0]), (["found"], hops[1])])?;
    counters(encoder, &CHANGES, [(["refused"], changes[0]), (["applied"], changes[1])])?;
    process(snapshot, encoder)
}

fn process(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Some(process) = &snapshot.process else { return Ok(()) };
    counter(encoder, &CPU, process.cpu_seconds)?;
    gauge(encoder, &RESIDENT, &process.resident_bytes)?;
    gauge(encoder, &VIRTUAL, &process.virtual_bytes)?;
    gauge(encoder, &OPEN_FDS, &process.open_files)?;
    gauge(encoder, &MAX_FDS, &process.max_files)?;
    gauge(encoder, &START, &process.started)
}
