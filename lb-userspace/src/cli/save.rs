//! `lbctl save`.

use super::{import, table::printable_lines};
use crate::control::save::SaveView;
use std::path::PathBuf;

pub const EXAMPLES: &str = "\
Examples:
  lbctl save --print          what the files would be
  lbctl save                  lbd writes them; the ones before stay beside them as .bak
  lbctl save new.toml         leaves the configuration alone and writes a copy with the changes

The changes are runtime changes no longer then, nothing that is forwarded moves, and comments and
layout of the files stay. A change goes into the file that defines its service. Drained and disabled
backends stay runtime changes.";

#[derive(Debug, clap::Args)]
pub struct SaveOptions {
    /// Writes a copy there, as whoever runs lbctl; for a configuration in one file
    #[arg(value_name = "FILE", conflicts_with = "print")]
    pub file: Option<PathBuf>,
    /// Prints the files as they would be
    #[arg(long)]
    pub print: bool,
    /// Replaces FILE if there is one
    #[arg(long, requires = "file")]
    pub force: bool,
}

/// What is printed for people.
pub fn render(view: &SaveView) -> String {
    let mut text = String::new();
    let printed = view.files.iter().any(|file| file.text.is_some());
    if printed {
        for file in &view.files {
            if view.files.len() > 1 {
                text += &format!("# {}\n", printable_lines(&file.path));
            }
            text += file.text.as_deref().unwrap_or_default();
        }
        return text;
    }
    text += &format!("{}\n", view.message);
    for file in &view.files {
        text += &format!("  {}, before: {0}.bak\n", file.path);
    }
    for kept in &view.kept {
        text += &format!("  kept as a runtime change: {kept}\n");
    }
    printable_lines(&text) + "\n"
}

/// Writes the copy.
pub fn write(options: &SaveOptions, view: &SaveView) -> Result<String, import::ImportError> {
    let (Some(path), [file]) = (&options.file, view.files.as_slice()) else {
        let path = options.file.clone().unwrap_or_default();
        return Err(import::ImportError::NotOne { path, files: view.files.len() });
    };
    import::write(path, file.text.as_deref().unwrap_or_default(), options.force)?;
    Ok(format!("{}: written; {} is as it was\n", path.display(), printable_lines(&file.path)))
}
