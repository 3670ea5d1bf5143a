//! Reads a parsed TOML document section by section, and notes every problem with its place.

use super::{
    error::{ConfigError, Lines, Problem, printable},
    schema::Schema,
    settings::hash_path,
    suggest,
};
use std::{cell::RefCell, fmt};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Where problems and the lines of settings are noted. Byte offsets count through all files, each of which begins one
/// byte behind the one before.
pub(super) struct Notes<'a> {
    files: Vec<NotedFile<'a>>,
    problems: RefCell<Vec<(Option<usize>, Problem)>>,
    /// By the hash of the path.
    origins: RefCell<Vec<(u64, Place)>>,
}

struct NotedFile<'a> {
    name: &'a str,
    base: usize,
    lines: Lines<'a>,
}

/// Where a setting stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the file, from 0.
    pub(super) file: u32,
    /// From 1.
    pub(super) line: u32,
}

impl<'a> Notes<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self::of([(file, text)])
    }

    /// Of several files, by name and text; at least one.
    pub(super) fn of(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut base = 0;
        let noted = |(name, text): (&'a str, &'a str)| {
            let file = NotedFile { name, base, lines: Lines::new(text) };
            base += text.len() + 1;
            file
        };
        let (problems, origins) = Default::default();
        Self { files: files.into_iter().map(noted).collect(), problems, origins }
    }

    /// Where a file begins.
    pub(super) fn base(&self, file: usize) -> usize {
        self.files[file].base
    }

    /// Number of the file that a byte offset lies in.
    fn file_of(&self, at: usize) -> usize {
        self.files.partition_point(|file| file.base <= at) - 1
    }

    /// The line of a byte offset, in its file.
    pub(super) fn line(&self, at: usize) -> usize {
        let file = &self.files[self.file_of(at)];
        file.lines.line_of(at - file.base)
    }

    /// The line of a byte offset in words, for a reader of what stands at `from`: `line 7`, or `line 7 of b.toml`.
    pub(super) fn place(&self, at: usize, from: usize) -> String {
        let (file, line) = (self.file_of(at), self.line(at));
        if file == self.file_of(from) {
            format!("line {line}")
        } else {
            format!("line {line} of {}", printable(self.files[file].name))
        }
    }

    /// True if `at` lies in the header of a section that may occur only once, `[...]`.
    pub(super) fn in_single_header(&self, at: usize) -> bool {
        let file = &self.files[self.file_of(at)];
        let line = file.lines.line(self.line(at)).trim_start();
        line.starts_with('[') && !line.starts_with("[[")
    }

    /// Notes a problem.
    pub(super) fn problem(&self, at: Option<usize>, key: String, place: &str, found: String, why: Refusal) {
        let file = &self.files[at.map_or(0, |at| self.file_of(at))];
        let (line, column) = at.map_or((0, 0), |at| file.lines.position(at - file.base));
        let Refusal { expected, advice, wrong_type: _ } = why;
        let (file, place) = (file.name.to_owned(), place.to_owned());
        let problem = Problem { file, line, column, key, place, found, expected, advice };
        self.problems.borrow_mut().push((at, problem));
    }

    /// True if a problem of a key is noted.
    pub(super) fn has_problem(&self, key: &str) -> bool {
        self.problems.borrow().iter().any(|(_, problem)| problem.key == key)
    }

    /// The problem that leaves nothing else to read.
    pub(super) fn fail(self, at: Option<usize>, found: String, why: Refusal) -> ConfigError {
        self.problem(at, String::new(), "", found, why);
        ConfigError { problems: self.problems.into_inner().into_iter().map(|(_, problem)| problem).collect() }
    }

    /// Notes that the setting at `path` is in the file.
    pub(super) fn origin<'p>(&self, path: impl Iterator<Item = &'p str>, at: usize) {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let place = Place { file: number(self.file_of(at)), line: number(self.line(at)) };
        self.origins.borrow_mut().push((hash_path(path), place));
    }

    /// Where the settings stand that are in the files; or all problems, in the order of the files.
    pub(super) fn finish(self) -> Result<Vec<(u64, Place)>, ConfigError> {
        let mut problems = self.problems.into_inner();
        if problems.is_empty() {
            return Ok(self.origins.into_inner());
        }
        problems.sort_by_key(|(at, _)| *at);
        Err(ConfigError { problems: problems.into_iter().map(|(_, problem)| problem).collect() })
    }
}

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Refusal {
    pub(super) expected: Option<String>,
    pub(super) advice: Option<String>,
    /// The value is of another type, which the message then names.
    pub(super) wrong_type: bool,
}

impl Refusal {
    pub(super) fn expected(what: impl Into<String>) -> Self {
        Self { expected: Some(what.into()), ..Self::default() }
    }

    pub(super) fn advice(what: impl Into<String>) -> Self {
        Self { advice: Some(what.into()), ..Self::default() }
    }

    pub(super) fn but(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    fn wrong_type(what: &str) -> Self {
        Self { wrong_type: true, ..Self::expected(what) }
    }
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Setting<T> {
    /// It is not in the section.
    Absent,
    /// It is, with a value that was refused; the problem is noted.
    Refused,
    /// It is, at that byte offset.
    Is(T, usize),
}

impl<T> Setting<T> {
    /// This one, or the default where this one is absent.
    pub(super) fn or<'s>(&'s self, default: &'s Self) -> &'s Self {
        if matches!(self, Self::Absent) { default } else { self }
    }

    /// The same with another value.
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Setting<U> {
        match self {
            Self::Absent => Setting::Absent,
            Self::Refused => Setting::Refused,
            Self::Is(value, at) => Setting::Is(change(value), at),
        }
    }

    /// The value and where it stands.
    pub(super) fn get(&self) -> Option<(&T, usize)> {
        match self {
            Self::Is(value, at) => Some((value, *at)),
            Self::Absent | Self::Refused => None,
        }
    }

    /// The value.
    pub(super) fn value(&self) -> Option<&T> {
        self.get().map(|(value, _)| value)
    }

    /// Its byte offset.
    pub(super) fn at(&self) -> Option<usize> {
        self.get().map(|(_, at)| at)
    }
}

/// A table of the document that is read against its schema.
pub(super) struct Section<'a> {
    pub(super) notes: &'a Notes<'a>,
    table: &'a DeTable<'a>,
    /// Byte offset of its header.
    pub(super) at: usize,
    /// Where its file begins, which the table's own offsets do not count.
    base: usize,
    /// In words, for messages.
    pub(super) place: String,
    /// Its dotted path, in parts.
    pub(super) path: Vec<String>,
    /// Keys that an unknown key probably stands for: that they are missing is the same mistake.
    hinted: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// Opens a section and notes the keys its schema does not know.
    pub(super) fn open(
        notes: &'a Notes<'a>,
        table: &'a DeTable<'a>,
        at: usize,
        place: impl Into<String>,
        path: Vec<String>,
        schema: &'static Schema,
    ) -> Self {
        let (base, place) = (notes.base(notes.file_of(at)), place.into());
        let mut section = Self { notes, table, at, base, place, path, hinted: Vec::new() };
        for (key, value) in table.iter() {
            if !schema.keys.contains(&key.get_ref().as_ref()) {
                let hint = section.unknown_key(key, value.get_ref(), schema);
                section.hinted.extend(hint);
            }
        }
        section
    }

    /// Notes an unknown key and returns the known one it probably stands for.
    fn unknown_key(
        &self,
        key: &Spanned<toml::de::DeString<'_>>,
        value: &DeValue<'_>,
        schema: &'static Schema,
    ) -> Option<&'static str> {
        let name = key.get_ref().as_ref();
        let is_section = match value {
            DeValue::Table(_) => true,
            DeValue::Array(array) => {
                !array.is_empty() && array.iter().all(|v| matches!(v.get_ref(), DeValue::Table(_)))
            }
            _ => false,
        };
        let what = if is_section { "section" } else { "key" };
        let shown = printable(name);
        let unknown = format!("unknown {what} '{shown}'");
        let near = suggest::nearest(name, schema.keys);
        let home = schema.home_of(name);
        let (found, why, hint) = if let Some((_, why)) = schema.refused.iter().find(|(key, _)| *key == name) {
            (format!("{what} '{shown}'"), Refusal::advice(*why), None)
        } else if let Some(home) = home {
            let header = home.header;
            let hint = schema.keys.iter().find(|key| header.trim_matches(['[', ']']) == **key).copied();
            (unknown, Refusal::advice(format!("it belongs in {header}")), hint)
        } else if let Some(near) = near {
            (unknown, Refusal::advice(format!("did you mean '{near}'?")), Some(near))
        } else {
            (unknown, Refusal::expected(format!("one of {}", schema.keys.join(", "))), None)
        };
        self.notes.problem(Some(self.base + key.span().start), self.key(&shown), &self.place, found, why);
        hint
    }

    /// The dotted path of a key.
    pub(super) fn key(&self, key: &str) -> String {
        let mut path = self.path.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path + key
    }

    /// Notes that a key is refused. `found` is what stands there.
    pub(super) fn refuse(&self, at: usize, key: &str, found: String, why: Refusal) {
        self.notes.problem(Some(at), self.key(key), &self.place, found, why);
    }

    /// True if an unknown key of this section probably stands for this one.
    pub(super) fn hinted(&self, key: &str) -> bool {
        self.hinted.contains(&key)
    }

    /// Notes that a key is missing.
    pub(super) fn missing(&self, key: &str, expected: &str) {
        if self.hinted(key) {
            return;
        }
        self.refuse(self.at, key, format!("{key} is missing"), Refusal::expected(expected));
    }

    /// Notes that the value of a key is refused.
    fn refuse_value(&self, key: &str, value: &Spanned<DeValue<'_>>, word: &str, why: Refusal) {
        let mut found = format!("{key} {word} {}", Shown(value.get_ref()));
        if why.wrong_type {
            found = format!("{found} ({})", type_name(value.get_ref()));
        }
        self.refuse(self.base + value.span().start, key, found, why);
    }

    /// Reads a key.
    pub(super) fn read<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&DeValue<'a>) -> Result<T, Refusal>,
    ) -> Setting<T> {
        let Some(value) = self.table.get(key) else { return Setting::Absent };
        match parse(value.get_ref()) {
            Ok(parsed) => Setting::Is(parsed, self.base + value.span().start),
            Err(why) => {
                self.refuse_value(key, value, "=", why);
                Setting::Refused
            }
        }
    }

    /// Reads a key whose value is text.
    pub(super) fn text<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Setting<T> {
        self.read(key, |value| parse(text(value, expected)?))
    }

    /// Reads a key that is on or off.
    pub(super) fn switch(&self, key: &str) -> Setting<bool> {
        self.read(key, |value| match value {
            DeValue::Boolean(on) => Ok(*on),
            _ => Err(Refusal::wrong_type("true or false")),
        })
    }

    /// Reads a key whose value is one of some words. `later` are words for what is not available yet.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)], later: &[&str]) -> Setting<T> {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let expected = one_of(&names);
        self.text(key, &expected, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, meaning)| *meaning).ok_or_else(|| {
                let why = Refusal::expected(expected.clone());
                if later.contains(&text) {
                    why.but(format!("\"{text}\" is not available in this version"))
                } else if let Some(near) = suggest::nearest(text, &names) {
                    why.but(format!("did you mean \"{near}\"?"))
                } else {
                    why
                }
            })
        })
    }

    /// Reads a key whose value is an integer of a range.
    pub(super) fn integer<T: TryFrom<i64>>(&self, key: &str, lo: i64, hi: i64) -> Setting<T> {
        let expected = format!("an integer from {lo} to {hi}");
        self.read(key, |value| {
            let number = integer(value, &expected)?;
            let inside = number.filter(|n| (lo..=hi).contains(n)).and_then(|n| T::try_from(n).ok());
            inside.ok_or_else(|| Refusal::expected(expected.clone()))
        })
    }

    /// Reads a key whose value is an array, noting each element that is refused. `None` as an element
    /// is one that was.
    pub(super) fn list<T>(
        &self,
        key: &str,
        expected: &str,
        mut parse: impl FnMut(&DeValue<'a>) -> Result<T, Refusal>,
    ) -> Setting<Vec<(T, usize)>> {
        let Some(value) = self.table.get(key) else { return Setting::Absent };
        let DeValue::Array(array) = value.get_ref() else {
            let mut why = Refusal::wrong_type(expected);
            if parse(value.get_ref()).is_ok() {
                why = why.but(format!("write {key} = [{}]", Shown(value.get_ref())));
            }
            self.refuse_value(key, value, "=", why);
            return Setting::Refused;
        };
        let mut parsed = Vec::with_capacity(array.len());
        let mut refused = false;
        for element in array.iter() {
            match parse(element.get_ref()) {
                Ok(value) => parsed.push((value, self.base + element.span().start)),
                Err(why) => {
                    refused = true;
                    self.refuse_value(key, element, "has", why);
                }
            }
        }
        match (parsed.is_empty(), refused) {
            (true, false) => {
                self.refuse_value(key, value, "=", Refusal::expected(expected));
                Setting::Refused
            }
            // What could be read is still compared with the rest.
            (false, _) => Setting::Is(parsed, self.base + value.span().start),
            (true, true) => Setting::Refused,
        }
    }

    /// The subsection of a key, with its byte offset.
    pub(super) fn table(&self, key: &str) -> Option<(&'a DeTable<'a>, usize)> {
        let value = self.table.get(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            return Some((table, self.base + value.span().start));
        }
        let mut why = Refusal::expected(format!("a section [{}]", self.header(key)));
        if matches!(value.get_ref(), DeValue::Array(a) if a.iter().all(|v| matches!(v.get_ref(), DeValue::Table(_))))
        {
            why = why.but("write it once, in single brackets");
        }
        let found = format!("{key} is {}", type_name(value.get_ref()));
        self.refuse(self.base + value.span().start, key, found, why);
        None
    }

    /// The subsections of a key that may occur several times, with their byte offsets; `None` if it
    /// is something else.
    pub(super) fn tables(&self, key: &str) -> Option<Vec<(&'a DeTable<'a>, usize)>> {
        let Some(value) = self.table.get(key) else { return Some(Vec::new()) };
        let header = self.header(key);
        let refuse = |value: &Spanned<DeValue<'_>>| {
            let mut why = Refusal::expected(format!("sections [[{header}]]"));
            if matches!(value.get_ref(), DeValue::Table(_)) {
                why = why.but(format!("write [[{header}]], in double brackets"));
            }
            self.refuse(
                self.base + value.span().start,
                key,
                format!("{key} is {}", type_name(value.get_ref())),
                why,
            );
        };
        let DeValue::Array(array) = value.get_ref() else {
            refuse(value);
            return None;
        };
        let mut tables = Vec::with_capacity(array.len());
        for element in array.iter() {
            match element.get_ref() {
                DeValue::Table(table) => tables.push((table, self.base + element.span().start)),
                _ => refuse(element),
            }
        }
        Some(tables)
    }

    /// The value of a setting, whose place in the file is noted, or the default.
    pub(super) fn pick<T: Clone>(&self, key: &str, setting: &Setting<T>, default: T) -> T {
        match setting {
            Setting::Is(value, at) => {
                self.notes.origin(self.path.iter().map(String::as_str).chain([key]), *at);
                value.clone()
            }
            Setting::Absent | Setting::Refused => default,
        }
    }

    /// What stands in the brackets of a subsection's header.
    fn header(&self, key: &str) -> String {
        match self.path.first().map(String::as_str) {
            Some("service") => format!("service.{key}"),
            Some(first) => format!("{first}.{key}"),
            None => key.to_owned(),
        }
    }

    /// The text of a key, if it is text, without noting anything.
    pub(super) fn peek(table: &DeTable<'_>, key: &str) -> Option<String> {
        table.get(key)?.get_ref().as_str().map(printable)
    }

    /// True if the value of a key is an array of nothing.
    pub(super) fn is_empty_array(&self, key: &str) -> bool {
        matches!(self.table.get(key).map(Spanned::get_ref), Some(DeValue::Array(array)) if array.is_empty())
    }

    /// True if the value of a key is an array.
    pub(super) fn is_array(&self, key: &str) -> bool {
        matches!(self.table.get(key).map(Spanned::get_ref), Some(DeValue::Array(_)))
    }

    /// Where a key stands.
    pub(super) fn position(&self, key: &str) -> Option<usize> {
        self.table.get(key).map(|value| self.base + value.span().start)
    }
}

/// The value as text.
pub(super) fn text<'v>(value: &'v DeValue<'_>, expected: &str) -> Result<&'v str, Refusal> {
    value.as_str().ok_or_else(|| Refusal::wrong_type(expected))
}

/// The value as an integer; `None` if it is too large for any setting.
pub(super) fn integer(value: &DeValue<'_>, expected: &str) -> Result<Option<i64>, Refusal> {
    match value.as_integer() {
        Some(digits) => Ok(i64::from_str_radix(digits.as_str(), digits.radix()).ok()),
        None => {
            let why = Refusal::wrong_type(expected);
            let quoted = value.as_str().is_some_and(|text| text.parse::<i64>().is_ok());
            Err(if quoted { why.but("remove the quotes") } else { why })
        }
    }
}

/// `"a", "b" or "c"`.
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Refuses a value for its type.
pub(super) fn wrong_type<T>(expected: &str) -> Result<T, Refusal> {
    Err(Refusal::wrong_type(expected))
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A value as the operator wrote it, more or less, on one line.
struct Shown<'v>(&'v DeValue<'v>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            DeValue::String(text) => write!(f, "\"{}\"", printable(text)),
            DeValue::Integer(number) => f.write_str(&printable(&number.to_string())),
            DeValue::Float(number) => f.write_str(&printable(number.as_str())),
            DeValue::Boolean(yes) => write!(f, "{yes}"),
            DeValue::Datetime(date) => write!(f, "{date}"),
            DeValue::Array(array) if array.len() <= 8 => {
                let nested = |v: &DeValue<'_>| matches!(v, DeValue::Array(_) | DeValue::Table(_));
                f.write_str("[")?;
                for (i, element) in array.iter().map(Spanned::get_ref).enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    match element {
                        inner if nested(inner) => write!(f, "{comma}...")?,
                        plain => write!(f, "{comma}{}", Shown(plain))?,
                    }
                }
                f.write_str("]")
            }
            DeValue::Array(_) => f.write_str("[...]"),
            DeValue::Table(_) => f.write_str("{...}"),
        }
    }
}
