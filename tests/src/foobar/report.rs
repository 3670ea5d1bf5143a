//! What was found: a line for each event, a line for each promise.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Context as _;

use super::load::Record;

/// What befell the requests during one event.
#[derive(Debug, Clone)]
pub struct Row {
    pub event: String,
    pub requests: usize,
    pub failed: usize,
    /// Those that were begun again because a connection was lost, whatever came of them then.
    pub retried: usize,
    /// The longest that a browser waited for one answer, in ms.
    pub longest: u64,
    /// Whether that is what was promised, and why not.
    pub verdict: Result<(), String>,
    pub note: String,
}

/// What befell the requests that were under way between two times (ms since 1970).
pub fn during(records: &[Record], from: u64, to: u64) -> Vec<&Record> {
    records.iter().filter(|r| r.began + r.millis >= from && r.began <= to).collect()
}

/// A row for an event, judged later.
pub fn row(event: &str, records: &[&Record]) -> Row {
    Row {
        event: event.to_owned(),
        requests: records.len(),
        failed: records.iter().filter(|r| !r.error.is_empty()).count(),
        retried: records.iter().filter(|r| r.retried > 0).count(),
        longest: records.iter().map(|r| r.millis).max().unwrap_or(0),
        verdict: Ok(()),
        note: String::new(),
    }
}

/// Kinds of errors with how often each was met, the most frequent first.
pub fn errors(records: &[&Record]) -> String {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for record in records.iter().filter(|r| !r.error.is_empty()) {
        *kinds.entry(format!("{} of {}: {}", record.what, record.address, record.error)).or_default() += 1;
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    kinds.iter().take(4).map(|(kind, count)| format!("{count} x {kind}")).collect::<Vec<_>>().join("; ")
}

/// What lost a connection and was begun again, the most frequent first.
pub fn retries(records: &[&Record]) -> String {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for record in records.iter().filter(|r| r.retried > 0) {
        let age = record.began.saturating_sub(record.given_up);
        let lost = if age > 0 { "on a kept connection" } else { "on a new connection" };
        *kinds.entry(format!("{} {lost}, served by {}", record.what, record.address)).or_default() += 1;
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    kinds.iter().take(4).map(|(kind, count)| format!("{count} x {kind}")).collect::<Vec<_>>().join("; ")
}

/// The table in Markdown, which people can read as it is.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| Event | Requests | Failed | Retried | Longest gap | As promised | |\n|---|---:|---:|---:|---:|---|---|\n",
    );
    for row in rows {
        let (verdict, why) = match &row.verdict {
            Ok(()) => ("yes", ""),
            Err(why) => ("NO", why.as_str()),
        };
        let note =
            [row.note.as_str(), why].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ");
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {:.1} s | {verdict} | {} |",
            row.event,
            row.requests,
            row.failed,
            row.retried,
            row.longest as f64 / 1000.0,
            note.replace('|', "/").replace('\n', " ")
        );
    }
    out
}

/// The value below which 99 of 100 lie.
pub fn p99(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get((values.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
}

/// Promises, each with what was found.
#[derive(Debug, Default)]
pub struct Findings {
    only: Option<String>,
    found: Vec<(String, Result<String, String>)>,
}

impl Findings {
    /// Of those with this text in their names; of all.
    pub fn only(text: Option<&str>) -> Self {
        Self { only: text.map(str::to_owned), found: Vec::new() }
    }

    /// Looks at a promise, takes it down, and tells at once.
    pub fn check(&mut self, promise: &str, look: impl FnOnce() -> anyhow::Result<String>) {
        if self.only.as_ref().is_some_and(|only| !promise.contains(only.as_str())) {
            return;
        }
        // What was asked for before somebody wanted the end; the rest is not looked at any more.
        if super::stop::asked() {
            return;
        }
        let outcome = look().map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(found) => eprintln!("\u{2713} {promise}: {found}"),
            Err(why) => eprintln!("\u{2717} {promise}: {why}"),
        }
        self.found.push((promise.to_owned(), outcome));
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn all_kept(&self) -> bool {
        self.found.iter().all(|(_, outcome)| outcome.is_ok())
    }

    pub fn table(&self) -> String {
        let mut out = String::from("| Promise | | Found |\n|---|---|---|\n");
        for (promise, outcome) in &self.found {
            let (mark, text) = match outcome {
                Ok(text) => ("kept", text),
                Err(text) => ("BROKEN", text),
            };
            let _ = writeln!(out, "| {promise} | {mark} | {} |", text.replace('|', "/").replace('\n', " "));
        }
        out
    }
}

/// The three load averages of this machine.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A line about a run: the command, the machine, and what else that did (the load averages before the run).
pub fn made_by(verb: &str, load: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!(
        "Made by `cargo xtask scenario foobar {verb}` ({build} build) on {cores} cores, Linux {}; load averages before it: {load}.\n",
        kernel.trim()
    )
}

/// Puts a text between the comments `<!-- NAME -->` and `<!-- end of NAME -->` of a document; a directory without that
/// document, or one without the comments, is left as it is.
pub fn document(file: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let Ok(old) = fs::read_to_string(file) else { return Ok(()) };
    if let Some(new) = replaced(&old, name, text) {
        fs::write(file, new).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("  {}: the table of {name}", file.display());
    }
    Ok(())
}

fn replaced(old: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (head, rest) = old.split_once(&begin)?;
    let (_, tail) = rest.split_once(&end)?;
    Some(format!("{head}{begin}{text}{end}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(began: u64, millis: u64, error: &str) -> Record {
        Record { began, millis, what: "look".to_owned(), error: error.to_owned(), ..Record::default() }
    }

    #[test]
    fn a_request_belongs_to_every_event_that_it_touches() {
        let again = Record { retried: 2, ..record(150, 10, "") };
        let records = [record(0, 10, ""), record(90, 20, "lost"), again, record(300, 5, "")];
        let touched = during(&records, 100, 200);
        assert_eq!(touched.len(), 2);
        let row = row("x", &touched);
        assert_eq!((row.requests, row.failed, row.retried, row.longest), (2, 1, 1, 20));
        assert!(table(&[row]).contains("| x | 2 | 1 | 1 | 0.0 s | yes |"));
    }

    #[test]
    fn a_table_is_put_in_its_place_in_a_document() {
        let old = "a\n<!-- chaos -->\nold\n<!-- end of chaos -->\nz\n";
        let new = replaced(old, "chaos", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- chaos -->\nnew\n<!-- end of chaos -->\nz\n");
        assert_eq!(replaced(old, "test", "new\n"), None);
        assert_eq!(replaced("<!-- chaos -->\nno end", "chaos", "new\n"), None);
    }

    #[test]
    fn the_99th_percentile_leaves_one_in_a_hundred_out() {
        assert_eq!(p99((1..=100).collect()), 99);
        assert_eq!(p99(vec![7]), 7);
        assert_eq!(p99(Vec::new()), 0);
    }

    #[test]
    fn a_broken_promise_is_said_and_counted() {
        let mut findings = Findings::default();
        findings.check("a", || Ok("fine".to_owned()));
        assert!(findings.all_kept());
        findings.check("b", || Err(anyhow::anyhow!("not | so")));
        assert!(!findings.all_kept());
        assert!(findings.table().contains("| b | BROKEN | not / so |"), "{}", findings.table());
    }
}
