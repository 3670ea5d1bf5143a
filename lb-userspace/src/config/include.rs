//! `include`: a configuration in several files.

use super::{
    error::ConfigError,
    reader::{Notes, Refusal, Section, Setting, text, wrong_type},
    schema,
};
use std::{
    collections::HashSet,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};
use toml::de::{DeTable, DeValue};

/// Largest configuration file, in bytes: some twenty times that of 4,096 services.
const MAX_FILE: u64 = 64 << 20;
/// Files at most: one for every service there can be.
const MAX_FILES: usize = 4096;

/// A file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As messages show it.
    pub name: String,
    pub text: String,
}

const INCLUDE: &str = "a path or a pattern such as \"conf.d/*.toml\", or an array of those";

/// The paths and patterns that the main file names, each with its byte offset.
pub(super) fn read(root: &Section<'_>) -> Vec<(String, usize)> {
    let patterns = if root.is_empty_array("include") {
        Setting::Absent
    } else if root.is_array("include") {
        root.list("include", INCLUDE, pattern)
    } else {
        match root.read("include", pattern) {
            Setting::Is(pattern, at) => Setting::Is(vec![(pattern, at)], at),
            Setting::Absent => Setting::Absent,
            Setting::Refused => Setting::Refused,
        }
    };
    patterns.value().cloned().unwrap_or_default()
}

fn pattern(value: &DeValue<'_>) -> Result<String, Refusal> {
    if !value.is_str() {
        return wrong_type(INCLUDE);
    }
    let pattern = text(value, INCLUDE)?;
    if pattern.is_empty() || pattern.contains('\0') {
        return Err(Refusal::expected(INCLUDE));
    }
    if pattern.contains("**") {
        return Err(Refusal::expected(INCLUDE).but("directories below directories are not searched"));
    }
    match glob::Pattern::new(pattern) {
        Ok(_) => Ok(pattern.to_owned()),
        Err(error) => Err(Refusal::expected(INCLUDE).but(error.msg)),
    }
}

/// The files of a configuration: the main one, then those it includes.
pub(super) fn read_all(path: &Path) -> Result<Vec<SourceFile>, ConfigError> {
    let name = path.to_string_lossy().into_owned();
    let main = SourceFile { text: read_text(path, &name)?, name };
    let found = find(path, &main)?;
    let mut files = vec![main];
    for path in found {
        let name = path.to_string_lossy().into_owned();
        files.push(SourceFile { text: read_text(&path, &name)?, name });
    }
    Ok(files)
}

/// The files that the main file includes, in its order and those of a pattern by name, each once.
fn find(path: &Path, main: &SourceFile) -> Result<Vec<PathBuf>, ConfigError> {
    // Most files include nothing, and a large one takes a while to parse. A key can be written with escapes, too.
    if !main.text.contains("include") && !main.text.contains('\\') {
        return Ok(Vec::new());
    }
    // What is wrong with the text or with the setting is said with the rest.
    let Ok(document) = DeTable::parse(&main.text) else { return Ok(Vec::new()) };
    let silent = Notes::new(&main.name, &main.text);
    let patterns = read(&Section::open(&silent, document.get_ref(), 0, "", Vec::new(), &schema::ROOT));
    if silent.has_problem("include") {
        return Ok(Vec::new());
    }
    let notes = Notes::new(&main.name, &main.text);
    let directory = path.parent().unwrap_or(Path::new(""));
    let identity = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut seen = HashSet::from([identity(path)]);
    let mut files = Vec::new();
    for (pattern, at) in patterns {
        let refuse = |found: String, why| notes.problem(Some(at), "include".to_owned(), "", found, why);
        let shown = format!("include has \"{}\"", super::printable(&pattern));
        let is_pattern = pattern.contains(['*', '?', '[']);
        for file in expand(directory, &pattern) {
            let file = match file {
                Ok(file) => file,
                Err(error) => {
                    let why = Refusal::expected("a directory that can be read");
                    refuse(format!("{shown}, which cannot be searched ({error})"), why);
                    continue;
                }
            };
            if is_pattern && file.is_dir() {
                continue;
            }
            if seen.insert(identity(&file)) {
                files.push(file);
            } else if !is_pattern {
                let why = Refusal::expected("each file once").but("it is read already: remove it here");
                refuse(shown.clone(), why);
            }
        }
        if !is_pattern && !directory.join(&pattern).exists() {
            let why = Refusal::expected("a file that is there").but(format!(
                "no file {}: create it, or write a pattern such as \"conf.d/*.toml\", which may match nothing",
                directory.join(&pattern).display()
            ));
            refuse(shown, why);
        } else if files.len() > MAX_FILES {
            let why = Refusal::expected(format!("at most {MAX_FILES} files"));
            refuse(format!("{shown}, which makes {} files", files.len()), why);
            break;
        }
    }
    notes.finish().map(|_| files)
}

/// The paths of a pattern, sorted; a path by itself if it is there.
fn expand(directory: &Path, pattern: &str) -> Vec<Result<PathBuf, std::io::Error>> {
    if !pattern.contains(['*', '?', '[']) {
        let path = directory.join(pattern);
        return if path.exists() { vec![Ok(path)] } else { Vec::new() };
    }
    // The directory is no part of the pattern, whatever it is called.
    let escaped = glob::Pattern::escape(&directory.to_string_lossy());
    let full = Path::new(&escaped).join(pattern);
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        // What editors leave behind begins with a dot.
        require_literal_leading_dot: true,
    };
    match glob::glob_with(&full.to_string_lossy(), options) {
        Ok(paths) => paths.map(|path| path.map_err(std::io::Error::from)).collect(),
        Err(error) => vec![Err(std::io::Error::other(error.msg))],
    }
}

/// The text of a file.
fn read_text(path: &Path, name: &str) -> Result<String, ConfigError> {
    let fail = |found: String, expected: &str, advice: &str| {
        Notes::new(name, "").fail(None, found, Refusal::expected(expected).but(advice))
    };
    let cannot_read = |error: std::io::Error| {
        let advice = "check the path and its permissions";
        fail(format!("cannot be read ({error})"), "a configuration file", advice)
    };
    let mut file = File::open(path).map_err(cannot_read)?;
    if file.metadata().map_err(cannot_read)?.is_dir() {
        return Err(fail("is a directory".to_owned(), "a configuration file", "name the file in it"));
    }
    let mut bytes = Vec::new();
    // Devices and pipes say nothing of their size.
    file.by_ref().take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail("is too large".to_owned(), "at most 64 MiB", "check that it is the right file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[at];
        // What precedes is text, so that the position can be told.
        let before = String::from_utf8_lossy(&error.as_bytes()[..at]).into_owned();
        let why = Refusal::expected("text in UTF-8").but("save the file in that encoding");
        Notes::new(name, &before).fail(Some(at), format!("byte 0x{byte:02x}"), why)
    })
}

/// The section of a key that may stand once in all files, with its byte offset; every other one is a problem.
pub(super) fn single<'a>(roots: &[Section<'a>], key: &str) -> Option<(&'a DeTable<'a>, usize)> {
    let mut found: Option<(&DeTable<'_>, usize)> = None;
    for root in roots {
        let Some((table, at)) = root.table(key) else { continue };
        if let Some((_, first)) = found {
            let why = Refusal::expected("each section once in all files")
                .but(format!("{} has it: join the two", root.notes.place(first, at)));
            root.refuse(at, key, format!("section [{key}] again"), why);
        } else {
            found = Some((table, at));
        }
    }
    found
}
