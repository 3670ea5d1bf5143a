//! The files that are imported as one text, and where each of its lines stands.

use super::{
    Remark,
    ledger::{Ledger, Lines},
};

/// One text made of files, in the order in which the other program reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    names: Vec<String>,
    text: String,
    /// Of each line its file and its number there, from 1.
    places: Vec<(usize, usize)>,
    /// Lines that name files and were not followed, and why.
    refused: Vec<(usize, String, String)>,
}

impl Texts {
    /// A single file. `name` is for messages.
    #[must_use]
    pub fn one(name: &str, text: &str) -> Self {
        let mut texts = Self::default();
        let file = texts.file(name);
        for (number, line) in text.lines().enumerate() {
            texts.push(file, number + 1, line);
        }
        texts
    }

    /// One more file; gives its number back.
    pub fn file(&mut self, name: &str) -> usize {
        self.names.push(name.to_owned());
        self.names.len() - 1
    }

    /// The next line, which stands in that line of that file.
    pub fn push(&mut self, file: usize, number: usize, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.places.push((file, number));
    }

    /// A line that named files; they follow, unless there is a reason why not.
    pub fn include(&mut self, file: usize, number: usize, line: &str, refused: Option<String>) {
        // A comment, to every reader.
        self.push(file, number, &format!("# {line}"));
        let place = self.places.len();
        self.refused.extend(refused.map(|why| (place, line.to_owned(), why)));
    }

    /// Bytes so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.text.len()
    }

    /// Files so far.
    #[must_use]
    pub fn files(&self) -> usize {
        self.names.len()
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn note_refused(&self, ledger: &mut Ledger) {
        for (line, directive, why) in &self.refused {
            ledger.left(Lines::one(*line), directive, why.clone());
        }
    }

    /// The first file, and how many more.
    pub(super) fn title(&self) -> String {
        let first = self.names.first().map_or("", String::as_str);
        match self.names.len() {
            0 | 1 => first.to_owned(),
            n => format!("{first} and {} more", n - 1),
        }
    }

    fn place(&self, line: usize) -> Option<(&str, usize)> {
        let (file, number) = *self.places.get(line.checked_sub(1)?)?;
        Some((self.names[file].as_str(), number))
    }

    /// `line 7`, with its file where there are several.
    pub(super) fn line(&self, line: usize) -> String {
        match self.place(line) {
            Some((name, number)) if self.names.len() > 1 => format!("{name}, line {number}"),
            Some((_, number)) => format!("line {number}"),
            None => format!("line {line}"),
        }
    }

    /// A remark with the lines of its own file, and that file's name before it.
    #[must_use]
    pub fn tell(&self, remark: &Remark) -> (String, String) {
        let first = self.names.first().map_or("", String::as_str);
        let Some((name, from)) = self.place(remark.line) else {
            return (first.to_owned(), remark.to_string());
        };
        // A section may end in a file that it includes, or begin in one.
        let to = self.place(remark.to).filter(|(other, _)| *other == name).map_or(from, |(_, to)| to);
        let shown = Remark { line: from, to: to.max(from), ..remark.clone() };
        (name.to_owned(), shown.to_string())
    }
}
