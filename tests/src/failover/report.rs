//! Outages as a table, as JSON, and held against what was promised.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use super::nodes::Fault;

/// What one fault cost one product at one interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub fault: Fault,
    pub interval_ms: u64,
    /// `lbd` or `keepalived`.
    pub product: &'static str,
    /// `address`, by pings, or `service`, by datagrams that are echoed by a backend.
    pub probe: &'static str,
    pub median_ms: f64,
    pub max_ms: f64,
    /// Every run's outage, in order.
    pub outages_ms: Vec<f64>,
    /// Probes never answered, over all runs.
    pub lost: usize,
    /// Runs after which both nodes answered for the address.
    pub two_answer: usize,
    /// Runs that began with the router still sending to the second node, which had yielded: nobody had told it.
    pub stuck: usize,
    /// Runs that were repeated since the prober itself was late.
    pub disturbed: usize,
}

impl Row {
    pub fn outage(&mut self, outage: Duration) {
        self.outages_ms.push((outage.as_secs_f64() * 1e5).round() / 100.0);
        let mut sorted = self.outages_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        self.median_ms = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        self.max_ms = sorted.last().copied().unwrap_or_default();
    }
}

/// What must hold of medians.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bars {
    /// Times what keepalived took in the same run.
    pub ratio: f64,
    /// What a prober of one probe a millisecond cannot tell from nothing.
    pub resolution_ms: f64,
    /// Added to every bar: what a busy machine may take.
    pub slack_ms: f64,
    /// Both nodes of lbd have a link of their own, with heartbeats every 10 ms.
    pub linked: bool,
}

impl Default for Bars {
    fn default() -> Self {
        Self { ratio: 1.1, resolution_ms: 2.0, slack_ms: 0.0, linked: false }
    }
}

impl Bars {
    /// The most that a fault may cost, in milliseconds; none where only keepalived's figure counts.
    fn limit(self, fault: Fault, interval_ms: u64) -> Option<f64> {
        let limit = match (fault, interval_ms) {
            (Fault::Term | Fault::Failover | Fault::Preempt, _) => 3.0,
            // The dataplane goes on.
            (Fault::Kill | Fault::Hang, _) => self.resolution_ms,
            (Fault::Gone | Fault::Silent | Fault::Link, 10) => 40.0,
            // Whatever the interval: the link is as dead as the rest of the host.
            (Fault::Gone, _) if self.linked => 50.0,
            (Fault::Gone | Fault::Silent | Fault::Link, 100) => 345.0,
            (Fault::Gone | Fault::Silent | Fault::Link, _) => return None,
        };
        Some(limit + self.slack_ms)
    }

    /// Why a row of lbd's is too much: one line each.
    pub fn missed(self, rows: &[Row]) -> Vec<String> {
        let mut missed = Vec::new();
        for row in rows.iter().filter(|row| row.product == "lbd") {
            let what = format!("{} at {} ms, {}", row.fault.name(), row.interval_ms, row.probe);
            if let Some(limit) = self.limit(row.fault, row.interval_ms)
                && row.median_ms > limit
            {
                missed.push(format!("{what}: {:.1} ms, at most {limit:.1} ms", row.median_ms));
            }
            let limit =
                peer(rows, row).map(|k| k.median_ms * self.ratio + self.resolution_ms + self.slack_ms);
            if let Some(limit) = limit
                && row.median_ms > limit
            {
                missed.push(format!("{what}: {:.1} ms, keepalived's allows {limit:.1} ms", row.median_ms));
            }
            if row.stuck > 0 {
                missed.push(format!(
                    "{what}: the router was not told of the return, before {} runs",
                    row.stuck
                ));
            }
            if row.two_answer > 0 {
                missed.push(format!("{what}: both nodes answered after {} runs", row.two_answer));
            }
        }
        missed
    }
}

/// keepalived's row of the same fault and interval.
fn peer<'r>(rows: &'r [Row], of: &Row) -> Option<&'r Row> {
    rows.iter()
        .find(|row| row.product == "keepalived" && row.fault == of.fault && row.interval_ms == of.interval_ms)
}

/// A line for each row; the ratio is to keepalived's address in the same run.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<9} {:>8} {:<11}{:<8} {:>9} {:>9} {:>6} {:>6} {:>10} {:>5}  {}\n",
        "fault",
        "interval",
        "product",
        "probe",
        "median ms",
        "max ms",
        "ratio",
        "lost",
        "two answer",
        "stuck",
        "disturbed"
    );
    for row in rows {
        let ratio = match peer(rows, row) {
            Some(k) if row.product == "lbd" && k.median_ms >= 0.5 => {
                format!("{:.2}", row.median_ms / k.median_ms)
            }
            _ => "-".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:<9} {:>5} ms {:<11}{:<8} {:>9.1} {:>9.1} {:>6} {:>6} {:>7}/{:<2} {:>5}  {}",
            row.fault.name(),
            row.interval_ms,
            row.product,
            row.probe,
            row.median_ms,
            row.max_ms,
            ratio,
            row.lost,
            row.two_answer,
            row.outages_ms.len(),
            row.stuck,
            row.disturbed
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(product: &'static str, fault: Fault, interval_ms: u64, outages: &[u64]) -> Row {
        let mut row = Row {
            fault,
            interval_ms,
            product,
            probe: "address",
            median_ms: 0.0,
            max_ms: 0.0,
            outages_ms: Vec::new(),
            lost: 0,
            two_answer: 0,
            stuck: 0,
            disturbed: 0,
        };
        outages.iter().for_each(|ms| row.outage(Duration::from_millis(*ms)));
        row
    }

    #[test]
    fn a_row_keeps_median_and_maximum() {
        let odd = row("lbd", Fault::Gone, 10, &[30, 90, 20]);
        assert_eq!((odd.median_ms, odd.max_ms), (30.0, 90.0));
        let even = row("lbd", Fault::Gone, 10, &[30, 90, 20, 40]);
        assert_eq!((even.median_ms, even.max_ms), (35.0, 90.0));
    }

    #[test]
    fn bars_are_of_the_fault_and_of_the_same_run() {
        let bars = Bars::default();
        assert!(bars.missed(&[row("lbd", Fault::Gone, 10, &[40])]).is_empty());
        assert_eq!(bars.missed(&[row("lbd", Fault::Gone, 10, &[41])]).len(), 1);
        assert!(bars.missed(&[row("keepalived", Fault::Gone, 10, &[90])]).is_empty(), "it promised nothing");
        // No bar of its own at 1 s, but not slower than the other.
        let both = |lbd, other| {
            [row("lbd", Fault::Gone, 1000, &[lbd]), row("keepalived", Fault::Gone, 1000, &[other])]
        };
        assert!(bars.missed(&both(3300, 3000)).is_empty());
        assert_eq!(bars.missed(&both(3303, 3000)).len(), 1);
        let linked = Bars { linked: true, ..bars };
        assert!(linked.missed(&[row("lbd", Fault::Gone, 100, &[50])]).is_empty());
        assert_eq!(linked.missed(&[row("lbd", Fault::Gone, 100, &[51])]).len(), 1);
        assert!(linked.missed(&[row("lbd", Fault::Silent, 100, &[345])]).is_empty(), "its link lives");
        let mut two = row("lbd", Fault::Kill, 10, &[0]);
        two.two_answer = 1;
        assert_eq!(bars.missed(&[two]).len(), 1);
    }

    #[test]
    fn the_table_has_a_line_for_each_row() {
        let rows = [row("lbd", Fault::Gone, 10, &[30]), row("keepalived", Fault::Gone, 10, &[60])];
        let text = table(&rows);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains(" 0.50 "), "{text}");
    }
}
