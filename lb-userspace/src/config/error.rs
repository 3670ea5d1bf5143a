//! What is wrong with a configuration, in the operator's terms.

use std::fmt;

/// Everything found wrong with a configuration, in the order of the file. Nothing of it was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong. Shown as one line:
/// `lbd.toml:12:10: service 'www', backend 'web1': weight = 70000: expected an integer from 0 to 65535`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 if the problem is with the file as a whole.
    pub line: usize,
    /// In characters, from 1; 0 like `line`.
    pub column: usize,
    /// Dotted path of the setting, e.g. `service.www.backend.web1.weight`; empty for the file as a whole.
    pub key: String,
    /// The section in words, e.g. `service 'www', backend 'web1'`; empty at the top level.
    pub place: String,
    /// What stands there, e.g. `weight = 70000`.
    pub found: String,
    /// What should stand there, as a noun phrase.
    pub expected: Option<String>,
    /// What to do.
    pub advice: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", printable(&self.file))?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.place.is_empty() {
            write!(f, ": {}", self.place)?;
        }
        write!(f, ": {}", self.found)?;
        match (&self.expected, &self.advice) {
            (Some(expected), Some(advice)) => write!(f, ": expected {expected}; {advice}"),
            (Some(expected), None) => write!(f, ": expected {expected}"),
            (None, Some(advice)) => write!(f, ": {advice}"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The text cut to a length that can be read, with control characters escaped so that it stays on one
/// line and cannot talk to the terminal.
pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST {
            shown.push('…');
            break;
        }
        if c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Turns byte offsets into lines and columns.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// Line and column of a byte offset, both from 1; past the end counts as the end.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let at = self.text.floor_char_boundary(at);
        let line = self.line_of(at);
        let start = self.starts[line - 1];
        (line, self.text[start..at].chars().count() + 1)
    }

    /// Line of a byte offset, from 1.
    pub(super) fn line_of(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// The text of a line, numbered from 1.
    pub(super) fn line(&self, line: usize) -> &'a str {
        let start = self.starts.get(line.wrapping_sub(1)).copied().unwrap_or(self.text.len());
        self.text[start..].lines().next().unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let lines = Lines::new("ä=1\n\nxy");
        assert_eq!(lines.position(0), (1, 1));
        assert_eq!(lines.position(1), (1, 1), "inside a character is its beginning");
        assert_eq!(lines.position(2), (1, 2));
        assert_eq!(lines.position(4), (1, 4), "the line break belongs to its line");
        assert_eq!(lines.position(5), (2, 1));
        assert_eq!(lines.position(6), (3, 1));
        assert_eq!(lines.position(99), (3, 3));
        assert_eq!(Lines::new("").position(0), (1, 1));
        assert_eq!(lines.line(3), "xy");
        assert_eq!(lines.line(2), "");
        assert_eq!(lines.line(9), "");
    }

    #[test]
    fn what_is_shown_stays_on_one_line() {
        assert_eq!(printable("a\nb\u{1b}[2J\u{202e}"), "a\\nb\\u{1b}[2J\\u{202e}");
        assert_eq!(printable(&"x".repeat(200)).chars().count(), 81);
    }
}
