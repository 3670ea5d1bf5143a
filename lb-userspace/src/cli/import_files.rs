//! The files of an import: those named, those of a directory, and those that keepalived's includes name.

use super::import::ImportError;
use crate::import::{Kind, Texts};
use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Largest configuration that is read, in bytes, all its files together.
const MAX_SIZE: u64 = 64 << 20;
/// Files at most.
const MAX_FILES: usize = 4096;
/// Files that include one another, at most.
const DEEPEST: usize = 16;

/// Reads a configuration. A directory is all its `.cfg` files by name, as for `haproxy -f`.
pub(super) fn read(kind: Kind, files: &[PathBuf]) -> Result<Texts, ImportError> {
    let mut reader = Reader { kind, texts: Texts::default(), open: Vec::new() };
    for path in files {
        if !path.is_dir() {
            reader.file(path)?;
            continue;
        }
        let failed = |source| ImportError::Read { path: path.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let shown = name.to_string_lossy();
            if !shown.starts_with('.') && shown.ends_with(".cfg") {
                found.push(path.join(&name));
            }
        }
        if found.is_empty() {
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, "a directory without .cfg files")));
        }
        found.sort();
        found.iter().try_for_each(|path| reader.file(path))?;
    }
    Ok(reader.texts)
}

struct Reader {
    kind: Kind,
    texts: Texts,
    /// The files that are being read, the one that includes the next last.
    open: Vec<PathBuf>,
}

impl Reader {
    fn file(&mut self, path: &Path) -> Result<(), ImportError> {
        let (name, text) = self.text(path)?;
        let file = self.texts.file(&name);
        self.open.push(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
            match (self.kind == Kind::Keepalived).then(|| pattern(line)).flatten() {
                None => self.texts.push(file, number, line),
                Some(pattern) => {
                    let (found, refused) = match self.find(path, pattern) {
                        Ok(found) => (found, None),
                        Err(why) => (Vec::new(), Some(why)),
                    };
                    self.texts.include(file, number, line.trim(), refused);
                    found.iter().try_for_each(|path| self.file(path))?;
                }
            }
        }
        self.open.pop();
        Ok(())
    }

    fn text(&self, path: &Path) -> Result<(String, String), ImportError> {
        let failed = |source| ImportError::Read { path: path.to_owned(), source };
        let room = MAX_SIZE.saturating_sub(self.texts.size() as u64);
        let mut bytes = Vec::new();
        let name = if path == Path::new("-") {
            io::stdin().lock().take(room + 1).read_to_end(&mut bytes).map_err(failed)?;
            "standard input".to_owned()
        } else {
            File::open(path).and_then(|file| file.take(room + 1).read_to_end(&mut bytes)).map_err(failed)?;
            path.display().to_string()
        };
        if bytes.len() as u64 > room || self.texts.files() >= MAX_FILES {
            return Err(ImportError::TooLarge { path: path.to_owned() });
        }
        // Comments of old files are in any encoding.
        Ok((name, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The files of an include, by name; paths are relative to the file that names them. Why not, if they are not read.
    fn find(&self, from: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
        if pattern.contains('$') {
            return Err(
                "not followed: lbctl puts no definitions into the names of files: write it out".to_owned()
            );
        }
        if pattern.contains('{') {
            return Err(
                "not followed: lbctl knows no braces in the names of files: write an include for each"
                    .to_owned(),
            );
        }
        if self.open.len() > DEEPEST {
            return Err(format!("not followed: more than {DEEPEST} files that include one another"));
        }
        let directory = from.parent().unwrap_or(Path::new(""));
        let wanted = directory.join(pattern);
        let paths =
            glob::glob(&wanted.to_string_lossy()).map_err(|error| format!("not followed: {error}"))?;
        let found: Vec<PathBuf> = paths.filter_map(Result::ok).filter(|path| path.is_file()).collect();
        if found.is_empty() {
            return Err(format!("there is no such file: {}", wanted.display()));
        }
        for path in &found {
            if fs::canonicalize(path).is_ok_and(|path| self.open.contains(&path)) {
                return Err(format!("not followed: {} would include itself", path.display()));
            }
            if let Err(error) = File::open(path) {
                return Err(format!("not followed: {}: {error}", path.display()));
            }
        }
        Ok(found)
    }
}

/// What a line includes: keepalived has six words for it, which differ in what is an error.
fn pattern(line: &str) -> Option<&str> {
    let (word, rest) = line.trim().split_once(char::is_whitespace)?;
    let includes = matches!(word, "include" | "includer" | "includem" | "includew" | "includeb" | "includea");
    let rest = rest.split(['#', '!']).next().unwrap_or_default().trim().trim_matches('"');
    (includes && !rest.is_empty()).then_some(rest)
}
