//! What became of each line.

use super::Kind;
use std::{collections::BTreeSet, fmt};

/// What became of a directive that was not simply taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// lbd has it in another form, which is said.
    Differs,
    /// It is not in what was made.
    Left,
}

/// Something to know about a directive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// From 1.
    pub line: usize,
    /// The last line, where a whole section is meant.
    pub to: usize,
    pub fate: Fate,
    /// What stands there, in short.
    pub directive: String,
    /// Why, and what lbd does in its place.
    pub reason: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.to > self.line {
            write!(f, "lines {}-{}: ", self.line, self.to)?;
        } else {
            write!(f, "line {}: ", self.line)?;
        }
        let fate = match self.fate {
            Fate::Differs => "differs",
            Fate::Left => "left out",
        };
        write!(f, "{fate}: {}: {}", self.directive, self.reason)
    }
}

/// Where a directive stands: its first and its last line, from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lines {
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Lines {
    pub(super) fn one(line: usize) -> Self {
        Self { from: line, to: line }
    }
}

/// What became of the lines so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    remarks: BTreeSet<Remark>,
    mapped: BTreeSet<usize>,
}

impl Ledger {
    /// A line was taken over.
    pub(super) fn mapped(&mut self, line: usize) {
        self.mapped.insert(line);
    }

    /// A directive is not in what is made.
    pub(super) fn left(&mut self, lines: Lines, directive: &str, reason: impl Into<String>) {
        self.note(lines, Fate::Left, directive, reason.into());
    }

    /// A directive became something else.
    pub(super) fn differs(&mut self, lines: Lines, directive: &str, reason: impl Into<String>) {
        self.note(lines, Fate::Differs, directive, reason.into());
    }

    fn note(&mut self, lines: Lines, fate: Fate, directive: &str, reason: String) {
        let directive = shown(directive);
        self.remarks.insert(Remark { line: lines.from, to: lines.to, fate, directive, reason });
    }

    /// Remarks every line that holds something and of which nothing was said.
    pub(super) fn sweep(&mut self, kind: Kind, text: &str) {
        let comments: &[char] = if kind == Kind::Keepalived { &['#', '!'] } else { &['#'] };
        let mut said = self.mapped.clone();
        for remark in &self.remarks {
            said.extend(remark.line..=remark.to);
        }
        for (line, text) in text.lines().enumerate().map(|(i, text)| (i + 1, text.trim())) {
            let blank = text.is_empty() || text.starts_with(comments) || matches!(text, "{" | "}");
            if !blank && !said.contains(&line) {
                self.left(Lines::one(line), text, "not understood");
            }
        }
    }

    pub(super) fn finish(self) -> (Vec<Remark>, Vec<usize>) {
        (self.remarks.into_iter().collect(), self.mapped.into_iter().collect())
    }
}

/// Text of a directive on one line, not too long, that cannot talk to a terminal or end a comment.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = words.char_indices().nth(LONGEST) {
        words.truncate(cut);
        words.push('…');
    }
    words
        .chars()
        .map(|c| if c.is_control() || ('\u{200e}'..='\u{202e}').contains(&c) { '?' } else { c })
        .collect()
}
