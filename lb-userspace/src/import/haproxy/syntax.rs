//! The words of `haproxy.cfg` (section 2.2 of its manual) with their lines.

use super::super::ledger::{Ledger, Lines};

/// A line that says something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1; 0 for none.
    pub(super) number: usize,
    pub(super) words: Vec<String>,
}

impl Line {
    /// A word, empty if there are fewer.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    pub(super) fn text(&self) -> String {
        self.words.join(" ")
    }

    pub(super) fn lines(&self) -> Lines {
        Lines::one(self.number)
    }
}

#[derive(Debug, Default)]
pub(super) struct Section {
    /// Empty for what stands before the first one.
    pub(super) head: Line,
    pub(super) lines: Vec<Line>,
}

impl Section {
    pub(super) fn lines(&self) -> Lines {
        let last = self.lines.last().map_or(self.head.number, |line| line.number);
        Lines { from: self.head.number, to: last }
    }
}

/// Words that begin a section.
const SECTIONS: [&str; 20] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "cache",
    "resolvers",
    "userlist",
    "mailers",
    "ring",
    "program",
    "http-errors",
    "fcgi-app",
    "crt-store",
    "log-forward",
    "log-profile",
    "traces",
    "acme",
    "healthcheck",
];

pub(super) fn sections(text: &str, ledger: &mut Ledger) -> Vec<Section> {
    let mut sections = vec![Section::default()];
    for (number, text) in text.lines().enumerate().map(|(i, text)| (i + 1, text)) {
        let words = words(text);
        let Some(first) = words.first() else { continue };
        let line = Line { number, words: words.clone() };
        if first.starts_with('.') {
            ledger.left(line.lines(), &line.text(), "lbctl knows no conditions: both sides of it are read");
        } else if SECTIONS.contains(&first.as_str()) {
            sections.push(Section { head: line, lines: Vec::new() });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(line);
        }
    }
    sections
}

/// The words of a line: quotes and backslashes as a shell has them, `#` begins a comment.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().extend(chars.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// A time as haproxy has it: a number with its unit, milliseconds without; whole in microseconds.
pub(super) fn time(text: &str) -> Option<std::time::Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let micros = match &text[digits..] {
        "us" => 1,
        "" | "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    // Whole milliseconds are all that lbd writes.
    let millis = number.checked_mul(micros)?.div_ceil(1000);
    (millis <= 366 * 86_400_000).then(|| std::time::Duration::from_millis(millis))
}
