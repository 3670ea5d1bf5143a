//! Tables and text for a terminal.

use comfy_table::{CellAlignment, Table};
use std::fmt::Write as _;

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A table without lines, columns two spaces apart, nothing after the last character of a line.
pub fn table<const N: usize>(header: [(&str, Align); N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(header.map(|(title, _)| title));
    for row in rows {
        table.add_row(row.map(|cell| printable(&cell)));
    }
    for (column, (_, align)) in table.column_iter_mut().zip(header) {
        column.set_padding((0, 2));
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    let mut text = String::new();
    for line in table.lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// "name  value" lines, the values in one column.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{}", format!("{name:width$}  {}", printable(value)).trim_end());
        text
    })
}

/// Texts come from backends and files too: no control character, and so no escape sequence, of theirs
/// reaches the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The same for text of several lines.
pub fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// "3d 4h", "2h 5m", "5m 7s", "7s".
pub fn duration(seconds: f64) -> String {
    // Saturates; NaN is 0.
    let s = seconds as u64;
    let (days, hours, minutes) = (s / 86_400, s / 3_600 % 24, s / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{minutes}m {}s", s % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// "17.3 MiB".
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let decimals = usize::from(unit != "B");
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// "1 backend", "3 backends".
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let shown = [0.0, 59.9, 61.0, 3_725.0, 266_400.0, f64::NAN, -1.0].map(duration);
        assert_eq!(shown, ["0s", "59s", "1m 1s", "1h 2m", "3d 2h", "0s", "0s"]);
        let shown = [0, 1_023, 1_536, 18 << 20, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "18.0 MiB", "16777216.0 TiB"]);
        assert_eq!([count(1, "backend"), count(0, "backend")], ["1 backend", "0 backends"]);
    }

    #[test]
    fn no_escape_sequence_gets_through() {
        let text = table([("A", Align::Left)], [["\u{1b}[2Jx\ny\u{9b}".to_owned()]].into_iter());
        assert_eq!(text, "A\n?[2Jx?y?\n");
        assert_eq!(printable_lines("one\n\u{1b}two"), "one\n?two");
    }

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows = [
            ["a".to_owned(), "1".to_owned(), String::new()],
            ["bcd".to_owned(), "10000".to_owned(), "x".to_owned()],
        ];
        let text =
            table([("NAME", Align::Left), ("N", Align::Right), ("NOTE", Align::Left)], rows.into_iter());
        assert_eq!(text, "NAME      N  NOTE\na         1\nbcd   10000  x\n");
        assert_eq!(pairs(&[("a", "1".to_owned()), ("bcd", String::new())]), "a    1\nbcd\n");
    }
}
