//! What a takeover costs, in short; `cargo xtask bench failover` is the long form.

use std::time::Duration;

use lb_tests::{
    failover::{Bars, bench, nodes::Fault},
    require,
    skip::Need,
};

/// A busy machine of two cores may be late by so much; what is asked is whether a takeover works at all as promised.
const SLACK_MS: f64 = 150.0;

fn outages(interval: Duration, faults: &[Fault]) {
    let options = bench::Options {
        intervals: vec![interval],
        runs: 2,
        json: None,
        only: None,
        faults: faults.to_vec(),
        no_sync: false,
        assert: false,
    };
    let rows = bench::measure(&options, &mut |line| eprintln!("{line}")).expect("figures");
    assert_eq!(rows.iter().filter(|row| row.product == "lbd").count(), 2 * faults.len());
    for row in &rows {
        eprintln!("{} {} {}: {:?} ms", row.product, row.fault.name(), row.probe, row.outages_ms);
        // Whatever happened, the pair came back, and something was measured in every run.
        assert_eq!(row.outages_ms.len(), 2, "{row:?}");
    }
    let bars = Bars { slack_ms: SLACK_MS, ..Bars::default() };
    let missed = bars.missed(&rows);
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn a_takeover_at_ten_milliseconds() {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("keepalived"));
    outages(
        Duration::from_millis(10),
        &[Fault::Gone, Fault::Silent, Fault::Term, Fault::Failover, Fault::Preempt],
    );
}

#[test]
fn a_takeover_at_a_hundred_milliseconds() {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("keepalived"));
    outages(Duration::from_millis(100), &[Fault::Link, Fault::Term]);
}
